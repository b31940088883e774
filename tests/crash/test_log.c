/* Named faults of the log: what earlier lives of a segment left behind, chains of which a part is lost, writes and flushes that fail, and a wall clock
 * that is set back. */
#include <sys/syscall.h>
#include <time.h>

#include "daemon/util/metrics.h"
#include "tests/crash/blocks.h"

enum { SEGMENT_PAGES = SEGMENT / FORMAT_PAGE_BYTES, YEAR_SEC = 365 * 86400 };

/* The daemon's wall clock; its other clocks go on as they do. */
static int64_t shift_sec;

int clock_gettime(clockid_t clock, struct timespec *ret)
{
        int r = (int)syscall(SYS_clock_gettime, clock, ret);

        if (r == 0 && clock == CLOCK_REALTIME)
                ret->tv_sec += shift_sec;
        return r;
}
time_t time(time_t *ret)
{
        struct timespec now;

        clock_gettime(CLOCK_REALTIME, &now);
        if (ret)
                *ret = now.tv_sec;
        return now.tv_sec;
}

static void begin(uint32_t n_segments, const char *more)
{
        log_set_level("error");
        shift_sec = 0;
        store_init(&st, 1, n_segments, more);
        store_open(&st);
        store_serve(&st);
}

static int teardown(void **state)
{
        if (st.disk)
                store_deinit(&st);
        shift_sec = 0;
        return 0;
}

static uint64_t generation_of(uint32_t b)
{
        return store_device(&st)->segments[place_of(b).segment].generation;
}

/* earlier lives */

struct life { /* where a block was written first */
        struct record_at at;
        uint64_t generation;
};

/* Its bytes are on the disk still, and every checksum of them is right for the life that wrote them. */
static bool is_left_over(const struct life *l)
{
        static uint64_t record[RECORD_PAGES * FORMAT_PAGE_BYTES / 8];
        struct record_header *h = (struct record_header *)(void *)record;
        struct place at = {store_device(&st)->sb.uuid, l->at.segment, l->generation, l->at.page};

        sim_peek(st.disk, device_page_offset(store_device(&st), l->at), record, sizeof record);
        return record_header_check(h, sizeof record, &at, RECORD_PAGES) == 0 && record_payload_check(h, record_payload(h)) == 0;
}

static void test_records_of_an_earlier_life(void **state)
{
        enum { REPLACED = 5, BEHIND = 20, MAX = 400 };
        static struct life lives[MAX];
        uint32_t n, n_before = 0, n_new = 0, n_left = 0;

        begin(6, "nvme_admit_hits=0\n");
        for (n = 0; n < MAX && n_new < 3; n++) {
                block_store(n, ROOT);
                lives[n] = (struct life){place_of(n), generation_of(n)};
                if (n == BEHIND) { /* the first version is left behind, whole, in the first segment */
                        CHECK_OK(block_put(REPLACED, ROOT, 2));
                        CHECK_OK(block_make_durable(REPLACED));
                }
                n_before = n_new = 0;
                for (uint32_t b = 0; b <= n; b++) {
                        bool here = lives[b].at.segment == lives[n].at.segment;
                        n_before += here && lives[b].generation < lives[n].generation;
                        n_new += here && lives[b].generation == lives[n].generation;
                }
                if (!n_before)
                        n_new = 0;
        }
        CHECK(n < MAX);
        uint32_t segment = lives[n - 1].at.segment;
        CHECK(lives[REPLACED].at.segment == segment);
        /* a scan of the new life comes to a record of the old one, exactly where the next would begin */
        CHECK_EQ(store_device(&st)->log->segment, segment);
        uint32_t end = store_device(&st)->log->end_page;
        bool meets = false;
        for (uint32_t b = 0; b < n; b++)
                if (lives[b].at.segment == segment && lives[b].at.page >= end && is_left_over(&lives[b])) {
                        n_left++;
                        meets |= lives[b].at.page == end;
                }
        CHECK(n_left >= 8 && meets);
        CHECK(is_left_over(&lives[REPLACED]) || lives[REPLACED].at.page < end);
        for (int again = 0; again < 2; again++) { /* then the new life has a footer of its own */
                reopen();
                for (uint32_t b = 0; b < n; b++) {
                        bool old = lives[b].at.segment == segment && lives[b].generation < lives[n - 1].generation && b != REPLACED;
                        if (old && record_of(b) != POOL_NONE)
                                check_failed(__FILE__, __LINE__, "block %u is back from an earlier life of its segment", b);
                        if (b != REPLACED && record_of(b) != POOL_NONE) {
                                CHECK_EQ(generation_of(b), lives[b].generation);
                                CHECK_OK(block_read(b, 1));
                        }
                        if (lives[b].generation == lives[n - 1].generation)
                                CHECK(record_of(b) != POOL_NONE);
                }
                CHECK_OK(block_read(REPLACED, 2));
                CHECK_EQ(store_device(&st)->counters.n_torn, 0);
        }
}

