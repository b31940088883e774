/* The command line. */
#pragma once

#include <stddef.h>
#include <stdint.h>

enum { OPTIONS_CODECS_MAX = 64 };

struct text_list {
        size_t n;
        const char *items[OPTIONS_CODECS_MAX];
};

struct options {
        const char *model, *prompt, *file, *system, *kvtier, *kv, *perplexity, *logits, *capture;
        uint64_t kv_sinks, kv_window; /* with kv_codecs: tokens, the first and the most recent ones, that are not coded */
        uint64_t n_generate, block_tokens, n_ctx, n_threads, seed;
        double temperature, top_p, max_rel_l2;
        struct text_list kv_codecs;
        int chat, json, no_store_answer;
};

/* Fills *o; on --help or a mistake it prints what to print and exits (0, 2). */
void options_parse(struct options *o, int argc, char **argv);
