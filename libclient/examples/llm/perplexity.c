/* --perplexity: reads a text in windows and says how well the model foretells it. Main thread. */
#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "libclient/codec/capture.h"
#include "libclient/examples/llm/fidelity.h"

/* [token][head][dim] of the run -> [head][token][dim] of the file */
static int write_kv(FILE *f, const struct run *r, const struct capture *c, uint32_t layer, int which)
{
        const uint16_t *src = run_kv(r, layer, which);

        for (size_t h = 0; h < c->n_kv_heads; h++)
                for (size_t t = 0; t < c->n_tokens; t++)
                        if (fwrite(src + (t * c->n_kv_heads + h) * c->head_dim, sizeof(*src), c->head_dim, f) != c->head_dim)
                                return -errno;
        return 0;
}

static int write_q(FILE *f, const struct run *r, const struct capture *c, uint32_t layer)
{
        size_t n = (size_t)c->n_tokens * c->head_dim;

        for (size_t h = 0; h < c->n_heads; h++)
                if (fwrite(r->q + ((size_t)layer * c->n_heads + h) * r->n_ctx * c->head_dim, sizeof(*r->q), n, f) != n)
                        return -errno;
        return 0;
}

/* --capture: the first n tokens of the run */
static void write_capture(const struct engine *e, size_t n)
{
        const struct model *m = &e->model;
        struct capture c = {.dtype = e->run.kv_type == KV_F16 ? KVT_DTYPE_F16 : KVT_DTYPE_BF16,
                            .q_dtype = KVT_DTYPE_F16,
                            .n_layers = (uint32_t)m->n_layers,
                            .n_heads = (uint32_t)m->n_heads,
                            .n_kv_heads = (uint32_t)m->n_kv_heads,
                            .head_dim = (uint32_t)m->head_dim,
                            .n_tokens = (uint32_t)n,
                            .chunk_tokens = (uint32_t)e->run.max_rows};
        uint8_t header[CAPTURE_HEADER_BYTES];
        FILE *f = fopen(e->opt.capture, "we");
        int r = 0;

        if (!f)
                die("%s: %s", e->opt.capture, strerror(errno));
        capture_encode(header, &c);
        if (fwrite(header, sizeof(header), 1, f) != 1)
                r = -errno;
        for (uint32_t layer = 0; layer < c.n_layers && !r; layer++) {
                r = write_q(f, &e->run, &c, layer);
                r = r ? r : write_kv(f, &e->run, &c, layer, 0);
                r = r ? r : write_kv(f, &e->run, &c, layer, 1);
        }
        if (fclose(f) && !r)
                r = -errno;
        if (r)
                die("%s: %s", e->opt.capture, strerror(-r));
}

static void report(const struct engine *e, const struct fidelity *f, double perplexity, size_t n_scored, size_t ctx, double rate)
{
        json_t *j;

        if (!e->opt.json) {
                printf("perplexity %.4f over %zu tokens in windows of %zu\n", perplexity, n_scored, ctx);
                if (f->n_specs)
                        fidelity_print(f);
                return;
        }
        j = json_pack("{s:f, s:I, s:I, s:f, s:o*}", "perplexity", perplexity, "tokens", (json_int_t)n_scored, "ctx", (json_int_t)ctx,
                      "tokens_per_sec", rate, "codecs", f->n_specs ? fidelity_json(f) : NULL);
        if (!j || json_dumpf(j, stdout, JSON_INDENT(2)) || puts("") < 0)
                die("cannot write the report");
        json_decref(j);
}

/* One window without a codec. */
struct window {
        double nll;
        size_t n_scored, n; /* n: tokens in it */
};

/* keep: where all its logits go; NULL: nowhere. */
static struct window run_window(struct engine *e, size_t from, size_t ctx, float *keep)
{
        size_t bt = e->opt.block_tokens, n_vocab = e->model.n_vocab;
        struct window w = {0};

        for (size_t n; w.n < ctx && from + w.n + 1 < e->n_tokens; w.n += n) {
                size_t left = e->n_tokens - from - w.n;

                n = ctx - w.n < bt ? ctx - w.n : bt;
                n = n < left ? n : left;
                model_forward(&e->run, e->tokens + from + w.n, n, w.n, LOGITS_ALL);
                if (keep)
                        memcpy(keep + w.n * n_vocab, e->run.logits, n * n_vocab * sizeof(*keep));
                for (size_t i = 0; i < n && w.n + i + 1 < ctx && i + 1 < left; i++, w.n_scored++)
                        w.nll += sample_nll(e->run.logits + i * n_vocab, n_vocab, e->tokens[from + w.n + i + 1]);
        }
        return w;
}

void perplexity(struct engine *e)
{
        size_t ctx = e->opt.n_ctx ? e->opt.n_ctx : 512, bt = e->opt.block_tokens, n_text, n_scored = 0;
        char *text = read_file(e->opt.perplexity, &n_text);
        double nll = 0, sec = 0;
        struct fidelity f = {0};

        encode_text(e, text, n_text, 0);
        free(text);
        if (e->opt.n_generate && e->n_tokens > e->opt.n_generate)
                e->n_tokens = e->opt.n_generate;
        if (ctx > e->model.n_ctx_train)
                die("--ctx: the model was made for %zu tokens", e->model.n_ctx_train);
        if (e->n_tokens < 2)
                die("%s: too short", e->opt.perplexity);
        if (run_init(&e->run, &e->model, e->pool, kv_type(&e->opt), ctx, bt, 1) || (e->opt.capture && run_keep_queries(&e->run)))
                die("out of memory");
        if (e->opt.kv_codecs.n)
                fidelity_init(&f, e, ctx);
        for (size_t from = 0; from + 1 < e->n_tokens; from += ctx) {
                double start = now_sec();
                struct window w = run_window(e, from, ctx, f.full);

                sec += now_sec() - start;
                nll += w.nll;
                n_scored += w.n_scored;
                if (e->opt.capture && from == 0)
                        write_capture(e, w.n);
                if (e->opt.kv_codecs.n)
                        fidelity_window(&f, e, from, w.n);
        }
        if (e->opt.kv_codecs.n && !f.n_scored)
                die("--kv-codec: no window is longer than a block and --kv-window");
        report(e, &f, exp(nll / (double)n_scored), n_scored, ctx, (double)e->n_tokens / sec);
        fidelity_deinit(&f);
}
