/* Devices of the NVMe tier: their operations with time-outs, failing, and what is done once a pass. */
#include <stdio.h>
#include <string.h>

#include "daemon/store/tier_nvme.h"
#include "daemon/util/clock.h"
#include "daemon/util/log.h"
#include "daemon/util/metrics.h"

/* An operation that is overdue by so much was not looked at in time: the loop stood still, or the machine. What came back meanwhile is waited for. */
#define STALL_USEC (2 * USEC_PER_SEC)

enum {
        ERRORS_MAX = 64, /* I/O errors of a device within ERRORS_USEC: then it is not read any more */
        WRITE_ERRORS_MAX = 3, /* in a row: then it is not written any more */
};
#define ERRORS_USEC (60 * USEC_PER_SEC)

const char *device_state_name(const struct nvme_device *d)
{
        static const char *const names[] = {"detached", "opening", "recovering", "serving", "draining", "failed"};

        return names[d->state];
}

struct nvme_device *nvme_find_device(struct nvme *n, const char *path)
{
        for (uint32_t i = 0; i < n->n_devices; i++)
                if (n->devices[i] && !strcmp(n->devices[i]->path, path))
                        return n->devices[i];
        return NULL;
}

/* operations */

static void io_finished(struct job *j)
{
        struct nvme_io *io = container_of(container_of(j, struct ring_op, job), struct nvme_io, op);
        struct nvme_device *d = io->device;
        uint64_t usec = io->op.finished_usec > io->op.submitted_usec ? io->op.finished_usec - io->op.submitted_usec : 0;
        uint64_t *h = io->op.opcode == RING_READ ? d->counters.read_usec : d->counters.write_usec;
        int r = io->op.result;

        if (!io->done) { /* given up long ago: the memory was kept for the kernel until now */
                d->n_stuck--;
                free(io);
                return;
        }
        list_remove(&io->link);
        d->n_ios--;
        if (io->op.opcode == RING_READ || io->op.opcode == RING_WRITE) {
                unsigned b = usec >> 3 ? (unsigned)(64 - __builtin_clzll(usec >> 3)) : 0;
                h[MIN(b, (unsigned)NVME_HISTOGRAM - 1)]++;
                if (io->op.opcode == RING_READ)
                        metrics.c_nvme_read_bytes += io->op.bytes;
                else
                        metrics.c_nvme_written_bytes += io->op.bytes;
        }
        if (r < 0 && !(io->op.opcode == RING_DISCARD)) {
                errno = -r;
                log_limited(LOG_WARNING, "%s: %s of %llu bytes at %llu failed: %s", d->path,
                            io->op.opcode == RING_READ    ? "read"
                            : io->op.opcode == RING_WRITE ? "write"
                                                          : "flush",
                            (unsigned long long)io->op.bytes, (unsigned long long)io->op.offset, strerror(-r));
        }
        io->done(io, r, io->arg);
        free(io);
}

struct nvme_io *device_io(struct nvme_device *d, enum ring_opcode opcode, void *buf, uint64_t offset, uint64_t bytes,
                          void (*done)(struct nvme_io *io, int r, void *arg), void *arg)
{
        /* what is handed to a device that failed would come back to nobody, and never be timed out */
        bool over = d->state == DEVICE_FAILED || d->state == DEVICE_DETACHED;
        struct nvme_io *io = d->ring && !over ? new0(struct nvme_io, 1) : NULL;

        if (!io)
                return NULL;
        io->device = d;
        io->done = done;
        io->arg = arg;
        io->op.job.done = io_finished;
        io->op.opcode = (uint8_t)opcode;
        io->op.buf = buf;
        io->op.offset = offset;
        io->op.bytes = bytes;
        list_init(&io->op.job.link);
        list_append(&d->ios, &io->link);
        d->n_ios++;
        ring_submit(d->ring, &io->op);
        return io;
}

/* Those who wait are told; what the kernel still has stays where it is. */
static void give_up_ios(struct nvme_device *d, int r)
{
        while (!list_empty(&d->ios)) {
                struct nvme_io *io = list_first(&d->ios, struct nvme_io, link);
                void (*done)(struct nvme_io *, int, void *) = io->done;
                list_remove(&io->link);
                d->n_ios--;
                d->n_stuck++;
                io->done = NULL;
                done(io, r, io->arg);
        }
}

/* failing */

