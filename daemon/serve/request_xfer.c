/* Puts and copies into staging: requests that wait for transfers. */
#include <string.h>

#include "daemon/engine/reclaim.h"
#include "daemon/serve/lease.h"
#include "daemon/serve/request.h"
#include "daemon/util/metrics.h"
#include "libclient/codec/copy.h"

#define INFLIGHT_MIN (256ull << 20)

struct request *request_open_items(struct session *c, uint32_t id, uint16_t type, struct space *s, uint32_t n)
{
        struct request *r = calloc(1, sizeof *r + n * (sizeof *r->items + 1));

        if (!r) {
                session_error(c, id, KVT_E_NO_MEMORY, NULL);
                return NULL;
        }
        r->server = c->server;
        r->session = c;
        r->id = id;
        r->type = type;
        r->n_items = n;
        r->space = s;
        s->n_open++;
        r->part_bytes = type == KVT_MSG_GET || type == KVT_MSG_PUT_COMMIT ? s->geometry.part_bytes : 0;
        r->n_pending = 1; /* the handler's own, until it has started all */
        r->statuses = (uint8_t *)&r->items[n];
        list_init(&r->deadline_link);
        for (uint32_t i = 0; i < n; i++) {
                r->items[i].request = r;
                list_init(&r->items[i].put.link);
                list_init(&r->items[i].load.link);
        }
        list_append(&c->server->requests, &r->link);
        return r;
}

static void answer(struct session *c, struct request *r)
{
        Kvtier__GetReply get = KVTIER__GET_REPLY__INIT;
        Kvtier__PutCommitReply put = KVTIER__PUT_COMMIT_REPLY__INIT;
        Kvtier__PrefetchReply prefetch = KVTIER__PREFETCH_REPLY__INIT;
        ProtobufCBinaryData statuses = {r->n_items, r->statuses};

        switch (r->type) {
        case KVT_MSG_GET:
                get.statuses = statuses;
                session_reply(c, r->type, r->id, &get);
                break;
        case KVT_MSG_PUT_COMMIT:
                put.statuses = statuses;
                session_reply(c, r->type, r->id, &put);
                break;
        case KVT_MSG_PREFETCH:
                prefetch.statuses = statuses;
                session_reply(c, r->type, r->id, &prefetch);
                break;
        case KVT_MSG_MAP:
                request_map_loaded(r);
                break;
        default:
                ASSERT(false);
        }
}

void request_unpend(struct request *r)
{
        if (--r->n_pending)
                return;
        if (r->durable && !r->writing && r->session) {
                request_make_durable(r);
                return;
        }
        list_remove(&r->link);
        list_remove(&r->deadline_link);
        if (r->session && r->writing)
                r->session->n_inflight -= r->n_items;
        if (r->session)
                answer(r->session, r);
        if (r->type == KVT_MSG_MAP)
                request_map_unpin(r);
        r->space->n_open--;
        engine_settle_space(&r->server->engine, r->space);
        free(r->packet);
        free(r);
}

void item_done(struct request_item *i, int status)
{
        struct request *r = i->request;

        i->pending = false;
        r->statuses[i - r->items] = (uint8_t)status;
        if (r->session) {
                r->session->n_inflight--;
                r->session->inflight_bytes -= r->part_bytes;
        }
        request_unpend(r);
}

void item_started(struct request_item *i, int r)
{
        if (r == PUT_PENDING) {
                i->pending = true;
                i->request->n_pending++;
                i->request->session->n_inflight++;
                i->request->session->inflight_bytes += i->request->part_bytes;
        } else {
                i->request->statuses[i - i->request->items] = (uint8_t)r;
        }
}

static void on_put_done(struct engine *e, struct put *p, int status)
{
        item_done(container_of(p, struct request_item, put), status);
}

static uint64_t nth(const ProtobufCBinaryData *d, uint32_t i)
{
        uint64_t x;

        memcpy(&x, d->data + 8 * i, 8);
        return x;
}

/* Staging offsets of n times so many bytes. Answers with an error itself. */
static bool check_offsets(struct session *c, uint32_t id, uint64_t bytes, const ProtobufCBinaryData *offsets, uint32_t n)
{
        bool ok = c->staging && offsets->len == 8ull * n;

        for (uint32_t i = 0; ok && i < n; i++)
                ok = bytes <= c->staging->bytes && nth(offsets, i) <= c->staging->bytes - bytes;
        if (!ok)
                session_error(c, id, KVT_E_BAD_STAGING, c->staging ? "an offset is missing or past the end" : "the session has no staging");
        return ok;
}

/* n more parts, of which n_copied are to be copied at once. Nothing makes a client name each offset once: so the bytes under way are bounded,
 * well above what fits staging, or one client could fill the queue that all wait in. */
