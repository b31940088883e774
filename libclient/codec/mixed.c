/* Codec 6: tokens that matter at more bits than the others, after ZipCache (arXiv 2405.14256) and MiKV (arXiv 2402.18096). Which ones: those of the highest scores the
 * engine gave; without scores, keys far from their channels' means (they would also stretch the range that the others share), and long values.
 *
 * A payload: n_salient u32; a bit a token, lowest first; a section (quant.h) of the others, heads x (tokens - n_salient) x dim; a section of the salient
 * ones. A section of no tokens is not there. The salient tokens' parameters are per token in key planes, too: they are too few to share a channel's. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "libclient/codec/codec.h"
#include "libclient/codec/kernels.h"
#include "libclient/codec/quant.h"

enum { LOW, HIGH, SHARE, GROUP };
enum { N_BYTES = 4, ROUNDS = 2 /* of least squares */ };

static size_t map_bytes(uint32_t tokens)
{
        return ((size_t)tokens + 7) / 8;
}

static bool bit(const uint8_t *map, size_t t)
{
        return map[t / 8] >> t % 8 & 1;
}

static uint32_t n_salient(const struct codec_spec *s, const struct shape *p)
{
        return (uint32_t)(((uint64_t)p->tokens * s->params[SHARE] + 50) / 100);
}

static struct quant lay_out(const struct codec_spec *s, const struct shape *p, bool salient)
{
        uint32_t n = n_salient(s, p);

        return quant_lay_out(p, salient ? n : p->tokens - n, salient, s->params[salient ? HIGH : LOW], s->params + GROUP);
}

static size_t section_bytes(const struct quant *q)
{
        return q->tokens ? q->bytes : 0;
}

static size_t mixed_bound(const struct codec_spec *s, const struct shape *p)
{
        struct quant low = lay_out(s, p, false), high = lay_out(s, p, true);

        return N_BYTES + map_bytes(p->tokens) + section_bytes(&low) + section_bytes(&high);
}

/* encode: a score of each token; rows of a section; the quantiser's own */
static size_t mixed_scratch(const struct codec_spec *s, const struct shape *p)
{
        struct quant low = lay_out(s, p, false), high = lay_out(s, p, true);
        size_t a = quant_encode_scratch(&low), b = quant_encode_scratch(&high);
        size_t encode = (p->tokens + p->n_values + 2 * (size_t)p->dim) * sizeof(float) + (a > b ? a : b),
               decode = quant_decode_scratch(p->dim);

        return encode > decode ? encode : decode;
}

/* Adds a head's part to each token's score. sums: 2 * dim floats. */
static void score_keys(const float *x, size_t tokens, size_t dim, float *sums, float *scores)
{
        float *mean = sums, *inverse = sums + dim;

        memset(sums, 0, 2 * dim * sizeof(*sums));
        for (size_t t = 0; t < tokens; t++)
                for (size_t c = 0; c < dim; c++)
                        mean[c] += x[t * dim + c];
        for (size_t c = 0; c < dim; c++)
                mean[c] /= (float)tokens;
        for (size_t t = 0; t < tokens; t++)
                for (size_t c = 0; c < dim; c++)
                        inverse[c] += (x[t * dim + c] - mean[c]) * (x[t * dim + c] - mean[c]);
        for (size_t c = 0; c < dim; c++)
                inverse[c] = inverse[c] > 0 ? 1 / inverse[c] : 0;
        for (size_t t = 0; t < tokens; t++)
                for (size_t c = 0; c < dim; c++)
                        scores[t] += (x[t * dim + c] - mean[c]) * (x[t * dim + c] - mean[c]) * inverse[c];
}

static void score_values(const float *x, size_t tokens, size_t dim, float *scores)
{
        for (size_t t = 0; t < tokens; t++)
                for (size_t c = 0; c < dim; c++)
                        scores[t] += x[t * dim + c] * x[t * dim + c];
}

static uint32_t order_of(float score)
{
        uint32_t u;

        score = score > 0 ? score : 0; /* NaN: 0. Floats that are not negative are ordered as their bits. */
        memcpy(&u, &score, sizeof(u));
        return u;
}

