/* Puts that go wrong: staging, reservations, cancelling, racing, back-pressure. Whatever happens, the accounts agree afterwards. */
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

static void test_offsets_outside_staging(void **state)
{
        static const uint64_t wrong[] = {(1 << 20) - 4095, 1 << 20, 1ull << 32, 1ull << 63, UINT64_MAX, UINT64_MAX - 4095};
        struct daemon d;

        DAEMON_START(&d);
        enter(&a, &d);
        uint32_t space = raw_space(&a, "m", 4096, 1);
        pattern_keys(1, 0, 2, keys);
        raw_staging(&a, 1 << 20);
        CHECK_EQ(a.staging_bytes, 1 << 20);
        for (size_t i = 0; i < sizeof(wrong) / sizeof(*wrong); i++) {
                uint64_t offsets[2] = {0, wrong[i]};
                Kvtier__PutCommitRequest put = KVTIER__PUT_COMMIT_REQUEST__INIT;
                Kvtier__GetRequest get = KVTIER__GET_REQUEST__INIT;
                put.space = get.space = space;
                put.keys = get.keys = (ProtobufCBinaryData){32, keys[0].bytes};
                put.offsets = get.offsets = (ProtobufCBinaryData){16, (uint8_t *)offsets};
                CHECK_IS(raw_status(&a, KVT_MSG_PUT_COMMIT, &put), KVT_E_BAD_STAGING);
                CHECK_IS(raw_status(&a, KVT_MSG_GET, &get), KVT_E_BAD_STAGING);
        }
        CHECK_EQ(daemon_audit(&d).n_blocks, 0);
        uint64_t last[2] = {0, (1 << 20) - 4096}; /* the last that fits */
        Kvtier__PutCommitRequest put = KVTIER__PUT_COMMIT_REQUEST__INIT;
        put.space = space;
        put.keys = (ProtobufCBinaryData){32, keys[0].bytes};
        put.offsets = (ProtobufCBinaryData){16, (uint8_t *)last};
        CHECK_OK(raw_status(&a, KVT_MSG_PUT_COMMIT, &put));
        CHECK_EQ(daemon_audit(&d).n_blocks, 2);
        raw_close(&a);
        daemon_end(&d);
}

static void test_offsets_missing_or_no_staging(void **state)
{
        static const size_t lengths[] = {0, 8, 15, 24};
        static const uint64_t offsets[3];
        struct daemon d;

        DAEMON_START(&d);
        enter(&a, &d);
        uint32_t space = raw_space(&a, "m", 4096, 1);
        pattern_keys(1, 0, 2, keys);
        for (int staging = 0; staging < 2; staging++) {
                if (staging)
                        raw_staging(&a, 1 << 20);
                for (size_t i = 0; i < sizeof(lengths) / sizeof(*lengths); i++) {
                        Kvtier__PutCommitRequest put = KVTIER__PUT_COMMIT_REQUEST__INIT;
                        Kvtier__GetRequest get = KVTIER__GET_REQUEST__INIT;
                        put.space = get.space = space;
                        put.keys = get.keys = (ProtobufCBinaryData){32, keys[0].bytes};
                        put.offsets = get.offsets = (ProtobufCBinaryData){lengths[i], (uint8_t *)offsets};
                        CHECK_IS(raw_status(&a, KVT_MSG_PUT_COMMIT, &put), KVT_E_BAD_STAGING);
                        CHECK_IS(raw_status(&a, KVT_MSG_GET, &get), KVT_E_BAD_STAGING);
                }
        }
        uint32_t large = raw_space(&a, "large", 2 << 20, 1); /* a part larger than all of staging */
        Kvtier__PutCommitRequest put = KVTIER__PUT_COMMIT_REQUEST__INIT;
        put.space = large;
        put.keys = (ProtobufCBinaryData){16, keys[0].bytes};
        put.offsets = (ProtobufCBinaryData){8, (uint8_t *)offsets};
        CHECK_IS(raw_status(&a, KVT_MSG_PUT_COMMIT, &put), KVT_E_BAD_STAGING);
        raw_close(&a);
        daemon_end(&d);
}

