#include <string.h>

#include "daemon/engine/load.h"
#include "daemon/engine/put.h"
#include "daemon/engine/reclaim.h"
#include "daemon/engine/recode.h"
#include "daemon/engine/work.h"
#include "daemon/policy/evict.h"
#include "daemon/util/metrics.h"

enum {
        LOADS_MAX = 256, /* under way at once */
        AHEAD_MAX = 64, /* of them, for nobody in particular */
        AHEAD_TRIES = 64, /* that come to nothing, in a pass */
        ANY_DEVICE = 31, /* what a load waits for is not a device's */
        FETCH_HERE_BYTES = 16 << 10, /* a row or a few of them */
        DEPTH_MAX = 1 << 16, /* stubs made for one block */
};

/* Makes the block of entry i, whose parent is in the tree or which has none. */
static uint32_t new_stub(struct engine *e, struct space *s, const struct entry *x, uint32_t parent)
{
        uint8_t key[16];

        memcpy(key, x->key, 16);
        if (e->blocks.pool.n_used == e->blocks.pool.max) {
                if (parent != POOL_NONE)
                        evict_forget(&e->blocks, s->tenant, parent); /* must not be the one to go */
                bool made = reclaim_block(e);
                if (parent != POOL_NONE)
                        evict_update(&e->blocks, s->tenant, parent, false);
                if (!made)
                        return POOL_NONE;
        }
        uint32_t i = block_new(&e->blocks, s, key, parent, e->now_sec);
        if (i == POOL_NONE)
                return POOL_NONE;
        struct block *k = block_at(&e->blocks, i);
        k->state = BLOCK_RESIDENT;
        k->stub = k->stored = true;
        if (parent != POOL_NONE)
                evict_update(&e->blocks, s->tenant, parent, false);
        return i;
}

uint32_t load_stub(struct engine *e, struct space *s, uint32_t shard, const uint8_t key[16])
{
        struct catalog *c = &e->nvme.catalog;
        uint32_t i = blocks_find(&e->blocks, s->id, key), entry, depth = 0, n = 0;
        _cleanup_(freep) uint32_t *chain = NULL;

        if (i != POOL_NONE)
                return i;
        entry = nvme_find(&e->nvme, s, shard, key);
        for (uint32_t x = entry; x != POOL_NONE; x = catalog_at(c, x)->parent, depth++) {
                const struct entry *y = catalog_at(c, x);
                if ((i = blocks_find(&e->blocks, s->id, y->key)) != POOL_NONE)
                        break;
                if (depth == DEPTH_MAX)
                        return POOL_NONE;
                for (uint32_t other = 0; other < s->geometry.n_shards; other++)
                        if (!engine_has_record(e, s, other, y->key))
                                return POOL_NONE;
        }
        if (!depth || !(chain = malloc(depth * sizeof *chain)))
                return POOL_NONE;
        for (uint32_t x = entry; n < depth; x = catalog_at(c, x)->parent)
                chain[n++] = x;
        s->n_open++; /* making room may take its last block */
        while (n--) {
                uint32_t made = new_stub(e, s, catalog_at(c, chain[n]), i);
                if (made == POOL_NONE) {
                        if (i != POOL_NONE)
                                engine_settle_block(e, i);
                        i = POOL_NONE;
                        break;
                }
                i = made;
        }
        s->n_open--;
        return i;
}

static void finish_loads(struct engine *e, struct list *loads, int r)
{
        while (!list_empty(loads)) {
                struct load *l = list_first(loads, struct load, link);
                list_remove(&l->link);
                l->done(e, l, r);
        }
}

