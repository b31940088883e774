/* The host tier: slabs in DRAM. Owned by the loop thread; queue jobs populate.
 *
 * Room comes from, in this order: a slab of the tenant and slot size with a free slot; an empty slab of the tenant; a spare; a new one.
 * Beyond that engine/reclaim evicts. Spares are slabs without a tenant, allocated ahead in the background. */
#pragma once

#include "daemon/store/slab.h"
#include "daemon/store/tier.h"

struct host {
        struct tier tier;
        uint64_t slab_bytes; /* of an ordinary slab */
        uint64_t prealloc_bytes;
        bool huge_pages;
        struct queue *queue; /* borrowed */
        struct slab **by_id; /* owned */
        uint32_t max_slabs; /* ids 1..max_slabs */
        uint32_t i_id; /* where to look for a free id next */
        struct list spares; /* of struct slab */
        struct list retired; /* of struct slab */
        uint64_t spare_bytes;
        uint64_t generation; /* last given; never repeats within a boot */
        bool starved; /* the system gave no memory for a spare: try again when something is freed */
        enum page_kind kind; /* what the last slab got */
        /* called on the loop */
        void (*on_populated)(struct slab *s, void *arg);
        void (*on_retired)(struct slab *s, void *arg);
        void *arg;
};

int host_init(struct host *h, uint64_t capacity, uint64_t slab_bytes, uint64_t prealloc, bool huge_pages, struct queue *q);
/* All slabs, whoever holds them. */
void host_deinit(struct host *h);

static inline struct slab *host_slab(const struct host *h, uint32_t id)
{
        ASSERT(id && id <= h->max_slabs && h->by_id[id]);
        return h->by_id[id];
}
static inline struct slot *host_slot(const struct host *h, struct location at)
{
        struct slab *s = host_slab(h, at.slab);
        ASSERT(at.slot < s->n_slots);
        return &s->slots[at.slot];
}

/* A lease holds the slot; on release of the last pin a ZOMBIE is freed. Returns the block of a LIVE slot, else POOL_NONE. */
void host_pin(struct host *h, struct location at);
uint32_t host_unpin(struct host *h, struct location at);

/* The tenant's memory for other things than slabs. KVT_E_QUOTA or KVT_E_AGAIN; spares give way. */
int host_charge(struct host *h, struct tenant *t, uint64_t bytes);
void host_uncharge(struct host *h, struct tenant *t, uint64_t bytes);

/* Gives an empty slab of a tenant back to the system, at once or when its last holder is gone. */
void host_retire(struct host *h, struct slab *s);
/* Takes a slab with blocks out of use for new copies, to be reclaimed when it is empty. */
void host_condemn(struct host *h, struct slab *s);
/* A session that had been sent the slab no longer has it. */
void host_drop_holder(struct host *h, struct slab *s);
/* Starts what is missing of the reserve. */
void host_refill(struct host *h);
/* A slab's job came back: its memory is prepared, in part or whole, or given back. */
void host_job_done(struct host *h, struct slab *s);
