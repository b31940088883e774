/* Blocks end to end, through the library: what is put is what is matched, got and mapped; first copies, replacement, shards, parents. */
#include "tests/lib/pattern.h"
#include "tests/lib/raw.h"

enum { N = 40 };

static kvt *c;
static struct pattern_space sp;
static kvt_key keys[N];
static uint8_t statuses[N];

static void enter(struct daemon *d, size_t part_bytes)
{
        c = pattern_open(d, 0);
        PATTERN_SPACE(&sp, c, .part_bytes = part_bytes);
        pattern_keys(1, 0, N, keys);
}

static void leave(struct daemon *d)
{
        kvt_space_close(sp.s);
        kvt_close(c);
        daemon_end(d);
}

static void round_trip(struct daemon *d, size_t part_bytes, uint32_t flags)
{
        kvt_mapping maps[N];
        struct pattern_space far;
        kvt *other = pattern_open(d, flags);
        char name[32];

        snprintf(name, sizeof(name), "m%zu", part_bytes);
        PATTERN_SPACE(&sp, c, .name = name, .part_bytes = part_bytes);
        CHECK_EQ(kvt_space_part_bytes(sp.s), part_bytes);
        CHECK_EQ(pattern_match(&sp, keys, N), 0);
        CHECK_OK(pattern_get(&sp, keys, N, 0, statuses));
        CHECK_EQ(pattern_count(statuses, N, KVT_E_MISS), N);
        pattern_store(&sp, NULL, keys, N / 2);
        pattern_store(&sp, &keys[N / 2 - 1], keys + N / 2, N / 2);
        PATTERN_SPACE(&far, other, .name = name, .part_bytes = part_bytes);
        CHECK_EQ(pattern_match(&far, keys, N), N);
        CHECK_EQ(pattern_match(&far, keys + 7, 9), 9);
        CHECK_OK(pattern_get(&far, keys, N, 0, statuses));
        CHECK_EQ(pattern_count(statuses, N, 0), N);
        if (flags & KVT_OPEN_NO_MAP) {
                CHECK_IS(kvt_map(far.s, keys, N, maps, statuses), KVT_E_DENIED);
        } else {
                CHECK_OK(kvt_map(far.s, keys, N, maps, statuses));
                for (size_t i = 0; i < N; i++) {
                        CHECK_OK(statuses[i]);
                        CHECK_EQ(maps[i].bytes, part_bytes);
                        CHECK(pattern_find(maps[i].data, part_bytes, &keys[i], 0, 0) == 0);
                        CHECK_OK(kvt_verify(far.s, &maps[i]));
                }
                CHECK_EQ(daemon_status(d).n_leases, N);
                CHECK_OK(kvt_unmap(far.s, maps, N, statuses));
                CHECK_OK(kvt_flush(other));
                WAIT_FOR(daemon_status(d).n_leases == 0, 2000);
        }
        kvt_space_close(far.s);
        kvt_close(other);
        kvt_space_close(sp.s);
}

static void test_round_trip_of_all_sizes(void **state)
{
        static const size_t sizes[] = {32, 96, 4096, 65536 - 32, 65536, 300000 / 32 * 32};
        struct daemon d;

        DAEMON_START(&d);
        c = pattern_open(&d, 0);
        pattern_keys(1, 0, N, keys);
        for (size_t i = 0; i < sizeof(sizes) / sizeof(*sizes); i++)
                round_trip(&d, sizes[i], 0);
        CHECK_EQ(daemon_audit(&d).n_blocks, N * 6);
        kvt_close(c);
        daemon_end(&d);
}

/* Clients that may not map slabs get the same bytes through staging. */
static void test_round_trip_without_maps(void **state)
{
        struct daemon d;

        DAEMON_START(&d);
        c = pattern_open(&d, 0);
        pattern_keys(1, 0, N, keys);
        round_trip(&d, 4096, KVT_OPEN_NO_MAP);
        round_trip(&d, 262144, KVT_OPEN_NO_MAP);
        CHECK(daemon_counter(&d, "gets") == 2 * N);
        CHECK(daemon_counter(&d, "maps") == 0);
        kvt_close(c);
        daemon_end(&d);
}

