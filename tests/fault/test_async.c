/* Engines with event loops, and a daemon that dies and comes back: many operations under way at once on each connection, some cancelled, some whose
 * handles are given back at once, some left over when the connection is closed; beside the loop a second thread calls synchronously, and takes
 * the loop's completions as they come. Clients are killed, too, and the configuration changes all the time.
 *
 * Every operation must be done exactly once, with an outcome that the manual allows; every byte that counts as got must be right. At the end
 * nothing is left of anybody.
 *
 * STORM_SEC: how long, 3 seconds if not given. SEED: repeats what the processes do (not when they are scheduled). */
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include "tests/lib/pattern.h"

enum { CLIENTS = 4, SLOTS = 12, SPACES = 2, CHAIN = 6, CHAINS = 40, PART_MAX = 65536 };
static const size_t part_bytes[SPACES] = {4096, PART_MAX};

enum kind { MATCH, PUT, GET, MAP, RESERVE, COMMIT, PREFETCH, DROP, EXPLAIN, STAT, KINDS };
enum { DONE = KINDS, RIGHT, CANCELLED, LEFT, LOST_BLOCKS, EVENTS, N_COUNTS }; /* the first KINDS: carried out */

struct client {
        const struct daemon *d;
        unsigned seed;
        uint64_t until_usec, *counts; /* shared memory */
};

struct slot { /* an operation; owned by the loop's thread but for n_done and status, which are set by whoever runs done */
        struct engine *engine;
        enum kind kind;
        bool busy;
        int n_done; /* atomic */
        int status;
        uint64_t keep_usec; /* looked at no sooner: mappings may have lost their leases by then */
        kvt_op *op; /* NULL: given back */
        const struct pattern_space *space;
        size_t n;
        kvt_key keys[CHAIN];
        uint8_t statuses[CHAIN];
        kvt_mapping mappings[CHAIN];
        kvt_reservation tickets[CHAIN];
        kvt_match_result match;
        kvt_explanation explanation;
        kvt_stats stats;
        uint8_t *memory;
};

struct engine {
        const struct client *x;
        kvt *c;
        struct pattern_space spaces[SPACES];
        struct slot slots[SLOTS];
        uint32_t flags; /* the connection's */
        unsigned seed;
        bool stop; /* atomic */
};

static uint32_t below(unsigned *seed, uint32_t n)
{
        return (uint32_t)rand_r(seed) / 3 % n;
}

static void count(const struct engine *e, int what, uint64_t n)
{
        __atomic_fetch_add(&e->x->counts[what], n, __ATOMIC_RELAXED);
}

/* What a call or an operation as a whole may say while daemons come and go. */
static bool went(int r)
{
        switch (r) {
        case 0:
                return true;
        case KVT_E_AGAIN:
        case KVT_E_AGAIN_LEASED:
        case KVT_E_QUOTA:
        case KVT_E_TOO_LARGE: /* for so small a staging */
        case KVT_E_DISCONNECTED:
        case KVT_E_RESTARTED:
        case KVT_E_CANCELLED:
        case KVT_E_TIMEOUT:
        case KVT_E_DRAINING:
                return false;
        }
        check_failed(__FILE__, __LINE__, "the outcome is %s", kvt_error_name(r));
        return false;
}

#define BIT(x) (1ull << (x))
static void may_be(const uint8_t *statuses, size_t n, uint64_t also)
{
        uint64_t mask = also | BIT(0) | BIT(KVT_E_AGAIN) | BIT(KVT_E_CANCELLED) | BIT(KVT_E_DISCONNECTED) | BIT(KVT_E_DRAINING);

        for (size_t i = 0; i < n; i++)
                if (!(mask >> statuses[i] & 1))
                        check_failed(__FILE__, __LINE__, "a status is %s", kvt_error_name(statuses[i]));
}

static void on_done(int status, void *arg)
{
        struct slot *o = arg;

        o->status = status;
        CHECK_EQ(__atomic_fetch_add(&o->n_done, 1, __ATOMIC_RELEASE), 0);
}

static void on_event(const kvt_key *stored, size_t n_stored, const kvt_key *removed, size_t n_removed, uint64_t n_lost, void *arg)
{
        CHECK(n_stored || n_removed || n_lost);
        count(arg, EVENTS, n_stored + n_removed);
}

/* views: planes apart, blocks one behind another */

