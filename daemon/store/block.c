#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>

#include "daemon/store/block.h"

struct index_slot {
        uint32_t tag; /* upper half of the hash */
        uint32_t block; /* POOL_NONE: free */
};

int blocks_init(struct blocks *b, uint32_t max)
{
        uint64_t n = 16;
        int r;

        while (n < max + max / 5)
                n *= 2;
        *b = (struct blocks){.index_mask = (uint32_t)(n - 1)};
        if (getrandom(b->secret, sizeof b->secret, 0) != sizeof b->secret)
                return -EIO;
        r = pool_init(&b->pool, sizeof(struct block), max);
        if (r < 0)
                return r;
        b->index = mmap(NULL, n * sizeof *b->index, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (b->index == MAP_FAILED) {
                r = -errno;
                b->index = NULL;
                pool_deinit(&b->pool);
                return r;
        }
        return 0;
}

void blocks_deinit(struct blocks *b)
{
        if (b->index)
                munmap(b->index, ((size_t)b->index_mask + 1) * sizeof *b->index);
        pool_deinit(&b->pool);
}

uint64_t blocks_hash(const struct blocks *b, uint32_t space, const uint8_t key[16])
{
        uint64_t lo, hi;

        memcpy(&lo, key, 8);
        memcpy(&hi, key + 8, 8);
        __uint128_t m = (__uint128_t)(lo ^ b->secret[0]) * (hi ^ b->secret[1] ^ (uint64_t)space << 32);
        uint64_t h = (uint64_t)m ^ (uint64_t)(m >> 64);
        h ^= h >> 29;
        return h * (b->secret[0] | 1) ^ space;
}

void blocks_prefetch(const struct blocks *b, uint64_t hash)
{
        __builtin_prefetch(&b->index[hash & b->index_mask]);
}

void blocks_prefetch_block(const struct blocks *b, uint64_t hash)
{
        uint32_t i = b->index[hash & b->index_mask].block;

        if (i != POOL_NONE) {
                __builtin_prefetch(block_at(b, i));
                __builtin_prefetch((char *)block_at(b, i) + 64);
        }
}

uint32_t blocks_find_hashed(const struct blocks *b, uint32_t space, const uint8_t key[16], uint64_t hash)
{
        uint32_t tag = (uint32_t)(hash >> 32);

        for (uint32_t at = hash & b->index_mask;; at = (at + 1) & b->index_mask) {
                const struct index_slot *s = &b->index[at];
                if (s->block == POOL_NONE)
                        return POOL_NONE;
                if (s->tag == tag) {
                        const struct block *k = block_at(b, s->block);
                        if (k->space == space && !memcmp(k->key, key, 16))
                                return s->block;
                }
        }
}

uint32_t blocks_find(const struct blocks *b, uint32_t space, const uint8_t key[16])
{
        return blocks_find_hashed(b, space, key, blocks_hash(b, space, key));
}

static void index_insert(struct blocks *b, uint32_t i)
{
        const struct block *k = block_at(b, i);
        uint64_t hash = blocks_hash(b, k->space, k->key);
        uint32_t at = hash & b->index_mask;

        while (b->index[at].block != POOL_NONE)
                at = (at + 1) & b->index_mask;
        b->index[at] = (struct index_slot){(uint32_t)(hash >> 32), i};
}

/* Closes the gap by moving later members of the probe sequence back: no tombstones. */
static void index_remove(struct blocks *b, uint32_t i)
{
        const struct block *k = block_at(b, i);
        uint32_t at = blocks_hash(b, k->space, k->key) & b->index_mask, next, home;

        while (b->index[at].block != i) {
                ASSERT(b->index[at].block != POOL_NONE);
                at = (at + 1) & b->index_mask;
        }
        for (next = (at + 1) & b->index_mask; b->index[next].block != POOL_NONE; next = (next + 1) & b->index_mask) {
                const struct block *m = block_at(b, b->index[next].block);
                home = blocks_hash(b, m->space, m->key) & b->index_mask;
                if (((next - home) & b->index_mask) >= ((next - at) & b->index_mask)) {
                        b->index[at] = b->index[next];
                        at = next;
                }
        }
        b->index[at] = (struct index_slot){};
}

uint32_t block_new(struct blocks *b, struct space *s, const uint8_t key[16], uint32_t parent, uint32_t now_sec)
{
        struct shards *shards = NULL;

        if (s->geometry.n_shards > 1 && !(shards = calloc(1, sizeof *shards + s->geometry.n_shards * sizeof *shards->parts)))
                return POOL_NONE;
        uint32_t i = pool_take(&b->pool);
        if (i == POOL_NONE) {
                free(shards);
                return POOL_NONE;
        }
        struct block *k = block_at(b, i);
        memcpy(k->key, key, 16);
        k->space = s->id;
        k->used_sec = k->created_sec = now_sec;
        k->state = BLOCK_FILLING;
        if (shards) {
                list_init(&shards->link);
                shards->block = i;
                k->shards = shards;
        }
        k->parent = parent;
        if (parent != POOL_NONE) {
                struct block *p = block_at(b, parent);
                ASSERT(p->state == BLOCK_FILLING || p->state == BLOCK_RESIDENT);
                k->next_sibling = p->first_child;
                if (p->first_child != POOL_NONE)
                        block_at(b, p->first_child)->prev_sibling = i;
                p->first_child = i;
        }
        index_insert(b, i);
        s->n_blocks++;
        s->tenant->n_blocks++;
        return i;
}

void block_detach(struct blocks *b, uint32_t i)
{
        struct block *k = block_at(b, i);

        ASSERT(k->state != BLOCK_DYING && k->first_child == POOL_NONE && !k->in_lru);
        index_remove(b, i);
        if (k->prev_sibling != POOL_NONE)
                block_at(b, k->prev_sibling)->next_sibling = k->next_sibling;
        else if (k->parent != POOL_NONE)
                block_at(b, k->parent)->first_child = k->next_sibling;
        if (k->next_sibling != POOL_NONE)
                block_at(b, k->next_sibling)->prev_sibling = k->prev_sibling;
        k->parent = k->next_sibling = k->prev_sibling = POOL_NONE;
        k->state = BLOCK_DYING;
}

void block_free(struct blocks *b, uint32_t i, const struct space *s)
{
        struct block *k = block_at(b, i);

        ASSERT(k->state == BLOCK_DYING && !k->n_fills);
        if (s->geometry.n_shards > 1) {
                list_remove(&k->shards->link);
                free(k->shards);
        }
        pool_give(&b->pool, i);
}

void assert_block_state(const struct blocks *b, uint32_t i, const struct space *s)
{
        const struct block *k = block_at(b, i);

        switch ((enum block_state)k->state) {
        case BLOCK_FILLING:
                ASSERT(k->n_parts < s->geometry.n_shards && !k->in_lru);
                break;
        case BLOCK_RESIDENT:
                ASSERT(k->n_parts == s->geometry.n_shards || (k->stub && k->n_parts < s->geometry.n_shards));
                ASSERT(!k->in_lru || (k->first_child == POOL_NONE && !k->n_pins && k->n_parts));
                break;
        case BLOCK_DYING:
                ASSERT(!k->in_lru && k->first_child == POOL_NONE);
                break;
        case BLOCK_ABSENT:
        case BLOCK_MOVING:
                ASSERT(false);
        }
}
