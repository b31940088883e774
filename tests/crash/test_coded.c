/* Demotions that are coded and wait for room in a log, when the device hangs, fails, is full, or the daemon ends: durable puts are told, nothing is left of what waited, and
 * what was promised is back. Each test twice: records lossless, and within a bound. */
#include "daemon/util/metrics.h"
#include "tests/crash/blocks.h"

enum { N = 12, NOT_YET = -1 };

static struct wish {
        uint32_t block;
        int status; /* or NOT_YET */
} wishes[N];

static void on_wish(struct durable *d, int r, void *arg)
{
        ((struct wish *)arg)->status = r;
}

static void begin(bool lossy)
{
        log_set_level("error");
        store_init(&st, 1, 24, lossy ? "nvme_admit_hits=1\ncodec_nvme=kivi:bits=4\n" : "nvme_admit_hits=1\ncodec_nvme=zbf\n");
        st.values = true;
        st.max_rel_l2 = lossy ? 0.1f : 0;
        store_open(&st);
        store_serve(&st);
}

static int teardown(void **state)
{
        store_deinit(&st);
        return 0;
}

static void wish_for(uint32_t i)
{
        uint8_t key[16];
        int r;

        wishes[i] = (struct wish){i, NOT_YET};
        key_make(i, key);
        if (!durable_start(&st.e, st.s[SPACE], 0, key, on_wish, &wishes[i], &r) && r)
                wishes[i].status = r;
}

static void put_all(void)
{
        for (uint32_t i = 0; i < N; i++)
                CHECK_OK(block_put(i, ROOT, 1));
}

static void wish_for_all(void)
{
        for (uint32_t i = 0; i < N; i++)
                wish_for(i);
}

static uint32_t n_waiting(void)
{
        uint32_t n = 0;

        list_for_each (x, &st.e.coded, struct xfer, job.link)
                n++;
        return n;
}

/* The device takes nothing: all are coded, none has a place. */
static void wait_coded(void)
{
        uint64_t n = metrics.c_coded_planes;

        put_all();
        st.disk->hangs = true;
        wish_for_all();
        TURN_UNTIL(&st, n_waiting() == N);
        CHECK_EQ(metrics.c_coded_planes - n, N * shapes[SPACE].n_planes);
        CHECK_EQ(st.e.coding_bytes, N * BYTES);
        store_audit(&st);
}

static bool all_answered(void)
{
        for (uint32_t i = 0; i < N; i++)
                if (wishes[i].status == NOT_YET)
                        return false;
        return true;
}

static void nothing_is_left(void)
{
        TURN_UNTIL(&st, all_answered() && !st.e.xfers.n_used);
        CHECK_EQ(n_waiting(), 0);
        CHECK_EQ(st.e.coding_bytes, 0);
        CHECK_EQ(st.e.n_demoting, 0);
        CHECK_EQ(st.t->n_xfers, 0);
        CHECK_EQ(st.t->n_leases, 0);
        for (uint32_t i = 0; i < N; i++) {
                uint8_t key[16];
                key_make(i, key);
                uint32_t b = blocks_find(&st.e.blocks, st.s[SPACE]->id, key);
                CHECK(b == POOL_NONE || !block_at(&st.e.blocks, b)->n_demotes);
        }
        store_audit(&st);
}

/* The power goes: what was promised, or never refused, is there. */
static void promises_are_kept(void)
{
        reopen();
        for (uint32_t i = 0; i < N; i++)
                if (match_from(i, 1))
                        CHECK_OK(block_read(i, 1));
                else if (!wishes[i].status)
                        check_failed(__FILE__, __LINE__, "block %u was durable and is not back", i);
        store_audit(&st);
}

static void all_can_be_made_durable(void)
{
        wish_for_all();
        nothing_is_left();
        for (uint32_t i = 0; i < N; i++)
                CHECK_OK(wishes[i].status);
        promises_are_kept();
}

static void hangs(bool lossy)
{
        begin(lossy);
        struct nvme_device *d = store_device(&st);
        wait_coded();
        st.e.now_usec += 31 * USEC_PER_SEC;
        engine_expire(&st.e);
        CHECK_EQ(d->state, DEVICE_FAILED);
        nothing_is_left();
        for (uint32_t i = 0; i < N; i++)
                CHECK_IS(wishes[i].status, KVT_E_NO_DEVICE);
        st.disk->hangs = false;
        TURN_UNTIL(&st, nvme_attach(&st.e.nvme, st.path) == 0);
        store_serve(&st);
        for (uint32_t i = 0; i < N; i++) /* memory has them still */
                CHECK_OK(block_read(i, 1));
        all_can_be_made_durable();
}

