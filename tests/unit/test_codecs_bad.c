/* Payloads of every codec that are not what an encoder made: cut off, damaged, made up, with lies about exact rows. A decoder says that they are corrupt or
 * gives garbage; it never reads past the payload, writes past the plane (guards here, sanitizers there) or needs more scratch than it said. */
#include "tests/unit/codecs.h"

enum { N_DAMAGED = 400 /* for each payload */, N_SHAPES = 5 };

static struct shape shapes[] = {
        {.role = KVT_ROLE_K, .dtype = KVT_DTYPE_F16, .heads = 2, .tokens = 33, .dim = 64},
        {.role = KVT_ROLE_V, .dtype = KVT_DTYPE_BF16, .heads = 1, .tokens = 17, .dim = 32},
        {.role = KVT_ROLE_K, .dtype = KVT_DTYPE_F32, .heads = 3, .tokens = 9, .dim = 5},
        {.role = KVT_ROLE_V, .dtype = KVT_DTYPE_INT8, .heads = 2, .tokens = 64, .dim = 64},
        {.role = KVT_ROLE_K, .dtype = KVT_DTYPE_FP8, .heads = 1, .tokens = 1, .dim = 128},
};

static struct shape shape_at(unsigned i)
{
        struct shape s;

        assert_true(shape_make(&s, shapes[i].role, shapes[i].dtype, shapes[i].heads, shapes[i].tokens, shapes[i].dim, i));
        return s;
}

/* n bytes of anything as a payload. Returns what decoding the whole plane came to. */
static int try(const struct shape *p, uint8_t codec, uint8_t flags, const uint8_t *bytes, size_t n, const void *base)
{
        const struct codec *c = codec_find(codec);
        struct kvt_copy_plane copy = {.bytes = (uint32_t)n, .codec = codec, .flags = flags};
        struct room payload = room_of(bytes, n, random_below(2)), dst = room_new(p->n_bytes, random_below(2)),
                    scratch = room_new(plane_decode_scratch(p, &copy), 0), rows = room_new(4 * (size_t)p->dim * p->elem_bytes, 1);
        uint32_t tokens[4] = {random_below(p->tokens), p->tokens - 1, 0, random_below(p->tokens)};
        char text[8];
        int whole = plane_decode(p, &copy, payload.p, base, dst.p, scratch.p), r;

        assert_true(!whole || whole == KVT_E_CORRUPT);
        r = plane_decode_rows(p, &copy, payload.p, random_below(p->heads), tokens, 4, rows.p, scratch.p);
        assert_true(!r || r == KVT_E_CORRUPT || r == KVT_E_UNSUPPORTED);
        if (c && c->describe)
                assert_true(c->describe(p, payload.p, payload.n, text, sizeof(text)) >= 0);
        if (c && c->flags & CODEC_TRUNCATES) {
                struct codec_spec specs[SPECS_MAX];
                unsigned n_specs = specs_of(c, specs);

                plane_shrink(p, &specs[random_below(n_specs)], INFINITY, payload.p, &copy);
        }
        room_free(&payload);
        room_free(&dst);
        room_free(&scratch);
        room_free(&rows);
        return whole;
}

struct made {
        struct room bytes, src, base;
        struct kvt_copy_plane copy;
};

static struct made make(const struct shape *p, const struct codec_spec *s, bool with_exact)
{
        struct made m = {.src = room_new(p->n_bytes, 0), .base = room_new(p->n_bytes, 0)};
        struct room dst = room_new(plane_bound(p, s), 0), scratch = room_new(plane_encode_scratch(p, s), 0);
        uint8_t protect[20] = {0};
        struct plane_request q = {.spec = s, .max_rel_l2 = INFINITY, .base = m.base.p, .base_key = (const uint8_t *)"0123456789abcdef"};

        if (with_exact) {
                protect[0] = 1;
                protect[(p->tokens - 1) / 8] |= (uint8_t)(1u << (p->tokens - 1) % 8);
                q.protect = protect;
        }
        fill(p, REAL, m.src.p);
        memcpy(m.base.p, m.src.p, p->n_bytes);
        m.base.p[0] ^= 1;
        plane_encode(p, &q, m.src.p, dst.p, scratch.p, &m.copy);
        m.bytes = room_of(dst.p, m.copy.bytes, 0);
        room_free(&dst);
        room_free(&scratch);
        return m;
}

