/* Views: every layout an engine may use is gathered and scattered like a plain loop over (head, token) would. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "libclient/view.h"

enum { TOKENS = 16, BLOCKS = 5, ALL = TOKENS * BLOCKS, N_PLANES = 5 };

static const kvt_plane planes[N_PLANES] = {
        {.layer = 0, .role = KVT_ROLE_K, .dtype = KVT_DTYPE_F16, .heads = 3, .dim = 64},
        {.layer = 0, .role = KVT_ROLE_V, .dtype = KVT_DTYPE_INT8, .heads = 3, .dim = 40, .window_tokens = 20},
        {.layer = 1, .role = KVT_ROLE_LATENT, .dtype = KVT_DTYPE_BF16, .heads = 1, .dim = 72},
        {.layer = 1, .role = KVT_ROLE_INDEXER, .dtype = KVT_DTYPE_OPAQUE, .heads = 1, .opaque_bytes = 33},
        {.layer = 2, .role = KVT_ROLE_STATE, .dtype = KVT_DTYPE_OPAQUE, .heads = 1, .opaque_bytes = 500},
};

enum layout { HND, NHD, PAGED_NHD, PAGED_HND, PAGED_BLOCK, PADDED, BACKWARDS, N_LAYOUTS };

struct engine {
        enum layout layout;
        uint8_t *bytes[N_PLANES];
        size_t n_bytes;
        kvt_plane_view planes[N_PLANES];
        uint32_t table[64];
        kvt_view view;
};

static struct geometry g;

static int setup(void **state)
{
        const char *why;
        return geometry_init(&g, TOKENS, 1, planes, N_PLANES, &why);
}

static int teardown(void **state)
{
        geometry_deinit(&g);
        return 0;
}

static void engine_init(struct engine *e, enum layout layout)
{
        uint32_t page_tokens = layout == PAGED_NHD ? 12 : layout == PAGED_HND ? 4 : layout == PAGED_BLOCK ? TOKENS : 0;

        *e = (struct engine){.layout = layout, .n_bytes = 1 << 17};
        e->view = (kvt_view){.planes = e->planes, .n_planes = N_PLANES};
        if (page_tokens) {
                e->view.page_tokens = page_tokens;
                e->view.page_table = e->table;
                e->view.n_pages = (ALL + page_tokens - 1) / page_tokens;
                for (uint32_t i = 0; i < e->view.n_pages; i++)
                        e->table[i] = (i * 3 + 3) % (uint32_t)e->view.n_pages; /* a permutation: 3 divides none of the counts */
        }
        for (int i = 0; i < N_PLANES; i++) {
                ptrdiff_t row = (ptrdiff_t)geometry_row_bytes(&planes[i]), heads = planes[i].heads;
                kvt_plane_view *v = &e->planes[i];

                e->bytes[i] = calloc(1, e->n_bytes);
                v->base = e->bytes[i];
                switch (planes[i].role == KVT_ROLE_STATE ? HND : layout) {
                case HND:
                        v->token_stride = row;
                        v->head_stride = row * ALL;
                        break;
                case NHD:
                        v->token_stride = row * heads;
                        v->head_stride = row;
                        break;
                case PAGED_NHD:
                        v->token_stride = row * heads;
                        v->head_stride = row;
                        v->page_stride = row * heads * page_tokens;
                        break;
                case PAGED_HND:
                case PAGED_BLOCK:
                        v->token_stride = row;
                        v->head_stride = row * page_tokens;
                        v->page_stride = row * heads * page_tokens + 64;
                        break;
                case PADDED:
                        v->token_stride = row * heads + 24;
                        v->head_stride = row + 8;
                        break;
                default: /* heads from the end of memory backwards */
                        v->base = e->bytes[i] + row * ALL * (heads - 1);
                        v->token_stride = row;
                        v->head_stride = -row * ALL;
                }
        }
}

static void engine_deinit(struct engine *e)
{
        for (int i = 0; i < N_PLANES; i++)
                free(e->bytes[i]);
}

/* The formula of kvtier.h, word for word. */
static uint8_t *element(const struct engine *e, unsigned i, size_t head, size_t token)
{
        const kvt_plane_view *v = &e->planes[i];
        const kvt_view *w = &e->view;

        if (w->page_tokens && planes[i].role != KVT_ROLE_STATE)
                return (uint8_t *)v->base + (ptrdiff_t)w->page_table[token / w->page_tokens] * v->page_stride +
                       (ptrdiff_t)(token % w->page_tokens) * v->token_stride + (ptrdiff_t)head * v->head_stride;
        return (uint8_t *)v->base + (ptrdiff_t)token * v->token_stride + (ptrdiff_t)head * v->head_stride;
}

