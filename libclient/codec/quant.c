/* See quant.h. */
#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "include/kvtier.h"
#include "libclient/codec/kernels.h"
#include "libclient/codec/quant.h"

enum {
        RANGE_BYTES = 6, /* base, unit and top of a head */
        EXPONENT_MIN = -100, /* decoded values stay finite, whatever the parameters are */
        EXPONENT_MAX = 126,
        PARAMS_AT_ONCE = 256,
};

static size_t smaller(size_t a, size_t b)
{
        return a < b ? a : b;
}

/* Fills in what the first seven fields decide. */
static void finish(struct quant *q)
{
        size_t along = q->axis == QUANT_CHANNEL ? q->tokens : q->dim;

        q->groups = (along + q->group - 1) / q->group;
        q->n_params = q->axis == QUANT_CHANNEL ? q->groups * q->dim : q->groups * q->tokens;
        q->row_bytes = ((size_t)q->dim * q->bits + 7) / 8;
        q->head_bytes = (q->param_bits == 8 ? RANGE_BYTES : 0) + 2 * q->n_params * (q->param_bits / 8) + q->tokens * q->row_bytes;
        q->bytes = QUANT_HEADER_BYTES + q->heads * q->head_bytes;
}

struct quant quant_lay_out(const struct shape *p, uint32_t tokens, bool per_token, unsigned bits, const uint16_t params[3])
{
        struct quant q = {.heads = p->heads,
                          .tokens = tokens,
                          .dim = p->dim,
                          .axis = per_token || p->role == KVT_ROLE_V ? QUANT_TOKEN : QUANT_CHANNEL,
                          .bits = bits,
                          .param_bits = params[2]};

        q.group = params[q.axis == QUANT_TOKEN];
        finish(&q);
        return q;
}

size_t quant_encode_scratch(const struct quant *q)
{
        return 2 * q->n_params * sizeof(float);
}

/* low and step of a row's channels, or of the groups of some rows: at least PARAMS_AT_ONCE or one row's */
static size_t params_at_once(uint32_t dim)
{
        return dim > PARAMS_AT_ONCE ? dim : PARAMS_AT_ONCE;
}

size_t quant_decode_scratch(uint32_t dim)
{
        return 2 * params_at_once(dim) * sizeof(float);
}

/* encoding */

static void fit_channels(const struct quant *q, const float *x, const struct quant_rule *rule, float *low, float *step)
{
        float tile[QUANT_GROUP_MAX * QUANT_LANES], edge[2][QUANT_LANES];

        for (size_t first = 0; first < q->tokens; first += q->group, low += q->dim, step += q->dim) {
                size_t n = smaller(q->group, q->tokens - first), c = 0, left;

                for (; c + QUANT_LANES <= q->dim; c += QUANT_LANES)
                        kernels()->quant_fit(x + first * q->dim + c, n, q->dim, rule, low + c, step + c);
                left = q->dim - c;
                if (!left)
                        continue;
                memset(tile, 0, n * QUANT_LANES * sizeof(float));
                for (size_t t = 0; t < n; t++)
                        memcpy(tile + t * QUANT_LANES, x + (first + t) * q->dim + c, left * sizeof(float));
                kernels()->quant_fit(tile, n, QUANT_LANES, rule, edge[0], edge[1]);
                memcpy(low + c, edge[0], left * sizeof(float));
                memcpy(step + c, edge[1], left * sizeof(float));
        }
}

static void fit_tokens(const struct quant *q, const float *x, const struct quant_rule *rule, float *low, float *step)
{
        float tile[QUANT_GROUP_MAX * QUANT_LANES], found[2][QUANT_LANES];

        for (size_t first = 0; first < q->tokens; first += QUANT_LANES) {
                size_t n = smaller(QUANT_LANES, q->tokens - first);

                for (size_t g = 0; g < q->groups; g++) {
                        size_t width = smaller(q->group, q->dim - g * q->group);

                        for (size_t t = 0; t < QUANT_LANES; t++) {
                                const float *row = x + (first + smaller(t, n - 1)) * q->dim + g * q->group;

                                for (size_t c = 0; c < width; c++)
                                        tile[c * QUANT_LANES + t] = row[c];
                        }
                        kernels()->quant_fit(tile, width, QUANT_LANES, rule, found[0], found[1]);
                        for (size_t t = 0; t < n; t++) {
                                low[(first + t) * q->groups + g] = found[0][t];
                                step[(first + t) * q->groups + g] = found[1][t];
                        }
                }
        }
}

