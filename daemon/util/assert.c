#include <stdio.h>

#include "daemon/util/assert.h"

static __thread bool on_loop;

void assert_failed(const char *expression, const char *file, int line)
{
        fprintf(stderr, "<2>kvtierd: assertion '%s' failed at %s:%d\n", expression, file, line);
        abort();
}

void assert_bind_loop(void)
{
        on_loop = true;
}

void assert_on_loop(void)
{
        ASSERT(on_loop);
}
