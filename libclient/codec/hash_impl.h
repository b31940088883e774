/* The body of one hash variant: included once by hash_sse2.c, hash_avx2.c and hash_avx512.c, which define
 *
 *     HASH_OPS, HASH_NAME     the table to define, and its name
 *     XXH_VECTOR              which SIMD xxhash.h uses
 *     V, V_BYTES              the vector type; V_LOAD V_STORE V_STREAM V_XOR V_ADD V_MUL32 V_SHR47 V_SHL32 V_ODD V_SWAP
 *                             (none of them: portable; hash_copy() then copies in chunks and hashes each behind the copy)
 *
 * Hashing alone is xxhash.h's. The copying form is written here after the specification of XXH3 (xxhash's doc/xxhash_spec.md,
 * "XXH3 algorithm, large inputs"): stripes of 64 bytes, 16 stripes a block, then a scramble. Each stripe is loaded into
 * registers once; the same registers are stored and accumulated, so the value is that of the bytes at dst even if src changes under
 * the loop. Buffers too large to stay in the caches go past them (non-temporal stores): a plain store would first read what it
 * overwrites. Measured on Zen 4, 2 MiB buffers in 3 GiB: memcpy 11.4 GB/s, chunks of 4 KiB 13.4, fused 16.3, fused with non-temporal
 * stores 18.5, and with a prefetch 1 KiB ahead (hardware prefetch stops at each page) 21.3. */
#define XXH_INLINE_ALL
#include <xxhash.h>

#include <string.h>

#include "libclient/codec/hash_ops.h"

static_assert(sizeof(XXH3_state_t) <= sizeof(struct hash_state), "room for xxhash's state");

static uint64_t impl_bytes(const void *p, size_t n, uint64_t seed)
{
        return XXH3_64bits_withSeed(p, n, seed);
}

static void impl_init(struct hash_state *h, uint64_t seed)
{
        XXH3_state_t *state = (XXH3_state_t *)(void *)h->opaque;

        state->extSecret = NULL;
        state->seed = 0; /* else reset may believe that garbage is this seed's secret */
        XXH3_64bits_reset_withSeed(state, seed);
}

static void impl_update(struct hash_state *h, const void *p, size_t n)
{
        XXH3_64bits_update((XXH3_state_t *)(void *)h->opaque, p, n);
}

static uint64_t impl_final(const struct hash_state *h)
{
        return XXH3_64bits_digest((const XXH3_state_t *)(const void *)h->opaque);
}

#ifdef V

enum {
        STRIPE = 64,
        N_STRIPES = 16, /* in a block, with the default secret of 192 bytes */
        BLOCK = STRIPE * N_STRIPES,
        SECRET = 192,
        N_V = STRIPE / V_BYTES,
        SHORT_MAX = 240, /* XXH3 hashes up to here in another way */
        STREAM_MIN = 64 * 1024, /* from here on stores go past the caches: 64 KiB 1.23 of memcpy against 1.0, 2 MiB 1.8 against 1.4 */
        PREFETCH_AHEAD = 1024,
};

static const uint64_t prime32_1 = 0x9E3779B1u, prime64_1 = 0x9E3779B185EBCA87u;

/* The registers must not be loaded a second time from src, whatever the compiler would like. */
#define PIN(v) __asm__("" : "+x"(v))

static inline __attribute__((always_inline)) V accumulate(V acc, V data, V key)
{
        V mixed = V_XOR(data, key);
        return V_ADD(V_MUL32(mixed, V_ODD(mixed)), V_ADD(acc, V_SWAP(data)));
}

static inline __attribute__((always_inline)) V scramble(V acc, V key, V prime)
{
        V x = V_XOR(V_XOR(acc, V_SHR47(acc)), key);
        return V_ADD(V_MUL32(x, prime), V_SHL32(V_MUL32(V_ODD(x), prime)));
}

static uint64_t fold(uint64_t a, uint64_t b)
{
        unsigned __int128 product = (unsigned __int128)a * b;
        return (uint64_t)product ^ (uint64_t)(product >> 64);
}

static uint64_t merge(const uint64_t *acc, const uint8_t *secret, size_t n)
{
        uint64_t h = n * prime64_1, key[8];

        memcpy(key, secret + 11, sizeof(key));
        for (int i = 0; i < 8; i += 2)
                h += fold(acc[i] ^ key[i], acc[i + 1] ^ key[i + 1]);
        h = (h ^ h >> 37) * 0x165667919E3779F9u;
        return h ^ h >> 32;
}

