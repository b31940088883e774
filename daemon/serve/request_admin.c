/* Stat, list, purge. A tenant sees itself; root and the daemon's own user see all. */
#include <sodium.h>
#include <stdio.h>
#include <string.h>

#include "daemon/policy/quota.h"
#include "daemon/serve/request.h"
#include "daemon/util/metrics.h"

static const struct {
        const char *name;
        size_t offset;
} counters[] = {
#define METRIC(name, text) {#name, offsetof(struct metrics, c_##name)},
#include "daemon/metrics.def"
#undef METRIC
};

enum { PURGE_STEPS = 4096 };

static bool visible(const struct session *c, const struct tenant *t)
{
        return c->privileged || t == c->tenant;
}

struct purge { /* goes on over several passes: other sessions must not wait for it */
        struct list link; /* in server.purges */
        struct session *session; /* NULL: the client left */
        uint32_t id;
        char tenant[40]; /* by name and number: both may be gone before it is done */
        uint32_t space, cursors[2];
        uint64_t n_blocks, bytes;
};

void request_purge(struct session *c, uint32_t id, const void *message, const uint8_t *packet, size_t n_packet)
{
        const Kvtier__PurgeRequest *m = message;
        struct engine *e = &c->server->engine;
        struct tenant *t = *m->tenant ? tenant_find(&e->tenants, m->tenant) : c->tenant;
        struct purge *p;

        if (!t || !visible(c, t)) { /* the same answer for both: who else is here is nobody's business */
                session_error(c, id, KVT_E_DENIED, "no such tenant, or not yours");
                return;
        }
        if (m->space && !space_find(&e->tenants, t, m->space)) {
                session_error(c, id, KVT_E_UNKNOWN_SPACE, NULL);
                return;
        }
        p = new0(struct purge, 1);
        if (!p) {
                session_error(c, id, KVT_E_NO_MEMORY, NULL);
                return;
        }
        p->session = c;
        p->id = id;
        p->space = m->space;
        memcpy(p->tenant, t->name, sizeof p->tenant);
        list_append(&c->server->purges, &p->link);
        c->server->more = true;
}

void purge_some(struct server *s)
{
        struct purge *p = list_first(&s->purges, struct purge, link);
        struct tenant *t = p ? tenant_find(&s->engine.tenants, p->tenant) : NULL;
        struct space *of = t && p->space ? space_find(&s->engine.tenants, t, p->space) : NULL;
        bool done = true;

        if (!p)
                return;
        s->more = true;
        if (t && (of || !p->space)) {
                uint64_t n = t->n_blocks, used = t->used_bytes, records = t->record_bytes;
                if (of)
                        of->n_open++;
                done = engine_purge(&s->engine, t, of, p->cursors, PURGE_STEPS);
                p->n_blocks += n - t->n_blocks;
                p->bytes += used - t->used_bytes + (records - t->record_bytes);
                if (of) {
                        of->n_open--;
                        engine_settle_space(&s->engine, of);
                }
        }
        if (!done) { /* the next one's turn */
                list_remove(&p->link);
                list_append(&s->purges, &p->link);
                return;
        }
        if (p->session) {
                Kvtier__PurgeReply reply = KVTIER__PURGE_REPLY__INIT;
                reply.n_blocks = p->n_blocks;
                reply.bytes = p->bytes;
                session_reply(p->session, KVT_MSG_PURGE, p->id, &reply);
        }
        list_remove(&p->link);
        free(p);
}

void purge_orphan(struct session *c)
{
        list_for_each (p, &c->server->purges, struct purge, link)
                if (p->session == c)
                        p->session = NULL;
}

void purge_end_all(struct server *s)
{
        for (struct purge *p; (p = list_first(&s->purges, struct purge, link));) {
                list_remove(&p->link);
                free(p);
        }
}

static const char *pages_name(const struct host *h)
{
        static const char *names[] = {"4k", "thp", "huge"};

        return h->tier.n_slabs ? names[h->kind] : "none yet";
}

