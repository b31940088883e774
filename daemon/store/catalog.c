#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>

#include "daemon/store/catalog.h"

enum {
        MIN_BUCKETS = 16,
        PER_BUCKET = 2, /* entries a bucket, on the average, at most: 46 bytes an entry with its share of the buckets */
        KNOWN_MIN = 8, /* shorter walks are not worth it */
        KNOWN_APART = 256, /* of a long chain every so many are remembered as reachable */
        MAX_WALK = 1 << 18, /* steps of a search for a cycle: four million tokens in blocks of 16 */
};

/* Places */

static uint64_t pack_place(struct record_at at)
{
        ASSERT(at.device < 1u << 4 && at.segment < 1u << 24 && at.page < 1u << 18 && at.n_pages < 1u << 18);
        return (uint64_t)at.n_pages | (uint64_t)at.page << 18 | (uint64_t)at.segment << 36 | (uint64_t)at.device << 60;
}

static void set_place(struct entry *e, struct record_at at)
{
        uint64_t packed = pack_place(at);

        e->at_lo = (uint32_t)packed;
        e->at_hi = (uint32_t)(packed >> 32);
}

struct record_at entry_place(const struct entry *e)
{
        uint64_t packed = (uint64_t)e->at_hi << 32 | e->at_lo;

        return (struct record_at){
                .n_pages = packed & ((1u << 18) - 1),
                .page = packed >> 18 & ((1u << 18) - 1),
                .segment = packed >> 36 & ((1u << 24) - 1),
                .device = (uint32_t)(packed >> 60),
        };
}

void entry_move(struct entry *e, struct record_at at)
{
        ASSERT(entry_live(e) && at.n_pages);
        set_place(e, at);
}

/* The table: bucket_of() uses as many bits of the hash as buckets need, and one less for buckets that are not there yet. */

static uint32_t n_buckets_max(const struct catalog *c)
{
        return MAX(c->pool.max / PER_BUCKET, (uint32_t)MIN_BUCKETS);
}

/* As blocks_hash(); what space and shard are goes through a second product, so that no change of the key undoes it. */
static uint32_t hash_of(const struct catalog *c, uint32_t space_shard, const uint8_t key[16])
{
        uint64_t lo, hi;

        memcpy(&lo, key, 8);
        memcpy(&hi, key + 8, 8);
        __uint128_t m = (__uint128_t)(lo ^ c->secret[0]) * (hi ^ c->secret[1]);
        uint64_t h = (uint64_t)m ^ (uint64_t)(m >> 64) ^ space_shard;
        m = (__uint128_t)h * (c->secret[0] | 1);
        h = (uint64_t)m ^ (uint64_t)(m >> 64);
        return (uint32_t)(h ^ h >> 32);
}

static uint32_t bucket_of(const struct catalog *c, uint32_t hash)
{
        uint32_t mask = UINT32_MAX >> __builtin_clz(c->n_buckets - 1), bucket = hash & mask;

        return bucket < c->n_buckets ? bucket : bucket & mask >> 1;
}

/* One more bucket: it takes its part of the one bucket whose entries it has, when looked at with one bit more. */
static void split_bucket(struct catalog *c)
{
        uint32_t new = c->n_buckets, old = new ^ 1u << (31 - __builtin_clz(new)), next;
        uint32_t *end_old = &c->buckets[old], *end_new = &c->buckets[new];

        c->n_buckets++;
        for (uint32_t i = *end_old; i != POOL_NONE; i = next) {
                struct entry *e = catalog_at(c, i);
                next = e->next;
                uint32_t **end = bucket_of(c, hash_of(c, e->space_shard, e->key)) == new ? &end_new : &end_old;
                **end = i;
                *end = &e->next;
        }
        *end_old = *end_new = POOL_NONE;
}

static uint32_t find_entry(const struct catalog *c, uint32_t space_shard, const uint8_t key[16])
{
        uint32_t i = c->buckets[bucket_of(c, hash_of(c, space_shard, key))];

        while (i != POOL_NONE) {
                const struct entry *e = catalog_at(c, i);
                if (e->space_shard == space_shard && !memcmp(e->key, key, 16))
                        break;
                i = e->next;
        }
        return i;
}

