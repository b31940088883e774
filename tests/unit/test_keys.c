/* Keys: the vectors published in kvtier-keys(7) hold; what the page says is computed a second time here, step by step; everything a
 * key shall depend on changes it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <sodium.h>

#include "libclient/client.h"

enum { TOKENS_MAX = 1024, EXTRAS_MAX = 8, KEYS_MAX = 64 };

/* one vector of the page */
struct vector {
        char name[64];
        uint32_t block_tokens, n_shards;
        uint8_t salt[64];
        size_t salt_bytes, n_planes;
        kvt_plane planes[8];
        uint8_t seed[16];
        bool has_parent;
        kvt_key parent;
        uint32_t tokens[TOKENS_MAX];
        size_t n_tokens, n_extras, n_keys;
        uint8_t extra_bytes[EXTRAS_MAX][64];
        kvt_extra extras[EXTRAS_MAX];
        kvt_key keys[KEYS_MAX];
};

static size_t hex(const char *text, uint8_t *ret, size_t cap)
{
        size_t n;

        if (!strcmp(text, "-"))
                return 0;
        assert_int_equal(sodium_hex2bin(ret, cap, text, strlen(text), NULL, &n, NULL), 0);
        return n;
}

/* Takes one line in; false: it is none of a vector's. */
static bool vector_line(struct vector *v, const char *line)
{
        char a[200], b[200];
        uint32_t first, step;
        size_t at;

        if (sscanf(line, "space name=%63s block_tokens=%u n_shards=%u salt=%199s", v->name, &v->block_tokens, &v->n_shards, a) == 4)
                v->salt_bytes = hex(a, v->salt, sizeof(v->salt));
        else if (!strncmp(line, "plane ", 6)) {
                kvt_plane *p = &v->planes[v->n_planes++];

                assert_int_equal(sscanf(line, "plane layer=%u role=%u dtype=%u heads=%u dim=%u opaque=%u window=%u", &p->layer, &p->role,
                                        &p->dtype, &p->heads, &p->dim, &p->opaque_bytes, &p->window_tokens),
                                 7);
        } else if (sscanf(line, "seed %199s", a) == 1)
                assert_int_equal(hex(a, v->seed, sizeof(v->seed)), 16);
        else if (sscanf(line, "parent %199s", a) == 1)
                v->has_parent = hex(a, v->parent.bytes, 16) == 16;
        else if (sscanf(line, "tokens first=%u step=%u n=%zu", &first, &step, &v->n_tokens) == 3) {
                assert_true(v->n_tokens <= TOKENS_MAX);
                for (size_t i = 0; i < v->n_tokens; i++)
                        v->tokens[i] = first + step * (uint32_t)i;
        } else if (sscanf(line, "extra at=%zu bytes=%199s", &at, b) == 2) {
                size_t i = v->n_extras++;

                v->extras[i] = (kvt_extra){.i_token = at, .bytes = v->extra_bytes[i]};
                v->extras[i].n_bytes = hex(b, v->extra_bytes[i], sizeof(v->extra_bytes[i]));
        } else if (sscanf(line, "key %199s", a) == 1)
                assert_int_equal(hex(a, v->keys[v->n_keys++].bytes, 16), 16);
        else
                return false;
        return true;
}

/* The page's vectors, in turn. False: no more. */
static bool vector_read(FILE *f, struct vector *v)
{
        char line[512];
        bool any = false;

        memset(v, 0, sizeof(*v));
        while (fgets(line, sizeof(line), f)) {
                char *to = line;

                for (const char *from = line; *from && *from != '\n'; from++)
                        if (*from != '\\')
                                *to++ = *from;
                *to = 0;
                if (!any && strncmp(line, "space name=", 11) != 0)
                        continue;
                if (!vector_line(v, line))
                        return true;
                any = true;
        }
        return any;
}

static void space_init(kvt_space *s, const struct vector *v)
{
        const char *why;

        memset(s, 0, sizeof(*s));
        assert_int_equal(geometry_init(&s->geometry, v->block_tokens, v->n_shards, v->planes, v->n_planes, &why), 0);
        key_seed(&s->geometry, v->name, strlen(v->name), v->salt, v->salt_bytes, &s->seed);
}

/* The page's own words, with nothing of libclient/key.c. */

static size_t le32(uint8_t *p, uint32_t x)
{
        for (int i = 0; i < 4; i++)
                p[i] = (uint8_t)(x >> (8 * i));
        return 4;
}

