#include <string.h>

#include "daemon/store/tier_host.h"
#include "daemon/util/clock.h"
#include "daemon/util/log.h"
#include "daemon/util/metrics.h"

static const struct tier_ops host_ops;

int host_init(struct host *h, uint64_t capacity, uint64_t slab_bytes, uint64_t prealloc, bool huge_pages, struct queue *q)
{
        *h = (struct host){
                .tier = {.ops = &host_ops, .capacity_bytes = capacity},
                .slab_bytes = slab_bytes,
                .prealloc_bytes = prealloc,
                .huge_pages = huge_pages,
                .queue = q,
                .max_slabs = (uint32_t)MIN(capacity / CHUNK_BYTES, 1ull << 24),
        };
        list_init(&h->spares);
        list_init(&h->retired);
        h->by_id = new0(struct slab *, h->max_slabs + 1);
        return h->by_id ? 0 : -ENOMEM;
}

void host_deinit(struct host *h)
{
        for (uint32_t i = 1; h->by_id && i <= h->max_slabs; i++)
                if (h->by_id[i]) {
                        h->by_id[i]->n_holders = h->by_id[i]->n_jobs = 0;
                        slab_free(h->by_id[i]);
                }
        free(h->by_id);
        h->by_id = NULL;
}

static void submit_populate(struct host *h, struct slab *s)
{
        s->n_jobs++;
        queue_submit(h->queue, &s->job);
}

static int create(struct host *h, uint64_t bytes, struct slab **ret)
{
        uint32_t id = 0;

        if (h->tier.held_bytes + bytes > h->tier.capacity_bytes)
                return KVT_E_AGAIN;
        for (uint32_t i = 0; i < h->max_slabs && !id; i++) {
                h->i_id = h->i_id % h->max_slabs + 1;
                if (!h->by_id[h->i_id])
                        id = h->i_id;
        }
        if (!id)
                return KVT_E_AGAIN;
        int r = slab_new(ret, id, bytes, h->huge_pages);
        if (r < 0) {
                errno = -r;
                log_limited(LOG_WARNING, "No memory for a slab of %llu MiB: %s", (unsigned long long)bytes >> 20, strerror(-r));
                return KVT_E_NO_MEMORY;
        }
        h->by_id[id] = *ret;
        h->tier.held_bytes += bytes;
        h->tier.slab_bytes += bytes;
        h->tier.n_slabs++;
        metrics.c_slabs_created++;
        submit_populate(h, *ret);
        return 0;
}

static void destroy(struct host *h, struct slab *s)
{
        ASSERT(!s->n_jobs && !s->n_holders && !s->n_used);
        if (s->tenant) {
                s->tenant->held_bytes -= s->bytes;
                s->tenant->retired_bytes -= s->retired ? s->bytes : 0;
        }
        h->tier.held_bytes -= s->bytes;
        h->tier.slab_bytes -= s->bytes;
        h->tier.n_slabs--;
        h->tier.n_retired -= s->retired;
        h->by_id[s->id] = NULL;
        h->starved = false;
        metrics.c_slabs_freed++;
        list_remove(&s->link);
        s->job.work = slab_release_work;
        s->job.background = false;
        queue_submit(h->queue, &s->job);
}

static void drop_spare(struct host *h, struct slab *s)
{
        list_remove(&s->link);
        h->spare_bytes -= s->bytes;
        s->retired = true; /* if it is being populated, it goes when that comes back */
        h->tier.n_retired++;
        list_append(&h->retired, &s->link);
        if (!s->n_jobs)
                destroy(h, s);
}

/* Frees spares until bytes fit under the capacity. */
static bool make_room_of_spares(struct host *h, uint64_t bytes)
{
        list_for_each_safe (s, &h->spares, struct slab, link) {
                if (h->tier.held_bytes + bytes <= h->tier.capacity_bytes)
                        break;
                drop_spare(h, s);
        }
        return h->tier.held_bytes + bytes <= h->tier.capacity_bytes;
}

void host_refill(struct host *h)
{
        struct slab *s;

        while (!h->starved && h->spare_bytes + h->slab_bytes <= h->prealloc_bytes &&
               h->tier.held_bytes + h->slab_bytes <= h->tier.capacity_bytes) {
                if (create(h, h->slab_bytes, &s) != 0) {
                        h->starved = true;
                        break;
                }
                list_append(&h->spares, &s->link);
                h->spare_bytes += s->bytes;
        }
        queue_kick(h->queue);
}

