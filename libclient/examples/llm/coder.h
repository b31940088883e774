/* --kv-codec: the KV of whole blocks passes through a codec, in place, so that the tokens after them attend to what a cache would give back. Main thread. */
#pragma once

#include "libclient/examples/llm/model.h"
#include "libclient/trial.h"

struct coder {
        struct run *run;
        struct codec_pair pair;
        float max_rel_l2;
        struct coder_thread *threads; /* owned; one a thread of the run's pool */
        struct coder_plane *planes; /* owned; one a plane: of the block at hand */
        struct trial_sums k, v; /* of all blocks so far */
};

/* 0 or -ENOMEM; coder_deinit() is to be called in either case. */
int coder_init(struct coder *c, struct run *run, const struct codec_pair *pair, float max_rel_l2);
void coder_deinit(struct coder *c);
/* Codes the KV of tokens at..at+n in all layers. 0, KVT_E_NO_MEMORY or KVT_E_CORRUPT. */
int coder_block(struct coder *c, size_t at, size_t n);
