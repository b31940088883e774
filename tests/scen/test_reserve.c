/* Reservations and staging: room that is set aside, and given back when nothing comes. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/socket.h>

#include "tests/lib/pattern.h"
#include "tests/lib/raw.h"

enum { MANY = 48 };

static struct raw a, b;
static kvt_key keys[KVT_KEYS_MAX];
static uint8_t statuses[KVT_KEYS_MAX];

static void enter(struct raw *r, const struct daemon *d)
{
        raw_open(r, d->socket);
        raw_hello(r);
}

static void test_a_commit_that_never_comes(void **state)
{
        struct kvt_put_entry e[8];
        struct daemon d;

        DAEMON_START(&d, "--put_timeout_usec=200ms");
        enter(&a, &d);
        uint32_t space = raw_space(&a, "m", 65536, 1);
        raw_staging(&a, 1 << 20);
        pattern_keys(1, 0, 8, keys);
        CHECK_OK(raw_put_begin(&a, space, keys, 8, e));
        for (int i = 0; i < 8; i++)
                CHECK_OK(e[i].status);
        struct daemon_status s = daemon_audit(&d);
        CHECK_EQ(s.n_reservations, 8);
        CHECK(s.used_bytes >= 8 * 65536);
        CHECK_EQ(s.n_blocks, 0); /* reserved is not stored */
        WAIT_FOR(daemon_audit(&d).n_reservations == 0, 2000);
        CHECK_EQ(daemon_audit(&d).used_bytes, 0);
        CHECK_EQ(daemon_counter(&d, "put_timeouts"), 8);
        CHECK_OK(raw_put_commit(&a, space, e, 8, 65536, statuses)); /* too late */
        CHECK_EQ(pattern_count(statuses, 8, KVT_E_UNKNOWN_RESERVATION), 8);
        CHECK_OK(raw_put_begin(&a, space, keys, 8, e)); /* and the session works on */
        CHECK_OK(raw_put_commit(&a, space, e, 8, 65536, statuses));
        CHECK_EQ(pattern_count(statuses, 8, 0), 8);
        CHECK_EQ(daemon_audit(&d).n_blocks, 8);
        raw_close(&a);
        daemon_end(&d);
}

static void test_reservations_are_their_sessions_own_and_count_once(void **state)
{
        Kvtier__PutAbortRequest q = KVTIER__PUT_ABORT_REQUEST__INIT;
        struct kvt_put_entry e[4], twice[2];
        struct daemon d;

        DAEMON_START(&d);
        enter(&a, &d);
        enter(&b, &d);
        uint32_t space = raw_space(&a, "m", 4096, 1), other = raw_space(&a, "other", 4096, 1);
        raw_staging(&a, 1 << 20);
        raw_staging(&b, 1 << 20);
        pattern_keys(1, 0, 4, keys);
        CHECK_OK(raw_put_begin(&a, space, keys, 4, e));
        CHECK_OK(raw_put_commit(&b, space, e, 4, 4096, statuses)); /* another session's */
        CHECK_EQ(pattern_count(statuses, 4, KVT_E_UNKNOWN_RESERVATION), 4);
        CHECK_OK(raw_put_commit(&a, other, e, 1, 4096, statuses)); /* in another space */
        CHECK_IS(statuses[0], KVT_E_UNKNOWN_RESERVATION);
        q.reservations = (ProtobufCBinaryData){8, (uint8_t *)&e[0].reservation};
        CHECK_OK(raw_status(&b, KVT_MSG_PUT_ABORT, &q));
        CHECK_EQ(daemon_status(&d).n_reservations, 4);
        twice[0] = twice[1] = e[0];
        CHECK_OK(raw_put_commit(&a, space, twice, 2, 4096, statuses));
        CHECK_OK(statuses[0]);
        CHECK_IS(statuses[1], KVT_E_UNKNOWN_RESERVATION);
        CHECK_OK(raw_status(&a, KVT_MSG_PUT_ABORT, &q)); /* already committed: its status says so */
        CHECK_EQ(daemon_status(&d).n_reservations, 3);
        q.reservations = (ProtobufCBinaryData){8, (uint8_t *)&e[1].reservation};
        CHECK_OK(raw_status(&a, KVT_MSG_PUT_ABORT, &q));
        CHECK_EQ(daemon_status(&d).n_reservations, 2);
        raw_close(&a); /* the rest goes with the session, at once */
        WAIT_FOR(daemon_audit(&d).n_reservations == 0, 2000);
        CHECK_EQ(daemon_audit(&d).n_blocks, 1);
        raw_close(&b);
        daemon_end(&d);
}

