/* Requests that wait for the NVMe tier: copies of what is there only, prefetches, and puts that are to be durable. */
#include <string.h>

#include "daemon/serve/request.h"
#include "daemon/util/metrics.h"

/* get: into staging, by way of memory if the whole part is wanted, else straight from the device */

/* A record turned out to lie otherwise than it was read, and there were no buffers to read it anew: it waits for some. */
static void on_get_done(struct engine *e, struct get *g, int status)
{
        struct request_item *i = container_of(g, struct request_item, get);

        if (status == KVT_E_AGAIN && i->request->session && !i->loading) {
                load_wait(e, &i->load);
                i->loading = true;
                return;
        }
        item_done(i, status);
}

/* Leases, say, cover all that its tenant may have. To read it into staging takes none of that. */
static bool no_room_in_memory(int r)
{
        return r == KVT_E_AGAIN_LEASED || r == KVT_E_QUOTA || r == KVT_E_NO_MEMORY;
}

/* As far as it goes. Returns a status or PUT_PENDING. */
static int get_item(struct engine *e, struct request_item *i)
{
        struct load *l = &i->load;
        struct get *g = &i->get;
        struct space *s = l->space;
        uint32_t b = blocks_find(&e->blocks, s->id, l->key);
        bool in_memory = b != POOL_NONE && block_part(block_at(&e->blocks, b), s, l->shard)->at.slab;
        bool whole = !i->past_memory && g->first_plane == 0 && g->end_plane == s->geometry.n_planes;
        int r;

        if (in_memory || !s->n_records)
                return get_start(e, g, s, l->shard, l->key, g->staging, g->offset, g->first_plane, g->end_plane);
        if (whole) {
                r = load_start(e, l);
                if (r == 0)
                        return get_start(e, g, s, l->shard, l->key, g->staging, g->offset, g->first_plane, g->end_plane);
                i->loading = r == PUT_PENDING;
                if (!no_room_in_memory(r))
                        return r;
        }
        r = fetch_start(e, g, s, l->shard, l->key, g->staging, g->offset, g->first_plane, g->end_plane);
        if (r == KVT_E_AGAIN) {
                load_wait(e, l);
                i->loading = true;
                return PUT_PENDING;
        }
        return r;
}

static void on_get_loaded(struct engine *e, struct load *l, int r)
{
        struct request_item *i = container_of(l, struct request_item, load);

        i->loading = false;
        l->only_room = false;
        if (no_room_in_memory(r)) {
                i->past_memory = true;
                r = 0;
        }
        if (!i->request->session) /* its staging is gone */
                r = KVT_E_CANCELLED;
        if (r == 0)
                r = get_item(e, i);
        if (r != PUT_PENDING)
                item_done(i, r);
}

void request_get_item(struct session *c, struct request_item *i, struct space *s, uint32_t shard, const uint8_t *key, uint64_t offset,
                      uint32_t first_plane, uint32_t end_plane)
{
        i->load = (struct load){.space = s, .shard = shard, .done = on_get_loaded};
        list_init(&i->load.link);
        memcpy(i->load.key, key, 16);
        i->get = (struct get){
                .staging = c->staging, .offset = offset, .first_plane = first_plane, .end_plane = end_plane, .done = on_get_done};
        s->n_open++; /* making room may take its last block */
        item_started(i, get_item(&c->server->engine, i));
        s->n_open--;
}

/* prefetch */

static void on_prefetched(struct engine *e, struct load *l, int r)
{
        struct request_item *i = container_of(l, struct request_item, load);

        i->loading = false;
        item_done(i, r);
}

