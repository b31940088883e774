/* An engine without a server, on a simulated disk: opened, turned one pass at a time, crashed, opened again. One worker, which is waited for in each turn, so
 * that what happens depends on the seed alone (and on secrets and uuids, which only spread things over tables). */
#pragma once

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <sys/stat.h>

#include "daemon/engine/demote.h"
#include "daemon/engine/load.h"
#include "daemon/engine/put.h"
#include "daemon/util/log.h"
#include "tests/lib/check.h"
#include "tests/lib/sim_disk.h"

enum { SEGMENT = 1 << 20, N_SPACES = 4, N_SLOTS = 24, SLOT_BYTES = 256 << 10 };

static const struct {
        const char *name;
        uint32_t n_shards, n_planes, plane_bytes;
        uint32_t tokens, heads, dim; /* of the same bytes as f16 values */
} shapes[N_SPACES] = {{"small", 1, 1, 4096, 32, 1, 64},
                      {"planes", 1, 3, 20000, 25, 4, 100},
                      {"shards", 2, 2, 12000, 25, 3, 80},
                      {"large", 1, 1, 200 << 10, 100, 16, 64}};

struct store {
        struct conf conf;
        struct engine e;
        struct sim_disk *disk;
        char path[200]; /* holds the superblock; the rest is simulated */
        struct tenant *t;
        struct space *s[N_SPACES];
        struct staging *staging;
        unsigned seed, random;
        bool values; /* spaces have planes of f16 values, else of opaque bytes */
        float max_rel_l2; /* their fidelity */
        bool open, crashed;
        void (*on_gone)(struct nvme *n, struct space *s, uint32_t shard, const uint8_t key[16], int why, void *arg); /* the engine's */
        void (*told_gone)(struct store *st, struct space *s, uint32_t shard, const uint8_t key[16], int why);
};

static struct store *current; /* callbacks of the engine find it here */

static inline uint32_t any(struct store *st, uint32_t n)
{
        return (uint32_t)rand_r(&st->random) % n;
}

static void store_on_gone(struct nvme *n, struct space *s, uint32_t shard, const uint8_t key[16], int why, void *arg)
{
        if (current->told_gone && !current->crashed)
                current->told_gone(current, s, shard, key, why);
        current->on_gone(n, s, shard, key, why, arg);
}

/* A new disk; more: further lines of the configuration. */
static void store_init(struct store *st, unsigned seed, uint32_t n_segments, const char *more)
{
        char text[2000], error[300];
        const char *dir = getenv("TMPDIR");

        *st = (struct store){.seed = seed, .random = seed};
        current = st;
        snprintf(st->path, sizeof st->path, "%s/kvtier-crash-%d.kvt", dir ?: "/tmp", getpid());
        unlink(st->path);
        snprintf(text, sizeof text,
                 "host_bytes=32M\nslab_bytes=1M\nprealloc_bytes=0\nhuge_pages=no\nworkers=1\nnvme_devices=%s\nnvme_bytes=%u\n"
                 "nvme_segment_bytes=1M\nnvme_buffer_bytes=6M\nnvme_scrub_bytes_sec=0\n%s",
                 st->path, (n_segments + 1) * SEGMENT, more);
        if (conf_parse(&st->conf, text, strlen(text), "test", error, sizeof error) != 0)
                check_failed(__FILE__, __LINE__, "%s", error);
        st->disk = sim_disk_new((uint64_t)(n_segments + 1) * SEGMENT, seed ^ 0x5eed);
        sim_install(st->disk);
}

static void store_open(struct store *st)
{
        sim_power_on(st->disk);
        CHECK_EQ(engine_init(&st->e, &st->conf), 0);
        st->open = true;
        st->crashed = false;
        st->on_gone = st->e.nvme.on_gone;
        st->e.nvme.on_gone = store_on_gone;
        CHECK_EQ(tenant_of_peer(&st->e.tenants, &st->conf, 7, NULL, 0, &st->t), 0);
        st->t->n_sessions++;
        for (int i = 0; i < N_SPACES; i++) {
                kvt_plane planes[4];
                struct geometry g;
                const char *why;
                bool created;
                for (uint32_t k = 0; k < shapes[i].n_planes; k++)
                        planes[k] = st->values ? (kvt_plane){.layer = k,
                                                             .role = k % 2 ? KVT_ROLE_V : KVT_ROLE_K,
                                                             .dtype = KVT_DTYPE_F16,
                                                             .heads = shapes[i].heads,
                                                             .dim = shapes[i].dim}
                                               : (kvt_plane){.layer = k,
                                                             .dtype = KVT_DTYPE_OPAQUE,
                                                             .heads = 1,
                                                             .opaque_bytes = shapes[i].plane_bytes};
                CHECK_EQ(geometry_init(&g, st->values ? shapes[i].tokens : 1, shapes[i].n_shards, planes, shapes[i].n_planes, &why), 0);
                CHECK_EQ(g.part_bytes, (uint64_t)shapes[i].n_planes * shapes[i].plane_bytes);
                CHECK_EQ(space_open(&st->e.tenants, st->t, shapes[i].name, NULL, 0, st->max_rel_l2, &g, 100, &st->s[i], &created), 0);
                geometry_deinit(&g);
                st->s[i]->n_open++;
        }
        CHECK_EQ(staging_new(&st->staging, &st->e, st->t, N_SLOTS * SLOT_BYTES), 0);
}

