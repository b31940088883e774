/* A ring over io_uring (ring.h): one io thread owns everything the kernel sees, from set-up to tear-down, as IORING_SETUP_SINGLE_ISSUER wants it.
 *
 *     loop --mailbox--> waiting --at most depth--> kernel --> finished --outlet--> queue
 *                       redo (parts of failed merged requests; first)
 *
 * Each turn the thread takes what the loop put in, fills the submission queue, and enters the kernel once, which submits and waits. One read of the
 * mailbox's eventfd is always under way while it waits (armed), so that the loop can wake it.
 *
 * Two lanes: the plain one does everything. With IOPOLL a second one does the reads and writes, because such a ring can do nothing else; while it has any
 * the thread spins in the kernel for them and looks at the plain lane in passing. A device that turns out not to poll is served by the plain lane.
 *
 * Invariants: a request is either free or under way in one lane with one submission; under way <= depth < entries of either lane, so there is always
 * room in the submission and completion queues. */
#include <fcntl.h>
#include <liburing.h>
#include <linux/fs.h>
#include <signal.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>

#include "daemon/io/ring_request.h"
#include "daemon/util/log.h"

enum {
        DEFAULT_DEPTH = 128,
        MAX_DEPTH = 4096,
        CHUNK_SHIFT = 30, /* the arena is registered in parts: the kernel takes at most 1 GiB each */
        CALL_BYTES = 1 << 30, /* at most, in one submission */
};

struct lane {
        struct io_uring uring;
        bool is_open;
        bool fixed_file;
        unsigned n_under_way; /* requests, without the read of the eventfd */
};

struct ring_uring {
        struct ring ring; /* immutable but for ops, which set-up sets */
        struct mailbox mailbox;
        struct outlet outlet;
        struct list submitted; /* owned by the loop: not kicked yet */
        uint64_t n_submitted; /* owned by the loop */
        uint8_t *arena; /* immutable */
        size_t n_arena; /* immutable */
        unsigned depth; /* immutable */
        bool want_poll; /* immutable */
        uint64_t spin_usec; /* immutable */
        uint64_t
                poll_bytes; /* at most, in one polled transfer: the kernel does not split those (they are NOWAIT), and would try for ever */
        pthread_t thread;
        int ready_fd; /* during set-up */
        int set_up_result; /* written before ready_fd is */

        /* owned by the io thread */
        struct lane plain, polled;
        struct lane *transfers; /* which one reads and writes */
        struct lane *registered; /* which one knows the arena; NULL: none */
        struct list waiting, redo, unused;
        bool armed;
        uint64_t spin_until_usec;
        uint64_t wake_value;
        struct request requests[];
};

/* set-up, on the io thread */

static int lane_open(struct lane *l, unsigned depth, unsigned flags, int fd)
{
        static const unsigned wanted[] = {
                IORING_SETUP_SUBMIT_ALL | IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN, /* Linux 6.1 */
                IORING_SETUP_SUBMIT_ALL, /* 5.18 */
                0,
        };
        int r = -EINVAL;

        for (unsigned i = 0; i < ELEMENTSOF(wanted) && r == -EINVAL; i++)
                r = io_uring_queue_init(depth + 4, &l->uring, wanted[i] | flags);
        if (r < 0)
                return r;
        l->is_open = true;
        l->fixed_file = io_uring_register_files(&l->uring, &fd, 1) == 0;
        (void)io_uring_register_ring_fd(&l->uring); /* saves a look-up a call, where the kernel knows it */
        return 0;
}

static void lane_close(struct lane *l)
{
        if (l->is_open)
                io_uring_queue_exit(&l->uring);
        l->is_open = false;
}

static struct io_uring_sqe *lane_sqe(struct lane *l)
{
        struct io_uring_sqe *s = io_uring_get_sqe(&l->uring);

        ASSERT(s); /* see the invariants */
        return s;
}

static int sqe_fd(const struct lane *l, int fd)
{
        return l->fixed_file ? 0 : fd;
}

/* One request, and its result: what is allowed is known only after the kernel was entered. */
static int lane_try(struct lane *l)
{
        struct io_uring_cqe *c;
        int r = io_uring_submit(&l->uring);

        if (r >= 0)
                r = io_uring_wait_cqe(&l->uring, &c);
        if (r < 0)
                return r;
        r = c->res;
        io_uring_cqe_seen(&l->uring, c);
        return r;
}

