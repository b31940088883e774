/* Codec 4: uniform quantisation with a least value and a step for each group, after KIVI (arXiv 2402.02750): keys per channel over groups of tokens, values per
 * token over groups of channels.
 * Levels, which a decoder need not know of: at one bit mean +- mean |x - mean|, or the middles of the halves of the range (SpeCache, arXiv 2503.16163). With more,
 * values have the middles of equal parts of the range, which are nearer on average, and so have keys at two bits. Keys at three and more have the ends of the range and points between, as
 * in KIVI: a few keys that attention always looks at stand at those ends. At two bits the ends cost more than they spare once the first of those keys are kept exact (codec_sinks).
 * The payload is one section as quant.h describes it. */
#include <stdio.h>

#include "libclient/codec/codec.h"
#include "libclient/codec/quant.h"

enum { BITS, GROUP, LEVELS = GROUP + 3, ROUNDS };

static struct quant lay_out(const struct codec_spec *s, const struct shape *p)
{
        return quant_lay_out(p, p->tokens, false, s->params[BITS], s->params + GROUP);
}

static size_t kivi_bound(const struct codec_spec *s, const struct shape *p)
{
        return lay_out(s, p).bytes;
}

static size_t kivi_scratch(const struct codec_spec *s, const struct shape *p)
{
        struct quant q = lay_out(s, p);
        size_t encode = quant_encode_scratch(&q), decode = quant_decode_scratch(p->dim);

        return encode > decode ? encode : decode;
}

static bool in_middles(const struct codec_spec *s, const struct shape *p)
{
        switch (s->params[LEVELS]) {
        case 0:
                return s->params[BITS] == 2 || (s->params[BITS] > 2 && p->role == KVT_ROLE_V);
        case 1:
                return s->params[BITS] == 1;
        default:
                return true;
        }
}

static size_t kivi_encode(const struct codec_spec *s, const struct shape *p, const struct codec_input *in, uint8_t *restrict dst,
                          void *scratch)
{
        struct quant q = lay_out(s, p);

        return quant_encode(&q, in->values, in_middles(s, p), s->params[ROUNDS], dst, scratch) ? q.bytes : 0;
}

static bool open_all(struct quant *ret, const struct shape *p, const uint8_t *src, size_t n_src)
{
        size_t n = quant_open(ret, p->heads, p->tokens, p->dim, src, n_src);

        return n && n == n_src;
}

static int kivi_decode(const struct shape *p, const uint8_t *restrict src, size_t n_src, const void *base, void *restrict dst,
                       void *scratch)
{
        struct quant q;

        return open_all(&q, p, src, n_src) ? quant_decode_plane(&q, p, dst, scratch) : KVT_E_CORRUPT;
}

static int kivi_decode_rows(const struct shape *p, const uint8_t *restrict src, size_t n_src, uint32_t head, const uint32_t *tokens,
                            size_t n, void *restrict dst, void *scratch)
{
        struct quant q;

        if (!open_all(&q, p, src, n_src))
                return KVT_E_CORRUPT;
        return quant_decode_picked(&q, head, tokens, n, p->dtype, dst, scratch);
}

static bool kivi_better(const struct codec_spec *s, struct codec_spec *ret)
{
        *ret = *s;
        if (s->params[BITS] == 8)
                return false;
        ret->params[BITS] = s->params[BITS] == 4 ? 8 : (uint16_t)(s->params[BITS] + 1);
        return true;
}

static int kivi_describe(const struct shape *p, const uint8_t *src, size_t n_src, char *ret, size_t n_ret)
{
        char groups[32];
        struct quant q;

        if (!open_all(&q, p, src, n_src))
                return snprintf(ret, n_ret, "?");
        quant_describe(&q, groups, sizeof(groups));
        return snprintf(ret, n_ret, "bits=%u,%s", q.bits, groups);
}

const struct codec codec_kivi = {
        .id = CODEC_KIVI,
        .name = "kivi",
        .summary = "uniform quantisation, keys per channel, values per token",
        .flags = CODEC_ROW_ACCESS,
        .params =
                {[BITS] = {"bits", 4, .allowed = {1, 2, 3, 4, 8}, .help = "bits of a code"},
                 QUANT_PARAMS(GROUP),
                 [LEVELS] =
                         {"levels", 0, 0, 2,
                          .help = "0: of bits and role, see kvtier-codecs(7); 1: as published; 2: the middles of equal parts of the range"},
                 [ROUNDS] = {"rounds", 0, 0, 8, .help = "rounds of least squares when choosing parameters"}},
        .bound = kivi_bound,
        .scratch = kivi_scratch,
        .encode = kivi_encode,
        .decode = kivi_decode,
        .decode_rows = kivi_decode_rows,
        .better = kivi_better,
        .describe = kivi_describe,
};
