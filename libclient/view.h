/* Copies between a block's canonical bytes and an engine's tensors, as a kvt_view describes them. Pure functions. */
#pragma once

#include <stdbool.h>

#include "libclient/codec/geometry.h"

/* Whether v has what blocks first_block .. first_block + n_blocks need: 0 or KVT_E_BAD_REQUEST. */
int view_check(const struct geometry *g, const kvt_view *v, size_t first_block, size_t n_blocks);
/* A copy in one allocation, to free(); NULL: out of memory. */
kvt_view *view_dup(const kvt_view *v);
/* Reads block i_block out of the view into dst (part_bytes, canonical). */
void view_gather(const struct geometry *g, const kvt_view *v, size_t i_block, void *restrict dst);
/* Writes one plane of block i_block, those tokens of it that lie at or past min_token, from its canonical bytes. */
void view_scatter_plane(const struct geometry *g, const kvt_view *v, size_t i_plane, size_t i_block, size_t min_token,
                        const void *restrict src);
/* The same for n_planes planes, whose bytes follow each other at src; windowed ones from window_end - window_tokens on (window_end 0: whole). */
void view_scatter_planes(const struct geometry *g, const kvt_view *v, size_t i_block, size_t window_end, uint32_t first_plane,
                         uint32_t n_planes, const void *restrict src);
/* For all planes. */
void view_scatter(const struct geometry *g, const kvt_view *v, size_t i_block, size_t window_end, const void *restrict src);
/* First token of a plane that is wanted. */
size_t view_min_token(const kvt_plane *p, size_t window_end);
/* Where the whole plane of that block lies in one piece, in canonical layout; NULL: it does not. */
void *view_contiguous(const struct geometry *g, const kvt_view *v, size_t i_plane, size_t i_block);
