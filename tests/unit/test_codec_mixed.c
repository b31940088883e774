/* mixed: which tokens are salient, sizes around SIMD widths, rows, variants, hostile payloads. */
#include <pthread.h>

#include "tests/unit/lossy.h"

#if defined(__SANITIZE_THREAD__)
#define TSAN 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define TSAN 1
#endif
#endif

/* The bit map stands after the count. */
static void check_salient(struct lossy *x, const float *scores, const uint8_t *expected, size_t n_map)
{
        lossy_check(x, scores);
        assert_memory_equal(x->payload + 4, expected, n_map);
        lossy_free(x);
}

static void test_salient(void **state)
{
        static const float scores[] = {0, 5, NAN, 7, 5, 1, 5, 0, 9, 0}, none[10] = {0};
        float values[10 * 16];
        struct lossy x = lossy_new("mixed:share=30", KVT_ROLE_K, KVT_DTYPE_F16, 2, 10, 16, NULL);

        check_salient(&x, scores, (const uint8_t[]){1 << 1 | 1 << 3, 1}, 2);
        x = lossy_new("mixed:share=0", KVT_ROLE_K, KVT_DTYPE_F16, 2, 10, 16, NULL);
        check_salient(&x, scores, (const uint8_t[]){0, 0}, 2);
        x = lossy_new("mixed:share=100", KVT_ROLE_V, KVT_DTYPE_F16, 2, 10, 16, NULL);
        check_salient(&x, scores, (const uint8_t[]){255, 3}, 2);
        x = lossy_new("mixed:share=20", KVT_ROLE_V, KVT_DTYPE_F16, 2, 10, 16, NULL);
        check_salient(&x, none, (const uint8_t[]){3, 0}, 2);
        /* without scores: a key away from the others though short, a long value */
        for (int i = 0; i < 160; i++)
                values[i] = i / 16 == 4 ? 0.01f : i / 16 == 9 ? 20.0f : 10 + (float)(i % 5) * 0.1f;
        x = lossy_new("mixed:share=10", KVT_ROLE_V, KVT_DTYPE_F16, 1, 10, 16, values);
        check_salient(&x, NULL, (const uint8_t[]){0, 2}, 2);
        for (int i = 9 * 16; i < 160; i++)
                values[i] = 10;
        x = lossy_new("mixed:share=10", KVT_ROLE_K, KVT_DTYPE_F16, 1, 10, 16, values);
        check_salient(&x, NULL, (const uint8_t[]){16, 0}, 2);
}

/* Salient tokens are nearer than the others; bits per value are what was asked for. */
static void test_precision(void **state)
{
        for (uint32_t role = KVT_ROLE_K; role <= KVT_ROLE_V; role++) {
                struct lossy x = lossy_new("mixed:low=2,share=25", role, KVT_DTYPE_F32, 1, 64, 64, NULL);
                float scores[64], y[64 * 64];
                double off[2] = {0};

                for (int t = 0; t < 64; t++)
                        scores[t] = t % 4 == 2;
                lossy_encode(&x, scores);
                assert_int_equal(lossy_decode(&x), 0);
                memcpy(y, x.decoded, sizeof(y));
                for (int i = 0; i < 64 * 64; i++)
                        off[i / 64 % 4 == 2] += (double)((y[i] - x.values[i]) * (y[i] - x.values[i]));
                assert_true(off[1] / 16 < off[0] / 48 / 100);
                assert_true(8.0 * (double)x.n / (64 * 64) < 2 * 0.75 + 8 * 0.25 + 0.4);
                lossy_free(&x);
        }
}

static void test_sizes(void **state)
{
        static const uint32_t tokens[] = {1, 2, 7, 8, 9, 17, 65, 130, 0}, dims[] = {1, 7, 8, 9, 16, 17, 64, 80, 260, 0};

        lossy_check_sizes("mixed:low=2,share=15", tokens, dims);
        lossy_check_sizes("mixed:low=1,share=40,params=16", tokens, dims);
        lossy_check_sizes("mixed:low=3,high=4,group=16,vgroup=16,share=60", tokens, dims);
        lossy_check_sizes("mixed:low=8", tokens, dims);
}

