/* Numbers read the slow way, apart from kernels. */
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "libclient/codec/geometry.h"

/* Number i of a dtype, told from its bits by the rules of the formats. */
static inline double slow_number(const void *bytes, size_t i, uint32_t dtype)
{
        static const struct {
                int n_exponent, n_mantissa;
        } formats[] = {[KVT_DTYPE_F32] = {8, 23}, [KVT_DTYPE_F16] = {5, 10}, [KVT_DTYPE_BF16] = {8, 7}, [KVT_DTYPE_FP8] = {4, 3}};
        uint32_t size = geometry_dtype_bytes(dtype), u = 0;

        memcpy(&u, (const uint8_t *)bytes + i * size, size);
        if (dtype == KVT_DTYPE_INT8)
                return (int8_t)u;
        int n_e = formats[dtype].n_exponent, n_m = formats[dtype].n_mantissa, bias = (1 << (n_e - 1)) - 1;
        uint32_t m = u & ((1u << n_m) - 1), e = u >> n_m & ((1u << n_e) - 1);
        double sign = u >> (8 * size - 1) & 1 ? -1 : 1;

        if (dtype == KVT_DTYPE_FP8 && e == 15 && m == 7)
                return (double)NAN;
        if (dtype != KVT_DTYPE_FP8 && e == (1u << n_e) - 1)
                return m ? (double)NAN : sign * (double)INFINITY;
        return sign * (e ? ldexp(1 + ldexp(m, -n_m), (int)e - bias) : ldexp(m, 1 - bias - n_m));
}
