/* Small helpers every file may use. */
#pragma once

#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <unistd.h>

#define _cleanup_(f) __attribute__((cleanup(f)))
#define _printf_(a, b) __attribute__((format(printf, a, b)))
#define ELEMENTSOF(x) (sizeof(x) / sizeof((x)[0]))
#define MIN(a, b) ((a) < (b) ? (a) : (b))
#define MAX(a, b) ((a) > (b) ? (a) : (b))
#define container_of(p, type, member) ((type *)((char *)(p)-offsetof(type, member)))
#define likely(x) __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)
#define TAKE_PTR(p)                                                                                                                        \
        ({                                                                                                                                 \
                typeof(p) taken_ = (p);                                                                                                    \
                (p) = NULL;                                                                                                                \
                taken_;                                                                                                                    \
        })
#define TAKE_FD(fd)                                                                                                                        \
        ({                                                                                                                                 \
                int taken_ = (fd);                                                                                                         \
                (fd) = -1;                                                                                                                 \
                taken_;                                                                                                                    \
        })

static inline uint64_t align_up(uint64_t x, uint64_t to)
{
        return (x + to - 1) / to * to;
}

static inline void freep(void *p)
{
        free(*(void **)p);
}

static inline void closep(int *fd)
{
        if (*fd >= 0)
                close(*fd);
}

/* Zeroed memory, or NULL. */
#define new0(type, n) ((type *)calloc((n), sizeof(type)))
