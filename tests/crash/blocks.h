/* Blocks of one space, put, made durable and read one at a time, by number: for tests of named faults on the simulated disk. */
#pragma once

#include "tests/crash/store.h"
#include "tests/lib/values.h"

enum { SPACE = 1, BYTES = 60000, RECORD_PAGES = 16 /* of such a block, with its header */, ROOT = -1 };

static struct store st;
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
static void on_sync(struct nvme_sync_all *s, int r)
{
        status = r;
}

static inline void block_fill(uint32_t b, uint32_t version)
{
        if (st.values)
                values_fill(st.staging->base, BYTES, part_word(b, 0, version));
        else
                part_fill(st.staging->base, BYTES, part_word(b, 0, version));
}

/* What was read is that version, or in a space with a bound within it. */
static inline bool block_is(uint32_t b, uint32_t version)
{
        static uint8_t right[BYTES];
        uint32_t n = shapes[SPACE].plane_bytes;

        if (!st.values)
                return part_is(st.staging->base, BYTES, part_word(b, 0, version));
        values_fill(right, BYTES, part_word(b, 0, version));
        for (uint32_t i = 0; i < shapes[SPACE].n_planes; i++)
                if (!(values_error(right + i * n, st.staging->base + i * n, n) <= (double)st.max_rel_l2))
                        return false;
        return true;
}

/* Into memory. parent: a number, or ROOT. A version above 1 replaces. */
static inline int block_put(uint32_t b, int parent, uint32_t version)
{
        block_fill(b, version);
        put = (struct put){
                .space = st.s[SPACE], .has_parent = parent != ROOT, .replace = version > 1, .staging = st.staging, .done = on_put};
        list_init(&put.link);
        key_make(b, put.key);
        if (parent != ROOT)
                key_make((uint32_t)parent, put.parent);
        status = 1;
        int r = put_start(&st.e, &put);
        if (r != PUT_PENDING)
                return r;
        TURN_UNTIL(&st, status != 1);
        return status;
}

static inline int block_make_durable(uint32_t b)
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

/* All that was written is on stable storage. */
static inline int sync_all(void)
{
        struct nvme_sync_all sync = {.done = on_sync};

        status = 1;
        nvme_sync_start(&st.e.nvme, &sync);
        TURN_UNTIL(&st, status != 1);
        return status;
}

static inline uint32_t record_of(uint32_t b)
{
        uint8_t key[16];

        key_make(b, key);
        return nvme_find(&st.e.nvme, st.s[SPACE], 0, key);
}

static inline struct record_at place_of(uint32_t b)
{
        uint32_t i = record_of(b);

        CHECK(i != POOL_NONE);
        return entry_place(catalog_at(&st.e.nvme.catalog, i));
}

/* Of the disk. */
static inline uint64_t offset_of(uint32_t b)
{
        return device_page_offset(store_device(&st), place_of(b));
}

/* In memory and on the disk, where it is flushed to; with nvme_admit_hits=0. */
static inline void block_store(uint32_t b, int parent)
{
        CHECK_OK(block_put(b, parent, 1));
        TURN_UNTIL(&st, record_of(b) != POOL_NONE);
        CHECK_OK(sync_all());
}

/* Into memory if it is not there, and from there, byte for byte. */
static inline int block_read(uint32_t b, uint32_t version)
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
        memset(st.staging->base, 0, VALUE_WORD_BYTES);
        get = (struct get){.done = on_get};
        status = 1;
        CHECK_EQ(get_start(&st.e, &get, st.s[SPACE], 0, load.key, st.staging, 0, 0, 3), PUT_PENDING);
        TURN_UNTIL(&st, status != 1);
        CHECK(status != 0 || block_is(b, version));
        return status;
}

/* How many leading blocks of first, first + 1, ... match. */
static inline uint32_t match_from(uint32_t first, uint32_t n)
{
        uint8_t keys[16 * 64];
        int stop;

        CHECK(n <= 64);
        for (uint32_t i = 0; i < n; i++)
                key_make(first + i, keys + 16 * i);
        return get_match(&st.e, st.s[SPACE], keys, n, true, &stop);
}

static inline void reopen(void)
{
        store_crash(&st);
        store_open(&st);
        store_serve(&st);
}
