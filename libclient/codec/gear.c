/* Codec 7: uniform codes, a product of small factors that takes up what they leave, and outliers apart. After GEAR (arXiv 2403.05527).
 *
 * Of each group of values that share parameters (see quant.h), those furthest from the middle of the range of the others are outliers, so many permille of
 * it: the quantiser sees the end of that range in their place. What its codes leave, tokens x (heads * dim), is approximated by a sum of `rank` outer
 * products, by power iterations from a fixed start: one factor over all tokens, one over all heads. Both in 8 bits.
 *
 * Payload: rank u8, outliers u8 in 64 values, 0 u16; rank: scale f32 of each product; factors over tokens i8 [rank][token], over channels i8 [rank][head][dim];
 * a section (quant.h); outliers per group of it, [head][group of tokens][channel] or [head][token][group of channels]: place in the group u8, value bf16 each. A
 * group has its share of outliers, rounded down. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "libclient/codec/codec.h"
#include "libclient/codec/kernels.h"
#include "libclient/codec/quant.h"

enum { BITS, RANK, OUTLIERS, GROUP };
enum {
        OF = 64,
        MAX_RANK = 8,
        MAX_OUTLIERS = 6,
        HEADER_BYTES = 4,
        OUTLIER_BYTES = 3,
        ITERATIONS = 6 /* of powers */,
        ROUNDS = 2 /* of least squares */,
        FACTOR_MAX = 127,
        TILE = 4096
};
static const float largest = 0x1p60f; /* of what a payload's floats may be: no product overflows to NaN */

struct layout {
        struct quant q;
        unsigned rank, outliers;
        size_t width; /* channels of all heads */
        size_t scales, over_tokens, over_channels, section, records, total;
};

static size_t share(const struct layout *l, size_t n_group)
{
        return l->outliers * n_group / OF;
}

/* Up to where the section starts. */
static struct layout lay_out_start(const struct shape *p, unsigned rank, unsigned outliers)
{
        struct layout l = {.rank = rank, .outliers = outliers, .width = (size_t)p->heads * p->dim, .scales = HEADER_BYTES};

        l.over_tokens = l.scales + 4 * rank;
        l.over_channels = l.over_tokens + (size_t)rank * p->tokens;
        l.section = l.over_channels + rank * l.width;
        return l;
}

/* The rest, of what l->q says. */
static void lay_out_end(struct layout *l)
{
        bool channel = l->q.axis == QUANT_CHANNEL;
        size_t n_line = channel ? l->q.tokens : l->q.dim, n_lines = (size_t)l->q.heads * (channel ? l->q.dim : l->q.tokens);
        size_t n_out = n_line / l->q.group * share(l, l->q.group) + share(l, n_line % l->q.group);

        l->records = l->section + l->q.bytes;
        l->total = l->records + n_lines * n_out * OUTLIER_BYTES;
}

static struct layout lay_out(const struct codec_spec *s, const struct shape *p)
{
        struct layout l = lay_out_start(p, s->params[RANK], (s->params[OUTLIERS] * OF + 500) / 1000);

        l.q = quant_lay_out(p, p->tokens, false, s->params[BITS], s->params + GROUP);
        lay_out_end(&l);
        return l;
}

/* Groups are those of the section's parameters, in their order. */
struct group {
        size_t first, n, stride; /* values of the plane */
        size_t n_out;
};

static size_t n_groups(const struct layout *l)
{
        return l->q.heads * l->q.n_params;
}

static struct group group_at(const struct layout *l, size_t i)
{
        const struct quant *q = &l->q;
        bool channel = q->axis == QUANT_CHANNEL;
        size_t h = i / q->n_params, line = channel ? q->dim : q->groups, at = i % q->n_params / line, on = i % q->n_params % line;
        size_t t = at * (channel ? q->group : 1), c = on * (channel ? 1 : q->group), left = channel ? q->tokens - t : q->dim - c;
        struct group g = {.first = (h * q->tokens + t) * q->dim + c,
                          .n = left < q->group ? left : q->group,
                          .stride = channel ? q->dim : 1};

