/* What main.c and perplexity.c share: the whole engine, and helpers that end the program when they fail. */
#pragma once

#include "libclient/examples/llm/cache.h"
#include "libclient/examples/llm/coder.h"
#include "libclient/examples/llm/options.h"
#include "libclient/examples/llm/sample.h"
#include "libclient/examples/llm/tokenizer.h"

struct engine {
        struct options opt;
        struct pool *pool;
        struct gguf file;
        struct model model;
        struct tokenizer tokenizer;
        struct run run;
        struct cache cache;
        struct coder coder; /* --kv-codec without --perplexity */
        struct sampler sampler;
        uint32_t *tokens; /* prompt, then answer */
        size_t n_prompt, n_tokens, n_reused;
        uint64_t *hashes; /* of the logits after the prompt and after each token of the answer but the last */
        char *text; /* the answer */
        size_t n_text;
        double load_sec, cache_sec, first_sec, prefill_sec, decode_sec;
};

__attribute__((format(printf, 1, 2), noreturn)) void die(const char *format, ...);
double now_sec(void);
/* The whole file; the caller frees it. */
char *read_file(const char *path, size_t *ret_n);
/* Appends a text's tokens to e->tokens. */
void encode_text(struct engine *e, const char *text, size_t n, unsigned flags);
enum kv_type kv_type(const struct options *o);

/* The i-th --kv-codec, for this run. */
void open_coder(const struct engine *e, struct coder *c, struct run *run, size_t i);
/* What codes the KV of whole blocks did: bits a value and the like; NULL: out of memory. */
struct json_t *report_coder(const struct coder *c);

/* --perplexity */
void perplexity(struct engine *e);
