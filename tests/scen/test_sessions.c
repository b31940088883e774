/* Many connections, idle connections, and connections that do not read: the others do not notice, and the daemon does not spin. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/resource.h>
#include <sys/socket.h>

#include "tests/lib/pattern.h"
#include "tests/lib/raw.h"

enum { MANY = 1000 };

static struct raw a, b;
static kvt_key keys[2048];
static uint8_t statuses[2048];

static void enter(struct raw *r, const struct daemon *d)
{
        raw_open(r, d->socket);
        raw_hello(r);
}

static void test_a_thousand_connections_at_once(void **state)
{
        static int fds[MANY];
        struct daemon d;
        struct rlimit l;

        CHECK(getrlimit(RLIMIT_NOFILE, &l) == 0);
        l.rlim_cur = l.rlim_max;
        setrlimit(RLIMIT_NOFILE, &l);
        if (l.rlim_cur < MANY + 100)
                check_skip("the limit of open files is below 1,100");
        DAEMON_START(&d);
        unsigned before = daemon_n_fds(&d);
        for (int i = 0; i < MANY; i++) {
                enter(&a, &d);
                fds[i] = a.fd;
        }
        CHECK_EQ(daemon_status(&d).n_sessions, MANY);
        CHECK_EQ(daemon_n_fds(&d), before + MANY);
        for (int i = 0; i < MANY; i++) { /* all ask, then all are answered */
                Kvtier__PingRequest q = KVTIER__PING_REQUEST__INIT;
                a.fd = fds[i];
                q.data = (ProtobufCBinaryData){sizeof(i), (uint8_t *)&i};
                CHECK_EQ(raw_send(&a, KVT_MSG_PING, (uint32_t)i + 1, &q), 0);
        }
        for (int i = 0; i < MANY; i++) {
                a.fd = fds[i];
                CHECK_EQ(raw_recv(&a, RAW_TIMEOUT_MSEC), RAW_PACKET);
                CHECK_EQ(a.f.request_id, i + 1);
                Kvtier__PingReply *m = (Kvtier__PingReply *)raw_unpack(&a, &kvtier__ping_reply__descriptor);
                CHECK(m && m->data.len == sizeof(i) && !memcmp(m->data.data, &i, sizeof(i)));
                protobuf_c_message_free_unpacked(&m->base, NULL);
        }
        for (int i = 0; i < MANY; i++)
                close(fds[i]);
        WAIT_FOR(daemon_status(&d).n_sessions == 0, 5000);
        WAIT_FOR(daemon_n_fds(&d) == before, 2000);
        daemon_end(&d);
}

static void test_more_connections_than_allowed(void **state)
{
        static struct raw r[9];
        struct daemon d;

        DAEMON_START(&d, "--max_sessions=8");
        for (int i = 0; i < 8; i++)
                enter(&r[i], &d);
        raw_open(&r[8], d.socket);
        raw_expect_error(&r[8], 0, KVT_E_LIMIT);
        raw_expect_closed(&r[8]);
        raw_close(&r[8]);
        for (int i = 0; i < 8; i++)
                CHECK(raw_alive(&r[i]));
        for (int i = 0; i < 4; i++)
                raw_leave(&r[i]);
        CHECK_EQ(daemon_status(&d).n_sessions, 4);
        enter(&r[0], &d);
        CHECK(raw_alive(&r[0]));
        raw_close(&r[0]);
        for (int i = 4; i < 8; i++)
                raw_leave(&r[i]);
        daemon_end(&d);

        DAEMON_START(&d, "--max_sessions_tenant=3");
        for (int i = 0; i < 3; i++)
                enter(&r[i], &d);
        raw_open(&r[3], d.socket);
        raw_expect_error(&r[3], 0, KVT_E_LIMIT);
        raw_close(&r[3]);
        for (int i = 0; i < 3; i++)
                raw_leave(&r[i]);
        daemon_end(&d);
}

