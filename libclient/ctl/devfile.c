/* Opening what a daemon keeps blocks on: see devfile.h. */
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "libclient/ctl/devfile.h"

/* O_EXCL of a block device that is there: nobody has it mounted. */
static int open_existing(const char *path, bool writes)
{
        struct stat st;
        int fd;

        if (stat(path, &st) < 0)
                return -errno;
        if (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode))
                return -ENOTBLK;
        fd = open(path, (writes ? O_RDWR : O_RDONLY) | O_CLOEXEC | O_NONBLOCK | (writes && S_ISBLK(st.st_mode) ? O_EXCL : 0));
        return fd < 0 ? -errno : fd;
}

int devfile_open(struct ctl *x, const char *path, bool writes, bool create, struct devfile *ret)
{
        struct devfile d = {.path = path, .fd = -1};
        struct stat st;
        int r = 0;

        if (create) {
                d.fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
                d.is_new = d.fd >= 0;
                if (d.fd < 0 && errno != EEXIST)
                        return ctl_fail(x, -errno, "cannot create %s", path);
        }
        if (d.fd < 0)
                d.fd = open_existing(path, writes);
        if (d.fd == -ENOTBLK)
                return ctl_fail(x, 0, "%s is neither a file nor a block device", path);
        if (d.fd == -EBUSY)
                return ctl_fail(x, 0, "%s is in use: mounted, or by a daemon", path);
        if (d.fd < 0)
                return ctl_fail(x, d.fd, "cannot open %s", path);
        /* what a daemon has let go of may be locked for a moment: the kernel takes its rings apart in the background */
        for (int i = 0; (r = flock(d.fd, (writes ? LOCK_EX : LOCK_SH) | LOCK_NB) < 0 ? -errno : 0) == -EWOULDBLOCK && i < 20; i++)
                usleep(25000);
        if (r == -EWOULDBLOCK) {
                ctl_fail(x, 0, "%s is in use by a daemon", path);
                devfile_close(&d);
                return EXIT_FAILED;
        }
        if (!r && fstat(d.fd, &st) < 0)
                r = -errno;
        if (!r && !S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode)) /* it was another one a moment ago */
                r = -ENOTBLK;
        if (!r) {
                d.is_block = S_ISBLK(st.st_mode);
                d.bytes = (uint64_t)st.st_size;
                if (d.is_block && ioctl(d.fd, BLKGETSIZE64, &d.bytes) < 0)
                        r = -errno;
        }
        if (r) {
                devfile_close(&d);
                return ctl_fail(x, r, "cannot open %s", path);
        }
        *ret = d;
        return EXIT_OK;
}

void devfile_close(struct devfile *d)
{
        if (d->fd >= 0)
                close(d->fd);
        d->fd = -1;
}
