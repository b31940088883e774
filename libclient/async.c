/* Operations: running them, waiting for them, giving up on them. The model stands in async.h. */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "libclient/async.h"
#include "libclient/view.h"
#include "libclient/wire.h"

/* waiting threads */

static void waiter_wake(struct waiter *w)
{
        w->woken = true;
        pthread_cond_signal(&w->cond);
}

void waiter_wake_all(kvt *c)
{
        for (struct waiter *w = c->waiters; w; w = w->next)
                waiter_wake(w);
}

/* Wakes one thread to become the leader, when there is none. */
static void waiter_pass(kvt *c)
{
        if (c->reading)
                return;
        for (struct waiter *w = c->waiters; w; w = w->next)
                if (w->op && w->op->state == OP_WAITING) {
                        waiter_wake(w);
                        return;
                }
}

void waiter_sleep(kvt *c, kvt_op *op, uint64_t deadline_usec)
{
        struct timespec until = {.tv_sec = (time_t)(deadline_usec / 1000000), .tv_nsec = (long)(deadline_usec % 1000000 * 1000)};
        struct waiter w = {.op = op, .next = c->waiters};
        pthread_condattr_t attr;

        pthread_condattr_init(&attr);
        pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
        pthread_cond_init(&w.cond, &attr);
        pthread_condattr_destroy(&attr);
        if (c->waiters)
                c->waiters->prev = &w;
        c->waiters = &w;

        while (!w.woken && pthread_cond_timedwait(&w.cond, &c->lock, &until) != ETIMEDOUT)
                ;

        if (w.prev)
                w.prev->next = w.next;
        else
                c->waiters = w.next;
        if (w.next)
                w.next->prev = w.prev;
        pthread_cond_destroy(&w.cond);
}

static void op_wake(kvt_op *op)
{
        if (op->n_waiters)
                for (struct waiter *w = op->c->waiters; w; w = w->next)
                        if (w->op == op)
                                waiter_wake(w);
}

/* life */

kvt_op *op_new(kvt *c, kvt_space *s)
{
        kvt_op *op;

        pthread_mutex_lock(&c->lock);
        op = c->free_ops;
        if (op)
                c->free_ops = op->ready_next;
        else
                op = malloc(sizeof(*op));
        if (op) {
                memset(op, 0, offsetof(kvt_op, inline_keys));
                op->c = c;
                op->s = s;
                op->refs = 1;
                op->state = OP_DONE;
                op->next = c->ops;
                if (c->ops)
                        c->ops->prev = op;
                c->ops = op;
        }
        pthread_mutex_unlock(&c->lock);
        return op;
}

void op_free_owned(kvt_op *op)
{
        free(op->owned_keys);
        free(op->owned_view);
        free(op->owned_statuses);
        space_free(op->new_space);
        op->owned_keys = op->owned_view = op->owned_statuses = NULL;
        op->new_space = NULL;
}

static void op_unref(kvt_op *op)
{
        kvt *c = op->c;

        if (--op->refs)
                return;
        op_free_owned(op);
        if (op->prev)
                op->prev->next = op->next;
        else
                c->ops = op->next;
        if (op->next)
                op->next->prev = op->prev;
        op->ready_next = c->free_ops;
        c->free_ops = op;
}

int op_keep_keys(kvt_op *op)
{
        kvt_key *copy = op->inline_keys;

        if (op->parent) {
                op->parent_copy = *op->parent;
                op->parent = &op->parent_copy;
        }
        if (!op->n_keys)
                return 0;
        if (op->n_keys > sizeof(op->inline_keys) / sizeof(*op->inline_keys)) {
                copy = malloc(op->n_keys * sizeof(*copy));
                if (!copy)
                        return KVT_E_NO_MEMORY;
                op->owned_keys = copy;
        }
        memcpy(copy, op->keys, op->n_keys * sizeof(*copy));
        op->keys = copy;
        return 0;
}

int op_keep_view(kvt_op *op)
{
        op->view = op->owned_view = view_dup(op->view);
        return op->view ? 0 : KVT_E_NO_MEMORY;
}

int op_own_statuses(kvt_op *op)
{
        if (op->statuses)
                return 0;
        if (op->n_keys <= sizeof(op->inline_statuses))
                op->statuses = op->inline_statuses;
        else
                op->statuses = op->owned_statuses = malloc(op->n_keys);
        return op->statuses ? 0 : KVT_E_NO_MEMORY;
}

