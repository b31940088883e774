/* Assertions stay on in release: they cost O(1) and hold what this program promises itself, never what a peer sent. */
#pragma once

#include "daemon/util/macro.h"

_Noreturn void assert_failed(const char *expression, const char *file, int line);

#define ASSERT(x)                                                                                                                          \
        do {                                                                                                                               \
                if (unlikely(!(x)))                                                                                                        \
                        assert_failed(#x, __FILE__, __LINE__);                                                                             \
        } while (0)

/* The loop thread owns all mutable state; main calls assert_bind_loop() from it once. */
void assert_bind_loop(void);
void assert_on_loop(void);
