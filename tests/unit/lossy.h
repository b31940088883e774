/* Helpers for tests of lossy codecs: planes whose values look like keys (channels with offsets and outliers), and a codec run over them. */
#pragma once

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "libclient/codec/codec.h"
#include "libclient/codec/kernels.h"
#include "libclient/codec/plane.h"

struct lossy {
        struct shape shape;
        struct codec_spec spec;
        float *values;
        uint8_t *bytes, *payload, *decoded;
        void *scratch;
        size_t n;
};

static inline float lossy_random(uint64_t *x)
{
        float sum = 0;

        for (int i = 0; i < 4; i++) {
                *x ^= *x << 13;
                *x ^= *x >> 7;
                *x ^= *x << 17;
                sum += (float)(*x >> 40) * 0x1p-24f - 0.5f;
        }
        return sum * 1.7f;
}

static inline struct codec_spec lossy_spec(const char *text)
{
        struct codec_spec s;
        const char *why;

        assert_int_equal(codec_spec_parse(text, strlen(text), &s, &why), 0);
        return s;
}

static inline void *lossy_room(size_t n)
{
        void *p = aligned_alloc(64, (n + 127) & ~(size_t)63);

        assert_non_null(p);
        return p;
}

/* values: NULL for made ones */
static inline struct lossy lossy_new(const char *spec, uint32_t role, uint32_t dtype, uint32_t heads, uint32_t tokens, uint32_t dim,
                                     const float *values)
{
        struct lossy x = {.spec = lossy_spec(spec)};
        struct codec_spec other = codec_spec_default(x.spec.codec);
        uint64_t seed = 88172645463325252u + tokens * 131 + dim;
        size_t n, n_other;

        assert_true(shape_make(&x.shape, role, dtype, heads, tokens, dim, 0));
        x.values = lossy_room(x.shape.n_values * sizeof(float));
        x.bytes = lossy_room(x.shape.n_bytes);
        x.decoded = lossy_room(x.shape.n_bytes);
        for (size_t i = 0; i < x.shape.n_values; i++) {
                size_t c = i % dim;

                x.values[i] = values ? values[i] : lossy_random(&seed) * (c % 7 == 3 ? 6.0f : 1.0f) + (c % 5 == 1 ? 3.0f : 0.0f);
        }
        kernels()->narrow(x.bytes, x.values, x.shape.n_values, dtype);
        kernels()->widen(x.values, x.bytes, x.shape.n_values, dtype);
        n = x.spec.codec->bound(&x.spec, &x.shape);
        x.payload = malloc(n ?: 1); /* exactly: a sanitizer sees what goes past */
        assert_non_null(x.payload);
        n = x.spec.codec->scratch ? x.spec.codec->scratch(&x.spec, &x.shape) : 0;
        n_other = x.spec.codec->scratch ? x.spec.codec->scratch(&other, &x.shape) : 0;
        x.scratch = lossy_room(n > n_other ? n : n_other);
        return x;
}

static inline void lossy_free(struct lossy *x)
{
        free(x->values);
        free(x->bytes);
        free(x->payload);
        free(x->decoded);
        free(x->scratch);
}

static inline void lossy_encode(struct lossy *x, const float *scores)
{
        struct codec_input in = {.bytes = x->bytes, .values = x->values, .scores = scores};

        x->n = x->spec.codec->encode(&x->spec, &x->shape, &in, x->payload, x->scratch);
        assert_true(x->n <= x->spec.codec->bound(&x->spec, &x->shape));
}

static inline int lossy_decode(struct lossy *x)
{
        return x->spec.codec->decode(&x->shape, x->payload, x->n, NULL, x->decoded, x->scratch);
}

static inline float lossy_error(struct lossy *x)
{
        float rel, max;

        plane_measure(&x->shape, x->bytes, x->decoded, &rel, &max);
        return rel;
}

/* Encodes and decodes with every variant: the same bytes; and every token's row, one by one and in pairs, is what decode() gave. */
static inline void lossy_check(struct lossy *x, const float *scores)
{
        const struct kernels *k;
        size_t row = (size_t)x->shape.dim * x->shape.elem_bytes, n = 0;
        uint8_t *first = NULL, *first_decoded = lossy_room(x->shape.n_bytes), *rows = malloc(2 * row);

        assert_non_null(rows);
        for (unsigned v = 0; (k = kernels_nth(v)); v++) {
                kernels_choose(k);
                lossy_encode(x, scores);
                assert_true(x->n > 0);
                assert_int_equal(lossy_decode(x), 0);
                if (!first) {
                        n = x->n;
                        first = malloc(n);
                        assert_non_null(first);
                        memcpy(first, x->payload, n);
                        memcpy(first_decoded, x->decoded, x->shape.n_bytes);
                }
                assert_int_equal(x->n, n);
                assert_memory_equal(x->payload, first, n);
                assert_memory_equal(x->decoded, first_decoded, x->shape.n_bytes);
                for (uint32_t h = 0; h < x->shape.heads; h++)
                        for (uint32_t t = 0; t < x->shape.tokens; t++) {
                                uint32_t two[2] = {t, x->shape.tokens - 1 - t};

                                assert_int_equal(x->spec.codec->decode_rows(&x->shape, x->payload, x->n, h, two, 2, rows, x->scratch), 0);
                                for (int i = 0; i < 2; i++)
                                        assert_memory_equal(rows + i * row, x->decoded + ((size_t)h * x->shape.tokens + two[i]) * row, row);
                        }
        }
        kernels_choose(kernels_nth(0));
        free(first);
        free(first_decoded);
        free(rows);
}

/* Every prefix, but n_payloads of them, is refused, and a longer payload; every value of each of the first n bytes is decoded or refused, without harm. */
static inline void lossy_check_hostile(struct lossy *x, size_t n_head, unsigned n_payloads)
{
        uint8_t *copy;
        uint32_t t = 0;
        unsigned n_good = 0, n_good_rows = 0;
        size_t row = (size_t)x->shape.dim * x->shape.elem_bytes;
        uint8_t *out = malloc(row);
        const struct codec *c = x->spec.codec;

        assert_non_null(out);
        lossy_encode(x, NULL);
        for (size_t n = 0; n < x->n; n++) {
                copy = malloc(n ?: 1);
                assert_non_null(copy);
                memcpy(copy, x->payload, n);
                n_good += !c->decode(&x->shape, copy, n, NULL, x->decoded, x->scratch);
                n_good_rows += !c->decode_rows(&x->shape, copy, n, 0, &t, 1, out, x->scratch);
                free(copy);
        }
        assert_int_equal(n_good, n_payloads);
        assert_int_equal(n_good_rows, n_payloads);
        copy = malloc(x->n + 1);
        assert_non_null(copy);
        memcpy(copy, x->payload, x->n);
        copy[x->n] = 0;
        assert_int_equal(c->decode(&x->shape, copy, x->n + 1, NULL, x->decoded, x->scratch), KVT_E_CORRUPT);
        free(copy);
        for (size_t i = 0; i < n_head && i < x->n; i++) {
                uint8_t was = x->payload[i];

                for (unsigned v = 0; v < 256; v++) {
                        x->payload[i] = (uint8_t)v;
                        for (unsigned k = 0; kernels_nth(k); k++) {
                                kernels_choose(kernels_nth(k));
                                int r = lossy_decode(x);

                                assert_true(r == 0 || r == KVT_E_CORRUPT);
                        }
                }
                x->payload[i] = was;
        }
        kernels_choose(kernels_nth(0));
        free(out);
}
