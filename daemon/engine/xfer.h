/* A transfer: one part moving between a session's staging, a slot and a device, or being read to be verified.
 *
 *     PUT GET VERIFY  QUEUED ------------------> CODING ------------> COMMITTED | FAILED --loop completes it--> gone
 *     DEMOTE          QUEUED -------> CODING [-> QUEUED --> CODING] -> WRITING -> COMMITTED | FAILED
 *     RECODE          QUEUED -------> CODING --> QUEUED --> CODING -> COMMITTED | FAILED
 *     LOAD FETCH      QUEUED --> READING ------> CODING ------------> COMMITTED | FAILED
 *
 * The loop owns a transfer in QUEUED before it is submitted and from completion on, and in READING and WRITING, while a ring has its buffer; in CODING a
 * worker does. What is coded anew is coded first, into memory of its own, for only then is known how much room it takes; then it goes where there is some.
 * Only `cancelled` is shared. A transfer keeps alive: its space (n_open), its staging (ref), the block of a put or load (n_fills) or of a
 * demotion (n_demotes, and the slot's pin), that of a recoding (n_fills, and the pin), a get's slot (pin), the record that a load or fetch reads (its segment's n_reads). */
#pragma once

#include "daemon/engine/engine.h"

enum xfer_state { XFER_QUEUED, XFER_READING, XFER_CODING, XFER_WRITING, XFER_COMMITTED, XFER_FAILED };
enum xfer_owner { XFER_LOOP, XFER_WORKER };
enum xfer_kind { XFER_PUT, XFER_GET, XFER_VERIFY, XFER_DEMOTE, XFER_RECODE, XFER_LOAD, XFER_FETCH };

/* A session's staging area: client and daemon map the same memfd. */
struct staging {
        unsigned n_refs;
        int fd;
        uint8_t *base;
        uint64_t bytes;
        struct engine *engine;
        struct tenant *tenant; /* charged */
};
int staging_new(struct staging **ret, struct engine *e, struct tenant *t, uint64_t bytes);
struct staging *staging_ref(struct staging *s);
struct staging *staging_unref(struct staging *s);

struct xfer {
        struct job job;
        uint8_t state, owner, kind;
        bool cancelled; /* atomic */
        uint32_t id;
        struct space *space;
        struct staging *staging; /* ref; NULL for VERIFY */
        uint64_t offset;
        uint32_t first_plane, end_plane; /* GET, FETCH */
        uint32_t hint_bytes; /* PUT: behind the part in staging */
        uint32_t block; /* PUT, LOAD, DEMOTE, RECODE */
        uint32_t shard;
        struct location at;
        struct slab *slab;
        uint32_t slot;
        int result; /* 0 or KVT_E_* */
        struct list waiters; /* PUT, LOAD, RECODE: of struct put, offered under the same key meanwhile */
        struct list loads; /* LOAD: of struct load, who wait for it */
        uint8_t key[16]; /* LOAD, FETCH, DEMOTE */
        struct codec_pair to; /* DEMOTE, RECODE */
        bool codes; /* DEMOTE: the copy is coded anew first */
        bool decodes; /* LOAD: into raw bytes */
        bool read_ended; /* FETCH: its record is let go already */
        uint8_t rung; /* RECODE: which it is for */
        uint16_t n_exact; /* DEMOTE, RECODE: first tokens that stay exact when it is coded anew; see recode_n_exact() */
        struct coded *coded; /* owned */
        struct location to_at; /* RECODE: the new place */
        struct slab *to_slab;
        struct nvme_write write; /* DEMOTE */
        struct nvme_read read; /* LOAD, FETCH */
        struct put *put; /* borrowed; NULL once its request gave up */
        void (*done)(struct engine *e, struct xfer *x, void *arg);
        void *arg;
        struct engine *engine;
};

/* NULL: too many under way. Takes references as said above, except on block and slot. */
struct xfer *xfer_new(struct engine *e, enum xfer_kind kind, struct space *s, struct staging *staging, struct location at);
void xfer_submit(struct engine *e, struct xfer *x);
/* The work is done at once, by the loop, and completed: for what is short. */
void xfer_work_here(struct engine *e, struct xfer *x);
void xfer_cancel(struct xfer *x);
/* Loop: a worker is done with it. Calls done, then frees it. */
void xfer_complete(struct engine *e, struct xfer *x);
/* Loop: it is over without a worker, or after one and a device. Calls done, then frees it. */
void xfer_finish(struct engine *e, struct xfer *x, int result);
/* Drops an xfer that was never submitted. */
void xfer_free(struct engine *e, struct xfer *x);
/* The workers are stopped and none took it. */
void xfer_abandon(struct engine *e, struct xfer *x);
