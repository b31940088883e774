/* A codec turns one plane's canonical bytes into a payload and back. Pure functions: no I/O, no allocation, no globals but tables; any thread.
 *
 * The registry maps ids to codecs. Ids stand in copies and on disk and are never reused; an unknown id is refused, not guessed. What a decoder needs to know
 * stands in the payload; a spec is for encoders. Decoders take hostile input: n_src bytes at src, unaligned, of any content.
 *
 * Lossless codecs work on bytes. The others work on floats: the caller (codec/plane) has widened the plane and taken out what is not finite; they write
 * decoded values in the plane's dtype. Callers go through codec/plane, which falls back, keeps rows exact and measures errors. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "libclient/codec/geometry.h"

enum codec_id {
        CODEC_RAW = 0,
        CODEC_ZBF = 1,
        CODEC_CBF = 2,
        CODEC_XDELTA = 3,
        CODEC_KIVI = 4,
        CODEC_TURBO = 5,
        CODEC_MIXED = 6,
        CODEC_GEAR = 7,
        CODEC_STACK = 8,
        CODEC_BITMAP = 9,
        CODEC_N_IDS,
};

enum codec_flags {
        CODEC_LOSSLESS = 1,
        CODEC_ROW_ACCESS = 2, /* decode_rows: named tokens of a head, without decoding the others */
        CODEC_TRUNCATES = 4, /* shrink: a payload becomes that of a spec with fewer bits without the values */
        CODEC_NEEDS_BASE = 8, /* works against the bytes of another block */
};

/* A plane as codecs see it: values [head][token][dim], row-major, no gaps. OPAQUE planes are bytes: one head, elem_bytes 1; a STATE plane is one token. */
struct shape {
        uint32_t role; /* enum kvt_role */
        uint32_t dtype; /* enum kvt_dtype */
        uint32_t heads, tokens, dim;
        uint32_t elem_bytes;
        uint32_t seed; /* the plane's number: for codecs that draw at random */
        size_t n_values, n_bytes;
};
struct shape shape_of(const struct geometry *g, size_t i_plane);
/* One that is in no geometry: at most 2^32 - 1 bytes. False: there is no such plane. */
bool shape_make(struct shape *ret, uint32_t role, uint32_t dtype, uint32_t heads, uint32_t tokens, uint32_t dim, uint32_t seed);

enum { CODEC_PARAMS_MAX = 6 };
struct codec_param {
        const char *name;
        uint16_t value; /* default */
        uint16_t min, max;
        uint16_t allowed[8]; /* if the first is not 0: only these, up to a 0; min and max do not count */
        const char *help;
};

struct codec;
struct codec_spec {
        const struct codec *codec;
        uint16_t params[CODEC_PARAMS_MAX]; /* in the order of codec->params */
};

struct codec_input {
        const void *bytes; /* canonical */
        const float *values; /* the same as floats, all finite; NULL for lossless codecs */
        const float *scores; /* importance of each token, not negative; NULL: not known */
        const void *base; /* CODEC_NEEDS_BASE: canonical bytes of the same plane of another block */
        const uint8_t *base_key; /* its key, 16 bytes */
};

struct codec {
        uint8_t id; /* enum codec_id */
        const char *name;
        const char *summary; /* one line */
        unsigned flags;
        struct codec_param params[CODEC_PARAMS_MAX]; /* up to the first without a name */
        /* Whether the codec has a way to code such a plane. NULL: all. */
        bool (*supports)(const struct codec_spec *s, const struct shape *p);
        /* Most bytes encode() writes. */
        size_t (*bound)(const struct codec_spec *s, const struct shape *p);
        /* Bytes of scratch encode() or decode() of the plane need, whatever is in the payload; 64-byte aligned. NULL: none. */
        size_t (*scratch)(const struct codec_spec *s, const struct shape *p);
        /* Returns the bytes written at dst, which has room for bound(); 0: this plane cannot be coded (or would not shrink). */
        size_t (*encode)(const struct codec_spec *s, const struct shape *p, const struct codec_input *in, uint8_t *restrict dst,
                         void *scratch);
        /* Payload -> canonical bytes at dst (p->n_bytes). base: see codec_input. scratch: as scratch() of a spec with default parameters says.
         * 0 or KVT_E_CORRUPT (dst is garbage then). */
        int (*decode)(const struct shape *p, const uint8_t *restrict src, size_t n_src, const void *base, void *restrict dst,
                      void *scratch);
        /* CODEC_ROW_ACCESS: rows tokens[0..n) of a head, in that order, dim elements each, the same bytes as decode() gives. tokens are below p->tokens. */
        int (*decode_rows)(const struct shape *p, const uint8_t *restrict src, size_t n_src, uint32_t head, const uint32_t *tokens,
                           size_t n, void *restrict dst, void *scratch);
        /* The next better spec of this codec; ret may be s. False: there is none. NULL: likewise. */
        bool (*better)(const struct codec_spec *s, struct codec_spec *ret);
        /* CODEC_TRUNCATES: makes the payload of `to` out of one with more bits, in place. Returns its bytes and the error against the values that were
         * encoded, or 0: it is not one with more. What it leaves may be thrown away: nothing of the longer payload may be changed. */
        size_t (*shrink)(const struct codec_spec *to, const struct shape *p, uint8_t *payload, size_t n, float *ret_rel_l2,
                         float *ret_max_abs);
        /* The parameters of a payload, as a spec would give them: "bits=4,group=64". Those that it does not show are left out; the named ones make the same
         * payload of the same plane. NULL: the codec has none. Returns snprintf's; "?": it is no payload. */
        int (*describe)(const struct shape *p, const uint8_t *src, size_t n_src, char *ret, size_t n_ret);
};

/* NULL: unknown */
const struct codec *codec_find(uint8_t id);
const struct codec *codec_by_name(const char *name, size_t n);
/* The next one after c, NULL: the first. NULL: that was the last. */
const struct codec *codec_next(const struct codec *c);

/* specs as text: NAME or NAME:PARAM=VALUE,PARAM=VALUE */

enum { CODEC_SPEC_MAX = 128 };
struct codec_spec codec_spec_default(const struct codec *c);
/* 0, or KVT_E_BAD_REQUEST with *ret_why: a static text. */
int codec_spec_parse(const char *text, size_t n, struct codec_spec *ret, const char **ret_why);
/* Only parameters that differ from their defaults. Returns ret. */
char *codec_spec_format(const struct codec_spec *s, char ret[CODEC_SPEC_MAX]);
bool codec_spec_equal(const struct codec_spec *a, const struct codec_spec *b);

/* What K planes and V planes are coded with: SPEC for both, or SPEC+SPEC. Other roles go with K. */
struct codec_pair {
        struct codec_spec k, v;
};
enum { CODEC_PAIR_MAX = 2 * CODEC_SPEC_MAX };
int codec_pair_parse(const char *text, struct codec_pair *ret, const char **ret_why);
char *codec_pair_format(const struct codec_pair *p, char ret[CODEC_PAIR_MAX]);
static inline const struct codec_spec *codec_pair_for(const struct codec_pair *p, uint32_t role)
{
        return role == KVT_ROLE_V ? &p->v : &p->k;
}
static inline bool codec_pair_lossless(const struct codec_pair *p)
{
        return p->k.codec->flags & p->v.codec->flags & CODEC_LOSSLESS;
}

extern const struct codec codec_raw, codec_zbf, codec_cbf, codec_xdelta, codec_kivi, codec_turbo, codec_mixed, codec_gear, codec_stack,
        codec_bitmap;
