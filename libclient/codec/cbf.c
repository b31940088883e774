/* Codec 2: sign and exponent under contexts of their channel, mantissas as they are (DFloat11's idea with what KV has: channels that differ).
 *
 * An element is sign, magnitude (exponent and the mantissa's first bit) and raw bits (the rest of the mantissa). A channel (head and dim) has a top: the
 * largest magnitude in it; a flip: its commoner sign; and a class. What is coded of an element is a symbol: how far its magnitude is below the top (63 also:
 * magnitude 0), and whether its sign is the flip. The class and the symbol of the token before in the same channel name a table of frequencies. Elements of
 * magnitudes further down are exceptions, which are patched after all else.
 *
 * Symbols are coded by 32 rANS coders a chunk (Duda 2013; 32-bit states, renormalised by 16-bit words): lane l has the channels l, l + 32, ... of a row, and
 * the lanes take words in their order, so that a group of 32 values is one step of a GPU's warp or of a few vectors. Chunks are whole rows; each can
 * be decoded on its own, its first row as if the token before had symbol 0. So has each head's first row.
 *
 * Payload, little-endian, bits from the lowest:
 *     u32 rows a chunk · u32 exceptions · u8 classes · u8 tables · u8 lowest exponent of a top · u8 bits of a top
 *     bits: { flips 1 · tables 4 x 4 } a class · { folded 1 · { levels 7 · weights } once or twice } a table · { class · top · flip if the class flips } a
 *     channel, [head][dim]; padded to a byte
 *     u32 a chunk: where its words end, in words from the start of the first chunk's
 *     chunks: 32 states, two words each, low one first · words
 *     raw bits: rows of groups of 8 values, the last one padded
 *     exceptions: { u32 index · element }
 * A weight is coded as its difference to one less than the weight before (the first: to 32), zigzagged, Rice code with one bit. */
#include <string.h>

#include "libclient/codec/cbf.h"
#include "libclient/codec/kernels.h"

struct cbf_layout cbf_layout(const struct shape *p)
{
        unsigned raw_bits = p->dtype == KVT_DTYPE_F16 ? 9 : p->dtype == KVT_DTYPE_BF16 ? 6 : 22;

        return (struct cbf_layout){.width = 8 * p->elem_bytes,
                                   .raw_bits = raw_bits,
                                   .row_bytes = ((size_t)p->dim + 7) / 8 * raw_bits,
                                   .stride = ((size_t)p->dim + CBF_LANES - 1) & ~(size_t)(CBF_LANES - 1),
                                   .n_rows = (size_t)p->heads * p->tokens};
}

bool cbf_frequencies(const struct cbf_table *t, uint16_t ret[CBF_SYMBOLS])
{
        uint32_t weights[CBF_SYMBOLS] = {0}, sum = 0, total = 0;
        unsigned max = 0;

        for (unsigned i = 0; i < CBF_SYMBOLS; i++) {
                unsigned side = t->folded ? 0 : i % 2, code = i / 2 < t->n[side] ? t->weights[side][i / 2] : 0;

                if (code)
                        weights[i] = (4 + (code - 1) % 4) << (code - 1) / 4;
                sum += weights[i];
        }
        if (!sum)
                return false;
        for (unsigned i = 0; i < CBF_SYMBOLS; i++) {
                uint32_t f = weights[i] ? (weights[i] * CBF_SLOTS + sum / 2) / sum : 0;

                ret[i] = (uint16_t)(weights[i] && !f ? 1 : f);
                total += ret[i];
                max = ret[i] > ret[max] ? i : max;
        }
        while (total != CBF_SLOTS) { /* the largest gives or takes what is over */
                uint32_t over = total - CBF_SLOTS;

                if (total > CBF_SLOTS && over > ret[max] - 1u)
                        over = ret[max] - 1u;
                ret[max] = (uint16_t)(ret[max] - over);
                total -= over;
                for (unsigned i = 0; i < CBF_SYMBOLS && total != CBF_SLOTS; i++)
                        max = ret[i] > ret[max] ? i : max;
        }
        return true;
}

