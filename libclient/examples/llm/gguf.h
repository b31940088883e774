/* Reader of GGUF version 3 files: metadata and tensor directory.
 *
 * Nothing in the file is trusted. gguf_parse() checks every count, length, type, offset and extent against the bytes that are there
 * and fails with a text that names what was wrong and where; what it allocates is bounded by the file's size. Names and
 * strings point into the file's bytes, are not terminated, and may hold any byte. */
#pragma once

#include <stddef.h>
#include <stdint.h>

enum { GGUF_ERROR_BYTES = 320, GGUF_MAX_ENTRIES = 65536, GGUF_MAX_DIMS = 4, GGUF_MAX_NAME = 65535 };

enum gguf_type {
        GGUF_U8 = 0,
        GGUF_I8 = 1,
        GGUF_U16 = 2,
        GGUF_I16 = 3,
        GGUF_U32 = 4,
        GGUF_I32 = 5,
        GGUF_F32 = 6,
        GGUF_BOOL = 7,
        GGUF_STRING = 8,
        GGUF_ARRAY = 9,
        GGUF_U64 = 10,
        GGUF_I64 = 11,
        GGUF_F64 = 12,
        GGUF_N_TYPES = 13,
};

struct gguf_string {
        const char *s;
        size_t n;
};

struct gguf_kv {
        struct gguf_string key;
        uint32_t type; /* enum gguf_type; of the elements, if it is an array */
        int is_array;
        uint64_t n_elems; /* 1 unless it is an array */
        const uint8_t *data;
};

struct gguf_tensor {
        struct gguf_string name;
        uint32_t n_dims;
        uint32_t type; /* known to quant_find() */
        uint64_t dims[GGUF_MAX_DIMS]; /* dims[0] is contiguous; unused ones are 1 */
        uint64_t n_bytes;
        const uint8_t *data;
};

struct gguf {
        const uint8_t *bytes; /* mapped by gguf_open(), borrowed by gguf_parse() */
        size_t n_bytes;
        int is_mapped;
        struct gguf_kv *kvs; /* sorted by key */
        size_t n_kvs;
        struct gguf_tensor *tensors; /* sorted by name */
        size_t n_tensors;
        char error[GGUF_ERROR_BYTES];
};

/* 0 or a negative errno, with the reason in g->error. bytes must stay until gguf_close(), which is to be called in either case. */
int gguf_open(struct gguf *g, const char *path);
int gguf_parse(struct gguf *g, const void *bytes, size_t n_bytes);
void gguf_close(struct gguf *g);

const struct gguf_kv *gguf_find(const struct gguf *g, const char *key);
const struct gguf_tensor *gguf_find_tensor(const struct gguf *g, const char *name);
/* Values of these kinds: 0, -ENOENT if the key is not there, -EINVAL (with g->error) if it has another type or is out of range. */
int gguf_get_u64(struct gguf *g, const char *key, uint64_t min, uint64_t max, uint64_t *ret);
int gguf_get_f32(struct gguf *g, const char *key, float *ret);
int gguf_get_string(struct gguf *g, const char *key, struct gguf_string *ret);
/* An array of strings: ret is allocated, *ret_n its length. */
int gguf_get_strings(struct gguf *g, const char *key, struct gguf_string **ret, size_t *ret_n);
/* Sets g->error (bytes that cannot be printed become '?') and returns r. */
__attribute__((format(printf, 3, 4))) int gguf_fail(struct gguf *g, int r, const char *format, ...);