static bool can_poll(struct ring_uring *u)
{
        int r = -ENOMEM;
        void *page = aligned_alloc(RING_PAGE_BYTES, RING_PAGE_BYTES);

        if (page && (r = lane_open(&u->polled, u->depth, IORING_SETUP_IOPOLL, u->ring.fd)) >= 0) {
                struct io_uring_sqe *s = lane_sqe(&u->polled);
                io_uring_prep_read(s, sqe_fd(&u->polled, u->ring.fd), page, RING_PAGE_BYTES, 0);
                s->flags |= u->polled.fixed_file ? IOSQE_FIXED_FILE : 0;
                r = lane_try(&u->polled);
        }
        if (r <= 0) {
                log_debug("No polled I/O: %s", r ? strerror(-r) : "nothing to try it on");
                lane_close(&u->polled);
        }
        free(page);
        return r > 0;
}

static const struct ring_ops uring_ops, uring_polled_ops;

static int set_up(struct ring_uring *u)
{
        int r = lane_open(&u->plain, u->depth, 0, u->ring.fd);

        if (r < 0)
                return r;
        io_uring_prep_nop(lane_sqe(&u->plain));
        r = lane_try(&u->plain);
        if (r < 0) {
                lane_close(&u->plain);
                return r;
        }
        u->ring.ops = &uring_ops;
        u->transfers = &u->plain;
        unsigned short sectors = 0;
        if (u->want_poll && ioctl(u->ring.fd, BLKSECTGET, &sectors) == 0)
                u->poll_bytes = MIN((uint64_t)sectors << 9, 256ull << 10) & ~(uint64_t)(RING_PAGE_BYTES - 1);
        if (u->want_poll && u->poll_bytes && can_poll(u)) {
                u->ring.ops = &uring_polled_ops;
                u->transfers = &u->polled;
        }
        return 0;
}

/* Pins the arena, which touches all of it. Where that is not allowed, each request pins its own pages. */
static void register_arena(struct ring_uring *u)
{
        size_t chunk = (size_t)1 << CHUNK_SHIFT;
        unsigned n = (unsigned)((u->n_arena + chunk - 1) >> CHUNK_SHIFT);
        struct iovec *parts = n ? new0(struct iovec, n) : NULL;

        if (!parts)
                return;
        for (unsigned i = 0; i < n; i++)
                parts[i] = (struct iovec){u->arena + i * chunk, MIN(chunk, u->n_arena - i * chunk)};
        int r = io_uring_register_buffers(&u->transfers->uring, parts, n);
        if (r < 0)
                log_debug("Cannot register %zu bytes of buffers: %s", u->n_arena, strerror(-r));
        else
                u->registered = u->transfers;
        free(parts);
}

/* work, on the io thread */

static void push_transfer(struct ring_uring *u, struct request *q, struct lane *l, struct io_uring_sqe *s)
{
        uint64_t n = MIN(request_left(q), (uint64_t)CALL_BYTES), offset = request_offset(q);
        uint8_t *p = request_at(q);
        uint64_t at = (uint64_t)(p - u->arena);
        if (l == &u->polled)
                n = MIN(n, u->poll_bytes);
        int fd = sqe_fd(l, u->ring.fd), chunk = (int)(at >> CHUNK_SHIFT);

        if (u->registered == l && at < u->n_arena) {
                uint64_t chunk_end = ((at >> CHUNK_SHIFT) + 1) << CHUNK_SHIFT;
                n = MIN(n, MIN(chunk_end, u->n_arena) - at); /* the rest goes as after a short one */
                if (q->opcode == RING_READ)
                        io_uring_prep_read_fixed(s, fd, p, (unsigned)n, offset, chunk);
                else
                        io_uring_prep_write_fixed(s, fd, p, (unsigned)n, offset, chunk);
        } else if (q->opcode == RING_READ) {
                io_uring_prep_read(s, fd, p, (unsigned)n, offset);
        } else {
                io_uring_prep_write(s, fd, p, (unsigned)n, offset);
        }
}

