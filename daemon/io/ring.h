/* A ring: the reads and writes of one device. They are handed over by the loop, carried out elsewhere, and come back to the loop.
 *
 *     loop: ring_submit() any number of operations, then ring_kick() once a pass.
 *     io thread: hands them to the kernel, neighbours merged; finished ones go to the queue (queue_finish).
 *     loop: queue_collect() brings them back; job.done is called.
 *
 * There is no order among operations under way; a flush covers what came back before it was submitted. A short read or write is carried on with;
 * where the file or device ends, a read is -ENODATA and a write is what the kernel says. A discard that
 * the device or file system cannot do is -EOPNOTSUPP. An operation that hangs never comes back: whoever waits
 * looks at the clock (store/nvme). Implementations: io_uring (ring_uring.c), threads with pread and pwrite where io_uring is forbidden or absent
 * (ring_pread.c), and a simulated disk in the tests. */
#pragma once

#include "daemon/util/assert.h"
#include "daemon/util/clock.h"
#include "daemon/util/queue.h"

enum { RING_PAGE_BYTES = 4096 };

enum ring_opcode { RING_READ, RING_WRITE, RING_FLUSH, RING_DISCARD };

struct ring_op { /* owned by the loop, between submit and done by the ring */
        struct job job; /* job.done: set by the submitter, called on the loop */
        uint8_t opcode;
        void *buf; /* whole pages, inside the arena */
        uint64_t offset, bytes; /* whole pages */
        int result; /* 0 or -errno */
        uint64_t submitted_usec; /* by ring_submit */
        uint64_t finished_usec; /* by the io thread */
        bool alone; /* the ring's own: part of a merged request that failed, done again by itself */
};

struct ring;
struct ring_ops {
        const char *name; /* "io_uring", "io_uring iopoll", "pread" */
        /* Any number of times, then kick. Loop only. */
        void (*submit)(struct ring *r, struct ring_op *op);
        void (*kick)(struct ring *r);
        /* Waits at most wait_usec for what is under way, then ends the threads; operations that did not come back by then are not touched any more only
         * if this returns 0. -EBUSY: some hang; the ring and its fd are left alone for ever, and so must be the arena and the operations that did not come
         * back. Those never will: the queue is not touched after this, and what had not begun does not begin. */
        int (*close)(struct ring *r, uint64_t wait_usec);
};
struct ring { /* embedded as the first member by each implementation */
        const struct ring_ops *ops;
        struct queue *queue; /* borrowed: where finished operations go */
        int fd; /* NOT consumed */
};

struct ring_options {
        unsigned depth; /* operations in the kernel at once */
        bool poll; /* IOPOLL where the device can */
        bool no_uring; /* use pread and pwrite */
        uint64_t spin_usec; /* after work, the io thread looks for more for this long before it sleeps (io_uring only) */
};

/* arena: memory that all buffers lie in, to be registered with the kernel where it lets us. Returns 0 or -errno. */
int ring_open(struct ring **ret, int fd, void *arena, size_t n_arena, struct queue *q, const struct ring_options *options);
/* For tests: all rings are opened by this instead; NULL: as usual. */
void ring_set_open(int (*open)(struct ring **ret, int fd, void *arena, size_t n_arena, struct queue *q,
                               const struct ring_options *options));
int ring_uring_open(struct ring **ret, int fd, void *arena, size_t n_arena, struct queue *q, const struct ring_options *options);
int ring_pread_open(struct ring **ret, int fd, void *arena, size_t n_arena, struct queue *q, const struct ring_options *options);

static inline void ring_submit(struct ring *r, struct ring_op *op)
{
        ASSERT(op->offset % RING_PAGE_BYTES == 0 && op->bytes % RING_PAGE_BYTES == 0 && (uintptr_t)op->buf % RING_PAGE_BYTES == 0);
        op->submitted_usec = clock_usec();
        r->ops->submit(r, op);
}
static inline void ring_kick(struct ring *r)
{
        r->ops->kick(r);
}
/* NULL is fine. */
static inline int ring_close(struct ring *r, uint64_t wait_usec)
{
        return r ? r->ops->close(r, wait_usec) : 0;
}
