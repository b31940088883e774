/* Shapes: what is accepted, what is refused, and where planes lie. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "libclient/codec/geometry.h"

static const kvt_plane k = {.layer = 1, .role = KVT_ROLE_K, .dtype = KVT_DTYPE_BF16, .heads = 8, .dim = 128};
static const kvt_plane latent = {.role = KVT_ROLE_LATENT, .dtype = KVT_DTYPE_F16, .heads = 1, .dim = 576};
static const kvt_plane opaque = {.role = KVT_ROLE_K, .dtype = KVT_DTYPE_OPAQUE, .heads = 1, .opaque_bytes = 132};
static const kvt_plane state_plane = {.role = KVT_ROLE_STATE, .dtype = KVT_DTYPE_OPAQUE, .heads = 1, .opaque_bytes = 4096};

static int try(uint32_t block_tokens, uint32_t n_shards, const kvt_plane *p, size_t n)
{
        struct geometry g;
        const char *why = NULL;
        int r = geometry_init(&g, block_tokens, n_shards, p, n, &why);

        if (!r)
                geometry_deinit(&g);
        else if (r == KVT_E_BAD_REQUEST)
                assert_non_null(why);
        return r;
}

static void test_offsets(void **state)
{
        kvt_plane planes[] = {k, opaque, state_plane, latent};
        struct geometry g;
        const char *why;

        assert_int_equal(geometry_init(&g, 32, 4, planes, 4, &why), 0);
        assert_int_equal(g.n_planes, 4);
        assert_int_equal(g.offsets[0], 0);
        assert_int_equal(g.offsets[1], 8 * 32 * 256);
        assert_int_equal(g.offsets[2], g.offsets[1] + 32 * 132);
        assert_int_equal(g.offsets[3], g.offsets[2] + 4096);
        assert_int_equal(g.offsets[4], g.offsets[3] + 32 * 1152);
        assert_int_equal(g.part_bytes, g.offsets[4]);
        assert_int_equal(geometry_row_bytes(&g.planes[0]), 256);
        assert_int_equal(geometry_row_bytes(&g.planes[1]), 132);
        planes[0].heads = 1; /* the copy is the geometry's own */
        assert_int_equal(g.planes[0].heads, 8);
        geometry_deinit(&g);
        geometry_deinit(&g);
}

static void test_dtypes(void **state)
{
        static const uint32_t sizes[] = {4, 2, 2, 1, 1, 0, 0};

        for (uint32_t i = 0; i < 7; i++)
                assert_int_equal(geometry_dtype_bytes(i), sizes[i]);
        assert_int_equal(geometry_dtype_bytes(UINT32_MAX), 0);
}

static void test_refused(void **state)
{
        static kvt_plane many[1025];
        kvt_plane p;

        assert_int_equal(try(1, 1, &k, 1), 0);
        assert_int_equal(try(65536, 64, &k, 1), 0);
        assert_int_equal(try(0, 1, &k, 1), KVT_E_BAD_REQUEST);
        assert_int_equal(try(65537, 1, &k, 1), KVT_E_BAD_REQUEST);
        assert_int_equal(try(16, 0, &k, 1), KVT_E_BAD_REQUEST);
        assert_int_equal(try(16, 65, &k, 1), KVT_E_BAD_REQUEST);
        assert_int_equal(try(16, 1, &k, 0), KVT_E_BAD_REQUEST);
        assert_int_equal(try(16, 1, NULL, 1), KVT_E_BAD_REQUEST);
        for (size_t i = 0; i < 1025; i++)
                many[i] = k;
        assert_int_equal(try(16, 1, many, 1024), 0);
        assert_int_equal(try(16, 1, many, 1025), KVT_E_BAD_REQUEST);

#define REFUSED(base, field, value)                                                                                                        \
        do {                                                                                                                               \
                p = base;                                                                                                                  \
                p.field = value;                                                                                                           \
                assert_int_equal(try(16, 1, &p, 1), KVT_E_BAD_REQUEST);                                                                    \
        } while (0)
        REFUSED(k, role, 5);
        REFUSED(k, dtype, 6);
        REFUSED(k, heads, 0);
        REFUSED(k, dim, 0);
        REFUSED(k, opaque_bytes, 1);
        REFUSED(k, role, KVT_ROLE_STATE);
        REFUSED(k, role, KVT_ROLE_LATENT);
        REFUSED(opaque, opaque_bytes, 0);
        REFUSED(opaque, heads, 2);
        REFUSED(opaque, heads, 0);
        REFUSED(opaque, dim, 1);
        assert_int_equal(try(16, 1, &opaque, 1), 0);
        assert_int_equal(try(16, 1, &latent, 1), 0);
        assert_int_equal(try(16, 1, &state_plane, 1), 0);
}

static void test_overflow(void **state)
{
        kvt_plane p = k, two[2];

        p.heads = p.dim = UINT32_MAX;
        assert_int_equal(try(65536, 1, &p, 1), KVT_E_BAD_REQUEST);
        p = k;
        p.heads = UINT32_MAX;
        p.dim = 1u << 31;
        p.dtype = KVT_DTYPE_F16;
        assert_int_equal(try(1, 1, &p, 1), KVT_E_BAD_REQUEST);

        /* exactly the most, and one byte more */
        p = opaque;
        p.role = KVT_ROLE_STATE;
        p.opaque_bytes = 4095u << 20;
        assert_int_equal(try(65536, 1, &p, 1), 0);
        p.opaque_bytes++;
        assert_int_equal(try(65536, 1, &p, 1), KVT_E_BAD_REQUEST);
        two[0] = two[1] = p;
        two[0].opaque_bytes = 4095u << 20;
        two[1].opaque_bytes = 1;
        assert_int_equal(try(1, 1, two, 2), KVT_E_BAD_REQUEST);
}

static void test_equal(void **state)
{
        kvt_plane planes[] = {k, latent}, other[2];
        struct geometry a, b;
        const char *why;

        assert_int_equal(geometry_init(&a, 16, 1, planes, 2, &why), 0);
        for (size_t i = 0; i < 7; i++) {
                memcpy(other, planes, sizeof(other));
                switch (i) {
                case 0:
                        break;
                case 1:
                        other[0].layer++;
                        break;
                case 2:
                        other[0].role = KVT_ROLE_V;
                        break;
                case 3:
                        other[0].dtype = KVT_DTYPE_F16;
                        break;
                case 4:
                        other[0].heads++;
                        break;
                case 5:
                        other[1].dim++;
                        break;
                case 6:
                        other[1].window_tokens = 7;
                        break;
                }
                assert_int_equal(geometry_init(&b, 16, 1, other, 2, &why), 0);
                assert_int_equal(geometry_equal(&a, &b), i == 0);
                geometry_deinit(&b);
        }
        assert_int_equal(geometry_init(&b, 32, 1, planes, 2, &why), 0);
        assert_false(geometry_equal(&a, &b));
        geometry_deinit(&b);
        assert_int_equal(geometry_init(&b, 16, 2, planes, 2, &why), 0);
        assert_false(geometry_equal(&a, &b));
        geometry_deinit(&b);
        assert_int_equal(geometry_init(&b, 16, 1, planes, 1, &why), 0);
        assert_false(geometry_equal(&a, &b));
        geometry_deinit(&b);
        geometry_deinit(&a);
}

int main(void)
{
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_offsets),  cmocka_unit_test(test_dtypes), cmocka_unit_test(test_refused),
                cmocka_unit_test(test_overflow), cmocka_unit_test(test_equal),
        };
        return cmocka_run_group_tests(tests, NULL, NULL);
}
