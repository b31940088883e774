/* What lies behind the devices of a daemon in this process.
 *
 * Files: open() is replaced while an input runs. The names of device_paths[] are files in memory, made anew for each input and gone with the
 * process; any other name that the daemon would make a file under is not there. So nothing that a message says touches a file of the system.
 *
 * Operations: a ring without threads. They wait until the input says that one of them (any: there is no order) is carried out, or fails; some
 * never are. The ring holds its user to the rules: what is being written does not change meanwhile, and is neither read nor written.
 *
 * Damage: bytes of what the daemon keeps there change behind its back; with hashes made right, as somebody would who writes the disk. */
#pragma once

#include <errno.h>
#include <stdarg.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include "daemon/store/tier_nvme.h"
#include "libclient/codec/format_impl.h"
#include "libclient/codec/hash.h"
#include "tests/fuzz/fuzz.h"

enum { DISK_BYTES = 5 << 20 /* as nvme_bytes of the target */ };

static struct disk_file {
        const char *path;
        uint64_t bytes; /* 0: the daemon makes it */
        const char *text; /* at its start */
        int fd; /* owned; 0: not made yet */
} disk_files[] = {{"/a"}, {"/b"}, {"/other", DISK_BYTES, "a file system"}, {"/small", 65536, ""}};

static bool disk_fence; /* open() is replaced */

struct disk_op { /* under way */
        struct list link;
        struct ring_op *op; /* of the daemon's */
        uint64_t hash; /* of what is written */
};

struct disk_ring {
        struct ring ring;
        struct list link; /* in disk_rings */
        struct list submitted; /* of struct job: not kicked yet */
        struct list ops; /* of struct disk_op */
        void *arena; /* borrowed, unless it hangs */
        size_t n_arena;
        void *hung_bitmap; /* of buffers: owned if it hangs */
};

static struct list disk_rings = {&disk_rings, &disk_rings}, disk_hung = {&disk_hung, &disk_hung};
static struct nvme *disk_user;
static bool disk_stalled, disk_hangs; /* nothing is carried out unasked; a ring that is closed hangs */

/* files */

static int disk_open_file(struct disk_file *f, int flags)
{
        char path[32];

        if (!f->fd) {
                f->fd = memfd_create("fuzz-disk", MFD_CLOEXEC);
                FUZZ_CHECK(f->fd > 0 && ftruncate(f->fd, (off_t)f->bytes) == 0);
                FUZZ_CHECK(!f->bytes || pwrite(f->fd, f->text, strlen(f->text), 0) == (ssize_t)strlen(f->text));
        }
        snprintf(path, sizeof(path), "/proc/self/fd/%d", f->fd); /* opened once more: locks are by that */
        return (int)syscall(SYS_openat, AT_FDCWD, path, flags & ~(O_CREAT | O_NOFOLLOW), 0);
}

int open(const char *path, int flags, ...)
{
        mode_t mode = 0;
        va_list ap;

        va_start(ap, flags);
        if (flags & O_CREAT)
                mode = va_arg(ap, mode_t);
        va_end(ap);
        if (!disk_fence || !(flags & O_CREAT))
                return (int)syscall(SYS_openat, AT_FDCWD, path, flags, mode);
        for (size_t i = 0; i < sizeof(disk_files) / sizeof(*disk_files); i++)
                if (!strcmp(path, disk_files[i].path) || (!i && !strcmp(path, "/same")))
                        return disk_open_file(&disk_files[i], flags);
        if (!strcmp(path, "/null"))
                return (int)syscall(SYS_openat, AT_FDCWD, "/dev/null", O_RDWR | O_CLOEXEC, 0);
        errno = ENOENT;
        return -1;
}

static void disk_forget_files(void)
{
        for (size_t i = 0; i < sizeof(disk_files) / sizeof(*disk_files); i++) {
                if (disk_files[i].fd)
                        close(disk_files[i].fd);
                disk_files[i].fd = 0;
        }
}

/* the ring */

