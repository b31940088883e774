/* Included once per instruction set, with KERNELS and KERNELS_NAME. */
#include <math.h>
#include <string.h>
#ifdef __AVX2__
#include <immintrin.h>
#endif

#include "include/kvtier.h"
#include "libclient/codec/kernels.h"

#include "libclient/codec/number_kernels.h"
#include "libclient/codec/zbf_kernels.h"

const struct kernels KERNELS = {
        .name = KERNELS_NAME,
        .widen = number_widen,
        .narrow = number_narrow,
        .measure = number_measure,
        .zbf_split = zbf_split,
        .zbf_merge = zbf_merge,
        .xor = zbf_xor,
};
