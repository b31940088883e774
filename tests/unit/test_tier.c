/* Slabs and the host tier against models of them: slots, quotas, leases on copies, slabs that clients map, spares. */
#include <fcntl.h>
#include <sys/mman.h>

#include "daemon/store/tier_host.h"
#include "tests/unit/stage.h"

/* slabs */

static void test_slot_sizes_waste_little(void **state)
{
        uint64_t before = 0;

        for (uint64_t n = 24; n < 1ull << 32; n += n / 37 + 1) {
                uint64_t c = slab_class_bytes(n);
                CHECK(c >= n && c >= before);
                CHECK(c - n <= MAX(n / 16, n >= 65536 ? 4096ull : n >= 4096 ? 64ull : 8ull));
                CHECK_EQ(c % (n >= 65536 ? 4096 : n >= 4096 ? 64 : 8), 0);
                CHECK_EQ(slab_class_bytes(c), c);
                before = c;
        }
}

static void test_slab_slots_against_a_model(void **state)
{
        struct slab *s;
        bool in[512] = {};
        uint32_t n = 0;

        CHECK_EQ(slab_new(&s, 1, 2 << 20, false), 0);
        CHECK_EQ(fcntl(s->fd, F_GET_SEALS) & (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_FUTURE_WRITE | F_SEAL_SEAL),
                 F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_FUTURE_WRITE | F_SEAL_SEAL);
        CHECK_EQ((uintptr_t)s->base % (2 << 20), 0);
        CHECK_EQ(slab_populate(s, 0, s->bytes), 0);
        for (uint64_t size = 4104; size <= 16384; size *= 2) { /* cut again and again, when empty */
                CHECK_EQ(slab_format(s, size), 0);
                CHECK_EQ(s->n_slots, (2 << 20) / size);
                for (int step = 0; step < 5000; step++) {
                        uint32_t i = stage_random(s->n_slots);
                        if (in[i]) {
                                s->slots[i].generation = 5;
                                slab_header(s, i)->generation = 5;
                                slab_give_slot(s, i);
                                CHECK_EQ(slab_header(s, i)->generation, 0);
                                in[i] = false;
                                n--;
                        } else if (!slab_full(s)) {
                                i = slab_take_slot(s);
                                CHECK(i < s->n_slots && !in[i]);
                                CHECK(s->slots[i].state == SLOT_RESERVED);
                                in[i] = true;
                                n++;
                        }
                        CHECK_EQ(s->n_used, n);
                }
                for (uint32_t i = 0; i < s->n_slots; i++)
                        if (in[i]) {
                                slab_give_slot(s, i);
                                in[i] = false;
                        }
                n = 0;
        }
        slab_free(s);
}

/* the host tier */

static struct queue queue;
static struct host host;
static uint32_t n_retired_told;

static void on_retired(struct slab *s, void *arg)
{
        n_retired_told++;
}

/* Does the workers' work, here. */
static void work(void)
{
        struct list done;

        queue_kick(&queue);
        for (;;) {
                struct job *j;
                bool any = false;
                while (!list_empty(&queue.urgent) || !list_empty(&queue.background)) {
                        j = queue_take(&queue);
                        j->work(j);
                        queue_finish(&queue, j);
                        any = true;
                }
                list_init(&done);
                queue_collect(&queue, &done);
                while (!list_empty(&done)) {
                        j = list_first(&done, struct job, link);
                        list_remove(&j->link);
                        host_job_done(&host, container_of(j, struct slab, job));
                }
                queue_kick(&queue);
                if (!any)
                        return;
        }
}

static void host_open(struct stage *x, uint64_t capacity, uint64_t prealloc)
{
        stage_init(x, 4096, capacity);
        CHECK_EQ(queue_init(&queue), 0);
        CHECK_EQ(host_init(&host, capacity, 2 << 20, prealloc, false, &queue), 0);
        host.on_retired = on_retired;
        n_retired_told = 0;
}