static kvt_view view_of(const struct slot *o, kvt_plane_view planes[PATTERN_PLANES])
{
        size_t n_plane = o->space->part_bytes / PATTERN_PLANES;

        for (size_t i = 0; i < PATTERN_PLANES; i++)
                planes[i] =
                        (kvt_plane_view){.base = o->memory + i * CHAIN * n_plane, .token_stride = (ptrdiff_t)(n_plane / PATTERN_TOKENS)};
        return (kvt_view){.planes = planes, .n_planes = PATTERN_PLANES};
}

static uint8_t *plane_at(const struct slot *o, size_t i_block, size_t i_plane)
{
        size_t n_plane = o->space->part_bytes / PATTERN_PLANES;

        return o->memory + (i_plane * CHAIN + i_block) * n_plane;
}

static void fill(const struct slot *o)
{
        size_t n_plane = o->space->part_bytes / PATTERN_PLANES;
        uint8_t *part = malloc(o->space->part_bytes);

        for (size_t i = 0; i < o->n; i++) {
                pattern_fill(part, o->space->part_bytes, &o->keys[i], 0, 0);
                for (size_t j = 0; j < PATTERN_PLANES; j++)
                        memcpy(plane_at(o, i, j), part + j * n_plane, n_plane);
        }
        free(part);
}

static void check_got(const struct slot *o)
{
        size_t n_plane = o->space->part_bytes / PATTERN_PLANES;
        uint8_t *part = malloc(o->space->part_bytes);

        for (size_t i = 0; i < o->n; i++) {
                if (o->statuses[i])
                        continue;
                for (size_t j = 0; j < PATTERN_PLANES; j++)
                        memcpy(part + j * n_plane, plane_at(o, i, j), n_plane);
                if (pattern_find(part, o->space->part_bytes, &o->keys[i], 0, 0) < 0)
                        check_failed(__FILE__, __LINE__, "wrong bytes with status 0");
                count(o->engine, RIGHT, 1);
        }
        free(part);
}

static void check_mapped(struct slot *o)
{
        uint8_t after[CHAIN];
        bool right[CHAIN];

        for (size_t i = 0; i < o->n; i++) {
                CHECK(!o->statuses[i] == !!o->mappings[i].data);
                right[i] = !o->mappings[i].data || pattern_find(o->mappings[i].data, o->mappings[i].bytes, &o->keys[i], 0, 0) >= 0;
        }
        kvt_unmap(o->space->s, o->mappings, o->n, after);
        may_be(after, o->n, BIT(KVT_E_LEASE_LOST) | BIT(KVT_E_RESTARTED));
        for (size_t i = 0; i < o->n; i++) {
                if (o->statuses[i])
                        continue;
                if (!after[i] && !right[i])
                        check_failed(__FILE__, __LINE__, "wrong bytes under a lease that held");
                count(o->engine, after[i] ? LOST_BLOCKS : RIGHT, 1);
        }
}

/* operations */

static int start_kind(struct slot *o, bool leave_last)
{
        kvt_space *s = o->space->s;
        kvt_plane_view planes[PATTERN_PLANES];
        kvt_view view = view_of(o, planes);

        switch (o->kind) {
        case MATCH:
                return kvt_match_async(s, o->keys, o->n, o->n * PATTERN_TOKENS, leave_last ? KVT_MATCH_LEAVE_LAST : 0, &o->match, on_done,
                                       o, &o->op);
        case PUT:
                fill(o);
                return kvt_put_async(s, NULL, o->keys, o->n, 0, &view, 0, o->statuses, on_done, o, &o->op);
        case GET:
                return kvt_get_async(s, o->keys, o->n, 0, &view, 0, o->statuses, on_done, o, &o->op);
        case MAP:
                return kvt_map_async(s, o->keys, o->n, o->mappings, o->statuses, on_done, o, &o->op);
        case RESERVE:
                return kvt_put_reserve_async(s, NULL, o->keys, o->n, 0, o->tickets, o->statuses, on_done, o, &o->op);
        case COMMIT:
                return kvt_put_commit_async(s, o->tickets, o->n, o->statuses, on_done, o, &o->op);
        case PREFETCH:
                return kvt_prefetch_async(s, o->keys, o->n, 0, o->statuses, on_done, o, &o->op);
        case DROP:
                return kvt_drop_async(s, o->keys + o->n - 1, 1, o->statuses, on_done, o, &o->op);
        case EXPLAIN:
                return kvt_explain_async(s, o->keys, &o->explanation, on_done, o, &o->op);
        default:
                return kvt_stat_async(o->engine->c, &o->stats, on_done, o, &o->op);
        }
}

