/* Puts whose bytes the caller writes into staging itself: reserve, commit, abort.
 *
 * What the application holds is a ticket: an index into the connection's table and a serial number. A ticket that was committed,
 * aborted, or made up finds no entry. The range in staging belongs to the entry, from the commit to its answer to the request. */
#include <stdlib.h>
#include <string.h>

#include "libclient/codec/part.h"
#include "libclient/put.h"

enum { FIELD_ABORT_RESERVATIONS = 1 };
enum { PRIV_INDEX, PRIV_SERIAL };

struct reservation {
        uint64_t serial; /* 0: free */
        uint64_t id; /* the daemon's */
        struct staging *staging;
        uint64_t offset, bytes;
        uint64_t boot;
        bool durable, hints;
        bool taken; /* by the commit that is being packed: a ticket given twice counts once */
        uint32_t next_free; /* index + 1 */
};

/* the table */

static struct reservation *reservation_new(kvt *c)
{
        struct reservation *e;

        if (!c->free_reservation) {
                uint32_t cap = c->cap_reservations ? c->cap_reservations * 2 : 16;
                struct reservation *more = realloc(c->reservations, cap * sizeof(*more));

                if (!more)
                        return NULL;
                for (uint32_t i = cap; i-- > c->cap_reservations;) {
                        more[i] = (struct reservation){.next_free = c->free_reservation};
                        c->free_reservation = i + 1;
                }
                c->reservations = more;
                c->cap_reservations = cap;
        }
        e = &c->reservations[c->free_reservation - 1];
        c->free_reservation = e->next_free;
        e->serial = ++c->reservation_serial;
        e->taken = false;
        return e;
}

static void reservation_free(kvt *c, struct reservation *e)
{
        e->serial = 0;
        e->next_free = c->free_reservation;
        c->free_reservation = (uint32_t)(e - c->reservations) + 1;
}

static struct reservation *reservation_find(kvt *c, const kvt_reservation *ticket)
{
        struct reservation *e;

        if (!ticket->data || ticket->priv[PRIV_INDEX] >= c->cap_reservations)
                return NULL;
        e = &c->reservations[ticket->priv[PRIV_INDEX]];
        return e->serial && e->serial == ticket->priv[PRIV_SERIAL] ? e : NULL;
}

static bool reservation_is_current(const kvt *c, const struct reservation *e)
{
        return c->staging && e->staging == c->staging;
}

static int abort_on_reply(kvt *c, struct request *q, int error, const uint8_t *body, size_t n)
{
        return 0;
}

/* Nobody waits for the answer. */
static void abort_send(kvt *c, const uint64_t *ids, size_t n)
{
        while (n) {
                size_t n_now = n < KVT_KEYS_MAX ? n : KVT_KEYS_MAX;
                struct request *q = request_new(c, NULL, KVT_MSG_PUT_ABORT);
                uint8_t *p;

                if (!q)
                        return;
                q->on_reply = abort_on_reply;
                p = wire_bytes(tx_body(c), FIELD_ABORT_RESERVATIONS, ids, n_now * sizeof(*ids));
                if (request_send(c, q, (size_t)(p - tx_body(c)))) {
                        request_free(c, q);
                        return;
                }
                ids += n_now;
                n -= n_now;
        }
}

/* Drops an entry, and tells the daemon if it still knows it. */
static void reservation_abort(kvt *c, struct reservation *e)
{
        uint64_t id = e->id;
        bool tell = reservation_is_current(c, e);

        staging_free(c, e->staging, e->offset, e->bytes);
        reservation_free(c, e);
        if (tell)
                abort_send(c, &id, 1);
}

/* reserve */

