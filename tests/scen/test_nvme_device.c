/* Devices whose circumstances change under a real daemon: another segment size in the configuration, no io_uring, no room, detached and attached under
 * load, and asked for blocks while they are still being recovered. */
#include <errno.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>

#include "tests/lib/devices.h"
#include "tests/lib/pattern.h"

enum { N = 32, PART = 32768, ATTACH = 0, DETACH = 1 };

static kvt_key keys[N];
static uint8_t statuses[N];
static struct pattern_space sp;
static char path[256], mounted[256];

#define FILE_OF_1M "--nvme_devices=DIR/nvme.kvt", "--nvme_bytes=64M", "--nvme_segment_bytes=1M", "--nvme_admit_hits=0"

static void enter(const struct daemon *d, size_t part_bytes)
{
        PATTERN_SPACE(&sp, pattern_open(d, 0), .part_bytes = part_bytes);
        device_path(d, "nvme.kvt", path, sizeof(path));
}

static void leave(void)
{
        kvt *c = sp.c;

        kvt_space_close(sp.s);
        kvt_close(c);
}

static void put_durable(uint64_t chain)
{
        pattern_keys(chain, 0, N, keys);
        CHECK_OK(pattern_put(&sp, NULL, keys, N, 0, KVT_PUT_DURABLE, statuses));
        CHECK_EQ(pattern_count(statuses, N, 0), N);
}

static void get_whole(uint64_t chain)
{
        pattern_keys(chain, 0, N, keys);
        CHECK_EQ(pattern_match(&sp, keys, N), N);
        CHECK_OK(pattern_get(&sp, keys, N, 0, statuses));
        CHECK_EQ(pattern_count(statuses, N, 0), N);
}

/* In place of the parameter of that name. */
static void set_param(struct daemon *d, const char *param)
{
        size_t n = (size_t)(strchr(param, '=') + 1 - param);

        for (int i = 0; i < d->n_args; i++)
                if (!strncmp(d->args[i], param, n))
                        d->args[i] = (char *)param;
}

static void preload_io(const char *environment)
{
        static char library[4096];

        snprintf(library, sizeof(library), "%s", daemon_binary());
        strcpy(strrchr(library, '/'), "/tests/fault/preload_io.so");
        CHECK(access(library, R_OK) == 0);
        daemon_environment(environment);
        daemon_preload(library);
}

/* A device keeps the size it was formatted with, whatever the configuration says by now; only new ones get another. */
static void test_another_segment_size_in_the_configuration(void **state)
{
        static const char *const params[] = {"--nvme_segment_bytes=4M", "--nvme_segment_bytes=64M", "--nvme_segment_bytes=1M"};
        struct device_seen v;
        struct daemon d;
        char other[256];

        DAEMON_START(&d, FILE_OF_1M);
        enter(&d, PART);
        WAIT_FOR(device_is(&d, 0, "serving"), 5000);
        put_durable(1);
        for (size_t i = 0; i < 3; i++) {
                uint64_t now = check_now_usec();
                if (i % 2)
                        daemon_kill(&d);
                else
                        CHECK_EQ(daemon_stop(&d), 0);
                CHECK(check_now_usec() - now <
                      4000000); /* with a segment under way: it gets its footer, and that is all there is to wait for */
                set_param(&d, params[i]);
                daemon_restart(&d);
                WAIT_FOR(device_is(&d, 0, "serving"), 5000);
                CHECK(device_see(&d, 0, &v));
                CHECK_EQ(v.segment_bytes, 1 << 20);
                CHECK_EQ(v.n_segments, 63);
                for (uint64_t chain = 1; chain <= 1 + i; chain++)
                        get_whole(chain);
                put_durable(2 + i);
                if (i)
                        continue;
                device_path(&d, "other.kvt", other, sizeof(other));
                CHECK_OK(device_do(&d, ATTACH, other));
                WAIT_FOR(device_is(&d, 1, "serving"), 5000);
                CHECK(device_see(&d, 1, &v));
                CHECK_EQ(v.segment_bytes, 4 << 20);
                CHECK_OK(device_do(&d, DETACH, other));
                WAIT_FOR(device_is(&d, 1, "detached"), 15000);
        }
        leave();
        daemon_end(&d);
}