bool request_check_busy(struct session *c, uint32_t id, const struct space *s, uint32_t n, uint32_t n_copied)
{
        uint64_t bytes = n_copied * s->geometry.part_bytes, most = c->staging ? MAX(4 * c->staging->bytes, INFLIGHT_MIN) : 0;

        if (c->server->draining)
                session_error(c, id, KVT_E_DRAINING, NULL);
        else if (c->n_inflight + n > c->server->conf.p.max_inflight_session)
                session_error(c, id, KVT_E_AGAIN, "too many parts under way");
        else if (bytes && c->inflight_bytes + bytes > most)
                session_error(c, id, KVT_E_AGAIN, "too many bytes under way");
        else
                return true;
        return false;
}

static bool check_parent(struct session *c, uint32_t id, const ProtobufCBinaryData *parent)
{
        if (!parent->len || parent->len == KVT_KEY_BYTES)
                return true;
        session_error(c, id, KVT_E_BAD_REQUEST, "a parent key has 16 bytes");
        return false;
}

void request_put_begin(struct session *c, uint32_t id, const void *message, const uint8_t *packet, size_t n_packet)
{
        const Kvtier__PutBeginRequest *m = message;
        struct engine *e = &c->server->engine;
        Kvtier__PutBeginReply reply = KVTIER__PUT_BEGIN_REPLY__INIT;
        struct kvt_put_entry entries[KVT_KEYS_MAX] = {};
        struct space *s = request_space(c, id, m->space);
        const uint8_t *parent = m->parent.len ? m->parent.data : NULL;
        uint32_t n;

        if (!s || !request_shard(c, id, s, m->shard) || !check_parent(c, id, &m->parent) || !(n = request_keys(c, id, &m->keys)) ||
            !request_check_busy(c, id, s, n, 0))
                return;
        s->n_open++; /* making room may take its last block */
        for (uint32_t i = 0; i < n; i++) {
                const uint8_t *key = m->keys.data + 16 * i;
                bool before = i && (entries[i - 1].status == 0 || entries[i - 1].status == KVT_E_EXISTS);
                struct location at;
                int r = put_check(e, s, m->shard, key, before ? NULL : parent, m->replace);
                if (r == 0 && i && !before)
                        r = entries[i - 1].status == KVT_E_NO_PARENT ? KVT_E_NO_PARENT : entries[i - 1].status;
                if (r == 0)
                        r = m->hints ? reclaim_reserve(e, s,
                                                       copy_bytes(&s->geometry, false, s->geometry.part_bytes + hints_max(&s->geometry)),
                                                       &at)
                                     : reclaim_reserve_raw(e, s, &at);
                if (r == 0) {
                        struct reservation *v = reservation_new(c, s, at);
                        if (v) {
                                v->shard = m->shard;
                                v->replace = m->replace;
                                v->durable = m->durable;
                                v->has_parent = parent;
                                memcpy(v->key, key, 16);
                                if (parent)
                                        memcpy(v->parent, parent, 16);
                                entries[i].reservation = v->id;
                        } else {
                                e->host.tier.ops->abandon(&e->host.tier, s, at);
                                r = KVT_E_AGAIN;
                        }
                }
                entries[i].status = (uint8_t)r;
                metrics.c_put_exists += r == KVT_E_EXISTS;
                put_refused(e, s, key, r);
                parent = key;
        }
        s->n_open--;
        engine_settle_space(e, s);
        reply.entries = (ProtobufCBinaryData){n * sizeof *entries, (uint8_t *)entries};
        session_reply(c, KVT_MSG_PUT_BEGIN, id, &reply);
}

/* Moves a reservation into a put. */
static int take_reservation(struct session *c, struct space *s, uint64_t number, struct put *p, bool *ret_durable)
{
        struct reservation *v = reservation_find(c, number);

        if (!v || v->space != s)
                return KVT_E_UNKNOWN_RESERVATION;
        p->shard = v->shard;
        p->replace = v->replace;
        *ret_durable |= v->durable;
        p->has_parent = v->has_parent;
        memcpy(p->key, v->key, 16);
        memcpy(p->parent, v->parent, 16);
        p->reserved = v->at;
        v->at = (struct location){};
        reservation_end(c->server, v);
        return 0;
}