static void test_staging_can_be_neither_shrunk_nor_grown(void **state)
{
        Kvtier__StagingOpenRequest q = KVTIER__STAGING_OPEN_REQUEST__INIT;
        struct daemon d;
        char path[64];

        DAEMON_START(&d, "--staging_bytes=1M");
        enter(&a, &d);
        raw_staging(&a, UINT64_MAX);
        CHECK_EQ(a.staging_bytes, 1 << 20); /* no more than the daemon allows */
        CHECK_EQ(daemon_status(&d).staging_bytes, 1 << 20);
        snprintf(path, sizeof(path), "/proc/self/fd/%d", a.staging_fd);
        int again = open(path, O_RDWR | O_CLOEXEC);
        for (int i = 0; i < 2; i++) {
                int fd = i ? again : a.staging_fd;
                CHECK(ftruncate(fd, 4096) < 0 && errno == EPERM);
                CHECK(ftruncate(fd, 0) < 0 && errno == EPERM);
                CHECK(ftruncate(fd, 2 << 20) < 0 && errno == EPERM);
                CHECK(fallocate(fd, 0, 1 << 20, 4096) < 0 && errno == EPERM);
                CHECK(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE) < 0 && errno == EPERM);
        }
        close(again);
        /* holes are allowed, and read as zeros */
        uint32_t space = raw_space(&a, "m", 4096, 1);
        pattern_keys(1, 0, 1, keys);
        CHECK(fallocate(a.staging_fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 1 << 20) == 0);
        CHECK_OK(raw_put(&a, space, 0, NULL, keys, 1, 4096, statuses));
        CHECK_OK(statuses[0]);
        CHECK_IS(raw_status(&a, KVT_MSG_STAGING_OPEN, &q), KVT_E_BAD_REQUEST); /* a second one */
        raw_close(&a);
        WAIT_FOR(daemon_status(&d).staging_bytes == 0, 2000);
        daemon_end(&d);
}

static bool stop;

static void *scribble(void *arg)
{
        const struct raw *r = arg;
        uint64_t x = 1;

        while (!__atomic_load_n(&stop, __ATOMIC_RELAXED))
                for (size_t i = 0; i < r->staging_bytes; i += 512, x++)
                        __atomic_store_n((uint64_t *)(void *)(r->staging + i), x, __ATOMIC_RELAXED);
        return NULL;
}

/* What is stored may be any mix of what was written, but the checksum is that of what is stored. */
static void test_scribbling_during_commit(void **state)
{
        enum { PART = 256 << 10, N = 64 };
        struct pattern_space sp;
        struct daemon d;
        pthread_t thread;
        kvt_mapping maps[N];

        DAEMON_START(&d);
        enter(&a, &d);
        uint32_t space = raw_space(&a, "model", PART, 1);
        raw_staging(&a, PART);
        kvt *c = pattern_open(&d, 0);
        PATTERN_SPACE(&sp, c, .part_bytes = PART);
        pattern_keys(1, 0, N, keys);
        stop = false;
        CHECK_EQ(pthread_create(&thread, NULL, scribble, &a), 0);
        for (size_t i = 0; i < N; i += 16) {
                raw_put_send(&a, 1, space, i ? &keys[i - 1] : NULL, keys + i, 16);
                raw_put_take(&a, 1, 16, statuses);
                CHECK_EQ(pattern_count(statuses, 16, 0), 16);
        }
        CHECK_OK(kvt_map(sp.s, keys, N, maps, statuses));
        size_t n_different = 0;
        for (size_t i = 0; i < N; i++) {
                CHECK_OK(statuses[i]);
                CHECK_OK(kvt_verify(sp.s, &maps[i]));
                n_different += i && memcmp(maps[i].data, maps[0].data, PART) != 0;
        }
        CHECK(n_different > 0); /* the scribbler was there */
        /* and a get through staging that is scribbled upon gives garbage to that client only: the daemon's copy stays whole */
        Kvtier__GetRequest get = KVTIER__GET_REQUEST__INIT;
        static const uint64_t zero;
        get.space = space;
        get.offsets = (ProtobufCBinaryData){8, (uint8_t *)&zero};
        for (int i = 0; i < N;
             i++) { /* one at a time: two workers in one place are what ThreadSanitizer looks for, even in foreign memory */
                get.keys = (ProtobufCBinaryData){16, keys[i].bytes};
                CHECK_OK(raw_status(&a, KVT_MSG_GET, &get));
        }
        __atomic_store_n(&stop, true, __ATOMIC_RELAXED);
        pthread_join(thread, NULL);
        for (size_t i = 0; i < N; i++)
                CHECK_OK(kvt_verify(sp.s, &maps[i]));
        CHECK_OK(kvt_unmap(sp.s, maps, N, NULL));
        CHECK_EQ(daemon_counter(&d, "corrupt"), 0);
        kvt_space_close(sp.s);
        kvt_close(c);
        raw_close(&a);
        daemon_end(&d);
}

