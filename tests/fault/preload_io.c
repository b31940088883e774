/* LD_PRELOADed into a daemon: its file I/O is worse than that of this machine.
 *
 *     KVT_NO_URING=1      a seccomp filter answers EPERM to io_uring_setup, as many containers do
 *     KVT_READ_USEC=n     each pread() takes so much longer */
#undef _FORTIFY_SOURCE /* or pread() is inline */
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* the sanitizers are not up yet when we are called first */
#define BARE __attribute__((no_sanitize("address"), no_sanitize("undefined"), no_sanitize("thread")))

static long read_usec;

__attribute__((constructor)) BARE static void preload_init(void)
{
        struct sock_filter filter[] = {
                BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
                BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_io_uring_setup, 0, 1),
                BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
                BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
        };
        struct sock_fprog program = {sizeof(filter) / sizeof(*filter), filter};
        const char *delay = getenv("KVT_READ_USEC");

        if (getenv("KVT_NO_URING") &&
            (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) < 0))
                _exit(125);
        read_usec = delay ? atol(delay) : 0;
}

__attribute__((visibility("default"))) BARE ssize_t pread(int fd, void *to, size_t n, off_t offset)
{
        struct timespec t = {read_usec / 1000000, read_usec % 1000000 * 1000};

        if (read_usec)
                syscall(SYS_nanosleep, &t, NULL);
        return syscall(SYS_pread64, fd, to, n, offset);
}
