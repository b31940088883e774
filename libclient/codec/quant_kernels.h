/* Inner loops of the uniform quantiser: x ~ low + code * step. See quant.h and kernels.h. */

enum { QUANT_TILE = 1024, QUANT_SPAN = 128 /* values decoded at once; a multiple of 8, at least a group of a token */ };

/* A float whose lowest bits are v rounded to the nearest integer, ties to even. 0 <= v <= 255. */
static inline uint32_t quant_round(float v)
{
        return bits_of_float(v + 0x1.8p23f) & 0xff;
}

static inline float quant_clamp(float v, float most)
{
        v = v > 0 ? v : 0; /* NaN: 0 */
        return v < most ? v : most;
}

/* 2^(i / 16) */
static const float quant_roots[16] = {0x1p0f,        0x1.0b5586p0f, 0x1.172b84p0f, 0x1.2387a6p0f, 0x1.306fep0f,  0x1.3dea64p0f,
                                      0x1.4bfdaep0f, 0x1.5ab07ep0f, 0x1.6a09e6p0f, 0x1.7a1148p0f, 0x1.8ace54p0f, 0x1.9c4918p0f,
                                      0x1.ae89fap0f, 0x1.c199bep0f, 0x1.d5818ep0f, 0x1.ea4afap0f};

static bool quant_params(float *restrict dst, const uint8_t *restrict src, size_t n, enum quant_param_kind kind, float a, float b)
{
        uint32_t bad = 0;

        switch (kind) {
        case QUANT_PARAM_HALF:
                for (size_t i = 0; i < n; i++) {
                        uint16_t h;

                        memcpy(&h, src + 2 * i, 2);
                        bad |= (uint32_t)((h & 0x7c00) + 0x400) & 0x8000;
                }
                number_widen(dst, src, n, KVT_DTYPE_F16);
                for (size_t i = 0; i < n; i++)
                        dst[i] *= a;
                break;
        case QUANT_PARAM_LINEAR:
                for (size_t i = 0; i < n; i++)
                        dst[i] = a + b * (float)src[i];
                break;
        case QUANT_PARAM_LOG:
                for (size_t i = 0; i < n; i++) {
                        float power = float_of_bits(((uint32_t)(src[i] >> 4) + 112) << 23);

                        dst[i] = src[i] ? a * (power * quant_roots[src[i] & 15]) : 0;
                }
                break;
        }
        return !bad;
}

/* decoding */

/* n codes, the first at a whole byte. each: low and step are arrays, else one pair for all. */
static inline __attribute__((always_inline)) void quant_span(float *restrict dst, const uint8_t *restrict codes, size_t n, unsigned bits,
                                                             const float *low, const float *step, bool each)
{
        size_t i = 0;

#ifdef __AVX2__
        for (; i + 8 <= n; i += 8, codes += bits) {
                __m256 q = _mm256_cvtepi32_ps(bits_eight(codes, bits));
                __m256 a = each ? _mm256_loadu_ps(low + i) : _mm256_set1_ps(*low),
                       b = each ? _mm256_loadu_ps(step + i) : _mm256_set1_ps(*step);

                _mm256_storeu_ps(dst + i, _mm256_add_ps(a, _mm256_mul_ps(q, b)));
        }
#endif
        for (; i < n; i += 8, codes += bits) {
                size_t m = n - i < 8 ? n - i : 8;
                uint64_t w = 0;

                memcpy(&w, codes, bits_row_bytes(m, bits));
                for (size_t l = 0; l < m; l++) {
                        float q = (float)(w >> bits * l & ((1u << bits) - 1u));

                        dst[i + l] = (each ? low[i + l] : *low) + q * (each ? step[i + l] : *step);
                }
        }
}

