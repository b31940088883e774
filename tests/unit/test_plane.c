/* codec/plane with codecs of this test's own, whose error is known, and specs as text.
 *
 * plane.c is built in once more, under other names and with a registry of its own: "fake" moves values by as much as it is told, "worse" and "better" ones
 * form a ladder, "liar" has a decoder that gives something else each time. What headers say of them cannot be right if measuring is wrong. */
#include "tests/unit/codecs.h"

#include "libclient/codec/hash.h"

#define plane_bound fake_plane_bound
#define plane_encode_scratch fake_plane_encode_scratch
#define plane_encode fake_plane_encode
#define plane_decode_scratch fake_plane_decode_scratch
#define plane_decode fake_plane_decode
#define plane_decode_rows fake_plane_decode_rows
#define plane_describe fake_plane_describe
#define plane_shrinks fake_plane_shrinks
#define plane_shrink fake_plane_shrink
#define plane_measure fake_plane_measure
#define codec_find fake_find
size_t plane_bound(const struct shape *p, const struct codec_spec *s);
size_t plane_encode_scratch(const struct shape *p, const struct codec_spec *s);
bool plane_encode(const struct shape *p, const struct plane_request *q, const void *src, uint8_t *dst, void *scratch,
                  struct kvt_copy_plane *ret);
size_t plane_decode_scratch(const struct shape *p, const struct kvt_copy_plane *c);
int plane_decode(const struct shape *p, const struct kvt_copy_plane *c, const void *src, const void *base, void *dst, void *scratch);
int plane_decode_rows(const struct shape *p, const struct kvt_copy_plane *c, const void *src, uint32_t head, const uint32_t *tokens,
                      size_t n, void *dst, void *scratch);
char *plane_describe(const struct shape *p, const struct kvt_copy_plane *c, const void *payload, char ret[CODEC_SPEC_MAX]);
bool plane_shrinks(const struct shape *p, const struct codec_spec *to, float max_rel_l2, const uint8_t *payload, struct kvt_copy_plane *c);
bool plane_shrink(const struct shape *p, const struct codec_spec *to, float max_rel_l2, uint8_t *payload, struct kvt_copy_plane *c);
void plane_measure(const struct shape *p, const void *x, const void *y, float *ret_rel_l2, float *ret_max_abs);
const struct codec *codec_find(uint8_t id);
#include "libclient/codec/plane.c"

/* The fake: values are kept aside, a payload is one number, decoding gives what was kept, each moved as told. */

enum { N_MAX = 4096, FAKE_ID = CODEC_STACK };
static struct {
        float kept[N_MAX];
        float add; /* to each value, sign turning */
        float add_to_one; /* to value 5 */
        bool refuses, corrupt, grows;
        unsigned n_encoded, n_decoded, last_bits;
        bool saw_bad; /* an encoder was given what is not finite */
        const float *scores;
} fake;

static size_t fake_bound(const struct codec_spec *s, const struct shape *p)
{
        return p->n_bytes + 4;
}

static size_t fake_encode(const struct codec_spec *s, const struct shape *p, const struct codec_input *in, uint8_t *restrict dst,
                          void *scratch)
{
        fake.n_encoded++;
        fake.last_bits = s->params[0];
        fake.scores = in->scores;
        for (size_t i = 0; i < p->n_values; i++) {
                fake.saw_bad |= !isfinite(in->values[i]);
                fake.kept[i] = in->values[i];
        }
        dst[0] = (uint8_t)s->params[0];
        if (fake.grows)
                memset(dst, 1, p->n_bytes);
        return fake.refuses ? 0 : fake.grows ? p->n_bytes : 4;
}

/* Eight bits are twice as good as four. */
static float moved(size_t i, unsigned bits)
{
        float by = (i % 2 ? -fake.add : fake.add) * (bits == 8 ? 0.5f : 1);

        return fake.kept[i] + by + (i == 5 ? fake.add_to_one : 0);
}

