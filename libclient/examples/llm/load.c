/* Weights out of a GGUF file: checks shapes against the metadata, decodes everything to floats in one arena, on all threads.
 *
 * What is allocated is bounded by the file: the shapes are those of tensors that lie inside it. */
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#define XXH_INLINE_ALL
#include <xxhash.h>

#include "libclient/examples/llm/layer.h"
#include "libclient/examples/llm/quant.h"

enum { PIECE_ELEMS = 1 << 16, TENSORS_PER_LAYER = 9 };

/* A tensor and where its floats go. */
struct load {
        const struct gguf_tensor *tensor;
        float **dst; /* filled from at once the arena is there */
        size_t at, n_elems;
};

struct loader {
        struct gguf *g;
        struct load *loads;
        size_t n_loads, n_floats;
        /* of the tensor being decoded */
        const struct quant *quant;
        const struct load *load;
        const float *arena;
};

/* Looks name up, checks that it is [n_rows][n_cols], and gives it room behind the last one, or at a new cache line if dst is given. */
static int add(struct loader *l, const char *name, size_t n_cols, size_t n_rows, float **dst)
{
        const struct gguf_tensor *t = gguf_find_tensor(l->g, name);

        if (!t)
                return gguf_fail(l->g, -ENOENT, "tensor '%s' is missing", name);
        if (t->dims[0] != n_cols || t->dims[1] != n_rows || t->dims[2] != 1 || t->dims[3] != 1)
                return gguf_fail(l->g, -EINVAL, "tensor '%s' is %llu x %llu, the metadata makes it %zu x %zu", name,
                                 (unsigned long long)t->dims[0], (unsigned long long)t->dims[1], n_cols, n_rows);
        if (dst)
                l->n_floats = (l->n_floats + 15) & ~(size_t)15;
        l->loads[l->n_loads++] = (struct load){t, dst, l->n_floats, n_cols * n_rows};
        l->n_floats += n_cols * n_rows;
        return 0;
}

static int add_layer(struct loader *l, const struct model *m, size_t i, struct layer *layer)
{
        size_t n_q = m->n_heads * m->head_dim, n_kv = m->n_kv_heads * m->head_dim, e = m->n_embd;
        const struct {
                const char *name;
                size_t n_cols, n_rows;
                float **dst; /* NULL: right behind the one before, as one matrix */
        } parts[TENSORS_PER_LAYER] = {
                {"attn_norm", e, 1, &layer->attn_norm},
                {"attn_q", e, n_q, &layer->qkv},
                {"attn_k", e, n_kv, NULL},
                {"attn_v", e, n_kv, NULL},
                {"attn_output", n_q, e, &layer->out},
                {"ffn_norm", e, 1, &layer->ffn_norm},
                {"ffn_gate", e, m->n_ff, &layer->gate_up},
                {"ffn_up", e, m->n_ff, NULL},
                {"ffn_down", m->n_ff, e, &layer->down},
        };
        char name[64];

        for (size_t k = 0; k < TENSORS_PER_LAYER; k++) {
                int r;

                snprintf(name, sizeof(name), "blk.%zu.%s.weight", i, parts[k].name);
                r = add(l, name, parts[k].n_cols, parts[k].n_rows, parts[k].dst);
                if (r)
                        return r;
        }
        return 0;
}

static void decode_piece(void *arg, size_t i_task, unsigned i_thread)
{
        const struct loader *l = arg;
        size_t at = i_task * PIECE_ELEMS, n = l->load->n_elems - at < PIECE_ELEMS ? l->load->n_elems - at : PIECE_ELEMS;

        l->quant->decode(l->load->tensor->data + at / l->quant->block_elems * l->quant->block_bytes, (float *)l->arena + l->load->at + at,
                         n / l->quant->block_elems);
}

