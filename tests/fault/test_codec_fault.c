/* Coded copies that change behind everybody's back, hints of a client that writes what it likes, and ladders that are not to be set: never wrong values, never a crash, a
 * named error, and nobody else notices. */
#include "tests/lib/memory.h"
#include "tests/lib/raw.h"
#include "tests/lib/values.h"

enum { N = 5, LAST = N - 1, ENTRY = sizeof(struct kvt_copy_plane) };

static kvt_key keys[N];
static uint8_t statuses[N];

struct scene {
        struct daemon d;
        struct values_space sp, coded; /* the same space; the second sees copies under codecs */
        int mem;
        uint64_t n_recoded;
        /* of the last block's copy */
        uint64_t payload_at, header_at;
        size_t payload_bytes, plane_bytes[VALUES_PLANES];
};

static const uint8_t protect[N * VALUES_TOKENS / 8] = {0x81, [LAST * VALUES_TOKENS / 8] = 0x0f};
static const kvt_hints hints = {sizeof(hints), protect, NULL};

/* Puts the last block, and finds its copy once it is coded. */
static void store_last(struct scene *x)
{
        kvt_mapping m;

        CHECK_OK(values_put(&x->sp, &keys[LAST - 1], &keys[LAST], 1, 0, 0, &hints, statuses));
        CHECK_OK(statuses[0]);
        WAIT_FOR(daemon_counter(&x->d, "recoded") == x->n_recoded + 1, 5000);
        x->n_recoded++;
        CHECK_OK(kvt_map(x->coded.s, &keys[LAST], 1, &m, statuses));
        CHECK_OK(statuses[0]);
        x->payload_bytes = m.bytes;
        x->payload_at = memory_find_copy(&x->d, x->mem, m.data, m.bytes, kvt_payload_offset(KVT_COPY_PLANES, VALUES_PLANES, m.bytes));
        CHECK(x->payload_at);
        x->header_at = x->payload_at - kvt_payload_offset(KVT_COPY_PLANES, VALUES_PLANES, m.bytes);
        for (size_t i = 0; i < VALUES_PLANES; i++) {
                kvt_plane_copy c;
                CHECK_OK(kvt_mapped_plane(x->coded.s, &m, i, &c));
                CHECK(c.codec_id != 0);
                x->plane_bytes[i] = c.bytes;
        }
        CHECK_OK(kvt_unmap(x->coded.s, &m, 1, NULL));
}

static void scene_init(struct scene *x, const char *ladder, float max_rel_l2, uint32_t flags)
{
        DAEMON_START(&x->d, ladder, "--host_bytes=24M");
        x->mem = memory_open(&x->d);
        CHECK_OK(values_space_open(&x->sp, pattern_open(&x->d, flags), "values", max_rel_l2));
        CHECK_OK(values_space_open(&x->coded, pattern_open(&x->d, KVT_OPEN_CODED), "values", max_rel_l2));
        pattern_keys(3, 0, N, keys);
        values_store(&x->sp, NULL, keys, LAST);
        WAIT_FOR(daemon_counter(&x->d, "recoded") == LAST, 5000);
        x->n_recoded = LAST;
        store_last(x);
}

static void scene_end(struct scene *x)
{
        close(x->mem);
        kvt_space_close(x->sp.s);
        kvt_space_close(x->coded.s);
        kvt_close(x->sp.c);
        kvt_close(x->coded.c);
        daemon_end(&x->d);
}

/* It was taken out or it was not: there is another one after this. */
static void renew_last(struct scene *x)
{
        CHECK_OK(kvt_flush(x->sp.c));
        CHECK_OK(kvt_flush(x->coded.c));
        WAIT_FOR(daemon_status(&x->d).n_leases + daemon_status(&x->d).n_xfers == 0, 2000);
        CHECK_OK(kvt_drop(x->sp.s, &keys[LAST], 1, statuses));
        WAIT_FOR(daemon_status(&x->d).n_blocks == LAST, 2000);
        store_last(x);
}

