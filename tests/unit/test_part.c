/* codec/part: recoding a part, and which of its tokens stay exact. */
#include "tests/unit/codecs.h"

#include "libclient/codec/hash.h"
#include "libclient/codec/part.h"

enum { N_PLANES = 6, N_NUMBERS = 4 /* of them: the first, whose bytes are numbers */ };

struct part {
        struct geometry g;
        struct kvt_copy_plane planes[N_PLANES + 1];
        struct room payload; /* of the copy at hand */
        uint8_t *raw; /* as it was put */
        struct recode_counts counts;
};

static bool bit(const uint8_t *map, uint32_t t)
{
        return map && map[t / 8] >> t % 8 & 1;
}

/* A raw copy of a part with the first of planes of all kinds. protect, scores: hints; NULL: none. */
static struct part part_new(uint32_t tokens, uint32_t n_planes, const uint8_t *protect, const float *scores)
{
        static const kvt_plane planes[N_PLANES] = {
                {0, KVT_ROLE_K, KVT_DTYPE_F16, 2, 64, 0, 0},         {0, KVT_ROLE_V, KVT_DTYPE_BF16, 2, 64, 0, 16}, /* windowed */
                {1, KVT_ROLE_LATENT, KVT_DTYPE_F32, 1, 64, 0, 0},    {1, KVT_ROLE_INDEXER, KVT_DTYPE_BF16, 1, 32, 0, 0},
                {2, KVT_ROLE_STATE, KVT_DTYPE_OPAQUE, 1, 0, 999, 0}, {2, KVT_ROLE_K, KVT_DTYPE_OPAQUE, 1, 0, 9, 0},
        };
        struct part x = {0};
        const char *why;
        size_t n = 0;

        assert_int_equal(geometry_init(&x.g, tokens, 1, planes, n_planes, &why), 0);
        x.payload = room_new(x.g.part_bytes + hints_max(&x.g), 0);
        random_state = 88172645463325252u; /* parts of as many tokens are the same */
        for (uint32_t i = 0; i < n_planes; i++) {
                struct shape p = shape_of(&x.g, i);

                fill(&p, REAL, x.payload.p + n);
                x.planes[i] = (struct kvt_copy_plane){.hash = hash_bytes(x.payload.p + n, p.n_bytes, i), .bytes = (uint32_t)p.n_bytes};
                n += p.n_bytes;
        }
        x.raw = malloc(n);
        assert_non_null(x.raw);
        memcpy(x.raw, x.payload.p, n);
        x.planes[n_planes].bytes = (uint32_t)hints_encode(&x.g, protect, scores, 0, x.payload.p + n);
        x.planes[n_planes].hash = hash_bytes(x.payload.p + n, x.planes[n_planes].bytes, n_planes);
        return x;
}

static void part_free(struct part *x)
{
        room_free(&x->payload);
        free(x->raw);
        geometry_deinit(&x->g);
}

static struct codec_pair pair_of(const char *text)
{
        struct codec_pair to;
        const char *why;

        assert_int_equal(codec_pair_parse(text, &to, &why), 0);
        return to;
}

/* The copy becomes another one. */
static void recode(struct part *x, const char *text, uint32_t n_exact)
{
        struct codec_pair to = pair_of(text);
        struct kvt_copy_plane made[N_PLANES + 1];
        struct room dst = room_new(part_recode_bound(&x->g, &to, x->planes), 0);
        struct room scratch = room_new(part_recode_scratch(&x->g, &to, x->planes), 0);
        uint64_t hints = part_offset(x->planes, x->g.n_planes), n;

        assert_int_equal(part_recode(&x->g, &to, INFINITY, x->planes, x->payload.p, n_exact, dst.p, scratch.p, made, &n, &x->counts), 0);
        room_check(&dst);
        assert_int_equal(n, part_offset(made, x->g.n_planes) + made[x->g.n_planes].bytes);
        assert_memory_equal(&made[x->g.n_planes], &x->planes[x->g.n_planes], sizeof(*made)); /* hints are what they were */
        assert_memory_equal(dst.p + part_offset(made, x->g.n_planes), x->payload.p + hints, made[x->g.n_planes].bytes);
        room_free(&scratch);
        room_free(&x->payload);
        x->payload = dst;
        memcpy(x->planes, made, (x->g.n_planes + 1) * sizeof(*made));
}