static void load_done(struct engine *e, struct xfer *x, void *arg)
{
        struct block *k = block_at(&e->blocks, x->block);
        struct part *p = block_part(k, x->space, x->shard);
        struct list loads, waiters;
        int r = x->result;

        list_init(&loads);
        list_init(&waiters);
        while (!list_empty(&x->loads)) {
                struct list *l = x->loads.next;
                list_remove(l);
                list_append(&loads, l);
        }
        while (!list_empty(&x->waiters)) {
                struct list *l = x->waiters.next;
                list_remove(l);
                list_append(&waiters, l);
        }
        if (r == KVT_E_CORRUPT || r == KVT_E_IO)
                nvme_quarantine(&e->nvme, &x->read, x->space, x->shard, x->key);
        nvme_read_end(&e->nvme, &x->read);
        e->n_loading--;
        x->space->tenant->n_loading--;
        k->n_fills--;
        p->xfer = POOL_NONE;
        if (r == 0 && k->state == BLOCK_DYING)
                r = KVT_E_MISS;
        if (r == 0) {
                p->at = x->at;
                k->n_parts++;
                k->stub = k->n_parts < x->space->geometry.n_shards;
                e->host.tier.ops->publish(&e->host.tier, x->space, x->at, x->block);
                metrics.c_promoted++;
                metrics.c_promoted_bytes += (uint64_t)x->read.at.n_pages * FORMAT_PAGE_BYTES;
                recode_hot(e, x->space, x->block);
        } else {
                e->host.tier.ops->abandon(&e->host.tier, x->space, x->at);
                metrics.c_promote_failed++;
        }
        engine_settle_block(e, x->block);
        if (r == 0)
                evict_touch(&e->blocks, x->space->tenant, x->block, e->now_sec);
        finish_loads(e, &loads, r);
        put_restart(e, &waiters);
}

/* The record's header is known: raw bytes are made of lossless ones if that is the hot rung; what stays coded needs less room than was set aside. */
static int load_plan(struct engine *e, struct xfer *x)
{
        const struct record_header *h = x->read.header;
        const struct kvt_copy_plane *planes = record_planes((struct record_header *)h);
        const struct codec_pair *hot = &x->space->ladder.rungs[LADDER_HOT];
        struct location at;

        if (!work_record_fits(h, x))
                return KVT_E_CORRUPT;
        const struct geometry *g = &x->space->geometry;
        x->decodes =
                !part_is_raw(g, planes) && hot->k.codec->id == CODEC_RAW && hot->v.codec->id == CODEC_RAW && part_is_lossless(g, planes);
        uint64_t hint_bytes = planes[g->n_planes].bytes;
        uint64_t bytes = x->decodes ? copy_bytes(g, !hint_bytes, g->part_bytes + hint_bytes)
                                    : copy_bytes(g, copy_is_raw(g, planes), h->stored_bytes);
        bool fits = bytes <= x->slab->slot_bytes;
        if (fits && slab_class_bytes(bytes) >= x->slab->slot_bytes)
                return 0;
        int r = fits ? e->host.tier.ops->reserve(&e->host.tier, x->space, bytes, &at) : reclaim_reserve(e, x->space, bytes, &at);
        if (r != 0)
                return fits ? 0 : r;
        e->host.tier.ops->abandon(&e->host.tier, x->space, x->at);
        x->at = at;
        x->slab = host_slab(&e->host, at.slab);
        x->slot = at.slot;
        return 0;
}

static void load_read(struct nvme_read *r, int result);

/* The record's header is known: was the right part of it read? If not, all of it is. PUT_PENDING: it is. */
static int fetch_plan(struct engine *e, struct xfer *x)
{
        const struct kvt_copy_plane *planes = record_planes(x->read.header);
        uint64_t first, end;

        if (!work_record_fits(x->read.header, x))
                return KVT_E_CORRUPT;
        first = part_offset(planes, x->first_plane);
        end = part_offset(planes, x->end_plane);
        if (first >= x->read.first_byte && end - x->read.first_byte <= x->read.n_bytes)
                return 0;
        uint32_t entry = nvme_find(&e->nvme, x->space, x->shard, x->key);
        nvme_read_end(&e->nvme, &x->read);
        x->read = (struct nvme_read){.n_bytes = UINT64_MAX, .done = load_read};
        int r = entry == POOL_NONE ? KVT_E_MISS : nvme_read_begin(&e->nvme, &x->read, entry);
        x->read_ended = r != 0;
        return r ?: PUT_PENDING;
}

