#include <string.h>

#include "daemon/engine/demote.h"
#include "daemon/engine/get.h"
#include "daemon/engine/load.h"
#include "daemon/engine/put.h"
#include "daemon/policy/evict.h"
#include "daemon/util/clock.h"
#include "daemon/util/log.h"
#include "daemon/util/metrics.h"

enum {
        AHEAD = 16, /* keys hashed and fetched ahead of the one looked at */
        VERIFIES_MAX = 64, /* under way at once */
};

bool get_is_whole(struct engine *e, struct space *s, const uint8_t key[16])
{
        for (uint32_t shard = 0; shard < s->geometry.n_shards; shard++) {
                uint32_t i = nvme_find(&e->nvme, s, shard, key);
                if (i == POOL_NONE || !catalog_reachable(&e->nvme.catalog, i))
                        return false;
        }
        return true;
}

/* A block that is not in the tree: is it on NVMe, behind the one matched before it? before: its entries' number, shard 0; updated. */
static bool match_record(struct engine *e, struct space *s, const uint8_t *key, const uint8_t *previous, uint32_t *before, bool probe)
{
        struct catalog *c = &e->nvme.catalog;
        uint32_t first = POOL_NONE;

        for (uint32_t shard = 0; shard < s->geometry.n_shards; shard++) {
                uint32_t i = nvme_find(&e->nvme, s, shard, key);
                if (i == POOL_NONE)
                        return false;
                struct entry *x = catalog_at(c, i);
                bool follows = previous && x->parent != POOL_NONE && !memcmp(catalog_at(c, x->parent)->key, previous, 16);
                /* what was matched before it is whole: only a block out of its chain has to be traced to its start */
                if (follows ? !entry_live(catalog_at(c, x->parent)) && blocks_find(&e->blocks, s->id, previous) == POOL_NONE
                            : !catalog_reachable(c, i))
                        return false;
                if (!shard)
                        first = i;
        }
        if (!probe)
                for (uint32_t shard = 0; shard < s->geometry.n_shards; shard++)
                        catalog_at(c, nvme_find(&e->nvme, s, shard, key))->flags |= ENTRY_USED;
        *before = first;
        return true;
}

uint32_t get_match(struct engine *e, struct space *s, const uint8_t *keys, uint32_t n_keys, bool probe, int *ret_stop)
{
        uint64_t hashes[2 * AHEAD];
        uint32_t n = 0, last = POOL_NONE, entry = POOL_NONE, n_records = 0;

        *ret_stop = 0;
        for (uint32_t i = 0; i < MIN(n_keys, 2u * AHEAD); i++) {
                hashes[i] = blocks_hash(&e->blocks, s->id, keys + 16 * i);
                blocks_prefetch(&e->blocks, hashes[i]);
        }
        for (uint32_t i = 0; i < MIN(n_keys, (uint32_t)AHEAD); i++)
                blocks_prefetch_block(&e->blocks, hashes[i]);
        for (; n < n_keys; n++) {
                const uint8_t *key = keys + 16 * n;
                uint32_t i = blocks_find_hashed(&e->blocks, s->id, key, hashes[n % (2 * AHEAD)]);
                struct block *k = i != POOL_NONE ? block_at(&e->blocks, i) : NULL;
                if (k && k->state == BLOCK_RESIDENT) {
                        k->hits += !probe;
                        k->used_sec = e->now_sec;
                        last = i;
                        if (!probe && e->nvme.n_devices) {
                                if (k->stub)
                                        load_missing(e, s, i);
                                if (!k->stored)
                                        demote_consider(e, s, i, false);
                                else if (!(k->hits & 7) || k->hits == 1) /* it stays worth re-inserting */
                                        match_record(e, s, key, NULL, &entry, false);
                        }
                } else if (!k && s->n_records && match_record(e, s, key, n ? key - 16 : NULL, &entry, probe)) {
                        n_records++;
                        if (!probe)
                                for (uint32_t shard = 0; shard < s->geometry.n_shards; shard++)
                                        load_ahead(e, nvme_find(&e->nvme, s, shard, key));
                } else {
                        *ret_stop = k ? KVT_E_AGAIN : KVT_E_MISS;
                        break;
                }
                if (n + 2 * AHEAD < n_keys) {
                        hashes[n % (2 * AHEAD)] = blocks_hash(&e->blocks, s->id, keys + 16 * (n + 2 * AHEAD));
                        blocks_prefetch(&e->blocks, hashes[n % (2 * AHEAD)]);
                }
                if (n + AHEAD < n_keys)
                        blocks_prefetch_block(&e->blocks, hashes[(n + AHEAD) % (2 * AHEAD)]);
        }
        if (last != POOL_NONE) /* the others have children and are on no list */
                evict_touch(&e->blocks, s->tenant, last, e->now_sec);
        if (probe)
                return n;
        if (s->n_records && n)
                load_followers(e, s, keys, n);
        s->hits += n;
        s->tenant->hits += n;
        metrics.c_hits += n;
        metrics.c_nvme_hits += n_records;
        s->misses += n_keys - n;
        s->tenant->misses += n_keys - n;
        metrics.c_misses += n_keys - n;
        return n;
}

