/* cbf: rows of one head from their symbols, which 32 interleaved rANS coders (Duda; Giesen's interleaving) hold, and their raw bits. See cbf.c. */

/* An entry of a table: frequency 11 bits, offset in the symbol's slots 10, level >= CBF_BIG 1, how far below the top 9, sign 1. */
enum { CBF_ENTRY_BIG = 1 << 21, CBF_ENTRY_BELOW_AT = 22 };

static inline __attribute__((always_inline)) uint32_t cbf_element(const uint8_t *src, unsigned width)
{
        uint32_t x;
        uint16_t h;

        if (width == 16) {
                memcpy(&h, src, 2);
                x = h;
        } else {
                memcpy(&x, src, 4);
        }
        return x;
}

static inline __attribute__((always_inline)) void cbf_put_element(uint8_t *dst, uint32_t x, unsigned width)
{
        uint16_t h = (uint16_t)x;

        if (width == 16)
                memcpy(dst, &h, 2);
        else
                memcpy(dst, &x, 4);
}

/* Value i of those whose raw bits start at raw. */
static inline __attribute__((always_inline)) uint32_t cbf_raw(const uint8_t *raw, size_t i, unsigned raw_bits)
{
        size_t at = i * raw_bits;
        uint32_t bits = 0;

        /* no byte beyond the last that it has bits in: the payload may end there */
        for (unsigned k = 0; k < (at % 8 + raw_bits + 7) / 8; k++)
                bits |= (uint32_t)raw[at / 8 + k] << 8 * k;
        return bits >> at % 8 & ((1u << raw_bits) - 1);
}

/* Lanes [0, n) of a group at channel c. */
static inline __attribute__((always_inline)) void cbf_group(struct cbf_rows *r, size_t c, size_t n, uint8_t *restrict dst,
                                                            const uint8_t *restrict raw, unsigned raw_bits, unsigned width)
{
        const uint32_t *restrict tops = r->tops + c, *const *offsets = r->offsets, *restrict tables = r->tables;
        uint32_t *restrict previous = r->previous + c, *restrict states = r->states;
        const uint8_t *words = r->words, *end = r->end;

        for (size_t l = 0; l < n; l++) {
                uint32_t before = previous[l], x = states[l], e, top = tops[l] & 0x7fffffff, below, v;

                e = tables[offsets[before >> 31 | (before >> 20 & 2)][c + l] + (x & (CBF_SLOTS - 1))];
                x = (e & 2047) * (x >> CBF_PROB_BITS) + (e >> 11 & (CBF_SLOTS - 1));
                if (x < CBF_STATE_LOW) {
                        uint16_t word = 0;

                        if (end - words >= 2) {
                                memcpy(&word, words, 2);
                                words += 2;
                        }
                        x = x << 16 | word;
                }
                states[l] = x;
                previous[l] = e;
                below = e >> CBF_ENTRY_BELOW_AT & 511;
                v = cbf_raw(raw, l, raw_bits) | (top > below ? top - below : 0) << raw_bits;
                cbf_put_element(dst + l * (width / 8), v | ((e ^ tops[l]) & 0x80000000) >> (32 - width), width);
        }
        r->words = words;
}

#ifdef __AVX2__
struct cbf_unpack {
        __m256i bytes, shifts;
        size_t half; /* where the last four of eight start */
};

static inline struct cbf_unpack cbf_unpack_of(unsigned bits)
{
        struct cbf_unpack u = {.half = bits / 2};
        uint8_t bytes[32];
        uint32_t shifts[8];

        for (unsigned l = 0; l < 8; l++) {
                unsigned at = l * bits - (l < 4 ? 0 : 8 * (unsigned)u.half);

                for (unsigned k = 0; k < 4; k++)
                        bytes[4 * l + k] = (uint8_t)(at / 8 + k);
                shifts[l] = at % 8;
        }
        memcpy(&u.bytes, bytes, sizeof(bytes));
        memcpy(&u.shifts, shifts, sizeof(shifts));
        return u;
}

/* the first words go to the lanes of the mask, in order */
static inline __m256i cbf_spread(const uint8_t *words, unsigned mask)
{
        uint64_t lanes = _pdep_u64(mask, 0x0101010101010101u) * 0xff;
        __m256i order = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128((long long)_pdep_u64(0x0706050403020100u, lanes)));

        return _mm256_permutevar8x32_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)words)), order);
}

