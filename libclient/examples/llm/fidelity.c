/* See fidelity.h. */
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "libclient/examples/llm/fidelity.h"

/* Sums over the scored tokens of a chunk; nll is that of the coded run less the full one's. */
struct fidelity_block {
        double n, kl, nll, full_nll;
};

struct estimate {
        double mean, half; /* the 95 % interval is mean +- half; NAN: too few blocks */
};

void fidelity_init(struct fidelity *f, struct engine *e, size_t ctx)
{
        size_t n = e->opt.kv_codecs.n, bt = e->opt.block_tokens;

        *f = (struct fidelity){.n_specs = n, .max_blocks = e->n_tokens / bt + e->n_tokens / ctx + 2};
        f->full = malloc(ctx * e->model.n_vocab * sizeof(*f->full));
        f->coders = calloc(n, sizeof(*f->coders));
        f->blocks = calloc(n * f->max_blocks, sizeof(*f->blocks));
        f->n_same_best = calloc(n, sizeof(*f->n_same_best));
        f->pairs = calloc(bt, sizeof(*f->pairs));
        if (!f->full || !f->coders || !f->blocks || !f->n_same_best || !f->pairs)
                die("out of memory for the logits of %zu tokens", ctx);
        for (size_t i = 0; i < n; i++)
                open_coder(e, &f->coders[i], &e->run, i);
}

void fidelity_deinit(struct fidelity *f)
{
        for (size_t i = 0; i < f->n_specs; i++)
                coder_deinit(&f->coders[i]);
        free(f->full);
        free(f->coders);
        free(f->blocks);
        free(f->n_same_best);
        free(f->pairs);
        *f = (struct fidelity){0};
}

struct job {
        const float *full, *coded;
        const uint32_t *next;
        size_t n_vocab;
        struct sample_pair *pairs;
};

static void compare_row(void *arg, size_t i, unsigned i_thread)
{
        const struct job *j = arg;

        sample_compare(j->full + i * j->n_vocab, j->coded + i * j->n_vocab, j->n_vocab, j->next[i], &j->pairs[i]);
}

/* A chunk of n rows, whose tokens' successors are next[0..n). */
static struct fidelity_block compare_chunk(struct fidelity *f, struct engine *e, const float *full, const uint32_t *next, size_t n,
                                           size_t *n_same_best)
{
        struct job j = {full, e->run.logits, next, e->model.n_vocab, f->pairs};
        struct fidelity_block b = {.n = (double)n};

        pool_run(e->pool, n, compare_row, &j);
        for (size_t i = 0; i < n; i++) {
                b.kl += f->pairs[i].kl;
                b.nll += f->pairs[i].q_nll - f->pairs[i].p_nll;
                b.full_nll += f->pairs[i].p_nll;
                *n_same_best += (size_t)f->pairs[i].same_best;
        }
        return b;
}

/* Returns how many blocks it scored. */
static size_t run_window(struct fidelity *f, struct engine *e, size_t i_spec, size_t from, size_t n_window)
{
        size_t bt = e->opt.block_tokens, n_done = f->n_blocks;
        struct fidelity_block *blocks = f->blocks + i_spec * f->max_blocks;
        struct coder *c = &f->coders[i_spec];

        coder_restart(c);

        for (size_t at = 0, n; at < n_window; at += n) {
                bool scored = at >= coder_first(c);
                size_t n_rows;
                int r;

                n = n_window - at < bt ? n_window - at : bt;
                n_rows = at + n < n_window ? n : n - 1; /* the window's last token foretells nothing that is scored */
                model_forward(&e->run, e->tokens + from + at, n, at, scored ? LOGITS_ALL : LOGITS_NONE);
                if (scored && n_rows)
                        blocks[n_done++] = compare_chunk(f, e, f->full + at * e->model.n_vocab, e->tokens + from + at + 1, n_rows,
                                                         &f->n_same_best[i_spec]);
                r = coder_advance(c, at + n);
                if (r)
                        die("--kv-codec %s: %s", e->opt.kv_codecs.items[i_spec], kvt_strerror(r));
        }
        return n_done - f->n_blocks;
}

void fidelity_window(struct fidelity *f, struct engine *e, size_t from, size_t n)
{
        size_t n_more = 0;

        for (size_t i = 0; i < f->n_specs; i++)
                n_more = run_window(f, e, i, from, n);
        for (size_t i = 0; i < n_more; i++) {
                f->n_scored += (size_t)f->blocks[f->n_blocks + i].n;
                f->full_nll += f->blocks[f->n_blocks + i].full_nll;
        }
        f->n_blocks += n_more;
}

