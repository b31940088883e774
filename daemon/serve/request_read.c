/* Match, map, release, prefetch, drop, explain: what finds blocks, and what ends them. */
#include <stdio.h>
#include <string.h>

#include "daemon/engine/get.h"
#include "daemon/serve/lease.h"
#include "daemon/serve/request.h"
#include "daemon/util/clock.h"
#include "daemon/util/metrics.h"

enum { CHILDREN_COUNTED = 64 };

static void release_all(struct session *c, const ProtobufCBinaryData *leases)
{
        for (size_t i = 0; i + 8 <= leases->len; i += 8) {
                uint64_t id;
                memcpy(&id, leases->data + i, 8);
                lease_release(c, id);
        }
}

void request_match(struct session *c, uint32_t id, const void *message, const uint8_t *packet, size_t n_packet)
{
        const Kvtier__MatchRequest *m = message;
        Kvtier__MatchReply reply = KVTIER__MATCH_REPLY__INIT;
        int stop;

        release_all(c, &m->releases);
        struct space *s = request_space(c, id, m->space);
        uint32_t n = s ? request_keys(c, id, &m->keys) : 0;
        if (!n)
                return;
        reply.n_blocks = get_match(&c->server->engine, s, m->keys.data, n, m->probe, &stop);
        reply.stop = (uint32_t)stop;
        session_reply(c, KVT_MSG_MATCH, id, &reply);
}

struct map_plan {
        struct kvt_map_entry entries[KVT_KEYS_MAX];
        struct kvt_map_slab slabs[KVT_FDS_MAX]; /* that the session gets with this reply */
        int fds[KVT_FDS_MAX];
        size_t n_fds;
};

/* May this slab be named to the session? Sends its descriptor along if it must. */
static bool plan_slab(struct session *c, struct map_plan *p, struct slab *b)
{
        if (session_has_slab(c, b->id))
                return true;
        if (!session_may_send_fds(c) || p->n_fds == KVT_FDS_MAX || !session_add_slab(c, b))
                return false;
        p->slabs[p->n_fds] = (struct kvt_map_slab){.slab = b->id, .bytes = b->bytes};
        p->fds[p->n_fds++] = b->fd;
        return true;
}

static struct kvt_map_entry map_one(struct session *c, struct map_plan *p, struct space *s, uint32_t shard, const uint8_t *key)
{
        struct engine *e = &c->server->engine;
        uint32_t i = get_block_used(e, s, key);

        if (i == POOL_NONE)
                return (struct kvt_map_entry){.status = KVT_E_MISS};
        struct location at = block_part(block_at(&e->blocks, i), s, shard)->at;
        if (!at.slab)
                return (struct kvt_map_entry){.status = KVT_E_MISS};
        struct slab *b = host_slab(&e->host, at.slab);
        if (unlikely(b->failed)) { /* its memory could not be had: never handed out */
                engine_kill(e, i, KVT_WHY_RECLAIMED);
                return (struct kvt_map_entry){.status = KVT_E_MISS};
        }
        bool ready = b->populated || session_has_slab(c, b->id);
        uint64_t lease = ready && plan_slab(c, p, b) ? lease_grant(c, s, i, at) : 0;
        if (!lease) {
                metrics.c_refused_again++;
                return (struct kvt_map_entry){.status = KVT_E_AGAIN};
        }
        metrics.c_maps++;
        metrics.c_map_bytes += s->geometry.part_bytes;
        return (struct kvt_map_entry){.slab = b->id,
                                      .offset = (uint64_t)at.slot * b->slot_bytes,
                                      .generation = b->slots[at.slot].generation,
                                      .lease = lease};
}

/* A slab that a reply would have to hand out, but which is still being populated; NULL: none. */
static struct slab *not_ready(struct session *c, struct space *s, uint32_t shard, const uint8_t *keys, uint32_t n)
{
        struct engine *e = &c->server->engine;