/* 32 lanes at channel c. words: 64 bytes can be read there; returns how many were used. raw: 4 * raw_bits + 28 can be read. */
static inline __attribute__((always_inline)) size_t cbf_group_avx2(const struct cbf_rows *r, __m256i x[4], size_t c, uint8_t *restrict dst,
                                                                   const uint8_t *restrict raw, const uint8_t *words,
                                                                   const struct cbf_unpack *u, unsigned raw_bits, unsigned width)
{
        const __m256i slot = _mm256_set1_epi32(CBF_SLOTS - 1);
        const uint8_t *from = words;
        __m256i e[4], v[4];

#pragma GCC unroll 4
        for (size_t k = 0; k < 4; k++) {
                size_t at = c + 8 * k;
                __m256 before = _mm256_loadu_ps((const float *)(r->previous + at));
                __m256 small = _mm256_blendv_ps(_mm256_loadu_ps((const float *)(r->offsets[0] + at)),
                                                _mm256_loadu_ps((const float *)(r->offsets[1] + at)), before);
                __m256 big = _mm256_blendv_ps(_mm256_loadu_ps((const float *)(r->offsets[2] + at)),
                                              _mm256_loadu_ps((const float *)(r->offsets[3] + at)), before);
                __m256i offset = _mm256_castps_si256(
                        _mm256_blendv_ps(small, big, _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(before), 10))));

                e[k] = _mm256_i32gather_epi32((const int *)r->tables, _mm256_add_epi32(offset, _mm256_and_si256(x[k], slot)), 4);
                x[k] = _mm256_add_epi32(_mm256_mullo_epi32(_mm256_and_si256(e[k], _mm256_set1_epi32(2047)),
                                                           _mm256_srli_epi32(x[k], CBF_PROB_BITS)),
                                        _mm256_and_si256(_mm256_srli_epi32(e[k], 11), slot));
                _mm256_storeu_si256((__m256i *)(r->previous + at), e[k]);
        }
#pragma GCC unroll 4
        for (size_t k = 0; k < 4; k++) {
                __m256i low = _mm256_cmpeq_epi32(_mm256_srli_epi32(x[k], 16), _mm256_setzero_si256());
                unsigned need = (unsigned)_mm256_movemask_ps(_mm256_castsi256_ps(low));

                x[k] = _mm256_blendv_epi8(x[k], _mm256_or_si256(_mm256_slli_epi32(x[k], 16), cbf_spread(words, need)), low);
                words += 2 * (unsigned)__builtin_popcount(need);
        }
#pragma GCC unroll 4
        for (size_t k = 0; k < 4; k++) {
                const uint8_t *bits = raw + k * raw_bits;
                __m256i top = _mm256_loadu_si256((const __m256i *)(r->tops + c + 8 * k));
                __m256i rest = _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128((const __m128i *)bits)),
                                                       _mm_loadu_si128((const __m128i *)(bits + u->half)), 1);
                __m256i below = _mm256_and_si256(_mm256_srli_epi32(e[k], CBF_ENTRY_BELOW_AT), _mm256_set1_epi32(511));
                __m256i level = _mm256_max_epi32(_mm256_sub_epi32(_mm256_and_si256(top, _mm256_set1_epi32(0x7fffffff)), below),
                                                 _mm256_setzero_si256());
                __m256i sign = _mm256_and_si256(_mm256_xor_si256(e[k], top), _mm256_set1_epi32((int)0x80000000u));

                rest = _mm256_and_si256(_mm256_srlv_epi32(_mm256_shuffle_epi8(rest, u->bytes), u->shifts),
                                        _mm256_set1_epi32((int)((1u << raw_bits) - 1)));
                v[k] = _mm256_or_si256(_mm256_or_si256(_mm256_srli_epi32(sign, (int)(32 - width)), rest),
                                       _mm256_slli_epi32(level, (int)raw_bits));
        }
        if (width == 16) {
                for (size_t k = 0; k < 4; k += 2)
                        _mm256_storeu_si256((__m256i *)(dst + 16 * k), _mm256_permute4x64_epi64(_mm256_packus_epi32(v[k], v[k + 1]), 0xd8));
        } else {
                for (size_t k = 0; k < 4; k++)
                        _mm256_storeu_si256((__m256i *)(dst + 32 * k), v[k]);
        }
        return (size_t)(words - from);
}

