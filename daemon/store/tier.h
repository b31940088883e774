/* A tier: somewhere copies can lie. The engine speaks to tiers through this; tests put failing ones in its place.
 *
 * Owned by the loop thread. reserve() never waits: KVT_E_AGAIN means that room has to be made first (engine/reclaim). */
#pragma once

#include "daemon/store/block.h"

struct tier;

struct tier_ops {
        const char *name;
        /* Room for a copy of a part of the space, of so many bytes (copy_bytes()). 0 with *ret RESERVED; KVT_E_QUOTA: the hard quota is in the way; KVT_E_AGAIN: the capacity is; KVT_E_NO_MEMORY:
         * the system gave none. */
        int (*reserve)(struct tier *t, struct space *s, uint64_t bytes, struct location *ret);
        /* Gives RESERVED room back. */
        void (*abandon)(struct tier *t, struct space *s, struct location at);
        /* RESERVED -> LIVE: the copy is whole; readers may see it from here on. */
        void (*publish)(struct tier *t, struct space *s, struct location at, uint32_t block);
        /* LIVE -> free, or as soon as the last pin is gone. */
        void (*release)(struct tier *t, struct space *s, struct location at);
};

struct tier {
        const struct tier_ops *ops;
        uint64_t capacity_bytes;
        uint64_t held_bytes; /* slabs of all tenants, spares, retired ones, staging */
        uint64_t slab_bytes; /* of held_bytes, in slabs */
        uint64_t used_bytes; /* slots in use */
        uint64_t payload_bytes, n_parts; /* of what is served, as it was put; n_parts: host only */
        uint32_t n_slabs, n_retired;
};
