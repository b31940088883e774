/* Operations and requests.
 *
 * A *request* is one message that awaits its reply. An *operation* is what a caller started: it sends requests, maybe several at
 * once or one after the other, and is done after the last.
 *
 *      WAITING --(a request is answered)--> READY --(a thread takes it)--> RUNNING --(more to come)--> WAITING
 *                                             ^                              |  |
 *                                             `--(answered meanwhile)--------'  `--(that was all)--> DONE
 *
 *   1. Handlers of replies (request.on_reply) run under the lock, write results, and never block.
 *   2. step() and done() run without the lock, in the thread that waits for the operation; if none does, in whoever takes it from
 *      c->ready: kvt_process() or any waiting call. Only that thread touches the operation's own fields while it is RUNNING.
 *   3. An operation without step() and done() goes from WAITING to DONE in the handler: the hot path.
 *   4. A synchronous call that gives up (op_abandon) takes its requests' op away: the handlers still run, and give back what
 *      the daemon granted. Nothing writes to the caller's memory after that. */
#pragma once

#include "libclient/client.h"

enum op_state { OP_WAITING, OP_READY, OP_RUNNING, OP_DONE };

enum {
        STEP_PENDING = -100000, /* step(): requests are under way, or op_wants_staging() was called */
};

struct request {
        uint32_t id; /* 0: free, or not sent yet */
        uint32_t i_table;
        uint16_t type;
        kvt_op *op; /* NULL: nobody waits for it any more */
        struct request *next; /* free ones */
        struct request *op_next;
        uint64_t sent_usec;
        /* error: 0, or KVT_E_* and body is NULL. Returns -1 if the reply is not what the daemon may send. */
        int (*on_reply)(kvt *c, struct request *q, int error, const uint8_t *body, size_t n);

        /* for the handlers */
        uint32_t i_first, n; /* keys of the operation that it is about */
        uint32_t slot; /* which of the operation's batches */
        const uint32_t *positions; /* position in the caller's arrays of each; NULL: i_first + i */
        const struct geometry *geometry;
        float max_rel_l2; /* of the space */
        bool raw_only; /* MAP: copies under codecs are not wanted */
        kvt_mapping *mappings; /* of MAP */
        uint8_t *statuses;
        bool *answered; /* set to true, if not NULL */
        struct staging *staging; /* a range that is held until the answer */
        uint64_t offset, bytes;
        void *owned; /* free()d with it */
};

struct kvt_op {
        kvt *c;
        kvt_space *s;
        enum op_state state;
        bool async, cancelled, linked, news;
        bool wants_staging; /* READY when there may be room again */
        unsigned asked_staging; /* how often it waited for the area */
        unsigned refs; /* one until DONE, one for the handle */
        unsigned n_waiters;
        kvt_op *next, *prev; /* in c->ops */
        kvt_op *ready_next; /* in c->ready, or c->free_ops */
        struct request *requests;
        uint32_t n_pending;
        int error; /* first one that a request met */
        int status; /* the result, when DONE */
        kvt_done done;
        void *arg;
        void *owned_keys, *owned_view, *owned_statuses;
        kvt_space *new_space; /* owned */

        int (*start)(kvt_op *op); /* under the lock, may drop it: sets up, sends the first requests. 0 or an error; may run twice */
        void (*then)(kvt_op *op); /* under the lock: after a reply; for kvt_map() */
        int (*step)(kvt_op *op); /* STEP_PENDING or the result */
        void (*deinit)(kvt_op *op); /* under the lock: undoes start() */

        /* arguments */
        const kvt_key *keys;
        size_t n_keys, n_tokens, i_next;
        const kvt_key *parent;
        uint8_t *statuses;
        uint32_t op_flags;
        uint64_t usec;
        uint64_t patience_usec; /* how long the daemon may take before it answers, beside the timeout */
        void *result;
        void *work; /* struct of the operation's own file */
        kvt_key parent_copy;
        size_t n_result;
        int stop;
        kvt_mapping *mappings;
        const kvt_view *view;
        const kvt_hints *hints; /* of the caller; NULL: none */
        size_t first_block, window_end;
        uint32_t first_plane, n_planes;
        kvt_event event_fn;
        kvt_key inline_keys[16]; /* from here on not cleared */
        uint8_t inline_statuses[64];
};

/* async.c */
kvt_op *op_new(kvt *c, kvt_space *s);
/* Copies arguments that must outlive the call, for asynchronous forms. 0 or KVT_E_NO_MEMORY. */
int op_keep_keys(kvt_op *op);
int op_keep_view(kvt_op *op);
/* Statuses of its own, for a caller that wants none. */
int op_own_statuses(kvt_op *op);
/* Of what it owns for its caller. */
void op_free_owned(kvt_op *op);
/* Runs op to its end and frees it. Without the lock. retry: it may be carried out twice. */
int op_sync(kvt_op *op, bool retry);
/* Starts op; on failure frees it. Without the lock. */
int op_async(kvt_op *op, kvt_done done, void *arg, kvt_op **ret_op);
/* The same for an operation that needs nothing kept but its keys. */
int op_async_keys(kvt_op *op, kvt_done done, void *arg, kvt_op **ret_op);
/* Of one that was never started. Without the lock. */
void op_free(kvt_op *op);
/* Marks that a request of op was answered, or that it may go on for another reason. */
void op_news(kvt_op *op);
void op_news_staging(kvt *c);
/* Runs what is ready; drops the lock meanwhile. */
void op_run_ready(kvt *c);
void waiter_wake_all(kvt *c);
void waiter_sleep(kvt *c, kvt_op *op, uint64_t deadline_usec);

/* request.c */
struct request *request_new(kvt *c, kvt_op *op, uint16_t type);
/* Sends what was packed at tx_body(). On failure q is still the caller's. */
int request_send(kvt *c, struct request *q, size_t body_bytes);
void request_free(kvt *c, struct request *q);
/* Dispatches a reply. Returns -1 if it is malformed or foreign. */
int request_on_reply(kvt *c, const struct frame *f, const uint8_t *body);
void request_fail_all(kvt *c, int error);