void host_job_done(struct host *h, struct slab *s)
{
        if (s->job.work == slab_release_work) {
                slab_free(s);
                return;
        }
        s->n_jobs--;
        if (s->retired) {
                if (h->on_populated) /* whoever waits for it is to look again, and will not find it */
                        h->on_populated(s, h->arg);
                if (!s->n_jobs && !s->n_holders)
                        destroy(h, s);
                return;
        }
        if (s->populate_result > 0) {
                submit_populate(h, s);
                return;
        }
        h->kind = (enum page_kind)__atomic_load_n((int *)&s->kind, __ATOMIC_RELAXED);
        if (s->populate_result < 0) {
                log_limited(LOG_WARNING, "A slab of %llu MiB cannot be allocated: %s", (unsigned long long)s->bytes >> 20,
                            strerror(-s->populate_result));
                s->failed = true;
                if (s->tenant && s->n_used) /* takes nothing new; MAP drops what is in it */
                        list_remove(&s->link);
                if (!s->tenant) {
                        drop_spare(h, s);
                        h->starved = true; /* until something is freed: or this would go round and round */
                        return;
                }
        } else {
                s->populated = true;
        }
        if (h->on_populated)
                h->on_populated(s, h->arg);
}

static struct slab_class *class_get(struct tenant *t, uint64_t slot_bytes)
{
        list_for_each (c, &t->classes, struct slab_class, link)
                if (c->slot_bytes == slot_bytes)
                        return c;
        struct slab_class *c = new0(struct slab_class, 1);
        if (!c)
                return NULL;
        c->slot_bytes = slot_bytes;
        list_init(&c->partial);
        list_init(&c->full);
        list_append(&t->classes, &c->link);
        return c;
}

static void join_class(struct slab *s, struct slab_class *c)
{
        s->class = c;
        list_remove(&s->link);
        list_append(&c->partial, &s->link);
}

/* An empty slab of the tenant that may be cut to this slot size. */
static struct slab *empty_slab(struct tenant *t, uint64_t slot_bytes)
{
        list_for_each (s, &t->empty, struct slab, link)
                if (!s->failed && s->bytes >= slot_bytes && (s->slot_bytes == slot_bytes || !s->n_holders))
                        return s;
        return NULL;
}

/* A spare or a new slab for the tenant. */
static int fresh_slab(struct host *h, struct tenant *t, uint64_t slot_bytes, struct slab **ret)
{
        uint64_t bytes = slot_bytes <= h->slab_bytes ? h->slab_bytes : align_up(slot_bytes, CHUNK_BYTES);
        struct slab *s = NULL;
        int r;

        /* a small quota gets small slabs */
        while (bytes / 2 >= slot_bytes && bytes / 2 >= CHUNK_BYTES && bytes > t->hard_bytes / 8)
                bytes = align_up(bytes / 2, CHUNK_BYTES);
        if (bytes > tenant_room(t))
                return KVT_E_QUOTA;
        list_for_each (i, &h->spares, struct slab, link)
                if (i->bytes == bytes && (!s || (i->populated && !s->populated)))
                        s = i;
        if (s) {
                list_remove(&s->link);
                h->spare_bytes -= s->bytes;
        } else {
                if (!make_room_of_spares(h, bytes))
                        return KVT_E_AGAIN;
                r = create(h, bytes, &s);
                if (r != 0)
                        return r;
        }
        s->tenant = t;
        t->held_bytes += s->bytes;
        list_append(&t->empty, &s->link);
        host_refill(h);
        *ret = s;
        return 0;
}

static int host_reserve(struct tier *tier, struct space *space, uint64_t bytes, struct location *ret)
{
        struct host *h = container_of(tier, struct host, tier);
        struct tenant *t = space->tenant;
        struct slab_class *c = class_get(t, slab_class_bytes(bytes));
        struct slab *s;
        int r;

        if (!c)
                return KVT_E_NO_MEMORY;
        s = list_first(&c->partial, struct slab, link);
        if (!s) {
                s = empty_slab(t, c->slot_bytes);
                if (!s) {
                        r = fresh_slab(h, t, c->slot_bytes, &s);
                        if (r != 0)
                                return r;
                }
                if (slab_format(s, c->slot_bytes) < 0)
                        return KVT_E_NO_MEMORY;
                join_class(s, c);
        }
        *ret = (struct location){s->id, slab_take_slot(s)};
        if (slab_full(s)) {
                list_remove(&s->link);
                list_append(&c->full, &s->link);
        }
        t->used_bytes += s->slot_bytes;
        tier->used_bytes += s->slot_bytes;
        return 0;
}

static void free_slot(struct host *h, struct location at)
{
        struct slab *s = host_slab(h, at.slab);
        bool was_full = slab_full(s);

        slab_give_slot(s, at.slot);
        s->tenant->used_bytes -= s->slot_bytes;
        h->tier.used_bytes -= s->slot_bytes;
        if (s->retired)
                return;
        if (!s->n_used) {
                list_remove(&s->link);
                list_append(&s->tenant->empty, &s->link);
                if (s->condemned) {
                        s->condemned = false;
                        s->tenant->condemned = NULL;
                }
        } else if (was_full && !s->condemned && !s->failed) {
                list_remove(&s->link);
                list_append(&s->class->partial, &s->link);
        }
}

