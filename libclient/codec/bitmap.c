/* Codec 9: each row (token, head) keeps its largest channels; a bitmap says which, the others are 0. After Mustafar (arXiv 2505.22913), whose kept values
 * stay as they are; small=1 stores them in 8 bits.
 *
 * Payload: kept u32, small u32 (0: values in the plane's dtype, 1: in 8 bits); rows [head][token]: bitmap, lowest bit first; if small: scale bf16; the kept values,
 * by channel, i8 times the scale if small. Every row keeps as many, so rows are found without an index. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "libclient/codec/codec.h"
#include "libclient/codec/kernels.h"

enum { KEEP, SMALL };
enum { HEADER_BYTES = 8 };

struct layout {
        size_t kept, map_bytes, row_bytes, total;
        bool small; /* 8 bits */
};

static struct layout lay_out(const struct shape *p, size_t kept, bool small)
{
        struct layout l = {.kept = kept, .map_bytes = ((size_t)p->dim + 7) / 8, .small = small};

        l.row_bytes = l.map_bytes + (small ? 2 + kept : kept * p->elem_bytes);
        l.total = HEADER_BYTES + (size_t)p->heads * p->tokens * l.row_bytes;
        return l;
}

static struct layout lay_out_spec(const struct codec_spec *s, const struct shape *p)
{
        return lay_out(p, ((size_t)p->dim * s->params[KEEP] + 99) / 100, s->params[SMALL]);
}

static size_t bitmap_bound(const struct codec_spec *s, const struct shape *p)
{
        return lay_out_spec(s, p).total;
}

/* Kept values as floats, then in the plane's dtype. */
static size_t bitmap_scratch(const struct codec_spec *s, const struct shape *p)
{
        return (size_t)p->dim * (sizeof(float) + p->elem_bytes);
}

/* The kept values of a row, in 8 bits with their scale. False: they overflow. */
static bool write_small(uint8_t *dst, const float *kept, size_t n)
{
        float most = 0, scale;
        uint16_t half;

        for (size_t i = 0; i < n; i++)
                most = fabsf(kept[i]) > most ? fabsf(kept[i]) : most;
        scale = most / 127;
        kernels()->narrow(&half, &scale, 1, KVT_DTYPE_BF16);
        kernels()->widen(&scale, &half, 1, KVT_DTYPE_BF16);
        memcpy(dst, &half, sizeof(half));
        for (size_t i = 0; i < n; i++) {
                float v = scale > 0 ? rintf(kept[i] / scale) : 0;

                dst[2 + i] = (uint8_t)(int8_t)(v > 127 ? 127 : v < -127 ? -127 : v);
        }
        return most < 0x1p120f;
}

static size_t bitmap_encode(const struct codec_spec *s, const struct shape *p, const struct codec_input *in, uint8_t *restrict dst,
                            void *scratch)
{
        struct layout l = lay_out_spec(s, p);
        uint32_t head[2] = {(uint32_t)l.kept, l.small};
        float *kept = scratch;

        memcpy(dst, head, sizeof(head));
        for (size_t row = 0; row < (size_t)p->heads * p->tokens; row++) {
                uint8_t *to = dst + HEADER_BYTES + row * l.row_bytes;
                const float *x = in->values + row * p->dim;
                size_t n = 0;

                kernels()->bitmap_choose(to, x, p->dim, l.kept);
                for (size_t c = 0; c < p->dim; c++)
                        if (to[c / 8] >> c % 8 & 1)
                                kept[n++] = x[c];
                if (!l.small)
                        kernels()->narrow(to + l.map_bytes, kept, n, p->dtype);
                else if (!write_small(to + l.map_bytes, kept, n))
                        return 0;
        }
        return l.total;
}

static int open_payload(const struct shape *p, const uint8_t *src, size_t n_src, struct layout *ret)
{
        uint32_t head[2];

        if (n_src < HEADER_BYTES)
                return KVT_E_CORRUPT;
        memcpy(head, src, sizeof(head));
        if (!head[0] || head[0] > p->dim || head[1] > 1)
                return KVT_E_CORRUPT;
        *ret = lay_out(p, head[0], head[1]);
        return n_src == ret->total ? 0 : KVT_E_CORRUPT;
}

