/* See attention.h. */
#include <math.h>
#include <string.h>

#include "libclient/codec/kernels.h"
#include "libclient/ctl/attention.h"

static void attend(const float *q, const float *k, const float *v, size_t n_keys, size_t dim, float *restrict out, float *restrict scores)
{
        float scale = 1 / sqrtf((float)dim), max = -INFINITY;
        double sum = 0;

        for (size_t t = 0; t < n_keys; t++) {
                scores[t] = scale * kernels()->gear_dot(q, k + t * dim, dim);
                max = scores[t] > max ? scores[t] : max;
        }
        for (size_t t = 0; t < n_keys; t++) {
                scores[t] = expf(scores[t] - max);
                sum += (double)scores[t];
        }
        memset(out, 0, dim * sizeof(*out));
        for (size_t t = 0; t < n_keys; t++) {
                float w = scores[t] / (float)sum;

                for (size_t i = 0; i < dim; i++)
                        out[i] += w * v[t * dim + i];
        }
}

void attention_outputs(const struct capture *c, const float *q, const float *k, const float *v, const uint32_t *positions, size_t n,
                       float *out, float *scores)
{
        size_t dim = c->head_dim, group = c->n_heads / c->n_kv_heads, pitch = (size_t)c->n_tokens * dim;

        for (size_t h = 0; h < c->n_heads; h++)
                for (size_t i = 0; i < n; i++)
                        attend(q + (h * n + i) * dim, k + h / group * pitch, v + h / group * pitch, positions[i] + 1, dim,
                               out + (h * n + i) * dim, scores);
}
