/* What tests of the store stand on: a tenant, a space, a table of blocks; and random numbers that can be had again ($SEED). */
#pragma once

#include "libclient/codec/copy.h"
#include "daemon/store/slab.h"
#include "tests/lib/check.h"

static unsigned stage_seed;

static inline uint32_t stage_random(uint32_t n)
{
        return (uint32_t)rand_r(&stage_seed) % n;
}

/* A tenant and a space to hang blocks on. */
struct stage {
        struct conf conf;
        struct tenants tenants;
        struct tenant *t;
        struct space *s;
        struct blocks b;
};

static inline struct space *new_space(struct stage *x, struct tenant *t, const char *name, uint32_t part_bytes, uint32_t n_shards)
{
        kvt_plane plane = {.dtype = KVT_DTYPE_OPAQUE, .heads = 1, .opaque_bytes = part_bytes};
        struct geometry g;
        struct space *s;
        const char *why;
        bool created;

        CHECK_EQ(geometry_init(&g, 1, n_shards, &plane, 1, &why), 0);
        CHECK_EQ(space_open(&x->tenants, t, name, NULL, 0, 0, &g, 100, &s, &created), 0);
        CHECK(created);
        geometry_deinit(&g);
        return s;
}

static inline struct tenant *new_tenant(struct stage *x, uid_t uid)
{
        struct tenant *t;

        CHECK_EQ(tenant_of_peer(&x->tenants, &x->conf, uid, NULL, 0, &t), 0);
        return t;
}

static inline void stage_init(struct stage *x, uint32_t max_blocks, uint64_t host_bytes)
{
        char error[256];

        memset(x, 0, sizeof(*x));
        CHECK_EQ(conf_parse(&x->conf, "", 0, "", error, sizeof(error)), 0);
        tenants_init(&x->tenants, host_bytes);
        x->t = new_tenant(x, 7);
        x->s = new_space(x, x->t, "s", 1000, 1);
        CHECK_EQ(blocks_init(&x->b, max_blocks), 0);
}

static inline void stage_deinit(struct stage *x)
{
        blocks_deinit(&x->b);
        tenants_deinit(&x->tenants);
        conf_deinit(&x->conf);
}

static inline int stage_setup(void **state)
{
        assert_bind_loop();
        const char *given = getenv("SEED");
        stage_seed = given ? (unsigned)atoi(given) : (unsigned)check_now_usec();
        printf("SEED=%u\n", stage_seed);
        return 0;
}

/* What is set aside for a part: a raw copy. */
static inline uint64_t stage_bytes(const struct space *s)
{
        return copy_bytes(&s->geometry, true, s->geometry.part_bytes);
}