/* More connections than the daemon may have files: the last are closed, the others served, and it does not spin. */
static void test_out_of_files(void **state)
{
        static int fds[120];
        struct daemon d;
        struct pollfd p;
        int n_closed = 0;

        daemon_user(0, 64);
        DAEMON_START(&d);
        enter(&b, &d);
        for (int i = 0; i < 120; i++) {
                raw_open(&a, d.socket);
                fds[i] = a.fd;
        }
        uint64_t cpu = daemon_cpu_usec(&d);
        usleep(700000);
        CHECK(daemon_cpu_usec(&d) - cpu < 200000 * CHECK_SLOW);
        CHECK(raw_alive(&b));
        for (int i = 0; i < 120; i++) {
                p = (struct pollfd){.fd = fds[i], .events = POLLIN};
                n_closed += poll(&p, 1, 0) == 1;
        }
        CHECK(n_closed > 50 && n_closed < 120);
        for (int i = 0; i < 120; i++)
                close(fds[i]);
        raw_close(&b);
        usleep(20000);
        WAIT_FOR(daemon_status(&d).n_sessions == 0, 2000);
        CHECK(daemon_log_has(&d, "Out of file descriptors"));
        daemon_end(&d);
}

static void test_idle_makes_no_wake_ups(void **state)
{
        static int fds[100];
        struct kvt_map_entry e;
        struct daemon d;

        DAEMON_START(&d, "--lease_usec=1h");
        for (int i = 0; i < 100; i++) {
                enter(&a, &d);
                fds[i] = a.fd;
        }
        enter(&b, &d);
        uint32_t space = raw_space(&b, "m", 4096, 1);
        raw_staging(&b, 1 << 20);
        pattern_keys(1, 0, 1, keys);
        CHECK_OK(raw_put(&b, space, 0, NULL, keys, 1, 4096, statuses));
        CHECK_OK(raw_map(&b, space, 0, keys, 1, &e));
        CHECK_OK(e.status);
        raw_ack_fds(&b);
        CHECK_EQ(daemon_status(&d).n_leases, 1);
        usleep(300000); /* what was started may end */
        uint64_t sleeps = daemon_n_sleeps(&d), cpu = daemon_cpu_usec(&d);
        CHECK(sleeps > 0);
        usleep(1500000);
        CHECK_EQ(daemon_n_sleeps(&d), sleeps);
        CHECK(daemon_cpu_usec(&d) - cpu < 20000 * CHECK_SLOW);
        CHECK(raw_alive(&b));
        WAIT_FOR(daemon_n_sleeps(&d) > sleeps, 1000); /* we do count what we think we count */
        raw_close(&b);
        for (int i = 0; i < 100; i++)
                close(fds[i]);
        daemon_end(&d);
}

/* One that sends and never reads: its answers wait, nobody else's do, and when it reads at last nothing is missing. */
static void test_a_client_that_does_not_read(void **state)
{
        Kvtier__PingRequest q = KVTIER__PING_REQUEST__INIT;
        static uint8_t data[60000];
        struct daemon d;
        uint32_t n_sent = 0, n_got = 0;

        DAEMON_START(&d);
        enter(&a, &d);
        enter(&b, &d);
        fcntl(a.fd, F_SETFL, O_NONBLOCK);
        q.data = (ProtobufCBinaryData){sizeof(data), data};
        for (int quiet = 0; quiet < 20;) { /* until nothing more is taken for a while */
                if (raw_send(&a, KVT_MSG_PING, n_sent + 1, &q) == 0) {
                        n_sent++;
                        quiet = 0;
                } else {
                        usleep(5000);
                        quiet++;
                }
                CHECK(n_sent < 10000);
        }
        CHECK(n_sent > 4);
        uint64_t cpu = daemon_cpu_usec(&d), start = check_now_usec();
        for (int i = 0; i < 200; i++)
                CHECK(raw_alive(&b));
        CHECK(check_now_usec() - start < 1000000 * CHECK_SLOW);
        usleep(700000);
        CHECK(daemon_cpu_usec(&d) - cpu < 200000 * CHECK_SLOW);
        fcntl(a.fd, F_SETFL, 0);
        while (n_got < n_sent) {
                CHECK_EQ(raw_recv(&a, RAW_TIMEOUT_MSEC), RAW_PACKET);
                CHECK_EQ(a.f.type, KVT_MSG_PING | KVT_REPLY);
                CHECK_EQ(a.f.request_id, ++n_got);
                CHECK(a.f.body_bytes > sizeof(data));
        }
        CHECK(raw_alive(&a));
        raw_close(&a);
        raw_close(&b);
        daemon_end(&d);
}

