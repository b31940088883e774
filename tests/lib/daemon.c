#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <grp.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>

#include "tests/lib/daemon.h"
#include "tests/lib/raw.h"

/* A failed test leaves by longjmp(): its own variables are gone by then. */
static struct {
        pid_t pid;
        char dir[64];
        char *args[32]; /* owned */
        int n_args;
} left[16];
static const char *environment, *preload;
static uid_t as_user;
static unsigned max_files;

const char *daemon_binary(void)
{
        static char path[4096];
        const char *given = getenv("KVTIERD");
        ssize_t n;

        if (given)
                return given;
        n = readlink("/proc/self/exe", path, sizeof(path) - 32);
        CHECK(n > 0);
        path[n] = 0;
        for (int i = 0; i < 3; i++) /* BUILD/tests/scen/test_x */
                *strrchr(path, '/') = 0;
        strcat(path, "/kvtierd");
        return path;
}

void daemon_environment(const char *name_value)
{
        environment = name_value;
}

void daemon_preload(const char *path)
{
        preload = path;
}

void daemon_user(uid_t uid, unsigned n)
{
        as_user = uid;
        max_files = n;
}

static void run(const struct daemon *d)
{
        char *argv[40] = {(char *)daemon_binary()};
        int log = open(d->log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);

        memcpy(argv + 1, d->args, (size_t)d->n_args * sizeof(*argv));
        dup2(log, STDOUT_FILENO);
        dup2(log, STDERR_FILENO);
        if (environment)
                putenv((char *)environment);
        if (preload) {
                char options[1024];
                const char *given = getenv("ASAN_OPTIONS");
                setenv("LD_PRELOAD", preload, 1);
                snprintf(options, sizeof(options), "%s%sverify_asan_link_order=0", given ? given : "", given ? ":" : "");
                setenv("ASAN_OPTIONS", options, 1);
        }
        unsetenv("NOTIFY_SOCKET");
        if (max_files)
                setrlimit(RLIMIT_NOFILE, &(struct rlimit){max_files, max_files});
        if (as_user && (setgroups(0, NULL) < 0 || setresgid(as_user, as_user, as_user) < 0 || setresuid(as_user, as_user, as_user) < 0))
                _exit(126);
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        for (int fd = 3; fd < 64; fd++) /* so that the daemon's descriptors can be counted */
                fcntl(fd, F_SETFD, FD_CLOEXEC);
        execv(argv[0], argv);
        dprintf(STDERR_FILENO, "cannot run %s\n", argv[0]);
        _exit(127);
}

static bool serves(const struct daemon *d)
{
        struct sockaddr_un a = {.sun_family = AF_UNIX};
        int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
        bool yes;

        strcpy(a.sun_path, d->socket);
        yes = connect(fd, (struct sockaddr *)&a, sizeof(a)) == 0;
        close(fd);
        return yes;
}

static void print_log(const char *dir)
{
        char line[1024];

        snprintf(line, sizeof(line), "%s/log", dir);
        FILE *f = fopen(line, "re");

        while (f && fgets(line, sizeof(line), f))
                print_error("    kvtierd> %s", line);
        if (f)
                fclose(f);
}

void daemon_restart(struct daemon *d)
{
        int status;

        fflush(stdout);
        d->pid = fork();
        CHECK(d->pid >= 0);
        if (!d->pid)
                run(d);
        left[d->i_left].pid = d->pid;
        for (uint64_t until = check_now_usec() + 20000000; !serves(d);) {
                if (waitpid(d->pid, &status, WNOHANG) == d->pid || check_now_usec() > until) {
                        print_log(d->dir);
                        check_failed(__FILE__, __LINE__, "kvtierd does not start");
                        return;
                }
                usleep(1000);
        }
}

static void add_arg(struct daemon *d, const char *format, const char *value)
{
        CHECK(d->n_args < 31);
        char **arg = &left[d->i_left].args[left[d->i_left].n_args++];
        CHECK(asprintf(arg, format, value) > 0);
        d->args[d->n_args++] = *arg;
}

/* DIR in a parameter is the daemon's directory. */
static void add_param(struct daemon *d, const char *param)
{
        char text[1024];
        size_t n = 0;

        while (*param && n < sizeof(text) - sizeof(d->dir))
                if (!strncmp(param, "DIR", 3)) {
                        n += (size_t)sprintf(text + n, "%s", d->dir);
                        param += 3;
                } else {
                        text[n++] = *param++;
                }
        text[n] = 0;
        add_arg(d, "%s", text);
}

static void forget(int i)
{
        left[i].dir[0] = 0;
        while (left[i].n_args)
                free(left[i].args[--left[i].n_args]);
}

