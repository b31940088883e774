/* Rows pruned by magnitude. See kernels.h and bitmap.c. */

/* Marks the `kept` largest of |x|, lower channels first among equals. */
static void bitmap_choose(uint8_t *restrict bitmap, const float *restrict x, size_t n, size_t kept)
{
        uint32_t low = 0,
                 high = 0x7f800000; /* bits of the least magnitude that is kept: at least `kept` are at or above low, fewer at high */
        size_t above = 0;

        while (high - low > 1) {
                uint32_t middle = low + (high - low) / 2, count = 0;

                for (size_t i = 0; i < n; i++)
                        count += (bits_of_float(x[i]) & 0x7fffffff) >= middle;
                if (count >= kept)
                        low = middle;
                else
                        high = middle;
        }
        for (size_t i = 0; i < n; i++)
                above += (bits_of_float(x[i]) & 0x7fffffff) > low;
        memset(bitmap, 0, (n + 7) / 8);
        for (size_t i = 0, ties = kept - above; i < n; i++) {
                uint32_t u = bits_of_float(x[i]) & 0x7fffffff;
                bool keep = u > low || (u == low && ties);

                ties -= u == low && ties;
                bitmap[i / 8] |= (uint8_t)(keep << i % 8);
        }
}

/* n elements, from the packed ones where the bitmap says so, else 0. bitmap has as many bits set below n as there are packed elements, and none above. */
static void bitmap_expand(uint8_t *restrict dst, const uint8_t *restrict bitmap, const uint8_t *restrict packed, size_t n,
                          size_t elem_bytes)
{
        size_t i = 0;

#ifdef __AVX512BW__
        for (; elem_bytes == 2 && i + 16 <= n; i += 16) {
                uint16_t mask;

                memcpy(&mask, bitmap + i / 8, sizeof(mask));
                unsigned count = (unsigned)__builtin_popcount(mask);
                __m512i v = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16((__mmask16)((1u << count) - 1), packed));

                v = _mm512_maskz_expand_epi32(mask, v);
                _mm256_storeu_si256((__m256i *)(dst + 2 * i), _mm512_cvtepi32_epi16(v));
                packed += (size_t)2 * count;
        }
        for (; elem_bytes == 4 && i + 16 <= n; i += 16) {
                uint16_t mask;

                memcpy(&mask, bitmap + i / 8, sizeof(mask));
                _mm512_storeu_si512(dst + 4 * i, _mm512_maskz_expandloadu_epi32(mask, packed));
                packed += (size_t)4 * (unsigned)__builtin_popcount(mask);
        }
#endif
        memset(dst + i * elem_bytes, 0, (n - i) * elem_bytes);
        for (size_t at = i / 8; at < (n + 7) / 8; at++)
                for (unsigned byte = bitmap[at]; byte; byte &= byte - 1) {
                        uint8_t *to = dst + (8 * at + (unsigned)__builtin_ctz(byte)) * elem_bytes;

                        switch (elem_bytes) {
                        case 1:
                                *to = *packed;
                                break;
                        case 2:
                                memcpy(to, packed, 2);
                                break;
                        default:
                                memcpy(to, packed, 4);
                        }
                        packed += elem_bytes;
                }
}