static void unmake(struct made *m)
{
        room_free(&m->bytes);
        room_free(&m->src);
        room_free(&m->base);
}

static void test_cut_off(void **state)
{
        struct codec_spec specs[SPECS_MAX];

        for (const struct codec *c = NULL; (c = codec_next(c));) {
                unsigned n_specs = specs_of(c, specs), n_whole = 0;

                for (unsigned i = 0; i < N_SHAPES; i++) {
                        struct shape p = shape_at(i);
                        struct made m = make(&p, &specs[i ? random_below(n_specs) : 0], i % 2);
                        size_t n = m.copy.bytes, step = n < 600 ? 1 : n / 200;

                        assert_int_equal(try(&p, m.copy.codec, m.copy.flags, m.bytes.p, n, m.base.p), 0);
                        for (size_t k = 0; k < n; k += k < 200 || k + 100 > n ? 1 : step)
                                n_whole += !try(&p, m.copy.codec, m.copy.flags, m.bytes.p, k, m.base.p);
                        unmake(&m);
                }
                if (!(c->flags & CODEC_TRUNCATES))
                        assert_int_equal(n_whole, 0);
        }
}

static void test_damaged(void **state)
{
        struct codec_spec specs[SPECS_MAX];
        static const uint8_t nasty[] = {0, 1, 0x7f, 0x80, 0xff, 0xfe};

        for (const struct codec *c = NULL; (c = codec_next(c));)
                for (unsigned i = 0, n_specs = specs_of(c, specs); i < 2 * N_SHAPES; i++) {
                        struct shape p = shape_at(i % N_SHAPES);
                        struct made m = make(&p, &specs[i < N_SHAPES ? 0 : random_below(n_specs)], i % 2);
                        struct room bytes = room_of(m.bytes.p, m.bytes.n, 0);

                        for (unsigned k = 0; k < N_DAMAGED; k++) {
                                memcpy(bytes.p, m.bytes.p, bytes.n);
                                for (unsigned times = 1 + random_below(3); times--;) {
                                        size_t near_ends = bytes.n < 40 ? bytes.n : 40, at = random_below((uint32_t)near_ends);

                                        if (random_below(3) == 0)
                                                at = random_below((uint32_t)bytes.n);
                                        else if (random_below(4) == 0)
                                                at = bytes.n - 1 - at;
                                        bytes.p[at] = random_below(2) ? nasty[random_below(sizeof(nasty))]
                                                                      : (uint8_t)(bytes.p[at] ^ 1u << random_below(8));
                                }
                                try(&p, m.copy.codec, m.copy.flags, bytes.p, bytes.n, m.base.p);
                        }
                        /* as a plane of another shape */
                        for (unsigned k = 0; k < N_SHAPES; k++) {
                                struct shape other = shape_at(k);
                                struct room base = room_new(other.n_bytes, 0);

                                try(&other, m.copy.codec, m.copy.flags, m.bytes.p, m.bytes.n, base.p);
                                room_free(&base);
                        }
                        room_free(&bytes);
                        unmake(&m);
                }
}

static void test_made_up(void **state)
{
        static uint8_t bytes[20000];

        for (unsigned id = 0; id < CODEC_N_IDS + 1; id++)
                for (unsigned i = 0; i < 3 * N_DAMAGED; i++) {
                        struct shape p = i % 2 ? shape_at(i / 2 % N_SHAPES) : shape_draw();
                        size_t n = random_below(2) ? random_below(64) : random_below(2) ? p.n_bytes : random_below(sizeof(bytes));
                        struct room base = room_new(p.n_bytes, 0);
                        int fixed = i % 7 == 0 ? 0 : i % 7 == 1 ? 0xff : -1, r;

                        n = n > sizeof(bytes) ? sizeof(bytes) : n;
                        for (size_t k = 0; k < n; k++)
                                bytes[k] = fixed < 0 ? (uint8_t)random_next() : (uint8_t)fixed;
                        for (size_t k = 0; k < n && k < 16 && i % 7 > 3; k++) /* numbers as headers have them */
                                bytes[k] = (uint8_t)random_below(k % 4 ? 1 : 9);
                        r = try(&p, (uint8_t)id, random_below(4) ? 0 : (uint8_t)random_below(3), bytes, n, random_below(4) ? base.p : NULL);
                        if (!codec_find((uint8_t)id) || !n)
                                assert_int_equal(r, KVT_E_CORRUPT);
                        room_free(&base);
                }
}

