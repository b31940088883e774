/* One hash variant: the functions of hash.h for one instruction set. Which variants there are depends on the machine kvtier is built for. */
#pragma once

#include "libclient/codec/hash.h"

struct hash_ops {
        const char *name;
        uint64_t (*bytes)(const void *p, size_t n, uint64_t seed);
        uint64_t (*copy)(void *restrict dst, const void *restrict src, size_t n, uint64_t seed);
        void (*init)(struct hash_state *h, uint64_t seed);
        void (*update)(struct hash_state *h, const void *p, size_t n);
        uint64_t (*final)(const struct hash_state *h);
};

/* every machine; SSE2 on x86 */
extern const struct hash_ops hash_ops_base;
#ifdef __x86_64__
extern const struct hash_ops hash_ops_avx2;
extern const struct hash_ops hash_ops_avx512;
#endif

/* The i-th variant that this CPU can run, the best first; NULL: there are no more. For tests. */
const struct hash_ops *hash_ops_nth(unsigned i);
