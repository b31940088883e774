/* cbf: a payload by hand, every shape around the lanes, what it reaches where channels differ, hostile payloads. */
#include "tests/unit/lossless.h"

#include "libclient/codec/cbf.h"

static float normal(void)
{
        float x = 0;

        for (int k = 0; k < 12; k++)
                x += (float)(draw() & 0xffff) / 65536 - 0.5f;
        return x;
}

enum fill { CHANNELS, ALIKE, ZERO, RANDOM, WIDE, N_FILLS };

/* CHANNELS: as in K, each channel has a mean and a scale of its own. WIDE: magnitudes that no symbol stands for. */
static void fill(const struct shape *p, enum fill how, uint8_t *ret)
{
        memset(ret, 0, p->n_bytes);
        for (size_t h = 0; h < p->heads; h++)
                for (size_t c = 0; c < p->dim; c++) {
                        float mean = how == CHANNELS && draw() % 2 ? 4 * normal() : 0;
                        float scale = how == CHANNELS ? (float)(1u << draw() % 8) / 16 : 1;

                        for (size_t t = 0; t < p->tokens; t++) {
                                uint8_t *at = ret + ((h * p->tokens + t) * p->dim + c) * p->elem_bytes;
                                float x = scale * (mean + normal());

                                if (how == WIDE && draw() % 40 == 0)
                                        x *= draw() % 2 ? 0x1p-30f : 0x1p-60f;
                                if (how == RANDOM)
                                        for (size_t k = 0; k < p->elem_bytes; k++)
                                                at[k] = (uint8_t)draw();
                                else if (how != ZERO)
                                        kernels()->narrow(at, &x, 1, p->dtype);
                        }
                }
}

static size_t encode(const struct shape *p, const void *bytes, uint8_t **ret)
{
        return lossless_encode(&codec_cbf, p, bytes, NULL, ret);
}

static int decode(const struct shape *p, const uint8_t *payload, size_t n, void *ret)
{
        return lossless_decode(&codec_cbf, p, payload, n, NULL, ret);
}

static size_t check(const struct shape *p, const uint8_t *bytes)
{
        return lossless_check(&codec_cbf, p, bytes, NULL);
}

/* What stands in cbf.c, written down for one token of two channels, bf16: 1.0 (3f80) and -3.0 (c040). Magnitudes are bits 6 to 14: fe, 101. Tops are odd:
 * ff, 101. Symbols: 1 below and positive: 2; 0 below and negative: 1. One table: level 0 both signs, level 1 both signs, all alike: 256 slots each. */
static void test_by_hand(void **state)
{
        enum { AT_BITS = CBF_HEADER_BYTES, AT_END = AT_BITS + 4, AT_CHUNK = AT_END + 4, AT_RAW = AT_CHUNK + 4 * CBF_LANES, N = AT_RAW + 6 };
        static const uint8_t want[4] = {0x80, 0x3f, 0x40, 0xc0};
        uint8_t payload[N] = {1, 0, 0, 0, 0, 0, 0, 0, 1, 1, 0x7f, 1}, got[4];
        uint32_t states[CBF_LANES], bits = 0;
        struct shape p;

        /* bits 0 to 16: a class that does not flip and has table 0 only. The table: folded; 2 levels, of weights 32 each: differences 0 and 1, coded 00, 100 */
        bits |= 1u << 17 | 2u << 18 | 1u << 27;
        /* bits 30, 31: the tops' exponents, 7f + 0 and 7f + 1 */
        bits |= 1u << 31;
        memcpy(payload + AT_BITS, &bits, 4);
        payload[AT_END] = 2 * CBF_LANES; /* states only */
        for (unsigned i = 0; i < CBF_LANES; i++)
                states[i] = CBF_STATE_LOW;
        /* 256 slots a symbol */
        states[0] = (CBF_STATE_LOW / 256 << CBF_PROB_BITS) + 512;
        states[1] = (CBF_STATE_LOW / 256 << CBF_PROB_BITS) + 256;
        memcpy(payload + AT_CHUNK, states, sizeof(states));
        assert_true(shape_make(&p, KVT_ROLE_K, KVT_DTYPE_BF16, 1, 1, 2, 0));
        assert_int_equal(decode(&p, payload, N, got), 0);
        assert_memory_equal(got, want, 4);
        payload[AT_RAW] = 0x2a; /* the first one's raw bits */
        assert_int_equal(decode(&p, payload, N, got), 0);
        assert_int_equal(got[0], 0xaa);
        payload[AT_CHUNK + 4 * 5]++; /* a lane that does not end where it has to */
        assert_int_equal(decode(&p, payload, N, got), KVT_E_CORRUPT);
}

