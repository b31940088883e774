/* Codec 8: a quantisation to one or two bits, and levels of a bit that each halve what is left over. Levels are stored one after another, so a payload's prefix
 * up to a level's end is a payload, too: a copy shrinks by truncation, and no byte of what stays changes. The idea is BitStack's (arXiv 2410.23918), whose
 * levels are signs and magnitudes; here the magnitudes follow from the first level's steps and cost nothing.
 *
 * A payload: levels that were encoded u8; zeros u8 x 3; relative L2 and largest error with 1, 2, ... 8 levels, f32 each, 0 for those that were never encoded;
 * the first level, a section as quant.h describes it; the deeper levels that are left. */
#include <float.h>
#include <stdio.h>
#include <string.h>

#include "libclient/codec/codec.h"
#include "libclient/codec/kernels.h"
#include "libclient/codec/plane.h"
#include "libclient/codec/quant.h"

enum { LEVELS, FIRST, GROUP, ROUNDS = GROUP + 3 };
enum { LEVELS_MAX = 8, PREFIX_BYTES = 4, ERRORS_BYTES = LEVELS_MAX * 2 * 4, HEADER_BYTES = PREFIX_BYTES + ERRORS_BYTES, TILE = 4096 };

static struct quant lay_out(const struct codec_spec *s, const struct shape *p)
{
        return quant_lay_out(p, p->tokens, false, s->params[FIRST], s->params + GROUP);
}

static size_t stack_bound(const struct codec_spec *s, const struct shape *p)
{
        struct quant q = lay_out(s, p);

        return HEADER_BYTES + q.bytes + (s->params[LEVELS] - 1u) * quant_level_bytes(&q);
}

/* Rows decoded at once. */
static uint32_t rows_at_once(const struct shape *p)
{
        uint32_t n = p->dim < TILE ? TILE / p->dim : 1;

        return n < p->tokens ? n : p->tokens;
}

/* decode: the sum, a level, the quantiser's own. encode: what is left, the sum, a head's level, decoded bytes, the quantiser's own. */
static size_t stack_scratch(const struct codec_spec *s, const struct shape *p)
{
        struct quant q = lay_out(s, p);
        size_t decode = 2 * (size_t)rows_at_once(p) * p->dim * sizeof(float) + quant_decode_scratch(p->dim);
        size_t a = quant_encode_scratch(&q), b = quant_decode_scratch(p->dim);
        size_t encode = (2 * p->n_values + (size_t)p->tokens * p->dim) * sizeof(float) + ((p->n_bytes + 3) & ~(size_t)3) + (a > b ? a : b);

        return encode > decode ? encode : decode;
}

static void put_errors(uint8_t *payload, unsigned level, const float errors[2])
{
        memcpy(payload + PREFIX_BYTES + level * 2 * sizeof(float), errors, 2 * sizeof(float));
}

static size_t stack_encode(const struct codec_spec *s, const struct shape *p, const struct codec_input *in, uint8_t *restrict dst,
                           void *scratch)
{
        size_t head_values = (size_t)p->tokens * p->dim, at = HEADER_BYTES;
        float *left = scratch, *sum = left + p->n_values, *more = sum + p->n_values;
        uint8_t *bytes = (uint8_t *)(more + head_values);
        void *own = bytes + ((p->n_bytes + 3) & ~(size_t)3);
        struct quant q = lay_out(s, p);

        memset(dst, 0, HEADER_BYTES);
        dst[0] = (uint8_t)s->params[LEVELS];
        if (!quant_encode(&q, in->values, s->params[FIRST] > 1, s->params[ROUNDS], dst + at, own))
                return 0;
        at += q.bytes;
        for (unsigned level = 0; level < s->params[LEVELS]; level++) {
                float errors[2];

                if (level && quant_encode_level(&q, level, left, dst + at, own))
                        return 0;
                for (uint32_t h = 0; h < p->heads; h++) {
                        float *to = sum + h * head_values;

                        if (level ? quant_decode_level(&q, level, dst + at, h, 0, p->tokens, more, own)
                                  : quant_decode(&q, h, 0, p->tokens, KVT_DTYPE_F32, to, own))
                                return 0;
                        if (level)
                                kernels()->quant_add(to, more, 1, head_values);
                }
                at += level ? quant_level_bytes(&q) : 0;
                memcpy(left, in->values, p->n_values * sizeof(float));
                kernels()->quant_add(left, sum, -1, p->n_values);
                kernels()->narrow(bytes, sum, p->n_values, p->dtype);
                plane_measure(p, in->bytes, bytes, &errors[0], &errors[1]);
                put_errors(dst, level, errors);
        }
        return at;
}

struct levels {
        struct quant q;
        const uint8_t *deeper;
        unsigned n; /* with the first */
};