/* The defaults as they are, huge pages and preallocation included; only the capacity is ours. */
static void test_round_trip_with_default_memory(void **state)
{
        struct daemon d;

        DAEMON_START(&d, "--slab_bytes=0", "--huge_pages=yes", "--prealloc_bytes=16M", "--host_bytes=128M");
        c = pattern_open(&d, 0);
        pattern_keys(1, 0, N, keys);
        round_trip(&d, 262144, 0);
        kvt_close(c);
        daemon_end(&d);
}

static void test_first_copy_stays_whatever_the_bytes(void **state)
{
        struct daemon d;

        DAEMON_START(&d);
        enter(&d, 8192);
        pattern_store(&sp, NULL, keys, 4);
        struct daemon_status before = daemon_status(&d);
        CHECK_OK(pattern_put(&sp, NULL, keys, 4, 1, 0, statuses)); /* other bytes, same keys */
        CHECK_EQ(pattern_count(statuses, 4, KVT_E_EXISTS), 4);
        CHECK_OK(pattern_put(&sp, NULL, keys, 6, 0, 0, statuses)); /* same bytes, and two that are new */
        CHECK_EQ(pattern_count(statuses, 4, KVT_E_EXISTS), 4);
        CHECK_EQ(pattern_count(statuses + 4, 2, 0), 2);
        CHECK_OK(pattern_get(&sp, keys, 6, 0, statuses));
        CHECK_EQ(pattern_count(statuses, 6, 0), 6);
        struct daemon_status after = daemon_status(&d);
        CHECK_EQ(after.n_blocks - before.n_blocks, 2);
        CHECK_EQ(after.payload_bytes - before.payload_bytes, 2 * 8192);
        leave(&d);
}

static void test_replace_leaves_readers_their_bytes(void **state)
{
        struct daemon d;
        kvt_mapping m[2], again;

        DAEMON_START(&d);
        enter(&d, 8192);
        pattern_store(&sp, NULL, keys, 3);
        CHECK_OK(kvt_map(sp.s, keys, 2, m, statuses));
        CHECK_OK(pattern_put(&sp, NULL, keys, 2, 1, KVT_PUT_REPLACE, statuses));
        CHECK_EQ(pattern_count(statuses, 2, 0), 2);
        for (int i = 0; i < 2; i++) {
                CHECK_EQ(pattern_find(m[i].data, m[i].bytes, &keys[i], 0, PATTERN_ANY), 0);
                CHECK_OK(kvt_verify(sp.s, &m[i]));
        }
        CHECK_OK(pattern_get(&sp, keys, 2, 1, statuses));
        CHECK_EQ(pattern_count(statuses, 2, 0), 2);
        CHECK_OK(pattern_get(&sp, keys + 2, 1, 0, statuses)); /* its child is still there */
        CHECK_OK(kvt_map(sp.s, keys, 1, &again, statuses));
        CHECK_EQ(pattern_find(again.data, again.bytes, &keys[0], 0, PATTERN_ANY), 1);
        CHECK(daemon_audit(&d).used_bytes > 3 * 8192); /* the old copies, too */
        CHECK_OK(kvt_unmap(sp.s, m, 2, statuses));
        CHECK_OK(kvt_unmap(sp.s, &again, 1, statuses));
        CHECK_OK(kvt_flush(c));
        WAIT_FOR(daemon_audit(&d).n_leases == 0, 2000);
        CHECK_EQ(daemon_status(&d).n_blocks, 3);
        CHECK(daemon_status(&d).used_bytes < 5 * 8192);
        CHECK_EQ(daemon_counter(&d, "put_replaced"), 2);
        leave(&d);
}

