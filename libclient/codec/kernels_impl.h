/* Included once per instruction set, with KERNELS and KERNELS_NAME. */
#include <math.h>
#include <stdbool.h>
#include <string.h>
#ifdef __AVX2__
#include <immintrin.h>
#endif

#include "include/kvtier.h"
#include "libclient/codec/cbf.h"
#include "libclient/codec/kernels.h"

#include "libclient/codec/gear_kernels.h"
#include "libclient/codec/number_kernels.h"
#include "libclient/codec/bitmap_kernels.h"
#include "libclient/codec/turbo_kernels.h"

#include "libclient/codec/bits_kernels.h"

#include "libclient/codec/quant_kernels.h"
#include "libclient/codec/zbf_kernels.h"
#include "libclient/codec/cbf_kernels.h"

const struct kernels KERNELS = {
        .name = KERNELS_NAME,
        .widen = number_widen,
        .narrow = number_narrow,
        .measure = number_measure,
        .quant_add = quant_add,
        .quant_fit = quant_fit,
        .quant_params = quant_params,
        .quant_encode_rows = quant_encode_rows,
        .quant_decode_rows = quant_decode_rows,
        .bitmap_choose = bitmap_choose,
        .bitmap_expand = bitmap_expand,
        .gear_add_product = gear_add_product,
        .gear_dot = gear_dot,
        .turbo_encode_row = turbo_encode_row,
        .turbo_decode_row = turbo_decode_row,
        .zbf_split = zbf_split,
        .zbf_merge = zbf_merge,
        .xor = zbf_xor,
        .cbf_decode_rows = cbf_decode_rows,
        .cbf_fill = cbf_fill,
        .cbf_scan = cbf_scan,
        .cbf_symbols = cbf_symbols,
        .cbf_pack = cbf_pack,
        .cbf_count = cbf_count,
        .cbf_cost = cbf_cost,
};