static void spelled_out(const struct vector *v, uint8_t ret_seed[16], kvt_key *ret_keys)
{
        static uint8_t m[1 << 16];
        uint8_t salt[16] = {0};
        size_t n = 16;

        memcpy(m, "kvtier-space-v1", 16);
        n += le32(m + n, (uint32_t)strlen(v->name));
        memcpy(m + n, v->name, strlen(v->name));
        n += strlen(v->name);
        n += le32(m + n, (uint32_t)v->salt_bytes);
        memcpy(m + n, v->salt, v->salt_bytes);
        n += v->salt_bytes;
        n += le32(m + n, v->block_tokens);
        n += le32(m + n, v->n_shards);
        n += le32(m + n, 0);
        n += le32(m + n, (uint32_t)v->n_planes);
        for (size_t i = 0; i < v->n_planes; i++) {
                const kvt_plane *p = &v->planes[i];
                const uint32_t fields[] = {p->layer, p->role, p->dtype, p->heads, p->dim, p->opaque_bytes, p->window_tokens};

                for (size_t k = 0; k < 7; k++)
                        n += le32(m + n, fields[k]);
        }
        assert_int_equal(crypto_generichash(ret_seed, 16, m, n, NULL, 0), 0);

        if (v->has_parent)
                memcpy(salt, v->parent.bytes, 16);
        for (size_t block = 0; block < v->n_tokens / v->block_tokens; block++) {
                size_t first = block * v->block_tokens;

                n = 0;
                for (size_t i = 0; i < v->block_tokens; i++)
                        n += le32(m + n, v->tokens[first + i]);
                for (size_t i = 0; i < v->n_extras; i++) {
                        const kvt_extra *e = &v->extras[i];

                        if (e->i_token < first || e->i_token >= first + v->block_tokens)
                                continue;
                        n += le32(m + n, (uint32_t)(e->i_token - first));
                        n += le32(m + n, (uint32_t)e->n_bytes);
                        memcpy(m + n, e->bytes, e->n_bytes);
                        n += e->n_bytes;
                }
                assert_int_equal(crypto_generichash_blake2b_salt_personal(ret_keys[block].bytes, 16, m, n, NULL, 0, salt, ret_seed), 0);
                memcpy(salt, ret_keys[block].bytes, 16);
        }
}

static void test_published_vectors(void **state)
{
        FILE *f = fopen("man/kvtier-keys.7", "re");
        struct vector v;
        size_t n_vectors = 0;

        if (!f)
                fail_msg("man/kvtier-keys.7 is not here: run it from the root of the tree");
        while (vector_read(f, &v)) {
                kvt_key keys[KEYS_MAX], again[KEYS_MAX];
                uint8_t seed[16];
                kvt_space s;
                size_t n;

                space_init(&s, &v);
                assert_memory_equal(s.seed.bytes, v.seed, 16);
                assert_int_equal(kvt_keys(&s, v.has_parent ? &v.parent : NULL, v.tokens, v.n_tokens, v.extras, v.n_extras, keys, KEYS_MAX,
                                          &n),
                                 0);
                assert_int_equal(n, v.n_tokens / v.block_tokens);
                assert_int_equal(n, v.n_keys);
                assert_memory_equal(keys, v.keys, n * sizeof(*keys));
                spelled_out(&v, seed, again);
                assert_memory_equal(seed, v.seed, 16);
                assert_memory_equal(again, v.keys, n * sizeof(*keys));
                geometry_deinit(&s.geometry);
                n_vectors++;
        }
        fclose(f);
        assert_true(n_vectors >= 6);
}

/* a prompt of four blocks, to change things in */
static struct vector sample(void)
{
        static const uint8_t digest[32] = {1, 2, 3};
        struct vector v = {.name = "model",
                           .block_tokens = 8,
                           .n_shards = 2,
                           .salt = {9, 8, 7},
                           .salt_bytes = 3,
                           .n_planes = 2,
                           .n_tokens = 35,
                           .n_extras = 2};

