/* The forward pass: RMSNorm, rotary embeddings over pairs (2i, 2i + 1) as GGUF stores llama's weights, grouped-query attention, SwiGLU.
 * See model.h for what the bits depend on. */
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "libclient/examples/llm/layer.h"
#include "libclient/examples/llm/quant.h"

enum { WIDEN_TOKENS = 256 };

int run_init(struct run *r, const struct model *m, struct pool *pool, enum kv_type kv_type, size_t n_ctx, size_t max_rows, int all_logits)
{
        size_t n_kv = m->n_kv_heads * m->head_dim, n_q = m->n_heads * m->head_dim, scores = (max_rows * n_ctx + 15) & ~(size_t)15;

        *r = (struct run){.model = m, .pool = pool, .kv_type = kv_type, .n_ctx = n_ctx, .max_rows = max_rows, .scores_per_thread = scores};
        r->kv = calloc(m->n_layers * 2 * n_ctx * n_kv, sizeof(*r->kv));
        r->x = calloc(max_rows * m->n_embd, sizeof(float));
        r->normed = calloc(max_rows * m->n_embd, sizeof(float));
        r->qkv = calloc(max_rows * (n_q + 2 * n_kv), sizeof(float));
        r->heads = calloc(max_rows * n_q, sizeof(float));
        r->ff = calloc(max_rows * 2 * m->n_ff, sizeof(float));
        r->angles = calloc(max_rows * m->n_rope, sizeof(float));
        r->k32 = calloc(n_ctx * n_kv, sizeof(float));
        r->v32 = calloc(n_ctx * n_kv, sizeof(float));
        r->scores = calloc(pool_n_threads(pool) * scores, sizeof(float));
        r->logits = calloc((all_logits ? max_rows : 1) * m->n_vocab, sizeof(float));
        if (r->kv && r->x && r->normed && r->qkv && r->heads && r->ff && r->angles && r->k32 && r->v32 && r->scores && r->logits)
                return 0;
        run_deinit(r);
        return -ENOMEM;
}

void run_deinit(struct run *r)
{
        float *all[] = {r->x, r->normed, r->qkv, r->heads, r->ff, r->angles, r->k32, r->v32, r->scores, r->logits};

        for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++)
                free(all[i]);
        free(r->kv);
        free(r->q);
        *r = (struct run){0};
}

int run_keep_queries(struct run *r)
{
        r->q = calloc(r->model->n_layers * r->model->n_heads * r->n_ctx * r->model->head_dim, sizeof(*r->q));
        return r->q ? 0 : -ENOMEM;
}

uint16_t *run_kv(const struct run *r, size_t layer, int which)
{
        return r->kv + (2 * layer + (size_t)which) * r->n_ctx * r->model->n_kv_heads * r->model->head_dim;
}

/* One layer's pass over n tokens at position at. */
struct step {
        struct run *run;
        size_t layer, n, at;
};

static void keep_queries(const struct step *s, const float *q, size_t i)
{
        const struct model *m = s->run->model;

        for (size_t h = 0; h < m->n_heads; h++) {
                uint16_t *dst = s->run->q + ((s->layer * m->n_heads + h) * s->run->n_ctx + s->at + i) * m->head_dim;

                for (size_t j = 0; j < m->head_dim; j++)
                        dst[j] = f16_from_f32(q[h * m->head_dim + j]);
        }
}

/* Rotates q and k of row i and stores its K and V. */
static void place_row(void *arg, size_t i, unsigned i_thread)
{
        const struct step *s = arg;
        const struct model *m = s->run->model;
        size_t n_q = m->n_heads * m->head_dim, n_kv = m->n_kv_heads * m->head_dim;
        float *qkv = s->run->qkv + i * (n_q + 2 * n_kv);

        for (size_t h = 0; h < m->n_heads + m->n_kv_heads; h++)
                tensor_rope(qkv + h * m->head_dim, s->run->angles + i * m->n_rope, m->n_rope / 2);
        if (s->run->q)
                keep_queries(s, qkv, i);
        for (int which = 0; which < 2; which++) {
                uint16_t *dst = run_kv(s->run, s->layer, which) + (s->at + i) * n_kv;
                const float *src = qkv + n_q + (size_t)which * n_kv;

                if (s->run->kv_type == KV_F16)
                        for (size_t j = 0; j < n_kv; j++)
                                dst[j] = f16_from_f32(src[j]);
                else
                        for (size_t j = 0; j < n_kv; j++)
                                dst[j] = bf16_from_f32(src[j]);
        }
}