static int fake_decode(const struct shape *p, const uint8_t *restrict src, size_t n_src, const void *base, void *restrict dst,
                       void *scratch)
{
        fake.n_decoded++;
        for (size_t i = 0; i < p->n_values; i++) {
                float f = moved(i, src[0]);

                memcpy((uint8_t *)dst + i * sizeof(f), &f, sizeof(f));
        }
        return fake.corrupt ? KVT_E_CORRUPT : 0;
}

static bool fake_better(const struct codec_spec *s, struct codec_spec *ret)
{
        if (s->params[0] == 8)
                return false;
        *ret = *s;
        ret->params[0] = 8;
        return true;
}

static const struct codec fake_codec = {
        .id = FAKE_ID,
        .name = "fake",
        .params = {{"bits", 4, 4, 8}},
        .bound = fake_bound,
        .encode = fake_encode,
        .decode = fake_decode,
        .better = fake_better,
};

const struct codec *codec_find(uint8_t id)
{
        const struct codec *zbf = codec_by_name("zbf", 3);

        return id == FAKE_ID ? &fake_codec : id == CODEC_RAW ? &codec_raw : id == CODEC_ZBF ? zbf : NULL;
}

struct plane {
        struct shape shape;
        float x[N_MAX];
        uint8_t protect[8];
        struct plane_request q;
        struct codec_spec spec;
        struct room dst, scratch;
        struct kvt_copy_plane made;
};

static void begin(struct plane *p, uint32_t heads, uint32_t tokens, uint32_t dim)
{
        memset(&fake, 0, sizeof(fake));
        *p = (struct plane){.spec = codec_spec_default(&fake_codec)};
        p->q = (struct plane_request){.spec = &p->spec, .max_rel_l2 = INFINITY};
        assert_true(shape_make(&p->shape, KVT_ROLE_K, KVT_DTYPE_F32, heads, tokens, dim, 7) && p->shape.n_values <= N_MAX);
        for (size_t i = 0; i < p->shape.n_values; i++)
                p->x[i] = (float)random_gauss();
}

static void encode(struct plane *p)
{
        if (p->dst.p) {
                room_free(&p->dst);
                room_free(&p->scratch);
        }
        p->dst = room_new(plane_bound(&p->shape, &p->spec), 0);
        p->scratch = room_new(plane_encode_scratch(&p->shape, &p->spec), 0);
        plane_encode(&p->shape, &p->q, p->x, p->dst.p, p->scratch.p, &p->made);
        room_check(&p->dst);
        room_check(&p->scratch);
        assert_int_equal(p->made.hash, hash_bytes(p->dst.p, p->made.bytes, kvt_plane_seed(&p->made, 7)));
}

static void end(struct plane *p)
{
        room_free(&p->dst);
        room_free(&p->scratch);
}

static void assert_near(double got, double want)
{
        if (!(fabs(got - want) <= 2e-6 * fabs(want)))
                fail_msg("%g is not %g", got, want);
}

/* Every value 0.25 off, its sign turning: the error is 0.25 sqrt(n) over the norm, and none is further off. */
static void test_known_error(void **state)
{
        struct plane p;

        for (uint32_t dim = 1; dim < 70; dim += 3) {
                double norm = 0;

                begin(&p, 2, 5, dim);
                for (size_t i = 0; i < p.shape.n_values; i++) {
                        p.x[i] = (float)((int)random_below(64) - 32) / 8; /* so that sums are exact */
                        norm += (double)p.x[i] * (double)p.x[i];
                }
                fake.add = 0.25f;
                encode(&p);
                assert_int_equal(p.made.codec, FAKE_ID);
                assert_int_equal(p.made.bytes, 4);
                assert_near((double)p.made.rel_l2, 0.25 * sqrt((double)p.shape.n_values) / sqrt(norm));
                assert_near((double)p.made.max_abs, 0.25);

                fake.add_to_one = 100;
                encode(&p);
                if (p.shape.n_values > 5)
                        assert_near((double)p.made.max_abs, 99.75);
                fake.add = fake.add_to_one = 0;
                encode(&p);
                assert_true(p.made.rel_l2 == 0 && p.made.max_abs == 0);
                end(&p);
        }
}