static void test_reserve_and_commit_through_the_library(void **state)
{
        enum { N = 20 };
        kvt_reservation tickets[N];
        struct pattern_space sp;
        struct daemon d;

        DAEMON_START(&d);
        kvt *c = pattern_open(&d, 0);
        PATTERN_SPACE(&sp, c, .part_bytes = 65536);
        pattern_keys(1, 0, N, keys);
        CHECK_OK(kvt_put_reserve(sp.s, NULL, keys, N, 0, tickets, statuses));
        for (size_t i = 0; i < N; i++) {
                CHECK_OK(statuses[i]);
                pattern_fill(tickets[i].data, 65536, &keys[i], 0, 0);
        }
        CHECK_EQ(pattern_match(&sp, keys, N), 0);
        CHECK_OK(kvt_put_commit(sp.s, tickets, N, statuses));
        CHECK_EQ(pattern_count(statuses, N, 0), N);
        CHECK_OK(pattern_get(&sp, keys, N, 0, statuses));
        CHECK_EQ(pattern_count(statuses, N, 0), N);
        CHECK_OK(kvt_put_reserve(sp.s, NULL, keys, N, 0, tickets, statuses));
        CHECK_EQ(pattern_count(statuses, N, KVT_E_EXISTS), N);
        CHECK_OK(kvt_put_reserve(sp.s, &keys[N - 1], keys + N, 2, 0, tickets, statuses));
        CHECK_OK(kvt_put_abort(sp.s, tickets, 2));
        WAIT_FOR(daemon_audit(&d).n_reservations == 0, 2000);
        CHECK_EQ(daemon_audit(&d).n_blocks, N);
        kvt_space_close(sp.s);
        kvt_close(c);
        daemon_end(&d);
}

/* Nobody has the space open, its only block is the first to go, and a reservation in it, by its handle, makes that happen. */
static void test_a_reservation_that_evicts_its_spaces_last_block(void **state)
{
        enum { PART = 512 << 10 };
        struct kvt_put_entry e[2];
        struct daemon d;
        size_t n_max;

        DAEMON_START(&d, "--host_bytes=16M");
        enter(&a, &d);
        uint32_t filler = raw_space(&a, "filler", PART, 1);
        raw_staging(&a, PART);
        pattern_keys(1, 0, 64, keys);
        for (int i = 0; i < 40; i++) {
                raw_put_send(&a, 1, filler, NULL, &keys[i], 1);
                raw_put_take(&a, 1, 1, statuses);
        }
        n_max = daemon_audit(&d).n_blocks; /* all that fit */
        CHECK(n_max > 10 && n_max < 32);
        Kvtier__PurgeRequest purge = KVTIER__PURGE_REQUEST__INIT;
        CHECK_OK(raw_status(&a, KVT_MSG_PURGE, &purge));

        enter(&b, &d);
        uint32_t lonely = raw_space(&b, "lonely", PART, 1);
        raw_put_send(&a, 1, lonely, NULL, &keys[0], 1);
        raw_put_take(&a, 1, 1, statuses);
        CHECK_OK(statuses[0]);
        raw_close(&b);
        WAIT_FOR(daemon_status(&d).n_sessions == 1, 2000);
        for (size_t i = 1; i < n_max; i++) {
                raw_put_send(&a, 1, filler, NULL, &keys[i], 1);
                raw_put_take(&a, 1, 1, statuses);
                CHECK_OK(statuses[0]);
        }
        CHECK_EQ(daemon_audit(&d).n_blocks, n_max);
        CHECK_EQ(daemon_status(&d).n_spaces, 2);
        int r = raw_put_begin(&a, lonely, keys + 40, 2, e);
        CHECK(r == 0 || r == KVT_E_UNKNOWN_SPACE);
        CHECK(raw_alive(&a));
        daemon_audit(&d);
        raw_close(&a);
        WAIT_FOR(daemon_status(&d).n_reservations == 0, 2000);
        daemon_end(&d);
}

/* A small quota is not all staging. */
static void test_staging_counts_against_the_quota(void **state)
{
        Kvtier__StagingOpenRequest q = KVTIER__STAGING_OPEN_REQUEST__INIT;
        struct daemon d;
        static struct raw many[8];
        size_t n = 0;

        DAEMON_START(&d, "--tenant_hard_bytes=8M");
        for (size_t i = 0; i < 8; i++) { /* each gets half of what is left of half the quota: the next process is never turned away */
                enter(&many[i], &d);
                q.bytes = 64 << 20;
                Kvtier__StagingOpenReply *m = raw_call(&many[i], KVT_MSG_STAGING_OPEN, &q, &kvtier__staging_open_reply__descriptor);
                CHECK(m);
                CHECK_EQ(m->bytes, (2 << 20) >> i);
                n += m->bytes;
                protobuf_c_message_free_unpacked(&m->base, NULL);
        }
        CHECK(n < 4 << 20);
        CHECK_EQ(daemon_status(&d).staging_bytes, n);
        raw_close(&many[0]);
        WAIT_FOR(daemon_status(&d).staging_bytes == n - (2 << 20), 2000);
        for (size_t i = 1; i < 8; i++)
                raw_close(&many[i]);
        WAIT_FOR(daemon_status(&d).staging_bytes == 0, 2000);
        daemon_end(&d);
}

int main(void)
{
        const struct CMUnitTest tests[] = {
                TEST(test_a_commit_that_never_comes),
                TEST(test_reservations_are_their_sessions_own_and_count_once),
                TEST(test_reserve_and_commit_through_the_library),
                TEST(test_a_reservation_that_evicts_its_spaces_last_block),
                TEST(test_staging_counts_against_the_quota),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