static void disk_submit(struct ring *r, struct ring_op *op)
{
        struct disk_ring *d = container_of(r, struct disk_ring, ring);
        const uint8_t *p = op->buf;

        if (op->opcode == RING_READ || op->opcode == RING_WRITE)
                FUZZ_CHECK(op->bytes && p >= (uint8_t *)d->arena && op->bytes <= d->n_arena - (size_t)(p - (uint8_t *)d->arena));
        list_append(&d->submitted, &op->job.link);
}

static void disk_kick(struct ring *r)
{
        struct disk_ring *d = container_of(r, struct disk_ring, ring);
        struct job *j;

        while ((j = list_first(&d->submitted, struct job, link))) {
                struct ring_op *op = container_of(j, struct ring_op, job);
                struct disk_op *o = calloc(1, sizeof(*o));

                list_remove(&j->link);
                list_for_each (other, &d->ops, struct disk_op, link) {
                        const struct ring_op *x = other->op;
                        bool both = (op->opcode == RING_READ || op->opcode == RING_WRITE) &&
                                    (x->opcode == RING_READ || x->opcode == RING_WRITE);
                        FUZZ_CHECK(!both || (op->opcode == RING_READ && x->opcode == RING_READ) || op->offset + op->bytes <= x->offset ||
                                   x->offset + x->bytes <= op->offset);
                }
                o->op = op;
                o->hash = op->opcode == RING_WRITE ? hash_bytes(op->buf, op->bytes, 0) : 0;
                list_append(&d->ops, &o->link);
        }
}

static void disk_carry_out(struct disk_ring *d, struct disk_op *o, int error)
{
        struct ring_op *op = o->op;
        ssize_t n = (ssize_t)op->bytes;

        op->result = error;
        if (op->opcode == RING_WRITE) {
                FUZZ_CHECK(hash_bytes(op->buf, op->bytes, 0) == o->hash);
                if (!error && pwrite(d->ring.fd, op->buf, op->bytes, (off_t)op->offset) != n)
                        op->result = -EIO;
        } else if (op->opcode == RING_READ && !error) {
                op->result = pread(d->ring.fd, op->buf, op->bytes, (off_t)op->offset) == n ? 0 : -ENODATA;
        } else if (op->opcode == RING_DISCARD && !error) {
                op->result = -EOPNOTSUPP;
        }
        op->finished_usec = clock_usec();
        list_remove(&o->link);
        free(o);
        queue_finish(d->ring.queue, &op->job);
}

static int disk_close(struct ring *r, uint64_t wait_usec)
{
        struct disk_ring *d = container_of(r, struct disk_ring, ring);
        struct disk_op *o;

        disk_kick(r);
        list_remove(&d->link);
        if (disk_hangs && !list_empty(&d->ops)) {
                for (uint32_t i = 0; i < disk_user->n_devices; i++)
                        if (disk_user->devices[i]->buffers.arena == d->arena)
                                d->hung_bitmap = disk_user->devices[i]->buffers.used;
                list_append(&disk_hung, &d->link);
                return -EBUSY;
        }
        while ((o = list_first(&d->ops, struct disk_op, link)))
                disk_carry_out(d, o, 0);
        free(d);
        return 0;
}

static int disk_open_ring(struct ring **ret, int fd, void *arena, size_t n_arena, struct queue *q, const struct ring_options *options)
{
        static const struct ring_ops ops = {"fuzz", disk_submit, disk_kick, disk_close};
        struct disk_ring *d = calloc(1, sizeof(*d));

        *d = (struct disk_ring){.ring = {.ops = &ops, .queue = q, .fd = fd}, .arena = arena, .n_arena = n_arena};
        list_init(&d->submitted);
        list_init(&d->ops);
        list_append(&disk_rings, &d->link);
        *ret = &d->ring;
        return 0;
}

/* One operation, counted through all rings, comes back. False: none is under way. */
static bool disk_step(unsigned which, int error)
{
        unsigned n = 0;

        list_for_each (d, &disk_rings, struct disk_ring, link)
                list_for_each (o, &d->ops, struct disk_op, link)
                        n++;
        which = n ? which % n : 0;
        list_for_each (d, &disk_rings, struct disk_ring, link)
                list_for_each (o, &d->ops, struct disk_op, link)
                        if (!which--) {
                                disk_carry_out(d, o, error == -ENOSPC && o->op->opcode != RING_WRITE ? -EIO : error);
                                return true;
                        }
        return false;
}