enum { CBF_RAW_AHEAD = 4 * 22 + 28 };
#endif

static inline __attribute__((always_inline)) void cbf_decode_const(struct cbf_rows *to, unsigned raw_bits, unsigned width)
{
        struct cbf_rows r = *to; /* which nothing that is written can change */
        size_t n_row = r.dim * (width / 8);
#ifdef __AVX2__
        struct cbf_unpack u = cbf_unpack_of(raw_bits);
        __m256i x[4];

        for (size_t k = 0; k < 4; k++)
                x[k] = _mm256_loadu_si256((const __m256i *)(r.states + 8 * k));
#endif
        for (size_t i = 0; i < r.n_rows; i++, r.dst += n_row, r.raw += r.row_bytes) {
                uint8_t *dst = r.dst;
                const uint8_t *raw = r.raw;
                size_t c = 0;

#ifdef __AVX2__
                for (; c + CBF_LANES <= r.dim; c += CBF_LANES, dst += CBF_LANES * width / 8, raw += 4 * raw_bits) {
                        size_t left = (size_t)(r.end - r.words), left_raw = (size_t)(r.end - raw), used;
                        uint8_t words[64] = {0}, bits[CBF_RAW_AHEAD] = {0};

                        if (__builtin_expect(left >= 64 && left_raw >= CBF_RAW_AHEAD, 1)) {
                                r.words += cbf_group_avx2(&r, x, c, dst, raw, r.words, &u, raw_bits, width);
                                continue;
                        }
                        memcpy(words, r.words, left < 64 ? left : 64);
                        memcpy(bits, raw, left_raw < CBF_RAW_AHEAD ? left_raw : CBF_RAW_AHEAD);
                        used = cbf_group_avx2(&r, x, c, dst, bits, words, &u, raw_bits, width);
                        r.words += used < left ? used : left;
                }
                if (c == r.dim)
                        continue;
                for (size_t k = 0; k < 4; k++)
                        _mm256_storeu_si256((__m256i *)(r.states + 8 * k), x[k]);
#endif
                for (; c < r.dim; c += CBF_LANES, dst += CBF_LANES * width / 8, raw += 4 * raw_bits)
                        cbf_group(&r, c, r.dim - c < CBF_LANES ? r.dim - c : CBF_LANES, dst, raw, raw_bits, width);
#ifdef __AVX2__
                for (size_t k = 0; k < 4; k++)
                        x[k] = _mm256_loadu_si256((const __m256i *)(r.states + 8 * k));
#endif
        }
#ifdef __AVX2__
        for (size_t k = 0; k < 4; k++)
                _mm256_storeu_si256((__m256i *)(r.states + 8 * k), x[k]);
#endif
        *to = r;
}

static void cbf_decode_rows(struct cbf_rows *r)
{
        if (r->raw_bits == 6)
                cbf_decode_const(r, 6, 16);
        else if (r->raw_bits == 9)
                cbf_decode_const(r, 9, 16);
        else
                cbf_decode_const(r, 22, 32);
}

static inline __attribute__((always_inline)) void cbf_row_scan(uint32_t *restrict tops, uint32_t *restrict negatives,
                                                               const uint8_t *restrict src, size_t n, unsigned raw_bits, unsigned width)
{
        for (size_t i = 0; i < n; i++) {
                uint32_t x = cbf_element(src + i * (width / 8), width), magnitude = x >> raw_bits & ((1u << (width - 1 - raw_bits)) - 1);

                tops[i] = magnitude > tops[i] ? magnitude : tops[i];
                negatives[i] += x >> (width - 1);
        }
}

static void cbf_scan(uint32_t *restrict tops, uint32_t *restrict negatives, const uint8_t *restrict src, size_t n, unsigned raw_bits)
{
        if (raw_bits == 6)
                cbf_row_scan(tops, negatives, src, n, 6, 16);
        else if (raw_bits == 9)
                cbf_row_scan(tops, negatives, src, n, 9, 16);
        else
                cbf_row_scan(tops, negatives, src, n, 22, 32);
}