/* Marks the n tokens of the highest scores; of equals the first ones. */
static void mark(const float *scores, uint32_t tokens, uint32_t n, uint8_t *map)
{
        uint32_t least = 0, left = n;

        memset(map, 0, map_bytes(tokens));
        for (uint32_t i = 1u << 30; i; i /= 2) { /* the largest bits that n tokens reach */
                uint32_t reach = 0;

                for (uint32_t t = 0; t < tokens; t++)
                        reach += order_of(scores[t]) >= (least | i);
                least |= reach >= n ? i : 0;
        }
        for (uint32_t t = 0; t < tokens; t++)
                if (n && order_of(scores[t]) > least) {
                        map[t / 8] |= (uint8_t)(1u << t % 8);
                        left--;
                }
        for (uint32_t t = 0; t < tokens && left; t++)
                if (order_of(scores[t]) == least) {
                        map[t / 8] |= (uint8_t)(1u << t % 8);
                        left--;
                }
}

static size_t mixed_encode(const struct codec_spec *s, const struct shape *p, const struct codec_input *in, uint8_t *restrict dst,
                           void *scratch)
{
        float *own = scratch, *sums = own + p->tokens, *rows = sums + 2 * (size_t)p->dim;
        const float *scores = in->scores ?: own;
        uint32_t n = n_salient(s, p);
        uint8_t *map = dst + N_BYTES, *at = map + map_bytes(p->tokens);
        size_t head_values = (size_t)p->tokens * p->dim;

        memset(own, 0, p->tokens * sizeof(*own));
        for (size_t h = 0; h < p->heads && !in->scores; h++)
                if (p->role == KVT_ROLE_V)
                        score_values(in->values + h * head_values, p->tokens, p->dim, own);
                else
                        score_keys(in->values + h * head_values, p->tokens, p->dim, sums, own);
        memcpy(dst, &n, N_BYTES);
        mark(scores, p->tokens, n, map);
        for (int salient = 0; salient < 2; salient++) {
                struct quant q = lay_out(s, p, salient);
                bool values = p->role == KVT_ROLE_V && q.bits > 1, middles = values || q.bits == 2; /* as kivi.c says why */
                float *to = rows;

                if (!q.tokens)
                        continue;
                for (size_t r = 0; r < (size_t)p->heads * p->tokens; r++)
                        if (bit(map, r % p->tokens) == salient) {
                                memcpy(to, in->values + r * p->dim, p->dim * sizeof(float));
                                to += p->dim;
                        }
                if (!quant_encode(&q, rows, middles, values ? ROUNDS : 0, at, rows + p->n_values))
                        return 0;
                at += q.bytes;
        }
        return (size_t)(at - dst);
}

struct parts {
        const uint8_t *map;
        uint32_t n[2]; /* other tokens, salient ones */
        struct quant q[2];
};

static bool open_parts(struct parts *ret, const struct shape *p, const uint8_t *src, size_t n_src)
{
        size_t at = N_BYTES + map_bytes(p->tokens), n_set = 0;
        uint32_t n;

        if (n_src < at)
                return false;
        memcpy(&n, src, N_BYTES);
        ret->map = src + N_BYTES;
        for (size_t i = 0; i < map_bytes(p->tokens); i++)
                n_set += (size_t)__builtin_popcount(ret->map[i]);
        if (n > p->tokens || n_set != n || (p->tokens % 8 && ret->map[map_bytes(p->tokens) - 1] >> p->tokens % 8))
                return false;
        ret->n[0] = p->tokens - n;
        ret->n[1] = n;
        for (int i = 0; i < 2; i++) {
                size_t bytes;

                if (!ret->n[i])
                        continue;
                bytes = quant_open(&ret->q[i], p->heads, ret->n[i], p->dim, src + at, n_src - at);
                if (!bytes)
                        return false;
                at += bytes;
        }
        return at == n_src;
}

/* The map is read again after open_parts(), and where a lease was lost others' bytes may stand there by then: tokens and rows are counted, not believed. */
static int decode_head(const struct parts *x, const struct shape *p, uint32_t head, uint8_t *dst, void *scratch)
{
        size_t row = (size_t)p->dim * p->elem_bytes;
        uint32_t i = x->n[0];
        int r = 0;

        /* the others come first, then move up to their places from the last on */
        if (x->n[0])
                r = quant_decode(&x->q[0], head, 0, x->n[0], p->dtype, dst, scratch);
        for (uint32_t t = p->tokens; t-- > 0 && !r;)
                if (!bit(x->map, t) && i && --i != t)
                        memcpy(dst + t * row, dst + i * row, row);
        for (uint32_t t = 0, j = 0; t < p->tokens && j < x->n[1] && !r; t++)
                if (bit(x->map, t))
                        r = quant_decode(&x->q[1], head, j++, 1, p->dtype, dst + t * row, scratch);
        return r;
}

