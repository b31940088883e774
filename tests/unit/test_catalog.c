/* The catalog against a model of it that knows no hash, no numbers and no counters: for each name, what was last said about it. */
#include "tests/unit/catalog.h"

/* The model */

enum { KEYS = 40, GROUPS = 4, NAMES = KEYS * GROUPS, NO_PARENT = -1 };

struct name { /* what was said about a key in one of the groups */
        bool live, dropped;
        int parent; /* a name of the same group */
        unsigned flags;
        struct record_at at;
};

static const uint32_t spaces[GROUPS] = {0, 0, 1, (1u << 24) - 1}, shard_of[GROUPS] = {0, 255, 0, 7};

static bool model_needed(const struct name *m, int k)
{
        if (m[k].live || m[k].dropped)
                return true;
        for (int j = 0; j < NAMES; j++)
                if (m[j].live && m[j].parent == k)
                        return true;
        return false;
}

static uint32_t model_count(const struct name *m)
{
        bool needed[NAMES] = {};
        uint32_t n = 0;

        for (int k = 0; k < NAMES; k++) {
                needed[k] |= m[k].live || m[k].dropped;
                if (m[k].live && m[k].parent != NO_PARENT)
                        needed[m[k].parent] = true;
        }
        for (int k = 0; k < NAMES; k++)
                n += needed[k];
        return n;
}

static bool model_reachable(const struct name *m, int k)
{
        for (; k != NO_PARENT; k = m[k].parent)
                if (!m[k].live)
                        return false;
        return true;
}

static bool model_is_above(const struct name *m, int k, int of)
{
        for (; of != NO_PARENT; of = m[of].live ? m[of].parent : NO_PARENT)
                if (of == k)
                        return true;
        return false;
}

static void check_name(const struct catalog *c, const struct name *m, int k)
{
        uint32_t space = spaces[k / KEYS], shard = shard_of[k / KEYS], i;
        uint8_t key[16], parent_key[16];

        key_of((uint64_t)(k % KEYS), key);
        i = catalog_find(c, space, shard, key);
        CHECK_EQ(i != POOL_NONE, model_needed(m, k));
        CHECK_EQ(catalog_find_live(c, space, shard, key), m[k].live ? i : POOL_NONE);
        if (i == POOL_NONE)
                return;
        const struct entry *e = catalog_at(c, i);
        CHECK_EQ(entry_space(e), space);
        CHECK_EQ(entry_shard(e), shard);
        CHECK(!memcmp(e->key, key, 16));
        CHECK_EQ(entry_live(e), m[k].live);
        CHECK_EQ(!!(e->flags & ENTRY_DROPPED), m[k].dropped);
        CHECK_EQ(catalog_reachable(c, i), model_reachable(m, k));
        if (m[k].live || m[k].dropped)
                check_place(c, i, m[k].at);
        else
                check_place(c, i, (struct record_at){});
        if (!m[k].live)
                return;
        CHECK_EQ(e->flags, ENTRY_LIVE | m[k].flags | (m[k].parent == NO_PARENT ? ENTRY_ROOT : 0u));
        CHECK_EQ(e->parent != POOL_NONE, m[k].parent != NO_PARENT);
        if (m[k].parent != NO_PARENT) {
                key_of((uint64_t)(m[k].parent % KEYS), parent_key);
                CHECK(!memcmp(catalog_at(c, e->parent)->key, parent_key, 16));
        }
}

struct outcomes {
        uint32_t added, revived, circles, full, orphans;
};

