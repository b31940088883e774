#include <sched.h>
#include <sys/eventfd.h>
#include <time.h>

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

static void event_write(int fd)
{
        uint64_t one = 1;

        ASSERT(write(fd, &one, sizeof one) == sizeof one);
}

/* Appends all of from to to, in constant time. */
static void list_move(struct list *to, struct list *from)
{
        if (list_empty(from))
                return;
        from->next->prev = to->prev;
        to->prev->next = from->next;
        from->prev->next = to;
        to->prev = from->prev;
        list_init(from);
}

void queue_finish(struct queue *q, struct job *j)
{
        struct list one;

        list_init(&one);
        list_append(&one, &j->link);
        queue_finish_list(q, &one);
}

void queue_finish_list(struct queue *q, struct list *jobs)
{
        bool was_empty;

        if (list_empty(jobs))
                return;
        pthread_mutex_lock(&q->lock);
        was_empty = list_empty(&q->finished);
        list_move(&q->finished, jobs);
        pthread_mutex_unlock(&q->lock);
        if (was_empty)
                event_write(q->event_fd);
}

void queue_collect(struct queue *q, struct list *ret)
{
        uint64_t n;
        ssize_t ignored = read(q->event_fd, &n, sizeof n);

        (void)ignored;
        pthread_mutex_lock(&q->lock);
        list_move(ret, &q->finished);
        pthread_mutex_unlock(&q->lock);
}

void queue_stop(struct queue *q)
{
        pthread_mutex_lock(&q->lock);
        q->stop = true;
        pthread_mutex_unlock(&q->lock);
        pthread_cond_broadcast(&q->wake);
}

int mailbox_init(struct mailbox *m)
{
        int fd = eventfd(0, EFD_CLOEXEC);

        if (fd < 0)
                return -errno;
        *m = (struct mailbox){.event_fd = fd};
        pthread_mutex_init(&m->lock, NULL);
        list_init(&m->letters);
        return 0;
}

void mailbox_deinit(struct mailbox *m)
{
        pthread_mutex_destroy(&m->lock);
        close(m->event_fd);
}

void mailbox_put(struct mailbox *m, struct list *letters)
{
        bool wake;

        pthread_mutex_lock(&m->lock);
        list_move(&m->letters, letters);
        wake = m->asleep;
        m->asleep = false;
        pthread_mutex_unlock(&m->lock);
        if (wake)
                event_write(m->event_fd);
}

void mailbox_stop(struct mailbox *m)
{
        pthread_mutex_lock(&m->lock);
        m->stop = true;
        m->asleep = false;
        pthread_mutex_unlock(&m->lock);
        event_write(m->event_fd);
}

bool mailbox_take(struct mailbox *m, struct list *ret)
{
        bool stop;

        pthread_mutex_lock(&m->lock);
        list_move(ret, &m->letters);
        m->asleep = false;
        stop = m->stop;
        pthread_mutex_unlock(&m->lock);
        return !stop;
}

bool mailbox_sleep(struct mailbox *m)
{
        pthread_mutex_lock(&m->lock);
        m->asleep = list_empty(&m->letters) && !m->stop;
        bool r = m->asleep;
        pthread_mutex_unlock(&m->lock);
        return r;
}

void outlet_init(struct outlet *o, struct queue *q)
{
        pthread_condattr_t a;

        *o = (struct outlet){.queue = q};
        pthread_mutex_init(&o->lock, NULL);
        pthread_condattr_init(&a);
        pthread_condattr_setclock(&a, CLOCK_MONOTONIC);
        pthread_cond_init(&o->none_left, &a);
        pthread_condattr_destroy(&a);
}

void outlet_deinit(struct outlet *o)
{
        pthread_mutex_destroy(&o->lock);
        pthread_cond_destroy(&o->none_left);
}

void outlet_expect(struct outlet *o, uint64_t n)
{
        pthread_mutex_lock(&o->lock);
        o->n_under_way += n;
        pthread_mutex_unlock(&o->lock);
}

void outlet_finish_list(struct outlet *o, struct list *jobs, uint64_t n)
{
        if (!n)
                return;
        pthread_mutex_lock(&o->lock);
        ASSERT(o->n_under_way >= n);
        o->n_under_way -= n;
        if (o->queue)
                queue_finish_list(o->queue, jobs);
        if (!o->n_under_way)
                pthread_cond_signal(&o->none_left);
        pthread_mutex_unlock(&o->lock);
        list_init(jobs);
}

bool outlet_is_cut(struct outlet *o)
{
        pthread_mutex_lock(&o->lock);
        bool r = !o->queue;
        pthread_mutex_unlock(&o->lock);
        return r;
}

bool outlet_wait_or_cut(struct outlet *o, uint64_t wait_usec)
{
        struct timespec t;
        int r = 0;

        clock_gettime(CLOCK_MONOTONIC, &t);
        t.tv_sec += (time_t)(wait_usec / 1000000);
        t.tv_nsec += (long)(wait_usec % 1000000) * 1000;
        if (t.tv_nsec >= 1000000000) {
                t.tv_sec++;
                t.tv_nsec -= 1000000000;
        }
        pthread_mutex_lock(&o->lock);
        while (o->n_under_way && r == 0)
                r = pthread_cond_timedwait(&o->none_left, &o->lock, &t);
        bool all = !o->n_under_way;
        if (!all)
                o->queue = NULL;
        pthread_mutex_unlock(&o->lock);
        return all;
}
