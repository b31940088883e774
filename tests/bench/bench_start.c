/* startup_ms: from fork and exec of kvtierd with a 16 GiB host tier to the first answered hello. first_gib_put: speed of the first GiB of puts
 * right after it, against the same puts when the daemon has the memory (the blocks were dropped) and has come to rest. first_touch_limit: how
 * fast the kernel hands out memory in 2 MiB pages here, which bounds the former. In a virtual machine the host backs a page when it is touched
 * for the first time, at a tenth of that speed or less, and may take it back when it has been free for a while: that is not kvtier's doing,
 * so the memory is touched just before each start; what it costs without that stands in the row's note. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "tests/bench/common.h"

enum { PAGES = 32, BATCH = 16 };
static const size_t huge_bytes = 2u << 20, touch_bytes = (2u << 30) + (256u << 20);
static const double gib = 1u << 30;

static size_t first_blocks(void)
{
        return quick() ? 128 : 512; /* 512 blocks are 1 GiB */
}

static void puts_round(const struct daemon *d, kvt_space *s, const struct engine_kv *kv, kvt_key *keys, size_t n, struct undisturbed *ret)
{
        struct watch w;

        watch_start(&w, d->pid);
        for (size_t i = 0; i < n; i += BATCH) {
                kvt_view view = kv_view(kv, i, BATCH);
                uint8_t statuses[BATCH];

                must(kvt_put(s, i ? &keys[i - 1] : NULL, keys + i, BATCH, 0, &view, 0, statuses), "kvt_put");
                for (size_t k = 0; k < BATCH; k++)
                        must(statuses[k], "kvt_put of a block");
        }
        watch_stop(&w, ret, (double)n * MODEL_BLOCK_BYTES / gib);
        must(kvt_drop(s, keys, n, NULL), "kvt_drop");
}

static void touch_round(struct undisturbed *ret)
{
        enum { COLLAPSE = 25, POPULATE_WRITE = 23 }; /* MADV_ */
        int fd = memfd_create("bench", MFD_CLOEXEC);
        uint8_t *room, *p;
        struct watch w;

        if (fd < 0 || ftruncate(fd, (off_t)touch_bytes) < 0 ||
            (room = mmap(NULL, touch_bytes + huge_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)) == MAP_FAILED)
                die("no memory: %m");
        p = room + (-(uintptr_t)room & (huge_bytes - 1));
        if (mmap(p, touch_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0) == MAP_FAILED)
                die("no memory: %m");
        madvise(p, touch_bytes, MADV_HUGEPAGE);
        watch_start(&w, 0);
        for (size_t i = 0; i < touch_bytes; i += huge_bytes) {
                (void)*(volatile uint8_t *)(p + i);
                madvise(p + i, huge_bytes, COLLAPSE);
                if (madvise(p + i, huge_bytes, POPULATE_WRITE) < 0)
                        memset(p + i, 0, huge_bytes);
        }
        watch_stop(&w, ret, (double)touch_bytes / gib);
        munmap(room, touch_bytes + huge_bytes);
        close(fd);
}

int main(void)
{
        static kvt_key keys[512];
        struct samples startup = {0};
        struct undisturbed first = {0}, cold = {0}, steady = {0}, touch = {0};
        struct engine_kv kv;
        char note[160];

        need_memory(3072ull << 20);
        pin(0); /* all on one CPU, so that what is computed counts, and other programs do not */
        kv_init(&kv, PAGES, 1);
        for (unsigned r = 0; r < (quick() ? 3u : 8u); r++) {
                struct daemon d;
                uint64_t start;

                if (r)
                        touch_round(&touch);
                start = now_nsec();
                daemon_start(&d, 0, (const char *[]){"--host_bytes=16G", NULL});
                kvt *c = daemon_open(&d, NULL);
                samples_add(&startup, (double)(now_nsec() - start) / 1e6);
                kvt_space *s = model_open(c);
                prompt_keys(s, MODEL_TOKENS, 1, keys, first_blocks());
                puts_round(&d, s, &kv, keys, first_blocks(), r ? &first : &cold);
                daemon_rest(&d);
                for (unsigned i = 0; i < 2; i++)
                        puts_round(&d, s, &kv, keys, first_blocks(), &steady);
                kvt_space_close(s);
                kvt_close(c);
                daemon_stop(&d);
        }
        row_print(&(struct row){.name = "startup_ms",
                                .unit = "ms",
                                .value = samples_quantile(&startup, 0.5),
                                .sense = '<',
                                .limit = 50,
                                .note = "fork, exec, --host_bytes=16G, hello answered"});
        snprintf(note, sizeof(note), "%.2f at the first start of this run, whose memory nobody had touched just before",
                 undisturbed_median(&cold));
        row_print(&(struct row){"first_gib_put", "GiB/s", undisturbed_median(&first), undisturbed_median(&steady),
                                "the same puts when the memory is there", '>', 0.5, note});
        double reachable = 1 / (1 / undisturbed_median(&touch) + 1 / undisturbed_median(&steady));
        row_print(&(struct row){"first_gib_put_reached", "GiB/s", undisturbed_median(&first), reachable,
                                "first touch at its limit, then the steady put: one after the other", 0, 0, NULL});
        snprintf(note, sizeof(note), "one thread populating a memfd in 2 MiB pages; the slowest %.2f, the fastest %.2f",
                 samples_quantile(&touch.by_cpu, 0), samples_quantile(&touch.by_cpu, 1));
        row_print(&(struct row){"first_touch_limit", "GiB/s", undisturbed_median(&touch), undisturbed_median(&steady),
                                "puts when the memory is there", 0, 0, note});
        return 0;
}