/* What hung is the kernel's for ever, and leaked. Here it is known that nobody uses it. The daemon is gone. */
static void disk_free_hung(void)
{
        struct disk_ring *d;
        struct disk_op *o;

        while ((d = list_first(&disk_hung, struct disk_ring, link))) {
                while ((o = list_first(&d->ops, struct disk_op, link))) {
                        list_remove(&o->link);
                        free(container_of(o->op, struct nvme_io, op));
                        free(o);
                }
                munmap(d->arena, d->n_arena);
                free(d->hung_bitmap);
                close(d->ring.fd);
                list_remove(&d->link);
                free(d);
        }
}

/* damage */

/* Makes the hash right of what begins (or, with a footer, ends) in this page. */
static void disk_mend(uint8_t *disk, uint64_t page)
{
        uint8_t *p = disk + page * FORMAT_PAGE_BYTES;
        struct footer_trailer *t = (struct footer_trailer *)(p + FORMAT_PAGE_BYTES - sizeof(*t));
        struct segment_header *s = (struct segment_header *)p;
        struct record_header *h = (struct record_header *)p;
        const uint8_t *uuid = ((struct superblock *)disk)->uuid;

        if (!memcmp(p, "kvtierDV", 8)) {
                ((struct superblock *)p)->hash = format_hash(p, FORMAT_PAGE_BYTES, offsetof(struct superblock, hash), 0);
        } else if (!memcmp(p, "kvtierSG", 8)) {
                struct place at = {uuid, s->segment, s->generation, 0};
                s->hash = format_hash(p, FORMAT_PAGE_BYTES, offsetof(struct segment_header, hash), format_seed(&at));
        } else if (!memcmp(p, "kvtR", 4)) {
                struct place at = {uuid, h->segment, h->generation, h->page};
                uint64_t n = (uint64_t)h->header_pages * FORMAT_PAGE_BYTES;
                if (n && n <= DISK_BYTES - page * FORMAT_PAGE_BYTES)
                        h->hash = format_hash(p, n, offsetof(struct record_header, hash), format_seed(&at));
        } else if (!memcmp(t->magic, "kvtierFT", 8)) {
                struct place at = {uuid, t->segment, t->generation, 0};
                uint64_t n = footer_bytes(t->n_entries);
                if (n <= (page + 1) * FORMAT_PAGE_BYTES)
                        t->hash = format_hash((uint8_t *)(t + 1) - n, n, n - sizeof(*t) + offsetof(struct footer_trailer, hash),
                                              format_seed(&at));
        }
}

/* One byte of the i-th header or footer of the i-th file that there is. at: counted from its start, or for a footer from the end if it is odd. */
static void disk_damage(unsigned i, unsigned at, uint8_t x, bool mend)
{
        const struct disk_file *f = &disk_files[i & 1];
        uint64_t pages[64], n = 0, n_pages = DISK_BYTES / FORMAT_PAGE_BYTES;
        struct stat st;

        if (!f->fd || fstat(f->fd, &st) < 0 || st.st_size != DISK_BYTES)
                return;
        uint8_t *disk = mmap(NULL, DISK_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, f->fd, 0);
        FUZZ_CHECK(disk != MAP_FAILED);
        for (uint64_t k = 0; k < n_pages && n < 64; k++) {
                const uint8_t *p = disk + k * FORMAT_PAGE_BYTES;
                if (!memcmp(p, "kvtierDV", 8) || !memcmp(p, "kvtierSG", 8) || !memcmp(p, "kvtR", 4) ||
                    !memcmp(p + FORMAT_PAGE_BYTES - sizeof(struct footer_trailer), "kvtierFT", 8))
                        pages[n++] = k;
        }
        if (n) {
                uint64_t page = pages[(i >> 1) % n];
                disk[page * FORMAT_PAGE_BYTES +
                     (at & 1 ? FORMAT_PAGE_BYTES - 1 - at / 2 % FORMAT_PAGE_BYTES : at / 2 % FORMAT_PAGE_BYTES)] ^= x;
                if (mend)
                        disk_mend(disk, page);
        }
        munmap(disk, DISK_BYTES);
}
