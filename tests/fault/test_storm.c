/* The storm: eight processes of two users work at random on a tier that is far too small, with short leases; some are killed, some stopped for
 * a while, all the time. Three of them have values, which the daemon keeps under codecs that change all the time, in a lossless space and in one with a bound. Every byte that arrives is looked at. Afterwards nothing is left of them: no lease, no reservation, no transfer, no
 * descriptor, and the sums of the daemon agree with its structures.
 *
 * STORM_SEC: how long, 3 seconds if not given. SEED: repeats what the processes do (not when they are scheduled). */
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include "tests/lib/devices.h"
#include "tests/lib/raw.h"
#include "tests/lib/values.h"

enum { CLIENTS = 8, SPACES = 4, CHAIN = 12, VALUE_SPACES = 2, VALUE_CHAINS = 24 };

/* by the run */
static const char *const ladders[][3] = {
        {"--codec_hot=zbf", "--codec_cold=zbf", "--codec_nvme=zbf"},
        {"--codec_hot=kivi:bits=4", "--codec_cold=zbf", "--codec_nvme=zbf"},
        {"--codec_hot=raw", "--codec_cold=zbf", "--codec_nvme=kivi:bits=4"},
        {"--codec_hot=stack:levels=5", "--codec_cold=stack:levels=3", "--codec_nvme=stack:levels=2"},
};
static const char *const value_names[VALUE_SPACES] = {"lossless", "bounded"};
static const float value_bounds[VALUE_SPACES] = {0, 0.08f}; /* too little for 2 bits */

static const struct {
        const char *name;
        size_t part_bytes;
        uint32_t n_shards, n_chains;
} shapes[SPACES] = {{"small", 4096, 1, 24}, {"middle", 65536, 1, 10}, {"large", 400 << 10, 1, 2}, {"shards", 16384, 2, 12}};

struct client { /* what a child starts with */
        const struct daemon *d;
        unsigned seed;
        int tenant; /* 0 or 1 */
        bool values;
        uint64_t until_usec;
        uint64_t *counts; /* shared memory */
};
enum { RIGHT, MISSED, STORED, LOST, MAPPED, KILLED, DECODED, CODED, SET, N_COUNTS };

struct worker { /* a thread of a child */
        const struct client *x;
        kvt *c;
        struct pattern_space (*spaces)[2];
        struct values_space *values;
        bool sees_codecs; /* KVT_OPEN_CODED */
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
static const uint64_t durable_may_say = BIT(KVT_E_TIMEOUT) | BIT(KVT_E_NO_SPACE);
static const uint64_t get_may_say =
        BIT(0) | BIT(KVT_E_MISS) | BIT(KVT_E_AGAIN) | BIT(KVT_E_LEASE_LOST) | BIT(KVT_E_AGAIN_LEASED) | BIT(KVT_E_QUOTA);

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
        statuses_may_be(statuses, n, get_may_say | BIT(KVT_E_CODED));
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

static void other(struct worker *w, kvt_space *s, size_t block_tokens, const kvt_key *k, size_t n)
{
        uint8_t statuses[CHAIN];
        kvt_match_result m;
        kvt_explanation e;

        switch (below(w, 5)) {
        case 0:
                if (call_went(kvt_drop(s, &k[below(w, (uint32_t)n)], 1, statuses)))
                        statuses_may_be(statuses, 1, BIT(0) | BIT(KVT_E_MISS));
                break;
        case 1:
        case 2:
                if (call_went(kvt_match(s, k, n, n * block_tokens, KVT_MATCH_LEAVE_LAST, &m)))
                        CHECK(m.n_blocks <= n && (m.n_blocks == n || m.stop));
                break;
        case 3:
                if (call_went(kvt_prefetch(s, k, n, 0, statuses)))
                        statuses_may_be(statuses, n, BIT(0) | BIT(KVT_E_MISS) | BIT(KVT_E_AGAIN));
                break;
        case 4:
                if (call_went(kvt_explain(s, k, &e)))
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
                        other(w, p->s, PATTERN_TOKENS, k, n);
                }
        }
        return NULL;
}

