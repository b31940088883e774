/* put_from_staging: blocks that lie in staging (where a GPU put them) are reserved, committed, copied and hashed; put_from_caller: kvt_put() from
 * an engine's scattered pages; both against memcpy between shared memory of the same sizes. Client, daemon and its one worker share a
 * CPU, so that all that is computed counts; in the rows named _cross the daemon has a CPU of its own. The daemon is full: each put evicts
 * the oldest blocks and reuses their memory, as in its everyday life. Batches of 16. */
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "tests/bench/common.h"

enum {
        BATCH = 16,
        PAGES = 128,
        LANES = 4, /* batches under way: staging holds them all */
        ROUND = 8 * BATCH,
        FILL = 640, /* blocks: more than the daemon has room for */
};
static const double batch_gib = (double)BATCH * MODEL_BLOCK_BYTES / (1u << 30);

struct lane {
        kvt_reservation reservations[BATCH];
        uint8_t statuses[BATCH];
        kvt_op *op; /* of the commit */
};

struct bench {
        struct daemon d;
        pid_t watched;
        kvt *c;
        kvt_space *s;
        uint64_t seed; /* of prompts: each is new */
        struct lane lanes[LANES];
        kvt_key keys[FILL];
};

static void all_zero(const uint8_t *statuses, size_t n, const char *what)
{
        for (size_t i = 0; i < n; i++)
                must(statuses[i], what);
}

/* Naming the blocks is not what is measured. */
static void new_keys(struct bench *b, size_t n)
{
        for (size_t i = 0; i < n; i += BATCH)
                prompt_keys(b->s, MODEL_TOKENS, ++b->seed, b->keys + i, BATCH);
}

static void lane_finish(struct lane *l)
{
        if (!l->op)
                return;
        must(kvt_wait(l->op, 0), "kvt_put_commit_async");
        kvt_op_free(l->op);
        l->op = NULL;
        all_zero(l->statuses, BATCH, "kvt_put_commit of a block");
}

static void put_staged(struct bench *b, size_t n, bool fill)
{
        for (size_t i = 0; i < n + LANES * BATCH; i += BATCH) {
                struct lane *l = &b->lanes[i / BATCH % LANES];

                lane_finish(l);
                if (i >= n)
                        continue;
                must(kvt_put_reserve(b->s, NULL, b->keys + i, BATCH, 0, l->reservations, l->statuses), "kvt_put_reserve");
                all_zero(l->statuses, BATCH, "kvt_put_reserve of a block");
                for (size_t k = 0; fill && k < BATCH; k++)
                        memset(l->reservations[k].data, (int)k + 1, MODEL_BLOCK_BYTES);
                must(kvt_put_commit_async(b->s, l->reservations, BATCH, l->statuses, NULL, NULL, &l->op), "kvt_put_commit_async");
        }
}

static void staging_round(struct bench *b, struct undisturbed *ret)
{
        struct watch w;

        new_keys(b, ROUND);
        watch_start(&w, b->watched);
        put_staged(b, ROUND, false);
        watch_stop(&w, ret, batch_gib * ROUND / BATCH);
}

static void caller_round(struct bench *b, const struct engine_kv *kv, struct undisturbed *ret)
{
        new_keys(b, ROUND);
        for (size_t i = 0; i < ROUND; i += BATCH) {
                kvt_view view = kv_view(kv, i * 3, BATCH);
                uint8_t statuses[BATCH];
                struct watch w;

                watch_start(&w, b->watched);
                must(kvt_put(b->s, NULL, b->keys + i, BATCH, 0, &view, 0, statuses), "kvt_put");
                watch_stop(&w, ret, batch_gib);
                all_zero(statuses, BATCH, "kvt_put of a block");
        }
}

/* memcpy from shared memory to shared memory, as between staging and slabs. */
struct shared {
        uint8_t *from, *to;
        size_t n; /* blocks in to; from has LANES * BATCH */
};

