/* How many bits a histogram's symbols take at least (order-0 entropy), in integers: the same on every machine. For encoders that choose by a sample. */
#pragma once

#include <stddef.h>
#include <stdint.h>

enum { LOG2_ONE = 1 << 12 };

/* log2(x) in 1/4096, x > 0; at most 8/4096 off */
static inline uint32_t log2_fixed(uint32_t x)
{
        uint32_t e = 31u - (uint32_t)__builtin_clz(x);
        /* m: 1.0 <= m < 2.0 as 0..4095; log2(1 + m) is near m + m (1 - m) (0.428 - 0.164 m) */
        uint32_t m = (uint32_t)((((uint64_t)x << 32 >> e) >> 20) & 4095);
        uint32_t bend = m * (4095 - m) >> 12;

        return e * LOG2_ONE + m + (bend * (438 - (m * 168 >> 12)) >> 10);
}

/* In 1/4096 bit, of n symbols; counts of a sample are told too small an entropy, which is corrected (Miller and Madow, 1955). */
static inline uint64_t entropy_of(const uint32_t *counts, size_t n_symbols, uint32_t n)
{
        uint64_t sum = 0;
        uint32_t n_used = 0;

        for (size_t i = 0; i < n_symbols; i++)
                if (counts[i]) {
                        sum += (uint64_t)counts[i] * log2_fixed(counts[i]);
                        n_used++;
                }
        /* (n_used - 1) / (2 ln 2) bits in all */
        return n ? (uint64_t)n * log2_fixed(n) - sum + (uint64_t)(n_used - 1) * 2955 : 0;
}