        for (uint32_t k = 0; k < n; k++) {
                uint32_t i = blocks_find(&e->blocks, s->id, keys + 16 * k);
                if (i == POOL_NONE || block_at(&e->blocks, i)->state != BLOCK_RESIDENT)
                        continue;
                struct location at = block_part(block_at(&e->blocks, i), s, shard)->at;
                struct slab *b = at.slab ? host_slab(&e->host, at.slab) : NULL;
                if (b && !b->populated && !b->failed && !session_has_slab(c, b->id))
                        return b;
        }
        return NULL;
}

/* The kernel takes no descriptors just now: what needed them is taken back. */
static void unplan(struct session *c, struct map_plan *p, uint32_t n)
{
        for (size_t f = 0; f < p->n_fds; f++) {
                for (uint32_t k = 0; k < n; k++)
                        if (!p->entries[k].status && p->entries[k].slab == p->slabs[f].slab) {
                                lease_release(c, p->entries[k].lease);
                                p->entries[k] = (struct kvt_map_entry){.status = KVT_E_AGAIN};
                        }
                session_remove_slab(c, p->slabs[f].slab);
        }
        p->n_fds = 0;
}

/* Answers from what is in memory. loaded: why a key is not, by position; NULL: nothing was loaded. */
static void map_now(struct session *c, uint32_t id, struct space *s, uint32_t shard, const uint8_t *keys, uint32_t n, const uint8_t *loaded)
{
        static struct map_plan plan; /* one loop thread; too large for a stack */
        Kvtier__MapReply reply = KVTIER__MAP_REPLY__INIT;

        plan.n_fds = 0;
        for (uint32_t k = 0; k < n; k++) {
                plan.entries[k] = map_one(c, &plan, s, shard, keys + 16 * k);
                if (loaded && loaded[k] && plan.entries[k].status == KVT_E_MISS)
                        plan.entries[k].status = loaded[k];
        }
        reply.lease_usec = c->server->conf.p.lease_usec;
        reply.entries = (ProtobufCBinaryData){n * sizeof *plan.entries, (uint8_t *)plan.entries};
        reply.slabs = (ProtobufCBinaryData){plan.n_fds * sizeof *plan.slabs, (uint8_t *)plan.slabs};
        if (session_send(c, KVT_MSG_MAP | KVT_REPLY, id, &reply.base, plan.fds, plan.n_fds) != 0) {
                unplan(c, &plan, n);
                reply.slabs.len = 0;
                session_reply(c, KVT_MSG_MAP, id, &reply);
        }
}

void request_map_loaded(struct request *r)
{
        struct session *c = r->session;
        struct space *s = r->space;
        uint8_t keys[KVT_KEYS_MAX * 16];
        struct slab *b;

        for (uint32_t k = 0; k < r->n_items; k++)
                memcpy(keys + 16 * k, r->items[k].load.key, 16);
        if (unlikely(!c->parked && (b = not_ready(c, s, r->items[0].load.shard, keys, r->n_items))))
                session_park(c, r->packet, r->n_packet, b->id);
        else
                map_now(c, r->id, s, r->items[0].load.shard, keys, r->n_items, r->statuses);
}

/* The item's copy is in memory: other loads of the request must not push it out again. */
static void pin_loaded(struct engine *e, struct request_item *i)
{
        const struct load *l = &i->load;
        uint32_t b = blocks_find(&e->blocks, l->space->id, l->key);
        struct part *p = b != POOL_NONE ? block_part(block_at(&e->blocks, b), l->space, l->shard) : NULL;

        if (!p || !p->at.slab || block_at(&e->blocks, b)->state != BLOCK_RESIDENT)
                return;
        i->pinned = p->at;
        i->pinned_by = l->space->tenant;
        engine_pin(e, l->space, b, p->at);
}

