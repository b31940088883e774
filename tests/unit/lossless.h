/* What the tests of lossless codecs share: numbers at random, a payload there and back, and the checks that hold for each. */
#pragma once

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "libclient/codec/codec.h"
#include "libclient/codec/kernels.h"

static const uint8_t lossless_key[16] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}; /* of a base */
static uint64_t lossless_seed = 88172645463325252u;

static inline uint32_t draw(void)
{
        lossless_seed ^= lossless_seed << 13;
        lossless_seed ^= lossless_seed >> 7;
        lossless_seed ^= lossless_seed << 17;
        return (uint32_t)(lossless_seed >> 16);
}

static inline void *lossless_room(const struct codec *c, const struct shape *p)
{
        struct codec_spec s = codec_spec_default(c);
        size_t n = (c->scratch(&s, p) + 63) & ~(size_t)63;
        void *room = aligned_alloc(64, n);

        assert_non_null(room);
        memset(room, 0xa5, n);
        return room;
}

/* Returns the payload's bytes, which fill *ret; 0: it would not shrink. */
static inline size_t lossless_encode(const struct codec *c, const struct shape *p, const void *bytes, const void *base, uint8_t **ret)
{
        struct codec_spec s = codec_spec_default(c);
        struct codec_input in = {.bytes = bytes, .base = base, .base_key = base ? lossless_key : NULL};
        void *scratch = lossless_room(c, p);
        size_t n;

        *ret = malloc(c->bound(&s, p));
        assert_non_null(*ret);
        n = c->encode(&s, p, &in, *ret, scratch);
        free(scratch);
        assert_in_range(n, 0, c->bound(&s, p));
        *ret = realloc(*ret, n ? n : 1); /* reading past it shows under ASan */
        return n;
}

static inline int lossless_decode(const struct codec *c, const struct shape *p, const uint8_t *payload, size_t n, const void *base,
                                  void *ret)
{
        void *scratch = lossless_room(c, p);
        int r = c->decode(p, payload, n, base, ret, scratch);

        free(scratch);
        assert_true(r == 0 || r == KVT_E_CORRUPT);
        return r;
}

/* Encoded the same by all kernels, and decoded by all. Returns the payload's bytes, 0: it would not shrink. */
static inline size_t lossless_check(const struct codec *c, const struct shape *p, const void *bytes, const void *base)
{
        uint8_t *payload, *other, *back = malloc(p->n_bytes + 1);
        size_t n = lossless_encode(c, p, bytes, base, &payload);

        assert_non_null(back);
        for (unsigned v = 0; kernels_nth(v); v++) {
                kernels_choose(kernels_nth(v));
                assert_int_equal(lossless_encode(c, p, bytes, base, &other), n);
                assert_memory_equal(other, payload, n);
                free(other);
                if (!n)
                        continue;
                memset(back, 0xa5, p->n_bytes + 1);
                assert_int_equal(lossless_decode(c, p, payload, n, base, back), 0);
                assert_memory_equal(back, bytes, p->n_bytes);
                assert_int_equal(back[p->n_bytes], 0xa5);
        }
        kernels_choose(kernels_nth(0));
        free(payload);
        free(back);
        return n;
}

/* No prefix of a payload is one, nor it with a byte behind it; and anything goes in n_times ones with bytes changed from `first` on, half of them before
 * `near`, but not out of bounds. */
static inline void lossless_check_hostile(const struct codec *c, const struct shape *p, const uint8_t *payload, size_t n, const void *base,
                                          size_t first, size_t near, unsigned n_times)
{
        uint8_t *back = malloc(p->n_bytes), *bad;

        assert_non_null(back);
        for (size_t cut = 0; cut < n; cut++) {
                bad = malloc(cut + 1);
                memcpy(bad, payload, cut);
                assert_int_equal(lossless_decode(c, p, bad, cut, base, back), KVT_E_CORRUPT);
                free(bad);
        }
        bad = malloc(n + 1);
        memcpy(bad, payload, n);
        bad[n] = 0;
        assert_int_equal(lossless_decode(c, p, bad, n + 1, base, back), KVT_E_CORRUPT);
        free(bad);
        bad = malloc(n);
        for (unsigned i = 0; i < n_times; i++) {
                size_t end = i & 8 || near > n ? n : near;

                memcpy(bad, payload, n);
                for (unsigned k = 0; k <= i % 4; k++)
                        bad[first + draw() % (end - first)] = i & 16 ? 0xff : (uint8_t)draw();
                lossless_decode(c, p, bad, n, base, back);
        }
        free(bad);
        free(back);
}
