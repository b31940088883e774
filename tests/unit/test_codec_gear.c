/* gear: sizes, outliers and low rank each take out what they are for; hostile payloads. */
#include "tests/unit/lossy.h"

static void test_sizes(void **state)
{
        static const uint32_t dims[] = {1, 3, 7, 8, 17, 63, 64, 65, 80, 129}, tokens[] = {1, 63, 64, 65, 130};
        static const char *const specs[] = {"gear", "gear:bits=4,rank=0,outliers=0", "gear:bits=8,rank=8,outliers=100"};

        for (size_t s = 0; s < 3; s++)
                for (size_t i = 0; i < 10; i++)
                        for (unsigned role = 0; role < 2; role++) {
                                struct lossy c = lossy_new(specs[s], role ? KVT_ROLE_V : KVT_ROLE_K, i % 2 ? KVT_DTYPE_F16 : KVT_DTYPE_F32,
                                                           2, tokens[i % 5], dims[i], NULL);
                                lossy_check(&c, NULL);
                                if (s == 2)
                                        assert_true(lossy_error(&c) < .02f);
                                lossy_free(&c);
                        }
}

static float error_of(const char *spec, const float *values, uint32_t role)
{
        return lossy_error_of(lossy_new(spec, role, KVT_DTYPE_F32, 2, 64, 64, values));
}

/* One value of each group far out: it is exact (to 8 bits), and the others' range is theirs. Two levels of the rest come out as they are. */
static void test_outliers(void **state)
{
        float values[2 * 64 * 64];

        for (size_t i = 0; i < 2 * 64 * 64; i++)
                values[i] = (i / 64 + i % 64) % 64 == 5 ? 1000 : (i * 7 % 11) % 2 ? 1 : -2;
        assert_true(error_of("gear:rank=0,outliers=0,params=16", values, KVT_ROLE_V) > 1e-3f);
        assert_true(error_of("gear:rank=0,outliers=16,params=16", values, KVT_ROLE_V) < 1e-6f);
        assert_true(error_of("gear:rank=0,outliers=16,params=16", values, KVT_ROLE_K) < 1e-6f);
}

/* Codes of a group with an extreme pair are coarse: what they leave of a plane of rank one has low rank, too. */
static void test_rank(void **state)
{
        float values[2 * 64 * 64], e[3];
        static const char *const specs[] = {"gear:rank=0,outliers=0", "gear:rank=1,outliers=0", "gear:rank=8,outliers=0"};

        for (size_t i = 0; i < 2 * 64 * 64; i++) {
                size_t h = i / 4096, t = i / 64 % 64, c = i % 64;

                values[i] = c == 0 ? -50 : c == 1 ? 50 : (float)((t * 5) % 7) * (float)(1 + (h * 64 + c) % 3) * .7f;
        }
        for (size_t i = 0; i < 3; i++)
                e[i] = error_of(specs[i], values, KVT_ROLE_V);
        assert_true(e[1] < e[0] * .6f);
        assert_true(e[2] < e[1] * .2f);
}

static void test_hostile(void **state)
{
        for (unsigned role = 0; role < 2; role++) {
                struct lossy c;
                size_t section = 4 + 4 + 70 + 40;

                c = lossy_new("gear:rank=1,outliers=32", role ? KVT_ROLE_V : KVT_ROLE_K, KVT_DTYPE_F16, 2, 70, 20, NULL);
                lossy_check_hostile(&c, 64, 0);
                for (size_t i = 0; i < 4; i++) {
                        uint8_t was = c.payload[i];

                        c.payload[i] = 9;
                        assert_int_equal(lossy_decode(&c), KVT_E_CORRUPT);
                        c.payload[i] = was;
                }
                memcpy(c.payload + section + 4, "\x00\x7e", 2); /* the base of leasts is NaN */
                assert_int_equal(lossy_decode(&c), KVT_E_CORRUPT);
                lossy_encode(&c, NULL);
                if (!role) { /* a group of 64 has outliers here, one of 20 has none */
                        uint8_t *last = c.payload + c.n - 3;

                        assert_int_equal(c.n, section + 4 + 2 * (6 + 2 * 40 + 70 * 5) + 40 * 2 * 3);
                        memcpy(last + 1, "\xc0\x7f", 2); /* NaN */
                        assert_int_equal(lossy_decode(&c), KVT_E_CORRUPT);
                        lossy_encode(&c, NULL);
                        last[0] = 64;
                        assert_int_equal(lossy_decode(&c), KVT_E_CORRUPT);
                }
                lossy_free(&c);
        }
}

int main(void)
{
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_sizes),
                cmocka_unit_test(test_outliers),
                cmocka_unit_test(test_rank),
                cmocka_unit_test(test_hostile),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
