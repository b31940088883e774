/* What the files of the format share. */
#pragma once

#include "libclient/codec/format.h"

/* What a record's header and its footer entry both say. */
struct record_common {
        const uint8_t *key, *parent; /* 16 bytes each */
        uint64_t n_pages, raw_bytes;
        uint32_t flags;
        float max_rel_l2;
        uint8_t type, codec, shard, n_shards;
};
/* The type is known, and the rest is possible for it. */
bool format_common_ok(const struct record_common *c);
/* A measured error: finite, not negative. */
bool format_error_ok(float rel_l2);
bool format_all_zero(const void *p, uint64_t n);
/* The hash of n bytes, of which the 8 at hash_at count as zeros. */
uint64_t format_hash(const void *p, uint64_t n, uint64_t hash_at, uint64_t seed);
