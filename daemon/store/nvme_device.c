/* Devices of the NVMe tier: attaching, operations with their time-outs, failing, detaching. */
#include <fcntl.h>
#include <linux/fs.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <time.h>

#include "daemon/store/tier_nvme.h"
#include "daemon/util/clock.h"
#include "daemon/util/log.h"
#include "daemon/util/metrics.h"

enum {
        ERRORS_MAX = 64, /* I/O errors of a device within ERRORS_USEC: then it is not read any more */
        WRITE_ERRORS_MAX = 3, /* in a row: then it is not written any more */
        CLOSE_WAIT_USEC = 2000000,
        SEGMENTS_MIN = 3, /* one that is written, one for what is moved, one that is moved */
        LOCK_RETRIES = 40, /* a daemon that was killed may hold its lock for a moment: the kernel takes rings apart in the background */
        LOCK_RETRY_USEC = 50000,
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
        struct nvme_io *io = d->ring ? new0(struct nvme_io, 1) : NULL;

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
                log_settle(d);
                return;
        }
        d->state = DEVICE_FAILED;
        d->sweep_cursor = 0;
        give_up_ios(d, -ETIMEDOUT);
        recovery_free(d);
        recycle_free(d);
        scrub_free(d);
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

void device_unflushable(struct nvme_device *d)
{
        d->unflushable = true;
        d->counters.n_errors++;
        metrics.c_nvme_errors++;
        device_fail(d, true, "it cannot be flushed");
}

/* opening: on a worker, because a device may take its time */

static int format_new(int fd, const struct nvme_options *o, uint64_t bytes, struct superblock *sb, void *page)
{
        struct timespec now;

        *sb = (struct superblock){.segment_bytes = o->segment_bytes, .device_bytes = bytes};
        sb->n_segments = format_n_segments(bytes, sb->segment_bytes);
        if (sb->n_segments < SEGMENTS_MIN)
                return -EFBIG;
        clock_gettime(CLOCK_REALTIME, &now);
        sb->created_sec = (uint64_t)now.tv_sec;
        if (getrandom(sb->uuid, sizeof sb->uuid, 0) != sizeof sb->uuid)
                return -EIO;
        superblock_encode(page, sb);
        if (pwrite(fd, page, FORMAT_PAGE_BYTES, 0) != FORMAT_PAGE_BYTES ||
            pwrite(fd, page, FORMAT_PAGE_BYTES, FORMAT_SUPERBLOCK_COPY) != FORMAT_PAGE_BYTES || fsync(fd) < 0)
                return errno ? -errno : -EIO;
        return superblock_decode(page, sb);
}

/* Both superblocks are looked at; one that is bad is made good from the other. */
static int read_superblock(struct nvme_device *d, int fd, bool blank, uint64_t bytes, void *page)
{
        struct superblock copy;
        int r, r2;

        if (bytes < FORMAT_SEGMENTS_START + (uint64_t)FORMAT_SEGMENT_MIN)
                return -EFBIG;
        if (pread(fd, page, FORMAT_PAGE_BYTES, 0) != FORMAT_PAGE_BYTES)
                return errno ? -errno : -EIO;
        r = superblock_decode(page, &d->sb);
        if (pread(fd, page, FORMAT_PAGE_BYTES, FORMAT_SUPERBLOCK_COPY) != FORMAT_PAGE_BYTES)
                return errno ? -errno : -EIO;
        r2 = superblock_decode(page, &copy);
        if (r == -ENODATA && r2 == -ENODATA && blank)
                return format_new(fd, &d->nvme->options, bytes, &d->sb, page);
        if (r != 0 && r2 == 0) {
                d->sb = copy;
                superblock_encode(page, &copy);
                if (pwrite(fd, page, FORMAT_PAGE_BYTES, 0) == FORMAT_PAGE_BYTES && fdatasync(fd) == 0)
                        log_warning("%s: the superblock was damaged and is restored from its copy", d->path);
                return 0;
        }
        if (r == 0 && (r2 != 0 || memcmp(&copy, &d->sb, sizeof copy))) {
                superblock_encode(page, &d->sb);
                if (pwrite(fd, page, FORMAT_PAGE_BYTES, FORMAT_SUPERBLOCK_COPY) == FORMAT_PAGE_BYTES && fdatasync(fd) == 0)
                        log_warning("%s: the copy of the superblock was damaged and is restored", d->path);
        }
        return r;
}

