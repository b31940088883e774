/* Every hash variant of this CPU gives XXH3-64's value, whole, in pieces and while copying. */
#define XXH_INLINE_ALL
#include <xxhash.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "libclient/codec/hash_ops.h"

enum { ROOM = 1 << 20 };

static uint8_t *src, *dst;

static int setup(void **state)
{
        uint64_t x = 88172645463325252u;

        src = aligned_alloc(4096, ROOM);
        dst = aligned_alloc(4096, ROOM);
        assert_non_null(src);
        assert_non_null(dst);
        for (size_t i = 0; i < ROOM; i++) {
                x ^= x << 13;
                x ^= x >> 7;
                x ^= x << 17;
                src[i] = (uint8_t)x;
        }
        return 0;
}

static int teardown(void **state)
{
        free(src);
        free(dst);
        return 0;
}

static void check_copy(const struct hash_ops *o, size_t i_dst, size_t i_src, size_t n, uint64_t seed)
{
        memset(dst + i_dst, 0xa5, n + 1);
        assert_int_equal(o->copy(dst + i_dst, src + i_src, n, seed), XXH3_64bits_withSeed(src + i_src, n, seed));
        assert_memory_equal(dst + i_dst, src + i_src, n);
        assert_int_equal(dst[i_dst + n], 0xa5);
}

static void test_every_length(void **state)
{
        const struct hash_ops *o;

        assert_non_null(hash_ops_nth(0));
        for (unsigned v = 0; (o = hash_ops_nth(v)); v++)
                for (size_t n = 0; n < 4200; n += n < 1300 ? 1 : 13) {
                        assert_int_equal(o->bytes(src, n, n), XXH3_64bits_withSeed(src, n, n));
                        check_copy(o, 0, 3, n, n);
                        check_copy(o, 5, 0, n, 0);
                }
}

static void test_large(void **state)
{
        static const size_t lengths[] = {65535, 65536, 65537, 262144, 524288, 700001, ROOM - 128};
        const struct hash_ops *o;

        for (unsigned v = 0; (o = hash_ops_nth(v)); v++)
                for (size_t i = 0; i < sizeof(lengths) / sizeof(*lengths); i++)
                        for (size_t shift = 0; shift < 65; shift += 16)
                                check_copy(o, shift, shift / 3, lengths[i], i + shift);
}

static void test_streaming(void **state)
{
        static const size_t steps[] = {1, 64, 240, 255, 256, 1000, 4096, 65537};
        const struct hash_ops *o;
        struct hash_state h;

        for (unsigned v = 0; (o = hash_ops_nth(v)); v++)
                for (size_t i = 0; i < sizeof(steps) / sizeof(*steps); i++)
                        for (uint64_t seed = 0; seed < 3; seed++) {
                                /* garbage that looks as if this seed's secret were there already */
                                memset(&h, 0, sizeof(h));
                                ((XXH3_state_t *)(void *)h.opaque)->seed = seed;
                                o->init(&h, seed);
                                for (size_t done = 0, n; done < 200000; done += n) {
                                        n = 200000 - done < steps[i] ? 200000 - done : steps[i];
                                        o->update(&h, src + done, n);
                                }
                                assert_int_equal(o->final(&h), XXH3_64bits_withSeed(src, 200000, seed));
                        }
}

static void test_dispatch(void **state)
{
        struct hash_state h;

        assert_string_equal(hash_variant(), hash_ops_nth(0)->name);
        assert_int_equal(hash_bytes(src, 5000, 9), XXH3_64bits_withSeed(src, 5000, 9));
        assert_int_equal(hash_copy(dst, src, 5000, 9), XXH3_64bits_withSeed(src, 5000, 9));
        hash_init(&h, 9);
        hash_update(&h, src, 5000);
        assert_int_equal(hash_final(&h), XXH3_64bits_withSeed(src, 5000, 9));
}

int main(void)
{
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_every_length),
                cmocka_unit_test(test_large),
                cmocka_unit_test(test_streaming),
                cmocka_unit_test(test_dispatch),
        };
        return cmocka_run_group_tests(tests, setup, teardown);
}
