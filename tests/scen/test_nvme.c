/* Blocks on NVMe: they outlive the daemon, come back into memory or are read where they lie, and go when they are told to. */
#include "tests/lib/devices.h"
#include "tests/lib/pattern.h"
#include "tests/lib/raw.h"

enum { MANY = 512, PART = 32768 };

static kvt_key keys[MANY];
static uint8_t statuses[MANY];

struct user {
        struct daemon *d;
        struct pattern_space sp;
};

static void user_open_part(struct user *u, struct daemon *d, uint32_t flags, size_t part_bytes)
{
        u->d = d;
        PATTERN_SPACE(&u->sp, pattern_open(d, flags), .part_bytes = part_bytes);
}

static void user_open(struct user *u, struct daemon *d)
{
        user_open_part(u, d, 0, PART);
}

static void user_close(struct user *u)
{
        kvt *c = u->sp.c;

        kvt_space_close(u->sp.s);
        kvt_close(c);
}

/* What is stored from now on is on the device when this returns: n more records. */
static void store_on_nvme(struct user *u, const kvt_key *parent, const kvt_key *k, size_t n)
{
        CHECK_OK(pattern_put(&u->sp, parent, k, n, 0, 0, statuses));
        CHECK_EQ(pattern_count(statuses, n, 0), n);
        for (size_t i = 0; i < n; i++)
                WAIT_FOR(({
                                 kvt_explanation e;
                                 kvt_explain(u->sp.s, &k[i], &e) == 0 && strstr(e.text, "NVMe");
                         }),
                         5000);
        device_flush(u->d);
}

static void reborn(struct user *u, bool killed)
{
        if (killed)
                daemon_kill(u->d);
        else
                CHECK_EQ(daemon_stop(u->d), 0);
        daemon_restart(u->d);
        WAIT_FOR(device_is(u->d, 0, "serving"), 10000);
}

static void get_all(struct user *u, const kvt_key *k, size_t n)
{
        CHECK_OK(pattern_get(&u->sp, k, n, 0, statuses));
        for (size_t i = 0; i < n; i++)
                CHECK_OK(statuses[i]);
}

static bool is_text(struct user *u, const kvt_key *k, const char *text)
{
        kvt_explanation e;

        CHECK_OK(kvt_explain(u->sp.s, k, &e));
        return strstr(e.text, text);
}

static void test_blocks_outlive_the_daemon(void **state)
{
        struct daemon d;
        struct user u;

        NVME(&d);
        user_open(&u, &d);
        pattern_keys(1, 0, 40, keys);
        store_on_nvme(&u, NULL, keys, 40);
        CHECK(is_text(&u, &keys[3], "host and NVMe tiers"));
        for (int killed = 0; killed < 2; killed++) {
                reborn(&u, killed);
                CHECK(is_text(&u, &keys[3], "NVMe tier"));
                CHECK(!is_text(&u, &keys[3], "host"));
                CHECK_IS(pattern_why(&u.sp, &keys[3]), KVT_WHY_RESIDENT);
                CHECK_EQ(daemon_counter(&d, "nvme_recovered"), 40);
                CHECK_EQ(pattern_match(&u.sp, keys, 40), 40);
                CHECK(daemon_counter(&d, "nvme_hits") >= 1);
                get_all(&u, keys, 40);
                CHECK(daemon_counter(&d, "promoted") >= 40);
                CHECK_EQ(daemon_counter(&d, "corrupt"), 0);
        }
        user_close(&u);
        daemon_end(&d);
}

static void test_only_what_is_used_again_is_admitted(void **state)
{
        struct daemon d;
        struct user u;

        NVME(&d, "--nvme_admit_hits=1");
        user_open(&u, &d);
        pattern_keys(1, 0, 8, keys);
        pattern_keys(2, 0, 8, keys + 8);
        pattern_store(&u.sp, NULL, keys, 8);
        pattern_store(&u.sp, NULL, keys + 8, 8);
        usleep(100000);
        CHECK_EQ(daemon_counter(&d, "demoted"), 0);
        CHECK_EQ(pattern_match(&u.sp, keys, 8), 8);
        WAIT_FOR(daemon_counter(&d, "demoted") == 8, 5000);
        usleep(100000);
        CHECK_EQ(daemon_counter(&d, "demoted"), 8);
        device_flush(&d);
        reborn(&u, true);
        CHECK_EQ(pattern_match(&u.sp, keys, 8), 8);
        CHECK_EQ(pattern_match(&u.sp, keys + 8, 8), 0);
        user_close(&u);
        daemon_end(&d);
}