static void open_work(struct job *j)
{
        struct nvme_device *d = container_of(j, struct nvme_device, open_job);
        _cleanup_(closep) int fd = open(d->path, O_RDWR | O_CLOEXEC | O_DIRECT | O_CREAT | O_NOFOLLOW, 0600);
        void *page = NULL;
        struct stat st;
        bool blank;
        int r;

        d->open_result = 0;
        if (fd < 0 && errno == EINVAL) /* a file system without direct I/O, such as an old tmpfs */
                fd = open(d->path, O_RDWR | O_CLOEXEC | O_CREAT | O_NOFOLLOW, 0600);
        if (fd < 0 || fstat(fd, &st) < 0) {
                d->open_result = -errno;
                return;
        }
        if (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode)) {
                d->open_result = -ENOTBLK;
                return;
        }
        if (flock(fd, LOCK_EX | LOCK_NB) < 0) {
                d->open_result = errno == EWOULDBLOCK ? KVT_E_LOCKED : -errno;
                return;
        }
        uint64_t bytes = (uint64_t)st.st_size;
        d->block_device = S_ISBLK(st.st_mode);
        blank = S_ISREG(st.st_mode); /* a block device has to be formatted by somebody who means it */
        if (d->block_device && ioctl(fd, BLKGETSIZE64, &bytes) < 0) {
                d->open_result = -errno;
                return;
        }
        if (!d->block_device && !bytes) {
                bytes = d->nvme->options.file_bytes;
                if (ftruncate(fd, (off_t)bytes) < 0) {
                        d->open_result = -errno;
                        return;
                }
        }
        if (posix_memalign(&page, FORMAT_PAGE_BYTES, FORMAT_PAGE_BYTES) != 0) {
                d->open_result = -ENOMEM;
                return;
        }
        r = read_superblock(d, fd, blank, bytes, page);
        free(page);
        if (r == 0 && format_n_segments(bytes, d->sb.segment_bytes) < d->sb.n_segments) {
                log_warning("%s is shorter than it was: %llu of its %llu segments are gone", d->path,
                            (unsigned long long)(d->sb.n_segments - format_n_segments(bytes, d->sb.segment_bytes)),
                            (unsigned long long)d->sb.n_segments);
                d->sb.n_segments = format_n_segments(bytes, d->sb.segment_bytes);
        }
        if (r == 0 && d->sb.n_segments < SEGMENTS_MIN)
                r = -EFBIG;
        d->open_result = r;
        if (r == 0)
                d->fd = TAKE_FD(fd);
}

static const char *open_error(int r)
{
        return r == KVT_E_LOCKED       ? "it is in use by another daemon (locked)"
               : r == -ENODATA         ? "it is blank: kvtierctl format"
               : r == -ENOMSG          ? "it holds something else: kvtierctl format --force"
               : r == -EBADMSG         ? "both superblocks are damaged"
               : r == -EPROTONOSUPPORT ? "its version is unknown to this release"
               : r == -EPROTO          ? "its superblock makes no sense"
               : r == -EFBIG           ? "it is too small"
               : r == -EEXIST          ? "it is attached under another path already"
               : r == -ENOTBLK         ? "it is neither a file nor a block device"
                                       : strerror(-r);
}

static void close_device(struct nvme_device *d)
{
        int r = d->hangs ? -EBUSY : 0;

        recovery_free(d);
        recycle_free(d);
        scrub_free(d);
        log_free_all(d);
        if (d->ring)
                r = d->ring->ops->close(d->ring, CLOSE_WAIT_USEC);
        d->ring = NULL;
        if (r == 0) {
                buffers_deinit(&d->buffers);
                if (d->fd >= 0)
                        close(d->fd);
        } else {
                log_warning("%s hangs: its memory and descriptor are left alone", d->path);
        }
        d->buffers = (struct buffers){};
        d->fd = -1;
        free(d->segments);
        d->segments = NULL;
        d->nvme->tier.capacity_bytes -= d->sb.n_segments * d->sb.segment_bytes;
        d->sb = (struct superblock){};
        d->n_free = d->n_virgin = 0;
}

