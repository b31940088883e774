#include <stdio.h>
#include <string.h>

#include "daemon/util/clock.h"
#include "daemon/util/log.h"

static int current_level = LOG_INFO;

int log_set_level(const char *name)
{
        static const struct {
                const char *name;
                int level;
        } levels[] = {{"error", LOG_ERR}, {"warning", LOG_WARNING}, {"info", LOG_INFO}, {"debug", LOG_DEBUG}};

        for (size_t i = 0; i < ELEMENTSOF(levels); i++)
                if (!strcmp(levels[i].name, name)) {
                        __atomic_store_n(&current_level, levels[i].level, __ATOMIC_RELAXED);
                        return 0;
                }
        return -EINVAL;
}

int log_level(void)
{
        return __atomic_load_n(&current_level, __ATOMIC_RELAXED);
}

void log_write(int level, int error, const char *format, ...)
{
        char line[1024];
        size_t n = 0;
        va_list ap;

        if (getenv("JOURNAL_STREAM"))
                n = (size_t)snprintf(line, sizeof line, "<%d>", level);
        else
                n = (size_t)snprintf(line, sizeof line, "kvtierd: %s",
                                     level <= LOG_ERR       ? "error: "
                                     : level == LOG_WARNING ? "warning: "
                                                            : "");
        va_start(ap, format);
        errno = -error;
        int k = vsnprintf(line + n, sizeof line - n - 1, format, ap);
        va_end(ap);
        if (k > 0)
                n += MIN((size_t)k, sizeof line - n - 2);
        for (size_t i = 0; i < n; i++) /* a name that a client chose must not forge lines */
                if ((unsigned char)line[i] < ' ' || line[i] == 0x7f)
                        line[i] = '?';
        line[n++] = '\n';
        ssize_t ignored = write(STDERR_FILENO, line, n);
        (void)ignored;
}

bool log_limit_allows(struct log_limit *l, uint64_t now_usec, unsigned *ret_left_out)
{
        if (now_usec - l->since_usec > 5 * USEC_PER_SEC || !l->since_usec) {
                l->since_usec = now_usec;
                *ret_left_out = l->n_left_out;
                l->n = 1;
                l->n_left_out = 0;
                return true;
        }
        if (l->n++ < 10) {
                *ret_left_out = 0;
                return true;
        }
        l->n_left_out++;
        return false;
}