/* Widens up to WIDEN_TOKENS tokens of K or V to floats, [kv_head][token][dim]. */
static void widen(void *arg, size_t i, unsigned i_thread)
{
        const struct step *s = arg;
        const struct model *m = s->run->model;
        size_t from = i / 2 * WIDEN_TOKENS, n = s->at + s->n, to = from + WIDEN_TOKENS < n ? from + WIDEN_TOKENS : n, dim = m->head_dim;
        const uint16_t *src = run_kv(s->run, s->layer, (int)(i % 2)) + from * m->n_kv_heads * dim;
        float *base = i % 2 ? s->run->v32 : s->run->k32;

        for (size_t t = from; t < to; t++)
                for (size_t h = 0; h < m->n_kv_heads; h++, src += dim) {
                        float *dst = base + (h * n + t) * dim;
                        if (s->run->kv_type == KV_F16)
                                for (size_t j = 0; j < dim; j++)
                                        dst[j] = f16_to_f32(src[j]);
                        else
                                for (size_t j = 0; j < dim; j++)
                                        dst[j] = bf16_to_f32(src[j]);
                }
}

/* Attention of one query head. */
static void attend(void *arg, size_t head, unsigned i_thread)
{
        const struct step *s = arg;
        const struct model *m = s->run->model;
        size_t dim = m->head_dim, n_q = m->n_heads * dim, n_kv = m->n_kv_heads * dim, n = s->at + s->n;
        size_t kv_head = head / (m->n_heads / m->n_kv_heads);
        float *scores = s->run->scores + i_thread * s->run->scores_per_thread;

        tensor_scores(scores, s->run->qkv + head * dim, n_q + 2 * n_kv, s->run->k32 + kv_head * n * dim, 1 / sqrtf((float)dim), s->n, n,
                      dim);
        for (size_t i = 0; i < s->n; i++)
                tensor_softmax(scores + i * n, s->at + i + 1, n);
        tensor_weighted_sum(s->run->heads + head * dim, n_q, scores, s->run->v32 + kv_head * n * dim, s->n, n, dim);
}

static void swiglu_row(void *arg, size_t i, unsigned i_thread)
{
        const struct step *s = arg;
        size_t n_ff = s->run->model->n_ff;
        float *row = s->run->ff + i * 2 * n_ff;

        tensor_swiglu(row, row + n_ff, n_ff);
}

/* Brings the rows' gated halves together, so that they are one matrix. */
static void close_up(float *ff, size_t n, size_t n_ff)
{
        for (size_t i = 1; i < n; i++)
                memmove(ff + i * n_ff, ff + i * 2 * n_ff, n_ff * sizeof(*ff));
}

static void norm_rows(float *y, const float *x, const float *weight, size_t n, const struct model *m)
{
        for (size_t i = 0; i < n; i++)
                tensor_rmsnorm(y + i * m->n_embd, x + i * m->n_embd, weight, m->n_embd, m->eps);
}

static void forward_layer(struct step *s)
{
        struct run *r = s->run;
        const struct model *m = r->model;
        const struct layer *l = &m->layers[s->layer];
        size_t n_q = m->n_heads * m->head_dim, n_kv = m->n_kv_heads * m->head_dim, e = m->n_embd;

        norm_rows(r->normed, r->x, l->attn_norm, s->n, m);
        tensor_matmul(r->pool, r->qkv, r->normed, l->qkv, s->n, e, n_q + 2 * n_kv, 0);
        pool_run(r->pool, s->n, place_row, s);
        pool_run(r->pool, (s->at + s->n + WIDEN_TOKENS - 1) / WIDEN_TOKENS * 2, widen, s);
        pool_run(r->pool, m->n_heads, attend, s);
        tensor_matmul(r->pool, r->x, r->heads, l->out, s->n, n_q, e, 1);
        norm_rows(r->normed, r->x, l->ffn_norm, s->n, m);
        tensor_matmul(r->pool, r->ff, r->normed, l->gate_up, s->n, e, 2 * m->n_ff, 0);
        pool_run(r->pool, s->n, swiglu_row, s);
        close_up(r->ff, s->n, m->n_ff);
        tensor_matmul(r->pool, r->x, r->ff, l->down, s->n, m->n_ff, e, 1);
}

void model_forward(struct run *r, const uint32_t *tokens, size_t n, size_t at, enum model_logits want)
{
        const struct model *m = r->model;
        size_t first = want == LOGITS_ALL ? 0 : n - 1, e = m->n_embd;

        for (size_t i = 0; i < n; i++) {
                memcpy(r->x + i * e, m->embd + tokens[i] * e, e * sizeof(float));
                for (size_t j = 0; j < m->n_rope / 2; j++) {
                        double angle = (double)(at + i) * (double)m->rope_step[j];
                        r->angles[i * m->n_rope + 2 * j] = (float)cos(angle);
                        r->angles[i * m->n_rope + 2 * j + 1] = (float)sin(angle);
                }
        }
        for (size_t layer = 0; layer < m->n_layers; layer++)
                forward_layer(&(struct step){r, layer, n, at});
        if (want == LOGITS_NONE)
                return;
        norm_rows(r->normed, r->x + first * e, m->output_norm, n - first, m);
        tensor_matmul(r->pool, r->logits, r->normed, m->output, n - first, e, m->n_vocab, 0);
}
