/* Requests that are a list of keys and a byte back for each, or a count: match, prefetch, drop. Lists of any length go out in slices of
 * KVT_KEYS_MAX, one after the other; of a prefetch, several at once. */
#include <string.h>

#include "libclient/keylist.h"
#include "libclient/wire.h"

enum { FIELD_SPACE = 1, FIELD_KEYS = 2 }; /* the same in MatchRequest, PrefetchRequest and DropRequest */
enum { PREFETCHES_MAX = 3 }; /* slices under way: the daemon loads the blocks of all of them, and takes four (max_inflight_session) */
enum { FIELD_MATCH_RELEASES = 3, FIELD_PREFETCH_DEADLINE = 3, FIELD_DROP_CORRUPT = 3 };

static uint32_t slice(const kvt_op *op)
{
        size_t left = op->n_keys - op->i_next;
        return left < KVT_KEYS_MAX ? (uint32_t)left : KVT_KEYS_MAX;
}

/* Sends the next slice. body_end: after space and keys. */
static int slice_send(kvt_op *op, struct request *q, uint8_t *body_end)
{
        int r = request_send(op->c, q, (size_t)(body_end - tx_body(op->c)));

        if (r)
                request_free(op->c, q);
        else
                op->i_next += q->n;
        return r;
}

static struct request *slice_new(kvt_op *op, uint16_t type, uint8_t **ret_body_end)
{
        struct request *q = request_new(op->c, op, type);

        if (!q)
                return NULL;
        q->i_first = (uint32_t)op->i_next;
        q->n = slice(op);
        *ret_body_end = wire_bytes(wire_uint(tx_body(op->c), FIELD_SPACE, op->s->handle), FIELD_KEYS, op->keys + op->i_next,
                                   q->n * sizeof(kvt_key));
        return q;
}

/* match */

static void match_conclude(kvt_op *op)
{
        kvt_match_result *ret = op->result;
        size_t block_tokens = op->s->geometry.block_tokens, n_tokens = op->n_result * block_tokens;

        ret->n_blocks = op->n_result;
        if (op->op_flags & KVT_MATCH_LEAVE_LAST && n_tokens && n_tokens > op->n_tokens - 1) {
                n_tokens = op->n_tokens - 1;
                ret->n_blocks = (n_tokens + block_tokens - 1) / block_tokens;
        }
        ret->n_tokens = n_tokens;
        ret->stop = op->stop;
}

static int match_send(kvt_op *op);

static int match_on_reply(kvt *c, struct request *q, int error, const uint8_t *body, size_t n)
{
        ProtobufCAllocator allocator = arena_start(&c->arena);
        kvt_op *op = q->op;
        Kvtier__MatchReply *m;

        if (error || !op)
                return 0;
        m = kvtier__match_reply__unpack(&allocator, n, body);
        if (!m || m->n_blocks > q->n || m->stop > UINT8_MAX || (m->n_blocks < q->n) != (m->stop != 0))
                return -1;
        op->n_result += m->n_blocks;
        op->stop = (int)m->stop;
        if (!m->stop && op->i_next < op->n_keys) {
                if (op->cancelled)
                        op->error = KVT_E_CANCELLED;
                else {
                        int r = match_send(op);

                        if (r && !op->error)
                                op->error = r;
                }
        } else
                match_conclude(op);
        return 0;
}

static int match_send(kvt_op *op)
{
        uint8_t *p;
        struct request *q = slice_new(op, KVT_MSG_MATCH, &p);

        if (!q)
                return KVT_E_AGAIN;
        q->on_reply = match_on_reply;
        return slice_send(op, q, release_ride(op->c, p, FIELD_MATCH_RELEASES));
}

static int match_start(kvt_op *op)
{
        op->i_next = op->n_result = 0;
        op->stop = 0;
        if (op->n_keys)
                return match_send(op);
        match_conclude(op);
        return 0;
}

static int match_op(kvt_space *s, const kvt_key *keys, size_t n_keys, size_t n_tokens, uint32_t flags, kvt_match_result *ret,
                    kvt_op **ret_op)
{
        kvt_op *op;
        int r = s ? conn_check(s->c) : KVT_E_BAD_REQUEST;

        if (r)
                return r;
        if (!ret || (n_keys && !keys) || n_keys > UINT32_MAX || flags & ~(uint32_t)KVT_MATCH_LEAVE_LAST ||
            (flags & KVT_MATCH_LEAVE_LAST && n_keys && !n_tokens))
                return KVT_E_BAD_REQUEST;
        op = op_new(s->c, s);
        if (!op)
                return KVT_E_NO_MEMORY;
        op->start = match_start;
        op->keys = keys;
        op->n_keys = n_keys;
        op->n_tokens = n_tokens;
        op->op_flags = flags;
        op->result = ret;
        *ret_op = op;
        return 0;
}