static uint8_t *shared_map(size_t bytes)
{
        enum { HUGE = 2 << 20, COLLAPSE = 25 /* MADV_COLLAPSE */ };
        int fd = memfd_create("bench", MFD_CLOEXEC);
        uint8_t *room, *p;

        if (fd < 0 || ftruncate(fd, (off_t)bytes) < 0 ||
            (room = mmap(NULL, bytes + HUGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)) == MAP_FAILED)
                die("no shared memory: %m");
        p = room + (-(uintptr_t)room & (HUGE - 1));
        if (mmap(p, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0) == MAP_FAILED)
                die("no shared memory: %m");
        close(fd);
        memset(p, 1, bytes);
        madvise(p, bytes, COLLAPSE); /* into huge pages, as the daemon does; small ones serve as well */
        return p;
}

static void shared_init(struct shared *m, size_t n)
{
        m->n = n;
        m->from = shared_map((size_t)LANES * BATCH * MODEL_BLOCK_BYTES);
        m->to = shared_map(n * MODEL_BLOCK_BYTES);
}

static void memcpy_round(const struct shared *m, struct undisturbed *ret)
{
        for (size_t first = 0; first < ROUND; first += BATCH) {
                struct watch w;

                watch_start(&w, 0);
                for (size_t i = first; i < first + BATCH; i++)
                        for (unsigned p = 0; p < MODEL_PLANES; p++)
                                memcpy(m->to + (i * 7 % m->n * MODEL_PLANES + p) * MODEL_PLANE_BYTES,
                                       m->from + (i % (LANES * BATCH) * MODEL_PLANES + p) * MODEL_PLANE_BYTES, MODEL_PLANE_BYTES);
                watch_stop(&w, ret, batch_gib);
        }
}

static void bench_start(struct bench *b, int cpu)
{
        daemon_start(&b->d, cpu, (const char *[]){"--host_bytes=1280M", "--staging_bytes=256M", "--workers=1", NULL});
        b->watched = cpu == 0 ? b->d.pid : WALL_ONLY;
        b->c = daemon_open(&b->d, &(kvt_options){.staging_bytes = (uint64_t)(LANES * BATCH + BATCH) * MODEL_BLOCK_BYTES});
        b->s = model_open(b->c);
        new_keys(b, FILL);
        put_staged(b, FILL, true); /* and touch all of staging */
        daemon_rest(&b->d);
}

static void bench_stop(struct bench *b)
{
        kvt_space_close(b->s);
        kvt_close(b->c);
        daemon_stop(&b->d);
}

static void rows(int cpu, const struct engine_kv *kv, const struct shared *shared)
{
        static struct bench b;
        struct undisturbed bare = {0}, staging = {0}, caller = {0};

        bench_start(&b, cpu);
        for (unsigned r = 0; r < (quick() ? 3u : 21u); r++) {
                memcpy_round(shared, &bare);
                staging_round(&b, &staging);
                caller_round(&b, kv, &caller);
        }
        bench_stop(&b);
        row_print(&(struct row){cpu ? "put_from_staging_cross" : "put_from_staging", "GiB/s", undisturbed_median(&staging),
                                undisturbed_median(&bare), "memcpy between shared memory of the same sizes", cpu ? 0 : '>', 0.7,
                                "reserve and commit of 16 blocks, 4 batches under way; copied and hashed by one worker, evicting"});
        row_print(&(struct row){cpu ? "put_from_caller_cross" : "put_from_caller", "GiB/s", undisturbed_median(&caller),
                                undisturbed_median(&bare), "the same memcpy", cpu ? 0 : '>', 0.4,
                                "kvt_put of 16 blocks out of scattered pages"});
        undisturbed_deinit(&bare);
        undisturbed_deinit(&staging);
        undisturbed_deinit(&caller);
}

int main(void)
{
        struct engine_kv kv;
        struct shared shared;

        need_memory(2560ull << 20);
        pin(0);
        kv_init(&kv, PAGES, 4);
        shared_init(&shared, 255);
        rows(0, &kv, &shared);
        rows(1, &kv, &shared);
        return 0;
}
