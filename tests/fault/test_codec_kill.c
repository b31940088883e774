/* The daemon ends while copies are being recoded and demoted under codecs: killed, and what was durable is there and right; or told to, and it ends well. KILLS: how many rounds. */
#include <sys/mman.h>

#include "tests/lib/devices.h"
#include "tests/lib/values.h"

enum { CLIENTS = 2, CHAINS = 96 /* a client */, CHAIN = 9, STEP = 3 };

static const float bounds[CLIENTS] = {0, 0.1f};
static const char *const names[CLIENTS] = {"lossless", "bounded"};

struct client {
        struct daemon *daemon;
        unsigned number;
        struct {
                uint32_t n_durable[CHAINS]; /* blocks of that chain that were acknowledged */
                uint64_t n_puts;
                bool killed; /* told just before the daemon is */
        } * shared;
};

static void keys_of(unsigned client, unsigned chain, kvt_key keys[CHAIN])
{
        pattern_keys(1000 * (client + 1) + chain, 0, CHAIN, keys);
}

static bool is_killed(const struct client *w)
{
        return __atomic_load_n(&w->shared->killed, __ATOMIC_ACQUIRE);
}

/* Slabs come and go all the time in a tier that is too small. */
static bool is_busy(int status)
{
        return status == KVT_E_AGAIN || status == KVT_E_AGAIN_LEASED;
}

static void work(void *arg)
{
        struct client *w = arg;
        struct values_space sp;
        kvt_key keys[CHAIN];
        uint8_t statuses[CHAIN];
        uint64_t seed = check_now_usec() + w->number;

        CHECK_OK(values_space_open(&sp, pattern_open(w->daemon, KVT_OPEN_NO_RECONNECT), names[w->number], bounds[w->number]));
        while (!is_killed(w)) {
                seed = seed * 6364136223846793005ull + 1442695040888963407ull;
                unsigned chain = (unsigned)(seed >> 33) % CHAINS;
                uint32_t have = w->shared->n_durable[chain];
                keys_of(w->number, chain, keys);
                if (have == CHAIN || (have && (seed >> 20 & 3) == 0)) {
                        int r = values_get(&sp, keys, have, 0, VALUES_PLANES, 0, statuses);
                        if (r) {
                                CHECK_IS(r, KVT_E_DISCONNECTED);
                                break;
                        }
                        for (uint32_t i = 0; i < have && !is_killed(w); i++)
                                CHECK(!statuses[i] || is_busy(statuses[i]));
                        continue;
                }
                size_t n_step = CHAIN - have < STEP ? CHAIN - have : STEP, n = 0;
                int r = values_put(&sp, have ? &keys[have - 1] : NULL, keys + have, n_step, 0, KVT_PUT_DURABLE, NULL, statuses);
                if (r == KVT_E_AGAIN)
                        continue;
                if (r) {
                        CHECK_IS(r, KVT_E_DISCONNECTED);
                        break;
                }
                while (n < n_step && (statuses[n] == 0 || statuses[n] == KVT_E_EXISTS)) /* it was stored before a kill: durable by now */
                        n++;
                __atomic_fetch_add(&w->shared->n_puts, n, __ATOMIC_RELAXED);
                __atomic_store_n(&w->shared->n_durable[chain], have + (uint32_t)n, __ATOMIC_RELEASE);
                for (; n < n_step; n++)
                        CHECK(statuses[n] == KVT_E_DISCONNECTED || statuses[n] == KVT_E_RESTARTED || is_busy(statuses[n]) ||
                              statuses[n] == KVT_E_NO_PARENT || statuses[n] == KVT_E_EXISTS || statuses[n] == 0);
        }
        kvt *c = sp.c;
        kvt_space_close(sp.s);
        kvt_close(c);
}

static uint64_t check_durable(const struct daemon *d, const struct client *w)
{
        struct values_space sp;
        kvt_key keys[CHAIN];
        uint8_t statuses[CHAIN];
        kvt *c = pattern_open(d, KVT_OPEN_CODED);
        uint64_t n_checked = 0, n_mapped = 0;

        for (unsigned k = 0; k < CLIENTS; k++) {
                CHECK_OK(values_space_open(&sp, c, names[k], bounds[k]));
                struct pattern_space p = {.c = c, .s = sp.s};
                for (unsigned chain = 0; chain < CHAINS; chain++) {
                        uint32_t n = w[k].shared->n_durable[chain];
                        if (!n)
                                continue;
                        keys_of(k, chain, keys);
                        size_t matched = pattern_match(&p, keys, n);
                        if (matched < n)
                                check_failed(__FILE__, __LINE__, "%s, chain %u: %zu of %u durable blocks are back", names[k], chain,
                                             matched, n);
                        for (int tries = 0; tries < 100; tries++) {
                                CHECK_OK(values_get(&sp, keys, n, 0, VALUES_PLANES, 0, statuses)); /* looks at every value */
                                for (uint32_t i = 0; i < n; i++)
                                        CHECK(!statuses[i] || is_busy(statuses[i]));
                                if (pattern_count(statuses, n, 0) == n)
                                        break;
                                usleep(1000);
                        }
                        CHECK_EQ(pattern_count(statuses, n, 0), n);
                        kvt_mapping m; /* and its copy's header says how far off it is */
                        bool error_is_wrong;
                        CHECK_OK(kvt_map(sp.s, &keys[n - 1], 1, &m, statuses));
                        if (!statuses[0]) {
                                CHECK_OK(values_mapped(&sp, &m, &keys[n - 1], 0, &error_is_wrong));
                                CHECK(!error_is_wrong);
                                n_mapped++;
                        } else {
                                CHECK(is_busy(statuses[0]));
                        }
                        CHECK_OK(kvt_unmap(sp.s, &m, 1, NULL));
                        n_checked += n;
                }
                kvt_space_close(sp.s);
        }
        kvt_close(c);
        CHECK(n_mapped > 0);
        return n_checked;
}

