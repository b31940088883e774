/* The hash for every machine: SSE2 on x86, what xxhash.h finds elsewhere. See hash_impl.h. */
#define HASH_OPS hash_ops_base
#ifdef __x86_64__
#include <emmintrin.h>

#define XXH_VECTOR XXH_SSE2
#define HASH_NAME "sse2"
#define V __m128i
#define V_BYTES 16
#define V_LOAD(p) _mm_loadu_si128((const __m128i *)(const void *)(p))
#define V_STORE(p, v) _mm_storeu_si128((__m128i *)(void *)(p), v)
#define V_STREAM(p, v) _mm_stream_si128((__m128i *)(void *)(p), v)
#define V_FENCE() _mm_sfence()
#define V_SET1_32(x) _mm_set1_epi32(x)
#define V_XOR(a, b) _mm_xor_si128(a, b)
#define V_ADD(a, b) _mm_add_epi64(a, b)
#define V_MUL32(a, b) _mm_mul_epu32(a, b)
#define V_SHR47(a) _mm_srli_epi64(a, 47)
#define V_SHL32(a) _mm_slli_epi64(a, 32)
#define V_ODD(a) _mm_shuffle_epi32(a, _MM_SHUFFLE(0, 3, 0, 1))
#define V_SWAP(a) _mm_shuffle_epi32(a, _MM_SHUFFLE(1, 0, 3, 2))
#else
#define HASH_NAME "portable"
#endif

#include "libclient/codec/hash_impl.h"
