/* Inner loops of the codecs, built once per instruction set from the same sources (kernels_impl.h and *_kernels.h): plain C that the compiler vectorises, or
 * intrinsics under #ifdef. All variants give the same bytes: sums are kept in a fixed number of lanes and added in a fixed order, products are never
 * fused with additions (-ffp-contract=off). */
#pragma once

#include <stddef.h>
#include <stdint.h>

/* what a plane differs from another by */
struct error_sums {
        double diff, norm; /* sums of squares of x - y, and of x */
        float max_abs; /* of x - y */
};

struct kernels {
        const char *name; /* "base", "avx2", "avx512" */
        /* n values of a dtype (enum kvt_dtype, not OPAQUE) to floats. */
        void (*widen)(float *restrict dst, const void *restrict src, size_t n, uint32_t dtype);
        /* Floats to a dtype: to nearest, ties to even; beyond the largest finite value: that value. NaN: 0 for INT8, else NaN. */
        void (*narrow)(void *restrict dst, const float *restrict src, size_t n, uint32_t dtype);
        /* Adds n values to *sums. */
        void (*measure)(struct error_sums *sums, const float *x, const float *y, size_t n);
        /* turbo: a row of n values; see turbo_kernels.h */
        float (*turbo_encode_row)(uint8_t *restrict codes, const float *restrict x, const float *restrict mul, const float *restrict add,
                                  size_t n, unsigned bits, float *restrict z, uint8_t *restrict indices);
        void (*turbo_decode_row)(float *restrict dst, const uint8_t *restrict codes, size_t n, unsigned bits, float scale,
                                 const float *restrict mul, const float *restrict add);
        /* bitmap: a row of n; see bitmap_kernels.h */
        void (*bitmap_choose)(uint8_t *restrict bitmap, const float *restrict x, size_t n, size_t kept);
        void (*bitmap_expand)(uint8_t *restrict dst, const uint8_t *restrict bitmap, const uint8_t *restrict packed, size_t n,
                              size_t elem_bytes);
        /* gear: see gear_kernels.h */
        void (*gear_add_product)(float *restrict dst, const float *restrict a, const float *restrict b, size_t rank, size_t stride,
                                 size_t n);
        void (*gear_dequantise)(float *restrict dst, const uint8_t *restrict codes, const float *restrict step, const float *restrict low,
                                size_t n, unsigned bits);
        float (*gear_dot)(const float *x, const float *y, size_t n);
};

/* The best variant that this CPU can run. */
const struct kernels *kernels(void);
/* The i-th, the best first; NULL: there are no more. */
const struct kernels *kernels_nth(unsigned i);
/* For tests: kernels() answers this from now on. */
void kernels_choose(const struct kernels *k);

extern const struct kernels kernels_base;
#ifdef __x86_64__
extern const struct kernels kernels_avx2, kernels_avx512;
#endif
