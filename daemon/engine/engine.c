#include <string.h>

#include "daemon/engine/engine.h"
#include "daemon/engine/reclaim.h"
#include "daemon/engine/xfer.h"
#include "daemon/io/worker.h"
#include "daemon/policy/evict.h"
#include "daemon/util/clock.h"
#include "daemon/util/metrics.h"

int engine_init(struct engine *e, const struct conf *conf)
{
        const struct params *p = &conf->p;
        int r;

        *e = (struct engine){.conf = conf};
        list_init(&e->incomplete);
        tenants_init(&e->tenants, p->host_bytes);
        r = queue_init(&e->queue);
        if (r < 0)
                return r;
        if ((r = blocks_init(&e->blocks, (uint32_t)p->max_blocks)) < 0 || (r = ghosts_init(&e->ghosts, (uint32_t)p->ghost_entries)) < 0 ||
            (r = pool_init(&e->xfers, sizeof(struct xfer), 65536)) < 0 ||
            (r = host_init(&e->host, p->host_bytes, p->slab_bytes, p->prealloc_bytes, p->huge_pages, &e->queue)) < 0 ||
            (r = workers_start(&e->workers, &e->queue, (unsigned)p->workers)) < 0) {
                engine_deinit(e);
                return r;
        }
        engine_tick(e);
        host_refill(&e->host);
        return 0;
}

/* Jobs that no worker took. */
static void abandon_jobs(struct engine *e, struct list *jobs)
{
        while (!list_empty(jobs)) {
                struct job *j = list_first(jobs, struct job, link);
                list_remove(&j->link);
                if (j->work == slab_release_work)
                        slab_free(container_of(j, struct slab, job));
                else if (j->work != slab_populate_work)
                        xfer_abandon(e, container_of(j, struct xfer, job));
        }
}

void engine_deinit(struct engine *e)
{
        e->workers = workers_stop(e->workers);
        e->on_stored = e->on_removed = NULL;
        e->host.on_populated = e->host.on_retired = NULL;
        if (e->queue.event_fd > 0) {
                engine_collect(e);
                abandon_jobs(e, &e->queue.urgent);
                abandon_jobs(e, &e->queue.submitted);
        }
        for (uint32_t i = 1; e->blocks.pool.base && i <= e->blocks.pool.n_touched; i++) {
                struct block *k = block_at(&e->blocks, i);
                if ((k->state == BLOCK_FILLING || k->state == BLOCK_RESIDENT) && space_at(&e->tenants, k->space)->geometry.n_shards > 1)
                        free(k->shards);
        }
        host_deinit(&e->host);
        tenants_deinit(&e->tenants);
        ghosts_deinit(&e->ghosts);
        blocks_deinit(&e->blocks);
        pool_deinit(&e->xfers);
        if (e->queue.event_fd > 0)
                queue_deinit(&e->queue);
        *e = (struct engine){};
}

void engine_tick(struct engine *e)
{
        e->now_usec = clock_usec();
        e->now_sec = (uint32_t)(e->now_usec / USEC_PER_SEC);
}

void engine_collect(struct engine *e)
{
        struct list done;

        list_init(&done);
        queue_collect(&e->queue, &done);
        while (!list_empty(&done)) {
                struct job *j = list_first(&done, struct job, link);
                list_remove(&j->link);
                if (j->done)
                        j->done(j);
                else if (j->work == slab_populate_work || j->work == slab_release_work)
                        host_job_done(&e->host, container_of(j, struct slab, job));
                else
                        xfer_complete(e, container_of(j, struct xfer, job));
        }
}

bool engine_pass(struct engine *e)
{
        bool more = reclaim_background(e);

        host_refill(&e->host);
        queue_kick(&e->queue);
        return more;
}

void engine_settle_space(struct engine *e, struct space *s)
{
        if (!s->n_blocks && !s->n_open)
                space_forget(&e->tenants, s);
}