static void load_read(struct nvme_read *r, int result)
{
        struct xfer *x = container_of(r, struct xfer, read);

        if (result == 0)
                result = x->kind == XFER_LOAD ? load_plan(x->engine, x) : fetch_plan(x->engine, x);
        if (result == PUT_PENDING)
                return;
        if (result != 0) {
                xfer_finish(x->engine, x, result);
                return;
        }
        x->state = XFER_QUEUED;
        if (x->kind == XFER_FETCH && x->read.n_bytes <= FETCH_HERE_BYTES) /* asking a worker would take longer than doing it */
                xfer_work_here(x->engine, x);
        else
                xfer_submit(x->engine, x);
}

/* Devices have as much to read for this tenant, or for all together, as should wait there: what comes next waits here, where tenants take turns. */
static bool is_busy(const struct engine *e, const struct tenant *t)
{
        return e->n_loading >= LOADS_MAX || t->n_loading >= tenants_share(&e->tenants, LOADS_MAX);
}

/* Would the whole record find room? One that never will is for nvme_read_begin() to refuse. */
static bool has_buffers(struct engine *e, uint32_t entry)
{
        struct record_at at = entry_place(catalog_at(&e->nvme.catalog, entry));
        struct buffers *b = &e->nvme.devices[at.device]->buffers;
        void *p = at.n_pages <= b->n_pages ? buffers_take(b, (size_t)at.n_pages * FORMAT_PAGE_BYTES) : NULL;

        if (p)
                buffers_give(b, p, (size_t)at.n_pages * FORMAT_PAGE_BYTES);
        return p || at.n_pages > b->n_pages;
}

/* Starts a load. 0 and *ret; KVT_E_AGAIN: no buffers or transfers; else why not. */
static int begin(struct engine *e, struct space *s, uint32_t shard, const uint8_t key[16], struct xfer **ret)
{
        uint32_t entry = nvme_find(&e->nvme, s, shard, key), i;
        struct location at;

        if (entry == POOL_NONE)
                return KVT_E_MISS;
        if (is_busy(e, s->tenant))
                return KVT_E_AGAIN;
        if (!has_buffers(e, entry))
                return KVT_E_AGAIN;
        /* memory first: a block at the end of a chain may need thousands of stubs, and whoever is refused is refused again and again */
        s->n_open++;
        int r = reclaim_reserve_raw(e, s, &at);
        if (r != 0) {
                s->n_open--;
                return r == KVT_E_AGAIN ? KVT_E_AGAIN_LEASED : r; /* nothing here will end that: the caller is told */
        }
        i = load_stub(e, s, shard, key);
        s->n_open--;
        if (i == POOL_NONE || block_at(&e->blocks, i)->state != BLOCK_RESIDENT) {
                e->host.tier.ops->abandon(&e->host.tier, s, at);
                return KVT_E_MISS;
        }
        struct block *k = block_at(&e->blocks, i);
        k->n_fills++;
        evict_forget(&e->blocks, s->tenant, i);
        struct xfer *x = xfer_new(e, XFER_LOAD, s, NULL, at);
        r = x ? 0 : KVT_E_AGAIN;
        if (r == 0) {
                x->read = (struct nvme_read){.n_bytes = UINT64_MAX, .done = load_read};
                entry = nvme_find(&e->nvme, s, shard, key);
                r = entry == POOL_NONE ? KVT_E_MISS : nvme_read_begin(&e->nvme, &x->read, entry);
                if (r != 0)
                        xfer_free(e, x);
        }
        if (r != 0) {
                e->host.tier.ops->abandon(&e->host.tier, s, at);
                k->n_fills--;
                engine_settle_block(e, i);
                return r;
        }
        memcpy(x->key, key, 16);
        x->block = i;
        x->shard = shard;
        x->done = load_done;
        x->state = XFER_READING;
        block_part(k, s, shard)->xfer = x->id;
        e->n_loading++;
        s->tenant->n_loading++;
        *ret = x;
        return 0;
}