/* One step over what is allowed is too much; the next better spec is tried, then lossless ones. */
static void test_bound(void **state)
{
        struct plane p;
        float error;

        begin(&p, 1, 8, 64);
        fake.add = 0.1f;
        encode(&p);
        error = p.made.rel_l2;
        assert_true(error > 0.01f && error < 1);
        assert_int_equal(fake.n_encoded, 1);
        p.q.max_rel_l2 = error;
        encode(&p);
        assert_true(p.made.codec == FAKE_ID && p.dst.p[0] == 4 && p.made.rel_l2 == error);
        p.q.max_rel_l2 = nextafterf(error, 0);
        fake.n_encoded = 0;
        encode(&p);
        assert_true(p.made.codec == FAKE_ID && p.dst.p[0] == 8 && fake.n_encoded == 2);
        assert_near((double)p.made.rel_l2, (double)error / 2);
        p.q.max_rel_l2 = error / 2.1f;
        fake.n_encoded = 0;
        encode(&p);
        assert_true(fake.n_encoded == 2 && (p.made.codec == CODEC_ZBF || p.made.codec == CODEC_RAW));
        assert_true(p.made.rel_l2 == 0 && p.made.max_abs == 0 && !p.made.flags);
        fake.n_encoded = 0;
        static const float lossless[] = {0, -1, NAN, -INFINITY};
        for (size_t i = 0; i < 4; i++) {
                p.q.max_rel_l2 = lossless[i];
                encode(&p);
                assert_true(p.made.codec != FAKE_ID && !fake.n_encoded);
        }
        end(&p);
}

/* An encoder that refuses, a decoder that fails and a payload that is no smaller: never one that is served. */
static void test_failing_codecs(void **state)
{
        struct plane p;

        begin(&p, 1, 8, 64);
        for (int i = 0; i < 3; i++) {
                fake.refuses = i == 0;
                fake.corrupt = i == 1;
                fake.grows = i == 2;
                fake.n_encoded = 0;
                encode(&p);
                assert_true(p.made.codec != FAKE_ID && fake.n_encoded == 2 && p.made.bytes <= p.shape.n_bytes);
        }
        fake.grows = false;
        p.shape.dtype = KVT_DTYPE_OPAQUE;
        encode(&p);
        assert_int_not_equal(p.made.codec, FAKE_ID);
        end(&p);
}

/* A decoder that makes something of nothing: infinitely far off. One that does not change an all-zero plane: no error. */
static void test_zero(void **state)
{
        struct plane p;

        begin(&p, 1, 8, 64);
        memset(p.x, 0, sizeof(p.x));
        encode(&p);
        assert_true(p.made.codec == FAKE_ID && p.made.rel_l2 == 0 && p.made.max_abs == 0);
        fake.add = 0.5f;
        p.q.max_rel_l2 = 1e30f;
        encode(&p);
        assert_true(p.made.codec != FAKE_ID && p.made.rel_l2 == 0);
        p.q.max_rel_l2 = INFINITY;
        encode(&p);
        assert_true(p.made.codec == FAKE_ID && isinf(p.made.rel_l2) && p.made.max_abs == 0.5f);
        end(&p);
}

