/* The only locks of the daemon. struct queue: jobs go from the loop to worker threads and come back to the loop.
 *
 *   loop: queue_submit() any number of jobs, then queue_kick() once a pass.
 *   worker: queue_take() sleeps until there is a job (urgent ones first), works, queue_finish().
 *   loop: the eventfd says that something is finished; queue_collect() swaps the whole list.
 *
 * The eventfd is written only when the finished list was empty; workers are woken only when some sleep. */
#pragma once

#include <pthread.h>

#include "daemon/util/list.h"

struct job {
        struct list link; /* owned by whoever owns the job */
        void (*work)(struct job *); /* runs on a worker; set before submit */
        void (*done)(struct job *); /* runs on the loop when it comes back; NULL: whoever collects knows what it is */
        bool background; /* taken only when nothing urgent waits */
};

struct queue {
        pthread_mutex_t lock;
        pthread_cond_t wake;
        struct list urgent, background; /* under lock */
        struct list finished; /* under lock */
        unsigned n_sleeping; /* under lock */
        unsigned n_taken; /* under lock */
        bool stop; /* under lock */
        int event_fd; /* immutable */
        struct list submitted; /* owned by loop: not yet under the lock */
        unsigned n_submitted;
};

int queue_init(struct queue *q);
void queue_deinit(struct queue *q);
void queue_submit(struct queue *q, struct job *j);
void queue_kick(struct queue *q);
/* NULL: stopped */
struct job *queue_take(struct queue *q);
void queue_finish(struct queue *q, struct job *j);
/* Many at once, with one lock and at most one write; empties the list. */
void queue_finish_list(struct queue *q, struct list *jobs);
/* Moves all finished jobs to ret, an initialised empty list. */
void queue_collect(struct queue *q, struct list *ret);
void queue_stop(struct queue *q);

/* From the loop to the one thread of a device, whole lists at a time. That thread may sleep in the kernel on other things as well, so it is woken by
 * an eventfd, which is written only when the thread said that it goes to sleep. */
struct mailbox {
        pthread_mutex_t lock;
        struct list letters; /* under lock */
        bool asleep; /* under lock: the next who puts something in must write */
        bool stop; /* under lock */
        int event_fd; /* immutable; read by the thread only, blocking */
};

int mailbox_init(struct mailbox *m);
void mailbox_deinit(struct mailbox *m);
/* Loop: moves all of the list. */
void mailbox_put(struct mailbox *m, struct list *letters);
/* Loop: the thread finds out at its next take. The eventfd is always written. */
void mailbox_stop(struct mailbox *m);
/* Thread: appends all there is to ret. False: stopped. */
bool mailbox_take(struct mailbox *m, struct list *ret);
/* Thread: true: from now on whatever is put in writes the eventfd, until the next take; false: there is something to take. */
bool mailbox_sleep(struct mailbox *m);

/* The way back to a queue that may be cut: it counts what is under way, the loop can wait for that to come back, and after outlet_cut() the queue is
 * never touched again, whatever the threads behind it still do. */
struct outlet {
        pthread_mutex_t lock;
        pthread_cond_t none_left;
        struct queue *queue; /* under lock, borrowed; NULL: cut */
        uint64_t n_under_way; /* under lock */
};

void outlet_init(struct outlet *o, struct queue *q);
void outlet_deinit(struct outlet *o);
/* Loop: that many more are under way. */
void outlet_expect(struct outlet *o, uint64_t n);
/* Threads: gives these n back to the queue; empties the list. */
void outlet_finish_list(struct outlet *o, struct list *jobs, uint64_t n);
bool outlet_is_cut(struct outlet *o);
/* Loop: waits at most that long until nothing is under way; if something still is, cuts. Says whether all came back. */
bool outlet_wait_or_cut(struct outlet *o, uint64_t wait_usec);
