/* The kernels for every machine. See kernels.h. */
#define KERNELS kernels_base
#define KERNELS_NAME "base"
#include "libclient/codec/kernels_impl.h"
