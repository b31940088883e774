/* The uniform quantiser that several codecs are made of: a section of a payload that holds heads x tokens x dim values as x ~ low + code * step, with a pair
 * of parameters for each channel of a group of tokens (QUANT_CHANNEL), or for each token's group of channels (QUANT_TOKEN), as KIVI (arXiv 2402.02750)
 * does for keys and values. Pure; any thread.
 *
 * A section, little-endian:
 *   bits u8 (1, 2, 3, 4, 8); bits of a parameter u8 (8, 16); log2 of the group u8, +128: QUANT_TOKEN; exponent i8
 *   for each head:
 *     8-bit parameters: base, unit, top (f16 each)
 *     low, then step, n_params each, [group of tokens][channel] or [token][group of channels]
 *     codes [token], row_bytes each, see bits_kernels.h
 * A 16-bit parameter is an f16, in units of 2^-exponent, as base, unit and top are. low = base + unit * byte. step = top * 2^((byte - 240) / 16), byte 0: 0. */
#pragma once

#include "libclient/codec/codec.h"

enum quant_axis {
        QUANT_CHANNEL,
        QUANT_TOKEN,
};

enum { QUANT_HEADER_BYTES = 4, QUANT_GROUP_MIN = 16, QUANT_GROUP_MAX = 128 };

/* What a section holds. The first seven fields decide the others. */
struct quant {
        uint32_t heads, tokens, dim;
        enum quant_axis axis;
        unsigned bits;
        unsigned param_bits;
        unsigned group; /* a power of two from QUANT_GROUP_MIN to QUANT_GROUP_MAX; the last one may be ragged */
        size_t groups; /* of tokens in a head, or of channels in a row */
        size_t n_params; /* of a head */
        size_t row_bytes, head_bytes, bytes;
        const uint8_t *section; /* decoding */
        int exponent;
};

/* A section of so many tokens of a plane. per_token: also where it holds keys, whose parameters are per channel else. params: three of a spec, see below. */
struct quant quant_lay_out(const struct shape *p, uint32_t tokens, bool per_token, unsigned bits, const uint16_t params[3]);
/* The params of a codec's table, in its places i to i + 2. */
#define QUANT_PARAMS(i)                                                                                                                    \
        [i] = {"group", 64, .allowed = {16, 32, 64, 128}, .help = "tokens that share parameters, in key planes"},                          \
        [i + 1] = {"vgroup", 64, .allowed = {16, 32, 64, 128}, .help = "channels that share parameters, in value planes"},                 \
        [i + 2] = {"params", 8, .allowed = {8, 16}, .help = "bits of a parameter"}
/* Bytes of scratch, 4-byte aligned, to encode (laid out) and to decode any section of that dim. */
size_t quant_encode_scratch(const struct quant *q);
size_t quant_decode_scratch(uint32_t dim);
/* values: [head][token][dim], finite. Writes q->bytes at dst, where q is open then. middles, rounds: see struct quant_rule. False: they are so large that
 * sums of them overflow. */
bool quant_encode(struct quant *q, const float *values, bool middles, unsigned rounds, uint8_t *restrict dst, void *scratch);

/* Opens a section of at least one token at src. Returns its bytes, which are at most n_src; 0: it is not one. */
size_t quant_open(struct quant *ret, uint32_t heads, uint32_t tokens, uint32_t dim, const uint8_t *src, size_t n_src);
/* Rows [first, first + n) of a head, in dtype, no gaps. 0 or KVT_E_CORRUPT. */
int quant_decode(const struct quant *q, uint32_t head, uint32_t first, uint32_t n, uint32_t dtype, void *dst, void *scratch);
/* All heads, in the plane's dtype. */
int quant_decode_plane(const struct quant *q, const struct shape *p, void *dst, void *scratch);
/* Rows tokens[0..n) of a head. */
int quant_decode_picked(const struct quant *q, uint32_t head, const uint32_t *tokens, size_t n, uint32_t dtype, void *dst, void *scratch);

/* Its parameters as a spec would give them, "group=64,params=8". Returns snprintf's. */
int quant_describe(const struct quant *q, char *ret, size_t n_ret);

/* Deeper levels: level i = 1, 2, ... halves the steps once more. It has a bit for each value, [head][token], each row from a whole byte on: what is left after
 * the levels before is below 0 or not. It stands for -+ step / 2^(i + 1). */
size_t quant_level_bytes(const struct quant *q);
/* q: as quant_open() made it. left: what is left, [head][token][dim]. scratch: quant_decode_scratch(). 0 or KVT_E_CORRUPT. */
int quant_encode_level(const struct quant *q, unsigned level, const float *left, uint8_t *restrict dst, void *scratch);
/* What rows [first, first + n) of a head get from a deeper level that stands at src: add it to those of the levels before. 0 or KVT_E_CORRUPT. */
int quant_decode_level(const struct quant *q, unsigned level, const uint8_t *src, uint32_t head, uint32_t first, uint32_t n, float *dst,
                       void *scratch);