static uint8_t byte(unsigned plane, size_t head, size_t token, size_t b)
{
        return (uint8_t)(1 + (plane * 101 + head * 31 + token * 7 + b * 3) % 250);
}

/* Canonical bytes of a block as a plain loop makes them. */
static void canonical(uint8_t *dst, size_t block)
{
        for (unsigned i = 0; i < N_PLANES; i++) {
                size_t row = geometry_row_bytes(&planes[i]), n = planes[i].role == KVT_ROLE_STATE ? 1 : TOKENS;

                for (size_t h = 0; h < planes[i].heads; h++)
                        for (size_t t = 0; t < n; t++)
                                for (size_t b = 0; b < row; b++)
                                        dst[g.offsets[i] + (h * n + t) * row + b] = byte(i, h, block * n + t, b);
        }
}

static void engine_fill(struct engine *e)
{
        for (unsigned i = 0; i < N_PLANES; i++)
                for (size_t h = 0; h < planes[i].heads; h++)
                        for (size_t t = 0; t < (planes[i].role == KVT_ROLE_STATE ? BLOCKS : ALL); t++)
                                for (size_t b = 0; b < geometry_row_bytes(&planes[i]); b++)
                                        element(e, i, h, t)[b] = byte(i, h, t, b);
}

static void test_gather(void **state)
{
        uint8_t *got = malloc(g.part_bytes), *want = malloc(g.part_bytes);

        for (int l = 0; l < N_LAYOUTS; l++) {
                struct engine e;

                engine_init(&e, l);
                engine_fill(&e);
                assert_int_equal(view_check(&g, &e.view, 0, BLOCKS), 0);
                for (size_t b = 0; b < BLOCKS; b++) {
                        memset(got, 0, g.part_bytes);
                        view_gather(&g, &e.view, b, got);
                        canonical(want, b);
                        assert_memory_equal(got, want, g.part_bytes);
                }
                engine_deinit(&e);
        }
        free(got);
        free(want);
}

static void test_scatter(void **state)
{
        uint8_t *block = malloc(g.part_bytes);

        for (int l = 0; l < N_LAYOUTS; l++) {
                struct engine got, want;

                engine_init(&got, l);
                engine_init(&want, l);
                engine_fill(&want);
                for (size_t b = BLOCKS; b-- > 0;) {
                        canonical(block, b);
                        view_scatter(&g, &got.view, b, 0, block);
                }
                for (unsigned i = 0; i < N_PLANES; i++) /* also: nothing else was written */
                        assert_memory_equal(got.bytes[i], want.bytes[i], got.n_bytes);
                engine_deinit(&got);
                engine_deinit(&want);
        }
        free(block);
}

static void test_window(void **state)
{
        uint8_t *block = malloc(g.part_bytes);

        for (int l = 0; l < N_LAYOUTS; l++) {
                struct engine e;

                engine_init(&e, l);
                for (size_t b = 0; b < BLOCKS; b++) {
                        canonical(block, b);
                        view_scatter(&g, &e.view, b, ALL - 5, block); /* plane 1: from token ALL - 25 on */
                }
                for (size_t t = 0; t < ALL; t++) {
                        assert_int_equal(*element(&e, 1, 2, t), t < ALL - 25 ? 0 : byte(1, 2, t, 0));
                        assert_int_equal(*element(&e, 0, 2, t), byte(0, 2, t, 0));
                }
                engine_deinit(&e);
        }
        free(block);
        assert_int_equal(view_min_token(&planes[1], 0), 0);
        assert_int_equal(view_min_token(&planes[1], 20), 0);
        assert_int_equal(view_min_token(&planes[1], 21), 1);
        assert_int_equal(view_min_token(&planes[0], 1000), 0);
}

static void test_contiguous(void **state)
{
        uint8_t *block = malloc(g.part_bytes);
        size_t n_found = 0;

        for (int l = 0; l < N_LAYOUTS; l++) {
                struct engine e;

                engine_init(&e, l);
                engine_fill(&e);
                for (unsigned i = 0; i < N_PLANES; i++)
                        for (size_t b = 0; b < BLOCKS; b++) {
                                void *p = view_contiguous(&g, &e.view, i, b);

                                if (!p)
                                        continue;
                                n_found++;
                                canonical(block, b);
                                assert_memory_equal(p, block + g.offsets[i], g.offsets[i + 1] - g.offsets[i]);
                        }
                assert_non_null(view_contiguous(&g, &e.view, 4, 1));
                if (l == PAGED_BLOCK)
                        assert_non_null(view_contiguous(&g, &e.view, 0, 1));
                if (l == HND || l == NHD || l == PADDED || l == PAGED_HND)
                        assert_null(view_contiguous(&g, &e.view, 0, 1));
                engine_deinit(&e);
        }
        assert_true(n_found > 40);
        free(block);
}