/* An old header is what the power left of a new life, and the old footer is there, too: all of it may be served again, but nothing that was replaced since. */
static void test_a_footer_of_an_earlier_life(void **state)
{
        uint8_t footer[2 * FORMAT_PAGE_BYTES];
        uint32_t segment, b = 0;

        begin(6, "nvme_admit_hits=0\n");
        for (; !b || place_of(0).segment == place_of(b - 1).segment; b++)
                block_store(b, ROOT);
        TURN_UNTIL(&st, store_device(&st)->segments[place_of(0).segment].state == SEGMENT_SEALED);
        segment = place_of(0).segment;
        uint64_t at = format_segment_offset(&store_device(&st)->sb, segment) + SEGMENT - sizeof footer;
        sim_peek(st.disk, at, footer, sizeof footer);
        CHECK(!memcmp(footer + sizeof footer - 64, "kvtierFT", 8));
        for (; record_of(0) != POOL_NONE || store_device(&st)->log->segment != segment || store_device(&st)->log->n_entries < 2; b++) {
                CHECK(b < 400);
                block_store(b, ROOT);
        }
        sim_poke(st.disk, at, footer, sizeof footer);
        reopen();
        for (uint32_t k = 0; k < 15; k++)
                CHECK(record_of(k) == POOL_NONE);
        CHECK_OK(block_read(b - 1, 1));
}

/* chains */

enum { CHAIN = 6 };

static void make_chain(void)
{
        for (int b = 0; b < CHAIN; b++)
                CHECK_OK(block_put((uint32_t)b, b - 1, 1));
}

static void read_chain(void)
{
        for (uint32_t b = 0; b < CHAIN; b++)
                CHECK_OK(block_read(b, 1));
}

/* A durable put of the last block takes all before it along, which nobody asked to keep. */
static void test_a_durable_child_of_volatile_parents(void **state)
{
        begin(24, "nvme_admit_hits=1000\n");
        make_chain();
        for (int i = 0; i < 200; i++)
                store_turn(&st, 8);
        CHECK_EQ(store_device(&st)->n_records, 0);
        CHECK_OK(block_put(CHAIN, CHAIN - 3, 1)); /* another branch, which stays volatile */
        CHECK_OK(block_make_durable(CHAIN - 1));
        CHECK_EQ(store_device(&st)->n_records, CHAIN);
        reopen();
        CHECK_EQ(match_from(0, CHAIN), CHAIN);
        read_chain();
        CHECK(record_of(CHAIN) == POOL_NONE);
        /* and one below it, whose parents are on the disk alone */
        CHECK_OK(block_put(CHAIN, CHAIN - 1, 1));
        CHECK_OK(block_make_durable(CHAIN));
        reopen();
        CHECK_EQ(match_from(0, CHAIN + 1), CHAIN + 1);
        CHECK_OK(block_read(CHAIN, 1));
}

