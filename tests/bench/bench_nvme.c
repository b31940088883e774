/* The NVMe tier against fio on a file beside it: same file system, direct I/O, same sizes and depths, both files written all over before. Rounds of
 * both alternate, and their medians are compared.
 *
 * In this process, with the daemon's engine (no sessions):
 *   nvme_write_bandwidth    2 MiB blocks in memory are demoted as in the background (verified, hashed by page, logged); the clock stops after a flush
 *   nvme_read_256k_qd16     blocks of 256 KiB in random order into staging, 16 under way, verified
 *   nvme_row_4k_latency     a plane of 4 KiB of a random block of 256 KiB into staging, one at a time, verified, with busy_poll_usec;
 *                           nvme_row_4k_sleeping: without
 * By a client of the real daemon:
 *   nvme_get_2mib           kvt_match and kvt_get of prompts of 64 blocks that are on NVMe only, into an engine's pages
 *   nvme_row_4k_client      the same as nvme_row_4k_latency with kvt_get_planes(), for the record
 *   nvme_recover_ms         100,000 records of blocks of 8 KiB, the daemon killed and started again; the first match is in the note */
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

#include "tests/bench/fio.h"
#include "tests/bench/nvme_engine.h"

enum {
        MIB = 1 << 20,
        WRITE_BLOCKS = 192, /* of 2 MiB */
        ROWS = 64, /* planes of 4 KiB in a block of 256 KiB */
        SMALL_BLOCKS = 2048, /* of 256 KiB */
        DEPTH = 16,
        FIO_BYTES = SMALL_BLOCKS * (256 << 10), /* both read from as much */
        PROMPT = 64,
        N_PROMPTS = 10,
        RECORDS = 100000,
        CHAIN = 1000,
};

static char fio_path[128];

static unsigned n_rounds(void)
{
        return quick() ? 3 : 9;
}

static struct fio_result fio(const char *rw, uint64_t block_bytes, unsigned depth)
{
        return fio_run(&(struct fio_job){.path = fio_path,
                                         .rw = rw,
                                         .block_bytes = block_bytes,
                                         .size_bytes = FIO_BYTES,
                                         .depth = depth,
                                         .msec = quick() ? 400 : 1000});
}

static void ratio_row(const char *name, const char *unit, struct samples *ours, struct samples *base, double scale, const char *of,
                      char sense, double limit, const char *note)
{
        row_print(&(struct row){.name = name,
                                .unit = unit,
                                .value = samples_quantile(ours, 0.5) / scale,
                                .baseline = samples_quantile(base, 0.5) / scale,
                                .of = of,
                                .sense = sense,
                                .limit = limit,
                                .note = note});
}

/* in this process */

struct inside {
        struct loop l;
        struct staging *staging;
        struct space *large, *small;
};
static struct inside in;

static void on_put(struct engine *e, struct put *p, int r)
{
        must(r, "a put");
        in.l.n_pending--;
}

/* From the noise in staging: blocks without parents. */
static void put_blocks(struct space *s, uint64_t first, uint32_t n)
{
        struct put *puts = calloc(n, sizeof(*puts));

        if (!puts)
                die("no memory");
        for (uint32_t i = 0; i < n; i++) {
                puts[i] = (struct put){.space = s, .staging = in.staging, .done = on_put};
                list_init(&puts[i].link);
                loop_key(first + i, puts[i].key);
                int r = put_start(&in.l.e, &puts[i]);
                if (r != PUT_PENDING)
                        die("a put: %s", kvt_strerror(r));
                in.l.n_pending++;
        }
        while (in.l.n_pending)
                loop_pass(&in.l);
        free(puts);
}

static void synced(struct nvme_sync_all *s, int r)
{
        must(r, "a flush");
        *(bool *)s->arg = true;
}

/* All blocks go to the device, as in the background, and are on stable storage. */
static void demote_all(struct space *s, uint64_t first, uint32_t n)
{
        bool done = false;
        struct nvme_sync_all sync = {.done = synced, .arg = &done};
        uint8_t key[16];

        in.l.conf.p.nvme_admit_hits = 0;
        for (uint32_t i = 0; i < n; i++) {
                loop_key(first + i, key);
                demote_consider(&in.l.e, s, blocks_find(&in.l.e.blocks, s->id, key), false);
        }
        in.l.conf.p.nvme_admit_hits = 1000;
        while (in.l.e.demotes.n || in.l.e.n_demoting)
                loop_pass(&in.l);
        nvme_sync_start(&in.l.e.nvme, &sync);
        while (!done)
                loop_pass(&in.l);
        for (uint32_t i = 0; i < n; i++) {
                loop_key(first + i, key);
                if (nvme_find(&in.l.e.nvme, s, 0, key) == POOL_NONE)
                        die("a block was not written");
        }
}

