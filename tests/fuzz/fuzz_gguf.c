/* The example engine's reader of model files: the file, its tokenizer, its weights; then what is loaded is used, since bad values that were
 * taken would show there.
 *
 * Seeds are whole models of a few kilobytes, in all weight formats. */
#include "libclient/examples/llm/model.h"
#include "libclient/examples/llm/quant.h"
#include "libclient/examples/llm/tokenizer.h"
#include "tests/fuzz/fuzz.h"

static struct pool *pool;

/* a writer of GGUF */

struct file {
        uint8_t bytes[65536];
        size_t n;
};

static void put(struct file *f, const void *p, size_t n)
{
        FUZZ_CHECK(n <= sizeof(f->bytes) - f->n);
        memcpy(f->bytes + f->n, p, n);
        f->n += n;
}
static void put_u32(struct file *f, uint32_t v)
{
        put(f, &v, 4);
}
static void put_u64(struct file *f, uint64_t v)
{
        put(f, &v, 8);
}
static void put_string(struct file *f, const char *s)
{
        put_u64(f, strlen(s));
        put(f, s, strlen(s));
}
static void put_key(struct file *f, const char *key, uint32_t type)
{
        put_string(f, key);
        put_u32(f, type);
}
static void put_text(struct file *f, const char *key, const char *value)
{
        put_key(f, key, GGUF_STRING);
        put_string(f, value);
}
static void put_strings(struct file *f, const char *key, const char *const *strings, size_t n)
{
        put_key(f, key, GGUF_ARRAY);
        put_u32(f, GGUF_STRING);
        put_u64(f, n);
        for (size_t i = 0; i < n; i++)
                put_string(f, strings[i]);
}

static const char *const tokens[] = {"<|endoftext|>", "<|im_start|>", "<|im_end|>", "a", "b", "c", "\304\240", "ab", "\304\240ab"};
static const char *const merges[] = {"a b", "\304\240 ab"};
enum { N_TOKENS = sizeof(tokens) / sizeof(*tokens), N_MERGES = sizeof(merges) / sizeof(*merges) };

static void put_head(struct file *f, uint32_t n_embd, uint32_t n_ff, uint64_t n_tensors)
{
        const struct {
                const char *key;
                uint32_t value;
        } numbers[] = {{"llama.block_count", 1},           {"llama.embedding_length", n_embd}, {"llama.feed_forward_length", n_ff},
                       {"llama.context_length", 64},       {"llama.attention.head_count", 2},  {"llama.attention.head_count_kv", 1},
                       {"tokenizer.ggml.bos_token_id", 1}, {"tokenizer.ggml.eos_token_id", 2}};
        const size_t n_numbers = sizeof(numbers) / sizeof(*numbers);

        put(f, "GGUF", 4);
        put_u32(f, 3);
        put_u64(f, n_tensors);
        put_u64(f, n_numbers + 8);
        put_text(f, "general.architecture", "llama");
        put_text(f, "general.name", "tiny");
        for (size_t i = 0; i < n_numbers; i++) {
                put_key(f, numbers[i].key, GGUF_U32);
                put_u32(f, numbers[i].value);
        }
        put_key(f, "llama.attention.layer_norm_rms_epsilon", GGUF_F32);
        put(f, &(float){1e-5f}, 4);
        put_text(f, "tokenizer.ggml.model", "gpt2");
        put_text(f, "tokenizer.ggml.pre", "smollm");
        put_strings(f, "tokenizer.ggml.tokens", tokens, N_TOKENS);
        put_key(f, "tokenizer.ggml.token_type", GGUF_ARRAY);
        put_u32(f, GGUF_I32);
        put_u64(f, N_TOKENS);
        for (uint32_t i = 0; i < N_TOKENS; i++)
                put_u32(f, i < 3 ? 3 : 1);
        put_strings(f, "tokenizer.ggml.merges", merges, N_MERGES);
}

