/* cbf's encoder. The format stands in cbf.c, how contexts are chosen in cbf_model.c. */
#include <assert.h>
#include <string.h>

#include "libclient/codec/cbf.h"
#include "libclient/codec/cbf_model.h"
#include "libclient/codec/kernels.h"

enum {
        CHUNK_VALUES = 1 << 15, /* about: each chunk's states take 128 bytes */
        BITS_BYTES = 16384 * 2 + 16384, /* 14 bits a channel, and what all tables can take */
};

/* in the scratch */
struct work {
        struct cbf_model *model;
        cbf_marginal *marginals; /* of each channel, [head][dim] */
        uint32_t *tops, *negatives; /* of each channel, [head][stride] */
        uint8_t *class_of; /* of each channel, [head][dim] */
        uint8_t *symbols; /* of each value */
        uint16_t *words; /* of a chunk, written from its end */
        uint8_t *bits;
};

static size_t aligned(size_t n)
{
        return (n + 63) & ~(size_t)63;
}

static size_t chunk_rows(const struct shape *p, const struct cbf_layout *l)
{
        size_t n = (p->n_values + CHUNK_VALUES - 1) / CHUNK_VALUES;

        return (l->n_rows + n - 1) / n;
}

/* Where each of them starts; the last one is where they end. */
static void lay_out(const struct shape *p, size_t ret[9])
{
        struct cbf_layout l = cbf_layout(p);
        size_t n_channels = (size_t)p->heads * p->dim, n_padded = p->heads * l.stride;
        size_t sizes[] = {sizeof(struct cbf_model),
                          n_channels * sizeof(cbf_marginal),
                          n_padded * sizeof(uint32_t),
                          n_padded * sizeof(uint32_t),
                          n_channels,
                          p->n_values,
                          chunk_rows(p, &l) * p->dim * sizeof(uint16_t),
                          BITS_BYTES};

        ret[0] = 0;
        for (size_t i = 0; i < 8; i++)
                ret[i + 1] = ret[i] + aligned(sizes[i]);
}

static struct work work_at(const struct shape *p, uint8_t *scratch)
{
        size_t at[9];

        lay_out(p, at);
        return (struct work){.model = (void *)(scratch + at[0]),
                             .marginals = (void *)(scratch + at[1]),
                             .tops = (void *)(scratch + at[2]),
                             .negatives = (void *)(scratch + at[3]),
                             .class_of = scratch + at[4],
                             .symbols = scratch + at[5],
                             .words = (void *)(scratch + at[6]),
                             .bits = scratch + at[7]};
}

size_t cbf_encode_scratch(const struct shape *p)
{
        size_t at[9];

        lay_out(p, at);
        return at[8];
}

/* writing bits */

struct bits {
        uint8_t *dst;
        size_t at;
};

static void put(struct bits *b, uint32_t x, unsigned n)
{
        for (unsigned i = 0; i < n; i++, b->at++) {
                if (b->at % 8 == 0)
                        b->dst[b->at / 8] = 0;
                b->dst[b->at / 8] |= (uint8_t)((x >> i & 1) << b->at % 8);
        }
}

static void put_table(struct bits *b, const struct cbf_table *t)
{
        put(b, t->folded, 1);
        for (unsigned side = 0; side < (t->folded ? 1u : 2u); side++) {
                int32_t before = 33;

                put(b, t->n[side], 7);
                for (unsigned i = 0; i < t->n[side]; i++) {
                        int32_t d = t->weights[side][i] - (before - 1);
                        uint32_t z = (uint32_t)(d >= 0 ? 2 * d : -2 * d - 1);

                        for (uint32_t k = 0; k < z / 2; k++)
                                put(b, 1, 1);
                        put(b, (z & 1) << 1, 2);
                        before = t->weights[side][i];
                }
        }
}

/* the model */

static void take_symbols(const struct shape *p, const struct cbf_layout *l, const uint8_t *src, struct work *w)
{
        for (size_t r = 0; r < l->n_rows; r++)
                kernels()->cbf_symbols(w->symbols + r * p->dim, src + r * p->dim * p->elem_bytes, w->tops + r / p->tokens * l->stride,
                                       p->dim, l->raw_bits);
}

