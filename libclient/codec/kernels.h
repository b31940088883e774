/* Inner loops of the codecs, built once per instruction set from the same sources (kernels_impl.h and *_kernels.h): plain C that the compiler vectorises, or
 * intrinsics under #ifdef. All variants give the same bytes: sums are kept in a fixed number of lanes and added in a fixed order, products are never
 * fused with additions (-ffp-contract=off). */
#pragma once

#include <stdbool.h>
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
        /* n elements of `width` bytes (1, 2 or 4), rotated left by a bit or not, to width planes of n bytes each, the lowest bytes first; and back. */
        void (*zbf_split)(uint8_t *const dst[4], const void *restrict src, size_t n, unsigned width, bool rotate);
        void (*zbf_merge)(void *restrict dst, const uint8_t *const src[4], size_t n, unsigned width, bool rotate);
        /* dst = a ^ b, n bytes; dst may be one of them. */
        void (*xor)(uint8_t *dst, const uint8_t *a, const uint8_t *b, size_t n);
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
