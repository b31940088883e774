/* Lloyd-Max codes of Hadamard-rotated rows. See kernels.h and turbo.c. */

enum { TURBO_LANES = 8 };

/* Lloyd-Max levels of a unit Gaussian, ascending, and what divides them: half-way between neighbours. Solved in doubles to a fixed point. */
static const float turbo_levels_1[2] = {-0.797884561f, 0.797884561f};
static const float turbo_limits_1[1] = {0};
static const float turbo_levels_2[4] = {-1.51041761f, -0.452780035f, 0.452780035f, 1.51041761f};
static const float turbo_limits_2[3] = {-0.981598822f, 0, 0.981598822f};
static const float turbo_levels_3[8] = {-2.1519457f,  -1.34390928f, -0.756005281f, -0.245094179f,
                                        0.245094179f, 0.756005281f, 1.34390928f,   2.1519457f};
static const float turbo_limits_3[7] = {-1.74792749f, -1.04995728f, -0.50054973f, 0, 0.50054973f, 1.04995728f, 1.74792749f};
static const float turbo_levels_4[16] = {-2.73258957f,  -2.06901723f, -1.61804639f, -1.2562312f,  -0.942340456f, -0.656759119f,
                                         -0.388048299f, -0.12839503f, 0.12839503f,  0.388048299f, 0.656759119f,  0.942340456f,
                                         1.2562312f,    1.61804639f,  2.06901723f,  2.73258957f};
static const float turbo_limits_4[15] = {-2.4008034f, -1.84353181f, -1.43713879f, -1.09928583f, -0.799549788f, -0.522403709f, -0.258221665f,
                                         0,           0.258221665f, 0.522403709f, 0.799549788f, 1.09928583f,   1.43713879f,   1.84353181f,
                                         2.4008034f};

static const float *const turbo_levels[5] = {NULL, turbo_levels_1, turbo_levels_2, turbo_levels_3, turbo_levels_4};
static const float *const turbo_limits[5] = {NULL, turbo_limits_1, turbo_limits_2, turbo_limits_3, turbo_limits_4};

/* The Walsh-Hadamard transform of n values, a power of two, unnormalised: butterflies with strides 1, 2, 4, ... */
static void hadamard_block(float *x, size_t n)
{
        size_t stride = 1;

#ifdef __AVX2__
        if (n >= 8) {
                const __m256 one = _mm256_castsi256_ps(_mm256_set_epi32(INT32_MIN, 0, INT32_MIN, 0, INT32_MIN, 0, INT32_MIN, 0));
                const __m256 two = _mm256_castsi256_ps(_mm256_set_epi32(INT32_MIN, INT32_MIN, 0, 0, INT32_MIN, INT32_MIN, 0, 0));
                const __m256 four = _mm256_castsi256_ps(_mm256_set_epi32(INT32_MIN, INT32_MIN, INT32_MIN, INT32_MIN, 0, 0, 0, 0));

                for (size_t i = 0; i < n; i += 8) {
                        __m256 v = _mm256_loadu_ps(x + i);

                        v = _mm256_add_ps(_mm256_permute_ps(v, 0xb1), _mm256_xor_ps(v, one));
                        v = _mm256_add_ps(_mm256_permute_ps(v, 0x4e), _mm256_xor_ps(v, two));
                        v = _mm256_add_ps(_mm256_permute2f128_ps(v, v, 1), _mm256_xor_ps(v, four));
                        _mm256_storeu_ps(x + i, v);
                }
                for (stride = 8; stride < n; stride *= 2)
                        for (size_t i = 0; i < n; i += 2 * stride)
                                for (size_t j = i; j < i + stride; j += 8) {
                                        __m256 a = _mm256_loadu_ps(x + j), b = _mm256_loadu_ps(x + j + stride);

                                        _mm256_storeu_ps(x + j, _mm256_add_ps(a, b));
                                        _mm256_storeu_ps(x + j + stride, _mm256_sub_ps(a, b));
                                }
                return;
        }
#endif
        for (; stride < n; stride *= 2)
                for (size_t i = 0; i < n; i += 2 * stride)
                        for (size_t j = i; j < i + stride; j++) {
                                float a = x[j], b = x[j + stride];

                                x[j] = a + b;
                                x[j + stride] = a - b;
                        }
}

