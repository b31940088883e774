/* Copies in slots: their headers, which a reader does not believe. Pure functions; the layouts are in proto/shm.h.
 *
 * A copy whose planes are all raw and that has no hints has a short header, a hash a plane: most copies are so. */
#pragma once

#include "libclient/codec/part.h"
#include "proto/frame.h"

/* What a header says, looked at once: the memory may be another copy's a moment later. */
struct copy {
        const uint8_t *payload; /* in the slot */
        uint64_t bytes; /* of it */
        bool raw; /* all planes, and there are no hints */
        struct kvt_copy_plane planes[KVT_PLANES_MAX + 1]; /* the geometry's and the hints' */
};

/* Whether planes[] can have the short header. */
bool copy_is_raw(const struct geometry *g, const struct kvt_copy_plane *planes);
/* Bytes of a slot that holds such a copy. */
uint64_t copy_bytes(const struct geometry *g, bool raw, uint64_t payload_bytes);
/* The copy in a slot of at most n bytes, if it can be one of such a part within the bound (part_check()). 0 or KVT_E_CORRUPT. */
int copy_look(const struct geometry *g, float max_rel_l2, const void *slot, uint64_t n, struct copy *ret);
/* Writes a header but its generation, which becomes 0, and hashes or planes. Returns where the payload goes. */
uint8_t *copy_open(const struct geometry *g, void *slot, bool raw, uint64_t payload_bytes);
/* Writes hashes or planes, as copy_open() was told. */
void copy_seal(const struct geometry *g, void *slot, const struct kvt_copy_plane *planes);
