/* kvt_get(): copies blocks into the caller's view, and believes nothing before it matched its checksum.
 *
 * Two batches alternate: while one is copied, the daemon answers for the next. A block goes through these hands:
 *
 *      queue --(MAP)--> mapped --> copied, verified --> done
 *        ^                 |            |-- generation gone: back to the queue once, then KVT_E_LEASE_LOST
 *        |-- KVT_E_AGAIN --'            `-- bytes differ: KVT_E_CORRUPT, and the daemon is told
 *      staged --(GET)--> in staging, verified by the daemon --> copied --> done
 *
 * staged takes what cannot be mapped, or everything with KVT_OPEN_NO_MAP, and all of kvt_get_planes(): to be mapped, a block has to be in memory
 * as a whole. The steps run in the thread that waits, without the lock
 * while they copy. */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "libclient/codec/hash.h"
#include "libclient/decode.h"
#include "libclient/staging.h"
#include "libclient/view.h"
#include "libclient/wire.h"

enum {
        FIELD_GET_SPACE = 1,
        FIELD_GET_SHARD = 2,
        FIELD_GET_KEYS = 3,
        FIELD_GET_OFFSETS = 4,
        FIELD_GET_FIRST_PLANE = 5,
        FIELD_GET_N_PLANES = 6
};
enum { FIELD_DROP_SPACE = 1, FIELD_DROP_KEYS = 2, FIELD_DROP_CORRUPT = 3 };
enum { N_BATCHES = 2, BATCH_MAX = 64 };
static const uint64_t staged_batch_bytes = 8u << 20;

/* op->n_planes is 0 for kvt_get(), which wants all */
static bool wants_some(const kvt_op *op)
{
        return op->n_planes;
}

static uint32_t wanted_planes(const kvt_op *op)
{
        return wants_some(op) ? op->n_planes : op->s->geometry.n_planes;
}

/* What a block takes in staging. */
static uint64_t stride_of(const kvt_op *op)
{
        const uint64_t *offsets = op->s->geometry.offsets + op->first_plane;

        return staging_stride(offsets[wanted_planes(op)] - offsets[0]);
}

/* positions in the caller's arrays, first in first out; each is in one of them at most once */
struct fifo {
        uint32_t *positions; /* n_keys of room */
        uint32_t i_head, n;
};

struct batch {
        bool asked, answered;
        uint32_t n;
        uint32_t positions[BATCH_MAX];
        kvt_key keys[BATCH_MAX];
        uint8_t statuses[BATCH_MAX];
        kvt_mapping mappings[BATCH_MAX];
        struct staging *staging; /* answered through staging: the range is the batch's now */
        uint64_t offset, bytes;
};

struct get_work {
        struct fifo queue, staged;
        struct batch batches[N_BATCHES];
        uint8_t *tries; /* by position: AGAIN in the low bits, LOST once */
        uint32_t memory[];
};
enum { TRIES_AGAIN = 0x7f, TRIED_LOST = 0x80 };
static_assert((int)MAP_TRIES_MAX < (int)TRIES_AGAIN, "the count fits");

static void fifo_push(const kvt_op *op, struct fifo *f, uint32_t position)
{
        assert(f->n < op->n_keys);
        f->positions[(f->i_head + f->n++) % op->n_keys] = position;
}

static uint32_t fifo_pop(const kvt_op *op, struct fifo *f)
{
        uint32_t position = f->positions[f->i_head];

        f->i_head = (uint32_t)((f->i_head + 1) % op->n_keys);
        f->n--;
        return position;
}

static void batch_fill(const kvt_op *op, struct batch *b, struct fifo *f, uint32_t n)
{
        b->asked = true;
        b->answered = false;
        for (b->n = 0; b->n < n; b->n++) {
                b->positions[b->n] = fifo_pop(op, f);
                b->keys[b->n] = op->keys[b->positions[b->n]];
        }
        memset(b->mappings, 0, n * sizeof(*b->mappings));
}

/* asking, under the lock */