static void put_values(struct worker *w, const struct values_space *v, const kvt_key *k, size_t n, int flavour)
{
        static const uint8_t protect[CHAIN * VALUES_TOKENS / 8] = {0xff, [10] = 0x11};
        static const kvt_hints hints = {sizeof(hints), protect, NULL};
        uint8_t statuses[CHAIN];
        size_t first = below(w, 3) ? 0 : below(w, (uint32_t)n);
        uint32_t flags = (below(w, 6) ? 0 : KVT_PUT_REPLACE) | (below(w, 4) ? 0 : KVT_PUT_DURABLE);

        if (call_went(values_put(v, first ? &k[first - 1] : NULL, k + first, n - first, flavour, flags, below(w, 3) ? NULL : &hints,
                                 statuses))) {
                statuses_may_be(statuses, n - first, put_may_say | (flags & KVT_PUT_DURABLE ? durable_may_say : 0));
                count(w, STORED, pattern_count(statuses, n - first, 0));
        }
}

static void get_values(struct worker *w, const struct values_space *v, const kvt_key *k, size_t n, int flavours, bool all)
{
        uint8_t statuses[CHAIN];
        uint32_t first = all ? 0 : below(w, VALUES_PLANES), n_planes = all ? VALUES_PLANES : 1 + below(w, VALUES_PLANES - first);

        if (call_went(values_get(v, k, n, first, n_planes, flavours, statuses))) { /* which looks at the values */
                statuses_may_be(statuses, n, get_may_say);
                count(w, RIGHT, pattern_count(statuses, n, 0));
                count(w, MISSED, pattern_count(statuses, n, KVT_E_MISS));
        }
}

/* What is decoded under a lease is right, or said not to be; what was read where it lies, if the unmap says 0. */
static void map_values(struct worker *w, const struct values_space *v, const kvt_key *k, size_t n, int flavours)
{
        uint8_t statuses[CHAIN], after[CHAIN];
        kvt_mapping m[CHAIN];
        bool right[CHAIN], error_is_wrong[CHAIN] = {0};
        kvt_plane_copy c;

        if (!call_went(kvt_map(v->s, k, n, m, statuses)))
                return;
        statuses_may_be(statuses, n, get_may_say | (w->sees_codecs ? 0 : BIT(KVT_E_CODED)));
        if (!below(w, 4))
                usleep(below(w, 80000)); /* perhaps past the deadline */
        for (size_t i = 0; i < n; i++) {
                right[i] = true;
                if (statuses[i])
                        continue;
                if (w->sees_codecs) {
                        int r = values_mapped(v, &m[i], &k[i], flavours, &error_is_wrong[i]);
                        right[i] = r == 0;
                        CHECK(r == 0 || r == KVT_E_LEASE_LOST || r == KVT_E_RESTARTED || r == KVT_E_DISCONNECTED);
                        count(w, DECODED, r == 0);
                        if (r == 0 && kvt_mapped_plane(v->s, &m[i], 0, &c) == 0)
                                count(w, CODED, c.codec_id != 0);
                } else {
                        right[i] = values_find(v, m[i].data, 0, VALUES_PLANES, &k[i], flavours) >= 0;
                }
        }
        kvt_unmap(v->s, m, n, after);
        for (size_t i = 0; i < n; i++) {
                if (statuses[i])
                        continue;
                count(w, MAPPED, 1);
                count(w, LOST, after[i] != 0);
                if (!after[i] && (!right[i] || error_is_wrong[i]))
                        check_failed(__FILE__, __LINE__, "wrong values, or an error that is wrong, under a lease that held");
        }
}

/* Another ladder for one of the spaces, through a connection of its own. */
static void set_ladder(struct worker *w)
{
        static const char *const codecs[] = {"raw", "zbf", "kivi:bits=4", "kivi:bits=2", "stack", "turbo:bits=4+kivi", "cbf"};
        Kvtier__SpaceSetRequest q = KVTIER__SPACE_SET_REQUEST__INIT;
        struct raw *r = malloc(sizeof(*r));
        uint32_t i = below(w, 8) != 0; /* the lossless one mostly has the configuration's, which may be lossy */

        CHECK(r);
        raw_open(r, w->x->d->socket);
        raw_hello(r);
        q.name = (char *)value_names[i];
        q.hot = (char *)codecs[below(w, sizeof(codecs) / sizeof(*codecs))];
        q.cold = (char *)codecs[below(w, sizeof(codecs) / sizeof(*codecs))];
        q.nvme = (char *)codecs[below(w, sizeof(codecs) / sizeof(*codecs))];
        int s = raw_status(r, KVT_MSG_SPACE_SET, &q);
        CHECK(s == 0 || s == KVT_E_UNKNOWN_SPACE || s == KVT_E_DISCONNECTED || (i == 0 && s == KVT_E_FIDELITY));
        count(w, SET, s == 0);
        raw_close(r);
        free(r);
}

