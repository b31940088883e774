/* Makes room: evicts the coldest leaves of the tenant that has to give, or empties a whole slab when memory must change its slot size or owner. */
#pragma once

#include "daemon/engine/engine.h"

/* Room for a copy of a part of the space, of so many bytes, in the host tier, reclaiming if need be. 0; KVT_E_QUOTA; KVT_E_AGAIN_LEASED: only leases stand in
 * the way; KVT_E_AGAIN: memory is on its way back from clients that still map it; KVT_E_NO_MEMORY. Never waits. A single
 * eviction takes a leaf without lease; emptying a slab takes its blocks with all that continues them: readers keep what they lease. */
int reclaim_reserve(struct engine *e, struct space *s, uint64_t bytes, struct location *ret);
/* For a raw one. */
int reclaim_reserve_raw(struct engine *e, struct space *s, struct location *ret);
/* The same for a tenant's staging. */
int reclaim_charge(struct engine *e, struct tenant *t, uint64_t bytes);
/* Evicts one block of the tenant that has most, so that its number can be used again. */
bool reclaim_block(struct engine *e);
/* Above evict_high_pct, evicts a few blocks. Returns true if more are to go. */
bool reclaim_background(struct engine *e);
