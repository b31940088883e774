#include "tests/lib/values.h"

static uint64_t word_of(const kvt_key *key, uint32_t plane, int flavour)
{
        uint64_t w[2], x;

        memcpy(w, key->bytes, sizeof(w));
        x = (w[0] ^ w[1] * 0x9e3779b97f4a7c15ull) + (plane * (uint64_t)PATTERN_FLAVOURS + (uint64_t)flavour) * 0xd6e8feb86659fd93ull;
        x ^= x >> 32;
        x *= 0xbf58476d1ce4e5b9ull;
        return x ^ x >> 29;
}

int values_space_open(struct values_space *v, kvt *c, const char *name, float max_rel_l2)
{
        kvt_plane planes[VALUES_PLANES];

        for (uint32_t i = 0; i < VALUES_PLANES; i++)
                planes[i] = (kvt_plane){i / 2, i % 2 ? KVT_ROLE_V : KVT_ROLE_K, KVT_DTYPE_F16, VALUES_HEADS, VALUES_DIM, 0, 0};
        kvt_space_config config = {.struct_size = sizeof(config),
                                   .name = name,
                                   .block_tokens = VALUES_TOKENS,
                                   .n_shards = 1,
                                   .planes = planes,
                                   .n_planes = VALUES_PLANES,
                                   .max_rel_l2 = max_rel_l2};
        *v = (struct values_space){.c = c, .max_rel_l2 = max_rel_l2};
        return kvt_space_open(c, &config, &v->s);
}

void values_part(uint8_t part[VALUES_PART], const kvt_key *key, int flavour)
{
        for (uint32_t i = 0; i < VALUES_PLANES; i++)
                values_fill(part + i * VALUES_PLANE, VALUES_PLANE, word_of(key, i, flavour));
}

int values_find(const struct values_space *v, const uint8_t *planes, uint32_t first, uint32_t n, const kvt_key *key, int flavour)
{
        int f = flavour == PATTERN_2_OR_3 ? 2 : flavour < 0 ? 0 : flavour;
        int last = flavour == PATTERN_0_OR_1 ? 1 : flavour < 0 ? PATTERN_FLAVOURS - 1 : flavour;
        uint8_t right[VALUES_PLANE];

        for (; f <= last; f++) {
                uint32_t i = 0;
                for (; i < n; i++) {
                        const uint8_t *at = planes + (size_t)i * VALUES_PLANE;
                        uint64_t word = word_of(key, first + i, f);
                        if (values_word(at) != word)
                                break;
                        values_fill(right, VALUES_PLANE, word);
                        if (!(values_error(right, at, VALUES_PLANE) <= (double)v->max_rel_l2))
                                break;
                }
                if (i == n)
                        return f;
        }
        return -1;
}

/* n blocks as an engine has them: a plane's heads one after another, each with all tokens of the prompt */
struct area {
        uint8_t *bytes;
        size_t n;
        kvt_plane_view planes[VALUES_PLANES];
        kvt_view view;
};

enum { HEAD = VALUES_TOKENS * VALUES_DIM * 2 };

static void area_init(struct area *a, size_t n)
{
        a->n = n;
        a->bytes = malloc(n * VALUES_PART + 1);
        CHECK(a->bytes);
        for (size_t i = 0; i < VALUES_PLANES; i++)
                a->planes[i] = (kvt_plane_view){.base = a->bytes + i * n * VALUES_PLANE,
                                                .token_stride = 2 * VALUES_DIM,
                                                .head_stride = (ptrdiff_t)(n * HEAD)};
        a->view = (kvt_view){.planes = a->planes, .n_planes = VALUES_PLANES};
}

static uint8_t *head_at(const struct area *a, size_t block, uint32_t plane, uint32_t head)
{
        return (uint8_t *)a->planes[plane].base + (head * a->n + block) * HEAD;
}

int values_put(const struct values_space *v, const kvt_key *parent, const kvt_key *keys, size_t n, int flavour, uint32_t flags,
               const kvt_hints *hints, uint8_t *statuses)
{
        uint8_t part[VALUES_PART];
        struct area a;
        int r;

        area_init(&a, n);
        for (size_t b = 0; b < n; b++) {
                values_part(part, &keys[b], flavour);
                for (uint32_t i = 0; i < VALUES_PLANES; i++)
                        for (uint32_t h = 0; h < VALUES_HEADS; h++)
                                memcpy(head_at(&a, b, i, h), part + i * VALUES_PLANE + h * HEAD, HEAD);
        }
        r = kvt_put_hints(v->s, parent, keys, n, 0, &a.view, flags, hints, statuses);
        free(a.bytes);
        return r;
}

void values_store(const struct values_space *v, const kvt_key *parent, const kvt_key *keys, size_t n)
{
        uint8_t *statuses = malloc(n);

        CHECK_OK(values_put(v, parent, keys, n, 0, 0, NULL, statuses));
        for (size_t i = 0; i < n; i++)
                CHECK_OK(statuses[i]);
        free(statuses);
}

int values_get(const struct values_space *v, const kvt_key *keys, size_t n, uint32_t first, uint32_t n_planes, int flavour,
               uint8_t *statuses)
{
        uint8_t part[VALUES_PART];
        struct area a;

        area_init(&a, n);
        memset(a.bytes, 0xee, n * VALUES_PART);
        memset(statuses, 0xff, n);
        int r = n_planes == VALUES_PLANES ? kvt_get(v->s, keys, n, 0, &a.view, 0, statuses)
                                          : kvt_get_planes(v->s, keys, n, 0, &a.view, 0, first, n_planes, statuses);
        for (size_t b = 0; r == 0 && b < n; b++) {
                if (statuses[b])
                        continue;
                for (uint32_t i = 0; i < n_planes; i++)
                        for (uint32_t h = 0; h < VALUES_HEADS; h++)
                                memcpy(part + i * VALUES_PLANE + h * HEAD, head_at(&a, b, first + i, h), HEAD);
                if (values_find(v, part, first, n_planes, &keys[b], flavour) < 0)
                        check_failed(__FILE__, __LINE__, "wrong values with status 0 (key %zu of %zu)", b, n);
        }
        free(a.bytes);
        return r;
}

int values_mapped(const struct values_space *v, const kvt_mapping *m, const kvt_key *key, int flavour, bool *ret_error_is_wrong)
{
        uint8_t part[VALUES_PART], right[VALUES_PART];
        float said[VALUES_PLANES];

        *ret_error_is_wrong = false;
        for (uint32_t i = 0; i < VALUES_PLANES; i++) {
                kvt_plane_copy c;
                int r = kvt_decode(v->s, m, i, part + i * VALUES_PLANE) ?: kvt_mapped_plane(v->s, m, i, &c);
                if (r)
                        return r;
                said[i] = c.rel_l2;
        }
        int f = values_find(v, part, 0, VALUES_PLANES, key, flavour);
        if (f < 0) {
                check_failed(__FILE__, __LINE__, "a mapping decodes to wrong values");
                return 0;
        }
        values_part(right, key, f);
        for (uint32_t i = 0; i < VALUES_PLANES; i++) {
                double error = values_error(right + i * VALUES_PLANE, part + i * VALUES_PLANE, VALUES_PLANE);
                *ret_error_is_wrong |= fabs(error - (double)said[i]) > 1e-6 + 1e-5 * error;
        }
        return 0;
}
