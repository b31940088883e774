/* format: makes a device or a file ready for kvtierd. See kvtier-format(7).
 *
 * Order: the headers of segments are wiped before the superblocks are written, so that a device half done has nothing of its former life under
 * a new superblock. What is there already is refused, but for --force: the first MiB is where file systems, partition tables and the like begin. */
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <sodium.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "libclient/codec/format.h"
#include "libclient/ctl/devfile.h"
#include "libclient/ctl/format.h"
#include "libclient/ctl/table.h"

static const uint64_t size_default = 4ull << 30;

static int write_bytes(int fd, const void *bytes, size_t n, uint64_t offset)
{
        size_t at = 0;

        while (at < n) {
                ssize_t r = pwrite(fd, (const uint8_t *)bytes + at, n - at, (off_t)(offset + at));

                if (r < 0 && errno == EINTR)
                        continue;
                if (r <= 0)
                        return r ? -errno : -EIO;
                at += (size_t)r;
        }
        return 0;
}

/* what is there already */

static const char *name_contents(const uint8_t *p, size_t n)
{
        static const struct {
                const char *name, *magic;
                size_t offset, n;
        } known[] = {
                {"a kvtier device", "kvtierDV", 0, 8},
                {"a kvtier device", "kvtierDV", FORMAT_SUPERBLOCK_COPY, 8},
                {"an XFS file system", "XFSB", 0, 4},
                {"an ext file system", "\x53\xef", 0x438, 2},
                {"a Btrfs file system", "_BHRfS_M", 0x10040, 8},
                {"an F2FS file system", "\x10\x20\xf5\xf2", 0x400, 4},
                {"a LUKS volume", "LUKS\xba\xbe", 0, 6},
                {"an LVM volume", "LABELONE", 512, 8},
                {"swap space", "SWAPSPACE2", 4086, 10},
                {"a partition table", "EFI PART", 512, 8},
                {"a partition table", "\x55\xaa", 510, 2},
        };

        for (size_t i = 0; i < sizeof known / sizeof *known; i++)
                if (known[i].offset + known[i].n <= n && memcmp(p + known[i].offset, known[i].magic, known[i].n) == 0)
                        return known[i].name;
        return "data";
}

/* The first MiB must be zero, as far as there is one. */
static int refuse_contents(struct ctl *x, const struct devfile *d)
{
        size_t n = d->bytes < FORMAT_SEGMENTS_START ? (size_t)d->bytes : FORMAT_SEGMENTS_START, at = 0, i = 0;
        uint8_t *p = malloc(FORMAT_SEGMENTS_START);
        int code = EXIT_OK;

        if (!p)
                return ctl_fail(x, KVT_E_NO_MEMORY, "cannot read %s", d->path);
        while (at < n && code == EXIT_OK) {
                ssize_t r = pread(d->fd, p + at, n - at, (off_t)at);

                if (r < 0 && errno == EINTR)
                        continue;
                if (r <= 0)
                        code = ctl_fail(x, r ? -errno : -EIO, "cannot read %s", d->path);
                else
                        at += (size_t)r;
        }
        while (code == EXIT_OK && i < n && !p[i])
                i++;
        if (code == EXIT_OK && i < n)
                code = ctl_fail(x, 0, "%s has %s in it; --force would overwrite that", d->path, name_contents(p, n));
        free(p);
        return code;
}

/* writing */

/* So that a new file's name outlives a crash as the file does. */
static void sync_folder(const char *path)
{
        char *copy = strdup(path);
        int fd = copy ? open(dirname(copy), O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;

        if (fd >= 0) {
                fsync(fd);
                close(fd);
        }
        free(copy);
}

static int write_format(const struct devfile *d, const struct superblock *s)
{
        static uint8_t page[FORMAT_PAGE_BYTES];
        int r = 0;

        for (uint64_t i = 0; i < s->n_segments && !r && !d->is_new; i++)
                r = write_bytes(d->fd, page, sizeof page, format_segment_offset(s, (uint32_t)i));
        if (!r && fsync(d->fd) < 0)
                r = -errno;
        if (r)
                return r;
        superblock_encode(page, s);
        r = write_bytes(d->fd, page, sizeof page, 0);
        r = r ? r : write_bytes(d->fd, page, sizeof page, FORMAT_SUPERBLOCK_COPY);
        if (!r && fsync(d->fd) < 0)
                r = -errno;
        if (!r && d->is_new)
                sync_folder(d->path);
        return r;
}

static int format_device(struct ctl *x, struct devfile *d)
{
        struct superblock s = {.segment_bytes = x->o.segment, .created_sec = (uint64_t)time(NULL)};
        uint64_t size = x->o.size;
        int code, r = 0;

        if (d->is_block && size != CTL_UNSET)
                return ctl_misuse(x, "--size is for files; %s is a device, and used as a whole", d->path);
        if (!x->o.force) {
                code = refuse_contents(x, d);
                if (code)
                        return code;
        }
        if (size == CTL_UNSET)
                size = d->bytes ? d->bytes : size_default;
        s.device_bytes = size;
        s.n_segments = format_n_segments(size, s.segment_bytes);
        if (s.n_segments < FORMAT_SEGMENTS_MIN)
                return ctl_fail(x, 0, "%s is too small: %s; there have to be %d segments of %s, and 1 MiB goes before the first", d->path,
                                format_bytes(size).text, FORMAT_SEGMENTS_MIN, format_bytes(s.segment_bytes).text);
        if (sodium_init() < 0)
                return ctl_fail(x, 0, "no random numbers");
        randombytes_buf(s.uuid, sizeof s.uuid);
        if (!d->is_block && size != d->bytes && ftruncate(d->fd, (off_t)size) < 0)
                r = -errno;
        r = r ? r : write_format(d, &s);
        if (r)
                return ctl_fail(x, r, "cannot write %s", d->path);
        if (x->o.json)
                return ctl_print_json(x, json_pack("{s:o, s:s, s:I, s:I, s:I}", "path", json_clean(d->path), "uuid",
                                                   format_hex(s.uuid, sizeof s.uuid).text, "device_bytes", (json_int_t)s.device_bytes,
                                                   "segment_bytes", (json_int_t)s.segment_bytes, "n_segments", (json_int_t)s.n_segments));
        printf("%s: %llu segment%s", d->path, (unsigned long long)s.n_segments, s.n_segments == 1 ? "" : "s");
        printf(" of %s, uuid %s\n", format_bytes(s.segment_bytes).text, format_hex(s.uuid, sizeof s.uuid).text);
        return EXIT_OK;
}

int cmd_format(struct ctl *x)
{
        struct devfile d;
        int code;

        if (!format_segment_bytes_ok(x->o.segment))
                return ctl_misuse(x, "--segment is whole MiB, from %s to %s", format_bytes(FORMAT_SEGMENT_MIN).text,
                                  format_bytes(FORMAT_SEGMENT_MAX).text);
        if (x->o.size != CTL_UNSET && (x->o.size > INT64_MAX || format_n_segments(x->o.size, x->o.segment) < FORMAT_SEGMENTS_MIN))
                return ctl_misuse(x, "--size %llu: there is no room for %d segments of %s, or it is more than a file can have",
                                  (unsigned long long)x->o.size, FORMAT_SEGMENTS_MIN, format_bytes(x->o.segment).text);
        code = devfile_open(x, x->operands[0], true, true, &d);
        if (code)
                return code;
        code = format_device(x, &d);
        if (code && d.is_new)
                unlink(d.path);
        devfile_close(&d);
        return code;
}
