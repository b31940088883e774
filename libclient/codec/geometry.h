/* The shape of a part: planes, sizes and offsets. Pure functions; both sides of the socket use them. */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "include/kvtier.h"

struct geometry {
        uint32_t block_tokens;
        uint32_t n_shards;
        uint32_t n_planes;
        uint64_t part_bytes;
        kvt_plane *planes; /* owned */
        uint64_t *offsets; /* owned; n_planes + 1 */
};

/* Bytes of an element; 0 for OPAQUE and for unknown types. */
uint32_t geometry_dtype_bytes(uint32_t dtype);
/* Bytes of one head's row of one token; for OPAQUE planes the bytes of a token, for STATE those of a block. */
uint64_t geometry_row_bytes(const kvt_plane *p);
/* Checks foreign values and copies them. Returns 0; KVT_E_BAD_REQUEST with *ret_why a static text; or KVT_E_NO_MEMORY.
 * A part is at most 4 GiB - 1 MiB. */
int geometry_init(struct geometry *g, uint32_t block_tokens, uint32_t n_shards, const kvt_plane *planes, size_t n_planes,
                  const char **ret_why);
void geometry_deinit(struct geometry *g);
int geometry_equal(const struct geometry *a, const struct geometry *b);
