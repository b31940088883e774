#include <sched.h>
#include <sys/eventfd.h>

#include "daemon/util/assert.h"
#include "daemon/util/queue.h"

int queue_init(struct queue *q)
{
        int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);

        if (fd < 0)
                return -errno;
        *q = (struct queue){.event_fd = fd};
        pthread_mutex_init(&q->lock, NULL);
        pthread_cond_init(&q->wake, NULL);
        list_init(&q->urgent);
        list_init(&q->background);
        list_init(&q->finished);
        list_init(&q->submitted);
        return 0;
}

void queue_deinit(struct queue *q)
{
        pthread_mutex_destroy(&q->lock);
        pthread_cond_destroy(&q->wake);
        close(q->event_fd);
}

void queue_submit(struct queue *q, struct job *j)
{
        list_append(&q->submitted, &j->link);
        q->n_submitted++;
}

void queue_kick(struct queue *q)
{
        unsigned n_wake;

        if (list_empty(&q->submitted))
                return;
        pthread_mutex_lock(&q->lock);
        while (!list_empty(&q->submitted)) {
                struct job *j = list_first(&q->submitted, struct job, link);
                list_remove(&j->link);
                list_append(j->background ? &q->background : &q->urgent, &j->link);
        }
        n_wake = MIN(q->n_sleeping, q->n_submitted);
        q->n_submitted = 0;
        pthread_mutex_unlock(&q->lock);
        while (n_wake--)
                pthread_cond_signal(&q->wake);
}

struct job *queue_take(struct queue *q)
{
        struct job *j = NULL;
        bool yielded = false;

        pthread_mutex_lock(&q->lock);
        /* every eighth turn belongs to the background, or a steady load would starve it, and with it those who wait for memory */
        if (!q->stop && ++q->n_taken % 8 == 0)
                j = list_first(&q->background, struct job, link);
        while (!q->stop && !j && !(j = list_first(&q->urgent, struct job, link))) {
                if (!list_empty(&q->background)) {
                        if (yielded) {
                                j = list_first(&q->background, struct job, link);
                                break;
                        }
                        pthread_mutex_unlock(&q->lock);
                        sched_yield(); /* the loop may be about to bring urgent work, and want this CPU for it */
                        pthread_mutex_lock(&q->lock);
                        yielded = true;
                        continue;
                }
                q->n_sleeping++;
                pthread_cond_wait(&q->wake, &q->lock);
                q->n_sleeping--;
        }
        if (q->stop)
                j = NULL;
        if (j)
                list_remove(&j->link);
        pthread_mutex_unlock(&q->lock);
        return j;
}

void queue_finish(struct queue *q, struct job *j)
{
        bool was_empty;
        uint64_t one = 1;

        pthread_mutex_lock(&q->lock);
        was_empty = list_empty(&q->finished);
        list_append(&q->finished, &j->link);
        pthread_mutex_unlock(&q->lock);
        if (was_empty)
                ASSERT(write(q->event_fd, &one, sizeof one) == sizeof one);
}

void queue_collect(struct queue *q, struct list *ret)
{
        uint64_t n;
        ssize_t ignored = read(q->event_fd, &n, sizeof n);

        (void)ignored;
        pthread_mutex_lock(&q->lock);
        if (!list_empty(&q->finished)) { /* swap: relink the ring to another head */
                *ret = q->finished;
                ret->next->prev = ret;
                ret->prev->next = ret;
                list_init(&q->finished);
        }
        pthread_mutex_unlock(&q->lock);
}

void queue_stop(struct queue *q)
{
        pthread_mutex_lock(&q->lock);
        q->stop = true;
        pthread_mutex_unlock(&q->lock);
        pthread_cond_broadcast(&q->wake);
}
