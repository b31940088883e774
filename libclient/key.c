/* Keys: what kvtier-keys(7) says, in code.
 *
 * One BLAKE2b-128 a block over nothing but its token ids: the parent's key is the salt and the space's seed the personalisation, both
 * of which BLAKE2b takes in its parameter block, so that a block of 256 tokens costs exactly the 8 compressions of its 1,024 bytes
 * (a BLAKE2 key would cost a ninth, 14 % in a measurement). Any thread. */
#include <sodium.h>
#include <string.h>

#include "libclient/client.h"
#include "libclient/key.h"

static_assert(crypto_generichash_blake2b_SALTBYTES == sizeof(kvt_key), "the parent's key is the salt");
static_assert(crypto_generichash_blake2b_PERSONALBYTES == sizeof(struct key_seed), "the seed is the personalisation");

static void add_le32(crypto_generichash_blake2b_state *h, uint32_t x)
{
        uint8_t bytes[4] = {(uint8_t)x, (uint8_t)(x >> 8), (uint8_t)(x >> 16), (uint8_t)(x >> 24)};

        crypto_generichash_blake2b_update(h, bytes, sizeof(bytes));
}

void key_seed(const struct geometry *g, const void *name, size_t name_bytes, const void *salt, size_t salt_bytes, struct key_seed *ret)
{
        enum { FIDELITY_LOSSLESS = 0 };
        crypto_generichash_blake2b_state h;

        crypto_generichash_blake2b_init(&h, NULL, 0, sizeof(ret->bytes));
        crypto_generichash_blake2b_update(&h, (const uint8_t *)"kvtier-space-v1", 16);
        add_le32(&h, (uint32_t)name_bytes);
        crypto_generichash_blake2b_update(&h, name, name_bytes);
        add_le32(&h, (uint32_t)salt_bytes);
        if (salt_bytes)
                crypto_generichash_blake2b_update(&h, salt, salt_bytes);
        add_le32(&h, g->block_tokens);
        add_le32(&h, g->n_shards);
        add_le32(&h, FIDELITY_LOSSLESS);
        add_le32(&h, g->n_planes);
        for (uint32_t i = 0; i < g->n_planes; i++) {
                const kvt_plane *p = &g->planes[i];

                add_le32(&h, p->layer);
                add_le32(&h, p->role);
                add_le32(&h, p->dtype);
                add_le32(&h, p->heads);
                add_le32(&h, p->dim);
                add_le32(&h, p->opaque_bytes);
                add_le32(&h, p->window_tokens);
        }
        crypto_generichash_blake2b_final(&h, ret->bytes, sizeof(ret->bytes));
}

void key_block(const struct key_seed *seed, const kvt_key *parent, const uint32_t *tokens, size_t block_tokens, const kvt_extra *extras,
               size_t n_extras, size_t i_first, kvt_key *ret)
{
        static const kvt_key none;
        const uint8_t *salt = (parent ? parent : &none)->bytes;
        crypto_generichash_blake2b_state h;

        /* ids are little endian in memory: asserted in proto/shm.h */
        if (!n_extras) {
                crypto_generichash_blake2b_salt_personal(ret->bytes, sizeof(ret->bytes), (const uint8_t *)tokens, block_tokens * 4, NULL, 0,
                                                         salt, seed->bytes);
                return;
        }
        crypto_generichash_blake2b_init_salt_personal(&h, NULL, 0, sizeof(ret->bytes), salt, seed->bytes);
        crypto_generichash_blake2b_update(&h, (const uint8_t *)tokens, block_tokens * 4);
        for (size_t i = 0; i < n_extras; i++) {
                add_le32(&h, (uint32_t)(extras[i].i_token - i_first));
                add_le32(&h, (uint32_t)extras[i].n_bytes);
                if (extras[i].n_bytes)
                        crypto_generichash_blake2b_update(&h, extras[i].bytes, extras[i].n_bytes);
        }
        crypto_generichash_blake2b_final(&h, ret->bytes, sizeof(ret->bytes));
}

int kvt_keys(const kvt_space *s, const kvt_key *parent, const uint32_t *tokens, size_t n_tokens, const kvt_extra *extras, size_t n_extras,
             kvt_key *ret_keys, size_t cap, size_t *ret_n)
{
        size_t block_tokens, n, i_extra = 0;
        kvt_key previous;

        if (!s || !ret_n || (n_tokens && !tokens) || (cap && !ret_keys) || (n_extras && !extras))
                return KVT_E_BAD_REQUEST;
        for (size_t i = 0; i < n_extras; i++)
                if ((extras[i].n_bytes && !extras[i].bytes) || extras[i].n_bytes > UINT32_MAX || extras[i].i_token >= n_tokens ||
                    (i && extras[i].i_token < extras[i - 1].i_token))
                        return KVT_E_BAD_REQUEST;

        block_tokens = s->geometry.block_tokens;
        n = n_tokens / block_tokens;
        if (n > cap)
                n = cap;
        if (parent)
                previous = *parent; /* it may lie in ret_keys */
        for (size_t i = 0; i < n; i++) {
                size_t i_first = i * block_tokens, n_here = 0;

                while (i_extra + n_here < n_extras && extras[i_extra + n_here].i_token < i_first + block_tokens)
                        n_here++;
                key_block(&s->seed, i || parent ? &previous : NULL, tokens + i_first, block_tokens, extras + i_extra, n_here, i_first,
                          &ret_keys[i]);
                previous = ret_keys[i];
                i_extra += n_here;
        }
        *ret_n = n;
        return 0;
}