/* reading */

struct bits {
        const uint8_t *src;
        size_t at, n; /* in bits */
        bool bad; /* read past the end */
};

/* The next 25 bits at least, 0 after the last. */
static inline uint32_t look(const struct bits *b)
{
        size_t at = b->at / 8, left = b->n / 8 - at;
        uint32_t x = 0;

        if (left >= 4)
                memcpy(&x, b->src + at, 4);
        else
                memcpy(&x, b->src + at, left);
        return x >> b->at % 8;
}

static inline void skip(struct bits *b, unsigned n)
{
        b->bad |= n > b->n - b->at;
        b->at += b->bad ? 0 : n;
}

/* At most 16 bits. */
static inline uint32_t take(struct bits *b, unsigned n)
{
        uint32_t x = look(b) & ((1u << n) - 1);

        skip(b, n);
        return x;
}

static bool take_table(struct bits *b, struct cbf_table *ret)
{
        ret->folded = take(b, 1);
        for (unsigned side = 0; side < (ret->folded ? 1u : 2u); side++) {
                int32_t before = 33;

                ret->n[side] = (uint8_t)take(b, 7);
                if (ret->n[side] > CBF_LEVELS)
                        return false;
                for (unsigned i = 0; i < ret->n[side]; i++) {
                        uint32_t ones = 0, z, x;

                        while (x = look(b), (x & 0xffff) == 0xffff && ones <= 2 * CBF_MAX_WEIGHT && !b->bad) {
                                ones += 16;
                                skip(b, 16);
                        }
                        z = (uint32_t)__builtin_ctz(~x | 0x10000);
                        ones += z;
                        z = 2 * ones + (x >> (z + 1) & 1);
                        skip(b, ones % 16 + 2);
                        before += (int32_t)(z >> 1 ^ (0 - (z & 1))) - 1;
                        if (before < 0 || before > CBF_MAX_WEIGHT)
                                return false;
                        ret->weights[side][i] = (uint8_t)before;
                }
        }
        return !b->bad;
}

static bool fill_table(const struct cbf_table *t, uint32_t ret[CBF_SLOTS])
{
        uint16_t frequencies[CBF_SYMBOLS];

        if (!cbf_frequencies(t, frequencies))
                return false;
        kernels()->cbf_fill(ret, frequencies);
        return true;
}

/* what decoding needs, in the scratch */
struct model {
        uint32_t *tables; /* CBF_SLOTS each */
        uint32_t *offsets[CBF_CONTEXTS]; /* of each channel: where its table starts */
        uint32_t *tops; /* of each channel; the highest bit: flip */
        uint32_t *previous; /* a row's entries */
};

static size_t model_bytes(const struct cbf_layout *l, uint32_t heads)
{
        return ((size_t)CBF_MAX_TABLES * CBF_SLOTS + (CBF_CONTEXTS + 1) * heads * l->stride + l->stride) * sizeof(uint32_t);
}

static struct model model_at(const struct cbf_layout *l, uint32_t heads, uint32_t *at)
{
        struct model m = {.tables = at};

        at += (size_t)CBF_MAX_TABLES * CBF_SLOTS;
        for (unsigned q = 0; q < CBF_CONTEXTS; q++, at += heads * l->stride)
                m.offsets[q] = at;
        m.tops = at;
        m.previous = at + heads * l->stride;
        return m;
}

struct head {
        uint32_t chunk_rows, n_exceptions;
        uint8_t n_classes, n_tables, low_top, top_bits;
};