static void *work_values(void *arg)
{
        struct worker *w = arg;
        int base = 2 * w->x->tenant, flavours = w->x->tenant ? PATTERN_2_OR_3 : PATTERN_0_OR_1;

        while (check_now_usec() < w->x->until_usec) {
                const struct values_space *v = &w->values[below(w, VALUE_SPACES)];
                kvt_key k[CHAIN];
                size_t n = 1 + below(w, CHAIN);
                pattern_keys(1000 + below(w, VALUE_CHAINS), 0, CHAIN, k);
                switch (below(w, 16)) {
                case 0 ... 4:
                        put_values(w, v, k, n, base + (int)below(w, 2));
                        break;
                case 5 ... 7:
                        get_values(w, v, k, n, flavours, true);
                        break;
                case 8 ... 9:
                        get_values(w, v, k, n, flavours, false);
                        break;
                case 10 ... 12:
                        map_values(w, v, k, n, flavours);
                        break;
                case 13:
                        set_ladder(w);
                        break;
                default:
                        other(w, v->s, VALUES_TOKENS, k, n);
                }
        }
        return NULL;
}

static bool open_values(struct worker *w)
{
        for (uint32_t i = 0; i < VALUE_SPACES; i++)
                w->values[i].s = NULL;
        for (uint32_t i = 0; i < VALUE_SPACES; i++)
                if (!call_went(values_space_open(&w->values[i], w->c, value_names[i], value_bounds[i])))
                        return false;
        return true;
}

static void client(void *arg)
{
        struct client *x = arg;
        unsigned seed = x->seed;

        while (check_now_usec() < x->until_usec) { /* connection after connection */
                struct client turn = *x;
                struct pattern_space spaces[SPACES][2];
                struct values_space values[VALUE_SPACES];
                void *(*do_work)(void *) = x->values ? work_values : work;
                pthread_t thread;
                kvt_options o = {.struct_size = sizeof(o), .path = x->d->socket, .staging_bytes = 1 << 20, .timeout_usec = 20000000};
                o.flags = rand_r(&seed) % 4 ? 0 : KVT_OPEN_NO_THREAD;
                bool sees_codecs = x->values && rand_r(&seed) % 3;
                o.flags |= sees_codecs ? KVT_OPEN_CODED : 0;
                bool two_threads = rand_r(&seed) % 2;
                struct worker w[2] = {{.x = &turn, .spaces = spaces, .values = values, .sees_codecs = sees_codecs}};
                w[0].seed = (unsigned)rand_r(&seed);
                w[1] = w[0];
                w[1].seed = seed;
                turn.until_usec = check_now_usec() + (uint64_t)rand_r(&seed) % 1500000;
                if (turn.until_usec > x->until_usec)
                        turn.until_usec = x->until_usec;
                if (!call_went(kvt_open(&o, &w[0].c)))
                        continue;
                bool open = !x->values || open_values(&w[0]);
                for (int i = 0; i < SPACES; i++)
                        for (uint32_t j = 0; j < 2; j++) {
                                spaces[i][j].s = NULL;
                                if (open && !x->values && j < shapes[i].n_shards)
                                        open = call_went(pattern_space_open(&spaces[i][j], w[0].c,
                                                                            (struct pattern_config){.name = shapes[i].name,
                                                                                                    .part_bytes = shapes[i].part_bytes,
                                                                                                    .n_shards = shapes[i].n_shards,
                                                                                                    .shard = j}));
                        }
                w[1].c = w[0].c;
                if (open && two_threads)
                        CHECK_EQ(pthread_create(&thread, NULL, do_work, &w[1]), 0);
                if (open)
                        do_work(&w[0]);
                if (open && two_threads)
                        pthread_join(thread, NULL);
                for (int i = 0; i < SPACES; i++)
                        for (uint32_t j = 0; j < 2; j++)
                                kvt_space_close(spaces[i][j].s);
                for (int i = 0; x->values && i < VALUE_SPACES; i++)
                        kvt_space_close(values[i].s);
                kvt_close(w[0].c);
        }
}

