/* Codec 0: a plane's payload is its canonical bytes. */
#include <string.h>

#include "libclient/codec/codec.h"

static size_t raw_bound(const struct codec_spec *s, const struct shape *p)
{
        return p->n_bytes;
}

static size_t raw_encode(const struct codec_spec *s, const struct shape *p, const struct codec_input *in, uint8_t *restrict dst,
                         void *scratch)
{
        memcpy(dst, in->bytes, p->n_bytes);
        return p->n_bytes;
}

static int raw_decode(const struct shape *p, const uint8_t *restrict src, size_t n_src, const void *base, void *restrict dst, void *scratch)
{
        if (n_src != p->n_bytes)
                return KVT_E_CORRUPT;
        memcpy(dst, src, n_src);
        return 0;
}

static int raw_decode_rows(const struct shape *p, const uint8_t *restrict src, size_t n_src, uint32_t head, const uint32_t *tokens,
                           size_t n, void *restrict dst, void *scratch)
{
        size_t row = (size_t)p->dim * p->elem_bytes;

        if (n_src != p->n_bytes)
                return KVT_E_CORRUPT;
        for (size_t i = 0; i < n; i++)
                memcpy((uint8_t *)dst + i * row, src + ((size_t)head * p->tokens + tokens[i]) * row, row);
        return 0;
}

const struct codec codec_raw = {
        .id = CODEC_RAW,
        .name = "raw",
        .summary = "the bytes as they are",
        .flags = CODEC_LOSSLESS | CODEC_ROW_ACCESS,
        .bound = raw_bound,
        .encode = raw_encode,
        .decode = raw_decode,
        .decode_rows = raw_decode_rows,
};