static int ask_map(kvt_op *op, struct batch *b)
{
        struct get_work *w = op->work;
        struct request *q = request_new(op->c, op, KVT_MSG_MAP);

        if (!q)
                return KVT_E_AGAIN;
        batch_fill(op, b, &w->queue, w->queue.n < BATCH_MAX ? w->queue.n : BATCH_MAX);
        q->n = b->n;
        q->answered = &b->answered;
        return map_send(op, q, b->keys, b->mappings, b->statuses);
}

static int staged_on_reply(kvt *c, struct request *q, int error, const uint8_t *body, size_t n)
{
        ProtobufCAllocator allocator = arena_start(&c->arena);
        kvt_op *op = q->op;
        Kvtier__GetReply *m;

        if (!error) {
                m = kvtier__get_reply__unpack(&allocator, n, body);
                if (!m || m->statuses.len != q->n)
                        return -1;
                if (op) {
                        struct batch *b = &((struct get_work *)op->work)->batches[q->slot];

                        memcpy(b->statuses, m->statuses.data, q->n);
                        b->answered = true;
                        b->staging = q->staging;
                        b->offset = q->offset;
                        b->bytes = q->bytes;
                        return 0;
                }
        }
        staging_free(c, q->staging, q->offset, q->bytes);
        return 0;
}

/* 0, STEP_PENDING (no room now), or an error */
static int ask_staged(kvt_op *op, struct batch *b)
{
        kvt *c = op->c;
        struct get_work *w = op->work;
        uint64_t stride = stride_of(op), offset;
        uint32_t n = w->staged.n < BATCH_MAX ? w->staged.n : BATCH_MAX;
        struct staging *staging;
        struct request *q;
        uint8_t *p;
        int r = staging_ensure(op);

        if ((r == KVT_E_AGAIN || r == KVT_E_AGAIN_LEASED || r == KVT_E_QUOTA) && !wants_some(op) && !(c->flags & KVT_OPEN_NO_MAP)) {
                while (w->staged.n) { /* what could be mapped is had all the same */
                        uint32_t position = fifo_pop(op, &w->staged);

                        if (op->statuses)
                                op->statuses[position] = (uint8_t)r;
                }
                return 0;
        }
        if (r)
                return r;
        while (n > 1 && n * stride > staged_batch_bytes)
                n /= 2;
        while ((r = staging_alloc(c, n * stride, &staging, &offset)) && n > 1)
                n /= 2;
        if (r == KVT_E_AGAIN) {
                op->wants_staging = !op->n_pending;
                return STEP_PENDING;
        }
        if (r)
                return r;
        q = request_new(c, op, KVT_MSG_GET);
        if (!q) {
                staging_free(c, staging, offset, n * stride);
                return KVT_E_AGAIN;
        }
        batch_fill(op, b, &w->staged, n);
        q->on_reply = staged_on_reply;
        q->n = n;
        q->slot = (uint32_t)(b - w->batches);
        q->staging = staging;
        q->offset = offset;
        q->bytes = n * stride;
        p = wire_uint(tx_body(c), FIELD_GET_SPACE, op->s->handle);
        p = wire_uint(p, FIELD_GET_SHARD, op->s->shard);
        p = wire_bytes(p, FIELD_GET_KEYS, b->keys, n * sizeof(*b->keys));
        p = wire_open(p, FIELD_GET_OFFSETS, n * sizeof(offset));
        for (uint32_t i = 0; i < n; i++, p += sizeof(offset)) {
                uint64_t at = offset + i * stride;

                memcpy(p, &at, sizeof(at));
        }
        p = wire_uint(p, FIELD_GET_FIRST_PLANE, op->first_plane);
        p = wire_uint(p, FIELD_GET_N_PLANES, op->n_planes);
        r = request_send(c, q, (size_t)(p - tx_body(c)));
        if (r) {
                staging_free(c, staging, offset, n * stride);
                request_free(c, q);
        }
        return r;
}

/* Gives idle batches work. */
static int ask_all(kvt_op *op)
{
        struct get_work *w = op->work;
        int r;

        for (struct batch *b = w->batches; b < w->batches + N_BATCHES; b++) {
                if (b->asked)
                        continue;
                r = w->queue.n ? ask_map(op, b) : w->staged.n ? ask_staged(op, b) : 0;
                if (r)
                        return r;
        }
        return 0;
}