/* Values are stored in units of 2^-exponent, so that the largest is near an f16's. */
static int exponent_of(const float *x, size_t n)
{
        float most = 0;
        int e;

        for (size_t i = 0; i < n; i++) {
                float a = fabsf(x[i]);

                most = a > most ? a : most;
        }
        if (!(most > 0))
                return 0;
        e = 14 - ilogbf(most);
        return e < EXPONENT_MIN ? EXPONENT_MIN : e > EXPONENT_MAX ? EXPONENT_MAX : e;
}

static void put_half(uint8_t *dst, float v)
{
        kernels()->narrow(dst, &v, 1, KVT_DTYPE_F16);
}

static float get_half(const uint8_t *src)
{
        float v;

        kernels()->widen(&v, src, 1, KVT_DTYPE_F16);
        return v;
}

/* The byte whose step is the first of at least v * top, or the nearest. */
static uint8_t step_byte(float v, float top, bool at_least)
{
        uint8_t at = 0;
        float below = 0, above = 0;

        if (!(v > 0) || !(top > 0))
                return 0;
        for (unsigned bit = 128; bit; bit /= 2) { /* at: the largest byte whose step is less */
                uint8_t try = (uint8_t)(at + bit);
                float made;

                kernels()->quant_params(&made, &try, 1, QUANT_PARAM_LOG, top, 0);
                if (made < v) {
                        at = try;
                        below = made;
                }
        }
        if (at == 255)
                return 255;
        kernels()->quant_params(&above, &(uint8_t){(uint8_t)(at + 1)}, 1, QUANT_PARAM_LOG, top, 0);
        return at_least || above - v <= v - below ? (uint8_t)(at + 1) : at;
}

/* Writes a head's parameters as bytes at dst; low and step become what a decoder will see, in units of 2^-exponent. */
static void store_bytes(const struct quant *q, uint8_t *dst, float *low, float *step)
{
        float least = low[0], most = low[0], top = 0, base, unit, codes = (float)((1u << q->bits) - 1);
        uint8_t *lows = dst + RANGE_BYTES, *steps = lows + q->n_params;

        for (size_t i = 0; i < q->n_params; i++) {
                least = low[i] < least ? low[i] : least;
                most = low[i] > most ? low[i] : most;
        }
        put_half(dst, least);
        base = get_half(dst);
        put_half(dst + 2, (most - base) / 255);
        unit = get_half(dst + 2);
        for (size_t i = 0; i < q->n_params; i++) {
                float v = unit > 0 ? rintf((low[i] - base) / unit) : 0;

                lows[i] = (uint8_t)(v < 0 ? 0 : v > 255 ? 255 : v);
                v = base + unit * (float)lows[i];
                step[i] += (low[i] - v) / codes; /* the upper end stays */
                low[i] = v;
                top = step[i] > top ? step[i] : top;
        }
        put_half(dst + 4, top / 0x1.ea4afap0f * 1.001f);
        top = get_half(dst + 4);
        for (size_t i = 0; i < q->n_params; i++)
                steps[i] = step_byte(step[i], top, q->bits > 3);
        kernels()->quant_params(step, steps, q->n_params, QUANT_PARAM_LOG, top, 0);
}

/* False: some parameters are not finite. */
static bool encode_head(const struct quant *q, const float *x, const struct quant_rule *rule, uint8_t *dst, float *low, float *step)
{
        struct quant_rows rows = {.row_bytes = q->row_bytes,
                                  .n_rows = q->tokens,
                                  .dim = q->dim,
                                  .bits = q->bits,
                                  .group = q->axis == QUANT_TOKEN ? q->group : 0,
                                  .low = low,
                                  .step = step};
        float up = ldexpf(1, q->exponent), down = ldexpf(1, -q->exponent);
        float check = 0;
        size_t n = q->n_params;

        if (q->axis == QUANT_CHANNEL)
                fit_channels(q, x, rule, low, step);
        else
                fit_tokens(q, x, rule, low, step);
        for (size_t i = 0; i < n; i++) {
                check += low[i] * 0.0f + step[i] * 0.0f; /* NaN if any is not finite */
                low[i] *= up;
                step[i] *= up;
        }
        if (check != 0)
                return false;
        if (q->param_bits == 16) {
                kernels()->narrow(dst, low, n, KVT_DTYPE_F16);
                kernels()->narrow(dst + 2 * n, step, n, KVT_DTYPE_F16);
                kernels()->widen(low, dst, n, KVT_DTYPE_F16);
                kernels()->widen(step, dst + 2 * n, n, KVT_DTYPE_F16);
                dst += 4 * n;
        } else {
                store_bytes(q, dst, low, step);
                dst += RANGE_BYTES + 2 * n;
        }
        for (size_t i = 0; i < n; i++) {
                low[i] *= down;
                step[i] = step[i] > 0 ? 1 / (step[i] * down) : 0;
        }
        for (size_t first = 0; first < q->tokens && !rows.group; first += q->group, rows.low += q->dim, rows.step += q->dim) {
                rows.n_rows = smaller(q->group, q->tokens - first);
                kernels()->quant_encode_rows(dst + first * q->row_bytes, x + first * q->dim, &rows);
        }
        if (rows.group)
                kernels()->quant_encode_rows(dst, x, &rows);
        return true;
}