static bool open_levels(struct levels *ret, const struct shape *p, const uint8_t *src, size_t n_src)
{
        size_t first, more, bytes;

        if (n_src < HEADER_BYTES || src[0] < 1 || src[0] > LEVELS_MAX || src[1] || src[2] || src[3])
                return false;
        first = quant_open(&ret->q, p->heads, p->tokens, p->dim, src + HEADER_BYTES, n_src - HEADER_BYTES);
        if (!first)
                return false;
        more = n_src - HEADER_BYTES - first;
        bytes = quant_level_bytes(&ret->q);
        if (more % bytes || more / bytes >= src[0])
                return false;
        ret->deeper = src + HEADER_BYTES + first;
        ret->n = 1 + (unsigned)(more / bytes);
        return true;
}

static int decode_run(const struct levels *x, const struct shape *p, uint32_t head, uint32_t first, uint32_t n, void *dst, void *scratch)
{
        size_t room = (size_t)rows_at_once(p) * p->dim, n_values = (size_t)n * p->dim;
        float *sum = scratch, *more = sum + room;
        void *own = more + room;
        int r = quant_decode(&x->q, head, first, n, KVT_DTYPE_F32, sum, own);

        for (unsigned level = 1; level < x->n && !r; level++) {
                r = quant_decode_level(&x->q, level, x->deeper + (level - 1) * quant_level_bytes(&x->q), head, first, n, more, own);
                if (!r)
                        kernels()->quant_add(sum, more, 1, n_values);
        }
        if (!r)
                kernels()->narrow(dst, sum, n_values, p->dtype);
        return r;
}

static int stack_decode(const struct shape *p, const uint8_t *restrict src, size_t n_src, const void *base, void *restrict dst,
                        void *scratch)
{
        size_t row = (size_t)p->dim * p->elem_bytes;
        struct levels x;
        int r = open_levels(&x, p, src, n_src) ? 0 : KVT_E_CORRUPT;

        for (uint32_t h = 0; h < p->heads; h++)
                for (uint32_t t = 0, n; t < p->tokens && !r; t += n) {
                        n = p->tokens - t < rows_at_once(p) ? p->tokens - t : rows_at_once(p);
                        r = decode_run(&x, p, h, t, n, (uint8_t *)dst + ((size_t)h * p->tokens + t) * row, scratch);
                }
        return r;
}

static int stack_decode_rows(const struct shape *p, const uint8_t *restrict src, size_t n_src, uint32_t head, const uint32_t *tokens,
                             size_t n, void *restrict dst, void *scratch)
{
        size_t row = (size_t)p->dim * p->elem_bytes;
        struct levels x;
        int r = open_levels(&x, p, src, n_src) ? 0 : KVT_E_CORRUPT;

        for (size_t i = 0; i < n && !r; i++)
                r = decode_run(&x, p, head, tokens[i], 1, (uint8_t *)dst + i * row, scratch);
        return r;
}

static bool stack_better(const struct codec_spec *s, struct codec_spec *ret)
{
        *ret = *s;
        if (s->params[LEVELS] >= LEVELS_MAX)
                return false;
        ret->params[LEVELS]++;
        return true;
}

/* `to` names levels; what the levels are made of stays. */
static size_t stack_shrink(const struct codec_spec *to, const struct shape *p, uint8_t *payload, size_t n, float *ret_rel_l2,
                           float *ret_max_abs)
{
        unsigned level = to->params[LEVELS] - 1u;
        float errors[2];
        struct levels x;

        if (!open_levels(&x, p, payload, n) || level + 1 >= x.n)
                return 0;
        memcpy(errors, payload + PREFIX_BYTES + level * sizeof(errors), sizeof(errors));
        if (!(errors[0] >= 0 && errors[0] <= FLT_MAX) || !(errors[1] >= 0 && errors[1] <= FLT_MAX)) /* a NaN is neither */
                return 0;
        *ret_rel_l2 = errors[0];
        *ret_max_abs = errors[1];
        return n - (x.n - 1 - level) * quant_level_bytes(&x.q);
}

static int stack_describe(const struct shape *p, const uint8_t *src, size_t n_src, char *ret, size_t n_ret)
{
        char groups[32];
        struct levels x;

        if (!open_levels(&x, p, src, n_src))
                return snprintf(ret, n_ret, "?");
        quant_describe(&x.q, groups, sizeof(groups));
        return snprintf(ret, n_ret, "levels=%u,first=%u,%s", x.n, x.q.bits, groups);
}

const struct codec codec_stack = {
        .id = CODEC_STACK,
        .name = "stack",
        .summary = "levels of residuals: copies shrink by truncation",
        .flags = CODEC_ROW_ACCESS | CODEC_TRUNCATES,
        .params = {[LEVELS] = {"levels", 3, 1, LEVELS_MAX, .help = "levels; each after the first is a bit"},
                   [FIRST] = {"first", 2, .allowed = {1, 2}, .help = "bits of the first level"},
                   QUANT_PARAMS(GROUP),
                   [ROUNDS] = {"rounds", 0, 0, 8,
                               .help = "rounds of least squares when choosing parameters: better with few levels, worse with many"}},
        .bound = stack_bound,
        .scratch = stack_scratch,
        .encode = stack_encode,
        .decode = stack_decode,
        .decode_rows = stack_decode_rows,
        .better = stack_better,
        .shrink = stack_shrink,
        .describe = stack_describe,
};