/* matrix: the format of the matrices; down: that of the one whose rows are n_ff long */
static void build(struct file *f, uint32_t n_embd, uint32_t n_ff, uint32_t matrix, uint32_t down)
{
        const struct {
                const char *name;
                uint64_t n_cols, n_rows; /* n_rows 0: one dimension */
                uint32_t type;
        } shapes[] = {{"token_embd.weight", n_embd, N_TOKENS, matrix},
                      {"output_norm.weight", n_embd, 0, 0},
                      {"blk.0.attn_norm.weight", n_embd, 0, 0},
                      {"blk.0.attn_q.weight", n_embd, n_embd, matrix},
                      {"blk.0.attn_k.weight", n_embd, n_embd / 2, 1},
                      {"blk.0.attn_v.weight", n_embd, n_embd / 2, 30},
                      {"blk.0.attn_output.weight", n_embd, n_embd, matrix},
                      {"blk.0.ffn_norm.weight", n_embd, 0, 0},
                      {"blk.0.ffn_gate.weight", n_embd, n_ff, matrix},
                      {"blk.0.ffn_up.weight", n_embd, n_ff, matrix},
                      {"blk.0.ffn_down.weight", n_ff, n_embd, down}};
        const size_t n_shapes = sizeof(shapes) / sizeof(*shapes);
        uint64_t offset = 0;

        f->n = 0;
        put_head(f, n_embd, n_ff, n_shapes);
        for (size_t i = 0; i < n_shapes; i++) {
                const struct quant *q = quant_find(shapes[i].type);
                uint64_t n_rows = shapes[i].n_rows ? shapes[i].n_rows : 1;

                put_string(f, shapes[i].name);
                put_u32(f, shapes[i].n_rows ? 2 : 1);
                put_u64(f, shapes[i].n_cols);
                if (shapes[i].n_rows)
                        put_u64(f, n_rows);
                put_u32(f, shapes[i].type);
                put_u64(f, offset);
                offset += (shapes[i].n_cols * n_rows / q->block_elems * q->block_bytes + 31) / 32 * 32;
        }
        while (f->n % 32)
                put(f, "", 1);
        while (offset--)
                put(f, &(uint8_t){(uint8_t)(offset * 37 % 61)}, 1);
}

/* reading */

static void use_tokenizer(const struct tokenizer *t)
{
        static const char text[] = "<|im_start|>ab abc  \xff\xc4\xa0 12ab's\n\n";
        uint32_t *ids = NULL;
        size_t n = 0;
        char bytes[64];

        for (unsigned flags = 0; flags <= TOKENIZER_SPECIALS; flags++)
                FUZZ_CHECK(tokenizer_encode(t, text, sizeof(text), flags, &ids, &n) == 0);
        for (size_t i = 0; i < n; i++) {
                FUZZ_CHECK(ids[i] < t->n_tokens);
                FUZZ_CHECK(tokenizer_decode(t, ids[i], bytes, sizeof(bytes)) <= sizeof(bytes));
        }
        free(ids);
        (void)tokenizer_special(t, "<|im_end|>");
}

static void use_model(const struct model *m)
{
        const uint32_t ids[3] = {0, (uint32_t)m->n_vocab - 1, 0};
        struct run r;

        FUZZ_CHECK(run_init(&r, m, pool, KV_F16, 8, 4, 1) == 0);
        model_forward(&r, ids, 3, 0, LOGITS_ALL);
        model_forward(&r, ids, 1, 3, LOGITS_LAST);
        run_deinit(&r);
}

static int load(const uint8_t *bytes, size_t n)
{
        uint8_t *copy = memcpy(malloc(n + !n), bytes, n); /* so that a read past it is seen */
        struct tokenizer t = {0};
        struct model m = {0};
        struct gguf g;
        int r;

        r = gguf_parse(&g, copy, n);
        if (!r && !(r = tokenizer_init(&t, &g))) {
                use_tokenizer(&t);
                r = model_load(&m, &g, pool);
        }
        FUZZ_CHECK(r == 0 || g.error[0]);
        for (const char *c = g.error; r && *c; c++)
                FUZZ_CHECK(*c >= 32 && *c <= 126);
        if (!r && m.n_layers <= 4 && m.n_embd <= 512 && m.n_ff <= 512)
                use_model(&m);
        model_unload(&m);
        tokenizer_deinit(&t);
        gguf_close(&g);
        free(copy);
        return r;
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
        static struct file f;
        const struct {
                const char *name;
                uint32_t n_embd, n_ff, matrix, down;
        } models[] = {{"f32", 4, 2, 0, 0}, {"f16", 8, 4, 1, 30}, {"q4_0", 32, 64, 2, 3}, {"q8_0", 32, 32, 8, 8}, {"q6_k", 32, 256, 3, 14}};

        FUZZ_CHECK((pool = pool_new(1)));
        for (size_t i = 0; i < sizeof(models) / sizeof(*models); i++) {
                build(&f, models[i].n_embd, models[i].n_ff, models[i].matrix, models[i].down);
                FUZZ_CHECK(load(f.bytes, f.n) == 0);
                fuzz_seed(fuzz_corpus(*argc, *argv), models[i].name, f.bytes, f.n);
        }
        return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n)
{
        load(bytes, n);
        return 0;
}
