/* The storm: eight processes of two users work at random on a tier that is far too small, with short leases; some are killed, some stopped for
 * a while, all the time. Every byte that arrives is looked at. Afterwards nothing is left of them: no lease, no reservation, no transfer, no
 * descriptor, and the sums of the daemon agree with its structures.
 *
 * STORM_SEC: how long, 3 seconds if not given. SEED: repeats what the processes do (not when they are scheduled). */
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include "tests/lib/pattern.h"

enum { CLIENTS = 8, SPACES = 4, CHAIN = 12 };

static const struct {
        const char *name;
        size_t part_bytes;
        uint32_t n_shards, n_chains;
} shapes[SPACES] = {{"small", 4096, 1, 24}, {"middle", 65536, 1, 10}, {"large", 400 << 10, 1, 2}, {"shards", 16384, 2, 12}};

struct client { /* what a child starts with */
        const struct daemon *d;
        unsigned seed;
        int tenant; /* 0 or 1 */
        uint64_t until_usec;
        uint64_t *counts; /* shared memory */
};
enum { RIGHT, MISSED, STORED, LOST, MAPPED, KILLED, N_COUNTS };

struct worker { /* a thread of a child */
        const struct client *x;
        kvt *c;
        struct pattern_space (*spaces)[2];
        unsigned seed;
};

static uint32_t below(struct worker *w, uint32_t n)
{
        return (uint32_t)rand_r(&w->seed) / 3 % n;
}

static void count(const struct worker *w, int what, uint64_t n)
{
        __atomic_fetch_add(&w->x->counts[what], n, __ATOMIC_RELAXED);
}

/* What a call as a whole may say here: the connection may be lost because we were stopped, and did not give slabs back. */
static bool call_went(int r)
{
        switch (r) {
        case 0:
                return true;
        case KVT_E_AGAIN:
        case KVT_E_AGAIN_LEASED:
        case KVT_E_QUOTA:
        case KVT_E_DISCONNECTED:
        case KVT_E_RESTARTED:
        case KVT_E_TIMEOUT:
        case KVT_E_CANCELLED:
                return false;
        }
        check_failed(__FILE__, __LINE__, "a call says %s", kvt_error_name(r));
        return false;
}

static void statuses_may_be(const uint8_t *statuses, size_t n, uint64_t mask)
{
        for (size_t i = 0; i < n; i++)
                if (!(mask >> statuses[i] & 1))
                        check_failed(__FILE__, __LINE__, "a status is %s", kvt_error_name(statuses[i]));
}
#define BIT(x) (1ull << (x))

static const uint64_t put_may_say = BIT(0) | BIT(KVT_E_EXISTS) | BIT(KVT_E_NO_PARENT) | BIT(KVT_E_AGAIN) | BIT(KVT_E_AGAIN_LEASED) |
                                    BIT(KVT_E_QUOTA) | BIT(KVT_E_CANCELLED);
static const uint64_t get_may_say = BIT(0) | BIT(KVT_E_MISS) | BIT(KVT_E_AGAIN) | BIT(KVT_E_LEASE_LOST);

static void put(struct worker *w, const struct pattern_space *p, const kvt_key *k, size_t n, int flavour)
{
        uint8_t statuses[CHAIN];
        size_t first = below(w, 3) ? 0 : below(w, (uint32_t)n);

        if (call_went(pattern_put(p, first ? &k[first - 1] : NULL, k + first, n - first, flavour, below(w, 6) ? 0 : KVT_PUT_REPLACE,
                                  statuses))) {
                statuses_may_be(statuses, n - first, put_may_say);
                count(w, STORED, pattern_count(statuses, n - first, 0));
        }
}

static void get(struct worker *w, const struct pattern_space *p, const kvt_key *k, size_t n, int flavours)
{
        uint8_t statuses[CHAIN];

        if (call_went(pattern_get(p, k, n, flavours, statuses))) { /* which looks at the bytes */
                statuses_may_be(statuses, n, get_may_say);
                count(w, RIGHT, pattern_count(statuses, n, 0));
                count(w, MISSED, pattern_count(statuses, n, KVT_E_MISS));
        }
}

/* What was read before an unmap that says 0 was right; else it may be anything. */
static void map(struct worker *w, const struct pattern_space *p, const kvt_key *k, size_t n, int flavours)
{
        uint8_t statuses[CHAIN], after[CHAIN];
        kvt_mapping m[CHAIN];
        bool right[CHAIN];

        if (!call_went(kvt_map(p->s, k, n, m, statuses)))
                return;
        statuses_may_be(statuses, n, get_may_say);
        if (!below(w, 4))
                usleep(below(w, 80000)); /* perhaps past the deadline */
        for (size_t i = 0; i < n; i++)
                right[i] = statuses[i] || pattern_find(m[i].data, m[i].bytes, &k[i], p->shard, flavours) >= 0;
        kvt_unmap(p->s, m, n, after);
        for (size_t i = 0; i < n; i++) {
                if (statuses[i])
                        continue;
                count(w, MAPPED, 1);
                count(w, LOST, after[i] != 0);
                if (!after[i] && !right[i])
                        check_failed(__FILE__, __LINE__, "wrong bytes under a lease that held");
        }
}

