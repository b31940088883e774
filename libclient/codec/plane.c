/* See plane.h. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "libclient/codec/hash.h"
#include "libclient/codec/kernels.h"
#include "libclient/codec/plane.h"

enum { TILE = 1024 /* values measured at once */, TRAILER_BYTES = 8 };

static size_t aligned(size_t n)
{
        return (n + 63) & ~(size_t)63;
}

static size_t codec_scratch(const struct codec_spec *s, const struct shape *p)
{
        return s->codec->scratch ? aligned(s->codec->scratch(s, p)) : 0;
}

static bool supports(const struct codec_spec *s, const struct shape *p)
{
        if (p->dtype == KVT_DTYPE_OPAQUE && !(s->codec->flags & CODEC_LOSSLESS))
                return false; /* bytes are no numbers */
        return !s->codec->supports || s->codec->supports(s, p);
}

static bool better(const struct codec_spec *s, struct codec_spec *ret)
{
        return s->codec->better && s->codec->better(s, ret);
}

static size_t exact_bytes(const struct shape *p, size_t n_exact)
{
        return n_exact * ((size_t)p->heads * p->dim * p->elem_bytes + sizeof(uint32_t)) + TRAILER_BYTES;
}

/* for each spec that s may give way to, s itself first, lossless ones last */
static bool next_spec(struct codec_spec *s)
{
        if (better(s, s))
                return true;
        const struct codec *c = s->codec->id == CODEC_RAW   ? NULL
                                : s->codec->id == CODEC_ZBF ? codec_find(CODEC_RAW)
                                                            : codec_find(CODEC_ZBF) ?: codec_find(CODEC_RAW);

        if (!c)
                return false;
        *s = codec_spec_default(c);
        return true;
}

size_t plane_bound(const struct shape *p, const struct codec_spec *s)
{
        struct codec_spec at = *s;
        size_t most = p->n_bytes;

        do {
                size_t n = supports(&at, p) ? at.codec->bound(&at, p) : 0;

                if (!(at.codec->flags & CODEC_LOSSLESS))
                        n += exact_bytes(p, p->tokens);
                most = n > most ? n : most;
        } while (next_spec(&at));
        return most;
}

static size_t map_bytes(const struct shape *p)
{
        return ((size_t)p->tokens + 7) / 8;
}

/* scratch of encode: values, decoded bytes, a bit a token, then the codec's */
struct work {
        float *values;
        uint8_t *decoded;
        uint8_t *exact;
        void *codec;
};

static size_t work_bytes(const struct shape *p)
{
        return aligned(p->n_values * sizeof(float)) + aligned(p->n_bytes) + aligned(map_bytes(p));
}

static struct work lay_out(const struct shape *p, uint8_t *scratch)
{
        uint8_t *decoded = scratch + aligned(p->n_values * sizeof(float)), *exact = decoded + aligned(p->n_bytes);

        return (struct work){(float *)(void *)scratch, decoded, exact, exact + aligned(map_bytes(p))};
}

size_t plane_encode_scratch(const struct shape *p, const struct codec_spec *s)
{
        struct codec_spec at = *s;
        size_t most = 0;

        do {
                size_t n = supports(&at, p) ? codec_scratch(&at, p) : 0;

                if (!(at.codec->flags & CODEC_LOSSLESS)) {
                        struct codec_spec decoder = codec_spec_default(at.codec);
                        size_t d = supports(&decoder, p) ? codec_scratch(&decoder, p) : 0;

                        n = n > d ? n : d;
                }
                most = n > most ? n : most;
        } while (next_spec(&at));
        return work_bytes(p) + most;
}