/* Stores one block in each of n slabs. */
static uint32_t fill_slabs(struct raw *r, int n)
{
        uint32_t space = raw_space(r, "big", 1100 << 10, 1); /* one to a slab */

        raw_staging(r, 1100 << 10);
        pattern_keys(1, 0, (size_t)n, keys);
        for (int i = 0; i < n; i++) {
                CHECK_OK(raw_put(r, space, 0, NULL, &keys[i], 1, 0, statuses));
                CHECK_OK(statuses[0]);
        }
        return space;
}

/* A packet with descriptors that is not acknowledged: no second one comes, what does not need one is served, and the session is not stuck for good. */
static void test_one_packet_of_descriptors_at_a_time(void **state)
{
        struct kvt_map_entry e[24];
        struct daemon d;

        DAEMON_START(&d);
        enter(&a, &d);
        uint32_t space = fill_slabs(&a, 20);
        CHECK_OK(raw_map(&a, space, 0, keys, 20, e)); /* twenty slabs, sixteen descriptors */
        CHECK_EQ(a.n_fds, KVT_FDS_MAX);
        size_t n_again = 0;
        for (int i = 0; i < 20; i++)
                n_again += e[i].status == KVT_E_AGAIN;
        CHECK_EQ(n_again, 20 - KVT_FDS_MAX);
        CHECK_OK(raw_map(&a, space, 0, keys, 20, e)); /* not acknowledged: no more of them */
        CHECK_EQ(a.n_fds, 0);
        for (int i = 0; i < 20; i++)
                CHECK_IS(e[i].status, i < KVT_FDS_MAX ? 0 : KVT_E_AGAIN);
        CHECK_EQ(daemon_status(&d).n_leases, 2 * KVT_FDS_MAX);
        raw_ack_fds(&a);
        CHECK_OK(raw_map(&a, space, 0, keys, 20, e));
        CHECK_EQ(a.n_fds, 20 - KVT_FDS_MAX);
        for (int i = 0; i < 20; i++)
                CHECK_OK(e[i].status);
        raw_close(&a);
        WAIT_FOR(daemon_audit(&d).n_leases == 0, 2000);
        daemon_end(&d);
}

/* Clients that leave descriptors unread until the kernel takes no more in flight from the daemon's user: others are told to try again, then are
 * served once the hoarders are gone. */
