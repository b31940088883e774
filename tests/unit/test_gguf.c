/* The example engine's readers of foreign files: GGUF files that lie, the tokenizer made from them, weight formats.
 *
 * A small valid model is built in memory; then every lie is told in it and must be named, every truncation and many thousand damaged
 * bytes must be survived. The engine is no library: its files are included. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>

#include <cmocka.h>

#include "libclient/examples/llm/gguf.c"
#include "libclient/examples/llm/load.c"
#include "libclient/examples/llm/quant.c"
#include "libclient/examples/llm/tokenizer.c"
#include "libclient/examples/llm/unicode.c"

void pool_run(struct pool *p, size_t n_tasks, void (*fn)(void *arg, size_t i_task, unsigned i_thread), void *arg)
{
        for (size_t i = 0; i < n_tasks; i++)
                fn(arg, i, 0);
}

/* a writer of GGUF */

struct file {
        uint8_t bytes[65536];
        size_t n;
        size_t n_head; /* before the data of tensors */
};

static void put(struct file *f, const void *p, size_t n)
{
        assert_true(n <= sizeof(f->bytes) - f->n);
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

static void put_number(struct file *f, const char *key, uint32_t value)
{
        put_key(f, key, GGUF_U32);
        put_u32(f, value);
}

enum { EMBD = 32, FF = 64, N_TOKENS = 262, N_MERGES = 3 };
static const char *const merges[N_MERGES] = {"\xc4\xa0 t", "h e", "\xc4\xa0t he"};

struct shape {
        const char *name;
        uint64_t n_cols, n_rows; /* n_rows 0: one dimension */
        uint32_t type;
};
static const struct shape shapes[] = {
        {"token_embd.weight", EMBD, N_TOKENS, 8},    {"output_norm.weight", EMBD, 0, 0},     {"blk.0.attn_norm.weight", EMBD, 0, 0},
        {"blk.0.attn_q.weight", EMBD, EMBD, 3},      {"blk.0.attn_k.weight", EMBD, 16, 1},   {"blk.0.attn_v.weight", EMBD, 16, 30},
        {"blk.0.attn_output.weight", EMBD, EMBD, 2}, {"blk.0.ffn_norm.weight", EMBD, 0, 0},  {"blk.0.ffn_gate.weight", EMBD, FF, 8},
        {"blk.0.ffn_up.weight", EMBD, FF, 8},        {"blk.0.ffn_down.weight", FF, EMBD, 0},
};
enum { N_SHAPES = sizeof(shapes) / sizeof(shapes[0]), N_KVS = 14 };

static void put_tokenizer(struct file *f)
{
        put_text(f, "tokenizer.ggml.model", "gpt2");
        put_text(f, "tokenizer.ggml.pre", "smollm");
        put_number(f, "tokenizer.ggml.eos_token_id", 2);
        put_key(f, "tokenizer.ggml.tokens", GGUF_ARRAY);
        put_u32(f, GGUF_STRING);
        put_u64(f, N_TOKENS);
        put_string(f, "<|endoftext|>");
        put_string(f, "<|im_start|>");
        put_string(f, "<|im_end|>");
        for (unsigned b = 0; b < 256; b++) {
                uint32_t c = byte_char(b);
                char s[3] = {(char)(c < 0x80 ? c : 0xc0 | c >> 6), (char)(c < 0x80 ? 0 : 0x80 | (c & 63))};
                put_string(f, s);
        }
        put_string(f, "\xc4\xa0t");
        put_string(f, "he");
        put_string(f, "\xc4\xa0the");
        put_key(f, "tokenizer.ggml.token_type", GGUF_ARRAY);
        put_u32(f, GGUF_I32);
        put_u64(f, N_TOKENS);
        for (unsigned i = 0; i < N_TOKENS; i++)
                put_u32(f, i < 3 ? 3 : 1);
        put_key(f, "tokenizer.ggml.merges", GGUF_ARRAY);
        put_u32(f, GGUF_STRING);
        put_u64(f, N_MERGES);
        for (unsigned i = 0; i < N_MERGES; i++)
                put_string(f, merges[i]);
}

static void build(struct file *f)
{
        uint64_t offset = 0;

        memset(f, 0, sizeof(*f));
        put(f, "GGUF", 4);
        put_u32(f, 3);
        put_u64(f, N_SHAPES);
        put_u64(f, N_KVS);
        put_text(f, "general.architecture", "llama");
        put_number(f, "llama.block_count", 1);
        put_number(f, "llama.embedding_length", EMBD);
        put_number(f, "llama.feed_forward_length", FF);
        put_number(f, "llama.context_length", 128);
        put_number(f, "llama.attention.head_count", 2);
        put_number(f, "llama.attention.head_count_kv", 1);
        put_key(f, "llama.attention.layer_norm_rms_epsilon", GGUF_F32);
        put(f, &(float){1e-5f}, 4);
        put_tokenizer(f);
        for (size_t i = 0; i < N_SHAPES; i++) {
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
        f->n_head = f->n = (f->n + 31) / 32 * 32;
        f->n += offset;
        assert_true(f->n <= sizeof(f->bytes));
        for (size_t i = f->n_head; i < f->n; i++)
                f->bytes[i] = (uint8_t)(i * 37 % 61);
}

/* Everything that reads the file. The bytes are copied to the end of a block of their own, so that sanitizers see a read past them. */
static int load(const struct file *f, size_t n, char *error)
{
        struct gguf g;
        struct tokenizer t = {0};
        struct model m = {0};
        uint8_t *copy = malloc(n + !n);
        int r;

        memcpy(copy, f->bytes, n);
        r = gguf_parse(&g, copy, n);
        if (!r)
                r = tokenizer_init(&t, &g);
        if (!r)
                r = model_load(&m, &g, NULL);
        if (error)
                memcpy(error, g.error, sizeof(g.error));
        assert_true(r == 0 || g.error[0]);
        for (const char *c = g.error; *c; c++)
                assert_in_range(*c, 32, 126);
        model_unload(&m);
        tokenizer_deinit(&t);
        gguf_close(&g);
        free(copy);
        return r;
}

/* Where these bytes stand in the head. */
static uint8_t *find(struct file *f, const void *what, size_t n)
{
        uint8_t *p = memmem(f->bytes, f->n_head, what, n);
        assert_non_null(p);
        return p;
}

static uint8_t *after_text(struct file *f, const char *s)
{
        return find(f, s, strlen(s)) + strlen(s);
}

static void expect_error(const struct file *f, const char *text)
{
        char error[GGUF_ERROR_BYTES];

        assert_int_not_equal(load(f, f->n, error), 0);
        if (!strstr(error, text))
                fail_msg("'%s' does not say '%s'", error, text);
}

static void set_u64(uint8_t *p, uint64_t v)
{
        memcpy(p, &v, 8);
}

static void set_u32(uint8_t *p, uint32_t v)
{
        memcpy(p, &v, 4);
}

/* tests */

static void test_valid_file_loads(void **state)
{
        struct file f;
        char error[GGUF_ERROR_BYTES];

        build(&f);
        if (load(&f, f.n, error))
                fail_msg("%s", error);
}

static void test_every_lie_is_named(void **state)
{
        /* behind the first occurrence of text (its NULL: at the start), at skip, these bytes */
        static const struct {
                const char *text;
                size_t skip, n;
                uint64_t value;
                const char *expect;
        } lies[] = {
                {NULL, 0, 4, 0x46554748, "not a GGUF file"},
                {NULL, 4, 4, 2, "version is not 3"},
                {NULL, 4, 4, 0x03000000, "version is not 3"},
                {NULL, 8, 8, UINT64_MAX, "more than the file can hold"},
                {NULL, 8, 8, 60000, "more than the file can hold"},
                {NULL, 16, 8, UINT64_MAX, "more than the file can hold"},
                {NULL, 16, 8, 65537, "more than the file can hold"},
                {NULL, 16, 8, N_KVS + 1, "tensor 0 at byte"},
                {NULL, 24, 8, UINT64_MAX, "metadata entry 0 at byte 24: its key is empty"},
                {NULL, 24, 8, 0, "metadata entry 0 at byte 24: its key is empty"},
                {"general.architecture", 0, 4, 99, "'general.architecture' at byte 24: unknown type"},
                {"general.architecture", 0, 4, GGUF_U32, "metadata entry 1 at byte 60"},
                {"general.architecture", 4, 8, 1ull << 40, "'general.architecture' at byte 24: its value passes the end"},
                {"general.architecture", 12, 1, 'L', "'Llama' is not llama"},
                {"general.architecture", 12, 1, 27, "'?lama' is not llama"},
                {"llama.block_count", 4, 4, 0, "'llama.block_count': 0 is not within 1 and"},
                {"llama.block_count", 4, 4, 2, "tensor 'blk.1.attn_norm.weight' is missing"},
                {"llama.block_count", 4, 4, UINT32_MAX, "'llama.block_count': 4294967295 is not within"},
                {"llama.block_count", 0, 4, GGUF_F32, "'llama.block_count' is not an integer"},
                {"llama.block_coun", 0, 1, 'x', "'llama.block_count' is missing"},
                {"llama.embedding_length", 4, 4, 64, "is 32 x 262, the metadata makes it 64 x 262"},
                {"llama.feed_forward_length", 4, 4, 1 << 22,
                 "tensor 'blk.0.ffn_gate.weight' is 32 x 64, the metadata makes it 32 x 4194304"},
                {"llama.context_length", 4, 4, 0, "'llama.context_length': 0"},
                {"llama.attention.head_count", 4, 4, 3, "do not fit together"},
                {"llama.attention.head_count", 4, 4, 32, "do not fit together"},
                {"llama.attention.head_count_kv", 4, 4, 2, "tensor 'blk.0.attn_k.weight' is 32 x 16"},
                {"llama.attention.head_count_kv", 4, 4, 3, "is not within 1 and 2"},
                {"layer_norm_rms_epsilon", 4, 4, 0x7fc00000, "epsilon is out of range"},
                {"layer_norm_rms_epsilon", 0, 4, GGUF_U32, "is not a 32-bit float"},
                {"tokenizer.ggml.model", 12, 1, 'G', "'Gpt2' is not gpt2"},
                {"tokenizer.ggml.pre", 12, 1, 'S', "'Smollm' is not smollm"},
                {"tokenizer.ggml.eos_token_id", 4, 4, N_TOKENS, "'tokenizer.ggml.eos_token_id': 262 is not within 0 and 261"},
                {"tokenizer.ggml.tokens", 0, 4, GGUF_STRING, "'tokenizer.ggml.tokens' at byte"},
                {"tokenizer.ggml.tokens", 4, 4, GGUF_ARRAY, "'tokenizer.ggml.tokens' at byte"},
                {"tokenizer.ggml.tokens", 8, 8, 1ull << 60, "'tokenizer.ggml.tokens' at byte"},
                {"tokenizer.ggml.tokens", 16, 8, 1ull << 63, "'tokenizer.ggml.tokens' at byte"},
                {"tokenizer.ggml.token_type", 4, 4, GGUF_F32, "token_type: not an array of 262"},
                {"tokenizer.ggml.merges", 24, 1, 'x', "merge 0, "},
                {"tokenizer.ggml.merges", 26, 1, 'x', "merge 0, "},
                {"token_embd.weight", 0, 4, 0, "'token_embd.weight': not 1 to 4 dimensions"},
                {"token_embd.weight", 0, 4, 5, "'token_embd.weight': not 1 to 4 dimensions"},
                {"token_embd.weight", 4, 8, 0, "'token_embd.weight': dimension 0 is zero"},
                {"token_embd.weight", 4, 8, 33, "'token_embd.weight': rows of 33 are not whole Q8_0 blocks of 32"},
                {"token_embd.weight", 4, 8, UINT64_MAX, "'token_embd.weight': dimension 0 is zero or too large"},
                {"token_embd.weight", 12, 8, 1ull << 59, "'token_embd.weight': dimension 1 is zero or too large"},
                {"token_embd.weight", 12, 8, 1ull << 40, "'token_embd.weight': 37383395344384 bytes at 0 pass the end"},
                {"token_embd.weight", 12, 8, 261, "tensor 'token_embd.weight' has 261 rows for 262 tokens"},
                {"token_embd.weight", 20, 4, 13, "'token_embd.weight': type 13"},
                {"token_embd.weight", 20, 4, UINT32_MAX, "'token_embd.weight': type 4294967295"},
                {"output_norm.weight", 16, 8, 1, "'output_norm.weight': offset 1 is past"},
                {"output_norm.weight", 16, 8, UINT64_MAX - 31, "'output_norm.weight': offset 18446744073709551584 is past"},
                {"output_norm.weight", 16, 8, 65536, "'output_norm.weight': offset 65536 is past"},
                {"blk.0.ffn_down.weight", 24, 8, 30016, "'blk.0.ffn_down.weight': 8192 bytes at 30016 pass the end"},
                {"blk.0.ffn_up.weight", 0, 0, 0, NULL},
        };
        struct file f;

        for (size_t i = 0; lies[i].expect; i++) {
                build(&f);
                memcpy((lies[i].text ? after_text(&f, lies[i].text) : f.bytes) + lies[i].skip, &lies[i].value, lies[i].n);
                expect_error(&f, lies[i].expect);
        }
}

static void test_names_are_unique(void **state)
{
        struct file f;

        build(&f);
        memcpy(find(&f, "blk.0.ffn_up.weight", 19) - 8, "\x13\0\0\0\0\0\0\0blk.0.attn_q.weight", 27);
        expect_error(&f, "tensor 'blk.0.attn_q.weight' is there twice");
        build(&f);
        memcpy(find(&f, "tokenizer.ggml.merges", 21), "tokenizer.ggml.tokens", 21);
        expect_error(&f, "metadata 'tokenizer.ggml.tokens' is there twice");
        build(&f);
        memcpy(find(&f, "\xc4\xa0the", 5), "\xc4\xa0thf", 5); /* the token, which is before the merges */
        expect_error(&f, "merge 2, '??t he', is not of two tokens to a third");
        build(&f);
        memcpy(find(&f, "<|im_end|>", 10) - 8, "\x08\0\0\0\0\0\0\0", 8);
        expect_error(&f, "'tokenizer.ggml.tokens' at byte");
        build(&f);
        f.bytes[(size_t)(find(&f, "\1\0\0\0\0\0\0\0A", 9) - f.bytes) + 8] = 'B';
        expect_error(&f, "are the same");
}

/* Many tensors over the same bytes would make the reader allocate more than the file's size allows. */
static void test_tensors_do_not_overlap(void **state)
{
        static const char *const names[] = {"blk.0.ffn_gate.weight", "blk.0.ffn_up.weight", "blk.0.ffn_down.weight", "blk.0.attn_q.weight",
                                            "blk.0.attn_output.weight"};
        struct file f;

        build(&f);
        for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
                uint8_t *p = after_text(&f, names[i]);
                set_u64(p + 12, 262);
                set_u64(p + 4, 32);
                set_u32(p + 20, 8);
                set_u64(p + 24, 0);
        }
        expect_error(&f, "overlaps another");
}

static void test_nesting_is_bounded(void **state)
{
        static struct file f;

        memset(&f, 0, sizeof(f));
        put(&f, "GGUF", 4);
        put_u32(&f, 3);
        put_u64(&f, 0);
        put_u64(&f, 1);
        put_key(&f, "deep", GGUF_ARRAY);
        for (unsigned i = 0; i < 4000; i++) {
                put_u32(&f, GGUF_ARRAY);
                put_u64(&f, 1);
        }
        expect_error(&f, "nested too deep");
}

static void test_every_truncation(void **state)
{
        struct file f;

        build(&f);
        for (size_t n = 0; n < f.n; n += n < f.n_head ? 1 : 97)
                assert_int_not_equal(load(&f, n, NULL), 0);
}

/* Damage need not be found; it must do no harm. */
static void test_damaged_bytes(void **state)
{
        static const uint8_t values[] = {0x00, 0x01, 0x7f, 0x80, 0xff};
        struct file f;
        size_t n_refused = 0;

        build(&f);
        for (size_t i = 0; i < f.n_head; i++)
                for (size_t k = 0; k < sizeof(values); k++) {
                        uint8_t before = f.bytes[i];
                        f.bytes[i] = values[k];
                        n_refused += load(&f, f.n, NULL) != 0;
                        f.bytes[i] = before;
                }
        assert_true(n_refused > f.n_head);
}

static void open_tokenizer(struct file *f, struct gguf *g, struct tokenizer *t)
{
        build(f);
        assert_int_equal(gguf_parse(g, f->bytes, f->n), 0);
        assert_int_equal(tokenizer_init(t, g), 0);
}

static void test_tokenizer_encodes_and_decodes(void **state)
{
        enum { BYTE = 3, SPACE_T = 259, HE = 260, SPACE_THE = 261 };
        const char text[] = "the the\xc3\xa9 th<|im_end|>\xff\xf0\x9f\x98\x80";
        static const uint32_t start[] = {BYTE + 't', HE, SPACE_THE, BYTE + 0xc3, BYTE + 0xa9, SPACE_T, BYTE + 'h', 2, BYTE + 0xff};
        char out[64];
        uint32_t *ids = NULL;
        size_t n = 0, n_out = 0;
        struct tokenizer t;
        struct gguf g;
        struct file f;

        open_tokenizer(&f, &g, &t);
        assert_int_equal(tokenizer_encode(&t, text, sizeof(text) - 1, TOKENIZER_SPECIALS, &ids, &n), 0);
        assert_int_equal(n, 13);
        assert_memory_equal(ids, start, sizeof(start));
        n = 0;
        assert_int_equal(tokenizer_encode(&t, text, sizeof(text) - 1, 0, &ids, &n), 0);
        for (size_t i = 0; i < n; i++) {
                assert_in_range(ids[i], BYTE, N_TOKENS - 1); /* no special token from text */
                n_out += tokenizer_decode(&t, ids[i], out + n_out, sizeof(out) - n_out);
        }
        assert_int_equal(n_out, sizeof(text) - 1);
        assert_memory_equal(out, text, n_out);
        assert_int_equal(tokenizer_decode(&t, 2, out, sizeof(out)), 0);
        assert_int_equal(tokenizer_decode(&t, N_TOKENS, out, sizeof(out)), 0);
        assert_int_equal(tokenizer_special(&t, "<|im_start|>"), 1);
        assert_int_equal(tokenizer_special(&t, "he"), UINT32_MAX);
        free(ids);
        tokenizer_deinit(&t);
        gguf_close(&g);
}

/* Lowest rank first, leftmost first, over a run without a break: the heap against a plain search. */
static void test_merges_in_long_runs(void **state)
{
        char text[5000];
        uint32_t *ids = NULL, plain[sizeof(text)];
        size_t n = 0, n_plain = sizeof(text);
        struct tokenizer t;
        struct gguf g;
        struct file f;

        open_tokenizer(&f, &g, &t);
        for (size_t i = 0; i < sizeof(text); i++) {
                text[i] = "hhee"[i * i / 3 % 4];
                plain[i] = t.byte_token[(uint8_t)text[i]];
        }
        for (;;) {
                uint32_t best = UINT32_MAX, merged = 0;
                size_t at = 0;
                for (size_t i = 0; i + 1 < n_plain; i++) {
                        struct merge_slot *m = find_merge(&t, plain[i], plain[i + 1]);
                        if (m->rank_plus_one && m->rank_plus_one < best) {
                                best = m->rank_plus_one;
                                merged = m->merged;
                                at = i;
                        }
                }
                if (best == UINT32_MAX)
                        break;
                plain[at] = merged;
                memmove(plain + at + 1, plain + at + 2, (n_plain - at - 2) * sizeof(*plain));
                n_plain--;
        }
        assert_true(n_plain < sizeof(text));
        assert_int_equal(tokenizer_encode(&t, text, sizeof(text), 0, &ids, &n), 0);
        assert_int_equal(n, n_plain);
        assert_memory_equal(ids, plain, n * sizeof(*ids));
        free(ids);
        tokenizer_deinit(&t);
        gguf_close(&g);
}

static void test_pieces(void **state)
{
        /* pieces end at each '|' */
        static const char *const cases[] = {
                "Hello| world|,| it|'s| we|'ll|!!!|",
                "a|  | b|",
                "a|\n|\n|b|",
                "x|  |5|6| |7|",
                "a| b| |",
                "a|  |\t|b|",
                "  |",
                "''|s|",
                "\xc3\xa9t\xc3\xa9|\xc2\xa0|\xc2\xbd|x|",
                "\xe6\xbc\xa2\xe5\xad\x97|\xe3\x80\x82|",
                "\xff\xfe|",
                " \xf0\x9f\x98\x80|",
                "a|_|b|",
                "'|5|",
        };

        for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
                char text[64], got[128];
                size_t n = 0, n_got = 0;

                for (const char *c = cases[i]; *c; c++)
                        if (*c != '|')
                                text[n++] = *c;
                for (size_t at = 0, len; at < n; at += len) {
                        len = next_piece(text + at, n - at);
                        assert_in_range(len, 1, n - at);
                        memcpy(got + n_got, text + at, len);
                        n_got += len;
                        got[n_got++] = '|';
                }
                got[n_got] = 0;
                assert_string_equal(got, cases[i]);
        }
}

