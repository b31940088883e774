#include <fcntl.h>
#include <grp.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>

#include "tests/lib/check.h"

static pid_t main_pid;

__attribute__((constructor)) static void remember_main(void)
{
        main_pid = getpid();
}

void check_failed(const char *file, int line, const char *format, ...)
{
        char text[1024];
        va_list ap;

        va_start(ap, format);
        vsnprintf(text, sizeof(text), format, ap);
        va_end(ap);
        if (getpid() == main_pid && (pid_t)syscall(SYS_gettid) == main_pid) {
                print_error("%s:%d: %s\n", file, line, text);
                _fail(file, line);
                return;
        }
        fprintf(stderr, "%s:%d: %s (process %d)\n", file, line, text, getpid());
        fflush(stderr);
        if (getpid() != main_pid)
                _exit(1);
        abort();
}

void check_skip(const char *why)
{
        printf("skip: %s\n", why);
        fflush(stdout);
        skip();
        abort(); /* skip() does not return; cmocka does not say so */
}

uint64_t check_now_usec(void)
{
        struct timespec t;

        clock_gettime(CLOCK_MONOTONIC, &t);
        return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

static pid_t start(bool as, uid_t uid, void (*fn)(void *), void *arg)
{
        pid_t parent = getpid(), pid;

        fflush(stdout);
        fflush(stderr);
        pid = fork();
        CHECK(pid >= 0);
        if (pid)
                return pid;
        if (as) {
                CHECK(setgroups(0, NULL) == 0);
                CHECK(setresgid(uid, uid, uid) == 0);
                CHECK(setresuid(uid, uid, uid) == 0);
                prctl(PR_SET_DUMPABLE, 1); /* so that /proc/self belongs to itself again */
        }
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (getppid() != parent)
                _exit(1);
        fn(arg);
        fflush(stdout);
        _exit(0);
}

pid_t child_start(void (*fn)(void *), void *arg)
{
        return start(false, 0, fn, arg);
}

pid_t child_start_as(uid_t uid, void (*fn)(void *), void *arg)
{
        return start(true, uid, fn, arg);
}

void child_join(pid_t pid)
{
        int status;

        CHECK_EQ(waitpid(pid, &status, 0), pid);
        if (WIFSIGNALED(status))
                check_failed(__FILE__, __LINE__, "a child was ended by signal %d", WTERMSIG(status));
        else if (WEXITSTATUS(status))
                check_failed(__FILE__, __LINE__, "a child exited with %d", WEXITSTATUS(status));
}

void child_run(void (*fn)(void *), void *arg)
{
        child_join(child_start(fn, arg));
}

void child_run_as(uid_t uid, void (*fn)(void *), void *arg)
{
        child_join(child_start_as(uid, fn, arg));
}

void meeting_init(struct meeting *m)
{
        CHECK(pipe2(m->to_child, O_CLOEXEC) == 0 && pipe2(m->to_parent, O_CLOEXEC) == 0);
}

void meeting_deinit(struct meeting *m)
{
        close(m->to_child[0]);
        close(m->to_child[1]);
        close(m->to_parent[0]);
        close(m->to_parent[1]);
}

void meeting_at(struct meeting *m, int who)
{
        int out = who ? m->to_parent[1] : m->to_child[1], in = who ? m->to_child[0] : m->to_parent[0];
        struct pollfd p = {.fd = in, .events = POLLIN};
        char c = 'x';

        CHECK(write(out, &c, 1) == 1);
        CHECK(poll(&p, 1, 20000 * CHECK_SLOW) == 1);
        CHECK(read(in, &c, 1) == 1);
}