/* Tokens that are protected or hold what is not finite come back to the bit, however wrong the decoder is; the error is of the others. */
static void test_exact_rows(void **state)
{
        struct plane p;
        uint8_t got[N_MAX * 4];
        float scores[9] = {1}, row[10];
        double diff = 0, norm = 0;

        begin(&p, 3, 9, 10);
        fake.add = 0.5f;
        p.x[(0 * 9 + 3) * 10 + 4] = NAN;
        p.x[(1 * 9 + 8) * 10 + 9] = INFINITY;
        p.x[(2 * 9 + 0) * 10 + 0] = -INFINITY;
        p.protect[0] = 1 << 5;
        p.protect[1] = 0xfe; /* tokens that are not there */
        p.q.protect = p.protect;
        p.q.scores = scores;
        encode(&p);
        assert_true(p.made.codec == FAKE_ID && p.made.flags == PLANE_EXACT_ROWS && !fake.saw_bad && fake.scores == scores);
        assert_int_equal(p.made.bytes, 4 + 4 * (3 * 10 * 4 + 4) + 8);
        assert_int_equal(plane_decode(&p.shape, &p.made, p.dst.p, NULL, got, p.scratch.p), 0);
        for (uint32_t h = 0; h < 3; h++)
                for (uint32_t t = 0; t < 9; t++) {
                        size_t at = (h * 9 + t) * 10;

                        if (t == 3 || t == 8 || t == 0 || t == 5)
                                assert_memory_equal(got + at * 4, p.x + at, 40);
                        else
                                for (size_t i = at; i < at + 10; i++)
                                        diff += 0.25;
                        for (size_t i = at; i < at + 10; i++)
                                norm += isfinite(p.x[i]) ? (double)p.x[i] * (double)p.x[i] : 0;
                }
        assert_near((double)p.made.rel_l2, sqrt(diff / norm));
        assert_int_equal(plane_decode_rows(&p.shape, &p.made, p.dst.p, 0, (uint32_t[]){3}, 1, row, p.scratch.p), KVT_E_UNSUPPORTED);
        memset(p.protect, 0xff, 2); /* all: what is beside the payload is larger than the plane */
        encode(&p);
        assert_true(p.made.codec != FAKE_ID && !p.made.flags);
        end(&p);
}

static void measure(uint32_t dtype, size_t n, const void *x, const void *y, float want_rel, float want_max)
{
        struct shape p;
        float rel, max;

        assert_true(shape_make(&p, 0, dtype, 1, 1, (uint32_t)n, 0));
        plane_measure(&p, x, y, &rel, &max);
        if (!(rel == want_rel || fabsf(rel - want_rel) < 1e-6f * want_rel) ||
            !(max == want_max || fabsf(max - want_max) < 1e-6f * want_max))
                fail_msg("%g, %g, not %g, %g", (double)rel, (double)max, (double)want_rel, (double)want_max);
}
#define F(...) ((float[]){__VA_ARGS__})

static void test_measure(void **state)
{
        static float x[3000], y[3000];

        measure(KVT_DTYPE_F32, 2, F(3, 4), F(3, 4), 0, 0);
        measure(KVT_DTYPE_F32, 2, F(3, 4), F(0, 0), 1, 4);
        measure(KVT_DTYPE_F32, 2, F(3, 4), F(3, 5), 0.2f, 1);
        measure(KVT_DTYPE_F32, 2, F(0, 0), F(0, 0), 0, 0);
        measure(KVT_DTYPE_F32, 2, F(0, 0), F(-0.0f, 0), 0, 0); /* differ in bits alone */
        measure(KVT_DTYPE_F32, 2, F(0, 0), F(0, 2), INFINITY, 2);
        measure(KVT_DTYPE_F32, 2, F(NAN, 4), F(NAN, 2), 0.5f, 2);
        measure(KVT_DTYPE_F32, 2, F(INFINITY, 4), F(INFINITY, 2), 0.5f, 2);
        measure(KVT_DTYPE_F32, 2, F(INFINITY, 4), F(-INFINITY, 4), INFINITY, INFINITY);
        measure(KVT_DTYPE_F32, 2, F(NAN, 4), F(0, 4), INFINITY, INFINITY);
        measure(KVT_DTYPE_F32, 2, F(0, 4), F(0, INFINITY), INFINITY, INFINITY);
        measure(KVT_DTYPE_F32, 2, F(0x1.fffffep127f, 1), F(-0x1.fffffep127f, 1), 2, INFINITY); /* the difference is no float */
        measure(KVT_DTYPE_F32, 2, F(0x1p-149f, 0), F(0x3p-149f, 0), 2, 0x1p-148f);
        measure(KVT_DTYPE_F32, 2, F(1, 1), F(1, 1.0000001f), 8.429369e-8f, 1.1920929e-7f);
        measure(KVT_DTYPE_OPAQUE, 3, "abc", "abc", 0, 0);
        measure(KVT_DTYPE_OPAQUE, 3, "abc", "abd", INFINITY, INFINITY);
        measure(KVT_DTYPE_INT8, 2, "\x80\x7f", "\x7f\x7f", 255 / sqrtf(127 * 127 + 128 * 128), 255);
        measure(KVT_DTYPE_FP8, 1, "\x7e", "\xfe", 2, 896);
        measure(KVT_DTYPE_FP8, 2, "\x7f\x38", "\x7f\x40", 1, 1); /* NaN; 1 and 2 */
        measure(KVT_DTYPE_F16, 2, "\x00\x7c\x00\x3c", "\x01\x7c\x00\x3c", INFINITY, INFINITY); /* infinity and NaN */
        for (size_t i = 0; i < 3000; i++)
                x[i] = y[i] = 1;
        for (size_t i = 0; i < 3000; i += i < 20 || i > 2980 ? 1 : 97) { /* wherever it stands */
                y[i] = 3;
                measure(KVT_DTYPE_F32, 3000, x, y, 2 / sqrtf(3000), 2);
                y[i] = NAN;
                measure(KVT_DTYPE_F32, 3000, x, y, INFINITY, INFINITY);
                y[i] = 1;
        }
}

