/* The command line: one table makes parser, ranges and help. */
#include <errno.h>
#include <getopt.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "libclient/examples/llm/options.h"

enum kind { FLAG, TEXT, LIST, COUNT, REAL };

static const struct row {
        int letter; /* 0: none */
        const char *name, *value, *help;
        enum kind kind;
        size_t offset; /* of an int, a const char *, a struct text_list, a uint64_t or a double in struct options */
        double min, max;
} rows[] = {
#define AT(field) offsetof(struct options, field)
        {'m', "model", "FILE", "weights (GGUF, llama architecture)", TEXT, AT(model), 0, 0},
        {'p', "prompt", "TEXT", "prompt", TEXT, AT(prompt), 0, 0},
        {'f', "file", "FILE", "read the prompt from FILE; the text of -p, if given, follows it", TEXT, AT(file), 0, 0},
        {'n', "tokens", "N", "generate at most N tokens (64); with --perplexity, read N tokens of the text (all)", COUNT, AT(n_generate), 1,
         1 << 24},
        {'c', "chat", NULL, "the prompt is a question to an assistant (ChatML)", FLAG, AT(chat), 0, 0},
        {0, "system", "TEXT", "the assistant's instructions, with --chat", TEXT, AT(system), 0, 0},
        {'t', "temperature", "T", "0: always the likeliest token (0)", REAL, AT(temperature), 0, 100},
        {0, "top-p", "P", "draw from the likeliest tokens that have this probability together (0.95)", REAL, AT(top_p), 0, 1},
        {0, "seed", "N", "of the draw (1)", COUNT, AT(seed), 0, 0x1p63},
        {0, "kvtier", "PATH|off", "socket of kvtierd (the default one; off if nobody listens there)", TEXT, AT(kvtier), 0, 0},
        {0, "block-tokens", "N", "tokens in a block and in a prefill chunk (64)", COUNT, AT(block_tokens), 1, 4096},
        {0, "kv", "f16|bf16", "type of KV (f16)", TEXT, AT(kv), 0, 0},
        {0, "no-store-answer", NULL, "store the prompt's blocks only", FLAG, AT(no_store_answer), 0, 0},
        {0, "ctx", "N", "room for prompt and answer (the model's); with --perplexity, the window (512)", COUNT, AT(n_ctx), 2, 1 << 24},
        {0, "perplexity", "FILE", "of the model on a text", TEXT, AT(perplexity), 0, 0},
        {0, "capture", "FILE", "with --perplexity: write Q, K and V of the first window, for kvtierctl codec", TEXT, AT(capture), 0, 0},
        {0, "kv-codec", "SPEC[+SPEC]",
         "code the KV of whole blocks, K and V, in place; with --perplexity: against the full KV, can be given again", LIST, AT(kv_codecs),
         0, 0},
        {0, "kv-sinks", "N", "with --kv-codec: the first N tokens stay as they are, as in kvtierd's copies (4)", COUNT, AT(kv_sinks), 0,
         4096},
        {0, "kv-window", "N", "with --kv-codec: a block is coded once N more tokens are behind it, as in KIVI (128)", COUNT, AT(kv_window),
         0, 1 << 24},
        {0, "max-rel-l2", "X", "with --kv-codec: the largest error of a plane; others are coded better (any)", REAL, AT(max_rel_l2), 0,
         1e9},
        {0, "threads", "N", "(one a CPU)", COUNT, AT(n_threads), 1, 64},
        {0, "logits", "FILE", "write the logits after the prompt, as 32-bit floats", TEXT, AT(logits), 0, 0},
        {0, "json", NULL, "one JSON object on stdout", FLAG, AT(json), 0, 0},
        {'h', "help", NULL, "this text", FLAG, 0, 0, 0},
#undef AT
};
enum { N_ROWS = sizeof(rows) / sizeof(rows[0]), FIRST_LONG = 256 };

static void print_help(void)
{
        puts("Usage: llm -m MODEL [-p TEXT | -f FILE] [OPTION]...\n"
             "Runs a language model on the CPU. Its KV cache is loaded from and stored in kvtierd, if one listens.\n");
        for (const struct row *w = rows; w < rows + N_ROWS; w++) {
                char left[64];

                snprintf(left, sizeof(left), "%c%c%c --%s %s", w->letter ? '-' : ' ', w->letter ? w->letter : ' ', w->letter ? ',' : ' ',
                         w->name, w->value ? w->value : "");
                printf("  %-24s %s\n", left, w->help);
        }
}