/* Returns whether it is under way. */
static bool slot_start(struct slot *o, enum kind kind)
{
        unsigned *seed = &o->engine->seed;

        o->kind = kind;
        o->n_done = 0;
        o->keep_usec = kind == MAP && !below(seed, 3) ? check_now_usec() + below(seed, 150000) : 0;
        o->op = NULL;
        memset(o->statuses, 0, sizeof(o->statuses));
        o->busy = !start_kind(o, below(seed, 2));
        if (!o->busy) {
                CHECK_EQ(o->n_done, 0);
                return false;
        }
        if (below(seed, 12) == 0) {
                kvt_cancel(o->op);
                count(o->engine, CANCELLED, 1);
        }
        if (below(seed, 3) == 0) { /* it goes on */
                kvt_op_free(o->op);
                o->op = NULL;
        }
        return true;
}

/* Takes in what became of it. */
static void slot_finish(struct slot *o)
{
        struct engine *e = o->engine;
        bool ok = went(o->status);

        kvt_op_free(o->op);
        o->op = NULL;
        o->busy = false;
        count(e, DONE, 1);
        count(e, (int)o->kind, ok);
        if (!ok) {
                for (size_t i = 0; i < o->n; i++) {
                        CHECK(o->kind != MAP || !o->mappings[i].data);
                        CHECK(o->kind != RESERVE || !o->tickets[i].data);
                }
                return;
        }
        switch (o->kind) {
        case MATCH:
                CHECK(o->match.n_blocks <= o->n && o->match.n_tokens <= o->n * PATTERN_TOKENS);
                break;
        case PUT:
                may_be(o->statuses, o->n, BIT(KVT_E_EXISTS) | BIT(KVT_E_NO_PARENT) | BIT(KVT_E_AGAIN_LEASED) | BIT(KVT_E_QUOTA));
                break;
        case GET:
                may_be(o->statuses, o->n, BIT(KVT_E_MISS) | BIT(KVT_E_LEASE_LOST));
                check_got(o);
                break;
        case MAP:
                may_be(o->statuses, o->n, BIT(KVT_E_MISS) | BIT(KVT_E_LEASE_LOST));
                check_mapped(o);
                break;
        case RESERVE:
                may_be(o->statuses, o->n, BIT(KVT_E_EXISTS) | BIT(KVT_E_NO_PARENT) | BIT(KVT_E_AGAIN_LEASED) | BIT(KVT_E_QUOTA));
                for (size_t i = 0; i < o->n; i++) {
                        CHECK(!o->statuses[i] == !!o->tickets[i].data);
                        if (o->tickets[i].data)
                                pattern_fill(o->tickets[i].data, o->space->part_bytes, &o->keys[i], 0, 0);
                }
                if (below(&e->seed, 4) == 0 || !slot_start(o, COMMIT))
                        kvt_put_abort(o->space->s, o->tickets, o->n);
                break;
        case COMMIT:
                may_be(o->statuses, o->n,
                       BIT(KVT_E_EXISTS) | BIT(KVT_E_NO_PARENT) | BIT(KVT_E_UNKNOWN_RESERVATION) | BIT(KVT_E_RESTARTED) |
                               BIT(KVT_E_AGAIN_LEASED));
                break;
        case EXPLAIN:
                CHECK(o->explanation.text[0]);
                break;
        default:
                may_be(o->statuses, o->n, BIT(KVT_E_MISS));
        }
}

/* An engine's life: a connection, used until it is closed with what is under way. */

static void *work_beside(void *arg)
{
        struct engine *e = arg;
        unsigned seed = e->seed + 1;
        uint8_t statuses[CHAIN];
        kvt_key keys[CHAIN];

        while (!__atomic_load_n(&e->stop, __ATOMIC_RELAXED)) {
                const struct pattern_space *p = &e->spaces[below(&seed, SPACES)];
                kvt_match_result m;
                pattern_keys(below(&seed, CHAINS), 0, CHAIN, keys);
                switch (below(&seed, 3)) {
                case 0:
                        if (went(kvt_match(p->s, keys, CHAIN, 0, 0, &m)))
                                CHECK(m.n_blocks <= CHAIN);
                        break;
                case 1:
                        if (went(pattern_get(p, keys, CHAIN, 0, statuses))) /* looks at the bytes */
                                may_be(statuses, CHAIN, BIT(KVT_E_MISS) | BIT(KVT_E_LEASE_LOST));
                        break;
                case 2:
                        if (went(pattern_put(p, NULL, keys, 2, 0, 0, statuses)))
                                may_be(statuses, 2, BIT(KVT_E_EXISTS) | BIT(KVT_E_NO_PARENT) | BIT(KVT_E_AGAIN_LEASED) | BIT(KVT_E_QUOTA));
                }
                if (!below(&seed, 8))
                        usleep(below(&seed, 5000));
        }
        return NULL;
}

