/* What tests of the format share: the hashes of kvtier-format(7), computed after the page with nothing of libclient/codec, and room for pages. */
#pragma once

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <sodium.h>

#include "libclient/codec/format.h"
#include "tests/lib/check.h"

enum {
        PAGE = 4096,
        SUPERBLOCK_HASH = 64,
        SEGMENT_HASH = 32,
        RECORD_HASH = 144,
        SEGMENT_BYTES = 1 << 20,
        SEGMENT_PAGES = SEGMENT_BYTES / PAGE,
        ROOM = 2 << 20,
};

static uint8_t uuid[16] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16};
static uint8_t *room, *spare; /* ROOM bytes each, zeroed before each test */

static inline struct place place(uint32_t segment, uint64_t generation, uint32_t page)
{
        return (struct place){.uuid = uuid, .segment = segment, .generation = generation, .page = page};
}

/* the page's words */

static inline uint64_t seed_of(const struct place *at)
{
        uint8_t in[32];

        memcpy(in, at->uuid, 16);
        for (int i = 0; i < 4; i++) {
                in[16 + i] = (uint8_t)(at->segment >> (8 * i));
                in[20 + i] = (uint8_t)(at->page >> (8 * i));
        }
        for (int i = 0; i < 8; i++)
                in[24 + i] = (uint8_t)(at->generation >> (8 * i));
        return XXH3_64bits_withSeed(in, sizeof(in), 0);
}

static inline uint64_t rehash(void *p, size_t n, size_t hash_at, uint64_t seed)
{
        uint64_t hash;

        memset((uint8_t *)p + hash_at, 0, 8);
        hash = XXH3_64bits_withSeed(p, n, seed);
        memcpy((uint8_t *)p + hash_at, &hash, 8);
        return hash;
}

static inline void rehash_record(struct record_header *h, const struct place *at)
{
        rehash(h, (size_t)h->header_pages * PAGE, RECORD_HASH, seed_of(at));
}

static inline void rehash_footer(void *p, size_t n, const struct place *at)
{
        struct place zero = place(at->segment, at->generation, 0);

        rehash(p, n, n - 8, seed_of(&zero));
}

static inline int setup(void **state)
{
        if (!room) {
                room = aligned_alloc(PAGE, ROOM);
                spare = aligned_alloc(PAGE, ROOM);
        }
        memset(room, 0, ROOM);
        memset(spare, 0, ROOM);
        return sodium_init() < 0;
}