static inline __attribute__((always_inline)) void quant_decode_const(uint8_t *restrict dst, const struct quant_rows *q, unsigned bits,
                                                                     bool each, size_t elem_bytes)
{
        float tile[QUANT_TILE];
        size_t n_tile = 0, n;
        const float *low = q->low, *step = q->step;

        for (size_t r = 0; r < q->n_rows; r++) {
                const uint8_t *row = q->codes + r * q->row_bytes;

                for (size_t c = 0; c < q->dim; c += n) {
                        size_t span = each ? QUANT_SPAN : q->group;

                        n = q->dim - c < span ? q->dim - c : span;
                        if (n_tile + n > QUANT_TILE) {
                                number_narrow(dst, tile, n_tile, q->dtype);
                                dst += n_tile * elem_bytes;
                                n_tile = 0;
                        }
                        quant_span(tile + n_tile, row + c * bits / 8, n, bits, each ? low + c : low, each ? step + c : step, each);
                        n_tile += n;
                        if (!each) {
                                low++;
                                step++;
                        }
                }
        }
        number_narrow(dst, tile, n_tile, q->dtype);
}

static void quant_decode_rows(void *restrict dst, const struct quant_rows *q)
{
        size_t elem_bytes = q->dtype == KVT_DTYPE_F32 ? 4 : q->dtype == KVT_DTYPE_F16 || q->dtype == KVT_DTYPE_BF16 ? 2 : 1;

#define CALL(b) (q->group ? quant_decode_const(dst, q, b, false, elem_bytes) : quant_decode_const(dst, q, b, true, elem_bytes))
        BITS_SWITCH(q->bits, CALL)
#undef CALL
}

static void quant_add(float *restrict to, const float *restrict x, float sign, size_t n)
{
        for (size_t i = 0; i < n; i++)
                to[i] += sign * x[i];
}

/* encoding */

/* Codes of n values, packed. */
static inline __attribute__((always_inline)) void quant_code_span(uint8_t *restrict dst, const float *restrict x, size_t n, unsigned bits,
                                                                  const float *low, const float *inverse, bool each)
{
        float most = (float)((1u << bits) - 1u);
        uint8_t codes[QUANT_SPAN];
        size_t i = 0;

#ifdef __AVX2__
        for (; i + 8 <= n; i += 8, dst += bits) {
                __m256 a = each ? _mm256_loadu_ps(low + i) : _mm256_set1_ps(*low);
                __m256 b = each ? _mm256_loadu_ps(inverse + i) : _mm256_set1_ps(*inverse);
                __m256 v = _mm256_mul_ps(_mm256_sub_ps(_mm256_loadu_ps(x + i), a), b);
                __m256i q;
                __m128i narrow;
                uint64_t w;

                /* the second operand is taken where one is NaN, or both are 0 */
                v = _mm256_min_ps(_mm256_max_ps(v, _mm256_setzero_ps()), _mm256_set1_ps(most));
                q = _mm256_cvtps_epi32(v);
                narrow = _mm_packus_epi32(_mm256_castsi256_si128(q), _mm256_extracti128_si256(q, 1));
                w = bits_gather((uint64_t)_mm_cvtsi128_si64(_mm_packus_epi16(narrow, narrow)), bits);
                memcpy(dst, &w, bits);
        }
#endif
        for (size_t j = i; j < n; j++)
                codes[j - i] = (uint8_t)quant_round(quant_clamp((x[j] - (each ? low[j] : *low)) * (each ? inverse[j] : *inverse), most));
        bits_pack_const(dst, codes, n - i, bits);
}

static inline __attribute__((always_inline)) void quant_encode_const(uint8_t *restrict dst, const float *restrict x,
                                                                     const struct quant_rows *q, unsigned bits, bool each)
{
        const float *low = q->low, *inverse = q->step;

        for (size_t r = 0; r < q->n_rows; r++, dst += q->row_bytes, x += q->dim)
                for (size_t c = 0, n; c < q->dim; c += n) {
                        size_t span = each ? QUANT_SPAN : q->group;

                        n = q->dim - c < span ? q->dim - c : span;
                        quant_code_span(dst + c * bits / 8, x + c, n, bits, each ? low + c : low, each ? inverse + c : inverse, each);
                        if (!each) {
                                low++;
                                inverse++;
                        }
                }
}

