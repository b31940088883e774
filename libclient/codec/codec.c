/* The registry, and specs as text. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "libclient/codec/codec.h"

static const struct codec *const codecs[CODEC_N_IDS] = {
        [CODEC_RAW] = &codec_raw,     [CODEC_ZBF] = &codec_zbf,       [CODEC_CBF] = &codec_cbf,     [CODEC_XDELTA] = &codec_xdelta,
        [CODEC_KIVI] = &codec_kivi,   [CODEC_TURBO] = &codec_turbo,   [CODEC_MIXED] = &codec_mixed, [CODEC_GEAR] = &codec_gear,
        [CODEC_STACK] = &codec_stack, [CODEC_BITMAP] = &codec_bitmap,
};

const struct codec *codec_find(uint8_t id)
{
        return id < CODEC_N_IDS ? codecs[id] : NULL;
}

const struct codec *codec_next(const struct codec *c)
{
        for (unsigned i = c ? c->id + 1u : 0; i < CODEC_N_IDS; i++)
                if (codecs[i])
                        return codecs[i];
        return NULL;
}

const struct codec *codec_by_name(const char *name, size_t n)
{
        for (const struct codec *c = NULL; (c = codec_next(c));)
                if (strlen(c->name) == n && !memcmp(c->name, name, n))
                        return c;
        return NULL;
}

bool shape_make(struct shape *ret, uint32_t role, uint32_t dtype, uint32_t heads, uint32_t tokens, uint32_t dim, uint32_t seed)
{
        uint32_t elem_bytes = dtype == KVT_DTYPE_OPAQUE ? 1 : geometry_dtype_bytes(dtype);
        uint64_t n;

        if (!elem_bytes || !heads || !tokens || !dim || role > KVT_ROLE_INDEXER ||
            __builtin_mul_overflow((uint64_t)heads * tokens, dim, &n) || n > UINT32_MAX / elem_bytes)
                return false;
        *ret = (struct shape){role, dtype, heads, tokens, dim, elem_bytes, seed, (size_t)n, (size_t)n * elem_bytes};
        return true;
}

struct shape shape_of(const struct geometry *g, size_t i_plane)
{
        const kvt_plane *p = &g->planes[i_plane];
        struct shape s = {
                .role = p->role, .dtype = p->dtype, .heads = p->heads, .tokens = g->block_tokens, .dim = p->dim, .seed = (uint32_t)i_plane};

        if (p->dtype == KVT_DTYPE_OPAQUE) {
                s.dim = p->opaque_bytes;
                s.elem_bytes = 1;
                if (p->role == KVT_ROLE_STATE)
                        s.tokens = 1;
        } else {
                s.elem_bytes = geometry_dtype_bytes(p->dtype);
        }
        s.n_bytes = (size_t)(g->offsets[i_plane + 1] - g->offsets[i_plane]);
        s.n_values = s.n_bytes / s.elem_bytes;
        return s;
}

/* specs */

struct codec_spec codec_spec_default(const struct codec *c)
{
        struct codec_spec s = {.codec = c};

        for (unsigned i = 0; i < CODEC_PARAMS_MAX && c->params[i].name; i++)
                s.params[i] = c->params[i].value;
        return s;
}

static bool allows(const struct codec_param *p, unsigned long v)
{
        if (!p->allowed[0])
                return v >= p->min && v <= p->max;
        for (unsigned i = 0; i < 8 && p->allowed[i]; i++)
                if (p->allowed[i] == v)
                        return true;
        return false;
}

/* One NAME=VALUE of n bytes. */
static const char *parse_param(const char *text, size_t n, struct codec_spec *s)
{
        const char *equals = memchr(text, '=', n);
        size_t n_name = equals ? (size_t)(equals - text) : n;
        char digits[8] = {0};

        for (unsigned i = 0; i < CODEC_PARAMS_MAX && s->codec->params[i].name; i++) {
                const struct codec_param *p = &s->codec->params[i];
                unsigned long v;

                if (strlen(p->name) != n_name || memcmp(p->name, text, n_name) != 0)
                        continue;
                if (!equals || n - n_name - 1 >= sizeof(digits) || n - n_name == 1)
                        return "a codec's parameter takes a number: NAME=NUMBER";
                memcpy(digits, equals + 1, n - n_name - 1);
                v = strtoul(digits, NULL, 10);
                if (strspn(digits, "0123456789") != n - n_name - 1)
                        return "a codec's parameter takes a number: NAME=NUMBER";
                if (!allows(p, v))
                        return "a codec's parameter does not take that number; see kvtier-codecs(7)";
                s->params[i] = (uint16_t)v;
                return NULL;
        }
        return "the codec has no such parameter; see kvtier-codecs(7)";
}

int codec_spec_parse(const char *text, size_t n, struct codec_spec *ret, const char **ret_why)
{
        const char *colon = memchr(text, ':', n);
        size_t n_name = colon ? (size_t)(colon - text) : n;
        const struct codec *c = codec_by_name(text, n_name);
        struct codec_spec s;

        if (!c) {
                *ret_why = "no codec of that name; see kvtier-codecs(7)";
                return KVT_E_BAD_REQUEST;
        }
        s = codec_spec_default(c);
        for (size_t at = n_name + 1, len; colon && at <= n; at += len + 1) {
                const char *comma = memchr(text + at, ',', n - at);

                len = comma ? (size_t)(comma - (text + at)) : n - at;
                *ret_why = parse_param(text + at, len, &s);
                if (*ret_why)
                        return KVT_E_BAD_REQUEST;
        }
        *ret = s;
        return 0;
}

char *codec_spec_format(const struct codec_spec *s, char ret[CODEC_SPEC_MAX])
{
        int n = snprintf(ret, CODEC_SPEC_MAX, "%s", s->codec->name);
        char before = ':';

        for (unsigned i = 0; i < CODEC_PARAMS_MAX && s->codec->params[i].name; i++)
                if (s->params[i] != s->codec->params[i].value && n < CODEC_SPEC_MAX) {
                        n += snprintf(ret + n, (size_t)(CODEC_SPEC_MAX - n), "%c%s=%u", before, s->codec->params[i].name, s->params[i]);
                        before = ',';
                }
        return ret;
}

bool codec_spec_equal(const struct codec_spec *a, const struct codec_spec *b)
{
        return a->codec == b->codec && !memcmp(a->params, b->params, sizeof(a->params));
}

int codec_pair_parse(const char *text, struct codec_pair *ret, const char **ret_why)
{
        const char *plus = strchr(text, '+');
        struct codec_pair p;
        int r = codec_spec_parse(text, plus ? (size_t)(plus - text) : strlen(text), &p.k, ret_why);

        if (r)
                return r;
        p.v = p.k;
        if (plus)
                r = codec_spec_parse(plus + 1, strlen(plus + 1), &p.v, ret_why);
        if (!r)
                *ret = p;
        return r;
}

char *codec_pair_format(const struct codec_pair *p, char ret[CODEC_PAIR_MAX])
{
        codec_spec_format(&p->k, ret);
        if (!codec_spec_equal(&p->k, &p->v)) {
                size_t n = strlen(ret);

                ret[n] = '+';
                codec_spec_format(&p->v, ret + n + 1);
        }
        return ret;
}
