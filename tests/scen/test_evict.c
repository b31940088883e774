/* Room: who goes first, who gives, and who is refused. */
#include <sys/mman.h>

#include "tests/lib/pattern.h"
#include "tests/lib/raw.h"

enum { CHAIN = 24, CHAINS = 64, PART = 64 << 10 };

static kvt_key keys[CHAINS][CHAIN];
static uint8_t statuses[2048];
static kvt *bystanders[2]; /* they give slabs back when asked */

static void chains_init(void)
{
        for (uint64_t i = 0; i < CHAINS; i++)
                pattern_keys(100 + i, 0, CHAIN, keys[i]);
}

/* A put that may have to wait for memory that other clients still map. */
static void put_patiently(const struct pattern_space *p, const kvt_key *parent, const kvt_key *k, size_t n)
{
        for (uint64_t until = check_now_usec() + 5000000 * CHECK_SLOW;;) {
                int r = pattern_put(p, parent, k, n, 0, 0, statuses);
                if (r != KVT_E_AGAIN) /* no room for staging so far */
                        CHECK_OK(r);
                for (int i = 0; i < 2; i++)
                        if (bystanders[i])
                                CHECK_OK(kvt_process(bystanders[i]));
                size_t n_there = pattern_count(statuses, n, 0) + pattern_count(statuses, n, KVT_E_EXISTS);
                if (!r && n_there == n)
                        return;
                for (size_t i = 0; !r && i < n; i++) /* leases may be on their way back, too */
                        if (statuses[i] && statuses[i] != KVT_E_EXISTS && statuses[i] != KVT_E_NO_PARENT &&
                            statuses[i] != KVT_E_AGAIN_LEASED)
                                CHECK_IS(statuses[i], KVT_E_AGAIN);
                CHECK(check_now_usec() < until);
                usleep(2000);
        }
}

/* The resident blocks of a chain are its head: returns how many, and fails if one behind a gap is there. */
static size_t head_of(const struct pattern_space *p, const kvt_key *chain)
{
        size_t n = pattern_match(p, chain, CHAIN);

        for (size_t i = n; i < CHAIN; i++)
                CHECK(pattern_why(p, &chain[i]) != KVT_WHY_RESIDENT);
        return n;
}

static void test_tails_go_before_heads_and_used_chains_stay(void **state)
{
        struct pattern_space sp;
        struct daemon d;
        size_t n_cut = 0, n_all = 0;

        DAEMON_START(&d, "--host_bytes=32M"); /* about 400 parts of 64 KiB */
        kvt *c = pattern_open(&d, 0);
        PATTERN_SPACE(&sp, c, .part_bytes = PART);
        chains_init();
        for (int i = 0; i < CHAINS; i++) {
                put_patiently(&sp, NULL, keys[i], CHAIN);
                if (i >= 3) { /* the third stays in use; so the older ones go and it does not */
                        CHECK_EQ(pattern_match(&sp, keys[3], CHAIN), CHAIN);
                }
        }
        CHECK_EQ(head_of(&sp, keys[3]), CHAIN);
        CHECK_EQ(head_of(&sp, keys[CHAINS - 1]), CHAIN);
        CHECK_EQ(head_of(&sp, keys[0]), 0);
        CHECK_IS(pattern_why(&sp, &keys[0][0]), KVT_WHY_EVICTED);
        for (int i = 0; i < CHAINS; i++) {
                size_t n = head_of(&sp, keys[i]);
                n_all += n;
                n_cut += n > 0 && n < CHAIN;
        }
        CHECK(n_cut <= 2); /* chain by chain, not a block here and one there */
        struct daemon_status s = daemon_audit(&d);
        CHECK_EQ(s.n_blocks, n_all);
        CHECK(s.used_bytes > 20 << 20);
        CHECK_EQ(daemon_counter(&d, "evicted"), CHAINS * CHAIN - n_all);
        CHECK_OK(pattern_get(&sp, keys[3], CHAIN, 0, statuses));
        CHECK_EQ(pattern_count(statuses, CHAIN, 0), CHAIN);
        kvt_space_close(sp.s);
        kvt_close(c);
        daemon_end(&d);
}