static void stat_nvme(struct session *c, Kvtier__Tier *tier)
{
        const struct nvme *n = &c->server->engine.nvme;

        tier->name = (char *)"nvme";
        tier->pages = (char *)"";
        if (!c->privileged) {
                tier->capacity_bytes = c->server->conf.p.tenant_nvme_bytes;
                tier->slab_bytes = tier->used_bytes = c->tenant->record_bytes;
                tier->payload_bytes = c->tenant->record_bytes;
                tier->n_blocks = c->tenant->n_records;
                return;
        }
        tier->capacity_bytes = n->tier.capacity_bytes;
        tier->used_bytes = n->tier.used_bytes;
        tier->payload_bytes = n->tier.payload_bytes;
        for (uint32_t i = 0; i < n->n_devices; i++) {
                const struct nvme_device *d = n->devices[i];
                tier->n_slabs += d->segments ? d->sb.n_segments - d->n_free : 0;
                tier->slab_bytes += d->segments ? (d->sb.n_segments - d->n_free) * d->sb.segment_bytes : 0;
                tier->n_blocks += d->n_records;
                if (d->ring)
                        tier->pages = (char *)d->ring->ops->name;
        }
}

/* What a tenant may know of the whole: itself. */
static void stat_tenant(struct session *c, Kvtier__StatReply *r, Kvtier__Tier *tier, Kvtier__Counter *cs, Kvtier__Counter **cp)
{
        const struct tenant *t = c->tenant;
        const struct {
                const char *name;
                uint64_t value;
        } own[] = {{"hits", t->hits}, {"misses", t->misses}, {"evicted", t->evicted}};

        r->n_sessions = t->n_sessions;
        r->n_spaces = t->n_spaces;
        r->n_tenants = 1;
        r->n_blocks = t->n_blocks;
        r->n_leases = t->n_leases;
        tier->capacity_bytes = t->hard_bytes;
        tier->slab_bytes = t->held_bytes;
        tier->used_bytes = t->used_bytes;
        tier->payload_bytes = t->payload_bytes;
        tier->n_blocks = t->n_parts;
        tier->pages = (char *)"";
        r->n_counters = ELEMENTSOF(own);
        for (size_t i = 0; i < ELEMENTSOF(own); i++) {
                cs[i].name = (char *)own[i].name;
                cs[i].value = own[i].value;
                cp[i] = &cs[i];
        }
}

static void stat_all(struct server *s, Kvtier__StatReply *r, Kvtier__Tier *tier, Kvtier__Counter *cs, Kvtier__Counter **cp)
{
        struct engine *e = &s->engine;
        const struct tier *t = &e->host.tier;

        r->n_sessions = s->n_sessions;
        r->n_spaces = e->tenants.n_spaces;
        r->n_tenants = e->tenants.n_tenants;
        r->n_leases = s->leases.n_used;
        r->n_reservations = s->reservations.n_used;
        r->n_xfers = e->xfers.n_used;
        r->staging_bytes = t->held_bytes - t->slab_bytes;
        list_for_each (n, &e->tenants.all, struct tenant, link)
                r->n_blocks += n->n_blocks;
        tier->capacity_bytes = t->capacity_bytes;
        tier->slab_bytes = t->slab_bytes;
        tier->used_bytes = t->used_bytes;
        tier->payload_bytes = t->payload_bytes;
        tier->n_blocks = t->n_parts;
        tier->n_slabs = t->n_slabs;
        tier->n_retired = t->n_retired;
        r->n_counters = ELEMENTSOF(counters);
        for (size_t i = 0; i < ELEMENTSOF(counters); i++) {
                cs[i].name = (char *)counters[i].name;
                memcpy(&cs[i].value, (const char *)&metrics + counters[i].offset, 8);
                cp[i] = &cs[i];
        }
}