static void host_close(struct stage *x)
{
        work();
        host_deinit(&host);
        queue_deinit(&queue);
        stage_deinit(x);
}

static void check_sums(const struct stage *x)
{
        uint64_t held = host.spare_bytes, used = 0, slabs = 0;

        list_for_each (t, &x->tenants.all, struct tenant, link) {
                held += t->held_bytes;
                used += t->used_bytes;
                CHECK(t->held_bytes <= t->hard_bytes);
                CHECK(t->retired_bytes <= t->held_bytes);
        }
        for (uint32_t i = 1; i <= host.max_slabs; i++)
                if (host.by_id[i])
                        slabs += host.by_id[i]->bytes;
        CHECK_EQ(slabs, host.tier.slab_bytes);
        CHECK_EQ(used, host.tier.used_bytes);
        CHECK(held <= host.tier.held_bytes);
        CHECK(host.tier.held_bytes <= host.tier.capacity_bytes);
}

static void test_host_reserves_up_to_the_quota_and_the_capacity(void **state)
{
        struct tier *t = &host.tier;
        struct stage x;
        struct location at[64];
        uint32_t n = 0;

        host_open(&x, 16 << 20, 0);
        struct tenant *other = new_tenant(&x, 8);
        struct space *large = new_space(&x, x.t, "large", 900 << 10, 1), *others = new_space(&x, other, "large", 900 << 10, 1);
        x.t->hard_bytes = 6 << 20;
        int r;
        while ((r = t->ops->reserve(t, large, stage_bytes(large), &at[n])) == 0) {
                n++;
                check_sums(&x);
        }
        CHECK_IS(r, KVT_E_QUOTA);
        CHECK_EQ(n, 6); /* three slabs, two to each */
        while ((r = t->ops->reserve(t, others, stage_bytes(others), &at[n])) == 0)
                n++;
        CHECK_IS(r, KVT_E_AGAIN); /* the capacity */
        CHECK_EQ(n, 16);
        CHECK_EQ(t->used_bytes, 16 * large->slot_bytes);
        check_sums(&x);
        for (uint32_t i = 0; i < n; i++)
                for (uint32_t j = 0; j < i; j++)
                        CHECK(at[i].slab != at[j].slab || at[i].slot != at[j].slot);
        for (uint32_t i = 0; i < n; i++)
                t->ops->abandon(t, i < 6 ? large : others, at[i]);
        CHECK_EQ(t->used_bytes, 0);
        CHECK_EQ(t->n_slabs, 8); /* empty, but still their tenants' */
        check_sums(&x);
        /* a tenant's empty slab is cut to another size; it never goes to another tenant */
        struct space *small = new_space(&x, x.t, "small", 100, 1);
        CHECK_EQ(t->ops->reserve(t, small, stage_bytes(small), &at[0]), 0);
        CHECK_EQ(t->n_slabs, 8);
        CHECK(host_slab(&host, at[0].slab)->tenant == x.t);
        t->ops->abandon(t, small, at[0]);
        host_close(&x);
}

