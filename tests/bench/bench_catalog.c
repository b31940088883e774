/* nvme_index_bytes_per_block: memory of the catalog (what it counts itself, and what the process grew by, whichever is more) for 1 TiB of blocks of
 * 256 KiB in chains of 512, by their number. nvme_index_lookup_ns: a look-up of a random one of them, as a match does it for each block of a
 * prompt; every other one is of a block that is not there. */
#include <stdio.h>
#include <string.h>

#include "daemon/store/catalog.h"
#include "tests/bench/common.h"

enum { N_BLOCKS = 1 << 22, DEPTH = 512, BATCH = 1 << 14 };

static uint64_t mixed(uint64_t x)
{
        x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
        x = (x ^ x >> 27) * 0x94d049bb133111ebu;
        return x ^ x >> 31;
}

static void key_of(uint64_t n, uint8_t key[16])
{
        uint64_t half[2] = {mixed(n), mixed(n ^ 1ull << 60)};

        memcpy(key, half, 16);
}

static uint64_t resident_bytes(void)
{
        unsigned long long pages;
        FILE *f = fopen("/proc/self/statm", "re");

        if (!f || fscanf(f, "%*u %llu", &pages) != 1)
                die("/proc/self/statm: %m");
        fclose(f);
        return pages * (uint64_t)sysconf(_SC_PAGESIZE);
}

static void fill(struct catalog *c)
{
        uint8_t key[16], parent[16];

        for (uint64_t n = 0; n < N_BLOCKS; n++) {
                struct record_at at = {.segment = (uint32_t)(n / 252), .page = 1 + (uint32_t)(n % 252) * 65, .n_pages = 65};
                key_of(n, key);
                if (catalog_add(c, 1, 0, key, n % DEPTH ? parent : NULL, at, 0) == POOL_NONE)
                        die("no room for block %llu", (unsigned long long)n);
                memcpy(parent, key, 16);
        }
}

static void lookup_row(const struct catalog *c)
{
        static uint8_t keys[BATCH][16];
        unsigned n_batches = quick() ? 50 : 500;
        struct samples s = {};
        char note[160];

        for (unsigned b = 0; b < n_batches; b++) {
                uint32_t found = 0;
                for (uint64_t i = 0; i < BATCH; i++)
                        key_of(mixed(b * BATCH + i) % N_BLOCKS + (i & 1) * N_BLOCKS, keys[i]);
                uint64_t start = now_nsec();
                for (uint32_t i = 0; i < BATCH; i++)
                        found += catalog_find_live(c, 1, 0, keys[i]) != POOL_NONE;
                samples_add(&s, (double)(now_nsec() - start) / BATCH);
                if (found != BATCH / 2)
                        die("%u of %d blocks were found", found, BATCH / 2);
        }
        double median = samples_quantile(&s, 0.5);
        snprintf(note, sizeof(note), "median of %u batches of %d; %.1f million a second; half of them misses", n_batches, BATCH,
                 1000 / median);
        row_print(&(struct row){.name = "nvme_index_lookup_ns", .unit = "ns", .value = median, .note = note});
        samples_deinit(&s);
}

int main(void)
{
        struct catalog c;
        uint64_t before, grown, counted;
        char note[160];

        need_memory(512ull << 20);
        pin(0);
        before = resident_bytes();
        must(catalog_init(&c, 1u << 31), "catalog_init");
        fill(&c);
        grown = resident_bytes() - before;
        counted = catalog_bytes(&c);
        snprintf(note, sizeof(note), "%d blocks; counted %.1f MiB, resident memory grew by %.1f MiB", N_BLOCKS, (double)counted / (1 << 20),
                 (double)grown / (1 << 20));
        row_print(&(struct row){.name = "nvme_index_bytes_per_block",
                                .unit = "bytes",
                                .value = (double)MAX(grown, counted) / N_BLOCKS,
                                .sense = '<',
                                .limit = 48,
                                .note = note});
        lookup_row(&c);
        catalog_deinit(&c);
        return 0;
}