static void reserve(struct worker *w, const struct pattern_space *p, const kvt_key *k, size_t n, int flavour)
{
        uint8_t statuses[CHAIN];
        kvt_reservation tickets[CHAIN];

        if (!call_went(kvt_put_reserve(p->s, NULL, k, n, 0, tickets, statuses)))
                return;
        statuses_may_be(statuses, n, put_may_say);
        for (size_t i = 0; i < n; i++)
                if (!statuses[i])
                        pattern_fill(tickets[i].data, p->part_bytes, &k[i], p->shard, flavour);
        switch (below(w, 4)) {
        case 0:
                kvt_put_abort(p->s, tickets, n);
                return;
        case 1:
                usleep(below(w, 300000)); /* perhaps too late */
        }
        if (call_went(kvt_put_commit(p->s, tickets, n, statuses)))
                statuses_may_be(statuses, n, put_may_say | BIT(KVT_E_UNKNOWN_RESERVATION) | BIT(KVT_E_RESTARTED) | BIT(KVT_E_DISCONNECTED));
}

static void other(struct worker *w, const struct pattern_space *p, const kvt_key *k, size_t n)
{
        uint8_t statuses[CHAIN];
        kvt_match_result m;
        kvt_explanation e;

        switch (below(w, 5)) {
        case 0:
                if (call_went(kvt_drop(p->s, &k[below(w, (uint32_t)n)], 1, statuses)))
                        statuses_may_be(statuses, 1, BIT(0) | BIT(KVT_E_MISS));
                break;
        case 1:
        case 2:
                if (call_went(kvt_match(p->s, k, n, n * PATTERN_TOKENS, KVT_MATCH_LEAVE_LAST, &m)))
                        CHECK(m.n_blocks <= n && (m.n_blocks == n || m.stop));
                break;
        case 3:
                if (call_went(kvt_prefetch(p->s, k, n, 0, statuses)))
                        statuses_may_be(statuses, n, BIT(0) | BIT(KVT_E_MISS));
                break;
        case 4:
                if (call_went(kvt_explain(p->s, k, &e)))
                        CHECK(e.why >= 0 && e.why <= KVT_WHY_RECLAIMED && e.text[0]);
        }
}

static void *work(void *arg)
{
        struct worker *w = arg;
        int base = 2 * w->x->tenant, flavours = w->x->tenant ? PATTERN_2_OR_3 : PATTERN_0_OR_1;

        while (check_now_usec() < w->x->until_usec) {
                uint32_t i = below(w, SPACES);
                const struct pattern_space *p = &w->spaces[i][below(w, shapes[i].n_shards)];
                kvt_key k[CHAIN];
                size_t n = 1 + below(w, i == 2 ? 4 : CHAIN);
                pattern_keys(below(w, shapes[i].n_chains), 0, CHAIN, k);
                switch (below(w, 8)) {
                case 0:
                case 1:
                case 2:
                        put(w, p, k, n, base + (int)below(w, 2));
                        break;
                case 3:
                case 4:
                        get(w, p, k, n, flavours);
                        break;
                case 5:
                        map(w, p, k, n, flavours);
                        break;
                case 6:
                        reserve(w, p, k, n, base + (int)below(w, 2));
                        break;
                case 7:
                        other(w, p, k, n);
                }
        }
        return NULL;
}

static void client(void *arg)
{
        struct client *x = arg;
        unsigned seed = x->seed;

        while (check_now_usec() < x->until_usec) { /* connection after connection */
                struct client turn = *x;
                struct pattern_space spaces[SPACES][2];
                pthread_t thread;
                kvt_options o = {.struct_size = sizeof(o), .path = x->d->socket, .staging_bytes = 1 << 20, .timeout_usec = 20000000};
                o.flags = rand_r(&seed) % 4 ? 0 : KVT_OPEN_NO_THREAD;
                bool two_threads = rand_r(&seed) % 2;
                struct worker w[2] = {{.x = &turn, .spaces = spaces, .seed = (unsigned)rand_r(&seed)},
                                      {.x = &turn, .spaces = spaces, .seed = seed}};
                turn.until_usec = check_now_usec() + (uint64_t)rand_r(&seed) % 1500000;
                if (turn.until_usec > x->until_usec)
                        turn.until_usec = x->until_usec;
                if (!call_went(kvt_open(&o, &w[0].c)))
                        continue;
                bool open = true;
                for (int i = 0; i < SPACES; i++)
                        for (uint32_t j = 0; j < 2; j++) {
                                spaces[i][j].s = NULL;
                                if (open && j < shapes[i].n_shards)
                                        open = call_went(pattern_space_open(&spaces[i][j], w[0].c,
                                                                            (struct pattern_config){.name = shapes[i].name,
                                                                                                    .part_bytes = shapes[i].part_bytes,
                                                                                                    .n_shards = shapes[i].n_shards,
                                                                                                    .shard = j}));
                        }
                w[1].c = w[0].c;
                if (open && two_threads)
                        CHECK_EQ(pthread_create(&thread, NULL, work, &w[1]), 0);
                if (open)
                        work(&w[0]);
                if (open && two_threads)
                        pthread_join(thread, NULL);
                for (int i = 0; i < SPACES; i++)
                        for (uint32_t j = 0; j < 2; j++)
                                kvt_space_close(spaces[i][j].s);
                kvt_close(w[0].c);
        }
}