static void test_host_copies_pins_and_zombies(void **state)
{
        struct tier *t = &host.tier;
        struct stage x;
        struct location at;

        host_open(&x, 16 << 20, 0);
        CHECK_EQ(t->ops->reserve(t, x.s, stage_bytes(x.s), &at), 0);
        CHECK_EQ(slab_header(host_slab(&host, at.slab), at.slot)->generation, 0);
        t->ops->publish(t, x.s, at, 42);
        uint64_t generation = slab_header(host_slab(&host, at.slab), at.slot)->generation;
        CHECK(generation > 0);
        CHECK_EQ(t->payload_bytes, 1000);
        host_pin(&host, at);
        host_pin(&host, at);
        CHECK_EQ(host_unpin(&host, at), 42);
        t->ops->release(t, x.s, at); /* its block goes while a lease is left: the bytes stay until that ends */
        CHECK_EQ(t->payload_bytes, 0);
        CHECK_EQ(t->used_bytes, x.s->slot_bytes);
        CHECK_EQ(slab_header(host_slab(&host, at.slab), at.slot)->generation, generation);
        CHECK_EQ(host_unpin(&host, at), POOL_NONE);
        CHECK_EQ(t->used_bytes, 0);
        CHECK_EQ(slab_header(host_slab(&host, at.slab), at.slot)->generation, 0); /* readers past their deadline see it */
        struct location next;
        CHECK_EQ(t->ops->reserve(t, x.s, stage_bytes(x.s), &next), 0);
        t->ops->publish(t, x.s, next, 43);
        CHECK(slab_header(host_slab(&host, next.slab), next.slot)->generation > generation); /* never given twice */
        t->ops->release(t, x.s, next);
        check_sums(&x);
        host_close(&x);
}

static void test_host_retires_slabs_that_are_mapped(void **state)
{
        struct tier *t = &host.tier;
        struct stage x;
        struct location at;

        host_open(&x, 16 << 20, 0);
        CHECK_EQ(t->ops->reserve(t, x.s, stage_bytes(x.s), &at), 0);
        work();
        struct slab *s = host_slab(&host, at.slab);
        CHECK(s->populated);
        s->n_holders = 2; /* two sessions were sent it */
        t->ops->abandon(t, x.s, at);
        host_retire(&host, s);
        CHECK_EQ(n_retired_told, 1);
        CHECK_EQ(t->n_retired, 1);
        CHECK_EQ(x.t->held_bytes, 2 << 20); /* still charged */
        CHECK_EQ(x.t->retired_bytes, 2 << 20);
        struct location other;
        CHECK_EQ(t->ops->reserve(t, x.s, stage_bytes(x.s), &other), 0);
        CHECK(other.slab != at.slab); /* and no longer used */
        host_drop_holder(&host, s);
        CHECK_EQ(t->n_slabs, 2);
        host_drop_holder(&host, s);
        CHECK_EQ(t->n_slabs, 1);
        CHECK_EQ(x.t->held_bytes, 2 << 20);
        CHECK_EQ(x.t->retired_bytes, 0);
        t->ops->abandon(t, x.s, other);
        check_sums(&x);
        host_close(&x);
}

static void test_host_keeps_a_reserve_that_gives_way(void **state)
{
        struct tier *t = &host.tier;
        struct stage x;
        struct location at;

        host_open(&x, 16 << 20, 4 << 20);
        host_refill(&host);
        work();
        CHECK_EQ(host.spare_bytes, 4 << 20);
        CHECK_EQ(t->n_slabs, 2);
        CHECK_EQ(t->ops->reserve(t, x.s, stage_bytes(x.s), &at), 0); /* takes one that is ready, and another is made */
        CHECK(host_slab(&host, at.slab)->populated);
        work();
        CHECK_EQ(host.spare_bytes, 4 << 20);
        CHECK_EQ(t->n_slabs, 3);
        CHECK_EQ(host_charge(&host, x.t, 13 << 20), 0); /* staging: the reserve goes before anybody is refused */
        CHECK(host.spare_bytes < 4 << 20);
        check_sums(&x);
        CHECK_IS(host_charge(&host, x.t, 2 << 20), KVT_E_QUOTA); /* held: 15 of 16 */
        struct tenant *other = new_tenant(&x, 8);
        CHECK_IS(host_charge(&host, other, 2 << 20), KVT_E_AGAIN);
        host_uncharge(&host, x.t, 13 << 20);
        CHECK_EQ(host_charge(&host, other, 2 << 20), 0);
        host_uncharge(&host, other, 2 << 20);
        t->ops->abandon(t, x.s, at);
        check_sums(&x);
        host_close(&x);
}