/* One chain longer than the tier: its head stays usable, the rest is refused or evicted, and nothing breaks. */
static void test_a_chain_longer_than_the_tier(void **state)
{
        enum { LONG = 600 };
        static kvt_key chain[LONG];
        struct pattern_space sp;
        struct daemon d;

        DAEMON_START(&d, "--host_bytes=16M");
        kvt *c = pattern_open(&d, 0);
        PATTERN_SPACE(&sp, c, .part_bytes = PART);
        pattern_keys(1, 0, LONG, chain);
        CHECK_OK(pattern_put(&sp, NULL, chain, LONG, 0, 0, statuses));
        size_t n = pattern_match(&sp, chain, LONG);
        CHECK(n > 50 && n < LONG);
        CHECK_OK(pattern_get(&sp, chain, n, 0, statuses));
        CHECK_EQ(pattern_count(statuses, n, 0), n);
        CHECK_EQ(daemon_audit(&d).n_blocks, n);
        kvt_space_close(sp.s);
        kvt_close(c);
        daemon_end(&d);
}

/* Memory goes from blocks of one size to blocks of another and back. */
static void test_slabs_change_their_slot_size(void **state)
{
        struct pattern_space small, large;
        struct daemon d;

        DAEMON_START(&d, "--host_bytes=16M");
        kvt *c = pattern_open(&d, 0), *other = pattern_open(&d, 0);
        bystanders[0] = c;
        bystanders[1] = other;
        PATTERN_SPACE(&small, c, .name = "small", .part_bytes = 8192);
        PATTERN_SPACE(&large, other, .name = "large", .part_bytes = 600 << 10);
        for (int round = 0; round < 3; round++) {
                for (uint64_t i = 0; i < 24; i++) {
                        kvt_key k = pattern_key(1000 + (uint64_t)round, i);
                        put_patiently(&large, NULL, &k, 1);
                        CHECK_OK(pattern_get(&large, &k, 1, 0, statuses)); /* so that this client maps every slab there is */
                        CHECK_OK(statuses[0]);
                }
                static kvt_key many[2000];
                pattern_keys(2000 + (uint64_t)round, 0, 2000, many);
                for (int i = 0; i < 2000; i += 50) {
                        put_patiently(&small, NULL, many + i, 50);
                        CHECK_OK(pattern_get(&small, many + i, 50, 0, statuses));
                        CHECK_EQ(pattern_count(statuses, 50, 0), 50);
                }
                daemon_audit(&d);
        }
        CHECK(daemon_counter(&d, "reclaimed") > 0);
        size_t n_told = 0;
        for (uint64_t i = 0; i < 2000; i++) {
                kvt_key k = pattern_key(2000, i); /* of the first round: gone for those of the second */
                n_told += pattern_why(&small, &k) == KVT_WHY_RECLAIMED;
        }
        CHECK(n_told > 0);
        CHECK(daemon_counter(&d, "slabs_freed") > 0);
        CHECK(daemon_status(&d).slab_bytes <= 16 << 20);
        kvt_space_close(small.s);
        kvt_space_close(large.s);
        bystanders[0] = bystanders[1] = NULL;
        kvt_close(c);
        kvt_close(other);
        daemon_end(&d);
}

