/* Devices that are taken away, fail, or come back as something else, while they are used. */
#include "tests/crash/chain.h"

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
        CHECK_OK(block_make_durable(0));
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
        CHECK_OK(block_make_durable(0));
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
        CHECK(block_make_durable(N - 1) != 0);
        TURN_UNTIL(&st, d->state == DEVICE_DRAINING);
        all_is_back();
        CHECK(block_make_durable(N - 1) != 0);
}

/* A version is replaced, and the drop of the old one does not get to the device: it hangs, or fails once, and then the device goes. When it is back, so is the old
 * record, and must not be found: neither now nor after a crash. */
static void drop_does_not_get_there(bool hangs)
{
        begin(1, 24);
        struct nvme_device *d = store_device(&st);
        CHECK_OK(put_block(0));
        CHECK_OK(block_make_durable(0));
        version = 2;
        st.disk->hangs = hangs;
        st.disk->bad_write_bytes = st.disk->bytes;
        CHECK_OK(put_block(0));
        CHECK_EQ(record_of(0), POOL_NONE);
        if (hangs) {
                store_turn(&st, 4);
                wait_for_hang(d);
                st.disk->hangs = false;
        } else {
                TURN_UNTIL(&st, d->counters.n_errors > 0);
                device_fail(d, false, "a test");
        }
        CHECK(!list_empty(&st.e.nvme.drops));
        TURN_UNTIL(&st, !d->n_stuck);
        st.disk->bad_write_bytes = 0;
        TURN_UNTIL(&st, nvme_attach(&st.e.nvme, st.path) == 0);
        while (d->state != DEVICE_SERVING) {
                CHECK_EQ(record_of(0), POOL_NONE);
                store_turn(&st, 1);
        }
        CHECK_EQ(d->counters.n_recovered, 0); /* not for a moment */
        CHECK_EQ(record_of(0), POOL_NONE);
        CHECK_OK(read_block(0));
        TURN_UNTIL(&st, list_empty(&st.e.nvme.drops));
        CHECK_OK(sync_all());
        reopen();
        CHECK_EQ(record_of(0), POOL_NONE);
        store_audit(&st);
}

static void test_drop_hangs_as_the_device_goes(void **state)
{
        drop_does_not_get_there(true);
}

static void test_drop_waits_as_the_device_goes(void **state)
{
        drop_does_not_get_there(false);
}

int main(void)
{
        const struct CMUnitTest tests[] = {
                cmocka_unit_test_teardown(test_attach_while_it_is_read, teardown),
                cmocka_unit_test_teardown(test_detach_while_it_is_read, teardown),
                cmocka_unit_test_teardown(test_detach_without_memory, teardown),
                cmocka_unit_test_teardown(test_loop_that_stood_still, teardown),
                cmocka_unit_test_teardown(test_device_is_another_now, teardown),
                cmocka_unit_test_teardown(test_device_that_stays_away, teardown),
                cmocka_unit_test_teardown(test_no_flush_at_the_start, teardown),
                cmocka_unit_test_teardown(test_drop_hangs_as_the_device_goes, teardown),
                cmocka_unit_test_teardown(test_drop_waits_as_the_device_goes, teardown),
        };

        assert_bind_loop();
        return cmocka_run_group_tests(tests, NULL, NULL);
}
