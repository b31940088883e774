/* The library's inside: a connection and its spaces.
 *
 * One mutex a connection. A field is guarded by it unless its comment says otherwise; functions named *_locked, and those of
 * conn_, request_, op_, slab_ and staging_ unless they say otherwise, are called with it held.
 *
 * A connection is a file descriptor that may come and go. Each hello starts a new *epoch*: leases, reservations and staging belong to
 * an epoch. A hello that names another boot token starts a new *boot*: handles of spaces belong to a boot. What an application still
 * holds of an older epoch keeps its memory mapped until it is given back, and is answered with a named error then.
 *
 * Who reads: any thread that waits may become the leader, which reads the socket with the mutex dropped and hands replies out;
 * the others sleep until their operation moved or the leader leaves. With one thread a call is one send and one recv. */
#pragma once

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/frame.h"
#include "proto/messages.h"
#include "proto/shm.h"

#include "include/kvtier.h"
#include "libclient/codec/geometry.h"
#include "libclient/key.h"

struct op_list {
        kvt_op *head, *tail;
};
struct slab_map;
struct staging;
struct request;
struct event;

enum {
        RELEASES_SEND = 32, /* queued leases that are worth a packet */
        RELEASES_MAX = 128,
        REQUESTS_MAX = 4096, /* unanswered, in a connection */
        BACKLOG_MAX = 256, /* packets the socket had no room for */
        EVENTS_MAX = 64, /* messages that wait for delivery */
        RX_TICK_USEC = 100000, /* granularity of long waits: the socket's receive timeout */
        RETRY_USEC = 100000, /* between attempts to connect */
        CONNECT_USEC = 50000, /* calls that do not wait may connect for that long */
};

/* Memory for one unpacked message: given back as a whole. */
struct arena {
        size_t used_bytes;
        _Alignas(16) uint8_t bytes[320 * 1024];
};

/* A thread that sleeps in op_wait() or conn_ensure(). Lives on that thread's stack. */
struct waiter {
        pthread_cond_t cond;
        struct waiter *next, *prev;
        kvt_op *op; /* NULL: waits for something of the connection */
        bool woken;
};

struct packet {
        struct packet *next;
        size_t n_bytes;
        uint8_t bytes[];
};

struct kvt {
        pthread_mutex_t lock;

        /* immutable */
        char *path, *name;
        uint64_t timeout_usec, staging_wish_bytes, busy_poll_usec;
        uint32_t flags;
        const uint8_t *fork_page; /* one byte that is 1, and 0 in a child; or NULL */
        pid_t fork_pid; /* without such a page */

        /* the socket */
        int fd; /* -1: none */
        bool broken; /* fd is shut down; the leader closes it */
        bool reading; /* a leader is in recvmsg(), with rx and rx_fds */
        bool connecting; /* a thread is in conn_setup() */
        bool closing;
        bool draining; /* the daemon said so */
        uint8_t version;
        uint64_t epoch, boot; /* count hellos, and hellos with another token */
        uint8_t boot_token[16];
        uint64_t lease_usec, staging_max_bytes;
        uint64_t retry_usec; /* no attempt to connect before */
        int epoll_fd, event_fd; /* -1 until kvt_fd() */
        bool epoll_writes, event_set;

        /* requests and operations */
        struct request **requests; /* index: low 16 bits of the id */
        uint32_t n_requests, cap_requests;
        uint32_t serial;
        struct request *free_requests;
        kvt_op *free_ops;
        struct op_list ready; /* to be run by whoever comes */
        kvt_op *ops; /* all that are not done */
        struct waiter *waiters;
        struct event *events, **events_tail; /* to be delivered */
        uint32_t n_events;
        kvt_space *spaces;

        struct packet *backlog, **backlog_tail;
        uint32_t n_backlog;
        uint64_t releases[RELEASES_MAX];
        uint32_t n_releases;

        /* slabs.c, staging.c */
        struct slab_map **slabs; /* key: id -> value: map of this epoch; open addressing */
        uint32_t n_slabs, cap_slabs;
        struct slab_map *old_slabs; /* of earlier epochs, still referenced */
        struct staging *staging; /* of this epoch */
        struct staging *old_staging; /* of earlier ones, with ranges in use */
        bool staging_asked;
        int staging_error;
        struct reservation *reservations;
        uint32_t cap_reservations, free_reservation; /* index + 1 */
        uint64_t reservation_serial;

