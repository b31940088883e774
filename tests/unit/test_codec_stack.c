/* stack: levels, truncation against the errors it claims, sizes around SIMD widths, rows, variants, hostile payloads. */
#include "tests/unit/lossy.h"

enum { HEADER = 68 };

/* One bit, then one bit: 0, 2, 6, 8 is 1 or 7, then a quarter of their distance away. */
static void test_by_hand(void **state)
{
        static const float values[] = {0, 2, 6, 8}, one[] = {1, 1, 7, 7}, two[] = {-0.5, 2.5, 5.5, 8.5};
        struct lossy x = lossy_new("stack:levels=2,first=1,params=16", KVT_ROLE_V, KVT_DTYPE_F32, 1, 1, 4, values);
        struct codec_spec to = lossy_spec("stack:levels=1");
        float rel, max;

        lossy_encode(&x, NULL);
        assert_int_equal(x.n, HEADER + 4 + 4 + 1 + 1);
        assert_int_equal(lossy_decode(&x), 0);
        assert_memory_equal(x.decoded, two, sizeof(two));
        x.n = x.spec.codec->shrink(&to, &x.shape, x.payload, x.n, &rel, &max);
        assert_int_equal(x.n, HEADER + 4 + 4 + 1);
        assert_float_equal(rel, sqrtf(4.0f / 104), 1e-7f);
        assert_float_equal(max, 1, 0);
        assert_int_equal(lossy_decode(&x), 0);
        assert_memory_equal(x.decoded, one, sizeof(one));
        lossy_free(&x);
}

/* From eight levels down, one at a time and in leaps: the payload that fewer levels encode to, with the error that a reader finds. */
static void test_shrink(void **state)
{
        for (int i = 0; i < 20; i++) {
                uint32_t role = i % 2 ? KVT_ROLE_V : KVT_ROLE_K, dtype = lossy_dtypes[i / 2 % 5];
                unsigned leap = i < 10 ? 1 : 3;
                struct lossy x = lossy_new("stack:levels=8", role, dtype, 2, 70, 20, NULL);
                float before = 0;

                lossy_encode(&x, NULL);
                for (unsigned n = 8 - leap; n >= 1 && n < 8; n -= leap) {
                        char text[32];
                        struct lossy y;
                        struct codec_spec to;
                        float rel, max, rel_found, max_found;

                        snprintf(text, sizeof(text), "stack:levels=%u", n);
                        y = lossy_new(text, role, dtype, 2, 70, 20, NULL);
                        to = y.spec;
                        lossy_encode(&y, NULL);
                        x.n = x.spec.codec->shrink(&to, &x.shape, x.payload, x.n, &rel, &max);
                        assert_int_equal(x.n, y.n);
                        assert_memory_equal(x.payload + 4, y.payload + 4, n * 8);
                        assert_memory_equal(x.payload + HEADER, y.payload + HEADER, y.n - HEADER);
                        assert_int_equal(lossy_decode(&x), 0);
                        plane_measure(&x.shape, x.bytes, x.decoded, &rel_found, &max_found);
                        assert_memory_equal(&rel, &rel_found, sizeof(rel));
                        assert_memory_equal(&max, &max_found, sizeof(max));
                        assert_true(dtype == KVT_DTYPE_INT8 || rel > before);
                        before = rel;
                        /* not to as many, nor to more */
                        assert_int_equal(x.spec.codec->shrink(&to, &x.shape, x.payload, x.n, &rel, &max), 0);
                        assert_int_equal(x.spec.codec->shrink(&x.spec, &x.shape, x.payload, x.n, &rel, &max), 0);
                        lossy_free(&y);
                }
                lossy_free(&x);
        }
}

/* The same through codec/plane. */
static void test_plane_shrink(void **state)
{
        struct lossy x = lossy_new("stack:levels=5", KVT_ROLE_K, KVT_DTYPE_F16, 2, 64, 64, NULL);
        struct plane_request q = {.spec = &x.spec, .max_rel_l2 = INFINITY};
        struct codec_spec to = lossy_spec("stack:levels=2");
        struct room dst = room_new(plane_bound(&x.shape, &x.spec), 1), scratch = room_new(plane_encode_scratch(&x.shape, &x.spec), 0);
        struct kvt_copy_plane c;
        float rel, max;

        plane_encode(&x.shape, &q, x.bytes, dst.p, scratch.p, &c);
        assert_int_equal(c.codec, CODEC_STACK);
        assert_false(plane_shrink(&x.shape, &to, 0.001f, dst.p, &c));
        assert_true(plane_shrink(&x.shape, &to, 1, dst.p, &c));
        assert_int_equal(plane_decode(&x.shape, &c, dst.p, NULL, x.decoded, scratch.p), 0);
        plane_measure(&x.shape, x.bytes, x.decoded, &rel, &max);
        assert_memory_equal(&rel, &c.rel_l2, sizeof(rel));
        assert_memory_equal(&max, &c.max_abs, sizeof(max));
        room_free(&dst);
        room_free(&scratch);
        lossy_free(&x);
}

static void test_sizes(void **state)
{
        static const uint32_t tokens[] = {1, 2, 15, 17, 65, 130, 0}, dims[] = {1, 7, 8, 9, 16, 17, 64, 80, 260, 5000, 0};

        lossy_check_sizes("stack", tokens, dims);
        lossy_check_sizes("stack:levels=8,first=1,params=16", tokens, dims);
        lossy_check_sizes("stack:levels=1,group=16,vgroup=16,rounds=0", tokens, dims);
}

static void test_better(void **state)
{
        float e[16];

        assert_int_equal(lossy_errors("stack:levels=1", KVT_ROLE_K, 64, e), 8);
        for (int k = 1; k < 8; k++)
                assert_true(e[k] < (k < 6 ? 0.55f : 0.8f) * e[k - 1]);
        assert_true(e[7] < 0.006f);
}

static void test_hostile(void **state)
{
        static const char *const specs[] = {"stack", "stack:levels=8,first=1,params=16"};

        for (int s = 0; s < 2; s++)
                for (uint32_t role = KVT_ROLE_K; role <= KVT_ROLE_V; role++) {
                        struct lossy x = lossy_new(specs[s], role, KVT_DTYPE_BF16, 2, 5, 10, NULL);
                        struct codec_spec to = lossy_spec("stack:levels=2");
                        float rel = 7, max, nan = NAN;

                        lossy_check_hostile(&x, HEADER + 64, s ? 7 : 2);
                        /* an error that is none is not passed on; a payload that is none is not shrunk */
                        lossy_encode(&x, NULL);
                        memcpy(x.payload + 12, &nan, sizeof(nan));
                        assert_int_equal(x.spec.codec->shrink(&to, &x.shape, x.payload, x.n, &rel, &max), 0);
                        lossy_encode(&x, NULL);
                        assert_int_equal(x.spec.codec->shrink(&to, &x.shape, x.payload, x.n - 1, &rel, &max), 0);
                        assert_float_equal(rel, 7, 0);
                        lossy_free(&x);
                }
}

static void test_describe(void **state)
{
        struct lossy x = lossy_new("stack:levels=4,vgroup=32", KVT_ROLE_V, KVT_DTYPE_F16, 2, 10, 64, NULL);

        lossy_check_described(&x, "levels=4,first=2,vgroup=32,params=8");
        lossy_free(&x);
}

int main(void)
{
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_by_hand),  cmocka_unit_test(test_shrink), cmocka_unit_test(test_plane_shrink),
                cmocka_unit_test(test_sizes),    cmocka_unit_test(test_better), cmocka_unit_test(test_hostile),
                cmocka_unit_test(test_describe),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