static bool read_head(const uint8_t *src, size_t n_src, struct head *ret)
{
        if (n_src < CBF_HEADER_BYTES)
                return false;
        memcpy(&ret->chunk_rows, src, 4);
        memcpy(&ret->n_exceptions, src + 4, 4);
        ret->n_classes = src[8];
        ret->n_tables = src[9];
        ret->low_top = src[10];
        ret->top_bits = src[11];
        return ret->chunk_rows && ret->n_classes && ret->n_classes <= CBF_MAX_CLASSES && ret->n_tables && ret->n_tables <= CBF_MAX_TABLES &&
               ret->top_bits <= 8;
}

/* Reads classes, tables and channels. Returns the bytes taken, 0: bad. */
static size_t read_model(const struct shape *p, const struct cbf_layout *l, const struct head *head, const uint8_t *src, size_t n_src,
                         struct model *ret)
{
        struct bits b = {.src = src, .n = n_src * 8};
        struct cbf_class classes[CBF_MAX_CLASSES];
        uint32_t most = (1u << (l->width - 1 - l->raw_bits)) - 1;
        unsigned class_bits = cbf_index_bits(head->n_classes);

        for (unsigned i = 0; i < head->n_classes; i++) {
                classes[i].flips = take(&b, 1);
                for (unsigned q = 0; q < CBF_CONTEXTS; q++) {
                        classes[i].tables[q] = (uint8_t)take(&b, 4);
                        if (classes[i].tables[q] >= head->n_tables)
                                return 0;
                }
        }
        for (unsigned i = 0; i < head->n_tables; i++) {
                struct cbf_table t = {0};

                if (!take_table(&b, &t) || !fill_table(&t, ret->tables + (size_t)i * CBF_SLOTS))
                        return 0;
        }
        for (size_t h = 0; h < p->heads; h++)
                for (size_t c = h * l->stride; c < h * l->stride + p->dim; c++) {
                        uint32_t x = look(&b), class = x & ((1u << class_bits) - 1), top;

                        x >>= class_bits;
                        top = (head->low_top + (x & ((1u << head->top_bits) - 1))) << 1 | 1;
                        if (class >= head->n_classes || top > most)
                                return 0;
                        if (classes[class].flips)
                                top |= x >> head->top_bits << 31;
                        skip(&b, class_bits + head->top_bits + classes[class].flips);
                        ret->tops[c] = top;
                        for (unsigned q = 0; q < CBF_CONTEXTS; q++)
                                ret->offsets[q][c] = classes[class].tables[q] * (uint32_t)CBF_SLOTS;
                }
        return b.bad ? 0 : (b.at + 7) / 8;
}

/* Rows [from, to) of all heads' from one chunk's states and words. */
static bool decode_chunk(const struct shape *p, const struct cbf_layout *l, const struct model *m, size_t from, size_t to,
                         const uint8_t *words, const uint8_t *words_end, const uint8_t *raw, const uint8_t *end, uint8_t *dst)
{
        uint32_t states[CBF_LANES];
        struct cbf_rows r = {.tables = m->tables,
                             .previous = m->previous,
                             .states = states,
                             .words = words + sizeof(states),
                             .raw = raw + from * l->row_bytes,
                             .end = end,
                             .dim = p->dim,
                             .row_bytes = l->row_bytes,
                             .raw_bits = l->raw_bits,
                             .width = l->width,
                             .dst = dst + from * p->dim * p->elem_bytes};

        memcpy(states, words, sizeof(states));
        while (from < to) {
                size_t head = from / p->tokens, stop = (head + 1) * p->tokens;

                for (unsigned q = 0; q < CBF_CONTEXTS; q++)
                        r.offsets[q] = m->offsets[q] + head * l->stride;
                r.tops = m->tops + head * l->stride;
                r.n_rows = (stop < to ? stop : to) - from;
                memset(m->previous, 0, l->stride * sizeof(*m->previous));
                kernels()->cbf_decode_rows(&r);
                from += r.n_rows;
        }
        for (unsigned i = 0; i < CBF_LANES; i++)
                if (states[i] != CBF_STATE_LOW)
                        return false;
        return r.words == words_end;
}

