/* The catalog with as many entries as a large device has: memory, and how far look-ups go. */
#include "tests/unit/catalog.h"

/* Size and speed */

/* Entries that a search looks at, on the average over all entries, and the longest chain. */
static double mean_search(const struct catalog *c, uint32_t *ret_longest)
{
        uint64_t sum = 0, n = 0;

        *ret_longest = 0;
        for (uint32_t b = 0; b < c->n_buckets; b++) {
                uint32_t length = 0;
                for (uint32_t i = c->buckets[b]; i != POOL_NONE; i = catalog_at(c, i)->next)
                        sum += ++length;
                n += length;
                *ret_longest = length > *ret_longest ? length : *ret_longest;
        }
        return (double)sum / (double)(n ? n : 1);
}

static uint64_t resident_bytes(void)
{
        unsigned long long pages = 0;
        FILE *f = fopen("/proc/self/statm", "re");

        CHECK(f && fscanf(f, "%*u %llu", &pages) == 1);
        fclose(f);
        return pages * 4096;
}

static void test_a_tebibyte_of_blocks(void **state)
{
        enum { N = CHECK_SLOW == 1 ? 4194304 : 262144, DEPTH = 512 };
        uint64_t before = resident_bytes(), grown;
        uint32_t longest;
        struct catalog c;

        CHECK_OK(catalog_init(&c, 1u << 31)); /* address space only */
        CHECK(catalog_bytes(&c) < 65536);
        for (uint64_t n = 0; n < N; n++)
                add_live(&c, n, n % DEPTH ? (int64_t)n - 1 : -1);
        CHECK_EQ(c.n_live, N);
        CHECK(catalog_bytes(&c) <= 48ull * N);
        if (CHECK_SLOW == 1) { /* and it is the truth, but for the huge pages at both ends and what the process had to spare */
                grown = resident_bytes() - before;
                CHECK(grown <= catalog_bytes(&c) + (8 << 20) && grown + (8 << 20) >= catalog_bytes(&c));
        }
        CHECK(mean_search(&c, &longest) < 2.1); /* two a bucket: 2 */
        CHECK(longest <= 24);
        for (uint64_t n = 0; n < N; n += 7)
                CHECK_EQ(find(&c, n), n + 1);
        for (uint64_t n = N; n < N + 10000; n++)
                CHECK_EQ(find(&c, n), POOL_NONE);
        CHECK(catalog_reachable(&c, find(&c, N - 1)));
        check_sound(&c);

        for (uint64_t n = N; n-- > 1000;) /* nearly all goes; what is left is found no slower, and so is what comes then */
                catalog_remove(&c, find(&c, n));
        CHECK_EQ(c.pool.n_used, 1000);
        CHECK(mean_search(&c, &longest) < 1.1);
        uint64_t at_most = catalog_bytes(&c);
        for (uint64_t n = 0; n < N / 2; n++)
                add_live(&c, 1ull << 40 | n, -1);
        CHECK(mean_search(&c, &longest) < 2.1); /* two a bucket: 2 */
        CHECK_EQ(catalog_bytes(&c), at_most); /* in the room that was left */
        check_sound(&c);
        catalog_deinit(&c);
}

/* Every size on the way: whatever was split last, all are found. */
static void test_growing_by_single_buckets(void **state)
{
        struct catalog c;

        CHECK_OK(catalog_init(&c, 3000));
        for (uint64_t n = 0; n < 3000; n++) {
                uint32_t buckets = c.n_buckets;
                add_live(&c, n, -1);
                CHECK(c.n_buckets - buckets <= 1);
                CHECK(c.pool.n_used <= 2 * c.n_buckets);
                if (n < 300 || n % 100 == 0)
                        for (uint64_t k = 0; k <= n; k++)
                                CHECK_EQ(find(&c, k), k + 1);
        }
        uint8_t key[16];
        key_of(5000, key);
        CHECK_EQ(catalog_add(&c, 1, 0, key, NULL, (struct record_at){.n_pages = 1}, 0), POOL_NONE);
        CHECK_EQ(catalog_add_drop(&c, 1, 0, key, (struct record_at){.n_pages = 1}), POOL_NONE);
        check_sound(&c);
        catalog_deinit(&c);
}

/* Keys that a client would choose to meet in one bucket, if it knew which part of a key counts. */
static void test_keys_that_are_alike(void **state)
{
        enum { N = CHECK_SLOW == 1 ? 200000 : 30000 };

        for (int kind = 0; kind < 7; kind++) {
                uint32_t longest;
                struct catalog c;
                CHECK_OK(catalog_init(&c, N));
                for (uint64_t n = 0; n < N; n++) {
                        uint64_t half[2] = {}, spread = kind & 1 ? n << 40 : n;
                        uint32_t space = 1, shard = 0;
                        uint8_t key[16];
                        if (kind < 2) { /* the first 8 bytes are equal */
                                half[1] = spread;
                        } else if (kind < 4) { /* the last */
                                half[0] = spread;
                        } else if (kind == 4) { /* one changes against the other */
                                half[0] = n;
                                half[1] = ~n;
                        } else { /* space and shard change, alone or against the key */
                                space = (uint32_t)(n >> 8);
                                shard = n & 255;
                                half[1] = kind == 5 ? n << 32 : 0;
                        }
                        memcpy(key, half, 16);
                        CHECK(catalog_add(&c, space, shard, key, NULL, (struct record_at){.n_pages = 1}, 0) != POOL_NONE);
                }
                double mean = mean_search(&c, &longest);
                if (mean >= 2.5 || longest > 24) /* two a bucket, some of which are not split yet */
                        check_failed(__FILE__, __LINE__, "keys of kind %d: %.2f entries a search, %u at most", kind, mean, longest);
                check_sound(&c);
                catalog_deinit(&c);
        }
}

int main(void)
{
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_a_tebibyte_of_blocks),
                cmocka_unit_test(test_growing_by_single_buckets),
                cmocka_unit_test(test_keys_that_are_alike),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