        v.planes[0] = (kvt_plane){.layer = 3, .role = KVT_ROLE_K, .dtype = KVT_DTYPE_F16, .heads = 4, .dim = 32, .window_tokens = 100};
        v.planes[1] = (kvt_plane){.layer = 3, .role = KVT_ROLE_INDEXER, .dtype = KVT_DTYPE_OPAQUE, .heads = 1, .opaque_bytes = 40};
        for (uint32_t i = 0; i < v.n_tokens; i++)
                v.tokens[i] = i * i + 5;
        v.extras[0] = (kvt_extra){.i_token = 9, .bytes = digest, .n_bytes = 32};
        v.extras[1] = (kvt_extra){.i_token = 24, .bytes = digest, .n_bytes = 5};
        return v;
}

static void keys_of(const struct vector *v, kvt_key keys[4])
{
        kvt_space s;
        size_t n;

        space_init(&s, v);
        assert_int_equal(kvt_keys(&s, v->has_parent ? &v->parent : NULL, v->tokens, v->n_tokens, v->extras, v->n_extras, keys, 4, &n), 0);
        assert_int_equal(n, v->n_tokens / v->block_tokens < 4 ? v->n_tokens / v->block_tokens : 4);
        geometry_deinit(&s.geometry);
}

static bool same(const kvt_key *a, const kvt_key *b)
{
        return !memcmp(a, b, sizeof(*a));
}

static void test_everything_counts(void **state)
{
        struct vector v = sample();
        kvt_key keys[4], changed[4];

        keys_of(&v, keys);
#define CHANGES(statement)                                                                                                                 \
        do {                                                                                                                               \
                v = sample();                                                                                                              \
                statement;                                                                                                                 \
                keys_of(&v, changed);                                                                                                      \
                for (int i = 0; i < 4; i++)                                                                                                \
                        assert_false(same(&keys[i], &changed[i]));                                                                         \
        } while (0)
        CHANGES(v.name[0]++);
        CHANGES(v.name[4] = 0);
        CHANGES(v.salt[2]++);
        CHANGES(v.salt_bytes--);
        CHANGES(v.salt_bytes = 0);
        CHANGES(v.n_shards++);
        CHANGES(v.planes[0].layer++);
        CHANGES(v.planes[0].role = KVT_ROLE_V);
        CHANGES(v.planes[0].dtype = KVT_DTYPE_BF16);
        CHANGES(v.planes[0].heads++);
        CHANGES(v.planes[0].dim++);
        CHANGES(v.planes[1].opaque_bytes++);
        CHANGES(v.planes[0].window_tokens++);
        CHANGES(v.planes[0].window_tokens = 0);
        CHANGES(v.n_planes--);
        CHANGES(v.planes[2] = v.planes[0]; v.n_planes++);
        CHANGES(kvt_plane p = v.planes[0]; v.planes[0] = v.planes[1]; v.planes[1] = p);
        CHANGES(v.has_parent = true; v.parent.bytes[15] = 1);
        CHANGES(v.tokens[0]++);
        CHANGES(v.tokens[7] ^= 1u << 31);
        /* a name's end and a salt's beginning are told apart */
        CHANGES(strcpy(v.name, "mode"); memcpy(v.salt, "l\x09\x08\x07", 4); v.salt_bytes = 4);

        /* another length of block: even the block of the same tokens has another key */
        v = sample();
        v.block_tokens = 7;
        keys_of(&v, changed);
        for (int i = 0; i < 4; i++)
                assert_false(same(&keys[i], &changed[i]));
}

static void test_prefix_only(void **state)
{
        kvt_key keys[4], changed[4];
        struct vector v = sample();

        keys_of(&v, keys);
        for (size_t i = 0; i < v.n_tokens; i++) { /* a token changes its block and those after, none before */
                v = sample();
                v.tokens[i]++;
                keys_of(&v, changed);
                for (size_t b = 0; b < 4; b++)
                        assert_int_equal(same(&keys[b], &changed[b]), b < i / 8);
        }
#define CHANGES_FROM(block, statement)                                                                                                     \
        do {                                                                                                                               \
                v = sample();                                                                                                              \
                statement;                                                                                                                 \
                keys_of(&v, changed);                                                                                                      \
                for (int b = 0; b < 4; b++)                                                                                                \
                        assert_int_equal(same(&keys[b], &changed[b]), b < (block));                                                        \
        } while (0)
        CHANGES_FROM(1, v.extras[0].i_token++);
        CHANGES_FROM(1, v.extras[0].n_bytes--);
        CHANGES_FROM(1, v.extras[0].bytes = "another digest of thirty-two byte");
        CHANGES_FROM(3, v.n_extras--);
        CHANGES_FROM(0, v.extras[0].i_token = 7); /* it moved to the block before */
        CHANGES_FROM(4, v.tokens[32]++); /* after the last whole block */
        /* the same bytes in two extras or in one */
        CHANGES_FROM(3, v.extras[2] = v.extras[1]; v.extras[1].n_bytes = 2; v.extras[2].n_bytes = 3;
                     v.extras[2].bytes = (const uint8_t *)v.extras[1].bytes + 2; v.n_extras = 3);
}