static void forget_all(struct space *s, uint64_t first, uint32_t n)
{
        uint8_t key[16];

        for (uint32_t i = 0; i < n; i++) {
                loop_key(first + i, key);
                nvme_forget(&in.l.e.nvme, nvme_find(&in.l.e.nvme, s, 0, key), KVT_WHY_DROPPED);
        }
}

static void write_row(void)
{
        struct samples ours = {}, base = {};

        put_blocks(in.large, 0, WRITE_BLOCKS);
        for (unsigned r = 0; r < n_rounds() + 1; r++) {
                struct fio_result f = fio_run(&(struct fio_job){.path = fio_path,
                                                                .rw = "write",
                                                                .block_bytes = MODEL_BLOCK_BYTES,
                                                                .size_bytes = (uint64_t)WRITE_BLOCKS * MODEL_BLOCK_BYTES,
                                                                .depth = (unsigned)in.l.conf.p.nvme_queue_depth});
                uint64_t start = now_nsec();
                demote_all(in.large, 0, WRITE_BLOCKS);
                double sec = (double)(now_nsec() - start) / 1e9;
                forget_all(in.large, 0, WRITE_BLOCKS);
                if (!r)
                        continue; /* the first touches all memory */
                samples_add(&ours, (double)WRITE_BLOCKS * MODEL_BLOCK_BYTES / sec);
                samples_add(&base, f.bytes_sec);
        }
        ratio_row("nvme_write_bandwidth", "GB/s", &ours, &base, 1e9, "fio, io_uring, write of 2 MiB, as deep, synced at the end", '>', 0.9,
                  "192 blocks of 2 MiB out of memory through the engine, until flushed");
        samples_deinit(&ours);
        samples_deinit(&base);
}

/* fetches */

struct fetch {
        struct get get;
        bool busy;
};
static struct fetch fetches[DEPTH];

static void on_fetch(struct engine *e, struct get *g, int r)
{
        must(r, "a read");
        container_of(g, struct fetch, get)->busy = false;
        in.l.n_pending--;
}

static void fetch(unsigned i, uint32_t first_plane, uint32_t end_plane)
{
        struct fetch *f = &fetches[i];
        uint8_t key[16];

        loop_key((uint64_t)random() % SMALL_BLOCKS, key);
        f->get = (struct get){.done = on_fetch};
        f->busy = true;
        int r = fetch_start(&in.l.e, &f->get, in.small, 0, key, in.staging, (uint64_t)i * (256 << 10), first_plane, end_plane);
        if (r != PUT_PENDING)
                die("a read: %s", kvt_strerror(r));
        in.l.n_pending++;
}

static double read_round(uint64_t msec)
{
        uint64_t start = now_nsec(), n = 0;

        while (now_nsec() < start + msec * 1000000) {
                for (unsigned i = 0; i < DEPTH; i++)
                        if (!fetches[i].busy) {
                                fetch(i, 0, ROWS);
                                n++;
                        }
                loop_pass(&in.l);
        }
        while (in.l.n_pending)
                loop_pass(&in.l);
        return (double)n * (256 << 10) / ((double)(now_nsec() - start) / 1e9);
}

static double row_round(uint64_t msec)
{
        struct samples s = {};

        for (uint64_t end = now_nsec() + msec * 1000000; now_nsec() < end;) {
                uint64_t start = now_nsec();
                uint32_t p = (uint32_t)random() % ROWS;
                fetch(0, p, p + 1);
                while (in.l.n_pending)
                        loop_pass(&in.l);
                samples_add(&s, (double)(now_nsec() - start) / 1000);
        }
        double median = samples_quantile(&s, 0.5);
        samples_deinit(&s);
        return median;
}

static void read_row(void)
{
        struct samples ours = {}, base = {};

        for (uint32_t i = 0; i < SMALL_BLOCKS; i += 256) {
                put_blocks(in.small, i, 256);
                demote_all(in.small, i, 256);
        }
        for (unsigned r = 0; r < n_rounds(); r++) {
                samples_add(&base, fio("randread", 256 << 10, DEPTH).bytes_sec);
                samples_add(&ours, read_round(quick() ? 400 : 1000));
        }
        ratio_row("nvme_read_256k_qd16", "GB/s", &ours, &base, 1e9, "fio, io_uring, randread of 256 KiB, 16 deep", '>', 0.9,
                  "blocks of 256 KiB with their headers, verified, into staging");
        samples_deinit(&ours);
        samples_deinit(&base);
}

