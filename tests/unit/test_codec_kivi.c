/* kivi: vectors by hand, sizes around SIMD widths, rows, variants, hostile payloads. */
#include "tests/unit/lossy.h"

/* 2 bits: a channel of 0, 1, 2, 3 and one of -4, -2, 0, 2 come back as they were. */
static void test_by_hand(void **state)
{
        static const float values[] = {0, -4, 1, -2, 2, 0, 3, 2};
        static const uint8_t expected[] = {2, 16, 6, 12, 0, 0, 0, 0xf4, 0, 0x6c, 0, 0x70, 0x0, 0x5, 0xa, 0xf};
        struct lossy x = lossy_new("kivi:bits=2,levels=1,params=16", KVT_ROLE_K, KVT_DTYPE_F32, 1, 4, 2, values);

        lossy_encode(&x, NULL);
        assert_int_equal(x.n, sizeof(expected));
        assert_memory_equal(x.payload, expected, sizeof(expected));
        assert_int_equal(lossy_decode(&x), 0);
        assert_memory_equal(x.decoded, values, sizeof(values));
        lossy_free(&x);
}

static void check_levels(const char *spec, const float expected[4])
{
        static const float values[] = {0, 0, 2, 6};
        struct lossy x = lossy_new(spec, KVT_ROLE_V, KVT_DTYPE_F32, 1, 1, 4, values);

        lossy_code(&x);
        assert_memory_equal(x.decoded, expected, sizeof(values));
        lossy_free(&x);
}

static void test_levels(void **state)
{
        /* mean 2, mean distance 2: 0 and 4; 2 is in the middle and rounds to even. Halves: 1.5 and 4.5. Quarters: .75, 2.25, .. */
        check_levels("kivi:bits=2,params=16", (const float[]){0.75, 0.75, 2.25, 5.25});
        check_levels("kivi:bits=2,levels=1,params=16", (const float[]){0, 0, 2, 6});
        check_levels("kivi:bits=1,params=16", (const float[]){0, 0, 0, 4});
        check_levels("kivi:bits=1,levels=1,params=16", (const float[]){1.5, 1.5, 1.5, 4.5});
        /* least squares: the means of {0, 0, 2} and {6}, as near as f16 is */
        static const float values[] = {0, 0, 2, 6};
        struct lossy x = lossy_new("kivi:bits=1,rounds=2,params=16", KVT_ROLE_V, KVT_DTYPE_F16, 1, 1, 4, values);
        float y[4];

        lossy_code(&x);
        kernels()->widen(y, x.decoded, 4, KVT_DTYPE_F16);
        assert_true(fabsf(y[0] - 2.0f / 3) < 0.01f && fabsf(y[3] - 6) < 0.01f);
        lossy_free(&x);
}

static void test_sizes(void **state)
{
        static const uint32_t tokens[] = {1, 2, 15, 16, 17, 33, 65, 130, 0},
                              dims[] = {1, 3, 7, 8, 9, 15, 16, 17, 31, 33, 64, 80, 129, 260, 0};

        lossy_check_sizes("kivi:bits=1,params=16", tokens, dims);
        lossy_check_sizes("kivi:bits=2,params=8,group=32,vgroup=16", tokens, dims);
        lossy_check_sizes("kivi:bits=3,rounds=2,levels=2,params=16", tokens, dims);
        lossy_check_sizes("kivi:vgroup=32", tokens, dims);
        lossy_check_sizes("kivi:bits=8,group=128,vgroup=128", tokens, dims);
}

/* A group that is not whole has parameters of its own: what is far larger behind the last whole one, in a row or in a block, costs the others nothing. */
static void test_ragged(void **state)
{
        float values[20 * 20];

        for (uint32_t role = KVT_ROLE_K; role <= KVT_ROLE_V; role++) {
                struct lossy x;

                for (int i = 0; i < 400; i++)
                        values[i] = (float)((i % 20 + i / 20) % 4) * ((role == KVT_ROLE_V ? i % 20 : i / 20) < 16 ? 1.0f : 1024.0f);
                x = lossy_new("kivi:bits=2,levels=1,params=16,group=16,vgroup=16", role, KVT_DTYPE_F32, 1, 20, 20, values);
                lossy_code(&x);
                assert_int_equal(x.n, 4 + 20 * 2 * 4 + 20 * 5);
                assert_memory_equal(x.decoded, x.bytes, sizeof(values));
                lossy_free(&x);
        }
}

static float error_of(const char *spec, uint32_t role)
{
        return lossy_error_of(lossy_new(spec, role, KVT_DTYPE_F16, 2, 128, 64, NULL));
}