static void flip_bit(uint64_t offset)
{
        uint8_t byte;

        sim_peek(st.disk, offset, &byte, 1);
        byte ^= 16;
        sim_poke(st.disk, offset, &byte, 1);
}

/* A chain on the disk alone, of which block 2 is lost: what hangs on it is there, and cannot be had. */
static void make_orphans(void)
{
        begin(8, "nvme_admit_hits=0\nnvme_readahead_blocks=0\n");
        make_chain();
        CHECK_OK(block_make_durable(CHAIN - 1));
        reopen();
        flip_bit(offset_of(2) + 5000);
        CHECK_IS(block_read(2, 1), KVT_E_CORRUPT);
}

static void check_orphans(void)
{
        CHECK_EQ(match_from(0, CHAIN), 2);
        CHECK_EQ(match_from(3, CHAIN - 3), 0);
        CHECK(record_of(2) == POOL_NONE);
        for (uint32_t b = 3; b < CHAIN; b++) {
                CHECK(record_of(b) != POOL_NONE);
                CHECK_IS(block_read(b, 1), KVT_E_MISS);
                CHECK_IS(block_make_durable(b), KVT_E_AGAIN);
        }
        store_audit(&st);
}

static void test_orphans_wait_for_their_parent(void **state)
{
        make_orphans();
        check_orphans();
        TURN_UNTIL(&st, list_empty(&st.e.nvme.drops)); /* so that it is not read, and found damaged, again */
        CHECK_OK(sync_all());
        reopen();
        check_orphans();
        CHECK_OK(block_put(2, 1, 1));
        CHECK_EQ(match_from(0, CHAIN), CHAIN);
        read_chain();
        CHECK_OK(block_make_durable(CHAIN - 1));
        reopen();
        CHECK_EQ(match_from(0, CHAIN), CHAIN);
        read_chain();
        CHECK_EQ(store_device(&st)->n_records, CHAIN);
}

static void test_orphans_are_not_kept_for_ever(void **state)
{
        struct catalog *c = &st.e.nvme.catalog;

        make_orphans();
        for (uint32_t b = 0; b < CHAIN; b++) { /* all are worth moving, if they can be had */
                uint32_t i = record_of(b);
                if (i != POOL_NONE)
                        catalog_at(c, i)->flags |= ENTRY_USED;
        }
        CHECK_EQ(c->pool.n_used, c->n_live + 1); /* what is lost keeps its number for its child */
        for (uint32_t b = 100; record_of(3) != POOL_NONE || record_of(4) != POOL_NONE || record_of(5) != POOL_NONE; b++) {
                CHECK(b < 500);
                block_store(b, ROOT);
        }
        CHECK(record_of(0) != POOL_NONE && record_of(1) != POOL_NONE); /* what can be had was moved, what cannot was not */
        CHECK_EQ(c->pool.n_used, c->n_live);
        TURN_UNTIL(&st, !store_device(&st)->recycle); /* before that they might be back once more */
        CHECK_OK(sync_all());
        store_audit(&st);
        TURN_UNTIL(&st, !store_device(&st)->recycle); /* until their segment is wiped, and that flushed, a crash brings them back */
        CHECK_OK(sync_all());
        reopen();
        for (uint32_t b = 2; b < CHAIN; b++)
                CHECK(record_of(b) == POOL_NONE);
}

/* writes and flushes that fail */

static const char *fault_name(enum ring_opcode opcode, int error)
{
        return opcode == RING_FLUSH ? "flush" : error == -ENOSPC ? "write without room" : "write";
}