/* Of a row: blocks of the largest powers of two that fit, one after another. */
static void turbo_hadamard(float *x, size_t n)
{
        while (n) {
                size_t block = (size_t)1 << (63 - __builtin_clzll(n));

                hadamard_block(x, block);
                x += block;
                n -= block;
        }
}

static float lanes_sum(const float s[TURBO_LANES])
{
        return ((s[0] + s[4]) + (s[2] + s[6])) + ((s[1] + s[5]) + (s[3] + s[7]));
}

/* indices[i]: the level next to x[i] * inverse; *ret_xq, *ret_qq: sums of x * level and level * level. */
static void turbo_quantise(uint8_t *restrict indices, const float *restrict x, size_t n, float inverse, unsigned bits, float *ret_xq,
                           float *ret_qq)
{
        const float *levels = turbo_levels[bits], *limits = turbo_limits[bits];
        unsigned n_limits = (1u << bits) - 1;
        float xq[TURBO_LANES] = {0}, qq[TURBO_LANES] = {0};
        size_t i = 0;

#ifdef __AVX2__
        const __m256 inverses = _mm256_set1_ps(inverse);
        __m256 xqs = _mm256_setzero_ps(), qqs = xqs;

        for (; i + TURBO_LANES <= n; i += TURBO_LANES) {
                __m256 v = _mm256_loadu_ps(x + i), y = _mm256_mul_ps(v, inverses), q;
                __m256i at = _mm256_setzero_si256();

                for (unsigned k = 0; k < n_limits; k++)
                        at = _mm256_sub_epi32(at, _mm256_castps_si256(_mm256_cmp_ps(y, _mm256_set1_ps(limits[k]), _CMP_GT_OQ)));
                q = _mm256_i32gather_ps(levels, at, 4);
                xqs = _mm256_add_ps(xqs, _mm256_mul_ps(v, q));
                qqs = _mm256_add_ps(qqs, _mm256_mul_ps(q, q));
                at = _mm256_permute4x64_epi64(_mm256_packus_epi32(at, at), 0x08);
                _mm_storel_epi64((__m128i *)(indices + i), _mm_packus_epi16(_mm256_castsi256_si128(at), _mm256_castsi256_si128(at)));
        }
        _mm256_storeu_ps(xq, xqs);
        _mm256_storeu_ps(qq, qqs);
#endif
        for (; i < n; i += TURBO_LANES) {
                size_t m = n - i < TURBO_LANES ? n - i : TURBO_LANES;
                float v[TURBO_LANES] = {0}, q[TURBO_LANES];
                int32_t at[TURBO_LANES] = {0};

                if (m == TURBO_LANES)
                        memcpy(v, x + i, sizeof(v));
                else
                        memcpy(v, x + i, m * sizeof(*v));
                for (unsigned k = 0; k < n_limits; k++)
                        for (size_t l = 0; l < TURBO_LANES; l++)
                                at[l] += v[l] * inverse > limits[k];
                for (size_t l = 0; l < TURBO_LANES; l++)
                        q[l] = l < m ? levels[at[l]] : 0;
                for (size_t l = 0; l < TURBO_LANES; l++) {
                        xq[l] += v[l] * q[l];
                        qq[l] += q[l] * q[l];
                }
                for (size_t l = 0; l < m; l++)
                        indices[i + l] = (uint8_t)at[l];
        }
        *ret_xq = lanes_sum(xq);
        *ret_qq = lanes_sum(qq);
}

/* Codes a row: (x - add) * mul, rotated, to z (scratch); its levels' indices, packed. Returns the least-squares scale of the levels: 0 for a row of
 * zeros, not finite where sums overflowed. indices: scratch of n. */
