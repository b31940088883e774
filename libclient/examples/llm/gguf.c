/* GGUF version 3, little endian, after the specification in the ggml project (docs/gguf.md):
 *
 *     u32 magic "GGUF" · u32 version · u64 n_tensors · u64 n_kvs
 *     n_kvs     x { string key · u32 type · value }           string: u64 length, bytes; array: u32 type, u64 count, elements
 *     n_tensors x { string name · u32 n_dims · u64 dims[] · u32 type · u64 offset }
 *     padding to general.alignment (32) · tensor data, each tensor at an aligned offset from here
 *
 * All reads go through struct cursor, which cannot pass the end. Called on the main thread before the model runs. */
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "libclient/examples/llm/gguf.h"
#include "libclient/examples/llm/quant.h"

enum { MAX_NESTING = 4, DEFAULT_ALIGNMENT = 32, MAX_ALIGNMENT = 1 << 20 };

static const uint8_t type_bytes[GGUF_N_TYPES] = {
        [GGUF_U8] = 1,  [GGUF_I8] = 1,   [GGUF_U16] = 2, [GGUF_I16] = 2, [GGUF_U32] = 4, [GGUF_I32] = 4,
        [GGUF_F32] = 4, [GGUF_BOOL] = 1, [GGUF_U64] = 8, [GGUF_I64] = 8, [GGUF_F64] = 8,
};

struct cursor {
        const uint8_t *p;
        const uint8_t *end;
};

int gguf_fail(struct gguf *g, int r, const char *format, ...)
{
        va_list ap;

        va_start(ap, format);
        vsnprintf(g->error, sizeof(g->error), format, ap);
        va_end(ap);
        for (char *c = g->error; *c; c++)
                if (*c < 32 || *c > 126)
                        *c = '?';
        return r;
}

static int take(struct cursor *c, size_t n, void *ret)
{
        if ((size_t)(c->end - c->p) < n)
                return -EINVAL;
        memcpy(ret, c->p, n);
        c->p += n;
        return 0;
}

static int take_string(struct cursor *c, struct gguf_string *ret)
{
        uint64_t n;

        if (take(c, 8, &n) || n > (size_t)(c->end - c->p))
                return -EINVAL;
        *ret = (struct gguf_string){(const char *)c->p, n};
        c->p += n;
        return 0;
}

/* Passes over n values of a type. */
static int skip_values(struct cursor *c, uint32_t type, uint64_t n, unsigned depth)
{
        size_t left = (size_t)(c->end - c->p);

        if (type >= GGUF_N_TYPES)
                return -EINVAL;
        if (type_bytes[type]) {
                if (n > left / type_bytes[type])
                        return -EINVAL;
                c->p += n * type_bytes[type];
                return 0;
        }
        if (n > left / 8 || depth > MAX_NESTING)
                return -EINVAL;
        for (uint64_t i = 0; i < n; i++) {
                struct gguf_string s;
                uint32_t inner;
                uint64_t count;

                if (type == GGUF_STRING ? take_string(c, &s)
                                        : take(c, 4, &inner) || take(c, 8, &count) || skip_values(c, inner, count, depth + 1))
                        return -EINVAL;
        }
        return 0;
}

static int read_kv(struct gguf *g, struct cursor *c, size_t i, struct gguf_kv *ret)
{
        struct gguf_kv kv = {.n_elems = 1};
        size_t at = (size_t)(c->p - g->bytes);

        if (take_string(c, &kv.key) || kv.key.n == 0 || kv.key.n > GGUF_MAX_NAME)
                return gguf_fail(g, -EINVAL, "metadata entry %zu at byte %zu: its key is empty, too long or passes the end of the file", i,
                                 at);
        if (take(c, 4, &kv.type) || kv.type >= GGUF_N_TYPES)
                return gguf_fail(g, -EINVAL, "metadata '%.*s' at byte %zu: unknown type", (int)kv.key.n, kv.key.s, at);
        if (kv.type == GGUF_ARRAY) {
                kv.is_array = 1;
                if (take(c, 4, &kv.type) || kv.type >= GGUF_N_TYPES || take(c, 8, &kv.n_elems))
                        return gguf_fail(g, -EINVAL, "metadata '%.*s' at byte %zu: bad array", (int)kv.key.n, kv.key.s, at);
        }
        kv.data = c->p;
        if (skip_values(c, kv.type, kv.n_elems, 0))
                return gguf_fail(g, -EINVAL, "metadata '%.*s' at byte %zu: its value passes the end of the file or is nested too deep",
                                 (int)kv.key.n, kv.key.s, at);
        *ret = kv;
        return 0;
}

