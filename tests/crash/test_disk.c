/* Named faults of the disk: what breaks, what must go on. One chain of blocks, made durable first. */
#include "tests/crash/blocks.h"

enum { N = 6 };

static uint32_t matched(void)
{
        return match_from(0, N);
}

/* A chain that is durable, and in no memory any more: the power went. */
static int setup(void **state)
{
        log_set_level("error");
        store_init(&st, 1, 24, "nvme_admit_hits=1\n");
        store_open(&st);
        store_serve(&st);
        for (uint32_t b = 0; b < N; b++)
                CHECK_OK(block_put(b, (int)b - 1, 1));
        CHECK_OK(block_make_durable(N - 1));
        reopen();
        CHECK_EQ(matched(), N);
        return 0;
}
static int teardown(void **state)
{
        store_deinit(&st);
        return 0;
}

static void test_read_error_costs_one_record(void **state)
{
        st.disk->bad_offset = offset_of(N - 1);
        st.disk->bad_bytes = 4096;
        CHECK_IS(block_read(N - 1, 1), KVT_E_IO);
        CHECK_EQ(matched(), N - 1);
        for (uint32_t b = 0; b < N - 1; b++)
                CHECK_OK(block_read(b, 1));
        CHECK_EQ(store_device(&st)->state, DEVICE_SERVING);
        store_audit(&st);
}

/* An error that passes costs nothing but the time. */
static void test_a_read_is_tried_twice(void **state)
{
        sim_fail(st.disk, RING_READ, 1, -EIO);
        CHECK_OK(block_read(N - 1, 1));
        CHECK_EQ(matched(), N);
        CHECK_EQ(store_device(&st)->counters.n_errors, 1);
        CHECK_EQ(store_device(&st)->counters.n_quarantined, 0);
        store_audit(&st);
}

static void test_flipped_bits_are_never_served(void **state)
{
        struct record_at at = place_of(N - 1);
        uint64_t offset = device_page_offset(store_device(&st), at) + (uint64_t)(at.n_pages - 2) * 4096;
        uint8_t byte;

        sim_peek(st.disk, offset, &byte, 1);
        byte ^= 4;
        sim_poke(st.disk, offset, &byte, 1);
        CHECK_IS(block_read(N - 1, 1), KVT_E_CORRUPT);
        CHECK_EQ(matched(), N - 1);
        CHECK_OK(block_read(0, 1));
}

static void is_given_up(struct nvme_device *d)
{
        st.e.now_usec += 31 * USEC_PER_SEC;
        engine_expire(&st.e);
        CHECK_EQ(d->state, DEVICE_FAILED);
}

static void goes_on_and_all_is_there(struct nvme_device *d)
{
        st.disk->hangs = false;
        TURN_UNTIL(&st, !d->n_stuck);
        CHECK_OK(nvme_attach(&st.e.nvme, st.path));
        store_serve(&st);
        CHECK_EQ(matched(), N);
        for (uint32_t b = 0; b < N; b++)
                CHECK_OK(block_read(b, 1));
}

static void test_device_that_hangs(void **state)
{
        struct nvme_device *d = store_device(&st);

        st.disk->hangs = true;
        load = (struct load){.space = st.s[SPACE], .done = on_load};
        key_make(0, load.key);
        status = 1;
        CHECK_EQ(load_start(&st.e, &load), PUT_PENDING);
        store_turn(&st, 1);
        is_given_up(d);
        TURN_UNTIL(&st, status != 1);
        CHECK(status != 0);
        TURN_UNTIL(&st, d->sweep_cursor == UINT32_MAX);
        CHECK_EQ(matched(), 0);
        CHECK_OK(block_put(0, ROOT, 1)); /* memory goes on */
        CHECK_IS(nvme_attach(&st.e.nvme, st.path), KVT_E_AGAIN);
        goes_on_and_all_is_there(d);
}

/* What it did not read is not nothing: it must not come to be served as an empty device, and be written over. */
static void test_device_that_hangs_while_it_is_recovered(void **state)
{
        store_crash(&st);
        store_open(&st);
        struct nvme_device *d = store_device(&st);
        TURN_UNTIL(&st, d->state == DEVICE_RECOVERING);
        st.disk->hangs = true;
        store_turn(&st, 1);
        is_given_up(d);
        CHECK_OK(block_put(0, ROOT, 1));
        CHECK_IS(block_make_durable(0), KVT_E_NO_DEVICE);
        CHECK_EQ(d->state, DEVICE_FAILED);
        goes_on_and_all_is_there(d);
}