/* One write or flush fails, whichever it is. */
static void fails_once(bool lossy)
{
        uint32_t n_refused = 0;

        for (uint32_t nth = 1; nth<2 * N; nth += CHECK_SLOW> 1 ? 7 : 1) {
                begin(lossy);
                wait_coded();
                sim_fail(st.disk, nth % 8 ? RING_WRITE : RING_FLUSH, nth % 8 ? nth : 1, -EIO);
                st.disk->hangs = false;
                nothing_is_left();
                for (uint32_t i = 0; i < N; i++) {
                        CHECK(wishes[i].status == 0 || wishes[i].status == KVT_E_IO || wishes[i].status == KVT_E_NO_DEVICE);
                        n_refused += wishes[i].status != 0;
                }
                promises_are_kept();
                store_deinit(&st);
        }
        CHECK(n_refused > 0);
}

static void is_full(bool lossy)
{
        begin(lossy);
        wait_coded();
        st.disk->full_segment_bytes = SEGMENT;
        st.disk->hangs = false;
        nothing_is_left();
        for (uint32_t i = 0; i < N; i++)
                CHECK_IS(wishes[i].status, KVT_E_NO_SPACE);
        for (uint32_t i = 0; i < N; i++)
                CHECK_OK(block_read(i, 1));
        CHECK_EQ(store_device(&st)->state, DEVICE_SERVING);
        st.disk->full_segment_bytes = 0;
        store_device(&st)->full_until_usec = st.e.now_usec; /* a minute later */
        all_can_be_made_durable();
}

/* What was dropped or replaced while its record waited is not written. */
static void goes_meanwhile(bool lossy)
{
        uint8_t key[16];

        begin(lossy);
        wait_coded();
        key_make(3, key);
        engine_kill(&st.e, blocks_find(&st.e.blocks, st.s[SPACE]->id, key), KVT_WHY_DROPPED);
        CHECK_OK(block_put(4, ROOT, 2));
        st.disk->hangs = false;
        nothing_is_left();
        for (uint32_t i = 0; i < N; i++)
                if (i != 3)
                        CHECK_OK(wishes[i].status);
        CHECK_IS(wishes[3].status, KVT_E_AGAIN);
        CHECK_OK(sync_all());
        reopen();
        for (uint32_t i = 0; i < N; i++)
                if (i == 3)
                        CHECK_EQ(match_from(i, 1), 0);
                else
                        CHECK_OK(block_read(i, i == 4 ? 2 : 1));
        store_audit(&st);
}

/* The daemon ends: in good order, or at once; with a device that comes round, or that does not. */
static void ends(bool lossy)
{
        for (int comes_round = 0; comes_round < 2; comes_round++) {
                begin(lossy);
                wait_coded();
                st.e.draining = true;
                for (int i = 0; i < 5; i++) {
                        CHECK(!engine_quiet(&st.e)); /* it waits for what is to be written */
                        store_turn(&st, 4);
                }
                if (comes_round) {
                        st.disk->hangs = false;
                } else {
                        st.e.now_usec += 31 * USEC_PER_SEC;
                        engine_expire(&st.e);
                }
                TURN_UNTIL(&st, engine_quiet(&st.e));
                nothing_is_left();
                for (uint32_t i = 0; i < N; i++)
                        CHECK_IS(wishes[i].status, comes_round ? 0 : KVT_E_NO_DEVICE);
                st.disk->hangs = false;
                store_close(&st);
                store_open(&st);
                store_serve(&st);
                promises_are_kept();
                store_deinit(&st);
        }
        begin(lossy);
        wait_coded();
        st.disk->hangs = false; /* or the rings are not to be closed */
        store_close(&st);
        CHECK(all_answered());
        store_open(&st);
        store_serve(&st);
        promises_are_kept();
}

/* The device is taken away. */
static void detached(bool lossy)
{
        begin(lossy);
        struct nvme_device *d = store_device(&st);
        wait_coded();
        CHECK_OK(nvme_detach(&st.e.nvme, st.path));
        st.disk->hangs = false;
        TURN_UNTIL(&st, d->state == DEVICE_DETACHED);
        nothing_is_left();
        for (uint32_t i = 0; i < N; i++)
                CHECK_IS(wishes[i].status, KVT_E_NO_DEVICE);
        CHECK_OK(nvme_attach(&st.e.nvme, st.path));
        store_serve(&st);
        all_can_be_made_durable();
}

#define TWICE(name)                                                                                                                        \
        static void test_##name(void **state)                                                                                              \
        {                                                                                                                                  \
                name(false);                                                                                                               \
        }                                                                                                                                  \
        static void test_##name##_within_a_bound(void **state)                                                                             \
        {                                                                                                                                  \
                name(true);                                                                                                                \
        }
TWICE(hangs)
TWICE(fails_once)
TWICE(is_full)
TWICE(goes_meanwhile)
TWICE(ends)
TWICE(detached)

#define BOTH(name) cmocka_unit_test_teardown(test_##name, teardown), cmocka_unit_test_teardown(test_##name##_within_a_bound, teardown)

int main(void)
{
        const struct CMUnitTest tests[] = {BOTH(hangs), BOTH(fails_once), BOTH(is_full), BOTH(goes_meanwhile), BOTH(ends), BOTH(detached)};

        assert_bind_loop();
        return cmocka_run_group_tests(tests, NULL, NULL);
}
