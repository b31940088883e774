/* Cached bytes that change behind everybody's back: they are never returned, the block goes, and it is counted. */
#include "tests/lib/memory.h"
#include "tests/lib/pattern.h"
#include "tests/lib/raw.h"

enum { N = 8, PART = 8192 };

static kvt_key keys[N];
static uint8_t statuses[N];

/* Where key's part lies in the daemon's memory, found by its bytes; 0: nowhere. */
static uint64_t find_part(const struct daemon *d, int mem, const kvt_key *key, int flavour)
{
        static uint8_t part[PART];

        pattern_fill(part, PART, key, 0, flavour);
        return memory_find_copy(d, mem, part, PART, kvt_payload_offset(KVT_COPY_RAW, PATTERN_PLANES, PART));
}

struct scene {
        struct daemon d;
        kvt *c;
        struct pattern_space sp;
        int mem;
};

static void scene_init(struct scene *x, uint32_t flags)
{
        DAEMON_START(&x->d);
        x->mem = memory_open(&x->d);
        x->c = pattern_open(&x->d, flags);
        PATTERN_SPACE(&x->sp, x->c, .part_bytes = PART);
        pattern_keys(1, 0, N, keys);
        pattern_store(&x->sp, NULL, keys, N);
}

static void scene_end(struct scene *x)
{
        close(x->mem);
        kvt_space_close(x->sp.s);
        kvt_close(x->c);
        daemon_end(&x->d);
}

/* One bit of block 5: it and what continues it go, the blocks before stay. */
static void one_bit(uint32_t flags, size_t offset)
{
        struct scene x;

        scene_init(&x, flags);
        uint64_t at = find_part(&x.d, x.mem, &keys[5], 0);
        CHECK(at);
        memory_flip(x.mem, at + offset);
        CHECK_OK(pattern_get(&x.sp, keys, N, 0, statuses)); /* looks at every byte that came with status 0 */
        for (int i = 0; i < N; i++)
                if (i == 5)
                        CHECK_IS(statuses[i], KVT_E_CORRUPT);
                else
                        CHECK(!statuses[i] || (i > 5 && statuses[i] == KVT_E_MISS));
        WAIT_FOR(pattern_match(&x.sp, keys, N) == 5, 3000);
        WAIT_FOR(pattern_why(&x.sp, &keys[5]) == KVT_WHY_CORRUPT, 1000);
        CHECK_IS(pattern_why(&x.sp, &keys[6]), KVT_WHY_DROPPED);
        CHECK_EQ(daemon_counter(&x.d, "corrupt"), 1);
        CHECK(daemon_log_has(&x.d, "does not match its checksum"));
        CHECK_EQ(daemon_audit(&x.d).n_blocks, 5);
        pattern_store(&x.sp, &keys[4], keys + 5, 3); /* computed again, stored again */
        CHECK_OK(pattern_get(&x.sp, keys, N, 0, statuses));
        CHECK_EQ(pattern_count(statuses, N, 0), N);
        scene_end(&x);
}

static void test_one_bit_in_the_first_plane(void **state)
{
        one_bit(0, 3);
}

static void test_last_bit_of_the_last_plane(void **state)
{
        one_bit(0, PART - 1);
}

static void test_one_bit_through_staging(void **state)
{
        one_bit(KVT_OPEN_NO_MAP, PART / 2);
}

static void test_a_mapping_is_verified_on_request(void **state)
{
        struct scene x;
        kvt_mapping m[N];

        scene_init(&x, 0);
        CHECK_OK(kvt_map(x.sp.s, keys, N, m, statuses));
        memory_flip(x.mem, find_part(&x.d, x.mem, &keys[2], 0) + 100);
        for (int i = 0; i < N; i++)
                CHECK_IS(kvt_verify(x.sp.s, &m[i]), i == 2 ? KVT_E_CORRUPT : 0);
        CHECK_OK(kvt_unmap(x.sp.s, m, N, NULL));
        scene_end(&x);
}

