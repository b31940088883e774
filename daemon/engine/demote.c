#include <string.h>

#include "daemon/engine/demote.h"
#include "daemon/engine/get.h"
#include "daemon/engine/recode.h"
#include "daemon/engine/work.h"
#include "daemon/policy/evict.h"
#include "daemon/util/log.h"
#include "daemon/util/metrics.h"

enum { DEMOTES_MAX = 64 /* under way at once */ };
#define CODING_BYTES (256ull << 20) /* of parts that are coded to be written, at once */

void demote_consider(struct engine *e, struct space *s, uint32_t i, bool was_ghost)
{
        struct ring_of_blocks *q = &e->demotes;
        struct block *k = block_at(&e->blocks, i);

        if (k->queued || k->stored || k->stub || k->state != BLOCK_RESIDENT || !e->nvme.n_devices || e->nvme.stopping ||
            s->id >= 1u << 24 || q->n == q->max || !admit_block(k->hits, (uint32_t)e->conf->p.nvme_admit_hits, was_ghost, false) ||
            !nvme_writable(&e->nvme))
                return;
        k->queued = true;
        q->blocks[(q->head + q->n++) % q->max] = i;
        e->room = true;
}

/* The record is written, or is not. */
static void demote_done(struct engine *e, struct xfer *x, void *arg)
{
        struct block *k = block_at(&e->blocks, x->block);
        struct space *s = x->space;
        struct part *p = k->state == BLOCK_RESIDENT || k->state == BLOCK_FILLING ? block_part(k, s, x->shard) : NULL;

        k->n_demotes--;
        if (p)
                p->demote = POOL_NONE;
        e->n_demoting--;
        e->coding_bytes -= x->codes ? s->geometry.part_bytes : 0;
        if (x->result == 0) {
                metrics.c_demoted++;
                metrics.c_demoted_bytes += (uint64_t)x->write.n_pages * FORMAT_PAGE_BYTES;
        } else {
                metrics.c_demote_failed++;
                e->demote_error = x->result;
        }
        if (p && x->result == 0 && !x->write.is_void) {
                k->stored = true;
                for (uint32_t shard = 0; shard < s->geometry.n_shards; shard++)
                        k->stored &= engine_has_record(e, s, shard, k->key);
        }
        if (x->result == KVT_E_CORRUPT && p && !x->write.is_void)
                get_verify(e, s, k->key);
        engine_unpin(e, x->at, s->tenant);
        engine_settle_block(e, x->block);
        e->room = true;
}

bool demote_void(struct engine *e, struct space *s, struct block *k, uint32_t shard)
{
        struct part *p = block_part(k, s, shard);

        if (p->demote == POOL_NONE)
                return false;
        ((struct xfer *)pool_at(&e->xfers, p->demote))->write.is_void = true;
        return true;
}

static void record_written(struct nvme_write *w, int r)
{
        struct xfer *x = container_of(w, struct xfer, write);

        xfer_finish(x->engine, x, x->result ?: r);
}

/* The record has its bytes. */
static void demote_filled(struct job *j)
{
        struct xfer *x = container_of(j, struct xfer, job);

        x->owner = XFER_LOOP;
        x->state = XFER_WRITING;
        nvme_write_submit(&x->engine->nvme, &x->write, x->result == 0);
}

/* Room for the record, of whose payload the length is known now, and the worker that fills it. */
static int demote_place(struct engine *e, struct xfer *x, const struct kvt_copy_plane *planes, uint64_t stored_bytes)
{
        x->write.stored_bytes = stored_bytes;
        x->write.n_page_hashes = (uint32_t)format_pages(stored_bytes);
        x->write.codec = planes[0].codec;
        x->write.max_rel_l2 = part_max_rel_l2(&x->space->geometry, planes);
        int r = nvme_write_begin(&e->nvme, &x->write);
        if (r != 0)
                return r;
        x->job.done = demote_filled;
        x->result = KVT_E_CANCELLED; /* until a worker says otherwise: the engine may end before one takes it */
        x->state = XFER_QUEUED;
        xfer_submit(e, x);
        return 0;
}

/* Those that are coded, in order, as far as there is room. */
static void place_some(struct engine *e)
{
        while (!list_empty(&e->coded)) {
                struct xfer *x = list_first(&e->coded, struct xfer, job.link);
                list_remove(&x->job.link);
                int r = x->write.is_void ? KVT_E_CANCELLED : demote_place(e, x, x->coded->planes, x->coded->bytes);
                if (r == KVT_E_AGAIN && !e->nvme.stopping) {
                        list_append(e->coded.next, &x->job.link); /* first again */
                        return;
                }
                if (r != 0)
                        xfer_finish(e, x, r);
        }
}

static void demote_coded(struct job *j)
{
        struct xfer *x = container_of(j, struct xfer, job);

        x->owner = XFER_LOOP;
        if (x->result != 0) {
                xfer_finish(x->engine, x, x->result);
                return;
        }
        recode_count(x);
        list_append(&x->engine->coded, &x->job.link);
        x->engine->room = true;
}

void demote_abandon(struct engine *e)
{
        while (!list_empty(&e->coded)) {
                struct xfer *x = list_first(&e->coded, struct xfer, job.link);
                list_remove(&x->job.link);
                xfer_finish(e, x, KVT_E_CANCELLED);
        }
}

