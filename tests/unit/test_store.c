/* The store against models of it: index and tree, eviction order, who gives, ghosts. */
#include "daemon/policy/evict.h"
#include "daemon/policy/quota.h"
#include "daemon/store/ghost.h"
#include "tests/unit/stage.h"

static void key_of(uint32_t n, uint8_t key[16])
{
        memset(key, 0, 16);
        memcpy(key, &n, sizeof(n));
}

static void take_out(struct stage *x, uint32_t i)
{
        block_detach(&x->b, i);
        block_free(&x->b, i, x->s);
        x->s->n_blocks--;
        x->t->n_blocks--;
}

/* A small table, nearly full, so that probe sequences run into each other and over the end: whatever goes in and out, exactly what is in is
 * found. */
static void test_index_against_a_model(void **state)
{
        enum { KEYS = 64 };

        for (int round = 0; round < 200; round++) { /* another secret each */
                struct stage x;
                uint32_t model[KEYS] = {}, n = 0, max = 5 + stage_random(40);
                uint8_t key[16];

                stage_init(&x, max, 1 << 30);
                for (int step = 0; step < 400; step++) {
                        uint32_t k = stage_random(KEYS);
                        key_of(k, key);
                        if (model[k]) {
                                take_out(&x, model[k]);
                                model[k] = 0;
                                n--;
                        } else {
                                model[k] = block_new(&x.b, x.s, key, POOL_NONE, 1);
                                CHECK_EQ(model[k] != POOL_NONE, n < max);
                                n += model[k] != POOL_NONE;
                        }
                        for (uint32_t i = 0; i < KEYS; i++) {
                                key_of(i, key);
                                CHECK_EQ(blocks_find(&x.b, x.s->id, key), model[i]);
                        }
                        CHECK_EQ(blocks_find(&x.b, x.s->id + 1, key), POOL_NONE); /* a key belongs to its space */
                        CHECK_EQ(x.t->n_blocks, n);
                        CHECK_EQ(x.b.pool.n_used, n);
                }
                stage_deinit(&x);
        }
}

static void test_index_with_two_spaces(void **state)
{
        struct stage x;
        uint8_t key[16];
        uint32_t in[2][50];

        stage_init(&x, 100, 1 << 30);
        struct space *spaces[2] = {x.s, new_space(&x, x.t, "other", 1000, 1)};
        for (uint32_t i = 0; i < 50; i++)
                for (int j = 0; j < 2; j++) {
                        key_of(i, key);
                        in[j][i] = block_new(&x.b, spaces[j], key, POOL_NONE, 1);
                }
        for (uint32_t i = 0; i < 50; i += 2) {
                block_detach(&x.b, in[0][i]);
                block_free(&x.b, in[0][i], x.s);
        }
        for (uint32_t i = 0; i < 50; i++) {
                key_of(i, key);
                CHECK_EQ(blocks_find(&x.b, spaces[0]->id, key), i % 2 ? in[0][i] : POOL_NONE);
                CHECK_EQ(blocks_find(&x.b, spaces[1]->id, key), in[1][i]);
        }
        stage_deinit(&x);
}

static void test_pool_uses_numbers_again_and_zeroes(void **state)
{
        struct pool p;

        CHECK_EQ(pool_init(&p, 24, 3), 0);
        for (uint32_t i = 1; i <= 3; i++) {
                CHECK_EQ(pool_take(&p), i);
                memset(pool_at(&p, i), 0xee, 24);
        }
        CHECK_EQ(pool_take(&p), POOL_NONE);
        pool_give(&p, 2);
        pool_give(&p, 1);
        CHECK_EQ(pool_take(&p), 1);
        CHECK_EQ(pool_take(&p), 2);
        for (uint32_t i = 1; i <= 2; i++)
                for (int j = 0; j < 24; j++)
                        CHECK_EQ(((uint8_t *)pool_at(&p, i))[j], 0);
        CHECK_EQ(((uint8_t *)pool_at(&p, 3))[5], 0xee);
        CHECK_EQ(pool_take(&p), POOL_NONE);
        CHECK_EQ(p.n_used, 3);
        pool_deinit(&p);
}

/* eviction */

static uint32_t grow(struct stage *x, uint32_t k, uint32_t parent, uint32_t now)
{
        uint8_t key[16];

        key_of(k, key);
        uint32_t i = block_new(&x->b, x->s, key, parent, now);
        CHECK(i != POOL_NONE);
        block_at(&x->b, i)->state = BLOCK_RESIDENT;
        block_at(&x->b, i)->n_parts = 1;
        evict_update(&x->b, x->t, i, false);
        if (parent != POOL_NONE)
                evict_update(&x->b, x->t, parent, false);
        return i;
}

static void evict(struct stage *x, uint32_t i)
{
        uint32_t parent = block_at(&x->b, i)->parent;

        evict_forget(&x->b, x->t, i);
        take_out(x, i);
        if (parent != POOL_NONE)
                evict_update(&x->b, x->t, parent, true);
}

