/* Loads: parts are brought from the NVMe tier into memory; all who want the same part share one. And fetches: planes read straight into staging. */
#pragma once

#include "daemon/engine/get.h"

struct load { /* somebody who waits for a part to be in memory */
        struct list link; /* in xfer.loads or tenant.loads */
        struct space *space;
        uint32_t shard;
        uint8_t key[16];
        uint8_t device; /* of the record, while it waits for room; 31: not a device's */
        bool only_room; /* it waits for room to read, not for the part: done() is called when it may try again */
        void (*done)(struct engine *e, struct load *l,
                     int r); /* 0; KVT_E_MISS, KVT_E_AGAIN, KVT_E_AGAIN_LEASED, KVT_E_QUOTA, KVT_E_IO, KVT_E_CORRUPT */
};

/* 0: it is in memory; PUT_PENDING: done() is called later, and the load belongs to the caller and stays until then; else an error. */
int load_start(struct engine *e, struct load *l);
/* At the end: whoever waits is told so. */
void load_abandon(struct engine *e);
/* Waits for room: done() is called later. */
void load_wait(struct engine *e, struct load *l);
/* done() is not called any more. */
void load_forget(struct load *l);
/* Nobody waits for it. entry: of the catalog */
void load_ahead(struct engine *e, uint32_t entry);
/* The parts of a stub that are not in memory. */
void load_missing(struct engine *e, struct space *s, uint32_t block);
/* keys were matched, n of them: what continued the last one most often rises, too. */
void load_followers(struct engine *e, struct space *s, const uint8_t *keys, uint32_t n);
/* Starts what waited for room. */
void load_some(struct engine *e);
/* A block of which a part is on NVMe, with stubs for all above it that the tree lacks. POOL_NONE: it is not there, not whole, or there is no room. */
uint32_t load_stub(struct engine *e, struct space *s, uint32_t shard, const uint8_t key[16]);

/* A record's planes first..end into staging. As get_start(). */
int fetch_start(struct engine *e, struct get *g, struct space *s, uint32_t shard, const uint8_t key[16], struct staging *staging,
                uint64_t offset, uint32_t first_plane, uint32_t end_plane);