static int decode(const struct shape *p, const uint8_t *restrict src, size_t n_src, const void *base, void *restrict dst, void *scratch)
{
        struct cbf_layout l = cbf_layout(p);
        struct model m = model_at(&l, p->heads, scratch);
        size_t at, n, n_chunks, n_words, n_raw = l.n_rows * l.row_bytes, n_exception = sizeof(uint32_t) + p->elem_bytes;
        const uint8_t *ends, *words, *exceptions;
        struct head head;
        uint32_t start = 0;

        if (!read_head(src, n_src, &head))
                return KVT_E_CORRUPT;
        at = CBF_HEADER_BYTES;
        n = read_model(p, &l, &head, src + at, n_src - at, &m);
        if (!n)
                return KVT_E_CORRUPT;
        at += n;
        n_chunks = (l.n_rows + head.chunk_rows - 1) / head.chunk_rows;
        if (n_src - at < n_raw || (n_src - at - n_raw) / n_exception < head.n_exceptions)
                return KVT_E_CORRUPT;
        n = n_src - at - n_raw - head.n_exceptions * n_exception; /* chunks and where they end */
        if (n / sizeof(uint32_t) < n_chunks)
                return KVT_E_CORRUPT;
        n_words = (n - n_chunks * sizeof(uint32_t)) / 2;
        ends = src + at;
        words = ends + n_chunks * sizeof(uint32_t);
        exceptions = words + 2 * n_words + n_raw;
        if (n % 2)
                return KVT_E_CORRUPT;
        for (size_t i = 0; i < n_chunks; i++) {
                size_t from = i * head.chunk_rows, to = from + head.chunk_rows < l.n_rows ? from + head.chunk_rows : l.n_rows;
                uint32_t stop;

                memcpy(&stop, ends + i * sizeof(stop), sizeof(stop));
                if (stop > n_words || stop < start || stop - start < 2 * CBF_LANES)
                        return KVT_E_CORRUPT;
                if (!decode_chunk(p, &l, &m, from, to, words + 2 * (size_t)start, words + 2 * (size_t)stop, words + 2 * n_words,
                                  src + n_src, dst))
                        return KVT_E_CORRUPT;
                start = stop;
        }
        if (start != n_words)
                return KVT_E_CORRUPT;
        for (uint32_t i = 0; i < head.n_exceptions; i++, exceptions += n_exception) {
                uint32_t index;

                memcpy(&index, exceptions, sizeof(index));
                if (index >= p->n_values)
                        return KVT_E_CORRUPT;
                memcpy((uint8_t *)dst + (size_t)index * p->elem_bytes, exceptions + sizeof(index), p->elem_bytes);
        }
        return 0;
}

static bool supports(const struct codec_spec *s, const struct shape *p)
{
        bool floats = p->dtype == KVT_DTYPE_F32 || p->dtype == KVT_DTYPE_F16 || p->dtype == KVT_DTYPE_BF16;

        return floats && ((uint64_t)p->dim + CBF_LANES - 1) / CBF_LANES * CBF_LANES * p->heads <= CBF_MAX_CHANNELS;
}

static size_t bound(const struct codec_spec *s, const struct shape *p)
{
        return p->n_bytes + 2048; /* small planes may grow; the encoder gives up beyond this */
}

static size_t scratch_bytes(const struct codec_spec *s, const struct shape *p)
{
        struct cbf_layout l = cbf_layout(p);
        size_t n = model_bytes(&l, p->heads), most = cbf_encode_scratch(p);

        return n > most ? n : most;
}

const struct codec codec_cbf = {
        .id = CODEC_CBF,
        .name = "cbf",
        .summary = "lossless: signs and exponents under contexts of their channels",
        .flags = CODEC_LOSSLESS,
        .supports = supports,
        .bound = bound,
        .scratch = scratch_bytes,
        .encode = cbf_encode,
        .decode = decode,
};
