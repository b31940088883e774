/* Demotion: parts are written from memory to the NVMe tier, in the background, parents first.
 *
 * A block is a candidate once it was used again (policy/admit), or a client asked for it to be durable. Writing never waits for eviction and eviction
 * never waits for writing: a block that has a record is freed in no time, one that has none and was never used is not worth one. */
#pragma once

#include "daemon/engine/xfer.h"

/* The block was put or matched: queues it if it is to be written. */
void demote_consider(struct engine *e, struct space *s, uint32_t block, bool was_ghost);
/* Starts what there is room for. */
void demote_some(struct engine *e);
/* At the end: what is coded and not being written is given up. */
void demote_abandon(struct engine *e);
/* Starts writing a part, whose ancestors have records or are being written. 0: under way, or there already; KVT_E_AGAIN; KVT_E_MISS: it is not in memory;
 * KVT_E_QUOTA; KVT_E_BUDGET; KVT_E_NO_DEVICE; KVT_E_NO_SPACE; KVT_E_TOO_LARGE. */
int demote_part(struct engine *e, struct space *s, uint32_t block, uint32_t shard, bool durable);

/* What is being written of the part was dropped or replaced: it does not become visible. Who asks writes a drop, which voids it on the device. False: nothing is being
 * written. */
bool demote_void(struct engine *e, struct space *s, struct block *k, uint32_t shard);

/* Makes a chain durable: the last block of keys, with all before it. */
struct durable {
        struct list link; /* in engine.durables */
        struct space *space; /* kept open */
        uint32_t shard;
        uint8_t key[16];
        uint8_t *keys; /* owned: those of the chain that had no record, down to the block itself */
        uint32_t n_keys, i_started, i_done;
        uint64_t deadline_usec;
        uint32_t n_tries;
        bool syncing;
        struct nvme_sync_all sync;
        struct engine *engine;
        void (*done)(struct durable *d, int r, void *arg); /* 0 or a named error; then it is gone */
        void *arg;
};
/* done() may be called before it returns. NULL: it was, or will not be: *ret_r says. */
struct durable *durable_start(struct engine *e, struct space *s, uint32_t shard, const uint8_t key[16],
                              void (*done)(struct durable *d, int r, void *arg), void *arg, int *ret_r);
void durable_some(struct engine *e);
/* At the end: whoever waits is told so. */
void durable_abandon(struct engine *e);
