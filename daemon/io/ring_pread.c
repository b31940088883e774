/* A ring of a few threads that call pread, pwrite, fdatasync and fallocate: where io_uring is forbidden or absent (ring.h). One operation a thread at a
 * time; what waits is taken in order, background operations last. */
#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include "daemon/io/ring_request.h"

enum { MAX_THREADS = 4, MAX_CALL_BYTES = 1 << 30 };

struct ring_pread {
        struct ring ring;
        struct queue todo; /* its own; its finished list is not used */
        struct outlet outlet;
        uint64_t n_submitted; /* owned by the loop: not kicked yet */
        unsigned n_threads;
        pthread_t threads[MAX_THREADS];
};

static int64_t call_kernel(const struct request *q, int fd)
{
        size_t n = MIN(request_left(q), (uint64_t)MAX_CALL_BYTES);
        int64_t r = -1;

        switch (q->opcode) {
        case RING_READ:
                r = pread(fd, request_at(q), n, (off_t)request_offset(q));
                break;
        case RING_WRITE:
                r = pwrite(fd, request_at(q), n, (off_t)request_offset(q));
                break;
        case RING_FLUSH:
                r = fdatasync(fd);
                break;
        case RING_DISCARD:
                r = fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)q->offset, (off_t)q->bytes);
                break;
        }
        return r < 0 ? -errno : r;
}

static void *thread_main(void *arg)
{
        struct ring_pread *p = arg;
        struct list waiting, finished;
        struct request q;

        list_init(&waiting);
        list_init(&finished);
        for (struct job *j; (j = queue_take(&p->todo));) {
                if (outlet_is_cut(&p->outlet))
                        break; /* given up: nothing new begins */
                list_append(&waiting, &j->link);
                request_begin(&q, &waiting);
                while (request_advance(&q, call_kernel(&q, p->ring.fd)))
                        ;
                outlet_finish_list(&p->outlet, &finished, request_end(&q, &finished, &waiting));
        }
        return NULL;
}

static void pread_submit(struct ring *r, struct ring_op *op)
{
        struct ring_pread *p = container_of(r, struct ring_pread, ring);

        op->alone = false;
        queue_submit(&p->todo, &op->job);
        p->n_submitted++;
}

static void pread_kick(struct ring *r)
{
        struct ring_pread *p = container_of(r, struct ring_pread, ring);

        if (!p->n_submitted)
                return;
        outlet_expect(&p->outlet, p->n_submitted);
        p->n_submitted = 0;
        queue_kick(&p->todo);
}

static int pread_close(struct ring *r, uint64_t wait_usec)
{
        if (!r)
                return 0;
        struct ring_pread *p = container_of(r, struct ring_pread, ring);
        pread_kick(r);
        bool all = outlet_wait_or_cut(&p->outlet, wait_usec);
        queue_stop(&p->todo);
        for (unsigned i = 0; i < p->n_threads; i++)
                if (all)
                        pthread_join(p->threads[i], NULL);
                else
                        pthread_detach(p->threads[i]);
        if (!all)
                return -EBUSY;
        queue_deinit(&p->todo);
        outlet_deinit(&p->outlet);
        free(p);
        return 0;
}

static const struct ring_ops pread_ops = {
        .name = "pread",
        .submit = pread_submit,
        .kick = pread_kick,
        .close = pread_close,
};

int ring_pread_open(struct ring **ret, int fd, void *arena, size_t n_arena, struct queue *q, const struct ring_options *options)
{
        struct ring_pread *p = new0(struct ring_pread, 1);
        sigset_t all, old;
        int r;

        if (!p)
                return -ENOMEM;
        p->ring = (struct ring){.ops = &pread_ops, .queue = q, .fd = fd};
        r = queue_init(&p->todo);
        if (r < 0) {
                free(p);
                return r;
        }
        outlet_init(&p->outlet, q);
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &old);
        unsigned n = options->depth ? MIN(options->depth, (unsigned)MAX_THREADS) : MAX_THREADS;
        while (p->n_threads < n && !(r = pthread_create(&p->threads[p->n_threads], NULL, thread_main, p)))
                pthread_setname_np(p->threads[p->n_threads++], "kvt-io");
        pthread_sigmask(SIG_SETMASK, &old, NULL);
        if (!p->n_threads) {
                pread_close(&p->ring, 0);
                return -r;
        }
        *ret = &p->ring; /* fewer than asked for is slower, not wrong */
        return 0;
}
