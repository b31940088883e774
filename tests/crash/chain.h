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

static inline void begin(unsigned seed, uint32_t n_segments)
{
        log_set_level("error");
        store_init(&st, seed, n_segments, "nvme_admit_hits=1\n");
        store_open(&st);
        store_serve(&st);
}

/* A chain that is durable, and in no memory any more: the power went. The device is not open. */
static inline void begin_crashed(void)
{
        begin(1, 24);
        for (uint32_t b = 0; b < N; b++)
                CHECK_OK(put_block(b));
        CHECK_OK(make_durable(N - 1));
        store_crash(&st);
}

static inline int teardown(void **state)
{
        version = 1;
        replace = false;
        store_deinit(&st);
        return 0;
}

static inline void all_is_back(void)
{
        CHECK_EQ(matched(), N);
        for (uint32_t b = 0; b < N; b++)
                CHECK_OK(read_block(b));
        store_audit(&st);
}

static inline void wait_for_hang(struct nvme_device *d)
{
        st.e.now_usec += 31 * USEC_PER_SEC;
        engine_expire(&st.e);
        CHECK_EQ(d->state, DEVICE_FAILED);
}

/* All that is under way on the write side comes to an end, footers too; then the daemon ends in good order. */
static inline void end_well(void)
{
        nvme_stop(&st.e.nvme);
        TURN_UNTIL(&st, nvme_idle(&st.e.nvme));
        store_close(&st);
}

static inline void start(void)
{
        store_open(&st);
        store_serve(&st);
}

static inline uint64_t segment_offset(uint32_t block, uint32_t page)
{
        return format_segment_offset(&store_device(&st)->sb, place_of(block).segment) + page * 4096;
}

/* Other blocks, durable one by one. */
static inline void fill(uint32_t n)
{
        for (uint32_t b = 1000; b < 1000 + n; b++) {
                status = 1;
                part_fill(st.staging->base, BYTES, part_word(b, 0, 1));
                put = (struct put){.space = st.s[SPACE], .staging = st.staging, .done = on_put};
                list_init(&put.link);
                key_make(b, put.key);
                CHECK_EQ(put_start(&st.e, &put), PUT_PENDING);
                TURN_UNTIL(&st, status != 1);
                CHECK_OK(make_durable(b));
        }
}