/* What each way of reading says of the last block. Values that are wrong fail the test. */
struct said {
        int verify, decode, get;
        bool error_is_wrong; /* that the header speaks of: the values are right */
};

static struct said read_all(struct scene *x)
{
        struct said s = {0};
        kvt_mapping m;

        CHECK_OK(kvt_map(x->coded.s, &keys[LAST], 1, &m, statuses));
        s.verify = s.decode = statuses[0];
        if (!statuses[0]) {
                s.verify = kvt_verify(x->coded.s, &m);
                s.decode = values_mapped(&x->coded, &m, &keys[LAST], 0, &s.error_is_wrong);
                kvt_unmap(x->coded.s, &m, 1, NULL);
        }
        CHECK_OK(values_get(&x->sp, keys, N, 0, VALUES_PLANES, 0, statuses));
        CHECK_EQ(pattern_count(statuses, LAST, 0), LAST); /* the others are as they were */
        s.get = statuses[LAST];
        return s;
}

static bool is_lost(int r)
{
        return r == KVT_E_CORRUPT || r == KVT_E_LEASE_LOST;
}

static void flip_bit(const struct scene *x, uint64_t at, unsigned bit)
{
        uint8_t byte;

        CHECK(pread(x->mem, &byte, 1, (off_t)at) == 1);
        byte ^= (uint8_t)(1u << bit);
        CHECK(pwrite(x->mem, &byte, 1, (off_t)at) == 1);
}

/* Every byte of the header, or every so many, which is each field of some plane; of a plane's codec and flags every bit: another codec that exists, rows that are not there. */
static void header_bytes(const char *ladder, float max_rel_l2, uint32_t flags, uint32_t step)
{
        uint32_t planes = sizeof(struct kvt_copy_header), hint_entry = planes + VALUES_PLANES * ENTRY, n = hint_entry + ENTRY;
        struct scene x;

        scene_init(&x, ladder, max_rel_l2, flags);
        for (uint32_t i = 0, by = CHECK_SLOW == 1 ? step : 11; i < n; i += by) {
                uint32_t field = i < planes ? 0 : (i - planes) % ENTRY;
                bool all_bits =
                        i >= planes && (field == offsetof(struct kvt_copy_plane, codec) || field == offsetof(struct kvt_copy_plane, flags));
                for (unsigned bit = 0; bit < 8; bit++) {
                        if (!all_bits && bit != (i * 5 + 4) % 8)
                                continue;
                        flip_bit(&x, x.header_at + i, bit);
                        struct said s = read_all(&x);
                        CHECK(!s.error_is_wrong);
                        if (i < 8) { /* the generation: that the daemon believes itself, and a reader takes for a copy that is gone */
                                CHECK_IS(s.verify, KVT_E_LEASE_LOST);
                                CHECK_IS(s.decode, KVT_E_LEASE_LOST);
                                CHECK(is_lost(s.get) || ((flags & KVT_OPEN_NO_MAP) && !s.get));
                        } else if (i >= hint_entry && (i < hint_entry + sizeof(uint64_t) || (bit == 7 && !all_bits))) {
                                /* the hints' hash, which readers do not need, or -0 for an error */
                                CHECK_IS(s.verify, KVT_E_CORRUPT);
                                CHECK(!s.decode || is_lost(s.decode));
                                CHECK(!s.get || is_lost(s.get));
                        } else if (!is_lost(s.verify) || !is_lost(s.get)) {
                                check_failed(__FILE__, __LINE__, "bit %u of byte %u of the header: verify says %s, decode %s, get %s", bit,
                                             i, kvt_error_name(s.verify), kvt_error_name(s.decode), kvt_error_name(s.get));
                        }
                        renew_last(&x);
                }
        }
        CHECK_OK(values_get(&x.sp, keys, N, 0, VALUES_PLANES, 0, statuses));
        CHECK_EQ(pattern_count(statuses, N, 0), N);
        scene_end(&x);
}

