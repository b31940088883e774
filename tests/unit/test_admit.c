/* The policy of writing to NVMe: the budget against plain arithmetic, what is admitted, which segment goes. */
#include "daemon/policy/admit.h"
#include "tests/lib/check.h"

static const uint64_t sec = 1000000, day = 86400ull * 1000000, gib = 1ull << 30;
static uint64_t seed = 1;

static uint64_t below(uint64_t n)
{
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        return (seed >> 20) % n;
}

static void test_budget_of_a_day(void **state)
{
        struct write_budget b;

        budget_init(&b, 86400 * 1000, 0, 5 * sec); /* 1,000 bytes a second */
        CHECK_EQ(budget_left(&b, 5 * sec), 86400000);
        CHECK(!budget_take(&b, 86400001, 5 * sec));
        CHECK_EQ(budget_left(&b, 5 * sec), 86400000); /* a refusal takes nothing */
        CHECK(budget_take(&b, 86400000, 5 * sec));
        CHECK(!budget_take(&b, 1, 5 * sec));
        CHECK(budget_take(&b, 0, 5 * sec));
        CHECK_EQ(budget_left(&b, 15 * sec), 10000);
        CHECK(!budget_take(&b, 10001, 15 * sec));
        CHECK(budget_take(&b, 10000, 15 * sec));
        budget_give_back(&b, 400);
        CHECK_EQ(budget_left(&b, 15 * sec), 400);
        budget_give_back(&b, UINT64_MAX); /* never more than there is room for */
        CHECK_EQ(budget_left(&b, 15 * sec), 86400000);
        CHECK(budget_take(&b, 86400000, 15 * sec));
        CHECK_EQ(budget_left(&b, 15 * sec + day / 2), 43200000);
        CHECK_EQ(budget_left(&b, 15 * sec + 400 * day), 86400000);
}

static void test_budget_none(void **state)
{
        struct write_budget b;

        budget_init(&b, 0, 0, 0);
        CHECK_EQ(budget_left(&b, 0), (long long)UINT64_MAX);
        for (int i = 0; i < 10; i++)
                CHECK(budget_take(&b, UINT64_MAX, (uint64_t)i));
        budget_give_back(&b, 5);
        CHECK(budget_take(&b, UINT64_MAX, day));
        budget_set(&b, 100, day);
        CHECK_EQ(budget_left(&b, day), 100);
}

static void test_budget_counts_what_was_written_before(void **state)
{
        struct write_budget b;

        budget_init(&b, 100 * gib, 30 * gib, 0);
        CHECK_EQ(budget_left(&b, 0), 70 * gib);
        budget_init(&b, 100 * gib, 300 * gib, 0); /* written without a limit, or under another */
        CHECK_EQ(budget_left(&b, 0), 0);
        CHECK(!budget_take(&b, 1, 0));
        CHECK_EQ(budget_left(&b, day / 4), 25 * gib);
        budget_init(&b, 100, UINT64_MAX, UINT64_MAX - 5);
        CHECK_EQ(budget_left(&b, UINT64_MAX - 5), 0);
        budget_set(&b, UINT64_MAX, UINT64_MAX - 5);
        CHECK_EQ(budget_left(&b, UINT64_MAX - 5), 0);
}

static void test_budget_and_a_clock_that_goes_back(void **state)
{
        struct write_budget b;

        budget_init(&b, 86400 * 1000, 0, 1000 * sec);
        CHECK(budget_take(&b, 86400000, 1000 * sec));
        CHECK_EQ(budget_left(&b, 0), 0);
        CHECK(!budget_take(&b, 1, 999 * sec));
        CHECK_EQ(budget_left(&b, 1001 * sec), 1000);
        for (int i = 0; i < 1000; i++) { /* to and fro: no second is counted twice */
                CHECK_EQ(budget_left(&b, 500 * sec), 1000);
                CHECK_EQ(budget_left(&b, 1001 * sec), 1000);
        }
        budget_set(&b, 86400 * 2000, 3 * sec);
        CHECK_EQ(budget_left(&b, 4 * sec), 86401000);
        CHECK_EQ(budget_left(&b, 1002 * sec), 86403000);
}

static void test_budget_changes_while_running(void **state)
{
        struct write_budget b;

        budget_init(&b, 100 * gib, 0, 0);
        CHECK(budget_take(&b, 80 * gib, 0));
        budget_set(&b, 200 * gib, 0);
        CHECK_EQ(budget_left(&b, 0), 120 * gib);
        budget_set(&b, 90 * gib, 0);
        CHECK_EQ(budget_left(&b, 0), 10 * gib);
        budget_set(&b, 10 * gib, 0);
        CHECK_EQ(budget_left(&b, 0), 0);
        CHECK_EQ(budget_left(&b, day / 10), gib); /* not for days: a day's worth is used, no more */
        budget_set(&b, 100 * gib, day / 10);
        CHECK_EQ(budget_left(&b, day / 10), 21 * gib); /* lowering and raising gave nothing away */
        budget_set(&b, 0, day / 10);
        CHECK(budget_take(&b, 500 * gib, day / 10));
        budget_set(&b, 100 * gib, day / 10);
        CHECK_EQ(budget_left(&b, day / 10), 21 * gib);
        for (int i = 0; i < 1000; i++) { /* a limit that stays the same is no change */
                budget_set(&b, 10 * gib, day / 10);
                budget_set(&b, 100 * gib, day / 10);
        }
        CHECK_EQ(budget_left(&b, day / 10), 21 * gib);
        budget_set(&b, 10 * gib, day / 10);
        budget_set(&b, 100 * gib, 2 * day); /* what was beyond the limit is a day old */
        CHECK_EQ(budget_left(&b, 2 * day), 100 * gib);
}

