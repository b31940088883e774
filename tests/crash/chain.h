/* One chain of N blocks in a store, and what is done with it: for tests of named faults. */
#pragma once

#include "tests/crash/blocks.h"

enum { N = 6 };

static uint32_t version = 1; /* of what is put and read; above 1, it replaces */

static inline int put_block(uint32_t b)
{
        return block_put(b, (int)b - 1, version);
}

/* From the disk or memory, byte for byte. */
static inline int read_block(uint32_t b)
{
        return block_read(b, version);
}

static inline uint32_t matched(void)
{
        return match_from(0, N);
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
        CHECK_OK(block_make_durable(N - 1));
        store_crash(&st);
}

static inline int teardown(void **state)
{
        version = 1;
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
                CHECK_OK(block_make_durable(b));
        }
}