static void loop(struct engine *e, uint64_t until_usec)
{
        while (check_now_usec() < until_usec) {
                struct pollfd p = {.fd = kvt_fd(e->c), .events = POLLIN};
                CHECK(p.fd >= 0);
                poll(&p, 1, 3);
                int r = kvt_process(e->c);
                CHECK(r == 0 || r == KVT_E_DISCONNECTED);
                for (struct slot *o = e->slots; o < e->slots + SLOTS; o++) {
                        if (o->busy && __atomic_load_n(&o->n_done, __ATOMIC_ACQUIRE) && check_now_usec() >= o->keep_usec)
                                slot_finish(o);
                        if (o->busy || !below(&e->seed, 3))
                                continue;
                        o->space = &e->spaces[below(&e->seed, SPACES)];
                        o->n = 1 + below(&e->seed, CHAIN);
                        pattern_keys(below(&e->seed, CHAINS), 0, CHAIN, o->keys);
                        static const uint8_t kinds[] = {PUT, PUT, PUT, GET, GET, MAP, MAP, RESERVE, MATCH, PREFETCH, DROP, EXPLAIN, STAT};
                        enum kind kind = (enum kind)kinds[below(&e->seed, sizeof(kinds))];
                        if (kind != MAP || !(e->flags & KVT_OPEN_NO_MAP))
                                slot_start(o, kind);
                }
        }
}

static void live(struct engine *e)
{
        pthread_t beside;
        bool two = below(&e->seed, 2), open = true;

        memset(e->spaces, 0, sizeof(e->spaces));
        for (int i = 0; open && i < SPACES; i++)
                open = went(pattern_space_open(&e->spaces[i], e->c,
                                               (struct pattern_config){.name = i ? "large" : "small", .part_bytes = part_bytes[i]}));
        if (open)
                went(kvt_events(e->spaces[below(&e->seed, SPACES)].s, on_event, e));
        __atomic_store_n(&e->stop, false, __ATOMIC_RELAXED);
        if (open && two)
                CHECK_EQ(pthread_create(&beside, NULL, work_beside, e), 0);
        if (open)
                loop(e, check_now_usec() + 100000 + below(&e->seed, 800000));
        __atomic_store_n(&e->stop, true, __ATOMIC_RELAXED);
        if (open && two)
                pthread_join(beside, NULL);
        kvt_close(e->c);
        for (struct slot *o = e->slots; o < e->slots + SLOTS; o++) {
                if (!o->busy)
                        continue;
                CHECK_EQ(o->n_done, 1);
                kvt_op_free(o->op);
                o->busy = false;
                count(e, LEFT, 1);
        }
}

static void client(void *arg)
{
        struct client *x = arg;
        struct engine *e = calloc(1, sizeof(*e));

        e->x = x;
        e->seed = x->seed;
        for (int i = 0; i < SLOTS; i++) {
                e->slots[i].engine = e;
                e->slots[i].memory = malloc(CHAIN * PART_MAX);
                e->slots[i].stats.struct_size = sizeof(kvt_stats);
        }
        while (check_now_usec() < x->until_usec) {
                kvt_options o = {.struct_size = sizeof(o), .path = x->d->socket, .staging_bytes = 1 << 20, .timeout_usec = 20000000};
                o.flags = (below(&e->seed, 3) ? 0 : KVT_OPEN_NO_THREAD) | (below(&e->seed, 4) ? 0 : KVT_OPEN_NO_RECONNECT) |
                          (below(&e->seed, 4) ? 0 : KVT_OPEN_NO_MAP);
                e->flags = o.flags;
                if (went(kvt_open(&o, &e->c)))
                        live(e);
                else
                        usleep(1000);
        }
        for (int i = 0; i < SLOTS; i++)
                free(e->slots[i].memory);
        free(e);
}

/* The daemon goes, and after a while that the clients notice, comes back. They stand still meanwhile: the harness wants it for itself. */
static void replace_daemon(struct daemon *d, const pid_t *pids, unsigned *seed)
{
        int status;

        if (below(seed, 3))
                daemon_kill(d);
        else
                CHECK_EQ(daemon_stop(d), 0);
        usleep(below(seed, 150000));
        for (int i = 0; i < CLIENTS; i++) {
                kill(pids[i], SIGSTOP);
                CHECK_EQ(waitpid(pids[i], &status, WUNTRACED), pids[i]);
                CHECK(WIFSTOPPED(status)); /* a child that ended by itself found something */
        }
        daemon_restart(d);
        for (int i = 0; i < CLIENTS; i++)
                kill(pids[i], SIGCONT);
}