/* Widens the plane; values that are not finite become 0 and their tokens exact. Returns how many tokens are exact. */
static size_t take_in(const struct shape *p, const struct plane_request *q, const void *src, struct work *w)
{
        size_t n_map = map_bytes(p), n = 0, row = p->dim;

        if (q->protect)
                memcpy(w->exact, q->protect, n_map);
        else
                memset(w->exact, 0, n_map);
        if (p->tokens % 8)
                w->exact[n_map - 1] &= (uint8_t)((1u << p->tokens % 8) - 1);
        kernels()->widen(w->values, src, p->n_values, p->dtype);
        for (size_t r = 0; r < (size_t)p->heads * p->tokens; r++) {
                float *x = w->values + r * row, sum = 0;

                for (size_t i = 0; i < row; i++)
                        sum += x[i] * 0.0f; /* NaN if any is not finite */
                if (sum == 0)
                        continue;
                for (size_t i = 0; i < row; i++)
                        x[i] = isfinite(x[i]) ? x[i] : 0;
                w->exact[r % p->tokens / 8] |= (uint8_t)(1u << r % p->tokens % 8);
        }
        for (size_t i = 0; i < n_map; i++)
                n += (size_t)__builtin_popcount(w->exact[i]);
        return n;
}

/* Appends the rows that stay exact to a payload of n bytes. */
static size_t add_exact(const struct shape *p, const uint8_t *exact, size_t n_exact, const uint8_t *src, uint8_t *dst, size_t n)
{
        size_t row = (size_t)p->dim * p->elem_bytes, at = n;
        uint32_t trailer[2] = {(uint32_t)n_exact, (uint32_t)n};

        for (uint32_t t = 0; t < p->tokens; t++)
                for (uint32_t h = 0; exact[t / 8] >> t % 8 & 1 && h < p->heads; h++, at += row)
                        memcpy(dst + at, src + ((size_t)h * p->tokens + t) * row, row);
        for (uint32_t t = 0; t < p->tokens; t++)
                if (exact[t / 8] >> t % 8 & 1) {
                        memcpy(dst + at, &t, sizeof(t));
                        at += sizeof(t);
                }
        memcpy(dst + at, trailer, sizeof(trailer));
        return at + sizeof(trailer);
}

/* What a payload with exact rows is made of; sizes checked, tokens not. */
struct parts {
        size_t n_codec;
        const uint8_t *rows, *tokens;
        uint32_t n_exact;
};

static int take_apart(const struct shape *p, const struct kvt_copy_plane *c, const uint8_t *src, struct parts *ret)
{
        uint32_t trailer[2] = {0};

        *ret = (struct parts){.n_codec = c->bytes};
        if (c->flags & ~PLANE_EXACT_ROWS)
                return KVT_E_CORRUPT;
        if (!(c->flags & PLANE_EXACT_ROWS))
                return 0;
        if (c->bytes < TRAILER_BYTES)
                return KVT_E_CORRUPT;
        memcpy(trailer, src + c->bytes - TRAILER_BYTES, TRAILER_BYTES);
        if (!trailer[0] || trailer[0] > p->tokens || trailer[1] > c->bytes || c->bytes - trailer[1] != exact_bytes(p, trailer[0]))
                return KVT_E_CORRUPT;
        ret->n_exact = trailer[0];
        ret->n_codec = trailer[1];
        ret->rows = src + ret->n_codec;
        ret->tokens = src + c->bytes - TRAILER_BYTES - sizeof(uint32_t) * ret->n_exact;
        return 0;
}

static uint32_t exact_token(const struct parts *x, uint32_t i)
{
        uint32_t t;

        memcpy(&t, x->tokens + sizeof(t) * i, sizeof(t));
        return t;
}

size_t plane_decode_scratch(const struct shape *p, const struct kvt_copy_plane *c)
{
        const struct codec *codec = codec_find(c->codec);
        struct codec_spec s;

        if (!codec)
                return 0;
        s = codec_spec_default(codec);
        return supports(&s, p) ? codec_scratch(&s, p) : 0;
}

int plane_decode(const struct shape *p, const struct kvt_copy_plane *c, const void *src, const void *base, void *dst, void *scratch)
{
        const struct codec *codec = codec_find(c->codec);
        size_t row = (size_t)p->dim * p->elem_bytes;
        struct parts x;
        int r;

        if (!codec)
                return KVT_E_CORRUPT;
        r = take_apart(p, c, src, &x);
        if (r || (codec->flags & CODEC_NEEDS_BASE && !base))
                return KVT_E_CORRUPT;
        struct codec_spec s = codec_spec_default(codec);
        if (!supports(&s, p))
                return KVT_E_CORRUPT;
        r = codec->decode(p, src, x.n_codec, base, dst, scratch);
        for (uint32_t i = 0; i < x.n_exact && !r; i++) {
                uint32_t t = exact_token(&x, i);

                if (t >= p->tokens || (i && t <= exact_token(&x, i - 1)))
                        return KVT_E_CORRUPT;
                for (uint32_t h = 0; h < p->heads; h++)
                        memcpy((uint8_t *)dst + ((size_t)h * p->tokens + t) * row, x.rows + ((size_t)i * p->heads + h) * row, row);
        }
        return r;
}

