/* LD_PRELOADed into a daemon: lets the Nth allocation fail, counted from when the test arms it. Allocations are those of the heap, and those of
 * memory files, maps and their pages.
 *
 * Next in line is whatever allocator comes after us: that of the C library, or that of a sanitizer. */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <malloc.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "tests/fault/alloc.h"

/* the sanitizers are not up yet when we are called first */
#define BARE __attribute__((no_sanitize("address"), no_sanitize("undefined"), no_sanitize("thread")))
#define PRELOAD __attribute__((visibility("default"))) BARE

static struct alloc_control *control;

__attribute__((constructor)) BARE static void preload_init(void)
{
        const char *path = getenv("KVT_ALLOC_FILE");
        int fd = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
        void *p = fd >= 0 ? mmap(NULL, sizeof(*control), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) : MAP_FAILED;

        if (p == MAP_FAILED)
                _exit(125);
        close(fd);
        control = p;
}

BARE static int fails(void)
{
        struct alloc_control *c = control;

        if (!c || __atomic_load_n(&c->countdown, __ATOMIC_RELAXED) <= 0)
                return 0;
        if (__atomic_fetch_sub(&c->countdown, 1, __ATOMIC_RELAXED) != 1)
                return 0;
        if (__atomic_load_n(&c->sticky, __ATOMIC_RELAXED))
                __atomic_store_n(&c->countdown, 1, __ATOMIC_RELAXED);
        __atomic_fetch_add(&c->n_failed, 1, __ATOMIC_RELAXED);
        errno = ENOMEM;
        return 1;
}

/* The function of this name that comes after ours. */
#define NEXT(f)                                                                                                                            \
        static __typeof__(f) *next_;                                                                                                       \
        if (!next_)                                                                                                                        \
        next_ = (__typeof__(f) *)dlsym(RTLD_NEXT, #f)

PRELOAD void *malloc(size_t n)
{
        NEXT(malloc);
        return fails() ? NULL : next_(n);
}

PRELOAD void *calloc(size_t n, size_t m)
{
        NEXT(calloc);
        return fails() ? NULL : next_(n, m);
}

PRELOAD void *realloc(void *p, size_t n)
{
        NEXT(realloc);
        return fails() ? NULL : next_(p, n);
}

PRELOAD void *reallocarray(void *p, size_t n, size_t m)
{
        NEXT(reallocarray);
        return fails() ? NULL : next_(p, n, m);
}

PRELOAD int posix_memalign(void **ret, size_t align, size_t n)
{
        NEXT(posix_memalign);
        return fails() ? ENOMEM : next_(ret, align, n);
}

PRELOAD void *aligned_alloc(size_t align, size_t n)
{
        NEXT(aligned_alloc);
        return fails() ? NULL : next_(align, n);
}

PRELOAD void *mmap(void *p, size_t n, int prot, int flags, int fd, off_t at)
{
        NEXT(mmap);
        return fails() ? MAP_FAILED : next_(p, n, prot, flags, fd, at);
}

PRELOAD int memfd_create(const char *name, unsigned flags)
{
        NEXT(memfd_create);
        return fails() ? -1 : next_(name, flags);
}

PRELOAD int madvise(void *p, size_t n, int what)
{
        NEXT(madvise);
        return what == 23 /* MADV_POPULATE_WRITE */ && fails() ? -1 : next_(p, n, what);
}