static void test_16_bit_floats(void **state)
{
        for (uint32_t h = 0; h < 65536; h++) {
                float f = f16_to_f32((uint16_t)h), b = bf16_to_f32((uint16_t)h);
                if (isnan(f))
                        assert_true(isnan(f16_to_f32(f16_from_f32(f))));
                else
                        assert_int_equal(f16_from_f32(f), h);
                if (isnan(b))
                        assert_true(isnan(bf16_to_f32(bf16_from_f32(b))));
                else
                        assert_int_equal(bf16_from_f32(b), h);
        }
        assert_true(f16_to_f32(0x3c01) == 1 + 0x1p-10f && f16_to_f32(0x0001) == 0x1p-24f && f16_to_f32(0x7bff) == 65504);
        /* ties to even, both sides of a tie, overflow, subnormal */
        assert_int_equal(f16_from_f32(1 + 0x1p-11f), 0x3c00);
        assert_int_equal(f16_from_f32(1 + 0x1p-11f + 0x1p-23f), 0x3c01);
        assert_int_equal(f16_from_f32(1 + 3 * 0x1p-11f), 0x3c02);
        assert_int_equal(f16_from_f32(65519.99f), 0x7bff);
        assert_int_equal(f16_from_f32(65520), 0x7c00);
        assert_int_equal(f16_from_f32(-1e30f), 0xfc00);
        assert_int_equal(f16_from_f32(0x1p-25f), 0);
        assert_int_equal(f16_from_f32(0x1.8p-25f), 1);
        assert_int_equal(bf16_from_f32(1 + 0x1p-8f), 0x3f80);
        assert_int_equal(bf16_from_f32(1 + 3 * 0x1p-8f), 0x3f82);
}

