/* The catalog: where the records of all NVMe devices lie, in at most 48 bytes each. Owned by the loop thread.
 *
 * An entry is a part of a block: (space, shard, key) -> place. Entries are
 *
 *     LIVE       there is a record on a device
 *     DEAD       there is none (any more, or yet), but entries name this one as their parent: it only keeps its number, and is gone with the last of
 *                them. A DEAD entry has no parent itself.
 *
 *   absent --catalog_add()--> LIVE --catalog_remove()--> DEAD (children) or absent (none)
 *   absent --a child is added first--> DEAD --catalog_add()--> LIVE      DEAD --its last child goes--> absent
 *
 * Invariants. 1. Every entry is found under its key. 2. n_children of an entry is the number of LIVE entries whose parent it is. 3. A LIVE entry that
 * is not the first of a prompt has a parent entry, LIVE or DEAD. 4. Parents come before their children on every chain: no cycles (a parent is
 * refused if it is the entry itself or one below it).
 *
 * An entry is reachable if it and all its ancestors are LIVE: only then can it be matched. One that is not is an orphan: it becomes reachable again when
 * what is missing is written again.
 *
 * The table is a linear hash: one bucket is split at a time, so that growing never stalls the loop, with chains of about two. */
#pragma once

#include "daemon/util/pool.h"

enum record_entry_flags {
        ENTRY_LIVE = 1,
        ENTRY_USED = 2, /* since it was written: worth re-inserting */
        ENTRY_DURABLE = 4,
        ENTRY_ROOT = 8, /* the first block of a prompt */
        ENTRY_DROPPED = 16, /* DEAD by a RECORD_DROP: `at` says where that lies, older records are void (recovery only) */
};

struct record_at { /* a place, unpacked; n_pages 0: nowhere */
        uint32_t device; /* < 16 */
        uint32_t segment; /* < 2^24 */
        uint32_t page; /* within the segment, < 2^18 */
        uint32_t n_pages; /* < 2^18 */
};

struct entry { /* 44 bytes */
        uint8_t key[16];
        uint32_t space_shard; /* space << 8 | shard */
        uint32_t parent; /* an entry; POOL_NONE: none */
        uint32_t next; /* in its bucket */
        uint32_t follower; /* the child that was matched behind it most often, as far as can be said in so little room; may be stale */
        uint16_t n_children;
        uint8_t flags;
        uint8_t follower_count; /* how sure that is: each match of that child adds one, each of another takes one */
        uint32_t at_lo, at_hi; /* packed record_at: n_pages 18, page 18, segment 24, device 4 bits */
};

enum { CATALOG_KNOWN = 1 << 12 };

struct known { /* entries that were found reachable, in places that follow from their number; true while the epoch is the same */
        uint64_t n_steps; /* walked up chains so far */
        struct {
                uint32_t entry, epoch;
        } at[CATALOG_KNOWN];
};

struct catalog {
        struct pool pool; /* of struct entry */
        uint32_t *buckets; /* address space for the most there may be */
        uint32_t n_buckets; /* in use */
        uint32_t n_live;
        uint64_t secret[2]; /* clients choose keys */
        struct known *known; /* owned */
        uint32_t epoch; /* another one whenever an entry with children is removed */
};

/* No room for the entry of a block and one for its parent. */
static inline bool catalog_is_full(const struct catalog *c)
{
        return c->pool.n_used + 2 > c->pool.max;
}

/* max: entries; address space is reserved, memory touched as they come. -errno */
int catalog_init(struct catalog *c, uint32_t max);
void catalog_deinit(struct catalog *c);

static inline struct entry *catalog_at(const struct catalog *c, uint32_t i)
{
        return pool_at(&c->pool, i);
}
struct record_at entry_place(const struct entry *e);
void entry_move(struct entry *e, struct record_at at); /* the record lies elsewhere from now on */
static inline uint32_t entry_space(const struct entry *e)
{
        return e->space_shard >> 8;
}
static inline uint32_t entry_shard(const struct entry *e)
{
        return e->space_shard & 255;
}
static inline bool entry_live(const struct entry *e)
{
        return e->flags & ENTRY_LIVE;
}

/* LIVE or DEAD; POOL_NONE: neither. space < 2^24. */
uint32_t catalog_find(const struct catalog *c, uint32_t space, uint32_t shard, const uint8_t key[16]);
/* LIVE only */
uint32_t catalog_find_live(const struct catalog *c, uint32_t space, uint32_t shard, const uint8_t key[16]);
/* There was no LIVE entry under the key (a DEAD one comes to life). parent_key NULL: the first of a prompt. flags: of USED, DURABLE. POOL_NONE: no
 * room, a cycle, or a parent with 65,535 children. */
uint32_t catalog_add(struct catalog *c, uint32_t space, uint32_t shard, const uint8_t key[16], const uint8_t *parent_key,
                     struct record_at at, unsigned flags);
/* LIVE -> DEAD or absent. */
void catalog_remove(struct catalog *c, uint32_t i);
/* Remembers a drop at that place until catalog_forget_drops(): a DEAD entry with ENTRY_DROPPED. There is no LIVE entry. POOL_NONE: no room. */
uint32_t catalog_add_drop(struct catalog *c, uint32_t space, uint32_t shard, const uint8_t key[16], struct record_at at);
/* Looks at n_steps entries from *cursor (0 at first) on, and forgets the drops among them. True: that was all. */
bool catalog_forget_drops(struct catalog *c, uint32_t *cursor, uint32_t n_steps, bool keep_nowhere);
/* The entry and all above it are LIVE. O(depth). */
bool catalog_reachable(const struct catalog *c, uint32_t i);
/* Recomputes everything; NULL: all agrees, else what does not. O(n). */
const char *catalog_audit(const struct catalog *c);
/* All memory in use. */
uint64_t catalog_bytes(const struct catalog *c);
/* child, whose parent that is, was matched behind it. */
void catalog_followed(struct catalog *c, uint32_t parent, uint32_t child);
/* What follows the entry most often, as far as is known, and is LIVE; POOL_NONE. */
uint32_t catalog_follower(const struct catalog *c, uint32_t i);