static void put_u32(struct room *r, size_t at, uint32_t v)
{
        memcpy(r->p + at, &v, sizeof(v));
}

/* What stands behind the codec's payload: rows, tokens, two numbers. */
static void test_exact_rows(void **state)
{
        static const uint32_t lies[] = {0, 1, 2, 3, 33, 34, 0x7fffffff, 0x80000000, 0xfffffffe, 0xffffffff};
        unsigned n_lossy = 0;

        for (const struct codec *c = NULL; (c = codec_next(c));) {
                struct codec_spec s = codec_spec_default(c);
                struct shape p = shape_at(0);
                struct made m = make(&p, &s, true);
                size_t n = m.bytes.n;

                if (!(m.copy.flags & PLANE_EXACT_ROWS)) { /* lossless */
                        assert_true(c->flags & CODEC_LOSSLESS || m.copy.codec != c->id);
                        unmake(&m);
                        continue;
                }
                n_lossy++;
                for (size_t field = 0; field < 4; field++) /* tokens, their number, bytes of the codec */
                        for (size_t i = 0; i < sizeof(lies) / sizeof(*lies); i++) {
                                struct room bytes = room_of(m.bytes.p, n, 0);

                                put_u32(&bytes, n - 4 * (field + 1), lies[i]);
                                /* other tokens that ascend are not to be told from the right ones */
                                if (memcmp(bytes.p, m.bytes.p, n) != 0 && (field < 2 || lies[i] >= 32 || !lies[i]))
                                        assert_int_equal(try(&p, c->id, PLANE_EXACT_ROWS, bytes.p, n, NULL), KVT_E_CORRUPT);
                                for (size_t k = 0; k < sizeof(lies) / sizeof(*lies); k++) {
                                        put_u32(&bytes, n - 4 * (1 + random_below(4)), lies[k]);
                                        try(&p, c->id, PLANE_EXACT_ROWS, bytes.p, n, NULL);
                                }
                                room_free(&bytes);
                        }
                for (unsigned flags = 0; flags < 256; flags++)
                        if (flags != PLANE_EXACT_ROWS)
                                assert_int_equal(try(&p, c->id, (uint8_t)flags, m.bytes.p, n, NULL), KVT_E_CORRUPT);
                for (size_t k = 0; k < 20; k++)
                        assert_int_equal(try(&p, c->id, PLANE_EXACT_ROWS, m.bytes.p, k, NULL), KVT_E_CORRUPT);
                unmake(&m);
        }
        if (codec_find(CODEC_KIVI))
                assert_true(n_lossy);
}

/* A codec that works on floats has nothing to say of bytes. */
static void test_opaque(void **state)
{
        struct shape like, opaque;

        assert_true(shape_make(&like, KVT_ROLE_K, KVT_DTYPE_INT8, 1, 40, 64, 0));
        assert_true(shape_make(&opaque, KVT_ROLE_K, KVT_DTYPE_OPAQUE, 1, 40, 64, 0));
        for (const struct codec *c = NULL; (c = codec_next(c));) {
                struct codec_spec s = codec_spec_default(c);
                struct made m = make(&like, &s, false);

                if (!(codec_find(m.copy.codec)->flags & CODEC_LOSSLESS))
                        assert_int_equal(try(&opaque, m.copy.codec, 0, m.bytes.p, m.bytes.n, NULL), KVT_E_CORRUPT);
                unmake(&m);
        }
}

static void test_needs_base(void **state)
{
        for (const struct codec *c = NULL; (c = codec_next(c));) {
                struct codec_spec s = codec_spec_default(c);
                struct shape p = shape_at(0);
                struct made m = make(&p, &s, false);

                if (c->flags & CODEC_NEEDS_BASE) {
                        assert_int_equal(m.copy.codec, c->id);
                        assert_int_equal(try(&p, c->id, 0, m.bytes.p, m.bytes.n, NULL), KVT_E_CORRUPT);
                }
                unmake(&m);
        }
}

int main(void)
{
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_cut_off),    cmocka_unit_test(test_damaged), cmocka_unit_test(test_made_up),
                cmocka_unit_test(test_exact_rows), cmocka_unit_test(test_opaque),  cmocka_unit_test(test_needs_base),
        };
        return cmocka_run_group_tests(tests, NULL, NULL);
}
