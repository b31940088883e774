#include <string.h>

#include "daemon/engine/demote.h"
#include "daemon/engine/get.h"
#include "daemon/engine/put.h"
#include "daemon/engine/recode.h"
#include "daemon/engine/work.h"
#include "daemon/policy/evict.h"
#include "daemon/util/metrics.h"

enum {
        RECODES_MAX = 16, /* under way at once ... */
        LOOK_BLOCKS = 32, /* cold leaves looked at in a pass */
        LOOK_DEPTH = 256, /* ancestors of each */
        COLD_SEC = 1, /* not used for so long, or it is not cold */
        LOOK_USEC = 10000,
};
#define RECODE_BYTES (256ull << 20) /* ... and together no more than this */

static bool is_raw(const struct codec_pair *p)
{
        return p->k.codec->id == CODEC_RAW && p->v.codec->id == CODEC_RAW;
}

void recode_hot(struct engine *e, struct space *s, uint32_t i)
{
        struct ring_of_blocks *q = &e->recodes;
        struct block *k = block_at(&e->blocks, i);

        k->cold = false;
        if (is_raw(&s->ladder.rungs[LADDER_HOT]) || k->recode || k->state != BLOCK_RESIDENT || q->n == q->max)
                return;
        k->recode = true;
        q->blocks[(q->head + q->n++) % q->max] = i;
        e->room = true;
}

uint16_t recode_n_exact(const struct engine *e, const struct block *k)
{
        uint64_t n_tokens = space_at(&e->tenants, k->space)->geometry.block_tokens, n_before = 0, n_sinks = e->conf->p.codec_sinks;

        for (; k->parent != POOL_NONE && n_before < n_sinks; k = block_at(&e->blocks, k->parent))
                n_before += n_tokens;
        return n_before < n_sinks ? (uint16_t)MIN(n_sinks - n_before, n_tokens) : 0;
}

static void take_waiters(struct xfer *x, struct list *ret)
{
        list_init(ret);
        while (!list_empty(&x->waiters)) {
                struct list *l = x->waiters.next;
                list_remove(l);
                list_append(ret, l);
        }
}

static void recode_done(struct engine *e, struct xfer *x, void *arg)
{
        struct block *k = block_at(&e->blocks, x->block);
        struct space *s = x->space;
        struct part *p = k->state == BLOCK_RESIDENT ? block_part(k, s, x->shard) : NULL;
        struct list waiters;
        bool there = p && p->at.slab == x->at.slab && p->at.slot == x->at.slot;

        take_waiters(x, &waiters);
        e->n_recoding--;
        e->recoding_bytes -= s->geometry.part_bytes;
        k->n_fills--;
        if (p)
                p->xfer = POOL_NONE;
        engine_unpin(e, x->at, s->tenant);
        if (x->result == 0 && there) {
                k->n_pins -= host_slot(&e->host, p->at)->n_pins; /* they stay with the old copy */
                e->host.tier.ops->release(&e->host.tier, s, p->at);
                p->at = x->to_at;
                e->host.tier.ops->publish(&e->host.tier, s, x->to_at, x->block);
                metrics.c_recoded++;
        } else if (x->to_at.slab) {
                e->host.tier.ops->abandon(&e->host.tier, s, x->to_at);
        }
        if (x->result == KVT_E_CORRUPT && there)
                get_verify(e, s, k->key);
        engine_settle_block(e, x->block);
        put_restart(e, &waiters);
        e->room = true;
}

/* It is coded: is it smaller, and is there room? Then it goes there. */
static void recode_coded(struct job *j)
{
        struct xfer *x = container_of(j, struct xfer, job);
        struct engine *e = x->engine;
        struct space *s = x->space;
        struct block *k = block_at(&e->blocks, x->block);
        uint64_t bytes;

        x->owner = XFER_LOOP;
        if (x->result != 0 || k->state != BLOCK_RESIDENT) {
                xfer_finish(e, x, x->result ?: KVT_E_MISS);
                return;
        }
        recode_count(x);
        bytes = copy_bytes(&s->geometry, copy_is_raw(&s->geometry, x->coded->planes), x->coded->bytes);
        int r = slab_class_bytes(bytes) < x->slab->slot_bytes || x->rung == LADDER_HOT
                        ? e->host.tier.ops->reserve(&e->host.tier, s, bytes, &x->to_at)
                        : KVT_E_TOO_LARGE;
        if (r != 0) {
                metrics.c_recode_no_room += r != KVT_E_TOO_LARGE;
                xfer_finish(e, x, r);
                return;
        }
        x->to_slab = host_slab(&e->host, x->to_at.slab);
        x->job.done = NULL; /* then xfer_complete() */
        x->state = XFER_QUEUED;
        xfer_submit(e, x);
}

