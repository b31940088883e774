#include <string.h>

#include "daemon/engine/engine.h"
#include "daemon/engine/reclaim.h"
#include "daemon/engine/xfer.h"
#include "daemon/io/worker.h"
#include "daemon/policy/evict.h"
#include "daemon/util/clock.h"
#include "daemon/util/metrics.h"

struct incomplete { /* names a block by key: it may be gone, and its number used again */
        struct list link;
        uint64_t deadline_usec;
        uint32_t space;
        uint8_t key[16];
};

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
                if (j->work != slab_populate_work)
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
        list_for_each_safe(i, &e->incomplete, struct incomplete, link)
        {
                list_remove(&i->link);
                free(i);
        }
        for (uint32_t i = 1; e->blocks.pool.base && i <= e->blocks.pool.n_touched; i++) {
                struct block *k = block_at(&e->blocks, i);
                if ((k->state == BLOCK_FILLING || k->state == BLOCK_RESIDENT) && space_at(&e->tenants, k->space)->geometry.n_shards > 1)
                        free(k->parts);
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
                if (j->work == slab_populate_work)
                        host_populate_done(&e->host, container_of(j, struct slab, populate_job));
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
        if (!k->n_fills) {
                if (s->geometry.n_shards > 1)
                        free(k->parts);
                block_free(&e->blocks, i);
        }
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
        for (;;) { /* deepest first, without recursion: chains are thousands of blocks long */
                uint32_t i = block;
                while (block_at(&e->blocks, i)->first_child != POOL_NONE)
                        i = block_at(&e->blocks, i)->first_child;
                kill_leaf(e, i, i == block || why != KVT_WHY_CORRUPT ? why : KVT_WHY_DROPPED);
                if (i == block)
                        return;
        }
}

void engine_purge(struct engine *e, struct tenant *t, struct space *s, uint64_t *ret_n_blocks, uint64_t *ret_bytes)
{
        uint64_t n = t->n_blocks, used = t->used_bytes;

        for (uint32_t i = 1; i <= e->blocks.pool.n_touched; i++) {
                struct block *k = block_at(&e->blocks, i);
                if (k->state != BLOCK_FILLING && k->state != BLOCK_RESIDENT)
                        continue;
                struct space *of = space_at(&e->tenants, k->space);
                if (of->tenant != t || (s && of != s))
                        continue;
                of->n_open++; /* keep it until the loop is through */
                engine_kill(e, i, KVT_WHY_PURGED);
                of->n_open--;
                if (s && !of->n_blocks)
                        break;
        }
        *ret_n_blocks = n - t->n_blocks;
        *ret_bytes = used - t->used_bytes;
        list_for_each_safe(i, &e->tenants.spaces, struct space, link) if (i->tenant == t) engine_settle_space(e, i);
        list_for_each_safe(i, &t->empty, struct slab, link) host_retire(&e->host, i);
}

int engine_watch_incomplete(struct engine *e, struct space *s, const uint8_t key[16])
{
        struct incomplete *i = new0(struct incomplete, 1);

        if (!i)
                return KVT_E_NO_MEMORY;
        i->space = s->id;
        i->deadline_usec = e->now_usec + e->conf->p.put_timeout_usec;
        memcpy(i->key, key, 16);
        list_append(&e->incomplete, &i->link);
        return 0;
}

uint64_t engine_deadline(const struct engine *e)
{
        const struct incomplete *i = list_first(&e->incomplete, struct incomplete, link);

        return i ? i->deadline_usec : UINT64_MAX;
}

void engine_expire(struct engine *e)
{
        list_for_each_safe(i, &e->incomplete, struct incomplete, link)
        {
                if (i->deadline_usec > e->now_usec)
                        break;
                uint32_t b = blocks_find(&e->blocks, i->space, i->key);
                const struct block *k = b != POOL_NONE ? block_at(&e->blocks, b) : NULL;
                list_remove(&i->link);
                if (k && k->state == BLOCK_FILLING) {
                        uint64_t age = (e->now_sec - k->created_sec + 1) * USEC_PER_SEC;
                        if (!k->n_fills && age >= e->conf->p.put_timeout_usec)
                                engine_kill(e, b, KVT_WHY_TIMEOUT);
                        else /* being written just now, or a later block under this key */
                                engine_watch_incomplete(e, space_at(&e->tenants, i->space), i->key);
                }
                free(i);
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

static const char *audit_slabs(struct engine *e, struct audit *a)
{
        uint64_t held = 0, slabs = 0;

        for (uint32_t id = 1; id <= e->host.max_slabs; id++) {
                struct slab *s = e->host.by_id[id];
                uint32_t n = 0;
                if (!s)
                        continue;
                slabs += s->bytes;
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
        list_for_each(t, &e->tenants.all, struct tenant, link) held += t->held_bytes;
        if (held + e->host.spare_bytes > e->host.tier.held_bytes)
                return "what tenants hold exceeds what the tier holds";
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
        list_for_each(t, &e->tenants.all, struct tenant, link)
        {
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