/* Blocks without prefixes go in the order of their last use, exactly. */
static void test_leaves_go_in_order_of_use(void **state)
{
        enum { N = 30 };
        struct stage x;
        uint32_t order[N], block[N];

        stage_init(&x, N, 1 << 30);
        for (uint32_t i = 0; i < N; i++) {
                block[i] = grow(&x, i, POOL_NONE, 1);
                order[i] = block[i];
        }
        for (int step = 0; step < 500; step++) {
                uint32_t k = stage_random(N), j = 0;
                evict_touch(&x.b, x.t, block[k], 1 + (uint32_t)step / 50);
                while (order[j] != block[k])
                        j++;
                memmove(order + j, order + j + 1, (N - 1 - j) * sizeof(*order));
                order[N - 1] = block[k];
        }
        for (int i = 0; i < N; i++) {
                CHECK_EQ(evict_coldest(x.t), order[i]);
                evict(&x, order[i]);
        }
        CHECK_EQ(evict_coldest(x.t), POOL_NONE);
        stage_deinit(&x);
}

static void check_list(const struct stage *x, const bool *in, uint32_t max)
{
        bool listed[256] = {};
        uint32_t n = 0, last = POOL_NONE;

        for (uint32_t i = x->t->lru_cold; i != POOL_NONE; i = block_at(&x->b, i)->lru_next) {
                const struct block *k = block_at(&x->b, i);
                CHECK(!listed[i]);
                listed[i] = true;
                CHECK_EQ(k->lru_prev, last);
                last = i;
                CHECK(++n <= max);
        }
        CHECK_EQ(x->t->lru_hot, last);
        for (uint32_t i = 1; i <= max; i++) {
                const struct block *k = in[i] ? block_at(&x->b, i) : NULL;
                CHECK_EQ(listed[i], k && k->state == BLOCK_RESIDENT && k->first_child == POOL_NONE && !k->n_pins);
                if (k)
                        assert_block_state(&x->b, i, x->s);
        }
}

/* Random trees, uses and pins: the list holds exactly what may go, and nothing goes before what continues it. */
static void test_eviction_is_leaf_first(void **state)
{
        enum { MAX = 60 };

        for (int round = 0; round < 30; round++) {
                struct stage x;
                bool in[MAX + 1] = {};
                uint32_t n = 0, next_key = 0, now = 1;

                stage_init(&x, MAX, 1 << 30);
                for (int step = 0; step < 1500; step++) {
                        uint32_t i = 1 + stage_random(MAX);
                        now += stage_random(5) == 0;
                        switch (stage_random(5)) {
                        case 0:
                        case 1:
                                if (n == MAX) {
                                        uint32_t c = evict_coldest(x.t);
                                        if (c == POOL_NONE)
                                                break;
                                        CHECK(block_at(&x.b, c)->first_child == POOL_NONE);
                                        evict(&x, c);
                                        in[c] = false;
                                        n--;
                                }
                                i = grow(&x, next_key++, in[i] && stage_random(4) ? i : POOL_NONE, now);
                                in[i] = true;
                                n++;
                                break;
                        case 2:
                                if (in[i])
                                        evict_touch(&x.b, x.t, i, now);
                                break;
                        case 3:
                                if (in[i] && block_at(&x.b, i)->n_pins < 3) {
                                        block_at(&x.b, i)->n_pins++;
                                        evict_update(&x.b, x.t, i, false);
                                }
                                break;
                        case 4:
                                if (in[i] && block_at(&x.b, i)->n_pins) {
                                        block_at(&x.b, i)->n_pins--;
                                        evict_update(&x.b, x.t, i, false);
                                }
                                break;
                        }
                        check_list(&x, in, MAX);
                }
                for (uint32_t i = 1; i <= MAX; i++)
                        if (in[i] && block_at(&x.b, i)->n_pins) {
                                block_at(&x.b, i)->n_pins = 0;
                                evict_update(&x.b, x.t, i, false);
                        }
                while (n--) { /* all can go, one after another */
                        uint32_t c = evict_coldest(x.t);
                        CHECK(c != POOL_NONE);
                        evict(&x, c);
                }
                CHECK_EQ(evict_coldest(x.t), POOL_NONE);
                CHECK_EQ(x.t->n_blocks, 0);
                stage_deinit(&x);
        }
}

/* A head that becomes a leaf takes its place by its last use: behind what was used before it, ahead of what was used since. */
static void test_a_parent_enters_by_its_age(void **state)
{
        struct stage x;

        stage_init(&x, 10, 1 << 30);
        uint32_t old = grow(&x, 1, POOL_NONE, 10), head = grow(&x, 2, POOL_NONE, 20), tail = grow(&x, 3, head, 20),
                 young = grow(&x, 4, POOL_NONE, 30);
        CHECK_EQ(evict_coldest(x.t), old);
        evict(&x, tail);
        evict(&x, old);
        CHECK_EQ(evict_coldest(x.t), head);
        evict(&x, head);
        CHECK_EQ(evict_coldest(x.t), young);
        stage_deinit(&x);
}