static void test_weight_formats(void **state)
{
        float out[256];
        uint8_t b[210] = {0};

        b[1] = 0x40; /* scale 2.0 */
        b[2] = 0xf0;
        quant_find(2)->decode(b, out, 1);
        assert_true(out[0] == -16 && out[16] == 14 && out[1] == -16);
        b[3] = 0x3c; /* minimum 1.0 */
        b[2] = 0;
        b[4] = 0xf3;
        quant_find(3)->decode(b, out, 1);
        assert_true(out[0] == 7 && out[16] == 31 && out[31] == 1);
        b[2] = 0x80;
        b[33] = 0x7f;
        quant_find(8)->decode(b, out, 1);
        assert_true(out[0] == -256 && out[31] == 254);
        memset(b, 0, sizeof(b));
        b[209] = 0x3c; /* scale 1.0 */
        b[32] = 0xa5; /* low bits of elements 32 and 96 */
        b[64 + 0] = 0x7; /* of 128 */
        b[128] = 0xe4; /* upper bits of elements 0, 32, 64, 96: 0 1 2 3 */
        b[192 + 2] = 2; /* scale of 32..47 */
        b[192 + 6] = 0xff; /* of 96..111: -1 */
        b[192 + 8] = 3; /* of 128..143 */
        quant_find(14)->decode(b, out, 1);
        assert_true(out[0] == 0 && out[32] == 2 * (5 + 16 - 32) && out[96] == -(10 + 48 - 32) && out[128] == 3 * (7 - 32));
        assert_null(quant_find(4));
}

int main(void)
{
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_valid_file_loads),    cmocka_unit_test(test_every_lie_is_named),
                cmocka_unit_test(test_names_are_unique),    cmocka_unit_test(test_tensors_do_not_overlap),
                cmocka_unit_test(test_nesting_is_bounded),  cmocka_unit_test(test_every_truncation),
                cmocka_unit_test(test_damaged_bytes),       cmocka_unit_test(test_tokenizer_encodes_and_decodes),
                cmocka_unit_test(test_merges_in_long_runs), cmocka_unit_test(test_pieces),
                cmocka_unit_test(test_16_bit_floats),       cmocka_unit_test(test_weight_formats),
        };
        return cmocka_run_group_tests(tests, NULL, NULL);
}