static void test_incremental(void **state)
{
        struct vector v = sample();
        kvt_key keys[4], part[4];
        kvt_space s;
        size_t n;

        keys_of(&v, keys);
        space_init(&s, &v);
        for (size_t first = 1; first < 4; first++) { /* from each block on, with the key before it */
                kvt_extra extras[2];
                size_t n_extras = 0;

                for (size_t i = 0; i < 2; i++)
                        if (v.extras[i].i_token >= first * 8) {
                                extras[n_extras] = v.extras[i];
                                extras[n_extras++].i_token -= first * 8;
                        }
                assert_int_equal(kvt_keys(&s, &keys[first - 1], v.tokens + first * 8, v.n_tokens - first * 8, extras, n_extras, part, 4,
                                          &n),
                                 0);
                assert_int_equal(n, 4 - first);
                assert_memory_equal(part, keys + first, n * sizeof(*keys));
        }
        /* one at a time, the parent in the very place that is written */
        for (size_t i = 0; i < 4; i++) {
                kvt_extra e = v.extras[i == 3];

                e.i_token %= 8;
                assert_int_equal(kvt_keys(&s, i ? &part[0] : NULL, v.tokens + i * 8, 8, &e, i == 1 || i == 3, part, 1, &n), 0);
                assert_int_equal(n, 1);
                assert_true(same(&part[0], &keys[i]));
        }
        geometry_deinit(&s.geometry);
}

static void test_arguments(void **state)
{
        struct vector v = sample();
        kvt_key keys[4];
        kvt_extra e = {.i_token = 35};
        kvt_space s;
        size_t n = 99;

        space_init(&s, &v);
        assert_int_equal(kvt_keys(&s, NULL, v.tokens, 35, NULL, 0, keys, 2, &n), 0);
        assert_int_equal(n, 2);
        assert_int_equal(kvt_keys(&s, NULL, v.tokens, 7, NULL, 0, keys, 4, &n), 0);
        assert_int_equal(n, 0);
        assert_int_equal(kvt_keys(&s, NULL, NULL, 0, NULL, 0, NULL, 0, &n), 0);
        assert_int_equal(kvt_keys(NULL, NULL, v.tokens, 35, NULL, 0, keys, 4, &n), KVT_E_BAD_REQUEST);
        assert_int_equal(kvt_keys(&s, NULL, NULL, 35, NULL, 0, keys, 4, &n), KVT_E_BAD_REQUEST);
        assert_int_equal(kvt_keys(&s, NULL, v.tokens, 35, NULL, 0, NULL, 4, &n), KVT_E_BAD_REQUEST);
        assert_int_equal(kvt_keys(&s, NULL, v.tokens, 35, NULL, 0, keys, 4, NULL), KVT_E_BAD_REQUEST);
        assert_int_equal(kvt_keys(&s, NULL, v.tokens, 35, NULL, 1, keys, 4, &n), KVT_E_BAD_REQUEST);
        assert_int_equal(kvt_keys(&s, NULL, v.tokens, 35, &e, 1, keys, 4, &n), KVT_E_BAD_REQUEST); /* past the end */
        v.extras[1].i_token = 8;
        assert_int_equal(kvt_keys(&s, NULL, v.tokens, 35, v.extras, 2, keys, 4, &n), KVT_E_BAD_REQUEST); /* not in order */
        v.extras[1] = (kvt_extra){.i_token = 20, .n_bytes = 4};
        assert_int_equal(kvt_keys(&s, NULL, v.tokens, 35, v.extras, 2, keys, 4, &n), KVT_E_BAD_REQUEST);
        geometry_deinit(&s.geometry);
}

static int setup(void **state)
{
        return sodium_init() < 0;
}

int main(void)
{
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_published_vectors), cmocka_unit_test(test_everything_counts), cmocka_unit_test(test_prefix_only),
                cmocka_unit_test(test_incremental),       cmocka_unit_test(test_arguments),
        };
        return cmocka_run_group_tests(tests, setup, NULL);
}
