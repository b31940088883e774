/* One chain of N blocks in a store, and what is done with it: for tests of named faults. */
#pragma once

#include "tests/crash/store.h"

enum { N = 6, SPACE = 1, BYTES = 60000 };

static struct store st;
static uint32_t version = 1; /* of what is put and read */
static bool replace;
static int status; /* of the operation under way; 1: not over */
static struct put put;
static struct load load;
static struct get get;

static void on_put(struct engine *e, struct put *p, int r)
{
        status = r;
}
static void on_load(struct engine *e, struct load *l, int r)
{
        status = r;
}
static void on_get(struct engine *e, struct get *g, int r)
{
        status = r;
}
static void on_durable(struct durable *d, int r, void *arg)
{
        status = r;
}

static inline int put_block(uint32_t b)
{
        part_fill(st.staging->base, BYTES, part_word(b, 0, version));
        put = (struct put){.space = st.s[SPACE], .has_parent = b > 0, .replace = replace, .staging = st.staging, .done = on_put};
        list_init(&put.link);
        key_make(b, put.key);
        if (b)
                key_make(b - 1, put.parent);
        status = 1;
        int r = put_start(&st.e, &put);
        if (r != PUT_PENDING)
                return r;
        TURN_UNTIL(&st, status != 1);
        return status;
}

static inline int make_durable(uint32_t b)
{
        uint8_t key[16];
        int r;

        key_make(b, key);
        status = 1;
        if (!durable_start(&st.e, st.s[SPACE], 0, key, on_durable, NULL, &r))
                return r;
        TURN_UNTIL(&st, status != 1);
        return status;
}

/* From the disk or memory, byte for byte. */
static inline int read_block(uint32_t b)
{
        load = (struct load){.space = st.s[SPACE], .done = on_load};
        key_make(b, load.key);
        status = 1;
        int r = load_start(&st.e, &load);
        if (r == PUT_PENDING) {
                TURN_UNTIL(&st, status != 1);
                r = status;
        }
        if (r != 0)
                return r;
        get = (struct get){.done = on_get};
        status = 1;
        CHECK_EQ(get_start(&st.e, &get, st.s[SPACE], 0, load.key, st.staging, 0, 0, 3), PUT_PENDING);
        TURN_UNTIL(&st, status != 1);
        CHECK(status != 0 || part_is(st.staging->base, BYTES, part_word(b, 0, version)));
        return status;
}

static inline uint32_t matched(void)
{
        uint8_t keys[16 * N];
        int stop;

        for (uint32_t b = 0; b < N; b++)
                key_make(b, keys + 16 * b);
        return get_match(&st.e, st.s[SPACE], keys, N, true, &stop);
}

static inline struct record_at place_of(uint32_t b)
{
        uint8_t key[16];

        key_make(b, key);
        uint32_t i = nvme_find(&st.e.nvme, st.s[SPACE], 0, key);
        CHECK(i != POOL_NONE);
        return entry_place(catalog_at(&st.e.nvme.catalog, i));
}
