/* Slabs that the daemon handed out: read-only maps, found by id, referenced by mappings.
 *
 *   1. A map is referenced by the table while its epoch lasts and the slab is not retired, by each mapping, and by the populate queue.
 *   2. A retired slab is acknowledged once nothing references its map, which is then unmapped.
 *   3. Maps of an older epoch are unmapped with their last mapping. */
#pragma once

#include "libclient/client.h"

struct slab_map {
        uint32_t id;
        bool retired, in_table;
        uint32_t refs;
        const uint8_t *base; /* NULL: it could not be mapped */
        uint64_t bytes;
        uint64_t epoch, boot;
        struct slab_map *next_old, **link_old;
        struct slab_map *next_populate;
};

/* Maps the slab behind fd, which is NOT consumed. 0; KVT_E_CORRUPT: it is not what a daemon hands out. A map that fails for lack of memory
 * or address space is remembered as such. */
int slab_add(kvt *c, uint32_t id, uint64_t bytes, int fd);
struct slab_map *slab_find(kvt *c, uint32_t id);
void slab_ref(struct slab_map *m);
void slab_unref(kvt *c, struct slab_map *m);
int slab_on_retired(kvt *c, const uint8_t *body, size_t n);
/* The connection is lost. */
void slab_forget_all(kvt *c);
/* Drops the lock meanwhile. */
void slab_stop_helper(kvt *c);
/* child: after a fork, where the maps are not there. */
void slab_deinit(kvt *c, bool child);
