/* What is in a mapping: planes under codecs, and how they become the bytes that were put. */
#pragma once

#include "libclient/codec/copy.h"
#include "libclient/map.h"

/* A mapping's copy, looked at anew: it is not our memory, and may be another copy's once the lease has ended. 0: it fits a part of the space, in its slab.
 * KVT_E_LEASE_LOST: the header is not the copy's any more. KVT_E_CORRUPT: it changed, and no lease was lost. */
int mapped_copy(const kvt_space *s, const kvt_mapping *m, struct copy *ret);
/* 64-byte aligned, at least n bytes, in *p of *n_p bytes (to free(); it grows). NULL: no memory. */
void *scratch_grow(void **p, size_t *n_p, size_t n);
