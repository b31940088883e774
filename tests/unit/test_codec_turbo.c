/* turbo: what it loses at each width, small vectors by hand, rows, hostile payloads. */
#include "tests/unit/lossy.h"

static void test_sizes(void **state)
{
        static const uint32_t dims[] = {1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 64, 80, 96, 128, 129};

        for (unsigned bits = 1; bits <= 4; bits++)
                for (size_t i = 0; i < sizeof(dims) / sizeof(dims[0]); i++)
                        for (unsigned centre = 0; centre < 2; centre++) {
                                struct lossy c;
                                char spec[32];

                                snprintf(spec, sizeof(spec), "turbo:bits=%u,centre=%u", bits, centre);
                                c = lossy_new(spec, KVT_ROLE_K, i % 2 ? KVT_DTYPE_F16 : KVT_DTYPE_BF16, 2, i % 3 ? 33 : 1, dims[i], NULL);
                                lossy_check(&c, NULL);
                                lossy_free(&c);
                        }
}

/* Gaussian rows come out at Lloyd-Max's distortion: its square roots are .603 .343 .186 .0975. */
static void test_distortion(void **state)
{
        static const float most[] = {0, .61f, .35f, .19f, .1f};

        for (unsigned bits = 1; bits <= 4; bits++) {
                struct lossy c;
                char spec[32];

                snprintf(spec, sizeof(spec), "turbo:bits=%u,centre=0", bits);
                c = lossy_new(spec, KVT_ROLE_V, KVT_DTYPE_F32, 2, 128, 128, NULL);
                lossy_code(&c);
                assert_true(lossy_error(&c) < most[bits]);
                assert_true(lossy_error(&c) > most[bits] * .85f);
                /* header, a scale a head, a byte a row, codes */
                assert_int_equal(c.n, 4 + 2 * 4 + 2 * 128 + 2 * 128 * 16 * bits);
                lossy_free(&c);
        }
}

/* One channel: no rotation, a level of one bit times the least-squares scale is the value itself. */
static void test_by_hand(void **state)
{
        static const float values[4] = {2, -2, 2, 0};
        struct lossy c;
        float out[4];

        c = lossy_new("turbo:bits=1,centre=0", KVT_ROLE_V, KVT_DTYPE_F32, 1, 4, 1, NULL);
        memcpy(c.values, values, sizeof(values));
        lossy_encode(&c, NULL);
        assert_int_equal(c.n, 4 + 4 + 4 + 4);
        assert_int_equal(c.payload[8], 0); /* the largest scale */
        assert_int_equal(c.payload[11], 255); /* none */
        assert_int_equal(lossy_decode(&c), 0);
        memcpy(out, c.decoded, sizeof(out));
        for (size_t i = 0; i < 4; i++)
                assert_true(fabsf(out[i] - values[i]) < 1e-5f);
        lossy_free(&c);
}

/* Channels that never change cost nothing once centred: the mean of 8 bits is all there is to lose. */
static void test_constant_channels(void **state)
{
        struct lossy c;

        c = lossy_new("turbo:bits=1", KVT_ROLE_K, KVT_DTYPE_F32, 1, 64, 64, NULL);
        for (size_t i = 0; i < c.shape.n_values; i++)
                c.values[i] = (float)(i % 64) - 20;
        memcpy(c.bytes, c.values, c.shape.n_bytes);
        lossy_code(&c);
        assert_true(lossy_error(&c) < .005f);
        for (size_t i = 0; i < c.shape.n_values; i++)
                c.values[i] = 0;
        lossy_code(&c);
        for (size_t i = 0; i < c.shape.n_bytes; i += 4)
                assert_memory_equal(c.decoded + i, "\0\0\0\0", 4);
        lossy_free(&c);
}

/* Sums that overflow are said, not coded. */
static void test_huge(void **state)
{
        struct lossy c;
        struct codec_input in;

        for (unsigned centre = 0; centre < 2; centre++) {
                c = lossy_new(centre ? "turbo:centre=1" : "turbo:centre=0", KVT_ROLE_K, KVT_DTYPE_F32, 1, 3, 16, NULL);
                for (size_t i = 0; i < c.shape.n_values; i++)
                        c.values[i] = i % 2 ? 3e38f : -3e38f;
                in = (struct codec_input){.bytes = c.bytes, .values = c.values};
                assert_int_equal(c.spec.codec->encode(&c.spec, &c.shape, &in, c.payload, c.scratch), 0);
                lossy_free(&c);
        }
}

static void test_hostile(void **state)
{
        struct lossy c;
        static const uint32_t bad[] = {0x7fc00000, 0x7f800000, 0xbf800000, 0x7f000000}; /* NaN, infinite, negative, too large */

        c = lossy_new("turbo:bits=3", KVT_ROLE_K, KVT_DTYPE_F16, 2, 5, 20, NULL);
        lossy_check_hostile(&c, 64, 0);
        for (size_t field = 4; field <= 8; field += 4)
                for (size_t i = 0; i < 4; i++) {
                        uint8_t was[4];

                        memcpy(was, c.payload + field, 4);
                        memcpy(c.payload + field, &bad[i], 4);
                        assert_int_equal(lossy_decode(&c), KVT_E_CORRUPT);
                        memcpy(c.payload + field, was, 4);
                }
        for (size_t i = 0; i < 4; i++) {
                uint8_t was = c.payload[i];

                c.payload[i] = 5;
                assert_int_equal(lossy_decode(&c), KVT_E_CORRUPT);
                c.payload[i] = was;
        }
        assert_int_equal(lossy_decode(&c), 0);
        lossy_free(&c);
}

int main(void)
{
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_sizes),   cmocka_unit_test(test_distortion),
                cmocka_unit_test(test_by_hand), cmocka_unit_test(test_constant_channels),
                cmocka_unit_test(test_huge),    cmocka_unit_test(test_hostile),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
