/* See tensor.h. BLAS does the products, on one thread a call; the loops are written for the compiler to vectorise without
 * reordering sums: reductions keep LANES partial sums of their own. */
#include <cblas.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "libclient/examples/llm/quant.h"
#include "libclient/examples/llm/tensor.h"

enum { LANES = 16, TILE = 192, MAX_THREADS = 64, SPINS = 2000 };

struct job {
        unsigned generation; /* 0: none yet */
        size_t n_tasks; /* below 2^32 */
        void (*fn)(void *arg, size_t i_task, unsigned i_thread);
        void *arg;
};

/* A job is published under the lock; its tasks are handed out by ticket, whose upper half names the job, so that a helper that wakes
 * up late takes nothing of the next one and nobody waits for it. */
struct pool {
        unsigned n_threads;
        pthread_t threads[MAX_THREADS];
        pthread_mutex_t lock;
        pthread_cond_t wake;
        int stop; /* under lock */
        struct job job; /* under lock */
        atomic_uint generation; /* of job; written under lock */
        atomic_ullong ticket; /* generation << 32 | next task */
        atomic_size_t n_done; /* tasks */
};

struct helper {
        struct pool *pool;
        unsigned index;
};

static void pause_cpu(void)
{
#if defined(__x86_64__)
        __builtin_ia32_pause();
#endif
}

static void work(struct pool *p, const struct job *job, unsigned index)
{
        unsigned long long t = atomic_load_explicit(&p->ticket, memory_order_relaxed);

        while (t >> 32 == job->generation && (uint32_t)t < job->n_tasks) {
                if (!atomic_compare_exchange_weak_explicit(&p->ticket, &t, t + 1, memory_order_relaxed, memory_order_relaxed))
                        continue;
                job->fn(job->arg, (uint32_t)t, index);
                atomic_fetch_add_explicit(&p->n_done, 1, memory_order_release); /* what it wrote is seen by who waits for it */
                t = atomic_load_explicit(&p->ticket, memory_order_relaxed);
        }
}

static void *helper_main(void *arg)
{
        struct helper h = *(struct helper *)arg;
        struct pool *p = h.pool;
        struct job job = {0};

        free(arg);
        for (;;) {
                int stop;

                for (int i = 0; i < SPINS && atomic_load_explicit(&p->generation, memory_order_relaxed) == job.generation; i++)
                        pause_cpu();
                pthread_mutex_lock(&p->lock);
                while (p->job.generation == job.generation && !p->stop)
                        pthread_cond_wait(&p->wake, &p->lock);
                job = p->job;
                stop = p->stop;
                pthread_mutex_unlock(&p->lock);
                if (stop)
                        return NULL;
                work(p, &job, h.index);
        }
}

struct pool *pool_new(unsigned n_threads)
{
        struct pool *p = calloc(1, sizeof(*p));

        if (!p)
                return NULL;
        openblas_set_num_threads(1);
        pthread_mutex_init(&p->lock, NULL);
        pthread_cond_init(&p->wake, NULL);
        n_threads = n_threads < 1 ? 1 : n_threads > MAX_THREADS ? MAX_THREADS : n_threads;
        for (p->n_threads = 1; p->n_threads < n_threads; p->n_threads++) {
                struct helper *h = malloc(sizeof(*h));
                if (h)
                        *h = (struct helper){p, p->n_threads};
                if (!h || pthread_create(&p->threads[p->n_threads], NULL, helper_main, h)) {
                        free(h);
                        return pool_free(p);
                }
        }
        return p;
}

struct pool *pool_free(struct pool *p)
{
        if (!p)
                return NULL;
        pthread_mutex_lock(&p->lock);
        p->stop = 1;
        pthread_cond_broadcast(&p->wake);
        pthread_mutex_unlock(&p->lock);
        for (unsigned i = 1; i < p->n_threads; i++)
                pthread_join(p->threads[i], NULL);
        pthread_mutex_destroy(&p->lock);
        pthread_cond_destroy(&p->wake);
        free(p);
        return NULL;
}

unsigned pool_n_threads(const struct pool *p)
{
        return p->n_threads;
}

void pool_run(struct pool *p, size_t n_tasks, void (*fn)(void *arg, size_t i_task, unsigned i_thread), void *arg)
{
        struct job job;

        if (p->n_threads == 1 || n_tasks <= 1) {
                for (size_t i = 0; i < n_tasks; i++)
                        fn(arg, i, 0);
                return;
        }
        pthread_mutex_lock(&p->lock);
        p->job = (struct job){p->job.generation + 1, n_tasks, fn, arg};
        atomic_store_explicit(&p->n_done, 0, memory_order_relaxed); /* all tasks of the job before are done */
        atomic_store_explicit(&p->ticket, (unsigned long long)p->job.generation << 32, memory_order_relaxed);
        atomic_store_explicit(&p->generation, p->job.generation, memory_order_relaxed);
        job = p->job;
        pthread_cond_broadcast(&p->wake);
        pthread_mutex_unlock(&p->lock);
        work(p, &job, 0);
        for (int i = 0; atomic_load_explicit(&p->n_done, memory_order_acquire) < n_tasks; i++) {
                if (i < SPINS)
                        pause_cpu();
                else
                        sched_yield();
        }
}

const char *tensor_arithmetic(void)
{
        return openblas_get_corename();
}

struct matmul {
        float *y;
        const float *x, *w;
        size_t n_rows, n_in, n_out, tile;
        float beta;
};

