/* What recovery read, put where it belongs: spaces, and entries of the catalog. */
#include <string.h>

#include "daemon/store/recovery.h"
#include "daemon/util/metrics.h"

struct known_space *recovery_space(struct recovery *r, const uint8_t digest[16])
{
        for (uint32_t i = 0; i < r->n_spaces; i++)
                if (!memcmp(r->spaces[i].digest, digest, 16))
                        return &r->spaces[i];
        return NULL;
}

bool recovery_wants_space(struct recovery *r, const uint8_t digest[16], uint32_t segment)
{
        const struct known_space *k = recovery_space(r, digest);

        return k ? !k->space && !k->refused && k->tried != segment : !r->spaces_full;
}

static struct known_space *new_space(struct recovery *r, const uint8_t digest[16])
{
        if (r->n_spaces == r->max_spaces) {
                uint32_t max = r->max_spaces ? 2 * r->max_spaces : 16;
                struct known_space *grown = max <= SPACES_MAX ? reallocarray(r->spaces, max, sizeof *grown) : NULL;
                if (!grown) {
                        r->spaces_full = true;
                        return NULL;
                }
                r->spaces = grown;
                r->max_spaces = max;
        }
        struct known_space *k = &r->spaces[r->n_spaces++];
        *k = (struct known_space){};
        memcpy(k->digest, digest, 16);
        return k;
}

void recovery_learn_space(struct recovery *r, const uint8_t digest[16], uint32_t segment, const void *payload, size_t n)
{
        struct known_space *k = recovery_space(r, digest) ?: new_space(r, digest);
        struct nvme *v = r->device->nvme;
        struct space_descriptor sd;
        uint8_t real[16];

        if (!k)
                return;
        k->tried = segment;
        if (!n)
                return;
        k->refused = true;
        space_digest(real, payload, n);
        if (memcmp(real, digest, 16) || space_descriptor_decode(payload, n, &sd) != 0)
                return;
        struct tenant *t = tenant_get(v->tenants, v->conf, sd.tenant);
        struct space *s = NULL;
        bool created;
        if (t && space_open(v->tenants, t, sd.name, sd.salt, sd.n_salt, sd.max_rel_l2, &sd.geometry, UINT32_MAX, &s, &created) == 0) {
                if (s->id < 1u << 24 && !memcmp(s->digest, digest, 16)) {
                        k->space = s;
                        s->n_open++;
                } else if (!s->n_open && !s->n_blocks && !s->n_records) {
                        space_forget(v->tenants, s);
                }
        }
        space_descriptor_deinit(&sd);
}

/* entries */

bool recovery_later(const struct nvme *v, struct record_at a, uint64_t generation, uint32_t page)
{
        const struct nvme_device *d = v->devices[a.device];
        uint64_t g = d->segments ? d->segments[a.segment].generation : 0;

        if (!a.n_pages) /* dropped since the daemon was started */
                return true;
        return g != generation ? g > generation : a.page >= page;
}

void recovery_block(struct recovery *r, struct known_space *k, const struct footer_entry *e, uint32_t segment, uint64_t generation)
{
        struct nvme_device *d = r->device;
        struct nvme *n = d->nvme;
        struct space *s = k->space;
        struct record_at at = {d->i, segment, e->page, e->n_pages};

        if (!s || e->n_shards != s->geometry.n_shards || e->shard >= e->n_shards || e->raw_bytes != s->geometry.part_bytes ||
            s->not_recovered || k->purged_generation > generation || (k->purged_generation == generation && k->purged_page > e->page))
                return;
        uint32_t i = catalog_find(&n->catalog, s->id, e->shard, e->key);
        struct entry *old = i != POOL_NONE ? catalog_at(&n->catalog, i) : NULL;
        if (old && (old->flags & (ENTRY_LIVE | ENTRY_DROPPED))) {
                struct record_at where = entry_place(old);
                struct nvme_device *holder = n->devices[where.device];
                bool lost = where.n_pages && holder != d && (holder->state == DEVICE_FAILED || holder->state == DEVICE_DETACHED);
                if (!lost && recovery_later(n, where, generation, e->page))
                        return;
                if (old->flags & ENTRY_LIVE) {
                        d->counters.n_recovered++;
                        metrics.c_nvme_recovered++;
                        nvme_account(n, s, where, -1);
                        entry_move(old, at);
                        nvme_account(n, s, at, 1);
                        return;
                }
        }
        i = catalog_add(&n->catalog, s->id, e->shard, e->key, e->flags & RECORD_HAS_PARENT ? e->parent : NULL, at,
                        e->flags & RECORD_DURABLE ? ENTRY_DURABLE | ENTRY_USED : 0);
        if (i == POOL_NONE)
                return;
        nvme_account(n, s, at, 1);
        s->n_records++;
        s->tenant->n_records++;
        d->counters.n_recovered++;
        metrics.c_nvme_recovered++;
}

void recovery_void_older(struct known_space *k, uint64_t generation, uint32_t page)
{
        if (k->purged_generation < generation || (k->purged_generation == generation && k->purged_page < page)) {
                k->purged_generation = generation;
                k->purged_page = page;
        }
}

void recovery_drops(struct recovery *r, struct known_space *k, const struct drop_entry *drops, size_t n_drops, uint32_t segment,
                    uint64_t generation, uint32_t page)
{
        struct nvme_device *d = r->device;
        struct nvme *n = d->nvme;
        struct space *s = k->space;

        d->segments[segment].has_drops = true;
        for (size_t i = 0; s && i < n_drops; i++) {
                if (drops[i].what == 1) { /* the whole space; what is older and was seen already goes at the end, see purge_some() */
                        recovery_void_older(k, generation, page);
                        continue;
                }
                for (uint32_t shard = 0; shard < s->geometry.n_shards; shard++) {
                        if (drops[i].what == 2 && drops[i].shard != shard)
                                continue;
                        uint32_t e = catalog_find(&n->catalog, s->id, shard, drops[i].key);
                        if (e != POOL_NONE && (catalog_at(&n->catalog, e)->flags & (ENTRY_LIVE | ENTRY_DROPPED)) &&
                            recovery_later(n, entry_place(catalog_at(&n->catalog, e)), generation, page))
                                continue;
                        if (e != POOL_NONE && entry_live(catalog_at(&n->catalog, e)))
                                nvme_forget(n, e, KVT_WHY_DROPPED);
                        nvme_remember_drop(n, s, shard, drops[i].key, (struct record_at){d->i, segment, page, 1});
                }
        }
}
