#include <fcntl.h>

#include "tests/lib/memory.h"

int memory_open(const struct daemon *d)
{
        char path[64];

        snprintf(path, sizeof(path), "/proc/%d/mem", d->pid);
        int mem = open(path, O_RDWR | O_CLOEXEC);
        if (mem < 0)
                check_skip("may not write to the daemon's memory (ptrace is restricted here)");
        return mem;
}

uint64_t memory_find_copy(const struct daemon *d, int mem, const void *payload, size_t n, uint32_t n_header)
{
        static const uint64_t nobody;
        char path[64], line[512];
        uint64_t found = 0;

        snprintf(path, sizeof(path), "/proc/%d/maps", d->pid);
        FILE *f = fopen(path, "re");
        CHECK(f);
        while (!found && fgets(line, sizeof(line), f)) {
                unsigned long long from, to;
                if (!strstr(line, "kvtier-slab") || sscanf(line, "%llx-%llx", &from, &to) != 2)
                        continue;
                size_t n_slab = (size_t)(to - from);
                uint8_t *bytes = malloc(n_slab);
                CHECK(bytes && pread(mem, bytes, n_slab, (off_t)from) == (ssize_t)n_slab);
                for (uint8_t *at = bytes; !found && (at = memmem(at, n_slab - (size_t)(at - bytes), payload, n)); at++)
                        if (at - bytes >= n_header && memcmp(at - n_header, &nobody, sizeof(nobody)))
                                found = from + (uint64_t)(at - bytes); /* generation 0: a copy that was, its slot is free */
                free(bytes);
        }
        fclose(f);
        return found;
}

void memory_flip(int mem, uint64_t at)
{
        uint8_t x;

        CHECK(pread(mem, &x, 1, (off_t)at) == 1);
        x ^= 0x10;
        CHECK(pwrite(mem, &x, 1, (off_t)at) == 1);
}
