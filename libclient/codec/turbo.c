/* Codec 5: rows rotated until their coordinates look Gaussian, then Lloyd-Max codes of 1 to 4 bits. After QuIP# (arXiv 2402.04396: the randomised Hadamard
 * transform) and TurboQuant (arXiv 2504.19874: scalar codes for the Gaussian that it leaves).
 *
 * A row (token, head) x becomes z = H((x - mean) * sign / scale), where H is the orthonormal Walsh-Hadamard transform over blocks of the largest powers of
 * two that fit, one after another (96 = 64 + 32); z becomes levels of a unit Gaussian times one scale a row, the least-squares one. Mean and scale stand once
 * for each channel of a head, if `centre` is on: K has large constant channels, V has not, and centring V only gives its small rows, the attention sinks'
 * among them, the error of large ones. The scale is the root of a channel's deviation, in steps of 2^1/4: half-way between equal noise in all channels and
 * noise in proportion.
 *
 * Signs: bit c % 64 of splitmix64's c / 64-th output from state = the plane's seed; 1: negative.
 *
 * Payload: bits u8, centre u8, 0 u16; per head: most f32, and if centred: mean step f32, means i8[dim], scales u4[dim], low nibble first; row scales u8
 * [head][token]: most * 2^(-code/16), 255: 0; codes [head][token], each row from a whole byte, lowest bits first. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "libclient/codec/codec.h"
#include "libclient/codec/kernels.h"

enum { BITS, CENTRE };
enum { CENTRE_K = 2, HEADER_BYTES = 4, ROW_ZERO = 255, TILE = 2048 };
static const float largest = 0x1p100f; /* of what a payload's floats may be: no product overflows to NaN */

/* 2^(-i/16) */
static const float roots[16] = {1.0f,         0.957603281f, 0.917004043f, 0.878126080f, 0.840896415f, 0.805245166f,
                                0.771105413f, 0.738413073f, 0.707106781f, 0.677127773f, 0.648419777f, 0.620928906f,
                                0.594603558f, 0.569394317f, 0.545253866f, 0.522136891f};

static float power(unsigned sixteenths)
{
        return roots[sixteenths % 16] / (float)(1u << sixteenths / 16);
}

/* Where things stand in a payload. */
struct layout {
        size_t head_bytes, row_bytes, scales, codes, total;
};

static struct layout lay_out(const struct shape *p, unsigned bits, bool centre)
{
        size_t dim = p->dim, rows = (size_t)p->heads * p->tokens;
        struct layout l = {.head_bytes = 4 + (centre ? 4 + dim + (dim + 1) / 2 : 0), .row_bytes = (dim * bits + 7) / 8};

        l.scales = HEADER_BYTES + p->heads * l.head_bytes;
        l.codes = l.scales + rows;
        l.total = l.codes + rows * l.row_bytes;
        return l;
}

static bool centred(const struct codec_spec *s, const struct shape *p)
{
        return s->params[CENTRE] == CENTRE_K ? p->role == KVT_ROLE_K : s->params[CENTRE];
}

static size_t turbo_bound(const struct codec_spec *s, const struct shape *p)
{
        return lay_out(p, s->params[BITS], centred(s, p)).total;
}

/* Scratch, in floats: mul, add, a second mul, a row, indices; a scale a token; or a tile of rows. */
static size_t turbo_scratch(const struct codec_spec *s, const struct shape *p)
{
        return (6 * (size_t)p->dim + p->tokens + TILE) * sizeof(float);
}

/* mul[c]: the channel's sign over the root of its block's size. */
static void draw_signs(float *mul, size_t dim, uint32_t seed)
{
        uint64_t state = seed, bits = 0;
        float root = 0;

        for (size_t c = 0, end = 0; c < dim; c++) {
                if (c % 64 == 0) {
                        state += 0x9e3779b97f4a7c15;
                        bits = (state ^ state >> 30) * 0xbf58476d1ce4e5b9;
                        bits = (bits ^ bits >> 27) * 0x94d049bb133111eb;
                        bits ^= bits >> 31;
                }
                if (c == end) {
                        size_t block = (size_t)1 << (63 - __builtin_clzll(dim - c));

                        root = 1 / sqrtf((float)block);
                        end += block;
                }
                mul[c] = bits >> c % 64 & 1 ? -root : root;
        }
}

static void put_float(uint8_t *dst, float f)
{
        memcpy(dst, &f, sizeof(f));
}

/* False: not one that encode() writes. */
static bool get_float(const uint8_t *src, float *ret)
{
        memcpy(ret, src, sizeof(*ret));
        return *ret >= 0 && *ret <= largest;
}

