#include <string.h>

#include "daemon/store/headers.h"
#include "tests/lib/check.h"

static struct headers c;
static uint8_t page[HEADERS_PAGES_MAX + 1][FORMAT_PAGE_BYTES];

static const struct record_header *content(unsigned n)
{
        memset(page, (int)n, sizeof(page));
        return (const struct record_header *)(void *)page;
}

/* Found under its own place and life, and no other. */
static void test_headers_place(void **state)
{
        struct record_at at = {1, 2, 3, 40}, other;

        headers_add(&c, at, 7, content(1), 2);
        struct cached_header *h = headers_find(&c, at, 7);
        CHECK(h != NULL);
        CHECK_EQ(h->n_pages, 2);
        CHECK_EQ(memcmp(h->header, page, 2 * FORMAT_PAGE_BYTES), 0);
        CHECK(headers_find(&c, at, 8) == NULL);
        for (int i = 0; i < 4; i++) {
                other = at;
                *(i == 0 ? &other.device : i == 1 ? &other.segment : i == 2 ? &other.page : &other.n_pages) += 1;
                CHECK(headers_find(&c, other, 7) == NULL);
        }
        CHECK(headers_unref(h) == NULL);
        headers_deinit(&c);
        CHECK(headers_find(&c, at, 7) == NULL);
}

/* One that is in use stays what it is, though its slot goes to another or the cache ends. */
static void test_headers_replaced(void **state)
{
        struct record_at at = {0, 5, 6, 7};
        struct cached_header *h;
        uint32_t n_found = 0;

        headers_add(&c, at, 1, content(1), 1);
        h = headers_find(&c, at, 1);
        for (uint32_t i = 0; i < 4 * HEADERS_MAX; i++) {
                struct record_at more = {0, 9, i, 2};
                headers_add(&c, more, 1, content(2), 1);
        }
        for (uint32_t i = 0; i < 4 * HEADERS_MAX; i++) {
                struct cached_header *x = headers_find(&c, (struct record_at){0, 9, i, 2}, 1);
                n_found += x != NULL;
                headers_unref(x);
        }
        CHECK(n_found > HEADERS_MAX / 2 && n_found <= HEADERS_MAX); /* they spread, and there are no more than that */
        CHECK(headers_find(&c, at, 1) == NULL);
        headers_deinit(&c);
        content(1);
        CHECK_EQ(memcmp(h->header, page, FORMAT_PAGE_BYTES), 0);
        headers_unref(h);
}

/* What is too long is not kept; the same twice is there once, as it was last. */
static void test_headers_limits(void **state)
{
        struct record_at at = {0, 1, 1, 9};

        headers_add(&c, at, 1, content(1), HEADERS_PAGES_MAX + 1);
        CHECK(headers_find(&c, at, 1) == NULL);
        headers_add(&c, at, 1, content(1), HEADERS_PAGES_MAX);
        headers_add(&c, at, 1, content(3), 1);
        struct cached_header *h = headers_find(&c, at, 1);
        CHECK(h && h->n_pages == 1 && *(uint8_t *)h->header == 3);
        headers_unref(h);
        headers_deinit(&c);
}

int main(void)
{
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_headers_place),
                cmocka_unit_test(test_headers_replaced),
                cmocka_unit_test(test_headers_limits),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
