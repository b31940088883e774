/* Parts of f16 values, which codecs make smaller, lossy ones too. The signs of a part's first 64 values are its word, which says what part it is; no codec that is
 * worth its name loses them, for no value is near 0. The rest follows from the word. Some parts have values that are no numbers. */
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

enum { VALUE_WORD_BYTES = 128 };

static inline void values_fill(void *p, uint64_t n_bytes, uint64_t word)
{
        uint64_t x = word;
        uint8_t *to = p;

        for (uint64_t i = 0; i < n_bytes / 2; i++) {
                x = x * 6364136223846793005 + 1442695040888963407;
                uint64_t sign = i < 64 ? word >> i & 1 : x >> 63;
                uint16_t h = (uint16_t)(sign << 15 | 0x3c00 | (x >> 40 & 0x1ff)); /* 1 to 1.5 */
                if (i % 2999 == 1500 && word % 4 == 0)
                        h |= 0x7c00;
                memcpy(to + 2 * i, &h, 2);
        }
}

static inline uint64_t values_word(const void *p)
{
        const uint8_t *at = p;
        uint64_t word = 0;

        for (uint32_t i = 0; i < 64; i++)
                word |= (uint64_t)(at[2 * i + 1] >> 7) << i;
        return word;
}

static inline double value_of(uint16_t h)
{
        int e = h >> 10 & 31;
        double x = ldexp((h & 0x3ff) + (e ? 1024 : 0), (e ?: 1) - 25);

        return h >> 15 ? -x : x;
}

/* Relative L2 of a plane y against x. INFINITY: something that is no number in one of them is another thing in the other. */
static inline double values_error(const void *x, const void *y, uint64_t n_bytes)
{
        double diff = 0, norm = 0;

        if (!memcmp(x, y, n_bytes))
                return 0;
        for (uint64_t i = 0; i < n_bytes / 2; i++) {
                uint16_t a, b;
                memcpy(&a, (const uint8_t *)x + 2 * i, 2);
                memcpy(&b, (const uint8_t *)y + 2 * i, 2);
                if ((a & 0x7c00) == 0x7c00 || (b & 0x7c00) == 0x7c00) {
                        if (a != b)
                                return INFINITY;
                        continue;
                }
                double v = value_of(a), d = v - value_of(b);
                diff += d * d;
                norm += v * v;
        }
        return sqrt(diff / norm);
}
