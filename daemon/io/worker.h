/* The worker threads: they transform buffers they were handed and own nothing else. */
#pragma once

#include "daemon/util/queue.h"

struct workers;

/* n 0: one per CPU the process may run on, at most 8. Threads block all signals. */
int workers_start(struct workers **ret, struct queue *q, unsigned n);
/* Stops and joins; jobs not taken yet stay in the queue. NULL is fine. */
struct workers *workers_stop(struct workers *w);
