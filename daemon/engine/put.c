#include <string.h>

#include "daemon/engine/demote.h"
#include "daemon/engine/load.h"
#include "daemon/engine/put.h"
#include "daemon/engine/recode.h"
#include "daemon/engine/reclaim.h"
#include "daemon/policy/evict.h"
#include "daemon/util/metrics.h"
#include "libclient/codec/copy.h"

static void drop_reservation(struct engine *e, struct put *p)
{
        if (p->reserved.slab)
                e->host.tier.ops->abandon(&e->host.tier, p->space, p->reserved);
        p->reserved = (struct location){};
}

/* A copy of the part is somewhere. i: its block in the tree, if any. */
static bool put_exists(struct engine *e, struct space *s, uint32_t shard, const uint8_t key[16], uint32_t i)
{
        if (i != POOL_NONE && block_part(block_at(&e->blocks, i), s, shard)->at.slab)
                return true;
        return i != POOL_NONE ? block_at(&e->blocks, i)->state == BLOCK_RESIDENT : get_is_whole(e, s, key);
}

int put_check(struct engine *e, struct space *s, uint32_t shard, const uint8_t key[16], const uint8_t *parent, bool replace)
{
        uint32_t i = blocks_find(&e->blocks, s->id, key);

        if (!replace && put_exists(e, s, shard, key, i))
                return KVT_E_EXISTS;
        if (i == POOL_NONE && parent && blocks_find(&e->blocks, s->id, parent) == POOL_NONE && !get_is_whole(e, s, parent))
                return KVT_E_NO_PARENT;
        return 0;
}

/* A block whose last filling part came back may now be whole, wait for other shards, or be nothing. */
static void settle_block(struct engine *e, uint32_t i)
{
        struct block *k = block_at(&e->blocks, i);
        struct space *s = space_at(&e->tenants, k->space);

        if (k->state == BLOCK_DYING) {
                engine_settle_block(e, i);
                return;
        }
        if (k->state == BLOCK_FILLING && k->n_parts == s->geometry.n_shards) {
                k->state = BLOCK_RESIDENT;
                if (s->geometry.n_shards > 1)
                        list_remove(&k->shards->link);
                k->used_sec = e->now_sec;
                if (e->on_stored)
                        e->on_stored(e, s, k->key);
                const struct ghost_entry *g = e->nvme.n_devices ? ghosts_find(&e->ghosts, s->id, k->key) : NULL;
                demote_consider(e, s, i, g && g->why == KVT_WHY_EVICTED);
                recode_hot(e, s, i);
        } else if (k->state == BLOCK_FILLING && !k->n_parts && !k->n_fills) {
                engine_kill(e, i, KVT_WHY_NEVER);
                return;
        }
        evict_update(&e->blocks, s->tenant, i, false);
        if (k->state == BLOCK_RESIDENT && k->stub)
                engine_settle_block(e, i);
}

void put_refused(struct engine *e, struct space *s, const uint8_t key[16], int r)
{
        static const struct {
                int r, why;
        } reasons[] = {{KVT_E_QUOTA, KVT_WHY_QUOTA}, {KVT_E_AGAIN_LEASED, KVT_WHY_LEASED}, {KVT_E_NO_PARENT, KVT_WHY_NO_PARENT}};

        metrics.c_refused_quota += r == KVT_E_QUOTA;
        metrics.c_refused_leased += r == KVT_E_AGAIN_LEASED;
        metrics.c_refused_no_parent += r == KVT_E_NO_PARENT;
        metrics.c_refused_again += r == KVT_E_AGAIN;
        for (size_t i = 0; i < ELEMENTSOF(reasons); i++)
                if (reasons[i].r == r)
                        ghosts_add(&e->ghosts, s->id, key, (uint8_t)reasons[i].why, e->now_sec);
}

/* Another copy took the place of the one that was written to NVMe. */
static void forget_record(struct engine *e, struct space *s, struct block *k, uint32_t shard)
{
        k->stored = false;
        nvme_drop_part(&e->nvme, s, shard, k->key, demote_void(e, s, k, shard));
}

void put_restart(struct engine *e, struct list *waiters)
{
        while (!list_empty(waiters)) {
                struct put *w = list_first(waiters, struct put, link);
                list_remove(&w->link);
                int r = w->cancelled ? KVT_E_CANCELLED : put_start(e, w);
                if (w->cancelled)
                        drop_reservation(e, w);
                if (r != PUT_PENDING)
                        w->done(e, w, r);
        }
}

static void put_done(struct engine *e, struct xfer *x, void *arg)
{
        struct put *p = x->put;
        struct block *k = block_at(&e->blocks, x->block);
        struct part *part = block_part(k, x->space, x->shard);
        struct list waiters;
        int r = x->result;

        list_init(&waiters);
        while (!list_empty(&x->waiters)) {
                struct list *l = x->waiters.next;
                list_remove(l);
                list_append(&waiters, l);
        }
        k->n_fills--;
        part->xfer = POOL_NONE;
        if (r == 0 && (p->cancelled || k->state == BLOCK_DYING))
                r = p->cancelled ? KVT_E_CANCELLED : p->has_parent && !p->replace ? KVT_E_NO_PARENT : KVT_E_AGAIN;
        if (r == 0) {
                if (part->at.slab) {
                        k->n_pins -= host_slot(&e->host, part->at)->n_pins; /* they stay with the old copy */
                        e->host.tier.ops->release(&e->host.tier, x->space, part->at);
                        metrics.c_put_replaced++;
                } else {
                        k->n_parts++;
                        k->stub = k->state == BLOCK_RESIDENT && k->n_parts < x->space->geometry.n_shards;
                }
                part->at = x->at;
                if (p->replace)
                        forget_record(e, x->space, k, x->shard);
                e->host.tier.ops->publish(&e->host.tier, x->space, x->at, x->block);
                metrics.c_puts++;
                metrics.c_put_bytes += x->space->geometry.part_bytes;
        } else {
                e->host.tier.ops->abandon(&e->host.tier, x->space, x->at);
                metrics.c_put_cancelled += r == KVT_E_CANCELLED;
        }
        settle_block(e, x->block);
        p->xfer = NULL;
        p->done(e, p, r);
        put_restart(e, &waiters);
}