void device_fail(struct nvme_device *d, bool readable, const char *format, ...)
{
        va_list ap;

        if (d->state == DEVICE_FAILED || d->state == DEVICE_DETACHED || (readable && d->state == DEVICE_DRAINING))
                return;
        va_start(ap, format);
        vsnprintf(d->detail, sizeof d->detail, format, ap);
        va_end(ap);
        log_error("%s: %s; %s", d->path, d->detail, readable ? "it is read, but not written any more" : "taken out of service");
        metrics.c_nvme_device_failures++;
        if (readable && d->state == DEVICE_SERVING) {
                d->state = DEVICE_DRAINING;
                nvme_drops_leave(d->nvme, d);
                log_settle(d);
                return;
        }
        d->state = DEVICE_FAILED;
        nvme_drops_leave(d->nvme, d);
        d->sweep_cursor = 0;
        /* first, or they take what is given up for an answer: recovery would find all segments empty, and serve */
        recovery_free(d);
        recycle_free(d);
        scrub_free(d);
        give_up_ios(d, -ETIMEDOUT);
        log_settle(d);
        if (d->nvme->on_room)
                d->nvme->on_room(d->nvme, d->nvme->arg);
}

void device_count_error(struct nvme_device *d, bool write)
{
        uint64_t now = d->nvme->now_usec;

        d->counters.n_errors++;
        metrics.c_nvme_errors++;
        if (now - d->errors_since_usec > ERRORS_USEC) {
                d->errors_since_usec = now;
                d->n_errors_window = 0;
        }
        if (++d->n_errors_window > ERRORS_MAX)
                device_fail(d, false, "%d errors within a minute", ERRORS_MAX);
        else if (write && ++d->n_write_errors >= WRITE_ERRORS_MAX)
                device_fail(d, true, "%d writes in a row failed", WRITE_ERRORS_MAX);
}

void device_write_failed(struct nvme_device *d, int r)
{
        if (r == -ENOSPC && !d->block_device) /* what is there can be read, and written over */
                d->full_until_usec = d->nvme->now_usec + 60 * USEC_PER_SEC;
        else
                device_count_error(d, true);
}

void device_unflushable(struct nvme_device *d)
{
        d->unflushable = true;
        d->counters.n_errors++;
        metrics.c_nvme_errors++;
        device_fail(d, true, "it cannot be flushed");
}

/* passes */

/* Once a pass: a device that goes away is taken out of the catalog bit by bit, then closed. */
static bool sweep(struct nvme_device *d)
{
        struct nvme *n = d->nvme;
        uint32_t steps = 8192;

        for (; steps && d->sweep_cursor < n->catalog.pool.n_touched; steps--) {
                struct entry *e = catalog_at(&n->catalog, ++d->sweep_cursor);
                if (entry_live(e) && entry_place(e).device == d->i)
                        nvme_forget(n, d->sweep_cursor, KVT_WHY_EVICTED);
        }
        if (d->sweep_cursor < n->catalog.pool.n_touched)
                return true;
        d->sweep_cursor = UINT32_MAX;
        return false;
}

bool device_is_read(const struct nvme_device *d)
{
        for (uint64_t s = 0; d->segments && s < d->sb.n_segments; s++)
                if (d->segments[s].n_reads)
                        return true;
        return false;
}

static bool device_pass(struct nvme_device *d)
{
        bool more = false;

        bool over = d->state == DEVICE_DRAINING || (d->state == DEVICE_FAILED && d->sweep_cursor == UINT32_MAX && !d->n_stuck);
        if (d->detach && over && !d->open_busy && !d->n_ios && list_empty(&d->logs) && list_empty(&d->syncs) && !device_is_read(d)) {
                d->state = DEVICE_DETACHED;
                d->sweep_cursor = 0;
                *d->detail = 0;
        }
        log_retry(d);
        if (d->sweep_cursor != UINT32_MAX)
                more = sweep(d);
        if (d->state == DEVICE_DETACHED && d->sweep_cursor == UINT32_MAX && d->segments) {
                device_close(d);
                log_info("%s is detached", d->path);
        }
        if (d->state == DEVICE_SERVING) {
                log_open_ahead(d, false);
                recycle_some(d);
                more |= recycle_sweeps(d);
        }
        if (d->ring)
                ring_kick(d->ring);
        return more;
}

/* What recovery had to remember; nothing is recycled before that is done, since it names places. */
static bool forget_drops(struct nvme *n)
{
        if (n->forget_cursor == UINT32_MAX || nvme_recovering(n))
                return false;
        bool keep = nvme_away(n);
        if (!catalog_forget_drops(&n->catalog, &n->forget_cursor, 8192, keep))
                return true;
        n->forget_cursor = UINT32_MAX;
        if (keep)
                return false;
        n->n_remembered = 0;
        list_for_each_safe (s, &n->tenants->spaces, struct space, link) {
                s->not_recovered = false;
                if (!s->is_kept)
                        continue;
                s->is_kept = false;
                s->n_open--;
                if (n->on_settle)
                        n->on_settle(n, s, n->arg);
        }
        return false;
}