/* One block without children. */
static void kill_leaf(struct engine *e, uint32_t i, int why)
{
        struct block *k = block_at(&e->blocks, i);
        struct space *s = space_at(&e->tenants, k->space);
        struct tenant *t = s->tenant;
        uint32_t parent = k->parent;
        bool was_resident = k->state == BLOCK_RESIDENT;

        assert_block_state(&e->blocks, i, s);
        evict_forget(&e->blocks, t, i);
        for (uint32_t shard = 0; shard < s->geometry.n_shards; shard++) {
                struct part *p = block_part(k, s, shard);
                if (p->at.slab) {
                        e->host.tier.ops->release(&e->host.tier, s, p->at);
                        p->at = (struct location){};
                        k->n_parts--;
                }
        }
        if (was_resident || why == KVT_WHY_TIMEOUT) {
                ghosts_add(&e->ghosts, s->id, k->key, (uint8_t)why, e->now_sec);
                if (was_resident && e->on_removed)
                        e->on_removed(e, s, k->key);
        }
        block_detach(&e->blocks, i);
        s->n_blocks--;
        t->n_blocks--;
        if (s->geometry.n_shards > 1)
                list_remove(&k->shards->link);
        if (!k->n_fills)
                block_free(&e->blocks, i, s);
        if (parent != POOL_NONE)
                evict_update(&e->blocks, t, parent, true);
        switch (why) {
        case KVT_WHY_EVICTED:
                metrics.c_evicted++;
                metrics.c_evicted_bytes += s->slot_bytes * s->geometry.n_shards;
                t->evicted++;
                break;
        case KVT_WHY_RECLAIMED:
                metrics.c_reclaimed++;
                break;
        case KVT_WHY_DROPPED:
                metrics.c_dropped += was_resident;
                break;
        case KVT_WHY_PURGED:
                metrics.c_purged += was_resident;
                break;
        case KVT_WHY_CORRUPT:
                metrics.c_corrupt += was_resident;
                break;
        case KVT_WHY_TIMEOUT:
                metrics.c_put_timeouts++;
                break;
        }
        engine_settle_space(e, s);
}

void engine_kill(struct engine *e, uint32_t block, int why)
{
        uint32_t i = block, up;

        for (;;) { /* deepest first, without recursion: chains are thousands of blocks long */
                while (block_at(&e->blocks, i)->first_child != POOL_NONE)
                        i = block_at(&e->blocks, i)->first_child;
                up = block_at(&e->blocks, i)->parent;
                kill_leaf(e, i, i == block || why != KVT_WHY_CORRUPT ? why : KVT_WHY_DROPPED);
                if (i == block)
                        return;
                i = up;
        }
}

bool engine_purge(struct engine *e, struct tenant *t, struct space *s, uint32_t *cursor, uint32_t n_steps)
{
        struct pool *p = &e->blocks.pool;

        for (uint32_t n = 0; n < n_steps && *cursor < p->n_touched && (s ? s->n_blocks : t->n_blocks); n++) {
                struct block *k = block_at(&e->blocks, ++*cursor);
                if (k->state != BLOCK_FILLING && k->state != BLOCK_RESIDENT)
                        continue;
                struct space *of = space_at(&e->tenants, k->space);
                if (of->tenant == t && (!s || of == s)) {
                        of->n_open++; /* keep it until the loop has looked at it again */
                        engine_kill(e, *cursor, KVT_WHY_PURGED);
                        of->n_open--;
                        if (of != s)
                                engine_settle_space(e, of);
                }
        }
        if (*cursor < p->n_touched && (s ? s->n_blocks : t->n_blocks))
                return false;
        list_for_each_safe (i, &t->empty, struct slab, link)
                host_retire(&e->host, i);
        return true;
}

void engine_watch_incomplete(struct engine *e, uint32_t block)
{
        struct shards *s = block_at(&e->blocks, block)->shards;

        s->deadline_usec = e->now_usec + e->conf->p.put_timeout_usec;
        list_remove(&s->link);
        list_append(&e->incomplete, &s->link);
}

uint64_t engine_deadline(const struct engine *e)
{
        const struct shards *s = list_first(&e->incomplete, struct shards, link);

        return s ? s->deadline_usec : UINT64_MAX;
}

void engine_expire(struct engine *e)
{
        for (struct shards *s; (s = list_first(&e->incomplete, struct shards, link)) && s->deadline_usec <= e->now_usec;) {
                if (block_at(&e->blocks, s->block)->n_fills) /* a part is being written just now */
                        engine_watch_incomplete(e, s->block);
                else
                        engine_kill(e, s->block, KVT_WHY_TIMEOUT);
        }
}

void engine_pin(struct engine *e, struct space *s, uint32_t block, struct location at)
{
        struct block *k = block_at(&e->blocks, block);

        host_pin(&e->host, at);
        k->n_pins++;
        s->tenant->n_leases++;
        evict_update(&e->blocks, s->tenant, block, false);
}

