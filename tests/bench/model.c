/* The model and the engine that the bandwidth rows pretend to be. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "tests/bench/common.h"

static uint64_t next_random(uint64_t *state)
{
        uint64_t x = *state += 0x9E3779B97F4A7C15u;

        x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9u;
        x = (x ^ x >> 27) * 0x94D049BB133111EBu;
        return x ^ x >> 31;
}

static kvt_space *open_space(kvt *c, const char *name, uint32_t block_tokens, const kvt_plane *planes, size_t n_planes)
{
        kvt_space_config config = {.struct_size = sizeof(config),
                                   .name = name,
                                   .block_tokens = block_tokens,
                                   .n_shards = 1,
                                   .planes = planes,
                                   .n_planes = n_planes};
        kvt_space *s;

        must(kvt_space_open(c, &config, &s), "kvt_space_open");
        return s;
}

kvt_space *model_open(kvt *c)
{
        kvt_plane planes[MODEL_PLANES];

        for (uint32_t i = 0; i < MODEL_PLANES; i++)
                planes[i] = (kvt_plane){.layer = i / 2,
                                        .role = i % 2 ? KVT_ROLE_V : KVT_ROLE_K,
                                        .dtype = KVT_DTYPE_F16,
                                        .heads = MODEL_HEADS,
                                        .dim = MODEL_DIM};
        return open_space(c, "bench-model", MODEL_TOKENS, planes, MODEL_PLANES);
}

kvt_space *tiny_open(kvt *c, uint32_t block_tokens, uint32_t opaque_bytes)
{
        kvt_plane plane = {.role = KVT_ROLE_LATENT, .dtype = KVT_DTYPE_OPAQUE, .heads = 1, .opaque_bytes = opaque_bytes};

        return open_space(c, "bench-tiny", block_tokens, &plane, 1);
}

void prompt_keys(const kvt_space *s, uint32_t block_tokens, uint64_t seed, kvt_key *ret, size_t n)
{
        uint32_t *tokens = malloc(block_tokens * sizeof(*tokens));
        size_t one;

        if (!tokens)
                die("no memory");
        for (size_t i = 0; i < n; i++) {
                for (uint32_t t = 0; t < block_tokens; t++)
                        tokens[t] = (uint32_t)next_random(&seed);
                must(kvt_keys(s, i ? &ret[i - 1] : NULL, tokens, block_tokens, NULL, 0, &ret[i], 1, &one), "kvt_keys");
        }
        free(tokens);
}

void kv_init(struct engine_kv *k, size_t n_pages, uint64_t seed)
{
        enum { HUGE = 2 << 20 };
        uint8_t *room;

        k->n_pages = n_pages;
        k->bytes = n_pages * MODEL_BLOCK_BYTES;
        room = mmap(NULL, k->bytes + HUGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        k->table = malloc(2 * n_pages * sizeof(*k->table));
        if (room == MAP_FAILED || !k->table)
                die("no memory");
        k->base = room + (-(uintptr_t)room & (HUGE - 1));
        madvise(k->base, k->bytes, MADV_HUGEPAGE); /* small pages serve as well */
        for (size_t i = 0; i < k->bytes / sizeof(uint64_t); i++)
                ((uint64_t *)(void *)k->base)[i] = next_random(&seed);
        for (size_t i = 0; i < n_pages; i++) {
                size_t j = next_random(&seed) % (i + 1);

                k->table[i] = k->table[j];
                k->table[j] = (uint32_t)i;
        }
        memcpy(k->table + n_pages, k->table, n_pages * sizeof(*k->table));
        for (size_t i = 0; i < MODEL_PLANES; i++)
                k->planes[i] = (kvt_plane_view){.base = k->base + i * n_pages * MODEL_PLANE_BYTES,
                                                .token_stride = MODEL_DIM * 2,
                                                .head_stride = MODEL_DIM * 2 * MODEL_TOKENS,
                                                .page_stride = MODEL_PLANE_BYTES};
}

uint8_t *kv_plane(const struct engine_kv *k, size_t at, size_t i, unsigned plane)
{
        return k->base + (plane * k->n_pages + k->table[at % k->n_pages + i]) * MODEL_PLANE_BYTES;
}

kvt_view kv_view(const struct engine_kv *k, size_t at, size_t n)
{
        if (n > k->n_pages)
                die("more blocks than pages");
        return (kvt_view){.planes = k->planes,
                          .n_planes = MODEL_PLANES,
                          .page_table = k->table + at % k->n_pages,
                          .n_pages = n,
                          .page_tokens = MODEL_TOKENS};
}