__attribute__((noreturn)) static void misuse(const char *what, const char *value)
{
        fprintf(stderr, "llm: %s%s%s\nTry 'llm --help'.\n", what, value ? ": " : "", value ? value : "");
        exit(2);
}

static void set(struct options *o, const struct row *w, char *value)
{
        char *field = (char *)o + w->offset, *end = value, text[160];
        double v = 0;

        snprintf(text, sizeof(text), "--%s takes a number from %.15g to %.15g", w->name, w->min, w->max);
        errno = 0;
        switch (w->kind) {
        case FLAG:
                *(int *)field = 1;
                return;
        case TEXT:
                *(const char **)field = value;
                return;
        case LIST:
                if (((struct text_list *)(void *)field)->n == OPTIONS_CODECS_MAX)
                        misuse("too many of these", w->name);
                ((struct text_list *)(void *)field)->items[((struct text_list *)(void *)field)->n++] = value;
                return;
        case COUNT:
                *(uint64_t *)field = strtoull(value, &end, 10);
                v = (double)*(uint64_t *)field;
                break;
        case REAL:
                *(double *)field = v = strtod(value, &end);
                break;
        }
        if (errno || end == value || *end || strchr(value, '-') || !(v >= w->min && v <= w->max))
                misuse(text, value);
}

void options_parse(struct options *o, int argc, char **argv)
{
        struct option longs[N_ROWS + 1] = {0};
        char letters[2 * N_ROWS + 1], *end = letters;
        long n_cpus = sysconf(_SC_NPROCESSORS_ONLN);

        *o = (struct options){.block_tokens = 64,
                              .top_p = 0.95,
                              .max_rel_l2 = INFINITY,
                              .kv_sinks = 4,
                              .kv_window = 128,
                              .seed = 1,
                              .n_threads = n_cpus < 1    ? 1
                                           : n_cpus > 64 ? 64
                                                         : (uint64_t)n_cpus,
                              .kv = "f16",
                              .system = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"};
        for (int i = 0; i < N_ROWS; i++) {
                longs[i] = (struct option){rows[i].name, rows[i].value ? required_argument : no_argument, NULL, FIRST_LONG + i};
                if (rows[i].letter)
                        *end++ = (char)rows[i].letter;
                if (rows[i].letter && rows[i].value)
                        *end++ = ':';
        }
        *end = 0;
        for (int c; (c = getopt_long(argc, argv, letters, longs, NULL)) != -1;) {
                const struct row *w = rows;

                if (c == '?')
                        misuse("bad command line", NULL);
                while (c >= FIRST_LONG ? w - rows != c - FIRST_LONG : w->letter != c)
                        w++;
                if (w->letter == 'h') {
                        print_help();
                        exit(0);
                }
                set(o, w, optarg);
        }
        if (optind < argc)
                misuse("unexpected argument", argv[optind]);
        if (!o->model)
                misuse("which model? -m FILE", NULL);
        if (strcmp(o->kv, "f16") && strcmp(o->kv, "bf16"))
                misuse("--kv takes f16 or bf16", o->kv);
        if (!o->perplexity && !o->prompt && !o->file)
                misuse("no prompt: -p TEXT or -f FILE", NULL);
        if (o->perplexity && (o->prompt || o->file || o->logits || o->kvtier))
                misuse("--perplexity goes with no prompt, no --logits and no --kvtier", NULL);
        if (o->kv_codecs.n > 1 && !o->perplexity)
                misuse("more than one --kv-codec go with --perplexity", NULL);
        if (o->kv_codecs.n && o->kvtier && strcmp(o->kvtier, "off") != 0)
                misuse("--kv-codec goes with no --kvtier: what was coded here is not to be stored", NULL);
        if (o->capture && !o->perplexity)
                misuse("--capture goes with --perplexity", NULL);
        if (!o->perplexity && !o->n_generate)
                o->n_generate = 64;
}