/* All blocks of all tenants go, and with them all that was set aside for them. */
static void purge_all(const struct daemon *d)
{
        Kvtier__ListRequest tenants = KVTIER__LIST_REQUEST__INIT;
        Kvtier__PurgeRequest q = KVTIER__PURGE_REQUEST__INIT;
        struct raw *r = malloc(sizeof(*r));

        CHECK(r);
        raw_open(r, d->socket);
        raw_hello(r);
        tenants.what = KVTIER__LIST_WHAT__LIST_TENANTS;
        Kvtier__ListReply *m = raw_call(r, KVT_MSG_LIST, &tenants, &kvtier__list_reply__descriptor);
        CHECK(m);
        for (size_t i = 0; i < m->n_tenants; i++) {
                q.tenant = m->tenants[i]->name;
                CHECK_OK(raw_status(r, KVT_MSG_PURGE, &q));
        }
        protobuf_c_message_free_unpacked(&m->base, NULL);
        raw_leave(r);
        free(r);
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

        const char *const *ladder = ladders[seed % (sizeof(ladders) / sizeof(*ladders))];
        printf("STORM_SEC=%u SEED=%u %s %s %s\n", sec, seed, ladder[0], ladder[1], ladder[2]);
        fflush(stdout);
        counts = mmap(NULL, N_COUNTS * sizeof(*counts), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        CHECK(counts != MAP_FAILED);
        DAEMON_START(&d, "--host_bytes=24M", "--lease_usec=40ms", "--put_timeout_usec=300ms", "--ghost_entries=64", "--log_level=error",
                     ladder[0], ladder[1], ladder[2], "--codec_cold_pct=10", "--nvme_devices=DIR/nvme.kvt", "--nvme_bytes=24M",
                     "--nvme_segment_bytes=1M");
        WAIT_FOR(device_is(&d, 0, "serving"), 5000);
        unsigned fds = daemon_n_fds(&d);
        until = check_now_usec() + (uint64_t)sec * 1000000;
        for (int i = 0; i < CLIENTS; i++) {
                x[i] = (struct client){
                        .d = &d, .tenant = geteuid() == 0 ? i % 2 : 0, .values = i >= CLIENTS - 3, .until_usec = until, .counts = counts};
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
        printf("stored %llu, right %llu, missed %llu, mapped %llu, lost %llu, killed %llu, decoded %llu, of them coded %llu, ladders set "
               "%llu\n",
               (unsigned long long)counts[STORED], (unsigned long long)counts[RIGHT], (unsigned long long)counts[MISSED],
               (unsigned long long)counts[MAPPED], (unsigned long long)counts[LOST], (unsigned long long)counts[KILLED],
               (unsigned long long)counts[DECODED], (unsigned long long)counts[CODED], (unsigned long long)counts[SET]);
        CHECK(counts[DECODED] < 2000 || (counts[CODED] > 0 && counts[SET] > 0)); /* a loaded machine may not get as far */
        CHECK(counts[STORED] > 0 && counts[RIGHT] > 0 && counts[MAPPED] > 0 && counts[KILLED] > 0);

        WAIT_FOR(daemon_status(&d).n_sessions == 0, 5000);
        struct daemon_status s; /* what got cold is recoded for a while */
        WAIT_FOR((s = daemon_audit(&d)).n_xfers == 0, 10000);
        CHECK_EQ(s.n_leases, 0);
        CHECK_EQ(s.audit_leases, 0);
        CHECK_EQ(s.n_reservations, 0);
        CHECK_EQ(s.staging_bytes, 0);
        CHECK_EQ(s.n_retired, 0);
        CHECK(s.slab_bytes <= 24 << 20);
        CHECK_EQ(daemon_n_fds(&d), fds + s.n_slabs);
        CHECK_EQ(daemon_counter(&d, "corrupt"), 0);
        WAIT_FOR(daemon_audit(&d).n_leases == 0, 1000);
        purge_all(&d);
        WAIT_FOR(daemon_status(&d).n_spaces == 0, 5000); /* nothing keeps one: no block, no record, no transfer */
        s = daemon_audit(&d);
        CHECK_EQ(s.n_blocks, 0);
        CHECK_EQ(s.used_bytes, 0);
        CHECK_EQ(s.payload_bytes, 0);
        munmap(counts, N_COUNTS * sizeof(*counts));
        daemon_end(&d);
}

int main(void)
{
        const struct CMUnitTest tests[] = {TEST(test_storm)};

        return cmocka_run_group_tests(tests, NULL, NULL);
}