/* Quotas below what is held, eviction far from full, other staging: taken over as it runs. */
static void reload(const struct daemon *d, unsigned *seed)
{
        static const char *const texts[] = {"tenant_hard_bytes = 6M\n", "tenant_hard_bytes = 12M\nbusy_poll_usec = 50us\n",
                                            "evict_high_pct = 50\nevict_low_pct = 30\n", "staging_bytes = 64K\nmax_inflight_session = 8\n",
                                            ""};

        daemon_write_config(d, texts[below(seed, sizeof(texts) / sizeof(*texts))]);
        kill(d->pid, SIGHUP);
}

static void test_operations_while_daemons_die(void **state)
{
        const char *given = getenv("STORM_SEC"), *given_seed = getenv("SEED");
        unsigned sec = given ? (unsigned)atoi(given) : 3, seed = given_seed ? (unsigned)atoi(given_seed) : (unsigned)check_now_usec();
        struct client x[CLIENTS];
        struct daemon d;
        pid_t pids[CLIENTS];
        uint64_t until, n_daemons = 0, n_killed = 0, *counts;
        int status;

        printf("STORM_SEC=%u SEED=%u\n", sec, seed);
        fflush(stdout);
        counts = mmap(NULL, N_COUNTS * sizeof(*counts), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        CHECK(counts != MAP_FAILED);
        DAEMON_START(&d, "--host_bytes=24M", "--lease_usec=50ms", "--put_timeout_usec=300ms", "--drain_timeout_usec=200ms",
                     "--log_level=error");
        until = check_now_usec() + (uint64_t)sec * 1000000;
        for (int i = 0; i < CLIENTS; i++) {
                x[i] = (struct client){.d = &d, .seed = (unsigned)rand_r(&seed), .until_usec = until + 1000000, .counts = counts};
                pids[i] = child_start(client, &x[i]);
        }
        while (check_now_usec() < until) {
                usleep(100000 + below(&seed, 300000));
                if (below(&seed, 2))
                        reload(&d, &seed);
                if (below(&seed, 3)) {
                        replace_daemon(&d, pids, &seed);
                        n_daemons++;
                        continue;
                }
                uint32_t i = below(&seed, CLIENTS);
                CHECK_EQ(waitpid(pids[i], &status, WNOHANG), 0);
                kill(pids[i], SIGKILL);
                CHECK_EQ(waitpid(pids[i], &status, 0), pids[i]);
                x[i].seed = (unsigned)rand_r(&seed);
                pids[i] = child_start(client, &x[i]);
                n_killed++;
        }
        for (int i = 0; i < CLIENTS; i++)
                child_join(pids[i]);
        printf("%llu operations done, %llu blocks right, %llu lost under a lease, %llu cancelled, %llu left at the close, %llu events, "
               "%llu daemons, "
               "%llu clients killed\n",
               (unsigned long long)counts[DONE], (unsigned long long)counts[RIGHT], (unsigned long long)counts[LOST_BLOCKS],
               (unsigned long long)counts[CANCELLED], (unsigned long long)counts[LEFT], (unsigned long long)counts[EVENTS],
               (unsigned long long)n_daemons, (unsigned long long)n_killed);
        for (int i = 0; i < KINDS; i++) /* each kind succeeded now and then */
                CHECK(counts[i] > 0);
        CHECK(counts[RIGHT] > 0 && counts[CANCELLED] > 0 && counts[LEFT] > 0 && counts[EVENTS] > 0);

        WAIT_FOR(daemon_status(&d).n_sessions == 0, 5000);
        WAIT_FOR(daemon_status(&d).n_xfers == 0, 5000);
        struct daemon_status s = daemon_audit(&d);
        CHECK_EQ(s.n_leases, 0);
        CHECK_EQ(s.n_reservations, 0);
        CHECK_EQ(s.staging_bytes, 0);
        CHECK_EQ(s.n_retired, 0);
        munmap(counts, N_COUNTS * sizeof(*counts));
        daemon_end(&d);
}

int main(void)
{
        const struct CMUnitTest tests[] = {TEST(test_operations_while_daemons_die)};

        return cmocka_run_group_tests(tests, NULL, NULL);
}
