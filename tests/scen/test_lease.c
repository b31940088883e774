/* Leases: ended by death, by the deadline, by fork not at all; and what a reader is told when memory went on to another use. */
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include "tests/lib/pattern.h"
#include "tests/lib/raw.h"

enum { N = 64 };

static kvt_key keys[512];
static uint8_t statuses[512];
static kvt_mapping maps[512];

struct side {
        struct daemon *d;
        struct meeting meet;
};

static void hold_leases(void *arg)
{
        struct side *x = arg;
        struct pattern_space sp;
        kvt *c = pattern_open(x->d, 0);

        PATTERN_SPACE(&sp, c, .part_bytes = 4096);
        CHECK_OK(kvt_map(sp.s, keys, N, maps, statuses));
        CHECK_EQ(pattern_count(statuses, N, 0), N);
        meeting_at(&x->meet, 1);
        for (;;)
                pause();
}

static void test_a_client_killed_gives_its_leases_back_at_once(void **state)
{
        struct pattern_space sp;
        struct daemon d;
        struct side x;

        DAEMON_START(&d, "--lease_usec=1h");
        pattern_keys(1, 0, N, keys);
        x.d = &d;
        meeting_init(&x.meet);
        kvt *c = pattern_open(&d, 0);
        PATTERN_SPACE(&sp, c, .part_bytes = 4096);
        pattern_store(&sp, NULL, keys, N);
        pid_t pid = child_start(hold_leases, &x);
        meeting_at(&x.meet, 0);
        CHECK_EQ(daemon_audit(&d).n_leases, N);
        uint64_t start = check_now_usec();
        kill(pid, SIGKILL);
        waitpid(pid, NULL, 0);
        WAIT_FOR(daemon_status(&d).n_leases == 0, 1000);
        CHECK(check_now_usec() - start < 1000000 * CHECK_SLOW);
        CHECK_EQ(daemon_audit(&d).n_blocks, N);
        CHECK_EQ(daemon_counter(&d, "leases_expired"), 0);
        meeting_deinit(&x.meet);
        kvt_space_close(sp.s);
        kvt_close(c);
        daemon_end(&d);
}

/* A reader that comes back after its deadline, when the memory holds other blocks: it is told so, whatever it read meanwhile. */
static void test_lease_lost_after_the_deadline(void **state)
{
        enum { PART = 256 << 10, MANY = 200 };
        struct pattern_space sp;
        struct daemon d;

        DAEMON_START(&d, "--lease_usec=100ms", "--host_bytes=16M");
        kvt *c = pattern_open(&d, 0), *writer = pattern_open(&d, 0);
        struct pattern_space out;
        PATTERN_SPACE(&sp, c, .part_bytes = PART);
        PATTERN_SPACE(&out, writer, .part_bytes = PART);
        pattern_keys(1, 0, 512, keys);
        pattern_store(&out, NULL, keys, 8);
        CHECK_OK(kvt_map(sp.s, keys, 8, maps, statuses));
        CHECK_EQ(pattern_count(statuses, 8, 0), 8);
        for (int i = 0; i < 8; i++)
                CHECK_EQ(pattern_find(maps[i].data, PART, &keys[i], 0, 0), 0);
        CHECK(maps[0].deadline_usec <= check_now_usec() + 100000);
        WAIT_FOR(daemon_status(&d).n_leases == 0, 2000); /* the reader slept */
        CHECK_EQ(daemon_counter(&d, "leases_expired"), 8);
        for (int i = 0; i < MANY; i++) /* others use the room: each block on its own, so that all are leaves */
                CHECK_OK(pattern_put(&out, NULL, &keys[100 + i], 1, 0, 0, statuses));
        CHECK_EQ(pattern_match(&out, keys, 1), 0);
        size_t n_lost = 0;
        for (int i = 0; i < 8; i++)
                n_lost += kvt_verify(sp.s, &maps[i]) == KVT_E_LEASE_LOST;
        CHECK_EQ(n_lost, 8);
        CHECK_IS(kvt_unmap(sp.s, maps, 8, statuses), KVT_E_LEASE_LOST);
        CHECK_EQ(pattern_count(statuses, 8, KVT_E_LEASE_LOST), 8);
        /* a reader in time is not */
        CHECK_OK(kvt_map(sp.s, &keys[100 + MANY - 1], 1, maps, statuses));
        CHECK_OK(statuses[0]);
        CHECK_OK(kvt_unmap(sp.s, maps, 1, statuses));
        /* and one past its deadline whose memory was left alone neither: what it read was right */
        CHECK_OK(kvt_map(sp.s, &keys[100 + MANY - 1], 1, maps, statuses));
        usleep(200000);
        CHECK_OK(kvt_verify(sp.s, &maps[0]));
        CHECK_OK(kvt_unmap(sp.s, maps, 1, statuses));
        kvt_space_close(sp.s);
        kvt_space_close(out.s);
        kvt_close(c);
        kvt_close(writer);
        daemon_end(&d);
}