static float turbo_encode_row(uint8_t *restrict codes, const float *restrict x, const float *restrict mul, const float *restrict add,
                              size_t n, unsigned bits, float *restrict z, uint8_t *restrict indices)
{
        float sums[TURBO_LANES] = {0}, scale, xq, qq;

        for (size_t i = 0; i < n; i++)
                z[i] = (x[i] - add[i]) * mul[i];
        turbo_hadamard(z, n);
        for (size_t i = 0; i < n; i += TURBO_LANES)
                for (size_t l = 0; l < TURBO_LANES && i + l < n; l++)
                        sums[l] += z[i + l] * z[i + l];
        scale = sqrtf(lanes_sum(sums) / (float)n);
        if (!(scale > 0x1p-100f)) {
                memset(codes, 0, (n * bits + 7) / 8);
                return scale != scale ? scale : 0;
        }
        for (unsigned pass = 0; pass < 2; pass++) {
                turbo_quantise(indices, z, n, 1 / scale, bits, &xq, &qq);
                scale = xq / qq;
        }
        memset(codes, 0, (n * bits + 7) / 8);
        size_t i = 0;

        for (; i + 8 <= n; i += 8, codes += bits) {
                uint32_t word = 0;

                for (unsigned l = 0; l < 8; l++)
                        word |= (uint32_t)indices[i + l] << l * bits;
                for (unsigned l = 0; l < bits; l++)
                        codes[l] = (uint8_t)(word >> 8 * l);
        }
        for (size_t bit = 0; i < n; i++, bit += bits) {
                unsigned v = (unsigned)indices[i] << bit % 8;

                codes[bit / 8] |= (uint8_t)v;
                if (v >> 8)
                        codes[bit / 8 + 1] |= (uint8_t)(v >> 8);
        }
        return scale;
}

/* Eight codes of up to 4 bits. */
static inline __attribute__((always_inline)) uint32_t load_codes(const uint8_t *codes, const unsigned bits)
{
        uint32_t word = 0;

        if (bits == 3) /* a copy of three bytes would go through memory */
                return codes[0] | (uint32_t)codes[1] << 8 | (uint32_t)codes[2] << 16;
        memcpy(&word, codes, bits);
        return word;
}

/* Levels of a packed row, times scale. */
static inline __attribute__((always_inline)) void unpack_row(float *restrict dst, const uint8_t *restrict codes, size_t n, float scale,
                                                             const unsigned bits)
{
        float table[16];
        size_t i = 0;

        for (unsigned k = 0; k < 16; k++)
                table[k] = turbo_levels[bits][k & ((1u << bits) - 1)] * scale;
#ifdef __AVX2__
        const __m256i shifts = _mm256_mullo_epi32(_mm256_set_epi32(7, 6, 5, 4, 3, 2, 1, 0), _mm256_set1_epi32((int)bits));
        const __m256 low = _mm256_loadu_ps(table), high = _mm256_loadu_ps(table + 8);

        for (; i + 8 <= n; i += 8, codes += bits) {
                uint32_t word = load_codes(codes, bits);
                __m256i at = _mm256_srlv_epi32(_mm256_set1_epi32((int)word), shifts);
                __m256 v = _mm256_permutevar8x32_ps(low, at);

                if (bits == 4)
                        v = _mm256_blendv_ps(v, _mm256_permutevar8x32_ps(high, at), _mm256_castsi256_ps(_mm256_slli_epi32(at, 28)));
                _mm256_storeu_ps(dst + i, v);
        }
#else
        for (; i + 8 <= n; i += 8, codes += bits) {
                uint32_t word = load_codes(codes, bits);

                for (unsigned l = 0; l < 8; l++)
                        dst[i + l] = table[word >> l * bits & 15];
        }
#endif
        for (size_t bit = 0; i < n; i++, bit += bits) {
                unsigned v = codes[bit / 8];

                if (bit % 8 + bits > 8)
                        v |= (unsigned)codes[bit / 8 + 1] << 8;
                dst[i] = table[v >> bit % 8 & ((1u << bits) - 1)];
        }
}

/* dst: a row's floats. mul and add undo what encoding did before its rotation. */
static void turbo_decode_row(float *restrict dst, const uint8_t *restrict codes, size_t n, unsigned bits, float scale,
                             const float *restrict mul, const float *restrict add)
{
        switch (bits) {
        case 1:
                unpack_row(dst, codes, n, scale, 1);
                break;
        case 2:
                unpack_row(dst, codes, n, scale, 2);
                break;
        case 3:
                unpack_row(dst, codes, n, scale, 3);
                break;
        default:
                unpack_row(dst, codes, n, scale, 4);
        }
        turbo_hadamard(dst, n);
        for (size_t i = 0; i < n; i++)
                dst[i] = dst[i] * mul[i] + add[i];
}
