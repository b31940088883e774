/* Blocks whose every byte follows from their key, so that any process can tell right bytes from wrong ones.
 *
 * A part has two planes of opaque bytes and 16 tokens. A *flavour* is another set of bytes for the same key, as another engine would have
 * computed them. */
#pragma once

#include "tests/lib/check.h"
#include "tests/lib/daemon.h"

enum { PATTERN_TOKENS = 16, PATTERN_PLANES = 2, PATTERN_FLAVOURS = 4 };
enum { PATTERN_ANY = -1, PATTERN_0_OR_1 = -2, PATTERN_2_OR_3 = -3 }; /* in place of a flavour */

void pattern_planes(kvt_plane planes[PATTERN_PLANES], size_t part_bytes);
/* The i-th key of a chain: as good as random, the same everywhere. */
kvt_key pattern_key(uint64_t chain, uint64_t i);
void pattern_keys(uint64_t chain, uint64_t first, size_t n, kvt_key *ret);
/* A part as it lies in staging and in slabs. */
void pattern_fill(void *part, size_t part_bytes, const kvt_key *key, uint32_t shard, int flavour);
/* Flavour found (the one asked for, or one of those), or -1: these are not the bytes of that key. */
int pattern_find(const void *part, size_t part_bytes, const kvt_key *key, uint32_t shard, int flavour);

/* through the library */
kvt *pattern_open(const struct daemon *d, uint32_t flags);
struct pattern_space {
        kvt *c;
        kvt_space *s;
        size_t part_bytes;
        uint32_t shard;
};
struct pattern_config {
        const char *name; /* NULL: "model" */
        const char *salt;
        size_t part_bytes; /* 0: 4096; a multiple of 32 */
        uint32_t n_shards, shard; /* n_shards 0: 1 */
};
int pattern_space_open(struct pattern_space *p, kvt *c, struct pattern_config config);
#define PATTERN_SPACE(p, c, ...) CHECK_OK(pattern_space_open((p), (c), (struct pattern_config){__VA_ARGS__}))
/* kvt_put() of these keys in this flavour. */
int pattern_put(const struct pattern_space *p, const kvt_key *parent, const kvt_key *keys, size_t n, int flavour, uint32_t flags,
                uint8_t *statuses);
/* The usual case: all are new and all are stored. */
void pattern_store(const struct pattern_space *p, const kvt_key *parent, const kvt_key *keys, size_t n);
/* kvt_get(); bytes of status 0 must be those of the key (in this flavour, or PATTERN_ANY), or the test fails. */
int pattern_get(const struct pattern_space *p, const kvt_key *keys, size_t n, int flavour, uint8_t *statuses);
/* Leading blocks that match. */
size_t pattern_match(const struct pattern_space *p, const kvt_key *keys, size_t n);
int pattern_why(const struct pattern_space *p, const kvt_key *key);
/* How many of n have this status. */
size_t pattern_count(const uint8_t *statuses, size_t n, int status);