void request_prefetch(struct session *c, uint32_t id, const void *message, const uint8_t *packet, size_t n_packet)
{
        const Kvtier__PrefetchRequest *m = message;
        struct engine *e = &c->server->engine;
        struct space *s = request_space(c, id, m->space);
        uint32_t n = s ? request_keys(c, id, &m->keys) : 0;

        if (!n || !request_check_busy(c, id, s, n, 0))
                return;
        struct request *r = request_open_items(c, id, KVT_MSG_PREFETCH, s, n);
        if (!r)
                return;
        s->n_open++;
        for (uint32_t k = 0; k < n; k++) {
                const uint8_t *key = m->keys.data + 16 * k;
                uint32_t b = blocks_find(&e->blocks, s->id, key);
                struct block *i = b != POOL_NONE ? block_at(&e->blocks, b) : NULL;
                if (i && i->state == BLOCK_RESIDENT && !i->stub) {
                        get_block_used(e, s, key);
                        i->hits++;
                        continue;
                }
                bool is_whole = i ? i->state == BLOCK_RESIDENT : get_is_whole(e, s, key);
                metrics.c_read_misses += !is_whole;
                if (!is_whole) {
                        r->statuses[k] = KVT_E_MISS;
                } else if (!m->deadline_usec || s->geometry.n_shards > 1) { /* of several parts each rank maps its own */
                        for (uint32_t shard = 0; shard < s->geometry.n_shards; shard++)
                                load_ahead(e, nvme_find(&e->nvme, s, shard, key));
                        r->statuses[k] = KVT_E_AGAIN;
                } else {
                        struct load *l = &r->items[k].load;
                        *l = (struct load){.space = s, .done = on_prefetched};
                        list_init(&l->link);
                        memcpy(l->key, key, 16);
                        int status = load_start(e, l);
                        r->items[k].loading = status == PUT_PENDING;
                        item_started(&r->items[k], status);
                }
        }
        s->n_open--;
        if (r->n_pending > 1) {
                r->deadline_usec = e->now_usec + MIN(m->deadline_usec, 3600 * 1000000ull);
                list_append(&c->server->prefetches, &r->deadline_link);
        }
        request_unpend(r);
        engine_settle_space(e, s);
}

uint64_t request_deadline(const struct server *s)
{
        uint64_t d = UINT64_MAX;

        list_for_each (r, &s->prefetches, struct request, deadline_link)
                d = MIN(d, r->deadline_usec);
        return d;
}

void request_expire(struct server *s)
{
        list_for_each_safe (r, &s->prefetches, struct request, deadline_link) {
                if (r->deadline_usec > s->engine.now_usec)
                        continue;
                r->n_pending++; /* until all its items are ended */
                for (uint32_t i = 0; i < r->n_items; i++)
                        if (r->items[i].pending) { /* the block comes all the same */
                                load_forget(&r->items[i].load);
                                r->items[i].loading = false;
                                item_done(&r->items[i], KVT_E_TIMEOUT);
                        }
                request_unpend(r);
        }
}

/* durable puts */

static bool is_stored(const struct request *r, uint32_t i)
{
        return r->statuses[i] == 0 || r->statuses[i] == KVT_E_EXISTS;
}

/* i continues the item before it, so that the last of them speaks for all. What the client says of a block that exists is not believed. */
static bool continues(const struct request *r, uint32_t i)
{
        const struct put *p = &r->items[i].put, *before = i ? &r->items[i - 1].put : NULL;
        struct engine *e = &r->server->engine;

        if (!before || !is_stored(r, i) || !is_stored(r, i - 1) || p->shard != before->shard)
                return false;
        uint32_t b = blocks_find(&e->blocks, r->space->id, p->key);
        if (b != POOL_NONE)
                return (b = block_at(&e->blocks, b)->parent) != POOL_NONE && !memcmp(block_at(&e->blocks, b)->key, before->key, 16);
        uint32_t x = nvme_find(&e->nvme, r->space, p->shard, p->key);
        return x != POOL_NONE && (x = catalog_at(&e->nvme.catalog, x)->parent) != POOL_NONE &&
               !memcmp(catalog_at(&e->nvme.catalog, x)->key, before->key, 16);
}

/* The chain that ends with item i came to r. */
static void chain_ended(struct request *r, uint32_t i, int result)
{
        for (;; i--) {
                metrics.c_durable += result == 0;
                if (result != 0 && is_stored(r, i))
                        r->statuses[i] = (uint8_t)result;
                if (!i || !r->items[i].chained)
                        return;
        }
}

static void on_durable(struct durable *d, int result, void *arg)
{
        struct request_item *i = arg;
        struct request *r = i->request;

        chain_ended(r, (uint32_t)(i - r->items), result);
        i->durable = NULL;
        i->pending = false;
        request_unpend(r);
}

void request_make_durable(struct request *r)
{
        struct engine *e = &r->server->engine;

        r->writing = true;
        r->n_pending = 1;
        r->session->n_inflight += r->n_items; /* until it is answered: or a client could have any number of them wait */
        for (uint32_t i = 0; i < r->n_items; i++)
                r->items[i].chained = continues(r, i);
        for (uint32_t i = 0; i < r->n_items; i++) {
                struct put *p = &r->items[i].put;
                int result;
                if (!is_stored(r, i) || (i + 1 < r->n_items && r->items[i + 1].chained))
                        continue;
                r->items[i].durable = durable_start(e, p->space, p->shard, p->key, on_durable, &r->items[i], &result);
                if (r->items[i].durable) {
                        r->items[i].pending = true;
                        r->n_pending++;
                } else {
                        chain_ended(r, i, result);
                }
        }
        request_unpend(r);
}
