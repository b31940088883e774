/* The hash with AVX2. See hash_impl.h. */
#ifdef __x86_64__
#include <immintrin.h>

#define XXH_VECTOR XXH_AVX2
#define HASH_OPS hash_ops_avx2
#define HASH_NAME "avx2"
#define V __m256i
#define V_BYTES 32
#define V_LOAD(p) _mm256_loadu_si256((const __m256i *)(const void *)(p))
#define V_STORE(p, v) _mm256_storeu_si256((__m256i *)(void *)(p), v)
#define V_STREAM(p, v) _mm256_stream_si256((__m256i *)(void *)(p), v)
#define V_FENCE() _mm_sfence()
#define V_SET1_32(x) _mm256_set1_epi32(x)
#define V_XOR(a, b) _mm256_xor_si256(a, b)
#define V_ADD(a, b) _mm256_add_epi64(a, b)
#define V_MUL32(a, b) _mm256_mul_epu32(a, b)
#define V_SHR47(a) _mm256_srli_epi64(a, 47)
#define V_SHL32(a) _mm256_slli_epi64(a, 32)
#define V_ODD(a) _mm256_shuffle_epi32(a, _MM_SHUFFLE(0, 3, 0, 1))
#define V_SWAP(a) _mm256_shuffle_epi32(a, _MM_SHUFFLE(1, 0, 3, 2))

#include "libclient/codec/hash_impl.h"
#else
typedef int hash_avx2_is_x86_only;
#endif