static void test_match_promotes(void **state)
{
        struct daemon d;
        struct user u;

        NVME(&d);
        user_open(&u, &d);
        pattern_keys(1, 0, 8, keys);
        store_on_nvme(&u, NULL, keys, 8);
        reborn(&u, true);
        CHECK_EQ(pattern_match(&u.sp, keys, 8), 8);
        WAIT_FOR(daemon_counter(&d, "promoted") == 8, 5000);
        CHECK(is_text(&u, &keys[7], "host and NVMe tiers"));
        /* what is in memory as well is not read again */
        CHECK_EQ(pattern_match(&u.sp, keys, 8), 8);
        get_all(&u, keys, 8);
        CHECK_EQ(daemon_counter(&d, "promoted"), 8);
        CHECK_EQ(daemon_counter(&d, "demoted"), 0); /* nor written */
        user_close(&u);
        daemon_end(&d);
}

static void test_map_promotes(void **state)
{
        kvt_mapping m[4];
        struct daemon d;
        struct user u;

        NVME(&d, "--nvme_readahead_blocks=0");
        user_open(&u, &d);
        pattern_keys(1, 0, 8, keys);
        store_on_nvme(&u, NULL, keys, 8);
        reborn(&u, true);
        CHECK_OK(kvt_map(u.sp.s, keys, 4, m, statuses));
        for (int i = 0; i < 4; i++) {
                CHECK_OK(statuses[i]);
                CHECK_EQ(pattern_find(m[i].data, PART, &keys[i], 0, 0), 0);
        }
        CHECK_OK(kvt_unmap(u.sp.s, m, 4, NULL));
        CHECK_EQ(daemon_counter(&d, "promoted"), 4);
        user_close(&u);
        daemon_end(&d);
}

static void test_prefetch_with_and_without_a_deadline(void **state)
{
        struct daemon d;
        struct user u;

        NVME(&d, "--nvme_readahead_blocks=0");
        user_open(&u, &d);
        pattern_keys(1, 0, 17, keys);
        store_on_nvme(&u, NULL, keys, 16);
        reborn(&u, true);
        CHECK_OK(kvt_prefetch(u.sp.s, keys, 8, 0, statuses));
        CHECK_EQ(pattern_count(statuses, 8, KVT_E_AGAIN), 8);
        WAIT_FOR(kvt_prefetch(u.sp.s, keys, 8, 0, statuses) == 0 && pattern_count(statuses, 8, 0) == 8, 5000);
        CHECK_EQ(daemon_counter(&d, "promoted"), 8);
        CHECK_OK(kvt_prefetch(u.sp.s, keys + 8, 9, 10000000, statuses));
        CHECK_EQ(pattern_count(statuses, 8, 0), 8);
        CHECK_IS(statuses[8], KVT_E_MISS);
        CHECK_EQ(daemon_counter(&d, "promoted"), 16);
        CHECK(is_text(&u, &keys[15], "host and NVMe tiers"));
        get_all(&u, keys, 16);
        user_close(&u);
        daemon_end(&d);
}

/* One plane of n blocks; the bytes of the other stay as they are. */
static void get_plane(struct user *u, const kvt_key *k, size_t n, size_t plane)
{
        size_t n_plane = PART / PATTERN_PLANES;
        uint8_t *bytes = malloc(n * PART), *part = malloc(PART);
        kvt_plane_view planes[PATTERN_PLANES];

        CHECK(bytes && part);
        memset(bytes, 0xee, n * PART);
        for (size_t i = 0; i < PATTERN_PLANES; i++)
                planes[i] = (kvt_plane_view){.base = bytes + i * n * n_plane, .token_stride = (ptrdiff_t)(n_plane / PATTERN_TOKENS)};
        kvt_view view = {.planes = planes, .n_planes = PATTERN_PLANES};
        CHECK_OK(kvt_get_planes(u->sp.s, k, n, 0, &view, 0, plane, 1, statuses));
        for (size_t i = 0; i < n; i++) {
                const uint8_t *got = (uint8_t *)planes[plane].base + i * n_plane, *other = (uint8_t *)planes[!plane].base + i * n_plane;
                CHECK_OK(statuses[i]);
                pattern_fill(part, PART, &k[i], 0, 0);
                CHECK(!memcmp(got, part + plane * n_plane, n_plane));
                CHECK(other[0] == 0xee && !memcmp(other, other + 1, n_plane - 1));
        }
        free(bytes);
        free(part);
}

