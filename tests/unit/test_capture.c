/* Headers of captures: what is written is read, and no field of a foreign one is trusted. */
#include <string.h>

#include "include/kvtier.h"
#include "libclient/codec/capture.h"
#include "tests/lib/check.h"

static const struct capture some = {KVT_DTYPE_BF16, KVT_DTYPE_F16, 3, 6, 2, 5, 7, 64};
enum { SOME_BYTES = 64 + 3 * (6 + 2 * 2) * 7 * 5 * 2 };

static int decode(const uint8_t *src, size_t n_src, uint64_t n_file)
{
        struct capture c = some, before = some;
        const char *why = NULL;
        int r = capture_decode(&c, src, n_src, n_file, &why);

        assert_true(!r == !why);
        if (r)
                assert_memory_equal(&c, &before, sizeof(c));
        return r;
}

static void test_round_trip(void **state)
{
        static const uint8_t want[CAPTURE_HEADER_BYTES] = {'k', 'v', 't', 'i', 'e', 'r', 'K', 'V', 1, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 3,
                                                           0,   0,   0,   6,   0,   0,   0,   2,   0, 0, 0, 5, 0, 0, 0, 7, 0, 0, 0, 64};
        uint8_t header[CAPTURE_HEADER_BYTES];
        struct capture c = {0};
        const char *why;

        capture_encode(header, &some);
        assert_memory_equal(header, want, sizeof(want));
        assert_int_equal(capture_decode(&c, header, sizeof(header), SOME_BYTES, &why), 0);
        assert_memory_equal(&c, &some, sizeof(c));
}

static void test_offsets(void **state)
{
        assert_int_equal(capture_part_bytes(&some, CAPTURE_Q), 6 * 7 * 5 * 2);
        assert_int_equal(capture_part_bytes(&some, CAPTURE_K), 2 * 7 * 5 * 2);
        assert_int_equal(capture_part_bytes(&some, CAPTURE_V), 2 * 7 * 5 * 2);
        assert_int_equal(capture_offset(&some, 0, CAPTURE_Q), 64);
        assert_int_equal(capture_offset(&some, 0, CAPTURE_K), 64 + 420);
        assert_int_equal(capture_offset(&some, 0, CAPTURE_V), 64 + 560);
        assert_int_equal(capture_offset(&some, 1, CAPTURE_Q), 64 + 700);
        assert_int_equal(capture_offset(&some, 3, CAPTURE_Q), SOME_BYTES);
}

static void test_sizes(void **state)
{
        uint8_t header[CAPTURE_HEADER_BYTES];

        capture_encode(header, &some);
        for (size_t n = 0; n < sizeof(header); n++)
                assert_int_equal(decode(header, n, SOME_BYTES), KVT_E_CORRUPT);
        assert_int_equal(decode(header, sizeof(header), SOME_BYTES - 1), KVT_E_CORRUPT);
        assert_int_equal(decode(header, sizeof(header), SOME_BYTES + 1), KVT_E_CORRUPT);
        assert_int_equal(decode(header, sizeof(header), 0), KVT_E_CORRUPT);
        assert_int_equal(decode(header, sizeof(header), UINT64_MAX), KVT_E_CORRUPT);
}

/* Every bit of the header counts. */
static void test_bits(void **state)
{
        uint8_t header[CAPTURE_HEADER_BYTES];
        unsigned n_taken = 0;

        capture_encode(header, &some);
        for (size_t i = 0; i < 8 * sizeof(header); i++) {
                header[i / 8] ^= (uint8_t)(1u << i % 8);
                if (!decode(header, sizeof(header), SOME_BYTES))
                        n_taken++;
                header[i / 8] ^= (uint8_t)(1u << i % 8);
        }
        /* the tokens of a chunk may be any number but 0 */
        assert_int_equal(n_taken, 31);
}

static void test_hostile(void **state)
{
        static const struct capture hostile[] = {
                {KVT_DTYPE_OPAQUE, KVT_DTYPE_F16, 3, 6, 2, 5, 7, 64},
                {KVT_DTYPE_F16, KVT_DTYPE_OPAQUE, 3, 6, 2, 5, 7, 64},
                {UINT32_MAX, KVT_DTYPE_F16, 3, 6, 2, 5, 7, 64},
                {KVT_DTYPE_F16, KVT_DTYPE_F16, 0, 6, 2, 5, 7, 64},
                {KVT_DTYPE_F16, KVT_DTYPE_F16, 3, 0, 2, 5, 7, 64},
                {KVT_DTYPE_F16, KVT_DTYPE_F16, 3, 6, 0, 5, 7, 64},
                {KVT_DTYPE_F16, KVT_DTYPE_F16, 3, 6, 2, 0, 7, 64},
                {KVT_DTYPE_F16, KVT_DTYPE_F16, 3, 6, 2, 5, 0, 64},
                {KVT_DTYPE_F16, KVT_DTYPE_F16, 3, 6, 2, 5, 7, 0},
                {KVT_DTYPE_F16, KVT_DTYPE_F16, 3, 6, 4, 5, 7, 64},
                {KVT_DTYPE_F32, KVT_DTYPE_F32, UINT32_MAX, UINT32_MAX, 1, UINT32_MAX, UINT32_MAX, 1},
                {KVT_DTYPE_F16, KVT_DTYPE_F16, 1u << 31, 1u << 31, 1u << 31, 2, 1, 1}, /* its size is 64 modulo 2^64 */
        };
        uint8_t header[CAPTURE_HEADER_BYTES];

        for (size_t i = 0; i < sizeof(hostile) / sizeof(hostile[0]); i++) {
                capture_encode(header, &hostile[i]);
                assert_int_equal(decode(header, sizeof(header), capture_offset(&hostile[i], hostile[i].n_layers, CAPTURE_Q)),
                                 KVT_E_CORRUPT);
                assert_int_equal(decode(header, sizeof(header), 0), KVT_E_CORRUPT);
                assert_int_equal(decode(header, sizeof(header), CAPTURE_HEADER_BYTES), KVT_E_CORRUPT);
        }
}

int main(void)
{
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_round_trip), cmocka_unit_test(test_offsets), cmocka_unit_test(test_sizes),
                cmocka_unit_test(test_bits),       cmocka_unit_test(test_hostile),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
