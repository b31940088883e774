/* Requests: a table of what the daemon owes an answer. The index into it is the low half of a request id, a serial number the high one,
 * so that a late or made-up answer is recognised. */
#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "libclient/async.h"

enum { INDEX_BITS = 16 };
static_assert(REQUESTS_MAX <= 1 << INDEX_BITS, "an index fits in its half of the id");

static struct request *request_grow(kvt *c)
{
        struct request *q;

        if (c->n_requests == REQUESTS_MAX)
                return NULL;
        if (c->n_requests == c->cap_requests) {
                uint32_t cap = c->cap_requests ? c->cap_requests * 2 : 16;
                struct request **more = realloc(c->requests, cap * sizeof(*more));

                if (!more)
                        return NULL;
                c->requests = more;
                c->cap_requests = cap;
        }
        q = malloc(sizeof(*q));
        if (!q)
                return NULL;
        q->i_table = c->n_requests;
        q->id = 0;
        c->requests[c->n_requests++] = q;
        return q;
}

struct request *request_new(kvt *c, kvt_op *op, uint16_t type)
{
        struct request *q = c->free_requests;
        uint32_t i_table;

        if (q)
                c->free_requests = q->next;
        else {
                q = request_grow(c);
                if (!q)
                        return NULL;
        }
        i_table = q->i_table;
        *q = (struct request){.i_table = i_table, .type = type, .op = op};
        return q;
}

void request_free(kvt *c, struct request *q)
{
        free(q->owned);
        q->owned = NULL;
        q->id = 0;
        q->next = c->free_requests;
        c->free_requests = q;
}

int request_send(kvt *c, struct request *q, size_t body_bytes)
{
        int r;

        if (!++c->serial || c->serial > UINT16_MAX)
                c->serial = 1;
        r = tx_send(c, q->type, c->serial << INDEX_BITS | q->i_table, body_bytes);
        if (r)
                return r;
        q->id = c->serial << INDEX_BITS | q->i_table;
        if (q->op) {
                q->op_next = q->op->requests;
                q->op->requests = q;
                q->op->n_pending++;
        }
        return 0;
}

static void request_answered(kvt *c, struct request *q, int error)
{
        kvt_op *op = q->op;

        if (op) {
                struct request **link = &op->requests;

                while (*link != q)
                        link = &(*link)->op_next;
                *link = q->op_next;
                op->n_pending--;
                if (error && !op->error)
                        op->error = error;
        }
        request_free(c, q);
        if (op)
                op_news(op);
}

int request_on_reply(kvt *c, const struct frame *f, const uint8_t *body)
{
        uint32_t index = f->request_id & ((1u << INDEX_BITS) - 1);
        struct request *q = f->request_id && index < c->n_requests ? c->requests[index] : NULL;
        int r, error = 0;

        if (!q || q->id != f->request_id)
                return -1;
        if (f->type == KVT_MSG_ERROR) {
                ProtobufCAllocator allocator = arena_start(&c->arena);
                Kvtier__Error *e = kvtier__error__unpack(&allocator, f->body_bytes, body);

                if (!e || !e->code || e->code > UINT8_MAX)
                        return -1;
                error = (int)e->code;
                snprintf(c->error_text, sizeof(c->error_text), "%s", e->text);
        } else if (f->type != (q->type | KVT_REPLY))
                return -1;

        q->id = 0; /* answered: what the handler sends may fail, and fail everything that is not */
        r = q->on_reply(c, q, error, error ? NULL : body, error ? 0 : f->body_bytes);
        if (r < 0) {
                error = KVT_E_DISCONNECTED;
                q->on_reply(c, q, error, NULL, 0);
        }
        request_answered(c, q, error);
        return r < 0 ? -1 : 0;
}

void request_fail_all(kvt *c, int error)
{
        for (uint32_t i = 0; i < c->n_requests; i++) {
                struct request *q = c->requests[i];

                if (q->id) {
                        q->id = 0;
                        q->on_reply(c, q, error, NULL, 0);
                        request_answered(c, q, error);
                }
        }
}