static void test_planes_are_read_where_they_lie(void **state)
{
        struct daemon d;
        struct user u;

        NVME(&d);
        user_open(&u, &d);
        pattern_keys(1, 0, 8, keys);
        store_on_nvme(&u, NULL, keys, 8);
        get_plane(&u, keys, 8, 1); /* from memory */
        CHECK_EQ(daemon_counter(&d, "nvme_gets"), 0);
        reborn(&u, true);
        get_plane(&u, keys, 8, 0);
        CHECK_EQ(daemon_counter(&d, "nvme_gets"), 8);
        get_plane(&u, keys, 8, 1);
        CHECK_EQ(daemon_counter(&d, "nvme_gets"), 16);
        CHECK_EQ(daemon_counter(&d, "promoted"), 0);
        CHECK(!is_text(&u, &keys[0], "host"));
        /* those planes alone, and the records' headers */
        CHECK(daemon_counter(&d, "nvme_get_bytes") <= 16 * (PART / 2 + 3 * 4096));
        user_close(&u);
        daemon_end(&d);
}

static void test_clients_that_do_not_map(void **state)
{
        struct daemon d;
        struct user u;

        NVME(&d);
        user_open_part(&u, &d, KVT_OPEN_NO_MAP, PART);
        pattern_keys(1, 0, 64, keys);
        store_on_nvme(&u, NULL, keys, 64);
        reborn(&u, true);
        get_all(&u, keys, 64);
        CHECK(daemon_counter(&d, "promoted") >= 64);
        user_close(&u);
        daemon_end(&d);
}

static void test_more_than_memory_holds(void **state)
{
        struct daemon d;
        struct user u;

        NVME(&d, "--host_bytes=16M", "--nvme_bytes=96M");
        user_open_part(&u, &d, 0, 131072);
        for (uint64_t chain = 0; chain < 10; chain++) { /* 40 MiB */
                pattern_keys(chain, 0, 32, keys);
                pattern_store(&u.sp, NULL, keys, 32);
                WAIT_FOR(daemon_counter(&d, "demoted") == 32 * (chain + 1), 5000);
        }
        CHECK(daemon_counter(&d, "evicted") > 100);
        for (uint64_t chain = 0; chain < 10; chain++) {
                pattern_keys(chain, 0, 32, keys);
                CHECK_EQ(pattern_match(&u.sp, keys, 32), 32);
                get_all(&u, keys, 32);
                /* all are there, so none is stored again */
                CHECK_OK(pattern_put(&u.sp, NULL, keys, 32, 0, 0, statuses));
                CHECK_EQ(pattern_count(statuses, 32, KVT_E_EXISTS), 32);
        }
        CHECK_EQ(daemon_counter(&d, "demoted"), 320);
        daemon_audit(&d);
        user_close(&u);
        daemon_end(&d);
}

static void test_two_shards(void **state)
{
        struct pattern_space sp[2];
        struct daemon d;

        NVME(&d);
        kvt *c = pattern_open(&d, 0);
        for (uint32_t i = 0; i < 2; i++)
                PATTERN_SPACE(&sp[i], c, .part_bytes = PART, .n_shards = 2, .shard = i);
        pattern_keys(1, 0, 8, keys);
        for (int i = 0; i < 2; i++)
                pattern_store(&sp[i], NULL, keys, 8);
        WAIT_FOR(daemon_counter(&d, "demoted") == 16, 5000);
        device_flush(&d);
        daemon_kill(&d);
        daemon_restart(&d);
        WAIT_FOR(device_is(&d, 0, "serving"), 5000);
        for (int i = 0; i < 2; i++) {
                CHECK_EQ(pattern_match(&sp[i], keys, 8), 8);
                CHECK_OK(pattern_get(&sp[i], keys, 8, 0, statuses));
                CHECK_EQ(pattern_count(statuses, 8, 0), 8);
        }
        for (int i = 0; i < 2; i++)
                kvt_space_close(sp[i].s);
        kvt_close(c);
        daemon_end(&d);
}

