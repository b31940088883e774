/* Which block goes first: least recently used among leaves, per tenant.
 *
 * The list of a tenant holds exactly the blocks that may be evicted (block.h, invariant 4), coldest first. Blocks that continue others are
 * therefore gone before those, and a prefix stays usable from its head. A use moves a leaf to the hot end; its ancestors only note the time,
 * and when the last child of one is evicted it enters near the cold end, behind what was used before it. */
#pragma once

#include "daemon/store/block.h"

/* Puts the block on its tenant's list, or takes it off, as its state asks. Hot end, or where its last use says (by_age). */
void evict_update(struct blocks *b, struct tenant *t, uint32_t i, bool by_age);
/* The block was used. */
void evict_touch(struct blocks *b, struct tenant *t, uint32_t i, uint32_t now_sec);
/* Takes it off whatever its state, because it is about to go. */
void evict_forget(struct blocks *b, struct tenant *t, uint32_t i);
/* The next to go, POOL_NONE: nothing may. */
static inline uint32_t evict_coldest(const struct tenant *t)
{
        return t->lru_cold;
}