        g.n_out = share(l, g.n);
        return g;
}

static void put_half(uint8_t *dst, float f)
{
        kernels()->narrow(dst, &f, 1, KVT_DTYPE_BF16);
}

static float get_half(const uint8_t *src)
{
        float f;

        kernels()->widen(&f, src, 1, KVT_DTYPE_BF16);
        return f;
}

static size_t gear_bound(const struct codec_spec *s, const struct shape *p)
{
        return lay_out(s, p).total;
}

/* Rows decoded at once. */
static uint32_t rows_at_once(const struct shape *p)
{
        uint32_t n = p->dim < TILE ? TILE / p->dim : 1;

        return n < p->tokens ? n : p->tokens;
}

/* Scratch, in floats. Decoding: rows, factors. Encoding: the values without outliers, the residual, a row, factors. Both: the quantiser's own. */
static size_t gear_scratch(const struct codec_spec *s, const struct shape *p)
{
        struct layout l = lay_out(s, p);
        size_t a = quant_encode_scratch(&l.q), b = quant_decode_scratch(p->dim);
        size_t encode = 2 * p->n_values + p->dim + p->tokens + l.width;
        size_t decode = (size_t)rows_at_once(p) * p->dim + MAX_RANK * ((size_t)p->tokens + l.width);

        return (encode > decode ? encode : decode) * sizeof(float) + (a > b ? a : b);
}

/* Writes the outliers of a group at x, which become the end of the others' range that they are beyond. */
static void take_out(const struct group *g, float *x, uint8_t *dst)
{
        size_t first = 0, last = g->n - 1;
        uint8_t order[QUANT_GROUP_MAX];
        bool out[QUANT_GROUP_MAX] = {0};

        for (size_t i = 0; i < g->n; i++) { /* by value */
                size_t j = i;

                for (; j && x[order[j - 1] * g->stride] > x[i * g->stride]; j--)
                        order[j] = order[j - 1];
                order[j] = (uint8_t)i;
        }
        for (size_t k = 0; k < g->n_out; k++) { /* the end whose going narrows the range most */
                float below = x[order[first + 1] * g->stride] - x[order[first] * g->stride];
                float above = x[order[last] * g->stride] - x[order[last - 1] * g->stride];

                out[order[above > below ? last-- : first++]] = true;
        }
        for (size_t i = 0; i < g->n; i++)
                if (out[i]) {
                        *dst = (uint8_t)i;
                        put_half(dst + 1, x[i * g->stride]);
                        dst += OUTLIER_BYTES;
                }
        for (size_t k = 0; k < g->n; k++)
                if (out[order[k]])
                        x[order[k] * g->stride] = x[order[k < first ? first : last] * g->stride];
}

/* To 8 bits; factor becomes what a decoder reads. Returns the scale. */
static float write_factor(int8_t *dst, float *factor, size_t n)
{
        float most = 0;

        for (size_t i = 0; i < n; i++)
                most = fabsf(factor[i]) > most ? fabsf(factor[i]) : most;
        for (size_t i = 0; i < n; i++) {
                dst[i] = (int8_t)(most > 0x1p-60f ? rintf(factor[i] / most * FACTOR_MAX) : 0);
                factor[i] = (float)dst[i];
        }
        return most / FACTOR_MAX;
}

