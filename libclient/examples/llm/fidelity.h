/* --perplexity with --kv-codec: what a codec costs, token by token, against the same model over the full KV. Main thread.
 *
 * A chunk of tokens attends to itself, to the sinks and to the coder's window before it exactly, and to all whole blocks before those as they come back from the codec. What is
 * scored are the tokens of a window that see something coded. Both runs score the same tokens. Neighbouring tokens are alike, so intervals are made of
 * blocks: normal approximation, 95 %, the variance that of a ratio of blocks' sums. */
#pragma once

#include "libclient/examples/llm/engine.h"

struct fidelity {
        size_t n_specs, n_blocks, n_scored; /* blocks scored so far */
        double full_nll;
        float *full; /* logits of a window without a codec, [ctx][n_vocab]; owned, like all below */
        struct coder *coders;
        struct fidelity_block *blocks; /* [n_specs][max_blocks] */
        size_t *n_same_best; /* a spec */
        struct sample_pair *pairs; /* of a chunk */
        size_t max_blocks;
};

/* For windows of ctx tokens; dies if it cannot. */
void fidelity_init(struct fidelity *f, struct engine *e, size_t ctx);
void fidelity_deinit(struct fidelity *f);
/* The window at tokens[from..from + n), whose logits in the full run lie in f->full: runs it once a codec. */
void fidelity_window(struct fidelity *f, struct engine *e, size_t from, size_t n);
/* An array: an object for each codec. */
struct json_t *fidelity_json(const struct fidelity *f);
void fidelity_print(const struct fidelity *f);
