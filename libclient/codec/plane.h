/* A plane of a copy: a payload under some codec, what keeps it within its bound, and how far it is from what was put.
 *
 * plane_encode() never fails: a spec that cannot code the plane, or not within the bound, gives way to the next better one of its codec, then to zbf, then
 * to raw. Tokens that are protected, or hold values that are not finite, are exact in every lossy payload: their rows are kept beside it. The error
 * is that of the bytes a reader gets: the payload is decoded again to measure it.
 *
 * A payload with PLANE_EXACT_ROWS, from its start: the codec's payload; the rows, [token][head], row bytes each; the tokens, u32 each, ascending;
 * n_tokens u32; bytes of the codec's payload u32. */
#pragma once

#include "libclient/codec/codec.h"
#include "proto/shm.h"

enum plane_flags {
        PLANE_EXACT_ROWS = 1,
};

struct plane_request {
        const struct codec_spec *spec;
        float max_rel_l2; /* most error allowed; 0: lossless; INFINITY: any */
        const uint8_t *protect; /* a bit a token, lowest first; NULL: none */
        const float *scores; /* of each token; NULL: not known */
        const void *base; /* for codecs that need one, with its key */
        const uint8_t *base_key;
};

/* Room that plane_encode() may need at dst, and at scratch (64-byte aligned), with these specs or what they give way to. */
size_t plane_bound(const struct shape *p, const struct codec_spec *s);
size_t plane_encode_scratch(const struct shape *p, const struct codec_spec *s);
/* Encodes src (canonical bytes, which must not change meanwhile). Fills ret: codec, flags, bytes, hash, errors; p->seed is the plane's number. Returns whether it is under
 * the spec that was asked for; false: it fell back. */
bool plane_encode(const struct shape *p, const struct plane_request *q, const void *src, uint8_t *dst, void *scratch,
                  struct kvt_copy_plane *ret);

/* Bytes of scratch to decode the plane, 64-byte aligned; 0: none, or the codec is unknown. */
size_t plane_decode_scratch(const struct shape *p, const struct kvt_copy_plane *c);
/* The payload of c->bytes at src -> canonical bytes at dst. The hash is the caller's business. base: the bytes xdelta was made against, or NULL. 0 or
 * KVT_E_CORRUPT. */
int plane_decode(const struct shape *p, const struct kvt_copy_plane *c, const void *src, const void *base, void *dst, void *scratch);
/* Rows of a head as the codec's decode_rows(). KVT_E_UNSUPPORTED: the codec has no row access. */
int plane_decode_rows(const struct shape *p, const struct kvt_copy_plane *c, const void *src, uint32_t head, const uint32_t *tokens,
                      size_t n, void *dst, void *scratch);
/* The spec of a plane, as far as its payload knows it, as codec_spec_format() has it; what is no payload: the codec's name. The codec is known. Returns ret. */
char *plane_describe(const struct shape *p, const struct kvt_copy_plane *c, const void *payload, char ret[CODEC_SPEC_MAX]);
/* Whether plane_shrink() would; ret gets the bytes and errors it would have. */
bool plane_shrinks(const struct shape *p, const struct codec_spec *to, float max_rel_l2, const uint8_t *payload, struct kvt_copy_plane *c);
/* Makes the plane at payload one of spec `to` by truncation, in place, if that makes it smaller and stays within max_rel_l2. False: it does not. */
bool plane_shrink(const struct shape *p, const struct codec_spec *to, float max_rel_l2, uint8_t *payload, struct kvt_copy_plane *c);

/* Error of y against x, canonical bytes of a plane both, as copies' headers give it: relative L2 (0 where both are equal, INFINITY where x is all zero and y
 * is not) and largest difference. Values that are not finite count as equal if their bits are, else both errors are INFINITY. */
void plane_measure(const struct shape *p, const void *x, const void *y, float *ret_rel_l2, float *ret_max_abs);