/* A header that is damaged after it was mapped: no length leads out of the slab. */
static void test_header_bytes_under_a_mapping(void **state)
{
        static uint8_t part[PART];
        kvt_plane_copy copy;
        kvt_mapping m[N];
        struct scene x;

        scene_init(&x, 0);
        CHECK_OK(kvt_map(x.sp.s, keys, N, m, statuses));
        uint64_t at = find_part(&x.d, x.mem, &keys[2], 0) - kvt_payload_offset(KVT_COPY_RAW, PATTERN_PLANES, PART);
        for (size_t i = sizeof(uint64_t); i < sizeof(struct kvt_copy_header); i++) { /* behind the generation */
                memory_flip(x.mem, at + i);
                CHECK_IS(kvt_verify(x.sp.s, &m[2]), KVT_E_CORRUPT);
                CHECK_IS(kvt_mapped_plane(x.sp.s, &m[2], 0, &copy), KVT_E_CORRUPT);
                CHECK_IS(kvt_decode(x.sp.s, &m[2], 1, part), KVT_E_CORRUPT);
                memory_flip(x.mem, at + i);
        }
        CHECK_OK(kvt_verify(x.sp.s, &m[2]));
        CHECK_OK(kvt_unmap(x.sp.s, m, N, NULL));
        scene_end(&x);
}

/* Every byte of the header before the payload, one after another. */
static void test_header_bytes(void **state)
{
        struct scene x;
        uint32_t n_header = kvt_payload_offset(KVT_COPY_RAW, PATTERN_PLANES, PART);

        for (int no_map = 0; no_map < 2; no_map++) {
                scene_init(&x, no_map ? KVT_OPEN_NO_MAP : 0);
                for (uint32_t i = 0; i < sizeof(struct kvt_copy_header) + 8 * PATTERN_PLANES; i++) {
                        uint64_t at = find_part(&x.d, x.mem, &keys[N - 1], 0);
                        CHECK(at);
                        memory_flip(x.mem, at - n_header + i);
                        CHECK_OK(pattern_get(&x.sp, keys, N, 0, statuses));
                        CHECK_EQ(pattern_count(statuses, N - 1, 0), N - 1);
                        if (i < 8) /* the generation: that the daemon believes itself, and a reader takes for a copy that is gone */
                                CHECK(statuses[N - 1] == KVT_E_LEASE_LOST || (no_map && !statuses[N - 1]));
                        else
                                CHECK_IS(statuses[N - 1], KVT_E_CORRUPT);
                        CHECK_OK(kvt_flush(x.c));
                        WAIT_FOR(daemon_status(&x.d).n_leases + daemon_status(&x.d).n_xfers == 0,
                                 2000); /* or the old copy stays for its reader */
                        CHECK_OK(kvt_drop(x.sp.s, &keys[N - 1], 1, NULL));
                        WAIT_FOR(daemon_status(&x.d).n_blocks == N - 1, 2000);
                        pattern_store(&x.sp, &keys[N - 2], &keys[N - 1], 1);
                }
                scene_end(&x);
        }
}

/* Nobody is believed who says that a block is corrupt: the daemon looks for itself. */
static void test_a_client_that_cries_corrupt(void **state)
{
        Kvtier__DropRequest q = KVTIER__DROP_REQUEST__INIT;
        static struct raw r;
        struct scene x;

        scene_init(&x, 0);
        raw_open(&r, x.d.socket);
        raw_hello(&r);
        q.space = raw_space(&r, "model", PART, 1);
        q.keys = (ProtobufCBinaryData){16 * N, keys[0].bytes};
        q.corrupt = true;
        for (int i = 0; i < 20; i++)
                CHECK_OK(raw_status(&r, KVT_MSG_DROP, &q));
        WAIT_FOR(daemon_audit(&x.d).n_xfers == 0, 2000);
        CHECK_EQ(pattern_match(&x.sp, keys, N), N);
        CHECK_EQ(daemon_counter(&x.d, "corrupt"), 0);
        memory_flip(x.mem, find_part(&x.d, x.mem, &keys[3], 0));
        CHECK_OK(raw_status(&r, KVT_MSG_DROP, &q));
        WAIT_FOR(pattern_match(&x.sp, keys, N) == 3, 2000);
        CHECK_EQ(daemon_counter(&x.d, "corrupt"), 1);
        raw_close(&r);
        scene_end(&x);
}

int main(void)
{
        const struct CMUnitTest tests[] = {
                TEST(test_one_bit_in_the_first_plane),
                TEST(test_last_bit_of_the_last_plane),
                TEST(test_one_bit_through_staging),
                TEST(test_a_mapping_is_verified_on_request),
                TEST(test_header_bytes),
                TEST(test_header_bytes_under_a_mapping),
                TEST(test_a_client_that_cries_corrupt),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