static void test_better(void **state)
{
        float e[16];

        assert_int_equal(lossy_errors("mixed:low=1,high=4,share=15", KVT_ROLE_K, 64, e), 5);
        for (int k = 1; k < 5; k++)
                assert_true(e[k] < e[k - 1]);
}

static void test_hostile(void **state)
{
        static const char *const specs[] = {"mixed:low=2,share=15", "mixed:share=50,params=16", "mixed:share=0", "mixed:share=100"};

        for (int s = 0; s < 4; s++)
                for (uint32_t role = KVT_ROLE_K; role <= KVT_ROLE_V; role++) {
                        struct lossy x = lossy_new(specs[s], role, KVT_DTYPE_BF16, 2, 11, 10, NULL);

                        lossy_check_hostile(&x, 64, 0);
                        lossy_encode(&x, NULL);
                        x.payload[5] |= 8; /* a twelfth token */
                        assert_int_equal(lossy_decode(&x), KVT_E_CORRUPT);
                        lossy_free(&x);
                }
}

static void test_describe(void **state)
{
        struct lossy x = lossy_new("mixed:share=20", KVT_ROLE_V, KVT_DTYPE_F16, 2, 10, 64, NULL);

        lossy_check_described(&x, "low=3,high=8,share=20,vgroup=64,params=8");
        lossy_free(&x);
}

/* Memory of a lease that was lost is given to others while a decoder is at what was there: garbage, or KVT_E_CORRUPT, but no access beyond the payload and the rows. */
static uint8_t *map_of;
static bool stop;
static void *change(void *arg)
{
        static const uint64_t maps[] = {0, UINT64_MAX, 0xffffffff00000000, 0x00000000ffffffff};
        const uint64_t *right = arg;

        for (unsigned i = 0; !__atomic_load_n(&stop, __ATOMIC_RELAXED); i++)
                memcpy(map_of, i % 2 ? right : &maps[i / 2 % 4], 8);
        return NULL;
}

static void test_changing(void **state)
{
#ifdef TSAN /* it sees the race, too */
        skip();
#endif
        struct lossy x = lossy_new("mixed:share=20", KVT_ROLE_K, KVT_DTYPE_F16, 2, 64, 24, NULL);
        struct kvt_copy_plane c = {.codec = CODEC_MIXED};
        unsigned n_good = 0, n_bad = 0;
        pthread_t thread;
        uint64_t right;

        lossy_encode(&x, NULL);
        struct room payload = room_of(x.payload, x.n, 0), rows = room_new(x.shape.n_bytes, 0);
        uint32_t tokens[64];

        for (uint32_t i = 0; i < 64; i++)
                tokens[i] = i;
        c.bytes = (uint32_t)x.n;
        map_of = payload.p + 4;
        memcpy(&right, map_of, 8);
        stop = false;
        assert_int_equal(pthread_create(&thread, NULL, change, &right), 0);
        for (unsigned i = 0; i < 20000; i++) {
                int r = i % 2 ? plane_decode(&x.shape, &c, payload.p, NULL, rows.p, x.scratch)
                              : plane_decode_rows(&x.shape, &c, payload.p, 1, tokens, 64, rows.p, x.scratch);

                n_good += !r;
                n_bad += r == KVT_E_CORRUPT;
                assert_true(!r || r == KVT_E_CORRUPT);
                room_check(&rows);
        }
        __atomic_store_n(&stop, true, __ATOMIC_RELAXED);
        pthread_join(thread, NULL);
        assert_true(n_bad > 0 && n_good + n_bad == 20000);
        room_free(&payload);
        room_free(&rows);
        lossy_free(&x);
}

int main(void)
{
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_salient),  cmocka_unit_test(test_precision), cmocka_unit_test(test_sizes),
                cmocka_unit_test(test_better),   cmocka_unit_test(test_hostile),   cmocka_unit_test(test_describe),
                cmocka_unit_test(test_changing),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
