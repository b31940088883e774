/* codec bench: every spec on every block of a capture. Planes are coded one by one, on one thread, and lie in the caches of the CPU when they are timed.
 *
 * A layer at a time: each spec codes its K and V, then attention of the sampled queries over what came back is compared with that over what was captured.
 * There the query's own block is coded, too. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "libclient/ctl/attention.h"
#include "libclient/ctl/cmd_codec.h"
#include "libclient/ctl/table.h"
#include "libclient/trial.h"

enum { N_REPEATS = 3 };
static const uint8_t base_key[16] = "base of a bench";

struct score {
        struct trial_sums k, v;
        double attention_diff, attention_norm;
};

struct bench {
        const struct codec_task *task;
        struct trial trial;
        struct score *scores; /* one a pair; owned, like all below */
        uint8_t *src, *base, *dst; /* a block's plane */
        uint8_t *coded; /* a layer's K or V as it comes back */
        float *exact_k, *exact_v, *k, *v; /* the layer's */
        uint32_t *positions; /* of the queries */
        size_t n_positions;
        float *q, *exact_out, *out, *softmax;
};

static void bench_deinit(struct bench *b)
{
        void *all[] = {b->scores, b->src, b->base, b->dst, b->coded,     b->exact_k, b->exact_v,
                       b->k,      b->v,   b->q,    b->out, b->exact_out, b->softmax, b->positions};

        for (size_t i = 0; i < sizeof all / sizeof *all; i++)
                free(all[i]);
        trial_deinit(&b->trial);
}

/* The queries: the last tokens of equal parts of the text. */
static void choose_positions(struct bench *b)
{
        uint64_t n_tokens = b->task->file.head.n_tokens, n = b->task->n_queries < n_tokens ? b->task->n_queries : n_tokens;

        for (uint64_t i = 0; i < n; i++)
                b->positions[i] = (uint32_t)((i + 1) * n_tokens / n - 1);
        b->n_positions = n;
}

static int bench_init(struct bench *b, const struct codec_task *t)
{
        const struct capture *c = &t->file.head;
        uint32_t n = t->block_tokens < c->n_tokens ? t->block_tokens : c->n_tokens;
        size_t n_values = (size_t)c->n_kv_heads * c->n_tokens * c->head_dim, n_out = (size_t)c->n_heads * t->n_queries * c->head_dim;
        struct shape p;

        *b = (struct bench){.task = t, .trial.n_repeats = N_REPEATS};
        if (!capturefile_shape(&t->file, 0, CAPTURE_K, n, &p))
                return KVT_E_BAD_REQUEST;
        b->scores = calloc(t->n_pairs, sizeof *b->scores);
        b->src = malloc(p.n_bytes);
        b->base = malloc(p.n_bytes);
        b->dst = malloc(p.n_bytes);
        b->coded = malloc(capture_part_bytes(c, CAPTURE_K));
        b->exact_k = malloc(n_values * sizeof(float));
        b->exact_v = malloc(n_values * sizeof(float));
        b->k = malloc(n_values * sizeof(float));
        b->v = malloc(n_values * sizeof(float));
        b->q = malloc(n_out * sizeof(float) + 1);
        b->out = malloc(n_out * sizeof(float) + 1);
        b->exact_out = malloc(n_out * sizeof(float) + 1);
        b->softmax = malloc(c->n_tokens * sizeof(float));
        b->positions = malloc(t->n_queries * sizeof(uint32_t) + 1);
        if (!b->scores || !b->src || !b->base || !b->dst || !b->coded || !b->exact_k || !b->exact_v || !b->k || !b->v || !b->q || !b->out ||
            !b->exact_out || !b->softmax || !b->positions)
                return KVT_E_NO_MEMORY;
        choose_positions(b);
        return 0;
}

/* One part of a layer through a codec: sums, and the floats of what came back. */
static int code_part(struct bench *b, uint32_t layer, enum capture_part part, const struct codec_spec *s, struct trial_sums *sums,
                     float *ret)
{
        const struct codec_task *t = b->task;
        const struct capture *c = &t->file.head;
        struct plane_request q = {.spec = s, .max_rel_l2 = t->max_rel_l2};
        struct trial_plane made;
        struct shape p;
        int r = 0;

        for (uint32_t at = 0, n; at < c->n_tokens && !r; at += n) {
                n = c->n_tokens - at < t->block_tokens ? c->n_tokens - at : t->block_tokens;
                capturefile_shape(&t->file, layer, part, n, &p);
                capturefile_take(&t->file, &p, capturefile_part(&t->file, layer, part), at, b->src);
                if (s->codec->flags & CODEC_NEEDS_BASE) {
                        capturefile_take(&t->base, &p, capturefile_part(&t->base, layer, part), at, b->base);
                        q.base = b->base;
                        q.base_key = base_key;
                }
                r = trial_run(&b->trial, &p, &q, b->src, b->dst, &made);
                if (r)
                        break;
                trial_add(sums, &p, b->src, b->dst, &made);
                capturefile_put(&t->file, &p, b->coded, at, b->dst);
        }
        if (!r)
                kernels()->widen(ret, b->coded, (size_t)c->n_kv_heads * c->n_tokens * c->head_dim, c->dtype);
        return r;
}

static void take_queries(struct bench *b, uint32_t layer)
{
        const struct capturefile *f = &b->task->file;
        const struct capture *c = &f->head;
        const uint8_t *q = capturefile_part(f, layer, CAPTURE_Q);
        size_t row = capture_part_bytes(c, CAPTURE_Q) / c->n_heads / c->n_tokens;

        for (size_t h = 0; h < c->n_heads; h++)
                for (size_t i = 0; i < b->n_positions; i++)
                        kernels()->widen(b->q + (h * b->n_positions + i) * c->head_dim, q + (h * c->n_tokens + b->positions[i]) * row,
                                         c->head_dim, c->q_dtype);
}

