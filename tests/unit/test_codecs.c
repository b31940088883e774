/* Every codec of the registry with every kind of plane: what encode() and decode() promise, on its own and through codec/plane.
 *
 * Errors in headers are compared with ones computed here, by other code: numbers read bit by bit, sums in double. */
#include "tests/unit/codecs.h"

#include "libclient/codec/hash.h"

enum { N_PLANES = 14 /* for each spec */ };

static const struct codec_spec *now; /* for messages */
static struct shape now_shape;

static void tell(const char *what)
{
        char text[CODEC_SPEC_MAX];

        fail_msg("%s: %s: role %u, dtype %u, heads %u, tokens %u, dim %u", what, codec_spec_format(now, text), now_shape.role,
                 now_shape.dtype, now_shape.heads, now_shape.tokens, now_shape.dim);
}
#define EXPECT(x)                                                                                                                          \
        do {                                                                                                                               \
                if (!(x))                                                                                                                  \
                        tell(#x);                                                                                                          \
        } while (0)

static size_t scratch_bytes(const struct codec_spec *s, const struct shape *p)
{
        return s->codec->scratch ? s->codec->scratch(s, p) : 0;
}

/* the codec on its own */

static struct room decode(const struct shape *p, const struct codec *c, const struct room *payload, const void *base)
{
        struct codec_spec d = codec_spec_default(c);
        struct room scratch = room_new(scratch_bytes(&d, p), 0), ret = room_new(p->n_bytes, random_below(2));

        EXPECT(c->decode(p, payload->p, payload->n, base, ret.p, scratch.p) == 0);
        room_check(&ret);
        room_check(payload);
        room_free(&scratch);
        return ret;
}

static void check_rows(const struct shape *p, const struct codec *c, const struct room *payload, const uint8_t *whole)
{
        struct codec_spec d = codec_spec_default(c);
        size_t row = (size_t)p->dim * p->elem_bytes;
        uint32_t tokens[80];

        for (uint32_t h = 0; h < p->heads; h++) {
                uint32_t n = 1 + random_below(p->tokens < 40 ? 2 * p->tokens : 80);
                struct room scratch = room_new(scratch_bytes(&d, p), 0), ret = room_new(n * row, random_below(2));

                for (uint32_t i = 0; i < n; i++)
                        tokens[i] = h % 2 && i < p->tokens ? i : random_below(p->tokens);
                EXPECT(c->decode_rows(p, payload->p, payload->n, h, tokens, n, ret.p, scratch.p) == 0);
                for (uint32_t i = 0; i < n; i++)
                        EXPECT(!memcmp(ret.p + i * row, whole + ((size_t)h * p->tokens + tokens[i]) * row, row));
                room_free(&ret);
                room_free(&scratch);
        }
}

/* One that is too short or too long is refused. */
static void check_payload(const struct shape *p, const struct codec *c, const struct room *payload, const void *base)
{
        struct codec_spec d = codec_spec_default(c);
        struct room scratch = room_new(scratch_bytes(&d, p), 0), ret = room_new(p->n_bytes, 0), longer = room_new(payload->n + 1, 1),
                    shorter = room_of(payload->p, payload->n - 1, 1);
        int r;

        memcpy(longer.p, payload->p, payload->n);
        EXPECT(c->decode(p, longer.p, longer.n, base, ret.p, scratch.p) == KVT_E_CORRUPT);
        r = c->decode(p, shorter.p, shorter.n, base, ret.p, scratch.p);
        EXPECT(r == KVT_E_CORRUPT || (r == 0 && c->flags & CODEC_TRUNCATES));
        room_free(&scratch);
        room_free(&ret);
        room_free(&longer);
        room_free(&shorter);
}

/* Parameters that the payload of a plane may show as others that make the same of it. */
static bool is_rounded(const char *name)
{
        return !strcmp(name, "centre") || !strcmp(name, "share") || !strcmp(name, "outliers") || !strcmp(name, "keep");
}

/* What a payload says of itself is a spec: over the one it was made with, that changes nothing. */
static void check_described(const struct shape *p, const struct codec_spec *s, const struct codec_input *in, const struct room *payload)
{
        const struct codec *c = s->codec;
        char text[CODEC_SPEC_MAX], spec[2 * CODEC_SPEC_MAX];
        struct codec_spec described, again;
        struct room dst, scratch;
        const char *why;
        size_t n_spec;
        int n;

        EXPECT(!c->params[0].name == !c->describe);
        if (!c->describe)
                return;
        n = c->describe(p, payload->p, payload->n, text, sizeof(text));
        EXPECT(n > 0 && n < (int)sizeof(text) && strlen(text) == (size_t)n);
        EXPECT(c->describe(p, payload->p, payload->n, spec, 1) == n && !spec[0]); /* no room but for the end */
        if (!(c->flags & CODEC_TRUNCATES))
                EXPECT(c->describe(p, payload->p, payload->n - 1, spec, sizeof(spec)) == 1 && !strcmp(spec, "?"));
        n_spec = (size_t)snprintf(spec, sizeof(spec), "%s:%s", c->name, text);
        EXPECT(codec_spec_parse(spec, n_spec, &described, &why) == 0);
        codec_spec_format(s, spec);
        n_spec = strlen(spec);
        n_spec += (size_t)snprintf(spec + n_spec, sizeof(spec) - n_spec, "%c%s", strchr(spec, ':') ? ',' : ':', text);
        EXPECT(codec_spec_parse(spec, n_spec, &again, &why) == 0);
        for (unsigned i = 0; i < CODEC_PARAMS_MAX && c->params[i].name; i++) {
                char name[32], listed[CODEC_SPEC_MAX + 1];

                EXPECT(again.params[i] == s->params[i] || is_rounded(c->params[i].name));
                snprintf(name, sizeof(name), ",%s=", c->params[i].name);
                snprintf(listed, sizeof(listed), ",%s", text);
                EXPECT(strstr(listed, name) ? described.params[i] == again.params[i] : described.params[i] == c->params[i].value);
        }
        dst = room_new(c->bound(&again, p), 0);
        scratch = room_new(scratch_bytes(&again, p), 0);
        EXPECT(c->encode(&again, p, in, dst.p, scratch.p) == payload->n && !memcmp(dst.p, payload->p, payload->n));
        room_free(&dst);
        room_free(&scratch);
}

static bool check_codec(const struct shape *p, const struct codec_spec *s, enum content content)
{
        const struct codec *c = s->codec;
        bool lossless = c->flags & CODEC_LOSSLESS, with_scores = random_below(2), coded;
        size_t bound = c->bound(s, p), n = 0;
        struct room src = room_new(p->n_bytes, random_below(2)), base = room_new(p->n_bytes, 1), dst = room_new(bound, 1), first,
                    values = room_new(p->n_values * sizeof(float), 0);
        float scores[160];
        struct codec_input in = {.bytes = src.p,
                                 .values = lossless ? NULL : (float *)(void *)values.p,
                                 .scores = with_scores && !lossless ? scores : NULL,
                                 .base = base.p,
                                 .base_key = (const uint8_t *)"0123456789abcdef"};

        fill(p, content, src.p);
        memcpy(base.p, src.p, p->n_bytes);
        for (uint32_t i = 0; i < p->n_bytes; i += 1 + random_below(50))
                base.p[i] ^= (uint8_t)random_next();
        for (uint32_t i = 0; i < p->tokens; i++)
                scores[i] = random_below(4) ? (float)random_below(1000) / 100 : 0;
        if (!lossless)
                kernels_base.widen((float *)(void *)values.p, src.p, p->n_values, p->dtype);
        first = room_new(bound, 1);
        for (unsigned v = 0; kernels_nth(v); v++) {
                struct room scratch = room_new(scratch_bytes(s, p), 0);
                size_t m;

                kernels_choose(kernels_nth(v));
                memset(dst.p, (int)random_below(256), dst.n);
                m = c->encode(s, p, &in, dst.p, scratch.p);
                EXPECT(m <= bound);
                room_check(&dst);
                room_free(&scratch);
                if (v)
                        EXPECT(m == n && !memcmp(first.p, dst.p, n));
                n = m;
                memcpy(first.p, dst.p, n);
        }
        coded = n > 0;
        if (n) {
                struct room payload = room_of(first.p, n, 1), whole = {0};

                for (unsigned v = 0; kernels_nth(v); v++) {
                        struct room again;

                        kernels_choose(kernels_nth(v));
                        again = decode(p, c, &payload, base.p);
                        if (lossless)
                                EXPECT(!memcmp(again.p, src.p, p->n_bytes));
                        if (v) {
                                EXPECT(!memcmp(again.p, whole.p, p->n_bytes));
                                room_free(&again);
                        } else {
                                whole = again;
                        }
                        if (c->flags & CODEC_ROW_ACCESS)
                                check_rows(p, c, &payload, whole.p);
                }
                check_payload(p, c, &payload, base.p);
                check_described(p, s, &in, &payload);
                room_free(&whole);
                room_free(&payload);
        }
        kernels_choose(kernels_nth(0));
        room_free(&src);
        room_free(&base);
        room_free(&dst);
        room_free(&first);
        room_free(&values);
        return coded;
}

static void test_codecs_alone(void **state)
{
        struct codec_spec specs[SPECS_MAX];

        for (const struct codec *c = NULL; (c = codec_next(c));) {
                unsigned n_specs = specs_of(c, specs), n_coded = 0, n_tried = 0;

                for (unsigned i = 0; i < n_specs * N_PLANES || i < 60; i++) {
                        struct shape p = shape_draw();
                        bool lossless = c->flags & CODEC_LOSSLESS;
                        enum content content = random_below(3) ? REAL : random_below(lossless ? N_CONTENTS : N_FINITE);

                        now = &specs[i % n_specs];
                        now_shape = p;
                        if ((!lossless && p.dtype == KVT_DTYPE_OPAQUE) || !supported(now, &p))
                                continue;
                        n_tried++;
                        n_coded += check_codec(&p, now, content);
                }
                now = &specs[0];
                EXPECT(n_tried > 10 && n_coded > n_tried / 4);
        }
}

/* Every number of tokens and every dim around the widths of vectors, with the default spec. */
static void test_every_length(void **state)
{
        for (const struct codec *c = NULL; (c = codec_next(c));) {
                struct codec_spec s = codec_spec_default(c);

                now = &s;
                for (uint32_t n = 1; n <= 140; n += SLOW ? 1 + random_below(5) : 1) {
                        uint32_t dtype = n % 5, role = random_below(2);

                        if (n <= 70 && shape_make(&now_shape, role, dtype, 1 + n % 2, n, n % 3 ? 64 : 9, n) && supported(&s, &now_shape))
                                check_codec(&now_shape, &s, REAL);
                        if (shape_make(&now_shape, role, (n + 1) % 5, 1 + n % 2, n % 3 ? 33 : 5, n, n) && supported(&s, &now_shape))
                                check_codec(&now_shape, &s, REAL);
                        if (shape_make(&now_shape, role, KVT_DTYPE_OPAQUE, 1, 3, n, n) && c->flags & CODEC_LOSSLESS &&
                            supported(&s, &now_shape))
                                check_codec(&now_shape, &s, REAL);
                }
        }
}

/* What overflows is not coded, or decodes: no codec makes a payload that its decoder refuses. */
static void test_overflow(void **state)
{
        struct codec_spec specs[SPECS_MAX];

        for (const struct codec *c = NULL; (c = codec_next(c));)
                for (unsigned i = 0, n = specs_of(c, specs); i < 2 * n; i++) {
                        now = &specs[i / 2];
                        assert_true(shape_make(&now_shape, i % 2, i % 3 ? KVT_DTYPE_F32 : KVT_DTYPE_BF16, 2, 64, 64, i));
                        if (supported(now, &now_shape))
                                check_codec(&now_shape, now, i % 5 ? ENDS : LARGEST);
                }
}

static void test_better(void **state)
{
        struct codec_spec specs[SPECS_MAX], next;
        struct shape p;

        assert_true(shape_make(&p, KVT_ROLE_K, KVT_DTYPE_F16, 2, 64, 64, 0));
        now_shape = p;
        for (const struct codec *c = NULL; (c = codec_next(c));)
                for (unsigned i = 0, n = specs_of(c, specs), steps; i < n; i++) {
                        now = &specs[i];
                        next = specs[i];
                        for (steps = 0; c->better && c->better(&next, &next); steps++) {
                                EXPECT(next.codec == c && steps < 50);
                                for (unsigned k = 0; k < CODEC_PARAMS_MAX && c->params[k].name; k++) { /* one that could be asked for */
                                        char text[2 * CODEC_SPEC_MAX];
                                        const char *why;
                                        struct codec_spec parsed;

                                        codec_spec_format(&next, text);
                                        EXPECT(codec_spec_parse(text, strlen(text), &parsed, &why) == 0 &&
                                               codec_spec_equal(&parsed, &next));
                                }
                        }
                }
}

/* through codec/plane */

/* The error as headers give it, in another way. */
static void slow_measure(const struct shape *p, const uint8_t *x, const uint8_t *y, double *ret_rel, double *ret_max)
{
        double diff = 0, norm = 0;

        *ret_rel = *ret_max = 0;
        for (size_t i = 0; i < p->n_values && p->dtype != KVT_DTYPE_OPAQUE; i++) {
                double a = slow_number(x, i, p->dtype), b = slow_number(y, i, p->dtype);

                if (!isfinite(a) || !isfinite(b)) {
                        if (memcmp(x + i * p->elem_bytes, y + i * p->elem_bytes, p->elem_bytes) == 0)
                                continue;
                        *ret_rel = *ret_max = (double)INFINITY;
                        return;
                }
                diff += (a - b) * (a - b);
                norm += a * a;
                *ret_max = fabs(a - b) > *ret_max ? fabs(a - b) : *ret_max;
        }
        *ret_rel = diff > 0 ? sqrt(diff / norm) : 0;
}

static bool near(double a, double b)
{
        return a == b || fabs(a - b) <= 1e-6 * fabs(b) + 0x1p-149;
}

struct given {
        const uint8_t *src, *base, *protect;
        float *scores, max_rel_l2;
};

static bool finite_row(const struct shape *p, const uint8_t *src, uint32_t t)
{
        for (uint32_t h = 0; h < p->heads; h++)
                for (uint32_t d = 0; d < p->dim; d++)
                        if (!isfinite(slow_number(src, ((size_t)h * p->tokens + t) * p->dim + d, p->dtype)))
                                return false;
        return true;
}

/* What a header says is so, of the bytes that a reader gets. */
static void check_copy(const struct shape *p, const struct given *g, const struct room *payload, const struct kvt_copy_plane *c)
{
        const struct codec *codec = codec_find(c->codec);
        size_t row = (size_t)p->dim * p->elem_bytes;
        struct room scratch, got = room_new(p->n_bytes, random_below(2)), one = room_new(row, 1);
        double rel, max;
        int r;

        EXPECT(codec && (codec == now->codec || codec->id == CODEC_ZBF || codec->id == CODEC_RAW));
        EXPECT(c->hash == hash_bytes(payload->p, payload->n, kvt_plane_seed(c, p->seed)) && !c->zero);
        scratch = room_new(plane_decode_scratch(p, c), 0);
        EXPECT(plane_decode(p, c, payload->p, g->base, got.p, scratch.p) == 0);
        if (codec->flags & CODEC_LOSSLESS)
                EXPECT(!memcmp(got.p, g->src, p->n_bytes) && !c->flags);
        slow_measure(p, g->src, got.p, &rel, &max);
        EXPECT(near((double)c->rel_l2, rel) && near((double)c->max_abs, (double)(float)max));
        EXPECT(c->rel_l2 <= g->max_rel_l2);
        for (uint32_t t = 0; t < p->tokens && p->dtype != KVT_DTYPE_OPAQUE; t++)
                if ((g->protect && g->protect[t / 8] >> t % 8 & 1) || !finite_row(p, g->src, t))
                        for (uint32_t h = 0; h < p->heads; h++) {
                                size_t at = ((size_t)h * p->tokens + t) * row;

                                EXPECT(!memcmp(got.p + at, g->src + at, row));
                        }
        for (int i = 0; i < 6; i++) {
                uint32_t h = random_below(p->heads), t = random_below(p->tokens);

                r = plane_decode_rows(p, c, payload->p, h, &t, 1, one.p, scratch.p);
                EXPECT(r == (codec->flags & CODEC_ROW_ACCESS ? 0 : KVT_E_UNSUPPORTED));
                EXPECT(r || !memcmp(one.p, got.p + ((size_t)h * p->tokens + t) * row, row));
        }
        room_free(&scratch);
        room_free(&got);
        room_free(&one);
}

/* Returns the codec that it got. */
static uint8_t check_plane(const struct shape *p, const struct codec_spec *s, const struct given *g)
{
        size_t bound = plane_bound(p, s);
        struct plane_request q = {.spec = s,
                                  .max_rel_l2 = g->max_rel_l2,
                                  .protect = g->protect,
                                  .scores = g->scores,
                                  .base = g->base,
                                  .base_key = (const uint8_t *)"0123456789abcdef"};
        struct room dst = room_new(bound, 1), payload = {0};
        struct kvt_copy_plane c, first;

        for (unsigned v = 0; kernels_nth(v); v++) {
                struct room scratch = room_new(plane_encode_scratch(p, s), 0);

                kernels_choose(kernels_nth(v));
                memset(&c, 0xee, sizeof(c));
                plane_encode(p, &q, g->src, dst.p, scratch.p, &c);
                room_check(&dst);
                EXPECT(c.bytes && c.bytes <= p->n_bytes && c.bytes <= bound);
                if (v)
                        EXPECT(!memcmp(&c, &first, sizeof(c)) && !memcmp(dst.p, payload.p, c.bytes));
                else
                        payload = room_of(dst.p, c.bytes, 1);
                first = c;
                room_free(&scratch);
        }
        kernels_choose(kernels_nth(0));
        check_copy(p, g, &payload, &c);
        room_free(&payload);
        room_free(&dst);
        return c.codec;
}

static void test_planes(void **state)
{
        static const float bounds[] = {0, 1e-4f, 0.003f, 0.03f, 0.1f, 0.3f, 0.9f, INFINITY, INFINITY, INFINITY};
        struct codec_spec specs[SPECS_MAX];

        for (const struct codec *c = NULL; (c = codec_next(c));) {
                unsigned n_specs = specs_of(c, specs), n_planes = n_specs * N_PLANES > 60 ? n_specs * N_PLANES : 60, n_kept = 0;

                for (unsigned i = 0; i < n_planes; i++) {
                        struct shape p = shape_draw();
                        struct room src = room_new(p.n_bytes, random_below(2)), base = room_new(p.n_bytes, 0);
                        float scores[160];
                        uint8_t protect[20];
                        struct given g = {.src = src.p,
                                          .base = random_below(2) ? base.p : NULL,
                                          .protect = random_below(3) ? NULL : protect,
                                          .scores = random_below(2) ? scores : NULL,
                                          .max_rel_l2 = bounds[random_below(sizeof(bounds) / sizeof(*bounds))]};

                        now = &specs[i % n_specs];
                        now_shape = p;
                        for (uint32_t t = 0; t < p.tokens; t++)
                                scores[t] = (float)random_below(100);
                        for (size_t b = 0; b < sizeof(protect); b++)
                                protect[b] = (uint8_t)(random_next() & random_next() & random_next());
                        fill(&p, random_below(2) ? REAL : random_below(N_CONTENTS), src.p);
                        memcpy(base.p, src.p, p.n_bytes);
                        base.p[random_below((uint32_t)p.n_bytes)] ^= 0x40;
                        n_kept += check_plane(&p, now, &g) == c->id;
                        room_free(&src);
                        room_free(&base);
                }
                now = &specs[0];
                EXPECT(n_kept > n_planes / 20);
        }
}

/* Planes that are hard for those who divide, with each codec's default and no bound at all. */
static void test_hard_planes(void **state)
{
        static const uint32_t dims[] = {1, 64, 65, 128}, tokens[] = {1, 33, 64};

        for (const struct codec *c = NULL; (c = codec_next(c));) {
                struct codec_spec s = codec_spec_default(c);

                now = &s;
                for (unsigned i = 0; i < 5 * N_CONTENTS * (SLOW ? 1 : 3); i++) {
                        struct room src;
                        struct given g = {.max_rel_l2 = INFINITY};

                        assert_true(shape_make(&now_shape, random_below(2), i % 5, 1 + i % 2, tokens[random_below(3)],
                                               dims[random_below(4)], i));
                        src = room_new(now_shape.n_bytes, 1);
                        g.src = src.p;
                        fill(&now_shape, i / 5 % N_CONTENTS, src.p);
                        check_plane(&now_shape, &s, &g);
                        room_free(&src);
                }
        }
}

/* Of every payload that can be cut, every cut is what its header then says, and one that is refused leaves all as it was. */
static void test_shrink(void **state)
{
        struct codec_spec specs[SPECS_MAX];
        unsigned n_cut = 0, n_can = 0;

        for (const struct codec *c = NULL; (c = codec_next(c));) {
                unsigned n_specs = specs_of(c, specs);

                for (unsigned i = 0; i < 8 * n_specs; i++) {
                        struct shape p = shape_draw();
                        const struct codec_spec *from = &specs[random_below(n_specs)], *to = &specs[i % n_specs];
                        float most = random_below(3) ? INFINITY : (float)random_below(100) / 100;
                        struct room src = room_new(p.n_bytes, 0), dst = room_new(plane_bound(&p, from), 1),
                                    scratch = room_new(plane_encode_scratch(&p, from), 0), payload, as_it_was;
                        struct given g = {.src = src.p, .max_rel_l2 = most};
                        struct plane_request q = {.spec = from, .max_rel_l2 = INFINITY};
                        struct kvt_copy_plane made, before;

                        now = to;
                        now_shape = p;
                        fill(&p, random_below(N_FINITE), src.p);
                        plane_encode(&p, &q, src.p, dst.p, scratch.p, &made);
                        before = made;
                        payload = room_of(dst.p, made.bytes, 1);
                        as_it_was = room_of(dst.p, made.bytes, 1);
                        n_can += c->flags & CODEC_TRUNCATES && made.codec == c->id;
                        if (plane_shrink(&p, to, most, payload.p, &made)) {
                                struct room less = room_of(payload.p, made.bytes, 1);

                                EXPECT(c->flags & CODEC_TRUNCATES && made.bytes < before.bytes && made.codec == c->id);
                                check_copy(&p, &g, &less, &made);
                                room_free(&less);
                                n_cut++;
                        } else {
                                EXPECT(!memcmp(payload.p, as_it_was.p, payload.n) && !memcmp(&made, &before, sizeof(made)));
                        }
                        room_free(&payload);
                        room_free(&as_it_was);
                        room_free(&src);
                        room_free(&dst);
                        room_free(&scratch);
                }
        }
        assert_true(n_cut >= n_can / 10);
}

int main(void)
{
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_codecs_alone), cmocka_unit_test(test_every_length), cmocka_unit_test(test_overflow),
                cmocka_unit_test(test_better),       cmocka_unit_test(test_planes),       cmocka_unit_test(test_hard_planes),
                cmocka_unit_test(test_shrink),
        };
        return cmocka_run_group_tests(tests, NULL, NULL);
}
