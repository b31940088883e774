/* metadata_bytes_per_block: what a million tiny blocks cost kvtierd beside their payload: the growth of its resident memory (anonymous, file
 * and shared pages of /proc/PID/status) from before the first put to after the last, less the payload, by the number of blocks. It counts index,
 * blocks, slot tables, headers and rounding in slabs, what is not used of the last slab, staging, and every page of heap and stacks that was
 * touched meanwhile. idle_wakeups: context switches of all threads of a daemon with one tenant, a live lease and 1,000 connected
 * sessions that say nothing. */
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "tests/bench/common.h"

enum { CHAIN = 2048, PAYLOAD = 16, N_SESSIONS = 1000 };

/* Sum of the numbers behind these keys in a /proc status file. */
static uint64_t status_sum(const char *path, const char *const *keys)
{
        char line[256];
        uint64_t sum = 0;
        FILE *f = fopen(path, "re");

        if (!f)
                die("%s: %m", path);
        while (fgets(line, sizeof(line), f))
                for (const char *const *k = keys; *k; k++)
                        if (!strncmp(line, *k, strlen(*k)))
                                sum += strtoull(line + strlen(*k), NULL, 10);
        fclose(f);
        return sum;
}

static uint64_t resident_bytes(pid_t pid)
{
        char path[64];

        snprintf(path, sizeof(path), "/proc/%d/status", pid);
        return status_sum(path, (const char *[]){"RssAnon:", "RssFile:", "RssShmem:", NULL}) * 1024;
}

static uint64_t context_switches(pid_t pid)
{
        char path[512];
        uint64_t sum = 0;
        struct dirent *e;
        DIR *d;

        snprintf(path, sizeof(path), "/proc/%d/task", pid);
        d = opendir(path);
        if (!d)
                die("%s: %m", path);
        while ((e = readdir(d)))
                if (e->d_name[0] != '.') {
                        snprintf(path, sizeof(path), "/proc/%d/task/%s/status", pid, e->d_name);
                        sum += status_sum(path, (const char *[]){"voluntary_ctxt_switches:", "nonvoluntary_ctxt_switches:", NULL});
                }
        closedir(d);
        return sum;
}

static void metadata_row(void)
{
        static kvt_key keys[CHAIN];
        static uint8_t bytes[CHAIN * PAYLOAD], statuses[CHAIN];
        kvt_plane_view plane = {.base = bytes, .token_stride = PAYLOAD, .head_stride = PAYLOAD};
        kvt_view view = {.planes = &plane, .n_planes = 1};
        size_t n = 489 * CHAIN; /* 489 * 2048 is just over a million */
        kvt_stats stats = {.struct_size = sizeof(stats)};
        struct daemon d;
        uint64_t before, grown;
        char note[160];

        daemon_start(&d, 1, (const char *[]){"--host_bytes=512M", "--prealloc_bytes=0", "--max_blocks=1002000", NULL});
        kvt *c = daemon_open(&d, &(kvt_options){.staging_bytes = 1 << 20});
        kvt_space *s = tiny_open(c, 1, PAYLOAD);
        before = resident_bytes(d.pid);
        for (size_t i = 0; i < n; i += CHAIN) {
                prompt_keys(s, 1, i + 1, keys, CHAIN);
                must(kvt_put(s, NULL, keys, CHAIN, 0, &view, 0, statuses), "kvt_put");
                for (size_t k = 0; k < CHAIN; k++)
                        must(statuses[k], "kvt_put of a block");
        }
        must(kvt_stat(c, &stats), "kvt_stat");
        if (stats.n_blocks != n)
                die("the daemon holds %llu blocks, not %zu", (unsigned long long)stats.n_blocks, n);
        grown = resident_bytes(d.pid) - before;
        snprintf(note, sizeof(note), "%zu blocks of %d bytes; resident memory grew by %.1f MiB", n, PAYLOAD, (double)grown / (1 << 20));
        row_print(&(struct row){.name = "metadata_bytes_per_block",
                                .unit = "bytes",
                                .value = (double)(grown - n * PAYLOAD) / (double)n,
                                .sense = '<',
                                .limit = 160,
                                .note = note});
        kvt_space_close(s);
        kvt_close(c);
        daemon_stop(&d);
}

static void idle_row(void)
{
        static kvt *quiet[N_SESSIONS];
        static uint8_t bytes[PAYLOAD];
        kvt_plane_view plane = {.base = bytes, .token_stride = PAYLOAD, .head_stride = PAYLOAD};
        kvt_view view = {.planes = &plane, .n_planes = 1};
        kvt_options options = {.flags = KVT_OPEN_NO_THREAD};
        unsigned seconds = quick() ? 2 : 10;
        struct rlimit files;
        kvt_mapping m;
        struct daemon d;
        uint8_t status;
        kvt_key key;

        if (getrlimit(RLIMIT_NOFILE, &files) < 0 || files.rlim_max < N_SESSIONS + 100)
                skip("1,000 sessions need as many file descriptors");
        files.rlim_cur = files.rlim_max;
        setrlimit(RLIMIT_NOFILE, &files);
        /* the lease outlives the measurement; what waits for hellos has ended before it */
        daemon_start(&d, 1, (const char *[]){"--host_bytes=256M", "--lease_usec=1h", "--hello_timeout_usec=500ms", NULL});
        kvt *c = daemon_open(&d, &options);
        kvt_space *s = tiny_open(c, 1, PAYLOAD);
        prompt_keys(s, 1, 1, &key, 1);
        must(kvt_put(s, NULL, &key, 1, 0, &view, 0, &status), "kvt_put");
        must(kvt_map(s, &key, 1, &m, &status), "kvt_map");
        must(status, "kvt_map of a block");
        for (size_t i = 0; i < N_SESSIONS; i++)
                quiet[i] = daemon_open(&d, &options);
        sleep(2);
        uint64_t before = context_switches(d.pid);
        sleep(seconds);
        uint64_t after = context_switches(d.pid);
        kvt_stats stats = {.struct_size = sizeof(stats)};
        must(kvt_stat(c, &stats), "kvt_stat");
        if (stats.n_leases != 1)
                die("%llu leases are live, not one", (unsigned long long)stats.n_leases);
        row_print(&(struct row){.name = "idle_wakeups",
                                .unit = "per second",
                                .value = (double)(after - before) / seconds,
                                .sense = '<',
                                .limit = 0,
                                .note = "context switches of all threads: one tenant, a live lease, 1,000 quiet sessions"});
        for (size_t i = 0; i < N_SESSIONS; i++)
                kvt_close(quiet[i]);
        must(kvt_unmap(s, &m, 1, NULL), "kvt_unmap");
        kvt_space_close(s);
        kvt_close(c);
        daemon_stop(&d);
}

int main(void)
{
        need_memory(1024ull << 20);
        pin(0);
        metadata_row();
        idle_row();
        return 0;
}