#define CODED_NVME                                                                                                                         \
        "--nvme_devices=DIR/nvme.kvt", "--nvme_bytes=64M", "--nvme_segment_bytes=1M", "--nvme_admit_hits=0", "--codec_hot=zbf",            \
                "--codec_nvme=kivi:bits=4"

static void test_killed(void **state)
{
        int n_kills = getenv("KILLS") ? atoi(getenv("KILLS")) : CHECK_SLOW > 1 ? 2 : 4;
        uint64_t n_checked = 0, n_puts = 0, n_coded = 0, seed = check_now_usec();
        struct client w[CLIENTS] = {};
        pid_t pids[CLIENTS];
        struct daemon d;

        for (unsigned i = 0; i < CLIENTS; i++) {
                w[i].number = i;
                w[i].daemon = &d;
                w[i].shared = mmap(NULL, sizeof(*w[i].shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
                CHECK(w[i].shared != MAP_FAILED);
        }
        DAEMON_START(&d, "--host_bytes=24M", CODED_NVME);
        WAIT_FOR(device_is(&d, 0, "serving"), 10000);
        for (int round = 0; round < n_kills; round++) {
                for (unsigned i = 0; i < CLIENTS; i++) {
                        w[i].shared->killed = false;
                        pids[i] = child_start(work, &w[i]);
                }
                seed = seed * 6364136223846793005ull + 1442695040888963407ull;
                usleep((useconds_t)(60000 + (seed >> 33) % 300000) * (CHECK_SLOW > 1 ? 2 : 1));
                n_coded += daemon_counter(&d, "coded_planes");
                for (unsigned i = 0; i < CLIENTS; i++)
                        __atomic_store_n(&w[i].shared->killed, true, __ATOMIC_RELEASE);
                daemon_kill(&d);
                daemon_restart(&d);
                for (unsigned i = 0; i < CLIENTS; i++)
                        child_join(pids[i]);
                WAIT_FOR(device_is(&d, 0, "serving"), 10000);
                n_checked = check_durable(&d, w);
                WAIT_FOR(daemon_audit(&d).n_xfers == 0, 5000);
        }
        for (unsigned i = 0; i < CLIENTS; i++) {
                CHECK(w[i].shared->n_puts > (uint64_t)n_kills);
                n_puts += w[i].shared->n_puts;
                munmap(w[i].shared, sizeof(*w[i].shared));
        }
        CHECK(n_coded > n_puts);
        print_message("%d kills, %llu blocks made durable, the last %llu there after each\n", n_kills, (unsigned long long)n_puts,
                      (unsigned long long)n_checked);
        daemon_end(&d);
}

/* SIGTERM while there is much to be coded, by one worker and slow codecs. */
static void told_to_end(const char *hot, const char *nvme, bool with_device)
{
        enum { MANY = CHECK_SLOW > 1 ? 64 : 160 };
        static kvt_key keys[MANY];
        static uint8_t statuses[MANY];
        struct values_space sp;
        struct daemon d;

        if (with_device)
                NVME(&d, "--workers=1", "--host_bytes=32M", hot, nvme);
        else
                DAEMON_START(&d, "--workers=1", "--host_bytes=32M", hot, nvme);
        CHECK_OK(values_space_open(&sp, pattern_open(&d, KVT_OPEN_CODED), "values", 0.5f));
        pattern_keys(9, 0, MANY, keys);
        values_store(&sp, NULL, keys, MANY);
        WAIT_FOR(daemon_counter(&d, "coded_planes") > 0, 5000);
        if (!with_device)
                CHECK(daemon_counter(&d, "recoded") < MANY); /* in the middle of it */
        kvt *c = sp.c;
        kvt_space_close(sp.s);
        kvt_close(c);
        CHECK_EQ(daemon_stop(&d), 0);
        daemon_restart(&d);
        CHECK_OK(values_space_open(&sp, pattern_open(&d, KVT_OPEN_CODED), "values", 0.5f));
        if (with_device) { /* what waited was written first */
                WAIT_FOR(device_is(&d, 0, "serving"), 5000);
                CHECK_OK(values_get(&sp, keys, MANY, 0, VALUES_PLANES, 0, statuses));
                CHECK_EQ(pattern_count(statuses, MANY, 0), MANY);
        }
        c = sp.c;
        kvt_space_close(sp.s);
        kvt_close(c);
        CHECK_EQ(daemon_stop(&d), 0); /* and while what was read is recoded */
        daemon_restart(&d);
        daemon_end(&d);
}

static void test_told_to_end_while_it_recodes(void **state)
{
        told_to_end("--codec_hot=gear:bits=4", "--codec_cold=zbf", false);
}

static void test_told_to_end_while_it_demotes(void **state)
{
        told_to_end("--codec_hot=zbf", "--codec_nvme=gear:bits=4", true);
}

int main(void)
{
        const struct CMUnitTest tests[] = {TEST(test_killed), TEST(test_told_to_end_while_it_recodes),
                                           TEST(test_told_to_end_while_it_demotes)};

        return cmocka_run_group_tests(tests, NULL, NULL);
}
