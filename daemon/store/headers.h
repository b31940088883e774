/* Headers of records that were read in part: the next part of the same record is read without its header, in one operation instead of two.
 *
 * By place and the life of its segment, so an entry is never about another record. Only headers that verified go in. Loop thread; a reference
 * keeps one while it is used, whatever comes to its slot meanwhile. */
#pragma once

#include "daemon/store/catalog.h"
#include "libclient/codec/format.h"

enum { HEADERS_MAX = 4096, HEADERS_PAGES_MAX = 4 /* of one header */ };

struct cached_header {
        uint32_t n_refs;
        uint32_t n_pages;
        struct record_at at;
        uint64_t generation;
        struct record_header header[]; /* n_pages */
};

struct headers {
        struct cached_header *slots[HEADERS_MAX]; /* owned */
};

/* A new reference; NULL: not there. */
struct cached_header *headers_find(const struct headers *c, struct record_at at, uint64_t generation);
/* Remembers a copy; without memory, or if it is too long, nothing. */
void headers_add(struct headers *c, struct record_at at, uint64_t generation, const struct record_header *h, uint32_t n_pages);
/* Returns NULL */
struct cached_header *headers_unref(struct cached_header *h);
void headers_deinit(struct headers *c);
