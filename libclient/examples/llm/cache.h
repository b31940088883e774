/* What the engine does with kvtier: loads the longest stored prefix before prefill, stores whole blocks after they were computed.
 *
 * Nothing here fails the engine. Whatever goes wrong is counted, said once on stderr, and its tokens are computed as if they had not been
 * stored. Main thread only. */
#pragma once

#include "include/kvtier.h"
#include "libclient/examples/llm/model.h"

struct cache {
        kvt *connection;
        kvt_space *space; /* NULL: the cache is off, and every function does nothing */
        struct run *run;
        size_t block_tokens, max_blocks;
        kvt_plane_view *views; /* owned, like all below */
        kvt_key *keys; /* of blocks 0..n_keys of this sequence */
        uint8_t *statuses; /* of those blocks' puts */
        uint8_t *replace; /* blocks whose stored copy was found corrupt */
        struct cache_put *puts; /* one a block; ops of those under way */
        size_t n_keys;
        size_t n_ready; /* leading blocks whose KV is computed */
        size_t n_sent; /* leading blocks that are loaded, stored or being stored */
        size_t n_settled; /* of these, put to the end or loaded */
        int stopped; /* a block was refused for good: its successors would be unreachable */
        char off[160]; /* why the cache is off; empty: on */
        /* for the report */
        uint64_t loaded_bytes, stored_bytes;
        size_t n_stored, n_existing, n_errors;
};

/* path NULL: the default socket. Sizes the cache for sequences of max_blocks. */
void cache_open(struct cache *c, const char *path, struct run *run, size_t block_tokens, size_t max_blocks);
void cache_close(struct cache *c);
/* Loads what is stored of the prompt into the run's KV: returns how many tokens, whole blocks, fewer than n. */
size_t cache_load(struct cache *c, const uint32_t *tokens, size_t n);
/* Starts to store all whole blocks of tokens[0..n), whose KV lies in the run, as far as there is room now. */
void cache_store(struct cache *c, const uint32_t *tokens, size_t n);
/* Stores the rest of them and waits. */
void cache_finish(struct cache *c);