static void test_descriptors_that_nobody_reads(void **state)
{
        enum { HOARDERS = 30, FILES = 160 };
        static struct raw hoarders[HOARDERS];
        struct kvt_map_entry e[16];
        struct daemon d;
        Kvtier__MapRequest q = KVTIER__MAP_REQUEST__INIT;
        bool refused = false;

        if (geteuid() != 0)
                check_skip("the daemon needs a user of its own with a low limit of files: run as root");
        daemon_user(20000 + (uid_t)getpid() % 20000, FILES); /* the kernel counts by user: nobody else may be this one */
        DAEMON_START(&d);
        enter(&a, &d);
        uint32_t space = fill_slabs(&a, 16);
        raw_close(&a);
        q.space = space;
        q.keys = (ProtobufCBinaryData){16 * 16, keys[0].bytes};
        for (int i = 0; i < HOARDERS; i++) {
                enter(&hoarders[i], &d);
                CHECK_EQ(raw_space(&hoarders[i], "big", 1100 << 10, 1), space);
                CHECK_EQ(raw_send(&hoarders[i], KVT_MSG_MAP, 9, &q), 0); /* and reads no more */
        }
        usleep(50000);
        enter(&b, &d);
        CHECK_EQ(raw_space(&b, "big", 1100 << 10, 1), space);
        CHECK_OK(raw_map(&b, space, 0, keys, 16, e));
        for (int i = 0; i < 16; i++)
                refused |= e[i].status == KVT_E_AGAIN;
        CHECK(refused);
        CHECK_EQ(b.n_fds, 0);
        Kvtier__StagingOpenRequest staging = KVTIER__STAGING_OPEN_REQUEST__INIT;
        staging.bytes = 4096;
        CHECK_IS(raw_status(&b, KVT_MSG_STAGING_OPEN, &staging), KVT_E_AGAIN);
        uint64_t cpu = daemon_cpu_usec(&d);
        for (int i = 0; i < 100; i++)
                CHECK(raw_alive(&b));
        usleep(700000);
        CHECK(daemon_cpu_usec(&d) - cpu < 200000 * CHECK_SLOW);
        for (int i = 0; i < HOARDERS; i++)
                raw_close(&hoarders[i]);
        WAIT_FOR(daemon_status(&d).n_sessions == 1, 2000);
        CHECK_OK(raw_map(&b, space, 0, keys, 16, e));
        CHECK_EQ(b.n_fds, 16);
        for (int i = 0; i < 16; i++)
                CHECK_OK(e[i].status);
        CHECK_EQ(daemon_audit(&d).n_leases, 16);
        raw_close(&b);
        WAIT_FOR(daemon_audit(&d).n_leases == 0, 2000);
        daemon_end(&d);
}

/* An answer with descriptors waits behind others that are not read; when those are, the kernel takes no descriptors. Then it waits for a timer, not
 * for the socket, which would be writable all the time; and it comes when there is room. Which number of unread answers just fills a socket is the
 * kernel's secret, so a session for each number. */