static void op_end(kvt_op *op, int status)
{
        for (struct request *q; (q = op->requests);) { /* what is still on its way concerns nobody */
                op->requests = q->op_next;
                q->op = NULL;
        }
        op->n_pending = 0;
        op->status = status;
        if (op->deinit)
                op->deinit(op);
        op->state = OP_DONE;
        op_wake(op);
        op_unref(op);
}

/* running */

static void ready_link(kvt_op *op)
{
        struct op_list *l = &op->c->ready;

        op->linked = true;
        op->ready_next = NULL;
        if (l->tail)
                l->tail->ready_next = op;
        else
                l->head = op;
        l->tail = op;
        poll_signal(op->c);
}

static void ready_unlink(kvt_op *op)
{
        struct op_list *l = &op->c->ready;
        kvt_op **link = &l->head, *previous = NULL;

        while (*link != op) {
                previous = *link;
                link = &previous->ready_next;
        }
        *link = op->ready_next;
        if (l->tail == op)
                l->tail = previous;
        op->linked = false;
}

void op_news(kvt_op *op)
{
        if (op->state == OP_RUNNING) {
                op->news = true;
                return;
        }
        if (op->state != OP_WAITING)
                return;
        if (!op->step) {
                if (op->n_pending)
                        return;
                if (!op->done) {
                        op_end(op, op->error);
                        return;
                }
        }
        op->state = OP_READY;
        op->wants_staging = false;
        if (op->n_waiters)
                op_wake(op);
        else
                ready_link(op);
}

void op_news_staging(kvt *c)
{
        for (kvt_op *op = c->ops, *next; op; op = next) {
                next = op->next;
                if (op->wants_staging)
                        op_news(op);
        }
}

/* Takes a READY operation, in the thread that is to run it. Drops the lock. */
static void op_run(kvt_op *op)
{
        kvt *c = op->c;
        int r = op->error;

        assert(op->state == OP_READY && !op->linked);
        op->state = OP_RUNNING;
        op->news = false;
        op->refs++;
        waiter_pass(c);
        if (op->step) {
                pthread_mutex_unlock(&c->lock);
                r = op->step(op);
                pthread_mutex_lock(&c->lock);
        }
        if (r == STEP_PENDING) {
                assert(op->n_pending || op->news || op->wants_staging);
                op->state = OP_WAITING;
                if (op->news)
                        op_news(op);
                else
                        op_wake(op); /* another waiter may have to lead now */
        } else {
                if (op->done) {
                        pthread_mutex_unlock(&c->lock);
                        op->done(r, op->arg);
                        pthread_mutex_lock(&c->lock);
                }
                op_end(op, r);
        }
        op_unref(op);
}

void op_run_ready(kvt *c)
{
        kvt_op *op;

        event_deliver(c);
        while ((op = c->ready.head)) {
                ready_unlink(op);
                op_run(op);
        }
        poll_clear(c);
}

/* waiting */

/* Until op is done or the deadline has passed; rolling_usec: which moves whenever the operation does. */
static int op_wait(kvt_op *op, uint64_t deadline_usec, uint64_t rolling_usec)
{
        kvt *c = op->c;
        int r = 0;

        op->n_waiters++;
        for (;;) {
                if (op->state == OP_DONE)
                        break;
                if (op->state == OP_READY) {
                        if (op->linked)
                                ready_unlink(op);
                        op_run(op);
                        if (rolling_usec)
                                deadline_usec = now_usec() + rolling_usec;
                        continue;
                }
                if (c->ready.head || c->events) {
                        op_run_ready(c);
                        continue;
                }
                if (op->state == OP_WAITING && !c->reading && c->fd >= 0) {
                        if (rx_once(c, true, deadline_usec))
                                continue;
                } else
                        waiter_sleep(c, op, deadline_usec);
                if (op->state == OP_WAITING && now_usec() >= deadline_usec) {
                        r = KVT_E_TIMEOUT;
                        break;
                }
        }
        if (!--op->n_waiters && op->state == OP_READY && !op->linked)
                ready_link(op);
        if (c->ready.head || c->events)
                op_run_ready(c);
        waiter_pass(c);
        return r ? r : op->status;
}

static void op_send_cancels(kvt_op *op)
{
        kvt *c = op->c;

        for (struct request *q = op->requests; q; q = q->op_next) {
                uint8_t *p = wire_uint(tx_body(c), 1, q->id);

                if (tx_send(c, KVT_MSG_CANCEL, 0, (size_t)(p - tx_body(c)))) /* then the list may be gone */
                        return;
        }
}

