/* What the tests of the catalog share. */
#pragma once

#include "daemon/store/catalog.h"
#include "tests/lib/check.h"

static uint64_t seed = 1;

static inline uint32_t below(uint32_t n)
{
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        return (uint32_t)((seed >> 33) % n);
}

static inline void key_of(uint64_t n, uint8_t key[16])
{
        memset(key, 0x5a, 16);
        memcpy(key, &n, sizeof n);
}

static inline struct record_at some_place(void)
{
        return (struct record_at){.device = below(16),
                                  .segment = below(1u << 24),
                                  .page = below(1u << 18),
                                  .n_pages = 1 + below((1u << 18) - 1)};
}

static inline void check_place(const struct catalog *c, uint32_t i, struct record_at expected)
{
        struct record_at at = entry_place(catalog_at(c, i));

        CHECK_EQ(at.device, expected.device);
        CHECK_EQ(at.segment, expected.segment);
        CHECK_EQ(at.page, expected.page);
        CHECK_EQ(at.n_pages, expected.n_pages);
}

static inline void check_sound(const struct catalog *c)
{
        const char *wrong = catalog_audit(c);

        if (wrong)
                check_failed(__FILE__, __LINE__, "audit: %s", wrong);
}

/* A LIVE entry, which must be possible. parent < 0: the first of a prompt. */
static inline uint32_t add_live(struct catalog *c, uint64_t n, int64_t parent)
{
        struct record_at at = {.n_pages = 64};
        uint8_t key[16], parent_key[16];

        key_of(n, key);
        if (parent >= 0)
                key_of((uint64_t)parent, parent_key);
        uint32_t i = catalog_add(c, 1, 0, key, parent >= 0 ? parent_key : NULL, at, 0);
        if (i == POOL_NONE)
                check_failed(__FILE__, __LINE__, "%llu cannot be added", (unsigned long long)n);
        return i;
}

static inline uint32_t find(const struct catalog *c, uint64_t n)
{
        uint8_t key[16];

        key_of(n, key);
        return catalog_find(c, 1, 0, key);
}
