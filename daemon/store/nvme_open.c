/* Attaching and detaching devices. Opening runs on a worker, because a device may take its time. */
#include <fcntl.h>
#include <linux/fs.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <time.h>

#include "daemon/store/tier_nvme.h"
#include "daemon/util/log.h"

enum {
        LOCK_RETRIES = 40, /* a daemon that was killed may hold its lock for a moment: the kernel takes rings apart in the background */
        LOCK_RETRY_USEC = 50000,
};

static int format_new(int fd, const struct nvme_options *o, uint64_t bytes, struct superblock *sb, void *page)
{
        struct timespec now;

        *sb = (struct superblock){.segment_bytes = o->segment_bytes, .device_bytes = bytes};
        sb->n_segments = format_n_segments(bytes, sb->segment_bytes);
        if (sb->n_segments < FORMAT_SEGMENTS_MIN)
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

/* Up to where segments start. */
static bool head_is_blank(int fd, uint8_t *page)
{
        struct superblock unused;

        for (uint64_t at = 0; at < FORMAT_SEGMENTS_START; at += FORMAT_PAGE_BYTES)
                if (pread(fd, page, FORMAT_PAGE_BYTES, (off_t)at) != FORMAT_PAGE_BYTES || superblock_decode(page, &unused) != -ENODATA)
                        return false;
        return true;
}

static int read_page(int fd, void *page, uint64_t offset)
{
        ssize_t n = pread(fd, page, FORMAT_PAGE_BYTES, (off_t)offset);

        return n == FORMAT_PAGE_BYTES ? 0 : n < 0 ? -errno : -EIO;
}

/* Somebody made something else of the device, whatever is left of ours: not just some bytes of the superblock are others. */
static bool is_foreign(const uint8_t *page, const struct superblock *sb)
{
        enum { DAMAGE_MAX = 64 };
        uint8_t ours[FORMAT_PAGE_BYTES];
        uint32_t n = 0;

        superblock_encode(ours, sb);
        for (uint32_t i = 0; i < FORMAT_PAGE_BYTES; i++)
                n += page[i] != ours[i];
        return n > DAMAGE_MAX;
}

/* Both superblocks are looked at; one that is bad is made good from the other. */
static int read_superblock(struct nvme_device *d, int fd, bool blank, uint64_t bytes, void *page)
{
        struct superblock copy;
        int r, r2;

        if (bytes < FORMAT_SEGMENTS_START + (uint64_t)FORMAT_SEGMENT_MIN)
                return -EFBIG;
        if ((r2 = read_page(fd, page, FORMAT_SUPERBLOCK_COPY)) == 0)
                r2 = superblock_decode(page, &copy);
        if ((r = read_page(fd, page, 0)) == 0)
                r = superblock_decode(page, &d->sb);
        if ((r == -ENOMSG || r == -EPROTONOSUPPORT || r == -EPROTO) && r2 == 0 && is_foreign(page, &copy))
                return r;
        if (r == -ENODATA && r2 == -ENODATA && blank && !head_is_blank(fd, page))
                return -ENOMSG;
        if (r == -ENODATA && r2 == -ENODATA && blank)
                return format_new(fd, &d->nvme->options, bytes, &d->sb, page);
        if (r != 0 && r2 == 0) {
                d->sb = copy;
                superblock_encode(page, &copy);
                if (pwrite(fd, page, FORMAT_PAGE_BYTES, 0) == FORMAT_PAGE_BYTES && fdatasync(fd) == 0)
                        log_warning("%s: byte 0: the superblock was damaged and is restored from its copy", d->path);
                return 0;
        }
        if (r == 0 && (r2 != 0 || memcmp(&copy, &d->sb, sizeof copy))) {
                superblock_encode(page, &d->sb);
                if (pwrite(fd, page, FORMAT_PAGE_BYTES, FORMAT_SUPERBLOCK_COPY) == FORMAT_PAGE_BYTES && fdatasync(fd) == 0)
                        log_warning("%s: byte %d: the copy of the superblock was damaged and is restored", d->path, FORMAT_SUPERBLOCK_COPY);
        }
        return r;
}

/* Files are made if need be, but not in place of a device that is missing: that would fill memory. Links are followed to block devices, whose
 * lasting names are links. */
static int open_path(const char *path)
{
        bool in_dev = !strncmp(path, "/dev/", 5) && strncmp(path, "/dev/shm/", 9);
        int flags = O_RDWR | O_CLOEXEC | O_NOFOLLOW, fd;
        struct stat st;

        if (lstat(path, &st) == 0) {
                if (S_ISLNK(st.st_mode)) {
                        if (stat(path, &st) < 0)
                                return -1;
                        if (!S_ISBLK(st.st_mode)) {
                                errno = ELOOP;
                                return -1;
                        }
                        flags &= ~O_NOFOLLOW;
                }
                if (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode)) { /* opening others may have effects */
                        errno = ENOTBLK;
                        return -1;
                }
        } else if (errno != ENOENT || in_dev) {
                return -1;
        } else {
                flags |= O_CREAT;
        }
        fd = open(path, flags | O_DIRECT, 0600);
        if (fd < 0 && errno == EINVAL) /* a file system without direct I/O, such as an old tmpfs */
                fd = open(path, flags, 0600);
        return fd;
}

