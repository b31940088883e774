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
        version = 1;
        replace = false;
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

/* All that is under way on the write side comes to an end, footers too; then the daemon ends in good order. */
static void end_well(void)
{
        nvme_stop(&st.e.nvme);
        TURN_UNTIL(&st, nvme_idle(&st.e.nvme));
        store_close(&st);
}

static void start(void)
{
        store_open(&st);
        store_serve(&st);
}

static uint64_t segment_offset(uint32_t block, uint32_t page)
{
        return format_segment_offset(&store_device(&st)->sb, place_of(block).segment) + page * 4096;
}

/* Each segment describes the spaces of its records: a description that is damaged costs nothing while there is another. */
static void test_damaged_descriptor(void **state)
{
        uint8_t byte;

        begin_crashed();
        start();
        CHECK_OK(put_block(N));
        CHECK_OK(make_durable(N));
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

/* Other blocks, durable one by one. */
static void fill(uint32_t n)
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

/* A segment whose header cannot be read is neither free nor forgotten. */
static void test_unreadable_header(void **state)
{
        begin(1, 6);
        for (uint32_t b = 0; b < N; b++)
                CHECK_OK(put_block(b));
        CHECK_OK(make_durable(N - 1));
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
        CHECK_OK(make_durable(N - 1));
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
        CHECK_OK(make_durable(2));
        struct nvme_device *d = store_device(&st);
        uint64_t footer = format_segment_offset(&d->sb, place_of(0).segment + 1) - 4096;
        st.disk->bad_write_offset = log_offset() + 16 * 4096; /* the second of those that come now */
        st.disk->bad_write_bytes = 4096;
        start_durable(N - 1);
        TURN_UNTIL(&st, d->counters.n_errors);
        st.disk->bad_write_offset = footer;
        TURN_UNTIL(&st, status != 1);
        if (status != 0)
                CHECK_OK(make_durable(N - 1)); /* it is written again, elsewhere */
        CHECK_EQ(d->state, DEVICE_SERVING);
        check_answer(N - 1);
}

/* What says that the old version is void is not written at first. It must not come after the new one. */
static void test_drop_is_not_written(void **state)
{
        begin(1, 24);
        CHECK_OK(put_block(0));
        CHECK_OK(make_durable(0));
        version = 2;
        replace = true;
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
        CHECK_OK(make_durable(0));
        CHECK_OK(nvme_attach(&st.e.nvme, path));
        struct nvme_device *d = st.e.nvme.devices[1];
        for (int i = 0; i < 20; i++)
                store_turn(&st, 8);
        CHECK_EQ(d->state, DEVICE_RECOVERING);
        uint8_t key[16];
        key_make(0, key);
        engine_kill(&st.e, blocks_find(&st.e.blocks, st.s[SPACE]->id, key), KVT_WHY_DROPPED);
        CHECK_OK(put_block(0));
        CHECK_OK(make_durable(0));
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
                CHECK_OK(make_durable(b));
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
        CHECK_OK(make_durable(0));
        end_well();
        start();
        version = 2;
        replace = true;
        CHECK_OK(put_block(0));
        CHECK_OK(make_durable(0));
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
                CHECK_OK(make_durable(b));
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

static void on_read(struct nvme_read *r, int result)
{
        status = result;
}

static uint32_t entry_of(uint32_t b)
{
        uint8_t key[16];

        key_make(b, key);
        return nvme_find(&st.e.nvme, st.s[SPACE], 0, key);
}

/* Somebody works on what was read when the device fails: its memory stays until that is over. */
static void test_attach_while_it_is_read(void **state)
{
        struct nvme_read read = {.n_bytes = UINT64_MAX, .done = on_read};

        begin_crashed();
        start();
        struct nvme_device *d = store_device(&st);
        status = 1;
        CHECK_OK(nvme_read_begin(&st.e.nvme, &read, entry_of(0)));
        TURN_UNTIL(&st, status != 1);
        CHECK_OK(status);
        device_fail(d, false, "a test");
        TURN_UNTIL(&st, d->sweep_cursor == UINT32_MAX);
        CHECK_IS(nvme_attach(&st.e.nvme, st.path), KVT_E_AGAIN);
        nvme_read_end(&st.e.nvme, &read);
        CHECK_OK(nvme_attach(&st.e.nvme, st.path));
        store_serve(&st);
        all_is_back();
}

static struct nvme_read readers[4];

static void on_read_again(struct nvme_read *r, int result)
{
        nvme_read_end(&st.e.nvme, r);
        uint32_t i = entry_of((uint32_t)(r - readers));
        if (i != POOL_NONE)
                nvme_read_begin(&st.e.nvme, r, i);
}

/* It goes, however much it is read; and one that failed does, too. */
static void test_detach_while_it_is_read(void **state)
{
        begin_crashed();
        start();
        struct nvme_device *d = store_device(&st);
        for (uint32_t i = 0; i < ELEMENTSOF(readers); i++) {
                readers[i] = (struct nvme_read){.n_bytes = UINT64_MAX, .done = on_read_again};
                CHECK_OK(nvme_read_begin(&st.e.nvme, &readers[i], entry_of(i)));
        }
        for (int i = 0; i < 100; i++)
                store_turn(&st, 1);
        CHECK_OK(nvme_detach(&st.e.nvme, st.path));
        for (int i = 0; i < 1000 && d->state != DEVICE_DETACHED; i++)
                store_turn(&st, 1);
        CHECK_EQ(d->state, DEVICE_DETACHED);
        CHECK(d->fd < 0);
        CHECK_OK(nvme_attach(&st.e.nvme, st.path));
        store_serve(&st);
        all_is_back();
        device_fail(d, false, "a test");
        CHECK_OK(nvme_detach(&st.e.nvme, st.path));
        TURN_UNTIL(&st, d->state == DEVICE_DETACHED && d->fd < 0);
        CHECK_OK(nvme_attach(&st.e.nvme, st.path));
        store_serve(&st);
        all_is_back();
}

/* No memory for a footer just when the device is to go. */
static void test_detach_without_memory(void **state)
{
        void *taken[32];
        uint32_t n = 0, sizes[32];

        begin(1, 24);
        struct nvme_device *d = store_device(&st);
        CHECK_OK(put_block(0));
        CHECK_OK(make_durable(0));
        for (uint32_t size = d->buffers.n_pages; size; size /= 2)
                while (n < ELEMENTSOF(taken) && (taken[n] = buffers_take(&d->buffers, size * 4096ul)))
                        sizes[n++] = size;
        CHECK_EQ(d->buffers.n_used, d->buffers.n_pages);
        CHECK_OK(nvme_detach(&st.e.nvme, st.path));
        for (int i = 0; i < 20; i++)
                store_turn(&st, 8);
        while (n--)
                buffers_give(&d->buffers, taken[n], sizes[n] * 4096ul);
        TURN_UNTIL(&st, d->state == DEVICE_DETACHED);
}

/* The process was stopped for a while: what came back meanwhile is there, and only has to be looked at. */
static void test_loop_that_stood_still(void **state)
{
        begin_crashed();
        start();
        struct nvme_device *d = store_device(&st);
        load = (struct load){.space = st.s[SPACE], .done = on_load};
        key_make(0, load.key);
        status = 1;
        CHECK_EQ(load_start(&st.e, &load), PUT_PENDING);
        engine_pass(&st.e);
        sim_step(st.disk, 100);
        st.e.now_usec += 60 * USEC_PER_SEC;
        engine_expire(&st.e);
        CHECK_EQ(d->state, DEVICE_SERVING);
        TURN_UNTIL(&st, status != 1);
        CHECK_OK(status);
        st.disk->hangs = true; /* but one that hangs is found out */
        key_make(1, load.key);
        status = 1;
        CHECK_EQ(load_start(&st.e, &load), PUT_PENDING);
        st.e.now_usec += 60 * USEC_PER_SEC;
        engine_expire(&st.e);
        st.e.now_usec = engine_deadline(&st.e);
        engine_expire(&st.e);
        CHECK_EQ(d->state, DEVICE_FAILED);
        st.disk->hangs = false;
}

static void write_at(const char *path, uint64_t offset, const void *p, size_t n)
{
        int fd = open(path, O_RDWR);

        CHECK(fd >= 0 && pwrite(fd, p, n, (off_t)offset) == (ssize_t)n);
        close(fd);
}

/* Somebody partitioned the device meanwhile: what is left of ours is no reason to write to it. */
static void test_device_is_another_now(void **state)
{
        uint8_t page[4096] = {}, after[4096];

        begin_crashed();
        part_fill(page, 300, 42);
        memcpy(page + 510, "\x55\xaa", 2);
        memcpy(page + 512, "EFI PART", 8);
        write_at(st.path, 0, page, sizeof page);
        store_open(&st);
        TURN_UNTIL(&st, st.e.nvme.devices[0]->state == DEVICE_FAILED);
        int fd = open(st.path, O_RDONLY);
        CHECK(pread(fd, after, sizeof after, 0) == sizeof after && !memcmp(page, after, sizeof after));
        close(fd);
        CHECK_OK(nvme_attach(&st.e.nvme, "/dev/kvtier-is-not-there"));
        TURN_UNTIL(&st, st.e.nvme.devices[1]->state == DEVICE_FAILED);
        CHECK(access("/dev/kvtier-is-not-there", F_OK) != 0);
}

/* One that may never come back costs the other nothing: it is recycled, and what is dropped from it is written down. */
static void test_device_that_stays_away(void **state)
{
        struct nvme *n = &st.e.nvme;
        bool seen = false;
        uint8_t key[16];

        begin(1, 24);
        CHECK_OK(put_block(0));
        CHECK_OK(make_durable(0));
        CHECK_OK(nvme_attach(n, "/dev/kvtier-is-not-there"));
        TURN_UNTIL(&st, n->devices[1]->state == DEVICE_FAILED);
        for (uint32_t i = 0; i < 20000; i++) {
                key_make(10000 + i, key);
                nvme_remember_drop(n, st.s[SPACE], 0, key, (struct record_at){});
        }
        for (uint32_t i = 0; i < 50; i++) {
                key_make(50000 + i, key);
                nvme_drop(n, st.s[SPACE], key);
                store_turn(&st, 4);
                seen |= n->forget_cursor == UINT32_MAX;
        }
        CHECK(seen);
        for (uint32_t i = 0; i < 800000; i++) {
                key_make(100000 + i, key);
                nvme_drop_later(n, st.s[SPACE], 0, key, 1);
        }
        key_make(0, key);
        nvme_drop_later(n, st.s[SPACE], 0, key, 0);
        CHECK(!n->devices[0]->drops_lost);
}

/* What cannot be flushed when it is opened is read, and nothing on it is called safe. */
static void test_no_flush_at_the_start(void **state)
{
        begin_crashed();
        store_open(&st);
        struct nvme_device *d = store_device(&st);
        TURN_UNTIL(&st, d->state == DEVICE_RECOVERING);
        sim_fail(st.disk, RING_FLUSH, 1, -EIO);
        while (matched() < N)
                store_turn(&st, 1);
        CHECK(make_durable(N - 1) != 0);
        TURN_UNTIL(&st, d->state == DEVICE_DRAINING);
        all_is_back();
        CHECK(make_durable(N - 1) != 0);
}

int main(void)
{
        const struct CMUnitTest tests[] = {
                cmocka_unit_test_teardown(test_hang_while_recovering, teardown),
                cmocka_unit_test_teardown(test_write_to_a_device_that_failed, teardown),
                cmocka_unit_test_teardown(test_damaged_descriptor, teardown),
                cmocka_unit_test_teardown(test_unreadable_header, teardown),
                cmocka_unit_test_teardown(test_read_error_in_a_scan, teardown),
                cmocka_unit_test_teardown(test_durable_after_a_kill, teardown),
                cmocka_unit_test_teardown(test_reads_fail_while_recovering, teardown),
                cmocka_unit_test_teardown(test_no_flush_at_the_start, teardown),
                cmocka_unit_test_teardown(test_device_that_stays_away, teardown),
                cmocka_unit_test_teardown(test_generation_at_its_end, teardown),
                cmocka_unit_test_teardown(test_drops_take_the_last_room, teardown),
                cmocka_unit_test_teardown(test_attach_while_it_is_read, teardown),
                cmocka_unit_test_teardown(test_detach_while_it_is_read, teardown),
                cmocka_unit_test_teardown(test_detach_without_memory, teardown),
                cmocka_unit_test_teardown(test_loop_that_stood_still, teardown),
                cmocka_unit_test_teardown(test_device_is_another_now, teardown),
                cmocka_unit_test_teardown(test_description_is_not_written, teardown),
                cmocka_unit_test_teardown(test_hole_without_a_footer, teardown),
                cmocka_unit_test_teardown(test_drop_is_not_written, teardown),
                cmocka_unit_test_teardown(test_drop_for_a_device_to_come, teardown),
        };

        assert_bind_loop();
        return cmocka_run_group_tests(tests, NULL, NULL);
}