/* Into its tenant's queue. first: it came from there. */
static void wait_for_room(struct engine *e, struct load *l, bool first)
{
        struct tenant *t = l->space->tenant;
        uint32_t entry = nvme_find(&e->nvme, l->space, l->shard, l->key);

        l->device = entry == POOL_NONE || e->n_loading >= LOADS_MAX ? ANY_DEVICE
                                                                    : (uint8_t)entry_place(catalog_at(&e->nvme.catalog, entry)).device;
        list_append(first ? t->loads.next : &t->loads, &l->link);
        if (list_empty(&t->waits_link))
                list_append(&e->loads, &t->waits_link);
}

static int start(struct engine *e, struct load *l, bool first)
{
        uint32_t i = blocks_find(&e->blocks, l->space->id, l->key);
        struct xfer *x;

        list_init(&l->link);
        if (i != POOL_NONE) {
                struct block *k = block_at(&e->blocks, i);
                struct part *p = block_part(k, l->space, l->shard);
                if (k->state != BLOCK_RESIDENT)
                        return KVT_E_MISS;
                if (p->at.slab)
                        return 0;
                if (p->xfer != POOL_NONE) {
                        x = pool_at(&e->xfers, p->xfer);
                        if (x->kind != XFER_LOAD)
                                return KVT_E_AGAIN;
                        list_append(&x->loads, &l->link);
                        return PUT_PENDING;
                }
        } else if (!get_is_whole(e, l->space, l->key)) {
                return KVT_E_MISS;
        }
        int r = begin(e, l->space, l->shard, l->key, &x);
        if (r == KVT_E_AGAIN) {
                wait_for_room(e, l, first);
                return PUT_PENDING;
        }
        if (r != 0)
                return r;
        list_append(&x->loads, &l->link);
        return PUT_PENDING;
}

int load_start(struct engine *e, struct load *l)
{
        return start(e, l, false);
}

void load_wait(struct engine *e, struct load *l)
{
        l->only_room = true;
        wait_for_room(e, l, false);
}

void load_abandon(struct engine *e)
{
        list_for_each (t, &e->tenants.all, struct tenant, link)
                finish_loads(e, &t->loads, KVT_E_CANCELLED);
}

void load_forget(struct load *l)
{
        list_remove(&l->link);
}

void load_ahead(struct engine *e, uint32_t entry)
{
        struct ahead *q = &e->ahead;

        if (entry == POOL_NONE || q->n == q->max)
                return;
        q->entries[(q->head + q->n++) % q->max] = entry;
        e->room = true;
}

void load_missing(struct engine *e, struct space *s, uint32_t i)
{
        struct block *k = block_at(&e->blocks, i);

        for (uint32_t shard = 0; shard < s->geometry.n_shards; shard++)
                if (!block_part(k, s, shard)->at.slab && block_part(k, s, shard)->xfer == POOL_NONE)
                        load_ahead(e, nvme_find(&e->nvme, s, shard, k->key));
}

