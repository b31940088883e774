/* A daemon's life: one at a socket, restarts, reloads, and an end that answers what is under way. */
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "tests/lib/pattern.h"
#include "tests/lib/raw.h"

enum { MANY = 48 };

static struct raw a, b;
static kvt_key keys[MANY];
static uint8_t statuses[MANY];
static char text[16384];

static void enter(struct raw *r, const struct daemon *d)
{
        raw_open(r, d->socket);
        raw_hello(r);
}

#define RUN(...) daemon_run((const char *const[]){__VA_ARGS__, NULL}, text, sizeof(text))

static void test_the_library_survives_a_restart(void **state)
{
        struct pattern_space sp, stays;
        kvt_mapping map[2];
        kvt_reservation tickets[2];
        kvt_explanation e;
        struct daemon d;

        DAEMON_START(&d);
        kvt *c = pattern_open(&d, 0), *never = pattern_open(&d, KVT_OPEN_NO_RECONNECT);
        PATTERN_SPACE(&sp, c, .part_bytes = 4096);
        PATTERN_SPACE(&stays, never, .part_bytes = 4096);
        pattern_keys(1, 0, 10, keys);
        pattern_store(&sp, NULL, keys, 4);
        CHECK_OK(kvt_map(sp.s, keys, 2, map, statuses));
        CHECK_OK(kvt_put_reserve(sp.s, NULL, keys + 5, 2, 0, tickets, statuses));
        struct daemon_status before = daemon_status(&d);
        daemon_kill(&d);
        /* nobody there: said at once, by both */
        CHECK_IS(kvt_explain(sp.s, &keys[0], &e), KVT_E_DISCONNECTED);
        CHECK_IS(kvt_explain(stays.s, &keys[0], &e), KVT_E_DISCONNECTED);
        CHECK_EQ(pattern_find(map[0].data, 4096, &keys[0], 0, 0), 0); /* orphaned memory is no fault */
        daemon_restart(&d); /* the socket that the dead one left is no obstacle */
        WAIT_FOR(kvt_explain(sp.s, &keys[0], &e) == 0, 3000);
        CHECK_IS(e.why, KVT_WHY_NEVER);
        CHECK(strcmp(before.boot_token, daemon_status(&d).boot_token) != 0);
        CHECK_EQ(pattern_match(&sp, keys, 4), 0);
        pattern_store(&sp, NULL, keys, 4);
        CHECK_OK(pattern_get(&sp, keys, 4, 0, statuses));
        CHECK_EQ(pattern_count(statuses, 4, 0), 4);
        CHECK_EQ(pattern_find(map[1].data, 4096, &keys[1], 0, 0), 0);
        CHECK_IS(kvt_unmap(sp.s, map, 2, statuses), KVT_E_RESTARTED);
        CHECK_EQ(pattern_count(statuses, 2, KVT_E_RESTARTED), 2);
        CHECK_OK(kvt_put_commit(sp.s, tickets, 2, statuses));
        CHECK_EQ(pattern_count(statuses, 2, KVT_E_RESTARTED), 2);
        CHECK_IS(kvt_explain(stays.s, &keys[0], &e), KVT_E_DISCONNECTED);
        CHECK_EQ(daemon_audit(&d).n_leases, 0);
        kvt_space_close(sp.s);
        kvt_space_close(stays.s);
        kvt_close(c);
        kvt_close(never);
        daemon_end(&d);
}

