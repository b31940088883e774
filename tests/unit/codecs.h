/* What the tests of codecs share: buffers that are watched, planes of every kind, specs worth trying, and numbers read the slow way, apart from kernels.
 *
 * Everything is drawn from one generator with a fixed start: each run is the same. */
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

#include "libclient/codec/kernels.h"
#include "libclient/codec/plane.h"
#include "tests/unit/slow_number.h"

#ifdef __has_feature
#if __has_feature(address_sanitizer)
#define WATCHED 1
#endif
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(WATCHED)
enum { GUARD = 0, SLOW = 1 }; /* the sanitizer watches the ends, to the byte */
#else
enum { GUARD = 64, SLOW = 0 };
#endif

static uint64_t random_state = 88172645463325252u;

static inline uint64_t random_next(void)
{
        random_state ^= random_state << 13;
        random_state ^= random_state >> 7;
        random_state ^= random_state << 17;
        return random_state * 2685821657736338717u;
}
static inline uint32_t random_below(uint32_t n)
{
        return (uint32_t)((random_next() >> 32) * n >> 32);
}
static inline double random_gauss(void)
{
        double sum = -6;

        for (int i = 0; i < 12; i++)
                sum += (double)(random_next() >> 40) * 0x1p-24;
        return sum;
}

/* n bytes, `odd` bytes after an address that 64 divides; full of garbage. */
struct room {
        uint8_t *p;
        size_t n, odd;
};
static inline struct room room_new(size_t n, size_t odd)
{
        struct room r = {.n = n, .odd = odd + GUARD};
        void *all = NULL;

        assert_int_equal(posix_memalign(&all, 64, n + r.odd + GUARD + !(n + r.odd)), 0);
        memset(all, 0xa5, n + r.odd + GUARD);
        r.p = (uint8_t *)all + r.odd;
        memset(r.p, random_below(256), n);
        return r;
}
static inline void room_check(const struct room *r)
{
        const size_t guard = GUARD;

        for (size_t i = 1; i <= r->odd; i++)
                assert_int_equal(*(r->p - i), 0xa5);
        for (size_t i = 0; i < guard; i++)
                assert_int_equal(r->p[r->n + i], 0xa5);
}
static inline void room_free(struct room *r)
{
        room_check(r);
        free(r->p - r->odd);
}
static inline struct room room_of(const void *bytes, size_t n, size_t odd)
{
        struct room r = room_new(n, odd);

        if (n)
                memcpy(r.p, bytes, n);
        return r;
}

/* planes */

enum content {
        REAL, /* channels with their own mean and width, some much larger; one token that is */
        GAUSS,
        OUTLIER, /* one value of 1e4 among small ones */
        ZERO,
        CONSTANT,
        LARGEST, /* finite values from the top of the dtype */
        ENDS, /* the dtype's largest value, or its negative, in whole channels: sums overflow */
        SMALLEST, /* subnormals */
        ALIKE, /* tokens that are equal, rows apart */
        N_FINITE,
        SPECIALS = N_FINITE, /* NaN, infinities here and there */
        BITS, /* any bits at all */
        N_CONTENTS,
};

static inline void put_number(const struct shape *p, uint8_t *dst, size_t i, double x)
{
        float f = (float)x;

        if (p->dtype == KVT_DTYPE_OPAQUE)
                dst[i] = (uint8_t)(int)(fabs(x) < 255 ? x : 255);
        else
                kernels_base.narrow(dst + i * p->elem_bytes, &f, 1, p->dtype);
}

