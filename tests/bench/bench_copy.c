/* get_raw_bandwidth: 2 MiB blocks into an engine's scattered KV pages, checksums compared, against memcpy from the same mapped blocks into the
 * same pages; get_raw_bandwidth_cold: the same by a process that has never mapped them. put_from_staging: blocks that lie in staging
 * (where a GPU put them) are reserved, committed, copied and hashed; put_from_caller: kvt_put() from the engine's pages; both against
 * memcpy between memory of the same kinds. For gets client and daemon share a CPU: what the daemon does counts. For puts the client has one and the
 * daemon another, so the daemon copies with one worker. Batches of 16, each of which is a sample (puts from staging overlap: a sample is 8 batches). */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/bench/common.h"

enum { BATCH = 16, PAGES = 128, N_GET_MAX = 640, COLD = 64 /* argument: this process is the cold reader */ };
static const double gib = 1u << 30;

static size_t n_get(void)
{
        return quick() ? 128 : N_GET_MAX;
}

static double bandwidth(uint64_t n_blocks, uint64_t nsec)
{
        return (double)n_blocks * MODEL_BLOCK_BYTES / gib / ((double)nsec / 1e9);
}

static void all_zero(const uint8_t *statuses, size_t n, const char *what)
{
        for (size_t i = 0; i < n; i++)
                must(statuses[i], what);
}

static void put_all(kvt_space *s, const struct engine_kv *kv, const kvt_key *keys, size_t n)
{
        for (size_t i = 0; i < n; i += BATCH) {
                kvt_view view = kv_view(kv, i, BATCH);
                uint8_t statuses[BATCH];

                must(kvt_put(s, i ? &keys[i - 1] : NULL, keys + i, BATCH, 0, &view, 0, statuses), "kvt_put");
                all_zero(statuses, BATCH, "kvt_put of a block");
        }
}

/* get */

static uint64_t get_batch(kvt_space *s, const struct engine_kv *kv, const kvt_key *keys, size_t at)
{
        kvt_view view = kv_view(kv, at, BATCH);
        uint8_t statuses[BATCH];
        uint64_t start = now_nsec(), end;

        must(kvt_get(s, keys, BATCH, 0, &view, 0, statuses), "kvt_get");
        end = now_nsec();
        all_zero(statuses, BATCH, "kvt_get of a block");
        return end - start;
}

static uint64_t memcpy_batch(kvt_space *s, const struct engine_kv *kv, const kvt_key *keys, size_t at)
{
        kvt_mapping m[BATCH];
        uint8_t statuses[BATCH];
        uint64_t start, end;

        must(kvt_map(s, keys, BATCH, m, statuses), "kvt_map");
        all_zero(statuses, BATCH, "kvt_map of a block");
        start = now_nsec();
        for (size_t i = 0; i < BATCH; i++)
                for (unsigned p = 0; p < MODEL_PLANES; p++)
                        memcpy(kv_plane(kv, at, i, p), (const uint8_t *)m[i].data + p * MODEL_PLANE_BYTES, MODEL_PLANE_BYTES);
        end = now_nsec();
        must(kvt_unmap(s, m, BATCH, NULL), "kvt_unmap");
        return end - start;
}

/* What arrived is what the pages held when it was put. */
static void check_batch(const struct engine_kv *put, const struct engine_kv *got, size_t at_put, size_t at_got)
{
        for (size_t i = 0; i < BATCH; i++)
                for (unsigned p = 0; p < MODEL_PLANES; p++)
                        if (memcmp(kv_plane(put, at_put, i, p), kv_plane(got, at_got, i, p), MODEL_PLANE_BYTES) != 0)
                                die("kvt_get returned other bytes than were put");
}

static void cold_reader(const char *socket)
{
        static kvt_key keys[N_GET_MAX];
        struct daemon d = {0};
        struct engine_kv kv;
        struct samples all = {0};
        size_t n = n_get();

        pin(0);
        snprintf(d.socket, sizeof(d.socket), "%s", socket);
        kv_init(&kv, PAGES, 3);
        kvt *c = daemon_open(&d, NULL);
        kvt_space *s = model_open(c);
        prompt_keys(s, MODEL_TOKENS, 1, keys, n);
        for (size_t i = 0; i < n; i += BATCH)
                samples_add(&all, bandwidth(BATCH, get_batch(s, &kv, keys + i, i)));
        printf("%f\n", samples_quantile(&all, 0.5));
        kvt_close(c);
}