static void push_request(struct ring_uring *u, struct request *q)
{
        struct lane *l = request_is_transfer(q) ? u->transfers : &u->plain;
        struct io_uring_sqe *s = lane_sqe(l);

        if (request_is_transfer(q))
                push_transfer(u, q, l, s);
        else if (q->opcode == RING_FLUSH)
                io_uring_prep_fsync(s, sqe_fd(l, u->ring.fd), IORING_FSYNC_DATASYNC);
        else
                io_uring_prep_fallocate(s, sqe_fd(l, u->ring.fd), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, q->offset, q->bytes);
        s->flags |= l->fixed_file ? IOSQE_FIXED_FILE : 0;
        io_uring_sqe_set_data(s, q);
        l->n_under_way++;
}

static void start_waiting(struct ring_uring *u)
{
        for (;;) {
                struct list *from = list_empty(&u->redo) ? &u->waiting : &u->redo;
                struct request *q = list_first(&u->unused, struct request, link);
                if (!q || list_empty(from))
                        return;
                list_remove(&q->link);
                request_begin(q, from);
                push_request(u, q);
        }
}

/* Returns how many operations became finished. */
static unsigned complete_request(struct ring_uring *u, struct lane *l, struct request *q, int result, struct list *finished)
{
        unsigned n;

        l->n_under_way--;
        if (l == &u->polled && result == -EOPNOTSUPP) {
                u->transfers = &u->plain;
                push_request(u, q);
                return 0;
        }
        if (request_advance(q, result)) {
                push_request(u, q);
                return 0;
        }
        n = request_end(q, finished, &u->redo);
        list_append(&u->unused, &q->link);
        return n;
}

static unsigned reap(struct ring_uring *u, struct lane *l, struct list *finished)
{
        struct io_uring_cqe *c;
        unsigned n = 0;

        while (io_uring_peek_cqe(&l->uring, &c) == 0) {
                struct request *q = io_uring_cqe_get_data(c);
                int result = c->res;
                io_uring_cqe_seen(&l->uring, c);
                if (q)
                        n += complete_request(u, l, q, result, finished);
                else
                        u->armed = false; /* whatever it says: the mailbox is looked into at each turn */
        }
        return n;
}

static void enter_kernel(struct ring_uring *u, bool stopped)
{
        struct io_uring *plain = &u->plain.uring;
        int r;

        if (!u->armed && !stopped) {
                struct io_uring_sqe *s = lane_sqe(&u->plain);
                io_uring_prep_read(s, u->mailbox.event_fd, &u->wake_value, sizeof u->wake_value, 0);
                io_uring_sqe_set_data(s, NULL);
                u->armed = true;
        }
        if (u->polled.n_under_way) {
                r = io_uring_submit_and_get_events(plain);
                if (r >= 0)
                        r = io_uring_submit_and_wait(&u->polled.uring, 1);
        } else if (u->spin_until_usec && !stopped && clock_usec() < u->spin_until_usec) {
                r = io_uring_submit_and_get_events(plain);
        } else if (stopped || mailbox_sleep(&u->mailbox)) {
                r = io_uring_submit_and_wait(plain, 1);
        } else {
                r = io_uring_submit_and_get_events(plain);
        }
        if (r < 0 && r != -EINTR) { /* short of memory: completions free some */
                log_limited(LOG_DEBUG, "Cannot enter io_uring: error %d", -r);
                usleep(100);
        }
}

static void serve(struct ring_uring *u)
{
        struct list finished;

        list_init(&finished);
        for (;;) {
                bool stopped = !mailbox_take(&u->mailbox, &u->waiting);
                if (stopped) { /* all is back, or it was cut: then nothing new begins */
                        list_init(&u->waiting);
                        list_init(&u->redo);
                }
                bool works = !list_empty(&u->waiting);
                start_waiting(u);
                if (stopped && !u->armed && !u->plain.n_under_way && !u->polled.n_under_way)
                        break;
                enter_kernel(u, stopped);
                unsigned n = reap(u, &u->plain, &finished);
                if (u->polled.is_open)
                        n += reap(u, &u->polled, &finished);
                if (u->spin_usec && (works || n))
                        u->spin_until_usec = clock_usec() + u->spin_usec;
                outlet_finish_list(&u->outlet, &finished, n);
        }
}

