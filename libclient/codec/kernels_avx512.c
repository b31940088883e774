/* The kernels with AVX-512. See kernels.h. */
#ifdef __x86_64__
#define KERNELS kernels_avx512
#define KERNELS_NAME "avx512"
#include "libclient/codec/kernels_impl.h"
#else
typedef int kernels_avx512_is_x86_only;
#endif
