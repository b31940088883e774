/* A clock that stands still and secrets that are no secrets, for the daemon in the fuzzer's process: every run of an input is the same. */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <sys/random.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* time: CLOCK_MONOTONIC stands still while an input runs, but for steps, and a microsecond each time that somebody looks */

static bool running;
static uint64_t ahead_usec;

int clock_gettime(clockid_t id, struct timespec *ret)
{
        int r = (int)syscall(SYS_clock_gettime, id, ret);

        if (r == 0 && running && id == CLOCK_MONOTONIC) {
                uint64_t usec = 1000000000000000 + ahead_usec++; /* so far ahead that no timer of the kernel fires */
                ret->tv_sec = (time_t)(usec / 1000000);
                ret->tv_nsec = (long)(usec % 1000000 * 1000);
        }
        return r;
}

/* Secrets and tokens are the same in every run. */
ssize_t getrandom(void *p, size_t n, unsigned flags)
{
        static uint64_t serial; /* ever other ones: devices must not look alike */

        for (size_t i = 0; i < n; i++)
                ((uint8_t *)p)[i] = (uint8_t)(i < 8 ? serial >> 8 * i : i);
        serial++;
        return (ssize_t)n;
}
