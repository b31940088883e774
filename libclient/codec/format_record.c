/* Records: their headers and payloads. See format.h and kvtier-format(7). */
#include <errno.h>
#include <stddef.h>
#include <string.h>

#include "libclient/codec/format_impl.h"
#include "libclient/codec/hash.h"

static const uint8_t record_magic[4] = "kvtR";

uint32_t record_header_pages(uint32_t n_planes, uint32_t n_page_hashes)
{
        return (uint32_t)format_pages(sizeof(struct record_header) + (uint64_t)n_planes * sizeof(struct kvt_copy_plane) +
                                      (uint64_t)n_page_hashes * sizeof(uint32_t));
}

uint32_t record_header_pages_of(uint32_t n_planes, uint32_t n_pages)
{
        uint32_t low = 0, high = n_pages; /* pages of payload: header and payload grow with them */

        while (low < high) {
                uint32_t middle = low + (high - low) / 2;

                if (record_header_pages(n_planes, middle) + middle < n_pages)
                        low = middle + 1;
                else
                        high = middle;
        }
        return low && low < n_pages && record_header_pages(n_planes, low) + low == n_pages ? n_pages - low : 0;
}

static uint64_t header_used(const struct record_header *h)
{
        return sizeof(*h) + (uint64_t)h->n_planes * sizeof(struct kvt_copy_plane) + (uint64_t)h->n_page_hashes * sizeof(uint32_t);
}

static uint64_t header_hash(const struct record_header *h, const struct place *at)
{
        return format_hash(h, (uint64_t)h->header_pages * FORMAT_PAGE_BYTES, offsetof(struct record_header, hash), format_seed(at));
}

static bool planes_ok(const struct record_header *h)
{
        const struct kvt_copy_plane *planes = (const struct kvt_copy_plane *)(h + 1);
        uint64_t stored = 0;
        float worst = 0;

        if (h->type != RECORD_BLOCK) /* has none */
                return true;
        for (uint32_t i = 0; i < h->n_planes; i++) {
                stored += planes[i].bytes; /* at most 1025 * 4 GiB */
                if (!format_error_ok(planes[i].rel_l2) || !format_error_ok(planes[i].max_abs) || planes[i].zero)
                        return false;
                if (planes[i].rel_l2 > worst)
                        worst = planes[i].rel_l2;
        }
        return stored == h->stored_bytes && worst == h->max_rel_l2;
}

/* The numbers, without what lies behind them: these say how much there is to read. */
static bool sizes_ok(const struct record_header *h)
{
        bool block = h->type == RECORD_BLOCK, page_hashes = block && h->flags & RECORD_PAGE_HASHES;
        uint64_t payload_pages = format_pages(h->stored_bytes);
        struct record_common c = {.key = h->key,
                                  .parent = h->parent,
                                  .n_pages = h->n_pages,
                                  .raw_bytes = h->raw_bytes,
                                  .flags = h->flags,
                                  .max_rel_l2 = h->max_rel_l2,
                                  .type = h->type,
                                  .codec = h->codec,
                                  .shard = h->shard,
                                  .n_shards = h->n_shards};

        if (!format_common_ok(&c))
                return false;
        if (block ? !h->n_planes || h->n_planes > FORMAT_PLANES_MAX || h->payload_hash : h->n_planes != 0)
                return false;
        if (h->n_page_hashes != (page_hashes ? payload_pages : 0))
                return false;
        if (h->header_pages != record_header_pages(h->n_planes, h->n_page_hashes))
                return false;
        switch (h->type) {
        case RECORD_BLOCK:
                if (!h->stored_bytes)
                        return false;
                break;
        case RECORD_SPACE:
                if (h->stored_bytes != h->raw_bytes || h->stored_bytes > SPACE_DESCRIPTOR_MAX || memcmp(h->key, h->space, 16) != 0)
                        return false;
                break;
        case RECORD_DROP:
                if (h->stored_bytes != h->raw_bytes || h->stored_bytes % sizeof(struct drop_entry))
                        return false;
                break;
        case RECORD_PAD:
                return !h->stored_bytes && !h->payload_hash;
        }
        return h->n_pages == h->header_pages + payload_pages;
}

void record_header_seal(struct record_header *h, const struct place *at)
{
        uint64_t used = header_used(h);

        assert(sizes_ok(h) && planes_ok(h));
        memcpy(h->magic, record_magic, sizeof(h->magic));
        h->version = FORMAT_VERSION;
        h->generation = at->generation;
        h->segment = at->segment;
        h->page = at->page;
        memset((uint8_t *)h + used, 0, (uint64_t)h->header_pages * FORMAT_PAGE_BYTES - used);
        h->hash = header_hash(h, at);
}

int record_header_check(const struct record_header *h, uint64_t n_bytes, const struct place *at, uint32_t max_pages)
{
        uint64_t used;

        if (n_bytes < FORMAT_PAGE_BYTES || memcmp(h->magic, record_magic, sizeof(h->magic)) != 0)
                return -EBADMSG;
        if (h->version != FORMAT_VERSION)
                return -EPROTONOSUPPORT;
        if (h->generation != at->generation || h->segment != at->segment || h->page != at->page)
                return -EBADMSG;
        if (!h->header_pages || h->header_pages > max_pages || h->header_pages > RECORD_HEADER_PAGES_MAX)
                return -EBADMSG;
        if ((uint64_t)h->header_pages * FORMAT_PAGE_BYTES > n_bytes)
                return -EAGAIN;
        if (h->hash != header_hash(h, at))
                return -EBADMSG;
        if (h->n_pages > max_pages || !sizes_ok(h) || !planes_ok(h))
                return -EPROTO;
        used = header_used(h);
        if (!format_all_zero((const uint8_t *)h + used, (uint64_t)h->header_pages * FORMAT_PAGE_BYTES - used))
                return -EPROTO;
        return 0;
}

uint32_t record_page_hash(const void *page, uint32_t i_page)
{
        return (uint32_t)hash_bytes(page, FORMAT_PAGE_BYTES, i_page);
}

static bool drops_ok(const struct drop_entry *drops, uint64_t n)
{
        for (uint64_t i = 0; i < n; i++)
                if (drops[i].what > 2 || drops[i].shard >= (drops[i].what == 2 ? FORMAT_SHARDS_MAX : 1) ||
                    (drops[i].what == 1 && !format_all_zero(drops[i].key, sizeof(drops[i].key))))
                        return false;
        return true;
}

int record_payload_check(const struct record_header *h, const void *payload)
{
        const struct kvt_copy_plane *planes = (const struct kvt_copy_plane *)(h + 1);
        const uint8_t *p = payload;
        uint8_t digest[16];

        if (h->type == RECORD_PAD)
                return 0;
        if (h->type == RECORD_BLOCK) {
                for (uint32_t i = 0; i < h->n_planes; i++) {
                        if (hash_bytes(p, planes[i].bytes, kvt_plane_seed(&planes[i], i)) != planes[i].hash)
                                return -EBADMSG;
                        p += planes[i].bytes;
                }
                return 0;
        }
        if (hash_bytes(p, h->stored_bytes, 0) != h->payload_hash)
                return -EBADMSG;
        if (h->type == RECORD_DROP)
                return drops_ok(payload, h->stored_bytes / sizeof(struct drop_entry)) ? 0 : -EPROTO;
        space_digest(digest, payload, h->stored_bytes);
        return memcmp(digest, h->key, sizeof(digest)) == 0 ? 0 : -EPROTO;
}