/* Each spec that better() names is better; keys per channel beat values per token where channels differ. */
static void test_better(void **state)
{
        for (int i = 0; i < 4; i++) {
                float e[16];

                assert_int_equal(lossy_errors(i % 2 ? "kivi:bits=1" : "kivi:bits=1,params=16", i / 2 ? KVT_ROLE_V : KVT_ROLE_K, 128, e), 5);
                for (int k = 1; k < 5; k++)
                        assert_true(e[k] < e[k - 1]);
                assert_true(e[4] < (i % 2 ? 0.05f : 0.01f));
        }
        assert_true(error_of("kivi:bits=2,levels=1", KVT_ROLE_K) < 0.7f * error_of("kivi:bits=2,levels=1", KVT_ROLE_V));
        assert_true(error_of("kivi:bits=2,rounds=3", KVT_ROLE_K) < error_of("kivi:bits=2", KVT_ROLE_K));
        assert_true(error_of("kivi:bits=2", KVT_ROLE_K) < 0.9f * error_of("kivi:bits=2,levels=1", KVT_ROLE_K));
        assert_true(error_of("kivi:bits=3", KVT_ROLE_K) == error_of("kivi:bits=3,levels=1", KVT_ROLE_K));
        assert_true(error_of("kivi:bits=3", KVT_ROLE_V) == error_of("kivi:bits=3,levels=2", KVT_ROLE_V));
}

/* Constant, zero, tiny and huge planes. */
static void test_extremes(void **state)
{
        static const float scales[] = {0, 1e-34f, 1e-7f, 1, 1e30f};

        for (size_t i = 0; i < sizeof(scales) / sizeof(*scales); i++)
                for (int constant = 0; constant < 2; constant++)
                        for (uint32_t role = KVT_ROLE_K; role <= KVT_ROLE_V; role++) {
                                float values[64 * 16];
                                struct lossy x;

                                for (size_t j = 0; j < 64 * 16; j++)
                                        values[j] = constant ? scales[i] : scales[i] * lossy_random();
                                x = lossy_new("kivi:bits=8,params=16", role, KVT_DTYPE_F32, 1, 64, 16, values);
                                lossy_check(&x, NULL);
                                assert_true(lossy_error(&x) < 0.01f);
                                lossy_free(&x);
                        }
}

static void test_hostile(void **state)
{
        static const char *const specs[] = {"kivi:bits=1,params=8", "kivi:bits=3,params=16"};

        for (int s = 0; s < 2; s++)
                for (uint32_t role = KVT_ROLE_K; role <= KVT_ROLE_V; role++) {
                        struct lossy x = lossy_new(specs[s], role, KVT_DTYPE_F16, 2, 9, 10, NULL);

                        lossy_check_hostile(&x, 64, 0);
                        /* an infinite parameter; a decoded value is never one */
                        lossy_encode(&x, NULL);
                        x.payload[5] = 0x7c;
                        assert_int_equal(lossy_decode(&x), KVT_E_CORRUPT);
                        lossy_free(&x);
                }
        struct lossy x = lossy_new("kivi:bits=8,params=16", KVT_ROLE_K, KVT_DTYPE_F32, 1, 16, 16, NULL);
        float y[256];

        lossy_encode(&x, NULL);
        memset(x.payload + 4, 0x7b, x.n - 4);
        x.payload[3] = (uint8_t)-100;
        assert_int_equal(lossy_decode(&x), 0);
        memcpy(y, x.decoded, sizeof(y));
        for (int i = 0; i < 256; i++)
                assert_true(isfinite(y[i]));
        x.payload[3] = (uint8_t)-101;
        assert_int_equal(lossy_decode(&x), KVT_E_CORRUPT);
        lossy_free(&x);
}

static void test_describe(void **state)
{
        struct lossy x = lossy_new("kivi:bits=2,params=8,vgroup=32", KVT_ROLE_V, KVT_DTYPE_F16, 2, 9, 64, NULL);

        lossy_check_described(&x, "bits=2,vgroup=32,params=8");
        assert_int_equal(x.n, 4 + 2 * (6 + 9 * (2 * 2 + 16)));
        lossy_free(&x);
}

int main(void)
{
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_by_hand), cmocka_unit_test(test_levels),   cmocka_unit_test(test_sizes),
                cmocka_unit_test(test_ragged),  cmocka_unit_test(test_better),   cmocka_unit_test(test_extremes),
                cmocka_unit_test(test_hostile), cmocka_unit_test(test_describe),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
