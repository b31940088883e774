/* xdelta: the payload by hand, what it reaches against a near relative, without a base, hostile payloads. */
#include "tests/unit/lossless.h"

#include "libclient/codec/plane.h"
#include "libclient/codec/xdelta.h"

static size_t encode(const struct shape *p, const void *bytes, const void *base, uint8_t **ret)
{
        size_t n = lossless_encode(&codec_xdelta, p, bytes, base, ret);

        assert_int_not_equal(n, 0);
        return n;
}

static int decode(const struct shape *p, const uint8_t *payload, size_t n, const void *base, void *ret)
{
        return lossless_decode(&codec_xdelta, p, payload, n, base, ret);
}

/* the same values, computed a little differently */
static void relatives(const struct shape *p, uint8_t *a, uint8_t *b)
{
        for (size_t i = 0; i < p->n_values; i++) {
                float x = (float)(int32_t)draw() / 0x1p30f, y = draw() % 8 ? x : x * (1 + 0x1p-10f);

                kernels()->narrow(a + i * p->elem_bytes, &x, 1, p->dtype);
                kernels()->narrow(b + i * p->elem_bytes, &y, 1, p->dtype);
        }
}

static void test_by_hand(void **state)
{
        /* the key; elements of 2 bytes, not rotated; sizes of both planes; 80 01, 00 ff */
        static const uint8_t payload[] = {1,  2, 3, 4, 5, 6, 7, 8, 9, 10, 11,   12,   13,   14,  15,
                                          16, 1, 2, 0, 0, 0, 2, 0, 0, 0,  0x80, 0x01, 0x00, 0xff};
        static const uint8_t base[] = {0x12, 0x34, 0x56, 0x78}, want[] = {0x92, 0x34, 0x57, 0x87};
        uint8_t got[4], key[XDELTA_KEY_BYTES];
        struct shape p;

        assert_true(shape_make(&p, KVT_ROLE_K, KVT_DTYPE_F16, 1, 1, 2, 0));
        assert_int_equal(decode(&p, payload, sizeof(payload), base, got), 0);
        assert_memory_equal(got, want, 4);
        assert_true(xdelta_base_key(payload, sizeof(payload), key));
        assert_memory_equal(key, lossless_key, sizeof(key));
        assert_false(xdelta_base_key(payload, XDELTA_KEY_BYTES - 1, key));
        assert_int_equal(decode(&p, payload, sizeof(payload), NULL, got), KVT_E_CORRUPT);
}

static void test_sizes(void **state)
{
        static const uint32_t dims[] = {1, 3, 31, 32, 33, 257, 65537};

        for (uint32_t dtype = KVT_DTYPE_F32; dtype <= KVT_DTYPE_OPAQUE; dtype++)
                for (size_t i = 0; i < sizeof(dims) / sizeof(*dims); i++) {
                        struct shape p;
                        uint8_t *a, *b, *payload, key[XDELTA_KEY_BYTES];
                        size_t n;

                        assert_true(shape_make(&p, KVT_ROLE_K, dtype, dtype == KVT_DTYPE_OPAQUE ? 1 : 2, 3, dims[i], 0));
                        a = malloc(p.n_bytes);
                        b = malloc(p.n_bytes);
                        if (dtype == KVT_DTYPE_OPAQUE)
                                for (size_t j = 0; j < p.n_bytes; j++)
                                        a[j] = (uint8_t)draw(), b[j] = draw() % 20 ? a[j] : (uint8_t)draw();
                        else
                                relatives(&p, a, b);
                        n = encode(&p, a, b, &payload);
                        assert_int_equal(lossless_check(&codec_xdelta, &p, a, b), n);
                        assert_true(xdelta_base_key(payload, n, key));
                        assert_memory_equal(key, lossless_key, sizeof(key));
                        free(payload);
                        free(b);
                        free(a);
                }
}

/* through codec/plane: far below what a plane alone takes; without a base, zbf takes its place */
static void test_plane(void **state)
{
        struct codec_spec s = codec_spec_default(&codec_xdelta);
        struct plane_request q = {.spec = &s};
        struct kvt_copy_plane alone, against;
        struct shape p;
        uint8_t a[2 * 16384], b[2 * 16384], back[2 * 16384], *payload;
        void *scratch;

        assert_true(shape_make(&p, KVT_ROLE_K, KVT_DTYPE_BF16, 2, 128, 64, 0));
        relatives(&p, a, b);
        payload = malloc(plane_bound(&p, &s));
        scratch = aligned_alloc(64, (plane_encode_scratch(&p, &s) + 63) & ~(size_t)63);
        plane_encode(&p, &q, a, payload, scratch, &alone);
        assert_int_equal(alone.codec, CODEC_ZBF);
        q.base = b;
        q.base_key = lossless_key;
        plane_encode(&p, &q, a, payload, scratch, &against);
        assert_int_equal(against.codec, CODEC_XDELTA);
        assert_in_range(against.bytes, 1, alone.bytes / 4);
        assert_int_equal(plane_decode(&p, &against, payload, b, back, scratch), 0);
        assert_memory_equal(back, a, sizeof(a));
        assert_int_equal(plane_decode(&p, &against, payload, NULL, back, scratch), KVT_E_CORRUPT);
        free(scratch);
        free(payload);
}

static void test_hostile(void **state)
{
        struct shape p;
        uint8_t a[2048], b[2048], *payload;
        size_t n;

        assert_true(shape_make(&p, KVT_ROLE_K, KVT_DTYPE_BF16, 1, 16, 64, 0));
        relatives(&p, a, b);
        n = encode(&p, a, b, &payload);
        lossless_check_hostile(&codec_xdelta, &p, payload, n, b, XDELTA_KEY_BYTES, XDELTA_KEY_BYTES + 9, 10000);
        free(payload);
}

int main(void)
{
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_by_hand),
                cmocka_unit_test(test_sizes),
                cmocka_unit_test(test_plane),
                cmocka_unit_test(test_hostile),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