static void read_and_be_stopped(void *arg)
{
        enum { PART = 256 << 10 };
        struct side *x = arg;
        struct pattern_space sp;
        kvt *c = pattern_open(x->d, 0);

        PATTERN_SPACE(&sp, c, .part_bytes = PART);
        CHECK_OK(kvt_map(sp.s, keys, 8, maps, statuses));
        CHECK_EQ(pattern_count(statuses, 8, 0), 8);
        meeting_at(&x->meet, 1); /* here the parent stops us */
        meeting_at(&x->meet, 1);
        CHECK_IS(kvt_unmap(sp.s, maps, 8, statuses), KVT_E_LEASE_LOST);
        CHECK_EQ(pattern_count(statuses, 8, KVT_E_LEASE_LOST), 8);
        CHECK_OK(pattern_get(&sp, keys, 8, 0, statuses)); /* nor does it get what took their place */
        CHECK_EQ(pattern_count(statuses, 8, KVT_E_MISS), 8);
        kvt_space_close(sp.s);
        kvt_close(c);
}

static void test_a_client_stopped_past_its_deadline(void **state)
{
        enum { PART = 256 << 10 };
        struct pattern_space sp;
        struct daemon d;
        struct side x;

        DAEMON_START(&d, "--lease_usec=100ms", "--host_bytes=16M");
        x.d = &d;
        meeting_init(&x.meet);
        pattern_keys(1, 0, 512, keys);
        static struct raw r; /* no thread before the fork */
        raw_open(&r, d.socket);
        raw_hello(&r);
        uint32_t space = raw_space(&r, "model", PART, 1);
        raw_staging(&r, PART);
        for (int i = 0; i < 8; i++) {
                pattern_fill(r.staging, PART, &keys[i], 0, 0);
                CHECK_OK(raw_put(&r, space, 0, NULL, &keys[i], 1, 0, statuses));
                CHECK_OK(statuses[0]);
        }
        pid_t pid = child_start(read_and_be_stopped, &x);
        meeting_at(&x.meet, 0);
        kill(pid, SIGSTOP);
        kvt *c = pattern_open(&d, 0);
        PATTERN_SPACE(&sp, c, .part_bytes = PART);
        WAIT_FOR(daemon_status(&d).n_leases == 0, 3000); /* the daemon waits for nobody */
        for (int i = 0; i < 200; i++)
                CHECK_OK(pattern_put(&sp, NULL, &keys[100 + i], 1, 0, 0, statuses));
        CHECK_EQ(pattern_match(&sp, keys, 1), 0);
        kill(pid, SIGCONT);
        meeting_at(&x.meet, 0);
        child_join(pid);
        meeting_deinit(&x.meet);
        raw_close(&r);
        kvt_space_close(sp.s);
        kvt_close(c);
        daemon_end(&d);
}

static void recycle(void *arg)
{
        struct side *x = arg;
        struct pattern_space sp;
        kvt *c = pattern_open(x->d, 0);

        PATTERN_SPACE(&sp, c, .part_bytes = 65536);
        meeting_at(&x->meet, 1);
        for (unsigned i = 0;; i++) {
                kvt_key k = pattern_key(9, i);
                pattern_put(&sp, NULL, &k, 1, 0, 0, NULL);
        }
}

