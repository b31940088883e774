/* kvt_put(): copies blocks out of the caller's view into staging, and names them to the daemon.
 *
 *      staging open? --> MATCH: what is there already is not copied --> fill a batch, PUT_COMMIT, fill the next ...
 *
 * A durable put does not ask first: what is there already must be made durable, too, so that KVT_E_EXISTS means it; and a block that went
 * between the question and the commit must be stored from its bytes, which therefore are always sent.
 *
 * While the daemon copies and checks one batch, the next is filled; up to 4 are under way, of about 2 MiB each, so that the bytes are still in
 * the cache when the daemon reads them. The asynchronous form reads the view before it returns, so it neither asks first nor waits for
 * room: blocks that staging has no room for are KVT_E_AGAIN. */
#include <stdlib.h>
#include <string.h>

#include "libclient/codec/part.h"
#include "libclient/put.h"
#include "libclient/view.h"
#include "libclient/wire.h"

enum { FIELD_MATCH_SPACE = 1, FIELD_MATCH_KEYS = 2, FIELD_MATCH_RELEASES = 3, FIELD_MATCH_PROBE = 4 };
enum { BATCHES_MAX = 4 };
static const uint64_t batch_bytes = 2u << 20, match_min_bytes = 64u << 10;

struct put_work {
        size_t i_next; /* first block that was not dealt with */
        bool matching; /* still asking what is there */
};

static void fill_statuses(kvt_op *op, size_t first, size_t n, int status)
{
        if (op->statuses && n)
                memset(op->statuses + first, status, n);
}

/* what is there already */

static int match_on_reply(kvt *c, struct request *q, int error, const uint8_t *body, size_t n)
{
        ProtobufCAllocator allocator = arena_start(&c->arena);
        Kvtier__MatchReply *m;
        struct put_work *w;

        if (error || !q->op)
                return 0;
        m = kvtier__match_reply__unpack(&allocator, n, body);
        if (!m || m->n_blocks > q->n)
                return -1;
        w = q->op->work;
        fill_statuses(q->op, w->i_next, m->n_blocks, KVT_E_EXISTS);
        w->i_next += m->n_blocks;
        w->matching = m->n_blocks == q->n && w->i_next < q->op->n_keys;
        return 0;
}

static int match_send(kvt_op *op)
{
        kvt *c = op->c;
        struct put_work *w = op->work;
        size_t n = op->n_keys - w->i_next;
        struct request *q = request_new(c, op, KVT_MSG_MATCH);
        uint8_t *p = tx_body(c);
        int r;

        if (!q)
                return KVT_E_AGAIN;
        q->on_reply = match_on_reply;
        q->n = n < KVT_KEYS_MAX ? (uint32_t)n : KVT_KEYS_MAX;
        p = wire_uint(p, FIELD_MATCH_SPACE, op->s->handle);
        p = wire_bytes(p, FIELD_MATCH_KEYS, op->keys + w->i_next, q->n * sizeof(kvt_key));
        p = wire_uint(p, FIELD_MATCH_PROBE, true);
        p = release_ride(c, p, FIELD_MATCH_RELEASES);
        r = request_send(c, q, (size_t)(p - tx_body(c)));
        if (r)
                request_free(c, q);
        return r;
}

/* batches */

static int commit_on_reply(kvt *c, struct request *q, int error, const uint8_t *body, size_t n)
{
        ProtobufCAllocator allocator = arena_start(&c->arena);
        Kvtier__PutCommitReply *m;

        if (!error) {
                m = kvtier__put_commit_reply__unpack(&allocator, n, body);
                if (!m || m->statuses.len != q->n)
                        return -1;
                if (q->op && q->op->statuses)
                        memcpy(q->op->statuses + q->i_first, m->statuses.data, q->n);
        }
        staging_free(c, q->staging, q->offset, q->bytes);
        return 0;
}