static void opened(struct job *j)
{
        struct nvme_device *d = container_of(j, struct nvme_device, open_job);
        struct nvme *n = d->nvme;
        struct ring_options o = {.depth = n->options.depth, .poll = n->options.poll, .no_uring = n->options.no_uring};
        int r = d->open_result;

        d->open_busy = false;
        if (r == KVT_E_LOCKED && !d->detach && d->state == DEVICE_OPENING && d->n_retries++ < LOCK_RETRIES) {
                d->retry_usec = n->now_usec + LOCK_RETRY_USEC;
                return;
        }
        if (r == 0) {
                n->tier.capacity_bytes += d->sb.n_segments * d->sb.segment_bytes;
                if (!(d->segments = new0(struct segment, d->sb.n_segments)))
                        r = -ENOMEM;
        }
        if (r == 0 && (r = buffers_init(&d->buffers, MAX(n->options.buffer_bytes, 2 * MIN(d->sb.segment_bytes, 64ull << 20)))) == 0)
                r = ring_open(&d->ring, d->fd, d->buffers.arena, (size_t)d->buffers.n_pages * FORMAT_PAGE_BYTES, n->queue, &o);
        for (uint32_t i = 0; r == 0 && i < n->n_devices; i++) { /* one that was pulled out may come back under another name */
                struct nvme_device *other = n->devices[i];
                if (other == d || !other->segments || memcmp(other->sb.uuid, d->sb.uuid, 16))
                        continue;
                if (other->state == DEVICE_SERVING || other->state == DEVICE_RECOVERING)
                        r = -EEXIST;
                else
                        device_fail(other, false, "it came back as %s", d->path);
        }
        if (r == 0 && !d->detach) {
                d->state = DEVICE_RECOVERING;
                recovery_start(d);
                return;
        }
        if (r != 0) {
                errno = r < 0 ? -r : 0;
                device_fail(d, false, "%s", open_error(r));
        }
        if (d->fd >= 0)
                close_device(d);
        if (d->detach)
                d->state = DEVICE_DETACHED;
}

static void submit_open(struct nvme_device *d)
{
        d->open_busy = true;
        d->open_result = -ECANCELED;
        d->retry_usec = 0;
        d->open_job = (struct job){.work = open_work, .done = opened};
        list_init(&d->open_job.link);
        queue_submit(d->nvme->queue, &d->open_job);
}

static int open_device(struct nvme_device *d)
{
        d->state = DEVICE_OPENING;
        *d->detail = 0;
        d->detach = false;
        d->counters = (struct device_counters){};
        d->n_write_errors = 0;
        d->unflushable = false;
        d->n_errors_window = 0;
        d->full_until_usec = 0;
        d->serial = d->flushed = d->flushing = 0;
        d->n_retries = 0;
        d->sweep_cursor = UINT32_MAX;
        submit_open(d);
        return 0;
}

int nvme_attach(struct nvme *n, const char *path)
{
        struct nvme_device *d = nvme_find_device(n, path);

        if (d) {
                if ((d->state != DEVICE_FAILED && d->state != DEVICE_DETACHED) || d->open_busy)
                        return KVT_E_EXISTS;
                if (d->sweep_cursor != UINT32_MAX || !list_empty(&d->logs) || d->n_stuck)
                        return KVT_E_AGAIN; /* what it held before is still being cleared away, or hangs in the kernel */
                if (d->segments)
                        close_device(d);
                return open_device(d);
        }
        if (n->n_devices == NVME_DEVICES_MAX)
                return KVT_E_LIMIT;
        d = new0(struct nvme_device, 1);
        if (!d || !(d->path = strdup(path))) {
                free(d);
                return KVT_E_NO_MEMORY;
        }
        d->nvme = n;
        d->i = n->n_devices;
        d->fd = -1;
        list_init(&d->ios);
        list_init(&d->order);
        list_init(&d->syncs);
        list_init(&d->logs);
        n->devices[n->n_devices++] = d;
        return open_device(d);
}