/* Gets while memory is recycled under very short leases: wrong bytes never come with status 0 (pattern_get() looks at each). */
static void test_gets_under_recycling_are_right_or_refused(void **state)
{
        struct pattern_space sp;
        struct daemon d;
        struct side x;
        size_t n_right = 0;

        DAEMON_START(&d, "--lease_usec=1ms", "--host_bytes=16M");
        x.d = &d;
        meeting_init(&x.meet);
        pid_t pid = child_start(recycle, &x);
        kvt *c = pattern_open(&d, 0);
        PATTERN_SPACE(&sp, c, .part_bytes = 65536);
        pattern_keys(1, 0, N, keys);
        meeting_at(&x.meet, 0);
        for (uint64_t until = check_now_usec() + 1000000; check_now_usec() < until;) {
                CHECK_OK(pattern_put(&sp, NULL, keys, N, 0, 0, statuses));
                for (int i = 0; i < 4; i++) {
                        CHECK_OK(pattern_get(&sp, keys, N, 0, statuses));
                        for (int j = 0; j < N; j++) {
                                CHECK(!statuses[j] || statuses[j] == KVT_E_MISS || statuses[j] == KVT_E_LEASE_LOST ||
                                      statuses[j] == KVT_E_AGAIN);
                                n_right += !statuses[j];
                        }
                }
        }
        kill(pid, SIGKILL);
        waitpid(pid, NULL, 0);
        CHECK(n_right > 0);
        CHECK_EQ(daemon_counter(&d, "corrupt"), 0);
        meeting_deinit(&x.meet);
        kvt_space_close(sp.s);
        kvt_close(c);
        daemon_end(&d);
}

static void in_child(void *arg)
{
        struct pattern_space *sp = arg;
        kvt_match_result m;
        kvt_mapping map = {.data = &m};
        kvt_explanation e;
        kvt_stats stats = {.struct_size = sizeof(stats)};
        kvt_space *s;
        kvt_space_config config = {.struct_size = sizeof(config), .name = "x", .block_tokens = 1, .n_shards = 1};
        kvt_reservation reservation;

        CHECK_IS(kvt_match(sp->s, keys, 1, 0, 0, &m), KVT_E_FORKED);
        CHECK_IS(pattern_get(sp, keys, 1, 0, statuses), KVT_E_FORKED);
        CHECK_IS(pattern_put(sp, NULL, keys + 1, 1, 0, 0, statuses), KVT_E_FORKED);
        CHECK_IS(kvt_map(sp->s, keys, 1, &map, statuses), KVT_E_FORKED);
        map.data = &m;
        CHECK_IS(kvt_unmap(sp->s, &map, 1, statuses), KVT_E_FORKED);
        CHECK_IS(kvt_put_reserve(sp->s, NULL, keys, 1, 0, &reservation, statuses), KVT_E_FORKED);
        CHECK_IS(kvt_drop(sp->s, keys, 1, statuses), KVT_E_FORKED);
        CHECK_IS(kvt_prefetch(sp->s, keys, 1, 0, statuses), KVT_E_FORKED);
        CHECK_IS(kvt_explain(sp->s, keys, &e), KVT_E_FORKED);
        CHECK_IS(kvt_stat(sp->c, &stats), KVT_E_FORKED);
        CHECK_IS(kvt_flush(sp->c), KVT_E_FORKED);
        CHECK_IS(kvt_process(sp->c), KVT_E_FORKED);
        CHECK(kvt_space_open(sp->c, &config, &s) != 0);
        kvt_space_close(sp->s);
        kvt_close(sp->c); /* frees memory only */
}

static void test_fork_does_not_share_the_connection(void **state)
{
        struct pattern_space sp;
        struct daemon d;

        DAEMON_START(&d);
        kvt *c = pattern_open(&d, KVT_OPEN_NO_THREAD);
        PATTERN_SPACE(&sp, c, .part_bytes = 4096);
        pattern_keys(1, 0, 4, keys);
        pattern_store(&sp, NULL, keys, 1);
        CHECK_OK(kvt_map(sp.s, keys, 1, maps, statuses));
        child_run(in_child, &sp);
        CHECK_EQ(daemon_status(&d).n_leases, 1); /* the child's end is not ours */
        CHECK_EQ(pattern_find(maps[0].data, 4096, &keys[0], 0, 0), 0);
        CHECK_OK(kvt_unmap(sp.s, maps, 1, NULL));
        CHECK_OK(pattern_get(&sp, keys, 1, 0, statuses));
        CHECK_OK(statuses[0]);
        pattern_store(&sp, &keys[0], keys + 1, 2);
        CHECK_EQ(pattern_match(&sp, keys, 4), 3);
        kvt_space_close(sp.s);
        kvt_close(c);
        daemon_end(&d);
}