/* Leaves the offset, which can only be checked once the start of the data is known, in *ret_offset. */
static int read_tensor(struct gguf *g, struct cursor *c, size_t i, struct gguf_tensor *ret, uint64_t *ret_offset)
{
        struct gguf_tensor t = {.dims = {1, 1, 1, 1}};
        size_t at = (size_t)(c->p - g->bytes);
        const struct quant *q;
        uint64_t n = 1;

        if (take_string(c, &t.name) || t.name.n == 0 || t.name.n > GGUF_MAX_NAME)
                return gguf_fail(g, -EINVAL, "tensor %zu at byte %zu: its name is empty, too long or passes the end of the file", i, at);
        if (take(c, 4, &t.n_dims) || t.n_dims < 1 || t.n_dims > GGUF_MAX_DIMS)
                return gguf_fail(g, -EINVAL, "tensor '%.*s': not 1 to %d dimensions", (int)t.name.n, t.name.s, GGUF_MAX_DIMS);
        for (uint32_t d = 0; d < t.n_dims; d++)
                if (take(c, 8, &t.dims[d]) || t.dims[d] == 0 || __builtin_mul_overflow(n, t.dims[d], &n) || n > INT64_MAX / 8)
                        return gguf_fail(g, -EINVAL, "tensor '%.*s': dimension %u is zero or too large", (int)t.name.n, t.name.s, d);
        if (take(c, 4, &t.type) || take(c, 8, ret_offset))
                return gguf_fail(g, -EINVAL, "tensor '%.*s': its entry passes the end of the file", (int)t.name.n, t.name.s);
        q = quant_find(t.type);
        if (!q)
                return gguf_fail(g, -EINVAL, "tensor '%.*s': type %u is not one this program reads", (int)t.name.n, t.name.s, t.type);
        if (t.dims[0] % q->block_elems)
                return gguf_fail(g, -EINVAL, "tensor '%.*s': rows of %llu are not whole %s blocks of %u", (int)t.name.n, t.name.s,
                                 (unsigned long long)t.dims[0], q->name, q->block_elems);
        t.n_bytes = n / q->block_elems * q->block_bytes;
        *ret = t;
        return 0;
}

static int compare_strings(struct gguf_string a, struct gguf_string b)
{
        int r = memcmp(a.s, b.s, a.n < b.n ? a.n : b.n);
        return r ? r : (a.n > b.n) - (a.n < b.n);
}

static int compare_kvs(const void *a, const void *b)
{
        return compare_strings(((const struct gguf_kv *)a)->key, ((const struct gguf_kv *)b)->key);
}

static int compare_tensors(const void *a, const void *b)
{
        return compare_strings(((const struct gguf_tensor *)a)->name, ((const struct gguf_tensor *)b)->name);
}

