/* What breaks while the device is opened, filled, recycled or taken away; and what must not come of it: bytes that were promised are there afterwards. */
#include "tests/crash/chain.h"

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

/* Each segment describes the spaces of its records: a description that is damaged costs nothing while there is another. */
static void test_damaged_descriptor(void **state)
{
        uint8_t byte;

        begin_crashed();
        start();
        CHECK_OK(put_block(N));
        CHECK_OK(block_make_durable(N));
        uint64_t offset = segment_offset(N, 2);
        CHECK(place_of(N).segment != place_of(0).segment);
        end_well();
        sim_peek(st.disk, offset, &byte, 1);
        byte ^= 1;
        sim_poke(st.disk, offset, &byte, 1);
        start();
        all_is_back();
        CHECK_OK(read_block(N));
}

/* A segment whose header cannot be read is neither free nor forgotten. */
static void test_unreadable_header(void **state)
{
        begin(1, 6);
        for (uint32_t b = 0; b < N; b++)
                CHECK_OK(put_block(b));
        CHECK_OK(block_make_durable(N - 1));
        st.disk->bad_offset = segment_offset(0, 0);
        st.disk->bad_bytes = 4096;
        end_well();
        start();
        CHECK_EQ(matched(), 0);
        fill(100);
        store_crash(&st);
        st.disk->bad_bytes = 0;
        start();
        all_is_back();
}

/* Nor is what lies behind a record that cannot be read just now. */
static void test_read_error_in_a_scan(void **state)
{
        begin(1, 6);
        for (uint32_t b = 0; b < N; b++)
                CHECK_OK(put_block(b));
        CHECK_OK(block_make_durable(N - 1));
        st.disk->bad_offset = segment_offset(0, 1);
        st.disk->bad_bytes = 4096;
        store_crash(&st);
        start();
        fill(100);
        end_well();
        st.disk->bad_bytes = 0;
        start();
        all_is_back();
}

/* What was written by a daemon that was killed is in the device's cache. Who is told that it is durable must find it after the power went. */
static void test_durable_after_a_kill(void **state)
{
        uint8_t key[16];
        int r;

        for (unsigned seed = 1; seed < 6; seed++) {
                begin(seed, 24);
                for (uint32_t b = 0; b < N; b++)
                        CHECK_OK(put_block(b));
                for (uint32_t b = 0; b < N; b++) {
                        key_make(b, key);
                        TURN_UNTIL(&st, demote_part(&st.e, st.s[SPACE], blocks_find(&st.e.blocks, st.s[SPACE]->id, key), 0, false) == 0);
                }
                TURN_UNTIL(&st, !st.e.n_demoting);
                store_close(&st);
                store_open(&st);
                while (matched() < N)
                        store_turn(&st, 1);
                key_make(N - 1, key);
                status = 1;
                CHECK(durable_start(&st.e, st.s[SPACE], 0, key, on_durable, NULL, &r) != NULL);
                for (int i = 0; i < 100 && status == 1; i++)
                        store_turn(&st, 0);
                TURN_UNTIL(&st, status != 1);
                CHECK_OK(status);
                store_crash(&st);
                start();
                all_is_back();
                store_deinit(&st);
        }
        begin(1, 24);
}

static uint64_t log_offset(void)
{
        const struct log *l = store_device(&st)->log;

        CHECK(l != NULL);
        return format_segment_offset(&store_device(&st)->sb, l->segment) + l->end_page * 4096ul;
}

static struct durable *start_durable(uint32_t b)
{
        uint8_t key[16];
        int r;

        key_make(b, key);
        status = 1;
        struct durable *d = durable_start(&st.e, st.s[SPACE], 0, key, on_durable, NULL, &r);
        CHECK(d != NULL);
        return d;
}

/* What was answered well is back. */
static void check_answer(uint32_t n)
{
        TURN_UNTIL(&st, status != 1);
        int r = status;
        store_crash(&st);
        st.disk->bad_write_bytes = 0;
        start();
        if (r == 0)
                CHECK_OK(read_block(n));
        store_audit(&st);
}

