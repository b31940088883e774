/* Blocks: the tree of what is stored. Owned by the loop thread.
 *
 * States and who changes them:
 *
 *     ABSENT --block_new()--> FILLING --block_part_filled(), the last part--> RESIDENT
 *                                |                                              |
 *                                +----------------block_kill()------------------+--> DYING --block_free()--> gone
 *
 * MOVING is no state of its own: a RESIDENT block may have copies on their way between tiers, which n_fills (towards memory) and n_demotes (towards
 * NVMe) count.
 *
 * A RESIDENT block has a copy of each part, in host memory (part.at) or as a record of the NVMe tier (store/catalog). One that lacks some in memory
 * is a stub. Blocks that are on NVMe only are not here at all, unless blocks that are continue them: a stub without any part in memory is in the tree
 * just to hold its children, and goes with the last of them.
 *
 * Invariants.
 *  1. A block that is not DYING is in the index under (space, key), and under its parent if it has one.
 *  2. A parent is in the tree at least as long as its children: a kill takes the whole subtree.
 *  3. A block with n_fills > 0 stays allocated, even DYING, until its last transfer has come back to the loop.
 *  4. A block is on its tenant's eviction list iff it is RESIDENT, has no child, no pin, some part in memory, and is not just being replaced.
 *  5. n_parts counts parts with a slot. A block is RESIDENT iff it is whole: n_parts == n_shards of the space, or it is a stub whose other parts have
 *     records. */
#pragma once

#include "daemon/util/pool.h"

#include "daemon/store/tenant.h"

enum block_state { BLOCK_ABSENT, BLOCK_FILLING, BLOCK_RESIDENT, BLOCK_MOVING, BLOCK_DYING };

struct location { /* of a copy in the host tier; slab 0: nowhere */
        uint32_t slab, slot;
};

struct part {
        struct location at; /* of the copy, when there is one */
        uint32_t xfer; /* the transfer that fills (or replaces) it; POOL_NONE: none */
        uint32_t demote; /* the transfer that writes it to NVMe; POOL_NONE: none */
};

struct shards { /* of a block with several parts */
        struct list link; /* in engine.incomplete while the block is FILLING */
        uint64_t deadline_usec;
        uint32_t block;
        struct part parts[];
};

struct block {
        uint8_t key[16];
        uint32_t space;
        uint32_t parent, first_child, next_sibling, prev_sibling;
        uint32_t lru_prev, lru_next; /* see policy/evict.h; RESIDENT only */
        uint32_t n_pins; /* leases on its copies */
        uint32_t used_sec, created_sec;
        uint32_t hits;
        uint8_t state;
        uint8_t n_parts;
        uint8_t n_fills;
        uint8_t in_lru : 1;
        uint8_t stub : 1; /* RESIDENT: some part is not in memory */
        uint8_t queued : 1; /* to be written to NVMe */
        uint8_t recode : 1; /* queued to be brought to the hot rung */
        uint8_t cold : 1; /* was brought to the cold rung, as far as that went */
        uint8_t stored : 1; /* all parts have records: what the catalog would say, at hand */
        uint8_t n_demotes; /* parts being written to NVMe */
        union {
                struct part one; /* n_shards == 1 */
                struct shards *shards; /* else; owned */
        };
};

struct blocks {
        struct pool pool;
        /* key: (space, key) -> value: block number; open addressing, tags of the hash beside the numbers */
        struct index_slot *index;
        uint32_t index_mask;
        uint64_t secret[2]; /* random: clients choose keys, and must not choose collisions */
};

int blocks_init(struct blocks *b, uint32_t max);
void blocks_deinit(struct blocks *b);

static inline struct block *block_at(const struct blocks *b, uint32_t i)
{
        return pool_at(&b->pool, i);
}
static inline struct part *block_part(struct block *b, const struct space *s, uint32_t shard)
{
        return s->geometry.n_shards == 1 ? &b->one : &b->shards->parts[shard];
}

uint64_t blocks_hash(const struct blocks *b, uint32_t space, const uint8_t key[16]);
void blocks_prefetch(const struct blocks *b, uint64_t hash);
void blocks_prefetch_block(const struct blocks *b, uint64_t hash);
/* POOL_NONE: not there */
uint32_t blocks_find_hashed(const struct blocks *b, uint32_t space, const uint8_t key[16], uint64_t hash);
uint32_t blocks_find(const struct blocks *b, uint32_t space, const uint8_t key[16]);

/* The first part from `shard` on that is in memory; n_shards: none. */
static inline uint32_t block_next_part(struct block *b, const struct space *s, uint32_t shard)
{
        while (shard < s->geometry.n_shards && !block_part(b, s, shard)->at.slab)
                shard++;
        return shard;
}

/* A FILLING block in index and tree; POOL_NONE: no room. */
uint32_t block_new(struct blocks *b, struct space *s, const uint8_t key[16], uint32_t parent, uint32_t now_sec);
/* Takes the block out of index and tree: DYING. It has no children. */
void block_detach(struct blocks *b, uint32_t i);
/* Gives a DYING block of the space back; n_fills and n_parts are 0. */
void block_free(struct blocks *b, uint32_t i, const struct space *s);
void assert_block_state(const struct blocks *b, uint32_t i, const struct space *s);
