/* A part: the planes of a block, as a copy holds them, and the hints that came with it. Pure functions.
 *
 * planes[] has an entry for each plane of the geometry and one more, the hints'; payloads stand back to back in that order. Hints: a byte of
 * flags (1: protect, 2: scores), then a bit a token, lowest first (which tokens are protected; bits past the last token are 0), then a bf16 a
 * token (its importance), each if its flag is set. */
#pragma once

#include "libclient/codec/plane.h"

enum hint_flags {
        HINT_PROTECT = 1,
        HINT_SCORES = 2,
};

struct hints {
        const uint8_t *protect; /* a bit a token; NULL: none */
        const uint8_t *scores; /* a bf16 a token, unaligned; NULL: none */
};
/* Most bytes of hints of a block. */
static inline size_t hints_max(const struct geometry *g)
{
        return 1 + (g->block_tokens + 7u) / 8 + 2 * (size_t)g->block_tokens;
}
/* Writes hints of tokens [first, first + block_tokens) of a caller's arrays (either may be NULL) to dst, hints_max() bytes of room. Scores that are negative
 * or no numbers become 0. Returns the bytes written, which depend on the geometry and on which array is given alone; 0: neither is. */
size_t hints_encode(const struct geometry *g, const uint8_t *protect, const float *scores, size_t first, uint8_t *dst);
/* Foreign bytes; n 0: no hints. 0 or KVT_E_BAD_REQUEST. */
int hints_decode(const struct geometry *g, const uint8_t *p, size_t n, struct hints *ret);

/* Entry i of planes[] of a raw copy without hints has these bytes; the hints' has 0. */
static inline uint32_t part_raw_bytes(const struct geometry *g, uint32_t i)
{
        return i < g->n_planes ? (uint32_t)(g->offsets[i + 1] - g->offsets[i]) : 0;
}
/* Whether planes[] of n_planes entries and payload_bytes, from memory or disk, can be a copy of such a part: sizes add up, raw planes are as long as they must be
 * and coded ones no longer, errors are numbers, lossless codecs have none. Codecs are looked at, payloads are not. max_rel_l2: the space's bound. */
bool part_check(const struct geometry *g, const struct kvt_copy_plane *planes, uint32_t n_planes, uint64_t payload_bytes, float max_rel_l2);
/* All planes are raw: the payload is the part's canonical bytes, and then the hints. */
bool part_is_raw(const struct geometry *g, const struct kvt_copy_plane *planes);
/* All planes are as they were put once they are decoded. */
bool part_is_lossless(const struct geometry *g, const struct kvt_copy_plane *planes);
/* Where the payload of entry i starts. */
uint64_t part_offset(const struct kvt_copy_plane *planes, uint32_t i);
/* The planes' largest error. */
float part_max_rel_l2(const struct geometry *g, const struct kvt_copy_plane *planes);
/* Bytes of scratch to decode any of the planes, 64-byte aligned. */
size_t part_decode_scratch(const struct geometry *g, const struct kvt_copy_plane *planes);

/* Whether part_recode() would change anything: some plane is under another codec, or can be truncated. */
bool part_needs_work(const struct geometry *g, const struct codec_pair *to, float max_rel_l2, const struct kvt_copy_plane *planes,
                     const uint8_t *payload);

/* Room that part_recode() needs at dst, and at scratch (64-byte aligned). */
uint64_t part_recode_bound(const struct geometry *g, const struct codec_pair *to, const struct kvt_copy_plane *planes);
size_t part_recode_scratch(const struct geometry *g, const struct codec_pair *to, const struct kvt_copy_plane *planes);
struct recode_counts {
        uint32_t n_coded, n_fell_back; /* planes that were coded anew; of them, those that ended under another spec than was asked for */
};
/* Writes the copy with planes and payload anew under the codecs of `to`, within max_rel_l2 (0: lossless). Planes that are lossy already are only ever
 * truncated or kept, never coded anew, so errors do not add up; those of a codec asked for are kept. Hints are kept and heeded; the first n_exact tokens stay exact, too. Every payload's hash is checked
 * before it is used. Fills ret[n_planes + 1], which then passes part_check(), and *ret_bytes. 0 or KVT_E_CORRUPT. */
int part_recode(const struct geometry *g, const struct codec_pair *to, float max_rel_l2, const struct kvt_copy_plane *planes,
                const uint8_t *payload, uint32_t n_exact, uint8_t *dst, void *scratch, struct kvt_copy_plane *ret, uint64_t *ret_bytes,
                struct recode_counts *ret_counts);
