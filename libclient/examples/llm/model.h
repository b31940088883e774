/* A llama-architecture transformer: weights as floats in memory, KV in 16 bits, prefill in chunks.
 *
 * Bits. The KV that model_forward() computes for a token depends on the tokens up to it, the weights, the KV type, and the shape of the
 * call (n, at), on nothing else: attention always reads the 16-bit KV, whoever put it there. A caller that prefills in chunks of a
 * fixed size at multiples of that size gets the same bits for a chunk, whether the KV before it was computed or loaded.
 *
 * Threads: one thread uses a model and its run; the pool's threads work inside the calls. */
#pragma once

#include "libclient/examples/llm/gguf.h"
#include "libclient/examples/llm/tensor.h"

enum { MODEL_DIGEST_BYTES = 16 };

struct model {
        size_t n_vocab, n_embd, n_layers, n_heads, n_kv_heads, head_dim, n_ff, n_ctx_train;
        size_t n_rope; /* leading elements of a head that are rotated */
        float eps;
        float *rope_step; /* [n_rope / 2] angle a position */
        struct layer *layers;
        float *embd; /* [n_vocab][n_embd] */
        float *output; /* likewise; embd itself if tied */
        float *output_norm;
        float *arena; /* owned: all of the above */
        size_t arena_bytes;
        uint8_t digest[MODEL_DIGEST_BYTES]; /* of the file */
        char name[64];
};

/* 0 or a negative errno with g->error. g may be closed afterwards. */
int model_load(struct model *m, struct gguf *g, struct pool *pool);
void model_unload(struct model *m);
/* XXH3-64, for comparing bits. */
uint64_t model_hash(const void *p, size_t n_bytes);

enum kv_type { KV_F16, KV_BF16 };

/* One sequence: its KV and scratch memory. K and V of a layer are [token][kv_head][dim] each. */
struct run {
        const struct model *model;
        struct pool *pool;
        enum kv_type kv_type;
        size_t n_ctx, max_rows; /* tokens there is room for; in one call */
        uint16_t *kv; /* [layer][K, V][n_ctx][n_kv_heads][head_dim]; owned, like all below */
        float *x, *normed, *qkv, *heads, *ff, *angles, *k32, *v32, *scores, *logits; /* logits: [max_rows][n_vocab] if all were asked for */
        size_t scores_per_thread;
        uint16_t *q; /* run_keep_queries(): [layer][head][n_ctx][head_dim], halves; else NULL */
};

enum model_logits { LOGITS_NONE, LOGITS_LAST, LOGITS_ALL };

/* all_logits: model_forward() will be asked for LOGITS_ALL. 0 or -ENOMEM. */
int run_init(struct run *r, const struct model *m, struct pool *pool, enum kv_type kv_type, size_t n_ctx, size_t max_rows, int all_logits);
void run_deinit(struct run *r);
/* From now on model_forward() keeps the queries, as attention uses them. 0 or -ENOMEM. */
int run_keep_queries(struct run *r);
/* Where K (which 0) or V (1) of a layer starts. */
uint16_t *run_kv(const struct run *r, size_t layer, int which);
/* Computes n tokens (at most max_rows) at positions at..at+n, given the KV of all before; stores their KV; leaves logits as asked. Tokens are
 * below n_vocab, at + n <= n_ctx. */
void model_forward(struct run *r, const uint32_t *tokens, size_t n, size_t at, enum model_logits want);