/* Random spaces, tenants and lives: the sums hold after every step. */
static void test_host_accounts_hold(void **state)
{
        enum { N = 300 };
        struct tier *t = &host.tier;
        struct stage x;
        static struct {
                struct space *s;
                struct location at;
                bool live, zombie;
                uint32_t pins;
        } copies[N];
        struct space *spaces[6];

        host_open(&x, 32 << 20, 2 << 20);
        struct tenant *other = new_tenant(&x, 8);
        x.t->hard_bytes = 12 << 20;
        for (uint32_t i = 0; i < 6; i++) {
                char name[8];
                snprintf(name, sizeof(name), "s%u", i);
                spaces[i] = new_space(&x, i % 2 ? other : x.t, name, (uint32_t[]){50, 5000, 70000, 300000, 1 << 20, 3 << 20}[i], 1);
        }
        memset(copies, 0, sizeof(copies));
        for (int step = 0; step < 6000; step++) {
                uint32_t i = stage_random(N);
                if (!copies[i].s) {
                        copies[i].s = spaces[stage_random(6)];
                        int r = t->ops->reserve(t, copies[i].s, stage_bytes(copies[i].s), &copies[i].at);
                        if (r != 0) {
                                CHECK(r == KVT_E_QUOTA || r == KVT_E_AGAIN);
                                struct slab *e = list_first(&copies[i].s->tenant->empty, struct slab, link);
                                copies[i].s = NULL;
                                if (e)
                                        host_retire(&host, e);
                        }
                } else if (!copies[i].live && stage_random(3)) {
                        t->ops->publish(t, copies[i].s, copies[i].at, i + 1);
                        copies[i].live = true;
                } else if (!copies[i].live) {
                        t->ops->abandon(t, copies[i].s, copies[i].at);
                        copies[i].s = NULL;
                } else if (!copies[i].zombie && stage_random(3)) {
                        host_pin(&host, copies[i].at);
                        copies[i].pins++;
                } else if (copies[i].pins && stage_random(2)) {
                        CHECK_EQ(host_unpin(&host, copies[i].at), copies[i].zombie ? POOL_NONE : i + 1);
                        if (!--copies[i].pins && copies[i].zombie)
                                memset(&copies[i], 0, sizeof(copies[i]));
                } else if (!copies[i].zombie) {
                        t->ops->release(t, copies[i].s, copies[i].at);
                        if (copies[i].pins)
                                copies[i].zombie = true;
                        else
                                memset(&copies[i], 0, sizeof(copies[i]));
                }
                if (step % 7 == 0)
                        work();
                check_sums(&x);
        }
        for (uint32_t i = 0; i < N; i++) {
                if (copies[i].live && !copies[i].zombie)
                        t->ops->release(t, copies[i].s, copies[i].at);
                else if (copies[i].s && !copies[i].live)
                        t->ops->abandon(t, copies[i].s, copies[i].at);
                for (; copies[i].pins; copies[i].pins--)
                        host_unpin(&host, copies[i].at);
        }
        CHECK_EQ(t->used_bytes, 0);
        CHECK_EQ(t->payload_bytes, 0);
        for (uint32_t i = 0; i < 6; i++)
                CHECK_EQ(spaces[i]->used_bytes, 0);
        check_sums(&x);
        host_close(&x);
}

int main(void)
{
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_slot_sizes_waste_little),
                cmocka_unit_test(test_slab_slots_against_a_model),
                cmocka_unit_test(test_host_reserves_up_to_the_quota_and_the_capacity),
                cmocka_unit_test(test_host_copies_pins_and_zombies),
                cmocka_unit_test(test_host_retires_slabs_that_are_mapped),
                cmocka_unit_test(test_host_keeps_a_reserve_that_gives_way),
                cmocka_unit_test(test_host_accounts_hold),
        };

        return cmocka_run_group_tests(tests, stage_setup, NULL);
}
