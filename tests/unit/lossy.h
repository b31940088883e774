/* What the tests of lossy codecs share: a plane, one codec's payload of it, and the checks that hold for each. */
#pragma once

#include "tests/unit/codecs.h"

static const uint32_t lossy_dtypes[] = {KVT_DTYPE_F32, KVT_DTYPE_F16, KVT_DTYPE_BF16, KVT_DTYPE_FP8, KVT_DTYPE_INT8};

struct lossy {
        struct shape shape;
        struct codec_spec spec;
        float *values; /* in rooms, as all below */
        uint8_t *bytes, *payload, *decoded;
        void *scratch;
        size_t n; /* bytes of the payload */
        struct room rooms[5];
};

static inline struct codec_spec lossy_spec(const char *text)
{
        struct codec_spec s;
        const char *why;

        assert_int_equal(codec_spec_parse(text, strlen(text), &s, &why), 0);
        return s;
}

/* Bell-shaped, of deviation 1, and not far out. */
static inline float lossy_random(void)
{
        float sum = 0;

        for (int i = 0; i < 4; i++)
                sum += (float)(random_next() >> 40) * 0x1p-24f - 0.5f;
        return sum * 1.7f;
}

/* values: NULL for ones that look like keys, with offsets and channels far larger; the same for the same shape. */
static inline struct lossy lossy_new(const char *spec, uint32_t role, uint32_t dtype, uint32_t heads, uint32_t tokens, uint32_t dim,
                                     const float *values)
{
        struct lossy x = {.spec = lossy_spec(spec)};
        struct codec_spec other = codec_spec_default(x.spec.codec);
        size_t (*scratch)(const struct codec_spec *, const struct shape *) = x.spec.codec->scratch;
        size_t n, n_other;

        assert_true(shape_make(&x.shape, role, dtype, heads, tokens, dim, 7));
        n = scratch ? scratch(&x.spec, &x.shape) : 0;
        n_other = scratch ? scratch(&other, &x.shape) : 0;
        random_state = 88172645463325252u + tokens * 131 + dim;
        x.rooms[0] = room_new(x.shape.n_values * sizeof(float), 0);
        x.rooms[1] = room_new(x.shape.n_bytes, 1);
        x.rooms[2] = room_new(x.spec.codec->bound(&x.spec, &x.shape), 1);
        x.rooms[3] = room_new(x.shape.n_bytes, 1);
        x.rooms[4] = room_new(n > n_other ? n : n_other, 0);
        x.values = (float *)(void *)x.rooms[0].p;
        x.bytes = x.rooms[1].p;
        x.payload = x.rooms[2].p;
        x.decoded = x.rooms[3].p;
        x.scratch = x.rooms[4].p;
        for (size_t i = 0; i < x.shape.n_values; i++) {
                size_t c = i % dim;

                x.values[i] = values ? values[i] : lossy_random() * (c % 7 == 3 ? 6.0f : 1.0f) + (c % 5 == 1 ? 3.0f : 0.0f);
        }
        kernels()->narrow(x.bytes, x.values, x.shape.n_values, dtype);
        kernels()->widen(x.values, x.bytes, x.shape.n_values, dtype);
        return x;
}

static inline void lossy_free(struct lossy *x)
{
        for (int i = 0; i < 5; i++)
                room_free(&x->rooms[i]);
}

static inline void lossy_encode(struct lossy *x, const float *scores)
{
        struct codec_input in = {.bytes = x->bytes, .values = x->values, .scores = scores};

        x->n = x->spec.codec->encode(&x->spec, &x->shape, &in, x->payload, x->scratch);
        assert_in_range(x->n, 1, x->spec.codec->bound(&x->spec, &x->shape));
}

/* From bytes of exactly that length, so that sanitizers see a read beyond. */
static inline int lossy_decode_of(struct lossy *x, const uint8_t *payload, size_t n)
{
        struct room exact = room_of(payload, n, 1);
        int r = x->spec.codec->decode(&x->shape, exact.p, n, NULL, x->decoded, x->scratch);

        room_free(&exact);
        assert_true(r == 0 || r == KVT_E_CORRUPT);
        return r;
}

static inline int lossy_decode(struct lossy *x)
{
        return lossy_decode_of(x, x->payload, x->n);
}

/* There and back. */
static inline void lossy_code(struct lossy *x)
{
        lossy_encode(x, NULL);
        assert_int_equal(lossy_decode(x), 0);
}

static inline float lossy_error(struct lossy *x)
{
        float rel, max;

        plane_measure(&x->shape, x->bytes, x->decoded, &rel, &max);
        return rel;
}

static inline float lossy_error_of(struct lossy x)
{
        float e;

        lossy_code(&x);
        e = lossy_error(&x);
        lossy_free(&x);
        return e;
}

/* Errors of a spec and of each that is better; returns how many those are. */
static inline unsigned lossy_errors(const char *spec, uint32_t role, uint32_t tokens, float ret[16])
{
        struct codec_spec s = lossy_spec(spec);
        char text[CODEC_SPEC_MAX];
        unsigned n = 0;

        do {
                assert_true(n < 16);
                ret[n++] = lossy_error_of(lossy_new(codec_spec_format(&s, text), role, KVT_DTYPE_F16, 2, tokens, 64, NULL));
        } while (s.codec->better(&s, &s));
        return n;
}