/* The daemon checks for itself; nobody waits for what it says. */
static int corrupt_on_reply(kvt *c, struct request *q, int error, const uint8_t *body, size_t n)
{
        return 0;
}

static void report_corrupt(kvt_op *op, const kvt_key *key)
{
        kvt *c = op->c;
        struct request *q = request_new(c, NULL, KVT_MSG_DROP);
        uint8_t *p = tx_body(c);

        if (!q)
                return;
        q->on_reply = corrupt_on_reply;
        p = wire_uint(p, FIELD_DROP_SPACE, op->s->handle);
        p = wire_bytes(p, FIELD_DROP_KEYS, key, sizeof(*key));
        p = wire_uint(p, FIELD_DROP_CORRUPT, 1);
        if (request_send(c, q, (size_t)(p - tx_body(c))))
                request_free(c, q);
}

/* copying, without the lock */

struct scratch {
        void *p; /* owned */
        size_t n;
};

/* A plane under a codec, decoded where it is wanted if it lies there in one piece, else by way of scratch. */
static int decode_plane(const kvt_op *op, const struct kvt_copy_plane *c, const uint8_t *src, uint32_t i_plane, size_t i_block,
                        size_t min_token, void *dst, struct scratch *scratch)
{
        const struct geometry *g = &op->s->geometry;
        struct shape p = shape_of(g, i_plane);
        size_t n_decode = (plane_decode_scratch(&p, c) + 63) & ~(size_t)63;
        uint8_t *work = scratch_grow(&scratch->p, &scratch->n, n_decode + (dst ? 0 : p.n_bytes));

        if (!work)
                return KVT_E_NO_MEMORY;
        if (hash_bytes(src, c->bytes, kvt_plane_seed(c, i_plane)) != c->hash ||
            plane_decode(&p, c, src, NULL, dst ? dst : work + n_decode, work))
                return KVT_E_CORRUPT;
        if (!dst)
                view_scatter_plane(g, op->view, i_plane, i_block, min_token, work + n_decode);
        return 0;
}

/* 0, KVT_E_CORRUPT: the bytes do not match their checksum, or KVT_E_NO_MEMORY. */
static int copy_plane(const kvt_op *op, const struct kvt_copy_plane *c, const uint8_t *src, uint32_t i_plane, size_t i_block,
                      size_t min_token, struct scratch *scratch)
{
        const struct geometry *g = &op->s->geometry;
        void *dst = min_token > i_block * g->block_tokens ? NULL : view_contiguous(g, op->view, i_plane, i_block);
        bool same;

        if (c->codec != CODEC_RAW)
                return decode_plane(op, c, src, i_plane, i_block, min_token, dst, scratch);
        if (dst)
                return hash_copy(dst, src, c->bytes, i_plane) == c->hash ? 0 : KVT_E_CORRUPT;
        same = hash_bytes(src, c->bytes, i_plane) == c->hash;
        view_scatter_plane(g, op->view, i_plane, i_block, min_token, src);
        return same ? 0 : KVT_E_CORRUPT;
}

static uint8_t copy_mapped(const kvt_op *op, const kvt_mapping *m, uint32_t position, struct scratch *scratch)
{
        const struct geometry *g = &op->s->geometry;
        size_t i_block = op->first_block + position, end = (i_block + 1) * g->block_tokens;
        const uint8_t *src = m->data;
        struct copy p;
        int r = mapped_copy(op->s, m, &p);

        for (uint32_t i = 0; i < g->n_planes && !r; src += p.planes[i++].bytes) {
                size_t min_token = view_min_token(&g->planes[i], op->window_end);

                if (min_token < end)
                        r = copy_plane(op, &p.planes[i], src, i, i_block, min_token, scratch);
        }
        return (uint8_t)(mapping_intact(m) ? r : KVT_E_LEASE_LOST);
}