/* A head's means and scales, chosen and written: add and deviation get what a decoder will read. False: they overflow. */
static bool write_channels(const struct shape *p, const float *x, uint8_t *dst, float *add, float *deviation)
{
        size_t dim = p->dim;
        float step = 0, most = 0;

        memset(add, 0, dim * sizeof(*add));
        memset(deviation, 0, dim * sizeof(*deviation));
        for (size_t t = 0; t < p->tokens; t++)
                for (size_t c = 0; c < dim; c++)
                        add[c] += x[t * dim + c];
        for (size_t c = 0; c < dim; c++) {
                add[c] /= (float)p->tokens;
                step = fabsf(add[c]) > step ? fabsf(add[c]) : step;
        }
        if (!(step <= largest))
                return false;
        step /= 127;
        step = step > 0x1p-100f ? step : 0;
        put_float(dst, step);
        for (size_t c = 0; c < dim; c++) {
                float mean = step > 0 ? rintf(add[c] / step) : 0;

                dst[4 + c] = (uint8_t)(int8_t)mean;
                add[c] = mean * step;
        }
        for (size_t t = 0; t < p->tokens; t++)
                for (size_t c = 0; c < dim; c++)
                        deviation[c] += (x[t * dim + c] - add[c]) * (x[t * dim + c] - add[c]);
        for (size_t c = 0; c < dim; c++) {
                deviation[c] = sqrtf(sqrtf(deviation[c] / (float)p->tokens));
                most = deviation[c] > most ? deviation[c] : most;
        }
        if (!(most <= largest))
                return false;
        memset(dst + 4 + dim, 0, (dim + 1) / 2);
        for (size_t c = 0; c < dim; c++) {
                unsigned code = 0;

                /* to the nearest step: beyond half of one, 2^-1/8, the next */
                while (code < 15 && deviation[c] < most * power(4 * code + 2))
                        code++;
                dst[4 + dim + c / 2] |= (uint8_t)(code << c % 2 * 4);
                deviation[c] = power(4 * code);
        }
        return true;
}

static size_t turbo_encode(const struct codec_spec *s, const struct shape *p, const struct codec_input *in, uint8_t *restrict dst,
                           void *scratch)
{
        unsigned bits = s->params[BITS];
        bool centre = centred(s, p);
        struct layout l = lay_out(p, bits, centre);
        size_t dim = p->dim;
        float *mul = scratch, *add = mul + dim, *signs = add + dim, *z = signs + dim, *scales = z + dim;
        uint8_t *indices = (uint8_t *)(scales + p->tokens);

        memcpy(dst, (uint8_t[]){(uint8_t)bits, centre, 0, 0}, HEADER_BYTES);
        draw_signs(signs, dim, p->seed);
        memset(add, 0, dim * sizeof(*add));
        memcpy(mul, signs, dim * sizeof(*mul));
        for (size_t h = 0; h < p->heads; h++) {
                const float *x = in->values + h * p->tokens * dim;
                uint8_t *head = dst + HEADER_BYTES + h * l.head_bytes, *codes = dst + l.codes + h * p->tokens * l.row_bytes;
                float most = 0;

                if (centre) {
                        if (!write_channels(p, x, head + 4, add, mul))
                                return 0;
                        for (size_t c = 0; c < dim; c++)
                                mul[c] = signs[c] / mul[c];
                }
                for (size_t t = 0; t < p->tokens; t++) {
                        scales[t] = kernels()->turbo_encode_row(codes + t * l.row_bytes, x + t * dim, mul, add, dim, bits, z, indices);
                        if (!(scales[t] <= largest))
                                return 0;
                        most = scales[t] > most ? scales[t] : most;
                }
                put_float(head, most);
                for (size_t t = 0; t < p->tokens; t++) {
                        unsigned low = 0, high = ROW_ZERO;

                        /* the first code whose value is not above the scale, or the one before, if that is nearer */
                        while (low < high) {
                                unsigned middle = (low + high) / 2;

                                if (most * power(middle) > scales[t])
                                        low = middle + 1;
                                else
                                        high = middle;
                        }
                        if (low && low < ROW_ZERO && most * power(low - 1) - scales[t] < scales[t] - most * power(low))
                                low--;
                        dst[l.scales + h * p->tokens + t] = (uint8_t)(most > 0 ? low : ROW_ZERO);
                }
        }
        return l.total;
}

/* A payload, checked; a head of it. */
struct payload {
        const uint8_t *src;
        struct layout l;
        unsigned bits;
        bool centre;
};

static int open_payload(const struct shape *p, const uint8_t *src, size_t n_src, struct payload *ret)
{
        if (n_src < HEADER_BYTES || src[0] < 1 || src[0] > 4 || src[1] > 1 || src[2] || src[3])
                return KVT_E_CORRUPT;
        *ret = (struct payload){src, lay_out(p, src[0], src[1]), src[0], src[1]};
        return n_src == ret->l.total ? 0 : KVT_E_CORRUPT;
}

