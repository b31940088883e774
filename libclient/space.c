/* Spaces and their events. */
#include <stdlib.h>
#include <string.h>

#include "libclient/async.h"
#include "libclient/call.h"
#include "libclient/wire.h"

enum { FIELD_EVENTS_SPACE = 1, FIELD_EVENTS_ON = 2 };

/* opening */

static bool is_utf8(const char *text, size_t n)
{
        for (const uint8_t *p = (const uint8_t *)text, *end = p + n; p < end;) {
                unsigned more = *p < 0x80 ? 0 : *p >= 0xc2 && *p < 0xe0 ? 1 : *p >= 0xe0 && *p < 0xf0 ? 2 : *p >= 0xf0 && *p < 0xf5 ? 3 : 4;

                if (more > 3 || (size_t)(end - p) <= more)
                        return false;
                if ((*p == 0xe0 && p[1] < 0xa0) || (*p == 0xed && p[1] > 0x9f) || (*p == 0xf0 && p[1] < 0x90) ||
                    (*p == 0xf4 && p[1] > 0x8f))
                        return false;
                for (p++; more; more--, p++)
                        if ((*p & 0xc0) != 0x80)
                                return false;
        }
        return true;
}

static int space_new(kvt *c, const kvt_space_config *config, kvt_space **ret)
{
        size_t n_name = config->name ? strnlen(config->name, KVT_NAME_MAX + 1) : 0;
        float max_rel_l2 = config->struct_size >= sizeof(*config) ? config->max_rel_l2 : 0;
        const char *why;
        kvt_space *s;
        int r;

        if (config->struct_size < offsetof(kvt_space_config, max_rel_l2) || !n_name || n_name > KVT_NAME_MAX ||
            !is_utf8(config->name, n_name) || config->salt_bytes > KVT_SALT_MAX || (config->salt_bytes && !config->salt) ||
            config->shard >= config->n_shards || !(max_rel_l2 >= 0 && max_rel_l2 <= 1))
                return KVT_E_BAD_REQUEST;
        s = calloc(1, sizeof(*s));
        if (!s)
                return KVT_E_NO_MEMORY;
        s->c = c;
        s->shard = config->shard;
        s->max_rel_l2 = max_rel_l2 + 0; /* no negative zero */
        s->name = strdup(config->name);
        r = s->name ? geometry_init(&s->geometry, config->block_tokens, config->n_shards, config->planes, config->n_planes, &why)
                    : KVT_E_NO_MEMORY;
        if (r) {
                space_free(s);
                return r;
        }
        s->salt_bytes = config->salt_bytes;
        if (s->salt_bytes)
                memcpy(s->salt, config->salt, s->salt_bytes);
        key_seed(&s->geometry, s->name, n_name, s->salt, s->salt_bytes, &s->seed);
        *ret = s;
        return 0;
}

void space_free(kvt_space *s)
{
        if (!s)
                return;
        geometry_deinit(&s->geometry);
        free(s->name);
        free(s);
}

static int space_on_reply(kvt *c, struct request *q, int error, const uint8_t *body, size_t n)
{
        ProtobufCAllocator allocator = arena_start(&c->arena);
        kvt_op *op = q->op;
        Kvtier__SpaceOpenReply *m;

        if (error || !op)
                return 0;
        m = kvtier__space_open_reply__unpack(&allocator, n, body);
        if (!m || m->part_bytes != op->new_space->geometry.part_bytes)
                return -1;
        op->new_space->handle = m->space;
        op->new_space->next = c->spaces;
        c->spaces = op->new_space;
        *(kvt_space **)op->result = op->new_space;
        op->new_space = NULL;
        return 0;
}

static int space_start(kvt_op *op)
{
        struct request *q = request_new(op->c, op, KVT_MSG_SPACE_OPEN);
        int r;

        if (!q)
                return KVT_E_AGAIN;
        q->on_reply = space_on_reply;
        r = request_send(op->c, q, space_pack(op->new_space, tx_body(op->c)));
        if (r)
                request_free(op->c, q);
        return r;
}

static int space_op(kvt *c, const kvt_space_config *config, kvt_space **ret, kvt_op **ret_op)
{
        kvt_space *s;
        kvt_op *op;
        int r = conn_check(c);

        if (r || !config || !ret)
                return r ? r : KVT_E_BAD_REQUEST;
        r = space_new(c, config, &s);
        if (r)
                return r;
        op = op_new(c, NULL);
        if (!op) {
                space_free(s);
                return KVT_E_NO_MEMORY;
        }
        op->start = space_start;
        op->new_space = s;
        op->result = ret;
        *ret_op = op;
        return 0;
}