static void test_another_geometry_is_refused(void **state)
{
        struct pattern_space other;
        struct daemon d;

        DAEMON_START(&d);
        enter(&d, 4096);
        CHECK_IS(pattern_space_open(&other, c, (struct pattern_config){.part_bytes = 8192}), KVT_E_GEOMETRY);
        CHECK_IS(pattern_space_open(&other, c, (struct pattern_config){.part_bytes = 4096, .n_shards = 2}), KVT_E_GEOMETRY);
        CHECK_OK(pattern_space_open(&other, c, (struct pattern_config){.part_bytes = 4096}));
        kvt_space_close(other.s);
        leave(&d);
}

/* Same name, same keys: nothing of one salt is seen under another. */
static void test_another_salt_does_not_hit(void **state)
{
        struct pattern_space salted;
        struct daemon d;

        DAEMON_START(&d);
        enter(&d, 4096);
        PATTERN_SPACE(&salted, c, .salt = "lora-7");
        pattern_store(&sp, NULL, keys, 3);
        CHECK_EQ(pattern_match(&salted, keys, 3), 0);
        CHECK_OK(pattern_get(&salted, keys, 3, 0, statuses));
        CHECK_EQ(pattern_count(statuses, 3, KVT_E_MISS), 3);
        CHECK_IS(pattern_why(&salted, &keys[0]), KVT_WHY_NEVER);
        CHECK_OK(pattern_put(&salted, NULL, keys, 3, 2, 0, statuses));
        CHECK_EQ(pattern_count(statuses, 3, 0), 3);
        CHECK_OK(pattern_get(&salted, keys, 3, 2, statuses));
        CHECK_OK(pattern_get(&sp, keys, 3, 0, statuses));
        CHECK_EQ(pattern_count(statuses, 3, 0), 3);
        kvt_space_close(salted.s);
        leave(&d);
}

static void test_a_block_is_whole_when_all_shards_came(void **state)
{
        struct pattern_space shard[2];
        struct daemon d;
        kvt_match_result m;
        kvt_mapping map;

        DAEMON_START(&d, "--put_timeout_usec=60s");
        enter(&d, 4096);
        for (uint32_t i = 0; i < 2; i++)
                PATTERN_SPACE(&shard[i], c, .name = "tp", .n_shards = 2, .shard = i);
        pattern_store(&shard[0], NULL, keys, 3);
        CHECK_OK(kvt_match(shard[0].s, keys, 3, 0, 0, &m));
        CHECK_EQ(m.n_blocks, 0);
        CHECK_IS(m.stop, KVT_E_AGAIN);
        CHECK_OK(pattern_get(&shard[0], keys, 1, 0, statuses)); /* nor is the part that is there given out */
        CHECK_IS(statuses[0], KVT_E_MISS);
        CHECK_OK(kvt_map(shard[0].s, keys, 1, &map, statuses));
        CHECK_IS(statuses[0], KVT_E_MISS);
        CHECK_IS(pattern_why(&shard[0], &keys[0]), KVT_WHY_FILLING);
        pattern_store(&shard[1], NULL, keys, 2);
        CHECK_OK(kvt_match(shard[0].s, keys, 3, 0, 0, &m));
        CHECK_EQ(m.n_blocks, 2);
        CHECK_IS(m.stop, KVT_E_AGAIN);
        for (uint32_t i = 0; i < 2; i++) { /* each shard gets its own bytes */
                CHECK_OK(pattern_get(&shard[i], keys, 2, 0, statuses));
                CHECK_EQ(pattern_count(statuses, 2, 0), 2);
        }
        kvt_explanation e;
        CHECK_OK(kvt_explain(shard[0].s, &keys[0], &e));
        CHECK_EQ(e.n_parts, 2);
        CHECK_EQ(e.why, KVT_WHY_RESIDENT);
        for (uint32_t i = 0; i < 2; i++)
                kvt_space_close(shard[i].s);
        leave(&d);
}