/* The nth operation of that kind fails, once. Whatever is called durable then is back after a crash. True: it happened. */
static bool fail_nth(enum ring_opcode opcode, uint32_t nth, int error)
{
        bool claimed, hit;
        int r;

        begin(12, "nvme_admit_hits=1000\n");
        make_chain();
        sim_fail(st.disk, opcode, nth, error);
        r = block_make_durable(CHAIN - 1);
        hit = !st.disk->faults[opcode].in;
        claimed = r == 0;
        if (r != 0 && r != (error == -ENOSPC ? KVT_E_NO_SPACE : KVT_E_IO) && !(opcode == RING_FLUSH && r == KVT_E_NO_DEVICE))
                check_failed(__FILE__, __LINE__, "%s %u: a durable put is answered %s", fault_name(opcode, error), nth, kvt_error_name(r));
        CHECK(claimed || hit);
        CHECK_EQ(match_from(0, CHAIN), CHAIN); /* memory goes on */
        read_chain();
        if (!claimed && opcode == RING_FLUSH) { /* what was written may be lost, though a later flush went well */
                CHECK_EQ(store_device(&st)->state, DEVICE_DRAINING);
                CHECK_IS(block_make_durable(CHAIN - 1), KVT_E_NO_DEVICE);
        } else if (!claimed) {
                CHECK_EQ(store_device(&st)->state, DEVICE_SERVING);
                store_device(&st)->full_until_usec = st.e.now_usec; /* a minute later */
                claimed = block_make_durable(CHAIN - 1) == 0;
                if (!claimed)
                        check_failed(__FILE__, __LINE__, "%s %u: nothing becomes durable afterwards", fault_name(opcode, error), nth);
        }
        store_audit(&st);
        reopen();
        if (claimed && match_from(0, CHAIN) != CHAIN)
                check_failed(__FILE__, __LINE__, "%s %u failed, but what was called durable is not back", fault_name(opcode, error), nth);
        for (uint32_t b = 0; b < match_from(0, CHAIN); b++)
                CHECK_OK(block_read(b, 1));
        store_deinit(&st);
        return hit;
}

static void test_each_write_and_each_flush_fails(void **state)
{
        static const struct {
                enum ring_opcode opcode;
                int error;
                uint32_t n; /* at least so many are to be met */
        } faults[] = {{RING_WRITE, -EIO, CHAIN + 2}, {RING_WRITE, -ENOSPC, CHAIN + 2}, {RING_FLUSH, -EIO, 2}};

        for (size_t i = 0; i < ELEMENTSOF(faults); i++) {
                uint32_t n = 0;
                while (fail_nth(faults[i].opcode, n + 1, faults[i].error))
                        n++;
                CHECK(n >= faults[i].n);
        }
}

static void test_a_full_file_system_from_the_start(void **state)
{
        begin(8, "nvme_admit_hits=0\n");
        st.disk->full_segment_bytes = SEGMENT;
        make_chain();
        CHECK_IS(block_make_durable(CHAIN - 1), KVT_E_NO_SPACE);
        CHECK_EQ(match_from(0, CHAIN), CHAIN);
        CHECK_EQ(store_device(&st)->state, DEVICE_SERVING);
        CHECK_EQ(store_device(&st)->n_records, 0);
        st.disk->full_segment_bytes = 0;
        store_device(&st)->full_until_usec = st.e.now_usec; /* a minute later */
        CHECK_OK(block_make_durable(CHAIN - 1));
        reopen();
        CHECK_EQ(match_from(0, CHAIN), CHAIN);
        read_chain();
}