void request_map_unpin(struct request *r)
{
        for (uint32_t i = 0; i < r->n_items; i++)
                if (r->items[i].pinned_by)
                        engine_unpin(&r->server->engine, r->items[i].pinned, r->items[i].pinned_by);
}

static void on_map_loaded(struct engine *e, struct load *l, int r)
{
        struct request_item *i = container_of(l, struct request_item, load);

        i->loading = false;
        if (r == 0)
                pin_loaded(e, i);
        item_done(i, r);
}

/* Blocks on NVMe only are loaded first. False: there are none. */
static bool map_load(struct session *c, uint32_t id, struct space *s, uint32_t shard, const uint8_t *keys, uint32_t n,
                     const uint8_t *packet, size_t n_packet)
{
        struct engine *e = &c->server->engine;
        bool any = false;

        for (uint32_t k = 0; k < n && !any; k++) {
                uint32_t i = blocks_find(&e->blocks, s->id, keys + 16 * k);
                any = i == POOL_NONE ? engine_has_record(e, s, shard, keys + 16 * k) : block_at(&e->blocks, i)->stub;
        }
        if (likely(!any))
                return false;
        if (!request_check_busy(c, id, s, n, 0))
                return true;
        struct request *r = request_open_items(c, id, KVT_MSG_MAP, s, n);
        if (!r)
                return true;
        r->packet = malloc(n_packet);
        if (r->packet)
                memcpy(r->packet, packet, r->n_packet = n_packet);
        s->n_open++;
        for (uint32_t k = 0; k < n; k++) {
                struct load *l = &r->items[k].load;
                *l = (struct load){.space = s, .shard = shard, .done = on_map_loaded};
                list_init(&l->link);
                memcpy(l->key, keys + 16 * k, 16);
                int status = r->packet ? load_start(e, l) : KVT_E_NO_MEMORY;
                r->items[k].loading = status == PUT_PENDING;
                if (status == 0)
                        pin_loaded(e, &r->items[k]);
                item_started(&r->items[k], status);
        }
        s->n_open--;
        request_unpend(r);
        return true;
}

void request_map(struct session *c, uint32_t id, const void *message, const uint8_t *packet, size_t n_packet)
{
        const Kvtier__MapRequest *m = message;
        struct slab *b;

        release_all(c, &m->releases);
        struct space *s = request_space(c, id, m->space);
        if (!s || !request_shard(c, id, s, m->shard))
                return;
        uint32_t n = request_keys(c, id, &m->keys);
        if (!n)
                return;
        if (unlikely(s->n_records) && map_load(c, id, s, m->shard, m->keys.data, n, packet, n_packet))
                return;
        if (unlikely((b = not_ready(c, s, m->shard, m->keys.data, n)))) {
                session_park(c, packet, n_packet, b->id);
                return;
        }
        map_now(c, id, s, m->shard, m->keys.data, n, NULL);
}

void request_release(struct session *c, uint32_t id, const void *message, const uint8_t *packet, size_t n_packet)
{
        const Kvtier__ReleaseRequest *m = message;

        release_all(c, &m->leases);
}

void request_fd_ack(struct session *c, uint32_t id, const void *message, const uint8_t *packet, size_t n_packet)
{
        c->fds_acked = c->fds_outstanding;
        list_remove(&c->fds_link);
}

void request_slab_ack(struct session *c, uint32_t id, const void *message, const uint8_t *packet, size_t n_packet)
{
        const Kvtier__SlabAck *m = message;
        struct host *h = &c->server->engine.host;

        for (size_t i = 0; i < m->n_slabs; i++)
                if (session_has_slab(c, m->slabs[i]) && host_slab(h, m->slabs[i])->retired)
                        session_remove_slab(c, m->slabs[i]);
}