static inline __attribute__((always_inline)) void cbf_row_symbols(uint8_t *restrict dst, const uint8_t *restrict src,
                                                                  const uint32_t *restrict tops, size_t n, unsigned raw_bits,
                                                                  unsigned width)
{
        for (size_t i = 0; i < n; i++) {
                uint32_t x = cbf_element(src + i * (width / 8), width), magnitude = x >> raw_bits & ((1u << (width - 1 - raw_bits)) - 1);
                uint32_t below = (tops[i] & 0x7fffffff) - magnitude;

                below = below < CBF_LEVELS - 1 ? below : CBF_LEVELS - 1;
                dst[i] = (uint8_t)(2 * below + ((x >> (width - 1) ^ tops[i] >> 31) & 1));
        }
}

static void cbf_symbols(uint8_t *restrict dst, const uint8_t *restrict src, const uint32_t *restrict tops, size_t n, unsigned raw_bits)
{
        if (raw_bits == 6)
                cbf_row_symbols(dst, src, tops, n, 6, 16);
        else if (raw_bits == 9)
                cbf_row_symbols(dst, src, tops, n, 9, 16);
        else
                cbf_row_symbols(dst, src, tops, n, 22, 32);
}

static inline __attribute__((always_inline)) void cbf_pack_const(uint8_t *restrict dst, const uint8_t *restrict src, size_t n,
                                                                 unsigned raw_bits, unsigned width)
{
        for (size_t i = 0; i < n; i += 8) {
                uint64_t bits = 0;
                unsigned n_bits = 0;

                for (size_t k = 0; k < 8; k++) {
                        uint64_t x = i + k < n ? cbf_element(src + (i + k) * (width / 8), width) & ((1u << raw_bits) - 1) : 0;

                        bits |= x << n_bits;
                        n_bits += raw_bits;
                        if (n_bits >= 32) {
                                memcpy(dst, &bits, 4);
                                dst += 4;
                                bits >>= 32;
                                n_bits -= 32;
                        }
                }
                for (; n_bits; n_bits -= 8, bits >>= 8)
                        *dst++ = (uint8_t)bits;
        }
}

static void cbf_pack(uint8_t *restrict dst, const uint8_t *restrict src, size_t n, unsigned raw_bits)
{
        if (raw_bits == 6)
                cbf_pack_const(dst, src, n, 6, 16);
        else if (raw_bits == 9)
                cbf_pack_const(dst, src, n, 9, 16);
        else
                cbf_pack_const(dst, src, n, 22, 32);
}

static void cbf_count(uint32_t *restrict to, const uint16_t *restrict counts, size_t n)
{
        for (size_t i = 0; i < n; i++)
                to[i] += counts[i];
}

static uint32_t cbf_cost(const uint16_t *restrict counts, const int16_t *restrict costs, size_t n)
{
        int32_t sum = 0;

        for (size_t i = 0; i < n; i++)
                sum += (int16_t)counts[i] * costs[i];
        return (uint32_t)sum;
}

/* A table's slots: 2 * level + sign, as often as it is frequent. Up to 7 slots beyond may be overwritten. */
static void cbf_fill(uint32_t *restrict slots, const uint16_t *restrict frequencies)
{
        size_t at = 0;

        for (unsigned i = 0; i < CBF_SYMBOLS; i++) {
                uint32_t below = i / 2 == CBF_LEVELS - 1 ? 511 : i / 2, n = frequencies[i];
                uint32_t e = (uint32_t)(i % 2) << 31 | below << CBF_ENTRY_BELOW_AT | (i / 2 >= CBF_BIG ? CBF_ENTRY_BIG : 0) | n;

#ifdef __AVX2__
                __m256i v = _mm256_or_si256(_mm256_set1_epi32((int)e),
                                            _mm256_setr_epi32(0, 1 << 11, 2 << 11, 3 << 11, 4 << 11, 5 << 11, 6 << 11, 7 << 11));

                for (uint32_t k = 0; k < n; k += 8, v = _mm256_add_epi32(v, _mm256_set1_epi32(8 << 11)))
                        _mm256_storeu_si256((__m256i *)(slots + at + k), v);
#else
                for (uint32_t k = 0; k < n; k++)
                        slots[at + k] = e | k << 11;
#endif
                at += n;
        }
}