/* A space's description is not written, but the records that need it are. */
static void test_description_is_not_written(void **state)
{
        for (unsigned seed = 1; seed < 10; seed++) {
                begin(seed, 24);
                st.disk->bad_write_offset = format_segment_offset(&store_device(&st)->sb, 1) + 4096;
                st.disk->bad_write_bytes = 4096;
                for (uint32_t b = 0; b < N; b++)
                        CHECK_OK(put_block(b));
                start_durable(N - 1);
                check_answer(N - 1);
                store_deinit(&st);
        }
        begin(1, 24);
}

/* A record is not written, nor is the footer that would help those behind it. */
static void test_hole_without_a_footer(void **state)
{
        begin(1, 24);
        for (uint32_t b = 0; b < N; b++)
                CHECK_OK(put_block(b));
        CHECK_OK(block_make_durable(2));
        struct nvme_device *d = store_device(&st);
        uint64_t footer = format_segment_offset(&d->sb, place_of(0).segment + 1) - 4096;
        st.disk->bad_write_offset = log_offset() + 16 * 4096; /* the second of those that come now */
        st.disk->bad_write_bytes = 4096;
        start_durable(N - 1);
        TURN_UNTIL(&st, d->counters.n_errors);
        st.disk->bad_write_offset = footer;
        TURN_UNTIL(&st, status != 1);
        if (status != 0)
                CHECK_OK(block_make_durable(N - 1)); /* it is written again, elsewhere */
        CHECK_EQ(d->state, DEVICE_SERVING);
        check_answer(N - 1);
}

/* What says that the old version is void is not written at first. It must not come after the new one. */
static void test_drop_is_not_written(void **state)
{
        begin(1, 24);
        CHECK_OK(put_block(0));
        CHECK_OK(block_make_durable(0));
        version = 2;
        st.disk->bad_write_offset = log_offset();
        st.disk->bad_write_bytes = 4096;
        CHECK_OK(put_block(0));
        start_durable(0);
        for (int i = 0; i < 6; i++)
                store_turn(&st, 0);
        TURN_UNTIL(&st, status != 1);
        CHECK_OK(status);
        CHECK(list_empty(&st.e.nvme.drops));
        for (int i = 0; i < 20; i++)
                store_turn(&st, 8);
        check_answer(0);
        CHECK_OK(read_block(0));
}

/* Dropped while another device was still recovered; then put again. */
static void test_drop_for_a_device_to_come(void **state)
{
        char path[220];
        struct sim_disk *other = sim_disk_new(25 << 20, 77);

        begin(1, 24);
        sim_install_second(other);
        snprintf(path, sizeof path, "%s.2", st.path);
        CHECK_OK(put_block(0));
        CHECK_OK(block_make_durable(0));
        CHECK_OK(nvme_attach(&st.e.nvme, path));
        struct nvme_device *d = st.e.nvme.devices[1];
        for (int i = 0; i < 20; i++)
                store_turn(&st, 8);
        CHECK_EQ(d->state, DEVICE_RECOVERING);
        uint8_t key[16];
        key_make(0, key);
        engine_kill(&st.e, blocks_find(&st.e.blocks, st.s[SPACE]->id, key), KVT_WHY_DROPPED);
        CHECK_OK(put_block(0));
        CHECK_OK(block_make_durable(0));
        for (int i = 0; i < 2000 && d->state != DEVICE_SERVING; i++) {
                sim_step(other, 4);
                store_turn(&st, 4);
        }
        CHECK_EQ(d->state, DEVICE_SERVING);
        for (int i = 0; i < 100; i++) {
                if (i == 50)
                        start_durable(0); /* flushes both */
                sim_step(other, 4);
                store_turn(&st, 4);
        }
        CHECK(list_empty(&st.e.nvme.drops));
        CHECK_OK(status);
        sim_crash(other);
        store_crash(&st);
        sim_power_on(other);
        store_open(&st);
        CHECK_OK(nvme_attach(&st.e.nvme, path));
        for (int i = 0; i < 2000 && nvme_recovering(&st.e.nvme); i++) {
                sim_step(other, 4);
                store_turn(&st, 4);
        }
        CHECK_OK(read_block(0));
        store_close(&st);
        sim_disk_free(other);
        unlink(path);
}

