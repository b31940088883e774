#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "tests/bench/common.h"

uint64_t now_nsec(void)
{
        struct timespec t;

        clock_gettime(CLOCK_MONOTONIC, &t);
        return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

uint64_t cpu_nsec(pid_t pid)
{
        struct timespec t;
        clockid_t clock;

        if (clock_getcpuclockid(pid, &clock) || clock_gettime(clock, &t) < 0)
                die("cannot read the CPU time of process %d", pid);
        return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

void pin(int cpu)
{
        static cpu_set_t all;
        static int n;
        cpu_set_t one;

        if (!n) {
                if (sched_getaffinity(0, sizeof(all), &all) < 0)
                        die("sched_getaffinity: %m");
                n = CPU_COUNT(&all);
        }
        one = all;
        if (cpu != ALL_CPUS) {
                int left = cpu < n ? cpu : n - 1;

                CPU_ZERO(&one);
                for (int i = 0; i < CPU_SETSIZE; i++)
                        if (CPU_ISSET(i, &all) && !left--)
                                CPU_SET(i, &one);
        }
        if (sched_setaffinity(0, sizeof(one), &one) < 0)
                die("sched_setaffinity: %m");
}

bool quick(void)
{
        const char *e = getenv("BENCH_QUICK");
        return e && *e && strcmp(e, "0") != 0;
}

static void __attribute__((noreturn)) leave(int status, const char *format, va_list ap)
{
        fprintf(stderr, "%s: ", program_invocation_short_name);
        vfprintf(stderr, format, ap);
        fputc('\n', stderr);
        exit(status);
}

void die(const char *format, ...)
{
        va_list ap;

        va_start(ap, format);
        leave(1, format, ap);
}

void skip(const char *format, ...)
{
        va_list ap;

        va_start(ap, format);
        leave(77, format, ap);
}

void must(int r, const char *what)
{
        if (r)
                die("%s: %s", what, kvt_strerror(r));
}

void need_memory(uint64_t bytes)
{
        unsigned long long kib = 0;
        char line[128];
        FILE *f = fopen("/proc/meminfo", "re");

        while (f && fgets(line, sizeof(line), f) && sscanf(line, "MemAvailable: %llu kB", &kib) != 1)
                ;
        if (f)
                fclose(f);
        if (kib && kib * 1024 < 2 * bytes)
                skip("needs %llu MiB and wants as much again left free; %llu MiB are available", (unsigned long long)bytes >> 20,
                     kib >> 10);
}

/* samples */

void samples_add(struct samples *s, double x)
{
        if (s->n == s->cap) {
                s->cap = s->cap ? s->cap * 2 : 64;
                s->x = realloc(s->x, s->cap * sizeof(*s->x));
                if (!s->x)
                        die("no memory");
        }
        s->x[s->n++] = x;
}

static int compare(const void *a, const void *b)
{
        const double *x = a, *y = b;
        return (*x > *y) - (*x < *y);
}

double samples_quantile(struct samples *s, double q)
{
        if (!s->n)
                die("nothing was measured");
        qsort(s->x, s->n, sizeof(*s->x), compare);
        if (q == 0.5 && s->n % 2 == 0)
                return (s->x[s->n / 2 - 1] + s->x[s->n / 2]) / 2;
        return s->x[(size_t)(q * (double)(s->n - 1) + 0.5)];
}

void samples_reset(struct samples *s)
{
        s->n = 0;
}

void samples_deinit(struct samples *s)
{
        free(s->x);
        *s = (struct samples){0};
}

static uint64_t cpu_of_both(const struct watch *w)
{
        return w->server == WALL_ONLY ? 0 : cpu_nsec(getpid()) + (w->server ? cpu_nsec(w->server) : 0);
}

void watch_start(struct watch *w, pid_t server)
{
        *w = (struct watch){.server = server};
        w->cpu_nsec = cpu_of_both(w);
        w->wall_nsec = now_nsec();
}

void watch_stop(struct watch *w, struct undisturbed *ret, double amount)
{
        uint64_t wall = now_nsec() - w->wall_nsec, cpu = w->server == WALL_ONLY ? wall : cpu_of_both(w) - w->cpu_nsec;

        samples_add(&ret->by_cpu, amount / ((double)cpu / 1e9));
        if (wall < cpu + cpu / 10)
                samples_add(&ret->clean, amount / ((double)wall / 1e9));
}

double undisturbed_median(struct undisturbed *u)
{
        return samples_quantile(u->clean.n >= 8 || u->clean.n == u->by_cpu.n ? &u->clean : &u->by_cpu, 0.5);
}

void undisturbed_deinit(struct undisturbed *u)
{
        samples_deinit(&u->clean);
        samples_deinit(&u->by_cpu);
}

/* rows */

void row_print(const struct row *r)
{
        printf("{\"name\":\"%s\",\"value\":%.6g,\"unit\":\"%s\"", r->name, r->value, r->unit);
        if (r->baseline > 0)
                printf(",\"baseline\":%.6g,\"ratio\":%.4g,\"baseline_is\":\"%s\"", r->baseline, r->value / r->baseline, r->of);
        else
                printf(",\"baseline\":null,\"ratio\":null");
        if (r->sense) {
                double x = r->baseline > 0 ? r->value / r->baseline : r->value;

                printf(",\"target\":\"%s %s %g\",\"met\":%s", r->baseline > 0 ? "ratio" : "value", r->sense == '<' ? "<=" : ">=", r->limit,
                       (r->sense == '<' ? x <= r->limit : x >= r->limit) ? "true" : "false");
        }
        if (r->note)
                printf(",\"note\":\"%s\"", r->note);
        printf("}\n");
        fflush(stdout);
}

/* processes */

static pid_t children[16];
static char directory[64];

static void clean_up(void)
{
        char command[128];

        for (size_t i = 0; i < sizeof(children) / sizeof(*children); i++)
                if (children[i] > 0) {
                        kill(children[i], SIGKILL);
                        waitpid(children[i], NULL, 0);
                }
        if (*directory) {
                snprintf(command, sizeof(command), "rm -rf '%s'", directory);
                if (system(command) != 0)
                        fprintf(stderr, "%s was left behind\n", directory);
        }
}

const char *scratch(void)
{
        const char *base = getenv("TMPDIR");

        if (!*directory) {
                int n = snprintf(directory, sizeof(directory), "%s/kvtier-bench-XXXXXX", base && *base ? base : "/tmp");

                if (n >= (int)sizeof(directory) || !mkdtemp(directory))
                        die("mkdtemp: %m");
                atexit(clean_up);
        }
        return directory;
}

pid_t child_fork(int cpu)
{
        pid_t parent = getpid(), pid;
        size_t i = 0;

        scratch();
        while (children[i] > 0)
                if (++i == sizeof(children) / sizeof(*children))
                        die("too many children");
        fflush(stdout);
        pid = fork();
        if (pid < 0)
                die("fork: %m");
        if (pid > 0) {
                children[i] = pid;
                return pid;
        }
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (getppid() != parent)
                _exit(1);
        pin(cpu);
        return 0;
}

void child_end(pid_t pid, int sig)
{
        kill(pid, sig);
        if (waitpid(pid, NULL, 0) != pid)
                die("waitpid: %m");
        for (size_t i = 0; i < sizeof(children) / sizeof(*children); i++)
                if (children[i] == pid)
                        children[i] = 0;
}

static void binary_path(char *ret, size_t n)
{
        char self[512];
        ssize_t k = readlink("/proc/self/exe", self, sizeof(self) - 1);

        if (k < 0)
                die("readlink: %m");
        self[k] = 0;
        for (int up = 0; up < 3; up++) /* build/VARIANT/tests/bench/bench_x */
                *strrchr(self, '/') = 0;
        if (snprintf(ret, n, "%s/kvtierd", self) >= (int)n || access(ret, X_OK) < 0)
                die("no %s: build it first", ret);
}

void daemon_start(struct daemon *d, int cpu, const char *const *params)
{
        static unsigned n_started;
        char binary[640], socket_param[128], config_param[128];
        int empty;
        const char *argv[32] = {binary, config_param, "--log_level=warning", socket_param};
        size_t n = 4;

        binary_path(binary, sizeof(binary));
        snprintf(d->socket, sizeof(d->socket), "%s/%u.sock", scratch(), ++n_started);
        snprintf(d->log, sizeof(d->log), "%s/%u.log", directory, n_started);
        snprintf(config_param, sizeof(config_param), "--config=%s/empty.conf", directory); /* not the machine's */
        empty = open(strchr(config_param, '/'), O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
        if (empty < 0)
                die("%s: %m", config_param);
        close(empty);
        snprintf(socket_param, sizeof(socket_param), "--socket=%s", d->socket);
        for (; params && *params; params++) {
                if (n == sizeof(argv) / sizeof(*argv) - 1)
                        die("too many parameters");
                argv[n++] = *params;
        }
        d->pid = child_fork(cpu);
        if (!d->pid) {
                int fd = open(d->log, O_WRONLY | O_CREAT | O_APPEND, 0600);

                if (fd < 0 || dup2(fd, 2) < 0 || dup2(fd, 1) < 0)
                        _exit(1);
                execv(binary, (char *const *)argv);
                _exit(1);
        }
}

static void __attribute__((noreturn)) daemon_failed(const struct daemon *d, int r)
{
        char text[512] = "";
        FILE *f = fopen(d->log, "re");
        size_t n = f ? fread(text, 1, sizeof(text) - 1, f) : 0;

        if (f)
                fclose(f);
        text[n] = 0;
        die("the daemon does not answer: %s\n%s", kvt_strerror(r), text);
}

kvt *daemon_open(const struct daemon *d, const kvt_options *options)
{
        kvt_options o = options ? *options : (kvt_options){0};
        uint64_t until = now_nsec() + 20000000000;
        kvt *c;

        o.struct_size = sizeof(o);
        o.path = d->socket;
        o.name = program_invocation_short_name;
        if (!o.timeout_usec)
                o.timeout_usec = 60000000;
        for (;;) {
                int r = access(d->socket, F_OK) < 0 ? KVT_E_DISCONNECTED : kvt_open(&o, &c);

                if (!r)
                        return c;
                if (r != KVT_E_DISCONNECTED || now_nsec() > until || waitpid(d->pid, NULL, WNOHANG) == d->pid)
                        daemon_failed(d, r);
                usleep(100);
        }
}

void daemon_rest(const struct daemon *d)
{
        for (uint64_t until = now_nsec() + 60000000000; now_nsec() < until;) {
                uint64_t before = cpu_nsec(d->pid);

                usleep(50000);
                if (cpu_nsec(d->pid) - before < 500000)
                        return;
        }
        die("the daemon does not come to rest");
}

void daemon_stop(struct daemon *d)
{
        child_end(d->pid, SIGKILL);
        unlink(d->socket);
}