static void step_add(struct catalog *c, struct name *m, int k, struct outcomes *o)
{
        int parent = below(8) ? k / KEYS * KEYS + (int)below(KEYS) : NO_PARENT;
        unsigned flags = (below(2) ? ENTRY_USED : 0u) | (below(2) ? ENTRY_DURABLE : 0u);
        struct record_at at = some_place();
        uint8_t key[16], parent_key[16];
        bool existed = model_needed(m, k), circle, full;

        key_of((uint64_t)(k % KEYS), key);
        if (parent != NO_PARENT)
                key_of((uint64_t)(parent % KEYS), parent_key);
        circle = parent != NO_PARENT && model_is_above(m, k, parent);
        full = model_count(m) + !existed + (parent != NO_PARENT && parent != k && !model_needed(m, parent)) > c->pool.max;
        uint32_t i = catalog_add(c, spaces[k / KEYS], shard_of[k / KEYS], key, parent != NO_PARENT ? parent_key : NULL, at, flags);
        CHECK_EQ(i == POOL_NONE, circle || full);
        o->circles += circle;
        o->full += full;
        if (i == POOL_NONE)
                return;
        o->added++;
        o->revived += existed;
        m[k] = (struct name){.live = true, .parent = parent, .flags = flags, .at = at};
        o->orphans += !model_reachable(m, k);
}

static void step_drop(struct catalog *c, struct name *m, int k)
{
        struct record_at at = some_place();
        uint8_t key[16];
        bool room = model_needed(m, k) || model_count(m) < c->pool.max;

        key_of((uint64_t)(k % KEYS), key);
        uint32_t i = catalog_add_drop(c, spaces[k / KEYS], shard_of[k / KEYS], key, at);
        CHECK_EQ(i != POOL_NONE, room);
        if (i != POOL_NONE)
                m[k] = (struct name){.dropped = true, .parent = NO_PARENT, .at = at};
}

static void forget_all(struct catalog *c, struct name *m)
{
        uint32_t cursor = 0, passes = 0;

        while (!catalog_forget_drops(c, &cursor, 7, false))
                CHECK(++passes <= c->pool.n_touched / 7);
        for (int k = 0; k < NAMES; k++)
                m[k].dropped = false;
}

static void storm(uint32_t max, int n_steps, struct outcomes *o)
{
        struct name m[NAMES];
        struct catalog c;

        for (int k = 0; k < NAMES; k++)
                m[k] = (struct name){.parent = NO_PARENT};
        CHECK_OK(catalog_init(&c, max));
        for (int step = 1; step <= n_steps; step++) {
                int k = (int)below(NAMES);
                uint8_t key[16];
                key_of((uint64_t)(k % KEYS), key);
                uint32_t i = catalog_find_live(&c, spaces[k / KEYS], shard_of[k / KEYS], key), what = below(100);
                if (m[k].live && what < 5) {
                        m[k].at = some_place();
                        entry_move(catalog_at(&c, i), m[k].at);
                } else if (m[k].live) {
                        catalog_remove(&c, i);
                        m[k] = (struct name){.parent = NO_PARENT};
                } else if (what < 90) {
                        step_add(&c, m, k, o);
                } else {
                        step_drop(&c, m, k);
                }
                if (!below(500))
                        forget_all(&c, m);
                check_name(&c, m, k);
                CHECK_EQ(c.pool.n_used, model_count(m));
                if (step % 1000)
                        continue;
                check_sound(&c);
                for (int j = 0; j < NAMES; j++)
                        check_name(&c, m, j);
        }
        for (int k = 0; k < NAMES; k++) { /* and all goes */
                uint8_t key[16];
                key_of((uint64_t)(k % KEYS), key);
                uint32_t i = catalog_find_live(&c, spaces[k / KEYS], shard_of[k / KEYS], key);
                if (i != POOL_NONE)
                        catalog_remove(&c, i);
                m[k].live = false;
        }
        forget_all(&c, m);
        CHECK_EQ(c.pool.n_used, 0);
        CHECK_EQ(c.n_live, 0);
        check_sound(&c);
        catalog_deinit(&c);
}

static void test_against_a_model(void **state)
{
        struct outcomes o = {};

        for (int round = 0; round < 4; round++) {
                storm(1000, 20000, &o);
                storm(60 + below(60), 20000, &o); /* often full */
                storm(1 + below(4), 2000, &o);
        }
        /* the storm came by everywhere */
        CHECK(o.added > 1000 && o.revived > 1000 && o.circles > 1000 && o.full > 1000 && o.orphans > 1000);
}

