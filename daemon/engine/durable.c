/* Durable puts: a chain is written, parents first, then the devices are flushed, then the client is told. See demote.h. */
#include <string.h>

#include "daemon/engine/demote.h"
#include "daemon/engine/put.h"

enum { STARTED_MAX = 64, TRIES_MAX = 3, KEYS_MAX = 1 << 22 /* of all that wait */ };

static void end(struct durable *d, int r)
{
        struct engine *e = d->engine;
        struct space *s = d->space;

        list_remove(&d->link);
        d->done(d, r, d->arg);
        s->tenant->n_durable_keys -= d->n_keys;
        free(d->keys);
        free(d);
        s->n_open--;
        engine_settle_space(e, s);
}

static void synced(struct nvme_sync_all *s, int r)
{
        struct durable *d = container_of(s, struct durable, sync);

        d->syncing = false;
        end(d, r);
}

/* A device is gone, and the catalog still has entries of records on it. */
static bool is_sweeping(const struct engine *e)
{
        for (uint32_t i = 0; i < e->nvme.n_devices; i++)
                if (e->nvme.devices[i]->sweep_cursor != UINT32_MAX)
                        return true;
        return false;
}

/* All records are written. Are they still? Those of a device that failed meanwhile are not, nor are those of ancestors that had one before. 0: they are. */
static int look_again(struct durable *d)
{
        uint32_t i = nvme_find(&d->engine->nvme, d->space, d->shard, d->key);

        if (i != POOL_NONE && catalog_reachable(&d->engine->nvme.catalog, i))
                return 0;
        d->i_done = d->i_started = 0;
        return !d->n_keys || ++d->n_tries > TRIES_MAX ? KVT_E_AGAIN : PUT_PENDING;
}

/* As far as it goes. True: it may be gone. */
static bool step(struct durable *d)
{
        struct engine *e = d->engine;
        int r = 0;

        if (d->syncing)
                return false;
        for (; d->i_done < d->n_keys; d->i_done++) {
                uint32_t i = nvme_find(&e->nvme, d->space, d->shard, d->keys + 16 * d->i_done);
                if (i == POOL_NONE)
                        break;
                catalog_at(&e->nvme.catalog, i)->flags |= ENTRY_DURABLE | ENTRY_USED;
        }
        if (d->i_done == d->n_keys && is_sweeping(e)) {
                if (d->deadline_usec > e->now_usec)
                        return false;
                r = KVT_E_TIMEOUT;
        } else if (d->i_done == d->n_keys && (r = look_again(d)) == PUT_PENDING) {
                e->room = true; /* from the start, in the next pass */
                return false;
        }
        if (r != 0) {
                end(d, r);
                return true;
        }
        if (d->i_done == d->n_keys) {
                d->syncing = true;
                d->sync.done = synced;
                nvme_sync_start(&e->nvme, &d->sync);
                return true;
        }
        if (d->i_started > d->i_done) { /* the next one is being written, or that failed */
                uint32_t i = blocks_find(&e->blocks, d->space->id, d->keys + 16 * d->i_done);
                if (i == POOL_NONE)
                        r = KVT_E_AGAIN; /* made room for others meanwhile */
                else if (block_part(block_at(&e->blocks, i), d->space, d->shard)->demote == POOL_NONE) {
                        d->i_started = d->i_done;
                        r = ++d->n_tries > TRIES_MAX ? e->demote_error ?: KVT_E_IO : 0;
                }
        }
        for (d->i_started = MAX(d->i_started, d->i_done); r == 0 && d->i_started < d->n_keys && d->i_started < d->i_done + STARTED_MAX;
             d->i_started++) {
                uint32_t i = blocks_find(&e->blocks, d->space->id, d->keys + 16 * d->i_started);
                if (engine_has_record(e, d->space, d->shard, d->keys + 16 * d->i_started))
                        continue;
                if (i == POOL_NONE) {
                        r = KVT_E_AGAIN;
                        break;
                }
                if (block_at(&e->blocks, i)->state == BLOCK_FILLING) { /* it is still being copied, or other shards are to come */
                        if (e->draining && !block_at(&e->blocks, i)->n_fills)
                                r = KVT_E_DRAINING;
                        break;
                }
                r = demote_part(e, d->space, i, d->shard, true);
                if (r == KVT_E_AGAIN) {
                        r = 0;
                        break;
                }
                if (r == KVT_E_MISS)
                        r = KVT_E_AGAIN;
                if (r != 0)
                        break;
        }
        if (r == 0 && d->deadline_usec <= e->now_usec)
                r = KVT_E_TIMEOUT;
        if (r != 0)
                end(d, r);
        return r != 0;
}

struct durable *durable_start(struct engine *e, struct space *s, uint32_t shard, const uint8_t key[16],
                              void (*done)(struct durable *d, int r, void *arg), void *arg, int *ret_r)
{
        uint32_t n = 0, first = blocks_find(&e->blocks, s->id, key);
        bool opening = nvme_writable(&e->nvme);

        *ret_r = 0;
        if (!opening || e->nvme.stopping) {
                *ret_r = KVT_E_NO_DEVICE;
                return NULL;
        }
        /* what has a record that can be reached has ancestors that have one */
        uint32_t i = first;
        for (; i != POOL_NONE; i = block_at(&e->blocks, i)->parent) {
                uint32_t up = nvme_find(&e->nvme, s, shard, block_at(&e->blocks, i)->key);
                if (up != POOL_NONE && catalog_reachable(&e->nvme.catalog, up))
                        break;
                n++;
        }
        uint32_t entry = nvme_find(&e->nvme, s, shard, key);
        if (first == POOL_NONE && (entry == POOL_NONE || !catalog_reachable(&e->nvme.catalog, entry))) {
                *ret_r = KVT_E_AGAIN;
                return NULL;
        }
        if (s->tenant->n_durable_keys + n > tenants_share(&e->tenants, KEYS_MAX)) {
                *ret_r = KVT_E_AGAIN;
                return NULL;
        }
        struct durable *d = new0(struct durable, 1);
        if (!d || (n && !(d->keys = malloc(16ull * n)))) {
                free(d);
                *ret_r = KVT_E_NO_MEMORY;
                return NULL;
        }
        d->space = s;
        d->shard = shard;
        d->engine = e;
        memcpy(d->key, key, 16);
        d->n_keys = n;
        s->tenant->n_durable_keys += n;
        d->done = done;
        d->arg = arg;
        d->deadline_usec = e->now_usec + e->conf->p.put_timeout_usec;
        for (i = first; n; i = block_at(&e->blocks, i)->parent)
                memcpy(d->keys + 16 * --n, block_at(&e->blocks, i)->key, 16);
        s->n_open++;
        list_append(&e->durables, &d->link);
        e->room = true; /* the first step is taken in this pass */
        return d;
}

void durable_some(struct engine *e)
{
        list_for_each_safe (d, &e->durables, struct durable, link)
                step(d);
}

void durable_abandon(struct engine *e)
{
        list_for_each_safe (d, &e->durables, struct durable, link)
                if (!d->syncing) /* else the devices' end tells it */
                        end(d, KVT_E_IO);
}
