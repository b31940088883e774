/* zbf: the planes by hand, every width and length, what it reaches on floats, hostile payloads, its contexts. */
#include <pthread.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/unit/lossless.h"

enum fill { ZERO, RANDOM, FLOATS, RARE, N_FILLS };

static void fill(const struct shape *p, enum fill how, uint8_t *ret)
{
        for (size_t i = 0; i < p->n_bytes; i++)
                ret[i] = how == RANDOM ? (uint8_t)draw() : how == RARE && draw() % 50 == 0 ? (uint8_t)draw() : 0;
        for (size_t i = 0; how == FLOATS && i < p->n_values; i++) {
                float x = 0;

                for (int k = 0; k < 6; k++)
                        x += (float)(draw() & 0xffff) / 65536 - 0.5f;
                kernels()->narrow(ret + i * p->elem_bytes, &x, 1, p->dtype == KVT_DTYPE_OPAQUE ? KVT_DTYPE_INT8 : p->dtype);
        }
}

static size_t encode(const struct shape *p, const void *bytes, uint8_t **ret)
{
        size_t n = lossless_encode(&codec_zbf, p, bytes, NULL, ret);

        assert_int_not_equal(n, 0);
        return n;
}

static int decode(const struct shape *p, const uint8_t *payload, size_t n, void *ret)
{
        return lossless_decode(&codec_zbf, p, payload, n, NULL, ret);
}

static size_t check(const struct shape *p, const uint8_t *bytes)
{
        size_t n = lossless_check(&codec_zbf, p, bytes, NULL);

        assert_int_not_equal(n, 0);
        return n;
}

/* run first: the process has no context yet, and the child cannot keep one */
static void test_without_memory_for_contexts(void **state)
{
        struct shape p;
        uint8_t bytes[2 * 64 * 64], *payload, *other;
        size_t n;
        int channel[2], status;

        assert_true(shape_make(&p, KVT_ROLE_K, KVT_DTYPE_BF16, 1, 64, 64, 0));
        fill(&p, FLOATS, bytes);
        assert_int_equal(pipe(channel), 0);
        if (!fork()) {
                pthread_key_t key;

                while (!pthread_key_create(&key, NULL))
                        ;
                n = encode(&p, bytes, &payload);
                _exit(write(channel[1], payload, n) != (ssize_t)n || check(&p, bytes) != n);
        }
        close(channel[1]);
        n = encode(&p, bytes, &payload);
        other = calloc(1, n);
        assert_int_equal(read(channel[0], other, n), n);
        assert_memory_equal(other, payload, n);
        assert_true(wait(&status) > 0 && status == 0);
        close(channel[0]);
        free(payload);
        free(other);
}

static void *use_contexts(void *arg)
{
        struct shape p;
        uint8_t bytes[2 * 64 * 64];

        assert_true(shape_make(&p, KVT_ROLE_K, KVT_DTYPE_BF16, 1, 64, 64, 0));
        memset(bytes, 1, sizeof(bytes));
        check(&p, bytes);
        return arg;
}

/* the leak checker finds contexts that outlive their threads */
static void test_threads(void **state)
{
        for (int i = 0; i < 20; i++) {
                pthread_t t;

                assert_int_equal(pthread_create(&t, NULL, use_contexts, NULL), 0);
                assert_int_equal(pthread_join(t, NULL), 0);
        }
}