static int load_tensors(struct model *m, struct loader *l, struct pool *pool)
{
        m->arena_bytes = l->n_floats * sizeof(float);
        m->arena = mmap(NULL, m->arena_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (m->arena == MAP_FAILED) {
                m->arena = NULL;
                return gguf_fail(l->g, -ENOMEM, "no memory for %zu bytes of weights", m->arena_bytes);
        }
        madvise(m->arena, m->arena_bytes, MADV_HUGEPAGE); /* fewer page faults; it does not matter if it is refused */
        l->arena = m->arena;
        for (size_t i = 0; i < l->n_loads; i++) {
                l->load = &l->loads[i];
                l->quant = quant_find(l->load->tensor->type);
                if (l->load->dst)
                        *l->load->dst = m->arena + l->load->at;
                pool_run(pool, (l->load->n_elems + PIECE_ELEMS - 1) / PIECE_ELEMS, decode_piece, l);
        }
        return 0;
}

static int get_size(struct gguf *g, const char *key, size_t max, size_t *ret)
{
        uint64_t v;
        int r = gguf_get_u64(g, key, 1, max, &v);

        if (!r)
                *ret = v;
        return r;
}

static int load_shape(struct model *m, struct gguf *g)
{
        const struct gguf_tensor *embd = gguf_find_tensor(g, "token_embd.weight");
        const struct gguf_kv *tokens = gguf_find(g, "tokenizer.ggml.tokens");
        struct gguf_string s;
        uint64_t v;
        int r = gguf_get_string(g, "general.architecture", &s);

        if (!r && (s.n != 5 || memcmp(s.s, "llama", 5)))
                r = gguf_fail(g, -EINVAL, "general.architecture: '%.*s' is not llama, the one this program has", (int)s.n, s.s);
        if (r || (r = get_size(g, "llama.block_count", 4096, &m->n_layers)) ||
            (r = get_size(g, "llama.embedding_length", 1 << 20, &m->n_embd)) ||
            (r = get_size(g, "llama.feed_forward_length", 1 << 22, &m->n_ff)) ||
            (r = get_size(g, "llama.context_length", 1 << 24, &m->n_ctx_train)) ||
            (r = get_size(g, "llama.attention.head_count", 4096, &m->n_heads)) ||
            (r = get_size(g, "llama.attention.head_count_kv", m->n_heads, &m->n_kv_heads)) ||
            (r = gguf_get_f32(g, "llama.attention.layer_norm_rms_epsilon", &m->eps)))
                return r;
        m->head_dim = m->n_embd / m->n_heads;
        r = gguf_get_u64(g, "llama.attention.key_length", m->head_dim, m->head_dim, &v);
        if (r == -EINVAL)
                return r;
        if (m->n_embd % m->n_heads || m->head_dim % 2 || m->n_heads % m->n_kv_heads)
                return gguf_fail(g, -EINVAL, "an embedding of %zu, %zu heads and %zu KV heads do not fit together", m->n_embd, m->n_heads,
                                 m->n_kv_heads);
        if (!(m->eps > 0 && m->eps < 1))
                return gguf_fail(g, -EINVAL, "llama.attention.layer_norm_rms_epsilon is out of range");
        if (!embd)
                return gguf_fail(g, -ENOENT, "tensor 'token_embd.weight' is missing");
        m->n_vocab = embd->dims[1];
        if (!tokens || m->n_vocab != tokens->n_elems || m->n_vocab > INT32_MAX)
                return gguf_fail(g, -EINVAL, "tensor 'token_embd.weight' has %zu rows for %zu tokens", m->n_vocab,
                                 tokens ? (size_t)tokens->n_elems : 0);
        r = gguf_get_string(g, "general.name", &s);
        snprintf(m->name, sizeof(m->name), "%.*s", r ? 5 : (int)(s.n < 60 ? s.n : 60), r ? "llama" : s.s);
        for (char *c = m->name; *c; c++)
                if (*c < 32 || *c > 126)
                        *c = '?';
        return 0;
}

static int load_rope(struct model *m, struct gguf *g)
{
        const struct gguf_kv *scaling = gguf_find(g, "llama.rope.scaling.type");
        struct gguf_string s = {"", 0};
        float base = 10000;
        uint64_t n_rope = m->head_dim;
        int r;

        if (scaling && (r = gguf_get_string(g, "llama.rope.scaling.type", &s)))
                return r;
        if (gguf_find_tensor(g, "rope_freqs.weight") || (s.n && (s.n != 4 || memcmp(s.s, "none", 4))))
                return gguf_fail(g, -EINVAL, "rotary embeddings with scaling are not in this program");
        if (((r = gguf_get_f32(g, "llama.rope.freq_base", &base)) && r != -ENOENT) ||
            ((r = gguf_get_u64(g, "llama.rope.dimension_count", 2, m->head_dim, &n_rope)) && r != -ENOENT))
                return r;
        if (!(base > 0 && base < 1e12f) || n_rope % 2)
                return gguf_fail(g, -EINVAL, "llama.rope.freq_base or llama.rope.dimension_count is out of range");
        m->n_rope = n_rope;
        m->rope_step = calloc(n_rope / 2, sizeof(float));
        if (!m->rope_step)
                return gguf_fail(g, -ENOMEM, "out of memory");
        for (size_t i = 0; i < n_rope / 2; i++)
                m->rope_step[i] = (float)pow(base, -2.0 * (double)i / (double)n_rope);
        return 0;
}

int model_load(struct model *m, struct gguf *g, struct pool *pool)
{
        struct loader l = {.g = g};
        XXH128_canonical_t digest;
        int r;

        *m = (struct model){0};
        r = load_shape(m, g);
        if (!r)
                r = load_rope(m, g);
        if (r)
                return r;
        l.loads = calloc(m->n_layers * TENSORS_PER_LAYER + 3, sizeof(*l.loads));
        m->layers = calloc(m->n_layers, sizeof(*m->layers));
        if (!l.loads || !m->layers)
                r = gguf_fail(g, -ENOMEM, "out of memory");
        if (!r)
                r = add(&l, "token_embd.weight", m->n_embd, m->n_vocab, &m->embd);
        if (!r)
                r = add(&l, "output_norm.weight", m->n_embd, 1, &m->output_norm);
        if (!r && gguf_find_tensor(g, "output.weight"))
                r = add(&l, "output.weight", m->n_embd, m->n_vocab, &m->output);
        for (size_t i = 0; !r && i < m->n_layers; i++)
                r = add_layer(&l, m, i, &m->layers[i]);
        if (!r)
                r = load_tensors(m, &l, pool);
        free(l.loads);
        if (r)
                return r;
        if (!m->output)
                m->output = m->embd;
        XXH128_canonicalFromHash(&digest, XXH3_128bits(g->bytes, g->n_bytes));
        memcpy(m->digest, &digest, sizeof(m->digest));
        return 0;
}

void model_unload(struct model *m)
{
        if (m->arena)
                munmap(m->arena, m->arena_bytes);
        free(m->layers);
        free(m->rope_step);
        *m = (struct model){0};
}

uint64_t model_hash(const void *p, size_t n_bytes)
{
        return XXH3_64bits(p, n_bytes);
}