static void test_check(void **state)
{
        struct engine e;
        kvt_view v, *copy;

        engine_init(&e, PAGED_HND);
        assert_int_equal(view_check(&g, &e.view, 0, BLOCKS), 0);
        assert_int_equal(view_check(&g, &e.view, 1, BLOCKS), KVT_E_BAD_REQUEST); /* past the last page */
        assert_int_equal(view_check(&g, &e.view, SIZE_MAX, 2), KVT_E_BAD_REQUEST);
        assert_int_equal(view_check(&g, &e.view, SIZE_MAX / TOKENS, 1), KVT_E_BAD_REQUEST);
        assert_int_equal(view_check(&g, NULL, 0, 1), KVT_E_BAD_REQUEST);
        v = e.view;
        v.n_planes--;
        assert_int_equal(view_check(&g, &v, 0, 1), KVT_E_BAD_REQUEST);
        v = e.view;
        v.planes = NULL;
        assert_int_equal(view_check(&g, &v, 0, 1), KVT_E_BAD_REQUEST);
        v = e.view;
        v.page_tokens = 0;
        assert_int_equal(view_check(&g, &v, 0, 1), KVT_E_BAD_REQUEST);
        v = e.view;
        v.page_table = NULL;
        assert_int_equal(view_check(&g, &v, 0, 1), KVT_E_BAD_REQUEST);
        e.planes[2].base = NULL;
        assert_int_equal(view_check(&g, &e.view, 0, 1), KVT_E_BAD_REQUEST);

        copy = view_dup(&e.view);
        assert_non_null(copy);
        assert_ptr_not_equal(copy->planes, e.view.planes);
        assert_ptr_not_equal(copy->page_table, e.view.page_table);
        assert_memory_equal(copy->planes, e.planes, sizeof(e.planes));
        assert_memory_equal(copy->page_table, e.table, e.view.n_pages * sizeof(*e.table));
        free(copy);
        engine_deinit(&e);
}

/* Planes large enough to go past the caches, and some that must not: rows and places that are not aligned. */
static void test_large(void **state)
{
        enum { LARGE = 1024 };
        static const struct {
                uint32_t dim;
                size_t pad, shift;
        } cases[] = {{64, 0, 0}, {32, 0, 0}, {64, 8, 0}, {64, 16, 0}, {64, 0, 8}, {40, 0, 0}, {128, 32, 16}};

        for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++)
                for (int nhd = 0; nhd < 2; nhd++) {
                        kvt_plane p = {.dtype = KVT_DTYPE_F16, .heads = 5, .dim = cases[i].dim};
                        size_t row = 2 * p.dim, stride = row + cases[i].pad, n = 2 * LARGE * 5 * stride + 64;
                        uint8_t *memory = aligned_alloc(64, (n + 63) / 64 * 64), *part;
                        kvt_plane_view v = {.base = memory + cases[i].shift};
                        kvt_view view = {.planes = &v, .n_planes = 1};
                        struct geometry large;
                        const char *why;

                        v.token_stride = (ptrdiff_t)(nhd ? stride * 5 : stride);
                        v.head_stride = (ptrdiff_t)(nhd ? stride : stride * 2 * LARGE);
                        assert_int_equal(geometry_init(&large, LARGE, 1, &p, 1, &why), 0);
                        part = malloc(large.part_bytes);
                        for (size_t b = 0; b < large.part_bytes; b++)
                                part[b] = (uint8_t)(b * 7 + (b >> 8) * 3);
                        memset(memory, 0xcc, n);
                        view_scatter(&large, &view, 1, 0, part);
                        for (size_t h = 0; h < 5; h++)
                                for (size_t t = 0; t < 2 * LARGE; t++) {
                                        const uint8_t *at = (uint8_t *)v.base + t * (size_t)v.token_stride + h * (size_t)v.head_stride;

                                        if (t >= LARGE)
                                                assert_memory_equal(at, part + (h * LARGE + t - LARGE) * row, row);
                                        else
                                                assert_true(at[0] == 0xcc && at[row - 1] == 0xcc);
                                        if (cases[i].pad)
                                                assert_int_equal(at[row], 0xcc);
                                }
                        geometry_deinit(&large);
                        free(memory);
                        free(part);
                }
}

int main(void)
{
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_gather), cmocka_unit_test(test_scatter),    cmocka_unit_test(test_window),
                cmocka_unit_test(test_large),  cmocka_unit_test(test_contiguous), cmocka_unit_test(test_check),
        };
        return cmocka_run_group_tests(tests, setup, teardown);
}