/* Circles */

static void test_no_circles(void **state)
{
        enum { DEEP = 1000 };
        struct catalog c;
        uint8_t key[16], parent[16];

        CHECK_OK(catalog_init(&c, 10000));
        key_of(7, key);
        CHECK_EQ(catalog_add(&c, 1, 0, key, key, (struct record_at){.n_pages = 1}, 0), POOL_NONE); /* its own parent */
        CHECK_EQ(c.pool.n_used, 0);
        for (uint64_t n = DEEP; n > 0; n--) /* children first: each parent is DEAD when it comes */
                add_live(&c, n, (int64_t)n - 1);
        CHECK(!catalog_reachable(&c, find(&c, DEEP)));
        key_of(0, key);
        for (uint64_t n = 1; n <= DEEP; n += 111) {
                key_of(n, parent);
                CHECK_EQ(catalog_add(&c, 1, 0, key, parent, (struct record_at){.n_pages = 1}, 0), POOL_NONE);
        }
        check_sound(&c);
        CHECK(!catalog_reachable(&c, find(&c, DEEP))); /* a refusal changed nothing */
        add_live(&c, 0, -1);
        CHECK(catalog_reachable(&c, find(&c, DEEP)));

        /* the middle goes: what is above a DEAD entry is not known, and the circle is refused where it would be closed */
        catalog_remove(&c, find(&c, 500));
        CHECK(!catalog_reachable(&c, find(&c, DEEP)) && catalog_reachable(&c, find(&c, 499)));
        catalog_remove(&c, find(&c, 0));
        add_live(&c, 0, DEEP); /* 1000 leads to 500, which is DEAD */
        key_of(500, key);
        key_of(499, parent);
        CHECK_EQ(catalog_add(&c, 1, 0, key, parent, (struct record_at){.n_pages = 1}, 0), POOL_NONE);
        check_sound(&c);
        add_live(&c, 500, -1);
        CHECK(catalog_reachable(&c, find(&c, 499)));
        check_sound(&c);
        catalog_deinit(&c);
}

/* The search for a circle is bounded: what would need a longer one is refused as if it were one. */
static void test_the_search_is_bounded(void **state)
{
        enum { DEEP = 300000, OTHER = 1000000 };
        struct catalog c;
        uint8_t key[16], parent[16];

        CHECK_OK(catalog_init(&c, DEEP + 10));
        add_live(&c, 0, -1);
        for (uint64_t n = 1; n < DEEP; n++)
                add_live(&c, n, (int64_t)n - 1);
        add_live(&c, OTHER + 1, OTHER); /* OTHER is DEAD, with a child */
        key_of(OTHER, key);
        key_of(DEEP - 1, parent);
        CHECK_EQ(catalog_add(&c, 1, 0, key, parent, (struct record_at){.n_pages = 1}, 0), POOL_NONE);
        add_live(&c, OTHER, 200000);
        CHECK(catalog_reachable(&c, find(&c, OTHER + 1)));
        add_live(&c, OTHER + 2, DEEP - 1); /* without children there is nothing to search for */
        CHECK(catalog_reachable(&c, find(&c, OTHER + 2)));
        check_sound(&c);
        catalog_deinit(&c);
}