int kvt_space_open(kvt *c, const kvt_space_config *config, kvt_space **ret)
{
        kvt_op *op;
        int r = space_op(c, config, ret, &op);

        return r ? r : op_sync(op, true);
}

int kvt_space_open_async(kvt *c, const kvt_space_config *config, kvt_space **ret, kvt_done done, void *arg, kvt_op **ret_op)
{
        kvt_op *op;
        int r = space_op(c, config, ret, &op);

        return r ? r : op_async(op, done, arg, ret_op);
}

int kvt_space_attach(kvt *c, uint32_t handle, const kvt_space_config *config, kvt_space **ret)
{
        kvt_space *s;
        int r = conn_check(c);

        if (r || !handle || !config || !ret)
                return r ? r : KVT_E_BAD_REQUEST;
        r = space_new(c, config, &s);
        if (r)
                return r;
        s->attached = true;
        pthread_mutex_lock(&c->lock);
        if (c->fd < 0 || c->broken)
                r = KVT_E_RESTARTED;
        else {
                s->handle = handle;
                s->next = c->spaces;
                c->spaces = s;
        }
        pthread_mutex_unlock(&c->lock);
        if (r)
                space_free(s);
        else
                *ret = s;
        return r;
}

size_t kvt_space_part_bytes(const kvt_space *s)
{
        return s ? (size_t)s->geometry.part_bytes : 0;
}

size_t kvt_space_plane_offset(const kvt_space *s, size_t i)
{
        return s && i <= s->geometry.n_planes ? (size_t)s->geometry.offsets[i] : 0;
}

uint32_t kvt_space_handle(const kvt_space *s)
{
        uint32_t handle;

        pthread_mutex_lock(&s->c->lock);
        handle = s->handle;
        pthread_mutex_unlock(&s->c->lock);
        return handle;
}

/* events */

static int events_on_reply(kvt *c, struct request *q, int error, const uint8_t *body, size_t n)
{
        return 0; /* an empty message */
}

/* Whether another space object of the same handle wants events. */
static bool events_shared(const kvt_space *s)
{
        for (const kvt_space *o = s->c->spaces; o; o = o->next)
                if (o != s && o->handle == s->handle && o->event_fn)
                        return true;
        return false;
}

static int events_send(kvt *c, kvt_op *op, const kvt_space *s, bool on)
{
        struct request *q = request_new(c, op, KVT_MSG_EVENTS);
        uint8_t *p = tx_body(c);
        int r;

        if (!q)
                return KVT_E_AGAIN;
        q->on_reply = events_on_reply;
        p = wire_uint(p, FIELD_EVENTS_SPACE, s->handle);
        p = wire_uint(p, FIELD_EVENTS_ON, on);
        r = request_send(c, q, (size_t)(p - tx_body(c)));
        if (r)
                request_free(c, q);
        return r;
}

static int events_start(kvt_op *op)
{
        kvt_space *s = op->s;

        s->event_fn = op->event_fn;
        s->event_arg = op->result;
        if (!s->event_fn) {
                event_forget(op->c, s);
                if (events_shared(s))
                        return 0;
        }
        return events_send(op->c, op, s, s->event_fn);
}

int kvt_events(kvt_space *s, kvt_event fn, void *arg)
{
        kvt_op *op;
        int r = s ? conn_check(s->c) : KVT_E_BAD_REQUEST;

        if (r)
                return r;
        op = op_new(s->c, s);
        if (!op)
                return KVT_E_NO_MEMORY;
        op->start = events_start;
        op->event_fn = fn;
        op->result = arg;
        r = op_sync(op, true);
        if (r && fn) {
                pthread_mutex_lock(&s->c->lock);
                s->event_fn = NULL;
                event_forget(s->c, s);
                pthread_mutex_unlock(&s->c->lock);
        }
        return r;
}

/* closing */

void kvt_space_close(kvt_space *s)
{
        kvt_space **link;
        kvt *c;

        if (!s)
                return;
        c = s->c;
        if (conn_check(c)) { /* in a child: the lock may be held by a thread that is not here */
                for (link = &c->spaces; *link != s; link = &(*link)->next)
                        ;
                *link = s->next;
                space_free(s);
                return;
        }
        pthread_mutex_lock(&c->lock);
        while (c->connecting || s->n_delivering)
                waiter_sleep(c, NULL, now_usec() + RX_TICK_USEC);
        for (link = &c->spaces; *link != s; link = &(*link)->next)
                ;
        *link = s->next;
        event_forget(c, s);
        if (s->event_fn && s->handle && !events_shared(s))
                events_send(c, NULL, s, false);
        pthread_mutex_unlock(&c->lock);
        space_free(s);
}