static void open_work(struct job *j)
{
        struct nvme_device *d = container_of(j, struct nvme_device, open_job);
        _cleanup_(closep) int fd = open_path(d->path);
        void *page = NULL;
        struct stat st;
        bool blank;
        int r;

        d->open_result = 0;
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
        if (r == 0 && d->sb.n_segments < FORMAT_SEGMENTS_MIN)
                r = -EFBIG;
        d->open_result = r;
        if (r == 0)
                d->fd = TAKE_FD(fd);
}

static const char *open_error(int r)
{
        return r == KVT_E_LOCKED       ? "it is in use by another daemon (locked)"
               : r == -ELOOP           ? "it is a symbolic link, and not one to a block device"
               : r == -ENODATA         ? "it is blank: kvtierctl format"
               : r == -ENOMSG          ? "it holds something else: kvtierctl format --force"
               : r == -EBADMSG         ? "both superblocks, at bytes 0 and 524288, are damaged"
               : r == -EPROTONOSUPPORT ? "its version is unknown to this release"
               : r == -EPROTO          ? "its superblock makes no sense"
               : r == -EFBIG           ? "it is too small"
               : r == -EEXIST          ? "it is attached under another path already"
               : r == -ENOTBLK         ? "it is neither a file nor a block device"
                                       : strerror(-r);
}

void device_close(struct nvme_device *d)
{
        int r = d->hangs ? -EBUSY : 0;

        recovery_free(d);
        recycle_free(d);
        scrub_free(d);
        log_free_all(d);
        if (d->ring)
                r = d->ring->ops->close(d->ring, DEVICE_CLOSE_WAIT_USEC);
        d->ring = NULL;
        if (r == 0) {
                buffers_deinit(&d->buffers);
                if (d->fd >= 0) {
                        flock(d->fd, LOCK_UN); /* the kernel may hold the file a while longer, for the ring */
                        close(d->fd);
                }
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
        struct ring_options o = {.depth = n->options.depth,
                                 .poll = n->options.poll,
                                 .spin_usec = n->options.spin_usec,
                                 .no_uring = n->options.no_uring};
        int r = d->open_result;

        d->open_busy = false;
        if (n->closed)
                return; /* nvme_deinit() closes it */
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
                d->move_pages = device_segment_pages(d);
                recovery_start(d);
                return;
        }
        if (r != 0) {
                errno = r < 0 ? -r : 0;
                device_fail(d, false, "%s", open_error(r));
        }
        if (d->fd >= 0)
                device_close(d);
        if (d->detach)
                d->state = DEVICE_DETACHED;
}

void device_submit_open(struct nvme_device *d)
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
        d->unflushable = d->drops_lost = false;
        d->n_errors_window = 0;
        d->full_until_usec = 0;
        d->serial = d->flushed = d->flushing = 0;
        d->n_retries = 0;
        d->excused_usec = 0;
        d->move_pages = d->move_quarters = 0;
        d->sweep_cursor = UINT32_MAX;
        device_submit_open(d);
        return 0;
}

int nvme_attach(struct nvme *n, const char *path)
{
        struct nvme_device *d = nvme_find_device(n, path);

        if (d) {
                if ((d->state != DEVICE_FAILED && d->state != DEVICE_DETACHED) || d->open_busy)
                        return KVT_E_EXISTS;
                if (d->sweep_cursor != UINT32_MAX || !list_empty(&d->logs) || d->n_stuck || device_is_read(d))
                        return KVT_E_AGAIN; /* what it held before is still being cleared away, or hangs in the kernel */
                if (d->segments)
                        device_close(d);
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
        if (d->state == DEVICE_FAILED && (d->open_busy || !list_empty(&d->logs) || d->n_stuck))
                return KVT_E_AGAIN;
        d->detach = true;
        if (d->retry_usec || d->state == DEVICE_FAILED) { /* nvme_pass() closes it, if it is open */
                d->retry_usec = 0;
                d->state = DEVICE_DETACHED;
                return 0;
        }
        if (d->state == DEVICE_RECOVERING)
                recovery_free(d);
        if (d->state == DEVICE_SERVING || d->state == DEVICE_RECOVERING) {
                d->state = DEVICE_DRAINING;
                nvme_drops_leave(n, d);
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
