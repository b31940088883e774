/* Codes of 1 to 8 bits in rows: code i stands at bits [i * bits, (i + 1) * bits), lowest first, so that eight codes fill `bits` bytes. A row's bits after its
 * last code are 0. See kernels.h. */

static inline size_t bits_row_bytes(size_t n, unsigned bits)
{
        return (n * bits + 7) / 8;
}

/* 8 codes, one a byte -> 8 * bits bits */
static inline uint64_t bits_gather(uint64_t codes, unsigned bits)
{
        uint64_t mask = 0x0101010101010101u * ((1u << bits) - 1u), w = 0;

#ifdef __BMI2__
        w = _pext_u64(codes, mask);
#else
        codes &= mask;
        for (unsigned l = 0; l < 8; l++)
                w |= (codes >> 8 * l & 0xff) << bits * l;
#endif
        return w;
}

/* n codes, one a byte, to a row. bits: 1, 2, 3, 4, 8; a constant where this is inlined */
static inline __attribute__((always_inline)) void bits_pack_const(uint8_t *restrict dst, const uint8_t *restrict codes, size_t n,
                                                                  unsigned bits)
{
        uint64_t w;
        size_t i = 0;

        for (; i + 8 <= n; i += 8, dst += bits) {
                memcpy(&w, codes + i, 8);
                w = bits_gather(w, bits);
                memcpy(dst, &w, bits);
        }
        if (i < n) {
                w = 0;
                memcpy(&w, codes + i, n - i);
                w = bits_gather(w, bits);
                memcpy(dst, &w, bits_row_bytes(n - i, bits));
        }
}

/* CALL with the number as a constant. */
#define BITS_SWITCH(bits, CALL)                                                                                                            \
        switch (bits) {                                                                                                                    \
        case 1:                                                                                                                            \
                CALL(1);                                                                                                                   \
                break;                                                                                                                     \
        case 2:                                                                                                                            \
                CALL(2);                                                                                                                   \
                break;                                                                                                                     \
        case 3:                                                                                                                            \
                CALL(3);                                                                                                                   \
                break;                                                                                                                     \
        case 4:                                                                                                                            \
                CALL(4);                                                                                                                   \
                break;                                                                                                                     \
        default:                                                                                                                           \
                CALL(8);                                                                                                                   \
        }

#ifdef __AVX2__
/* Eight codes at src as 32-bit lanes. bits: 1 to 4, or 8; a constant where this is inlined. */
static inline __attribute__((always_inline)) __m256i bits_eight(const uint8_t *src, unsigned bits)
{
        const __m256i one = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
        uint32_t w = 0;

        if (bits == 8)
                return _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)src));
        if (bits == 3) { /* two loads in registers: a word put together in memory would wait for its stores */
                uint16_t two;

                memcpy(&two, src, 2);
                w = two | (uint32_t)src[2] << 16;
        } else {
                memcpy(&w, src, bits);
        }
        return _mm256_and_si256(_mm256_srlv_epi32(_mm256_set1_epi32((int)w), _mm256_mullo_epi32(one, _mm256_set1_epi32((int)bits))),
                                _mm256_set1_epi32((1 << bits) - 1));
}
#endif