/* Tops and flips of the channels, symbols, marginals. Returns how many symbols there are, as a multiple of 16. */
static unsigned take_in(const struct shape *p, const struct cbf_layout *l, const uint8_t *src, struct work *w)
{
        size_t step = (p->tokens + CBF_SAMPLE_TOKENS - 1) / CBF_SAMPLE_TOKENS;
        unsigned most = 0;

        memset(w->tops, 0, p->heads * l->stride * sizeof(*w->tops));
        memset(w->negatives, 0, p->heads * l->stride * sizeof(*w->negatives));
        for (size_t r = 0; r < l->n_rows; r++) {
                size_t h = r / p->tokens;

                kernels()->cbf_scan(w->tops + h * l->stride, w->negatives + h * l->stride, src + r * p->dim * p->elem_bytes, p->dim,
                                    l->raw_bits);
        }
        for (size_t c = 0; c < p->heads * l->stride; c++)
                w->tops[c] |= 1 | (uint32_t)(w->negatives[c] > p->tokens / 2) << 31;
        take_symbols(p, l, src, w);
        for (size_t i = 0; i < p->n_values; i++)
                most = w->symbols[i] > most ? w->symbols[i] : most;
        memset(w->marginals, 0, (size_t)p->heads * p->dim * sizeof(*w->marginals));
        for (size_t h = 0; h < p->heads; h++)
                for (size_t t = 0; t < p->tokens; t += step) {
                        const uint8_t *row = w->symbols + (h * p->tokens + t) * p->dim;

                        for (size_t c = 0; c < p->dim; c++)
                                w->marginals[h * p->dim + c][row[c]]++;
                }
        return (most + 16) & ~15u;
}

/* The symbols of the row before, or NULL: it starts a head or a chunk. */
static const uint8_t *row_before(const struct shape *p, const struct work *w, size_t r, size_t n_chunk)
{
        return r % p->tokens && r % n_chunk ? w->symbols + (r - 1) * p->dim : NULL;
}

static unsigned context_of(uint8_t before)
{
        return (before & 1u) | (before >= 2 * CBF_BIG ? 2 : 0);
}

static void count_joint(const struct shape *p, const struct cbf_layout *l, struct work *w, size_t n_chunk)
{
        memset(w->model->joint, 0, sizeof(w->model->joint));
        for (size_t r = 0; r < l->n_rows; r++) {
                const uint8_t *row = w->symbols + r * p->dim, *before = row_before(p, w, r, n_chunk);
                const uint8_t *classes = w->class_of + r / p->tokens * p->dim;

                for (size_t c = 0; c < p->dim; c++)
                        w->model->joint[classes[c] * CBF_CONTEXTS + context_of(before ? before[c] : 0)][row[c]]++;
        }
}

static size_t put_model(const struct shape *p, const struct cbf_layout *l, const struct work *w, uint8_t *head)
{
        const struct cbf_model *m = w->model;
        struct bits b = {.dst = w->bits};
        uint32_t low = UINT32_MAX, high = 0;
        unsigned top_bits;

        for (size_t h = 0; h < p->heads; h++)
                for (size_t c = h * l->stride; c < h * l->stride + p->dim; c++) {
                        uint32_t top = (w->tops[c] & 0x7fffffff) >> 1;

                        low = top < low ? top : low;
                        high = top > high ? top : high;
                }
        top_bits = cbf_index_bits(high - low + 1);
        head[8] = (uint8_t)m->n_classes;
        head[9] = (uint8_t)m->n_tables;
        head[10] = (uint8_t)low;
        head[11] = (uint8_t)top_bits;
        for (unsigned k = 0; k < m->n_classes; k++) {
                put(&b, m->classes[k].flips, 1);
                for (unsigned q = 0; q < CBF_CONTEXTS; q++)
                        put(&b, m->classes[k].tables[q], 4);
        }
        for (unsigned t = 0; t < m->n_tables; t++)
                put_table(&b, &m->tables[t]);
        for (size_t h = 0; h < p->heads; h++)
                for (size_t c = 0; c < p->dim; c++) {
                        uint32_t top = w->tops[h * l->stride + c];
                        uint8_t class = w->class_of[h * p->dim + c];

                        put(&b, class, cbf_index_bits(m->n_classes));
                        put(&b, ((top & 0x7fffffff) >> 1) - low, top_bits);
                        put(&b, top >> 31, m->classes[class].flips);
                }
        assert(b.at <= BITS_BYTES * 8);
        return (b.at + 7) / 8;
}

/* coding */

/* Rows [from, to). Returns the words, which end at w->words + n_room; fills states. */
static size_t code_chunk(const struct shape *p, const struct work *w, size_t from, size_t to, size_t n_chunk, size_t n_room,
                         uint32_t states[CBF_LANES])
{
        const struct cbf_model *m = w->model;
        uint16_t *at = w->words + n_room;

        for (unsigned i = 0; i < CBF_LANES; i++)
                states[i] = CBF_STATE_LOW;
        for (size_t r = to; r-- > from;) {
                const uint8_t *row = w->symbols + r * p->dim, *before = row_before(p, w, r, n_chunk);
                const uint8_t *classes = w->class_of + r / p->tokens * p->dim;

                for (size_t c = p->dim; c-- > 0;) {
                        unsigned t = m->classes[classes[c]].tables[context_of(before ? before[c] : 0)];
                        uint32_t x = states[c % CBF_LANES], f = m->frequencies[t][row[c]];

                        if (x >= (uint64_t)f << (32 - CBF_PROB_BITS)) {
                                *--at = (uint16_t)x;
                                x >>= 16;
                        }
                        states[c % CBF_LANES] = (x / f << CBF_PROB_BITS) + x % f + m->starts[t][row[c]];
                }
        }
        return (size_t)(w->words + n_room - at);
}

