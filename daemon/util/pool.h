/* Objects of one size, named by 32-bit numbers, at addresses that do not change.
 *
 * Address space for all of them is reserved at start; memory is touched as they come into use, lowest number first, and
 * freed numbers are used again first. Exhaustion is back-pressure: pool_take() says POOL_NONE. Number 0 is never given out,
 * so that zeroed memory names nothing. Owned by one thread. */
#pragma once

#include "daemon/util/assert.h"

#define POOL_NONE 0u

struct pool {
        uint8_t *base; /* immutable */
        size_t object_bytes; /* immutable */
        uint32_t max; /* immutable; numbers 1..max */
        uint32_t n_touched;
        uint32_t n_used;
        uint32_t free_head; /* the free list runs through the first four bytes of free objects */
};

int pool_init(struct pool *p, size_t object_bytes, uint32_t max);
void pool_deinit(struct pool *p);
/* The object is zeroed. */
uint32_t pool_take(struct pool *p);
void pool_give(struct pool *p, uint32_t i);

static inline void *pool_at(const struct pool *p, uint32_t i)
{
        ASSERT(i - 1 < p->max);
        return p->base + (size_t)i * p->object_bytes;
}
