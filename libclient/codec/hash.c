/* Chooses the hash variant once. Threads: any; the choice is idempotent, and every thread that races for it makes the same. */
#include "libclient/codec/hash_ops.h"

static const struct hash_ops *chosen;

const struct hash_ops *hash_ops_nth(unsigned i)
{
        const struct hash_ops *all[4] = {0};
        unsigned n = 0;

#ifdef __x86_64__
        __builtin_cpu_init();
        if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
            __builtin_cpu_supports("avx512dq"))
                all[n++] = &hash_ops_avx512;
        if (__builtin_cpu_supports("avx2"))
                all[n++] = &hash_ops_avx2;
#endif
        all[n++] = &hash_ops_base;
        return i < n ? all[i] : NULL;
}

static inline const struct hash_ops *ops(void)
{
        /* relaxed: what it points to is constant */
        const struct hash_ops *o = __atomic_load_n(&chosen, __ATOMIC_RELAXED);

        if (__builtin_expect(!o, 0)) {
                o = hash_ops_nth(0);
                __atomic_store_n(&chosen, o, __ATOMIC_RELAXED);
        }
        return o;
}

uint64_t hash_bytes(const void *p, size_t n, uint64_t seed)
{
        return ops()->bytes(p, n, seed);
}

uint64_t hash_copy(void *restrict dst, const void *restrict src, size_t n, uint64_t seed)
{
        return ops()->copy(dst, src, n, seed);
}

void hash_init(struct hash_state *h, uint64_t seed)
{
        ops()->init(h, seed);
}

void hash_update(struct hash_state *h, const void *p, size_t n)
{
        ops()->update(h, p, n);
}

uint64_t hash_final(const struct hash_state *h)
{
        return ops()->final(h);
}

const char *hash_variant(void)
{
        return ops()->name;
}