static void test_io_uring_is_forbidden(void **state)
{
        struct device_seen v;
        struct daemon d;

        preload_io("KVT_NO_URING=1");
        DAEMON_START(&d, FILE_OF_1M);
        enter(&d, PART);
        WAIT_FOR(device_is(&d, 0, "serving"), 5000);
        CHECK(device_see(&d, 0, &v));
        CHECK(!strcmp(v.ring, "pread"));
        CHECK(daemon_log_has(&d, "there is no io_uring"));
        CHECK(daemon_log_has(&d, "forbidden by kernel.io_uring_disabled or by a seccomp filter"));
        put_durable(1);
        daemon_kill(&d);
        daemon_restart(&d);
        WAIT_FOR(device_is(&d, 0, "serving"), 5000);
        get_whole(1);
        leave();
        daemon_end(&d);
}

/* Reads are slow, so that recovery takes a second or so. */
static void test_clients_need_not_wait_for_recovery(void **state)
{
        enum { CHAINS = 6 };
        uint64_t n_asked = 0, slowest = 0;
        bool later = false;
        struct daemon d;

        DAEMON_START(&d, FILE_OF_1M, "--nvme_uring=no", "--nvme_readahead_blocks=0");
        enter(&d, PART);
        WAIT_FOR(device_is(&d, 0, "serving"), 5000);
        for (uint64_t chain = 1; chain <= CHAINS; chain++)
                put_durable(chain);
        daemon_kill(&d);
        preload_io("KVT_READ_USEC=12000");
        daemon_restart(&d);
        while (device_is(&d, 0, "opening") || device_is(&d, 0, "recovering")) {
                uint64_t chain = 1 + n_asked++ % CHAINS, now = check_now_usec();
                pattern_keys(chain, 0, N, keys);
                size_t n = pattern_match(&sp, keys, N);
                CHECK_OK(pattern_get(&sp, keys, N, 0, statuses));
                uint64_t usec = check_now_usec() - now;
                size_t n_there = pattern_count(statuses, N, 0);
                CHECK_EQ(n_there + pattern_count(statuses, N, KVT_E_MISS), N);
                CHECK(n_there >= n);
                later |= n < N;
                if (!n_there && usec > slowest) /* reads are slow here */
                        slowest = usec;
                if (n_asked == 2) { /* what is put meanwhile is kept, and its end found, too */
                        pattern_keys(100, 0, N, keys);
                        pattern_store(&sp, NULL, keys, N);
                        CHECK(device_is(&d, 0, "opening") || device_is(&d, 0, "recovering"));
                }
                usleep(5000);
        }
        CHECK(n_asked >= 5 && later);
        if (slowest > 100000 * CHECK_SLOW)
                check_failed(__FILE__, __LINE__, "a miss took %llu us", (unsigned long long)slowest);
        WAIT_FOR(device_is(&d, 0, "serving"), 5000);
        for (uint64_t chain = 1; chain <= CHAINS; chain++) {
                pattern_keys(chain, 0, N, keys);
                CHECK_EQ(pattern_match(&sp, keys, N), N);
        }
        get_whole(1);
        get_whole(100);
        CHECK_EQ(daemon_counter(&d, "nvme_recovered"), CHAINS * N);
        leave();
        daemon_end(&d);
}

/* a full file system */

static int unmount_teardown(void **state)
{
        if (*mounted)
                umount2(mounted, MNT_DETACH);
        *mounted = 0;
        return daemon_teardown(state);
}

static void attach_full(const struct daemon *d)
{
        CHECK_OK(device_do(d, ATTACH, path));
        WAIT_FOR(device_is(d, 0, "serving"), 5000);
}

