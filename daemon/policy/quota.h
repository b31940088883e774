/* Who gives when host memory is short. Pure: numbers in, a decision out. */
#pragma once

#include "daemon/store/tenant.h"

/* What a tenant may hold before others have a claim on it. */
uint64_t quota_soft(const struct tenants *all, const struct tenant *t);
/* The tenant that gives so that needy (NULL: anyone) gets room: needy itself once it is over its soft quota, else the one furthest over its
 * own, else needy itself if it holds blocks, else the one that holds most. NULL: nobody has any. */
struct tenant *quota_victim(const struct tenants *all, struct tenant *needy);
