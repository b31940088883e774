/* ring.h: which implementation serves. */
#include "daemon/io/ring.h"
#include "daemon/util/log.h"

static int (*open_instead)(struct ring **ret, int fd, void *arena, size_t n_arena, struct queue *q, const struct ring_options *options);

void ring_set_open(int (*open)(struct ring **ret, int fd, void *arena, size_t n_arena, struct queue *q, const struct ring_options *options))
{
        open_instead = open;
}

int ring_open(struct ring **ret, int fd, void *arena, size_t n_arena, struct queue *q, const struct ring_options *options)
{
        int r;

        if (open_instead)
                return open_instead(ret, fd, arena, n_arena, q, options);
        if (options->no_uring) {
                log_info("Reading and writing by pread and pwrite: the configuration says so");
        } else {
                r = ring_uring_open(ret, fd, arena, n_arena, q, options);
                if (r >= 0)
                        return 0;
                log_write(LOG_INFO, r, "Reading and writing by pread and pwrite, there is no io_uring: %m%s",
                          r == -EPERM || r == -EACCES ? " (forbidden by kernel.io_uring_disabled or by a seccomp filter)" : "");
        }
        return ring_pread_open(ret, fd, arena, n_arena, q, options);
}
