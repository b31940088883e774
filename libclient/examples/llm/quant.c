/* Weight formats of GGUF tensors: each turns whole blocks into floats. Pure functions; any bytes are allowed in. */
#include "libclient/examples/llm/quant.h"

enum { QK = 32, QK_K = 256 };

static uint16_t u16_at(const uint8_t *p)
{
        uint16_t v;
        memcpy(&v, p, 2);
        return v;
}

static void decode_f32(const uint8_t *src, float *dst, size_t n)
{
        memcpy(dst, src, n * 4);
}

static void decode_f16(const uint8_t *src, float *dst, size_t n)
{
        for (size_t i = 0; i < n; i++)
                dst[i] = f16_to_f32(u16_at(src + 2 * i));
}

static void decode_bf16(const uint8_t *src, float *dst, size_t n)
{
        for (size_t i = 0; i < n; i++)
                dst[i] = bf16_to_f32(u16_at(src + 2 * i));
}

/* f16 scale; 16 bytes: elements 0-15 in the low halves, 16-31 in the high; value - 8 */
static void decode_q4_0(const uint8_t *src, float *dst, size_t n_blocks)
{
        for (; n_blocks--; src += 18, dst += QK) {
                float d = f16_to_f32(u16_at(src));
                for (size_t i = 0; i < QK / 2; i++) {
                        dst[i] = d * (float)((src[2 + i] & 15) - 8);
                        dst[i + QK / 2] = d * (float)((src[2 + i] >> 4) - 8);
                }
        }
}

/* f16 scale and minimum; nibbles as in q4_0 */
static void decode_q4_1(const uint8_t *src, float *dst, size_t n_blocks)
{
        for (; n_blocks--; src += 20, dst += QK) {
                float d = f16_to_f32(u16_at(src)), m = f16_to_f32(u16_at(src + 2));
                for (size_t i = 0; i < QK / 2; i++) {
                        dst[i] = d * (float)(src[4 + i] & 15) + m;
                        dst[i + QK / 2] = d * (float)(src[4 + i] >> 4) + m;
                }
        }
}

/* f16 scale; 32 signed bytes */
static void decode_q8_0(const uint8_t *src, float *dst, size_t n_blocks)
{
        for (; n_blocks--; src += 34, dst += QK) {
                float d = f16_to_f32(u16_at(src));
                for (size_t i = 0; i < QK; i++)
                        dst[i] = d * (float)(int8_t)src[2 + i];
        }
}

/* 128 bytes of low nibbles, 64 of upper two bits, 16 signed scales of 16 elements, f16 scale; value - 32. In two halves of 128 elements:
 * element 32 j + i of a half takes nibble j / 2 of low byte 32 (j % 2) + i, and bits 2 j of upper byte i. */
static void decode_q6_k(const uint8_t *src, float *dst, size_t n_blocks)
{
        for (; n_blocks--; src += 210, dst += QK_K) {
                float d = f16_to_f32(u16_at(src + 208));
                for (size_t e = 0; e < QK_K; e++) {
                        size_t half = e / 128, j = e % 128 / 32, i = e % 32;
                        unsigned low = src[64 * half + 32 * (j % 2) + i] >> (j / 2 * 4) & 15;
                        unsigned high = src[128 + 32 * half + i] >> (2 * j) & 3;
                        dst[e] = d * (float)(int8_t)src[192 + e / 16] * (float)((int)(low | high << 4) - 32);
                }
        }
}

static const struct quant quants[] = {
        {0, "F32", 1, 4, decode_f32},     {1, "F16", 1, 2, decode_f16},     {2, "Q4_0", QK, 18, decode_q4_0},
        {3, "Q4_1", QK, 20, decode_q4_1}, {8, "Q8_0", QK, 34, decode_q8_0}, {14, "Q6_K", QK_K, 210, decode_q6_k},
        {30, "BF16", 1, 2, decode_bf16},
};

const struct quant *quant_find(uint32_t type)
{
        for (size_t i = 0; i < sizeof(quants) / sizeof(quants[0]); i++)
                if (quants[i].type == type)
                        return &quants[i];
        return NULL;
}
