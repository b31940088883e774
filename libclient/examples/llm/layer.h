/* One transformer layer's weights, row-major [n_out][n_in], in the model's arena. */
#pragma once

#include "libclient/examples/llm/model.h"

struct layer {
        float *attn_norm;
        float *qkv; /* rows of q, then k, then v */
        float *out;
        float *ffn_norm;
        float *gate_up; /* rows of gate, then up */
        float *down;
};
