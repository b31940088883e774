/* Checks for tests with several processes: CHECK works in the test itself, in its threads, and in children that it forked.
 *
 * In the main thread of the test a failed check ends that test by cmocka's means; in a child it prints and exits 1, which the parent's
 * child_join() turns into a failure; in a thread it prints and aborts. */
#pragma once

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

#include <cmocka.h>

#include "include/kvtier.h"

__attribute__((format(printf, 3, 4))) void check_failed(const char *file, int line, const char *format, ...);
/* Prints why, and ends the test as skipped. */
_Noreturn void check_skip(const char *why);

#define CHECK(x)                                                                                                                           \
        do {                                                                                                                               \
                if (!(x))                                                                                                                  \
                        check_failed(__FILE__, __LINE__, "%s", #x);                                                                        \
        } while (0)
#define CHECK_EQ(a, b)                                                                                                                     \
        do {                                                                                                                               \
                long long a_ = (long long)(a), b_ = (long long)(b);                                                                        \
                if (a_ != b_)                                                                                                              \
                        check_failed(__FILE__, __LINE__, "%s is %lld, expected %s = %lld", #a, a_, #b, b_);                                \
        } while (0)
/* a result of the library, or a status byte */
#define CHECK_IS(r, expected)                                                                                                              \
        do {                                                                                                                               \
                int r_ = (int)(r), e_ = (int)(expected);                                                                                   \
                if (r_ != e_)                                                                                                              \
                        check_failed(__FILE__, __LINE__, "%s is %s, expected %s", #r, kvt_error_name(r_), kvt_error_name(e_));             \
        } while (0)
#define CHECK_OK(r) CHECK_IS(r, 0)
/* Polls until the condition holds, at most that long. */
#define WAIT_FOR(x, msec)                                                                                                                  \
        do {                                                                                                                               \
                uint64_t until_ = check_now_usec() + (uint64_t)(msec)*1000 * CHECK_SLOW;                                                   \
                while (!(x)) {                                                                                                             \
                        if (check_now_usec() > until_) {                                                                                   \
                                check_failed(__FILE__, __LINE__, "%s: not within %d ms", #x, (int)(msec)*CHECK_SLOW);                      \
                                break;                                                                                                     \
                        }                                                                                                                  \
                        usleep(3000);                                                                                                      \
                }                                                                                                                          \
        } while (0)

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define CHECK_SLOW 4 /* how much longer than usual things may take */
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define CHECK_SLOW 4
#endif
#endif
#ifndef CHECK_SLOW
#define CHECK_SLOW 1
#endif

uint64_t check_now_usec(void);

/* children: fn runs in a process of its own, which exits 0 when it returns */
pid_t child_start(void (*fn)(void *), void *arg);
/* The same as another user and group, without supplementary groups; the parent must be root. */
pid_t child_start_as(uid_t uid, void (*fn)(void *), void *arg);
/* Waits; the test fails unless the child exited 0. */
void child_join(pid_t pid);
void child_run(void (*fn)(void *), void *arg);
void child_run_as(uid_t uid, void (*fn)(void *), void *arg);

/* Two processes wait for each other: each side writes a byte and reads the other's. */
struct meeting {
        int to_child[2], to_parent[2];
};
void meeting_init(struct meeting *m);
void meeting_deinit(struct meeting *m);
/* who: 0 the parent, 1 the child. Both return once both have called. */
void meeting_at(struct meeting *m, int who);
