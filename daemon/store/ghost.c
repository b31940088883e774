#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#include "daemon/store/ghost.h"

enum { WAYS = 4 };

int ghosts_init(struct ghosts *g, uint32_t n_entries)
{
        g->n_buckets = n_entries / WAYS;
        g->entries = mmap(NULL, sizeof *g->entries * WAYS * g->n_buckets, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (g->entries == MAP_FAILED) {
                g->entries = NULL;
                return -errno;
        }
        return 0;
}

void ghosts_deinit(struct ghosts *g)
{
        if (g->entries)
                munmap(g->entries, sizeof *g->entries * WAYS * g->n_buckets);
        g->entries = NULL;
}

static struct ghost_entry *bucket(const struct ghosts *g, uint32_t space, const uint8_t key[16])
{
        uint64_t x;

        memcpy(&x, key + 4, 8);
        x = (x ^ space) * 0x9e3779b97f4a7c15ull;
        return &g->entries[(size_t)((x >> 32) * g->n_buckets >> 32) * WAYS];
}

void ghosts_add(struct ghosts *g, uint32_t space, const uint8_t key[16], uint8_t why, uint32_t now_sec)
{
        struct ghost_entry *b = bucket(g, space, key), *to = b;

        for (int i = 0; i < WAYS; i++) {
                if (b[i].space == space && !memcmp(b[i].key, key, 16)) {
                        to = &b[i];
                        break;
                }
                if (b[i].when_sec < to->when_sec || (!b[i].space && to->space))
                        to = &b[i];
        }
        *to = (struct ghost_entry){.space = space, .when_sec = now_sec, .why = why};
        memcpy(to->key, key, 16);
}

const struct ghost_entry *ghosts_find(const struct ghosts *g, uint32_t space, const uint8_t key[16])
{
        const struct ghost_entry *b = bucket(g, space, key);

        for (int i = 0; i < WAYS; i++)
                if (b[i].space == space && !memcmp(b[i].key, key, 16))
                        return &b[i];
        return NULL;
}