static int begin_on_reply(kvt *c, struct request *q, int error, const uint8_t *body, size_t n)
{
        ProtobufCAllocator allocator = arena_start(&c->arena);
        const uint64_t *offsets = q->owned;
        kvt_op *op = q->op;
        Kvtier__PutBeginReply *m = NULL;

        if (!error) {
                m = kvtier__put_begin_reply__unpack(&allocator, n, body);
                if (!m || m->entries.len != q->n * sizeof(struct kvt_put_entry))
                        return -1;
        }
        for (uint32_t i = 0; i < q->n; i++) {
                struct kvt_put_entry entry = {.status = KVT_E_CANCELLED};
                struct reservation *e = NULL;

                if (m)
                        memcpy(&entry, m->entries.data + i * sizeof(entry), sizeof(entry));
                if (m && !entry.status) {
                        e = op ? reservation_new(c) : NULL;
                        if (!e) {
                                entry.status = KVT_E_NO_MEMORY;
                                abort_send(c, &entry.reservation, 1);
                        }
                }
                if (e) {
                        kvt_reservation *ticket = (kvt_reservation *)op->result + q->i_first + i;

                        e->id = entry.reservation;
                        e->staging = q->staging;
                        e->offset = offsets[i];
                        e->bytes = q->bytes;
                        e->boot = c->boot;
                        e->durable = op->op_flags & KVT_PUT_DURABLE;
                        e->hints = op->op_flags & KVT_PUT_HINTS;
                        ticket->data = q->staging->base + offsets[i];
                        ticket->priv[PRIV_INDEX] = (uint64_t)(e - c->reservations);
                        ticket->priv[PRIV_SERIAL] = e->serial;
                } else
                        staging_free(c, q->staging, offsets[i], q->bytes);
                if (op && m)
                        op->statuses[q->i_first + i] = entry.status;
        }
        return 0;
}

/* Room for as many of the next keys as there is, then one request for them. KVT_E_AGAIN: for none. */
static int begin_send(kvt_op *op)
{
        kvt *c = op->c;
        const struct geometry *g = &op->s->geometry;
        uint64_t stride = staging_stride(g->part_bytes + (op->op_flags & KVT_PUT_HINTS ? hints_max(g) : 0)), *offsets;
        size_t left = op->n_keys - op->i_next, n_most = left < KVT_KEYS_MAX ? left : KVT_KEYS_MAX;
        struct staging *staging = c->staging;
        struct request *q;
        uint32_t n = 0;
        uint8_t *p;
        int r;

        offsets = malloc(n_most * sizeof(*offsets));
        q = offsets ? request_new(c, op, KVT_MSG_PUT_BEGIN) : NULL;
        if (!q) {
                free(offsets);
                return KVT_E_NO_MEMORY;
        }
        q->owned = offsets;
        do
                r = staging_alloc(c, stride, &staging, &offsets[n]);
        while (!r && ++n < n_most);
        if (!n) {
                request_free(c, q);
                return r;
        }
        q->on_reply = begin_on_reply;
        q->i_first = (uint32_t)op->i_next;
        q->n = n;
        q->staging = staging;
        q->bytes = stride;
        p = put_pack_head(op, tx_body(c), op->i_next ? &op->keys[op->i_next - 1] : op->parent);
        p = wire_bytes(p, FIELD_PUT_KEYS, op->keys + op->i_next, n * sizeof(kvt_key));
        p = wire_uint(p, FIELD_BEGIN_REPLACE, !!(op->op_flags & KVT_PUT_REPLACE));
        p = wire_uint(p, FIELD_BEGIN_DURABLE, !!(op->op_flags & KVT_PUT_DURABLE));
        if (op->op_flags & KVT_PUT_HINTS)
                p = wire_uint(p, FIELD_BEGIN_HINTS, 1);
        r = request_send(c, q, (size_t)(p - tx_body(c)));
        if (r) {
                for (uint32_t i = 0; i < n; i++)
                        staging_free(c, staging, offsets[i], stride);
                request_free(c, q);
                return r;
        }
        op->i_next += n;
        return 0;
}

static int reserve_step(kvt_op *op)
{
        kvt *c = op->c;
        int r;

        pthread_mutex_lock(&c->lock);
        r = op->error ? op->error : op->cancelled ? KVT_E_CANCELLED : staging_ensure(op);
        if (!r && op->n_pending)
                r = STEP_PENDING;
        if (!r && op->i_next < op->n_keys) {
                r = begin_send(op);
                if (!r)
                        r = STEP_PENDING;
                else if (r == KVT_E_AGAIN && op->i_next)
                        r = 0; /* their statuses say so */
        }
        pthread_mutex_unlock(&c->lock);
        return r;
}

static int reserve_start(kvt_op *op)
{
        op->i_next = 0;
        memset(op->result, 0, op->n_keys * sizeof(kvt_reservation));
        memset(op->statuses, KVT_E_AGAIN, op->n_keys);
        return conn_is_draining(op->c) ? KVT_E_DRAINING : 0;
}

static void reserve_deinit(kvt_op *op)
{
        kvt_reservation *tickets = op->result;

        if (op->status)
                for (size_t i = 0; i < op->n_keys; i++) {
                        struct reservation *e = reservation_find(op->c, &tickets[i]);

                        if (e)
                                reservation_abort(op->c, e);
                        tickets[i].data = NULL;
                }
}

