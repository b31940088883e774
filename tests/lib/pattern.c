#include "tests/lib/pattern.h"

static uint64_t mix(uint64_t x)
{
        x ^= x >> 30;
        x *= 0xbf58476d1ce4e5b9ull;
        x ^= x >> 27;
        x *= 0x94d049bb133111ebull;
        return x ^ x >> 31;
}

void pattern_planes(kvt_plane planes[PATTERN_PLANES], size_t part_bytes)
{
        CHECK(part_bytes % (PATTERN_PLANES * PATTERN_TOKENS) == 0);
        for (uint32_t i = 0; i < PATTERN_PLANES; i++)
                planes[i] = (kvt_plane){.layer = 0,
                                        .role = i ? KVT_ROLE_V : KVT_ROLE_K,
                                        .dtype = KVT_DTYPE_OPAQUE,
                                        .heads = 1,
                                        .opaque_bytes = (uint32_t)(part_bytes / PATTERN_PLANES / PATTERN_TOKENS)};
}

kvt_key pattern_key(uint64_t chain, uint64_t i)
{
        uint64_t words[2] = {mix(chain * 0x9e3779b97f4a7c15ull + i + 1), mix(i * 0xd6e8feb86659fd93ull ^ mix(chain + 77))};
        kvt_key k;

        memcpy(k.bytes, words, sizeof(k.bytes));
        return k;
}

void pattern_keys(uint64_t chain, uint64_t first, size_t n, kvt_key *ret)
{
        for (size_t i = 0; i < n; i++)
                ret[i] = pattern_key(chain, first + i);
}

static uint64_t seed_of(const kvt_key *key, uint32_t plane, uint32_t shard, int flavour)
{
        uint64_t w[2];

        memcpy(w, key->bytes, sizeof(w));
        return mix(w[0] ^ mix(w[1] + plane * 3 + shard * 1000003ull + (uint64_t)flavour * 0x51ed270b7f3ull));
}

static void fill_plane(uint8_t *to, size_t n, uint64_t seed)
{
        for (size_t i = 0; i < n; i += 8) {
                uint64_t x = (seed + i) * 0x9e3779b97f4a7c15ull;
                x ^= x >> 29;
                memcpy(to + i, &x, n - i < 8 ? n - i : 8);
        }
}

static bool check_plane(const uint8_t *at, size_t n, uint64_t seed)
{
        for (size_t i = 0; i < n; i += 8) {
                uint64_t x = (seed + i) * 0x9e3779b97f4a7c15ull;
                x ^= x >> 29;
                if (memcmp(at + i, &x, n - i < 8 ? n - i : 8))
                        return false;
        }
        return true;
}

void pattern_fill(void *part, size_t part_bytes, const kvt_key *key, uint32_t shard, int flavour)
{
        size_t n = part_bytes / PATTERN_PLANES;

        for (uint32_t i = 0; i < PATTERN_PLANES; i++)
                fill_plane((uint8_t *)part + i * n, n, seed_of(key, i, shard, flavour));
}

int pattern_find(const void *part, size_t part_bytes, const kvt_key *key, uint32_t shard, int flavour)
{
        size_t n = part_bytes / PATTERN_PLANES;
        int first = flavour == PATTERN_2_OR_3 ? 2 : flavour < 0 ? 0 : flavour;
        int last = flavour == PATTERN_0_OR_1 ? 1 : flavour < 0 ? PATTERN_FLAVOURS - 1 : flavour;

        for (int f = first; f <= last; f++) {
                bool same = true;
                for (uint32_t i = 0; same && i < PATTERN_PLANES; i++)
                        same = check_plane((const uint8_t *)part + i * n, n, seed_of(key, i, shard, f));
                if (same)
                        return f;
        }
        return -1;
}

kvt *pattern_open(const struct daemon *d, uint32_t flags)
{
        kvt_options o = {.struct_size = sizeof(o), .path = d->socket, .staging_bytes = 4 << 20, .timeout_usec = 20000000, .flags = flags};
        kvt *c = NULL;

        CHECK_OK(kvt_open(&o, &c));
        return c;
}