static void latency_row(const char *name, char sense, const char *note)
{
        struct samples ours = {}, base = {};

        for (unsigned r = 0; r < n_rounds(); r++) {
                samples_add(&base, fio("randread", 4096, 1).p50_usec);
                samples_add(&ours, row_round(quick() ? 300 : 1000));
        }
        ratio_row(name, "us", &ours, &base, 1, "fio, io_uring, randread of 4 KiB, 1 deep, median of lat (from asking to having it)", sense,
                  1.2, note);
        samples_deinit(&ours);
        samples_deinit(&base);
}

static void inside_start(const char *path, const char *more)
{
        char config[512];

        snprintf(config, sizeof(config),
                 "nvme_devices = %s\nnvme_scrub_bytes_sec = 0\nhost_bytes = 768M\nprealloc_bytes = 640M\nnvme_admit_hits = 1000\n%s", path,
                 more);
        loop_start(&in.l, config);
        in.large = loop_space(&in.l, "large", 32, MODEL_PLANE_BYTES);
        in.small = loop_space(&in.l, "small", ROWS, 4096);
        must(staging_new(&in.staging, &in.l.e, in.l.tenant, (uint64_t)DEPTH * (256 << 10)), "staging_new");
        for (uint64_t i = 0; i < in.staging->bytes; i++)
                in.staging->base[i] = (uint8_t)random();
}

static void inside_stop(void)
{
        in.staging = staging_unref(in.staging);
        loop_stop(&in.l);
}

static void inside_rows(void)
{
        char path[128];

        snprintf(path, sizeof(path), "%s/inside", scratch());
        noise_file(path, 1536ull * MIB, MIB);
        inside_start(path, "");
        write_row();
        read_row();
        latency_row("nvme_row_4k_sleeping", 0, "the same where loop and io thread sleep while they wait: each wakes the other");
        inside_stop();
        inside_start(path, "busy_poll_usec = 1ms\n"); /* what was written is there again */
        latency_row("nvme_row_4k_latency", '<',
                    "one plane of 4 KiB with its header, verified, into staging; in the daemon's engine, with busy_poll_usec");
        inside_stop();
        unlink(path);
}

/* clients of the real daemon */

static char nvme_param[160];

static void start(struct daemon *d, const char *host_bytes)
{
        daemon_start(d, ALL_CPUS,
                     (const char *[]){nvme_param, host_bytes, "--nvme_admit_hits=0", "--nvme_scrub_bytes_sec=0", "--nvme_bytes=3G",
                                      "--nvme_readahead_blocks=0", NULL});
}

/* What it had read from devices. */
static uint64_t read_bytes(const struct daemon *d)
{
        unsigned long long n = 0;
        char path[64], line[128];

        snprintf(path, sizeof(path), "/proc/%d/io", d->pid);
        FILE *f = fopen(path, "re");
        while (f && fgets(line, sizeof(line), f) && sscanf(line, "read_bytes: %llu", &n) != 1)
                ;
        if (f)
                fclose(f);
        return n;
}

static double get_prompt(kvt_space *s, const kvt_key *keys, const struct engine_kv *kv)
{
        kvt_view view = kv_view(kv, 0, PROMPT);
        uint8_t statuses[PROMPT];
        kvt_match_result m;
        uint64_t start_nsec = now_nsec();

        must(kvt_match(s, keys, PROMPT, 0, 0, &m), "kvt_match");
        if (m.n_blocks != PROMPT)
                die("%zu blocks of %d match", m.n_blocks, PROMPT);
        must(kvt_get(s, keys, PROMPT, 0, &view, 0, statuses), "kvt_get");
        double sec = (double)(now_nsec() - start_nsec) / 1e9;
        for (unsigned i = 0; i < PROMPT; i++)
                must(statuses[i], "kvt_get of a block");
        return (double)PROMPT * MODEL_BLOCK_BYTES / sec;
}