static int reserve_op(kvt_space *s, const kvt_key *parent, const kvt_key *keys, size_t n_keys, uint32_t flags, kvt_reservation *ret,
                      uint8_t *statuses, kvt_op **ret_op)
{
        kvt_op *op;
        int r = s ? conn_check(s->c) : KVT_E_BAD_REQUEST;

        if (r)
                return r;
        if (!n_keys || n_keys > UINT32_MAX || !keys || !ret || flags & ~(put_flags | KVT_PUT_HINTS))
                return KVT_E_BAD_REQUEST;
        op = op_new(s->c, s);
        if (!op)
                return KVT_E_NO_MEMORY;
        op->start = reserve_start;
        op->step = reserve_step;
        op->deinit = reserve_deinit;
        op->parent = parent;
        op->keys = keys;
        op->n_keys = n_keys;
        op->op_flags = flags;
        op->result = ret;
        op->statuses = statuses;
        if (op_own_statuses(op)) {
                op_free(op);
                return KVT_E_NO_MEMORY;
        }
        *ret_op = op;
        return 0;
}

int kvt_put_reserve(kvt_space *s, const kvt_key *parent, const kvt_key *keys, size_t n_keys, uint32_t flags, kvt_reservation *ret,
                    uint8_t *statuses)
{
        kvt_op *op;
        int r = reserve_op(s, parent, keys, n_keys, flags, ret, statuses, &op);

        return r ? r : op_sync(op, true);
}

int kvt_put_reserve_async(kvt_space *s, const kvt_key *parent, const kvt_key *keys, size_t n_keys, uint32_t flags, kvt_reservation *ret,
                          uint8_t *statuses, kvt_done done, void *arg, kvt_op **ret_op)
{
        kvt_op *op;
        int r = reserve_op(s, parent, keys, n_keys, flags, ret, statuses, &op);

        return r ? r : op_async_keys(op, done, arg, ret_op);
}

/* commit */

struct committing {
        uint32_t position;
        uint64_t offset, bytes;
};

static int commit_on_reply(kvt *c, struct request *q, int error, const uint8_t *body, size_t n)
{
        ProtobufCAllocator allocator = arena_start(&c->arena);
        const struct committing *committing = q->owned;
        Kvtier__PutCommitReply *m = NULL;

        if (!error) {
                m = kvtier__put_commit_reply__unpack(&allocator, n, body);
                if (!m || m->statuses.len != q->n)
                        return -1;
        }
        for (uint32_t i = 0; i < q->n; i++) {
                staging_free(c, q->staging, committing[i].offset, committing[i].bytes);
                if (q->op && q->op->statuses)
                        q->op->statuses[committing[i].position] = m ? m->statuses.data[i] : (uint8_t)error;
        }
        return 0;
}

