/* Puts: a part offered from staging becomes a block's copy.
 *
 * The first committed copy of a part wins. A part that is being filled makes later offers wait for its outcome: if it is committed they are
 * KVT_E_EXISTS, if it fails the next one takes over. A put's block is in the tree while it is filled, so that children offered right behind it find
 * their parent; if the parent fails, they do. */
#pragma once

#include "daemon/engine/xfer.h"

#define PUT_PENDING (-1)

struct put {
        struct list link; /* in an xfer's waiters */
        struct space *space;
        uint32_t shard;
        uint8_t key[16], parent[16];
        bool has_parent, replace;
        struct staging *staging;
        uint64_t offset;
        uint32_t hint_bytes; /* behind the part in staging */
        struct location reserved; /* slab 0: none; consumed whatever the outcome */
        struct xfer *xfer; /* while it fills */
        bool cancelled;
        void (*done)(struct engine *e, struct put *p, int status);
};

/* Returns a status, or PUT_PENDING: done() is called later. The put belongs to the caller and stays until then. */
int put_start(struct engine *e, struct put *p);
/* What waited for a transfer that is over. */
void put_restart(struct engine *e, struct list *waiters);
/* done() is still called. */
void put_cancel(struct put *p);
/* Counts a refusal, and remembers it for those who ask why the key misses. */
void put_refused(struct engine *e, struct space *s, const uint8_t key[16], int r);
/* Would a put be taken? 0, KVT_E_EXISTS, KVT_E_NO_PARENT. Parents earlier in the same request are the caller's business. */
int put_check(struct engine *e, struct space *s, uint32_t shard, const uint8_t key[16], const uint8_t *parent, bool replace);
