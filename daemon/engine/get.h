/* Reads: look-up, use, copies into staging, and checks of copies that a client found bad. */
#pragma once

#include "daemon/engine/xfer.h"

/* How many leading keys are whole blocks; counts hits and misses unless it is a probe. *ret_stop: 0, KVT_E_MISS or KVT_E_AGAIN (the next one is being
 * written). */
/* The block is on NVMe, all parts, with all that comes before it. */
bool get_is_whole(struct engine *e, struct space *s, const uint8_t key[16]);
uint32_t get_match(struct engine *e, struct space *s, const uint8_t *keys, uint32_t n_keys, bool probe, int *ret_stop);
/* The whole block under a key, used now. POOL_NONE: there is none; hits and misses are counted by matches, which come first. */
uint32_t get_block_used(struct engine *e, struct space *s, const uint8_t key[16]);

struct get {
        struct staging *staging; /* borrowed until it is started */
        uint64_t offset;
        uint32_t first_plane, end_plane;
        struct xfer *xfer;
        void (*done)(struct engine *e, struct get *g, int status);
};
/* Copies planes of a part from memory into staging. Returns a status (KVT_E_MISS: it is not in memory), or PUT_PENDING: done() is called later. */
int get_start(struct engine *e, struct get *g, struct space *s, uint32_t shard, const uint8_t key[16], struct staging *staging,
              uint64_t offset, uint32_t first_plane, uint32_t end_plane);
/* Reads a block's parts again, and takes the block out if one does not match its checksum. Returns 0 or KVT_E_MISS, KVT_E_AGAIN. */
int get_verify(struct engine *e, struct space *s, const uint8_t key[16]);