/* A DEAD entry without children, which the caller makes something of. There is room. */
static uint32_t new_entry(struct catalog *c, uint32_t space_shard, const uint8_t key[16])
{
        uint32_t i = pool_take(&c->pool);

        ASSERT(i != POOL_NONE);
        if (c->pool.n_used > (uint64_t)c->n_buckets * PER_BUCKET && c->n_buckets < n_buckets_max(c))
                split_bucket(c);
        struct entry *e = catalog_at(c, i);
        memcpy(e->key, key, 16);
        e->space_shard = space_shard;
        uint32_t *head = &c->buckets[bucket_of(c, hash_of(c, space_shard, key))];
        e->next = *head;
        *head = i;
        return i;
}

/* Gives a DEAD entry back that nothing needs any more. Those that are free have neither flags nor children: that is how passes over all
 * know them. Buckets stay: a table that was large once only has shorter chains. */
static void free_if_unneeded(struct catalog *c, uint32_t i)
{
        struct entry *e = catalog_at(c, i);

        if (e->flags || e->n_children)
                return;
        uint32_t *link = &c->buckets[bucket_of(c, hash_of(c, e->space_shard, e->key))];
        while (*link != i) {
                ASSERT(*link != POOL_NONE);
                link = &catalog_at(c, *link)->next;
        }
        *link = e->next;
        pool_give(&c->pool, i);
}

/* Whether making `parent` the parent of i would close a circle. Only an entry that has children can be above its own parent: a DEAD one that comes
 * to life; new entries cost nothing. The walk ends at the first of the prompt or at a DEAD entry, above which nothing is known (when that one comes
 * to life it is searched in its turn). O(depth of the parent), and a chain that is deeper than MAX_WALK counts as a circle: whoever makes long
 * chains and breaks them must not stall the loop. */
static bool closes_circle(const struct catalog *c, uint32_t i, uint32_t parent)
{
        if (!catalog_at(c, i)->n_children)
                return false;
        for (int steps = 0; parent != POOL_NONE; parent = catalog_at(c, parent)->parent, steps++)
                if (parent == i || steps == MAX_WALK)
                        return true;
        return false;
}