uint32_t get_block_used(struct engine *e, struct space *s, const uint8_t key[16])
{
        uint32_t i = blocks_find(&e->blocks, s->id, key);

        if (i == POOL_NONE || block_at(&e->blocks, i)->state != BLOCK_RESIDENT) {
                metrics.c_read_misses++;
                return POOL_NONE;
        }
        evict_touch(&e->blocks, s->tenant, i, e->now_sec);
        return i;
}

static void get_done(struct engine *e, struct xfer *x, void *arg)
{
        struct get *g = arg;
        struct tenant *t = x->space->tenant;
        const struct slot *k = host_slot(&e->host, x->at);

        if (x->result == KVT_E_CORRUPT && k->state == SLOT_LIVE)
                get_verify(e, x->space, block_at(&e->blocks, k->block)->key);
        engine_unpin(e, x->at, t);
        if (x->result == 0) {
                metrics.c_gets++;
                metrics.c_get_bytes += x->space->geometry.part_bytes;
        }
        g->xfer = NULL;
        g->done(e, g, x->result);
}

int get_start(struct engine *e, struct get *g, struct space *s, uint32_t shard, const uint8_t key[16], struct staging *staging,
              uint64_t offset, uint32_t first_plane, uint32_t end_plane)
{
        uint32_t i = get_block_used(e, s, key);
        struct xfer *x;

        if (i == POOL_NONE)
                return KVT_E_MISS;
        struct part *p = block_part(block_at(&e->blocks, i), s, shard);
        if (!p->at.slab)
                return KVT_E_MISS;
        x = xfer_new(e, XFER_GET, s, staging, p->at);
        if (!x)
                return KVT_E_AGAIN;
        engine_pin(e, s, i, p->at);
        x->offset = offset;
        x->first_plane = first_plane;
        x->end_plane = end_plane;
        x->done = get_done;
        x->arg = g;
        g->xfer = x;
        xfer_submit(e, x);
        return PUT_PENDING;
}

static void verify_done(struct engine *e, struct xfer *x, void *arg)
{
        struct slot *k = host_slot(&e->host, x->at);

        if (x->result == KVT_E_CORRUPT && k->state == SLOT_LIVE) {
                uint32_t block = k->block;
                struct block *b = block_at(&e->blocks, block);
                log_limited(LOG_WARNING, "A block of space '%s' does not match its checksum: dropped from memory", x->space->name);
                metrics.c_corrupt++;
                b->n_pins -= k->n_pins; /* they stay with the copy, which becomes nobody's */
                if (!engine_uncache(e, block)) { /* on NVMe it was verified when it was written */
                        b->n_pins += k->n_pins;
                        metrics.c_corrupt--;
                        engine_kill(e, block, KVT_WHY_CORRUPT);
                }
        }
        engine_unpin(e, x->at, x->space->tenant);
        e->n_verifies--;
}

int get_verify(struct engine *e, struct space *s, const uint8_t key[16])
{
        uint32_t i = blocks_find(&e->blocks, s->id, key);

        if (i == POOL_NONE)
                return KVT_E_MISS;
        for (uint32_t shard = 0; shard < s->geometry.n_shards; shard++) {
                struct part *p = block_part(block_at(&e->blocks, i), s, shard);
                if (!p->at.slab)
                        continue;
                struct xfer *x = e->n_verifies < VERIFIES_MAX ? xfer_new(e, XFER_VERIFY, s, NULL, p->at) : NULL;
                if (!x)
                        return KVT_E_AGAIN;
                engine_pin(e, s, i, p->at);
                e->n_verifies++;
                x->job.background = true; /* a client that calls everything bad must not slow others down */
                x->done = verify_done;
                xfer_submit(e, x);
        }
        return 0;
}
