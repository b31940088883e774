/* Codec 3: what differs from another block of the same tokens, which another batch shape, shard or LoRA computed (ZipLLM's BitX with KV).
 *
 * Payload: the other block's key (16 bytes) · zbf's payload of the plane XOR the other block's same plane. Equal signs and exponents become zeros, and the
 * last bits of mantissas stay. Whoever calls the decoder finds the base by the key and decodes it first; that a base has the right key is his business, a
 * wrong one gives wrong bytes, which the hash of the canonical bytes would show. */
#include <string.h>

#include "libclient/codec/codec.h"
#include "libclient/codec/xdelta.h"
#include "libclient/codec/zbf.h"

bool xdelta_base_key(const void *payload, size_t n, uint8_t ret[XDELTA_KEY_BYTES])
{
        if (n < XDELTA_KEY_BYTES)
                return false;
        memcpy(ret, payload, XDELTA_KEY_BYTES);
        return true;
}

static size_t bound(const struct codec_spec *s, const struct shape *p)
{
        return XDELTA_KEY_BYTES + zbf_most(p->n_bytes);
}

static size_t scratch_bytes(const struct codec_spec *s, const struct shape *p)
{
        return zbf_room(p->n_bytes);
}

static size_t encode(const struct codec_spec *s, const struct shape *p, const struct codec_input *in, uint8_t *restrict dst, void *scratch)
{
        size_t n;

        if (!in->base || !in->base_key)
                return 0;
        memcpy(dst, in->base_key, XDELTA_KEY_BYTES);
        n = zbf_code(p, in->bytes, in->base, dst + XDELTA_KEY_BYTES, scratch);
        return n ? XDELTA_KEY_BYTES + n : 0;
}

static int decode(const struct shape *p, const uint8_t *restrict src, size_t n_src, const void *base, void *restrict dst, void *scratch)
{
        if (n_src < XDELTA_KEY_BYTES || !base)
                return KVT_E_CORRUPT;
        return zbf_decode(p, src + XDELTA_KEY_BYTES, n_src - XDELTA_KEY_BYTES, base, dst, scratch);
}

const struct codec codec_xdelta = {
        .id = CODEC_XDELTA,
        .name = "xdelta",
        .summary = "lossless: the difference to another block of the same tokens",
        .flags = CODEC_LOSSLESS | CODEC_NEEDS_BASE,
        .bound = bound,
        .scratch = scratch_bytes,
        .encode = encode,
        .decode = decode,
};