static double run_cold_reader(const struct daemon *d)
{
        char command[256], line[64];
        FILE *f;

        snprintf(command, sizeof(command), "exec /proc/%d/exe '%s'", getpid(), d->socket);
        f = popen(command, "re");
        if (!f || !fgets(line, sizeof(line), f) || pclose(f) != 0)
                die("the cold reader failed");
        return atof(line);
}

static void get_rows(const struct daemon *d, kvt_space *s, struct engine_kv *kv)
{
        static kvt_key keys[N_GET_MAX];
        struct samples bare = {0}, ours = {0}, cold = {0};
        struct engine_kv source;
        size_t n = n_get();
        char note[128];

        prompt_keys(s, MODEL_TOKENS, 1, keys, n);
        kv_init(&source, BATCH * 2, 2);
        put_all(s, &source, keys, n);
        for (unsigned r = 0; r < (quick() ? 2u : 7u); r++) { /* the first touches every mapped page */
                for (size_t i = 0; i < n; i += BATCH) {
                        size_t j = (i + n / 2 / BATCH * BATCH) % n; /* not the blocks that memcpy has just brought into the cache */

                        samples_add(&bare, bandwidth(BATCH, memcpy_batch(s, kv, keys + i, i * 3)));
                        samples_add(&ours, bandwidth(BATCH, get_batch(s, kv, keys + j, j * 3 + PAGES / 2)));
                        if (!r)
                                check_batch(&source, kv, j, j * 3 + PAGES / 2);
                }
                if (!r) {
                        samples_reset(&bare);
                        samples_reset(&ours);
                }
        }
        for (unsigned r = 0; r < (quick() ? 1u : 3u); r++)
                samples_add(&cold, run_cold_reader(d));

        snprintf(note, sizeof(note), "%zu blocks, in pages of %d KiB a plane, working set %zu MiB", n, MODEL_PLANE_BYTES >> 10,
                 n * MODEL_BLOCK_BYTES >> 20);
        row_print(&(struct row){"get_raw_bandwidth", "GiB/s", samples_quantile(&ours, 0.5), samples_quantile(&bare, 0.5),
                                "memcpy from the same blocks into the same pages", '>', 0.85, note});
        row_print(&(struct row){"get_raw_bandwidth_cold", "GiB/s", samples_quantile(&cold, 0.5), samples_quantile(&bare, 0.5),
                                "the same memcpy, warm", 0, 0,
                                "first kvt_get of every block in a new process, its maps still unpopulated"});
        samples_deinit(&bare);
        samples_deinit(&ours);
        samples_deinit(&cold);
}

/* put. The daemon is full: each put evicts the oldest blocks and reuses their memory, as in its everyday life. */

enum { LANES = 4 }; /* batches under way: staging holds them all */

struct lane {
        kvt_key keys[BATCH];
        kvt_reservation reservations[BATCH];
        uint8_t statuses[BATCH];
        kvt_op *op; /* of the commit */
};

static void lane_finish(struct lane *l)
{
        if (!l->op)
                return;
        must(kvt_wait(l->op, 0), "kvt_put_commit_async");
        kvt_op_free(l->op);
        l->op = NULL;
        all_zero(l->statuses, BATCH, "kvt_put_commit of a block");
}