/* Until the worker sleeps and nothing waits for it. */
static void store_wait_worker(struct store *st)
{
        struct queue *q = &st->e.queue;

        for (;;) {
                pthread_mutex_lock(&q->lock);
                bool idle = list_empty(&q->urgent) && list_empty(&q->background) && q->n_sleeping == 1;
                pthread_mutex_unlock(&q->lock);
                if (idle)
                        return;
                sched_yield();
        }
}

/* One pass of the loop; at most n operations of the disk come back. */
static void store_turn(struct store *st, uint32_t n)
{
        engine_tick(&st->e);
        sim_step(st->disk, n);
        store_wait_worker(st);
        engine_collect(&st->e);
        engine_pass(&st->e);
}

static struct nvme_device *store_device(struct store *st)
{
        CHECK_EQ(st->e.nvme.n_devices, 1);
        return st->e.nvme.devices[0];
}

/* Turns until the condition holds. */
#define TURN_UNTIL(st, x)                                                                                                                  \
        do {                                                                                                                               \
                for (int turns_ = 0; !(x); turns_++) {                                                                                     \
                        if (turns_ > 20000) {                                                                                              \
                                check_failed(__FILE__, __LINE__, "%s: not within so many turns; seed %u", #x, (st)->seed);                 \
                                break;                                                                                                     \
                        }                                                                                                                  \
                        store_turn(st, 1 + any(st, 8));                                                                                    \
                }                                                                                                                          \
        } while (0)

static void store_audit(struct store *st)
{
        struct audit a;
        const char *error = catalog_audit(&st->e.nvme.catalog);

        if (error)
                check_failed(__FILE__, __LINE__, "catalog: %s", error);
        engine_audit(&st->e, &a);
        if (a.error)
                check_failed(__FILE__, __LINE__, "engine: %s", a.error);
}

static inline void store_serve(struct store *st)
{
        TURN_UNTIL(st, store_device(st)->state == DEVICE_SERVING);
        store_audit(st);
}

/* Without the power being cut: what is under way comes to an end first. */
static void store_close(struct store *st)
{
        if (!st->open)
                return;
        st->crashed = true; /* what its callbacks say does not count any more */
        staging_unref(st->staging);
        engine_deinit(&st->e);
        st->open = false;
}

static void store_crash(struct store *st)
{
        sim_crash(st->disk);
        store_close(st);
}

static void store_deinit(struct store *st)
{
        store_close(st);
        sim_install(NULL);
        st->disk = sim_disk_free(st->disk);
        conf_deinit(&st->conf);
        unlink(st->path);
        current = NULL;
}

/* what parts hold: their first word says what they are, the rest follows from that */

static inline uint64_t mix(uint64_t x)
{
        x += 0x9e3779b97f4a7c15;
        x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9;
        x = (x ^ x >> 27) * 0x94d049bb133111eb;
        return x ^ x >> 31;
}
static inline uint64_t part_word(uint32_t block, uint32_t shard, uint32_t version)
{
        return mix((uint64_t)block << 32 | shard << 16 | version);
}
static void part_fill(void *p, uint64_t n, uint64_t word)
{
        uint8_t *to = p;

        for (uint64_t x = word; n; x = x * 6364136223846793005 + 1442695040888963407) {
                uint64_t m = n < 8 ? n : 8;
                memcpy(to, &x, m);
                to += m;
                n -= m;
        }
}
static bool part_is(const void *p, uint64_t n, uint64_t word)
{
        const uint8_t *at = p;

        for (uint64_t x = word; n; x = x * 6364136223846793005 + 1442695040888963407) {
                uint64_t m = n < 8 ? n : 8;
                if (memcmp(at, &x, m))
                        return false;
                at += m;
                n -= m;
        }
        return true;
}
static inline void key_make(uint32_t block, uint8_t key[16])
{
        uint64_t k[2] = {mix(block), mix(~(uint64_t)block)};

        memcpy(key, k, 16);
}