static int commit_send(kvt_op *op, struct staging *staging, uint64_t offset, uint64_t stride, size_t hint_bytes, size_t i_first, uint32_t n)
{
        kvt *c = op->c;
        struct request *q = request_new(c, op, KVT_MSG_PUT_COMMIT);
        uint8_t *p = tx_body(c);
        int r;

        if (!q)
                return KVT_E_AGAIN;
        q->on_reply = commit_on_reply;
        q->i_first = (uint32_t)i_first;
        q->n = n;
        q->staging = staging;
        q->offset = offset;
        q->bytes = n * stride;
        p = put_pack_head(op, p, i_first ? &op->keys[i_first - 1] : op->parent);
        p = wire_bytes(p, FIELD_PUT_KEYS, op->keys + i_first, n * sizeof(kvt_key));
        p = wire_open(p, FIELD_COMMIT_OFFSETS, n * sizeof(uint64_t));
        for (uint32_t i = 0; i < n; i++, p += sizeof(uint64_t)) {
                uint64_t at = offset + i * stride;

                memcpy(p, &at, sizeof(at));
        }
        p = wire_uint(p, FIELD_COMMIT_REPLACE, !!(op->op_flags & KVT_PUT_REPLACE));
        p = wire_uint(p, FIELD_COMMIT_DURABLE, !!(op->op_flags & KVT_PUT_DURABLE));
        if (hint_bytes)
                p = wire_uint(p, FIELD_COMMIT_HINT_BYTES, hint_bytes);
        r = request_send(c, q, (size_t)(p - tx_body(c)));
        if (r)
                request_free(c, q);
        return r;
}

/* Fills and sends the next batch; drops the lock to copy. STEP_PENDING: no room now. */
static int batch_send(kvt_op *op)
{
        kvt *c = op->c;
        struct put_work *w = op->work;
        const struct geometry *g = &op->s->geometry;
        uint64_t stride = staging_stride(g->part_bytes + (op->hints ? hints_max(g) : 0)), offset;
        size_t n = op->n_keys - w->i_next, hint_bytes = 0;
        struct staging *staging;
        int r;

        if (n > KVT_KEYS_MAX)
                n = KVT_KEYS_MAX;
        if (n > 1 && n * stride > batch_bytes)
                n = batch_bytes / stride ? batch_bytes / stride : 1;
        while ((r = staging_alloc(c, n * stride, &staging, &offset)) && r != KVT_E_DISCONNECTED && n > 1)
                n /= 2;
        if (r)
                return r == KVT_E_AGAIN ? STEP_PENDING : r;

        pthread_mutex_unlock(&c->lock);
        staging_prepare(staging, offset, n * stride);
        for (size_t i = 0; i < n; i++) {
                uint8_t *at = staging->base + offset + i * stride;

                view_gather(g, op->view, op->first_block + w->i_next + i, at);
                if (op->hints)
                        hint_bytes = hints_encode(g, op->hints->protect, op->hints->scores, (w->i_next + i) * g->block_tokens,
                                                  at + g->part_bytes);
        }
        pthread_mutex_lock(&c->lock);
        r = op->error               ? op->error
            : staging != c->staging ? KVT_E_DISCONNECTED
                                    : commit_send(op, staging, offset, stride, hint_bytes, w->i_next, (uint32_t)n);
        if (r)
                staging_free(c, staging, offset, n * stride);
        else
                w->i_next += n;
        return r;
}

/* the synchronous form */

static int put_step_locked(kvt_op *op)
{
        struct put_work *w = op->work;
        int r = 0;

        if (op->error || op->cancelled)
                return op->error ? op->error : KVT_E_CANCELLED;
        r = staging_ensure(op);
        if (r)
                return r;
        if (w->matching) {
                if (!op->n_pending)
                        r = match_send(op);
                return r ? r : STEP_PENDING;
        }
        while (!r && w->i_next < op->n_keys && op->n_pending < BATCHES_MAX)
                r = batch_send(op);
        if (r == STEP_PENDING)
                op->wants_staging = !op->n_pending;
        return r ? r : op->n_pending ? STEP_PENDING : 0;
}

static int put_step(kvt_op *op)
{
        int r;

        pthread_mutex_lock(&op->c->lock);
        r = put_step_locked(op);
        pthread_mutex_unlock(&op->c->lock);
        return r;
}

static int put_begin(kvt_op *op)
{
        struct put_work *w = calloc(1, sizeof(*w));

        op->work = w;
        return !w ? KVT_E_NO_MEMORY : conn_is_draining(op->c) ? KVT_E_DRAINING : 0;
}

static int put_start(kvt_op *op)
{
        int r = put_begin(op);

        if (!r)
                ((struct put_work *)op->work)->matching =
                        !(op->op_flags & put_flags) && (op->n_keys > 1 || op->s->geometry.part_bytes >= match_min_bytes);
        return r;
}

static void put_deinit(kvt_op *op)
{
        struct put_work *w = op->work;

        if (w && op->status)
                fill_statuses(op, w->i_next, op->n_keys - w->i_next, op->status > 0 ? op->status : KVT_E_AGAIN);
        free(w);
        op->work = NULL;
}

