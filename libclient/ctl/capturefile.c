/* See capturefile.h. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "libclient/ctl/capturefile.h"

int capturefile_open(struct ctl *x, const char *path, struct capturefile *ret)
{
        int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK), code = EXIT_OK;
        struct capturefile f = {.path = path};
        const char *why = NULL;
        struct stat st;

        if (fd < 0)
                return ctl_fail(x, -errno, "cannot open %s", path);
        if (fstat(fd, &st) < 0)
                code = ctl_fail(x, -errno, "cannot open %s", path);
        else if (!S_ISREG(st.st_mode))
                code = ctl_fail(x, 0, "%s is no file", path);
        else if (st.st_size < CAPTURE_HEADER_BYTES)
                code = ctl_fail(x, KVT_E_CORRUPT, "%s: it is no capture", path);
        if (!code) {
                void *p = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);

                if (p == MAP_FAILED)
                        code = ctl_fail(x, -errno, "cannot read %s", path);
                f.bytes = p;
                f.n_bytes = (size_t)st.st_size;
        }
        close(fd);
        if (!code && capture_decode(&f.head, f.bytes, f.n_bytes, f.n_bytes, &why)) {
                code = ctl_fail(x, KVT_E_CORRUPT, "%s: %s", path, why);
                capturefile_close(&f);
        }
        if (!code)
                *ret = f;
        return code;
}

void capturefile_close(struct capturefile *f)
{
        if (f->bytes)
                munmap((void *)(uintptr_t)f->bytes, f->n_bytes);
        *f = (struct capturefile){0};
}

const uint8_t *capturefile_part(const struct capturefile *f, uint32_t layer, enum capture_part part)
{
        return f->bytes + capture_offset(&f->head, layer, part);
}

bool capturefile_shape(const struct capturefile *f, uint32_t layer, enum capture_part part, uint32_t n, struct shape *ret)
{
        return shape_make(ret, part == CAPTURE_V ? KVT_ROLE_V : KVT_ROLE_K, f->head.dtype, f->head.n_kv_heads, n, f->head.head_dim,
                          2 * layer + (part == CAPTURE_V));
}

static size_t row_bytes(const struct shape *p)
{
        return (size_t)p->dim * p->elem_bytes;
}

void capturefile_take(const struct capturefile *f, const struct shape *p, const uint8_t *part, uint32_t first, uint8_t *dst)
{
        size_t row = row_bytes(p);

        for (size_t h = 0; h < p->heads; h++)
                memcpy(dst + h * p->tokens * row, part + (h * f->head.n_tokens + first) * row, p->tokens * row);
}

void capturefile_put(const struct capturefile *f, const struct shape *p, uint8_t *part, uint32_t first, const uint8_t *src)
{
        size_t row = row_bytes(p);

        for (size_t h = 0; h < p->heads; h++)
                memcpy(part + (h * f->head.n_tokens + first) * row, src + h * p->tokens * row, p->tokens * row);
}
