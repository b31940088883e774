/* The session's staging area: shared memory that both sides write, opened by the first operation that needs it.
 *
 * Ranges of it are handed out first-fit, so that a put that follows another finds its memory in the cache. A range that the daemon
 * may still read or write belongs to the request that named it, until that is answered. An area of an older epoch lives until its last
 * range (a reservation that the application still holds) is given back. */
#pragma once

#include "libclient/async.h"

struct extent {
        uint64_t offset, bytes;
};

struct staging {
        uint8_t *base;
        uint64_t bytes;
        uint64_t epoch;
        struct extent *free; /* by offset; never adjacent */
        uint32_t n_free, cap_free;
        uint32_t n_used; /* ranges handed out */
        uint8_t *prepared; /* a byte a chunk of 2 MiB, set once it has its memory; atomic */
        bool attached; /* to the connection */
        struct staging *next_old, **link_old;
};

/* Sees to it that there is an area: 0 (there is), STEP_PENDING (op will have news), or an error. */
int staging_ensure(kvt_op *op);
/* As the area lays them out: what a part takes there. */
uint64_t staging_stride(uint64_t part_bytes);
/* A range; NULL *ret and KVT_E_AGAIN: no room now. KVT_E_TOO_LARGE: never. */
int staging_alloc(kvt *c, uint64_t bytes, struct staging **ret, uint64_t *ret_offset);
/* Before a range that was handed out is filled: without the lock. */
void staging_prepare(struct staging *s, uint64_t offset, uint64_t bytes);
void staging_free(kvt *c, struct staging *s, uint64_t offset, uint64_t bytes);
void staging_detach(kvt *c);
void staging_deinit(kvt *c, bool child);