void request_stat(struct session *c, uint32_t id, const void *message, const uint8_t *packet, size_t n_packet)
{
        const Kvtier__StatRequest *m = message;
        struct server *s = c->server;
        Kvtier__StatReply reply = KVTIER__STAT_REPLY__INIT;
        Kvtier__Tier tier = KVTIER__TIER__INIT, nvme = KVTIER__TIER__INIT, *tiers[] = {&tier, &nvme};
        Kvtier__Counter cs[ELEMENTSOF(counters)], *cp[ELEMENTSOF(counters)];
        struct audit a;
        char token[33];

        for (size_t i = 0; i < ELEMENTSOF(cs); i++)
                kvtier__counter__init(&cs[i]);
        sodium_bin2hex(token, sizeof token, s->boot_token, sizeof s->boot_token);
        reply.daemon = (char *)KVT_RELEASE;
        reply.uptime_usec = s->engine.now_usec - s->started_usec;
        reply.boot_token = token;
        reply.pid = (uint64_t)getpid();
        reply.tiers = tiers;
        reply.n_tiers = s->engine.nvme.n_devices ? 2 : 1;
        stat_nvme(c, &nvme);
        reply.counters = cp;
        tier.name = (char *)s->engine.host.tier.ops->name;
        tier.pages = (char *)pages_name(&s->engine.host);
        if (c->privileged)
                stat_all(s, &reply, &tier, cs, cp);
        else
                stat_tenant(c, &reply, &tier, cs, cp);
        if (m->audit && c->privileged) {
                engine_audit(&s->engine, &a);
                reply.audited = true;
                reply.audit_used_bytes = a.used_bytes;
                reply.audit_n_blocks = a.n_blocks;
                reply.audit_leases = a.n_pins;
                reply.audit_error = (char *)(a.error ?: "");
        }
        session_reply(c, KVT_MSG_STAT, id, &reply);
}

enum { LIST_MAX = 256, LIST_BLOCKS_MAX = 1024, LIST_SCAN_MAX = 1 << 17 };

/* Lists go on behind the id or number of the last entry given; the array of entries is one packet's worth. */
static void list_tenants(struct session *c, uint32_t id, const Kvtier__ListRequest *m)
{
        Kvtier__ListReply reply = KVTIER__LIST_REPLY__INIT;
        Kvtier__TenantEntry es[LIST_MAX], *ep[LIST_MAX];
        uint64_t last = 0;

        reply.tenants = ep;
        list_for_each (t, &c->server->engine.tenants.all, struct tenant, link) {
                if (!visible(c, t) || t->id <= m->cursor)
                        continue;
                if (reply.n_tenants == MIN(m->limit ?: LIST_MAX, (uint32_t)LIST_MAX)) {
                        reply.next_cursor = last;
                        break;
                }
                Kvtier__TenantEntry *n = ep[reply.n_tenants] = &es[reply.n_tenants];
                kvtier__tenant_entry__init(n);
                n->name = t->name;
                n->hard_bytes = t->hard_bytes;
                n->soft_bytes = c->privileged ? quota_soft(&c->server->engine.tenants, t)
                                              : t->soft_bytes; /* equal shares would tell how many there are */
                n->held_bytes = t->held_bytes;
                n->used_bytes = t->used_bytes;
                n->n_blocks = t->n_blocks;
                n->n_sessions = t->n_sessions;
                n->n_leases = t->n_leases;
                n->hits = t->hits;
                n->misses = t->misses;
                n->evicted = t->evicted;
                last = t->id;
                reply.n_tenants++;
        }
        session_reply(c, KVT_MSG_LIST, id, &reply);
}

struct space_texts { /* what an entry points to */
        uint8_t digest[16];
        char rungs[LADDER_N][CODEC_PAIR_MAX];
};

