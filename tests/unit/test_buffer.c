/* Buffers: runs of pages are found where there are any, next-fit, never around the end, and belong to one owner at a time. */
#include "daemon/io/buffer.h"
#include "tests/lib/check.h"

enum { PAGE = 4096 };

static uint32_t rnd(uint64_t *seed, uint32_t below)
{
        *seed = *seed * 6364136223846793005ull + 1442695040888963407ull;
        return (uint32_t)(*seed >> 33) % below;
}

static void test_buffers(void **state)
{
        struct buffers b;
        uint8_t *p[200];

        CHECK_EQ(buffers_init(&b, 200 * PAGE), 0);
        CHECK(!buffers_take(&b, 201 * PAGE));
        for (unsigned i = 0; i < 200; i++) { /* next to each other */
                p[i] = buffers_take(&b, PAGE);
                CHECK(p[i] == b.arena + (size_t)i * PAGE);
        }
        CHECK(!buffers_take(&b, PAGE)); /* exhausted */
        CHECK_EQ(b.n_used, 200);
        for (unsigned i = 0; i < 200; i += 2) /* in fragments: half is free, but no two pages in a row */
                buffers_give(&b, p[i], PAGE);
        CHECK(!buffers_take(&b, 2 * PAGE));
        CHECK(buffers_take(&b, PAGE) == p[0]);
        CHECK(buffers_take(&b, PAGE) == p[2]);
        buffers_give(&b, p[63], PAGE); /* 62..64: a run over the border of a word */
        CHECK(buffers_take(&b, 3 * PAGE) == p[62]);
        buffers_give(&b, p[62], 3 * PAGE);
        buffers_give(&b, p[199], PAGE); /* 198, 199, and 0 is free, too: runs do not wrap around */
        buffers_give(&b, p[0], PAGE);
        CHECK(buffers_take(&b, 3 * PAGE) == p[62]);
        CHECK(!buffers_take(&b, 3 * PAGE));
        CHECK(buffers_take(&b, 2 * PAGE) == p[198]);
        CHECK_EQ(b.i_next, 0);
        buffers_deinit(&b);
        buffers_deinit(&b);
        CHECK_EQ(buffers_init(&b, 0), -EINVAL);

        /* a run that begins before the place to look first and ends after it is found */
        CHECK_EQ(buffers_init(&b, 64 * PAGE), 0);
        p[0] = buffers_take(&b, 30 * PAGE);
        p[1] = buffers_take(&b, 30 * PAGE);
        buffers_give(&b, p[1], 30 * PAGE);
        buffers_give(&b, p[0], 10 * PAGE);
        b.i_next = 40;
        CHECK(buffers_take(&b, 34 * PAGE) == p[1]);
        buffers_deinit(&b);
}

/* Against a map of owners kept by the test: nothing is given twice, and what fails had no room. */
static void test_buffers_random(void **state)
{
        enum { N = 300, MAX = 100 };
        uint64_t seed = 1;
        struct buffers b;
        struct {
                uint8_t *p;
                unsigned n;
        } held[MAX] = {};
        bool used[N] = {};
        unsigned n_full = 0;

        CHECK_EQ(buffers_init(&b, N * PAGE), 0);
        for (unsigned turn = 0; turn < 50000; turn++) {
                unsigned i = rnd(&seed, MAX);
                if (held[i].p) {
                        memset(used + (held[i].p - b.arena) / PAGE, 0, held[i].n);
                        buffers_give(&b, held[i].p, (size_t)held[i].n * PAGE);
                        held[i].p = NULL;
                        continue;
                }
                unsigned n = 1 + rnd(&seed, rnd(&seed, 20) ? 8 : 70), run = 0, longest = 0;
                for (unsigned k = 0; k < N; k++) {
                        run = used[k] ? 0 : run + 1;
                        longest = run > longest ? run : longest;
                }
                held[i].p = buffers_take(&b, (size_t)n * PAGE);
                held[i].n = n;
                CHECK_EQ(held[i].p != NULL, longest >= n);
                if (!held[i].p) {
                        n_full++;
                        continue;
                }
                unsigned at = (unsigned)((held[i].p - b.arena) / PAGE);
                for (unsigned k = at; k < at + n; k++) {
                        CHECK(!used[k]);
                        used[k] = true;
                }
        }
        CHECK(n_full > 100);
        buffers_deinit(&b);
}

int main(void)
{
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_buffers),
                cmocka_unit_test(test_buffers_random),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
