#include <stdio.h>
#include <string.h>

#include "daemon/store/slab.h"
#include "daemon/store/tenant.h"
#include "libclient/codec/copy.h"
#include "libclient/codec/format.h"
#include "daemon/util/assert.h"
#include "proto/shm.h"

enum { SPACES_ON_NVME = 16 /* times max_spaces_tenant: with those of which there are records only */ };

void tenants_init(struct tenants *t, uint64_t host_bytes)
{
        *t = (struct tenants){.host_bytes = host_bytes};
        list_init(&t->all);
        list_init(&t->spaces);
}

void tenants_deinit(struct tenants *t)
{
        list_for_each_safe (s, &t->spaces, struct space, link) {
                s->n_blocks = s->n_records = 0;
                s->n_open = 0;
                space_forget(t, s);
        }
        list_for_each_safe (n, &t->all, struct tenant, link) {
                list_for_each_safe (c, &n->classes, struct slab_class, link) {
                        list_remove(&c->link);
                        free(c);
                }
                list_remove(&n->link);
                free(n);
        }
        free(t->by_id);
}

static void tenant_configure(struct tenants *t, struct tenant *n, const struct conf *c)
{
        n->hard_bytes = c->p.tenant_hard_bytes;
        n->soft_bytes = c->p.tenant_soft_bytes;
        for (size_t i = 0; i < c->n_tenants; i++)
                if (!strcmp(c->tenants[i].name, n->name)) {
                        n->hard_bytes = c->tenants[i].hard_bytes ?: n->hard_bytes;
                        n->soft_bytes = c->tenants[i].soft_bytes ?: n->soft_bytes;
                }
        if (!n->hard_bytes || n->hard_bytes > t->host_bytes)
                n->hard_bytes = t->host_bytes;
}

void tenants_configure(struct tenants *t, const struct conf *c)
{
        list_for_each (n, &t->all, struct tenant, link)
                tenant_configure(t, n, c);
        t->conf = c;
        list_for_each (s, &t->spaces, struct space, link)
                if (!s->has_ladder)
                        conf_ladder(c, s->name, &s->ladder);
}

void tenant_settle(struct tenants *t, struct tenant *n)
{
        if (n->n_sessions || n->held_bytes || n->n_spaces || n->n_leases || n->n_xfers)
                return;
        list_for_each_safe (c, &n->classes, struct slab_class, link) {
                list_remove(&c->link);
                free(c);
        }
        list_remove(&n->waits_link);
        list_remove(&n->link);
        t->n_tenants--;
        free(n);
}

struct tenant *tenant_find(struct tenants *t, const char *name)
{
        list_for_each (n, &t->all, struct tenant, link)
                if (!strcmp(n->name, name))
                        return n;
        return NULL;
}

struct tenant *tenant_get(struct tenants *t, const struct conf *c, const char *name)
{
        struct tenant *n = tenant_find(t, name);

        if (n || !(n = new0(struct tenant, 1)))
                return n;
        n->id = ++t->next_tenant;
        snprintf(n->name, sizeof n->name, "%s", name);
        list_init(&n->classes);
        list_init(&n->loads);
        list_init(&n->waits_link);
        list_init(&n->empty);
        tenant_configure(t, n, c);
        list_append(&t->all, &n->link);
        t->n_tenants++;
        return n;
}

int tenant_of_peer(struct tenants *t, const struct conf *c, uid_t uid, const gid_t *groups, size_t n_groups, struct tenant **ret)
{
        char name[40];

        if (uid == 65534)
                return KVT_E_DENIED;
        snprintf(name, sizeof name, "uid:%u", uid);
        for (size_t i = 0; i < c->n_tenants; i++) {
                const struct tenant_conf *k = &c->tenants[i];
                bool member = k->has_uid && k->uid == uid;
                for (size_t j = 0; !member && k->has_gid && j < n_groups; j++)
                        member = groups[j] == k->gid;
                if (member) {
                        snprintf(name, sizeof name, "%s", k->name);
                        break;
                }
        }
        struct tenant *n = tenant_get(t, c, name);
        if (!n)
                return KVT_E_NO_MEMORY;
        *ret = n;
        return 0;
}