static void fill_space(Kvtier__SpaceEntry *n, const struct space *s, struct space_texts *texts)
{
        kvtier__space_entry__init(n);
        n->space = s->id;
        n->name = (char *)s->name;
        n->tenant = s->tenant->name;
        n->block_tokens = s->geometry.block_tokens;
        n->n_shards = s->geometry.n_shards;
        n->plane_count = s->geometry.n_planes;
        n->part_bytes = s->geometry.part_bytes;
        n->n_blocks = s->n_blocks;
        n->used_bytes = s->used_bytes;
        n->hits = s->hits;
        n->misses = s->misses;
        n->max_rel_l2 = s->max_rel_l2;
        n->n_copies = s->n_copies;
        n->hot = codec_pair_format(&s->ladder.rungs[LADDER_HOT], texts->rungs[LADDER_HOT]);
        n->cold = codec_pair_format(&s->ladder.rungs[LADDER_COLD], texts->rungs[LADDER_COLD]);
        n->nvme = codec_pair_format(&s->ladder.rungs[LADDER_NVME], texts->rungs[LADDER_NVME]);
        if (s->n_salt) {
                crypto_generichash(texts->digest, 16, s->salt, s->n_salt, NULL, 0);
                n->salt_digest = (ProtobufCBinaryData){8, texts->digest};
        }
}

static void list_spaces(struct session *c, uint32_t id, const Kvtier__ListRequest *m)
{
        Kvtier__ListReply reply = KVTIER__LIST_REPLY__INIT;
        Kvtier__SpaceEntry es[LIST_MAX], *ep[LIST_MAX];
        static struct space_texts texts[LIST_MAX]; /* one loop thread */
        static Kvtier__Plane planes[KVT_PLANES_MAX], *pp[KVT_PLANES_MAX]; /* one loop thread */
        uint64_t last = 0;

        reply.spaces = ep;
        list_for_each (s, &c->server->engine.tenants.spaces, struct space, link) {
                if (!visible(c, s->tenant) || s->id <= m->cursor || (m->space && s->id != m->space))
                        continue;
                if (reply.n_spaces == MIN(m->limit ?: LIST_MAX, (uint32_t)LIST_MAX)) {
                        reply.next_cursor = last;
                        break;
                }
                Kvtier__SpaceEntry *n = ep[reply.n_spaces] = &es[reply.n_spaces];
                fill_space(n, s, &texts[reply.n_spaces]);
                last = s->id;
                reply.n_spaces++;
                if (!m->space)
                        continue;
                for (uint32_t i = 0; i < s->geometry.n_planes; i++) {
                        const kvt_plane *p = &s->geometry.planes[i];
                        kvtier__plane__init(&planes[i]);
                        planes[i].layer = p->layer;
                        planes[i].role = p->role;
                        planes[i].dtype = p->dtype;
                        planes[i].heads = p->heads;
                        planes[i].dim = p->dim;
                        planes[i].opaque_bytes = p->opaque_bytes;
                        planes[i].window_tokens = p->window_tokens;
                        pp[i] = &planes[i];
                }
                n->n_planes = s->geometry.n_planes;
                n->planes = pp;
        }
        session_reply(c, KVT_MSG_LIST, id, &reply);
}

#define RECORDS_CURSOR (1ull << 32)

/* Returns the next cursor. */
static uint64_t list_records(struct engine *e, const struct space *s, uint64_t i, uint32_t limit, struct kvt_block_entry *entries,
                             uint32_t *ret_n)
{
        const struct catalog *c = &e->nvme.catalog;
        uint64_t end = MIN(i + LIST_SCAN_MAX, (uint64_t)c->pool.n_touched);

        for (*ret_n = 0; i < end && *ret_n < limit; i++) {
                const struct entry *x = catalog_at(c, (uint32_t)i + 1);
                if (entry_live(x) && entry_space(x) == s->id && !entry_shard(x) && blocks_find(&e->blocks, s->id, x->key) == POOL_NONE)
                        entries[(*ret_n)++] = request_record_entry(e, (uint32_t)i + 1);
        }
        return i < c->pool.n_touched ? RECORDS_CURSOR + i : 0;
}