bool quant_encode(struct quant *q, const float *values, bool middles, unsigned rounds, uint8_t *restrict dst, void *scratch)
{
        struct quant_rule rule = {q->bits, middles, rounds};
        size_t head_values = (size_t)q->tokens * q->dim;
        float *low = scratch;

        q->section = dst;
        q->exponent = exponent_of(values, q->heads * head_values);
        dst[0] = (uint8_t)q->bits;
        dst[1] = (uint8_t)q->param_bits;
        dst[2] = (uint8_t)(__builtin_ctz(q->group) | (q->axis == QUANT_TOKEN ? 128 : 0));
        dst[3] = (uint8_t)(int8_t)q->exponent;
        for (size_t h = 0; h < q->heads; h++)
                if (!encode_head(q, values + h * head_values, &rule, dst + QUANT_HEADER_BYTES + h * q->head_bytes, low, low + q->n_params))
                        return false;
        return true;
}

/* decoding */

size_t quant_open(struct quant *ret, uint32_t heads, uint32_t tokens, uint32_t dim, const uint8_t *src, size_t n_src)
{
        unsigned group_log2;

        if (n_src < QUANT_HEADER_BYTES)
                return 0;
        group_log2 = src[2] & 127;
        if (!((src[0] >= 1 && src[0] <= 4) || src[0] == 8) || (src[1] != 8 && src[1] != 16) || group_log2 < 4 || group_log2 > 7)
                return 0;
        *ret = (struct quant){.heads = heads,
                              .tokens = tokens,
                              .dim = dim,
                              .axis = src[2] & 128 ? QUANT_TOKEN : QUANT_CHANNEL,
                              .bits = src[0],
                              .param_bits = src[1],
                              .group = 1u << group_log2,
                              .section = src,
                              .exponent = (int8_t)src[3]};
        if (ret->exponent < EXPONENT_MIN || ret->exponent > EXPONENT_MAX)
                return 0;
        finish(ret);
        return ret->bytes <= n_src ? ret->bytes : 0;
}

/* Parameters [first, first + n) of a head whose data are at `at`. */
static bool load_params(const struct quant *q, const uint8_t *at, size_t first, size_t n, float *low, float *step)
{
        const struct kernels *k = kernels();
        float down = ldexpf(1, -q->exponent), base, unit, top;

        if (q->param_bits == 16)
                return k->quant_params(low, at + 2 * first, n, QUANT_PARAM_HALF, down, 0) &&
                       k->quant_params(step, at + 2 * (q->n_params + first), n, QUANT_PARAM_HALF, down, 0);
        base = get_half(at);
        unit = get_half(at + 2);
        top = get_half(at + 4);
        if (!isfinite(base) || !isfinite(unit) || !isfinite(top))
                return false;
        at += RANGE_BYTES;
        k->quant_params(low, at + first, n, QUANT_PARAM_LINEAR, base * down, unit * down);
        k->quant_params(step, at + q->n_params + first, n, QUANT_PARAM_LOG, top * down, 0);
        return true;
}

static size_t dtype_bytes(uint32_t dtype)
{
        return dtype == KVT_DTYPE_F32 ? 4 : dtype == KVT_DTYPE_F16 || dtype == KVT_DTYPE_BF16 ? 2 : 1;
}

/* The rows from t on, before end, whose parameters fit: fills ret but dtype. False: corrupt. scratch: quant_decode_scratch(). */
static bool load_band(const struct quant *q, uint32_t head, size_t t, size_t end, float *scratch, struct quant_rows *ret)
{
        const uint8_t *at = q->section + QUANT_HEADER_BYTES + head * q->head_bytes;
        float *low = scratch, *step = low + params_at_once(q->dim);
        size_t i, n_params;

        *ret = (struct quant_rows){.codes = at + q->head_bytes - (q->tokens - t) * q->row_bytes,
                                   .row_bytes = q->row_bytes,
                                   .dim = q->dim,
                                   .bits = q->bits,
                                   .group = q->axis == QUANT_TOKEN ? q->group : 0,
                                   .low = low,
                                   .step = step};
        if (q->axis == QUANT_CHANNEL) {
                ret->n_rows = smaller(q->group - t % q->group, end - t);
                i = t / q->group * q->dim;
                n_params = q->dim;
        } else {
                ret->n_rows = smaller(params_at_once(q->dim) / q->groups, end - t);
                i = t * q->groups;
                n_params = ret->n_rows * q->groups;
        }
        return load_params(q, at, i, n_params, low, step);
}

