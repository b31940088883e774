/* ring_request.h */
#include "daemon/io/ring_request.h"

enum {
        MAX_LOOK_AHEAD = 32, /* waiting operations that are looked at for neighbours */
        MAX_RETRIES = 8, /* without getting on by a page */
};

static bool can_merge(const struct request *q, const struct ring_op *op)
{
        return op->opcode == q->opcode && !op->alone && q->bytes + op->bytes <= REQUEST_MAX_MERGED_BYTES;
}

void request_begin(struct request *q, struct list *waiting)
{
        struct ring_op *first = list_first(waiting, struct ring_op, job.link);
        unsigned n_looked = 0;

        ASSERT(first);
        list_remove(&first->job.link);
        *q = (struct request){.n_ops = 1, .opcode = first->opcode, .buf = first->buf, .offset = first->offset, .bytes = first->bytes};
        list_init(&q->link);
        list_init(&q->ops);
        list_append(&q->ops, &first->job.link);
        if (!request_is_transfer(q) || first->alone)
                return;
        list_for_each_safe (op, waiting, struct ring_op, job.link) {
                if (n_looked++ == MAX_LOOK_AHEAD)
                        break;
                if (!can_merge(q, op))
                        continue;
                if (op->offset == q->offset + q->bytes && (uint8_t *)op->buf == q->buf + q->bytes) {
                        list_remove(&op->job.link);
                        list_append(&q->ops, &op->job.link);
                } else if (op->offset + op->bytes == q->offset && (uint8_t *)op->buf + op->bytes == q->buf) {
                        list_remove(&op->job.link);
                        list_append(q->ops.next, &op->job.link); /* in front of the first */
                        q->offset = op->offset;
                        q->buf = op->buf;
                } else {
                        continue;
                }
                q->bytes += op->bytes;
                q->n_ops++;
        }
}

bool request_advance(struct request *q, int64_t result)
{
        if (result == -EAGAIN || result == -EINTR) {
                q->result = (int)result;
                return q->n_retries++ < MAX_RETRIES;
        }
        if (result < 0 || !request_is_transfer(q)) {
                q->result = (int)MIN(result, 0);
                return false;
        }
        /* O_DIRECT goes on at whole pages only, so part of a page is done again; at the end of a file it comes back as short as before */
        uint64_t whole = MIN((uint64_t)result, request_left(q)) / RING_PAGE_BYTES * RING_PAGE_BYTES;
        q->done += whole;
        q->result = 0;
        if (!request_left(q))
                return false;
        q->n_retries = whole ? 0 : q->n_retries + 1;
        if (result && q->n_retries < MAX_RETRIES)
                return true;
        q->result = q->opcode == RING_READ ? -ENODATA : -EIO;
        return false;
}

unsigned request_end(struct request *q, struct list *finished, struct list *redo)
{
        uint64_t now = clock_usec(), end = 0;
        unsigned n = 0;

        list_for_each_safe (op, &q->ops, struct ring_op, job.link) {
                end += op->bytes;
                list_remove(&op->job.link);
                if (q->n_ops > 1 && q->result < 0 && end > q->done) {
                        op->alone = true;
                        list_append(redo, &op->job.link);
                        continue;
                }
                op->result = q->result;
                if (q->n_ops > 1 && end <= q->done)
                        op->result = 0;
                op->alone = false;
                op->finished_usec = now;
                list_append(finished, &op->job.link);
                n++;
        }
        q->n_ops = 0;
        return n;
}
