/* get_raw_bandwidth: 2 MiB blocks into an engine's scattered KV pages, checksums compared, against memcpy from the same mapped blocks into the
 * same pages; get_raw_bandwidth_cold: the same by a process that has never mapped them. Client and daemon share a CPU, so that what the
 * daemon does counts. Batches of 16, each of which is a sample. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tests/bench/common.h"

enum { BATCH = 16, PAGES = 128, N_GET_MAX = 640 };
static const double batch_gib = (double)BATCH * MODEL_BLOCK_BYTES / (1u << 30);

static size_t n_get(void)
{
        return quick() ? 128 : N_GET_MAX;
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

static void get_batch(kvt_space *s, pid_t daemon, const struct engine_kv *kv, const kvt_key *keys, size_t at, struct undisturbed *ret)
{
        kvt_view view = kv_view(kv, at, BATCH);
        uint8_t statuses[BATCH];
        struct watch w;

        watch_start(&w, daemon);
        must(kvt_get(s, keys, BATCH, 0, &view, 0, statuses), "kvt_get");
        watch_stop(&w, ret, batch_gib);
        all_zero(statuses, BATCH, "kvt_get of a block");
}

static void memcpy_batch(kvt_space *s, const struct engine_kv *kv, const kvt_key *keys, size_t at, struct undisturbed *ret)
{
        kvt_mapping m[BATCH];
        uint8_t statuses[BATCH];
        struct watch w;

        must(kvt_map(s, keys, BATCH, m, statuses), "kvt_map");
        all_zero(statuses, BATCH, "kvt_map of a block");
        watch_start(&w, 0);
        for (size_t i = 0; i < BATCH; i++)
                for (unsigned p = 0; p < MODEL_PLANES; p++)
                        memcpy(kv_plane(kv, at, i, p), (const uint8_t *)m[i].data + p * MODEL_PLANE_BYTES, MODEL_PLANE_BYTES);
        watch_stop(&w, ret, batch_gib);
        must(kvt_unmap(s, m, BATCH, NULL), "kvt_unmap");
}

/* What arrived is what the pages held when it was put. */
static void check_batch(const struct engine_kv *put, const struct engine_kv *got, size_t at_put, size_t at_got)
{
        for (size_t i = 0; i < BATCH; i++)
                for (unsigned p = 0; p < MODEL_PLANES; p++)
                        if (memcmp(kv_plane(put, at_put, i, p), kv_plane(got, at_got, i, p), MODEL_PLANE_BYTES) != 0)
                                die("kvt_get returned other bytes than were put");
}

static void cold_reader(const char *socket, pid_t daemon)
{
        static kvt_key keys[N_GET_MAX];
        struct daemon d = {0};
        struct engine_kv kv;
        struct undisturbed all = {0};
        size_t n = n_get();

        pin(0);
        snprintf(d.socket, sizeof(d.socket), "%s", socket);
        kv_init(&kv, PAGES, 3);
        kvt *c = daemon_open(&d, NULL);
        kvt_space *s = model_open(c);
        prompt_keys(s, MODEL_TOKENS, 1, keys, n);
        for (size_t i = 0; i < n; i += BATCH)
                get_batch(s, daemon, &kv, keys + i, i, &all);
        printf("%f\n", undisturbed_median(&all));
        kvt_close(c);
}

static double run_cold_reader(const struct daemon *d)
{
        char command[256], line[64];
        FILE *f;

        snprintf(command, sizeof(command), "exec /proc/%d/exe '%s' %d", getpid(), d->socket, d->pid);
        f = popen(command, "re");
        if (!f || !fgets(line, sizeof(line), f) || pclose(f) != 0)
                die("the cold reader failed");
        return atof(line);
}

static void get_rows(const struct daemon *d, kvt_space *s, struct engine_kv *kv)
{
        static kvt_key keys[N_GET_MAX];
        struct undisturbed bare = {0}, ours = {0};
        struct samples cold = {0};
        struct engine_kv source;
        size_t n = n_get();
        char note[128];

        prompt_keys(s, MODEL_TOKENS, 1, keys, n);
        kv_init(&source, BATCH * 2, 2);
        put_all(s, &source, keys, n);
        for (unsigned r = 0; r < (quick() ? 2u : 7u); r++) { /* the first touches every mapped page */
                for (size_t i = 0; i < n; i += BATCH) {
                        size_t j = (i + n / 2 / BATCH * BATCH) % n; /* not the blocks that memcpy has just brought into the cache */

                        memcpy_batch(s, kv, keys + i, i * 3, &bare);
                        get_batch(s, d->pid, kv, keys + j, j * 3 + PAGES / 2, &ours);
                        if (!r)
                                check_batch(&source, kv, j, j * 3 + PAGES / 2);
                }
                if (!r) {
                        undisturbed_deinit(&bare);
                        undisturbed_deinit(&ours);
                }
        }
        for (unsigned r = 0; r < (quick() ? 1u : 3u); r++)
                samples_add(&cold, run_cold_reader(d));

        snprintf(note, sizeof(note), "%zu blocks, in pages of %d KiB a plane, working set %zu MiB", n, MODEL_PLANE_BYTES >> 10,
                 n * MODEL_BLOCK_BYTES >> 20);
        row_print(&(struct row){"get_raw_bandwidth", "GiB/s", undisturbed_median(&ours), undisturbed_median(&bare),
                                "memcpy from the same blocks into the same pages", '>', 0.85, note});
        row_print(&(struct row){"get_raw_bandwidth_cold", "GiB/s", samples_quantile(&cold, 0.5), undisturbed_median(&bare),
                                "the same memcpy, warm", 0, 0,
                                "first kvt_get of every block in a new process, its maps still unpopulated"});
        undisturbed_deinit(&bare);
        undisturbed_deinit(&ours);
        samples_deinit(&cold);
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

int main(int argc, char **argv)
{
        struct engine_kv kv;

        if (argc == 3) {
                cold_reader(argv[1], atoi(argv[2]));
                return 0;
        }
        need_memory(3584ull << 20);
        pin(0);
        kv_init(&kv, PAGES, 4);
        get_all(&kv);
        return 0;
}