int quant_decode(const struct quant *q, uint32_t head, uint32_t first, uint32_t n, uint32_t dtype, void *dst, void *scratch)
{
        struct quant_rows rows;
        uint8_t *to = dst;

        assert(head < q->heads && first < q->tokens && n <= q->tokens - first);
        for (size_t t = first, end = (size_t)first + n; t < end; t += rows.n_rows) {
                if (!load_band(q, head, t, end, scratch, &rows))
                        return KVT_E_CORRUPT;
                rows.dtype = dtype;
                kernels()->quant_decode_rows(to, &rows);
                to += rows.n_rows * q->dim * dtype_bytes(dtype);
        }
        return 0;
}

int quant_decode_plane(const struct quant *q, const struct shape *p, void *dst, void *scratch)
{
        size_t head_bytes = (size_t)p->tokens * p->dim * p->elem_bytes;
        int r = 0;

        for (uint32_t h = 0; h < p->heads && !r; h++)
                r = quant_decode(q, h, 0, p->tokens, p->dtype, (uint8_t *)dst + h * head_bytes, scratch);
        return r;
}

int quant_describe(const struct quant *q, char *ret, size_t n_ret)
{
        return snprintf(ret, n_ret, "%s=%u,params=%u", q->axis == QUANT_TOKEN ? "vgroup" : "group", q->group, q->param_bits);
}

/* deeper levels */

/* Makes of a band's parameters those of a deeper level. */
static void deepen(struct quant_rows *rows, float *scratch, size_t room, unsigned level)
{
        float *low = scratch, *step = low + room;
        size_t n = rows->group ? rows->n_rows * ((rows->dim + rows->group - 1) / rows->group) : rows->dim;
        float part = 1 / (float)(1u << level); /* level i's codes are a step / 2^i apart */

        for (size_t i = 0; i < n; i++) {
                float width = step[i] * part;

                low[i] = -width / 2;
                step[i] = width;
        }
        rows->bits = 1;
}

size_t quant_level_bytes(const struct quant *q)
{
        return (size_t)q->heads * q->tokens * (((size_t)q->dim + 7) / 8);
}

int quant_encode_level(const struct quant *q, unsigned level, const float *left, uint8_t *restrict dst, void *scratch)
{
        size_t room = params_at_once(q->dim), row_bytes = ((size_t)q->dim + 7) / 8;
        float *step = (float *)scratch + room;
        struct quant_rows rows;

        for (uint32_t h = 0; h < q->heads; h++)
                for (size_t t = 0; t < q->tokens; t += rows.n_rows, dst += rows.n_rows * row_bytes, left += rows.n_rows * q->dim) {
                        if (!load_band(q, h, t, q->tokens, scratch, &rows))
                                return KVT_E_CORRUPT;
                        deepen(&rows, scratch, room, level);
                        for (size_t i = 0; i < room; i++)
                                step[i] = step[i] > 0 ? 1 / step[i] : 0;
                        rows.row_bytes = row_bytes;
                        kernels()->quant_encode_rows(dst, left, &rows);
                }
        return 0;
}

int quant_decode_level(const struct quant *q, unsigned level, const uint8_t *src, uint32_t head, uint32_t first, uint32_t n, float *dst,
                       void *scratch)
{
        size_t room = params_at_once(q->dim), row_bytes = ((size_t)q->dim + 7) / 8;
        struct quant_rows rows;

        assert(head < q->heads && first < q->tokens && n <= q->tokens - first);
        for (size_t t = first, end = (size_t)first + n; t < end; t += rows.n_rows, dst += rows.n_rows * q->dim) {
                if (!load_band(q, head, t, end, scratch, &rows))
                        return KVT_E_CORRUPT;
                deepen(&rows, scratch, room, level);
                rows.row_bytes = row_bytes;
                rows.codes = src + (head * (size_t)q->tokens + t) * row_bytes;
                rows.dtype = KVT_DTYPE_F32;
                kernels()->quant_decode_rows(dst, &rows);
        }
        return 0;
}

int quant_decode_picked(const struct quant *q, uint32_t head, const uint32_t *tokens, size_t n, uint32_t dtype, void *dst, void *scratch)
{
        size_t row = q->dim * dtype_bytes(dtype);

        for (size_t i = 0, run; i < n; i += run) {
                int r;

                for (run = 1; i + run < n && tokens[i + run] == tokens[i] + run;)
                        run++;
                r = quant_decode(q, head, tokens[i], (uint32_t)run, dtype, (uint8_t *)dst + i * row, scratch);
                if (r)
                        return r;
        }
        return 0;
}