static void test_what_is_dropped_does_not_come_back(void **state)
{
        struct daemon d;
        struct user u;

        NVME(&d);
        user_open(&u, &d);
        for (uint64_t chain = 0; chain < 3; chain++) {
                pattern_keys(chain, 0, 8, keys + 8 * chain);
                store_on_nvme(&u, NULL, keys + 8 * chain, 8);
        }
        reborn(&u, true); /* those on NVMe only, too */
        CHECK_OK(kvt_drop(u.sp.s, &keys[4], 1, statuses)); /* and what continues it */
        CHECK_OK(statuses[0]);
        CHECK_EQ(pattern_match(&u.sp, keys, 8), 4);
        get_all(&u, keys + 8, 8);
        CHECK_OK(kvt_drop(u.sp.s, &keys[8], 1, statuses));
        CHECK_EQ(pattern_match(&u.sp, keys + 8, 8), 0);
        CHECK_IS(pattern_why(&u.sp, &keys[8]), KVT_WHY_DROPPED);
        device_flush(&d);
        for (int i = 0; i < 2; i++) {
                reborn(&u, i == 0);
                CHECK_EQ(pattern_match(&u.sp, keys, 8), 4);
                CHECK_OK(pattern_get(&u.sp, keys, 16, 0, statuses));
                CHECK_EQ(pattern_count(statuses, 4, 0), 4);
                CHECK_EQ(pattern_count(statuses + 8, 8, KVT_E_MISS), 8);
                CHECK_EQ(pattern_match(&u.sp, keys + 16, 8), 8);
        }
        store_on_nvme(&u, NULL, keys + 8, 8); /* what was dropped may be stored again */
        reborn(&u, true);
        CHECK_EQ(pattern_match(&u.sp, keys + 8, 8), 8);
        get_all(&u, keys + 8, 8);
        user_close(&u);
        daemon_end(&d);
}

static void test_what_is_purged_does_not_come_back(void **state)
{
        Kvtier__PurgeRequest q = KVTIER__PURGE_REQUEST__INIT;
        struct daemon d;
        struct raw r;
        struct user u;

        NVME(&d);
        user_open(&u, &d);
        pattern_keys(1, 0, 16, keys);
        store_on_nvme(&u, NULL, keys, 8);
        reborn(&u, true);
        store_on_nvme(&u, NULL, keys + 8, 8); /* these are in memory, those are not */
        raw_open(&r, d.socket);
        raw_hello(&r);
        CHECK_OK(raw_status(&r, KVT_MSG_PURGE, &q));
        raw_leave(&r);
        CHECK_EQ(pattern_match(&u.sp, keys, 8), 0);
        CHECK_EQ(pattern_match(&u.sp, keys + 8, 8), 0);
        device_flush(&d);
        for (int i = 0; i < 2; i++) {
                reborn(&u, i == 0);
                CHECK_EQ(pattern_match(&u.sp, keys, 8), 0);
                CHECK_OK(pattern_get(&u.sp, keys, 16, 0, statuses));
                CHECK_EQ(pattern_count(statuses, 16, KVT_E_MISS), 16);
        }
        store_on_nvme(&u, NULL, keys, 8);
        reborn(&u, true);
        CHECK_EQ(pattern_match(&u.sp, keys, 8), 8);
        get_all(&u, keys, 8);
        user_close(&u);
        daemon_end(&d);
}

