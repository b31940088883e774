/* Between dtypes and floats. See kernels.h. */

enum { MEASURE_LANES = 8 };

static inline float float_of_bits(uint32_t u)
{
        float f;

        memcpy(&f, &u, sizeof(f));
        return f;
}

static inline uint32_t bits_of_float(float f)
{
        uint32_t u;

        memcpy(&u, &f, sizeof(u));
        return u;
}

static inline float f16_widen(uint16_t h)
{
        uint32_t sign = (uint32_t)(h & 0x8000) << 16, rest = h & 0x7fff;

        if (rest >= 0x7c00)
                return float_of_bits(sign | 0x7f800000 | (rest & 0x3ff) << 13 | (rest > 0x7c00 ? 0x400000 : 0));
        /* exponents 2^-14.. and subnormals alike: scaled by 2^112 */
        return float_of_bits(sign | bits_of_float(float_of_bits(rest << 13) * 0x1p112f));
}

/* To nearest, ties to even; finite values beyond 65504 become that. */
static inline uint16_t f16_narrow(float f)
{
        uint32_t u = bits_of_float(f), sign = u >> 16 & 0x8000, rest = u & 0x7fffffff;

        if (rest > 0x7f800000)
                return (uint16_t)(sign | 0x7e00 | (rest >> 13 & 0x3ff)); /* as F16C does */
        if (rest >= 0x477fe000)
                return (uint16_t)(sign | 0x7bff);
        if (rest < 0x38800000) { /* below 2^-14: the sum's last bit is worth 2^-24 */
                uint32_t magic = bits_of_float(float_of_bits(rest) + 0.5f);

                return (uint16_t)(sign | (magic - 0x3f000000));
        }
        rest += 0xfff + (rest >> 13 & 1);
        return (uint16_t)(sign | (rest - 0x38000000) >> 13);
}

static inline float bf16_widen(uint16_t h)
{
        return float_of_bits((uint32_t)h << 16);
}

static inline uint16_t bf16_narrow(float f)
{
        uint32_t u = bits_of_float(f), rest = u & 0x7fffffff;

        if (rest > 0x7f800000)
                return (uint16_t)(u >> 16 | 0x40);
        if (rest >= 0x7f7f8000) /* would round to infinity */
                return (uint16_t)((u >> 16 & 0x8000) | 0x7f7f);
        return (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}

/* E4M3 without infinities: s.eeee.mmm, bias 7, 0x7f is NaN */
static inline float fp8_widen(uint8_t b)
{
        uint32_t sign = (uint32_t)(b & 0x80) << 24, rest = b & 0x7f;

        if (rest == 0x7f)
                return float_of_bits(sign | 0x7fc00000);
        return float_of_bits(sign | bits_of_float(float_of_bits(rest << 20) * 0x1p120f));
}

static inline uint8_t fp8_narrow(float f)
{
        uint32_t u = bits_of_float(f), sign = u >> 24 & 0x80, rest = u & 0x7fffffff;

        if (rest > 0x7f800000)
                return (uint8_t)(sign | 0x7f);
        if (rest >= 0x43e00000) /* 448 */
                return (uint8_t)(sign | 0x7e);
        if (rest < 0x3c800000) { /* below 2^-6: the sum's last bit is worth 2^-9 */
                uint32_t magic = bits_of_float(float_of_bits(rest) + 0x1p14f);

                return (uint8_t)(sign | (magic - 0x46800000));
        }
        rest += 0x7ffff + (rest >> 20 & 1);
        return (uint8_t)(sign | (rest - 0x3c000000) >> 20);
}

static inline int8_t int8_narrow(float f)
{
        if (!(f == f))
                return 0;
        return (int8_t)(f >= 127 ? 127 : f <= -128 ? -128 : (int)rintf(f));
}

static void number_widen(float *restrict dst, const void *restrict src, size_t n, uint32_t dtype)
{
        const uint8_t *bytes = src;
        size_t i = 0;

        switch (dtype) {
        case KVT_DTYPE_F32:
                memcpy(dst, src, n * sizeof(*dst));
                break;
        case KVT_DTYPE_F16:
#ifdef __F16C__
                for (; i + 8 <= n; i += 8)
                        _mm256_storeu_ps(dst + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(bytes + 2 * i))));
#endif
                for (; i < n; i++) {
                        uint16_t h;

                        memcpy(&h, bytes + 2 * i, 2);
                        dst[i] = f16_widen(h);
                }
                break;
        case KVT_DTYPE_BF16:
                for (; i < n; i++) {
                        uint16_t h;

                        memcpy(&h, bytes + 2 * i, 2);
                        dst[i] = bf16_widen(h);
                }
                break;
        case KVT_DTYPE_FP8:
                for (; i < n; i++)
                        dst[i] = fp8_widen(bytes[i]);
                break;
        default:
                for (; i < n; i++)
                        dst[i] = (float)(int8_t)bytes[i];
        }
}

