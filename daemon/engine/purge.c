/* Everything of a space or a tenant goes, in memory and on devices, bit by bit. */
#include "daemon/engine/engine.h"

/* Records of the space or tenant, looking at n_steps entries of the catalog. True: that was all. */
static bool purge_records(struct engine *e, struct tenant *t, struct space *s, uint32_t *cursor, uint32_t n_steps)
{
        struct catalog *c = &e->nvme.catalog;

        for (uint32_t n = 0; n < n_steps && *cursor < c->pool.n_touched && (s ? s->n_records : t->n_records); n++) {
                struct entry *x = catalog_at(c, ++*cursor);
                if (!entry_live(x))
                        continue;
                struct space *of = space_at(&e->tenants, entry_space(x));
                if (of->tenant != t || (s && of != s))
                        continue;
                if (!of->purging) { /* until its end is written down */
                        of->purging = true;
                        of->n_open++;
                }
                nvme_forget(&e->nvme, *cursor, KVT_WHY_PURGED);
        }
        return *cursor >= c->pool.n_touched || !(s ? s->n_records : t->n_records);
}

bool engine_purge(struct engine *e, struct tenant *t, struct space *s, uint32_t cursors[2], uint32_t n_steps)
{
        struct pool *p = &e->blocks.pool;
        uint32_t n = 0;

        for (; n < n_steps && cursors[0] < p->n_touched && (s ? s->n_blocks : t->n_blocks); n++) {
                struct block *k = block_at(&e->blocks, ++cursors[0]);
                if (k->state != BLOCK_FILLING && k->state != BLOCK_RESIDENT)
                        continue;
                struct space *of = space_at(&e->tenants, k->space);
                if (of->tenant == t && (!s || of == s)) {
                        of->n_open++; /* keep it until the loop has looked at it again */
                        engine_kill(e, cursors[0], KVT_WHY_PURGED);
                        of->n_open--;
                        if (of != s)
                                engine_settle_space(e, of);
                }
        }
        if ((cursors[0] < p->n_touched && (s ? s->n_blocks : t->n_blocks)) ||
            !purge_records(e, t, s, &cursors[1], n_steps - MIN(n, n_steps - 1)))
                return false;
        list_for_each_safe (of, &e->tenants.spaces, struct space, link)
                if (of->tenant != t || (s && of != s))
                        continue;
                else if (!of->purging && (nvme_away(&e->nvme) || nvme_recycling(&e->nvme))) {
                        nvme_drop_space(&e->nvme, of);
                } else if (of->purging) {
                        nvme_drop_space(&e->nvme, of);
                        of->purging = false;
                        of->n_open--;
                        if (of != s)
                                engine_settle_space(e, of);
                }
        list_for_each_safe (i, &t->empty, struct slab, link)
                host_retire(&e->host, i);
        return true;
}