static void list_blocks(struct session *c, uint32_t id, const Kvtier__ListRequest *m)
{
        Kvtier__ListReply reply = KVTIER__LIST_REPLY__INIT;
        static struct kvt_block_entry entries[LIST_BLOCKS_MAX]; /* one loop thread */
        struct engine *e = &c->server->engine;
        struct space *s = m->space < e->tenants.n_by_id ? e->tenants.by_id[m->space] : NULL;
        uint32_t n = 0, limit = MIN(m->limit ?: LIST_BLOCKS_MAX, (uint32_t)LIST_BLOCKS_MAX);
        uint64_t i = MIN(m->cursor, (uint64_t)e->blocks.pool.n_touched) + 1,
                 end = MIN(i + LIST_SCAN_MAX, (uint64_t)e->blocks.pool.n_touched + 1);

        if (!s || !visible(c, s->tenant)) {
                session_error(c, id, KVT_E_UNKNOWN_SPACE, NULL);
                return;
        }
        for (; m->cursor < RECORDS_CURSOR && i < end && n < limit; i++) {
                const struct block *k = block_at(&e->blocks, (uint32_t)i);
                if (k->space == s->id && (k->state == BLOCK_RESIDENT || k->state == BLOCK_FILLING))
                        entries[n++] = request_block_entry(e, (uint32_t)i);
        }
        uint64_t next = i <= e->blocks.pool.n_touched ? i - 1 : s->n_records ? RECORDS_CURSOR : 0;
        if (m->cursor >= RECORDS_CURSOR) /* those on NVMe only come behind those that are in memory */
                next = list_records(e, s, m->cursor - RECORDS_CURSOR, limit, entries, &n);
        reply.blocks = (ProtobufCBinaryData){n * sizeof *entries, (uint8_t *)entries};
        reply.next_cursor = next;
        session_reply(c, KVT_MSG_LIST, id, &reply);
}

static void list_sessions(struct session *c, uint32_t id, const Kvtier__ListRequest *m)
{
        Kvtier__ListReply reply = KVTIER__LIST_REPLY__INIT;
        Kvtier__SessionEntry es[LIST_MAX], *ep[LIST_MAX];
        uint64_t last = 0;

        reply.sessions = ep;
        list_for_each (o, &c->server->sessions, struct session, link) {
                if (o->state == SESSION_CLOSED || !visible(c, o->tenant) || o->id <= m->cursor)
                        continue;
                if (reply.n_sessions == MIN(m->limit ?: LIST_MAX, (uint32_t)LIST_MAX)) {
                        reply.next_cursor = last;
                        break;
                }
                Kvtier__SessionEntry *n = ep[reply.n_sessions] = &es[reply.n_sessions];
                kvtier__session_entry__init(n);
                n->id = last = o->id;
                n->tenant = o->tenant->name;
                n->name = o->name;
                n->pid = (uint32_t)o->pid;
                n->uid = o->uid;
                n->n_leases = o->n_leases;
                n->staging_bytes = o->staging ? o->staging->bytes : 0;
                n->n_requests = o->n_requests;
                n->age_usec = c->server->engine.now_usec - o->opened_usec;
                reply.n_sessions++;
        }
        session_reply(c, KVT_MSG_LIST, id, &reply);
}

void request_list(struct session *c, uint32_t id, const void *message, const uint8_t *packet, size_t n_packet)
{
        const Kvtier__ListRequest *m = message;

        switch (m->what) {
        case KVTIER__LIST_WHAT__LIST_TENANTS:
                list_tenants(c, id, m);
                break;
        case KVTIER__LIST_WHAT__LIST_SPACES:
                list_spaces(c, id, m);
                break;
        case KVTIER__LIST_WHAT__LIST_BLOCKS:
                list_blocks(c, id, m);
                break;
        case KVTIER__LIST_WHAT__LIST_SESSIONS:
                list_sessions(c, id, m);
                break;
        case KVTIER__LIST_WHAT__LIST_DEVICES:
                request_list_devices(c, id);
                break;
        default:
                session_error(c, id, KVT_E_BAD_REQUEST, "unknown list");
        }
}
