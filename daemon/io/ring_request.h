/* What rings share: one request to the kernel stands for one operation, or for several that are neighbours in the file and in memory. Owned by
 * an io thread.
 *
 *     request_begin(): takes the first waiting operation, and reads or writes that continue it.
 *     then again and again: hand request_at(), request_offset() and request_left() to the kernel, request_advance() by what it answered,
 *     until that says that the request is over; request_end() then moves each operation to the finished ones with a result of its own, or, if a merged
 *     request failed, to those that are to be done again by themselves: only the bad one fails. */
#pragma once

#include "daemon/io/ring.h"

enum { REQUEST_MAX_MERGED_BYTES = 1 << 20 };

struct request {
        struct list link; /* of the ring */
        struct list ops; /* in the order of the file; empty: not in use */
        unsigned n_ops;
        uint8_t opcode;
        uint8_t n_retries; /* since it last got on by a page */
        uint8_t *buf;
        uint64_t offset, bytes; /* of all operations together */
        uint64_t done; /* whole pages */
        int result;
};

/* waiting must not be empty */
void request_begin(struct request *q, struct list *waiting);
/* result: bytes read or written, or a negative errno. False: over. */
bool request_advance(struct request *q, int64_t result);
/* Returns how many became finished. */
unsigned request_end(struct request *q, struct list *finished, struct list *redo);

static inline bool request_is_transfer(const struct request *q)
{
        return q->opcode == RING_READ || q->opcode == RING_WRITE;
}
static inline void *request_at(const struct request *q)
{
        return q->buf + q->done;
}
static inline uint64_t request_offset(const struct request *q)
{
        return q->offset + q->done;
}
static inline uint64_t request_left(const struct request *q)
{
        return q->bytes - q->done;
}