int nvme_detach(struct nvme *n, const char *path)
{
        struct nvme_device *d = nvme_find_device(n, path);

        if (!d || d->state == DEVICE_DETACHED)
                return KVT_E_MISS;
        d->detach = true;
        if (d->retry_usec) {
                d->retry_usec = 0;
                d->state = DEVICE_DETACHED;
                return 0;
        }
        if (d->state == DEVICE_RECOVERING)
                recovery_free(d);
        if (d->state == DEVICE_SERVING || d->state == DEVICE_RECOVERING) {
                d->state = DEVICE_DRAINING;
                snprintf(d->detail, sizeof d->detail, "being detached");
        }
        recycle_free(d);
        scrub_free(d);
        if (d->log)
                d->log->full = true;
        if (d->next)
                d->next->full = true;
        log_settle(d);
        return 0;
}

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

static bool device_pass(struct nvme_device *d)
{
        bool more = false;

        if (d->detach && d->state == DEVICE_DRAINING && !d->n_ios && list_empty(&d->logs) && list_empty(&d->syncs)) {
                uint32_t n_reads = 0;
                for (uint64_t s = 0; s < d->sb.n_segments; s++)
                        n_reads += d->segments[s].n_reads;
                if (!n_reads) {
                        d->state = DEVICE_DETACHED;
                        d->sweep_cursor = 0;
                        *d->detail = 0;
                }
        }
        if (d->sweep_cursor != UINT32_MAX)
                more = sweep(d);
        if (d->state == DEVICE_DETACHED && d->sweep_cursor == UINT32_MAX && d->segments) {
                close_device(d);
                log_info("%s is detached", d->path);
        }
        if (d->state == DEVICE_SERVING) {
                log_open_ahead(d, false);
                recycle_some(d);
        }
        if (d->ring)
                ring_kick(d->ring);
        return more;
}

bool nvme_pass(struct nvme *n, uint64_t now_usec)
{
        bool more = false;

        n->now_usec = now_usec;
        nvme_write_drops(n);
        for (uint32_t i = 0; i < n->n_devices; i++) {
                struct nvme_device *d = n->devices[i];
                if (d->state == DEVICE_SERVING)
                        scrub_some(d);
                if (d->state == DEVICE_RECOVERING)
                        recovery_kick(d);
                more |= device_pass(d);
        }
        return more;
}

uint64_t nvme_deadline(const struct nvme *n)
{
        uint64_t until = UINT64_MAX;

        for (uint32_t i = 0; i < n->n_devices; i++) {
                struct nvme_device *d = n->devices[i];
                const struct nvme_io *io = list_first(&d->ios, struct nvme_io, link);
                if (io)
                        until = MIN(until, io->op.submitted_usec + n->options.timeout_usec);
                until = MIN(until, scrub_deadline(d));
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
                const struct nvme_io *io = list_first(&d->ios, struct nvme_io, link);
                if (d->retry_usec && d->retry_usec <= now_usec)
                        submit_open(d);
                if (io && io->op.submitted_usec + n->options.timeout_usec <= now_usec) {
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
        *n = (struct nvme){.options = *o, .conf = conf, .tenants = t, .queue = q};
        n->now_usec = clock_usec();
        list_init(&n->drops);
        return catalog_init(&n->catalog, (uint32_t)MIN(max_records, 1ull << 30));
}

void nvme_close_rings(struct nvme *n)
{
        for (uint32_t i = 0; i < n->n_devices; i++) {
                struct nvme_device *d = n->devices[i];
                d->state = DEVICE_FAILED; /* whoever is told now starts nothing new */
                if (d->ring && d->ring->ops->close(d->ring, CLOSE_WAIT_USEC) < 0)
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
                        close_device(d);
                else if (d->fd >= 0)
                        close(d->fd);
                free(d->path);
                free(d);
        }
        n->n_devices = 0;
        if (n->drops.next)
                nvme_drops_free(n);
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