int kvt_match(kvt_space *s, const kvt_key *keys, size_t n_keys, size_t n_tokens, uint32_t flags, kvt_match_result *ret)
{
        kvt_op *op;
        int r = match_op(s, keys, n_keys, n_tokens, flags, ret, &op);

        return r ? r : op_sync(op, true);
}

int kvt_match_async(kvt_space *s, const kvt_key *keys, size_t n_keys, size_t n_tokens, uint32_t flags, kvt_match_result *ret, kvt_done done,
                    void *arg, kvt_op **ret_op)
{
        kvt_op *op;
        int r = match_op(s, keys, n_keys, n_tokens, flags, ret, &op);

        return r ? r : op_async_keys(op, done, arg, ret_op);
}

/* prefetch and drop */

static int list_send(kvt_op *op);

static int list_on_reply(kvt *c, struct request *q, int error, const uint8_t *body, size_t n)
{
        ProtobufCAllocator allocator = arena_start(&c->arena);
        kvt_op *op = q->op;
        Kvtier__DropReply *m; /* the same shape as PrefetchReply */

        if (error || !op)
                return 0;
        m = kvtier__drop_reply__unpack(&allocator, n, body);
        if (!m || m->statuses.len != q->n)
                return -1;
        if (op->statuses)
                memcpy(op->statuses + q->i_first, m->statuses.data, q->n);
        if (op->i_next < op->n_keys) {
                int r = op->cancelled ? KVT_E_CANCELLED : list_send(op);

                if (r && !op->error)
                        op->error = r;
        }
        return 0;
}

/* Of a prefetch's deadline. Never 0 if there is one: that would ask for an answer at once, and for other statuses. */
static uint64_t left_usec(const kvt_op *op)
{
        uint64_t now = op->usec ? now_usec() : 0;

        return op->usec > now ? op->usec - now : !!op->usec;
}

static int list_send(kvt_op *op)
{
        uint16_t type = op->op_flags & LIST_PREFETCH ? KVT_MSG_PREFETCH : KVT_MSG_DROP;
        uint8_t *p;
        struct request *q = slice_new(op, type, &p);

        if (!q)
                return KVT_E_AGAIN;
        q->on_reply = list_on_reply;
        if (type == KVT_MSG_PREFETCH)
                p = wire_uint(p, FIELD_PREFETCH_DEADLINE, left_usec(op));
        else
                p = wire_uint(p, FIELD_DROP_CORRUPT, !!(op->op_flags & LIST_CORRUPT));
        return slice_send(op, q, p);
}

static int list_start(kvt_op *op)
{
        int r = 0;

        op->i_next = 0;
        for (int i = 0; !r && op->i_next < op->n_keys && i < (op->op_flags & LIST_PREFETCH ? PREFETCHES_MAX : 1); i++)
                r = list_send(op);
        return r;
}

int keylist_op(kvt_space *s, const kvt_key *keys, size_t n_keys, uint64_t usec, uint32_t flags, uint8_t *statuses, kvt_op **ret_op)
{
        kvt_op *op;
        int r = s ? conn_check(s->c) : KVT_E_BAD_REQUEST;

        if (r)
                return r;
        if ((n_keys && !keys) || n_keys > UINT32_MAX)
                return KVT_E_BAD_REQUEST;
        op = op_new(s->c, s);
        if (!op)
                return KVT_E_NO_MEMORY;
        op->start = list_start;
        op->keys = keys;
        op->n_keys = n_keys;
        if (usec) {
                op->patience_usec = usec < timeout_max_usec ? usec : timeout_max_usec;
                op->usec = now_usec() + op->patience_usec;
        }
        op->op_flags = flags;
        op->statuses = statuses;
        *ret_op = op;
        return 0;
}

int kvt_prefetch(kvt_space *s, const kvt_key *keys, size_t n_keys, uint64_t deadline_usec, uint8_t *statuses)
{
        kvt_op *op;
        int r = keylist_op(s, keys, n_keys, deadline_usec, LIST_PREFETCH, statuses, &op);

        return r ? r : op_sync(op, true);
}

int kvt_prefetch_async(kvt_space *s, const kvt_key *keys, size_t n_keys, uint64_t deadline_usec, uint8_t *statuses, kvt_done done,
                       void *arg, kvt_op **ret_op)
{
        kvt_op *op;
        int r = keylist_op(s, keys, n_keys, deadline_usec, LIST_PREFETCH, statuses, &op);

        return r ? r : op_async_keys(op, done, arg, ret_op);
}

int kvt_drop(kvt_space *s, const kvt_key *keys, size_t n_keys, uint8_t *statuses)
{
        kvt_op *op;
        int r = keylist_op(s, keys, n_keys, 0, 0, statuses, &op);

        return r ? r : op_sync(op, true);
}

int kvt_drop_async(kvt_space *s, const kvt_key *keys, size_t n_keys, uint8_t *statuses, kvt_done done, void *arg, kvt_op **ret_op)
{
        kvt_op *op;
        int r = keylist_op(s, keys, n_keys, 0, 0, statuses, &op);

        return r ? r : op_async_keys(op, done, arg, ret_op);
}