        pthread_cond_t helper_cond;
        pthread_t helper;
        bool helper_exists, helper_runs;
        struct slab_map *populate; /* queue */

        char error_text[256]; /* of the last error message, for its handler */

        /* owned by the leader while reading, else guarded by lock */
        int rx_fds[KVT_FDS_MAX];
        uint32_t n_rx_fds;
        struct arena arena;
        _Alignas(64) uint8_t rx[KVT_PACKET_MAX];
        _Alignas(64) uint8_t tx[KVT_PACKET_MAX];
};

struct kvt_space {
        kvt *c;
        struct kvt_space *next;

        /* immutable */
        char *name;
        uint8_t salt[KVT_SALT_MAX];
        size_t salt_bytes;
        uint32_t shard;
        struct geometry geometry;
        float max_rel_l2;
        struct key_seed seed;
        bool attached; /* by its handle: it cannot be re-opened */

        uint32_t handle; /* of this epoch */
        int error; /* it could not be re-opened after a reconnect */
        kvt_event event_fn;
        void *event_arg;
        uint64_t n_events_lost;
        uint32_t n_delivering; /* threads in event_fn */
};

/* client.c */
static const uint64_t timeout_max_usec = 1ull << 50; /* so that adding it to now does not overflow */
uint64_t now_usec(void);
/* 0, or KVT_E_FORKED, or KVT_E_BAD_REQUEST for NULL. Without the lock. */
int conn_check(const kvt *c);
/* Connects if need be; drops the lock meanwhile. deadline: now_usec(). */
int conn_ensure(kvt *c, uint64_t deadline_usec);
/* Everything that is pending fails with KVT_E_DISCONNECTED. */
void conn_lost(kvt *c);
/* Whether the daemon is shutting down, so that a put would be refused. Looks whether it still is. */
bool conn_is_draining(kvt *c);
/* The socket of a lost connection is closed, once no leader is in it. */
void conn_close_broken(kvt *c);

/* setup.c: connect, hello, spaces. Without the lock, while c->connecting. */
struct setup_space {
        kvt_space *space;
        bool events;
        uint32_t handle; /* or */
        int error;
};
struct setup {
        struct setup_space *spaces; /* to re-open */
        size_t n_spaces;
        int fd;
        Kvtier__HelloReply *hello; /* owned by the caller */
};
/* KVT_E_DISCONNECTED, KVT_E_TIMEOUT, KVT_E_VERSION, KVT_E_DENIED, what the daemon answered to the hello, or -errno */
int conn_setup(kvt *c, uint64_t deadline_usec, struct setup *ret);
/* Packs the request that opens s; BODY_MAX bytes are enough. */
size_t space_pack(const kvt_space *s, uint8_t *body);

/* send.c. Packets are packed at tx_body(c) for at most TX_MAX bytes, then sent. */
enum { TX_MAX = KVT_PACKET_MAX - KVT_FRAME_BYTES };
static inline uint8_t *tx_body(kvt *c)
{
        return c->tx + KVT_FRAME_BYTES;
}
/* 0, KVT_E_DISCONNECTED (then conn_lost() was called) or KVT_E_AGAIN (too much waits to be sent). */
int tx_send(kvt *c, uint16_t type, uint32_t request_id, size_t body_bytes);
/* Sends what the socket had no room for. */
void tx_flush(kvt *c);
void tx_drop(kvt *c);
/* Leases to end. */
void release_queue(kvt *c, uint64_t lease);
void release_flush(kvt *c);
/* Appends the queued leases as this field to a body and forgets them. */
uint8_t *release_ride(kvt *c, uint8_t *p, uint32_t field);

/* poll.c: for event loops; nothing unless kvt_fd() was called */
void poll_attach(kvt *c);
void poll_writes(kvt *c, bool on);
void poll_signal(kvt *c);
void poll_clear(kvt *c);

/* recv.c */
/* Takes in one packet. wait: as long as the deadline allows, with the lock dropped; else only what is there. Returns false when there was none. */
bool rx_once(kvt *c, bool wait, uint64_t deadline_usec);

/* space.c */
void space_free(kvt_space *s);

/* event.c */
int event_on_message(kvt *c, const uint8_t *body, size_t n);
/* Queues word that events may have been missed. */
void event_missed(kvt *c, kvt_space *s);
/* Delivers queued events; drops the lock meanwhile. */
void event_deliver(kvt *c);
void event_forget(kvt *c, kvt_space *s);

/* arena.c */
ProtobufCAllocator arena_start(struct arena *a);
