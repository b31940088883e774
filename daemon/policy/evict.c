#include "daemon/policy/evict.h"

enum { AGE_STEPS = 64 }; /* how far a block that enters by age looks for its place */

static void unlink_block(struct blocks *b, struct tenant *t, struct block *k)
{
        if (k->lru_prev != POOL_NONE)
                block_at(b, k->lru_prev)->lru_next = k->lru_next;
        else
                t->lru_cold = k->lru_next;
        if (k->lru_next != POOL_NONE)
                block_at(b, k->lru_next)->lru_prev = k->lru_prev;
        else
                t->lru_hot = k->lru_prev;
        k->lru_prev = k->lru_next = POOL_NONE;
        k->in_lru = false;
}

/* Before `next`; POOL_NONE: at the hot end. */
static void link_block(struct blocks *b, struct tenant *t, uint32_t i, uint32_t next)
{
        struct block *k = block_at(b, i);

        k->lru_next = next;
        k->lru_prev = next != POOL_NONE ? block_at(b, next)->lru_prev : t->lru_hot;
        if (k->lru_prev != POOL_NONE)
                block_at(b, k->lru_prev)->lru_next = i;
        else
                t->lru_cold = i;
        if (next != POOL_NONE)
                block_at(b, next)->lru_prev = i;
        else
                t->lru_hot = i;
        k->in_lru = true;
}

void evict_update(struct blocks *b, struct tenant *t, uint32_t i, bool by_age)
{
        struct block *k = block_at(b, i);
        bool may_go = k->state == BLOCK_RESIDENT && k->first_child == POOL_NONE && !k->n_pins && k->n_parts;
        uint32_t next = POOL_NONE;

        if (may_go == k->in_lru)
                return;
        if (!may_go) {
                unlink_block(b, t, k);
                return;
        }
        if (by_age) {
                next = t->lru_cold;
                for (int n = 0; next != POOL_NONE && block_at(b, next)->used_sec < k->used_sec; n++) {
                        if (n == AGE_STEPS)
                                break;
                        next = block_at(b, next)->lru_next;
                }
        }
        link_block(b, t, i, next);
}

void evict_touch(struct blocks *b, struct tenant *t, uint32_t i, uint32_t now_sec)
{
        struct block *k = block_at(b, i);

        k->used_sec = now_sec;
        if (k->in_lru && t->lru_hot != i) {
                unlink_block(b, t, k);
                link_block(b, t, i, POOL_NONE);
        }
}

void evict_forget(struct blocks *b, struct tenant *t, uint32_t i)
{
        struct block *k = block_at(b, i);

        if (k->in_lru)
                unlink_block(b, t, k);
}