static inline __attribute__((always_inline)) uint64_t copy_long(uint8_t *restrict dst, const uint8_t *restrict src, size_t n, uint64_t seed,
                                                                int stream)
{
        _Alignas(64) uint64_t lanes[8] = {0xC2B2AE3Du,         prime64_1,   0xC2B2AE3D27D4EB4Fu, 0x165667B19E3779F9u,
                                          0x85EBCA77C2B2AE63u, 0x85EBCA77u, 0x27D4EB2F165667C5u, prime32_1};
        _Alignas(64) uint8_t secret[SECRET];
        XXH3_state_t seeded;
        V acc[N_V], prime = V_SET1_32((int)prime32_1);
        size_t n_blocks = (n - 1) / BLOCK, rest = n - n_blocks * BLOCK, n_stripes = (rest - 1) / STRIPE, tail = rest - n_stripes * STRIPE;

        seeded.seed = 0;
        seeded.extSecret = NULL;
        XXH3_64bits_reset_withSeed(&seeded, seed);
        memcpy(secret, seed ? seeded.customSecret : seeded.extSecret, SECRET);
        for (int j = 0; j < N_V; j++)
                acc[j] = V_LOAD((const uint8_t *)lanes + j * V_BYTES);

        for (; n_blocks; n_blocks--, src += BLOCK, dst += BLOCK) {
#pragma GCC unroll 16
                for (int i = 0; i < N_STRIPES; i++) {
                        if (stream)
                                __builtin_prefetch(src + i * STRIPE + PREFETCH_AHEAD);
#pragma GCC unroll 4
                        for (int j = 0; j < N_V; j++) {
                                V data = V_LOAD(src + i * STRIPE + j * V_BYTES);
                                PIN(data);
                                if (stream)
                                        V_STREAM(dst + i * STRIPE + j * V_BYTES, data);
                                else
                                        V_STORE(dst + i * STRIPE + j * V_BYTES, data);
                                acc[j] = accumulate(acc[j], data, V_LOAD(secret + 8 * i + j * V_BYTES));
                        }
                }
                for (int j = 0; j < N_V; j++)
                        acc[j] = scramble(acc[j], V_LOAD(secret + SECRET - STRIPE + j * V_BYTES), prime);
        }
        if (stream)
                V_FENCE();

        for (size_t i = 0; i < n_stripes; i++)
                for (int j = 0; j < N_V; j++) {
                        V data = V_LOAD(src + i * STRIPE + j * V_BYTES);
                        PIN(data);
                        V_STORE(dst + i * STRIPE + j * V_BYTES, data);
                        acc[j] = accumulate(acc[j], data, V_LOAD(secret + 8 * i + j * V_BYTES));
                }
        memcpy(dst + n_stripes * STRIPE, src + n_stripes * STRIPE, tail);
        __asm__ volatile("" ::: "memory");
        /* the last stripe is the last 64 bytes, most of which may have been counted before */
        for (int j = 0; j < N_V; j++) {
                V data = V_LOAD(dst + rest - STRIPE + j * V_BYTES);
                acc[j] = accumulate(acc[j], data, V_LOAD(secret + SECRET - STRIPE - 7 + j * V_BYTES));
                V_STORE((uint8_t *)lanes + j * V_BYTES, acc[j]);
        }
        return merge(lanes, secret, n);
}

static __attribute__((noinline)) uint64_t copy_stream(void *restrict dst, const void *restrict src, size_t n, uint64_t seed)
{
        return copy_long(dst, src, n, seed, 1);
}

static __attribute__((noinline)) uint64_t copy_store(void *restrict dst, const void *restrict src, size_t n, uint64_t seed)
{
        return copy_long(dst, src, n, seed, 0);
}

static uint64_t impl_copy(void *restrict dst, const void *restrict src, size_t n, uint64_t seed)
{
        if (n > SHORT_MAX)
                return n >= STREAM_MIN && (uintptr_t)dst % 64 == 0 ? copy_stream(dst, src, n, seed) : copy_store(dst, src, n, seed);
        memcpy(dst, src, n);
        __asm__ volatile("" ::: "memory");
        return XXH3_64bits_withSeed(dst, n, seed);
}

#else

enum { CHUNK = 4096 };

static uint64_t impl_copy(void *restrict dst, const void *restrict src, size_t n, uint64_t seed)
{
        XXH3_state_t state;

        state.seed = 0;
        state.extSecret = NULL;
        XXH3_64bits_reset_withSeed(&state, seed);
        for (size_t done = 0, step; done < n; done += step) {
                step = n - done < CHUNK ? n - done : CHUNK;
                memcpy((uint8_t *)dst + done, (const uint8_t *)src + done, step);
                __asm__ volatile("" ::: "memory");
                XXH3_64bits_update(&state, (const uint8_t *)dst + done, step);
        }
        return XXH3_64bits_digest(&state);
}

#endif

const struct hash_ops HASH_OPS = {
        .name = HASH_NAME,
        .bytes = impl_bytes,
        .copy = impl_copy,
        .init = impl_init,
        .update = impl_update,
        .final = impl_final,
};