/* The next tickets that the daemon knows, at most KVT_KEYS_MAX, all of them durable or none. 0 with op->i_next moved on, or an error. */
static int commit_send(kvt_op *op)
{
        kvt *c = op->c;
        kvt_reservation *tickets = op->result;
        size_t left = op->n_keys - op->i_next, n_most = left < KVT_KEYS_MAX ? left : KVT_KEYS_MAX, i = op->i_next;
        struct committing *committing = malloc(n_most * sizeof(*committing));
        struct request *q = committing ? request_new(c, op, KVT_MSG_PUT_COMMIT) : NULL;
        const struct geometry *g = &op->s->geometry;
        size_t hint_bytes = 0;
        bool durable = false;
        uint64_t *ids;
        uint8_t *p;
        int r = 0;

        if (!q) {
                free(committing);
                return KVT_E_NO_MEMORY;
        }
        q->owned = committing;
        q->on_reply = commit_on_reply;
        q->staging = c->staging;
        for (; i < op->i_next + n_most; i++) {
                struct reservation *e = reservation_find(c, &tickets[i]);

                if (e && e->taken) {
                        if (op->statuses)
                                op->statuses[i] = KVT_E_UNKNOWN_RESERVATION;
                        continue;
                }
                if (e && op->hints && !e->hints) {
                        if (op->statuses)
                                op->statuses[i] = KVT_E_BAD_REQUEST;
                        reservation_abort(c, e);
                        continue;
                }
                if (e && reservation_is_current(c, e)) {
                        if (q->n && e->durable != durable)
                                break;
                        durable = e->durable;
                        e->taken = true;
                        if (op->hints)
                                hint_bytes = hints_encode(g, op->hints->protect, op->hints->scores, i * g->block_tokens,
                                                          e->staging->base + e->offset + g->part_bytes);
                        committing[q->n++] = (struct committing){.position = (uint32_t)i, .offset = e->offset, .bytes = e->bytes};
                        continue;
                }
                if (op->statuses)
                        op->statuses[i] = e && e->boot != c->boot ? KVT_E_RESTARTED : KVT_E_UNKNOWN_RESERVATION;
                if (e)
                        reservation_abort(c, e);
        }
        if (q->n) {
                p = put_pack_head(op, tx_body(c), NULL);
                p = wire_open(p, FIELD_COMMIT_OFFSETS, q->n * sizeof(uint64_t));
                for (uint32_t j = 0; j < q->n; j++, p += sizeof(uint64_t))
                        memcpy(p, &committing[j].offset, sizeof(uint64_t));
                p = wire_open(p, FIELD_COMMIT_RESERVATIONS, q->n * sizeof(uint64_t));
                for (uint32_t j = 0; j < q->n; j++, p += sizeof(uint64_t)) {
                        ids = &reservation_find(c, &tickets[committing[j].position])->id;
                        memcpy(p, ids, sizeof(*ids));
                }
                p = wire_uint(p, FIELD_COMMIT_DURABLE, durable);
                if (hint_bytes)
                        p = wire_uint(p, FIELD_COMMIT_HINT_BYTES, hint_bytes);
                r = request_send(c, q, (size_t)(p - tx_body(c)));
                for (uint32_t j = 0; j < q->n && r; j++)
                        reservation_find(c, &tickets[committing[j].position])->taken = false;
        }
        if (!q->n || r) {
                request_free(c, q);
                if (r)
                        return r;
        } else
                for (uint32_t j = 0; j < q->n; j++) /* its range is the request's now */
                        reservation_free(c, reservation_find(c, &tickets[committing[j].position]));
        for (size_t j = op->i_next; j < i; j++)
                tickets[j].data = NULL;
        op->i_next = i;
        return 0;
}

static int commit_start(kvt_op *op)
{
        int r = 0;

        op->i_next = 0;
        while (!r && op->i_next < op->n_keys)
                r = commit_send(op);
        return r;
}

static int commit_op(kvt_space *s, kvt_reservation *reservations, size_t n, const kvt_hints *hints, uint8_t *statuses, kvt_op **ret_op)
{
        kvt_op *op;
        int r = s ? conn_check(s->c) : KVT_E_BAD_REQUEST;

        if (r)
                return r;
        if (n > UINT32_MAX || (n && !reservations) || (hints && hints->struct_size < sizeof(*hints)))
                return KVT_E_BAD_REQUEST;
        op = op_new(s->c, s);
        if (!op)
                return KVT_E_NO_MEMORY;
        op->start = commit_start;
        op->n_keys = n;
        op->result = reservations;
        op->hints = hints;
        op->statuses = statuses;
        *ret_op = op;
        return 0;
}

int kvt_put_commit_hints(kvt_space *s, kvt_reservation *reservations, size_t n, const kvt_hints *hints, uint8_t *statuses)
{
        kvt_op *op;
        int r = commit_op(s, reservations, n, hints, statuses, &op);

        return r ? r : op_sync(op, false);
}

int kvt_put_commit(kvt_space *s, kvt_reservation *reservations, size_t n, uint8_t *statuses)
{
        return kvt_put_commit_hints(s, reservations, n, NULL, statuses);
}

int kvt_put_commit_async(kvt_space *s, kvt_reservation *reservations, size_t n, uint8_t *statuses, kvt_done done, void *arg,
                         kvt_op **ret_op)
{
        kvt_op *op;
        int r = commit_op(s, reservations, n, NULL, statuses, &op);

        return r ? r : op_async(op, done, arg, ret_op);
}

/* abort */

int kvt_put_abort(kvt_space *s, kvt_reservation *reservations, size_t n)
{
        kvt *c;
        int r = s ? conn_check(s->c) : KVT_E_BAD_REQUEST;

        if (r || (n && !reservations))
                return r ? r : KVT_E_BAD_REQUEST;
        c = s->c;
        pthread_mutex_lock(&c->lock);
        for (size_t i = 0; i < n; i++) {
                struct reservation *e = reservation_find(c, &reservations[i]);

                if (e)
                        reservation_abort(c, e);
                else if (reservations[i].data)
                        r = KVT_E_UNKNOWN_RESERVATION;
                reservations[i].data = NULL;
        }
        pthread_mutex_unlock(&c->lock);
        return r;
}