void daemon_start(struct daemon *d, const char *const *params)
{
        const char *tmp = getenv("TMPDIR");

        *d = (struct daemon){};
        while (left[d->i_left].dir[0]) {
                d->i_left++;
                CHECK(d->i_left < 16);
        }
        snprintf(d->dir, sizeof(d->dir), "%s/kvt-test-XXXXXX", tmp && strlen(tmp) < 40 ? tmp : "/tmp");
        CHECK(mkdtemp(d->dir));
        strcpy(left[d->i_left].dir, d->dir);
        CHECK(chmod(d->dir, 0755) == 0); /* other users come in, too */
        if (as_user)
                CHECK(chown(d->dir, as_user, as_user) == 0);
        snprintf(d->socket, sizeof(d->socket), "%s/s", d->dir);
        snprintf(d->config, sizeof(d->config), "%s/kvtierd.conf", d->dir);
        snprintf(d->log, sizeof(d->log), "%s/log", d->dir);
        daemon_write_config(d, "");
        add_arg(d, "--config=%s", d->config);
        add_arg(d, "--socket=%s", d->socket);
        static const char *const small[] = {"--host_bytes=64M", "--slab_bytes=2M", "--prealloc_bytes=0",
                                            "--huge_pages=no",  "--workers=2",     "--nvme_devices=none"};
        for (size_t i = 0; i < sizeof(small) / sizeof(*small); i++)
                add_arg(d, "%s", small[i]);
        for (; *params; params++)
                add_param(d, *params);
        daemon_restart(d);
        WAIT_FOR(daemon_status(d).n_sessions == 0, 2000); /* our look whether it serves is over */
}

int daemon_wait(struct daemon *d)
{
        int status = 0;

        for (uint64_t until = check_now_usec() + 30000000; d->pid;) {
                if (waitpid(d->pid, &status, WNOHANG) == d->pid) {
                        d->pid = left[d->i_left].pid = 0;
                } else if (check_now_usec() > until) {
                        print_log(d->dir);
                        check_failed(__FILE__, __LINE__, "kvtierd does not end");
                        break;
                } else {
                        usleep(1000);
                }
        }
        status = WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
        if (status != 0 && status != 128 + SIGKILL)
                print_log(d->dir);
        return status;
}

int daemon_stop(struct daemon *d)
{
        if (d->pid)
                kill(d->pid, SIGTERM);
        return daemon_wait(d);
}

void daemon_kill(struct daemon *d)
{
        kill(d->pid, SIGKILL);
        daemon_wait(d);
}

static void remove_directory(const char *path)
{
        char inside[600];
        struct dirent *e;
        DIR *dir = opendir(path);

        while (dir && (e = readdir(dir))) {
                if (!strcmp(e->d_name, ".") || !strcmp(e->d_name, ".."))
                        continue;
                snprintf(inside, sizeof(inside), "%.300s/%.255s", path, e->d_name);
                if (unlink(inside) < 0 && errno == EISDIR)
                        remove_directory(inside);
        }
        if (dir)
                closedir(dir);
        rmdir(path);
}

void daemon_end(struct daemon *d)
{
        daemon_audit(d);
        CHECK_EQ(daemon_stop(d), 0);
        remove_directory(d->dir);
        forget(d->i_left);
        d->n_args = 0;
}

int daemon_teardown(void **state)
{
        for (int i = 0; i < (int)(sizeof(left) / sizeof(*left)); i++) {
                if (left[i].pid > 0) { /* the test failed: what did it say? */
                        print_log(left[i].dir);
                        kill(left[i].pid, SIGKILL);
                        waitpid(left[i].pid, NULL, 0);
                        left[i].pid = 0;
                }
                if (left[i].dir[0])
                        remove_directory(left[i].dir);
                forget(i);
        }
        environment = preload = NULL;
        daemon_user(0, 0);
        return 0;
}