/* Threads and processes that work while the daemon is killed and started again, several times: they lose hits, never more. */
static void work_through_restarts(void *arg)
{
        struct daemon *d = arg;
        struct pattern_space sp;
        uint64_t until = check_now_usec() + 1200000, n_right = 0;
        kvt *c = pattern_open(d, 0);

        PATTERN_SPACE(&sp, c, .part_bytes = 16384);
        for (uint64_t i = 0; check_now_usec() < until; i++) {
                kvt_key k[4];
                kvt_mapping m[4];
                pattern_keys(i % 16, 0, 4, k);
                int r = pattern_put(&sp, NULL, k, 4, 0, 0, statuses);
                CHECK(r == 0 || r == KVT_E_DISCONNECTED || r == KVT_E_RESTARTED || r == KVT_E_AGAIN || r == KVT_E_TIMEOUT);
                r = pattern_get(&sp, k, 4, 0, statuses);
                CHECK(r == 0 || r == KVT_E_DISCONNECTED || r == KVT_E_RESTARTED || r == KVT_E_TIMEOUT);
                n_right += !r && !statuses[0];
                r = kvt_map(sp.s, k, 4, m, statuses);
                for (int j = 0; !r && j < 4; j++)
                        if (!statuses[j])
                                CHECK_EQ(pattern_find(m[j].data, 16384, &k[j], 0, 0), 0);
                if (!r)
                        kvt_unmap(sp.s, m, 4, NULL);
        }
        CHECK(n_right > 0);
        kvt_space_close(sp.s);
        kvt_close(c);
}

static void test_work_goes_on_through_restarts(void **state)
{
        struct daemon d;
        pid_t pids[2];

        DAEMON_START(&d);
        for (int i = 0; i < 2; i++)
                pids[i] = child_start(work_through_restarts, &d);
        for (int i = 0; i < 3; i++) {
                usleep(150000);
                daemon_kill(&d);
                usleep(50000);
                daemon_restart(&d);
        }
        for (int i = 0; i < 2; i++)
                child_join(pids[i]);
        WAIT_FOR(daemon_audit(&d).n_leases == 0, 2000);
        daemon_end(&d);
}