/* Reads what a head's rows have in common: mul holds the signs before. */
static int open_head(const struct shape *p, const struct payload *o, size_t h, float *mul, float *add, float *ret_most)
{
        const uint8_t *head = o->src + HEADER_BYTES + h * o->l.head_bytes;
        size_t dim = p->dim;
        float step;

        if (!get_float(head, ret_most))
                return KVT_E_CORRUPT;
        if (!o->centre)
                return 0;
        if (!get_float(head + 4, &step))
                return KVT_E_CORRUPT;
        for (size_t c = 0; c < dim; c++) {
                add[c] = (float)(int8_t)head[8 + c] * step;
                mul[c] *= power(4u * (head[8 + dim + c / 2] >> c % 2 * 4 & 15));
        }
        return 0;
}

static float row_scale(const struct payload *o, size_t row, float most)
{
        unsigned code = o->src[o->l.scales + row];

        return code == ROW_ZERO ? 0 : most * power(code);
}

/* Decodes rows of head h, tokens[0..n) or, if that is NULL, all of 0..n. */
static int decode_head(const struct shape *p, const struct payload *o, size_t h, const uint32_t *tokens, size_t n, uint8_t *dst,
                       float *scratch)
{
        const struct kernels *k = kernels();
        size_t dim = p->dim, n_tile = dim < TILE ? TILE / dim : 1, row_bytes = dim * p->elem_bytes;
        float *signs = scratch, *mul = signs + dim, *add = mul + dim, *tile = add + dim, most;

        memcpy(mul, signs, dim * sizeof(*mul));
        memset(add, 0, dim * sizeof(*add));
        if (open_head(p, o, h, mul, add, &most))
                return KVT_E_CORRUPT;
        for (size_t i = 0; i < n; i += n_tile) {
                size_t m = n - i < n_tile ? n - i : n_tile;

                for (size_t j = 0; j < m; j++) {
                        size_t row = h * p->tokens + (tokens ? tokens[i + j] : i + j);

                        k->turbo_decode_row(tile + j * dim, o->src + o->l.codes + row * o->l.row_bytes, dim, o->bits,
                                            row_scale(o, row, most), mul, add);
                }
                k->narrow(dst + i * row_bytes, tile, m * dim, p->dtype);
        }
        return 0;
}

static int turbo_decode(const struct shape *p, const uint8_t *restrict src, size_t n_src, const void *base, void *restrict dst,
                        void *scratch)
{
        struct payload o;
        int r = open_payload(p, src, n_src, &o);

        if (r)
                return r;
        draw_signs(scratch, p->dim, p->seed);
        for (size_t h = 0; h < p->heads && !r; h++)
                r = decode_head(p, &o, h, NULL, p->tokens, (uint8_t *)dst + h * p->tokens * p->dim * p->elem_bytes, scratch);
        return r;
}

static int turbo_decode_rows(const struct shape *p, const uint8_t *restrict src, size_t n_src, uint32_t head, const uint32_t *tokens,
                             size_t n, void *restrict dst, void *scratch)
{
        struct payload o;
        int r = open_payload(p, src, n_src, &o);

        if (r)
                return r;
        draw_signs(scratch, p->dim, p->seed);
        return decode_head(p, &o, head, tokens, n, dst, scratch);
}

static bool turbo_better(const struct codec_spec *s, struct codec_spec *ret)
{
        if (s->params[BITS] >= 4)
                return false;
        *ret = *s;
        ret->params[BITS]++;
        return true;
}

static int turbo_describe(const struct shape *p, const uint8_t *src, size_t n_src, char *ret, size_t n_ret)
{
        struct payload o;

        if (open_payload(p, src, n_src, &o))
                return snprintf(ret, n_ret, "?");
        return snprintf(ret, n_ret, "bits=%u,centre=%u", src[0], src[1]);
}

const struct codec codec_turbo = {
        .id = CODEC_TURBO,
        .name = "turbo",
        .summary = "rows rotated at random, Lloyd-Max codes",
        .flags = CODEC_ROW_ACCESS,
        .params =
                {
                        [BITS] = {.name = "bits", .value = 4, .min = 1, .max = 4, .help = "a coordinate"},
                        [CENTRE] = {.name = "centre",
                                    .value = CENTRE_K,
                                    .max = 2,
                                    .help = "channels centred and scaled: 0 no, 1 yes, 2 in K only"},
                },
        .bound = turbo_bound,
        .scratch = turbo_scratch,
        .encode = turbo_encode,
        .decode = turbo_decode,
        .decode_rows = turbo_decode_rows,
        .better = turbo_better,
        .describe = turbo_describe,
};
