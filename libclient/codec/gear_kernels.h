/* Products of small factors, and what finds the factors. See kernels.h and gear.c. */

enum { GEAR_LANES = 8 };

/* dst += sum over k < rank of a[k] * b[k * stride ..]; the sum of each channel in order of k. */
static void gear_add_product(float *restrict dst, const float *restrict a, const float *restrict b, size_t rank, size_t stride, size_t n)
{
        for (size_t k = 0; k < rank; k++)
                for (size_t i = 0; i < n; i++)
                        dst[i] += a[k] * b[k * stride + i];
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