static void test_a_missing_shard_times_out_and_frees_the_others(void **state)
{
        struct pattern_space shard[2];
        struct daemon d;

        DAEMON_START(&d, "--put_timeout_usec=200ms");
        enter(&d, 4096);
        for (uint32_t i = 0; i < 2; i++)
                PATTERN_SPACE(&shard[i], c, .name = "tp", .n_shards = 2, .shard = i);
        pattern_store(&shard[0], NULL, keys, 4);
        pattern_store(&shard[1], NULL, keys, 2);
        CHECK_EQ(daemon_audit(&d).n_blocks, 4);
        WAIT_FOR(daemon_status(&d).n_blocks == 2, 4000);
        CHECK_EQ(pattern_match(&shard[0], keys, 4), 2); /* those that are whole stay */
        CHECK_IS(pattern_why(&shard[0], &keys[3]), KVT_WHY_TIMEOUT);
        CHECK_EQ(daemon_audit(&d).payload_bytes, 2 * 2 * 4096);
        pattern_store(&shard[1], &keys[1], keys + 2, 2); /* late, and now the other shard is the missing one */
        CHECK_EQ(pattern_match(&shard[1], keys, 4), 2);
        for (uint32_t i = 0; i < 2; i++)
                kvt_space_close(shard[i].s);
        leave(&d);
}

static void test_no_parent_no_block(void **state)
{
        struct daemon d;

        DAEMON_START(&d);
        enter(&d, 4096);
        CHECK_OK(pattern_put(&sp, &keys[0], keys + 1, 3, 0, 0, statuses));
        CHECK_EQ(pattern_count(statuses, 3, KVT_E_NO_PARENT), 3);
        CHECK_IS(pattern_why(&sp, &keys[1]), KVT_WHY_NO_PARENT);
        CHECK_EQ(daemon_audit(&d).used_bytes, 0);
        CHECK_EQ(daemon_counter(&d, "refused_no_parent"), 3);
        pattern_store(&sp, NULL, keys, 1);
        pattern_store(&sp, &keys[0], keys + 1, 3);
        CHECK_EQ(pattern_match(&sp, keys, 4), 4);
        leave(&d);
}

static void test_drop_of_a_head_takes_what_continues_it(void **state)
{
        struct daemon d;
        kvt_key branch[3];
        kvt_mapping m;

        DAEMON_START(&d);
        enter(&d, 4096);
        pattern_keys(2, 0, 3, branch);
        pattern_store(&sp, NULL, keys, 10);
        pattern_store(&sp, &keys[4], branch, 3); /* another continuation of block 4 */
        CHECK_OK(kvt_map(sp.s, &keys[7], 1, &m, statuses));
        CHECK_OK(kvt_drop(sp.s, &keys[5], 1, statuses));
        CHECK_OK(statuses[0]);
        CHECK_EQ(pattern_match(&sp, keys, 10), 5);
        CHECK_EQ(pattern_match(&sp, branch, 3), 3);
        CHECK_EQ(pattern_find(m.data, m.bytes, &keys[7], 0, 0), 0); /* a reader keeps what it has */
        CHECK_OK(kvt_verify(sp.s, &m));
        CHECK_OK(kvt_unmap(sp.s, &m, 1, NULL));
        for (int i = 5; i < 10; i++)
                CHECK_IS(pattern_why(&sp, &keys[i]), KVT_WHY_DROPPED);
        CHECK_OK(kvt_drop(sp.s, keys, 6, statuses));
        CHECK_OK(statuses[0]);
        CHECK_EQ(pattern_count(statuses + 1, 5, KVT_E_MISS), 5);
        CHECK_OK(kvt_flush(c));
        WAIT_FOR(daemon_audit(&d).used_bytes == 0, 2000);
        CHECK_EQ(daemon_counter(&d, "dropped"), 13);
        leave(&d);
}