/* The largest outer product in the residual is written and taken out of it. a: of tokens, b: of channels. */
static void factor_out(const struct shape *p, const struct layout *l, unsigned k, float *residual, uint8_t *dst, float *a, float *b)
{
        const struct kernels *kernel = kernels();
        float *start = residual, most = 0, scale;

        for (size_t t = 0; t < p->tokens; t++) {
                float norm = kernel->gear_dot(residual + t * l->width, residual + t * l->width, l->width);

                start = norm > most ? residual + t * l->width : start;
                most = norm > most ? norm : most;
        }
        memcpy(b, start, l->width * sizeof(*b));
        for (unsigned i = 0; i < ITERATIONS; i++) {
                float norm = sqrtf(kernel->gear_dot(b, b, l->width));

                for (size_t j = 0; j < l->width; j++)
                        b[j] = norm > 0x1p-60f ? b[j] / norm : 0;
                for (size_t t = 0; t < p->tokens; t++)
                        a[t] = kernel->gear_dot(residual + t * l->width, b, l->width);
                if (i + 1 == ITERATIONS)
                        break;
                memset(b, 0, l->width * sizeof(*b));
                for (size_t t = 0; t < p->tokens; t++)
                        kernel->gear_add_product(b, a + t, residual + t * l->width, 1, 0, l->width);
        }
        scale = write_factor((int8_t *)dst + l->over_tokens + (size_t)k * p->tokens, a, p->tokens);
        scale *= write_factor((int8_t *)dst + l->over_channels + k * l->width, b, l->width);
        scale = scale < largest ? scale : 0;
        memcpy(dst + l->scales + 4 * k, &scale, sizeof(scale));
        for (size_t t = 0; t < p->tokens; t++) {
                float minus = -a[t] * scale;

                kernel->gear_add_product(residual + t * l->width, &minus, b, 1, 0, l->width);
        }
}

static size_t gear_encode(const struct codec_spec *s, const struct shape *p, const struct codec_input *in, uint8_t *restrict dst,
                          void *scratch)
{
        struct layout l = lay_out(s, p);
        float *inner = scratch, *residual = inner + p->n_values, *row = residual + p->n_values, *a = row + p->dim, *b = a + p->tokens;
        void *own = b + l.width;
        uint8_t *record = dst + l.records;

        for (size_t i = 0; i < p->n_values; i++)
                if (!(fabsf(in->values[i]) < largest / 4))
                        return 0;
        memcpy(dst, (uint8_t[]){(uint8_t)l.rank, (uint8_t)l.outliers, 0, 0}, HEADER_BYTES);
        memcpy(inner, in->values, p->n_values * sizeof(*inner));
        for (size_t i = 0; i < n_groups(&l) && l.outliers; i++) {
                struct group g = group_at(&l, i);

                take_out(&g, inner + g.first, record);
                record += g.n_out * OUTLIER_BYTES;
        }
        if (!quant_encode(&l.q, inner, p->role == KVT_ROLE_V, ROUNDS, dst + l.section, own))
                return 0;
        for (size_t r = 0; r < (size_t)p->heads * p->tokens && l.rank; r++) {
                uint32_t h = (uint32_t)(r / p->tokens), t = (uint32_t)(r % p->tokens);
                const float *x = in->values + r * p->dim;

                if (quant_decode(&l.q, h, t, 1, KVT_DTYPE_F32, row, own))
                        return 0;
                for (size_t c = 0; c < p->dim; c++)
                        residual[t * l.width + h * p->dim + c] = x[c] == inner[r * p->dim + c] ? x[c] - row[c] : 0;
        }
        for (unsigned k = 0; k < l.rank; k++)
                factor_out(p, &l, k, residual, dst, a, b);
        return l.total;
}

/* Factors as floats, scaled: a [token][MAX_RANK], b [rank][head][dim]. */
static int read_factors(const struct shape *p, const struct layout *l, const uint8_t *src, float *a, float *b)
{
        for (size_t k = 0; k < l->rank; k++) {
                float scale;

                memcpy(&scale, src + l->scales + 4 * k, sizeof(scale));
                if (!(scale >= 0 && scale <= largest))
                        return KVT_E_CORRUPT;
                for (size_t t = 0; t < p->tokens; t++)
                        a[t * MAX_RANK + k] = (float)(int8_t)src[l->over_tokens + k * p->tokens + t] * scale;
                kernels()->widen(b + k * l->width, src + l->over_channels + k * l->width, l->width, KVT_DTYPE_INT8);
        }
        return 0;
}