/* It becomes full after so many blocks. What it has is used again, if that is enough to go round, and what it promised is kept. */
static void fill_up(uint32_t n_first, bool goes_on)
{
        enum { MORE = 90 };
        bool promised[200] = {};
        uint32_t n_kept = 0, n_refused = 0, n_late = 0;

        begin(16, "nvme_admit_hits=1000\n");
        for (uint32_t b = 0; b < n_first; b++) {
                CHECK_OK(block_put(b, ROOT, 1));
                CHECK_OK(block_make_durable(b));
        }
        st.disk->full_segment_bytes = SEGMENT;
        for (uint32_t b = n_first; b < n_first + MORE; b++) {
                CHECK_OK(block_put(b, ROOT, 1));
                int r = block_make_durable(b);
                CHECK(r == 0 || r == KVT_E_NO_SPACE);
                n_refused += r != 0;
                n_late += r == 0 && b >= n_first + MORE / 2;
        }
        CHECK_EQ(store_device(&st)->state, DEVICE_SERVING);
        CHECK(goes_on ? n_late == MORE / 2 && n_refused < MORE / 4 : !n_late);
        for (uint32_t b = 0; b < n_first + MORE; b++) /* those that were not pushed out */
                promised[b] = record_of(b) != POOL_NONE;
        CHECK_OK(sync_all());
        store_audit(&st);
        reopen();
        for (uint32_t b = 0; b < n_first + MORE; b++) {
                if (promised[b])
                        CHECK_OK(block_read(b, 1));
                n_kept += promised[b];
        }
        if (n_kept < (goes_on ? 10 : n_first))
                check_failed(__FILE__, __LINE__, "full after %u blocks: %u are back, %u were refused", n_first, n_kept, n_refused);
        store_deinit(&st);
}

static void test_a_file_system_that_becomes_full(void **state)
{
        for (uint32_t n = 1; n <= 60; n += 4 * CHECK_SLOW)
                fill_up(n, n >= 23);
}

/* the clock */

static void check_versions(uint32_t n, uint32_t version)
{
        for (uint32_t b = 0; b < n; b++) {
                CHECK_EQ(match_from(b, 1), 1);
                CHECK_OK(block_read(b, version));
        }
}

/* A start in the future, one long ago, one now: what was written last counts, not what has the latest date. */
static void test_the_clock_goes_back(void **state)
{
        static const int64_t years[] = {0, 20, -15, 0, -30, -40};
        uint64_t newest = 0;

        begin(10, "nvme_admit_hits=1000\n");
        for (uint32_t i = 0; i < ELEMENTSOF(years); i++) {
                if (i) {
                        store_crash(&st);
                        shift_sec = years[i] * YEAR_SEC;
                        store_open(&st);
                        store_serve(&st);
                        check_versions(4, i);
                }
                for (uint32_t b = 0; b < 4; b++) {
                        CHECK_OK(block_put(b, ROOT, i + 1));
                        CHECK_OK(block_make_durable(b));
                        CHECK(generation_of(b) >= newest);
                        newest = generation_of(b);
                }
                if (i % 2) /* between two puts as well */
                        shift_sec -= 3 * YEAR_SEC;
                for (uint32_t b = 100 * i + 100; b < 100 * i + 120; b++) { /* into other segments, and some of them recycled */
                        CHECK_OK(block_put(b, ROOT, 1));
                        CHECK_OK(block_make_durable(b));
                }
                check_versions(4, i + 1);
        }
        CHECK(metrics.c_nvme_recycled > 0);
        store_audit(&st);
        /* gone is gone, too */
        shift_sec = -45ll * YEAR_SEC;
        uint8_t key[16];
        key_make(0, key);
        uint32_t block = blocks_find(&st.e.blocks, st.s[SPACE]->id, key);
        CHECK(block != POOL_NONE);
        engine_kill(&st.e, block, KVT_WHY_DROPPED);
        TURN_UNTIL(&st, list_empty(&st.e.nvme.drops));
        CHECK_OK(sync_all());
        store_crash(&st);
        shift_sec = 0;
        store_open(&st);
        store_serve(&st);
        CHECK(record_of(0) == POOL_NONE);
        check_versions(0, 0);
        for (uint32_t b = 1; b < 4; b++)
                CHECK_OK(block_read(b, ELEMENTSOF(years)));
}

static uint32_t block_of(uint32_t b)
{
        uint8_t key[16];

        key_make(b, key);
        return blocks_find(&st.e.blocks, st.s[SPACE]->id, key);
}

/* A record whose parent is gone matches nothing, so its block can be put again. Keys name what blocks hold, so the record stays what it was promised to be:
 * the power may be cut before the other copy is written. */
