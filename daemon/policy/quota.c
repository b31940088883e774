#include "daemon/policy/quota.h"

uint64_t quota_soft(const struct tenants *all, const struct tenant *t)
{
        uint32_t n = 0;

        if (t->soft_bytes)
                return t->soft_bytes;
        list_for_each(i, &all->all, struct tenant, link) n += i == t || i->held_bytes > 0 || i->n_sessions > 0;
        return all->host_bytes / MAX(n, 1u);
}

struct tenant *quota_victim(const struct tenants *all, struct tenant *needy)
{
        struct tenant *furthest = NULL, *largest = NULL;
        uint64_t over = 0;

        if (needy && needy->lru_cold && needy->held_bytes > quota_soft(all, needy))
                return needy;
        list_for_each(t, &all->all, struct tenant, link)
        {
                uint64_t soft = quota_soft(all, t), left = t->held_bytes - t->retired_bytes;
                if (!t->lru_cold && (!needy || t == needy))
                        continue;
                if (left > soft && left - soft > over) {
                        over = left - soft;
                        furthest = t;
                }
                if (t->lru_cold && !t->retired_bytes && (!largest || t->held_bytes > largest->held_bytes))
                        largest = t;
        }
        if (furthest)
                return furthest;
        return needy && needy->lru_cold ? needy : largest;
}