/* Everything the tenant may hold is leased: a put is refused at once, and works as soon as leases end. */
static void test_leases_that_cover_the_quota(void **state)
{
        enum { PART = 128 << 10 };
        struct pattern_space sp;
        struct daemon d;
        size_t n = 0;

        DAEMON_START(&d, "--lease_usec=1h", "--tenant_hard_bytes=16M");
        kvt *c = pattern_open(&d, 0);
        PATTERN_SPACE(&sp, c, .part_bytes = PART);
        pattern_keys(1, 0, 512, keys);
        for (;; n++) { /* store and lease until no more is taken */
                CHECK(n < 200);
                CHECK_OK(pattern_put(&sp, NULL, &keys[n], 1, 0, 0, statuses));
                if (statuses[0])
                        break;
                CHECK_OK(kvt_map(sp.s, &keys[n], 1, &maps[n], statuses));
                CHECK_OK(statuses[0]);
        }
        CHECK_IS(statuses[0], KVT_E_AGAIN_LEASED);
        CHECK(n >= 16);
        uint64_t start = check_now_usec();
        for (int i = 0; i < 20; i++) {
                CHECK_OK(pattern_put(&sp, NULL, &keys[400 + i], 1, 0, 0, statuses));
                CHECK_IS(statuses[0], KVT_E_AGAIN_LEASED);
        }
        CHECK(check_now_usec() - start < 1000000 * CHECK_SLOW); /* never a wait */
        CHECK_IS(pattern_why(&sp, &keys[400]), KVT_WHY_LEASED);
        kvt_reservation reservation;
        CHECK_OK(kvt_put_reserve(sp.s, NULL, &keys[400], 1, 0, &reservation, statuses));
        CHECK_IS(statuses[0], KVT_E_AGAIN_LEASED);
        CHECK_EQ(daemon_audit(&d).n_leases, n);
        CHECK(daemon_counter(&d, "refused_leased") >= 22);
        for (size_t i = 0; i < n; i++) /* nothing that was leased went away */
                CHECK_EQ(pattern_find(maps[i].data, PART, &keys[i], 0, 0), 0);
        CHECK_OK(kvt_unmap(sp.s, maps, 4, NULL));
        CHECK_OK(pattern_put(&sp, NULL, &keys[400], 1, 0, 0, statuses));
        CHECK_OK(statuses[0]);
        CHECK_OK(kvt_unmap(sp.s, maps + 4, n - 4, NULL));
        kvt_space_close(sp.s);
        kvt_close(c);
        daemon_end(&d);
}

/* Releases of leases one does not have do nothing. */
static void test_a_lease_is_its_sessions_own(void **state)
{
        Kvtier__ReleaseRequest q = KVTIER__RELEASE_REQUEST__INIT;
        static struct raw a, b;
        struct kvt_map_entry e[2];
        struct daemon d;

        DAEMON_START(&d);
        raw_open(&a, d.socket);
        raw_hello(&a);
        raw_open(&b, d.socket);
        raw_hello(&b);
        uint32_t space = raw_space(&a, "m", 4096, 1);
        raw_staging(&a, 1 << 20);
        pattern_keys(1, 0, 2, keys);
        CHECK_OK(raw_put(&a, space, 0, NULL, keys, 2, 4096, statuses));
        CHECK_OK(raw_map(&a, space, 0, keys, 2, e));
        CHECK_EQ(a.n_fds, 1); /* both in one slab */
        raw_ack_fds(&a);
        CHECK(e[0].lease && e[1].lease && e[0].lease != e[1].lease);
        q.leases = (ProtobufCBinaryData){8, (uint8_t *)&e[0].lease};
        raw_send(&b, KVT_MSG_RELEASE, 0, &q);
        CHECK(raw_alive(&b));
        CHECK_EQ(daemon_status(&d).n_leases, 2);
        raw_send(&a, KVT_MSG_RELEASE, 0, &q);
        raw_send(&a, KVT_MSG_RELEASE, 0, &q); /* twice counts once */
        CHECK(raw_alive(&a));
        CHECK_EQ(daemon_audit(&d).n_leases, 1);
        raw_close(&a);
        WAIT_FOR(daemon_audit(&d).n_leases == 0, 2000);
        raw_close(&b);
        daemon_end(&d);
}

int main(void)
{
        const struct CMUnitTest tests[] = {
                TEST(test_a_client_killed_gives_its_leases_back_at_once),
                TEST(test_lease_lost_after_the_deadline),
                TEST(test_a_client_stopped_past_its_deadline),
                TEST(test_gets_under_recycling_are_right_or_refused),
                TEST(test_fork_does_not_share_the_connection),
                TEST(test_leases_that_cover_the_quota),
                TEST(test_a_lease_is_its_sessions_own),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
