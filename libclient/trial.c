/* See trial.h. */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "libclient/trial.h"

enum { TILE = 1024 };

static uint64_t now_nsec(void)
{
        struct timespec ts;

        clock_gettime(CLOCK_MONOTONIC, &ts);
        return (uint64_t)ts.tv_sec * 1000000000 + (uint64_t)ts.tv_nsec;
}

void trial_deinit(struct trial *t)
{
        free(t->payload);
        free(t->scratch);
        *t = (struct trial){.n_repeats = t->n_repeats};
}

static int make_room(struct trial *t, size_t payload, size_t scratch)
{
        payload = (payload + 63) & ~(size_t)63;
        scratch = (scratch + 63) & ~(size_t)63;
        if (payload > t->payload_bytes) {
                free(t->payload);
                t->payload = aligned_alloc(64, payload);
                t->payload_bytes = t->payload ? payload : 0;
        }
        if (scratch > t->scratch_bytes) {
                free(t->scratch);
                t->scratch = aligned_alloc(64, scratch);
                t->scratch_bytes = t->scratch ? scratch : 0;
        }
        return t->payload_bytes < payload || t->scratch_bytes < scratch ? KVT_E_NO_MEMORY : 0;
}

int trial_run(struct trial *t, const struct shape *p, const struct plane_request *q, const void *src, void *dst, struct trial_plane *ret)
{
        unsigned n_repeats = t->n_repeats ? t->n_repeats : 1;
        int r = make_room(t, plane_bound(p, q->spec), plane_encode_scratch(p, q->spec));

        *ret = (struct trial_plane){.encode_nsec = UINT64_MAX, .decode_nsec = UINT64_MAX};
        for (unsigned i = 0; i < n_repeats && !r; i++) {
                uint64_t start = now_nsec(), nsec;

                ret->fell_back = !plane_encode(p, q, src, t->payload, t->scratch, &ret->copy);
                nsec = now_nsec() - start;
                ret->encode_nsec = nsec < ret->encode_nsec ? nsec : ret->encode_nsec;
        }
        r = r ? r : make_room(t, 0, plane_decode_scratch(p, &ret->copy));
        for (unsigned i = 0; i < n_repeats && !r; i++) {
                uint64_t start = now_nsec(), nsec;

                r = plane_decode(p, &ret->copy, t->payload, q->base, dst, t->scratch);
                nsec = now_nsec() - start;
                ret->decode_nsec = nsec < ret->decode_nsec ? nsec : ret->decode_nsec;
        }
        return r;
}

void trial_add(struct trial_sums *sums, const struct shape *p, const void *src, const void *dst, const struct trial_plane *x)
{
        float a[TILE], b[TILE];

        sums->n_planes++;
        sums->n_fell_back += x->fell_back;
        sums->n_values += p->n_values;
        sums->n_raw_bytes += p->n_bytes;
        sums->n_bytes += x->copy.bytes;
        sums->encode_nsec += x->encode_nsec;
        sums->decode_nsec += x->decode_nsec;
        for (size_t i = 0, n; i < p->n_values; i += n) {
                n = p->n_values - i < TILE ? p->n_values - i : TILE;
                kernels()->widen(a, (const uint8_t *)src + i * p->elem_bytes, n, p->dtype);
                kernels()->widen(b, (const uint8_t *)dst + i * p->elem_bytes, n, p->dtype);
                for (size_t j = 0; j < n; j++) /* what is not finite is exact */
                        if (!isfinite(a[j]))
                                a[j] = b[j] = 0;
                kernels()->measure(&sums->error, a, b, n);
        }
}

void trial_sums_add(struct trial_sums *sums, const struct trial_sums *more)
{
        sums->n_planes += more->n_planes;
        sums->n_fell_back += more->n_fell_back;
        sums->n_values += more->n_values;
        sums->n_raw_bytes += more->n_raw_bytes;
        sums->n_bytes += more->n_bytes;
        sums->encode_nsec += more->encode_nsec;
        sums->decode_nsec += more->decode_nsec;
        sums->error.diff += more->error.diff;
        sums->error.norm += more->error.norm;
        if (more->error.max_abs > sums->error.max_abs)
                sums->error.max_abs = more->error.max_abs;
}

double trial_bits(const struct trial_sums *s)
{
        return s->n_values ? 8 * (double)s->n_bytes / (double)s->n_values : 0;
}

double trial_rel_l2(const struct trial_sums *s)
{
        return s->error.diff == 0 ? 0 : sqrt(s->error.diff / s->error.norm);
}

double trial_fell_back(const struct trial_sums *s)
{
        return s->n_planes ? (double)s->n_fell_back / (double)s->n_planes : 0;
}

double trial_encode_gbps(const struct trial_sums *s)
{
        return s->encode_nsec ? (double)s->n_raw_bytes / (double)s->encode_nsec : 0;
}

double trial_decode_gbps(const struct trial_sums *s)
{
        return s->decode_nsec ? (double)s->n_raw_bytes / (double)s->decode_nsec : 0;
}
