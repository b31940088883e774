/* What the test of failing allocations and preload_alloc.so share: a file, mapped by both, named by $KVT_ALLOC_FILE. */
#pragma once

#include <stdint.h>

struct alloc_control {
        int64_t countdown; /* atomic: at 1 the next allocation fails; 0: none does */
        uint64_t sticky; /* atomic: once one has failed, so do all that follow */
        uint64_t n_failed; /* atomic */
};