bool nvme_pass(struct nvme *n, uint64_t now_usec)
{
        bool more = false;

        n->now_usec = now_usec;
        nvme_write_drops(n);
        nvme_flushes_settle(n);
        more |= forget_drops(n);
        for (uint32_t i = 0; i < n->n_devices; i++) {
                struct nvme_device *d = n->devices[i];
                if (d->state == DEVICE_SERVING)
                        scrub_some(d);
                if (d->state == DEVICE_RECOVERING)
                        more |= recovery_kick(d);
                more |= device_pass(d);
        }
        return more;
}

/* When what is under way longest has taken too long. */
static uint64_t overdue_usec(const struct nvme_device *d)
{
        const struct nvme_io *io = list_first(&d->ios, struct nvme_io, link);

        return io ? MAX(io->op.submitted_usec + d->nvme->options.timeout_usec, d->excused_usec) : UINT64_MAX;
}

uint64_t nvme_deadline(const struct nvme *n)
{
        uint64_t until = UINT64_MAX;

        for (uint32_t i = 0; i < n->n_devices; i++) {
                struct nvme_device *d = n->devices[i];
                until = MIN(until, MIN(overdue_usec(d), scrub_deadline(d)));
                if (d->retry_usec)
                        until = MIN(until, d->retry_usec);
        }
        return until;
}

void nvme_expire(struct nvme *n, uint64_t now_usec)
{
        n->now_usec = now_usec;
        for (uint32_t i = 0; i < n->n_devices; i++) {
                struct nvme_device *d = n->devices[i];
                uint64_t due_usec = overdue_usec(d);
                if (d->retry_usec && d->retry_usec <= now_usec)
                        device_submit_open(d);
                if (due_usec <= now_usec && now_usec - due_usec > STALL_USEC) {
                        d->excused_usec = now_usec + STALL_USEC;
                } else if (due_usec <= now_usec) {
                        d->counters.n_errors++;
                        metrics.c_nvme_errors++;
                        device_fail(d, false, "an operation did not come back within %llu ms",
                                    (unsigned long long)n->options.timeout_usec / 1000);
                }
        }
}

int nvme_init(struct nvme *n, const struct nvme_options *o, const struct conf *conf, struct tenants *t, struct queue *q,
              uint64_t max_records)
{
        *n = (struct nvme){.options = *o, .conf = conf, .tenants = t, .queue = q, .forget_cursor = UINT32_MAX};
        n->now_usec = clock_usec();
        list_init(&n->drops);
        return catalog_init(&n->catalog, (uint32_t)MIN(max_records, 1ull << 30));
}

void nvme_close_rings(struct nvme *n)
{
        n->closed = true;
        for (uint32_t i = 0; i < n->n_devices; i++) {
                struct nvme_device *d = n->devices[i];
                d->state = DEVICE_FAILED; /* whoever is told now starts nothing new */
                if (d->ring && d->ring->ops->close(d->ring, DEVICE_CLOSE_WAIT_USEC) < 0)
                        d->hangs = true;
                d->ring = NULL;
        }
}

void nvme_deinit(struct nvme *n)
{
        for (uint32_t i = 0; i < n->n_devices; i++) {
                struct nvme_device *d = n->devices[i];
                give_up_ios(d, -ECANCELED);
                log_settle(d);
                if (d->segments)
                        device_close(d);
                else if (d->fd >= 0)
                        close(d->fd);
                free(d->path);
                free(d);
        }
        n->n_devices = 0;
        if (n->drops.next)
                nvme_drops_free(n);
        headers_deinit(&n->headers);
        catalog_deinit(&n->catalog);
}

void nvme_stop(struct nvme *n)
{
        n->stopping = true;
        for (uint32_t i = 0; i < n->n_devices; i++) {
                struct nvme_device *d = n->devices[i];
                if (d->log)
                        d->log->full = true;
                if (d->next)
                        d->next->full = true;
                recycle_free(d);
                log_settle(d);
                if (d->ring) /* there may be no other pass before this comes back */
                        ring_kick(d->ring);
        }
}

bool nvme_idle(const struct nvme *n)
{
        for (uint32_t i = 0; i < n->n_devices; i++) {
                const struct nvme_device *d = n->devices[i];
                if ((d->state == DEVICE_SERVING || d->state == DEVICE_DRAINING) && !list_empty(&d->logs))
                        return false;
        }
        return true;
}