static int read_tensors(struct gguf *g, struct cursor *c)
{
        uint64_t offset = 0, alignment = DEFAULT_ALIGNMENT;
        size_t start, left, sum = 0;
        int r = gguf_get_u64(g, "general.alignment", 8, MAX_ALIGNMENT, &alignment);

        if (r && r != -ENOENT)
                return r;
        if (alignment & (alignment - 1))
                return gguf_fail(g, -EINVAL, "general.alignment: %llu is not a power of two", (unsigned long long)alignment);
        for (size_t i = 0; i < g->n_tensors; i++) {
                r = read_tensor(g, c, i, &g->tensors[i], &offset);
                if (r)
                        return r;
                if (offset > g->n_bytes || offset % alignment)
                        return gguf_fail(g, -EINVAL, "tensor '%.*s': offset %llu is past the end of the file or not a multiple of %llu",
                                         (int)g->tensors[i].name.n, g->tensors[i].name.s, (unsigned long long)offset,
                                         (unsigned long long)alignment);
                g->tensors[i].data = g->bytes + offset; /* from the start of the data, which comes now */
        }
        start = ((size_t)(c->p - g->bytes) + alignment - 1) & ~(alignment - 1);
        left = start < g->n_bytes ? g->n_bytes - start : 0;
        for (size_t i = 0; i < g->n_tensors; i++) {
                struct gguf_tensor *t = &g->tensors[i];

                offset = (uint64_t)(t->data - g->bytes);
                if (offset > left || t->n_bytes > left - offset)
                        return gguf_fail(g, -EINVAL, "tensor '%.*s': %llu bytes at %llu pass the end of the file (%zu bytes of data)",
                                         (int)t->name.n, t->name.s, (unsigned long long)t->n_bytes, (unsigned long long)offset, left);
                if (t->n_bytes > left - sum) /* what users allocate for tensors is bounded by the file's size only if none overlap */
                        return gguf_fail(g, -EINVAL, "tensor '%.*s' overlaps another", (int)t->name.n, t->name.s);
                sum += t->n_bytes;
                t->data += start;
        }
        qsort(g->tensors, g->n_tensors, sizeof(*g->tensors), compare_tensors);
        for (size_t i = 1; i < g->n_tensors; i++)
                if (!compare_tensors(&g->tensors[i - 1], &g->tensors[i]))
                        return gguf_fail(g, -EINVAL, "tensor '%.*s' is there twice", (int)g->tensors[i].name.n, g->tensors[i].name.s);
        return 0;
}

int gguf_parse(struct gguf *g, const void *bytes, size_t n_bytes)
{
        struct cursor c = {bytes, (const uint8_t *)bytes + n_bytes};
        uint32_t magic, version;
        uint64_t n_tensors, n_kvs;
        int r;

        *g = (struct gguf){.bytes = bytes, .n_bytes = n_bytes};
        if (take(&c, 4, &magic) || magic != 0x46554747)
                return gguf_fail(g, -EINVAL, "not a GGUF file (its first bytes are not \"GGUF\")");
        if (take(&c, 4, &version) || version != 3)
                return gguf_fail(g, -EINVAL, "GGUF version is not 3");
        if (take(&c, 8, &n_tensors) || take(&c, 8, &n_kvs))
                return gguf_fail(g, -EINVAL, "the header is truncated");
        /* an entry has at least 13 bytes, a tensor at least 33 */
        if (n_kvs > GGUF_MAX_ENTRIES || n_tensors > GGUF_MAX_ENTRIES || n_kvs * 13 + n_tensors * 33 > (size_t)(c.end - c.p))
                return gguf_fail(g, -EINVAL, "%llu metadata entries and %llu tensors are more than the file can hold or than %d",
                                 (unsigned long long)n_kvs, (unsigned long long)n_tensors, GGUF_MAX_ENTRIES);
        g->kvs = calloc(n_kvs + 1, sizeof(*g->kvs));
        g->tensors = calloc(n_tensors + 1, sizeof(*g->tensors));
        if (!g->kvs || !g->tensors)
                return gguf_fail(g, -ENOMEM, "out of memory");
        for (; g->n_kvs < n_kvs; g->n_kvs++) {
                r = read_kv(g, &c, g->n_kvs, &g->kvs[g->n_kvs]);
                if (r)
                        return r;
        }
        qsort(g->kvs, g->n_kvs, sizeof(*g->kvs), compare_kvs);
        for (size_t i = 1; i < g->n_kvs; i++)
                if (!compare_kvs(&g->kvs[i - 1], &g->kvs[i]))
                        return gguf_fail(g, -EINVAL, "metadata '%.*s' is there twice", (int)g->kvs[i].key.n, g->kvs[i].key.s);
        g->n_tensors = n_tensors;
        return read_tensors(g, &c);
}

