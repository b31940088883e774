/* The only locks of the daemon: jobs go from the loop to worker threads and come back to the loop.
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
/* Moves all finished jobs to ret, an initialised empty list. */
void queue_collect(struct queue *q, struct list *ret);
void queue_stop(struct queue *q);