/* From some moment on nothing can be read any more. */
static void test_reads_fail_while_recovering(void **state)
{
        begin(1, 50);
        for (uint32_t b = 0; b < 40; b++) { /* a segment each, without a footer */
                CHECK_OK(put_block(b));
                CHECK_OK(block_make_durable(b));
                store_crash(&st);
                start();
        }
        for (uint32_t steps = 0; steps < 200; steps += 7) {
                store_crash(&st);
                store_open(&st);
                struct nvme_device *d = store_device(&st);
                TURN_UNTIL(&st, d->state == DEVICE_RECOVERING);
                for (uint32_t i = 0; i < steps && d->state == DEVICE_RECOVERING; i++)
                        store_turn(&st, 1);
                st.disk->bad_offset = 0;
                st.disk->bad_bytes = UINT64_MAX;
                TURN_UNTIL(&st, d->state != DEVICE_RECOVERING);
                store_audit(&st);
                st.disk->bad_bytes = 0;
        }
        store_crash(&st);
        start();
        all_is_back();
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
        CHECK_OK(block_make_durable(N)); /* a log is open */
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

/* A header from the end of time: what is written from now on must count as later all the same. */
static void test_generation_at_its_end(void **state)
{
        uint8_t page[4096];

        begin(1, 24);
        struct place at = {store_device(&st)->sb.uuid, 20, UINT64_MAX - 1, 0};
        segment_header_encode(page, &at, 1);
        sim_poke(st.disk, format_segment_offset(&store_device(&st)->sb, 20), page, sizeof page);
        store_crash(&st);
        start();
        CHECK_OK(put_block(0));
        CHECK_OK(block_make_durable(0));
        end_well();
        start();
        version = 2;
        CHECK_OK(put_block(0));
        CHECK_OK(block_make_durable(0));
        store_crash(&st);
        start();
        CHECK_OK(read_block(0));
}

/* No room, and some is needed to empty the segment that is being recycled. */
static bool is_full(const struct nvme_device *d)
{
        for (uint32_t i = 0; i < d->sb.n_segments; i++)
                if (d->segments[i].state == SEGMENT_RECYCLING && d->segments[i].live_pages)
                        return !d->n_free && !d->log && !d->next;
        return false;
}

/* Drops take the room that was kept for what recycling moves. */
static void test_drops_take_the_last_room(void **state)
{
        uint8_t key[16];

        begin(1, 6);
        struct nvme_device *d = store_device(&st);
        for (uint32_t b = 0; d->n_free > 1; b++) {
                CHECK_OK(put_block(b));
                CHECK_OK(block_make_durable(b));
        }
        for (uint32_t i = 0; i < 5000 && !is_full(d); i++) {
                for (uint32_t k = 1; k <= st.e.nvme.catalog.pool.n_touched; k++)
                        if (entry_live(catalog_at(&st.e.nvme.catalog, k)))
                                catalog_at(&st.e.nvme.catalog, k)->flags |= ENTRY_USED;
                d->move_pages = 1000;
                for (uint32_t k = 0; k < 12; k++) {
                        key_make(5000 + 12 * i + k, key);
                        nvme_drop_later(&st.e.nvme, st.s[SPACE], 0, key, 0);
                        nvme_write_drops(&st.e.nvme);
                }
                store_turn(&st, 4);
        }
        CHECK(is_full(d));
        fill(40);
        store_audit(&st);
}

int main(void)
{
        const struct CMUnitTest tests[] = {
                cmocka_unit_test_teardown(test_hang_while_recovering, teardown),
                cmocka_unit_test_teardown(test_damaged_descriptor, teardown),
                cmocka_unit_test_teardown(test_unreadable_header, teardown),
                cmocka_unit_test_teardown(test_read_error_in_a_scan, teardown),
                cmocka_unit_test_teardown(test_durable_after_a_kill, teardown),
                cmocka_unit_test_teardown(test_description_is_not_written, teardown),
                cmocka_unit_test_teardown(test_hole_without_a_footer, teardown),
                cmocka_unit_test_teardown(test_drop_is_not_written, teardown),
                cmocka_unit_test_teardown(test_drop_for_a_device_to_come, teardown),
                cmocka_unit_test_teardown(test_reads_fail_while_recovering, teardown),
                cmocka_unit_test_teardown(test_write_to_a_device_that_failed, teardown),
                cmocka_unit_test_teardown(test_generation_at_its_end, teardown),
                cmocka_unit_test_teardown(test_drops_take_the_last_room, teardown),
        };

        assert_bind_loop();
        return cmocka_run_group_tests(tests, NULL, NULL);
}
