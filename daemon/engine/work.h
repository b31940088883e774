/* What workers do for transfers: from staging, slots and records to staging, slots and records, verified and coded on the way. Any thread; a worker
 * touches only what its transfer was handed. */
#pragma once

#include "daemon/engine/xfer.h"

/* A copy that was coded anew and has no place yet. */
struct coded {
        uint64_t bytes; /* of the payload */
        uint32_t n_pages; /* room, for the engine's account */
        struct kvt_copy_plane *planes; /* n_planes + 1; in the same allocation as the payload */
        uint8_t *payload;
};
struct coded *coded_free(struct coded *c);

/* The job of a transfer: sets x->result, COMMITTED or FAILED. */
void work_do(struct job *j);
/* Whether a record's header is one of that part. Both threads. */
bool work_record_fits(const struct record_header *h, const struct xfer *x);
/* Whether a copy in memory would change under these codecs. Loop: its header is not checked yet. */
bool work_would_change(const struct space *s, const struct kvt_copy_header *h, uint64_t slot_bytes, const struct codec_pair *to);