/* The block to fill: the one there is, or a new one. */
static int get_block(struct engine *e, struct put *p, uint32_t *ret)
{
        uint32_t i = blocks_find(&e->blocks, p->space->id, p->key), parent = POOL_NONE;

        if (i == POOL_NONE && p->replace && get_is_whole(e, p->space, p->key)) /* its other parts stay where they are */
                i = load_stub(e, p->space, p->shard, p->key);
        if (i == POOL_NONE) {
                if (p->has_parent) {
                        parent = blocks_find(&e->blocks, p->space->id, p->parent);
                        if (parent == POOL_NONE && (parent = load_stub(e, p->space, p->shard, p->parent)) == POOL_NONE)
                                return KVT_E_NO_PARENT;
                }
                if (e->blocks.pool.n_used == e->blocks.pool.max) {
                        if (parent != POOL_NONE)
                                evict_forget(&e->blocks, p->space->tenant, parent); /* must not be the one to go */
                        bool made = reclaim_block(e);
                        if (parent != POOL_NONE)
                                evict_update(&e->blocks, p->space->tenant, parent, false);
                        if (!made) {
                                if (parent != POOL_NONE)
                                        engine_settle_block(e, parent);
                                return KVT_E_AGAIN;
                        }
                }
                i = block_new(&e->blocks, p->space, p->key, parent, e->now_sec);
                if (i == POOL_NONE) {
                        if (parent != POOL_NONE)
                                engine_settle_block(e, parent);
                        return KVT_E_NO_MEMORY;
                }
                if (p->space->geometry.n_shards > 1)
                        engine_watch_incomplete(e, i);
                if (parent != POOL_NONE)
                        evict_update(&e->blocks, p->space->tenant, parent, false);
        }
        *ret = i;
        return 0;
}

int put_start(struct engine *e, struct put *p)
{
        uint32_t i = blocks_find(&e->blocks, p->space->id, p->key);
        struct location at = {};
        struct xfer *x = NULL;
        struct part *part;
        struct block *k;
        int r;

        if (i != POOL_NONE) {
                part = block_part(block_at(&e->blocks, i), p->space, p->shard);
                x = part->xfer != POOL_NONE ? pool_at(&e->xfers, part->xfer) : NULL;
                if (x && (p->replace || x->kind != XFER_RECODE)) { /* what is recoded is there, and stays so */
                        list_append(&x->waiters, &p->link);
                        return PUT_PENDING;
                }
                x = NULL;
        }
        if (!p->replace && put_exists(e, p->space, p->shard, p->key, i)) {
                drop_reservation(e, p);
                metrics.c_put_exists++;
                return KVT_E_EXISTS;
        }
        r = get_block(e, p, &i);
        if (r != 0) {
                drop_reservation(e, p);
                put_refused(e, p->space, p->key, r);
                return r;
        }
        k = block_at(&e->blocks, i);
        k->n_fills++; /* keeps it through what reclaiming may do */
        evict_forget(&e->blocks, p->space->tenant, i);
        at = p->reserved;
        p->reserved = (struct location){};
        uint64_t bytes = copy_bytes(&p->space->geometry, !p->hint_bytes, p->space->geometry.part_bytes + p->hint_bytes);
        if (at.slab && host_slab(&e->host, at.slab)->slot_bytes < bytes) { /* it was reserved without knowing of hints */
                e->host.tier.ops->abandon(&e->host.tier, p->space, at);
                at = (struct location){};
        }
        if (!at.slab)
                r = reclaim_reserve(e, p->space, bytes, &at);
        if (r == 0 && k->state == BLOCK_DYING)
                r = KVT_E_AGAIN; /* making room took its parent */
        if (r == 0 && !(x = xfer_new(e, XFER_PUT, p->space, p->staging, at)))
                r = KVT_E_AGAIN;
        if (r != 0) {
                if (at.slab)
                        e->host.tier.ops->abandon(&e->host.tier, p->space, at);
                k->n_fills--;
                put_refused(e, p->space, p->key, r);
                settle_block(e, i);
                return r;
        }
        x->block = i;
        x->shard = p->shard;
        x->offset = p->offset;
        x->hint_bytes = p->hint_bytes;
        x->put = p;
        x->done = put_done;
        block_part(k, p->space, p->shard)->xfer = x->id;
        p->xfer = x;
        xfer_submit(e, x);
        return PUT_PENDING;
}

void put_cancel(struct put *p)
{
        p->cancelled = true;
        if (p->xfer)
                xfer_cancel(p->xfer);
}
