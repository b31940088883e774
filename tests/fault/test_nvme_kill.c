/* kill -9 of a real daemon with an NVMe file, at random moments, while processes put durable chains and read them.
 *
 * A client writes down (in memory shared with the test) how much of a chain it was told is durable, before it goes on. After each restart in the
 * same directory every such block is matched, with its ancestors, and served byte for byte. KILLS: how many rounds. */
#include <sys/mman.h>

#include "tests/lib/devices.h"
#include "tests/lib/pattern.h"

enum { CLIENTS = 2, CHAINS = 96 /* a client */, CHAIN = 12, STEP = 3, PART = 32768 };

struct client {
        struct daemon *daemon;
        unsigned number;
        struct {
                uint32_t n_durable[CHAINS]; /* blocks of that chain that were acknowledged */
                uint64_t n_puts;
                bool killed; /* told just before the daemon is */
        } * shared;
};

static uint64_t chain_of(unsigned client, unsigned chain)
{
        return 1000 * (client + 1) + chain;
}

static void work(void *arg)
{
        struct client *w = arg;
        struct pattern_space sp;
        kvt_key keys[CHAIN];
        uint8_t statuses[CHAIN];
        uint64_t seed = check_now_usec() + w->number;
        kvt *c = pattern_open(w->daemon, KVT_OPEN_NO_RECONNECT); /* the kill ends it */

        PATTERN_SPACE(&sp, c, .part_bytes = PART);
        while (!__atomic_load_n(&w->shared->killed, __ATOMIC_ACQUIRE)) {
                int r;
                seed = seed * 6364136223846793005ull + 1442695040888963407ull;
                unsigned chain = (unsigned)(seed >> 33) % CHAINS;
                uint32_t have = w->shared->n_durable[chain];
                pattern_keys(chain_of(w->number, chain), 0, CHAIN, keys);
                if (have == CHAIN || (have && (seed >> 20 & 3) == 0)) {
                        r = pattern_get(&sp, keys, have, 0, statuses);
                        if (r) {
                                CHECK_IS(r, KVT_E_DISCONNECTED);
                                break;
                        }
                        if (__atomic_load_n(&w->shared->killed, __ATOMIC_ACQUIRE))
                                break; /* the next daemon answered, which may still be learning what it has */
                        for (uint32_t i = 0; i < have; i++)
                                CHECK_OK(statuses[i]);
                        continue;
                }
                size_t n_step = CHAIN - have < STEP ? CHAIN - have : STEP, n = 0;
                r = pattern_put(&sp, have ? &keys[have - 1] : NULL, keys + have, n_step, 0, KVT_PUT_DURABLE, statuses);
                if (r == KVT_E_AGAIN) /* no staging for the moment */
                        continue;
                if (r) {
                        CHECK_IS(r, KVT_E_DISCONNECTED);
                        break;
                }
                while (n < n_step && (statuses[n] == 0 || statuses[n] == KVT_E_EXISTS)) /* it was stored before a kill: durable by now */
                        n++;
                __atomic_fetch_add(&w->shared->n_puts, n, __ATOMIC_RELAXED);
                __atomic_store_n(&w->shared->n_durable[chain], have + (uint32_t)n, __ATOMIC_RELEASE);
                for (; n < n_step; n++) {
                        if (statuses[n] == KVT_E_DISCONNECTED || statuses[n] == KVT_E_RESTARTED)
                                break;
                        CHECK(statuses[n] == KVT_E_AGAIN || statuses[n] == KVT_E_AGAIN_LEASED || statuses[n] == KVT_E_EXISTS ||
                              statuses[n] == 0 || statuses[n] == KVT_E_NO_PARENT);
                }
        }
        kvt_space_close(sp.s);
        kvt_close(c);
}

