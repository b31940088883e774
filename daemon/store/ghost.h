/* What became of keys that are no longer, or never were, stored: a bounded table that forgets the oldest of a bucket. So that a miss can be
 * explained. Owned by the loop thread. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

struct ghost_entry {
        uint8_t key[16];
        uint32_t space; /* 0: free */
        uint32_t when_sec;
        uint8_t why; /* enum kvt_why */
};
struct ghosts {
        struct ghost_entry *entries;
        uint32_t n_buckets;
};

int ghosts_init(struct ghosts *g, uint32_t n_entries);
void ghosts_deinit(struct ghosts *g);
void ghosts_add(struct ghosts *g, uint32_t space, const uint8_t key[16], uint8_t why, uint32_t now_sec);
const struct ghost_entry *ghosts_find(const struct ghosts *g, uint32_t space, const uint8_t key[16]);