void load_followers(struct engine *e, struct space *s, const uint8_t *keys, uint32_t n)
{
        struct catalog *c = &e->nvme.catalog;
        uint32_t i = POOL_NONE;

        for (uint32_t k = n > 1 ? n - 1 : n; k < n; k++) { /* the last step says where the chain went */
                uint32_t parent = nvme_find(&e->nvme, s, 0, keys + 16 * (k - 1)), child = nvme_find(&e->nvme, s, 0, keys + 16 * k);
                if (parent != POOL_NONE && child != POOL_NONE)
                        catalog_followed(c, parent, child);
        }
        i = nvme_find(&e->nvme, s, 0, keys + 16 * (n - 1));
        for (uint64_t left = e->conf->p.nvme_readahead_blocks; left && i != POOL_NONE; left--) {
                i = catalog_follower(c, i);
                if (i == POOL_NONE)
                        return;
                uint8_t key[16];
                memcpy(key, catalog_at(c, i)->key, 16);
                uint32_t b = blocks_find(&e->blocks, s->id, key);
                if (b != POOL_NONE && !block_at(&e->blocks, b)->stub)
                        continue;
                for (uint32_t shard = 0; shard < s->geometry.n_shards; shard++)
                        load_ahead(e, nvme_find(&e->nvme, s, shard, key));
                metrics.c_readahead++;
        }
}

/* One step for t: its first load that does not wait for what was refused in this pass (a bit each). False: there is none. */
static bool start_waiting(struct engine *e, struct tenant *t, uint32_t *refused)
{
        struct load *l = NULL;

        if (is_busy(e, t))
                return false;
        list_for_each (i, &t->loads, struct load, link)
                if (!(*refused >> i->device & 1)) {
                        l = i;
                        break;
                }
        if (!l)
                return false;
        list_remove(&l->link);
        if (l->only_room) {
                l->done(e, l, 0); /* it may be gone, or wait again */
                if (t->loads.prev != &l->link)
                        return true;
                list_remove(&l->link);
                list_append(t->loads.next, &l->link);
        } else {
                int r = start(e, l, true);
                if (r != PUT_PENDING)
                        l->done(e, l, r);
                if (r != PUT_PENDING || t->loads.next != &l->link)
                        return true;
        }
        *refused |= 1u << l->device;
        return true;
}

/* Tenants take turns, or one that asks for all it has would be all that is served. */
static void start_all_waiting(struct engine *e)
{
        uint32_t refused = 0;
        bool any = true;

        while (any) {
                any = false;
                list_for_each_safe (t, &e->loads, struct tenant, waits_link)
                        if (list_empty(&t->loads))
                                list_remove(&t->waits_link);
                        else
                                any |= start_waiting(e, t, &refused);
        }
}

/* Returns 0, or why it was not begun. *ret_share: because its tenant has its share under way. */
static int start_ahead(struct engine *e, uint32_t i, bool *ret_share)
{
        struct entry *x = catalog_at(&e->nvme.catalog, i);
        struct xfer *ignored;

        *ret_share = false;
        if (!entry_live(x)) /* the number may be another one's by now, which does no harm */
                return 0;
        struct space *s = space_at(&e->tenants, entry_space(x));
        uint8_t key[16];
        memcpy(key, x->key, 16);
        uint32_t b = blocks_find(&e->blocks, s->id, key), shard = entry_shard(x);
        struct block *k = b != POOL_NONE ? block_at(&e->blocks, b) : NULL;
        bool there = k && (k->state != BLOCK_RESIDENT || block_part(k, s, shard)->at.slab || block_part(k, s, shard)->xfer != POOL_NONE);
        *ret_share = is_busy(e, s->tenant);
        return there ? 0 : *ret_share ? KVT_E_AGAIN : begin(e, s, shard, key, &ignored);
}

void load_some(struct engine *e)
{
        struct ahead *q = &e->ahead;

        start_all_waiting(e);
        for (int n_tries = 0; q->n && e->n_loading < AHEAD_MAX && list_empty(&e->loads);) {
                uint32_t i = q->entries[q->head];
                bool share;
                int r = start_ahead(e, i, &share);
                if (r == KVT_E_AGAIN && !share)
                        return;
                q->head = (q->head + 1) % q->max;
                if (r == KVT_E_AGAIN) { /* once more when some of them are back */
                        q->entries[(q->head + q->n - 1) % q->max] = i;
                        if (++n_tries == AHEAD_TRIES)
                                return;
                        continue;
                }
                q->n--;
                /* memory is full of what is in use: nothing more for this tenant ahead of need, but others must not pay for that */
                if ((r == KVT_E_AGAIN_LEASED || r == KVT_E_QUOTA) && ++n_tries == AHEAD_TRIES) {
                        e->room = true;
                        return;
                }
        }
}