int demote_part(struct engine *e, struct space *s, uint32_t i, uint32_t shard, bool durable)
{
        struct block *k = block_at(&e->blocks, i);
        struct part *p = block_part(k, s, shard);
        uint64_t bytes = s->geometry.part_bytes + 2 * FORMAT_PAGE_BYTES, limit = e->conf->p.tenant_nvme_bytes;

        if (engine_has_record(e, s, shard, k->key) || p->demote != POOL_NONE)
                return 0;
        if (!p->at.slab)
                return KVT_E_MISS;
        if (s->id >= 1u << 24)
                return KVT_E_LIMIT;
        if (catalog_is_full(&e->nvme.catalog)) { /* it would be written, and nobody would find it */
                log_limited(LOG_WARNING, "The index of the NVMe tier is full: blocks are not written; see nvme_max_records");
                return KVT_E_NO_SPACE;
        }
        if (limit && s->tenant->record_bytes + bytes > limit)
                return KVT_E_QUOTA;
        if (budget_left(&e->budget, e->now_usec) < bytes)
                return KVT_E_BUDGET;
        struct copy c;
        struct xfer *x = xfer_new(e, XFER_DEMOTE, s, NULL, p->at);
        if (!x)
                return KVT_E_AGAIN;
        struct nvme_write *w = &x->write;
        *w = (struct nvme_write){
                .space = s,
                .type = RECORD_BLOCK,
                .shard = (uint8_t)shard,
                .durable = durable,
                .has_parent = k->parent != POOL_NONE,
                .n_planes = s->geometry.n_planes + 1,
                .raw_bytes = s->geometry.part_bytes,
                .done = record_written,
        };
        memcpy(w->key, k->key, 16);
        memcpy(x->key, k->key, 16);
        if (w->has_parent)
                memcpy(w->parent, block_at(&e->blocks, k->parent)->key, 16);
        x->block = i;
        x->shard = shard;
        x->done = demote_done;
        x->job.background = !durable;
        x->to = s->ladder.rungs[LADDER_NVME];
        x->n_exact = recode_n_exact(e, k);
        int r = work_look(s, x->slab, x->slot, &c);
        x->codes = r == 0 && work_would_change(s, &c, &x->to);
        if (r == KVT_E_CORRUPT)
                get_verify(e, s, k->key); /* takes it out */
        else if (x->codes && !nvme_writable(&e->nvme))
                r = KVT_E_NO_DEVICE;
        else if (x->codes && e->coding_bytes && e->coding_bytes + s->geometry.part_bytes > CODING_BYTES)
                r = KVT_E_AGAIN;
        if (r != 0) {
                xfer_free(e, x);
                return r;
        }
        engine_pin(e, s, i, p->at);
        if (!x->codes) {
                r = demote_place(e, x, c.planes, c.bytes);
                if (r != 0) {
                        engine_unpin(e, p->at, s->tenant);
                        xfer_free(e, x);
                        return r;
                }
        } else {
                x->job.done = demote_coded;
                x->result = KVT_E_CANCELLED;
                e->coding_bytes += s->geometry.part_bytes;
                xfer_submit(e, x);
        }
        k->n_demotes++;
        p->demote = x->id;
        e->n_demoting++;
        return 0;
}

/* The block furthest up that is neither on NVMe nor on its way there: it goes first. */
static uint32_t first_to_go(struct engine *e, uint32_t i)
{
        for (;;) {
                uint32_t up = block_at(&e->blocks, i)->parent;
                const struct block *p = up != POOL_NONE ? block_at(&e->blocks, up) : NULL;
                if (!p || p->stored || p->stub || p->n_demotes || p->state != BLOCK_RESIDENT)
                        return i;
                i = up;
        }
}

/* All parts of a block. 0: under way or done. */
static int demote_block(struct engine *e, uint32_t i)
{
        struct block *k = block_at(&e->blocks, i);
        struct space *s = space_at(&e->tenants, k->space);
        int r = 0;

        for (uint32_t shard = 0; r == 0 && shard < s->geometry.n_shards; shard++)
                r = demote_part(e, s, i, shard, false);
        if (r == 0 && !k->n_demotes)
                k->stored = true;
        return r;
}

void demote_some(struct engine *e)
{
        struct ring_of_blocks *q = &e->demotes;
        uint32_t n_put_off = 0;

        place_some(e);
        while (q->n > n_put_off && e->n_demoting < DEMOTES_MAX) {
                uint32_t i = q->blocks[q->head];
                struct block *k = block_at(&e->blocks, i);
                int r = 0;
                if (k->state == BLOCK_RESIDENT && k->queued && !k->stored && !k->stub) {
                        uint32_t first = first_to_go(e, i), up = block_at(&e->blocks, first)->parent;
                        if (up != POOL_NONE && block_at(&e->blocks, up)->state == BLOCK_FILLING) { /* it goes behind its parent */
                                q->head = (q->head + 1) % q->max;
                                q->blocks[(q->head + q->n - 1) % q->max] = i;
                                n_put_off++;
                                continue;
                        }
                        r = demote_block(e, first);
                        if (r == KVT_E_AGAIN)
                                return;
                        if (r == 0 && first != i)
                                continue;
                }
                metrics.c_demote_budget += r == KVT_E_BUDGET;
                metrics.c_demote_failed += r != 0 && r != KVT_E_BUDGET;
                k->queued = false;
                q->head = (q->head + 1) % q->max;
                q->n--;
        }
}
