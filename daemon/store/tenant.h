/* Tenants and their spaces: identity, geometry and accounts. Owned by the loop thread.
 *
 * A tenant is a user, or the members of a group named in the configuration. Nothing of one tenant can be named by another:
 * look-ups go through a space, and a space belongs to one tenant. A tenant is forgotten when it holds nothing and has no session; a space
 * when it has no block and no session has it open. */
#pragma once

#include <sys/types.h>

#include "daemon/util/conf.h"
#include "daemon/util/list.h"
#include "libclient/codec/ladder.h"
#include "proto/frame.h"

struct slab;

struct slab_class { /* a tenant's slabs of one slot size */
        struct list link; /* in tenant.classes */
        struct list partial; /* of struct slab: some slots free */
        struct list full; /* of struct slab */
        uint64_t slot_bytes;
};

struct tenant {
        struct list link; /* in tenants.all */
        uint32_t id;
        char name[40];
        uint64_t hard_bytes, soft_bytes;
        uint64_t held_bytes; /* slabs, retired ones too, and staging: what the hard quota counts */
        uint64_t staging_bytes; /* of held_bytes */
        uint64_t retired_bytes; /* of held_bytes: slabs on their way back, from clients that still map them */
        uint64_t used_bytes; /* slots in use */
        uint64_t payload_bytes, n_parts;
        uint64_t record_bytes, n_records; /* on NVMe devices */
        uint32_t n_blocks, n_sessions, n_spaces, n_leases, n_xfers, n_reservations, n_subscriptions;
        uint64_t hits, misses, evicted;
        uint32_t n_durable_keys; /* of chains that are being made durable */
        uint32_t n_loading; /* parts on their way from NVMe to memory */
        struct list loads; /* of struct load, waiting for room; see engine/load */
        struct list waits_link; /* in engine.loads */
        struct list classes; /* of struct slab_class */
        struct list empty; /* of struct slab: no slot in use */
        struct slab *condemned; /* will be taken from this tenant once the last lease on it has ended */
        uint32_t lru_cold, lru_hot; /* ends of the eviction list, see policy/evict.h */
};

struct space {
        struct list link; /* in tenants.spaces */
        uint32_t id;
        struct tenant *tenant; /* borrowed */
        char name[KVT_NAME_MAX + 1];
        uint8_t salt[KVT_SALT_MAX];
        uint32_t n_salt;
        struct geometry geometry;
        float max_rel_l2; /* fidelity: most error of a plane; 0: lossless */
        struct ladder ladder; /* codecs of its copies; may change at any time */
        bool has_ladder; /* set by hand: the configuration's does not count */
        uint64_t slot_bytes; /* a raw copy, rounded to a class */
        uint64_t n_copies; /* of its parts, in memory */
        uint32_t n_blocks;
        uint32_t n_open; /* who needs it: sessions, and whatever is under way */
        uint32_t n_sessions; /* of them, those that have it open */
        uint32_t n_subscribers;
        uint64_t used_bytes;
        uint64_t hits, misses;
        uint64_t record_bytes, n_records; /* on NVMe devices; the space is not forgotten while it has records */
        uint8_t digest[16], tenant_digest[16]; /* what records say they belong to */
        uint8_t *descriptor; /* owned; what a device remembers of the space */
        uint32_t n_descriptor;
        bool purging; /* its records are being taken out; n_open counts that */
        bool is_kept; /* for what is remembered of its drops, which name it by its number; n_open counts that */
        bool not_recovered; /* it was purged while devices were recovered: what they still bring of it is void */
};

struct tenants {
        struct list all; /* of struct tenant */
        struct list spaces; /* of struct space */
        struct space **by_id;
        uint32_t n_by_id, n_tenants, n_spaces, next_space, next_tenant;
        uint32_t n_active; /* tenants with a session */
        uint64_t host_bytes;
        const struct conf *conf; /* borrowed; NULL: ladders are as ladder_init() makes them */
};

void tenants_init(struct tenants *t, uint64_t host_bytes);
void tenants_deinit(struct tenants *t);
/* Applies quotas of the configuration to the tenants that exist. */
void tenants_configure(struct tenants *t, const struct conf *c);
/* The tenant of a peer: a [tenant] section with its uid, one with a group it is in, else one of its own. Returns 0, KVT_E_DENIED for the
 * unmapped user, or KVT_E_NO_MEMORY. */
int tenant_of_peer(struct tenants *t, const struct conf *c, uid_t uid, const gid_t *groups, size_t n_groups, struct tenant **ret);
struct tenant *tenant_find(struct tenants *t, const char *name);
/* The tenant of this name, new if need be: one whose records were found on a device. NULL: no memory. */
struct tenant *tenant_get(struct tenants *t, const struct conf *c, const char *name);

/* The space of this name and salt, or a new one (whose geometry then takes over *g's contents). KVT_E_GEOMETRY, KVT_E_FIDELITY,
 * KVT_E_LIMIT, KVT_E_NO_MEMORY. */
int space_open(struct tenants *t, struct tenant *tenant, const char *name, const uint8_t *salt, size_t n_salt, float max_rel_l2,
               struct geometry *g, uint32_t max_spaces, struct space **ret, bool *ret_created);
/* NULL: no such space, or not this tenant's */
struct space *space_find(const struct tenants *t, const struct tenant *tenant, uint32_t id);
static inline struct space *space_at(const struct tenants *t, uint32_t id)
{
        return t->by_id[id];
}
/* Forgets a space without blocks that nobody has open. */
void space_forget(struct tenants *t, struct space *s);

/* How much of something that all tenants draw on one may have: so that what others do cannot use it up. */
static inline uint32_t tenants_share(const struct tenants *t, uint32_t max)
{
        return MAX(max / (1 + MAX(t->n_active, 1u)), 1u);
}
/* A tenant that holds nothing and has no session is forgotten. */
void tenant_settle(struct tenants *t, struct tenant *n);

static inline uint64_t tenant_room(const struct tenant *t)
{
        return t->hard_bytes > t->held_bytes ? t->hard_bytes - t->held_bytes : 0;
}