int plane_decode_rows(const struct shape *p, const struct kvt_copy_plane *c, const void *src, uint32_t head, const uint32_t *tokens,
                      size_t n, void *dst, void *scratch)
{
        const struct codec *codec = codec_find(c->codec);
        size_t row = (size_t)p->dim * p->elem_bytes;
        struct parts x;
        int r;

        if (!codec)
                return KVT_E_CORRUPT;
        if (!(codec->flags & CODEC_ROW_ACCESS))
                return KVT_E_UNSUPPORTED;
        r = take_apart(p, c, src, &x);
        struct codec_spec s = codec_spec_default(codec);
        if (r || !supports(&s, p))
                return KVT_E_CORRUPT;
        r = codec->decode_rows(p, src, x.n_codec, head, tokens, n, dst, scratch);
        for (size_t i = 0; i < n && x.n_exact && !r; i++) {
                uint32_t low = 0, high = x.n_exact; /* tokens ascend; where hostile ones do not, some are not found */

                while (low < high) {
                        uint32_t middle = low + (high - low) / 2;

                        if (exact_token(&x, middle) < tokens[i])
                                low = middle + 1;
                        else
                                high = middle;
                }
                if (low < x.n_exact && exact_token(&x, low) == tokens[i])
                        memcpy((uint8_t *)dst + i * row, x.rows + ((size_t)low * p->heads + head) * row, row);
        }
        return r;
}

/* Sums up n values of both; false: some that are not finite differ. */
static bool measure_tile(struct error_sums *sums, const struct shape *p, const uint8_t *x, const uint8_t *y, size_t n)
{
        float a[TILE], b[TILE], check = 0;

        kernels()->widen(a, x, n, p->dtype);
        kernels()->widen(b, y, n, p->dtype);
        for (size_t i = 0; i < n; i++)
                check += a[i] * 0.0f + b[i] * 0.0f;
        if (check != 0)
                for (size_t i = 0; i < n; i++)
                        if (!isfinite(a[i]) || !isfinite(b[i])) {
                                if (memcmp(x + i * p->elem_bytes, y + i * p->elem_bytes, p->elem_bytes) != 0)
                                        return false;
                                a[i] = b[i] = 0;
                        }
        kernels()->measure(sums, a, b, n);
        return true;
}

void plane_measure(const struct shape *p, const void *x, const void *y, float *ret_rel_l2, float *ret_max_abs)
{
        struct error_sums sums = {0};

        *ret_rel_l2 = *ret_max_abs = 0;
        if (!memcmp(x, y, p->n_bytes))
                return;
        *ret_rel_l2 = *ret_max_abs = INFINITY;
        if (p->dtype == KVT_DTYPE_OPAQUE)
                return;
        for (size_t i = 0; i < p->n_values; i += TILE) {
                size_t n = p->n_values - i < TILE ? p->n_values - i : TILE;

                if (!measure_tile(&sums, p, (const uint8_t *)x + i * p->elem_bytes, (const uint8_t *)y + i * p->elem_bytes, n))
                        return;
        }
        *ret_max_abs = sums.max_abs;
        *ret_rel_l2 = sums.diff == 0 ? 0 : (float)sqrt(sums.diff / sums.norm); /* x / 0: infinite */
}

/* Whether s is worth keeping: fills ret but its hash. */
static bool encode_lossy(const struct shape *p, const struct plane_request *q, const struct codec_spec *s, const uint8_t *src, uint8_t *dst,
                         struct work *w, size_t n_exact, struct kvt_copy_plane *ret)
{
        struct codec_input in = {.bytes = src, .values = w->values, .scores = q->scores};
        size_t n = s->codec->encode(s, p, &in, dst, w->codec);