static void test_header_of_a_lossless_copy(void **state)
{
        header_bytes("--codec_hot=zbf", 0, 0, 1);
}

static void test_header_of_a_lossy_copy(void **state)
{
        header_bytes("--codec_hot=kivi:bits=4", 0.1f, 0, 1);
}

static void test_header_of_a_lossy_copy_through_staging(void **state)
{
        header_bytes("--codec_hot=kivi:bits=4", 0.1f, KVT_OPEN_NO_MAP, 5);
}

/* First and last byte of each plane's payload. */
static void payload_bytes(const char *ladder, float max_rel_l2, uint32_t flags)
{
        uint64_t n_corrupt = 0;
        struct scene x;

        scene_init(&x, ladder, max_rel_l2, flags);
        for (uint32_t i = 0; i < VALUES_PLANES; i++)
                for (int end = 0; end < 2; end++) {
                        uint64_t at = x.payload_at;
                        for (uint32_t k = 0; k < i; k++)
                                at += x.plane_bytes[k];
                        memory_flip(x.mem, at + (end ? x.plane_bytes[i] - 1 : 0));
                        struct said s = read_all(&x);
                        CHECK_IS(s.verify, KVT_E_CORRUPT);
                        CHECK_IS(s.decode, KVT_E_CORRUPT);
                        CHECK_IS(s.get, KVT_E_CORRUPT);
                        WAIT_FOR(daemon_counter(&x.d, "corrupt") == n_corrupt + 1, 2000);
                        n_corrupt++;
                        struct pattern_space p = {.c = x.sp.c, .s = x.sp.s};
                        CHECK_EQ(pattern_match(&p, keys, N), LAST);
                        CHECK_IS(pattern_why(&p, &keys[LAST]), KVT_WHY_CORRUPT);
                        CHECK_EQ(daemon_audit(&x.d).n_blocks, LAST);
                        renew_last(&x);
                }
        scene_end(&x);
}

static void test_payload_of_a_lossless_copy(void **state)
{
        payload_bytes("--codec_hot=zbf", 0, KVT_OPEN_NO_MAP);
}

static void test_payload_of_a_lossy_copy(void **state)
{
        payload_bytes("--codec_hot=kivi:bits=4", 0.1f, 0);
}

/* A header that names another codec: nobody is served by it, and nobody is kept from putting the block anew. */
static void codec_bytes(uint32_t flags)
{
        struct scene x;

        scene_init(&x, "--codec_hot=kivi:bits=4", 0.1f, flags);
        struct pattern_space p = {.c = x.sp.c, .s = x.sp.s};
        flip_bit(&x, x.header_at + sizeof(struct kvt_copy_header) + ENTRY + offsetof(struct kvt_copy_plane, codec), 0);
        CHECK_OK(values_get(&x.sp, keys, N, 0, VALUES_PLANES, 0, statuses));
        CHECK_IS(statuses[LAST], KVT_E_CORRUPT);
        WAIT_FOR(pattern_match(&p, keys, N) == LAST, 2000);
        CHECK_IS(pattern_why(&p, &keys[LAST]), KVT_WHY_CORRUPT);
        renew_last(&x);
        CHECK_OK(values_get(&x.sp, keys, N, 0, VALUES_PLANES, 0, statuses));
        CHECK_EQ(pattern_count(statuses, N, 0), N);
        scene_end(&x);
}

static void test_another_codec(void **state)
{
        codec_bytes(0);
}

static void test_another_codec_through_staging(void **state)
{
        codec_bytes(KVT_OPEN_NO_MAP);
}

int main(void)
{
        const struct CMUnitTest tests[] = {
                TEST(test_header_of_a_lossless_copy),
                TEST(test_header_of_a_lossy_copy),
                TEST(test_header_of_a_lossy_copy_through_staging),
                TEST(test_payload_of_a_lossless_copy),
                TEST(test_payload_of_a_lossy_copy),
                TEST(test_another_codec),
                TEST(test_another_codec_through_staging),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
