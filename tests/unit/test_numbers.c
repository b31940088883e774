/* Between dtypes and floats: every kernel of this CPU against rules told bit by bit, for all values of 8 and 16 bits and many of 32. */
#include "tests/unit/codecs.h"

enum { PATTERNS = 65536 };
static const uint32_t dtypes[] = {KVT_DTYPE_F32, KVT_DTYPE_F16, KVT_DTYPE_BF16, KVT_DTYPE_FP8, KVT_DTYPE_INT8};

static uint32_t bits_of(float f)
{
        uint32_t u;

        memcpy(&u, &f, sizeof(u));
        return u;
}

static float of_bits(uint32_t u)
{
        float f;

        memcpy(&f, &u, sizeof(f));
        return f;
}

static bool same(float a, double b)
{
        return isnan(b) ? isnan(a) : (double)a == b && !signbit(a) == !signbit(b);
}

static void test_widen(void **state)
{
        static uint8_t all[PATTERNS * 4 + 1];
        static float got[PATTERNS + 1], first[PATTERNS];

        for (size_t d = 0; d < 5; d++) {
                uint32_t size = geometry_dtype_bytes(dtypes[d]);

                for (uint32_t i = 0; i < PATTERNS; i++) {
                        uint32_t u = size == 4 ? i < 1000 ? i : (uint32_t)random_next() : i;

                        memcpy(all + 1 + (size_t)i * size, &u, size);
                }
                for (unsigned v = 0; kernels_nth(v); v++) {
                        const struct kernels *k = kernels_nth(v);

                        k->widen(got, all + 1, PATTERNS, dtypes[d]);
                        for (uint32_t i = 0; i < PATTERNS; i++)
                                assert_true(same(got[i], slow_number(all + 1, i, dtypes[d])));
                        if (!v)
                                memcpy(first, got, sizeof(first));
                        assert_memory_equal(first, got, sizeof(first)); /* NaNs, too */
                        for (size_t n = 0; n < 140; n++) {
                                size_t at = random_below(PATTERNS - 140);

                                memset(got, 0xa5, (n + 1) * sizeof(*got));
                                k->widen(got, all + 1 + at * size, n, dtypes[d]);
                                assert_memory_equal(got, first + at, n * sizeof(*got));
                                assert_int_equal(bits_of(got[n]), 0xa5a5a5a5);
                        }
                }
        }
}

/* All finite values that are not negative, ascending: their codes ascend, too. */
struct ladder {
        double values[32768];
        uint32_t n;
};

static void ladder_fill(struct ladder *l, uint32_t dtype)
{
        uint32_t sign = 1u << (8 * geometry_dtype_bytes(dtype) - 1);

        for (l->n = 0; l->n < sign; l->n++) {
                l->values[l->n] = slow_number(&l->n, 0, dtype);
                if (!isfinite(l->values[l->n]))
                        break;
                assert_true(!l->n || l->values[l->n] > l->values[l->n - 1]);
        }
}

/* The nearest one, of two the even one; beyond the largest: that. */
static uint32_t ladder_nearest(const struct ladder *l, double x)
{
        uint32_t low = 0, high = l->n - 1;

        if (x >= l->values[high])
                return high;
        while (high - low > 1) {
                uint32_t middle = (low + high) / 2;

                if (l->values[middle] <= x)
                        low = middle;
                else
                        high = middle;
        }
        double down = x - l->values[low], up = l->values[high] - x;

        return down < up ? low : up < down ? high : low % 2 ? high : low;
}

static uint32_t slow_narrow(const struct ladder *l, float f, uint32_t dtype)
{
        if (dtype == KVT_DTYPE_F32)
                return isinf(f) ? bits_of(copysignf(0x1.fffffep127f, f)) : bits_of(f);
        if (dtype == KVT_DTYPE_INT8) {
                double least = 200;
                int best = 0;

                for (int i = -128; i < 128; i++)
                        if (fabs((double)f - i) < least || (fabs((double)f - i) == least && i % 2 == 0)) {
                                best = i;
                                least = fabs((double)f - i);
                        }
                return (uint8_t)(f > 127 ? 127 : f < -128 ? -128 : best);
        }
        return ladder_nearest(l, fabs((double)f)) | (signbit(f) ? 1u << (8 * geometry_dtype_bytes(dtype) - 1) : 0);
}

/* Floats around what there is to go wrong in a dtype: its values, the middles between them, a bit beside both; any floats. */
static float draw(const struct ladder *l, uint32_t dtype)
{
        uint32_t u = (uint32_t)random_next();
        double x;

        if (dtype == KVT_DTYPE_INT8 && u % 4)
                x = (random_below(300) + (random_below(4) ? 0.5 : 0)) * (random_below(2) ? -1 : 1);
        else if (dtype != KVT_DTYPE_F32 && dtype != KVT_DTYPE_INT8 && u % 4) {
                uint32_t i = random_below(8) ? random_below(l->n - 1) : random_below(2) ? l->n - 2 : random_below(20);

                x = random_below(2) ? l->values[i] : (l->values[i] + l->values[i + 1]) / 2;
                x *= random_below(2) ? -1 : 1;
        } else
                return isnan(of_bits(u)) ? of_bits(u & 0xff800000) : of_bits(u);
        return of_bits(bits_of((float)x) + (x != 0 ? random_below(3) - 1 : 0));
}