static void op_abandon(kvt_op *op)
{
        while (op->state == OP_RUNNING)
                waiter_sleep(op->c, op, now_usec() + 1000000);
        if (op->state == OP_DONE)
                return;
        if (op->linked)
                ready_unlink(op);
        op_send_cancels(op);
        if (op->linked) /* the send failed, and that was news */
                ready_unlink(op);
        if (op->state != OP_DONE)
                op_end(op, KVT_E_TIMEOUT);
}

/* After it op is under way, or as op_new() made it. */
static int op_submit(kvt_op *op, uint64_t deadline_usec)
{
        int r = KVT_E_DISCONNECTED;

        for (int attempt = 0; attempt < 2 && r == KVT_E_DISCONNECTED; attempt++) {
                r = conn_ensure(op->c, deadline_usec);
                if (r)
                        return r;
                if (op->s && op->s->error)
                        return op->s->error;
                op->state = OP_RUNNING; /* so that bad news does not end it before it has begun */
                op->error = 0;
                op->cancelled = op->news = op->wants_staging = false;
                op->asked_staging = 0;
                op->refs++;
                r = op->start(op);
                if (r)
                        op_end(op, r);
        }
        if (r)
                return r;
        op->state = OP_WAITING;
        if (op->news || (!op->n_pending && !op->wants_staging))
                op_news(op);
        return 0;
}

int op_sync(kvt_op *op, bool retry)
{
        kvt *c = op->c;
        int r;

        pthread_mutex_lock(&c->lock);
        for (;; retry = false) {
                uint64_t deadline_usec = now_usec() + c->timeout_usec;

                r = op_submit(op, deadline_usec);
                if (r)
                        break;
                r = op_wait(op, deadline_usec + op->patience_usec, c->timeout_usec + op->patience_usec);
                if (op->state != OP_DONE)
                        op_abandon(op);
                if (r != KVT_E_DISCONNECTED || !retry || c->flags & KVT_OPEN_NO_RECONNECT)
                        break;
        }
        op_unref(op);
        pthread_mutex_unlock(&c->lock);
        return r;
}

int op_async(kvt_op *op, kvt_done done, void *arg, kvt_op **ret_op)
{
        kvt *c = op->c;
        int r;

        pthread_mutex_lock(&c->lock);
        op->done = done;
        op->arg = arg;
        op->async = true;
        r = op_submit(op, now_usec() + CONNECT_USEC);
        if (!r && ret_op)
                *ret_op = op;
        else
                op_unref(op);
        pthread_mutex_unlock(&c->lock);
        return r;
}

int op_async_keys(kvt_op *op, kvt_done done, void *arg, kvt_op **ret_op)
{
        int r = op_keep_keys(op);

        if (r) {
                op_free(op);
                return r;
        }
        return op_async(op, done, arg, ret_op);
}

void op_free(kvt_op *op)
{
        kvt *c = op->c;

        pthread_mutex_lock(&c->lock);
        op_unref(op);
        pthread_mutex_unlock(&c->lock);
}

/* public */

int kvt_wait(kvt_op *op, uint64_t timeout_usec)
{
        kvt *c;
        int r;

        if (!op || !op->c)
                return KVT_E_BAD_REQUEST;
        c = op->c;
        r = conn_check(c);
        if (r)
                return r;
        if (!timeout_usec)
                timeout_usec = c->timeout_usec + op->patience_usec;
        else if (timeout_usec > timeout_max_usec)
                timeout_usec = timeout_max_usec;
        pthread_mutex_lock(&c->lock);
        op->refs++;
        r = op_wait(op, now_usec() + timeout_usec, 0);
        op_unref(op);
        pthread_mutex_unlock(&c->lock);
        return r;
}

void kvt_cancel(kvt_op *op)
{
        if (!op || !op->c || conn_check(op->c))
                return;
        pthread_mutex_lock(&op->c->lock);
        if (op->state != OP_DONE && !op->cancelled) {
                op->cancelled = true;
                op_send_cancels(op);
                if (op->wants_staging) /* no answer will come */
                        op_news(op);
        }
        pthread_mutex_unlock(&op->c->lock);
}

void kvt_op_free(kvt_op *op)
{
        kvt *c;

        if (!op)
                return;
        c = op->c;
        if (!c || conn_check(c)) { /* the connection is closed, or the parent's: its other parts are not ours to touch */
                if (!c)
                        free(op);
                return;
        }
        pthread_mutex_lock(&c->lock);
        op_unref(op);
        pthread_mutex_unlock(&c->lock);
}