/* Every token's row, alone and with another, is what the whole says. */
static inline void lossy_check_rows(struct lossy *x)
{
        size_t row = (size_t)x->shape.dim * x->shape.elem_bytes;
        struct room rows = room_new(2 * row, 1);

        for (uint32_t h = 0; h < x->shape.heads; h++)
                for (uint32_t t = 0; t < x->shape.tokens; t++) {
                        uint32_t two[2] = {t, x->shape.tokens - 1 - t};

                        assert_int_equal(x->spec.codec->decode_rows(&x->shape, x->payload, x->n, h, two, 2, rows.p, x->scratch), 0);
                        for (int i = 0; i < 2; i++)
                                assert_memory_equal(rows.p + i * row, x->decoded + ((size_t)h * x->shape.tokens + two[i]) * row, row);
                }
        room_free(&rows);
}

/* Encodes and decodes with every variant: the same bytes, and rows that are those of the whole. Leaves them in x. */
static inline void lossy_check(struct lossy *x, const float *scores)
{
        struct room payload = {0}, decoded = {0};

        for (unsigned v = 0; kernels_nth(v); v++) {
                kernels_choose(kernels_nth(v));
                lossy_encode(x, scores);
                assert_int_equal(lossy_decode(x), 0);
                if (!v) {
                        payload = room_of(x->payload, x->n, 0);
                        decoded = room_of(x->decoded, x->shape.n_bytes, 0);
                }
                assert_int_equal(x->n, payload.n);
                assert_memory_equal(x->payload, payload.p, x->n);
                assert_memory_equal(x->decoded, decoded.p, decoded.n);
                if (x->spec.codec->flags & CODEC_ROW_ACCESS)
                        lossy_check_rows(x);
        }
        kernels_choose(kernels_nth(0));
        room_free(&payload);
        room_free(&decoded);
}

/* lossy_check() of planes of those tokens and dims, up to a 0, that are not too large, and of all dtypes and roles between them. */
static inline void lossy_check_sizes(const char *spec, const uint32_t *tokens, const uint32_t *dims)
{
        for (unsigned t = 0; tokens[t]; t++)
                for (unsigned d = 0; dims[d]; d++)
                        for (uint32_t role = KVT_ROLE_K; role <= KVT_ROLE_V && tokens[t] * dims[d] < 40000; role++) {
                                struct lossy x =
                                        lossy_new(spec, role, lossy_dtypes[(t + d) % 5], 1 + (t + d) % 3, tokens[t], dims[d], NULL);

                                lossy_check(&x, NULL);
                                lossy_free(&x);
                        }
}

/* Every prefix, but n_payloads of them, is refused, and a longer payload; every value of each of the first n_head bytes and some of the others are decoded
 * or refused, without harm. Leaves the payload as it was. */
static inline void lossy_check_hostile(struct lossy *x, size_t n_head, unsigned n_payloads)
{
        const struct codec *c = x->spec.codec;
        struct room longer, row = room_new((size_t)x->shape.dim * x->shape.elem_bytes, 1);
        unsigned n_good = 0, n_good_rows = 0;
        uint32_t t = 0;

        lossy_encode(x, NULL);
        for (size_t n = 0; n < x->n; n++) {
                struct room cut = room_of(x->payload, n, 1);

                n_good += !lossy_decode_of(x, x->payload, n);
                n_good_rows += c->flags & CODEC_ROW_ACCESS && !c->decode_rows(&x->shape, cut.p, n, 0, &t, 1, row.p, x->scratch);
                room_free(&cut);
        }
        assert_int_equal(n_good, n_payloads);
        assert_int_equal(n_good_rows, n_payloads);
        longer = room_new(x->n + 1, 0);
        memcpy(longer.p, x->payload, x->n);
        longer.p[x->n] = 0;
        assert_int_equal(lossy_decode_of(x, longer.p, longer.n), KVT_E_CORRUPT);
        room_free(&longer);
        room_free(&row);
        for (size_t i = 0; i < x->n; i += i < 256 ? 1 : 17) {
                uint8_t was = x->payload[i], some[] = {0, 0xff, 0x80, (uint8_t)(was + 1)};

                for (unsigned v = 0; v < (i < n_head ? 256 : sizeof(some)); v++) {
                        x->payload[i] = i < n_head ? (uint8_t)v : some[v];
                        for (unsigned k = 0; kernels_nth(k); k++) {
                                kernels_choose(kernels_nth(k));
                                lossy_decode(x);
                        }
                }
                x->payload[i] = was;
        }
        kernels_choose(kernels_nth(0));
}

static inline void lossy_check_described(struct lossy *x, const char *expected)
{
        char text[CODEC_SPEC_MAX];

        lossy_encode(x, NULL);
        x->spec.codec->describe(&x->shape, x->payload, x->n, text, sizeof(text));
        assert_string_equal(text, expected);
}
