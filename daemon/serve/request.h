/* Requests: one table of message types; each handler gets a message that was unpacked from foreign bytes and answers exactly once. */
#pragma once

#include "daemon/engine/demote.h"
#include "daemon/engine/get.h"
#include "daemon/engine/load.h"
#include "daemon/engine/put.h"
#include "daemon/serve/session.h"

/* A request that waits for transfers: answered when the last of its items is done. A durable put then waits once more, for what it stored to be written. */
struct request {
        struct list link; /* in server.requests */
        struct server *server;
        struct session *session; /* NULL: the client left */
        uint32_t id;
        uint16_t type;
        struct space *space; /* kept open: whoever waits may outlive the session */
        uint32_t n_items, n_pending;
        uint64_t part_bytes; /* counted as under way for each item; 0: nothing goes through staging */
        uint8_t *statuses; /* owned with the request */
        bool durable; /* a put that is to be */
        bool writing; /* it is at that */
        uint8_t *packet; /* owned; a map that starts over once its blocks are in memory */
        size_t n_packet;
        uint64_t deadline_usec; /* of a prefetch; 0: none */
        struct list deadline_link; /* in server.prefetches */
        struct request_item {
                struct request *request;
                bool pending;
                bool loading; /* load.done will be called */
                bool past_memory; /* of a get: there was no room to load it */
                bool chained; /* of a durable put: it continues the item before */
                struct tenant *pinned_by; /* of a map: its copy is kept until all are there; NULL: it is not */
                struct location pinned;
                struct durable *durable; /* of the last item of a chain */
                struct load load;
                union {
                        struct put put;
                        struct get get;
                };
        } items[];
};

/* NULL: no memory, and answered so. The handler's own pending count keeps it until request_unpend(). */
struct request *request_open_items(struct session *c, uint32_t id, uint16_t type, struct space *s, uint32_t n);
void request_unpend(struct request *r);
/* r: a status, or PUT_PENDING: item_done() follows. */
void item_started(struct request_item *i, int r);
void item_done(struct request_item *i, int status);
/* n more parts, of which n_copied are to be copied into or out of staging at once. Answers with an error itself. */
bool request_check_busy(struct session *c, uint32_t id, const struct space *s, uint32_t n, uint32_t n_copied);
void request_make_durable(struct request *r);
/* Copies a part, or planes of it, into staging from wherever it is. */
void request_get_item(struct session *c, struct request_item *item, struct space *s, uint32_t shard, const uint8_t *key, uint64_t offset,
                      uint32_t first_plane, uint32_t end_plane);
/* Prefetches that waited long enough are answered. */
void request_expire(struct server *s);
uint64_t request_deadline(const struct server *s);

/* Takes one packet in. */
void request_handle(struct session *c, const uint8_t *bytes, size_t n);
/* The session is going: its transfers are cancelled where they have not begun, and nobody is answered. */
void request_orphan(struct session *c);

typedef void (*request_handler)(struct session *c, uint32_t id, const void *m, const uint8_t *packet, size_t n_packet);
void request_hello(struct session *c, uint32_t id, const void *m, const uint8_t *packet, size_t n_packet);
void request_space_open(struct session *c, uint32_t id, const void *m, const uint8_t *packet, size_t n_packet);
void request_space_set(struct session *c, uint32_t id, const void *m, const uint8_t *packet, size_t n_packet);
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
void request_device(struct session *c, uint32_t id, const void *m, const uint8_t *packet, size_t n_packet);
/* LIST_DEVICES */
void request_list_devices(struct session *c, uint32_t id);
/* A map whose blocks could be loaded, or not: answered as far as they are. */
void request_map_loaded(struct request *r);
/* What it kept in memory meanwhile may go. */
void request_map_unpin(struct request *r);
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
struct kvt_block_entry request_record_entry(struct engine *e, uint32_t entry);
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
