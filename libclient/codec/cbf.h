/* What cbf's encoder and decoder share. The format stands in cbf.c. */
#pragma once

#include "libclient/codec/codec.h"

enum {
        CBF_LANES = 32,
        CBF_PROB_BITS = 10, /* frequencies of a table add up to 1 << this */
        CBF_SLOTS = 1 << CBF_PROB_BITS,
        CBF_STATE_LOW = 1 << 16, /* states are from here to 2^32 - 1; each lane's first (the decoder's last) is this one */
        CBF_LEVELS = 64, /* of magnitude below a channel's top; the last one stands for magnitude 0 */
        CBF_SYMBOLS = 2 * CBF_LEVELS, /* 2 * level + (sign ^ the channel's flip) */
        CBF_BIG = 4, /* from this level on the next token's context is another */
        CBF_CONTEXTS = 4, /* of a class: the symbol of the token before, sign bit + 2 * (level >= CBF_BIG); 0 for the first one */
        CBF_MAX_CLASSES = 16,
        CBF_MAX_TABLES = 16,
        CBF_MAX_CHANNELS = 16384, /* each head's rounded up to CBF_LANES */
        CBF_MAX_WEIGHT = 48, /* a table's weights as coded: 0, or 1 + 4 k + m for (4 + m) << k */
        CBF_HEADER_BYTES = 12,
};

/* How a dtype's elements are taken apart: sign, magnitude (exponent and the mantissa's first bit) and the rest. */
struct cbf_layout {
        unsigned width; /* bits of an element */
        unsigned raw_bits; /* that are not coded */
        size_t row_bytes; /* of raw bits: rows of dim values, padded to 8 */
        size_t stride; /* channels of a head, padded to CBF_LANES */
        size_t n_rows; /* heads * tokens */
};
struct cbf_layout cbf_layout(const struct shape *p);

struct cbf_class {
        bool flips; /* its channels have a flip each */
        uint8_t tables[CBF_CONTEXTS];
};

struct cbf_table {
        bool folded; /* both signs have the weights of the first */
        uint8_t n[2]; /* levels that have a weight */
        uint8_t weights[2][CBF_LEVELS];
};
/* False: no weight at all. */
bool cbf_frequencies(const struct cbf_table *t, uint16_t ret[CBF_SYMBOLS]);

static inline unsigned cbf_index_bits(unsigned n)
{
        return n < 2 ? 0 : 32u - (unsigned)__builtin_clz(n - 1);
}

size_t cbf_encode_scratch(const struct shape *p);
/* codec_cbf's encode(). */
size_t cbf_encode(const struct codec_spec *s, const struct shape *p, const struct codec_input *in, uint8_t *restrict dst, void *scratch);