/* Of a sum of the blocks by the tokens in them. */
static struct estimate estimate_mean(const struct fidelity_block *blocks, size_t n_blocks, size_t field)
{
        double n = 0, sum = 0, squares = 0, mean;

        for (size_t i = 0; i < n_blocks; i++) {
                n += blocks[i].n;
                sum += *(const double *)((const char *)&blocks[i] + field);
        }
        mean = n > 0 ? sum / n : 0;
        for (size_t i = 0; i < n_blocks; i++) {
                double d = *(const double *)((const char *)&blocks[i] + field) - mean * blocks[i].n;

                squares += d * d;
        }
        return (struct estimate){mean, n_blocks > 1 ? 1.96 * sqrt(squares * (double)n_blocks / (double)(n_blocks - 1)) / n : NAN};
}

struct result {
        struct estimate kl, nll;
        double perplexity, percent, low, high; /* percent: of the full run's perplexity, with its interval */
        double same_best;
};

static struct result result_of(const struct fidelity *f, size_t i)
{
        const struct fidelity_block *blocks = f->blocks + i * f->max_blocks;
        struct result r = {.kl = estimate_mean(blocks, f->n_blocks, offsetof(struct fidelity_block, kl)),
                           .nll = estimate_mean(blocks, f->n_blocks, offsetof(struct fidelity_block, nll))};

        r.perplexity = exp(f->full_nll / (double)f->n_scored + r.nll.mean);
        r.percent = 100 * expm1(r.nll.mean);
        r.low = 100 * expm1(r.nll.mean - r.nll.half);
        r.high = 100 * expm1(r.nll.mean + r.nll.half);
        r.same_best = (double)f->n_same_best[i] / (double)f->n_scored;
        return r;
}

static json_t *real_or_null(double x)
{
        return isfinite(x) ? json_real(x) : json_null();
}

json_t *fidelity_json(const struct fidelity *f)
{
        json_t *array = json_array();

        for (size_t i = 0; i < f->n_specs; i++) {
                struct result r = result_of(f, i);
                json_t *j = report_coder(&f->coders[i]);
                json_t *more = json_pack("{s:f, s:o, s:o, s:f, s:f, s:f, s:o, s:o, s:f}", "kl", r.kl.mean, "kl_low",
                                         real_or_null(r.kl.mean - r.kl.half), "kl_high", real_or_null(r.kl.mean + r.kl.half),
                                         "full_perplexity", exp(f->full_nll / (double)f->n_scored), "perplexity", r.perplexity,
                                         "perplexity_pct", r.percent, "perplexity_pct_low", real_or_null(r.low), "perplexity_pct_high",
                                         real_or_null(r.high), "same_best", r.same_best);

                if (!j || !more || json_object_update(j, more))
                        die("out of memory");
                json_object_set_new(j, "tokens", json_integer((json_int_t)f->n_scored));
                json_object_set_new(j, "blocks", json_integer((json_int_t)f->n_blocks));
                json_decref(more);
                json_array_append_new(array, j);
        }
        return array;
}

void fidelity_print(const struct fidelity *f)
{
        printf("%-32s %7s %7s %11s %25s %9s %19s %6s %5s\n", "codec", "K bits", "V bits", "KL", "95 %", "ppl %", "95 %", "top-1", "fell");
        for (size_t i = 0; i < f->n_specs; i++) {
                struct result r = result_of(f, i);
                const struct coder *c = &f->coders[i];
                char spec[CODEC_PAIR_MAX];

                printf("%-32s %7.3f %7.3f %11.3e [%11.3e,%11.3e] %+9.3f [%+8.3f,%+8.3f] %6.4f %5.3f\n", codec_pair_format(&c->pair, spec),
                       trial_bits(&c->k), trial_bits(&c->v), r.kl.mean, r.kl.mean - r.kl.half, r.kl.mean + r.kl.half, r.percent, r.low,
                       r.high, r.same_best, (trial_fell_back(&c->k) + trial_fell_back(&c->v)) / 2);
        }
        printf("KL and perplexity against the full KV over %zu tokens in %zu blocks; its perplexity: %.4f\n", f->n_scored, f->n_blocks,
               exp(f->full_nll / (double)f->n_scored));
}