/* Starts bringing a part to a rung. 0: under way, or there is nothing to do; KVT_E_AGAIN: not now. */
static int recode_part(struct engine *e, struct space *s, uint32_t i, uint32_t shard, unsigned rung)
{
        struct block *k = block_at(&e->blocks, i);
        struct part *p = block_part(k, s, shard);
        struct slab *slab;
        struct copy c;
        struct xfer *x;

        if (!p->at.slab || p->xfer != POOL_NONE)
                return 0;
        slab = host_slab(&e->host, p->at.slab);
        if (slab->failed || work_look(s, slab, p->at.slot, &c) != 0 || !work_would_change(s, &c, &s->ladder.rungs[rung]))
                return 0;
        if (e->n_recoding == RECODES_MAX || (e->n_recoding && e->recoding_bytes + s->geometry.part_bytes > RECODE_BYTES) ||
            !(x = xfer_new(e, XFER_RECODE, s, NULL, p->at)))
                return KVT_E_AGAIN;
        x->block = i;
        x->shard = shard;
        x->rung = (uint8_t)rung;
        x->to = s->ladder.rungs[rung];
        x->n_exact = recode_n_exact(e, k);
        x->done = recode_done;
        x->job.done = recode_coded;
        x->job.background = true;
        x->result = KVT_E_CANCELLED; /* until a worker says otherwise */
        k->n_fills++; /* what is being replaced is not evicted */
        p->xfer = x->id;
        e->n_recoding++;
        e->recoding_bytes += s->geometry.part_bytes;
        engine_pin(e, s, i, p->at);
        evict_forget(&e->blocks, s->tenant, i);
        xfer_submit(e, x);
        return 0;
}

static int recode_block(struct engine *e, uint32_t i, unsigned rung)
{
        struct block *k = block_at(&e->blocks, i);
        struct space *s = space_at(&e->tenants, k->space);
        int r = 0;

        for (uint32_t shard = 0; r == 0 && shard < s->geometry.n_shards; shard++)
                r = recode_part(e, s, i, shard, rung);
        return r;
}

static bool recode_queued(struct engine *e)
{
        struct ring_of_blocks *q = &e->recodes;

        while (q->n) {
                uint32_t i = q->blocks[q->head];
                struct block *k = block_at(&e->blocks, i);

                /* the number may be another block's by now, which then has been queued itself */
                if (k->state == BLOCK_RESIDENT && k->recode && recode_block(e, i, LADDER_HOT) == KVT_E_AGAIN)
                        return false;
                k->recode = false;
                q->head = (q->head + 1) % q->max;
                q->n--;
        }
        return true;
}

/* A leaf and what it continues, as far up as it is as cold. False: no more may be started now. */
static bool recode_chain(struct engine *e, uint32_t i)
{
        for (uint32_t depth = 0; i != POOL_NONE && depth < LOOK_DEPTH; depth++) {
                struct block *k = block_at(&e->blocks, i);
                uint32_t up = k->parent;

                if (k->state != BLOCK_RESIDENT || k->used_sec + COLD_SEC > e->now_sec)
                        return true;
                if (!k->cold) {
                        if (recode_block(e, i, LADDER_COLD) == KVT_E_AGAIN)
                                return false;
                        k->cold = true;
                }
                i = up;
        }
        return true;
}

/* The coldest blocks of all tenants. */
static void recode_cold(struct engine *e)
{
        uint64_t used = e->host.tier.used_bytes, capacity = e->host.tier.capacity_bytes;

        if (used < capacity / 100 * e->conf->p.codec_cold_pct)
                return;
        list_for_each (t, &e->tenants.all, struct tenant, link) {
                uint32_t next, i = evict_coldest(t);

                for (int n = 0; i != POOL_NONE && n < LOOK_BLOCKS; n++, i = next) {
                        next = block_at(&e->blocks, i)->lru_next; /* it may leave the list */
                        if (is_raw(&space_at(&e->tenants, block_at(&e->blocks, i)->space)->ladder.rungs[LADDER_COLD]))
                                continue;
                        if (!recode_chain(e, i))
                                return;
                }
        }
}

void recode_some(struct engine *e)
{
        if (recode_queued(e) && e->now_usec >= e->recode_usec) {
                e->recode_usec = e->now_usec + LOOK_USEC;
                recode_cold(e);
        }
}

void recode_count(const struct xfer *x)
{
        const struct geometry *g = &x->space->geometry;

        metrics.c_coded_planes += x->coded->counts.n_coded;
        metrics.c_fallback_planes += x->coded->counts.n_fell_back;
        metrics.c_coded_bytes += g->part_bytes;
        metrics.c_coded_stored_bytes += x->coded->bytes;
}