static void test_narrow(void **state)
{
        static struct ladder l;
        static float x[PATTERNS];
        static uint8_t got[PATTERNS * 4 + 1], first[PATTERNS * 4];

        for (size_t d = 0; d < 5; d++) {
                uint32_t size = geometry_dtype_bytes(dtypes[d]);

                if (size < 4 && dtypes[d] != KVT_DTYPE_INT8)
                        ladder_fill(&l, dtypes[d]);
                for (size_t i = 0; i < PATTERNS; i++)
                        x[i] = draw(&l, dtypes[d]);
                for (size_t i = 0; i < PATTERNS; i++) {
                        uint32_t u = slow_narrow(&l, x[i], dtypes[d]);

                        memcpy(first + i * size, &u, size);
                }
                for (unsigned v = 0; kernels_nth(v); v++) {
                        const struct kernels *k = kernels_nth(v);

                        k->narrow(got + 1, x, PATTERNS, dtypes[d]);
                        assert_memory_equal(got + 1, first, PATTERNS * size);
                        for (size_t n = 0; n < 140; n++) {
                                size_t at = random_below(PATTERNS - 140);

                                memset(got, 0xa5, (n + 1) * size);
                                k->narrow(got + 1, x + at, n, dtypes[d]);
                                assert_memory_equal(got + 1, first + at * size, n * size);
                                assert_int_equal(got[0], 0xa5);
                                memset(got, 0xa5, (n + 1) * size);
                                k->narrow(got, x + at, n, dtypes[d]);
                                assert_int_equal(got[n * size], 0xa5);
                        }
                }
        }
}

/* NaN stays NaN where there is one, and all variants agree on its bits, wherever it stands. */
static void test_narrow_nan(void **state)
{
        float x[70];
        uint8_t first[280], got[280];

        for (size_t d = 0; d < 5; d++)
                for (int i = 0; i < 300; i++) {
                        uint32_t at = random_below(70), size = geometry_dtype_bytes(dtypes[d]);

                        for (size_t k = 0; k < 70; k++)
                                x[k] = (float)k;
                        x[at] = of_bits(0x7f800000 | random_below(2) << 31 | (1 + random_below(0x7fffff)));
                        for (unsigned v = 0; kernels_nth(v); v++) {
                                kernels_nth(v)->narrow(got, x, 70, dtypes[d]);
                                if (!v)
                                        memcpy(first, got, sizeof(first));
                                assert_memory_equal(first, got, 70 * size);
                                assert_true(dtypes[d] == KVT_DTYPE_INT8 ? !got[at] : isnan(slow_number(got, at, dtypes[d])));
                        }
                }
}

/* What is widened and narrowed again is what it was. */
static void test_there_and_back(void **state)
{
        for (size_t d = 1; d < 5; d++)
                for (uint32_t i = 0, size = geometry_dtype_bytes(dtypes[d]); i < 1u << 8 * size; i++)
                        for (unsigned v = 0; kernels_nth(v); v++) {
                                uint32_t back = 0;
                                float f;

                                kernels_nth(v)->widen(&f, &i, 1, dtypes[d]);
                                kernels_nth(v)->narrow(&back, &f, 1, dtypes[d]);
                                if (isfinite(f))
                                        assert_int_equal(back, i);
                        }
}

static void test_measure(void **state)
{
        static float x[300], y[300];

        for (size_t n = 0; n < 300; n += 1 + n / 80) {
                struct error_sums first = {0}, got;
                double diff = 0, norm = 0, max = 0;

                for (size_t i = 0; i < n; i++) {
                        x[i] = (float)ldexp(random_gauss(), (int)random_below(40));
                        y[i] = random_below(3) ? x[i] + (float)random_gauss() : -x[i];
                        diff += ((double)x[i] - (double)y[i]) * ((double)x[i] - (double)y[i]);
                        norm += (double)x[i] * (double)x[i];
                        max = fmax(max, fabs((double)x[i] - (double)y[i]));
                }
                for (unsigned v = 0; kernels_nth(v); v++) {
                        got = (struct error_sums){.diff = 3, .norm = 5};
                        kernels_nth(v)->measure(&got, x, y, n);
                        if (!v)
                                first = got;
                        assert_memory_equal(&first, &got, sizeof(got));
                        assert_true(fabs(got.diff - diff - 3) <= 1e-9 * diff && fabs(got.norm - norm - 5) <= 1e-9 * norm);
                        assert_true(fabs((double)got.max_abs - max) <= 1e-7 * max);
                }
        }
}

int main(void)
{
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_widen),          cmocka_unit_test(test_narrow),  cmocka_unit_test(test_narrow_nan),
                cmocka_unit_test(test_there_and_back), cmocka_unit_test(test_measure),
        };
        return cmocka_run_group_tests(tests, NULL, NULL);
}