int gguf_open(struct gguf *g, const char *path)
{
        int fd = open(path, O_RDONLY | O_CLOEXEC), r = 0;
        struct stat st = {0};
        void *p = MAP_FAILED;

        *g = (struct gguf){0};
        if (fd < 0 || fstat(fd, &st) < 0)
                r = gguf_fail(g, -errno, "%s", strerror(errno));
        else if (!S_ISREG(st.st_mode) || st.st_size < 24)
                r = gguf_fail(g, -EINVAL, "not a regular file of at least 24 bytes");
        else if ((p = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0)) == MAP_FAILED)
                r = gguf_fail(g, -errno, "mmap: %s", strerror(errno));
        if (fd >= 0)
                close(fd);
        if (r)
                return r;
        r = gguf_parse(g, p, (size_t)st.st_size);
        g->is_mapped = 1;
        return r;
}

void gguf_close(struct gguf *g)
{
        if (g->is_mapped)
                munmap((void *)g->bytes, g->n_bytes);
        free(g->kvs);
        free(g->tensors);
        *g = (struct gguf){0};
}

const struct gguf_kv *gguf_find(const struct gguf *g, const char *key)
{
        struct gguf_kv wanted = {.key = {key, strlen(key)}};
        return bsearch(&wanted, g->kvs, g->n_kvs, sizeof(wanted), compare_kvs);
}

const struct gguf_tensor *gguf_find_tensor(const struct gguf *g, const char *name)
{
        struct gguf_tensor wanted = {.name = {name, strlen(name)}};
        return bsearch(&wanted, g->tensors, g->n_tensors, sizeof(wanted), compare_tensors);
}

int gguf_get_u64(struct gguf *g, const char *key, uint64_t min, uint64_t max, uint64_t *ret)
{
        const struct gguf_kv *kv = gguf_find(g, key);
        uint64_t v = 0;

        if (!kv)
                return gguf_fail(g, -ENOENT, "metadata '%s' is missing", key);
        if (kv->is_array || kv->type == GGUF_F32 || kv->type == GGUF_F64 || kv->type == GGUF_STRING)
                return gguf_fail(g, -EINVAL, "metadata '%s' is not an integer", key);
        memcpy(&v, kv->data, type_bytes[kv->type]);
        if (v < min || v > max)
                return gguf_fail(g, -EINVAL, "metadata '%s': %llu is not within %llu and %llu", key, (unsigned long long)v,
                                 (unsigned long long)min, (unsigned long long)max);
        *ret = v;
        return 0;
}

int gguf_get_f32(struct gguf *g, const char *key, float *ret)
{
        const struct gguf_kv *kv = gguf_find(g, key);

        if (!kv)
                return gguf_fail(g, -ENOENT, "metadata '%s' is missing", key);
        if (kv->is_array || kv->type != GGUF_F32)
                return gguf_fail(g, -EINVAL, "metadata '%s' is not a 32-bit float", key);
        memcpy(ret, kv->data, 4);
        return 0;
}

int gguf_get_string(struct gguf *g, const char *key, struct gguf_string *ret)
{
        const struct gguf_kv *kv = gguf_find(g, key);
        struct cursor c = {kv ? kv->data : NULL, g->bytes + g->n_bytes};

        if (!kv)
                return gguf_fail(g, -ENOENT, "metadata '%s' is missing", key);
        if (kv->is_array || kv->type != GGUF_STRING || take_string(&c, ret))
                return gguf_fail(g, -EINVAL, "metadata '%s' is not a string", key);
        return 0;
}

int gguf_get_strings(struct gguf *g, const char *key, struct gguf_string **ret, size_t *ret_n)
{
        const struct gguf_kv *kv = gguf_find(g, key);
        struct cursor c = {kv ? kv->data : NULL, g->bytes + g->n_bytes};
        struct gguf_string *s;

        if (!kv)
                return gguf_fail(g, -ENOENT, "metadata '%s' is missing", key);
        if (!kv->is_array || kv->type != GGUF_STRING)
                return gguf_fail(g, -EINVAL, "metadata '%s' is not an array of strings", key);
        s = calloc(kv->n_elems + 1, sizeof(*s));
        if (!s)
                return gguf_fail(g, -ENOMEM, "out of memory");
        for (uint64_t i = 0; i < kv->n_elems; i++)
                if (take_string(&c, &s[i])) {
                        free(s);
                        return gguf_fail(g, -EINVAL, "metadata '%s': the file changed while it was read", key);
                }
        *ret = s;
        *ret_n = kv->n_elems;
        return 0;
}