static void host_abandon(struct tier *tier, struct space *space, struct location at)
{
        struct host *h = container_of(tier, struct host, tier);

        ASSERT(host_slot(h, at)->state == SLOT_RESERVED);
        free_slot(h, at);
}

static void host_publish(struct tier *tier, struct space *space, struct location at, uint32_t block)
{
        struct host *h = container_of(tier, struct host, tier);
        struct slab *s = host_slab(h, at.slab);
        struct slot *k = &s->slots[at.slot];

        ASSERT(k->state == SLOT_RESERVED);
        k->state = SLOT_LIVE;
        s->n_held--;
        k->block = block;
        k->generation = ++h->generation;
        /* release: whoever sees this generation sees the payload and header that a worker wrote and the queue's lock brought here */
        __atomic_store_n(&slab_header(s, at.slot)->generation, k->generation, __ATOMIC_RELEASE);
        tier->payload_bytes += space->geometry.part_bytes;
        tier->n_parts++;
        space->tenant->n_parts++;
        space->tenant->payload_bytes += space->geometry.part_bytes;
        space->used_bytes += s->slot_bytes;
        space->n_copies++;
}

static void host_release(struct tier *tier, struct space *space, struct location at)
{
        struct host *h = container_of(tier, struct host, tier);
        struct slot *k = host_slot(h, at);

        ASSERT(k->state == SLOT_LIVE);
        tier->payload_bytes -= space->geometry.part_bytes;
        tier->n_parts--;
        space->tenant->n_parts--;
        space->tenant->payload_bytes -= space->geometry.part_bytes;
        space->used_bytes -= host_slab(h, at.slab)->slot_bytes;
        space->n_copies--;
        if (k->n_pins) {
                k->state = SLOT_ZOMBIE;
                k->block = POOL_NONE;
        } else {
                free_slot(h, at);
        }
}

static const struct tier_ops host_ops = {
        .name = "host",
        .reserve = host_reserve,
        .abandon = host_abandon,
        .publish = host_publish,
        .release = host_release,
};

void host_pin(struct host *h, struct location at)
{
        struct slot *k = host_slot(h, at);

        ASSERT(k->state == SLOT_LIVE);
        host_slab(h, at.slab)->n_held += !k->n_pins++;
}

uint32_t host_unpin(struct host *h, struct location at)
{
        struct slot *k = host_slot(h, at);

        ASSERT(k->n_pins > 0);
        k->n_pins--;
        if (k->state == SLOT_LIVE) {
                host_slab(h, at.slab)->n_held -= !k->n_pins;
                return k->block;
        }
        if (!k->n_pins && k->state == SLOT_ZOMBIE)
                free_slot(h, at);
        return POOL_NONE;
}

int host_charge(struct host *h, struct tenant *t, uint64_t bytes)
{
        if (bytes > tenant_room(t))
                return KVT_E_QUOTA;
        if (!make_room_of_spares(h, bytes))
                return KVT_E_AGAIN;
        t->held_bytes += bytes;
        t->staging_bytes += bytes;
        h->tier.held_bytes += bytes;
        return 0;
}

void host_uncharge(struct host *h, struct tenant *t, uint64_t bytes)
{
        ASSERT(t->held_bytes >= bytes && h->tier.held_bytes >= bytes);
        t->held_bytes -= bytes;
        t->staging_bytes -= bytes;
        h->tier.held_bytes -= bytes;
        h->starved = false;
}

void host_retire(struct host *h, struct slab *s)
{
        ASSERT(!s->n_used && s->tenant && !s->retired);
        s->retired = true;
        s->tenant->retired_bytes += s->bytes;
        h->tier.n_retired++;
        list_remove(&s->link);
        list_append(&h->retired, &s->link);
        if (s->n_holders) {
                metrics.c_slabs_retired++;
                if (h->on_retired)
                        h->on_retired(s, h->arg);
        } else if (!s->n_jobs) {
                destroy(h, s);
        }
}

void host_condemn(struct host *h, struct slab *s)
{
        ASSERT(s->n_used && !s->tenant->condemned);
        s->condemned = true;
        s->tenant->condemned = s;
        list_remove(&s->link);
}

void host_drop_holder(struct host *h, struct slab *s)
{
        ASSERT(s->n_holders > 0);
        s->n_holders--;
        if (s->retired && !s->n_holders && !s->n_jobs)
                destroy(h, s);
}
