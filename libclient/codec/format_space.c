/* Space descriptors: what a space is made of, as the bytes of a record. See format.h and kvtier-format(7). */
#include <errno.h>
#include <math.h>
#include <sodium.h>
#include <string.h>

#include "libclient/codec/format.h"

enum {
        DESCRIPTOR_VERSION = 2,
        PLANES_MAX = FORMAT_PLANES_MAX - 1, /* a geometry's */
        TENANT_MAX = sizeof(((struct space_descriptor *)0)->tenant) - 1,
        NAME_MAX_BYTES = sizeof(((struct space_descriptor *)0)->name) - 1,
        SALT_MAX = sizeof(((struct space_descriptor *)0)->salt),
};
static_assert(8 * sizeof(uint32_t) + TENANT_MAX + NAME_MAX_BYTES + SALT_MAX + PLANES_MAX * sizeof(kvt_plane) <= SPACE_DESCRIPTOR_MAX,
              "every descriptor fits");
static_assert(sizeof(kvt_plane) == 28, "planes are seven le32 without padding");

bool fidelity_ok(float max_rel_l2)
{
        return max_rel_l2 >= 0 && max_rel_l2 <= 1 && !signbit(max_rel_l2);
}

/* encoding: p NULL counts only */

struct writer {
        uint8_t *p;
        size_t n;
};

static void write_bytes(struct writer *w, const void *p, size_t n)
{
        if (w->p && n)
                memcpy(w->p + w->n, p, n);
        w->n += n;
}

static void write_u32(struct writer *w, uint32_t x)
{
        write_bytes(w, &x, sizeof(x));
}

size_t space_descriptor_encode(void *dst, const char *tenant, const char *name, const uint8_t *salt, uint32_t n_salt, float max_rel_l2,
                               const struct geometry *g)
{
        size_t n_tenant = strlen(tenant), n_name = strlen(name);
        struct writer w = {dst, 0};

        assert(n_tenant && n_tenant <= TENANT_MAX && n_name && n_name <= NAME_MAX_BYTES && n_salt <= SALT_MAX);
        write_u32(&w, DESCRIPTOR_VERSION);
        write_u32(&w, (uint32_t)n_tenant);
        write_bytes(&w, tenant, n_tenant);
        write_u32(&w, (uint32_t)n_name);
        write_bytes(&w, name, n_name);
        write_u32(&w, n_salt);
        write_bytes(&w, salt, n_salt);
        write_bytes(&w, &max_rel_l2, sizeof(max_rel_l2));
        write_u32(&w, g->block_tokens);
        write_u32(&w, g->n_shards);
        write_u32(&w, g->n_planes);
        write_bytes(&w, g->planes, g->n_planes * sizeof(*g->planes));
        return w.n;
}

/* decoding: past the end, everything is zero and the reader has failed */

struct reader {
        const uint8_t *p;
        size_t n;
        bool failed;
};

static const uint8_t *read_bytes(struct reader *r, size_t n)
{
        const uint8_t *p = r->p;

        if (r->failed || n > r->n) {
                r->failed = true;
                return NULL;
        }
        r->p += n;
        r->n -= n;
        return p;
}

static uint32_t read_u32(struct reader *r)
{
        const uint8_t *p = read_bytes(r, sizeof(uint32_t));
        uint32_t x = 0;

        if (p)
                memcpy(&x, p, sizeof(x));
        return x;
}

/* A name as the daemon takes them: 1 to max bytes, none a control character. */
static void read_name(struct reader *r, char *ret, uint32_t max)
{
        uint32_t n = read_u32(r);
        const uint8_t *p = n && n <= max ? read_bytes(r, n) : NULL;

        if (!p) {
                r->failed = true;
                return;
        }
        for (uint32_t i = 0; i < n; i++)
                if (p[i] < ' ' || p[i] == 0x7f)
                        r->failed = true;
        memcpy(ret, p, n);
        ret[n] = 0;
}

int space_descriptor_decode(const void *p, size_t n, struct space_descriptor *ret)
{
        struct reader r = {p, n, false};
        struct space_descriptor d = {};
        kvt_plane planes[PLANES_MAX];
        uint32_t block_tokens, n_shards, n_planes, bits;
        const uint8_t *bytes;
        const char *why;
        int e;

        if (read_u32(&r) != DESCRIPTOR_VERSION)
                return r.failed ? -EPROTO : -EPROTONOSUPPORT;
        read_name(&r, d.tenant, TENANT_MAX);
        read_name(&r, d.name, NAME_MAX_BYTES);
        d.n_salt = read_u32(&r);
        bytes = d.n_salt <= SALT_MAX ? read_bytes(&r, d.n_salt) : NULL;
        if (!bytes)
                return -EPROTO;
        if (d.n_salt)
                memcpy(d.salt, bytes, d.n_salt);
        bits = read_u32(&r);
        memcpy(&d.max_rel_l2, &bits, sizeof(bits));
        if (!fidelity_ok(d.max_rel_l2))
                return -EPROTO;
        block_tokens = read_u32(&r);
        n_shards = read_u32(&r);
        n_planes = read_u32(&r);
        bytes = n_planes && n_planes <= PLANES_MAX ? read_bytes(&r, n_planes * sizeof(planes[0])) : NULL;
        if (!bytes || r.failed || r.n)
                return -EPROTO;
        memcpy(planes, bytes, n_planes * sizeof(planes[0]));
        e = geometry_init(&d.geometry, block_tokens, n_shards, planes, n_planes, &why);
        if (e)
                return e == KVT_E_NO_MEMORY ? -ENOMEM : -EPROTO;
        *ret = d;
        return 0;
}

void space_descriptor_deinit(struct space_descriptor *d)
{
        geometry_deinit(&d->geometry);
}

void space_digest(uint8_t ret[16], const void *descriptor, size_t n)
{
        crypto_generichash(ret, 16, descriptor, n, NULL, 0);
}