static void test_descriptors_wait_their_turn_in_the_queue(void **state)
{
        enum { HOARDERS = 14, SESSIONS = 48, FILES = 160 };
        static struct raw hoarders[HOARDERS], r[SESSIONS];
        static uint8_t data[60000];
        static bool stuck[SESSIONS], asked[SESSIONS];
        Kvtier__MapRequest q = KVTIER__MAP_REQUEST__INIT;
        Kvtier__PingRequest ping = KVTIER__PING_REQUEST__INIT;
        struct daemon d;
        int n_stuck = 0;

        if (geteuid() != 0)
                check_skip("the daemon needs a user of its own with a low limit of files: run as root");
        daemon_user(40000 + (uid_t)getpid() % 20000, FILES);
        DAEMON_START(&d);
        enter(&a, &d);
        uint32_t space = fill_slabs(&a, 16);
        q.space = space;
        q.keys = (ProtobufCBinaryData){16 * 16, keys[0].bytes};
        ping.data = (ProtobufCBinaryData){sizeof(data), data};
        for (int i = 0; i < HOARDERS; i++) {
                enter(&hoarders[i], &d);
                raw_send(&hoarders[i], KVT_MSG_MAP, 9, &q);
        }
        for (int i = 0; i < SESSIONS; i++) {
                enter(&r[i], &d);
                fcntl(r[i].fd, F_SETFL, O_NONBLOCK); /* what the daemon does not take in is not sent */
                r[i].last_id = 0;
                for (int tries = 0; r[i].last_id < (uint32_t)i && tries < 20; tries++)
                        if (raw_send(&r[i], KVT_MSG_PING, r[i].last_id + 1, &ping) == 0) {
                                r[i].last_id++;
                                tries = 0;
                        } else {
                                usleep(1000);
                        }
                asked[i] = false;
                for (int tries = 0; !asked[i] && tries < 20; tries++) {
                        asked[i] = raw_send(&r[i], KVT_MSG_MAP, 99, &q) == 0;
                        usleep(1000);
                }
        }
        usleep(50000);
        for (int i = SESSIONS - 1; i >= 0; i--) {
                for (uint32_t k = 1; k <= r[i].last_id; k++) {
                        CHECK_EQ(raw_recv(&r[i], RAW_TIMEOUT_MSEC), RAW_PACKET);
                        CHECK_EQ(r[i].f.request_id, k);
                }
                enum raw_got got = raw_recv(&r[i], 30);
                stuck[i] = got == RAW_NOTHING && asked[i];
                n_stuck += stuck[i];
                CHECK(got != RAW_CLOSED);
        }
        uint64_t cpu = daemon_cpu_usec(&d);
        for (int i = 0; i < 50; i++)
                CHECK(raw_alive(&a));
        usleep(500000);
        CHECK(daemon_cpu_usec(&d) - cpu < 150000 * CHECK_SLOW);
        for (int i = 0; i < HOARDERS; i++)
                raw_close(&hoarders[i]);
        for (int i = 0; i < SESSIONS; i++)
                if (stuck[i]) {
                        CHECK_EQ(raw_recv(&r[i], RAW_TIMEOUT_MSEC), RAW_PACKET);
                        CHECK_EQ(r[i].f.request_id, 99);
                        CHECK_EQ(r[i].n_fds, 16);
                }
        if (!n_stuck)
                print_message("no socket was filled to the brim: nothing shown\n");
        for (int i = 0; i < SESSIONS; i++)
                raw_close(&r[i]);
        raw_close(&a);
        WAIT_FOR(daemon_audit(&d).n_leases == 0, 2000);
        daemon_end(&d);
}

/* events */

struct seen {
        size_t n_stored, n_removed;
        uint64_t n_lost;
        kvt_key stored[64], removed[64];
};

static void on_event(const kvt_key *stored, size_t n_stored, const kvt_key *removed, size_t n_removed, uint64_t n_lost, void *arg)
{
        struct seen *s = arg;

        CHECK(s->n_stored + n_stored <= 64 && s->n_removed + n_removed <= 64);
        for (size_t i = 0; i < n_stored; i++)
                s->stored[s->n_stored++] = stored[i];
        for (size_t i = 0; i < n_removed; i++)
                s->removed[s->n_removed++] = removed[i];
        s->n_lost += n_lost;
}

static bool process_until(kvt *c, const struct seen *s, size_t n_stored, size_t n_removed)
{
        CHECK_OK(kvt_process(c));
        return s->n_stored == n_stored && s->n_removed == n_removed;
}

static void test_events_tell_what_comes_and_goes(void **state)
{
        struct pattern_space sp, watched, other;
        struct seen seen = {};
        struct daemon d;

        DAEMON_START(&d);
        kvt *c = pattern_open(&d, 0), *watcher = pattern_open(&d, 0);
        PATTERN_SPACE(&sp, c, .part_bytes = 4096);
        PATTERN_SPACE(&other, c, .name = "other");
        PATTERN_SPACE(&watched, watcher, .part_bytes = 4096);
        pattern_keys(1, 0, 10, keys);
        pattern_store(&sp, NULL, keys, 1); /* before: not told */
        CHECK_OK(kvt_events(watched.s, on_event, &seen));
        pattern_store(&sp, &keys[0], keys + 1, 5);
        pattern_store(&other, NULL, keys, 3); /* another space: not told */
        WAIT_FOR(process_until(watcher, &seen, 5, 0), 2000);
        for (int i = 0; i < 5; i++) { /* in the order in which copies were done */
                size_t n_told = 0;
                for (int j = 0; j < 5; j++)
                        n_told += !memcmp(&seen.stored[j], &keys[1 + i], 16);
                CHECK_EQ(n_told, 1);
        }
        CHECK_OK(kvt_drop(sp.s, &keys[3], 1, statuses));
        WAIT_FOR(process_until(watcher, &seen, 5, 3), 2000);
        for (int i = 0; i < 3; i++) { /* with what continued it */
                bool there = false;
                for (int j = 3; j < 6; j++)
                        there |= !memcmp(&seen.removed[i], &keys[j], 16);
                CHECK(there);
        }
        CHECK_EQ(seen.n_lost, 0);
        CHECK_OK(kvt_events(watched.s, NULL, NULL));
        pattern_store(&sp, &keys[2], keys + 3, 1);
        usleep(50000);
        CHECK_OK(kvt_process(watcher));
        CHECK_EQ(seen.n_stored, 5);
        kvt_space_close(sp.s);
        kvt_space_close(other.s);
        kvt_space_close(watched.s);
        kvt_close(c);
        kvt_close(watcher);
        daemon_end(&d);
}

