/* A session: one connection of one process. Its end frees everything it held: leases, reservations, slabs' descriptors, staging.
 *
 *     GREETING --hello--> READY --error, hang-up, close--> CLOSED (freed at the end of the pass)
 *
 * A session is read only while its send queue is empty, so that a client that does not read cannot make it grow, and not while a request is
 * parked: one that waits for a slab to be populated. */
#pragma once

#include "daemon/engine/xfer.h"
#include "daemon/serve/server.h"

enum session_state { SESSION_GREETING, SESSION_READY, SESSION_CLOSED };

struct packet { /* in the send queue */
        struct list link;
        size_t n_bytes;
        size_t n_fds;
        int fds[KVT_FDS_MAX]; /* borrowed: slabs that this session holds, its staging */
        uint8_t bytes[];
};

struct session {
        struct list link; /* in server.sessions */
        struct list greet_link; /* in server.greeting */
        struct server *server;
        uint64_t id;
        int fd;
        sd_event_source *source;
        uint8_t state;
        uint8_t version;
        bool fds_outstanding; /* one fd-bearing packet is not acknowledged ... */
        bool fds_acked; /* ... or it is, but the client may not have read it: see session_may_send_fds() */
        bool stuck; /* the kernel takes no more descriptors in flight: the queue waits for the timer */
        bool privileged; /* root, or the daemon's own user */
        struct tenant *tenant;
        pid_t pid;
        uid_t uid;
        char name[32];
        uint64_t opened_usec, n_requests;
        struct list fds_link; /* in server.unacked */
        uint64_t fds_sent_usec;
        struct list queue; /* of struct packet */
        size_t queued_bytes;
        uint8_t *parked; /* owned: a whole packet that waits for parked_slab */
        size_t n_parked;
        uint32_t parked_slab;
        struct staging *staging;
        uint64_t *slabs; /* owned bitmap by slab id: descriptors it was sent */
        uint32_t n_slab_words;
        struct list leases, reservations; /* of struct lease, struct reservation */
        uint32_t n_leases, n_inflight; /* inflight: reserved or being copied */
        uint64_t inflight_bytes; /* being copied */
        uint32_t *spaces; /* owned: ids it has open */
        uint32_t n_spaces;
};

/* After a while stuck: tries again. */
void session_retry(struct session *c);
int session_new(struct server *s, int fd);
/* Reads without having been told that there is something. Returns whether a request was handled or the session ended. */
bool session_poll(struct session *c);
/* No more is read or sent; session_free() at the end of the pass gives back what it held, so that a handler may go on. why NULL: the client left. */
void session_close(struct session *c, const char *why);
void session_free(struct session *c);
/* Packs and sends, or queues. Returns 0, or KVT_E_AGAIN if the packet has descriptors and the kernel takes no more in flight just now:
 * then nothing was sent. */
int session_send(struct session *c, uint16_t type, uint32_t request_id, const ProtobufCMessage *m, const int *fds, size_t n_fds);
void session_reply(struct session *c, uint16_t type, uint32_t request_id, const void *m);
void session_error(struct session *c, uint32_t request_id, int code, const char *text);
void session_park(struct session *c, const uint8_t *bytes, size_t n, uint32_t slab);
/* A slab is populated or failed: parked requests go on. */
void session_unpark(struct server *s, uint32_t slab);

/* No descriptors are on their way: none was sent, or the client said that it has them and the kernel that it read all it was sent. */
bool session_may_send_fds(struct session *c);
bool session_has_slab(const struct session *c, uint32_t slab);
/* false: no memory */
bool session_add_slab(struct session *c, struct slab *slab);
void session_remove_slab(struct session *c, uint32_t slab);
