/* Slabs: the unit in which host memory is owned. One memfd, one tenant for its whole life, slots of one size.
 *
 *     spare --a tenant needs it--> owned --(retire: clients still map it)--> retired --last holder gone--> freed
 *
 * A slab is created without a tenant (spare), sealed SHRINK|GROW|FUTURE_WRITE|SEAL after the daemon's own writable map was made, and is
 * allocated ("populated") in 2 MiB chunks: by the worker that first needs a chunk, and by a background job for the rest. Its descriptor
 * leaves the daemon only when every chunk is there, so that a reader cannot make it grow.
 *
 * Slots: FREE -> RESERVED (being written) -> LIVE (a block's copy) -> FREE, or LIVE -> ZOMBIE (no block any more, leases left) -> FREE.
 * Slot size changes only while the slab is empty and no client holds its map: the word at a slot's start is then always a generation.
 *
 * The loop thread owns everything but the chunk bitmap, which workers set (release) and read (acquire). */
#pragma once

#include "daemon/store/block.h"
#include "daemon/util/queue.h"
#include "proto/shm.h"

#define CHUNK_BYTES (2ull << 20)

enum slot_state { SLOT_FREE, SLOT_RESERVED, SLOT_LIVE, SLOT_ZOMBIE };

struct slot {
        uint32_t block; /* LIVE: its block; FREE: next free slot + 1 */
        uint32_t state : 2;
        uint32_t n_pins : 30;
        uint64_t generation; /* LIVE and ZOMBIE: as in the copy's header */
};

enum page_kind { PAGES_4K, PAGES_THP, PAGES_HUGE };

struct slab {
        struct list link; /* in a class's list, tenant.empty, host.spares or host.retired */
        uint32_t id; /* immutable */
        int fd; /* immutable */
        uint8_t *base; /* immutable */
        uint64_t bytes; /* immutable */
        enum page_kind kind;
        bool collapse; /* immutable: transparent huge pages have to be asked for chunk by chunk */
        struct tenant *tenant; /* NULL: spare */
        struct slab_class *class;
        uint64_t slot_bytes;
        uint32_t n_slots, n_used, n_bumped, free_head;
        uint32_t i_uncache; /* where engine/reclaim looks next for a copy that is on NVMe as well */
        uint32_t n_held; /* slots that killing blocks does not free: RESERVED, ZOMBIE, or LIVE with pins */
        struct slot *slots; /* owned; mapped lazily */
        uint32_t n_holders; /* sessions that were sent the descriptor */
        bool condemned; /* takes no new copies; goes to tenant.empty when the last one is gone */
        bool retired;
        uint64_t retired_usec; /* when its holders were told */
        bool populated; /* all of it; said by the loop */
        bool failed; /* could not be populated: never handed out */
        uint32_t n_jobs; /* 1: being populated */
        struct job job;
        uint32_t i_chunk; /* owned by the populating job */
        int populate_result; /* likewise */
        uint64_t *chunks; /* atomic bitmap, owned */
};

/* Bytes of a slot that holds n bytes: at most 1/16 larger, whole pages from 64 KiB on. */
uint64_t slab_class_bytes(uint64_t n);

/* -ENOMEM, -EMFILE and the like */
int slab_new(struct slab **ret, uint32_t id, uint64_t bytes, bool huge_pages);
/* Unmaps and closes. No jobs, no holders. NULL is fine. */
struct slab *slab_free(struct slab *s);

/* Cuts an empty slab without holders into slots. Returns -ENOMEM and leaves it as it was. */
int slab_format(struct slab *s, uint64_t slot_bytes);
/* The slab has a free slot. */
uint32_t slab_take_slot(struct slab *s);
/* FREE again: no pins. Sets the header's generation to 0. */
void slab_give_slot(struct slab *s, uint32_t slot);

static inline uint8_t *slab_slot_address(const struct slab *s, uint32_t slot)
{
        return s->base + (uint64_t)slot * s->slot_bytes;
}
static inline struct kvt_copy_header *slab_header(const struct slab *s, uint32_t slot)
{
        return (struct kvt_copy_header *)slab_slot_address(s, slot);
}
static inline bool slab_full(const struct slab *s)
{
        return s->n_used == s->n_slots;
}

/* Worker side: allocates the chunks under this range if need be. 0 or -errno (no memory). Any thread. */
int slab_populate(struct slab *s, uint64_t offset, uint64_t n);
/* Work of job once the slab is out of everything: gives the memory back, which takes a while. slab_free() then does the rest. */
void slab_release_work(struct job *j);
/* Work of job: some chunks a turn. Sets populate_result: 0 all done, 1 more to do, -errno. */
void slab_populate_work(struct job *j);