static void test_a_second_daemon_is_refused(void **state)
{
        struct daemon d;
        char path[128];
        struct stat st;

        DAEMON_START(&d);
        enter(&a, &d);
        CHECK(RUN(d.args[0], d.args[1]) != 0);
        CHECK(strstr(text, "Another kvtierd serves"));
        CHECK(strstr(text, d.socket));
        CHECK(raw_alive(&a));
        enter(&b, &d); /* the socket is still the first one's */
        raw_close(&a);
        raw_close(&b);
        /* something else in the socket's place is left alone */
        snprintf(path, sizeof(path), "--socket=%s/file", d.dir);
        int fd = open(path + 9, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
        CHECK(fd >= 0 && write(fd, "precious", 8) == 8);
        close(fd);
        CHECK(RUN(d.args[0], path) != 0);
        CHECK(strstr(text, "is no socket"));
        CHECK(stat(path + 9, &st) == 0 && st.st_size == 8);
        CHECK(RUN(d.args[0], "--socket=relative/path") != 0);
        CHECK(strstr(text, "absolute"));
        CHECK(RUN(d.args[0], "--socket=/dev/null/nowhere/s") != 0);
        daemon_end(&d);
}

static void test_term_answers_what_is_under_way(void **state)
{
        Kvtier__PutBeginRequest begin = KVTIER__PUT_BEGIN_REQUEST__INIT;
        struct daemon d;
        struct stat st;

        DAEMON_START(&d, "--workers=1", "--host_bytes=128M");
        enter(&a, &d);
        enter(&b, &d);
        uint32_t space = raw_space(&a, "m", 1 << 20, 1);
        CHECK_EQ(raw_space(&b, "m", 1 << 20, 1), space);
        raw_staging(&a, 1 << 20);
        pattern_keys(1, 0, MANY, keys);
        raw_put_send(&a, 77, space, NULL, keys, MANY);
        bool answered = !raw_put_under_way(&a, 77), told = false;
        uint64_t start = check_now_usec();
        kill(d.pid, SIGTERM);
        WAIT_FOR(stat(d.socket, &st) < 0, 2000); /* nobody new comes in */
        begin.space = space;
        begin.keys = (ProtobufCBinaryData){16, keys[0].bytes};
        int r = raw_status(&b, KVT_MSG_PUT_BEGIN, &begin); /* no new work, unless all was done before we asked */
        CHECK(r == KVT_E_DRAINING || r == KVT_E_DISCONNECTED);
        while (raw_recv(&a, RAW_TIMEOUT_MSEC) == RAW_PACKET) {
                if (a.f.type == KVT_MSG_EVENT) {
                        Kvtier__Event *m = (Kvtier__Event *)raw_unpack(&a, &kvtier__event__descriptor);
                        CHECK(m);
                        told |= m->draining;
                        protobuf_c_message_free_unpacked(&m->base, NULL);
                        continue;
                }
                CHECK_EQ(a.f.type, KVT_MSG_PUT_COMMIT | KVT_REPLY);
                CHECK_EQ(a.f.request_id, 77);
                Kvtier__PutCommitReply *m = (Kvtier__PutCommitReply *)raw_unpack(&a, &kvtier__put_commit_reply__descriptor);
                CHECK(m && m->statuses.len == MANY);
                CHECK_EQ(pattern_count(m->statuses.data, MANY, 0), MANY);
                protobuf_c_message_free_unpacked(&m->base, NULL);
                answered = true;
        }
        CHECK(answered);
        CHECK(told);
        CHECK_EQ(daemon_wait(&d), 0);
        CHECK(check_now_usec() - start < 5000000 * CHECK_SLOW);
        raw_close(&a);
        raw_close(&b);
}

/* A client with leases and reservations, but nothing under way, does not hold the end up; nor does int differ from term. */
static void test_int_ends_at_once_when_nothing_is_under_way(void **state)
{
        struct kvt_map_entry e;
        struct daemon d;

        DAEMON_START(&d);
        enter(&a, &d);
        uint32_t space = raw_space(&a, "m", 4096, 1);
        raw_staging(&a, 1 << 20);
        pattern_keys(1, 0, 2, keys);
        CHECK_OK(raw_put(&a, space, 0, NULL, keys, 1, 4096, statuses));
        CHECK_OK(raw_map(&a, space, 0, keys, 1, &e));
        Kvtier__PutBeginRequest begin = KVTIER__PUT_BEGIN_REQUEST__INIT;
        begin.space = space;
        begin.keys = (ProtobufCBinaryData){16, keys[1].bytes};
        CHECK_OK(raw_status(&a, KVT_MSG_PUT_BEGIN, &begin));
        uint64_t start = check_now_usec();
        kill(d.pid, SIGINT);
        CHECK_EQ(daemon_wait(&d), 0);
        CHECK(check_now_usec() - start < 2000000 * CHECK_SLOW);
        raw_close(&a);
}

static void test_the_end_does_not_wait_longer_than_configured(void **state)
{
        struct daemon d;

        DAEMON_START(&d, "--workers=1", "--host_bytes=128M", "--drain_timeout_usec=0");
        enter(&a, &d);
        uint32_t space = raw_space(&a, "m", 1 << 20, 1);
        raw_staging(&a, 1 << 20);
        pattern_keys(1, 0, MANY, keys);
        raw_put_send(&a, 1, space, NULL, keys, MANY);
        raw_put_under_way(&a, 1);
        uint64_t start = check_now_usec();
        CHECK_EQ(daemon_stop(&d), 0); /* with copies under way: and no memory lost, where that is looked at */
        CHECK(check_now_usec() - start < 2000000 * CHECK_SLOW);
        raw_close(&a);
}

static uint64_t lease_usec(const struct daemon *d)
{
        Kvtier__HelloRequest q = KVTIER__HELLO_REQUEST__INIT;

        raw_open(&b, d->socket);
        q.version_min = q.version_max = KVT_PROTO_MAX;
        Kvtier__HelloReply *m = raw_call(&b, KVT_MSG_HELLO, &q, &kvtier__hello_reply__descriptor);
        CHECK(m);
        uint64_t usec = m->lease_usec;
        protobuf_c_message_free_unpacked(&m->base, NULL);
        raw_close(&b);
        return usec;
}

static void test_hup_reloads_what_may_change(void **state)
{
        struct daemon d;

        DAEMON_START(&d, "--staging_bytes=3M");
        CHECK_EQ(lease_usec(&d), 10000000);
        enter(&a, &d);
        daemon_write_config(&d, "lease_usec = 2s\nmax_leases = 77\nstaging_bytes = 5M\n");
        kill(d.pid, SIGHUP);
        WAIT_FOR(daemon_log_has(&d, "Configuration reloaded"), 2000);
        CHECK_EQ(lease_usec(&d), 2000000);
        CHECK(daemon_log_has(&d, "'max_leases' and others like it take a restart"));
        CHECK(raw_alive(&a));
        raw_staging(&a, 64 << 20);
        CHECK_EQ(a.staging_bytes, 3 << 20); /* a flag is stronger than the file, on reload as well */
        raw_close(&a);
        daemon_end(&d);
}

/* Leases and reservations of before keep their long deadlines; those of after do not wait behind them. */
static void test_hup_that_shortens_deadlines(void **state)
{
        struct kvt_put_entry put[2];
        struct kvt_map_entry e;
        struct daemon d;

        DAEMON_START(&d);
        daemon_write_config(&d, "lease_usec = 1h\nput_timeout_usec = 1h\n");
        kill(d.pid, SIGHUP);
        WAIT_FOR(lease_usec(&d) == 3600000000ull, 2000);
        enter(&a, &d);
        uint32_t space = raw_space(&a, "m", 4096, 1);
        raw_staging(&a, 1 << 20);
        pattern_keys(1, 0, 3, keys);
        CHECK_OK(raw_put(&a, space, 0, NULL, keys, 1, 4096, statuses));
        CHECK_OK(raw_map(&a, space, 0, keys, 1, &e));
        raw_ack_fds(&a);
        CHECK_OK(raw_put_begin(&a, space, &keys[1], 1, &put[0]));
        daemon_write_config(&d, "lease_usec = 100ms\nput_timeout_usec = 100ms\n");
        kill(d.pid, SIGHUP);
        WAIT_FOR(lease_usec(&d) == 100000, 2000);
        CHECK_OK(raw_map(&a, space, 0, keys, 1, &e));
        CHECK_OK(raw_put_begin(&a, space, &keys[2], 1, &put[1]));
        CHECK_OK(put[1].status);
        WAIT_FOR(daemon_status(&d).n_leases == 1, 2000);
        WAIT_FOR(daemon_status(&d).n_reservations == 1, 2000);
        usleep(200000);
        CHECK_EQ(daemon_status(&d).n_leases, 1);
        CHECK_OK(raw_put_commit(&a, space, put, 2, 4096, statuses));
        CHECK_OK(statuses[0]);
        CHECK_IS(statuses[1], KVT_E_UNKNOWN_RESERVATION);
        raw_close(&a);
        WAIT_FOR(daemon_audit(&d).n_leases == 0, 2000);
        daemon_end(&d);
}

static void test_hup_with_a_broken_file_changes_nothing(void **state)
{
        struct daemon d;

        DAEMON_START(&d);
        enter(&a, &d);
        daemon_write_config(&d, "lease_usec = 2s\nlease_usec = 2 parsecs\n");
        kill(d.pid, SIGHUP);
        WAIT_FOR(daemon_log_has(&d, "Configuration not reloaded"), 2000);
        CHECK(daemon_log_has(&d, "kvtierd.conf:2: lease_usec: '2 parsecs' has an unknown unit"));
        CHECK_EQ(lease_usec(&d), 10000000);
        CHECK(raw_alive(&a));
        unlink(d.config);
        kill(d.pid, SIGHUP);
        WAIT_FOR(daemon_log_has(&d, "No such file"), 2000);
        CHECK(raw_alive(&a));
        raw_close(&a);
        daemon_end(&d);
}

static void test_hup_changes_quotas_of_tenants_that_are_there(void **state)
{
        Kvtier__ListRequest q = KVTIER__LIST_REQUEST__INIT;
        struct daemon d;

        DAEMON_START(&d);
        enter(&a, &d);
        for (int i = 0; i < 2; i++) {
                Kvtier__ListReply *m = raw_call(&a, KVT_MSG_LIST, &q, &kvtier__list_reply__descriptor);
                CHECK(m && m->n_tenants == 1);
                CHECK_EQ(m->tenants[0]->hard_bytes, i ? 8 << 20 : 64 << 20);
                protobuf_c_message_free_unpacked(&m->base, NULL);
                daemon_write_config(&d, "tenant_hard_bytes = 8M\n");
                kill(d.pid, SIGHUP);
                WAIT_FOR(daemon_log_has(&d, "Configuration reloaded"), 2000);
        }
        raw_close(&a);
        daemon_end(&d);
}

static void test_check_config_says_where_and_what(void **state)
{
        static const struct {
                const char *text, *expect;
        } bad[] = {
                {"# fine\n\nlease_usec = 1s\nspeed = 9\n", "kvtierd.conf:4: unknown parameter 'speed'"},
                {"host_bytes = 1X\n", "kvtierd.conf:1: host_bytes: '1X' has an unknown unit 'X' (expected bytes with K, M, G or T"},
                {"host_bytes = 99999999999999999999\n", "kvtierd.conf:1: host_bytes: '99999999999999999999' overflows"},
                {"host_bytes = 18446744073709551615T\n", "overflows"},
                {"host_bytes = 1K\n", "kvtierd.conf:1: host_bytes: '1K' is out of range (16777216 to "},
                {"[tennant x]\nuid = 1\n", "kvtierd.conf:2: unknown section [tennant x]"},
        };
        struct daemon d;

        DAEMON_START(&d);
        CHECK_EQ(RUN(d.args[0], "--check-config"), 0);
        for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
                daemon_write_config(&d, bad[i].text);
                CHECK(RUN(d.args[0], "--check-config") == 1);
                if (!strstr(text, bad[i].expect))
                        check_failed(__FILE__, __LINE__, "said '%s', expected '%s'", text, bad[i].expect);
                CHECK(RUN(d.args[0], d.args[1]) == 1); /* nor does it start with it */
        }
        daemon_write_config(&d, "");
        CHECK(RUN(d.args[0], "--lease_usec=never", "--check-config") == 1);
        CHECK(strstr(text, "--lease_usec: lease_usec: 'never' is not a number"));
        CHECK(RUN(d.args[0], "--no-such-thing=1") == 1);
        CHECK(strstr(text, "unknown option '--no-such-thing=1'"));
        CHECK(RUN(d.args[0], "--lease_usec") == 1);
        CHECK(strstr(text, "no value for '--lease_usec'"));
        CHECK(RUN(d.args[0], "stray") == 1);
        CHECK(RUN("--config=/nonexistent/kvtierd.conf", "--check-config") == 1);
        CHECK(strstr(text, "/nonexistent/kvtierd.conf: No such file"));
        CHECK_EQ(RUN("--help"), 0);
        CHECK(strstr(text, "--check-config"));
        CHECK_EQ(RUN("--version"), 0);
        CHECK(strstr(text, "kvtierd "));
        daemon_end(&d);
}