static bool needs_work(const struct part *x, const char *text)
{
        struct codec_pair to = pair_of(text);

        return part_needs_work(&x->g, &to, INFINITY, x->planes, x->payload.p);
}

/* How many tokens a plane's payload has exactly: what it says itself. */
static uint32_t exact_rows(const struct part *x, uint32_t i)
{
        uint32_t n = 0;

        if (x->planes[i].flags & PLANE_EXACT_ROWS)
                memcpy(&n, x->payload.p + part_offset(x->planes, i + 1) - 8, sizeof(n));
        return n;
}

/* Whether just these tokens are exact, and the others coded: the first n_exact and those of the map. Planes without numbers are as they were. */
static void check_exact(const struct part *x, uint8_t codec, uint32_t n_exact, const uint8_t *protect)
{
        for (uint32_t i = 0; i < x->g.n_planes; i++) {
                struct shape p = shape_of(&x->g, i);
                struct room decoded = room_new(p.n_bytes, 0), scratch = room_new(plane_decode_scratch(&p, &x->planes[i]), 0);
                size_t row = (size_t)p.dim * p.elem_bytes;
                const uint8_t *raw = x->raw + x->g.offsets[i];
                uint32_t n = 0;

                assert_int_equal(plane_decode(&p, &x->planes[i], x->payload.p + part_offset(x->planes, i), NULL, decoded.p, scratch.p), 0);
                if (i >= N_NUMBERS) { /* that a token is exact says nothing of it: it has no loss */
                        assert_memory_equal(decoded.p, raw, p.n_bytes);
                        assert_true(codec_find(x->planes[i].codec)->flags & CODEC_LOSSLESS && !x->planes[i].flags);
                } else {
                        for (uint32_t t = 0; t < p.tokens; t++) {
                                bool is_exact = t < n_exact || bit(protect, t), same = true;

                                for (uint32_t h = 0; h < p.heads; h++) {
                                        size_t at = ((size_t)h * p.tokens + t) * row;

                                        same &= !memcmp(decoded.p + at, raw + at, row);
                                }
                                assert_int_equal(same, is_exact);
                                n += is_exact;
                        }
                        assert_int_equal(x->planes[i].codec, codec);
                        assert_int_equal(x->planes[i].flags, n ? PLANE_EXACT_ROWS : 0);
                        assert_int_equal(exact_rows(x, i), n);
                }
                room_free(&scratch);
                room_free(&decoded);
        }
}

/* Both have the same planes, hints aside. */
static void check_same(const struct part *x, const struct part *y)
{
        assert_memory_equal(x->planes, y->planes, x->g.n_planes * sizeof(*x->planes));
        assert_memory_equal(x->payload.p, y->payload.p, part_offset(x->planes, x->g.n_planes));
}

static void test_first(void **state)
{
        static const uint32_t tokens[] = {64, 37, 8, 130}, firsts[] = {0, 1, 3};

        for (unsigned t = 0; t < 4; t++)
                for (unsigned n = 0; n < 3; n++) {
                        struct part x = part_new(tokens[t], N_PLANES, NULL, NULL);

                        recode(&x, "kivi", firsts[n]);
                        assert_int_equal(x.counts.n_coded, N_PLANES);
                        check_exact(&x, CODEC_KIVI, firsts[n], NULL);
                        part_free(&x);
                }
        for (uint32_t n = 7; n <= 17; n += 5) { /* whole bytes of the map, and more */
                struct part x = part_new(64, N_PLANES, NULL, NULL);

                recode(&x, "kivi:bits=2+turbo:bits=2", n);
                assert_int_equal(x.planes[1].codec, CODEC_TURBO);
                assert_int_equal(exact_rows(&x, 0), n);
                assert_int_equal(exact_rows(&x, 1), n);
                part_free(&x);
        }
}

/* All are protected: a codec has nothing to do, and there is no loss. */
static void test_all(void **state)
{
        static const uint32_t tokens[] = {1, 4, 33, 64}, more[] = {0, 1, 1024, UINT32_MAX - 64};

        for (unsigned t = 0; t < 4; t++)
                for (unsigned m = 0; m < 4; m++) {
                        struct part x = part_new(tokens[t], N_PLANES, NULL, NULL);

                        recode(&x, "kivi", tokens[t] + more[m]);
                        assert_true(part_is_lossless(&x.g, x.planes));
                        assert_int_equal(x.counts.n_fell_back, N_PLANES);
                        recode(&x, "raw", 0);
                        assert_memory_equal(x.payload.p, x.raw, x.g.part_bytes);
                        part_free(&x);
                }
}