/* who gives */

static void test_who_gives(void **state)
{
        enum { MB = 1 << 20 };
        /* host of 100; held, soft, has something to evict; who needs (-1: the watermark); who gives (-1: nobody) */
        static const struct {
                const char *what;
                struct {
                        uint64_t held, soft;
                        bool lru;
                } t[3];
                int needy, gives;
        } table[] = {
                {"over its own share: itself", {{50, 30, true}, {90, 30, true}, {0, 30, false}}, 0, 0},
                {"under it: who is furthest over", {{10, 30, true}, {40, 30, true}, {50, 30, true}}, 0, 2},
                {"nobody over: itself", {{10, 30, true}, {20, 30, true}, {30, 30, true}}, 0, 0},
                {"nobody over, nothing of its own: who holds most", {{0, 30, false}, {20, 30, true}, {30, 30, true}}, 0, 2},
                {"nobody has anything", {{10, 30, false}, {20, 30, false}, {0, 0, false}}, 0, -1},
                {"over its share, but nothing to evict: another over", {{50, 30, false}, {40, 30, true}, {0, 30, false}}, 0, 1},
                {"over by leases alone: gives too, when they end", {{10, 30, true}, {60, 30, false}, {0, 30, false}}, 0, 1},
                {"the watermark takes no leases", {{10, 30, true}, {60, 30, false}, {0, 30, false}}, -1, 0},
                {"the watermark: furthest over", {{40, 30, true}, {60, 30, true}, {80, 70, true}}, -1, 1},
                {"no share given: equal ones", {{34, 0, true}, {10, 0, true}, {10, 0, true}}, 1, 0},
                {"equal ones: not over", {{33, 0, true}, {10, 0, true}, {10, 0, true}}, 1, 1},
        };

        for (size_t i = 0; i < ELEMENTSOF(table); i++) {
                struct stage x;
                struct tenant *t[3];
                stage_init(&x, 10, 100 * MB);
                t[0] = x.t;
                t[1] = new_tenant(&x, 8);
                t[2] = new_tenant(&x, 9);
                for (int j = 0; j < 3; j++) {
                        t[j]->held_bytes = table[i].t[j].held * MB;
                        t[j]->soft_bytes = table[i].t[j].soft * MB;
                        t[j]->lru_cold = t[j]->lru_hot = table[i].t[j].lru;
                }
                struct tenant *v = quota_victim(&x.tenants, table[i].needy < 0 ? NULL : t[table[i].needy]);
                int who = v ? v == t[0] ? 0 : v == t[1] ? 1 : 2 : -1;
                if (who != table[i].gives)
                        check_failed(__FILE__, __LINE__, "%s: %d gives, expected %d", table[i].what, who, table[i].gives);
                stage_deinit(&x);
        }
}

static void test_ghosts_remember_the_youngest(void **state)
{
        struct ghosts g;
        uint8_t key[16];

        CHECK_EQ(ghosts_init(&g, 64), 0);
        key_of(1, key);
        CHECK(!ghosts_find(&g, 1, key));
        ghosts_add(&g, 1, key, KVT_WHY_EVICTED, 10);
        CHECK(!ghosts_find(&g, 2, key));
        ghosts_add(&g, 1, key, KVT_WHY_DROPPED, 11); /* the last word counts, and takes no second place */
        CHECK_EQ(ghosts_find(&g, 1, key)->why, KVT_WHY_DROPPED);
        CHECK_EQ(ghosts_find(&g, 1, key)->when_sec, 11);
        for (uint32_t i = 0; i < 1000; i++) {
                uint32_t r = stage_random(1u << 30);
                key_of(r, key);
                memcpy(key + 8, &r, 4); /* as good as random where it looks */
                ghosts_add(&g, 1, key, KVT_WHY_EVICTED, 100 + i);
                CHECK(ghosts_find(&g, 1, key)); /* the one just added is never the one forgotten */
        }
        key_of(1, key);
        CHECK(!ghosts_find(&g, 1, key) || ghosts_find(&g, 1, key)->when_sec == 11);
        ghosts_deinit(&g);
}

int main(void)
{
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_index_against_a_model),
                cmocka_unit_test(test_index_with_two_spaces),
                cmocka_unit_test(test_pool_uses_numbers_again_and_zeroes),
                cmocka_unit_test(test_leaves_go_in_order_of_use),
                cmocka_unit_test(test_eviction_is_leaf_first),
                cmocka_unit_test(test_a_parent_enters_by_its_age),
                cmocka_unit_test(test_who_gives),
                cmocka_unit_test(test_ghosts_remember_the_youngest),
        };

        return cmocka_run_group_tests(tests, stage_setup, NULL);
}