/* specs */

static void refuse(const char *text, size_t n)
{
        struct codec_spec s = {.codec = &fake_codec};
        const char *why = NULL;

        assert_int_equal(codec_spec_parse(text, n, &s, &why), KVT_E_BAD_REQUEST);
        assert_non_null(why);
        assert_ptr_equal(s.codec, &fake_codec); /* untouched */
}

static void test_specs(void **state)
{
        struct codec_spec specs[SPECS_MAX], got;
        char text[CODEC_SPEC_MAX], bad[2 * CODEC_SPEC_MAX];
        const char *why;

        for (const struct codec *c = NULL; (c = codec_next(c));) {
                assert_ptr_equal(codec_by_name(c->name, strlen(c->name)), c);
                assert_true(c->summary && c->bound && c->encode && c->decode && strlen(c->name) < 16);
                assert_int_equal(!(c->flags & CODEC_ROW_ACCESS), !c->decode_rows);
                assert_int_equal(!(c->flags & CODEC_TRUNCATES), !c->shrink);
                for (unsigned i = 0, n = specs_of(c, specs); i < n; i++) {
                        codec_spec_format(&specs[i], text);
                        assert_true(strlen(text) < CODEC_SPEC_MAX - 1);
                        assert_int_equal(codec_spec_parse(text, strlen(text), &got, &why), 0);
                        assert_true(codec_spec_equal(&got, &specs[i]));
                        for (const char *tail = ",\0:\0=\0,x=1\0,bits\0 \0+\0"; tail[0]; tail += strlen(tail) + 1) {
                                snprintf(bad, sizeof(bad), "%s%s", text, tail);
                                refuse(bad, strlen(bad));
                        }
                        refuse(text, strcspn(text, ":") - 1);
                }
                for (unsigned i = 0; i < CODEC_PARAMS_MAX && c->params[i].name; i++) {
                        const struct codec_param *p = &c->params[i];
                        static const char *const values[] = {"",    "-1",  "+1",    " 1",          "\t1", "1 ",
                                                             "0x1", "1e0", "65536", "99999999999", "x",   "1.0"};
                        uint16_t v[8];
                        bool known = false;

                        for (unsigned k = param_values(p, v); k--;)
                                known |= v[k] == p->value || (!p->allowed[0] && p->value >= p->min && p->value <= p->max);
                        assert_true(known && p->help);
                        for (size_t k = 0; k < sizeof(values) / sizeof(*values); k++) {
                                snprintf(bad, sizeof(bad), "%s:%s=%s", c->name, p->name, values[k]);
                                refuse(bad, strlen(bad));
                        }
                        for (unsigned k = param_values(p, v); k--;) {
                                int n = snprintf(bad, sizeof(bad), "%s:%s=%u", c->name, p->name, v[k]);

                                assert_int_equal(codec_spec_parse(bad, (size_t)n, &got, &why), 0);
                                assert_int_equal(got.params[i], v[k]);
                                bad[n] = 0; /* a byte behind a number that is no digit */
                                refuse(bad, (size_t)n + 1);
                        }
                        snprintf(bad, sizeof(bad), "%s:%s=%u", c->name, p->name, (p->allowed[0] ? 0u : p->max + 1u));
                        refuse(bad, strlen(bad));
                }
        }
        refuse("", 0);
        refuse("ra", 2);
        refuse("raww", 4);
        refuse("RAW", 3);
        refuse("raw ", 4);
        refuse("raw:x=1", 7);
        refuse("raw:", 4);
}

