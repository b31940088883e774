#include "daemon/engine/reclaim.h"
#include "daemon/policy/evict.h"
#include "daemon/policy/quota.h"
#include "libclient/codec/copy.h"

enum {
        MAX_STEPS = 4096, /* evictions for one reservation */
        LOOK_STEPS = 256, /* cold blocks looked at to find a slab that can be emptied */
        BACKGROUND_STEPS = 64,
};

static struct slab *slab_of_block(struct engine *e, uint32_t i)
{
        struct block *k = block_at(&e->blocks, i);

        struct space *s = space_at(&e->tenants, k->space);

        return host_slab(&e->host, block_part(k, s, block_next_part(k, s, 0))->at.slab);
}

/* Nothing in it is leased, reserved or still held by a lease: then killing its blocks empties it. */
static bool can_empty(const struct slab *s)
{
        return !s->n_held;
}

static void empty_out(struct engine *e, struct slab *s)
{
        for (uint32_t i = 0; i < s->n_bumped && s->n_used; i++)
                if (s->slots[i].state == SLOT_LIVE && !engine_uncache(e, s->slots[i].block))
                        engine_kill(e, s->slots[i].block, KVT_WHY_RECLAIMED);
}

static bool is_stored_whole(struct engine *e, const struct slab *s)
{
        for (uint32_t i = 0; i < s->n_bumped; i++)
                if (s->slots[i].state == SLOT_LIVE && !block_at(&e->blocks, s->slots[i].block)->stored)
                        return false;
        return true;
}

/* The tenant's coldest slab that can be emptied, by its coldest blocks; NULL: none. */
static struct slab *coldest_slab(struct engine *e, struct tenant *t)
{
        struct slab *last = NULL;
        uint32_t i = evict_coldest(t);

        for (int n = 0; i != POOL_NONE && n < LOOK_STEPS; n++, i = block_at(&e->blocks, i)->lru_next) {
                struct slab *s = slab_of_block(e, i);
                if (s != last && can_empty(s))
                        return s;
                last = s;
        }
        /* chains longer than memory have few leaves: a slab of blocks that are all on NVMe as well */
        list_for_each (c, &t->classes, struct slab_class, link)
                for (int full = 0; full < 2; full++)
                        list_for_each (s, full ? &c->full : &c->partial, struct slab, link)
                                if (can_empty(s) && is_stored_whole(e, s))
                                        return s;
        return NULL;
}

/* Leases stand in the way of every slab of t: takes one out of use, so that it comes free when they end. Otherwise a tenant that renews leases
 * on something everywhere could keep what is beyond its share. */
static void condemn_slab(struct engine *e, struct tenant *t)
{
        struct slab *most = NULL;

        if (t->condemned) { /* what was on its way into it then has arrived meanwhile */
                empty_out(e, t->condemned);
                return;
        }
        list_for_each (c, &t->classes, struct slab_class, link)
                for (int full = 0; full < 2; full++)
                        list_for_each (s, full ? &c->full : &c->partial, struct slab, link)
                                if (!most || s->bytes > most->bytes)
                                        most = s;
        if (most) {
                host_condemn(&e->host, most);
                empty_out(e, most);
        }
}

static bool give_empty_slab(struct engine *e, struct tenant *t)
{
        struct slab *s = list_first(&t->empty, struct slab, link);

        if (!s)
                return false;
        host_retire(&e->host, s);
        return true;
}

/* Takes one slab from t, for itself or for another. Returns 0 if memory came free, else why not. */
static int take_slab(struct engine *e, struct tenant *t, bool for_another)
{
        uint64_t held = e->host.tier.held_bytes;
        struct slab *s;

        if (!give_empty_slab(e, t)) {
                s = coldest_slab(e, t);
                if (!s) {
                        if (for_another)
                                condemn_slab(e, t);
                        return t->n_leases ? KVT_E_AGAIN_LEASED : KVT_E_AGAIN;
                }
                empty_out(e, s);
                if (s->n_used)
                        return KVT_E_AGAIN_LEASED;
                if (!s->retired)
                        host_retire(&e->host, s);
        }
        return e->host.tier.held_bytes < held ? 0 : KVT_E_AGAIN; /* not less: clients still map it */
}

/* Chains longer than memory have one leaf only, which may be in use: frees a copy of a block further up that is on NVMe as well. Slabs and slots
 * take turns. */
static bool uncache_one(struct engine *e, struct tenant *t, uint64_t slot_bytes)
{
        uint32_t steps = LOOK_STEPS;

        if (!t->n_records)
                return false;
        list_for_each (c, &t->classes, struct slab_class, link) {
                if (c->slot_bytes != slot_bytes)
                        continue;
                list_for_each_safe (s, &c->full, struct slab, link)
                        for (uint32_t n = 0; n < s->n_bumped && steps; n++, steps--) {
                                s->i_uncache = (s->i_uncache + 1) % s->n_bumped;
                                struct slot *k = &s->slots[s->i_uncache];
                                if (k->state == SLOT_LIVE && !k->n_pins && engine_uncache(e, k->block))
                                        return true;
                        }
        }
        return false;
}

