/* What is in a mapping: planes under codecs, and how they become the bytes that were put. */
#pragma once

#include "libclient/codec/part.h"
#include "libclient/map.h"

/* The planes of a mapping, as its copy's header has them. The memory may be another copy's once the lease has ended, so that what is used is looked at once. */
struct mapped_planes {
        struct kvt_copy_plane planes[KVT_PLANES_MAX + 1];
};
/* 0: they fit a part of the space, in its slab. KVT_E_LEASE_LOST: the header is not the copy's any more. KVT_E_CORRUPT: it changed, and no lease was lost. */
int mapped_planes(const kvt_space *s, const kvt_mapping *m, struct mapped_planes *ret);
/* 64-byte aligned, at least n bytes, in *p of *n_p bytes (to free(); it grows). NULL: no memory. */
void *scratch_grow(void **p, size_t *n_p, size_t n);