        if (!n)
                return false;
        if (n_exact)
                n = add_exact(p, w->exact, n_exact, src, dst, n);
        *ret = (struct kvt_copy_plane){.bytes = (uint32_t)n, .codec = s->codec->id, .flags = n_exact ? PLANE_EXACT_ROWS : 0};
        if (n >= p->n_bytes || plane_decode(p, ret, dst, NULL, w->decoded, w->codec))
                return false;
        plane_measure(p, src, w->decoded, &ret->rel_l2, &ret->max_abs);
        return ret->rel_l2 <= q->max_rel_l2;
}

bool plane_encode(const struct shape *p, const struct plane_request *q, const void *src, uint8_t *dst, void *scratch,
                  struct kvt_copy_plane *ret)
{
        struct codec_input in = {.bytes = src, .base = q->base, .base_key = q->base_key};
        struct codec_spec s = *q->spec;
        size_t n, n_exact = 0;
        struct work w = lay_out(p, scratch);
        bool widened = false;

        for (;; next_spec(&s)) {
                if (!supports(&s, p))
                        continue;
                if (s.codec->id == CODEC_RAW)
                        break;
                if (!(s.codec->flags & CODEC_LOSSLESS)) {
                        if (!(q->max_rel_l2 > 0))
                                continue;
                        if (!widened)
                                n_exact = take_in(p, q, src, &w);
                        widened = true;
                        if (encode_lossy(p, q, &s, src, dst, &w, n_exact, ret)) {
                                ret->hash = hash_bytes(dst, ret->bytes, kvt_plane_seed(ret, p->seed));
                                return codec_spec_equal(&s, q->spec);
                        }
                        continue;
                }
                if (s.codec->flags & CODEC_NEEDS_BASE && !q->base)
                        continue;
                n = s.codec->encode(&s, p, &in, dst, w.codec);
                if (!n || n >= p->n_bytes)
                        continue;
                *ret = (struct kvt_copy_plane){.bytes = (uint32_t)n, .codec = s.codec->id};
                ret->hash = hash_bytes(dst, n, kvt_plane_seed(ret, p->seed));
                return codec_spec_equal(&s, q->spec);
        }
        *ret = (struct kvt_copy_plane){.hash = hash_copy(dst, src, p->n_bytes, p->seed), .bytes = (uint32_t)p->n_bytes, .codec = CODEC_RAW};
        return q->spec->codec->id == CODEC_RAW;
}

char *plane_describe(const struct shape *p, const struct kvt_copy_plane *c, const void *payload, char ret[CODEC_SPEC_MAX])
{
        const struct codec *codec = codec_find(c->codec);
        struct codec_spec s = codec_spec_default(codec);
        char text[CODEC_SPEC_MAX];
        const char *why;
        struct parts x;
        int n = snprintf(text, sizeof(text), "%s:", codec->name), more = 0;

        if (codec->describe && supports(&s, p) && !take_apart(p, c, payload, &x))
                more = codec->describe(p, payload, x.n_codec, text + n, sizeof(text) - (size_t)n);
        if (more <= 0 || n + more >= (int)sizeof(text) || codec_spec_parse(text, (size_t)(n + more), &s, &why))
                s = codec_spec_default(codec);
        return codec_spec_format(&s, ret);
}

bool plane_shrinks(const struct shape *p, const struct codec_spec *to, float max_rel_l2, const uint8_t *payload, struct kvt_copy_plane *c)
{
        struct kvt_copy_plane made = *c;

        /* with exact rows, what the payload says of its error is not that of the plane */
        if (c->codec != to->codec->id || !(to->codec->flags & CODEC_TRUNCATES) || c->flags || !supports(to, p))
                return false;
        size_t n = to->codec->shrink(to, p, (uint8_t *)payload, c->bytes, &made.rel_l2, &made.max_abs); /* it changes nothing */
        if (!n || n >= c->bytes || !(made.rel_l2 <= max_rel_l2))
                return false;
        made.bytes = (uint32_t)n;
        *c = made;
        return true;
}

bool plane_shrink(const struct shape *p, const struct codec_spec *to, float max_rel_l2, uint8_t *payload, struct kvt_copy_plane *c)
{
        if (!plane_shrinks(p, to, max_rel_l2, payload, c))
                return false;
        c->hash = hash_bytes(payload, c->bytes, kvt_plane_seed(c, p->seed));
        return true;
}
