/* What breaks while the device is opened, filled, recycled or taken away; and what must not come of it: bytes that were promised are there afterwards. */
#include "tests/crash/chain.h"

static void begin(unsigned seed, uint32_t n_segments)
{
        log_set_level("error");
        store_init(&st, seed, n_segments, "nvme_admit_hits=1\n");
        store_open(&st);
        store_serve(&st);
}

/* A chain that is durable, and in no memory any more: the power went. The device is not open. */
static void begin_crashed(void)
{
        begin(1, 24);
        for (uint32_t b = 0; b < N; b++)
                CHECK_OK(put_block(b));
        CHECK_OK(make_durable(N - 1));
        store_crash(&st);
}

static int teardown(void **state)
{
        store_deinit(&st);
        return 0;
}

static void all_is_back(void)
{
        CHECK_EQ(matched(), N);
        for (uint32_t b = 0; b < N; b++)
                CHECK_OK(read_block(b));
        store_audit(&st);
}

static void wait_for_hang(struct nvme_device *d)
{
        st.e.now_usec += 31 * USEC_PER_SEC;
        engine_expire(&st.e);
        CHECK_EQ(d->state, DEVICE_FAILED);
}

/* It hangs at any step of being recovered, is given up, and goes on: nothing is begun on it, and what it holds is still there when it is attached again. */
static void test_hang_while_recovering(void **state)
{
        begin_crashed();
        for (uint32_t steps = 0; steps < 60; steps += 1 + steps / 8) {
                store_open(&st);
                struct nvme_device *d = store_device(&st);
                TURN_UNTIL(&st, d->state == DEVICE_RECOVERING);
                for (uint32_t i = 0; i < steps && d->state == DEVICE_RECOVERING; i++)
                        store_turn(&st, 1);
                if (d->state == DEVICE_RECOVERING && !list_empty(&d->ios)) {
                        st.disk->hangs = true;
                        wait_for_hang(d);
                        CHECK_EQ(engine_deadline(&st.e), UINT64_MAX);
                        st.disk->hangs = false;
                        TURN_UNTIL(&st, !d->n_stuck && d->sweep_cursor == UINT32_MAX);
                        CHECK_EQ(d->state, DEVICE_FAILED);
                        CHECK_OK(nvme_attach(&st.e.nvme, st.path));
                }
                store_serve(&st);
                all_is_back();
                store_crash(&st);
        }
}

/* A record whose copying ends after its device was given up is over, too, and holds nothing. */
static void test_write_to_a_device_that_failed(void **state)
{
        uint8_t key[16];
        int r;

        begin_crashed();
        store_open(&st);
        store_serve(&st);
        struct nvme_device *d = store_device(&st);
        CHECK_OK(read_block(N - 1));
        CHECK_OK(put_block(N));
        CHECK_OK(make_durable(N)); /* a log is open */
        CHECK_OK(put_block(N + 1));
        key_make(N + 1, key);
        status = 1;
        st.disk->hangs = true;
        load = (struct load){.space = st.s[SPACE], .done = on_load};
        key_make(0, load.key);
        CHECK_EQ(load_start(&st.e, &load), PUT_PENDING);
        CHECK(durable_start(&st.e, st.s[SPACE], 0, key, on_durable, NULL, &r) != NULL);
        engine_pass(&st.e);
        CHECK_EQ(st.e.n_demoting, 1);
        store_wait_worker(&st);
        wait_for_hang(d);
        TURN_UNTIL(&st, !st.e.n_demoting);
        CHECK(list_empty(&d->logs));
        CHECK_EQ(d->n_ios, 0);
        st.disk->hangs = false;
        TURN_UNTIL(&st, !d->n_stuck && d->sweep_cursor == UINT32_MAX);
        CHECK_OK(nvme_attach(&st.e.nvme, st.path));
        store_serve(&st);
        all_is_back();
}

int main(void)
{
        const struct CMUnitTest tests[] = {
                cmocka_unit_test_teardown(test_hang_while_recovering, teardown),
                cmocka_unit_test_teardown(test_write_to_a_device_that_failed, teardown),
        };

        assert_bind_loop();
        return cmocka_run_group_tests(tests, NULL, NULL);
}