static void test_frequencies(void **state)
{
        for (unsigned i = 0; i < 20000; i++) {
                struct cbf_table t = {.folded = draw() % 2, .n = {(uint8_t)(draw() % 65), (uint8_t)(draw() % 65)}};
                uint16_t f[CBF_SYMBOLS];
                unsigned sum = 0, any = 0;

                for (unsigned k = 0; k < 2 * CBF_LEVELS; k++)
                        t.weights[k % 2][k / 2] = draw() % 3 ? (uint8_t)(draw() % (CBF_MAX_WEIGHT + 1)) : 0;
                for (unsigned k = 0; k < CBF_SYMBOLS; k++) {
                        unsigned side = t.folded ? 0 : k % 2;

                        any |= k / 2 < t.n[side] && t.weights[side][k / 2];
                }
                assert_int_equal(cbf_frequencies(&t, f), any);
                for (unsigned k = 0; any && k < CBF_SYMBOLS; k++) {
                        unsigned side = t.folded ? 0 : k % 2;

                        sum += f[k];
                        assert_int_equal(f[k] != 0, k / 2 < t.n[side] && t.weights[side][k / 2]);
                }
                assert_int_equal(sum, any ? CBF_SLOTS : 0);
        }
}

static void test_shapes(void **state)
{
        static const uint32_t dtypes[] = {KVT_DTYPE_F32, KVT_DTYPE_F16, KVT_DTYPE_BF16}, dims[] = {1, 7, 31, 32, 33, 40, 63, 64, 96, 129};
        static const uint32_t tokens[] = {1, 2, 16, 65};
        unsigned n_coded = 0;

        for (size_t d = 0; d < 3; d++)
                for (size_t i = 0; i < sizeof(dims) / sizeof(*dims); i++)
                        for (size_t k = 0; k < 4; k++)
                                for (enum fill how = CHANNELS; how < N_FILLS; how++) {
                                        struct shape p;
                                        uint8_t *bytes;

                                        assert_true(shape_make(&p, KVT_ROLE_K, dtypes[d], 1 + (uint32_t)(i % 3), tokens[k], dims[i], 0));
                                        bytes = malloc(p.n_bytes);
                                        fill(&p, how, bytes);
                                        n_coded += check(&p, bytes) != 0;
                                        free(bytes);
                                }
        assert_in_range(n_coded, 400, 600); /* of 600: most can be coded */
}

/* several chunks, the last one shorter, one across heads; more tokens than are sampled */
static void test_chunks(void **state)
{
        static const uint32_t shapes[][3] = {{3, 256, 64}, {5, 211, 72}, {1, 9000, 8}, {2, 1, 4096}};

        for (size_t i = 0; i < sizeof(shapes) / sizeof(*shapes); i++)
                for (enum fill how = CHANNELS; how < N_FILLS; how++) {
                        struct shape p;
                        uint8_t *bytes;

                        assert_true(shape_make(&p, KVT_ROLE_V, KVT_DTYPE_BF16, shapes[i][0], shapes[i][1], shapes[i][2], 0));
                        bytes = malloc(p.n_bytes);
                        fill(&p, how, bytes);
                        check(&p, bytes);
                        free(bytes);
                }
}