static void test_replaced_blocks_are_the_new_ones(void **state)
{
        struct daemon d;
        struct user u;

        NVME(&d);
        user_open(&u, &d);
        pattern_keys(1, 0, 8, keys);
        store_on_nvme(&u, NULL, keys, 8);
        CHECK_OK(pattern_put(&u.sp, NULL, keys, 4, 1, KVT_PUT_REPLACE | KVT_PUT_DURABLE, statuses));
        CHECK_EQ(pattern_count(statuses, 4, 0), 4);
        reborn(&u, true);
        for (int flavour = 1; flavour < 3; flavour++) {
                CHECK_EQ(pattern_match(&u.sp, keys, 8), 8);
                CHECK_OK(pattern_get(&u.sp, keys, 4, flavour, statuses));
                CHECK_EQ(pattern_count(statuses, 4, 0), 4);
                get_all(&u, keys + 4, 4);
                reborn(&u, true); /* now those that are on NVMe only are replaced */
                CHECK_OK(pattern_put(&u.sp, NULL, keys, 4, flavour + 1, KVT_PUT_REPLACE | KVT_PUT_DURABLE, statuses));
                CHECK_EQ(pattern_count(statuses, 4, 0), 4);
                reborn(&u, true);
        }
        user_close(&u);
        daemon_end(&d);
}

static void test_children_of_blocks_on_nvme_only(void **state)
{
        struct daemon d;
        struct user u;

        NVME(&d);
        user_open(&u, &d);
        pattern_keys(1, 0, 16, keys);
        store_on_nvme(&u, NULL, keys, 8);
        reborn(&u, true);
        pattern_store(&u.sp, &keys[7], keys + 8, 4);
        CHECK_OK(pattern_put(&u.sp, NULL, keys, 12, 1, 0, statuses)); /* the first bytes stay */
        CHECK_EQ(pattern_count(statuses, 12, KVT_E_EXISTS), 12);
        CHECK_EQ(pattern_match(&u.sp, keys, 16), 12);
        get_all(&u, keys, 12);
        WAIT_FOR(daemon_counter(&d, "demoted") == 4, 5000);
        device_flush(&d);
        reborn(&u, true);
        CHECK_EQ(pattern_match(&u.sp, keys, 16), 12);
        get_all(&u, keys, 12);
        user_close(&u);
        daemon_end(&d);
}

struct seen {
        size_t n_stored, n_removed;
};
static void on_event(const kvt_key *stored, size_t n_stored, const kvt_key *removed, size_t n_removed, uint64_t n_lost, void *arg)
{
        struct seen *s = arg;

        s->n_stored += n_stored;
        s->n_removed += n_removed;
}

static void test_events_tell_what_can_be_had(void **state)
{
        struct seen seen = {};
        struct daemon d;
        struct user u;

        NVME(&d, "--host_bytes=16M");
        user_open_part(&u, &d, 0, 131072);
        CHECK_OK(kvt_events(u.sp.s, on_event, &seen));
        for (uint64_t chain = 0; chain < 8; chain++) { /* 32 MiB */
                pattern_keys(chain, 0, 32, keys);
                pattern_store(&u.sp, NULL, keys, 32);
                WAIT_FOR(daemon_counter(&d, "demoted") == 32 * (chain + 1), 5000);
        }
        CHECK(daemon_counter(&d, "evicted") > 0);
        WAIT_FOR(kvt_process(u.sp.c) == 0 && seen.n_stored >= 256, 5000);
        CHECK_EQ(seen.n_stored - seen.n_removed, 256); /* what went out of memory is still there */
        CHECK_OK(kvt_drop(u.sp.s, &keys[0], 1, statuses));
        WAIT_FOR(kvt_process(u.sp.c) == 0 && seen.n_stored - seen.n_removed == 224, 5000);
        user_close(&u);
        daemon_end(&d);
}

int main(void)
{
        const struct CMUnitTest tests[] = {
                TEST(test_blocks_outlive_the_daemon),
                TEST(test_only_what_is_used_again_is_admitted),
                TEST(test_match_promotes),
                TEST(test_map_promotes),
                TEST(test_prefetch_with_and_without_a_deadline),
                TEST(test_planes_are_read_where_they_lie),
                TEST(test_clients_that_do_not_map),
                TEST(test_more_than_memory_holds),
                TEST(test_two_shards),
                TEST(test_what_is_dropped_does_not_come_back),
                TEST(test_what_is_purged_does_not_come_back),
                TEST(test_replaced_blocks_are_the_new_ones),
                TEST(test_children_of_blocks_on_nvme_only),
                TEST(test_events_tell_what_can_be_had),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
