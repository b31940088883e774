/* What tests of lossy codecs share: planes of made-up values, and the checks that hold for each. */
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

#include "include/kvtier.h"
#include "libclient/codec/codec.h"
#include "libclient/codec/kernels.h"
#include "libclient/codec/plane.h"

struct plane_case {
        struct shape shape;
        struct codec_spec spec;
        float *values; /* owned, like all below */
        uint8_t *bytes, *payload, *decoded, *scratch;
        size_t n_bound, n_payload;
};

static inline uint32_t next_random(uint64_t *x)
{
        *x ^= *x << 13;
        *x ^= *x >> 7;
        *x ^= *x << 17;
        return (uint32_t)(*x >> 20);
}

/* Values like a model's: channels of their own mean and size, bell-shaped. */
static inline void case_init(struct plane_case *c, const char *spec, uint32_t role, uint32_t dtype, uint32_t heads, uint32_t tokens,
                             uint32_t dim)
{
        const char *why;
        uint64_t x = 88172645463325252u + tokens * 977 + dim;
        struct codec_spec decoder;
        size_t a, b;

        *c = (struct plane_case){0};
        assert_true(shape_make(&c->shape, role, dtype, heads, tokens, dim, 7));
        assert_int_equal(codec_spec_parse(spec, strlen(spec), &c->spec, &why), 0);
        decoder = codec_spec_default(c->spec.codec);
        a = c->spec.codec->scratch ? c->spec.codec->scratch(&c->spec, &c->shape) : 0;
        b = c->spec.codec->scratch ? c->spec.codec->scratch(&decoder, &c->shape) : 0;
        c->n_bound = c->spec.codec->bound(&c->spec, &c->shape);
        c->values = malloc(c->shape.n_values * sizeof(float));
        c->bytes = malloc(c->shape.n_bytes);
        c->payload = malloc(c->n_bound);
        c->decoded = malloc(c->shape.n_bytes);
        c->scratch = aligned_alloc(64, ((a > b ? a : b) + 63) / 64 * 64 + 64);
        assert_true(c->values && c->bytes && c->payload && c->decoded && c->scratch);
        for (size_t i = 0; i < c->shape.n_values; i++) {
                float sum = 0;

                for (unsigned k = 0; k < 6; k++)
                        sum += (float)(next_random(&x) % 2001) / 1000 - 1;
                c->values[i] = sum * (float)(1 + i % dim % 5) + (i % dim % 3 ? 0 : (float)(i % dim % 7) - 3);
        }
        kernels()->narrow(c->bytes, c->values, c->shape.n_values, dtype);
        kernels()->widen(c->values, c->bytes, c->shape.n_values, dtype);
}

static inline void case_deinit(struct plane_case *c)
{
        free(c->values);
        free(c->bytes);
        free(c->payload);
        free(c->decoded);
        free(c->scratch);
}

static inline void case_encode(struct plane_case *c)
{
        struct codec_input in = {.bytes = c->bytes, .values = c->values};

        c->n_payload = c->spec.codec->encode(&c->spec, &c->shape, &in, c->payload, c->scratch);
        assert_in_range(c->n_payload, 1, c->n_bound);
}

/* Decodes from bytes of exactly that length, so that sanitizers see a read beyond. */
static inline int case_decode(struct plane_case *c, const uint8_t *payload, size_t n)
{
        uint8_t *exact = malloc(n ? n : 1);
        int r;

        assert_non_null(exact);
        memcpy(exact, payload, n);
        r = c->spec.codec->decode(&c->shape, exact, n, NULL, c->decoded, c->scratch);
        free(exact);
        return r;
}

static inline float case_error(struct plane_case *c)
{
        float rel, max;

        plane_measure(&c->shape, c->bytes, c->decoded, &rel, &max);
        return rel;
}

/* Every variant writes the same payload and reads the same bytes from it. Leaves them in c. */
static inline void check_variants(struct plane_case *c)
{
        const struct kernels *best = kernels_nth(0), *k;
        uint8_t *payload = NULL, *decoded = NULL;
        size_t n = 0;

        for (unsigned i = 0; (k = kernels_nth(i)); i++) {
                kernels_choose(k);
                memset(c->payload, 0xee, c->n_bound);
                case_encode(c);
                assert_int_equal(case_decode(c, c->payload, c->n_payload), 0);
                if (!i) {
                        n = c->n_payload;
                        payload = malloc(n);
                        decoded = malloc(c->shape.n_bytes);
                        assert_true(payload && decoded);
                        memcpy(payload, c->payload, n);
                        memcpy(decoded, c->decoded, c->shape.n_bytes);
                }
                assert_int_equal(c->n_payload, n);
                assert_memory_equal(c->payload, payload, n);
                assert_memory_equal(c->decoded, decoded, c->shape.n_bytes);
        }
        kernels_choose(best);
        free(payload);
        free(decoded);
}

/* Rows in any order are those of the whole. c is decoded. */
static inline void check_rows(struct plane_case *c)
{
        size_t row = (size_t)c->shape.dim * c->shape.elem_bytes;
        uint32_t tokens[] = {c->shape.tokens - 1, 0, c->shape.tokens / 2, 0};
        uint8_t *rows = malloc(4 * row);

        assert_non_null(rows);
        for (uint32_t h = 0; h < c->shape.heads; h++) {
                assert_int_equal(c->spec.codec->decode_rows(&c->shape, c->payload, c->n_payload, h, tokens, 4, rows, c->scratch), 0);
                for (size_t i = 0; i < 4; i++)
                        assert_memory_equal(rows + i * row, c->decoded + ((size_t)h * c->shape.tokens + tokens[i]) * row, row);
        }
        free(rows);
}

/* No prefix of a payload is one, nor it with a byte behind it. */
static inline void check_lengths(struct plane_case *c)
{
        uint8_t *longer = calloc(1, c->n_payload + 1);

        assert_non_null(longer);
        memcpy(longer, c->payload, c->n_payload);
        for (size_t n = 0; n < c->n_payload; n += n < 64 ? 1 : 31)
                assert_int_equal(case_decode(c, longer, n), KVT_E_CORRUPT);
        assert_int_equal(case_decode(c, longer, c->n_payload + 1), KVT_E_CORRUPT);
        free(longer);
}

/* A payload with any byte changed decodes to something or is refused; sanitizers watch. */
static inline void check_damage(struct plane_case *c)
{
        for (size_t i = 0; i < c->n_payload; i += i < 256 ? 1 : 17) {
                uint8_t was = c->payload[i];

                for (unsigned v = 0; v < 4; v++) {
                        int r;

                        c->payload[i] = (uint8_t[]){0, 0xff, 0x80, (uint8_t)(was + 1)}[v];
                        r = case_decode(c, c->payload, c->n_payload);
                        assert_true(r == 0 || r == KVT_E_CORRUPT);
                }
                c->payload[i] = was;
        }
}
