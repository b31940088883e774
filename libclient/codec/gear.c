/* Codec 7: uniform codes, a product of small factors that takes up what they leave, and outliers apart. After GEAR (arXiv 2403.05527).
 *
 * The base: codes of 2, 4 or 8 bits with a least value and a step for each group of 64: of tokens in K (per channel), of channels else (per token). Of each
 * group, the values furthest from the middle of the range of the others are outliers, so many permille of it: taken out before the range is chosen.
 * What is left, tokens x (heads * dim), is approximated by a sum of `rank` outer products, by power iterations from a fixed start: one factor over all tokens,
 * one over all heads. Both in 8 bits.
 *
 * Payload: bits u8, axis u8 (1: groups of tokens), rank u8, outliers u8 in a whole group of 64; rank: scale f32 of each product; factors over tokens i8 [rank][token],
 * over channels i8 [rank][head][dim]; per group [head][group of tokens][channel], or [head][token][group of channels]: least bf16, step bf16, then its outliers: place
 * in the group u8, value bf16 each; codes [head][token], each row from a whole byte. A shorter group has its share of outliers, rounded down. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "libclient/codec/codec.h"
#include "libclient/codec/kernels.h"

enum { BITS, RANK, OUTLIERS };
enum { GROUP = 64, MAX_RANK = 8, MAX_OUTLIERS = 6, HEADER_BYTES = 4, ITERATIONS = 6, FACTOR_MAX = 127 };
static const float largest = 0x1p60f; /* of what a payload's floats may be: no product overflows to NaN */

struct layout {
        unsigned bits, rank, outliers;
        bool by_token; /* groups of tokens */
        size_t width; /* channels of all heads */
        size_t row_bytes; /* codes of a token in a head */
        size_t scales, over_tokens, over_channels, groups, codes, total;
};

static size_t share(const struct layout *l, size_t n_group)
{
        return l->outliers * n_group / GROUP;
}

static size_t record_bytes(const struct layout *l, size_t n_group)
{
        return 4 + 3 * share(l, n_group);
}

/* Bytes of the records of n values in a line that is cut into groups. */
static size_t line_bytes(const struct layout *l, size_t n)
{
        return n / GROUP * record_bytes(l, GROUP) + (n % GROUP ? record_bytes(l, n % GROUP) : 0);
}

static struct layout lay_out(const struct shape *p, unsigned bits, bool by_token, unsigned rank, unsigned outliers)
{
        struct layout l = {.bits = bits, .rank = rank, .outliers = outliers, .by_token = by_token, .width = (size_t)p->heads * p->dim};
        size_t lines = by_token ? (size_t)p->heads * p->dim : (size_t)p->heads * p->tokens;

        l.row_bytes = ((size_t)p->dim * bits + 7) / 8;
        l.scales = HEADER_BYTES;
        l.over_tokens = l.scales + 4 * rank;
        l.over_channels = l.over_tokens + (size_t)rank * p->tokens;
        l.groups = l.over_channels + rank * l.width;
        l.codes = l.groups + lines * line_bytes(&l, by_token ? p->tokens : p->dim);
        l.total = l.codes + (size_t)p->heads * p->tokens * l.row_bytes;
        return l;
}

static struct layout lay_out_spec(const struct codec_spec *s, const struct shape *p)
{
        return lay_out(p, s->params[BITS], p->role == KVT_ROLE_K, s->params[RANK], (s->params[OUTLIERS] * GROUP + 500) / 1000);
}

/* Where the record of the group that starts at token t, channel c stands; its values' number and their distance in a head. */
struct group {
        size_t at, n, stride;
};

static struct group find_group(const struct shape *p, const struct layout *l, size_t h, size_t t, size_t c)
{
        struct group g = {.stride = l->by_token ? p->dim : 1};
        size_t line = line_bytes(l, l->by_token ? p->tokens : p->dim), left = l->by_token ? p->tokens - t : p->dim - c;