static int decode_row(const struct shape *p, const struct layout *l, const uint8_t *src, uint8_t *dst, float *scratch)
{
        const struct kernels *k = kernels();
        const uint8_t *packed = src + l->map_bytes;
        size_t count = 0;

        for (size_t i = 0; i < l->map_bytes; i++)
                count += (size_t)__builtin_popcount(src[i]);
        if (count != l->kept || (p->dim % 8 && src[l->map_bytes - 1] >> p->dim % 8))
                return KVT_E_CORRUPT;
        if (l->small) {
                float scale;

                k->widen(&scale, packed, 1, KVT_DTYPE_BF16);
                if (!(scale >= 0 && scale < 0x1p120f))
                        return KVT_E_CORRUPT;
                k->widen(scratch, packed + 2, l->kept, KVT_DTYPE_INT8);
                for (size_t i = 0; i < l->kept; i++)
                        scratch[i] *= scale;
                k->narrow(scratch + l->kept, scratch, l->kept, p->dtype);
                packed = (const uint8_t *)(scratch + l->kept);
        }
        k->bitmap_expand(dst, src, packed, p->dim, p->elem_bytes);
        return 0;
}

static int bitmap_decode(const struct shape *p, const uint8_t *restrict src, size_t n_src, const void *base, void *restrict dst,
                         void *scratch)
{
        size_t row_bytes = (size_t)p->dim * p->elem_bytes;
        struct layout l;
        int r = open_payload(p, src, n_src, &l);

        for (size_t row = 0; row < (size_t)p->heads * p->tokens && !r; row++)
                r = decode_row(p, &l, src + HEADER_BYTES + row * l.row_bytes, (uint8_t *)dst + row * row_bytes, scratch);
        return r;
}

static int bitmap_decode_rows(const struct shape *p, const uint8_t *restrict src, size_t n_src, uint32_t head, const uint32_t *tokens,
                              size_t n, void *restrict dst, void *scratch)
{
        size_t row_bytes = (size_t)p->dim * p->elem_bytes;
        struct layout l;
        int r = open_payload(p, src, n_src, &l);

        for (size_t i = 0; i < n && !r; i++)
                r = decode_row(p, &l, src + HEADER_BYTES + ((size_t)head * p->tokens + tokens[i]) * l.row_bytes,
                               (uint8_t *)dst + i * row_bytes, scratch);
        return r;
}

/* More channels; all of them in 8 bits is the best there is that is smaller. */
static bool bitmap_better(const struct codec_spec *s, struct codec_spec *ret)
{
        unsigned most = s->params[SMALL] ? 100 : 90;

        if (s->params[KEEP] >= most)
                return false;
        *ret = *s;
        ret->params[KEEP] = (uint16_t)(s->params[KEEP] + 20u < most ? s->params[KEEP] + 20u : most);
        return true;
}

static int bitmap_describe(const struct shape *p, const uint8_t *src, size_t n_src, char *ret, size_t n_ret)
{
        struct layout l;

        if (open_payload(p, src, n_src, &l))
                return snprintf(ret, n_ret, "?");
        return snprintf(ret, n_ret, "keep=%zu,small=%d", l.kept * 100 / p->dim, l.small);
}

const struct codec codec_bitmap = {
        .id = CODEC_BITMAP,
        .name = "bitmap",
        .summary = "each row's largest channels, the others are 0",
        .flags = CODEC_ROW_ACCESS,
        .params =
                {
                        [KEEP] = {.name = "keep", .value = 50, .min = 1, .max = 100, .help = "percent of a row's channels"},
                        [SMALL] = {.name = "small", .value = 0, .max = 1, .help = "1: kept values in 8 bits"},
                },
        .bound = bitmap_bound,
        .scratch = bitmap_scratch,
        .encode = bitmap_encode,
        .decode = bitmap_decode,
        .decode_rows = bitmap_decode_rows,
        .better = bitmap_better,
        .describe = bitmap_describe,
};