static void test_supports(void **state)
{
        struct codec_spec s = codec_spec_default(&codec_cbf);
        struct shape p;

        assert_true(shape_make(&p, KVT_ROLE_K, KVT_DTYPE_INT8, 1, 64, 64, 0));
        assert_false(codec_cbf.supports(&s, &p));
        assert_true(shape_make(&p, KVT_ROLE_K, KVT_DTYPE_F16, 1, 1, CBF_MAX_CHANNELS, 0));
        assert_true(codec_cbf.supports(&s, &p));
        assert_true(shape_make(&p, KVT_ROLE_K, KVT_DTYPE_F16, 1, 1, CBF_MAX_CHANNELS + 1, 0));
        assert_false(codec_cbf.supports(&s, &p));
        assert_true(shape_make(&p, KVT_ROLE_K, KVT_DTYPE_F16, CBF_MAX_CHANNELS, 1, 1, 0));
        assert_false(codec_cbf.supports(&s, &p));
        /* the most channels of the most kinds fit the scratch (ASan) */
        assert_true(shape_make(&p, KVT_ROLE_K, KVT_DTYPE_F32, 1, 4, CBF_MAX_CHANNELS, 0));
        uint8_t *bytes = malloc(p.n_bytes);

        fill(&p, RANDOM, bytes);
        check(&p, bytes);
        fill(&p, CHANNELS, bytes);
        check(&p, bytes);
        free(bytes);
}

static void test_reaches(void **state)
{
        struct codec_spec s = codec_spec_default(&codec_zbf);
        uint8_t bytes[2 * 3 * 256 * 64], *payload = malloc(sizeof(bytes) + 4096);
        struct codec_input in = {.bytes = bytes};
        struct shape p;
        size_t n_zbf;
        uint32_t head[2];

        assert_true(shape_make(&p, KVT_ROLE_K, KVT_DTYPE_BF16, 3, 256, 64, 0));
        void *scratch = aligned_alloc(64, (codec_zbf.scratch(&s, &p) + 63) & ~(size_t)63);

        fill(&p, CHANNELS, bytes);
        n_zbf = codec_zbf.encode(&s, &p, &in, payload, scratch);
        assert_in_range(check(&p, bytes), 1, n_zbf * 92 / 100);
        fill(&p, ALIKE, bytes);
        n_zbf = codec_zbf.encode(&s, &p, &in, payload, scratch);
        assert_in_range(check(&p, bytes), 1, n_zbf);
        fill(&p, ZERO, bytes);
        assert_in_range(check(&p, bytes), 1, p.n_bytes / 2);
        free(payload);
        free(scratch);
        fill(&p, WIDE, bytes);
        assert_int_not_equal(encode(&p, bytes, &payload), 0);
        memcpy(head, payload, sizeof(head));
        assert_int_equal(head[0], 384); /* rows a chunk */
        assert_int_not_equal(head[1], 0); /* exceptions */
        free(payload);
}

static void test_hostile(void **state)
{
        struct shape p;
        uint8_t bytes[2 * 2 * 16 * 72], back[sizeof(bytes)], *payload, *bad;
        size_t n;

        assert_true(shape_make(&p, KVT_ROLE_K, KVT_DTYPE_BF16, 2, 16, 72, 0));
        fill(&p, WIDE, bytes);
        n = encode(&p, bytes, &payload);
        assert_int_not_equal(n, 0);
        for (unsigned v = 0; kernels_nth(v); v++) {
                kernels_choose(kernels_nth(v));
                lossless_check_hostile(&codec_cbf, &p, payload, n, NULL, 0, 300, 20000);
                bad = malloc(n);
                memcpy(bad, payload, n);
                for (size_t i = 0; i < CBF_HEADER_BYTES; i++) { /* header: each field but the lowest top decides on sizes or tables */
                        bad[i] = (uint8_t)(payload[i] + 0x20);
                        if (i != 10 && i > 3)
                                assert_int_equal(decode(&p, bad, n, back), KVT_E_CORRUPT);
                        else
                                decode(&p, bad, n, back);
                        bad[i] = payload[i];
                }
                memset(bad, 0, 4); /* no rows a chunk */
                assert_int_equal(decode(&p, bad, n, back), KVT_E_CORRUPT);
                free(bad);
        }
        kernels_choose(kernels_nth(0));
        free(payload);
}

int main(void)
{
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_by_hand), cmocka_unit_test(test_frequencies), cmocka_unit_test(test_shapes),
                cmocka_unit_test(test_chunks),  cmocka_unit_test(test_supports),    cmocka_unit_test(test_reaches),
                cmocka_unit_test(test_hostile),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