static void test_prefetch_counts_as_a_use(void **state)
{
        struct daemon d;
        kvt_explanation e;

        DAEMON_START(&d);
        enter(&d, 4096);
        pattern_store(&sp, NULL, keys, 2);
        CHECK_OK(kvt_prefetch(sp.s, keys, 3, 0, statuses));
        CHECK_OK(statuses[0]);
        CHECK_OK(statuses[1]);
        CHECK_IS(statuses[2], KVT_E_MISS);
        CHECK_OK(kvt_explain(sp.s, &keys[0], &e));
        CHECK_EQ(e.hits, 1);
        leave(&d);
}

static void test_purge(void **state)
{
        Kvtier__PurgeRequest q = KVTIER__PURGE_REQUEST__INIT;
        struct pattern_space other;
        struct daemon d;
        static struct raw r;

        DAEMON_START(&d);
        enter(&d, 4096);
        PATTERN_SPACE(&other, c, .name = "other");
        pattern_store(&sp, NULL, keys, 5);
        pattern_store(&other, NULL, keys, 5);
        raw_open(&r, d.socket);
        raw_hello(&r);
        q.space = 1;
        Kvtier__PurgeReply *m = raw_call(&r, KVT_MSG_PURGE, &q, &kvtier__purge_reply__descriptor);
        CHECK(m);
        CHECK_EQ(m->n_blocks, 5);
        CHECK(m->bytes >= 5 * 4096);
        protobuf_c_message_free_unpacked(&m->base, NULL);
        CHECK_EQ(pattern_match(&sp, keys, 5), 0);
        CHECK_EQ(pattern_match(&other, keys, 5), 5);
        CHECK_IS(pattern_why(&sp, &keys[0]), KVT_WHY_PURGED);
        q.space = 0;
        CHECK_OK(raw_status(&r, KVT_MSG_PURGE, &q));
        CHECK_EQ(pattern_match(&other, keys, 5), 0);
        CHECK_EQ(daemon_audit(&d).used_bytes, 0);
        raw_close(&r);
        kvt_space_close(other.s);
        leave(&d);
}

static void test_part_larger_than_the_tier(void **state)
{
        struct pattern_space big;
        struct daemon d;

        DAEMON_START(&d, "--host_bytes=16M");
        enter(&d, 4096);
        CHECK_IS(pattern_space_open(&big, c, (struct pattern_config){.name = "big", .part_bytes = 16 << 20}), KVT_E_TOO_LARGE);
        CHECK_IS(pattern_space_open(&big, c, (struct pattern_config){.name = "big", .part_bytes = 8 << 20}), KVT_E_TOO_LARGE);
        /* one that fits the tier, but not this connection's staging */
        CHECK_OK(pattern_space_open(&big, c, (struct pattern_config){.name = "big", .part_bytes = 5 << 20}));
        CHECK_IS(pattern_put(&big, NULL, keys, 1, 0, 0, statuses), KVT_E_TOO_LARGE);
        CHECK_EQ(daemon_audit(&d).n_blocks, 0);
        kvt_space_close(big.s);
        leave(&d);
}

int main(void)
{
        const struct CMUnitTest tests[] = {
                TEST(test_round_trip_of_all_sizes),
                TEST(test_round_trip_without_maps),
                TEST(test_round_trip_with_default_memory),
                TEST(test_first_copy_stays_whatever_the_bytes),
                TEST(test_replace_leaves_readers_their_bytes),
                TEST(test_another_geometry_is_refused),
                TEST(test_another_salt_does_not_hit),
                TEST(test_a_block_is_whole_when_all_shards_came),
                TEST(test_a_missing_shard_times_out_and_frees_the_others),
                TEST(test_no_parent_no_block),
                TEST(test_drop_of_a_head_takes_what_continues_it),
                TEST(test_prefetch_counts_as_a_use),
                TEST(test_purge),
                TEST(test_part_larger_than_the_tier),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
