/* A daemon that polls after work: it does, for as long as it was told, for whoever is there, and outlives the session it polled. */
#include <signal.h>
#include <sys/wait.h>

#include "tests/lib/daemon.h"
#include "tests/lib/pattern.h"

enum { N_KEYS = 8 };

static void test_polls_then_sleeps(void **state)
{
        struct pattern_space p;
        kvt_key keys[N_KEYS];
        struct daemon d = {};
        uint64_t before;
        kvt *c;

        DAEMON_START(&d, "--busy_poll_usec=1s");
        c = pattern_open(&d, 0);
        PATTERN_SPACE(&p, c, .part_bytes = 4096);
        pattern_keys(1, 0, N_KEYS, keys);
        pattern_store(&p, NULL, keys, N_KEYS);
        before = daemon_cpu_usec(&d);
        usleep(700000);
        CHECK(daemon_cpu_usec(&d) - before > 100000); /* others may want the CPU, too */
        usleep(600000);
        before = daemon_cpu_usec(&d);
        usleep(500000);
        CHECK(daemon_cpu_usec(&d) - before < 50000);
        CHECK_EQ(pattern_match(&p, keys, N_KEYS), N_KEYS);
        kvt_space_close(p.s);
        kvt_close(c);
        daemon_end(&d);
}

static void client(void *arg)
{
        struct daemon *d = arg;
        struct pattern_space p;
        uint8_t statuses[N_KEYS];
        kvt_key keys[N_KEYS];
        kvt *c = pattern_open(d, 0);

        PATTERN_SPACE(&p, c, .part_bytes = 4096);
        pattern_keys((uint64_t)getpid(), 0, N_KEYS, keys);
        pattern_store(&p, NULL, keys, N_KEYS);
        for (int i = 0; i < 300; i++) {
                CHECK_EQ(pattern_match(&p, keys, N_KEYS), N_KEYS);
                CHECK_OK(pattern_get(&p, keys, N_KEYS, PATTERN_ANY, statuses));
                CHECK_EQ(pattern_count(statuses, N_KEYS, 0), N_KEYS);
        }
        kvt_space_close(p.s);
        kvt_close(c);
}

static void chatterbox(void *arg)
{
        struct pattern_space p;
        kvt_key key = pattern_key(1, 0);
        kvt *c = pattern_open(arg, 0);

        PATTERN_SPACE(&p, c, .part_bytes = 4096);
        for (;;)
                pattern_match(&p, &key, 1);
}

static void test_serves_all(void **state)
{
        struct daemon d = {};
        pid_t pids[3], noisy;

        DAEMON_START(&d, "--busy_poll_usec=100ms");
        noisy = child_start(chatterbox, &d);
        for (size_t i = 0; i < 3; i++)
                pids[i] = child_start(client, &d);
        for (size_t i = 0; i < 3; i++)
                child_join(pids[i]);
        CHECK(kill(noisy, SIGKILL) == 0 && waitpid(noisy, NULL, 0) == noisy);
        WAIT_FOR(daemon_status(&d).n_sessions == 0, 5000);
        daemon_end(&d);
}

static void test_outlives_the_session_it_polls(void **state)
{
        struct daemon d = {};

        DAEMON_START(&d, "--busy_poll_usec=200ms");
        for (int i = 0; i < 20; i++) {
                kvt_stats stats = {.struct_size = sizeof(stats)};
                kvt *c = pattern_open(&d, 0);

                CHECK_OK(kvt_stat(c, &stats));
                kvt_close(c);
                if (i % 5 == 0) {
                        pid_t pid = child_start(chatterbox, &d);

                        usleep(20000);
                        CHECK(kill(pid, SIGKILL) == 0 && waitpid(pid, NULL, 0) == pid);
                }
        }
        WAIT_FOR(daemon_status(&d).n_sessions == 0, 5000);
        daemon_end(&d);
}

int main(void)
{
        const struct CMUnitTest tests[] = {
                TEST(test_polls_then_sleeps),
                TEST(test_serves_all),
                TEST(test_outlives_the_session_it_polls),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