/* Whoever asks for thousands of blocks at the end of a chain that is this long must not stall the loop. */
static void test_long_chains_are_walked_once(void **state)
{
        enum { DEEP = 200000 / CHECK_SLOW, ASKED = 4096 / CHECK_SLOW };
        struct catalog c;
        uint8_t key[16];

        CHECK_OK(catalog_init(&c, DEEP + 10));
        add_live(&c, 0, -1);
        for (uint64_t n = 1; n < DEEP; n++)
                add_live(&c, n, (int64_t)n - 1);
        for (uint64_t n = 0; n < ASKED; n++) /* walked to the start each time: eight hundred million steps */
                CHECK(catalog_reachable(&c, find(&c, DEEP - 1 - 7 * n)));
        CHECK(c.known->n_steps < 10 * DEEP);
        /* what is remembered ends with what it rests on ... */
        key_of(100, key);
        catalog_remove(&c, find(&c, 100));
        for (uint64_t n = 0; n < ASKED; n++)
                CHECK(!catalog_reachable(&c, find(&c, DEEP - 1 - 7 * n)));
        CHECK(catalog_reachable(&c, find(&c, 99)));
        add_live(&c, 100, 99);
        CHECK(catalog_reachable(&c, find(&c, DEEP - 1)));
        /* ... and with the number: here of a leaf, which goes to one that cannot be reached */
        add_live(&c, DEEP + 2, DEEP + 1);
        uint32_t i = find(&c, DEEP - 1);
        catalog_remove(&c, i);
        add_live(&c, DEEP, DEEP + 1);
        CHECK_EQ(find(&c, DEEP), i);
        CHECK(!catalog_reachable(&c, i));
        check_sound(&c);
        catalog_deinit(&c);
}

static void test_a_parent_has_room_for_65535(void **state)
{
        struct catalog c;
        uint8_t key[16], parent[16];

        CHECK_OK(catalog_init(&c, 70000));
        for (uint64_t n = 1; n <= UINT16_MAX; n++) /* of a DEAD one */
                add_live(&c, n, 0);
        key_of(65536, key);
        key_of(0, parent);
        CHECK_EQ(catalog_add(&c, 1, 0, key, parent, (struct record_at){.n_pages = 1}, 0), POOL_NONE);
        CHECK_EQ(catalog_find(&c, 1, 0, key), POOL_NONE);
        check_sound(&c);
        catalog_remove(&c, find(&c, 1234));
        add_live(&c, 65536, 0);
        CHECK_EQ(catalog_at(&c, find(&c, 0))->n_children, 65535);
        check_sound(&c);
        for (uint64_t n = 1; n <= 65536; n++)
                if (n != 1234)
                        catalog_remove(&c, find(&c, n));
        CHECK_EQ(c.pool.n_used, 0); /* the DEAD one went with the last */
        catalog_deinit(&c);
}

static void test_drops_are_remembered_until_forgotten(void **state)
{
        struct record_at here = {.device = 3, .segment = 9, .page = 17, .n_pages = 1}, there = {.segment = 10, .page = 1, .n_pages = 1};
        struct catalog c;
        uint32_t cursor = 0, i;
        uint8_t key[16];

        CHECK_OK(catalog_init(&c, 100));
        for (uint64_t n = 0; n < 50; n++) {
                key_of(n, key);
                CHECK(catalog_add_drop(&c, 1, 0, key, here) != POOL_NONE);
        }
        key_of(5, key);
        i = catalog_add_drop(&c, 1, 0, key, there); /* the last word counts, under the same number */
        CHECK_EQ(i, find(&c, 5));
        check_place(&c, i, there);
        CHECK_EQ(catalog_find_live(&c, 1, 0, key), POOL_NONE);
        key_of(60, key);
        CHECK(catalog_add_drop(&c, 1, 0, key, (struct record_at){}) != POOL_NONE); /* nowhere: it stays as long as it is asked to */
        check_sound(&c);
        while (!catalog_forget_drops(&c, &cursor, 20, true))
                ;
        CHECK_EQ(c.pool.n_used, 1);
        CHECK(find(&c, 60) != POOL_NONE);
        cursor = 0;
        CHECK(catalog_forget_drops(&c, &cursor, 1000, false));
        CHECK_EQ(c.pool.n_used, 0);
        cursor = 0;
        for (uint64_t n = 0; n < 50; n++) {
                key_of(n, key);
                CHECK(catalog_add_drop(&c, 1, 0, key, n == 5 ? there : here) != POOL_NONE);
        }
        i = find(&c, 5);
        add_live(&c, 100, 5); /* holds 5 */
        add_live(&c, 6, -1); /* written again: no drop any more */
        check_sound(&c);
        CHECK(!catalog_forget_drops(&c, &cursor, 20, false));
        CHECK_EQ(cursor, 20);
        check_sound(&c);
        CHECK(!catalog_forget_drops(&c, &cursor, 20, false));
        CHECK(catalog_forget_drops(&c, &cursor, 20, false));
        CHECK_EQ(c.pool.n_used, 3);
        CHECK_EQ(c.n_live, 2);
        CHECK_EQ(find(&c, 5), i);
        check_place(&c, i, (struct record_at){});
        check_sound(&c);
        catalog_remove(&c, find(&c, 100));
        CHECK_EQ(find(&c, 5), POOL_NONE);
        catalog_deinit(&c);
}