static int mixed_decode(const struct shape *p, const uint8_t *restrict src, size_t n_src, const void *base, void *restrict dst,
                        void *scratch)
{
        size_t head_bytes = (size_t)p->tokens * p->dim * p->elem_bytes;
        struct parts x;
        int r = open_parts(&x, p, src, n_src) ? 0 : KVT_E_CORRUPT;

        for (uint32_t h = 0; h < p->heads && !r; h++)
                r = decode_head(&x, p, h, (uint8_t *)dst + h * head_bytes, scratch);
        return r;
}

static int mixed_decode_rows(const struct shape *p, const uint8_t *restrict src, size_t n_src, uint32_t head, const uint32_t *tokens,
                             size_t n, void *restrict dst, void *scratch)
{
        size_t row = (size_t)p->dim * p->elem_bytes;
        struct parts x;
        int r = open_parts(&x, p, src, n_src) ? 0 : KVT_E_CORRUPT;

        for (size_t i = 0; i < n && !r; i++) {
                uint32_t t = tokens[i], before = 0;
                bool salient = bit(x.map, t);

                for (uint32_t b = 0; b < t / 8; b++)
                        before += (uint32_t)__builtin_popcount(x.map[b]);
                before += (uint32_t)__builtin_popcount(x.map[t / 8] & ((1u << t % 8) - 1));
                before = salient ? before : t - before; /* those of its kind */
                r = before < x.n[salient] ? quant_decode(&x.q[salient], head, before, 1, p->dtype, (uint8_t *)dst + i * row, scratch)
                                          : KVT_E_CORRUPT;
        }
        return r;
}

static bool mixed_better(const struct codec_spec *s, struct codec_spec *ret)
{
        uint16_t low = s->params[LOW];

        *ret = *s;
        if (low == 8)
                return false;
        ret->params[LOW] = low == 4 ? 8 : (uint16_t)(low + 1);
        ret->params[HIGH] = 8;
        return true;
}

static int mixed_describe(const struct shape *p, const uint8_t *src, size_t n_src, char *ret, size_t n_ret)
{
        char bits[32] = "", group[32] = "", groups[32];
        struct parts x;
        size_t n = 0;

        if (!open_parts(&x, p, src, n_src))
                return snprintf(ret, n_ret, "?");
        if (x.n[0])
                n = (size_t)snprintf(bits, sizeof(bits), "low=%u,", x.q[0].bits);
        if (x.n[1])
                snprintf(bits + n, sizeof(bits) - n, "high=%u,", x.q[1].bits);
        if (x.n[0] && x.n[1] && x.q[0].axis == QUANT_CHANNEL)
                snprintf(group, sizeof(group), "group=%u,", x.q[0].group);
        quant_describe(&x.q[x.n[1] > 0], groups, sizeof(groups));
        return snprintf(ret, n_ret, "%sshare=%u,%s%s", bits, (unsigned)(((uint64_t)x.n[1] * 100 + p->tokens / 2) / p->tokens), group,
                        groups);
}

const struct codec codec_mixed = {
        .id = CODEC_MIXED,
        .name = "mixed",
        .summary = "tokens that matter at 8 bits, the others at fewer",
        .flags = CODEC_ROW_ACCESS,
        .params = {[LOW] = {"low", 3, .allowed = {1, 2, 3, 4, 8}, .help = "bits of most tokens' codes"},
                   [HIGH] = {"high", 8, .allowed = {4, 8}, .help = "bits of salient tokens' codes"},
                   [SHARE] = {"share", 2, 0, 100, .help = "salient tokens of a hundred"},
                   QUANT_PARAMS(GROUP)},
        .bound = mixed_bound,
        .scratch = mixed_scratch,
        .encode = mixed_encode,
        .decode = mixed_decode,
        .decode_rows = mixed_decode_rows,
        .better = mixed_better,
        .describe = mixed_describe,
};