/* A slab wanted back from a client that does not acknowledge stays charged, until that client is disconnected. */
static void test_a_client_that_keeps_retired_slabs_is_disconnected(void **state)
{
        Kvtier__ReleaseRequest q = KVTIER__RELEASE_REQUEST__INIT;
        struct pattern_space small, large;
        struct kvt_map_entry e[CHAIN];
        static struct raw r;
        struct daemon d;

        DAEMON_START(&d, "--host_bytes=16M", "--put_timeout_usec=300ms");
        chains_init();
        kvt *c = pattern_open(&d, 0);
        PATTERN_SPACE(&small, c, .name = "small", .part_bytes = PART);
        PATTERN_SPACE(&large, c, .name = "large", .part_bytes = 600 << 10);
        for (int i = 0; i < 20; i++) /* fills the tier */
                put_patiently(&small, NULL, keys[i], CHAIN);
        raw_open(&r, d.socket);
        raw_hello(&r);
        uint32_t space = raw_space(&r, "small", PART, 1);
        for (int i = 0; i < 20; i++) {
                if (!pattern_match(&small, keys[i], 1))
                        continue;
                CHECK_OK(raw_map(&r, space, 0, keys[i], CHAIN, e));
                if (r.n_fds)
                        raw_ack_fds(&r);
                for (int k = 0; k < CHAIN; k++) {
                        q.leases = (ProtobufCBinaryData){8, (uint8_t *)&e[k].lease};
                        if (!e[k].status)
                                raw_send(&r, KVT_MSG_RELEASE, 0, &q);
                }
        }
        CHECK(raw_alive(&r));
        CHECK_EQ(daemon_status(&d).n_leases, 0);
        for (uint64_t i = 0; i < 8; i++) {
                kvt_key k = pattern_key(3000, i);
                put_patiently(&large, NULL, &k, 1);
        }
        enum raw_got got;
        while ((got = raw_recv(&r, RAW_TIMEOUT_MSEC)) == RAW_PACKET)
                CHECK_EQ(r.f.type, KVT_MSG_SLAB_RETIRED);
        CHECK_EQ(got, RAW_CLOSED);
        raw_close(&r);
        CHECK(daemon_log_has(&d, "retired slab"));
        daemon_audit(&d);
        kvt_space_close(small.s);
        kvt_space_close(large.s);
        kvt_close(c);
        daemon_end(&d);
}

static void test_over_the_hard_quota(void **state)
{
        struct pattern_space sp, large;
        struct daemon d;
        uint64_t n_evicted;

        DAEMON_START(&d, "--tenant_hard_bytes=8M");
        chains_init();
        kvt *c = pattern_open(&d, 0);
        PATTERN_SPACE(&sp, c, .part_bytes = PART);
        for (int i = 0; i < 10; i++) { /* far more than 8 MiB: older ones go, never the quota */
                put_patiently(&sp, NULL, keys[i], CHAIN);
                struct daemon_status s = daemon_status(&d);
                CHECK(s.slab_bytes + s.staging_bytes <= 8 << 20);
        }
        n_evicted = daemon_counter(&d, "evicted");
        CHECK(n_evicted > 100);
        CHECK_EQ(daemon_status(&d).n_blocks, 10 * CHAIN - n_evicted);
        CHECK_EQ(head_of(&sp, keys[9]), CHAIN);
        kvt_space_close(sp.s);
        kvt_close(c);
        daemon_end(&d);

        /* one part needs more than the quota has besides staging: a named error, and what is asked why says so */
        DAEMON_START(&d, "--tenant_hard_bytes=4M");
        static struct raw r;
        raw_open(&r, d.socket);
        raw_hello(&r);
        uint32_t space = raw_space(&r, "large", 900 << 10, 1);
        raw_staging(&r, 900 << 10);
        CHECK(daemon_status(&d).staging_bytes >= 900 << 10);
        c = pattern_open(&d, KVT_OPEN_NO_MAP);
        PATTERN_SPACE(&large, c, .name = "large", .part_bytes = 900 << 10);
        kvt_key k[8];
        pattern_keys(1, 0, 8, k);
        CHECK_OK(raw_put(&r, space, 0, NULL, k, 1, 0, statuses));
        CHECK_OK(statuses[0]);
        uint32_t huge = raw_space(&r, "huge", 900 << 10, 64); /* 64 shards: parts of one block alone exceed it */
        size_t n_quota = 0;
        for (uint32_t shard = 0; shard < 64; shard++) {
                CHECK_OK(raw_put(&r, huge, shard, NULL, &k[1], 1, 0, statuses));
                CHECK(statuses[0] == 0 || statuses[0] == KVT_E_QUOTA);
                n_quota += statuses[0] == KVT_E_QUOTA;
        }
        CHECK(n_quota > 32);
        CHECK(daemon_counter(&d, "refused_quota") >= n_quota);
        raw_close(&r);
        kvt_space_close(large.s);
        kvt_close(c);
        daemon_end(&d);
}