static void check_durable(const struct daemon *d, const struct client *w, uint64_t *ret_n)
{
        struct pattern_space sp;
        kvt_key keys[CHAIN];
        uint8_t statuses[CHAIN];
        kvt *c = pattern_open(d, 0);

        PATTERN_SPACE(&sp, c, .part_bytes = PART);
        for (unsigned k = 0; k < CLIENTS; k++)
                for (unsigned chain = 0; chain < CHAINS; chain++) {
                        uint32_t n = w[k].shared->n_durable[chain];
                        if (!n)
                                continue;
                        pattern_keys(chain_of(k, chain), 0, CHAIN, keys);
                        size_t matched = pattern_match(&sp, keys, n);
                        if (matched < n)
                                check_failed(__FILE__, __LINE__, "client %u chain %u: %zu of %u durable blocks are back", k, chain, matched,
                                             n);
                        CHECK_OK(pattern_get(&sp, keys, n, 0, statuses));
                        for (uint32_t i = 0; i < n; i++)
                                CHECK_OK(statuses[i]);
                        *ret_n += n;
                }
        kvt_space_close(sp.s);
        kvt_close(c);
}

static void test_durable_blocks_outlive_kills(void **state)
{
        int n_kills = getenv("KILLS") ? atoi(getenv("KILLS")) : CHECK_SLOW > 1 ? 3 : 6;
        uint64_t n_checked = 0, n_puts = 0, seed = check_now_usec();
        struct client w[CLIENTS] = {};
        pid_t pids[CLIENTS];
        struct daemon d;

        for (unsigned i = 0; i < CLIENTS; i++) {
                w[i].number = i;
                w[i].daemon = &d;
                w[i].shared = mmap(NULL, sizeof(*w[i].shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
                CHECK(w[i].shared != MAP_FAILED);
        }
        DAEMON_START(&d, "--host_bytes=32M", "--nvme_devices=DIR/nvme.kvt", "--nvme_bytes=256M", "--nvme_segment_bytes=2M",
                     "--nvme_admit_hits=0");
        for (int round = 0; round < n_kills; round++) {
                for (unsigned i = 0; i < CLIENTS; i++) {
                        w[i].shared->killed = false;
                        pids[i] = child_start(work, &w[i]);
                }
                seed = seed * 6364136223846793005ull + 1442695040888963407ull;
                usleep((useconds_t)(20000 + (seed >> 33) % 400000) * CHECK_SLOW);
                for (unsigned i = 0; i < CLIENTS; i++)
                        __atomic_store_n(&w[i].shared->killed, true, __ATOMIC_RELEASE);
                daemon_kill(&d);
                daemon_restart(&d);
                for (unsigned i = 0; i < CLIENTS; i++)
                        child_join(pids[i]);
                WAIT_FOR(device_is(&d, 0, "serving"), 10000);
                n_checked = 0;
                check_durable(&d, w, &n_checked);
                if (n_checked > CLIENTS * CHAINS * CHAIN / 2) { /* so that most kills find puts under way */
                        daemon_end(&d);
                        for (unsigned i = 0; i < CLIENTS; i++)
                                memset(w[i].shared->n_durable, 0, sizeof(w[i].shared->n_durable));
                        DAEMON_START(&d, "--host_bytes=32M", "--nvme_devices=DIR/nvme.kvt", "--nvme_bytes=256M", "--nvme_segment_bytes=2M",
                                     "--nvme_admit_hits=0");
                }
        }
        for (unsigned i = 0; i < CLIENTS; i++)
                n_puts += w[i].shared->n_puts;
        CHECK(n_puts > 20 * (uint64_t)n_kills);
        print_message("%d kills, %llu blocks made durable, all of them there after each\n", n_kills, (unsigned long long)n_puts);
        daemon_end(&d);
        for (unsigned i = 0; i < CLIENTS; i++)
                munmap(w[i].shared, sizeof(*w[i].shared));
}

int main(void)
{
        const struct CMUnitTest tests[] = {TEST(test_durable_blocks_outlive_kills)};

        return cmocka_run_group_tests(tests, NULL, NULL);
}