static void number_narrow(void *restrict dst, const float *restrict src, size_t n, uint32_t dtype)
{
        uint8_t *bytes = dst;
        size_t i = 0;

        switch (dtype) {
        case KVT_DTYPE_F32:
                for (; i < n; i++) {
                        float f = src[i];

                        f = f > 0x1.fffffep127f ? 0x1.fffffep127f : f < -0x1.fffffep127f ? -0x1.fffffep127f : f;
                        memcpy(bytes + 4 * i, &f, 4);
                }
                break;
        case KVT_DTYPE_F16:
#ifdef __F16C__
                for (; i + 8 <= n; i += 8) {
                        __m256 most = _mm256_set1_ps(65504), x = _mm256_loadu_ps(src + i);

                        /* the second operand is taken where one is NaN */
                        x = _mm256_min_ps(most, _mm256_max_ps(_mm256_sub_ps(_mm256_setzero_ps(), most), x));
                        _mm_storeu_si128((__m128i *)(bytes + 2 * i), _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
                }
#endif
                for (; i < n; i++) {
                        uint16_t h = f16_narrow(src[i]);

                        memcpy(bytes + 2 * i, &h, 2);
                }
                break;
        case KVT_DTYPE_BF16:
                for (; i < n; i++) {
                        uint16_t h = bf16_narrow(src[i]);

                        memcpy(bytes + 2 * i, &h, 2);
                }
                break;
        case KVT_DTYPE_FP8:
                for (; i < n; i++)
                        bytes[i] = fp8_narrow(src[i]);
                break;
        default:
                for (; i < n; i++)
                        bytes[i] = (uint8_t)int8_narrow(src[i]);
        }
}

/* Differences in double: those of the largest floats are none. */
static void number_measure(struct error_sums *sums, const float *x, const float *y, size_t n)
{
        double diff[MEASURE_LANES] = {0}, norm[MEASURE_LANES] = {0}, max[MEASURE_LANES] = {0};
        size_t i = 0;

        for (; i + MEASURE_LANES <= n; i += MEASURE_LANES)
                for (size_t l = 0; l < MEASURE_LANES; l++) {
                        double d = (double)x[i + l] - (double)y[i + l], a = fabs(d);

                        diff[l] += d * d;
                        norm[l] += (double)x[i + l] * (double)x[i + l];
                        max[l] = a > max[l] ? a : max[l];
                }
        for (size_t l = 0; i < n; i++, l++) {
                double d = (double)x[i] - (double)y[i], a = fabs(d);

                diff[l] += d * d;
                norm[l] += (double)x[i] * (double)x[i];
                max[l] = a > max[l] ? a : max[l];
        }
        for (size_t l = 0; l < MEASURE_LANES; l++) {
                sums->diff += diff[l];
                sums->norm += norm[l];
                sums->max_abs = (float)max[l] > sums->max_abs ? (float)max[l] : sums->max_abs;
        }
}