static uint32_t element(const struct shape *p, const uint8_t *src, size_t i)
{
        uint32_t x = 0;

        memcpy(&x, src + i * p->elem_bytes, p->elem_bytes);
        return x;
}

/* Elements so small, next to others of their channel, that no symbol stands for them. Returns how many; writes up to `most`. */
static size_t put_exceptions(const struct shape *p, const struct cbf_layout *l, const uint8_t *src, const struct work *w, uint8_t *dst,
                             size_t most)
{
        uint32_t magnitudes = (1u << (l->width - 1 - l->raw_bits)) - 1;
        size_t n = 0, n_each = sizeof(uint32_t) + p->elem_bytes;

        for (size_t i = 0; i < p->n_values; i++) {
                uint32_t x, index = (uint32_t)i;

                if (w->symbols[i] / 2 != CBF_LEVELS - 1)
                        continue;
                x = element(p, src, i);
                if (!(x >> l->raw_bits & magnitudes))
                        continue;
                if (n < most) {
                        memcpy(dst + n * n_each, &index, sizeof(index));
                        memcpy(dst + n * n_each + sizeof(index), &x, p->elem_bytes);
                }
                n++;
        }
        return n;
}

size_t cbf_encode(const struct codec_spec *s, const struct shape *p, const struct codec_input *in, uint8_t *restrict dst, void *scratch)
{
        struct cbf_layout l = cbf_layout(p);
        size_t n_room = codec_cbf.bound(s, p), n_raw = l.n_rows * l.row_bytes, n_chunk = chunk_rows(p, &l), n_bits, at, ends, n_exceptions;
        size_t n_each = sizeof(uint32_t) + p->elem_bytes, n_words = 0, n_chunks = (l.n_rows + n_chunk - 1) / n_chunk;
        bool unflipped = false;
        struct work w = work_at(p, scratch);
        unsigned n_symbols;

        n_symbols = take_in(p, &l, in->bytes, &w);
        cbf_choose_classes(w.model, w.marginals, (size_t)p->heads * p->dim, n_symbols, w.class_of);
        for (size_t i = 0; i < (size_t)p->heads * p->dim; i++) {
                uint32_t *top = &w.tops[i / p->dim * l.stride + i % p->dim];

                if (*top >> 31 && !w.model->classes[w.class_of[i]].flips) {
                        *top &= 0x7fffffff;
                        unflipped = true;
                }
        }
        if (unflipped)
                take_symbols(p, &l, in->bytes, &w); /* levels are what they were */
        count_joint(p, &l, &w, n_chunk);
        cbf_choose_tables(w.model, n_symbols);

        if (n_room < CBF_HEADER_BYTES)
                return 0;
        n_bits = put_model(p, &l, &w, dst);
        at = CBF_HEADER_BYTES;
        if (n_room - at < n_bits + n_raw + n_chunks * sizeof(uint32_t))
                return 0;
        memcpy(dst + at, w.bits, n_bits);
        ends = at + n_bits;
        at = ends + n_chunks * sizeof(uint32_t);
        for (size_t i = 0; i < n_chunks; i++) {
                size_t from = i * n_chunk, to = from + n_chunk < l.n_rows ? from + n_chunk : l.n_rows;
                uint32_t states[CBF_LANES], end;
                size_t n = code_chunk(p, &w, from, to, n_chunk, n_chunk * p->dim, states);

                if (n_room - at < n_raw + sizeof(states) + n * sizeof(uint16_t))
                        return 0;
                memcpy(dst + at, states, sizeof(states));
                memcpy(dst + at + sizeof(states), w.words + n_chunk * p->dim - n, n * sizeof(uint16_t));
                at += sizeof(states) + n * sizeof(uint16_t);
                n_words += 2 * CBF_LANES + n;
                end = (uint32_t)n_words;
                memcpy(dst + ends + i * sizeof(end), &end, sizeof(end));
        }
        for (size_t r = 0; r < l.n_rows; r++, at += l.row_bytes)
                kernels()->cbf_pack(dst + at, (const uint8_t *)in->bytes + r * p->dim * p->elem_bytes, p->dim, l.raw_bits);
        n_exceptions = put_exceptions(p, &l, in->bytes, &w, dst + at, (n_room - at) / n_each);
        if (n_exceptions > (n_room - at) / n_each)
                return 0;
        memcpy(dst, &(uint32_t){(uint32_t)n_chunk}, sizeof(uint32_t));
        memcpy(dst + 4, &(uint32_t){(uint32_t)n_exceptions}, sizeof(uint32_t));
        return at + n_exceptions * n_each;
}
