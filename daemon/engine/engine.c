#include <string.h>

#include "daemon/engine/demote.h"
#include "daemon/engine/engine.h"
#include "daemon/engine/load.h"
#include "daemon/engine/reclaim.h"
#include "daemon/engine/recode.h"
#include "daemon/engine/xfer.h"
#include "daemon/io/worker.h"
#include "daemon/policy/evict.h"
#include "daemon/util/clock.h"
#include "daemon/util/log.h"
#include "daemon/util/metrics.h"

/* A record left the catalog: what the tree believes of it changes. */
static void on_gone(struct nvme *n, struct space *s, uint32_t shard, const uint8_t key[16], int why, void *arg)
{
        struct engine *e = arg;
        uint32_t i = blocks_find(&e->blocks, s->id, key);
        struct block *k = i != POOL_NONE ? block_at(&e->blocks, i) : NULL;

        if (k) {
                k->stored = false;
                if (k->state != BLOCK_RESIDENT || block_part(k, s, shard)->at.slab)
                        return;
                engine_kill(e, i, KVT_WHY_EVICTED);
        } else {
                for (uint32_t other = 0; other < s->geometry.n_shards; other++)
                        if (other != shard && !engine_has_record(e, s, other, key))
                                return; /* it was no whole block before */
                if (e->on_removed)
                        e->on_removed(e, s, key);
        }
        ghosts_add(&e->ghosts, s->id, key, (uint8_t)why, e->now_sec);
}

static bool is_needed(struct nvme *n, struct space *s, const uint8_t key[16], void *arg)
{
        struct engine *e = arg;
        uint32_t i = blocks_find(&e->blocks, s->id, key);

        return i != POOL_NONE && block_at(&e->blocks, i)->stub;
}

static void on_room(struct nvme *n, void *arg)
{
        struct engine *e = arg;

        e->room = true;
}

static void on_settle(struct nvme *n, struct space *s, void *arg)
{
        engine_settle_space(arg, s);
}

static int init_nvme(struct engine *e)
{
        const struct params *p = &e->conf->p;
        struct nvme_options o = {
                .segment_bytes = p->nvme_segment_bytes & ~((1ull << 20) - 1),
                .file_bytes = p->nvme_bytes,
                .buffer_bytes = align_up(p->nvme_buffer_bytes, FORMAT_PAGE_BYTES),
                .timeout_usec = p->nvme_timeout_usec,
                .scrub_bytes_sec = p->nvme_scrub_bytes_sec,
                .depth = (unsigned)p->nvme_queue_depth,
                .poll = p->nvme_poll,
                .spin_usec = p->busy_poll_usec,
                .no_uring = !p->nvme_uring,
                .discard = p->nvme_discard,
        };
        int r = nvme_init(&e->nvme, &o, e->conf, &e->tenants, &e->queue, p->nvme_max_records ?: 64ull << 20);

        if (r < 0)
                return r;
        e->nvme.on_gone = on_gone;
        e->nvme.is_needed = is_needed;
        e->nvme.on_room = on_room;
        e->nvme.on_settle = on_settle;
        e->nvme.pick = admit_pick_segment;
        e->nvme.arg = e;
        e->demotes.max = e->ahead.max = e->recodes.max = 1 << 16;
        e->demotes.blocks = new0(uint32_t, e->demotes.max);
        e->recodes.blocks = new0(uint32_t, e->recodes.max);
        e->ahead.entries = new0(uint32_t, e->ahead.max);
        budget_init(&e->budget, p->nvme_write_day_bytes, 0, clock_usec());
        return e->demotes.blocks && e->ahead.entries && e->recodes.blocks ? 0 : -ENOMEM;
}

static void attach_devices(struct engine *e)
{
        _cleanup_(freep) char *paths = strdup(e->conf->p.nvme_devices);

        if (!paths || !strcmp(paths, "none"))
                return;
        for (char *at = NULL, *path = strtok_r(paths, ",", &at); path; path = strtok_r(NULL, ",", &at)) {
                path += strspn(path, " ");
                for (size_t n = strlen(path); n && path[n - 1] == ' ';)
                        path[--n] = 0;
                /* where the daemon happens to have been started is no place; nor could it be named to be detached */
                int r = !*path ? 0 : *path == '/' ? nvme_attach(&e->nvme, path) : KVT_E_BAD_REQUEST;
                if (r == KVT_E_BAD_REQUEST || r == KVT_E_EXISTS)
                        log_warning("%s is left out: %s", path, r == KVT_E_EXISTS ? "named twice" : "its path does not begin with /");
                else if (r != 0)
                        log_warning("%s is left out: %s", path, r == KVT_E_LIMIT ? "too many devices" : "no memory");
        }
}