int pattern_space_open(struct pattern_space *p, kvt *c, struct pattern_config config)
{
        kvt_plane planes[PATTERN_PLANES];
        kvt_space_config k = {
                .struct_size = sizeof(k),
                .name = config.name ? config.name : "model",
                .salt = config.salt,
                .salt_bytes = config.salt ? strlen(config.salt) : 0,
                .block_tokens = PATTERN_TOKENS,
                .n_shards = config.n_shards ? config.n_shards : 1,
                .shard = config.shard,
                .planes = planes,
                .n_planes = PATTERN_PLANES,
        };

        *p = (struct pattern_space){.c = c, .part_bytes = config.part_bytes ? config.part_bytes : 4096, .shard = config.shard};
        pattern_planes(planes, p->part_bytes);
        return kvt_space_open(c, &k, &p->s);
}

/* n blocks in a view whose planes lie apart, each plane of block i behind that of block i - 1 */
struct area {
        uint8_t *bytes;
        size_t n_plane;
        kvt_plane_view planes[PATTERN_PLANES];
        kvt_view view;
};

static void area_init(struct area *a, const struct pattern_space *p, size_t n)
{
        size_t n_plane = p->part_bytes / PATTERN_PLANES;

        a->n_plane = n_plane;
        a->bytes = malloc(n * p->part_bytes + 1);
        CHECK(a->bytes);
        for (size_t i = 0; i < PATTERN_PLANES; i++)
                a->planes[i] = (kvt_plane_view){.base = a->bytes + i * n * n_plane, .token_stride = (ptrdiff_t)(n_plane / PATTERN_TOKENS)};
        a->view = (kvt_view){.planes = a->planes, .n_planes = PATTERN_PLANES};
}

int pattern_put(const struct pattern_space *p, const kvt_key *parent, const kvt_key *keys, size_t n, int flavour, uint32_t flags,
                uint8_t *statuses)
{
        struct area a;
        int r;

        area_init(&a, p, n);
        for (size_t i = 0; i < n; i++)
                for (uint32_t j = 0; j < PATTERN_PLANES; j++)
                        fill_plane((uint8_t *)a.planes[j].base + i * a.n_plane, a.n_plane, seed_of(&keys[i], j, p->shard, flavour));
        r = kvt_put(p->s, parent, keys, n, 0, &a.view, flags, statuses);
        free(a.bytes);
        return r;
}

void pattern_store(const struct pattern_space *p, const kvt_key *parent, const kvt_key *keys, size_t n)
{
        uint8_t *statuses = malloc(n);

        CHECK_OK(pattern_put(p, parent, keys, n, 0, 0, statuses));
        for (size_t i = 0; i < n; i++)
                CHECK_OK(statuses[i]);
        free(statuses);
}

int pattern_get(const struct pattern_space *p, const kvt_key *keys, size_t n, int flavour, uint8_t *statuses)
{
        struct area a;
        uint8_t *part = malloc(p->part_bytes), *own = malloc(n);
        int r;

        CHECK(part && own);
        area_init(&a, p, n);
        memset(a.bytes, 0xee, n * p->part_bytes);
        memset(own, 0xff, n);
        r = kvt_get(p->s, keys, n, 0, &a.view, 0, own);
        for (size_t i = 0; r == 0 && i < n; i++) {
                if (own[i])
                        continue;
                for (uint32_t j = 0; j < PATTERN_PLANES; j++)
                        memcpy(part + j * a.n_plane, (uint8_t *)a.planes[j].base + i * a.n_plane, a.n_plane);
                if (pattern_find(part, p->part_bytes, &keys[i], p->shard, flavour) < 0)
                        check_failed(__FILE__, __LINE__, "wrong bytes with status 0 (key %zu of %zu)", i, n);
        }
        if (statuses)
                memcpy(statuses, own, n);
        free(a.bytes);
        free(part);
        free(own);
        return r;
}

size_t pattern_match(const struct pattern_space *p, const kvt_key *keys, size_t n)
{
        kvt_match_result m;

        CHECK_OK(kvt_match(p->s, keys, n, 0, 0, &m));
        return m.n_blocks;
}

int pattern_why(const struct pattern_space *p, const kvt_key *key)
{
        kvt_explanation e;

        CHECK_OK(kvt_explain(p->s, key, &e));
        return e.why;
}

size_t pattern_count(const uint8_t *statuses, size_t n, int status)
{
        size_t count = 0;

        for (size_t i = 0; i < n; i++)
                count += statuses[i] == status;
        return count;
}