static void quant_encode_rows(uint8_t *restrict dst, const float *restrict x, const struct quant_rows *q)
{
#define CALL(b) (q->group ? quant_encode_const(dst, x, q, b, false) : quant_encode_const(dst, x, q, b, true))
        BITS_SWITCH(q->bits, CALL)
#undef CALL
}

/* Least squares: the line through (code, x) of each lane, again and again; codes follow the line. */
static inline __attribute__((always_inline)) void quant_refine(const float *restrict x, size_t n, size_t stride, float most, float *low,
                                                               float *step)
{
        float inverse[QUANT_LANES], sum_q[QUANT_LANES] = {0}, sum_qq[QUANT_LANES] = {0}, sum_y[QUANT_LANES] = {0},
                                    sum_qy[QUANT_LANES] = {0};

        for (size_t l = 0; l < QUANT_LANES; l++)
                inverse[l] = step[l] > 0 ? 1 / step[l] : 0;
        for (size_t i = 0; i < n; i++)
                for (size_t l = 0; l < QUANT_LANES; l++) {
                        float y = x[i * stride + l] - low[l];
                        float q = (quant_clamp(y * inverse[l], most) + 0x1.8p23f) - 0x1.8p23f;

                        sum_q[l] += q;
                        sum_qq[l] += q * q;
                        sum_y[l] += y;
                        sum_qy[l] += q * y;
                }
        for (size_t l = 0; l < QUANT_LANES; l++) {
                float count = (float)n, under = count * sum_qq[l] - sum_q[l] * sum_q[l];
                float slope = under > 0 ? (count * sum_qy[l] - sum_y[l] * sum_q[l]) / under : 0;

                if (slope > 0) {
                        low[l] += (sum_y[l] - slope * sum_q[l]) / count;
                        step[l] = slope;
                }
        }
}

static void quant_fit(const float *restrict x, size_t n, size_t stride, const struct quant_rule *rule, float *restrict ret_low,
                      float *restrict ret_step)
{
        float low[QUANT_LANES], high[QUANT_LANES], step[QUANT_LANES], most = (float)((1u << rule->bits) - 1u), count = (float)n;

        if (rule->bits == 1 && !rule->middles) {
                float sum[QUANT_LANES] = {0}, away[QUANT_LANES] = {0};

                for (size_t i = 0; i < n; i++)
                        for (size_t l = 0; l < QUANT_LANES; l++)
                                sum[l] += x[i * stride + l];
                for (size_t l = 0; l < QUANT_LANES; l++)
                        sum[l] /= count;
                for (size_t i = 0; i < n; i++)
                        for (size_t l = 0; l < QUANT_LANES; l++)
                                away[l] += fabsf(x[i * stride + l] - sum[l]);
                for (size_t l = 0; l < QUANT_LANES; l++) {
                        low[l] = sum[l] - away[l] / count;
                        step[l] = 2 * (away[l] / count);
                }
        } else {
                for (size_t l = 0; l < QUANT_LANES; l++)
                        low[l] = high[l] = x[l];
                for (size_t i = 1; i < n; i++)
                        for (size_t l = 0; l < QUANT_LANES; l++) {
                                float v = x[i * stride + l];

                                low[l] = v < low[l] ? v : low[l];
                                high[l] = v > high[l] ? v : high[l];
                        }
                for (size_t l = 0; l < QUANT_LANES; l++) {
                        float range = high[l] - low[l];

                        step[l] = rule->middles ? range / (most + 1) : range / most;
                        low[l] += rule->middles ? step[l] / 2 : 0;
                }
        }
        for (unsigned i = 0; i < rule->rounds; i++)
                quant_refine(x, n, stride, most, low, step);
        memcpy(ret_low, low, sizeof(low));
        memcpy(ret_step, step, sizeof(step));
}
