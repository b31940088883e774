/* kvt_stat() and kvt_explain(). */
#include <stdio.h>
#include <string.h>

#include "libclient/async.h"
#include "libclient/wire.h"

enum { FIELD_EXPLAIN_SPACE = 1, FIELD_EXPLAIN_KEY = 2 };

/* stat */

static uint64_t counter(const Kvtier__StatReply *m, const char *name)
{
        for (size_t i = 0; i < m->n_counters; i++)
                if (!strcmp(m->counters[i]->name, name))
                        return m->counters[i]->value;
        return 0;
}

static int stat_on_reply(kvt *c, struct request *q, int error, const uint8_t *body, size_t n)
{
        kvt_stats s = {.struct_size = sizeof(s)};
        Kvtier__StatReply *m;
        kvt_stats *ret;
        size_t n_ret;

        if (error || !q->op)
                return 0;
        m = kvtier__stat_reply__unpack(NULL, n, body);
        if (!m)
                return -1;
        for (size_t i = 0; i < m->n_tiers; i++)
                if (!strcmp(m->tiers[i]->name, "host")) {
                        s.capacity_bytes += m->tiers[i]->capacity_bytes;
                        s.used_bytes += m->tiers[i]->used_bytes;
                }
        s.n_blocks = m->n_blocks;
        s.n_leases = m->n_leases;
        s.hits = counter(m, "hits");
        s.misses = counter(m, "misses");
        s.puts = counter(m, "puts");
        s.evicted = counter(m, "evicted");
        kvtier__stat_reply__free_unpacked(m, NULL);

        ret = q->op->result;
        n_ret = ret->struct_size < sizeof(s) ? ret->struct_size : sizeof(s);
        memcpy((uint8_t *)ret + sizeof(s.struct_size), (uint8_t *)&s + sizeof(s.struct_size), n_ret - sizeof(s.struct_size));
        return 0;
}

static int stat_start(kvt_op *op)
{
        struct request *q = request_new(op->c, op, KVT_MSG_STAT);
        int r;

        if (!q)
                return KVT_E_AGAIN;
        q->on_reply = stat_on_reply;
        r = request_send(op->c, q, 0);
        if (r)
                request_free(op->c, q);
        return r;
}

static int stat_op(kvt *c, kvt_stats *ret, kvt_op **ret_op)
{
        kvt_op *op;
        int r = conn_check(c);

        if (r || !ret || ret->struct_size < sizeof(ret->struct_size))
                return r ? r : KVT_E_BAD_REQUEST;
        op = op_new(c, NULL);
        if (!op)
                return KVT_E_NO_MEMORY;
        op->start = stat_start;
        op->result = ret;
        *ret_op = op;
        return 0;
}

int kvt_stat(kvt *c, kvt_stats *ret)
{
        kvt_op *op;
        int r = stat_op(c, ret, &op);

        return r ? r : op_sync(op, true);
}

int kvt_stat_async(kvt *c, kvt_stats *ret, kvt_done done, void *arg, kvt_op **ret_op)
{
        kvt_op *op;
        int r = stat_op(c, ret, &op);

        return r ? r : op_async(op, done, arg, ret_op);
}

/* explain */

static int explain_on_reply(kvt *c, struct request *q, int error, const uint8_t *body, size_t n)
{
        ProtobufCAllocator allocator = arena_start(&c->arena);
        struct kvt_block_entry entry;
        kvt_explanation *ret;
        Kvtier__ExplainReply *m;

        if (error || !q->op)
                return 0;
        m = kvtier__explain_reply__unpack(&allocator, n, body);
        if (!m || (m->entry.len && m->entry.len != sizeof(entry)))
                return -1;
        ret = q->op->result;
        *ret = (kvt_explanation){.why = (int)m->why, .age_usec = m->age_usec};
        if (m->entry.len) {
                memcpy(&entry, m->entry.data, sizeof(entry));
                ret->bytes = entry.bytes;
                ret->n_parts = entry.n_parts;
                ret->hits = entry.hits;
        }
        snprintf(ret->text, sizeof(ret->text), "%s", m->text);
        return 0;
}

static int explain_start(kvt_op *op)
{
        struct request *q = request_new(op->c, op, KVT_MSG_EXPLAIN);
        uint8_t *p = tx_body(op->c);
        int r;

        if (!q)
                return KVT_E_AGAIN;
        q->on_reply = explain_on_reply;
        p = wire_uint(p, FIELD_EXPLAIN_SPACE, op->s->handle);
        p = wire_bytes(p, FIELD_EXPLAIN_KEY, op->keys, sizeof(*op->keys));
        r = request_send(op->c, q, (size_t)(p - tx_body(op->c)));
        if (r)
                request_free(op->c, q);
        return r;
}

static int explain_op(kvt_space *s, const kvt_key *key, kvt_explanation *ret, kvt_op **ret_op)
{
        kvt_op *op;
        int r = s ? conn_check(s->c) : KVT_E_BAD_REQUEST;

        if (r || !key || !ret)
                return r ? r : KVT_E_BAD_REQUEST;
        op = op_new(s->c, s);
        if (!op)
                return KVT_E_NO_MEMORY;
        op->start = explain_start;
        op->keys = key;
        op->n_keys = 1;
        op->result = ret;
        *ret_op = op;
        return 0;
}

int kvt_explain(kvt_space *s, const kvt_key *key, kvt_explanation *ret)
{
        kvt_op *op;
        int r = explain_op(s, key, ret, &op);

        return r ? r : op_sync(op, true);
}

int kvt_explain_async(kvt_space *s, const kvt_key *key, kvt_explanation *ret, kvt_done done, void *arg, kvt_op **ret_op)
{
        kvt_op *op;
        int r = explain_op(s, key, ret, &op);

        return r ? r : op_async_keys(op, done, arg, ret_op);
}
