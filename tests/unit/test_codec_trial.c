/* Trials of codecs: what counts as a plane that fell back, with the copy that is kept then. */
#include "tests/unit/codecs.h"

#include "libclient/trial.h"

/* A plane of one value under a spec. Returns whether it fell back; ret: what became of it. */
static bool falls_back(const char *text, float value, float max_rel_l2, const uint8_t *protect, struct kvt_copy_plane *ret)
{
        struct codec_spec s;
        struct plane_request q = {.spec = &s, .max_rel_l2 = max_rel_l2, .protect = protect};
        struct trial t = {0};
        struct trial_plane made;
        struct shape p;
        struct room src, dst;
        const char *why;

        assert_int_equal(codec_spec_parse(text, strlen(text), &s, &why), 0);
        assert_true(shape_make(&p, KVT_ROLE_K, KVT_DTYPE_F32, 2, 64, 64, 0));
        src = room_new(p.n_bytes, 0);
        dst = room_new(p.n_bytes, 0);
        for (size_t i = 0; i < p.n_values; i++)
                put_number(&p, src.p, i, (double)(value * (1 + (float)(i % 7) / 16)));
        assert_int_equal(trial_run(&t, &p, &q, src.p, dst.p, &made), 0);
        *ret = made.copy;
        trial_deinit(&t);
        room_free(&src);
        room_free(&dst);
        return made.fell_back;
}

static void test_falling_back(void **state)
{
        static const uint8_t protect[8] = {[2] = 0x10};
        struct kvt_copy_plane c;

        for (int i = 0; i < 2; i++) {
                const uint8_t *exact = i ? protect : NULL;

                assert_false(falls_back("kivi:bits=1", 1, INFINITY, exact, &c));
                assert_int_equal(c.codec, CODEC_KIVI);
                assert_int_equal(c.flags, i ? PLANE_EXACT_ROWS : 0);
                /* sums of 64 overflow: one bit is not enough for their mean, two bits have no need of it */
                assert_true(falls_back("kivi:bits=1", 0x1p122f, INFINITY, exact, &c));
                assert_int_equal(c.codec, CODEC_KIVI);
                assert_int_equal(c.flags, i ? PLANE_EXACT_ROWS : 0);
                assert_false(falls_back("kivi:bits=2", 0x1p122f, INFINITY, exact, &c));
                /* better parameters, and another codec, for the bound */
                assert_true(falls_back("kivi:bits=1", 1, 0.03f, exact, &c));
                assert_int_equal(c.codec, CODEC_KIVI);
                assert_true(falls_back("kivi:bits=1", 1, 1e-6f, exact, &c));
                assert_int_equal(c.codec, CODEC_ZBF);
        }
}

/* A lossless payload may be of any length. */
static void test_lossless(void **state)
{
        struct kvt_copy_plane c;

        assert_false(falls_back("zbf", 1, 0, NULL, &c));
        assert_int_equal(c.codec, CODEC_ZBF);
        assert_false(falls_back("raw", 1, 0, NULL, &c));
        assert_int_equal(c.codec, CODEC_RAW);
        assert_true(falls_back("xdelta", 1, 0, NULL, &c)); /* without a base */
        assert_int_equal(c.codec, CODEC_ZBF);
}

int main(void)
{
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_falling_back),
                cmocka_unit_test(test_lossless),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