static uint64_t staging_round(kvt_space *s, struct lane *lanes, size_t n, uint64_t *seed, bool fill)
{
        uint64_t nsec = 0, start;

        for (size_t i = 0; i < n + LANES * BATCH; i += BATCH) {
                struct lane *l = &lanes[i / BATCH % LANES];

                start = now_nsec();
                lane_finish(l);
                nsec += now_nsec() - start;
                if (i >= n)
                        continue;
                prompt_keys(s, MODEL_TOKENS, ++*seed, l->keys, BATCH); /* naming the blocks is not what is measured */
                start = now_nsec();
                must(kvt_put_reserve(s, NULL, l->keys, BATCH, 0, l->reservations, l->statuses), "kvt_put_reserve");
                all_zero(l->statuses, BATCH, "kvt_put_reserve of a block");
                for (size_t k = 0; fill && k < BATCH; k++)
                        memset(l->reservations[k].data, (int)k + 1, MODEL_BLOCK_BYTES);
                must(kvt_put_commit_async(s, l->reservations, BATCH, l->statuses, NULL, NULL, &l->op), "kvt_put_commit_async");
                nsec += now_nsec() - start;
        }
        return nsec;
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

static void memcpy_round(const struct shared *m, size_t n, struct samples *ret)
{
        uint64_t start = now_nsec();

        for (size_t i = 0; i < n; i++) {
                for (unsigned p = 0; p < MODEL_PLANES; p++)
                        memcpy(m->to + (i * 7 % m->n * MODEL_PLANES + p) * MODEL_PLANE_BYTES,
                               m->from + (i % (LANES * BATCH) * MODEL_PLANES + p) * MODEL_PLANE_BYTES, MODEL_PLANE_BYTES);
                if (i % BATCH == BATCH - 1) {
                        samples_add(ret, bandwidth(BATCH, now_nsec() - start));
                        start = now_nsec();
                }
        }
}

static void caller_round(kvt_space *s, const struct engine_kv *kv, size_t n, uint64_t *seed, struct samples *ret)
{
        for (size_t i = 0; i < n; i += BATCH) {
                kvt_view view = kv_view(kv, i * 3, BATCH);
                uint8_t statuses[BATCH];
                kvt_key keys[BATCH];

                prompt_keys(s, MODEL_TOKENS, ++*seed, keys, BATCH);
                uint64_t start = now_nsec();
                must(kvt_put(s, NULL, keys, BATCH, 0, &view, 0, statuses), "kvt_put");
                samples_add(ret, bandwidth(BATCH, now_nsec() - start));
                all_zero(statuses, BATCH, "kvt_put of a block");
        }
}

static void put_rows(kvt_space *s, const struct engine_kv *kv)
{
        static struct lane lanes[LANES];
        struct samples bare = {0}, staging = {0}, caller = {0};
        size_t n = 128;
        uint64_t seed = 1000;
        struct shared shared;

        shared_init(&shared, 255);
        staging_round(s, lanes, 640, &seed, true); /* fills the daemon and touches all of staging */
        for (unsigned r = 0; r < (quick() ? 3u : 21u); r++) {
                memcpy_round(&shared, n, &bare);
                samples_add(&staging, bandwidth(n, staging_round(s, lanes, n, &seed, false)));
                caller_round(s, kv, n, &seed, &caller);
        }
        row_print(&(struct row){"put_from_staging", "GiB/s", samples_quantile(&staging, 0.5), samples_quantile(&bare, 0.5),
                                "memcpy between shared memory of the same sizes, on one core", '>', 0.7,
                                "reserve and commit of 16 blocks, 4 batches under way; copied and hashed by one worker, evicting"});
        row_print(&(struct row){"put_from_caller", "GiB/s", samples_quantile(&caller, 0.5), samples_quantile(&bare, 0.5), "the same memcpy",
                                '>', 0.4, "kvt_put of 16 blocks out of scattered pages"});
        samples_deinit(&bare);
        samples_deinit(&staging);
        samples_deinit(&caller);
}

static void get_all(struct engine_kv *kv)
{
        struct daemon d;

        daemon_start(&d, 0, (const char *[]){"--host_bytes=1536M", NULL});
        kvt *c = daemon_open(&d, NULL);
        kvt_space *s = model_open(c);
        get_rows(&d, s, kv);
        kvt_space_close(s);
        kvt_close(c);
        daemon_stop(&d);
}

static void put_all_ways(const struct engine_kv *kv)
{
        struct daemon d;

        daemon_start(&d, 1, (const char *[]){"--host_bytes=1280M", "--staging_bytes=256M", NULL});
        kvt *c = daemon_open(&d, &(kvt_options){.staging_bytes = (uint64_t)(LANES * BATCH + BATCH) * MODEL_BLOCK_BYTES});
        kvt_space *s = model_open(c);
        put_rows(s, kv);
        kvt_space_close(s);
        kvt_close(c);
        daemon_stop(&d);
}

int main(int argc, char **argv)
{
        struct engine_kv kv;

        if (argc == 2) {
                cold_reader(argv[1]);
                return 0;
        }
        need_memory(3584ull << 20);
        pin(0);
        kv_init(&kv, PAGES, 4);
        get_all(&kv);
        put_all_ways(&kv);
        return 0;
}