static void test_pairs(void **state)
{
        struct codec_pair p, again;
        char text[CODEC_PAIR_MAX];
        const char *why;
        const struct codec *last = NULL;

        for (const struct codec *c = NULL; (c = codec_next(c));)
                last = c;
        assert_int_equal(codec_pair_parse("raw", &p, &why), 0);
        assert_true(p.k.codec == &codec_raw && p.v.codec == &codec_raw && codec_pair_lossless(&p));
        assert_string_equal(codec_pair_format(&p, text), "raw");
        snprintf(text, sizeof(text), "raw+%s", last->name);
        assert_int_equal(codec_pair_parse(text, &p, &why), 0);
        assert_true(p.k.codec == &codec_raw && p.v.codec == last);
        assert_int_equal(codec_pair_lossless(&p), !!(last->flags & CODEC_LOSSLESS));
        assert_ptr_equal(codec_pair_for(&p, KVT_ROLE_V), &p.v);
        for (uint32_t role = 0; role <= KVT_ROLE_INDEXER; role++)
                if (role != KVT_ROLE_V)
                        assert_ptr_equal(codec_pair_for(&p, role), &p.k);
        assert_int_equal(codec_pair_parse(codec_pair_format(&p, text), &again, &why), 0);
        assert_true(codec_spec_equal(&p.k, &again.k) && codec_spec_equal(&p.v, &again.v));
        for (const char *bad = "+\0raw+\0+raw\0raw+raw+raw\0raw + raw\0raw+nothing\0nothing+raw\0"; bad[0]; bad += strlen(bad) + 1)
                assert_int_equal(codec_pair_parse(bad, &again, &why), KVT_E_BAD_REQUEST);
}

static void test_shapes(void **state)
{
        struct shape p;

        assert_true(shape_make(&p, KVT_ROLE_K, KVT_DTYPE_F32, 1, 1, UINT32_MAX / 4, 0));
        assert_false(shape_make(&p, KVT_ROLE_K, KVT_DTYPE_F32, 1, 1, UINT32_MAX / 4 + 1, 0));
        assert_true(shape_make(&p, KVT_ROLE_K, KVT_DTYPE_OPAQUE, 1, 1, UINT32_MAX, 0));
        assert_false(shape_make(&p, KVT_ROLE_K, KVT_DTYPE_INT8, UINT32_MAX, UINT32_MAX, UINT32_MAX, 0));
        assert_false(shape_make(&p, KVT_ROLE_K, KVT_DTYPE_INT8, 65536, 65536, 1, 0));
        assert_false(shape_make(&p, KVT_ROLE_INDEXER + 1, KVT_DTYPE_INT8, 1, 1, 1, 0));
        assert_false(shape_make(&p, 0, KVT_DTYPE_OPAQUE + 1, 1, 1, 1, 0));
        assert_false(shape_make(&p, 0, 0, 0, 1, 1, 0));
        assert_false(shape_make(&p, 0, 0, 1, 0, 1, 0));
        assert_false(shape_make(&p, 0, 0, 1, 1, 0, 0));
}

int main(void)
{
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_known_error), cmocka_unit_test(test_bound),      cmocka_unit_test(test_failing_codecs),
                cmocka_unit_test(test_zero),        cmocka_unit_test(test_exact_rows), cmocka_unit_test(test_measure),
                cmocka_unit_test(test_specs),       cmocka_unit_test(test_pairs),      cmocka_unit_test(test_shapes),
        };
        return cmocka_run_group_tests(tests, NULL, NULL);
}