int catalog_init(struct catalog *c, uint32_t max)
{
        int r;

        ASSERT(max && max <= 1u << 31);
        *c = (struct catalog){.n_buckets = MIN_BUCKETS, .epoch = 1};
        if (getrandom(c->secret, sizeof c->secret, 0) != sizeof c->secret)
                return -EIO;
        r = pool_init(&c->pool, sizeof(struct entry), max);
        if (r < 0)
                return r;
        c->buckets = mmap(NULL, (size_t)n_buckets_max(c) * sizeof *c->buckets, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (c->buckets == MAP_FAILED) {
                r = -errno;
                c->buckets = NULL;
                pool_deinit(&c->pool);
                return r;
        }
        c->known = new0(struct known, 1);
        if (!c->known) {
                catalog_deinit(c);
                return -ENOMEM;
        }
        return 0;
}

void catalog_deinit(struct catalog *c)
{
        if (c->buckets)
                munmap(c->buckets, (size_t)n_buckets_max(c) * sizeof *c->buckets);
        pool_deinit(&c->pool);
        free(c->known);
        *c = (struct catalog){};
}

uint32_t catalog_find(const struct catalog *c, uint32_t space, uint32_t shard, const uint8_t key[16])
{
        ASSERT(space < 1u << 24 && shard < 1u << 8);
        return find_entry(c, space << 8 | shard, key);
}

uint32_t catalog_find_live(const struct catalog *c, uint32_t space, uint32_t shard, const uint8_t key[16])
{
        uint32_t i = catalog_find(c, space, shard, key);

        return i != POOL_NONE && entry_live(catalog_at(c, i)) ? i : POOL_NONE;
}

static bool is_known(const struct catalog *c, uint32_t i)
{
        uint32_t k = i % CATALOG_KNOWN;

        return c->known->at[k].entry == i && c->known->at[k].epoch == c->epoch;
}

static void set_known(const struct catalog *c, uint32_t i, uint32_t epoch)
{
        c->known->at[i % CATALOG_KNOWN].entry = i;
        c->known->at[i % CATALOG_KNOWN].epoch = epoch;
}

/* i is not LIVE any more: nor is anything below it reachable. */
static void forget_known(struct catalog *c, uint32_t i)
{
        if (!catalog_at(c, i)->n_children) {
                if (is_known(c, i))
                        set_known(c, i, 0);
        } else if (!++c->epoch) {
                memset(c->known->at, 0, sizeof c->known->at);
                c->epoch = 1;
        }
}

/* All that can fail is looked at before anything is changed. */
uint32_t catalog_add(struct catalog *c, uint32_t space, uint32_t shard, const uint8_t key[16], const uint8_t *parent_key,
                     struct record_at at, unsigned flags)
{
        uint32_t i = catalog_find(c, space, shard, key), space_shard = space << 8 | shard, parent = POOL_NONE, n_new = i == POOL_NONE;

        ASSERT(at.n_pages && !(flags & ~(unsigned)(ENTRY_USED | ENTRY_DURABLE)));
        ASSERT(i == POOL_NONE || !entry_live(catalog_at(c, i)));
        if (parent_key) {
                if (!memcmp(parent_key, key, 16))
                        return POOL_NONE;
                parent = find_entry(c, space_shard, parent_key);
                if (parent == POOL_NONE)
                        n_new++;
                else if (catalog_at(c, parent)->n_children == UINT16_MAX || (i != POOL_NONE && closes_circle(c, i, parent)))
                        return POOL_NONE;
        }
        if (n_new > c->pool.max - c->pool.n_used)
                return POOL_NONE;

        if (parent_key && parent == POOL_NONE)
                parent = new_entry(c, space_shard, parent_key);
        if (parent != POOL_NONE)
                catalog_at(c, parent)->n_children++;
        if (i == POOL_NONE)
                i = new_entry(c, space_shard, key);
        struct entry *e = catalog_at(c, i);
        e->parent = parent;
        e->flags = (uint8_t)(ENTRY_LIVE | flags | (parent_key ? 0 : ENTRY_ROOT));
        set_place(e, at);
        c->n_live++;
        return i;
}

void catalog_remove(struct catalog *c, uint32_t i)
{
        struct entry *e = catalog_at(c, i);
        uint32_t parent = e->parent;

        ASSERT(entry_live(e) && c->n_live > 0);
        c->n_live--;
        forget_known(c, i);
        e->flags = 0;
        e->parent = e->follower = POOL_NONE;
        e->follower_count = 0;
        set_place(e, (struct record_at){});
        free_if_unneeded(c, i);
        if (parent != POOL_NONE) {
                ASSERT(catalog_at(c, parent)->n_children > 0);
                catalog_at(c, parent)->n_children--;
                free_if_unneeded(c, parent);
        }
}

uint32_t catalog_add_drop(struct catalog *c, uint32_t space, uint32_t shard, const uint8_t key[16], struct record_at at)
{
        uint32_t i = catalog_find(c, space, shard, key);

        if (i == POOL_NONE) {
                if (c->pool.n_used == c->pool.max)
                        return POOL_NONE;
                i = new_entry(c, space << 8 | shard, key);
        }
        struct entry *e = catalog_at(c, i);
        ASSERT(!entry_live(e));
        e->flags = ENTRY_DROPPED;
        set_place(e, at);
        return i;
}

bool catalog_forget_drops(struct catalog *c, uint32_t *cursor, uint32_t n_steps, bool keep_nowhere)
{
        for (; n_steps && *cursor < c->pool.n_touched; n_steps--) {
                uint32_t i = ++*cursor;
                struct entry *e = catalog_at(c, i);
                if (!(e->flags & ENTRY_DROPPED) || (keep_nowhere && !entry_place(e).n_pages))
                        continue;
                e->flags = 0;
                set_place(e, (struct record_at){});
                free_if_unneeded(c, i);
        }
        return *cursor >= c->pool.n_touched;
}

/* Ends: there are no cycles. A client may ask for thousands of entries at the end of chains that are hundreds of thousands long: all but the
 * first walk end soon. */
bool catalog_reachable(const struct catalog *c, uint32_t i)
{
        uint32_t n = 0, at = i;

        for (; at != POOL_NONE && !is_known(c, at); at = catalog_at(c, at)->parent, n++)
                if (!entry_live(catalog_at(c, at)))
                        return false;
        c->known->n_steps += n;
        for (at = i; n >= KNOWN_MIN; at = catalog_at(c, at)->parent, n--)
                if (at == i || n % KNOWN_APART == 0)
                        set_known(c, at, c->epoch);
        return true;
}

uint64_t catalog_bytes(const struct catalog *c)
{
        return sizeof *c + sizeof *c->known + align_up(((uint64_t)c->pool.n_touched + 1) * sizeof(struct entry), 4096) +
               align_up((uint64_t)c->n_buckets * sizeof *c->buckets, 4096);
}

void catalog_followed(struct catalog *c, uint32_t parent, uint32_t child)
{
        struct entry *e = catalog_at(c, parent);

        if (catalog_at(c, child)->parent != parent)
                return;
        if (e->follower == child) {
                e->follower_count += e->follower_count < UINT8_MAX;
        } else if (e->follower_count) {
                e->follower_count--;
        } else {
                e->follower = child;
                e->follower_count = 1;
        }
}

uint32_t catalog_follower(const struct catalog *c, uint32_t i)
{
        uint32_t child = catalog_at(c, i)->follower;

        return child != POOL_NONE && entry_live(catalog_at(c, child)) && catalog_at(c, child)->parent == i ? child : POOL_NONE;
}

/* The audit */

static bool entry_used(const struct entry *e)
{
        return e->flags || e->n_children;
}

/* What can be said about an entry alone. */
static const char *audit_entry(const struct catalog *c, uint32_t i)
{
        const struct entry *e = catalog_at(c, i);
        bool live = entry_live(e);

        if (find_entry(c, e->space_shard, e->key) != i)
                return "an entry is not found under its key";
        if (live != (entry_place(e).n_pages != 0) && !(e->flags & ENTRY_DROPPED))
                return "an entry is LIVE without a place, or DEAD with one";
        if (!live && (e->parent != POOL_NONE || e->flags & ~ENTRY_DROPPED))
                return "a DEAD entry has a parent or flags";
        if (live && e->flags & ENTRY_DROPPED)
                return "a LIVE entry is dropped";
        if (live && !(e->flags & ENTRY_ROOT) != (e->parent != POOL_NONE))
                return "a LIVE entry is neither first nor has a parent, or both";
        if (e->parent == POOL_NONE)
                return NULL;
        if (e->parent > c->pool.n_touched || !entry_used(catalog_at(c, e->parent)))
                return "a parent is no entry";
        if (catalog_at(c, e->parent)->space_shard != e->space_shard)
                return "a parent is in another space or shard";
        return NULL;
}

/* Each bucket holds what belongs there; together as many as are in use. */
static const char *audit_buckets(const struct catalog *c)
{
        uint32_t n = 0;

        for (uint32_t b = 0; b < c->n_buckets; b++)
                for (uint32_t i = c->buckets[b]; i != POOL_NONE; i = catalog_at(c, i)->next) {
                        if (i > c->pool.n_touched || !entry_used(catalog_at(c, i)))
                                return "a bucket holds what is no entry";
                        if (bucket_of(c, hash_of(c, catalog_at(c, i)->space_shard, catalog_at(c, i)->key)) != b)
                                return "an entry is in the wrong bucket";
                        if (++n > c->pool.n_used)
                                return "buckets hold more than is in use";
                }
        return n == c->pool.n_used ? NULL : "buckets hold less than is in use";
}

/* seen, children: a number for each entry, zeroed. */
static const char *audit_tree(const struct catalog *c, uint32_t *seen, uint32_t *children)
{
        uint32_t n_live = 0, n_used = 0;
        const char *wrong;

        for (uint32_t i = 1; i <= c->pool.n_touched; i++) {
                const struct entry *e = catalog_at(c, i);
                if (!entry_used(e))
                        continue;
                wrong = audit_entry(c, i);
                if (wrong)
                        return wrong;
                n_used++;
                n_live += entry_live(e);
                children[e->parent]++;
        }
        if (n_used != c->pool.n_used || n_live != c->n_live)
                return "entries were miscounted";
        for (uint32_t i = 1; i <= c->pool.n_touched; i++) {
                if (children[i] != catalog_at(c, i)->n_children)
                        return "children were miscounted";
                uint32_t k = i; /* up, to where an earlier walk came by */
                for (; k != POOL_NONE && !seen[k]; k = catalog_at(c, k)->parent)
                        seen[k] = i;
                if (k != POOL_NONE && seen[k] == i)
                        return "there is a cycle";
        }
        return NULL;
}

const char *catalog_audit(const struct catalog *c)
{
        uint32_t *numbers;
        const char *wrong;

        wrong = audit_buckets(c);
        if (wrong)
                return wrong;
        numbers = new0(uint32_t, 2 * ((size_t)c->pool.n_touched + 1));
        if (!numbers)
                return "no memory for an audit";
        wrong = audit_tree(c, numbers, numbers + c->pool.n_touched + 1);
        free(numbers);
        return wrong;
}