static void test_cancel_of_a_pipelined_put(void **state)
{
        Kvtier__CancelRequest q = KVTIER__CANCEL_REQUEST__INIT;
        uint32_t n, stop_;
        struct daemon d;

        DAEMON_START(&d, "--workers=1", "--host_bytes=128M");
        enter(&a, &d);
        uint32_t space = raw_space(&a, "m", 1 << 20, 1);
        raw_staging(&a, 1 << 20);
        pattern_keys(1, 0, MANY, keys);
        raw_put_send(&a, 5, space, NULL, keys, MANY);
        q.request_id = 5;
        raw_send(&a, KVT_MSG_CANCEL, 0, &q);
        raw_put_take(&a, 5, MANY, statuses); /* the put itself is answered */
        size_t n_stored = pattern_count(statuses, MANY, 0), n_cancelled = pattern_count(statuses, MANY, KVT_E_CANCELLED);
        CHECK(n_cancelled > 0);
        CHECK_EQ(n_stored + n_cancelled + pattern_count(statuses, MANY, KVT_E_NO_PARENT), MANY);
        CHECK_OK(raw_match(&a, space, keys, MANY, &n, &stop_));
        CHECK_EQ(n, n_stored);
        CHECK_EQ(daemon_audit(&d).n_blocks, n_stored);
        CHECK_EQ(daemon_status(&d).n_xfers, 0);
        raw_put_send(&a, 6, space, NULL, keys, MANY); /* again, to the end */
        raw_put_take(&a, 6, MANY, statuses);
        CHECK_EQ(pattern_count(statuses, MANY, KVT_E_EXISTS), n_stored);
        CHECK_EQ(pattern_count(statuses, MANY, 0), MANY - n_stored);
        raw_close(&a);
        daemon_end(&d);
}

static void test_more_under_way_than_allowed(void **state)
{
        struct kvt_put_entry e[5];
        struct daemon d;

        DAEMON_START(&d, "--max_inflight_session=4");
        enter(&a, &d);
        uint32_t space = raw_space(&a, "m", 4096, 1);
        raw_staging(&a, 1 << 20);
        pattern_keys(1, 0, 16, keys);
        CHECK_IS(raw_put_begin(&a, space, keys, 5, e), KVT_E_AGAIN);
        CHECK_OK(raw_put_begin(&a, space, keys, 4, e));
        CHECK_IS(raw_put_begin(&a, space, keys + 4, 1, e + 4), KVT_E_AGAIN);
        CHECK_IS(raw_put(&a, space, 0, NULL, keys + 8, 1, 4096, statuses), KVT_E_AGAIN);
        CHECK_OK(raw_put_commit(&a, space, e, 4, 4096, statuses));
        CHECK_EQ(pattern_count(statuses, 4, 0), 4);
        CHECK_OK(raw_put(&a, space, 0, NULL, keys + 8, 4, 4096, statuses)); /* room again */
        CHECK_IS(raw_put(&a, space, 0, NULL, keys + 8, 5, 4096, statuses), KVT_E_AGAIN);
        raw_close(&a);
        daemon_end(&d);
}

