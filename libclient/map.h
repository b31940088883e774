/* Mapping blocks: what kvt_map() and kvt_get() share. */
#pragma once

#include "libclient/async.h"
#include "libclient/slab.h"

enum { MAP_TRIES_MAX = 8 }; /* how often KVT_E_AGAIN is asked again */

/* What kvt_mapping.priv holds */
enum { PRIV_SLAB, PRIV_OFFSET, PRIV_GENERATION, PRIV_LEASE };

/* Asks for q->n keys at q->i_first (through q->positions) of op; the answers go to mappings[] and statuses[] at the same positions. Statuses
 * may also be KVT_E_NO_MEMORY (its slab could not be mapped). Under the lock. On failure q is freed. */
int map_send(kvt_op *op, struct request *q, const kvt_key *keys, kvt_mapping *mappings, uint8_t *statuses);

static inline struct slab_map *mapping_slab(const kvt_mapping *m)
{
        return (struct slab_map *)(uintptr_t)m->priv[PRIV_SLAB];
}
static inline const struct kvt_copy_header *mapping_header(const kvt_mapping *m)
{
        return (const struct kvt_copy_header *)(const void *)(mapping_slab(m)->base + m->priv[PRIV_OFFSET]);
}
/* Whether what was read from it until now is the copy. The reader's half of the protocol in proto/shm.h. */
static inline bool mapping_intact(const kvt_mapping *m)
{
        __atomic_thread_fence(__ATOMIC_ACQUIRE); /* the bytes were read before the generation is */
        return __atomic_load_n(&mapping_header(m)->generation, __ATOMIC_RELAXED) == m->priv[PRIV_GENERATION];
}
/* Ends the lease and the reference. Under the lock. */
void mapping_release(kvt *c, kvt_mapping *m);
