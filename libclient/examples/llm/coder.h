/* --kv-codec: the KV of whole blocks passes through a codec, in place, so that the tokens after them attend to what a cache would give back. Main thread. */
#pragma once

#include "libclient/examples/llm/model.h"
#include "libclient/examples/llm/options.h"
#include "libclient/trial.h"

struct coder {
        struct run *run;
        struct codec_pair pair;
        float max_rel_l2;
        size_t block_tokens, n_sinks, n_window;
        size_t n_coded; /* tokens of this run so far */
        uint8_t *protect; /* owned: those of the sinks that are in the block at hand, a bit a token */
        struct coder_thread *threads; /* owned; one a thread of the run's pool */
        struct coder_plane *planes; /* owned; one a plane: of the block at hand */
        struct trial_sums k, v; /* of all blocks so far */
};

/* 0 or -ENOMEM; coder_deinit() is to be called in either case. */
int coder_init(struct coder *c, struct run *run, const struct codec_pair *pair, const struct options *o);
void coder_deinit(struct coder *c);
/* A run begins anew. */
void coder_restart(struct coder *c);
/* The KV of the first n tokens is there: codes, in all layers, the whole blocks of it that end at least n_window tokens before and were not coded yet. 0, KVT_E_NO_MEMORY or
 * KVT_E_CORRUPT. */
int coder_advance(struct coder *c, size_t n);
/* Tokens from this one on see something coded. */
size_t coder_first(const struct coder *c);