static void test_a_full_file_system(void **state)
{
        enum { CHAINS = 24, BIG = 131072 };
        size_t n_durable = 0, n_late = 0, n_before, n_after;
        struct device_seen v;
        struct daemon d;

        DAEMON_START(&d, "--nvme_bytes=64M", "--nvme_segment_bytes=1M", "--nvme_admit_hits=1000");
        device_path(&d, "full", mounted, sizeof(mounted));
        CHECK(mkdir(mounted, 0755) == 0);
        if (mount("none", mounted, "tmpfs", 0, "size=8M") < 0) {
                printf("skipped: no tmpfs can be mounted: %s\n", strerror(errno));
                *mounted = 0;
                daemon_end(&d);
                check_skip("no tmpfs can be mounted");
        }
        enter(&d, BIG);
        snprintf(path, sizeof(path), "%.200s/nvme.kvt", mounted);
        attach_full(&d);
        for (uint64_t chain = 1; chain <= CHAINS; chain++) { /* 12 MiB */
                pattern_keys(chain, 0, 4, keys);
                CHECK_OK(pattern_put(&sp, NULL, keys, 4, 0, KVT_PUT_DURABLE, statuses));
                for (int i = 0; i < 4; i++) {
                        if (statuses[i] != 0)
                                CHECK_IS(statuses[i], KVT_E_NO_SPACE);
                        n_durable += statuses[i] == 0;
                        n_late += statuses[i] == 0 && chain > CHAINS - 4;
                }
                CHECK_EQ(pattern_match(&sp, keys, 4), 4); /* memory goes on */
        }
        CHECK(n_durable >= 48 && n_late >= 8); /* and so does the device, with what room it has */
        CHECK(device_see(&d, 0, &v));
        CHECK(!strcmp(v.state, "serving"));
        CHECK(daemon_counter(&d, "nvme_recycled") > 0);
        n_before = device_records(&d);
        CHECK(n_before >= 28);
        daemon_kill(&d);
        daemon_restart(&d);
        attach_full(&d);
        n_after = device_records(&d);
        CHECK(n_after + 16 >= n_before); /* a segment was just being recycled, perhaps */
        n_after = 0;
        for (uint64_t chain = 1; chain <= CHAINS; chain++) {
                pattern_keys(chain, 0, 4, keys);
                size_t n = pattern_match(&sp, keys, 4);
                CHECK_OK(pattern_get(&sp, keys, 4, 0, statuses));
                CHECK(pattern_count(statuses, n, 0) == n);
                n_after += n;
        }
        CHECK(n_after >= 20);
        leave();
        daemon_end(&d);
}

/* detached and attached under load */

enum { CLIENTS = 2, CHAINS = 40, CHAIN = 8, STEP = 4 };

struct client {
        struct daemon *daemon;
        unsigned number;
        struct shared {
                uint32_t n_durable[CHAINS]; /* blocks that are said to be durable, from the start of the chain */
                uint64_t n_answers, n_refused;
                bool stop;
        } * shared;
};

static uint64_t chain_of(unsigned client, unsigned chain)
{
        return 1000 * (client + 1) + chain;
}

static void work(void *arg)
{
        struct client *w = arg;
        kvt_key k[CHAIN];
        uint8_t s[CHAIN];
        uint64_t seed = w->number;

        enter(w->daemon, PART);
        while (!__atomic_load_n(&w->shared->stop, __ATOMIC_ACQUIRE)) {
                seed = seed * 6364136223846793005ull + 1442695040888963407ull;
                unsigned chain = (unsigned)(seed >> 33) % CHAINS;
                uint32_t have = w->shared->n_durable[chain];
                pattern_keys(chain_of(w->number, chain), 0, CHAIN, k);
                if (have == CHAIN || (have && seed >> 20 & 1)) { /* what is served is right: pattern_get() sees to that */
                        CHECK_OK(pattern_get(&sp, k, have, 0, s));
                        for (uint32_t i = 0; i < have; i++)
                                CHECK(s[i] == 0 || s[i] == KVT_E_MISS || s[i] == KVT_E_AGAIN || s[i] == KVT_E_IO);
                } else {
                        uint32_t n = 0;
                        int r = pattern_put(&sp, have ? &k[have - 1] : NULL, k + have, STEP, 0, KVT_PUT_DURABLE, s);
                        if (r == KVT_E_AGAIN)
                                continue;
                        CHECK_OK(r);
                        while (n < STEP && s[n] == 0)
                                n++;
                        __atomic_store_n(&w->shared->n_durable[chain], have + n, __ATOMIC_RELEASE);
                        for (; n < STEP; n++) {
                                w->shared->n_refused += s[n] == KVT_E_NO_DEVICE;
                                CHECK(s[n] == KVT_E_NO_DEVICE || s[n] == KVT_E_EXISTS || s[n] == KVT_E_NO_PARENT || s[n] == KVT_E_AGAIN ||
                                      s[n] == KVT_E_AGAIN_LEASED || s[n] == KVT_E_IO);
                        }
                }
                __atomic_fetch_add(&w->shared->n_answers, 1, __ATOMIC_RELAXED);
        }
        leave();
}