int engine_init(struct engine *e, const struct conf *conf)
{
        const struct params *p = &conf->p;
        int r;

        *e = (struct engine){.conf = conf};
        list_init(&e->incomplete);
        list_init(&e->loads);
        list_init(&e->durables);
        list_init(&e->coded);
        tenants_init(&e->tenants, p->host_bytes);
        e->tenants.conf = conf;
        r = queue_init(&e->queue);
        if (r < 0)
                return r;
        if ((r = blocks_init(&e->blocks, (uint32_t)p->max_blocks)) < 0 || (r = ghosts_init(&e->ghosts, (uint32_t)p->ghost_entries)) < 0 ||
            (r = pool_init(&e->xfers, sizeof(struct xfer), 65536)) < 0 || (r = init_nvme(e)) < 0 ||
            (r = host_init(&e->host, p->host_bytes, p->slab_bytes, p->prealloc_bytes, p->huge_pages, &e->queue)) < 0 ||
            (r = workers_start(&e->workers, &e->queue, (unsigned)p->workers)) < 0) {
                engine_deinit(e);
                return r;
        }
        engine_tick(e);
        attach_devices(e);
        host_refill(&e->host); /* hands both over to the workers */
        return 0;
}

/* Jobs that no worker took. */
static void abandon_jobs(struct engine *e, struct list *jobs)
{
        while (!list_empty(jobs)) {
                struct job *j = list_first(jobs, struct job, link);
                list_remove(&j->link);
                if (j->done) /* with nothing done: the rings are closed, so that nothing comes of it */
                        j->done(j);
                else if (j->work == slab_release_work)
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
                nvme_close_rings(&e->nvme);
                for (int again = 0; again < 8; again++) { /* what comes back may hand over the next step, which then fails */
                        engine_collect(e);
                        abandon_jobs(e, &e->queue.urgent);
                        abandon_jobs(e, &e->queue.background);
                        abandon_jobs(e, &e->queue.submitted);
                }
                demote_abandon(e);
                load_abandon(e);
                durable_abandon(e);
                if (e->nvme.queue)
                        nvme_deinit(&e->nvme);
                abandon_jobs(e, &e->queue.submitted);
        }
        free(e->demotes.blocks);
        free(e->recodes.blocks);
        free(e->ahead.entries);
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

        e->room = false;
        recode_some(e);
        if (e->nvme.n_devices) {
                /* what was moved and written beside records counts, too, but is not held up */
                uint64_t left = budget_left(&e->budget, e->now_usec), written = metrics.c_nvme_written_bytes + e->nvme.recent_bytes;
                budget_take(&e->budget, MIN(written - e->budgeted_bytes, left), e->now_usec);
                e->budgeted_bytes = written;
                load_some(e);
                durable_some(e);
                demote_some(e);
                more |= nvme_pass(&e->nvme, e->now_usec);
        }
        more |= e->room;
        host_refill(&e->host);
        queue_kick(&e->queue);
        return more;
}

bool engine_quiet(struct engine *e)
{
        if (!e->nvme.stopping && (e->demotes.n || e->n_demoting || nvme_drops_writable(&e->nvme)) && nvme_writable(&e->nvme))
                return false;
        if (!e->nvme.stopping)
                nvme_stop(&e->nvme);
        return nvme_idle(&e->nvme);
}

void engine_settle_space(struct engine *e, struct space *s)
{
        if (!s->n_blocks && !s->n_open && !s->n_records)
                space_forget(&e->tenants, s);
}

bool engine_has_record(const struct engine *e, const struct space *s, uint32_t shard, const uint8_t key[16])
{
        return nvme_find(&e->nvme, s, shard, key) != POOL_NONE;
}

static bool is_stored(struct engine *e, const struct space *s, const uint8_t key[16])
{
        for (uint32_t shard = 0; shard < s->geometry.n_shards; shard++)
                if (!engine_has_record(e, s, shard, key))
                        return false;
        return true;
}

static void release_parts(struct engine *e, struct space *s, struct block *k)
{
        for (uint32_t shard = 0; shard < s->geometry.n_shards; shard++) {
                struct part *p = block_part(k, s, shard);
                if (p->at.slab) {
                        e->host.tier.ops->release(&e->host.tier, s, p->at);
                        p->at = (struct location){};
                        k->n_parts--;
                }
        }
}

/* Out of index and tree; whoever still works on it frees it. Returns its parent. */
static uint32_t detach(struct engine *e, struct space *s, uint32_t i)
{
        struct block *k = block_at(&e->blocks, i);
        uint32_t parent = k->parent;

        evict_forget(&e->blocks, s->tenant, i);
        release_parts(e, s, k);
        block_detach(&e->blocks, i);
        s->n_blocks--;
        s->tenant->n_blocks--;
        if (s->geometry.n_shards > 1)
                list_remove(&k->shards->link);
        if (!k->n_fills && !k->n_demotes)
                block_free(&e->blocks, i, s);
        return parent;
}

