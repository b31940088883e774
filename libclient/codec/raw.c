/* Codec 0: a plane's payload is its canonical bytes. */
#include "libclient/codec/codec.h"
#include "libclient/codec/hash.h"

static size_t raw_bound(const struct geometry *g, size_t i_plane)
{
        return (size_t)(g->offsets[i_plane + 1] - g->offsets[i_plane]);
}

static size_t raw_encode(const struct geometry *g, size_t i_plane, void *restrict dst, const void *restrict src, uint64_t *ret_hash)
{
        size_t n = raw_bound(g, i_plane);

        *ret_hash = hash_copy(dst, src, n, i_plane);
        return n;
}

static int raw_decode(const struct geometry *g, size_t i_plane, void *restrict dst, const void *restrict src, size_t n_src,
                      uint64_t *ret_hash)
{
        if (n_src != raw_bound(g, i_plane))
                return KVT_E_CORRUPT;
        *ret_hash = hash_copy(dst, src, n_src, i_plane);
        return 0;
}

const struct codec codec_raw = {
        .id = 0,
        .name = "raw",
        .flags = CODEC_LOSSLESS | CODEC_ROW_ACCESS,
        .bound = raw_bound,
        .encode = raw_encode,
        .decode = raw_decode,
};