static void test_flags_drop_ins_and_file_in_this_order(void **state)
{
        struct daemon d;
        char path[600];

        DAEMON_START(&d);
        daemon_write_config(&d, "[kvtierd]\nlease_usec = 1s\nput_timeout_usec = 1s\nhello_timeout_usec = 1s\nmax_leases=5\n");
        snprintf(path, sizeof(path), "%s.d", d.config);
        CHECK(mkdir(path, 0755) == 0);
        static const struct {
                const char *name, *text;
        } files[] = {{"20-b.conf", "put_timeout_usec = 3s\nhello_timeout_usec = 3s\n"},
                     {"10-a.conf", "put_timeout_usec = 2s\nhello_timeout_usec = 2s\n"},
                     {"30-c.txt", "nonsense"},
                     {".hidden.conf", "nonsense"}};
        for (size_t i = 0; i < sizeof(files) / sizeof(*files); i++) {
                snprintf(path, sizeof(path), "%s.d/%s", d.config, files[i].name);
                FILE *f = fopen(path, "we");
                CHECK(f && fputs(files[i].text, f) >= 0);
                fclose(f);
        }
        CHECK_EQ(RUN(d.args[0], "--hello-timeout-usec=4s", "--show-config"), 0);
        CHECK(strstr(text, "\nlease_usec = 1000000us\n"));
        CHECK(strstr(text, "\nput_timeout_usec = 3000000us\n"));
        CHECK(strstr(text, "\nhello_timeout_usec = 4000000us\n"));
        CHECK(strstr(text, "\nmax_leases = 5\n"));
        snprintf(path, sizeof(path), "%s.d/10-a.conf", d.config);
        FILE *f = fopen(path, "we");
        CHECK(f && fputs("\n\nworkers = many\n", f) >= 0);
        fclose(f);
        CHECK(RUN(d.args[0], "--check-config") == 1);
        CHECK(strstr(text, "10-a.conf:3: workers: 'many' is not a number (expected a whole number)"));
        daemon_end(&d);
}

