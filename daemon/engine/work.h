/* What workers do for transfers: from staging, slots and records to staging, slots and records, verified and coded on the way. Any thread; a worker
 * touches only what its transfer was handed. */
#pragma once

#include "daemon/engine/xfer.h"
#include "libclient/codec/copy.h"

/* A copy that was coded anew and has no place yet. */
struct coded {
        uint64_t bytes; /* of the payload */
        struct recode_counts counts;
        struct kvt_copy_plane *planes; /* n_planes + 1; in the same allocation as the payload */
        uint8_t *payload;
};
struct coded *coded_free(struct coded *c);

/* The job of a transfer: sets x->result, COMMITTED or FAILED. */
void work_do(struct job *j);
/* Whether a record's header is one of that part. Both threads. */
bool work_record_fits(const struct record_header *h, const struct xfer *x);
/* The copy in a slot. Both threads. 0 or KVT_E_CORRUPT. */
int work_look(const struct space *s, const struct slab *slab, uint32_t slot, struct copy *ret);
/* Whether it would change under these codecs. */
static inline bool work_would_change(const struct space *s, const struct copy *c, const struct codec_pair *to)
{
        return part_needs_work(&s->geometry, to, s->max_rel_l2, c->planes, c->payload);
}
