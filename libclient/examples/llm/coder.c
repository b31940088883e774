/* See coder.h. Planes are coded by the pool's threads; their results are added in the planes' order, whoever made them. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "libclient/examples/llm/coder.h"

struct coder_thread {
        struct trial trial;
        uint16_t *src, *dst; /* a plane as codecs see it; owned */
        size_t n_values;
};

struct coder_plane {
        struct trial_sums sums;
        int r;
};

struct job {
        struct coder *coder;
        size_t at, n;
};

int coder_init(struct coder *c, struct run *run, const struct codec_pair *pair, const struct options *o)
{
        *c = (struct coder){.run = run,
                            .pair = *pair,
                            .max_rel_l2 = (float)o->max_rel_l2,
                            .block_tokens = o->block_tokens,
                            .n_sinks = o->kv_sinks,
                            .n_window = o->kv_window};
        c->protect = calloc(1, (c->block_tokens + 7) / 8);
        c->threads = calloc(pool_n_threads(run->pool), sizeof(*c->threads));
        c->planes = calloc(2 * run->model->n_layers, sizeof(*c->planes));
        return c->protect && c->threads && c->planes ? 0 : -ENOMEM;
}

void coder_deinit(struct coder *c)
{
        for (size_t i = 0; c->threads && i < pool_n_threads(c->run->pool); i++) {
                trial_deinit(&c->threads[i].trial);
                free(c->threads[i].src);
                free(c->threads[i].dst);
        }
        free(c->threads);
        free(c->planes);
        free(c->protect);
        *c = (struct coder){0};
}

static int make_room(struct coder_thread *t, size_t n_values)
{
        if (n_values <= t->n_values)
                return 0;
        free(t->src);
        free(t->dst);
        t->src = calloc(n_values, sizeof(*t->src));
        t->dst = calloc(n_values, sizeof(*t->dst));
        t->n_values = t->src && t->dst ? n_values : 0;
        return t->n_values ? 0 : KVT_E_NO_MEMORY;
}

/* Moves rows between the run, [token][head], and a plane, [head][token]. */
static void move_rows(const struct shape *p, uint16_t *run, uint16_t *plane, int to_run)
{
        for (size_t h = 0; h < p->heads; h++)
                for (size_t t = 0; t < p->tokens; t++) {
                        uint16_t *a = run + (t * p->heads + h) * p->dim, *b = plane + (h * p->tokens + t) * p->dim;

                        memcpy(to_run ? a : b, to_run ? b : a, p->dim * sizeof(*a));
                }
}

static int code_plane(const struct job *j, size_t i, struct coder_thread *t)
{
        struct coder *c = j->coder;
        const struct model *m = c->run->model;
        uint32_t role = i % 2 ? KVT_ROLE_V : KVT_ROLE_K;
        struct plane_request q = {.spec = codec_pair_for(&c->pair, role),
                                  .max_rel_l2 = c->max_rel_l2,
                                  .protect = j->at < c->n_sinks ? c->protect : NULL};
        uint16_t *kv = run_kv(c->run, i / 2, (int)(i % 2)) + j->at * m->n_kv_heads * m->head_dim;
        struct trial_plane made;
        struct shape p;
        int r;

        if (!shape_make(&p, role, c->run->kv_type == KV_F16 ? KVT_DTYPE_F16 : KVT_DTYPE_BF16, (uint32_t)m->n_kv_heads, (uint32_t)j->n,
                        (uint32_t)m->head_dim, (uint32_t)i))
                return KVT_E_NO_MEMORY;
        r = make_room(t, p.n_values);
        if (r)
                return r;
        move_rows(&p, kv, t->src, 0);
        r = trial_run(&t->trial, &p, &q, t->src, t->dst, &made);
        if (r)
                return r;
        trial_add(&c->planes[i].sums, &p, t->src, t->dst, &made);
        move_rows(&p, kv, t->dst, 1);
        return 0;
}

static void code_task(void *arg, size_t i, unsigned i_thread)
{
        const struct job *j = arg;

        j->coder->planes[i] = (struct coder_plane){0};
        j->coder->planes[i].r = code_plane(j, i, &j->coder->threads[i_thread]);
}

static int code_block(struct coder *c, size_t at, size_t n)
{
        struct job j = {c, at, n};
        size_t n_planes = 2 * c->run->model->n_layers;

        memset(c->protect, 0, (n + 7) / 8);
        for (size_t t = 0; t < n && at + t < c->n_sinks; t++)
                c->protect[t / 8] |= (uint8_t)(1u << t % 8);
        pool_run(c->run->pool, n_planes, code_task, &j);
        for (size_t i = 0; i < n_planes; i++) {
                if (c->planes[i].r)
                        return c->planes[i].r;
                trial_sums_add(i % 2 ? &c->v : &c->k, &c->planes[i].sums);
        }
        return 0;
}

void coder_restart(struct coder *c)
{
        c->n_coded = 0;
}

int coder_advance(struct coder *c, size_t n)
{
        int r = 0;

        for (; !r && c->n_coded + c->block_tokens + c->n_window <= n; c->n_coded += c->block_tokens)
                r = code_block(c, c->n_coded, c->block_tokens);
        return r;
}

size_t coder_first(const struct coder *c)
{
        return (c->block_tokens + c->n_window + c->block_tokens - 1) / c->block_tokens * c->block_tokens;
}
