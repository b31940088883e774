/* The hash with AVX-512. See hash_impl.h. */
#ifdef __x86_64__
#include <immintrin.h>

#define XXH_VECTOR XXH_AVX512
#define HASH_OPS hash_ops_avx512
#define HASH_NAME "avx512"
#define V __m512i
#define V_BYTES 64
#define V_LOAD(p) _mm512_loadu_si512((const void *)(p))
#define V_STORE(p, v) _mm512_storeu_si512((void *)(p), v)
#define V_STREAM(p, v) _mm512_stream_si512((void *)(p), v)
#define V_FENCE() _mm_sfence()
#define V_SET1_32(x) _mm512_set1_epi32(x)
#define V_XOR(a, b) _mm512_xor_si512(a, b)
#define V_ADD(a, b) _mm512_add_epi64(a, b)
#define V_MUL32(a, b) _mm512_mul_epu32(a, b)
#define V_SHR47(a) _mm512_srli_epi64(a, 47)
#define V_SHL32(a) _mm512_slli_epi64(a, 32)
#define V_ODD(a) _mm512_shuffle_epi32(a, (_MM_PERM_ENUM)_MM_SHUFFLE(0, 3, 0, 1))
#define V_SWAP(a) _mm512_shuffle_epi32(a, (_MM_PERM_ENUM)_MM_SHUFFLE(1, 0, 3, 2))

#include "libclient/codec/hash_impl.h"
#else
typedef int hash_avx512_is_x86_only;
#endif
