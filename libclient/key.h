/* kvtier-keys(7): how a space's seed and a block's key are made. Pure functions. */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "libclient/codec/geometry.h"

struct key_seed {
        uint8_t bytes[16];
};

/* name_bytes and salt_bytes were checked by the caller. */
void key_seed(const struct geometry *g, const void *name, size_t name_bytes, const void *salt, size_t salt_bytes, struct key_seed *ret);
/* Key of one block: block_tokens ids, and those extras whose i_token lies in it, which is token i_first of the whole. */
void key_block(const struct key_seed *seed, const kvt_key *parent, const uint32_t *tokens, size_t block_tokens, const kvt_extra *extras,
               size_t n_extras, size_t i_first, kvt_key *ret);