static void get_row(void)
{
        static kvt_key keys[N_PROMPTS][PROMPT];
        struct samples ours = {}, base = {};
        struct engine_kv from, to;
        struct daemon d;
        uint64_t expected = 0, before;

        kv_init(&from, PROMPT, 1);
        kv_init(&to, PROMPT, 2);
        start(&d, "--host_bytes=640M");
        kvt *c = daemon_open(&d, NULL);
        kvt_space *s = model_open(c);
        for (unsigned p = 0; p < N_PROMPTS; p++) {
                kvt_view view = kv_view(&from, 0, PROMPT);
                uint8_t statuses[PROMPT];
                prompt_keys(s, MODEL_TOKENS, p, keys[p], PROMPT);
                must(kvt_put(s, NULL, keys[p], PROMPT, 0, &view, KVT_PUT_DURABLE, statuses), "kvt_put");
                for (unsigned i = 0; i < PROMPT; i++)
                        must(statuses[i], "kvt_put of a block");
        }
        daemon_rest(&d);
        before = read_bytes(&d);
        for (unsigned r = 0; r < (quick() ? 1u : 3u); r++)
                for (unsigned p = 0; p < N_PROMPTS; p++) {
                        samples_add(&ours, get_prompt(s, keys[p], &to));
                        expected += (uint64_t)PROMPT * MODEL_BLOCK_BYTES;
                        if (p % 3 == 0)
                                samples_add(&base, fio("randread", MODEL_BLOCK_BYTES, DEPTH).bytes_sec);
                }
        if (read_bytes(&d) - before < expected / 20 * 19)
                die("not all came from NVMe: %llu MiB of %llu", (unsigned long long)(read_bytes(&d) - before) / MIB,
                    (unsigned long long)expected / MIB);
        for (unsigned i = 0; i < PROMPT; i++)
                for (unsigned p = 0; p < MODEL_PLANES; p++)
                        if (memcmp(kv_plane(&from, 0, i, p), kv_plane(&to, 0, i, p), MODEL_PLANE_BYTES) != 0)
                                die("kvt_get returned other bytes than were put");
        ratio_row("nvme_get_2mib", "GB/s", &ours, &base, 1e9, "fio, io_uring, randread of 2 MiB, 16 deep", '>', 0.8,
                  "kvt_match and kvt_get of 64 blocks at once, verified, into an engine's pages; all had left memory");
        kvt_space_close(s);
        kvt_close(c);
        daemon_stop(&d);
        samples_deinit(&ours);
        samples_deinit(&base);
}

static kvt_space *rows_open(kvt *c)
{
        kvt_plane planes[ROWS];
        kvt_space_config config = {
                .struct_size = sizeof(config), .name = "rows", .block_tokens = 1, .n_shards = 1, .planes = planes, .n_planes = ROWS};
        kvt_space *s;

        for (uint32_t i = 0; i < ROWS; i++)
                planes[i] = (kvt_plane){.layer = i, .dtype = KVT_DTYPE_OPAQUE, .heads = 1, .opaque_bytes = 4096};
        must(kvt_space_open(c, &config, &s), "kvt_space_open");
        return s;
}

static void row_client(void)
{
        enum { BLOCKS = 1024 };
        static kvt_key keys[BLOCKS];
        static uint8_t room[ROWS][4096], statuses[BLOCKS];
        kvt_plane_view planes[ROWS];
        kvt_view view = {.planes = planes, .n_planes = ROWS};
        struct samples s = {}, base = {};
        struct daemon d;

        for (unsigned i = 0; i < ROWS; i++)
                planes[i] = (kvt_plane_view){.base = room[i], .token_stride = 0, .head_stride = 4096};
        start(&d, "--host_bytes=64M"); /* 16 MiB of it are put again and again: what is read is not in memory */
        kvt *c = daemon_open(&d, NULL);
        kvt_space *space = rows_open(c);
        prompt_keys(space, 1, 9, keys, BLOCKS);
        must(kvt_put(space, NULL, keys, BLOCKS, 0, &view, KVT_PUT_DURABLE, statuses), "kvt_put");
        kvt_space_close(space);
        kvt_close(c);
        daemon_stop(&d);
        start(&d, "--host_bytes=64M");
        c = daemon_open(&d, NULL);
        space = rows_open(c);
        for (uint64_t end = now_nsec() + 5000000000; now_nsec() < end;) { /* until it is recovered */
                int r = kvt_get_planes(space, &keys[BLOCKS - 1], 1, 0, &view, 0, 0, 1, statuses);
                if (!r && !statuses[0])
                        break;
        }
        for (unsigned r = 0; r < n_rounds(); r++) {
                samples_add(&base, fio("randread", 4096, 1).p50_usec);
                for (unsigned i = 0; i < 1000; i++) {
                        uint64_t start_nsec = now_nsec();
                        must(kvt_get_planes(space, &keys[random() % BLOCKS], 1, 0, &view, 0, (size_t)random() % ROWS, 1, statuses),
                             "kvt_get_planes");
                        must(statuses[0], "kvt_get_planes of a block");
                        samples_add(&s, (double)(now_nsec() - start_nsec) / 1000);
                }
        }
        ratio_row("nvme_row_4k_client", "us", &s, &base, 1,
                  "fio, io_uring, randread of 4 KiB, 1 deep, median of lat (from asking to having it)", 0, 0,
                  "kvt_get_planes() of one plane of 4 KiB of a block on NVMe only");
        kvt_space_close(space);
        kvt_close(c);
        daemon_stop(&d);
        samples_deinit(&s);
        samples_deinit(&base);
}

