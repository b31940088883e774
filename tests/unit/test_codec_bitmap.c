/* bitmap: keeps the largest exactly, at every width; hostile payloads. */
#include "tests/unit/lossy.h"

static void test_sizes(void **state)
{
        static const uint32_t dims[] = {1, 7, 8, 9, 15, 16, 17, 31, 33, 64, 80, 129};
        static const char *const specs[] = {"bitmap:keep=1", "bitmap", "bitmap:keep=100", "bitmap:keep=30,small=1"};

        for (size_t s = 0; s < 4; s++)
                for (size_t i = 0; i < sizeof(dims) / sizeof(dims[0]); i++)
                        for (size_t d = 0; d < 5; d++) {
                                struct lossy c = lossy_new(specs[s], KVT_ROLE_V, lossy_dtypes[d], 2, 5, dims[i], NULL);
                                lossy_check(&c, NULL);
                                if (s == 2)
                                        assert_memory_equal(c.decoded, c.bytes, c.shape.n_bytes);
                                lossy_free(&c);
                        }
}

/* Four of eight channels: the largest magnitudes; of equals the first. */
static void test_by_hand(void **state)
{
        static const float values[8] = {1, -8, 2, 2, 0, 5, -2, 2}, expected[8] = {0, -8, 2, 2, 0, 5, 0, 0};
        struct lossy c = lossy_new("bitmap", KVT_ROLE_V, KVT_DTYPE_F32, 1, 1, 8, NULL);
        memcpy(c.values, values, sizeof(values));
        lossy_encode(&c, NULL);
        assert_int_equal(c.n, 8 + 1 + 4 * 4);
        assert_int_equal(c.payload[8], 0x2e);
        assert_int_equal(lossy_decode(&c), 0);
        assert_memory_equal(c.decoded, expected, sizeof(expected));
        lossy_free(&c);
}

static void test_hostile(void **state)
{
        for (unsigned small = 0; small < 2; small++) {
                struct lossy c;
                uint8_t was;

                c = lossy_new(small ? "bitmap:small=1" : "bitmap", KVT_ROLE_V, KVT_DTYPE_F16, 2, 3, 20, NULL);
                lossy_check_hostile(&c, 64, 0);
                was = c.payload[8];
                c.payload[8] ^= 1; /* one kept more, or less */
                assert_int_equal(lossy_decode(&c), KVT_E_CORRUPT);
                c.payload[8] = was;
                memcpy(c.payload + 8, "\xff\x03\x00", 3); /* as many */
                assert_int_equal(lossy_decode(&c), 0);
                memcpy(c.payload + 8, "\xff\x01\x80", 3); /* but one beyond the row */
                assert_int_equal(lossy_decode(&c), KVT_E_CORRUPT);
                lossy_free(&c);
        }
}

int main(void)
{
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_sizes),
                cmocka_unit_test(test_by_hand),
                cmocka_unit_test(test_hostile),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