static void *thread_main(void *arg)
{
        struct ring_uring *u = arg;
        uint64_t one = 1;
        int r = set_up(u);

        u->set_up_result = r;
        ASSERT(write(u->ready_fd, &one, sizeof one) == sizeof one); /* from here on ops and the result belong to the opener */
        if (r < 0)
                return NULL;
        register_arena(u);
        serve(u);
        if (u->registered)
                (void)io_uring_unregister_buffers(&u->registered->uring); /* now: else the kernel does it at leisure */
        lane_close(&u->polled);
        lane_close(&u->plain);
        return NULL;
}

/* on the loop */

static void uring_submit(struct ring *r, struct ring_op *op)
{
        struct ring_uring *u = container_of(r, struct ring_uring, ring);

        op->alone = false;
        list_append(&u->submitted, &op->job.link);
        u->n_submitted++;
}

static void uring_kick(struct ring *r)
{
        struct ring_uring *u = container_of(r, struct ring_uring, ring);

        if (!u->n_submitted)
                return;
        outlet_expect(&u->outlet, u->n_submitted);
        u->n_submitted = 0;
        mailbox_put(&u->mailbox, &u->submitted);
}

static void uring_free(struct ring_uring *u)
{
        mailbox_deinit(&u->mailbox);
        outlet_deinit(&u->outlet);
        free(u);
}

static int uring_close(struct ring *r, uint64_t wait_usec)
{
        if (!r)
                return 0;
        struct ring_uring *u = container_of(r, struct ring_uring, ring);
        uring_kick(r);
        bool all = outlet_wait_or_cut(&u->outlet, wait_usec);
        mailbox_stop(&u->mailbox);
        if (!all) {
                pthread_detach(u->thread);
                return -EBUSY;
        }
        pthread_join(u->thread, NULL);
        uring_free(u);
        return 0;
}

static const struct ring_ops uring_ops = {
        .name = "io_uring",
        .submit = uring_submit,
        .kick = uring_kick,
        .close = uring_close,
};
static const struct ring_ops uring_polled_ops = {
        .name = "io_uring iopoll",
        .submit = uring_submit,
        .kick = uring_kick,
        .close = uring_close,
};

/* Starts the thread and waits until it knows whether there is an io_uring. */
static int start_thread(struct ring_uring *u)
{
        sigset_t all, old;
        uint64_t n;
        int r;

        u->ready_fd = eventfd(0, EFD_CLOEXEC);
        if (u->ready_fd < 0)
                return -errno;
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &old);
        r = -pthread_create(&u->thread, NULL, thread_main, u);
        pthread_sigmask(SIG_SETMASK, &old, NULL);
        if (r == 0) {
                pthread_setname_np(u->thread, "kvt-io");
                while (read(u->ready_fd, &n, sizeof n) < 0)
                        ASSERT(errno == EINTR);
                r = u->set_up_result;
                if (r < 0)
                        pthread_join(u->thread, NULL);
        }
        close(u->ready_fd);
        return r;
}

int ring_uring_open(struct ring **ret, int fd, void *arena, size_t n_arena, struct queue *q, const struct ring_options *options)
{
        unsigned depth = options->depth ? MIN(options->depth, (unsigned)MAX_DEPTH) : DEFAULT_DEPTH;
        struct ring_uring *u = calloc(1, sizeof *u + depth * sizeof *u->requests);
        int r;

        if (!u)
                return -ENOMEM;
        u->ring = (struct ring){.queue = q, .fd = fd};
        u->arena = arena;
        u->n_arena = arena ? n_arena : 0;
        u->depth = depth;
        u->want_poll = options->poll;
        u->spin_usec = options->spin_usec;
        list_init(&u->submitted);
        list_init(&u->waiting);
        list_init(&u->redo);
        list_init(&u->unused);
        for (unsigned i = 0; i < depth; i++)
                list_append(&u->unused, &u->requests[i].link);
        r = mailbox_init(&u->mailbox);
        if (r < 0) {
                free(u);
                return r;
        }
        outlet_init(&u->outlet, q);
        r = start_thread(u);
        if (r < 0) {
                uring_free(u);
                return r;
        }
        *ret = &u->ring;
        return 0;
}