static int put_op(kvt_space *s, const kvt_key *parent, const kvt_key *keys, size_t n_keys, size_t first_block, const kvt_view *view,
                  uint32_t flags, const kvt_hints *hints, uint8_t *statuses, kvt_op **ret_op)
{
        kvt_op *op;
        int r = s ? conn_check(s->c) : KVT_E_BAD_REQUEST;

        if (r)
                return r;
        if ((hints && hints->struct_size < sizeof(*hints)) || n_keys > UINT32_MAX || (n_keys && !keys) || flags & ~put_flags ||
            view_check(&s->geometry, view, first_block, n_keys))
                return KVT_E_BAD_REQUEST;
        op = op_new(s->c, s);
        if (!op)
                return KVT_E_NO_MEMORY;
        op->deinit = put_deinit;
        op->parent = parent;
        op->keys = keys;
        op->n_keys = n_keys;
        op->first_block = first_block;
        op->view = view;
        op->op_flags = flags;
        op->hints = hints;
        op->statuses = statuses;
        *ret_op = op;
        return 0;
}

int kvt_put_hints(kvt_space *s, const kvt_key *parent, const kvt_key *keys, size_t n_keys, size_t first_block, const kvt_view *view,
                  uint32_t flags, const kvt_hints *hints, uint8_t *statuses)
{
        kvt_op *op;
        int r = put_op(s, parent, keys, n_keys, first_block, view, flags, hints, statuses, &op);

        if (r || !n_keys) {
                if (!r)
                        op_free(op);
                return r;
        }
        op->start = put_start;
        op->step = put_step;
        return op_sync(op, true);
}

int kvt_put(kvt_space *s, const kvt_key *parent, const kvt_key *keys, size_t n_keys, size_t first_block, const kvt_view *view,
            uint32_t flags, uint8_t *statuses)
{
        return kvt_put_hints(s, parent, keys, n_keys, first_block, view, flags, NULL, statuses);
}

/* the asynchronous form */

static int put_start_async(kvt_op *op)
{
        size_t i_sent;
        int r = put_begin(op);
        struct put_work *w = op->work;

        while (!r && w->i_next < op->n_keys)
                r = batch_send(op);
        i_sent = w ? w->i_next : 0;
        if ((r == STEP_PENDING || r == KVT_E_AGAIN) && i_sent) {
                fill_statuses(op, i_sent, op->n_keys - i_sent, KVT_E_AGAIN);
                r = 0;
        }
        return r == STEP_PENDING ? KVT_E_AGAIN : r;
}

static int open_step(kvt_op *op)
{
        int r;

        pthread_mutex_lock(&op->c->lock);
        r = op->error ? op->error : staging_ensure(op);
        pthread_mutex_unlock(&op->c->lock);
        return r;
}

static int open_start(kvt_op *op)
{
        int r = staging_ensure(op);
        return r == STEP_PENDING ? 0 : r;
}

/* The first put of a session waits for the staging area. */
static int put_open_staging(kvt *c)
{
        bool there;
        kvt_op *op;

        pthread_mutex_lock(&c->lock);
        there = c->staging;
        pthread_mutex_unlock(&c->lock);
        if (there)
                return 0;
        op = op_new(c, NULL);
        if (!op)
                return KVT_E_NO_MEMORY;
        op->start = open_start;
        op->step = open_step;
        return op_sync(op, true);
}

int kvt_put_async(kvt_space *s, const kvt_key *parent, const kvt_key *keys, size_t n_keys, size_t first_block, const kvt_view *view,
                  uint32_t flags, uint8_t *statuses, kvt_done done, void *arg, kvt_op **ret_op)
{
        return kvt_put_hints_async(s, parent, keys, n_keys, first_block, view, flags, NULL, statuses, done, arg, ret_op);
}

int kvt_put_hints_async(kvt_space *s, const kvt_key *parent, const kvt_key *keys, size_t n_keys, size_t first_block, const kvt_view *view,
                        uint32_t flags, const kvt_hints *hints, uint8_t *statuses, kvt_done done, void *arg, kvt_op **ret_op)
{
        kvt_op *op;
        int r = put_op(s, parent, keys, n_keys, first_block, view, flags, hints, statuses, &op);

        if (r)
                return r;
        r = n_keys ? put_open_staging(s->c) : 0;
        if (r) {
                op_free(op);
                return r;
        }
        op->start = put_start_async;
        return op_async(op, done, arg, ret_op);
}
