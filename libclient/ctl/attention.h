/* Attention over captured Q, K and V: what an error in K and V does to its output. Pure functions over floats. */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "libclient/codec/capture.h"

/* softmax(q k^T / sqrt(dim)) v of every query head for the queries of tokens positions[0..n), each over the keys up to its own. q: [query head][n][dim]; k, v: [KV
 * head][token][dim]; out as q; scores: room for n_tokens. */
void attention_outputs(const struct capture *c, const float *q, const float *k, const float *v, const uint32_t *positions, size_t n,
                       float *out, float *scores);