static void test_events_that_are_not_read_are_counted(void **state)
{
        enum { BATCH = 512, BATCHES = 300 };
        Kvtier__EventsRequest q = KVTIER__EVENTS_REQUEST__INIT;
        Kvtier__DropRequest drop = KVTIER__DROP_REQUEST__INIT;
        struct daemon d;
        uint64_t n_seen = 0, n_lost = 0;

        DAEMON_START(&d);
        enter(&a, &d);
        enter(&b, &d);
        q.space = raw_space(&b, "m", 64, 1);
        q.on = true;
        CHECK_OK(raw_status(&b, KVT_MSG_EVENTS, &q));
        uint32_t space = raw_space(&a, "m", 64, 1);
        raw_staging(&a, 1 << 20);
        pattern_keys(1, 0, BATCH, keys);
        drop.space = space;
        drop.keys = (ProtobufCBinaryData){16, keys[0].bytes};
        for (uint64_t i = 0; i < BATCHES; i++) { /* packets of events, unread */
                CHECK_OK(raw_put(&a, space, 0, NULL, keys, BATCH, 64, statuses));
                CHECK_EQ(pattern_count(statuses, BATCH, 0), BATCH);
                CHECK_OK(raw_status(&a, KVT_MSG_DROP, &drop));
        }
        CHECK(daemon_counter(&d, "events_lost") > 0);
        while (n_seen + n_lost < 2 * BATCH * BATCHES) {
                CHECK_EQ(raw_recv(&b, RAW_TIMEOUT_MSEC), RAW_PACKET);
                CHECK_EQ(b.f.type, KVT_MSG_EVENT);
                Kvtier__Event *m = (Kvtier__Event *)raw_unpack(&b, &kvtier__event__descriptor);
                CHECK(m && m->space == space && m->stored.len % 16 == 0 && m->removed.len % 16 == 0);
                n_seen += (m->stored.len + m->removed.len) / 16;
                n_lost += m->n_lost;
                protobuf_c_message_free_unpacked(&m->base, NULL);
        }
        CHECK_EQ(n_seen + n_lost, 2 * BATCH * BATCHES); /* told or counted, each once */
        CHECK_EQ(n_lost, daemon_counter(&d, "events_lost"));
        CHECK(raw_alive(&b));
        raw_close(&a);
        raw_close(&b);
        daemon_end(&d);
}

int main(void)
{
        const struct CMUnitTest tests[] = {
                TEST(test_a_thousand_connections_at_once),
                TEST(test_more_connections_than_allowed),
                TEST(test_out_of_files),
                TEST(test_idle_makes_no_wake_ups),
                TEST(test_a_client_that_does_not_read),
                TEST(test_one_packet_of_descriptors_at_a_time),
                TEST(test_descriptors_that_nobody_reads),
                TEST(test_descriptors_wait_their_turn_in_the_queue),
                TEST(test_events_tell_what_comes_and_goes),
                TEST(test_events_that_are_not_read_are_counted),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
