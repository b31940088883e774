/* Makes room: evicts the coldest leaves of the tenant that has to give, or empties a whole slab when memory must change its slot size or owner. */
#pragma once

#include "daemon/engine/engine.h"

/* Room for a part of the space in the host tier, reclaiming if need be. 0; KVT_E_QUOTA; KVT_E_AGAIN_LEASED: only leases stand in
 * the way; KVT_E_AGAIN: memory is on its way back from clients that still map it; KVT_E_NO_MEMORY. Never waits. Blocks that are pinned, have
 * children, or are being filled are not touched. */
int reclaim_reserve(struct engine *e, struct space *s, struct location *ret);
/* The same for a tenant's staging. */
int reclaim_charge(struct engine *e, struct tenant *t, uint64_t bytes);
/* Evicts one block of anybody so that its number can be used again. */
bool reclaim_block(struct engine *e, struct tenant *t);
/* Above evict_high_pct, evicts a few blocks. Returns true if more are to go. */
bool reclaim_background(struct engine *e);