static void test_by_hand(void **state)
{
        /* bf16 1.0 = 3f80, -2.0 = c000: rotated 7f00 and 8001 */
        static const uint8_t plain[] = {1, 2, 0, 0, 0, 2, 0, 0, 0, 0x80, 0x00, 0x3f, 0xc0};
        static const uint8_t rotated[] = {0x11, 2, 0, 0, 0, 2, 0, 0, 0, 0x00, 0x01, 0x7f, 0x80};
        static const uint8_t whole[] = {0, 4, 0, 0, 0, 0x80, 0x3f, 0x00, 0xc0};
        static const uint8_t wide[] = {0x12, 1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0x01, 0x7f, 0x00, 0x80};
        /* a frame without magic: descriptor 0, window 64 KiB; a last block, RLE, 9 x 0x5a */
        static const uint8_t run[] = {0, 6, 0, 0, 0, 0x00, 0x30, 9 << 3 | 3, 0, 0, 0x5a};
        static const uint8_t want[] = {0x80, 0x3f, 0x00, 0xc0}, odd[] = {1, 1, 0, 0, 0, 1, 0, 0, 0, 7, 8, 9};
        uint8_t got[9];
        struct shape p;

        assert_true(shape_make(&p, KVT_ROLE_K, KVT_DTYPE_BF16, 1, 1, 2, 0));
        assert_int_equal(decode(&p, plain, sizeof(plain), got), 0);
        assert_memory_equal(got, want, 4);
        assert_int_equal(decode(&p, rotated, sizeof(rotated), got), 0);
        assert_memory_equal(got, want, 4);
        assert_int_equal(decode(&p, whole, sizeof(whole), got), 0);
        assert_memory_equal(got, want, 4);
        /* as one element of 32 bits: c0003f80 rotated is 80007f01 */
        assert_int_equal(decode(&p, wide, sizeof(wide), got), 0);
        assert_memory_equal(got, want, 4);
        assert_true(shape_make(&p, KVT_ROLE_K, KVT_DTYPE_OPAQUE, 1, 1, 3, 0));
        assert_int_equal(decode(&p, odd, sizeof(odd), got), 0);
        assert_memory_equal(got, odd + 9, 3); /* 8 above 7, and 9 left */
        assert_true(shape_make(&p, KVT_ROLE_K, KVT_DTYPE_FP8, 1, 1, 9, 0));
        assert_int_equal(decode(&p, run, sizeof(run), got), 0);
        for (size_t i = 0; i < 9; i++)
                assert_int_equal(got[i], 0x5a);
}

static void test_kernels(void **state)
{
        enum { MOST = 300 };
        uint8_t src[4 * MOST], back[4 * MOST + 1], planes[4][MOST + 1];
        const struct kernels *k;

        for (size_t i = 0; i < sizeof(src); i++)
                src[i] = (uint8_t)draw();
        for (unsigned v = 0; (k = kernels_nth(v)); v++)
                for (size_t n = 0; n <= MOST; n++)
                        for (unsigned way = 0; way < 5; way++) {
                                unsigned width = 1u << way / 2, rotate = way % 2;
                                uint8_t *dst[4] = {planes[0], planes[1], planes[2], planes[3]};
                                const uint8_t *from[4] = {planes[0], planes[1], planes[2], planes[3]};

                                width = way == 0 ? 1 : way < 3 ? 2 : 4;
                                rotate = way == 2 || way == 4;
                                memset(planes, 0xa5, sizeof(planes));
                                memset(back, 0xa5, sizeof(back));
                                k->zbf_split(dst, src, n, width, rotate);
                                for (size_t i = 0; i < n; i++) {
                                        uint64_t x = 0;

                                        memcpy(&x, src + i * width, width);
                                        x = rotate ? x << 1 | x >> (8 * width - 1) : x;
                                        for (unsigned j = 0; j < width; j++)
                                                assert_int_equal(planes[j][i], x >> 8 * j & 255);
                                }
                                for (unsigned j = 0; j < width; j++)
                                        assert_int_equal(planes[j][n], 0xa5);
                                k->zbf_merge(back, from, n, width, rotate);
                                assert_memory_equal(back, src, n * width);
                                assert_int_equal(back[n * width], 0xa5);
                        }
        for (unsigned v = 0; (k = kernels_nth(v)); v++)
                for (size_t n = 0; n <= MOST; n++) {
                        memset(back, 0xa5, sizeof(back));
                        k->xor (back, src, src + 7, n);
                        for (size_t i = 0; i < n; i++)
                                assert_int_equal(back[i], src[i] ^ src[i + 7]);
                        assert_int_equal(back[n], 0xa5);
                }
}