        g.n = left < GROUP ? left : GROUP;
        /* groups before t are whole ones of all channels of the head */
        if (l->by_token)
                g.at = l->groups + h * p->dim * line + t / GROUP * record_bytes(l, GROUP) * p->dim + c * record_bytes(l, g.n);
        else
                g.at = l->groups + (h * p->tokens + t) * line + c / GROUP * record_bytes(l, GROUP);
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
        return lay_out_spec(s, p).total;
}

/* Scratch, in floats. Decoding: steps, leasts and values of a row, factors. Encoding: the residual, factors. */
static size_t gear_scratch(const struct codec_spec *s, const struct shape *p)
{
        size_t factors = MAX_RANK * ((size_t)p->tokens + (size_t)p->heads * p->dim);

        return (3 * (size_t)p->dim + p->n_values + factors) * sizeof(float);
}

/* Codes a group at x and writes its record; residual gets what the codes leave, 0 at outliers. codes: the head's. False: too large. */
static bool encode_group(const struct shape *p, const struct layout *l, const struct group *g, const float *x, size_t t, size_t c,
                         uint8_t *dst, uint8_t *codes, float *residual, size_t residual_stride)
{
        size_t n_out = share(l, g->n), first = 0, last = g->n - 1;
        uint8_t order[GROUP], *record = dst + g->at;
        bool out[GROUP] = {0};
        float low, step, high;

        for (size_t i = 0; i < g->n; i++) { /* by value */
                size_t j = i;

                for (; j && x[order[j - 1] * g->stride] > x[i * g->stride]; j--)
                        order[j] = order[j - 1];
                order[j] = (uint8_t)i;
        }
        for (size_t k = 0; k < n_out; k++) { /* the end whose going narrows the range most */
                float below = x[order[first + 1] * g->stride] - x[order[first] * g->stride];
                float above = x[order[last] * g->stride] - x[order[last - 1] * g->stride];
                size_t i = order[above > below ? last-- : first++];

                out[i] = true;
        }
        low = x[order[first] * g->stride];
        high = x[order[last] * g->stride];
        if (!(fabsf(x[order[0] * g->stride]) < largest / 4 && fabsf(x[order[g->n - 1] * g->stride]) < largest / 4))
                return false;
        put_half(record, low);
        low = get_half(record);
        step = (high - low) / (float)((1u << l->bits) - 1);
        put_half(record + 2, step > 0 ? step : 0);
        step = get_half(record + 2);
        record += 4;
        for (size_t i = 0; i < g->n; i++) {
                float v = x[i * g->stride], q = step > 0 ? rintf((v - low) / step) : 0;
                size_t token = l->by_token ? t + i : t, channel = l->by_token ? c : c + i;
                unsigned most = (1u << l->bits) - 1, code;

                q = q < 0 ? 0 : q > (float)most ? (float)most : q;
                code = out[i] ? 0 : (unsigned)q;
                codes[token * l->row_bytes + channel * l->bits / 8] |= (uint8_t)(code << channel * l->bits % 8);
                residual[i * residual_stride] = out[i] ? 0 : v - (q * step + low);
                if (out[i]) {
                        *record = (uint8_t)i;
                        put_half(record + 1, v);
                        record += 3;
                }
        }
        return true;
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
        struct layout l = lay_out_spec(s, p);
        float *residual = scratch, *a = residual + p->n_values, *b = a + p->tokens;

        memset(dst, 0, l.total);
        memcpy(dst, (uint8_t[]){(uint8_t)l.bits, l.by_token, (uint8_t)l.rank, (uint8_t)l.outliers}, HEADER_BYTES);
        for (size_t h = 0; h < p->heads; h++) {
                const float *x = in->values + h * p->tokens * p->dim;
                uint8_t *codes = dst + l.codes + h * p->tokens * l.row_bytes;

                for (size_t t = 0; t < p->tokens; t += l.by_token ? GROUP : 1)
                        for (size_t c = 0; c < p->dim; c += l.by_token ? 1 : GROUP) {
                                struct group g = find_group(p, &l, h, t, c);

                                if (!encode_group(p, &l, &g, x + t * p->dim + c, t, c, dst, codes, residual + t * l.width + h * p->dim + c,
                                                  l.by_token ? l.width : 1))
                                        return 0;
                        }
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

/* A group's least and step. */
static int open_group(const struct group *g, const uint8_t *src, float *low, float *step)
{
        *low = get_half(src + g->at);
        *step = get_half(src + g->at + 2);
        return fabsf(*low) <= largest && *step >= 0 && *step <= largest ? 0 : KVT_E_CORRUPT;
}

/* dst: where the group starts. */
static int put_outliers(const struct shape *p, const struct layout *l, const struct group *g, const uint8_t *src, uint8_t *dst)
{
        const uint8_t *record = src + g->at + 4;

        for (size_t i = share(l, g->n); i; i--, record += 3) {
                float v = get_half(record + 1);

                if (*record >= g->n || !(fabsf(v) <= largest))
                        return KVT_E_CORRUPT;
                kernels()->narrow(dst + *record * g->stride * p->elem_bytes, &v, 1, p->dtype);
        }
        return 0;
}

static int decode_head(const struct shape *p, const struct layout *l, size_t h, const uint8_t *src, uint8_t *dst, float *low, float *step,
                       float *row, const float *a, const float *b)
{
        const struct kernels *k = kernels();
        size_t dim = p->dim, row_bytes = dim * p->elem_bytes;
        int r = 0;

        for (size_t t = 0; t < p->tokens; t++) {
                if (!l->by_token || t % GROUP == 0)
                        for (size_t c = 0; c < dim && !r; c += l->by_token ? 1 : GROUP) {
                                struct group g = find_group(p, l, h, t, c);

                                r = open_group(&g, src, low + c, step + c);
                                for (size_t i = 1; i < g.n && !l->by_token; i++) {
                                        low[c + i] = low[c];
                                        step[c + i] = step[c];
                                }
                        }
                if (r)
                        return r;
                k->gear_dequantise(row, src + l->codes + (h * p->tokens + t) * l->row_bytes, step, low, dim, l->bits);
                k->gear_add_product(row, a + t * MAX_RANK, b + h * dim, l->rank, l->width, dim);
                k->narrow(dst + t * row_bytes, row, dim, p->dtype);
        }
        for (size_t t = 0; t < p->tokens && l->outliers; t += l->by_token ? GROUP : 1)
                for (size_t c = 0; c < dim && !r; c += l->by_token ? 1 : GROUP) {
                        struct group g = find_group(p, l, h, t, c);

                        r = put_outliers(p, l, &g, src, dst + t * row_bytes + c * p->elem_bytes);
                }
        return r;
}

static int open_payload(const struct shape *p, const uint8_t *src, size_t n_src, struct layout *ret)
{
        if (n_src < HEADER_BYTES || (src[0] != 2 && src[0] != 4 && src[0] != 8) || src[1] > 1 || src[2] > MAX_RANK || src[3] > MAX_OUTLIERS)
                return KVT_E_CORRUPT;
        *ret = lay_out(p, src[0], src[1], src[2], src[3]);
        return n_src == ret->total ? 0 : KVT_E_CORRUPT;
}

static int gear_decode(const struct shape *p, const uint8_t *restrict src, size_t n_src, const void *base, void *restrict dst,
                       void *scratch)
{
        struct layout l;
        int r = open_payload(p, src, n_src, &l);
        float *low = scratch, *step = low + p->dim, *row = step + p->dim, *a = row + p->dim, *b = a + MAX_RANK * (size_t)p->tokens;

        if (!r)
                r = read_factors(p, &l, src, a, b);
        for (size_t h = 0; h < p->heads && !r; h++)
                r = decode_head(p, &l, h, src, (uint8_t *)dst + h * p->tokens * p->dim * p->elem_bytes, low, step, row, a, b);
        return r;
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
        struct layout l;

        if (open_payload(p, src, n_src, &l))
                return snprintf(ret, n_ret, "?");
        return snprintf(ret, n_ret, "bits=%u,rank=%u,outliers=%u", src[0], src[2], (src[3] * 1000u + GROUP / 2) / GROUP);
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
                },
        .bound = gear_bound,
        .scratch = gear_scratch,
        .encode = gear_encode,
        .decode = gear_decode,
        .better = gear_better,
        .describe = gear_describe,
};
