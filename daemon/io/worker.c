#include <sched.h>
#include <signal.h>

#include "daemon/io/worker.h"

struct workers {
        struct queue *queue;
        unsigned n;
        pthread_t threads[];
};

static void *worker_main(void *arg)
{
        struct queue *q = arg;

        for (struct job *j; (j = queue_take(q));) {
                j->work(j);
                queue_finish(q, j);
        }
        return NULL;
}

int workers_start(struct workers **ret, struct queue *q, unsigned n)
{
        sigset_t all, old;
        cpu_set_t cpus;
        int r = 0;

        if (!n)
                n = sched_getaffinity(0, sizeof cpus, &cpus) == 0 ? MIN((unsigned)CPU_COUNT(&cpus), 8u) : 2;
        struct workers *w = calloc(1, sizeof *w + n * sizeof *w->threads);
        if (!w)
                return -ENOMEM;
        w->queue = q;
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &old);
        while (w->n < n && !(r = pthread_create(&w->threads[w->n], NULL, worker_main, q))) {
                pthread_setname_np(w->threads[w->n], "kvt-worker");
                w->n++;
        }
        pthread_sigmask(SIG_SETMASK, &old, NULL);
        if (!w->n) {
                free(w);
                return -r;
        }
        *ret = w; /* fewer than asked for is slower, not wrong */
        return 0;
}

struct workers *workers_stop(struct workers *w)
{
        if (!w)
                return NULL;
        queue_stop(w->queue);
        for (unsigned i = 0; i < w->n; i++)
                pthread_join(w->threads[i], NULL);
        free(w);
        return NULL;
}
