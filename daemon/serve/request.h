/* Requests: one table of message types; each handler gets a message that was unpacked from foreign bytes and answers exactly once. */
#pragma once

#include "daemon/engine/get.h"
#include "daemon/engine/put.h"
#include "daemon/serve/session.h"

/* A request that waits for transfers: answered when the last of its items is done. */
struct request {
        struct list link; /* in server.requests */
        struct server *server;
        struct session *session; /* NULL: the client left */
        uint32_t id;
        uint16_t type;
        uint32_t n_items, n_pending;
        uint64_t part_bytes;
        uint8_t *statuses; /* owned with the request */
        struct request_item {
                struct request *request;
                bool pending;
                union {
                        struct put put;
                        struct get get;
                };
        } items[];
};

/* Takes one packet in. */
void request_handle(struct session *c, const uint8_t *bytes, size_t n);
/* The session is going: its transfers are cancelled where they have not begun, and nobody is answered. */
void request_orphan(struct session *c);

typedef void (*request_handler)(struct session *c, uint32_t id, const void *m, const uint8_t *packet, size_t n_packet);
void request_hello(struct session *c, uint32_t id, const void *m, const uint8_t *packet, size_t n_packet);
void request_space_open(struct session *c, uint32_t id, const void *m, const uint8_t *packet, size_t n_packet);
void request_staging_open(struct session *c, uint32_t id, const void *m, const uint8_t *packet, size_t n_packet);
void request_match(struct session *c, uint32_t id, const void *m, const uint8_t *packet, size_t n_packet);
void request_map(struct session *c, uint32_t id, const void *m, const uint8_t *packet, size_t n_packet);
void request_release(struct session *c, uint32_t id, const void *m, const uint8_t *packet, size_t n_packet);
void request_fd_ack(struct session *c, uint32_t id, const void *m, const uint8_t *packet, size_t n_packet);
void request_slab_ack(struct session *c, uint32_t id, const void *m, const uint8_t *packet, size_t n_packet);
void request_prefetch(struct session *c, uint32_t id, const void *m, const uint8_t *packet, size_t n_packet);
void request_drop(struct session *c, uint32_t id, const void *m, const uint8_t *packet, size_t n_packet);
void request_explain(struct session *c, uint32_t id, const void *m, const uint8_t *packet, size_t n_packet);
void request_put_begin(struct session *c, uint32_t id, const void *m, const uint8_t *packet, size_t n_packet);
void request_put_commit(struct session *c, uint32_t id, const void *m, const uint8_t *packet, size_t n_packet);
void request_put_abort(struct session *c, uint32_t id, const void *m, const uint8_t *packet, size_t n_packet);
void request_get(struct session *c, uint32_t id, const void *m, const uint8_t *packet, size_t n_packet);
void request_cancel(struct session *c, uint32_t id, const void *m, const uint8_t *packet, size_t n_packet);
void request_purge(struct session *c, uint32_t id, const void *m, const uint8_t *packet, size_t n_packet);
void request_stat(struct session *c, uint32_t id, const void *m, const uint8_t *packet, size_t n_packet);
void request_list(struct session *c, uint32_t id, const void *m, const uint8_t *packet, size_t n_packet);
void request_events(struct session *c, uint32_t id, const void *m, const uint8_t *packet, size_t n_packet);
void request_ping(struct session *c, uint32_t id, const void *m, const uint8_t *packet, size_t n_packet);

/* Shared checks. They answer the request with an error themselves and return NULL or 0. */
struct space *request_space(struct session *c, uint32_t id, uint32_t space);
uint32_t request_keys(struct session *c, uint32_t id, const ProtobufCBinaryData *keys);
bool request_shard(struct session *c, uint32_t id, const struct space *s, uint32_t shard);
struct kvt_block_entry request_block_entry(struct engine *e, uint32_t block);

/* purges under way */
void purge_some(struct server *s);
void purge_orphan(struct session *c);
void purge_end_all(struct server *s);

/* events */
struct subscription {
        struct list link; /* in server.subscriptions */
        struct session *session;
        uint32_t space;
        uint32_t n_stored, n_removed;
        uint64_t n_lost;
        uint8_t stored[256 * 16], removed[256 * 16];
};
void event_stored(struct engine *e, struct space *s, const uint8_t key[16]);
void event_removed(struct engine *e, struct space *s, const uint8_t key[16]);
void event_flush(struct server *s);
void event_draining(struct server *s);
void event_end_all(struct session *c);