static pid_t start(struct client *x, unsigned seed)
{
        x->seed = seed;
        return geteuid() == 0 ? child_start_as(2001 + (uid_t)x->tenant, client, x) : child_start(client, x);
}

static void test_storm(void **state)
{
        const char *given = getenv("STORM_SEC"), *given_seed = getenv("SEED");
        unsigned sec = given ? (unsigned)atoi(given) : 3, seed = given_seed ? (unsigned)atoi(given_seed) : (unsigned)check_now_usec();
        struct client x[CLIENTS];
        struct daemon d;
        pid_t pids[CLIENTS], stopped = 0;
        uint64_t continue_usec = 0, until = 0, *counts;

        printf("STORM_SEC=%u SEED=%u\n", sec, seed);
        fflush(stdout);
        counts = mmap(NULL, N_COUNTS * sizeof(*counts), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        CHECK(counts != MAP_FAILED);
        DAEMON_START(&d, "--host_bytes=24M", "--lease_usec=40ms", "--put_timeout_usec=300ms", "--ghost_entries=64", "--log_level=error");
        unsigned fds = daemon_n_fds(&d);
        until = check_now_usec() + (uint64_t)sec * 1000000;
        for (int i = 0; i < CLIENTS; i++) {
                x[i] = (struct client){.d = &d, .tenant = geteuid() == 0 ? i % 2 : 0, .until_usec = until, .counts = counts};
                pids[i] = start(&x[i], (unsigned)rand_r(&seed));
        }
        while (check_now_usec() < until - 200000) {
                int i = rand_r(&seed) / 5 % CLIENTS, status;
                usleep(20000 + (unsigned)rand_r(&seed) % 40000);
                for (int j = 0; j < CLIENTS; j++) /* a child that ended by itself found something */
                        CHECK_EQ(waitpid(pids[j], &status, WNOHANG), 0);
                CHECK_EQ(waitpid(d.pid, &status, WNOHANG), 0);
                if (stopped && check_now_usec() > continue_usec) {
                        kill(stopped, SIGCONT);
                        stopped = 0;
                }
                if (!stopped && rand_r(&seed) % 4 == 0) {
                        stopped = pids[i];
                        kill(stopped, SIGSTOP);
                        continue_usec = check_now_usec() + (uint64_t)rand_r(&seed) % 500000;
                        continue;
                }
                kill(pids[i], SIGKILL);
                CHECK_EQ(waitpid(pids[i], &status, 0), pids[i]);
                if (stopped == pids[i])
                        stopped = 0;
                pids[i] = start(&x[i], (unsigned)rand_r(&seed));
                counts[KILLED]++;
        }
        if (stopped)
                kill(stopped, SIGCONT);
        for (int i = 0; i < CLIENTS; i++)
                child_join(pids[i]);
        printf("stored %llu, right %llu, missed %llu, mapped %llu, lost %llu, killed %llu\n", (unsigned long long)counts[STORED],
               (unsigned long long)counts[RIGHT], (unsigned long long)counts[MISSED], (unsigned long long)counts[MAPPED],
               (unsigned long long)counts[LOST], (unsigned long long)counts[KILLED]);
        CHECK(counts[STORED] > 0 && counts[RIGHT] > 0 && counts[MAPPED] > 0 && counts[KILLED] > 0);

        WAIT_FOR(daemon_status(&d).n_sessions == 0, 5000);
        WAIT_FOR(daemon_status(&d).n_xfers == 0, 5000);
        struct daemon_status s = daemon_audit(&d);
        CHECK_EQ(s.n_leases, 0);
        CHECK_EQ(s.audit_leases, 0);
        CHECK_EQ(s.n_reservations, 0);
        CHECK_EQ(s.staging_bytes, 0);
        CHECK_EQ(s.n_retired, 0);
        CHECK(s.slab_bytes <= 24 << 20);
        CHECK_EQ(daemon_n_fds(&d), fds + s.n_slabs);
        CHECK_EQ(daemon_counter(&d, "corrupt"), 0);
        WAIT_FOR(daemon_audit(&d).n_leases == 0, 1000);
        munmap(counts, N_COUNTS * sizeof(*counts));
        daemon_end(&d);
}

int main(void)
{
        const struct CMUnitTest tests[] = {TEST(test_storm)};

        return cmocka_run_group_tests(tests, NULL, NULL);
}
