/* A codec turns the canonical bytes of a part's planes into a copy's payload and back. Pure functions, no I/O.
 *
 * The registry maps ids to codecs. Ids stand in copy headers and are never reused; an unknown id is refused (KVT_E_CORRUPT).
 * Decoders take hostile input. */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "libclient/codec/geometry.h"

enum codec_flags {
        CODEC_LOSSLESS = 1,
        CODEC_ROW_ACCESS = 2, /* any token of a head can be decoded alone */
};

struct codec {
        uint8_t id;
        const char *name;
        unsigned flags;
        /* Most bytes encode() may write for plane i_plane. */
        size_t (*bound)(const struct geometry *g, size_t i_plane);
        /* Encodes src (the plane's canonical bytes) to dst, which has room for bound() bytes, and hashes what it wrote at dst with
         * seed i_plane. src may be written by a hostile process meanwhile. Returns the bytes written. */
        size_t (*encode)(const struct geometry *g, size_t i_plane, void *restrict dst, const void *restrict src, uint64_t *ret_hash);
        /* Decodes n_src bytes at src to the plane's canonical bytes at dst; *ret_hash is the hash of what was read from src.
         * Returns 0 or KVT_E_CORRUPT. */
        int (*decode)(const struct geometry *g, size_t i_plane, void *restrict dst, const void *restrict src, size_t n_src,
                      uint64_t *ret_hash);
};

extern const struct codec codec_raw;
/* NULL: unknown */
const struct codec *codec_find(uint8_t id);
