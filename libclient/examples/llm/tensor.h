/* A pool of threads and the few operations on float matrices that a transformer needs.
 *
 * Bits. Every operation is cut into tasks by its shape alone, never by the number of threads, and each task does its sums in one
 * fixed order. So results depend on the input, the shapes and tensor_arithmetic(), not on how many threads run or how busy they are. */
#pragma once

#include <stddef.h>
#include <stdint.h>

struct pool;
/* n_threads includes the caller. NULL: out of memory or threads. */
struct pool *pool_new(unsigned n_threads);
struct pool *pool_free(struct pool *p);
unsigned pool_n_threads(const struct pool *p);
/* Calls fn(arg, i_task, i_thread) for all i_task < n_tasks and returns when all are done. One caller at a time. */
void pool_run(struct pool *p, size_t n_tasks, void (*fn)(void *arg, size_t i_task, unsigned i_thread), void *arg);

/* The kind of CPU whose BLAS kernels compute here: same name, same bits. */
const char *tensor_arithmetic(void);
/* y[n_rows][n_out] = x[n_rows][n_in] * w[n_out][n_in]^T, added to y if accumulate. */
void tensor_matmul(struct pool *p, float *y, const float *x, const float *w, size_t n_rows, size_t n_in, size_t n_out, int accumulate);
/* s[n_rows][n_keys] = scale * q * k^T; rows of q are q_stride floats apart. On the calling thread, like all below. */
void tensor_scores(float *s, const float *q, size_t q_stride, const float *k, float scale, size_t n_rows, size_t n_keys, size_t dim);
/* o[n_rows][dim] = s * v; rows of o are o_stride floats apart. */
void tensor_weighted_sum(float *o, size_t o_stride, const float *s, const float *v, size_t n_rows, size_t n_keys, size_t dim);
/* Softmax of x[0..n_used), zeros to x[n_used..n). */
void tensor_softmax(float *x, size_t n_used, size_t n);
void tensor_rmsnorm(float *y, const float *x, const float *weight, size_t n, float eps);
/* gate = silu(gate) * up */
void tensor_swiglu(float *gate, const float *up, size_t n);
/* Rotates pairs (2i, 2i + 1) of x[0..2 n_pairs) by the angles of cos_sin[n_pairs][2]. */
void tensor_rope(float *x, const float *cos_sin, size_t n_pairs);