/* The audit that the others rely on does find what is wrong. */
static void test_the_audit_finds_damage(void **state)
{
        struct catalog c;
        struct entry saved, *e;

        CHECK_OK(catalog_init(&c, 100));
        add_live(&c, 0, -1);
        for (uint64_t n = 1; n < 20; n++)
                add_live(&c, n, (int64_t)n - 1);
        add_live(&c, 31, 30); /* 30 is DEAD */
        check_sound(&c);
        e = catalog_at(&c, find(&c, 10));
        saved = *e;
#define DAMAGE(what)                                                                                                                       \
        do {                                                                                                                               \
                what;                                                                                                                      \
                CHECK(catalog_audit(&c));                                                                                                  \
                *e = saved;                                                                                                                \
                check_sound(&c);                                                                                                           \
        } while (0)
        DAMAGE(e->space_shard++);
        DAMAGE(e->n_children++);
        DAMAGE(e->n_children = 0);
        DAMAGE(e->flags &= ~ENTRY_LIVE);
        DAMAGE(e->flags |= ENTRY_ROOT);
        DAMAGE(e->flags |= ENTRY_DROPPED);
        DAMAGE(e->at_lo = e->at_hi = 0);
        DAMAGE(e->parent = POOL_NONE);
        DAMAGE(e->parent = 90);
        DAMAGE(e->parent = find(&c, 12));
        DAMAGE(e->next = find(&c, 10));
        c.n_live++;
        CHECK(catalog_audit(&c));
        c.n_live--;
        for (uint32_t b = 0, other = 0; b < c.n_buckets; b++) { /* entries in the wrong buckets, entries that are in none */
                uint32_t head = c.buckets[b];
                if (head == POOL_NONE)
                        continue;
                c.buckets[b] = POOL_NONE;
                CHECK(catalog_audit(&c));
                c.buckets[b] = c.buckets[other];
                c.buckets[other] = head;
                CHECK(other == b || catalog_audit(&c));
                c.buckets[other] = c.buckets[b];
                c.buckets[b] = head;
                other = b;
        }
        check_sound(&c);
        /* a circle whose counts are right */
        uint32_t low = find(&c, 15), high = find(&c, 5), above = catalog_at(&c, high)->parent;
        catalog_at(&c, high)->parent = low;
        catalog_at(&c, above)->n_children--;
        catalog_at(&c, low)->n_children++;
        const char *wrong = catalog_audit(&c);
        CHECK(wrong && !strcmp(wrong, "there is a cycle"));
        catalog_deinit(&c);
}

int main(void)
{
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_against_a_model),
                cmocka_unit_test(test_no_circles),
                cmocka_unit_test(test_the_search_is_bounded),
                cmocka_unit_test(test_long_chains_are_walked_once),
                cmocka_unit_test(test_a_parent_has_room_for_65535),
                cmocka_unit_test(test_drops_are_remembered_until_forgotten),
                cmocka_unit_test(test_the_audit_finds_damage),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
