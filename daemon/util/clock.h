/* CLOCK_MONOTONIC in microseconds: what deadlines are measured by. It does not go back. */
#pragma once

#include <stdint.h>
#include <time.h>

#define USEC_PER_SEC 1000000ull

static inline uint64_t clock_usec(void)
{
        struct timespec t;
        clock_gettime(CLOCK_MONOTONIC, &t);
        return (uint64_t)t.tv_sec * USEC_PER_SEC + (uint64_t)t.tv_nsec / 1000;
}