static int put_outliers(const struct shape *p, const struct layout *l, const uint8_t *src, uint8_t *dst)
{
        src += l->records;
        for (size_t i = 0; i < n_groups(l) && l->outliers; i++) {
                struct group g = group_at(l, i);

                for (size_t k = 0; k < g.n_out; k++, src += OUTLIER_BYTES) {
                        float v = get_half(src + 1);

                        if (*src >= g.n || !(fabsf(v) <= largest))
                                return KVT_E_CORRUPT;
                        kernels()->narrow(dst + (g.first + *src * g.stride) * p->elem_bytes, &v, 1, p->dtype);
                }
        }
        return 0;
}

static bool open_payload(const struct shape *p, const uint8_t *src, size_t n_src, struct layout *ret)
{
        if (n_src < HEADER_BYTES || src[0] > MAX_RANK || src[1] > MAX_OUTLIERS || src[2] || src[3])
                return false;
        *ret = lay_out_start(p, src[0], src[1]);
        if (n_src < ret->section || !quant_open(&ret->q, p->heads, p->tokens, p->dim, src + ret->section, n_src - ret->section))
                return false;
        lay_out_end(ret);
        return n_src == ret->total;
}

static int gear_decode(const struct shape *p, const uint8_t *restrict src, size_t n_src, const void *base, void *restrict dst,
                       void *scratch)
{
        size_t most = rows_at_once(p), row_bytes = (size_t)p->dim * p->elem_bytes;
        float *rows = scratch, *a = rows + most * p->dim, *b = a + MAX_RANK * (size_t)p->tokens;
        void *own = b + MAX_RANK * (size_t)p->heads * p->dim;
        struct layout l;
        int r = open_payload(p, src, n_src, &l) ? read_factors(p, &l, src, a, b) : KVT_E_CORRUPT;

        for (uint32_t h = 0; h < p->heads; h++)
                for (uint32_t t = 0, n; t < p->tokens && !r; t += n) {
                        n = p->tokens - t < most ? p->tokens - t : (uint32_t)most;
                        r = quant_decode(&l.q, h, t, n, KVT_DTYPE_F32, rows, own);
                        for (uint32_t i = 0; i < n && !r; i++)
                                kernels()->gear_add_product(rows + (size_t)i * p->dim, a + (t + i) * MAX_RANK, b + (size_t)h * p->dim,
                                                            l.rank, l.width, p->dim);
                        if (!r)
                                kernels()->narrow((uint8_t *)dst + ((size_t)h * p->tokens + t) * row_bytes, rows, (size_t)n * p->dim,
                                                  p->dtype);
                }
        return r ? r : put_outliers(p, &l, src, dst);
}

static bool gear_better(const struct codec_spec *s, struct codec_spec *ret)
{
        if (s->params[BITS] >= 8)
                return false;
        *ret = *s;
        ret->params[BITS] *= 2;
        return true;
}

static int gear_describe(const struct shape *p, const uint8_t *src, size_t n_src, char *ret, size_t n_ret)
{
        char groups[32];
        struct layout l;

        if (!open_payload(p, src, n_src, &l))
                return snprintf(ret, n_ret, "?");
        quant_describe(&l.q, groups, sizeof(groups));
        return snprintf(ret, n_ret, "bits=%u,rank=%u,outliers=%u,%s", l.q.bits, l.rank, (l.outliers * 1000 + OF / 2) / OF, groups);
}

const struct codec codec_gear = {
        .id = CODEC_GEAR,
        .name = "gear",
        .summary = "uniform codes, a low-rank product, outliers apart",
        .params =
                {
                        [BITS] = {.name = "bits", .value = 2, .allowed = {2, 4, 8}, .help = "a value"},
                        [RANK] = {.name = "rank",
                                  .value = 2,
                                  .max = MAX_RANK,
                                  .help = "outer products over tokens and the channels of all heads"},
                        [OUTLIERS] = {.name = "outliers", .value = 16, .max = 100, .help = "permille of each group, in steps of 1/64"},
                        QUANT_PARAMS(GROUP),
                },
        .bound = gear_bound,
        .scratch = gear_scratch,
        .encode = gear_encode,
        .decode = gear_decode,
        .better = gear_better,
        .describe = gear_describe,
};
