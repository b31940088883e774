#include <stdlib.h>
#include <string.h>

#include "daemon/store/headers.h"
#include "daemon/util/macro.h"

static uint32_t slot_of(struct record_at at, uint64_t generation)
{
        uint64_t x = (generation << 20 ^ (uint64_t)at.page << 4 ^ at.device) * 0x9e3779b97f4a7c15;

        return (uint32_t)(x >> 32) % HEADERS_MAX;
}

struct cached_header *headers_find(const struct headers *c, struct record_at at, uint64_t generation)
{
        struct cached_header *h = c->slots[slot_of(at, generation)];

        if (!h || h->generation != generation || memcmp(&h->at, &at, sizeof(at)) != 0)
                return NULL;
        h->n_refs++;
        return h;
}

struct cached_header *headers_unref(struct cached_header *h)
{
        if (h && !--h->n_refs)
                free(h);
        return NULL;
}

void headers_add(struct headers *c, struct record_at at, uint64_t generation, const struct record_header *header, uint32_t n_pages)
{
        size_t n_bytes = (size_t)n_pages * FORMAT_PAGE_BYTES;
        struct cached_header **slot = &c->slots[slot_of(at, generation)], *h;

        if (n_pages > HEADERS_PAGES_MAX || !(h = malloc(sizeof(*h) + n_bytes)))
                return;
        *h = (struct cached_header){.n_refs = 1, .n_pages = n_pages, .at = at, .generation = generation};
        memcpy(h->header, header, n_bytes);
        headers_unref(*slot);
        *slot = h;
}

void headers_deinit(struct headers *c)
{
        for (uint32_t i = 0; i < HEADERS_MAX; i++)
                c->slots[i] = headers_unref(c->slots[i]);
}