static void test_another_copy_of_an_orphan(void **state)
{
        uint8_t key[16];

        begin(24, "nvme_admit_hits=1000\n");
        CHECK_OK(block_put(0, ROOT, 1));
        CHECK_OK(block_put(1, 0, 1));
        CHECK_OK(block_make_durable(1));
        engine_kill(&st.e, block_of(0), KVT_WHY_EVICTED);
        key_make(0, key);
        nvme_drop_part(&st.e.nvme, st.s[SPACE], 0, key, false);
        CHECK(record_of(0) == POOL_NONE && record_of(1) != POOL_NONE && block_of(1) == POOL_NONE);
        CHECK_EQ(match_from(0, 2), 0);
        CHECK_OK(block_put(0, ROOT, 1));
        block_fill(1, 2);
        put = (struct put){.space = st.s[SPACE], .has_parent = true, .staging = st.staging, .done = on_put};
        list_init(&put.link);
        key_make(0, put.parent);
        key_make(1, put.key);
        status = 1;
        CHECK_EQ(put_start(&st.e, &put), PUT_PENDING);
        TURN_UNTIL(&st, status != 1);
        CHECK_OK(status);
        CHECK_OK(block_read(1, 2));
        CHECK_OK(block_make_durable(0));
        reopen();
        CHECK_EQ(match_from(0, 2), 2);
        CHECK_OK(block_read(1, 1));
        store_audit(&st);
}

static uint64_t left_after_a_start(int64_t shift)
{
        store_crash(&st);
        shift_sec = shift;
        metrics.c_nvme_written_bytes = 0; /* as in a process of its own */
        store_open(&st);
        store_serve(&st);
        store_turn(&st, 8);
        return budget_left(&st.e.budget, st.e.now_usec);
}

/* What was written in the day before counts for the budget. Segments that are dated in the future do, those of long ago do not; in no case is more
 * taken than there is, nor is the tier shut. */
static void test_the_budget_when_the_clock_goes_back(void **state)
{
        const uint64_t budget = 16ull * SEGMENT, slack = SEGMENT, meanwhile = 64 << 10; /* comes back within five minutes */

        metrics.c_nvme_written_bytes = 0;
        begin(20, "nvme_admit_hits=1000\nnvme_write_day_bytes=16M\n");
        for (uint32_t b = 0; b < 40; b++) {
                CHECK_OK(block_put(b, ROOT, 1));
                CHECK_OK(block_make_durable(b));
        }
        uint64_t used = left_after_a_start(0);
        CHECK(used <= budget - 3 * SEGMENT && used >= budget - 5 * SEGMENT);
        CHECK(left_after_a_start(-10ll * YEAR_SEC) + slack >= used && left_after_a_start(-10ll * YEAR_SEC) <= used + meanwhile);
        CHECK_OK(block_put(50, ROOT, 1));
        CHECK_OK(block_make_durable(50));
        CHECK(left_after_a_start(10ll * YEAR_SEC) + slack >= budget);
        CHECK_OK(block_put(51, ROOT, 1));
        CHECK_OK(block_make_durable(51));
        for (uint32_t b = 0; b < 40; b++)
                CHECK_OK(block_read(b, 1));
}

#define FAULT(f) cmocka_unit_test_teardown(f, teardown)

int main(void)
{
        const struct CMUnitTest tests[] = {
                FAULT(test_another_copy_of_an_orphan),           FAULT(test_records_of_an_earlier_life),
                FAULT(test_a_footer_of_an_earlier_life),         FAULT(test_a_durable_child_of_volatile_parents),
                FAULT(test_orphans_wait_for_their_parent),       FAULT(test_orphans_are_not_kept_for_ever),
                FAULT(test_each_write_and_each_flush_fails),     FAULT(test_a_full_file_system_from_the_start),
                FAULT(test_a_file_system_that_becomes_full),     FAULT(test_the_clock_goes_back),
                FAULT(test_the_budget_when_the_clock_goes_back),
        };

        assert_bind_loop();
        return cmocka_run_group_tests(tests, NULL, NULL);
}
