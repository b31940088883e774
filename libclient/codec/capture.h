/* Files of captured KV: what an engine computed for the tokens of one text, so that codecs can be tried on it. Pure functions over bytes.
 *
 * All numbers are little-endian. A header of 64 bytes: "kvtierKV", then u32 each: version (1), dtype of K and V, dtype of Q (enum kvt_dtype, none of
 * OPAQUE), layers, query heads, KV heads (they divide the query heads), elements of a head, tokens, tokens that were computed at once; zeros. Then for each layer Q
 * [query head][token][dim], K and V [KV head][token][dim], row-major, with no gaps; Q and K as attention multiplies them, after any rotation. */
#pragma once

#include <stddef.h>
#include <stdint.h>

enum { CAPTURE_HEADER_BYTES = 64, CAPTURE_VERSION = 1 };
enum capture_part { CAPTURE_Q, CAPTURE_K, CAPTURE_V };

struct capture {
        uint32_t dtype; /* of K and V */
        uint32_t q_dtype;
        uint32_t n_layers, n_heads, n_kv_heads, head_dim, n_tokens, chunk_tokens;
};

/* Of a capture that capture_decode() would take. */
void capture_encode(uint8_t dst[CAPTURE_HEADER_BYTES], const struct capture *c);
/* src holds the file's first n_src bytes; n_file is its size. 0, or KVT_E_CORRUPT with *ret_why, a static text. */
int capture_decode(struct capture *ret, const uint8_t *src, size_t n_src, uint64_t n_file, const char **ret_why);
/* Where a part of a layer starts in the file. layer n_layers, part Q: where the file ends. */
uint64_t capture_offset(const struct capture *c, uint32_t layer, enum capture_part part);
/* Bytes of a part of a layer. */
uint64_t capture_part_bytes(const struct capture *c, enum capture_part part);