/* Frees something in t for slots of this size. */
static int reclaim_within(struct engine *e, struct tenant *t, uint64_t slot_bytes, int refused)
{
        uint32_t i = evict_coldest(t);
        struct slab *s;

        if (!list_empty(&t->empty)) /* of a size or a past that does not fit */
                return take_slab(e, t, false);
        if (i == POOL_NONE && uncache_one(e, t, slot_bytes))
                return 0;
        if (i == POOL_NONE && e->nvme.n_devices && (e->n_demoting || e->demotes.n) && t->n_xfers)
                return KVT_E_AGAIN; /* what is being written can be freed when it is */
        if (i == POOL_NONE)
                return t->retired_bytes ? KVT_E_AGAIN : t->n_leases ? KVT_E_AGAIN_LEASED : refused;
        if (slab_of_block(e, i)->slot_bytes == slot_bytes) {
                engine_kill(e, i, KVT_WHY_EVICTED);
                return 0;
        }
        s = t->retired_bytes ? NULL : coldest_slab(e, t); /* one at a time: or asking again and again would empty them all */
        if (!s) {
                /* slabs with leases in them: evict what is of the right size, wherever it stands in the order */
                for (int n = 0; i != POOL_NONE && n < LOOK_STEPS; n++, i = block_at(&e->blocks, i)->lru_next)
                        if (slab_of_block(e, i)->slot_bytes == slot_bytes) {
                                engine_kill(e, i, KVT_WHY_EVICTED);
                                return 0;
                        }
                return t->retired_bytes ? KVT_E_AGAIN : KVT_E_AGAIN_LEASED;
        }
        empty_out(e, s);
        return s->n_used ? KVT_E_AGAIN_LEASED : 0;
}

/* After the tier refused with r: makes room, or says why there is none. */
static int make_room(struct engine *e, struct tenant *t, uint64_t slot_bytes, int r)
{
        struct tenant *victim;

        if (r == KVT_E_QUOTA)
                return reclaim_within(e, t, slot_bytes, r);
        victim = quota_victim(&e->tenants, t);
        if (!victim)
                return t->n_leases ? KVT_E_AGAIN_LEASED : r;
        if (victim == t)
                return reclaim_within(e, t, slot_bytes, r);
        /* what was taken before may still be mapped: taking more would not bring it back sooner */
        int other = victim->retired_bytes >= slot_bytes ? KVT_E_AGAIN : take_slab(e, victim, true);
        /* another tenant's leases must not starve this one while it has something of its own to give */
        return other != 0 && t->lru_cold != POOL_NONE ? reclaim_within(e, t, slot_bytes, r) : other;
}

int reclaim_reserve(struct engine *e, struct space *s, uint64_t bytes, struct location *ret)
{
        uint64_t slot_bytes = slab_class_bytes(bytes);
        int r = KVT_E_AGAIN;

        for (int n = 0; n < MAX_STEPS; n++) {
                r = e->host.tier.ops->reserve(&e->host.tier, s, bytes, ret);
                if (r == 0)
                        return 0;
                if (r == KVT_E_NO_MEMORY && n) /* the system has none: emptying the cache for it will not do */
                        return r;
                int made = r == KVT_E_NO_MEMORY ? reclaim_within(e, s->tenant, slot_bytes, r) : make_room(e, s->tenant, slot_bytes, r);
                if (made != 0)
                        return made;
        }
        return r;
}

int reclaim_reserve_raw(struct engine *e, struct space *s, struct location *ret)
{
        return reclaim_reserve(e, s, copy_bytes(&s->geometry, true, s->geometry.part_bytes), ret);
}

int reclaim_charge(struct engine *e, struct tenant *t, uint64_t bytes)
{
        for (int n = 0; n < MAX_STEPS; n++) {
                int r = host_charge(&e->host, t, bytes);
                if (r == 0) {
                        host_uncharge(&e->host, t, bytes);
                        return 0;
                }
                struct tenant *victim = r == KVT_E_QUOTA ? t : quota_victim(&e->tenants, t);
                if (!victim)
                        return r;
                if (victim->retired_bytes >= bytes)
                        return KVT_E_AGAIN;
                int made = take_slab(e, victim, victim != t);
                if (made != 0)
                        return made == KVT_E_AGAIN && r == KVT_E_QUOTA && !victim->n_blocks && !victim->retired_bytes ? r : made;
        }
        return KVT_E_AGAIN;
}

bool reclaim_block(struct engine *e)
{
        struct tenant *victim = NULL;

        list_for_each (t, &e->tenants.all, struct tenant, link)
                if (t->lru_cold && (!victim || t->n_blocks > victim->n_blocks))
                        victim = t;
        if (!victim)
                return false;
        engine_kill(e, evict_coldest(victim), KVT_WHY_EVICTED);
        return true;
}

bool reclaim_background(struct engine *e)
{
        const struct params *p = &e->conf->p;

        uint64_t used = e->host.tier.used_bytes, capacity = e->host.tier.capacity_bytes;

        if (used > capacity / 100 * p->evict_high_pct)
                e->above_mark = true;
        for (int n = 0; e->above_mark && n < BACKGROUND_STEPS; n++) {
                struct tenant *t = quota_victim(&e->tenants, NULL);
                if (e->host.tier.used_bytes <= capacity / 100 * p->evict_low_pct || !t) {
                        e->above_mark = false;
                        break;
                }
                engine_kill(e, evict_coldest(t), KVT_WHY_EVICTED);
        }
        return e->above_mark;
}