static void test_explain_says_quota(void **state)
{
        struct pattern_space sp;
        struct daemon d;
        kvt_key k = pattern_key(1, 0);
        static struct raw r;

        DAEMON_START(&d, "--tenant_hard_bytes=4M");
        raw_open(&r, d.socket);
        raw_hello(&r);
        uint32_t space = raw_space(&r, "model", 1 << 20, 1);
        raw_staging(&r, 1 << 20);
        CHECK_EQ(r.staging_bytes, 1 << 20);
        Kvtier__PutBeginRequest q = KVTIER__PUT_BEGIN_REQUEST__INIT;
        q.space = space;
        kvt_key reserved[3];
        pattern_keys(2, 0, 3, reserved);
        q.keys = (ProtobufCBinaryData){48, reserved[0].bytes};
        CHECK_OK(raw_status(&r, KVT_MSG_PUT_BEGIN, &q)); /* reservations are no leases, and cannot be evicted */
        CHECK_OK(raw_put(&r, space, 0, NULL, &k, 1, 0, statuses));
        CHECK_IS(statuses[0], KVT_E_QUOTA);
        kvt *c = pattern_open(&d, KVT_OPEN_NO_MAP);
        PATTERN_SPACE(&sp, c, .part_bytes = 1 << 20);
        CHECK_IS(pattern_why(&sp, &k), KVT_WHY_QUOTA);
        raw_close(&r);
        kvt_space_close(sp.s);
        kvt_close(c);
        daemon_end(&d);
}

static void test_more_blocks_than_the_index_holds(void **state)
{
        enum { MANY = 1000 };
        static kvt_key many[MANY];
        struct pattern_space sp;
        struct daemon d;

        DAEMON_START(&d, "--max_blocks=100");
        kvt *c = pattern_open(&d, 0);
        PATTERN_SPACE(&sp, c, .part_bytes = 4096);
        pattern_keys(1, 0, MANY, many);
        for (int i = 0; i < MANY; i++)
                CHECK_OK(pattern_put(&sp, NULL, &many[i], 1, 0, 0, statuses));
        CHECK_OK(statuses[0]);
        CHECK_EQ(daemon_audit(&d).n_blocks, 100);
        CHECK_OK(pattern_get(&sp, many + MANY - 100, 100, 0, statuses)); /* the youngest */
        CHECK_EQ(pattern_count(statuses, 100, 0), 100);
        CHECK_OK(pattern_put(&sp, NULL, many, 200, 0, 0, statuses)); /* a chain of twice as many */
        CHECK_EQ(daemon_audit(&d).n_blocks, 100);
        CHECK_EQ(pattern_match(&sp, many, 200), 100);
        kvt_space_close(sp.s);
        kvt_close(c);
        daemon_end(&d);
}

static void test_watermarks(void **state)
{
        struct pattern_space sp;
        struct daemon d;

        DAEMON_START(&d, "--host_bytes=32M", "--evict_high_pct=50", "--evict_low_pct=30");
        chains_init();
        kvt *c = pattern_open(&d, 0);
        PATTERN_SPACE(&sp, c, .part_bytes = PART);
        for (int i = 0; i < 9; i++)
                put_patiently(&sp, NULL, keys[i], CHAIN); /* 216 * 68 KiB: under the high mark */
        CHECK_EQ(daemon_status(&d).n_blocks, 9 * CHAIN);
        put_patiently(&sp, NULL, keys[9], CHAIN); /* 240: just under */
        put_patiently(&sp, NULL, keys[10], CHAIN); /* above it */
        WAIT_FOR(daemon_status(&d).used_bytes <= (32 << 20) / 100 * 30, 2000);
        struct daemon_status s = daemon_audit(&d);
        CHECK(s.used_bytes > (32 << 20) / 100 * 25); /* down to the low mark and no further */
        CHECK_EQ(head_of(&sp, keys[9]), CHAIN);
        CHECK_EQ(head_of(&sp, keys[0]), 0);
        kvt_space_close(sp.s);
        kvt_close(c);
        daemon_end(&d);
}