static void check_promises(const struct client *clients)
{
        for (unsigned i = 0; i < CLIENTS; i++)
                for (unsigned chain = 0; chain < CHAINS; chain++) {
                        uint32_t n = clients[i].shared->n_durable[chain];
                        pattern_keys(chain_of(i, chain), 0, n, keys);
                        CHECK_EQ(pattern_match(&sp, keys, n), n);
                        CHECK_OK(pattern_get(&sp, keys, n, 0, statuses));
                        CHECK_EQ(pattern_count(statuses, n, 0), n);
                }
}

static void test_detached_and_attached_under_load(void **state)
{
        enum { ROUNDS = 6 };
        struct client clients[CLIENTS];
        pid_t pids[CLIENTS];
        struct daemon d;
        uint64_t n_before, n_durable = 0, n_refused = 0;

        DAEMON_START(&d, FILE_OF_1M, "--host_bytes=32M");
        enter(&d, PART);
        WAIT_FOR(device_is(&d, 0, "serving"), 5000);
        for (unsigned i = 0; i < CLIENTS; i++) {
                clients[i] = (struct client){.daemon = &d, .number = i};
                clients[i].shared = mmap(NULL, sizeof(struct shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
                CHECK(clients[i].shared != MAP_FAILED);
                pids[i] = child_start(work, &clients[i]);
        }
        for (int round = 0; round < ROUNDS; round++) {
                n_before = clients[0].shared->n_answers;
                WAIT_FOR(__atomic_load_n(&clients[0].shared->n_answers, __ATOMIC_RELAXED) > n_before + 5, 10000);
                CHECK_OK(device_do(&d, DETACH, path));
                WAIT_FOR(device_is(&d, 0, "detached"), 15000);
                n_before = clients[0].shared->n_answers; /* nobody is held up */
                WAIT_FOR(__atomic_load_n(&clients[0].shared->n_answers, __ATOMIC_RELAXED) > n_before + 5, 10000);
                WAIT_FOR(device_do(&d, ATTACH, path) == 0, 5000);
                WAIT_FOR(device_is(&d, 0, "serving"), 5000);
        }
        for (unsigned i = 0; i < CLIENTS; i++)
                __atomic_store_n(&clients[i].shared->stop, true, __ATOMIC_RELEASE);
        for (unsigned i = 0; i < CLIENTS; i++) {
                child_join(pids[i]);
                n_refused += clients[i].shared->n_refused;
                for (unsigned chain = 0; chain < CHAINS; chain++)
                        n_durable += clients[i].shared->n_durable[chain];
        }
        CHECK(n_durable > 0 && n_refused > 0);
        check_promises(clients); /* served warm */
        CHECK_OK(device_do(&d, DETACH, path));
        WAIT_FOR(device_is(&d, 0, "detached"), 15000);
        CHECK_EQ(device_records(&d), 0);
        CHECK_OK(device_do(&d, ATTACH, path));
        WAIT_FOR(device_is(&d, 0, "serving"), 5000);
        CHECK(device_records(&d) >= n_durable);
        daemon_audit(&d);
        daemon_kill(&d);
        daemon_restart(&d);
        WAIT_FOR(device_is(&d, 0, "serving"), 5000);
        check_promises(clients); /* from the device alone */
        for (unsigned i = 0; i < CLIENTS; i++)
                munmap(clients[i].shared, sizeof(struct shared));
        leave();
        daemon_end(&d);
}

int main(void)
{
        const struct CMUnitTest tests[] = {
                TEST(test_another_segment_size_in_the_configuration), TEST(test_io_uring_is_forbidden),
                TEST(test_clients_need_not_wait_for_recovery),        cmocka_unit_test_teardown(test_a_full_file_system, unmount_teardown),
                TEST(test_detached_and_attached_under_load),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