static void copy_batch(kvt_op *op, struct batch *b)
{
        struct scratch scratch = {0};
        const struct geometry *g = &op->s->geometry;
        uint64_t stride = stride_of(op);

        for (uint32_t i = 0; i < b->n; i++) {
                if (b->statuses[i])
                        continue;
                if (b->staging)
                        view_scatter_planes(g, op->view, op->first_block + b->positions[i], op->window_end, op->first_plane,
                                            wanted_planes(op), b->staging->base + b->offset + i * stride);
                else
                        b->statuses[i] = copy_mapped(op, &b->mappings[i], b->positions[i], &scratch);
        }
        free(scratch.p);
}

/* after copying, under the lock */

static void batch_release(kvt *c, struct batch *b)
{
        for (uint32_t i = 0; i < b->n; i++)
                if (b->mappings[i].data)
                        mapping_release(c, &b->mappings[i]);
        if (b->staging)
                staging_free(c, b->staging, b->offset, b->bytes);
        b->staging = NULL;
        b->n = 0;
        b->asked = false;
}

/* What became of one block: final, or once more. */
static void conclude(kvt_op *op, const struct batch *b, uint32_t i)
{
        struct get_work *w = op->work;
        uint32_t position = b->positions[i];
        uint8_t status = b->statuses[i], *tries = &w->tries[position];

        switch (status) {
        case KVT_E_AGAIN:
                if ((*tries & TRIES_AGAIN) < MAP_TRIES_MAX) {
                        ++*tries;
                        fifo_push(op, b->staging ? &w->staged : &w->queue, position);
                        return;
                }
                break;
        case KVT_E_LEASE_LOST:
                if (!(*tries & TRIED_LOST)) {
                        *tries |= TRIED_LOST;
                        fifo_push(op, b->staging ? &w->staged : &w->queue, position);
                        return;
                }
                break;
        case KVT_E_AGAIN_LEASED:
        case KVT_E_QUOTA:
        case KVT_E_NO_MEMORY:
                if (!b->staging) { /* it could not be mapped, or not be loaded to be mapped; staging takes no room in the tier */
                        fifo_push(op, &w->staged, position);
                        return;
                }
                break;
        case KVT_E_CORRUPT:
                if (b->mappings[i].data) /* found here */
                        report_corrupt(op, &b->keys[i]);
                break;
        }
        if (op->statuses)
                op->statuses[position] = status;
}

static int get_step(kvt_op *op)
{
        kvt *c = op->c;
        struct get_work *w = op->work;
        int r;

        if (!w) /* no keys */
                return op->error;
        pthread_mutex_lock(&c->lock);
        for (;;) {
                struct batch *ready = NULL;

                r = op->error ? op->error : op->cancelled ? KVT_E_CANCELLED : ask_all(op);
                if (r && r != STEP_PENDING)
                        break;
                for (struct batch *b = w->batches; b < w->batches + N_BATCHES && !ready; b++)
                        if (b->asked && b->answered)
                                ready = b;
                if (!ready) {
                        if (op->n_pending)
                                r = STEP_PENDING;
                        break;
                }
                pthread_mutex_unlock(&c->lock);
                copy_batch(op, ready);
                pthread_mutex_lock(&c->lock);
                for (uint32_t i = 0; i < ready->n; i++)
                        conclude(op, ready, i);
                batch_release(c, ready);
        }
        if (r != STEP_PENDING)
                release_flush(c);
        pthread_mutex_unlock(&c->lock);
        return r;
}

/* beginning and end */

static int get_start(kvt_op *op)
{
        size_t n = op->n_keys;
        struct get_work *w;

        if (!n)
                return 0;
        w = malloc(sizeof(*w) + n * (2 * sizeof(uint32_t) + 1));
        if (!w)
                return KVT_E_NO_MEMORY;
        op->work = w;
        w->queue = (struct fifo){.positions = w->memory};
        w->staged = (struct fifo){.positions = w->memory + n};
        w->tries = (uint8_t *)(w->memory + 2 * n);
        memset(w->tries, 0, n);
        for (size_t i = 0; i < N_BATCHES; i++) {
                w->batches[i].asked = false;
                w->batches[i].n = 0;
                w->batches[i].staging = NULL;
        }
        for (uint32_t i = 0; i < n; i++)
                fifo_push(op, op->c->flags & KVT_OPEN_NO_MAP || wants_some(op) ? &w->staged : &w->queue, i);
        return w->queue.n ? ask_map(op, &w->batches[0]) : 0;
}