/* What is made of hints and a number of first tokens is what is made of hints that name all of these. */
static void test_hints(void **state)
{
        static const char *const specs[] = {"kivi", "turbo:bits=2", "mixed", "gear", "stack", "bitmap"};
        static const uint8_t some[5] = {0x02, 0, 0x10, 0, 0x10}, all[5] = {0x1f, 0, 0x10, 0, 0x10};
        float scores[37];

        for (unsigned i = 0; i < 37; i++)
                scores[i] = (float)((i * 7 + 36) % 37); /* the first is the highest */
        for (unsigned s = 0; s < 6; s++)
                for (unsigned scored = 0; scored < 2; scored++) {
                        struct part x = part_new(37, N_PLANES, some, scored ? scores : NULL),
                                    y = part_new(37, N_PLANES, all, scored ? scores : NULL);
                        struct codec_pair to = pair_of(specs[s]);

                        recode(&x, specs[s], 5);
                        recode(&y, specs[s], 0);
                        check_exact(&x, to.k.codec->id, 5, some);
                        check_same(&x, &y);
                        part_free(&x);
                        part_free(&y);

                        x = part_new(37, N_PLANES, NULL, scored ? scores : NULL);
                        recode(&x, specs[s], 8);
                        check_exact(&x, to.k.codec->id, 8, NULL);
                        part_free(&x);
                }
}

/* Lossless copies do not know of it, and what is lossy already stays as it is: there is nothing to do again and again. */
static void test_kept(void **state)
{
        struct part x = part_new(64, N_NUMBERS, NULL, NULL), y = part_new(64, N_NUMBERS, NULL, NULL);

        recode(&x, "zbf", 4);
        recode(&y, "zbf", 0);
        check_same(&x, &y);
        assert_true(needs_work(&x, "kivi"));
        recode(&x, "kivi", 4); /* from zbf */
        check_exact(&x, CODEC_KIVI, 4, NULL);
        recode(&y, "raw", 4);
        assert_memory_equal(y.payload.p, y.raw, y.g.part_bytes);
        recode(&y, "kivi", 4); /* from raw */
        check_same(&x, &y);
        for (uint32_t n_exact = 0; n_exact <= 64; n_exact += 16) {
                assert_false(needs_work(&x, "kivi:bits=2"));
                recode(&x, "kivi:bits=2", n_exact);
                assert_int_equal(x.counts.n_coded, 0);
                check_same(&x, &y);
        }
        part_free(&x);
        part_free(&y);
}

/* A copy with exact rows cannot be truncated, one without does not get any. */
static void test_truncated(void **state)
{
        struct part x = part_new(64, N_NUMBERS, NULL, NULL), y = part_new(64, N_NUMBERS, NULL, NULL);
        uint64_t n;

        recode(&x, "stack:levels=5", 4);
        recode(&y, "stack:levels=5", 0);
        n = part_offset(x.planes, N_NUMBERS);
        assert_false(needs_work(&x, "stack:levels=2"));
        recode(&x, "stack:levels=2", 4);
        assert_int_equal(x.counts.n_coded, 0);
        assert_int_equal(part_offset(x.planes, N_NUMBERS), n);
        check_exact(&x, CODEC_STACK, 4, NULL);
        n = part_offset(y.planes, N_NUMBERS);
        assert_true(needs_work(&y, "stack:levels=2"));
        recode(&y, "stack:levels=2", 4);
        assert_int_equal(y.counts.n_coded, N_NUMBERS);
        assert_true(part_offset(y.planes, N_NUMBERS) < n * 2 / 3);
        check_exact(&y, CODEC_STACK, 0, NULL);
        assert_false(needs_work(&y, "stack:levels=2"));
        part_free(&x);
        part_free(&y);
}

int main(void)
{
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_first), cmocka_unit_test(test_all),       cmocka_unit_test(test_hints),
                cmocka_unit_test(test_kept),  cmocka_unit_test(test_truncated),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