/* What kvtierctl says of the device. */
static double device_number(const struct daemon *d, const char *name)
{
        char command[700], text[8192] = "", quoted[64], self[512];
        ssize_t k = readlink("/proc/self/exe", self, sizeof(self) - 1);

        if (k < 0)
                die("readlink: %m");
        self[k] = 0;
        for (int up = 0; up < 3; up++)
                *strrchr(self, '/') = 0;
        snprintf(command, sizeof(command), "exec '%s/kvtierctl' --json --socket '%s' devices", self, d->socket);
        FILE *f = popen(command, "re");
        size_t n = f ? fread(text, 1, sizeof(text) - 1, f) : 0;
        if (!f || pclose(f) != 0)
                die("kvtierctl devices failed");
        text[n] = 0;
        snprintf(quoted, sizeof(quoted), "\"%s\":", name);
        const char *at = strstr(text, quoted);
        if (!at)
                die("kvtierctl devices says no %s", name);
        return atof(at + strlen(quoted));
}

static void recover_row(void)
{
        static kvt_key keys[CHAIN];
        static uint8_t room[16 * 512], statuses[CHAIN];
        kvt_plane_view plane = {.base = room, .token_stride = 0, .head_stride = 512};
        kvt_view view = {.planes = &plane, .n_planes = 1};
        struct samples recover = {}, first = {};
        struct daemon d;
        char note[160];

        start(&d, "--host_bytes=256M");
        kvt *c = daemon_open(&d, NULL);
        kvt_space *s = tiny_open(c, 16, 512);
        for (unsigned i = 0; i < RECORDS / CHAIN; i++) {
                prompt_keys(s, 16, i, keys, CHAIN);
                must(kvt_put(s, NULL, keys, CHAIN, 0, &view, KVT_PUT_DURABLE, statuses), "kvt_put");
                for (unsigned k = 0; k < CHAIN; k++)
                        must(statuses[k], "kvt_put of a block");
        }
        for (unsigned r = 0; r < (quick() ? 1u : 5u); r++) {
                kvt_match_result m = {0};
                kvt_space_close(s);
                kvt_close(c);
                daemon_stop(&d); /* SIGKILL */
                uint64_t start_nsec = now_nsec();
                start(&d, "--host_bytes=256M");
                c = daemon_open(&d, NULL);
                s = tiny_open(c, 16, 512);
                while (m.n_blocks != CHAIN) {
                        must(kvt_match(s, keys, CHAIN, 0, 0, &m), "kvt_match");
                        if (now_nsec() > start_nsec + 30000000000)
                                die("%zu of %d blocks are back after 30 s", m.n_blocks, CHAIN);
                }
                samples_add(&first, (double)(now_nsec() - start_nsec) / 1e6);
                while (device_number(&d, "n_records") < RECORDS) { /* all are back; it goes on after the first match */
                        if (now_nsec() > start_nsec + 30000000000)
                                die("%.0f of %d records are back after 30 s", device_number(&d, "n_records"), RECORDS);
                        usleep(20000);
                }
                samples_add(&recover, device_number(&d, "recover_usec") / 1e3);
        }
        snprintf(note, sizeof(note), "%d blocks of 8 KiB in chains of %d; the one written last matches whole %.0f ms after exec", RECORDS,
                 CHAIN, samples_quantile(&first, 0.5));
        row_print(&(struct row){.name = "nvme_recover_ms",
                                .unit = "ms",
                                .value = samples_quantile(&recover, 0.5),
                                .sense = '<',
                                .limit = 1000,
                                .note = note});
        kvt_space_close(s);
        kvt_close(c);
        daemon_stop(&d);
        samples_deinit(&recover);
        samples_deinit(&first);
}

/* A device of its own for each. */
static void outside(const char *name, void (*f)(void))
{
        char path[128];

        snprintf(path, sizeof(path), "%s/%s", scratch(), name);
        snprintf(nvme_param, sizeof(nvme_param), "--nvme_devices=%s", path);
        noise_file(path, 1792ull * MIB, MIB);
        f();
        unlink(path);
}

int main(void)
{
        need_memory(1536ull * MIB);
        snprintf(fio_path, sizeof(fio_path), "%s/fio", scratch());
        noise_file(fio_path, FIO_BYTES, 0);
        inside_rows();
        outside("get", get_row);
        outside("rows", row_client);
        outside("recover", recover_row);
        return 0;
}