static void get_deinit(kvt_op *op)
{
        struct get_work *w = op->work;

        if (!w)
                return;
        for (size_t i = 0; i < N_BATCHES; i++)
                batch_release(op->c, &w->batches[i]);
        free(w);
        op->work = NULL;
}

static int get_op(kvt_space *s, const kvt_key *keys, size_t n_keys, size_t first_block, const kvt_view *view, size_t window_end,
                  uint8_t *statuses, kvt_op **ret_op)
{
        kvt_op *op;
        int r = s ? conn_check(s->c) : KVT_E_BAD_REQUEST;

        if (r)
                return r;
        if (n_keys > UINT32_MAX / 2 || (n_keys && !keys) || view_check(&s->geometry, view, first_block, n_keys))
                return KVT_E_BAD_REQUEST;
        op = op_new(s->c, s);
        if (!op)
                return KVT_E_NO_MEMORY;
        op->start = get_start;
        op->step = get_step;
        op->deinit = get_deinit;
        op->keys = keys;
        op->n_keys = n_keys;
        op->first_block = first_block;
        op->view = view;
        op->window_end = window_end;
        op->statuses = statuses;
        *ret_op = op;
        return 0;
}

static int get_async(kvt_op *op, kvt_done done, void *arg, kvt_op **ret_op)
{
        int r = op_keep_view(op);

        if (r) {
                op_free(op);
                return r;
        }
        return op_async_keys(op, done, arg, ret_op);
}

int kvt_get(kvt_space *s, const kvt_key *keys, size_t n_keys, size_t first_block, const kvt_view *view, size_t window_end,
            uint8_t *statuses)
{
        kvt_op *op;
        int r = get_op(s, keys, n_keys, first_block, view, window_end, statuses, &op);

        return r ? r : op_sync(op, true);
}

int kvt_get_async(kvt_space *s, const kvt_key *keys, size_t n_keys, size_t first_block, const kvt_view *view, size_t window_end,
                  uint8_t *statuses, kvt_done done, void *arg, kvt_op **ret_op)
{
        kvt_op *op;
        int r = get_op(s, keys, n_keys, first_block, view, window_end, statuses, &op);

        return r ? r : get_async(op, done, arg, ret_op);
}

/* some planes only */

static int planes_op(kvt_space *s, const kvt_key *keys, size_t n_keys, size_t first_block, const kvt_view *view, size_t window_end,
                     size_t first_plane, size_t n_planes, uint8_t *statuses, kvt_op **ret_op)
{
        int r;

        if (!s)
                return KVT_E_BAD_REQUEST;
        r = conn_check(s->c);
        if (r)
                return r;
        if (!n_planes || first_plane >= s->geometry.n_planes || n_planes > s->geometry.n_planes - first_plane)
                return KVT_E_BAD_REQUEST;
        r = get_op(s, keys, n_keys, first_block, view, window_end, statuses, ret_op);
        if (r)
                return r;
        (*ret_op)->first_plane = (uint32_t)first_plane;
        (*ret_op)->n_planes = (uint32_t)n_planes;
        return 0;
}

int kvt_get_planes(kvt_space *s, const kvt_key *keys, size_t n_keys, size_t first_block, const kvt_view *view, size_t window_end,
                   size_t first_plane, size_t n_planes, uint8_t *statuses)
{
        kvt_op *op;
        int r = planes_op(s, keys, n_keys, first_block, view, window_end, first_plane, n_planes, statuses, &op);

        return r ? r : op_sync(op, true);
}

int kvt_get_planes_async(kvt_space *s, const kvt_key *keys, size_t n_keys, size_t first_block, const kvt_view *view, size_t window_end,
                         size_t first_plane, size_t n_planes, uint8_t *statuses, kvt_done done, void *arg, kvt_op **ret_op)
{
        kvt_op *op;
        int r = planes_op(s, keys, n_keys, first_block, view, window_end, first_plane, n_planes, statuses, &op);

        return r ? r : get_async(op, done, arg, ret_op);
}