int daemon_run(const char *const *args, char *text, size_t n_text)
{
        char *argv[40] = {(char *)daemon_binary()};
        int out[2], status;
        size_t n = 0;

        for (int i = 1; *args; i++)
                argv[i] = (char *)*args++;
        CHECK(pipe(out) == 0);
        fflush(stdout);
        pid_t pid = fork();
        CHECK(pid >= 0);
        if (!pid) {
                prctl(PR_SET_PDEATHSIG, SIGKILL);
                dup2(out[1], STDOUT_FILENO);
                dup2(out[1], STDERR_FILENO);
                close(out[0]);
                close(out[1]);
                execv(argv[0], argv);
                _exit(127);
        }
        close(out[1]);
        for (ssize_t k; n + 1 < n_text && (k = read(out[0], text + n, n_text - n - 1)) > 0;)
                n += (size_t)k;
        text[n] = 0;
        close(out[0]);
        CHECK_EQ(waitpid(pid, &status, 0), pid);
        return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

void daemon_write_config(const struct daemon *d, const char *text)
{
        FILE *f = fopen(d->config, "we");

        CHECK(f);
        fputs(text, f);
        CHECK(fclose(f) == 0);
}

bool daemon_log_has(const struct daemon *d, const char *text)
{
        char line[2048];
        bool found = false;
        FILE *f = fopen(d->log, "re");

        while (f && !found && fgets(line, sizeof(line), f))
                found = strstr(line, text);
        if (f)
                fclose(f);
        return found;
}

unsigned daemon_n_fds(const struct daemon *d)
{
        char path[64];
        unsigned n = 0;

        snprintf(path, sizeof(path), "/proc/%d/fd", d->pid);
        DIR *dir = opendir(path);
        CHECK(dir);
        while (readdir(dir))
                n++;
        closedir(dir);
        return n - 2;
}

uint64_t daemon_cpu_usec(const struct daemon *d)
{
        unsigned long long user = 0, system = 0;
        char path[64], text[1024];

        snprintf(path, sizeof(path), "/proc/%d/stat", d->pid);
        FILE *f = fopen(path, "re");
        CHECK(f && fgets(text, sizeof(text), f));
        fclose(f);
        CHECK_EQ(sscanf(strrchr(text, ')'), ") %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %llu %llu", &user, &system), 2);
        return (user + system) * 1000000 / (uint64_t)sysconf(_SC_CLK_TCK);
}

uint64_t daemon_n_sleeps(const struct daemon *d)
{
        char path[320], line[256];
        unsigned long long n;
        bool ours = false;
        uint64_t sum = 0;
        struct dirent *e;

        snprintf(path, sizeof(path), "/proc/%d/task", d->pid);
        DIR *dir = opendir(path);
        CHECK(dir);
        while ((e = readdir(dir))) {
                snprintf(path, sizeof(path), "/proc/%d/task/%.255s/status", d->pid, e->d_name);
                FILE *f = e->d_name[0] != '.' ? fopen(path, "re") : NULL;
                while (f && fgets(line, sizeof(line), f)) /* a sanitizer has threads of its own */
                        if (!strncmp(line, "Name:", 5))
                                ours = atoi(e->d_name) == d->pid || strstr(line, "kvt-");
                        else if (ours && sscanf(line, "voluntary_ctxt_switches: %llu", &n) == 1)
                                sum += n;
                if (f)
                        fclose(f);
        }
        closedir(dir);
        return sum;
}

static struct daemon_status status(const struct daemon *d, bool audit)
{
        Kvtier__StatRequest q = KVTIER__STAT_REQUEST__INIT;
        struct daemon_status s = {};
        struct raw r;

        q.audit = audit;
        raw_open(&r, d->socket);
        raw_hello(&r);
        Kvtier__StatReply *m = (Kvtier__StatReply *)raw_call(&r, KVT_MSG_STAT, &q, &kvtier__stat_reply__descriptor);
        CHECK(m && m->n_tiers >= 1);
        s = (struct daemon_status){
                .n_sessions = m->n_sessions - 1,
                .n_spaces = m->n_spaces,
                .n_tenants = m->n_tenants,
                .n_blocks = m->n_blocks,
                .n_leases = m->n_leases,
                .n_reservations = m->n_reservations,
                .n_xfers = m->n_xfers,
                .staging_bytes = m->staging_bytes,
                .capacity_bytes = m->tiers[0]->capacity_bytes,
                .slab_bytes = m->tiers[0]->slab_bytes,
                .used_bytes = m->tiers[0]->used_bytes,
                .payload_bytes = m->tiers[0]->payload_bytes,
                .n_slabs = m->tiers[0]->n_slabs,
                .n_retired = m->tiers[0]->n_retired,
                .audited = m->audited,
                .audit_used_bytes = m->audit_used_bytes,
                .audit_n_blocks = m->audit_n_blocks,
                .audit_leases = m->audit_leases,
        };
        snprintf(s.audit_error, sizeof(s.audit_error), "%s", m->audit_error);
        snprintf(s.boot_token, sizeof(s.boot_token), "%s", m->boot_token);
        for (size_t i = 0; i < m->n_counters && i < sizeof(s.counters) / sizeof(*s.counters); i++) {
                snprintf(s.counters[i].name, sizeof(s.counters[i].name), "%s", m->counters[i]->name);
                s.counters[i].value = m->counters[i]->value;
                s.n_counters++;
        }
        protobuf_c_message_free_unpacked(&m->base, NULL);
        raw_leave(&r);
        return s;
}

struct daemon_status daemon_status(const struct daemon *d)
{
        return status(d, false);
}

struct daemon_status daemon_audit(const struct daemon *d)
{
        struct daemon_status s = status(d, true);

        CHECK(s.audited);
        if (s.audit_error[0])
                check_failed(__FILE__, __LINE__, "audit: %s", s.audit_error);
        CHECK_EQ(s.audit_used_bytes, s.used_bytes);
        CHECK_EQ(s.audit_n_blocks, s.n_blocks);
        return s;
}

uint64_t daemon_counter(const struct daemon *d, const char *name)
{
        struct daemon_status s = daemon_status(d);

        for (size_t i = 0; i < s.n_counters; i++)
                if (!strcmp(s.counters[i].name, name))
                        return s.counters[i].value;
        check_failed(__FILE__, __LINE__, "no counter '%s'", name);
        return 0;
}
