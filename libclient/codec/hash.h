/* XXH3-64 with the widest SIMD this CPU has, chosen once at run time; all variants give the same value.
 *
 * hash_copy() copies and hashes in one pass over the destination while it is still in the L1 cache: the value is that of the
 * bytes at dst, whatever another process did to src meanwhile. */
#pragma once

#include <stddef.h>
#include <stdint.h>

uint64_t hash_bytes(const void *p, size_t n, uint64_t seed);
uint64_t hash_copy(void *restrict dst, const void *restrict src, size_t n, uint64_t seed);

/* Streaming, for planes whose rows are scattered. */
struct hash_state {
        _Alignas(64) unsigned char opaque[640];
};
void hash_init(struct hash_state *h, uint64_t seed);
void hash_update(struct hash_state *h, const void *p, size_t n);
uint64_t hash_final(const struct hash_state *h);

/* "avx512", "avx2" or "sse2" */
const char *hash_variant(void);
