#include "daemon/policy/quota.h"

static uint64_t equal_share(const struct tenants *all)
{
        uint32_t n = 0;

        list_for_each (i, &all->all, struct tenant, link)
                n += i->held_bytes > 0 || i->n_sessions > 0;
        return all->host_bytes / MAX(n, 1u);
}

uint64_t quota_soft(const struct tenants *all, const struct tenant *t)
{
        return t->soft_bytes ?: equal_share(all);
}

struct tenant *quota_victim(const struct tenants *all, struct tenant *needy)
{
        struct tenant *furthest = NULL, *largest = NULL;
        uint64_t over = 0, share = equal_share(all);

        if (needy && needy->lru_cold && needy->held_bytes > (needy->soft_bytes ?: share))
                return needy;
        list_for_each (t, &all->all, struct tenant, link) {
                uint64_t soft = t->soft_bytes ?: share;
                if (!t->lru_cold && (!needy || t == needy))
                        continue;
                if (t->held_bytes > soft && t->held_bytes - soft > over) {
                        over = t->held_bytes - soft;
                        furthest = t;
                }
                if (t->lru_cold && (!largest || t->held_bytes > largest->held_bytes))
                        largest = t;
        }
        if (furthest)
                return furthest;
        return needy && needy->lru_cold ? needy : largest;
}
