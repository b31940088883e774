/* Operations on a list of keys that answer one status byte each. */
#pragma once

#include "libclient/async.h"

enum {
        LIST_PREFETCH = 1, /* else drop */
        LIST_CORRUPT = 2, /* drop because the bytes do not match their checksum */
};
/* The arguments are checked; on success *ret_op is ready for op_sync() or op_async_keys(). */
int keylist_op(kvt_space *s, const kvt_key *keys, size_t n_keys, uint64_t usec, uint32_t flags, uint8_t *statuses, kvt_op **ret_op);