/* No configuration, no flags, no root: a socket where the library looks for it. */
static void test_runs_without_configuration_and_without_root(void **state)
{
        struct daemon d; /* for its directory, and in its way */
        char dir[128], run[160], config[160], socket_[200];
        struct stat st;
        kvt *c;
        int status;

        DAEMON_START(&d);
        snprintf(dir, sizeof(dir), "%s/home", d.dir);
        snprintf(run, sizeof(run), "XDG_RUNTIME_DIR=%s", dir);
        snprintf(config, sizeof(config), "XDG_CONFIG_HOME=%s", dir);
        snprintf(socket_, sizeof(socket_), "%s/kvtier/kvtier.sock", dir);
        CHECK(mkdir(dir, 0700) == 0);
        uid_t uid = geteuid() ? geteuid() : 1010;
        if (!geteuid())
                CHECK(chown(dir, uid, uid) == 0);
        fflush(stdout);
        pid_t pid = fork();
        CHECK(pid >= 0);
        if (!pid) {
                char *const env[] = {run, config, NULL};
                int null = open("/dev/null", O_WRONLY | O_CLOEXEC);
                if (!geteuid() && (setgroups(0, NULL) || setresgid(uid, uid, uid) || setresuid(uid, uid, uid)))
                        _exit(126);
                prctl(PR_SET_PDEATHSIG, SIGKILL);
                dup2(null, STDERR_FILENO);
                execle(daemon_binary(), "kvtierd", NULL, env);
                _exit(127);
        }
        WAIT_FOR(stat(socket_, &st) == 0, 10000);
        putenv(run);
        unsetenv("KVTIER_SOCKET");
        kvt_options o = {.struct_size = sizeof(o), .path = socket_};
        WAIT_FOR(kvt_open(&o, &c) == 0, 5000);
        kvt_stats s = {.struct_size = sizeof(s)};
        CHECK_OK(kvt_stat(c, &s));
        CHECK_EQ(s.capacity_bytes, 1 << 30);
        kvt_close(c);
        kill(pid, SIGTERM);
        CHECK_EQ(waitpid(pid, &status, 0), pid);
        CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
        CHECK(stat(socket_, &st) < 0);
        unsetenv("XDG_RUNTIME_DIR");
        daemon_end(&d);
}

int main(void)
{
        const struct CMUnitTest tests[] = {
                TEST(test_the_library_survives_a_restart),
                TEST(test_work_goes_on_through_restarts),
                TEST(test_a_second_daemon_is_refused),
                TEST(test_term_answers_what_is_under_way),
                TEST(test_int_ends_at_once_when_nothing_is_under_way),
                TEST(test_the_end_does_not_wait_longer_than_configured),
                TEST(test_hup_reloads_what_may_change),
                TEST(test_hup_that_shortens_deadlines),
                TEST(test_hup_with_a_broken_file_changes_nothing),
                TEST(test_hup_changes_quotas_of_tenants_that_are_there),
                TEST(test_check_config_says_where_and_what),
                TEST(test_flags_drop_ins_and_file_in_this_order),
                TEST(test_runs_without_configuration_and_without_root),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