static inline void fill(const struct shape *p, enum content c, uint8_t *dst)
{
        static const double most[] = {0x1.fffffep127, 65504, 0x1.fep127, 448, 127, 255};
        double constant = random_gauss();
        size_t row = p->dim;

        for (size_t i = 0; i < p->n_values; i++) {
                size_t channel = i % row, token = i / row % p->tokens;
                double wide = p->dtype == KVT_DTYPE_INT8 ? 20 : 1;

                switch (c) {
                case REAL: {
                        double mean = channel % 7 == 3 ? 9 : (double)(channel % 5) - 2, width = 0.3 + (double)(channel % 11) / 8;

                        put_number(p, dst, i, wide * (token == 0 ? 8 : 1) * (mean + width * random_gauss()));
                        break;
                }
                case GAUSS:
                        put_number(p, dst, i, wide * random_gauss());
                        break;
                case ZERO:
                        put_number(p, dst, i, 0);
                        break;
                case CONSTANT:
                        put_number(p, dst, i, wide * constant);
                        break;
                case OUTLIER:
                        put_number(p, dst, i, random_gauss());
                        break;
                case LARGEST:
                        put_number(p, dst, i, (random_below(2) ? -1 : 1) * ldexp(most[p->dtype], -(int)random_below(3)));
                        break;
                case ENDS:
                        put_number(p, dst, i, channel % 3 ? most[p->dtype] : -most[p->dtype]);
                        break;
                case SMALLEST: {
                        static const int least[] = {-149, -24, -133, -9, 0, 0};

                        put_number(p, dst, i, ldexp((double)random_below(7) - 3, least[p->dtype]));
                        break;
                }
                case ALIKE:
                        put_number(p, dst, i, wide * ((double)(channel * 37 % 23) / 5 - 2));
                        break;
                default:
                        for (size_t b = 0; b < p->elem_bytes; b++)
                                dst[i * p->elem_bytes + b] = (uint8_t)random_next();
                }
        }
        if (c == OUTLIER)
                put_number(p, dst, random_below((uint32_t)p->n_values), 1e4);
        if (c == SPECIALS && p->dtype < KVT_DTYPE_INT8) {
                static const uint32_t bad[4][4] = {{0x7f800000, 0xff800000, 0x7fc00001, 0xff800001},
                                                   {0x7c00, 0xfc00, 0x7e01, 0xfc01},
                                                   {0x7f80, 0xff80, 0x7fc1, 0xff81},
                                                   {0x7f, 0xff, 0x7f, 0xff}};

                for (size_t i = 0; i < p->n_values; i++)
                        put_number(p, dst, i, random_gauss());
                for (uint32_t n = 1 + random_below(3); n--;)
                        memcpy(dst + random_below((uint32_t)p->n_values) * p->elem_bytes, &bad[p->dtype][random_below(4)], p->elem_bytes);
        }
}

/* A plane of any kind, not of many values. */
static inline struct shape shape_draw(void)
{
        static const uint32_t dims[] = {1, 3, 8, 16, 31, 32, 33, 63, 64, 64, 65, 80, 96, 128, 128},
                              tokens[] = {1, 2, 15, 16, 17, 31, 32, 33, 64, 127, 128, 129, 160};
        uint32_t dtype = random_below(KVT_DTYPE_OPAQUE + 1), role = random_below(KVT_ROLE_INDEXER + 1);
        struct shape p;

        if (role == KVT_ROLE_STATE)
                dtype = KVT_DTYPE_OPAQUE;
        if (random_below(2))
                role = role % 2; /* mostly K and V */
        do {
                uint32_t heads = dtype == KVT_DTYPE_OPAQUE || role == KVT_ROLE_LATENT ? 1 : 1 + random_below(4);
                uint32_t t = random_below(2) ? 1 + random_below(70) : tokens[random_below(sizeof(tokens) / sizeof(*tokens))];
                uint32_t dim = random_below(4) ? dims[random_below(sizeof(dims) / sizeof(*dims))] : 1 + random_below(140);

                if (dtype == KVT_DTYPE_OPAQUE)
                        dim = role == KVT_ROLE_STATE ? 1 + random_below(9000) : dim;
                assert_true(shape_make(&p, role, dtype, heads, role == KVT_ROLE_STATE ? 1 : t, dim, random_below(1000)));
        } while (p.n_values > (SLOW ? 8000 : 24000));
        return p;
}

/* specs */

enum { SPECS_MAX = 64 };

static inline unsigned param_values(const struct codec_param *p, uint16_t ret[8])
{
        unsigned n = 0;

        while (n < 8 && p->allowed[n]) {
                ret[n] = p->allowed[n];
                n++;
        }
        if (!n) {
                ret[n++] = p->min;
                ret[n++] = p->max;
                ret[n++] = (uint16_t)(p->min + (p->max - p->min) / 2);
        }
        return n;
}

/* The default, every parameter at each of its ends or allowed values, and some with all parameters drawn. */
static inline unsigned specs_of(const struct codec *c, struct codec_spec ret[SPECS_MAX])
{
        unsigned n = 0;
        uint16_t values[8];

        ret[n++] = codec_spec_default(c);
        for (unsigned i = 0; i < CODEC_PARAMS_MAX && c->params[i].name; i++)
                for (unsigned k = param_values(&c->params[i], values); k-- && n < SPECS_MAX; n++) {
                        ret[n] = codec_spec_default(c);
                        ret[n].params[i] = values[k];
                }
        for (unsigned k = 0; k < 12 && c->params[1].name && n < SPECS_MAX; k++, n++) {
                ret[n] = codec_spec_default(c);
                for (unsigned i = 0; i < CODEC_PARAMS_MAX && c->params[i].name; i++)
                        ret[n].params[i] = values[random_below(param_values(&c->params[i], values))];
        }
        return n;
}

static inline bool supported(const struct codec_spec *s, const struct shape *p)
{
        return !s->codec->supports || s->codec->supports(s, p);
}
