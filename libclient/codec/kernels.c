/* Chooses the kernels once. Threads: any; the choice is idempotent, and every thread that races for it makes the same. */
#ifdef __x86_64__
#include <cpuid.h>
#endif
#include <stdbool.h>

#include "libclient/codec/kernels.h"

static const struct kernels *chosen;

#ifdef __x86_64__
/* clang 14's __builtin_cpu_supports() does not know it; AVX2, which has the same registers, says that the system saves them. */
static bool has_f16c(void)
{
        static int known; /* 1: no, 2: yes; whoever asks first finds out: the instruction is slow where a hypervisor answers it */
        unsigned a, b, c = 0, d;
        int k = __atomic_load_n(&known, __ATOMIC_RELAXED);

        if (!k) {
                k = __get_cpuid(1, &a, &b, &c, &d) && c & bit_F16C ? 2 : 1;
                __atomic_store_n(&known, k, __ATOMIC_RELAXED);
        }
        return k == 2;
}
#endif

const struct kernels *kernels_nth(unsigned i)
{
        const struct kernels *all[4] = {0};
        unsigned n = 0;

#ifdef __x86_64__
        __builtin_cpu_init();
        if (__builtin_cpu_supports("avx2") && has_f16c() && __builtin_cpu_supports("bmi2")) {
                if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                    __builtin_cpu_supports("avx512dq"))
                        all[n++] = &kernels_avx512;
                all[n++] = &kernels_avx2;
        }
#endif
        all[n++] = &kernels_base;
        return i < n ? all[i] : NULL;
}

void kernels_choose(const struct kernels *k)
{
        __atomic_store_n(&chosen, k, __ATOMIC_RELAXED);
}

const struct kernels *kernels(void)
{
        /* relaxed: what it points to is constant */
        const struct kernels *k = __atomic_load_n(&chosen, __ATOMIC_RELAXED);

        if (__builtin_expect(!k, 0)) {
                k = kernels_nth(0);
                kernels_choose(k);
        }
        return k;
}
