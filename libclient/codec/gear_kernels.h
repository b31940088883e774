/* Rows of uniform codes plus a product of small factors, and what finds the factors. See kernels.h and gear.c. */

enum { GEAR_LANES = 8 };

/* dst += sum over k < rank of a[k] * b[k * stride ..]; the sum of each channel in order of k. */
static void gear_add_product(float *restrict dst, const float *restrict a, const float *restrict b, size_t rank, size_t stride, size_t n)
{
        for (size_t k = 0; k < rank; k++)
                for (size_t i = 0; i < n; i++)
                        dst[i] += a[k] * b[k * stride + i];
}

/* dst: codes of 2, 4 or 8 bits, lowest first, times step plus low. */
static void gear_dequantise(float *restrict dst, const uint8_t *restrict codes, const float *restrict step, const float *restrict low,
                            size_t n, unsigned bits)
{
        size_t i = 0;

        switch (bits) {
        case 2:
                for (; i + 4 <= n; i += 4)
                        for (unsigned l = 0; l < 4; l++)
                                dst[i + l] = (float)(codes[i / 4] >> 2 * l & 3) * step[i + l] + low[i + l];
                for (; i < n; i++)
                        dst[i] = (float)(codes[i / 4] >> 2 * (i % 4) & 3) * step[i] + low[i];
                break;
        case 4:
                for (; i + 2 <= n; i += 2) {
                        dst[i] = (float)(codes[i / 2] & 15) * step[i] + low[i];
                        dst[i + 1] = (float)(codes[i / 2] >> 4) * step[i + 1] + low[i + 1];
                }
                for (; i < n; i++)
                        dst[i] = (float)(codes[i / 2] & 15) * step[i] + low[i];
                break;
        default:
                for (; i < n; i++)
                        dst[i] = (float)codes[i] * step[i] + low[i];
        }
}

static float gear_dot(const float *x, const float *y, size_t n)
{
        float s[GEAR_LANES] = {0};
        size_t i = 0;

        for (; i + GEAR_LANES <= n; i += GEAR_LANES)
                for (size_t l = 0; l < GEAR_LANES; l++)
                        s[l] += x[i + l] * y[i + l];
        for (size_t l = 0; i < n; i++, l++)
                s[l] += x[i] * y[i];
        return ((s[0] + s[4]) + (s[2] + s[6])) + ((s[1] + s[5]) + (s[3] + s[7]));
}