void request_put_commit(struct session *c, uint32_t id, const void *message, const uint8_t *packet, size_t n_packet)
{
        const Kvtier__PutCommitRequest *m = message;
        struct engine *e = &c->server->engine;
        struct space *s = request_space(c, id, m->space);
        uint32_t n = s ? (uint32_t)(m->reservations.len / 8) : 0;

        if (!s || !request_shard(c, id, s, m->shard) || !check_parent(c, id, &m->parent))
                return;
        if (m->reservations.len) {
                if (m->reservations.len % 8 || n > KVT_KEYS_MAX || (m->keys.len && m->keys.len != 16ull * n)) {
                        session_error(c, id, KVT_E_BAD_REQUEST, "reservations must be 1 to 2048 times 8 bytes, as many as keys");
                        return;
                }
        } else if (!(n = request_keys(c, id, &m->keys))) {
                return;
        }
        if (m->hint_bytes > hints_max(&s->geometry)) {
                session_error(c, id, KVT_E_BAD_REQUEST, "hints are longer than a block's can be");
                return;
        }
        if (!check_offsets(c, id, s->geometry.part_bytes + m->hint_bytes, &m->offsets, n) ||
            !request_check_busy(c, id, s, m->reservations.len ? 0 : n, n))
                return;
        struct request *r = request_open_items(c, id, KVT_MSG_PUT_COMMIT, s, n);
        if (!r)
                return;
        s->n_open++;
        r->durable = m->durable;
        for (uint32_t i = 0; i < n; i++) {
                struct put *p = &r->items[i].put;
                int status = 0;

                *p = (struct put){.space = s,
                                  .shard = m->shard,
                                  .replace = m->replace,
                                  .staging = c->staging,
                                  .offset = nth(&m->offsets, i),
                                  .hint_bytes = m->hint_bytes,
                                  .done = on_put_done};
                list_init(&p->link);
                if (m->reservations.len) {
                        status = take_reservation(c, s, nth(&m->reservations, i), p, &r->durable);
                } else {
                        p->has_parent = i || m->parent.len;
                        memcpy(p->key, m->keys.data + 16 * i, 16);
                        if (p->has_parent)
                                memcpy(p->parent, i ? m->keys.data + 16 * (i - 1) : m->parent.data, 16);
                }
                item_started(&r->items[i], status != 0 ? status : put_start(e, p));
        }
        s->n_open--;
        request_unpend(r);
        engine_settle_space(e, s);
}

void request_put_abort(struct session *c, uint32_t id, const void *message, const uint8_t *packet, size_t n_packet)
{
        const Kvtier__PutAbortRequest *m = message;
        Kvtier__PutAbortReply reply = KVTIER__PUT_ABORT_REPLY__INIT;
        uint8_t statuses[KVT_KEYS_MAX];
        uint32_t n = (uint32_t)(m->reservations.len / 8);

        if (!n || n > KVT_KEYS_MAX || m->reservations.len % 8) {
                session_error(c, id, KVT_E_BAD_REQUEST, "reservations must be 1 to 2048 times 8 bytes");
                return;
        }
        for (uint32_t i = 0; i < n; i++) {
                struct reservation *v = reservation_find(c, nth(&m->reservations, i));
                statuses[i] = v ? 0 : KVT_E_UNKNOWN_RESERVATION;
                if (v)
                        reservation_end(c->server, v);
        }
        reply.statuses = (ProtobufCBinaryData){n, statuses};
        session_reply(c, KVT_MSG_PUT_ABORT, id, &reply);
}

void request_get(struct session *c, uint32_t id, const void *message, const uint8_t *packet, size_t n_packet)
{
        const Kvtier__GetRequest *m = message;
        struct space *s = request_space(c, id, m->space);
        uint32_t n, n_planes, first = m->first_plane;

        if (!s || !request_shard(c, id, s, m->shard) || !(n = request_keys(c, id, &m->keys)))
                return;
        n_planes = m->n_planes ?: s->geometry.n_planes - MIN(first, s->geometry.n_planes);
        if (first >= s->geometry.n_planes || n_planes > s->geometry.n_planes - first) {
                session_error(c, id, KVT_E_BAD_REQUEST, "no such planes");
                return;
        }
        uint64_t bytes = s->geometry.offsets[first + n_planes] - s->geometry.offsets[first];
        if (!check_offsets(c, id, bytes, &m->offsets, n) || !request_check_busy(c, id, s, n, n))
                return;
        struct request *r = request_open_items(c, id, KVT_MSG_GET, s, n);
        if (!r)
                return;
        for (uint32_t i = 0; i < n; i++)
                request_get_item(c, &r->items[i], s, m->shard, m->keys.data + 16 * i, nth(&m->offsets, i), first, first + n_planes);
        request_unpend(r);
}

void request_cancel(struct session *c, uint32_t id, const void *message, const uint8_t *packet, size_t n_packet)
{
        const Kvtier__CancelRequest *m = message;

        list_for_each (r, &c->server->requests, struct request, link) {
                if (r->session != c || r->id != m->request_id)
                        continue;
                for (uint32_t i = 0; i < r->n_items; i++) {
                        if (!r->items[i].pending)
                                continue;
                        if (r->type == KVT_MSG_PUT_COMMIT && !r->writing)
                                put_cancel(&r->items[i].put);
                        else if (r->type == KVT_MSG_GET && !r->items[i].loading && r->items[i].get.xfer)
                                xfer_cancel(r->items[i].get.xfer);
                }
                return;
        }
}