/* tenants */

struct share {
        struct daemon *d;
        struct meeting meet;
        uint64_t chain;
        size_t n_at_start, n_stored, n_left; /* shared memory */
};

static void fill(void *arg)
{
        struct share *x = arg;
        struct pattern_space sp;
        static kvt_key k[2000];
        kvt *c = pattern_open(x->d, 0);

        PATTERN_SPACE(&sp, c, .part_bytes = PART);
        pattern_keys(x->chain, 0, 2000, k);
        meeting_at(&x->meet, 1);
        for (size_t i = 0; i < x->n_stored; i++)
                put_patiently(&sp, NULL, &k[i], 1);
        x->n_at_start = 0;
        for (size_t i = 0; i < x->n_stored; i++)
                x->n_at_start += pattern_match(&sp, &k[i], 1);
        meeting_at(&x->meet, 1);
        meeting_at(&x->meet, 1);
        x->n_left = 0;
        for (size_t i = 0; i < x->n_stored; i++)
                x->n_left += pattern_match(&sp, &k[i], 1);
        kvt_space_close(sp.s);
        kvt_close(c);
}

/* a fills the machine; b comes and gets what it needs from a, down to a's share; then a asks for more and gets it from itself. */
static void test_the_tenant_over_its_share_gives(void **state)
{
        struct share *x;
        struct daemon d;
        pid_t pids[2];

        if (geteuid() != 0)
                check_skip("two tenants take two users: run as root");
        x = mmap(NULL, 2 * sizeof(*x), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        DAEMON_START(&d, "--host_bytes=32M", "--tenant_soft_bytes=12M");
        x[0].n_stored = 400;
        x[1].n_stored = 120; /* with its staging within its share */
        for (int i = 0; i < 2; i++) {
                x[i].d = &d;
                x[i].chain = 50 + (uint64_t)i;
                meeting_init(&x[i].meet);
                pids[i] = child_start_as(1001 + (uid_t)i, fill, &x[i]);
        }
        meeting_at(&x[0].meet, 0);
        meeting_at(&x[0].meet, 0);
        CHECK(x[0].n_at_start > 250); /* nobody else was there: a has it all */
        meeting_at(&x[1].meet, 0);
        meeting_at(&x[1].meet, 0);
        CHECK_EQ(x[1].n_at_start, 120); /* b's own did not have to go */
        daemon_audit(&d);
        meeting_at(&x[0].meet, 0);
        meeting_at(&x[1].meet, 0);
        child_join(pids[0]);
        child_join(pids[1]);
        CHECK_EQ(x[1].n_left, 120);
        CHECK(x[0].n_left < x[0].n_at_start);
        CHECK(x[0].n_left >= 120); /* and a kept its share */
        for (int i = 0; i < 2; i++)
                meeting_deinit(&x[i].meet);
        munmap(x, 2 * sizeof(*x));
        daemon_end(&d);
}

int main(void)
{
        const struct CMUnitTest tests[] = {
                TEST(test_tails_go_before_heads_and_used_chains_stay),
                TEST(test_a_chain_longer_than_the_tier),
                TEST(test_slabs_change_their_slot_size),
                TEST(test_a_client_that_keeps_retired_slabs_is_disconnected),
                TEST(test_over_the_hard_quota),
                TEST(test_explain_says_quota),
                TEST(test_more_blocks_than_the_index_holds),
                TEST(test_watermarks),
                TEST(test_the_tenant_over_its_share_gives),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