void engine_settle_block(struct engine *e, uint32_t i)
{
        while (i != POOL_NONE) {
                struct block *k = block_at(&e->blocks, i);
                struct space *s = space_at(&e->tenants, k->space);
                if (k->state == BLOCK_DYING) {
                        if (!k->n_fills && !k->n_demotes)
                                block_free(&e->blocks, i, s);
                        return;
                }
                if (k->state != BLOCK_RESIDENT || !k->stub || k->n_parts || k->first_child != POOL_NONE || k->n_fills || k->n_demotes) {
                        evict_update(&e->blocks, s->tenant, i, true);
                        return;
                }
                i = detach(e, s, i);
                engine_settle_space(e, s);
        }
}

bool engine_uncache(struct engine *e, uint32_t i)
{
        struct block *k = block_at(&e->blocks, i);
        struct space *s = space_at(&e->tenants, k->space);

        if (k->state != BLOCK_RESIDENT || k->n_pins || k->n_fills || !k->n_parts || !is_stored(e, s, k->key))
                return false;
        evict_forget(&e->blocks, s->tenant, i);
        release_parts(e, s, k);
        k->stub = true;
        engine_settle_block(e, i);
        return true;
}

static void count_kill(struct space *s, int why, bool was_resident)
{
        switch (why) {
        case KVT_WHY_EVICTED:
                metrics.c_evicted++;
                metrics.c_evicted_bytes += s->slot_bytes * s->geometry.n_shards;
                s->tenant->evicted++;
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
}

/* One block without children. last: its parent stays, or else it is about to go, too. */
static void kill_leaf(struct engine *e, uint32_t i, int why, bool last)
{
        struct block *k = block_at(&e->blocks, i);
        struct space *s = space_at(&e->tenants, k->space);
        bool was_resident = k->state == BLOCK_RESIDENT, for_room = why == KVT_WHY_EVICTED || why == KVT_WHY_RECLAIMED;

        assert_block_state(&e->blocks, i, s);
        if (!for_room && why != KVT_WHY_NEVER) {
                for (uint32_t shard = 0; shard < s->geometry.n_shards; shard++)
                        nvme_drop_part(&e->nvme, s, shard, k->key, demote_void(e, s, k, shard));
        }
        if ((was_resident && !(for_room && is_stored(e, s, k->key))) || why == KVT_WHY_TIMEOUT) {
                ghosts_add(&e->ghosts, s->id, k->key, (uint8_t)why, e->now_sec);
                if (was_resident && e->on_removed)
                        e->on_removed(e, s, k->key);
                metrics.c_demote_unadmitted += for_room && e->nvme.n_devices && !k->hits;
        }
        if (k->n_parts || !was_resident)
                count_kill(s, why, was_resident);
        s->n_open++;
        uint32_t parent = detach(e, s, i);
        if (last)
                engine_settle_block(e, parent);
        s->n_open--;
        engine_settle_space(e, s);
}

void engine_kill(struct engine *e, uint32_t block, int why)
{
        uint32_t i = block, up;

        for (;;) { /* deepest first, without recursion: chains are thousands of blocks long */
                while (block_at(&e->blocks, i)->first_child != POOL_NONE)
                        i = block_at(&e->blocks, i)->first_child;
                up = block_at(&e->blocks, i)->parent;
                kill_leaf(e, i, i == block || why != KVT_WHY_CORRUPT ? why : KVT_WHY_DROPPED, i == block);
                if (i == block)
                        return;
                i = up;
        }
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
        uint64_t d = MIN(s ? s->deadline_usec : UINT64_MAX, nvme_deadline(&e->nvme));
        list_for_each (u, &e->durables, struct durable, link) /* oldest first; a device that flushes has a time-out of its own */
                if (!u->syncing)
                        return MIN(d, u->deadline_usec);
        return d;
}

void engine_expire(struct engine *e)
{
        for (struct shards *s; (s = list_first(&e->incomplete, struct shards, link)) && s->deadline_usec <= e->now_usec;)
                if (block_at(&e->blocks, s->block)->n_fills) /* a part is being written just now */
                        engine_watch_incomplete(e, s->block);
                else
                        engine_kill(e, s->block, KVT_WHY_TIMEOUT);
        nvme_expire(&e->nvme, e->now_usec);
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
                                payload += space_at(&e->tenants, block_at(&e->blocks, s->slots[i].block)->space)->geometry.part_bytes;
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
        uint64_t pins = 0, leases = 0, in_tenants = 0, n_dying = 0;

        *ret = (struct audit){};
        for (uint32_t i = 1; i <= e->blocks.pool.n_touched; i++) {
                struct block *k = block_at(&e->blocks, i);
                bool waits = k->n_fills || k->n_demotes; /* never what is free */
                if (waits && !e->xfers.n_used)
                        ret->error = "a block waits for transfers, and there are none";
                n_dying += k->state == BLOCK_DYING && waits;
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
        else if (ret->n_blocks + n_dying != e->blocks.pool.n_used)
                ret->error = "a dying block waits for nothing";
        else if (in_tenants != ret->n_blocks)
                ret->error = "the tenants' blocks do not add up";
        else if (leases != ret->n_pins)
                ret->error = "leases and pins do not add up";
        else if (pins > ret->n_pins)
                ret->error = "blocks have more pins than slots";
}
