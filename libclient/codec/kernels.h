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

/* Rows of codes and what they stand for: x ~ low + code * step. */
struct quant_rows {
        const uint8_t *codes; /* decoding: [row], row_bytes each */
        size_t row_bytes, n_rows, dim;
        unsigned bits; /* 1, 2, 3, 4, 8 */
        unsigned
                group; /* 0: low and step of each channel, for all rows; else [row][group of so many channels], at most 128, a multiple of 16 */
        const float *low, *step; /* encoding: step is 1 / step, or 0 */
        uint32_t dtype; /* decoding: of what is written */
};

/* How a row of low or step values is stored: value = scale * half, base + unit * byte, or scale * 2^((byte - 240) / 16) with byte 0 standing for 0. */
enum quant_param_kind {
        QUANT_PARAM_HALF,
        QUANT_PARAM_LINEAR,
        QUANT_PARAM_LOG,
};

enum { QUANT_LANES = 16 };
struct quant_rule {
        unsigned bits;
        bool middles; /* levels are the middles of equal parts of the range (1 bit: SpeCache), else its ends and between (1 bit: mean +- mean |x - mean|) */
        unsigned rounds; /* of least squares */
};

/* cbf: rows of one head of a chunk; see cbf.c. Channels are padded to 32. */
struct cbf_rows {
        const uint32_t *tables; /* entries: see cbf_kernels.h */
        const uint32_t *offsets[4]; /* each channel's table in each context */
        const uint32_t *tops; /* each channel's top; the highest bit: flip */
        uint32_t *previous; /* entries of the row before, then of the last one */
        uint32_t *states; /* 32 */
        const uint8_t *words; /* moves on, up to end */
        const uint8_t *raw; /* moves on */
        const uint8_t *end; /* what words and raw bits may be read up to; raw bits of all rows are there */
        uint8_t *dst; /* moves on */
        size_t n_rows, dim, row_bytes; /* raw bits of a row */
        unsigned raw_bits, width; /* bits: 6 of 16, 9 of 16 or 22 of 32 */
};

struct kernels {
        const char *name; /* "base", "avx2", "avx512" */
        /* n values of a dtype (enum kvt_dtype, not OPAQUE) to floats. */
        void (*widen)(float *restrict dst, const void *restrict src, size_t n, uint32_t dtype);
        /* Floats to a dtype: to nearest, ties to even; beyond the largest finite value: that value. NaN: 0 for INT8, else NaN. */
        void (*narrow)(void *restrict dst, const float *restrict src, size_t n, uint32_t dtype);
        /* Adds n values to *sums. */
        void (*measure)(struct error_sums *sums, const float *x, const float *y, size_t n);
        /* to[i] += sign * x[i] */
        void (*quant_add)(float *restrict to, const float *restrict x, float sign, size_t n);
        /* n rows of QUANT_LANES values, `stride` apart: the low and step of each lane. */
        void (*quant_fit)(const float *restrict x, size_t n, size_t stride, const struct quant_rule *rule, float *restrict ret_low,
                          float *restrict ret_step);
        /* n parameters to floats: a is the scale or the base, b the unit. False: some are not finite. */
        bool (*quant_params)(float *restrict dst, const uint8_t *restrict src, size_t n, enum quant_param_kind kind, float a, float b);
        /* Codes of rows of values (dim floats each, no gaps); decoded rows (no gaps). */
        void (*quant_encode_rows)(uint8_t *restrict dst, const float *restrict x, const struct quant_rows *q);
        void (*quant_decode_rows)(void *restrict dst, const struct quant_rows *q);
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
        float (*gear_dot)(const float *x, const float *y, size_t n);
        /* n elements of `width` bytes (1, 2 or 4), rotated left by a bit or not, to width planes of n bytes each, the lowest bytes first; and back. */
        void (*zbf_split)(uint8_t *const dst[4], const void *restrict src, size_t n, unsigned width, bool rotate);
        void (*zbf_merge)(void *restrict dst, const uint8_t *const src[4], size_t n, unsigned width, bool rotate);
        /* dst = a ^ b, n bytes; dst may be one of them. */
        void (*xor)(uint8_t *dst, const uint8_t *a, const uint8_t *b, size_t n);
        void (*cbf_decode_rows)(struct cbf_rows *r);
        /* A table's 1024 entries from its 128 symbols' frequencies, which add up to that; overwrites up to 7 entries beyond. */
        void (*cbf_fill)(uint32_t *restrict slots, const uint16_t *restrict frequencies);
        /* A row of n channels: raises tops to its magnitudes, counts its negative values. */
        void (*cbf_scan)(uint32_t *restrict tops, uint32_t *restrict negatives, const uint8_t *restrict src, size_t n, unsigned raw_bits);
        /* n values of a row as cbf's symbols. */
        void (*cbf_symbols)(uint8_t *restrict dst, const uint8_t *restrict src, const uint32_t *restrict tops, size_t n, unsigned raw_bits);
        /* The raw bits of n values of a row, eight values to raw_bits bytes, the last ones padded with 0. */
        void (*cbf_pack)(uint8_t *restrict dst, const uint8_t *restrict src, size_t n, unsigned raw_bits);
        /* Adds n counts. */
        void (*cbf_count)(uint32_t *restrict to, const uint16_t *restrict counts, size_t n);
        /* The sum of counts (each below 2^15) times costs, which must fit. */
        uint32_t (*cbf_cost)(const uint16_t *restrict counts, const int16_t *restrict costs, size_t n);
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