static void test_sizes(void **state)
{
        static const uint32_t dims[] = {1, 2, 3, 5, 15, 31, 63, 64, 65, 255, 257, 1023, 2049};

        for (uint32_t dtype = KVT_DTYPE_F32; dtype <= KVT_DTYPE_OPAQUE; dtype++)
                for (enum fill how = ZERO; how < N_FILLS; how++)
                        for (size_t i = 0; i < sizeof(dims) / sizeof(*dims); i++) {
                                struct shape p;
                                uint8_t *bytes;

                                assert_true(shape_make(&p, KVT_ROLE_V, dtype, dtype == KVT_DTYPE_OPAQUE ? 1 : 2, 3, dims[i], 0));
                                bytes = malloc(p.n_bytes);
                                fill(&p, how, bytes);
                                check(&p, bytes);
                                free(bytes);
                        }
}

/* several chunks, the last one ragged */
static void test_chunks(void **state)
{
        static const uint32_t dtypes[] = {KVT_DTYPE_INT8, KVT_DTYPE_F16, KVT_DTYPE_F32, KVT_DTYPE_OPAQUE};

        for (size_t i = 0; i < 4; i++)
                for (uint32_t dim = 65535; dim <= 65537; dim++)
                        for (enum fill how = ZERO; how < N_FILLS; how++) {
                                struct shape p;
                                uint8_t *bytes;

                                assert_true(shape_make(&p, KVT_ROLE_V, dtypes[i], 1, 1 + dim % 3, dim, 0));
                                bytes = malloc(p.n_bytes);
                                fill(&p, how, bytes);
                                check(&p, bytes);
                                free(bytes);
                        }
}

static void test_reaches(void **state)
{
        struct shape p;
        uint8_t bytes[4 * 16384], *payload;
        size_t n;

        assert_true(shape_make(&p, KVT_ROLE_K, KVT_DTYPE_BF16, 2, 128, 64, 0));
        fill(&p, FLOATS, bytes);
        n = encode(&p, bytes, &payload);
        assert_int_equal(check(&p, bytes), n);
        assert_in_range(n, 1, p.n_bytes * 70 / 100);
        assert_int_equal(payload[0], 0x11); /* the exponent in a byte of its own */
        free(payload);
        fill(&p, ZERO, bytes);
        assert_in_range(check(&p, bytes), 1, 40);
        fill(&p, RARE, bytes); /* fewer bits than Huffman alone would take */
        assert_in_range(check(&p, bytes), 1, p.n_bytes / 8);
        fill(&p, RANDOM, bytes);
        assert_in_range(check(&p, bytes), p.n_bytes, p.n_bytes + 32);
        /* floats whose kind nobody told */
        fill(&p, FLOATS, bytes);
        assert_true(shape_make(&p, KVT_ROLE_K, KVT_DTYPE_OPAQUE, 1, 128, 256, 0));
        assert_in_range(check(&p, bytes), 1, p.n_bytes * 70 / 100);
}

static void test_hostile(void **state)
{
        struct shape p;
        uint8_t bytes[2 * 1024], back[2 * 1024], *payload, *bad;
        size_t n;

        assert_true(shape_make(&p, KVT_ROLE_K, KVT_DTYPE_BF16, 1, 16, 64, 0));
        fill(&p, FLOATS, bytes);
        n = encode(&p, bytes, &payload);
        lossless_check_hostile(&codec_zbf, &p, payload, n, NULL, 0, 9, 20000);
        bad = malloc(n);
        memcpy(bad, payload, n);
        for (unsigned head = 0; head < 256; head++) { /* other widths find other sizes */
                bad[0] = (uint8_t)head;
                assert_int_equal(decode(&p, bad, n, back), head == payload[0] || head == (payload[0] ^ 0x10) ? 0 : KVT_E_CORRUPT);
        }
        bad[0] = payload[0];
        for (size_t i = 1; i < 9; i++) { /* sizes */
                bad[i] ^= 0x80;
                assert_int_equal(decode(&p, bad, n, back), KVT_E_CORRUPT);
                bad[i] = payload[i];
        }
        free(bad);
        free(payload);
}

int main(void)
{
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_without_memory_for_contexts),
                cmocka_unit_test(test_threads),
                cmocka_unit_test(test_by_hand),
                cmocka_unit_test(test_kernels),
                cmocka_unit_test(test_sizes),
                cmocka_unit_test(test_chunks),
                cmocka_unit_test(test_reaches),
                cmocka_unit_test(test_hostile),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