void engine_unpin(struct engine *e, struct location at, struct tenant *t)
{
        uint32_t block = host_unpin(&e->host, at);

        ASSERT(t->n_leases > 0);
        t->n_leases--;
        if (block == POOL_NONE)
                return;
        struct block *k = block_at(&e->blocks, block);
        ASSERT(k->n_pins > 0);
        k->n_pins--;
        evict_update(&e->blocks, t, block, false);
}

static const char *audit_tenant(struct engine *e, struct tenant *t)
{
        uint64_t held = t->staging_bytes, used = 0, retired = 0, payload = 0, in_spaces = 0;

        for (uint32_t id = 1; id <= e->host.max_slabs; id++) {
                const struct slab *s = e->host.by_id[id];
                if (!s || s->tenant != t)
                        continue;
                held += s->bytes;
                used += s->n_used * s->slot_bytes;
                retired += s->retired ? s->bytes : 0;
                for (uint32_t i = 0; i < s->n_bumped; i++)
                        if (s->slots[i].state == SLOT_LIVE) {
                                payload += slab_header(s, i)->payload_bytes;
                                in_spaces += s->slot_bytes;
                        }
        }
        list_for_each (s, &e->tenants.spaces, struct space, link)
                if (s->tenant == t)
                        in_spaces -= s->used_bytes;
        return held != t->held_bytes         ? "what a tenant holds does not add up"
               : used != t->used_bytes       ? "what a tenant uses does not add up"
               : retired != t->retired_bytes ? "a tenant's retired slabs do not add up"
               : payload != t->payload_bytes ? "a tenant's payload does not add up"
               : in_spaces                   ? "what a tenant's spaces use does not add up"
                                             : NULL;
}

static const char *audit_slabs(struct engine *e, struct audit *a)
{
        uint64_t held = 0, slabs = 0, nobodys = 0;

        for (uint32_t id = 1; id <= e->host.max_slabs; id++) {
                struct slab *s = e->host.by_id[id];
                uint32_t n = 0;
                if (!s)
                        continue;
                slabs += s->bytes;
                nobodys += s->tenant ? 0 : s->bytes;
                for (uint32_t i = 0; i < s->n_bumped; i++) {
                        if (s->slots[i].state == SLOT_FREE)
                                continue;
                        n++;
                        a->used_bytes += s->slot_bytes;
                        a->n_pins += s->slots[i].n_pins;
                        if (s->slots[i].state == SLOT_LIVE && block_at(&e->blocks, s->slots[i].block)->state == BLOCK_DYING)
                                return "a live slot names a dying block";
                        if (s->slots[i].state == SLOT_ZOMBIE && !s->slots[i].n_pins)
                                return "a slot without block or lease is not free";
                }
                if (n != s->n_used)
                        return "a slab's count of used slots is wrong";
        }
        if (slabs != e->host.tier.slab_bytes)
                return "bytes in slabs do not add up";
        if (a->used_bytes != e->host.tier.used_bytes)
                return "used bytes do not add up";
        list_for_each (t, &e->tenants.all, struct tenant, link) {
                const char *error = audit_tenant(e, t);
                if (error)
                        return error;
                held += t->held_bytes;
        }
        if (held + nobodys != e->host.tier.held_bytes)
                return "what tenants and spares hold is not what the tier holds";
        return NULL;
}

void engine_audit(struct engine *e, struct audit *ret)
{
        uint64_t pins = 0, leases = 0, in_tenants = 0;

        *ret = (struct audit){};
        for (uint32_t i = 1; i <= e->blocks.pool.n_touched; i++) {
                struct block *k = block_at(&e->blocks, i);
                if (k->state != BLOCK_FILLING && k->state != BLOCK_RESIDENT)
                        continue;
                struct space *s = space_at(&e->tenants, k->space);
                assert_block_state(&e->blocks, i, s);
                ret->n_blocks++;
                pins += k->n_pins;
                if (blocks_find(&e->blocks, k->space, k->key) != i)
                        ret->error = "a block is not found under its key";
                if (k->parent != POOL_NONE && block_at(&e->blocks, k->parent)->state == BLOCK_DYING)
                        ret->error = "a block's parent is gone";
        }
        const char *error = audit_slabs(e, ret);
        list_for_each (t, &e->tenants.all, struct tenant, link) {
                leases += t->n_leases;
                in_tenants += t->n_blocks;
        }
        if (error)
                ret->error = error;
        else if (in_tenants != ret->n_blocks)
                ret->error = "the tenants' blocks do not add up";
        else if (leases != ret->n_pins)
                ret->error = "leases and pins do not add up";
        else if (pins > ret->n_pins)
                ret->error = "blocks have more pins than slots";
}
