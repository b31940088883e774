/* See capture.h. */
#include <stdbool.h>
#include <string.h>

#include "libclient/codec/capture.h"
#include "libclient/codec/geometry.h"

static const char magic[8] = "kvtierKV";

enum { N_FIELDS = 9, FIELDS_AT = sizeof(magic) };

static uint32_t load_u32(const uint8_t *p)
{
        return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

void capture_encode(uint8_t dst[CAPTURE_HEADER_BYTES], const struct capture *c)
{
        const uint32_t fields[N_FIELDS] = {CAPTURE_VERSION, c->dtype,    c->q_dtype,  c->n_layers,    c->n_heads,
                                           c->n_kv_heads,   c->head_dim, c->n_tokens, c->chunk_tokens};

        memset(dst, 0, CAPTURE_HEADER_BYTES);
        memcpy(dst, magic, sizeof(magic));
        for (size_t i = 0; i < N_FIELDS; i++)
                for (unsigned j = 0; j < 4; j++)
                        dst[FIELDS_AT + 4 * i + j] = (uint8_t)(fields[i] >> 8 * j);
}

uint64_t capture_part_bytes(const struct capture *c, enum capture_part part)
{
        uint64_t heads = part == CAPTURE_Q ? c->n_heads : c->n_kv_heads;

        return heads * c->n_tokens * c->head_dim * geometry_dtype_bytes(part == CAPTURE_Q ? c->q_dtype : c->dtype);
}

uint64_t capture_offset(const struct capture *c, uint32_t layer, enum capture_part part)
{
        uint64_t q = capture_part_bytes(c, CAPTURE_Q), kv = capture_part_bytes(c, CAPTURE_K);

        return CAPTURE_HEADER_BYTES + layer * (q + 2 * kv) + (part == CAPTURE_Q ? 0 : part == CAPTURE_K ? q : q + kv);
}

static bool has_file_bytes(const struct capture *c, uint64_t n_file)
{
        uint64_t row = (uint64_t)c->n_heads * geometry_dtype_bytes(c->q_dtype) + 2ull * c->n_kv_heads * geometry_dtype_bytes(c->dtype), n;

        return !__builtin_mul_overflow(row, c->head_dim, &n) && !__builtin_mul_overflow(n, c->n_tokens, &n) &&
               !__builtin_mul_overflow(n, c->n_layers, &n) && !__builtin_add_overflow(n, (uint64_t)CAPTURE_HEADER_BYTES, &n) && n == n_file;
}

int capture_decode(struct capture *ret, const uint8_t *src, size_t n_src, uint64_t n_file, const char **ret_why)
{
        uint32_t f[N_FIELDS];
        struct capture c;

        *ret_why = NULL;
        if (n_src < CAPTURE_HEADER_BYTES || memcmp(src, magic, sizeof(magic)) != 0) {
                *ret_why = "it is no capture";
                return KVT_E_CORRUPT;
        }
        for (size_t i = 0; i < N_FIELDS; i++)
                f[i] = load_u32(src + FIELDS_AT + 4 * i);
        c = (struct capture){f[1], f[2], f[3], f[4], f[5], f[6], f[7], f[8]};
        if (f[0] != CAPTURE_VERSION)
                *ret_why = "a capture of another version";
        else if (!geometry_dtype_bytes(c.dtype) || !geometry_dtype_bytes(c.q_dtype))
                *ret_why = "a type of number that is not known";
        else if (!c.n_layers || !c.n_heads || !c.n_kv_heads || !c.head_dim || !c.n_tokens || !c.chunk_tokens)
                *ret_why = "a count is zero";
        else if (c.n_heads % c.n_kv_heads)
                *ret_why = "the KV heads do not divide the query heads";
        else if (!has_file_bytes(&c, n_file))
                *ret_why = "the file has another size than its header says";
        for (size_t i = FIELDS_AT + 4 * N_FIELDS; i < CAPTURE_HEADER_BYTES && !*ret_why; i++)
                if (src[i])
                        *ret_why = "bytes of the header that are zero in this version are not";
        if (*ret_why)
                return KVT_E_CORRUPT;
        *ret = c;
        return 0;
}
