/* Leases and reservations: what a session may rely on until a deadline, the client's death, or its own word. */
#pragma once

#include "daemon/serve/session.h"

struct lease {
        struct list session_link, order_link;
        struct session *session;
        uint64_t id; /* serial << 20 | number in the pool */
        uint64_t deadline_usec;
        struct location at;
};

struct reservation {
        struct list session_link, order_link;
        struct session *session;
        uint64_t id;
        uint64_t deadline_usec;
        struct space *space; /* kept open */
        struct location at;
        uint32_t shard;
        uint8_t key[16], parent[16];
        bool has_parent, replace, durable;
};

/* 0: too many */
uint64_t lease_grant(struct session *c, struct space *s, uint32_t block, struct location at);
/* Unknown ids, and those of other sessions, are ignored: the lease may have run out. */
void lease_release(struct session *c, uint64_t id);
void lease_end(struct server *s, struct lease *l);

struct reservation *reservation_new(struct session *c, struct space *s, struct location at);
/* NULL: none of this session */
struct reservation *reservation_find(struct session *c, uint64_t id);
/* Abandons the room unless its location was taken over (slab 0). */
void reservation_end(struct server *s, struct reservation *r);

/* Everything of a session that is closing. */
void lease_end_all(struct session *c);
uint64_t lease_deadline(const struct server *s);
void lease_expire(struct server *s);
