/* Who gives when host memory is short. Pure: numbers in, a decision out. */
#pragma once

#include "daemon/store/tenant.h"

/* What a tenant may hold before others have a claim on it. */
uint64_t quota_soft(const struct tenants *all, const struct tenant *t);
/* The tenant that gives so that needy (NULL: anyone) gets room: needy itself once it is over its soft quota and has something to evict, else the
 * one furthest over its own (for another also if leases cover all it has: they end), else needy itself if it can, else the one that holds most.
 * What is on its way back from a tenant counts as given: it does not give more than its share holds while others ask again.
 * NULL: nobody has anything to give (yet). */
struct tenant *quota_victim(const struct tenants *all, struct tenant *needy);