void request_drop(struct session *c, uint32_t id, const void *message, const uint8_t *packet, size_t n_packet)
{
        const Kvtier__DropRequest *m = message;
        struct engine *e = &c->server->engine;
        Kvtier__DropReply reply = KVTIER__DROP_REPLY__INIT;
        struct space *s = request_space(c, id, m->space);
        uint32_t n = s ? request_keys(c, id, &m->keys) : 0;
        uint8_t statuses[KVT_KEYS_MAX];

        if (!n)
                return;
        s->n_open++;
        for (uint32_t k = 0; k < n; k++) {
                if (m->corrupt) {
                        statuses[k] = (uint8_t)get_verify(e, s, m->keys.data + 16 * k);
                        continue;
                }
                const uint8_t *key = m->keys.data + 16 * k;
                uint32_t i = blocks_find(&e->blocks, s->id, key);
                bool on_nvme = i == POOL_NONE && get_is_whole(e, s, key);
                statuses[k] = i != POOL_NONE || on_nvme ? 0 : KVT_E_MISS;
                if (i != POOL_NONE) {
                        engine_kill(e, i, KVT_WHY_DROPPED);
                        continue;
                }
                nvme_drop(&e->nvme, s, key); /* single parts of it, too, and what is still to be recovered */
                if (on_nvme) { /* what continues it cannot be reached any more */
                        ghosts_add(&e->ghosts, s->id, key, KVT_WHY_DROPPED, e->now_sec);
                        metrics.c_dropped++;
                        event_removed(e, s, key);
                }
        }
        s->n_open--;
        engine_settle_space(e, s);
        reply.statuses = (ProtobufCBinaryData){n, statuses};
        session_reply(c, KVT_MSG_DROP, id, &reply);
}

struct kvt_block_entry request_block_entry(struct engine *e, uint32_t block)
{
        const struct block *k = block_at(&e->blocks, block);
        const struct space *s = space_at(&e->tenants, k->space);
        struct kvt_block_entry b = {
                .bytes = (uint64_t)k->n_parts * s->geometry.part_bytes,
                .idle_sec = e->now_sec - k->used_sec,
                .age_sec = e->now_sec - k->created_sec,
                .hits = k->hits,
                .leases = (uint16_t)MIN(k->n_pins, (uint32_t)UINT16_MAX),
                .n_parts = k->n_parts,
                .tiers = (uint8_t)((k->n_parts == s->geometry.n_shards ? 1 : 0) | (k->stored || k->stub ? 2 : 0)),
        };

        memcpy(b.key, k->key, 16);
        if (k->parent != POOL_NONE)
                memcpy(b.parent, block_at(&e->blocks, k->parent)->key, 16);
        for (uint32_t i = k->first_child; i != POOL_NONE && b.n_children < CHILDREN_COUNTED; i = block_at(&e->blocks, i)->next_sibling)
                b.n_children++;
        return b;
}

/* One that is on NVMe only: entry of its first shard. */
struct kvt_block_entry request_record_entry(struct engine *e, uint32_t entry)
{
        const struct entry *x = catalog_at(&e->nvme.catalog, entry);
        const struct space *s = space_at(&e->tenants, entry_space(x));
        struct kvt_block_entry b = {
                .bytes = (uint64_t)s->geometry.n_shards * s->geometry.part_bytes,
                .n_children = x->n_children,
                .n_parts = (uint8_t)s->geometry.n_shards,
                .tiers = 2,
        };

        memcpy(b.key, x->key, 16);
        if (x->parent != POOL_NONE)
                memcpy(b.parent, catalog_at(&e->nvme.catalog, x->parent)->key, 16);
        return b;
}