static void matmul_task(void *arg, size_t i, unsigned i_thread)
{
        const struct matmul *m = arg;
        size_t at = i * m->tile, n = m->n_out - at < m->tile ? m->n_out - at : m->tile;

        if (m->n_rows == 1)
                cblas_sgemv(CblasRowMajor, CblasNoTrans, (int)n, (int)m->n_in, 1, m->w + at * m->n_in, (int)m->n_in, m->x, 1, m->beta,
                            m->y + at, 1);
        else
                cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, (int)m->n_rows, (int)n, (int)m->n_in, 1, m->x, (int)m->n_in,
                            m->w + at * m->n_in, (int)m->n_in, m->beta, m->y + at, (int)m->n_out);
}

void tensor_matmul(struct pool *p, float *y, const float *x, const float *w, size_t n_rows, size_t n_in, size_t n_out, int accumulate)
{
        size_t n_tiles = (n_out + 2 * TILE - 1) / (2 * TILE) * 2; /* even, as most machines' threads are */
        size_t tile = ((n_out + n_tiles - 1) / n_tiles + 15) / 16 * 16;
        struct matmul m = {y, x, w, n_rows, n_in, n_out, tile, accumulate ? 1 : 0};

        pool_run(p, (n_out + tile - 1) / tile, matmul_task, &m);
}

void tensor_scores(float *s, const float *q, size_t q_stride, const float *k, float scale, size_t n_rows, size_t n_keys, size_t dim)
{
        if (n_rows == 1)
                cblas_sgemv(CblasRowMajor, CblasNoTrans, (int)n_keys, (int)dim, scale, k, (int)dim, q, 1, 0, s, 1);
        else
                cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, (int)n_rows, (int)n_keys, (int)dim, scale, q, (int)q_stride, k,
                            (int)dim, 0, s, (int)n_keys);
}

void tensor_weighted_sum(float *o, size_t o_stride, const float *s, const float *v, size_t n_rows, size_t n_keys, size_t dim)
{
        if (n_rows == 1)
                cblas_sgemv(CblasRowMajor, CblasTrans, (int)n_keys, (int)dim, 1, v, (int)dim, s, 1, 0, o, 1);
        else
                cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, (int)n_rows, (int)dim, (int)n_keys, 1, s, (int)n_keys, v, (int)dim,
                            0, o, (int)o_stride);
}

/* e^x for x <= 0 (and silu's range), within 2 units in the last place: 2^k times the Taylor polynomial on [-ln2/2, ln2/2]. */
static inline float exp_f32(float x)
{
        x = x < -87 ? -87 : x > 88 ? 88 : x;
        float shifted = x * 1.44269504f + 12582912.0f; /* rounds to an integer, left in the low bits */
        float k = shifted - 12582912.0f;
        float f = (x - k * 0.693359375f) + k * 2.12194440e-4f; /* ln 2 in two parts */
        float e = 1.98412698e-4f;

        e = e * f + 1.38888889e-3f;
        e = e * f + 8.33333333e-3f;
        e = e * f + 4.16666667e-2f;
        e = e * f + 1.66666667e-1f;
        e = e * f + 0.5f;
        e = e * f * f + f + 1;
        return e * f32_from_bits((f32_bits(shifted) + 127) << 23);
}

void tensor_softmax(float *x, size_t n_used, size_t n)
{
        float max[LANES], sum[LANES] = {0}, m, total = 0;
        size_t whole = n_used / LANES * LANES;

        for (size_t l = 0; l < LANES; l++)
                max[l] = x[0];
        for (size_t i = 0; i < whole; i += LANES)
                for (size_t l = 0; l < LANES; l++)
                        max[l] = x[i + l] > max[l] ? x[i + l] : max[l];
        for (size_t i = whole; i < n_used; i++)
                max[0] = x[i] > max[0] ? x[i] : max[0];
        m = max[0];
        for (size_t l = 1; l < LANES; l++)
                m = max[l] > m ? max[l] : m;
        for (size_t i = 0; i < n_used; i++)
                x[i] = exp_f32(x[i] - m);
        for (size_t i = 0; i < whole; i += LANES)
                for (size_t l = 0; l < LANES; l++)
                        sum[l] += x[i + l];
        for (size_t i = whole; i < n_used; i++)
                sum[i - whole] += x[i];
        for (size_t l = 0; l < LANES; l++)
                total += sum[l];
        for (size_t i = 0; i < n_used; i++)
                x[i] *= 1 / total;
        memset(x + n_used, 0, (n - n_used) * sizeof(*x));
}

void tensor_rmsnorm(float *y, const float *x, const float *weight, size_t n, float eps)
{
        float sum[LANES] = {0}, total = 0;
        size_t whole = n / LANES * LANES;

        for (size_t i = 0; i < whole; i += LANES)
                for (size_t l = 0; l < LANES; l++)
                        sum[l] += x[i + l] * x[i + l];
        for (size_t i = whole; i < n; i++)
                sum[i - whole] += x[i] * x[i];
        for (size_t l = 0; l < LANES; l++)
                total += sum[l];
        total = 1 / __builtin_sqrtf(total / (float)n + eps);
        for (size_t i = 0; i < n; i++)
                y[i] = x[i] * total * weight[i];
}

void tensor_swiglu(float *gate, const float *up, size_t n)
{
        for (size_t i = 0; i < n; i++)
                gate[i] = gate[i] / (1 + exp_f32(-gate[i])) * up[i];
}

void tensor_rope(float *x, const float *cos_sin, size_t n_pairs)
{
        for (size_t i = 0; i < n_pairs; i++) {
                float a = x[2 * i], b = x[2 * i + 1], c = cos_sin[2 * i], s = cos_sin[2 * i + 1];
                x[2 * i] = a * c - b * s;
                x[2 * i + 1] = a * s + b * c;
        }
}