struct racer {
        struct daemon *d;
        struct meeting *meet;
        uint8_t *statuses; /* shared memory */
        int flavour;
};

enum { RACE = 400 };

static void race(void *arg)
{
        struct racer *x = arg;
        struct pattern_space sp;
        kvt_key k[RACE];
        kvt *c = pattern_open(x->d, 0);

        PATTERN_SPACE(&sp, c, .part_bytes = 8192);
        pattern_keys(1, 0, RACE, k);
        meeting_at(x->meet, 1);
        for (size_t i = 0; i < RACE; i += 20) {
                memset(x->statuses + i, 0xff, 20);
                CHECK_OK(pattern_put(&sp, i ? &k[i - 1] : NULL, k + i, 20, x->flavour, 0, x->statuses + i));
        }
        kvt_space_close(sp.s);
        kvt_close(c);
}

/* Per key exactly one of them wins; the other is told that it exists; and the bytes are those of one of them. */
static void test_two_processes_put_the_same_keys(void **state)
{
        struct meeting meet[2];
        struct racer x[2];
        struct pattern_space sp;
        struct daemon d;
        pid_t pids[2];
        size_t won[2] = {};

        DAEMON_START(&d);
        for (int i = 0; i < 2; i++) {
                meeting_init(&meet[i]);
                x[i] = (struct racer){.d = &d, .meet = &meet[i], .flavour = i};
                x[i].statuses = mmap(NULL, RACE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
                pids[i] = child_start(race, &x[i]);
        }
        meeting_at(&meet[0], 0);
        meeting_at(&meet[1], 0);
        child_join(pids[0]);
        child_join(pids[1]);
        kvt *c = pattern_open(&d, 0);
        PATTERN_SPACE(&sp, c, .part_bytes = 8192);
        pattern_keys(1, 0, RACE, keys);
        CHECK_EQ(pattern_match(&sp, keys, RACE), RACE);
        for (size_t i = 0; i < RACE; i++) {
                int winner = x[0].statuses[i] == 0 ? 0 : 1;
                CHECK_OK(x[winner].statuses[i]);
                CHECK_IS(x[!winner].statuses[i], KVT_E_EXISTS);
                CHECK_OK(pattern_get(&sp, &keys[i], 1, winner, statuses));
                CHECK_OK(statuses[0]);
                won[winner]++;
        }
        CHECK_EQ(won[0] + won[1], RACE);
        CHECK_EQ(daemon_audit(&d).n_blocks, RACE);
        for (int i = 0; i < 2; i++) {
                munmap(x[i].statuses, RACE);
                meeting_deinit(&meet[i]);
        }
        kvt_space_close(sp.s);
        kvt_close(c);
        daemon_end(&d);
}

/* Without asking first, as the library does: the daemon itself keeps the first copy, and copies nothing. */
static void test_the_daemon_keeps_the_first_copy(void **state)
{
        struct pattern_space sp;
        struct daemon d;

        DAEMON_START(&d);
        enter(&a, &d);
        uint32_t space = raw_space(&a, "model", 4096, 1);
        raw_staging(&a, 1 << 20);
        pattern_keys(1, 0, 4, keys);
        for (int flavour = 0; flavour < 2; flavour++) {
                for (int i = 0; i < 4; i++)
                        pattern_fill(a.staging + i * 4096, 4096, &keys[i], 0, flavour);
                CHECK_OK(raw_put(&a, space, 0, NULL, keys, 4, 4096, statuses));
                CHECK_EQ(pattern_count(statuses, 4, flavour ? KVT_E_EXISTS : 0), 4);
        }
        CHECK_EQ(daemon_counter(&d, "puts"), 4);
        CHECK_EQ(daemon_counter(&d, "put_exists"), 4);
        kvt *c = pattern_open(&d, 0);
        PATTERN_SPACE(&sp, c, .part_bytes = 4096);
        CHECK_OK(pattern_get(&sp, keys, 4, 0, statuses));
        CHECK_EQ(pattern_count(statuses, 4, 0), 4);
        kvt_space_close(sp.s);
        kvt_close(c);
        raw_close(&a);
        daemon_end(&d);
}

/* The same, deterministic: the second offer waits for the first, in one daemon pass. */
static void test_an_offer_under_way_makes_another_wait(void **state)
{
        uint8_t other[MANY];
        struct daemon d;

        DAEMON_START(&d, "--workers=1", "--host_bytes=128M");
        enter(&a, &d);
        enter(&b, &d);
        uint32_t space = raw_space(&a, "m", 1 << 20, 1);
        CHECK_EQ(raw_space(&b, "m", 1 << 20, 1), space);
        raw_staging(&a, 1 << 20);
        raw_staging(&b, 1 << 20);
        pattern_keys(1, 0, MANY, keys);
        raw_put_send(&a, 1, space, NULL, keys, MANY);
        raw_put_under_way(&a, 1);
        raw_put_send(&b, 1, space, NULL, keys, MANY);
        raw_put_take(&a, 1, MANY, statuses);
        raw_put_take(&b, 1, MANY, other);
        for (int i = 0; i < MANY; i++) {
                CHECK_OK(statuses[i]);
                CHECK_IS(other[i], KVT_E_EXISTS);
        }
        raw_close(&a);
        raw_close(&b);
        daemon_end(&d);
}

/* b offers what a is storing, and leaves; then a's copy comes to nothing, because its prefix is dropped. b's staging went with b: its offer must not
 * be taken up. */
static void test_an_offer_that_waits_ends_with_its_session(void **state)
{
        Kvtier__DropRequest drop = KVTIER__DROP_REQUEST__INIT;
        struct daemon d;

        DAEMON_START(&d, "--workers=1", "--host_bytes=128M");
        enter(&a, &d);
        enter(&b, &d);
        uint32_t space = raw_space(&a, "model", 1 << 20, 1);
        raw_staging(&a, 1 << 20);
        raw_staging(&b, 1 << 20);
        pattern_keys(1, 0, MANY, keys);
        pattern_fill(b.staging, 1 << 20, &keys[MANY - 1], 0, 1);
        raw_put_send(&a, 1, space, NULL, keys, MANY);
        raw_put_under_way(&a, 1);
        raw_put_send(&b, 1, space, NULL, &keys[MANY - 1], 1);
        raw_close(&b);
        enter(&b, &d);
        drop.space = space;
        drop.keys = (ProtobufCBinaryData){16, keys[0].bytes};
        CHECK_OK(raw_status(&b, KVT_MSG_DROP, &drop));
        raw_put_take(&a, 1, MANY, statuses);
        WAIT_FOR(daemon_status(&d).n_xfers == 0, 5000);
        uint32_t n, stop_;
        CHECK_OK(raw_match(&b, space, &keys[MANY - 1], 1, &n, &stop_));
        CHECK_EQ(n, statuses[MANY - 1] == 0); /* unless the transfers were faster than the drop */
        raw_close(&a);
        raw_close(&b);
        WAIT_FOR(daemon_status(&d).staging_bytes == 0, 2000);
        daemon_end(&d);
}

int main(void)
{
        const struct CMUnitTest tests[] = {
                TEST(test_offsets_outside_staging),
                TEST(test_offsets_missing_or_no_staging),
                TEST(test_staging_can_be_neither_shrunk_nor_grown),
                TEST(test_scribbling_during_commit),
                TEST(test_cancel_of_a_pipelined_put),
                TEST(test_more_under_way_than_allowed),
                TEST(test_two_processes_put_the_same_keys),
                TEST(test_the_daemon_keeps_the_first_copy),
                TEST(test_an_offer_under_way_makes_another_wait),
                TEST(test_an_offer_that_waits_ends_with_its_session),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
