/* See geometry.h. Every value may come from another process: nothing is believed before it is checked. */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "libclient/codec/geometry.h"

enum {
        TOKENS_MAX = 65536,
        SHARDS_MAX = 64,
        PLANES_MAX = 1024,
};
static const uint64_t part_max = (4096ull - 1) * 1024 * 1024;

uint32_t geometry_dtype_bytes(uint32_t dtype)
{
        switch (dtype) {
        case KVT_DTYPE_F32:
                return 4;
        case KVT_DTYPE_F16:
        case KVT_DTYPE_BF16:
                return 2;
        case KVT_DTYPE_FP8:
        case KVT_DTYPE_INT8:
                return 1;
        default:
                return 0;
        }
}

uint64_t geometry_row_bytes(const kvt_plane *p)
{
        return p->dtype == KVT_DTYPE_OPAQUE ? p->opaque_bytes : (uint64_t)p->dim * geometry_dtype_bytes(p->dtype);
}

static const char *plane_why_bad(const kvt_plane *p)
{
        if (p->role > KVT_ROLE_INDEXER)
                return "unknown role of a plane";
        if (p->dtype > KVT_DTYPE_OPAQUE)
                return "unknown dtype of a plane";
        if (p->dtype == KVT_DTYPE_OPAQUE) {
                if (!p->opaque_bytes || p->heads != 1 || p->dim)
                        return "an opaque plane has opaque_bytes, 1 head and no dim";
        } else {
                if (p->opaque_bytes)
                        return "opaque_bytes belongs to opaque planes only";
                if (!p->heads || !p->dim)
                        return "a plane without heads or dim";
        }
        if (p->role == KVT_ROLE_STATE && p->dtype != KVT_DTYPE_OPAQUE)
                return "a state plane is opaque";
        if (p->role == KVT_ROLE_LATENT && p->heads != 1)
                return "a latent plane has 1 head";
        return NULL;
}

static int plane_bytes(const kvt_plane *p, uint32_t block_tokens, uint64_t *ret)
{
        uint64_t n = geometry_row_bytes(p);

        if (__builtin_mul_overflow(n, p->heads, &n))
                return -1;
        if (p->role != KVT_ROLE_STATE && __builtin_mul_overflow(n, block_tokens, &n))
                return -1;
        *ret = n;
        return 0;
}

int geometry_init(struct geometry *g, uint32_t block_tokens, uint32_t n_shards, const kvt_plane *planes, size_t n_planes,
                  const char **ret_why)
{
        kvt_plane *copy;
        uint64_t *offsets, total = 0, n;
        const char *why = NULL;

        if (block_tokens < 1 || block_tokens > TOKENS_MAX)
                why = "block_tokens must be 1 to 65536";
        else if (n_shards < 1 || n_shards > SHARDS_MAX)
                why = "n_shards must be 1 to 64";
        else if (!planes || n_planes < 1 || n_planes > PLANES_MAX)
                why = "a space has 1 to 1024 planes";
        if (why) {
                *ret_why = why;
                return KVT_E_BAD_REQUEST;
        }

        copy = malloc(n_planes * sizeof(*copy));
        offsets = malloc((n_planes + 1) * sizeof(*offsets));
        if (!copy || !offsets) {
                free(copy);
                free(offsets);
                return KVT_E_NO_MEMORY;
        }
        memcpy(copy, planes, n_planes * sizeof(*copy));
        for (size_t i = 0; i < n_planes && !why; i++) {
                offsets[i] = total;
                why = plane_why_bad(&copy[i]);
                if (!why && (plane_bytes(&copy[i], block_tokens, &n) < 0 || n > part_max || (total += n) > part_max))
                        why = "a part is larger than 4 GiB - 1 MiB";
        }
        if (why) {
                free(copy);
                free(offsets);
                *ret_why = why;
                return KVT_E_BAD_REQUEST;
        }
        offsets[n_planes] = total;
        *g = (struct geometry){.block_tokens = block_tokens,
                               .n_shards = n_shards,
                               .n_planes = (uint32_t)n_planes,
                               .part_bytes = total,
                               .planes = copy,
                               .offsets = offsets};
        return 0;
}

void geometry_deinit(struct geometry *g)
{
        free(g->planes);
        free(g->offsets);
        *g = (struct geometry){0};
}

int geometry_equal(const struct geometry *a, const struct geometry *b)
{
        static_assert(sizeof(kvt_plane) == 7 * sizeof(uint32_t), "planes have no padding and compare as bytes");

        return a->block_tokens == b->block_tokens && a->n_shards == b->n_shards && a->n_planes == b->n_planes &&
               !memcmp(a->planes, b->planes, a->n_planes * sizeof(*a->planes));
}