/* The error that is one too many ends the recovery that it happened to. */
static void test_errors_fail_a_device_that_is_recovered(void **state)
{
        struct record_at at = place_of(0);
        uint64_t offset = device_page_offset(store_device(&st), at);

        store_crash(&st);
        store_open(&st);
        struct nvme_device *d = store_device(&st);
        TURN_UNTIL(&st, d->state == DEVICE_RECOVERING);
        d->n_errors_window = 64;
        d->errors_since_usec = st.e.now_usec;
        st.disk->bad_offset = offset;
        st.disk->bad_bytes = 4096;
        TURN_UNTIL(&st, d->state != DEVICE_RECOVERING);
        CHECK_EQ(d->state, DEVICE_FAILED);
        TURN_UNTIL(&st, d->sweep_cursor == UINT32_MAX);
        st.disk->bad_bytes = 0;
        TURN_UNTIL(&st, nvme_attach(&st.e.nvme, st.path) == 0);
        store_serve(&st);
        CHECK_EQ(matched(), N);
}

static void test_space_goes_with_its_last_record(void **state)
{
        struct nvme_device *d = store_device(&st);
        uint32_t n = st.e.tenants.n_spaces;

        st.s[SPACE]->n_open--; /* nobody has it open, and nothing of it is in memory */
        CHECK_OK(nvme_detach(&st.e.nvme, st.path));
        TURN_UNTIL(&st, d->state == DEVICE_DETACHED && d->sweep_cursor == UINT32_MAX);
        CHECK_EQ(st.e.tenants.n_spaces, n - 1);
        CHECK_OK(nvme_attach(&st.e.nvme, st.path));
        store_serve(&st);
        CHECK_EQ(st.e.tenants.n_spaces, n);
}

/* What was begun comes to its end, and nothing new begins: a device that is read all the time can be detached, too. */
static void test_detached_while_it_is_read(void **state)
{
        struct nvme_device *d = store_device(&st);
        struct load first = {.space = st.s[SPACE], .done = on_load}, second = first;

        key_make(0, first.key);
        key_make(1, second.key);
        status = 1;
        CHECK_EQ(load_start(&st.e, &first), PUT_PENDING);
        CHECK_OK(nvme_detach(&st.e.nvme, st.path));
        CHECK_IS(load_start(&st.e, &second), KVT_E_MISS);
        CHECK_EQ(d->state, DEVICE_DRAINING);
        TURN_UNTIL(&st, d->state == DEVICE_DETACHED);
        CHECK_OK(status);
        TURN_UNTIL(&st, !d->segments);
        CHECK_EQ(matched(), 1); /* what came into memory stays */
        CHECK_OK(block_read(0, 1));
        CHECK_OK(nvme_attach(&st.e.nvme, st.path));
        store_serve(&st);
        CHECK_EQ(matched(), N);
        for (uint32_t b = 0; b < N; b++)
                CHECK_OK(block_read(b, 1));
        store_audit(&st);
}

/* At each step of a durable put: it is answered, and what it was told holds. */
static void test_detached_at_any_moment(void **state)
{
        enum { STEPS = 40 };
        struct nvme_device *d = store_device(&st);
        uint32_t n_durable = 0, n_refused = 0;

        for (uint32_t i = 0; i < STEPS; i++) {
                uint32_t b = 10 + i;
                uint8_t key[16];
                int r;
                CHECK_OK(block_put(b, ROOT, 1));
                key_make(b, key);
                status = 1;
                CHECK(durable_start(&st.e, st.s[SPACE], 0, key, on_durable, NULL, &r));
                for (uint32_t k = 0; k < i; k++)
                        store_turn(&st, 1);
                CHECK_OK(nvme_detach(&st.e.nvme, st.path));
                TURN_UNTIL(&st, status != 1 && d->state == DEVICE_DETACHED && !d->segments);
                r = status;
                CHECK(r == 0 || r == KVT_E_NO_DEVICE || r == KVT_E_IO || r == KVT_E_AGAIN);
                n_durable += r == 0;
                n_refused += r != 0;
                store_audit(&st);
                CHECK_OK(nvme_attach(&st.e.nvme, st.path));
                store_serve(&st);
                CHECK(r != 0 || record_of(b) != POOL_NONE);
        }
        CHECK(n_durable && n_refused);
        CHECK_EQ(matched(), N);
}

int main(void)
{
        const struct CMUnitTest tests[] = {
                cmocka_unit_test_setup_teardown(test_read_error_costs_one_record, setup, teardown),
                cmocka_unit_test_setup_teardown(test_a_read_is_tried_twice, setup, teardown),
                cmocka_unit_test_setup_teardown(test_flipped_bits_are_never_served, setup, teardown),
                cmocka_unit_test_setup_teardown(test_device_that_hangs, setup, teardown),
                cmocka_unit_test_setup_teardown(test_device_that_hangs_while_it_is_recovered, setup, teardown),
                cmocka_unit_test_setup_teardown(test_errors_fail_a_device_that_is_recovered, setup, teardown),
                cmocka_unit_test_setup_teardown(test_space_goes_with_its_last_record, setup, teardown),
                cmocka_unit_test_setup_teardown(test_detached_while_it_is_read, setup, teardown),
                cmocka_unit_test_setup_teardown(test_detached_at_any_moment, setup, teardown),
        };

        assert_bind_loop();
        return cmocka_run_group_tests(tests, NULL, NULL);
}