static int bench_layer(struct bench *b, uint32_t layer)
{
        const struct codec_task *t = b->task;
        const struct capture *c = &t->file.head;
        size_t n_values = (size_t)c->n_kv_heads * c->n_tokens * c->head_dim, n_out = c->n_heads * b->n_positions * c->head_dim;
        int r = 0;

        take_queries(b, layer);
        kernels()->widen(b->exact_k, capturefile_part(&t->file, layer, CAPTURE_K), n_values, c->dtype);
        kernels()->widen(b->exact_v, capturefile_part(&t->file, layer, CAPTURE_V), n_values, c->dtype);
        attention_outputs(c, b->q, b->exact_k, b->exact_v, b->positions, b->n_positions, b->exact_out, b->softmax);
        for (size_t i = 0; i < t->n_pairs && !r; i++) {
                struct score *s = &b->scores[i];
                struct error_sums sums = {0};

                r = code_part(b, layer, CAPTURE_K, &t->pairs[i].k, &s->k, b->k);
                r = r ? r : code_part(b, layer, CAPTURE_V, &t->pairs[i].v, &s->v, b->v);
                if (r)
                        return r;
                attention_outputs(c, b->q, b->k, b->v, b->positions, b->n_positions, b->out, b->softmax);
                kernels()->measure(&sums, b->exact_out, b->out, n_out);
                s->attention_diff += sums.diff;
                s->attention_norm += sums.norm;
        }
        return r;
}

static json_t *part_json(const struct trial_sums *s)
{
        return json_pack("{s:f, s:f, s:f, s:f, s:f, s:f}", "bits", trial_bits(s), "rel_l2", trial_rel_l2(s), "max_abs",
                         (double)s->error.max_abs, "fell_back", trial_fell_back(s), "encode_gbps", trial_encode_gbps(s), "decode_gbps",
                         trial_decode_gbps(s));
}

static json_t *score_json(const struct codec_pair *pair, const struct score *s)
{
        struct trial_sums both = s->k;
        char spec[CODEC_PAIR_MAX];

        trial_sums_add(&both, &s->v);
        return json_pack("{s:s, s:f, s:o, s:o, s:o, s:f, s:f, s:f}", "spec", codec_pair_format(pair, spec), "bits", trial_bits(&both), "k",
                         part_json(&s->k), "v", part_json(&s->v), "attention_rel_l2",
                         s->attention_norm > 0 ? json_real(sqrt(s->attention_diff / s->attention_norm)) : json_null(), "encode_gbps",
                         trial_encode_gbps(&both), "decode_gbps", trial_decode_gbps(&both), "fell_back", trial_fell_back(&both));
}

/* The figures as text, to print. */
static json_t *row_of(const struct codec_pair *pair, const struct score *s)
{
        double max = fmax((double)s->k.error.max_abs, (double)s->v.error.max_abs);
        struct trial_sums both = s->k;
        char spec[CODEC_PAIR_MAX];

        trial_sums_add(&both, &s->v);
        return json_pack("{s:s, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:f}", "spec", codec_pair_format(pair, spec), "k",
                         json_sprintf("%6.3f", trial_bits(&s->k)), "v", json_sprintf("%6.3f", trial_bits(&s->v)), "k_l2",
                         json_sprintf("%7.5f", trial_rel_l2(&s->k)), "v_l2", json_sprintf("%7.5f", trial_rel_l2(&s->v)), "max",
                         json_sprintf("%7.4g", max), "attention",
                         json_sprintf("%7.5f", s->attention_norm > 0 ? sqrt(s->attention_diff / s->attention_norm) : 0), "encode",
                         json_sprintf("%6.2f", trial_encode_gbps(&both)), "decode", json_sprintf("%6.2f", trial_decode_gbps(&both)),
                         "fell_ratio", trial_fell_back(&both));
}

static int report(struct ctl *x, const struct bench *b)
{
        static const struct column columns[] = {
                {"CODEC", "spec"}, {"K BITS", "k"},       {"V BITS", "v"},        {"K L2", "k_l2"},       {"V L2", "v_l2"},
                {"MAX", "max"},    {"ATTN", "attention"}, {"ENC GB/S", "encode"}, {"DEC GB/S", "decode"}, {"FELL BACK", "fell_ratio"},
        };
        const struct codec_task *t = b->task;
        json_t *rows = json_array();
        int code;

        for (size_t i = 0; i < t->n_pairs; i++)
                json_array_append_new(rows, x->o.json ? score_json(&t->pairs[i], &b->scores[i]) : row_of(&t->pairs[i], &b->scores[i]));
        if (x->o.json)
                return ctl_print_json(x, json_pack("{s:i, s:i, s:i, s:s, s:o}", "n_tokens", (int)t->file.head.n_tokens, "block_tokens",
                                                   (int)t->block_tokens, "n_queries", (int)b->n_positions, "kernels", kernels()->name,
                                                   "codecs", rows));
        code = table_print(stdout, columns, sizeof columns / sizeof *columns, rows, true, false)
                       ? ctl_fail(x, KVT_E_NO_MEMORY, "cannot print")
                       : EXIT_OK;
        json_decref(rows);
        return code;
}

int codec_bench(struct ctl *x, const struct codec_task *t)
{
        struct bench b;
        int r = bench_init(&b, t), code;

        for (uint32_t layer = 0; layer < t->file.head.n_layers && !r; layer++)
                r = bench_layer(&b, layer);
        code = r ? ctl_fail(x, r, "%s", t->file.path) : report(x, &b);
        bench_deinit(&b);
        return code;
}
