/* The daemon's engine in this process, without sessions: this thread is its loop. */
#pragma once

#include <poll.h>
#include <stdio.h>
#include <string.h>

#include "daemon/engine/demote.h"
#include "daemon/engine/load.h"
#include "daemon/engine/put.h"
#include "daemon/util/assert.h"
#include "daemon/util/clock.h"
#include "daemon/util/metrics.h"
#include "tests/bench/common.h"

struct loop {
        struct conf conf;
        struct engine e;
        struct tenant *tenant;
        unsigned n_pending; /* puts, loads and fetches of the benchmark */
};

/* One pass, and what came back after it; sleeps for that, at most 10 ms, if there is nothing else to do and the
 * daemon would (busy_poll_usec). */
static inline void loop_pass(struct loop *l)
{
        struct pollfd p = {.fd = l->e.queue.event_fd, .events = POLLIN};

        engine_expire(&l->e);
        if (!engine_pass(&l->e))
                poll(&p, 1, l->conf.p.busy_poll_usec ? 0 : 10);
        engine_tick(&l->e);
        engine_collect(&l->e);
}

/* config: lines of kvtierd.conf. Waits until the device serves. */
static inline void loop_start(struct loop *l, const char *config)
{
        char error[256];

        assert_bind_loop();
        *l = (struct loop){};
        if (conf_parse(&l->conf, config, strlen(config), "bench", error, sizeof(error)) != 0)
                die("%s", error);
        must(engine_init(&l->e, &l->conf), "engine_init");
        must(tenant_of_peer(&l->e.tenants, &l->conf, 1000, NULL, 0, &l->tenant), "tenant_of_peer");
        l->tenant->n_sessions++;
        l->e.tenants.n_active++;
        for (uint64_t until = now_nsec() + 20000000000; l->e.nvme.devices[0]->state != DEVICE_SERVING; loop_pass(l))
                if (l->e.nvme.devices[0]->state == DEVICE_FAILED || now_nsec() > until)
                        die("the device does not serve: %s", l->e.nvme.devices[0]->detail);
}

static inline void loop_stop(struct loop *l)
{
        engine_deinit(&l->e);
        conf_deinit(&l->conf);
}

/* A space of n planes of plane_bytes. */
static inline struct space *loop_space(struct loop *l, const char *name, uint32_t n_planes, uint32_t plane_bytes)
{
        kvt_plane planes[64];
        struct geometry g;
        struct space *s;
        const char *why;
        bool created;

        for (uint32_t i = 0; i < n_planes; i++)
                planes[i] = (kvt_plane){.layer = i, .dtype = KVT_DTYPE_OPAQUE, .heads = 1, .opaque_bytes = plane_bytes};
        must(geometry_init(&g, 1, 1, planes, n_planes, &why), "geometry_init");
        must(space_open(&l->e.tenants, l->tenant, name, NULL, 0, 0, &g, 100, &s, &created), "space_open");
        geometry_deinit(&g);
        s->n_open++;
        return s;
}

static inline void loop_key(uint64_t n, uint8_t key[16])
{
        uint64_t half[2] = {n * 0x9e3779b97f4a7c15u, ~n * 0xbf58476d1ce4e5b9u};

        memcpy(key, half, 16);
}
