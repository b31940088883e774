/* zbf's coder, for the codecs that end in it. See zbf.c. */
#pragma once

#include "libclient/codec/codec.h"

/* Most bytes zbf_code() writes for a plane of n_bytes. */
size_t zbf_most(size_t n_bytes);
/* Bytes of scratch, 64-byte aligned, that zbf_code() and zbf_decode() need. */
size_t zbf_room(size_t n_bytes);
/* Codes src, or src ^ base if base is not NULL, of p->n_bytes both. Returns the bytes written at dst, or 0: the coder failed. */
size_t zbf_code(const struct shape *p, const uint8_t *src, const uint8_t *base, uint8_t *restrict dst, void *scratch);
/* And back: 0 or KVT_E_CORRUPT. base as it was given to zbf_code(). */
int zbf_decode(const struct shape *p, const uint8_t *restrict src, size_t n_src, const uint8_t *base, uint8_t *restrict dst, void *scratch);
