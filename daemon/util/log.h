/* Messages to stderr, one line each, with a syslog priority in front where journald reads stderr. Any thread.
 *
 * What a client can provoke goes through log_limited(): ten messages in five seconds a call site, then a count of those left out. */
#pragma once

#include <stdarg.h>
#include <syslog.h>

#include "daemon/util/macro.h"

/* "error", "warning", "info", "debug"; returns -EINVAL for others */
int log_set_level(const char *name);
int log_level(void);
void log_write(int level, int error, const char *format, ...) _printf_(3, 4);

struct log_limit { /* static, one a call site */
        uint64_t since_usec;
        unsigned n;
        unsigned n_left_out;
};
bool log_limit_allows(struct log_limit *l, uint64_t now_usec, unsigned *ret_left_out);

#define log_at(level, error, ...)                                                                                                          \
        ({                                                                                                                                 \
                if ((level) <= log_level())                                                                                                \
                        log_write((level), (error), __VA_ARGS__);                                                                          \
        })
#define log_error(...) log_at(LOG_ERR, 0, __VA_ARGS__)
#define log_warning(...) log_at(LOG_WARNING, 0, __VA_ARGS__)
#define log_info(...) log_at(LOG_INFO, 0, __VA_ARGS__)
#define log_debug(...) log_at(LOG_DEBUG, 0, __VA_ARGS__)
/* r is a negative errno, shown by %m; the value is r */
#define log_errno(r, ...)                                                                                                                  \
        ({                                                                                                                                 \
                int r_ = (r);                                                                                                              \
                log_at(LOG_ERR, r_, __VA_ARGS__);                                                                                          \
                r_;                                                                                                                        \
        })
#define log_limited(level, ...)                                                                                                            \
        do {                                                                                                                               \
                static struct log_limit limit_;                                                                                            \
                unsigned left_out_;                                                                                                        \
                if ((level) <= log_level() && log_limit_allows(&limit_, clock_usec(), &left_out_)) {                                       \
                        if (left_out_)                                                                                                     \
                                log_write((level), 0, "(%u messages like the next one were left out)", left_out_);                         \
                        log_write((level), 0, __VA_ARGS__);                                                                                \
                }                                                                                                                          \
        } while (0)
