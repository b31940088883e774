#include <string.h>

#include "daemon/serve/request.h"
#include "daemon/util/metrics.h"

enum { BEFORE_HELLO = 1, ONE_WAY = 2 };

static const struct {
        const ProtobufCMessageDescriptor *type;
        request_handler handle;
        unsigned flags;
} table[KVT_MSG_MAX] = {
        [KVT_MSG_HELLO] = {&kvtier__hello_request__descriptor, request_hello, BEFORE_HELLO},
        [KVT_MSG_SPACE_OPEN] = {&kvtier__space_open_request__descriptor, request_space_open, 0},
        [KVT_MSG_STAGING_OPEN] = {&kvtier__staging_open_request__descriptor, request_staging_open, 0},
        [KVT_MSG_MATCH] = {&kvtier__match_request__descriptor, request_match, 0},
        [KVT_MSG_PUT_BEGIN] = {&kvtier__put_begin_request__descriptor, request_put_begin, 0},
        [KVT_MSG_PUT_COMMIT] = {&kvtier__put_commit_request__descriptor, request_put_commit, 0},
        [KVT_MSG_PUT_ABORT] = {&kvtier__put_abort_request__descriptor, request_put_abort, 0},
        [KVT_MSG_MAP] = {&kvtier__map_request__descriptor, request_map, 0},
        [KVT_MSG_RELEASE] = {&kvtier__release_request__descriptor, request_release, ONE_WAY},
        [KVT_MSG_FD_ACK] = {&kvtier__fd_ack__descriptor, request_fd_ack, ONE_WAY},
        [KVT_MSG_SLAB_ACK] = {&kvtier__slab_ack__descriptor, request_slab_ack, ONE_WAY},
        [KVT_MSG_GET] = {&kvtier__get_request__descriptor, request_get, 0},
        [KVT_MSG_PREFETCH] = {&kvtier__prefetch_request__descriptor, request_prefetch, 0},
        [KVT_MSG_DROP] = {&kvtier__drop_request__descriptor, request_drop, 0},
        [KVT_MSG_PURGE] = {&kvtier__purge_request__descriptor, request_purge, 0},
        [KVT_MSG_STAT] = {&kvtier__stat_request__descriptor, request_stat, 0},
        [KVT_MSG_LIST] = {&kvtier__list_request__descriptor, request_list, 0},
        [KVT_MSG_EXPLAIN] = {&kvtier__explain_request__descriptor, request_explain, 0},
        [KVT_MSG_EVENTS] = {&kvtier__events_request__descriptor, request_events, 0},
        [KVT_MSG_CANCEL] = {&kvtier__cancel_request__descriptor, request_cancel, ONE_WAY},
        [KVT_MSG_DEVICE] = {&kvtier__device_request__descriptor, request_device, 0},
        [KVT_MSG_SPACE_SET] = {&kvtier__space_set_request__descriptor, request_space_set, 0},
        [KVT_MSG_PING] = {&kvtier__ping_request__descriptor, request_ping, 0},
};

static void bad_frame(struct session *c, uint32_t id, int code, const char *text)
{
        metrics.c_bad_packets++;
        session_error(c, id, code, text);
        session_close(c, text);
}

void request_handle(struct session *c, const uint8_t *bytes, size_t n)
{
        struct server *s = c->server;
        struct frame f;

        if (frame_parse(bytes, n, &f) < 0) {
                bad_frame(c, 0, KVT_E_BAD_FRAME, "packet is no kvtier frame");
                return;
        }
        if (f.type == 0 || f.type >= KVT_MSG_MAX) {
                metrics.c_bad_packets++;
                session_error(c, f.request_id, KVT_E_BAD_TYPE, "unknown message type");
                return;
        }
        if ((c->state == SESSION_GREETING) != !!(table[f.type].flags & BEFORE_HELLO)) {
                bad_frame(c, f.request_id, KVT_E_BAD_TYPE,
                          c->state == SESSION_GREETING ? "the first message must be a hello" : "second hello");
                return;
        }
        if (c->state == SESSION_READY && f.version != c->version) {
                bad_frame(c, f.request_id, KVT_E_VERSION, "packet of another protocol version than agreed");
                return;
        }
        s->n_arena = 0;
        ProtobufCMessage *m = protobuf_c_message_unpack(table[f.type].type, &s->allocator, f.body_bytes, bytes + KVT_FRAME_BYTES);
        if (!m) {
                metrics.c_bad_packets++;
                session_error(c, f.request_id, KVT_E_BAD_REQUEST, "the body is no such message");
                return;
        }
        if (!(table[f.type].flags & ONE_WAY)) {
                c->n_requests++;
                metrics.c_requests++;
        }
        table[f.type].handle(c, f.request_id, m, bytes, n);
}

void request_orphan(struct session *c)
{
        list_for_each (r, &c->server->requests, struct request, link) {
                if (r->session != c)
                        continue;
                r->session = NULL;
                for (uint32_t i = 0; i < r->n_items; i++) {
                        if (!r->items[i].pending)
                                continue;
                        if (r->items[i].loading) /* others may want it as well; staging is not touched any more */
                                continue;
                        if (r->type == KVT_MSG_GET && r->items[i].get.xfer)
                                xfer_cancel(r->items[i].get.xfer);
                        /* A part that is being copied was offered whole, and goes on; one that waits would need the staging that goes now. */
                        if (r->type == KVT_MSG_PUT_COMMIT && !r->writing && !r->items[i].put.xfer)
                                put_cancel(&r->items[i].put);
                }
        }
}

struct space *request_space(struct session *c, uint32_t id, uint32_t space)
{
        struct space *s = space_find(&c->server->engine.tenants, c->tenant, space);

        if (!s)
                session_error(c, id, KVT_E_UNKNOWN_SPACE, NULL);
        return s;
}

uint32_t request_keys(struct session *c, uint32_t id, const ProtobufCBinaryData *keys)
{
        if (!keys->len || keys->len % KVT_KEY_BYTES || keys->len / KVT_KEY_BYTES > KVT_KEYS_MAX) {
                session_error(c, id, KVT_E_BAD_REQUEST, "keys must be 1 to 2048 times 16 bytes");
                return 0;
        }
        return (uint32_t)(keys->len / KVT_KEY_BYTES);
}

bool request_shard(struct session *c, uint32_t id, const struct space *s, uint32_t shard)
{
        if (shard < s->geometry.n_shards)
                return true;
        session_error(c, id, KVT_E_BAD_REQUEST, "no such shard");
        return false;
}

void request_ping(struct session *c, uint32_t id, const void *message, const uint8_t *packet, size_t n_packet)
{
        const Kvtier__PingRequest *m = message;
        Kvtier__PingReply reply = KVTIER__PING_REPLY__INIT;

        reply.data = m->data;
        session_reply(c, KVT_MSG_PING, id, &reply);
}
