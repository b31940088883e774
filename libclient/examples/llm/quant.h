/* Weight formats of GGUF tensors, and 16-bit floats. All conversions are exact or round to nearest even, the same on every CPU. */
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <string.h>

struct quant {
        uint32_t type; /* number in the file */
        const char *name;
        uint32_t block_elems;
        uint32_t block_bytes;
        void (*decode)(const uint8_t *src, float *dst, size_t n_blocks);
};

/* NULL: unknown */
const struct quant *quant_find(uint32_t type);

static inline float f32_from_bits(uint32_t u)
{
        float f;
        memcpy(&f, &u, 4);
        return f;
}

static inline uint32_t f32_bits(float f)
{
        uint32_t u;
        memcpy(&u, &f, 4);
        return u;
}

static inline float f16_to_f32(uint16_t h)
{
        uint32_t magnitude = (uint32_t)(h & 0x7fff) << 13;
        uint32_t finite = f32_bits(f32_from_bits(magnitude) * 0x1p112f); /* moves the exponent, subnormals included */
        return f32_from_bits((uint32_t)(h & 0x8000) << 16 | (magnitude >= 0x0f800000 ? magnitude | 0x7f800000 : finite));
}

static inline uint16_t f16_from_f32(float f)
{
        uint32_t u = f32_bits(f), sign = u >> 16 & 0x8000, m = u & 0x7fffffff;

        if (m >= 0x47800000) /* 65536 and up, infinity, NaN */
                return (uint16_t)(sign | (m > 0x7f800000 ? 0x7e00 : 0x7c00));
        if (m < 0x38800000) /* subnormal: adding 0.5 leaves the rounded result in the last bits */
                return (uint16_t)(sign | (f32_bits(f32_from_bits(m) + 0.5f) - 0x3f000000));
        return (uint16_t)(sign | (m - 0x38000000 + 0xfff + (m >> 13 & 1)) >> 13);
}

static inline float bf16_to_f32(uint16_t h)
{
        return f32_from_bits((uint32_t)h << 16);
}

static inline uint16_t bf16_from_f32(float f)
{
        uint32_t u = f32_bits(f);
        return (uint16_t)((u & 0x7fffffff) > 0x7f800000 ? u >> 16 | 0x40 : (u + 0x7fff + (u >> 16 & 1)) >> 16);
}