static const char *const why_texts[] = {
        [KVTIER__WHY__WHY_NEVER] = "Nothing is known of this key in this space: it was never stored, or so long ago that it is forgotten. "
                                   "Another salt, geometry or token gives another key.",
        [KVTIER__WHY__WHY_FILLING] = "Parts of the block are still missing or being written.",
        [KVTIER__WHY__WHY_EVICTED] = "The block was evicted to make room; it was the least recently used leaf.",
        [KVTIER__WHY__WHY_DROPPED] = "The block, or one before it in the prefix, was dropped by a client.",
        [KVTIER__WHY__WHY_PURGED] = "The space or tenant was purged.",
        [KVTIER__WHY__WHY_CORRUPT] = "The block did not match its checksum and was taken out of service.",
        [KVTIER__WHY__WHY_QUOTA] = "The put was refused: it would have exceeded the tenant's hard quota.",
        [KVTIER__WHY__WHY_LEASED] = "The put was refused: leases cover the memory that would have to be reclaimed.",
        [KVTIER__WHY__WHY_NO_PARENT] = "The put was refused: the block before it in the prefix is not stored.",
        [KVTIER__WHY__WHY_TIMEOUT] = "The parts of other shards did not come in time.",
        [KVTIER__WHY__WHY_RECLAIMED] = "Its slab was given to another tenant or another size of block.",
};

void request_explain(struct session *c, uint32_t id, const void *message, const uint8_t *packet, size_t n_packet)
{
        const Kvtier__ExplainRequest *m = message;
        struct engine *e = &c->server->engine;
        Kvtier__ExplainReply reply = KVTIER__EXPLAIN_REPLY__INIT;
        struct kvt_block_entry entry;
        struct space *s = request_space(c, id, m->space);
        char text[160];

        if (!s)
                return;
        if (m->key.len != KVT_KEY_BYTES) {
                session_error(c, id, KVT_E_BAD_REQUEST, "a key has 16 bytes");
                return;
        }
        uint32_t i = blocks_find(&e->blocks, s->id, m->key.data);
        const struct ghost_entry *g = i == POOL_NONE ? ghosts_find(&e->ghosts, s->id, m->key.data) : NULL;
        bool on_nvme = i == POOL_NONE && get_is_whole(e, s, m->key.data);
        if (on_nvme) {
                entry = request_record_entry(e, nvme_find(&e->nvme, s, 0, m->key.data));
                reply.entry = (ProtobufCBinaryData){sizeof entry, (uint8_t *)&entry};
                reply.why = KVTIER__WHY__WHY_RESIDENT;
        } else if (i != POOL_NONE) {
                entry = request_block_entry(e, i);
                reply.entry = (ProtobufCBinaryData){sizeof entry, (uint8_t *)&entry};
                reply.age_usec = (uint64_t)entry.age_sec * USEC_PER_SEC;
                reply.why = block_at(&e->blocks, i)->state == BLOCK_RESIDENT ? KVTIER__WHY__WHY_RESIDENT : KVTIER__WHY__WHY_FILLING;
        } else {
                reply.why = g ? (Kvtier__Why)g->why : KVTIER__WHY__WHY_NEVER;
                reply.age_usec = g ? (uint64_t)(e->now_sec - g->when_sec) * USEC_PER_SEC : 0;
        }
        if (reply.why == KVTIER__WHY__WHY_RESIDENT)
                snprintf(text, sizeof text, "The block is stored whole in the %s: %u hits, %u leases.",
                         entry.tiers == 3   ? "host and NVMe tiers"
                         : entry.tiers == 2 ? "NVMe tier"
                                            : "host tier",
                         entry.hits, entry.leases);
        else if (i == POOL_NONE && s->n_records && reply.why == KVTIER__WHY__WHY_NEVER && engine_has_record(e, s, 0, m->key.data))
                snprintf(text, sizeof text,
                         "The block is on NVMe, but what comes before it, or another part of it, is not: it cannot be matched.");
        else if (reply.why == KVTIER__WHY__WHY_FILLING)
                snprintf(text, sizeof text, "%u of %u parts are stored; the others are missing or being written.", entry.n_parts,
                         s->geometry.n_shards);
        else
                snprintf(text, sizeof text, "%s", why_texts[reply.why]);
        reply.text = text;
        session_reply(c, KVT_MSG_EXPLAIN, id, &reply);
}