/* fetches */

static void fetch_done(struct engine *e, struct xfer *x, void *arg)
{
        struct get *g = arg;

        if (x->result == KVT_E_CORRUPT || x->result == KVT_E_IO)
                nvme_quarantine(&e->nvme, &x->read, x->space, x->shard, x->key);
        if (x->result == 0) {
                metrics.c_nvme_gets++;
                metrics.c_nvme_get_bytes += ((uint64_t)x->read.n_buf_pages[0] + x->read.n_buf_pages[1]) * FORMAT_PAGE_BYTES;
        }
        if (!x->read_ended)
                nvme_read_end(&e->nvme, &x->read);
        e->n_loading--;
        x->space->tenant->n_loading--;
        g->xfer = NULL;
        g->done(e, g, x->result);
}

/* Which bytes of the payload hold the planes. Coded ones lie where the header says: if it is not at hand, a record that is as long as one of raw planes is read
 * as if it were one, and of others all is read; what turns out not to be so is read once more, whole. */
static struct nvme_read fetch_range(struct engine *e, const struct space *s, uint32_t entry, uint32_t first_plane, uint32_t end_plane)
{
        const struct geometry *g = &s->geometry;
        struct cached_header *h = nvme_header_at_hand(&e->nvme, entry);
        struct nvme_read r = {.first_byte = g->offsets[first_plane], .n_bytes = g->offsets[end_plane] - g->offsets[first_plane]};
        uint32_t payload_pages = (uint32_t)format_pages(g->part_bytes);

        if (h && h->header->n_planes == g->n_planes + 1) {
                const struct kvt_copy_plane *planes = record_planes(h->header);
                r.first_byte = part_offset(planes, first_plane);
                r.n_bytes = part_offset(planes, end_plane) - r.first_byte;
        } else if (entry_place(catalog_at(&e->nvme.catalog, entry)).n_pages !=
                   record_header_pages(g->n_planes + 1, payload_pages) + payload_pages) {
                r = (struct nvme_read){.n_bytes = UINT64_MAX, .keep_header = true};
        }
        headers_unref(h);
        return r;
}

int fetch_start(struct engine *e, struct get *g, struct space *s, uint32_t shard, const uint8_t key[16], struct staging *staging,
                uint64_t offset, uint32_t first_plane, uint32_t end_plane)
{
        uint32_t entry = nvme_find(&e->nvme, s, shard, key);
        struct xfer *x;

        if (entry == POOL_NONE || !get_is_whole(e, s, key))
                return KVT_E_MISS;
        if (is_busy(e, s->tenant))
                return KVT_E_AGAIN;
        x = xfer_new(e, XFER_FETCH, s, staging, (struct location){});
        if (!x)
                return KVT_E_AGAIN;
        x->read = fetch_range(e, s, entry, first_plane, end_plane);
        x->read.done = load_read;
        int r = nvme_read_begin(&e->nvme, &x->read, entry);
        if (r != 0) {
                xfer_free(e, x);
                return r;
        }
        e->n_loading++;
        s->tenant->n_loading++;
        catalog_at(&e->nvme.catalog, entry)->flags |= ENTRY_USED;
        memcpy(x->key, key, 16);
        x->shard = shard;
        x->offset = offset;
        x->first_plane = first_plane;
        x->end_plane = end_plane;
        x->done = fetch_done;
        x->arg = g;
        x->state = XFER_READING;
        g->xfer = x;
        return 0 + PUT_PENDING;
}