/* However often it is asked, neither a byte too much nor one too little comes. */
static void test_budget_is_exact(void **state)
{
        static const uint64_t rates[] = {1, 7, 86399, 86400ull * 1000000 + 1, 1ull << 40, UINT64_MAX};

        for (size_t r = 0; r < sizeof rates / sizeof rates[0]; r++) {
                uint64_t now = 0, rate = rates[r];
                struct write_budget b;
                budget_init(&b, rate, rate, 0);
                for (int i = 0; i < 20000; i++) {
                        now += below(i % 100 ? 3 : 2000000);
                        uint64_t expected = (uint64_t)((__uint128_t)rate * now / day);
                        if (budget_left(&b, now) != (expected < rate ? expected : rate))
                                check_failed(__FILE__, __LINE__, "rate %llu at %llu: %llu left, expected %llu", (unsigned long long)rate,
                                             (unsigned long long)now, (unsigned long long)budget_left(&b, now),
                                             (unsigned long long)expected);
                }
        }
}

/* In any day, at most a day's bytes and those that were in the bucket; the model adds up what was granted. */
static void test_budget_holds_whatever_comes(void **state)
{
        enum { PER_DAY = 1000000 };

        for (int round = 0; round < 50; round++) {
                uint64_t now = below(day), start = now, granted = 0;
                struct write_budget b;
                budget_init(&b, PER_DAY, 0, now);
                for (int i = 0; i < 2000; i++) {
                        uint64_t bytes = below(3000), left;
                        now += below(day / 1000);
                        left = budget_left(&b, below(4) ? now : below(now + 1));
                        CHECK(left <= PER_DAY);
                        bool took = budget_take(&b, bytes, below(4) ? now : below(now + 1));
                        CHECK(took || bytes > left);
                        granted += took ? bytes : 0;
                        if (took && !below(5)) {
                                budget_give_back(&b, bytes);
                                granted -= bytes;
                        }
                        CHECK(granted <= PER_DAY + (now - start) * PER_DAY / day);
                }
                CHECK(granted > PER_DAY / 2);
        }
}

static void test_admit(void **state)
{
        CHECK(!admit_block(0, 1, false, false));
        CHECK(admit_block(1, 1, false, false));
        CHECK(!admit_block(1, 2, false, false));
        CHECK(admit_block(5, 2, false, false));
        CHECK(admit_block(0, 0, false, false)); /* 0: everything */
        CHECK(admit_block(0, 9, true, false));
        CHECK(admit_block(0, 9, false, true));
}

static void test_pick_segment(void **state)
{
        struct victim_view v[] = {
                {.generation = 9, .used_pages = 240, .capacity_pages = 1000},
                {.generation = 5, .used_pages = 700, .capacity_pages = 1000},
                {.generation = 8, .used_pages = 0, .capacity_pages = 1000},
                {.generation = 7, .used_pages = 0, .capacity_pages = 1000},
                {.generation = 3, .used_pages = 250, .capacity_pages = 1000},
                {.generation = 1, .used_pages = 900, .capacity_pages = 1000, .busy = true},
                {.generation = 6, .used_pages = 240, .capacity_pages = 1000},
        };

        CHECK_EQ(admit_pick_segment(v, 0), -1);
        CHECK_EQ(admit_pick_segment(v, 7), 3); /* empty, and the older of two */
        v[3].busy = true;
        CHECK_EQ(admit_pick_segment(v, 7), 2);
        v[2].busy = true;
        CHECK_EQ(admit_pick_segment(v, 7), 6); /* the fewest; the older of two */
        v[0].used_pages = 239;
        CHECK_EQ(admit_pick_segment(v, 7), 0);
        v[0].busy = v[6].busy = true;
        CHECK_EQ(admit_pick_segment(v, 7), 4); /* a quarter is not less than a quarter: the oldest, which this is */
        v[4].generation = 30;
        CHECK_EQ(admit_pick_segment(v, 7), 1);
        v[4].used_pages = 249;
        CHECK_EQ(admit_pick_segment(v, 7), 4);
        v[1].busy = v[4].busy = true;
        CHECK_EQ(admit_pick_segment(v, 7), -1);
        struct victim_view large = {.generation = 1, .used_pages = UINT32_MAX, .capacity_pages = UINT32_MAX};
        CHECK_EQ(admit_pick_segment(&large, 1), 0);
}

int main(void)
{
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_budget_of_a_day),
                cmocka_unit_test(test_budget_none),
                cmocka_unit_test(test_budget_counts_what_was_written_before),
                cmocka_unit_test(test_budget_and_a_clock_that_goes_back),
                cmocka_unit_test(test_budget_changes_while_running),
                cmocka_unit_test(test_budget_is_exact),
                cmocka_unit_test(test_budget_holds_whatever_comes),
                cmocka_unit_test(test_admit),
                cmocka_unit_test(test_pick_segment),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
