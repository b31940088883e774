/* The server: sessions, leases, reservations, and the loop they live on. Everything here is owned by the loop thread.
 *
 * One pass of the loop: a packet, a signal, a timer or finished transfers are taken in; then server_pass() hands jobs to workers, sends
 * events, and arms one timer for the earliest deadline there is. Idle, nothing wakes the loop but leases running out. */
#pragma once

#include <systemd/sd-event.h>

#include "daemon/engine/engine.h"
#include "proto/frame.h"
#include "proto/messages.h"

struct session;

struct server {
        struct conf conf; /* owned */
        struct engine engine;
        sd_event *event;
        sd_event_source *listen_source, *queue_source, *timer;
        int listen_fd, lock_fd, reserve_fd; /* reserve: closed to be able to accept and refuse when out of descriptors */
        uint64_t armed_usec; /* the timer is set to */
        uint64_t retry_usec; /* when to try sessions again that are stuck; 0: none is */
        struct list sessions; /* of struct session, all */
        struct list greeting; /* of struct session, no hello yet, oldest first */
        struct list unacked; /* of struct session, descriptors sent and not acknowledged, oldest first */
        uint32_t n_sessions;
        uint64_t last_session;
        struct pool leases, reservations;
        struct list lease_order, reservation_order; /* by deadline */
        uint64_t serial; /* of leases and reservations */
        struct list subscriptions; /* of struct subscription */
        struct list requests; /* of struct request: transfers under way for clients */
        struct list prefetches; /* of struct request: those with a deadline */
        struct list purges; /* of struct purge */
        bool draining, more, stop, events_dirty;
        uint64_t drain_deadline_usec, started_usec, poll_until_usec;
        struct session *polled; /* served last, so likely to be heard of next; NULL: none */
        uint8_t boot_token[16];
        uint8_t *in, *out; /* owned; one packet each way */
        uint8_t *arena; /* owned; what the message at hand unpacks to */
        size_t n_arena;
        ProtobufCAllocator allocator;
};

/* Takes over conf. Returns -errno; what went wrong is logged. */
int server_init(struct server *s, struct conf *conf);
void server_deinit(struct server *s);
/* Until a signal ends it. Returns the exit status. */
int server_run(struct server *s);
/* What server_run() does after each turn of the event loop, and what is due by now: for tests that turn it themselves. */
void server_pass(struct server *s);
void server_expire(struct server *s);
void server_reload(struct server *s, const char *path, const struct conf_flag *flags, size_t n_flags);
void server_drain(struct server *s);

/* listener */
int listener_open(struct server *s);
void listener_close(struct server *s);
