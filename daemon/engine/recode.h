/* Recoding in memory: a copy gives its place to one under other codecs, in the background.
 *
 * A copy that was put or loaded is hot, and queued if the space's hot rung is not raw. When the tier is filled to codec_cold_pct, the coldest leaves, with the
 * blocks that they continue, are brought to the cold rung. Readers keep the copy that they lease, which goes when the last of them is done; a smaller copy
 * has to find room without anything being evicted for it, or nothing happens. */
#pragma once

#include "daemon/engine/xfer.h"

/* The block has a new copy in memory: queues it if it is not as the hot rung says. */
void recode_hot(struct engine *e, struct space *s, uint32_t block);
/* Once a pass: starts what there is room for. */
void recode_some(struct engine *e);
/* Counts what was coded for a transfer, and what fell back to other codecs than were asked for. */
void recode_count(const struct xfer *x);
/* How many of the block's first tokens stay exact when it is coded anew: those of the first codec_sinks of the prompt that are in it. Walks up at most as many blocks. */
uint16_t recode_n_exact(const struct engine *e, const struct block *k);
