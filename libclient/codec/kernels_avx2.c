/* The kernels with AVX2. See kernels.h. */
#ifdef __x86_64__
#define KERNELS kernels_avx2
#define KERNELS_NAME "avx2"
#include "libclient/codec/kernels_impl.h"
#else
typedef int kernels_avx2_is_x86_only;
#endif