/* Those of which there is nothing but records do not count, or who uses many one after the other could open none until a device is full and the
 * oldest are pushed out. But there is an end to it. */
static bool has_too_many(const struct tenants *t, const struct tenant *tenant, uint32_t max_spaces)
{
        uint32_t n = 0;

        if (tenant->n_spaces < max_spaces)
                return false;
        if (tenant->n_spaces / SPACES_ON_NVME >= max_spaces)
                return true;
        list_for_each (s, &t->spaces, struct space, link)
                n += s->tenant == tenant && (s->n_sessions || s->n_blocks);
        return n >= max_spaces;
}

int space_open(struct tenants *t, struct tenant *tenant, const char *name, const uint8_t *salt, size_t n_salt, float max_rel_l2,
               struct geometry *g, uint32_t max_spaces, struct space **ret, bool *ret_created)
{
        list_for_each (s, &t->spaces, struct space, link) {
                if (s->tenant != tenant || strcmp(s->name, name) || s->n_salt != n_salt || (n_salt && memcmp(s->salt, salt, n_salt)))
                        continue;
                if (!geometry_equal(&s->geometry, g))
                        return KVT_E_GEOMETRY;
                if (s->max_rel_l2 != max_rel_l2)
                        return KVT_E_FIDELITY;
                *ret = s;
                *ret_created = false;
                return 0;
        }
        if (has_too_many(t, tenant, max_spaces) || t->next_space == UINT32_MAX - 1)
                return KVT_E_LIMIT;
        if (t->next_space + 1 >= t->n_by_id) {
                uint32_t n = t->n_by_id ? t->n_by_id * 2 : 64;
                struct space **grown = reallocarray(t->by_id, n, sizeof *grown);
                if (!grown)
                        return KVT_E_NO_MEMORY;
                memset(grown + t->n_by_id, 0, (n - t->n_by_id) * sizeof *grown);
                t->by_id = grown;
                t->n_by_id = n;
        }
        struct space *s = new0(struct space, 1);
        uint32_t n_descriptor = (uint32_t)space_descriptor_encode(NULL, tenant->name, name, salt, (uint32_t)n_salt, max_rel_l2, g);
        if (!s || !(s->descriptor = malloc(n_descriptor))) {
                free(s);
                return KVT_E_NO_MEMORY;
        }
        s->n_descriptor = n_descriptor;
        space_descriptor_encode(s->descriptor, tenant->name, name, salt, (uint32_t)n_salt, max_rel_l2, g);
        space_digest(s->digest, s->descriptor, s->n_descriptor);
        space_digest(s->tenant_digest, tenant->name, strlen(tenant->name));
        s->id = ++t->next_space;
        s->tenant = tenant;
        snprintf(s->name, sizeof s->name, "%s", name);
        if (n_salt)
                memcpy(s->salt, salt, n_salt);
        s->n_salt = (uint32_t)n_salt;
        s->geometry = *g;
        *g = (struct geometry){};
        s->max_rel_l2 = max_rel_l2;
        s->slot_bytes = slab_class_bytes(copy_bytes(&s->geometry, true, s->geometry.part_bytes));
        conf_ladder(t->conf, s->name, &s->ladder);
        t->by_id[s->id] = s;
        list_append(&t->spaces, &s->link);
        t->n_spaces++;
        tenant->n_spaces++;
        *ret = s;
        *ret_created = true;
        return 0;
}

struct space *space_find(const struct tenants *t, const struct tenant *tenant, uint32_t id)
{
        struct space *s = id < t->n_by_id ? t->by_id[id] : NULL;

        return s && s->tenant == tenant ? s : NULL;
}

void space_forget(struct tenants *t, struct space *s)
{
        ASSERT(!s->n_blocks && !s->n_open && !s->n_records);
        t->by_id[s->id] = NULL;
        t->n_spaces--;
        s->tenant->n_spaces--;
        list_remove(&s->link);
        geometry_deinit(&s->geometry);
        free(s->descriptor);
        free(s);
}
