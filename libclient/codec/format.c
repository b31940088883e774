/* Superblock, segment header and footer of a device, and what their checks share with those of records. See format.h and kvtier-format(7). */
#include <errno.h>
#include <float.h>
#include <stddef.h>
#include <string.h>

#include "libclient/codec/format_impl.h"
#include "libclient/codec/hash.h"

static const uint8_t superblock_magic[8] = "kvtierDV", segment_magic[8] = "kvtierSG", footer_magic[8] = "kvtierFT";

/* shared */

uint64_t format_seed(const struct place *at)
{
        struct {
                uint8_t uuid[16];
                uint32_t segment, page;
                uint64_t generation;
        } in = {.segment = at->segment, .page = at->page, .generation = at->generation};

        static_assert(sizeof(in) == 32, "no padding is hashed");
        memcpy(in.uuid, at->uuid, sizeof(in.uuid));
        return hash_bytes(&in, sizeof(in), 0);
}

uint64_t format_hash(const void *p, uint64_t n, uint64_t hash_at, uint64_t seed)
{
        static const uint8_t zeros[8];
        const uint8_t *bytes = p;
        struct hash_state h;

        hash_init(&h, seed);
        hash_update(&h, bytes, hash_at);
        hash_update(&h, zeros, 8);
        hash_update(&h, bytes + hash_at + 8, n - hash_at - 8);
        return hash_final(&h);
}

bool format_all_zero(const void *p, uint64_t n)
{
        const uint8_t *bytes = p;

        for (uint64_t i = 0; i < n; i++)
                if (bytes[i])
                        return false;
        return true;
}

bool format_error_ok(float rel_l2)
{
        return rel_l2 >= 0 && rel_l2 <= FLT_MAX; /* a NaN is neither */
}

bool format_common_ok(const struct record_common *c)
{
        enum { FLAGS = RECORD_HAS_PARENT | RECORD_DURABLE | RECORD_PAGE_HASHES };
        static const uint64_t raw_max = (4096ull - 1) << 20; /* a part's, see geometry_init() */
        bool has_payload = c->type != RECORD_PAD;

        if (c->n_pages < 1u + has_payload || (c->raw_bytes != 0) != has_payload)
                return false;
        if (!(c->flags & RECORD_HAS_PARENT) && !format_all_zero(c->parent, 16))
                return false;
        switch (c->type) {
        case RECORD_BLOCK:
                return !(c->flags & ~FLAGS) && c->raw_bytes <= raw_max && c->n_shards <= FORMAT_SHARDS_MAX && c->shard < c->n_shards &&
                       format_error_ok(c->max_rel_l2);
        case RECORD_DROP:
        case RECORD_PAD:
                if (!format_all_zero(c->key, 16))
                        return false;
                /* fall through */
        case RECORD_SPACE:
                return !c->flags && !c->codec && !c->shard && !c->n_shards && c->max_rel_l2 == 0;
        default:
                return false;
        }
}

/* superblock */

void superblock_encode(void *page, const struct superblock *s)
{
        struct superblock to = *s;

        memcpy(to.magic, superblock_magic, sizeof(to.magic));
        to.version = FORMAT_VERSION;
        to.page_bytes = FORMAT_PAGE_BYTES;
        to.hash = 0;
        memset(page, 0, FORMAT_PAGE_BYTES);
        memcpy(page, &to, sizeof(to));
        to.hash = hash_bytes(page, FORMAT_PAGE_BYTES, 0);
        memcpy(page, &to, sizeof(to));
}

int superblock_decode(const void *page, struct superblock *ret)
{
        struct superblock s;

        memcpy(&s, page, sizeof(s));
        if (memcmp(s.magic, superblock_magic, sizeof(s.magic)) != 0)
                return format_all_zero(page, FORMAT_PAGE_BYTES) ? -ENODATA : -ENOMSG;
        if (s.version != FORMAT_VERSION)
                return -EPROTONOSUPPORT;
        if (s.hash != format_hash(page, FORMAT_PAGE_BYTES, offsetof(struct superblock, hash), 0))
                return -EBADMSG;
        if (s.page_bytes != FORMAT_PAGE_BYTES || !s.n_segments || s.n_segments > format_n_segments(s.device_bytes, s.segment_bytes) ||
            !format_all_zero((const uint8_t *)page + sizeof(s), FORMAT_PAGE_BYTES - sizeof(s)))
                return -EPROTO;
        *ret = s;
        return 0;
}

uint64_t format_n_segments(uint64_t device_bytes, uint64_t segment_bytes)
{
        uint64_t n;

        if (!format_segment_bytes_ok(segment_bytes) || device_bytes < FORMAT_SEGMENTS_START || device_bytes > INT64_MAX)
                return 0;
        n = (device_bytes - FORMAT_SEGMENTS_START) / segment_bytes;
        return n < FORMAT_SEGMENTS_MAX ? n : FORMAT_SEGMENTS_MAX;
}

/* segment headers */

void segment_header_encode(void *page, const struct place *at, uint64_t opened_sec)
{
        struct place header_at = *at;
        struct segment_header h = {.version = FORMAT_VERSION,
                                   .segment = at->segment,
                                   .generation = at->generation,
                                   .opened_sec = opened_sec};

        header_at.page = 0;
        memcpy(h.magic, segment_magic, sizeof(h.magic));
        memset(page, 0, FORMAT_PAGE_BYTES);
        memcpy(page, &h, sizeof(h));
        h.hash = hash_bytes(page, FORMAT_PAGE_BYTES, format_seed(&header_at));
        memcpy(page, &h, sizeof(h));
}

int segment_header_decode(const void *page, const struct place *at, struct segment_header *ret)
{
        struct place header_at = *at;
        struct segment_header h;

        memcpy(&h, page, sizeof(h));
        if (memcmp(h.magic, segment_magic, sizeof(h.magic)) != 0)
                return -EBADMSG;
        if (h.version != FORMAT_VERSION)
                return -EPROTONOSUPPORT;
        header_at.page = 0;
        header_at.generation = h.generation;
        if (h.segment != at->segment ||
            h.hash != format_hash(page, FORMAT_PAGE_BYTES, offsetof(struct segment_header, hash), format_seed(&header_at)))
                return -EBADMSG;
        if (!format_all_zero((const uint8_t *)page + sizeof(h), FORMAT_PAGE_BYTES - sizeof(h)))
                return -EPROTO;
        *ret = h;
        return 0;
}

/* footers */

uint64_t footer_bytes(uint32_t n_entries)
{
        return format_pages((uint64_t)n_entries * sizeof(struct footer_entry) + sizeof(struct footer_trailer)) * FORMAT_PAGE_BYTES;
}

void footer_encode(void *p, const struct place *at, const struct footer_entry *entries, uint32_t n_entries, uint32_t end_page,
                   uint64_t opened_sec)
{
        struct place footer_at = *at;
        uint64_t n_bytes = footer_bytes(n_entries), used = (uint64_t)n_entries * sizeof(*entries);
        struct footer_trailer t = {.version = FORMAT_VERSION,
                                   .segment = at->segment,
                                   .generation = at->generation,
                                   .n_entries = n_entries,
                                   .end_page = end_page,
                                   .opened_sec = opened_sec};
        uint8_t *trailer = (uint8_t *)p + n_bytes - sizeof(t);

        footer_at.page = 0;
        memcpy(t.magic, footer_magic, sizeof(t.magic));
        if (used)
                memmove(p, entries, used);
        memset((uint8_t *)p + used, 0, n_bytes - used);
        memcpy(trailer, &t, sizeof(t));
        t.hash = hash_bytes(p, n_bytes, format_seed(&footer_at));
        memcpy(trailer, &t, sizeof(t));
}

int footer_peek(const void *last_64_bytes, const struct place *at, uint64_t segment_bytes, struct footer_trailer *ret, uint64_t *ret_bytes)
{
        struct footer_trailer t;
        uint64_t n;

        memcpy(&t, last_64_bytes, sizeof(t));
        if (memcmp(t.magic, footer_magic, sizeof(t.magic)) != 0)
                return -EBADMSG;
        if (t.version != FORMAT_VERSION)
                return -EPROTONOSUPPORT;
        n = footer_bytes(t.n_entries);
        if (t.segment != at->segment || t.generation != at->generation || segment_bytes < FORMAT_PAGE_BYTES ||
            n > segment_bytes - FORMAT_PAGE_BYTES)
                return -EBADMSG;
        *ret = t;
        *ret_bytes = n;
        return 0;
}

static bool entry_ok(const struct footer_entry *entries, uint32_t i, uint32_t begin_page, uint32_t end_page)
{
        const struct footer_entry *e = &entries[i];
        struct record_common c = {.key = e->key,
                                  .parent = e->parent,
                                  .n_pages = e->n_pages,
                                  .raw_bytes = e->raw_bytes,
                                  .flags = e->flags,
                                  .max_rel_l2 = e->max_rel_l2,
                                  .type = e->type,
                                  .codec = e->codec,
                                  .shard = e->shard,
                                  .n_shards = e->n_shards};

        if (!format_common_ok(&c) || e->zero)
                return false;
        if (e->page < begin_page || e->page > end_page || e->n_pages > end_page - e->page)
                return false;
        if (e->type == RECORD_PAD || e->type == RECORD_SPACE)
                return e->space == UINT16_MAX;
        return e->space != UINT16_MAX && e->space < i && entries[e->space].type == RECORD_SPACE;
}

int footer_check(const void *p, uint64_t n_bytes, const struct place *at, uint64_t segment_bytes)
{
        const struct footer_entry *entries = p;
        struct place footer_at = *at;
        struct footer_trailer t;
        uint64_t n, used;
        uint32_t begin_page = 1;
        int r;

        if (n_bytes < FORMAT_PAGE_BYTES || n_bytes > segment_bytes)
                return -EBADMSG;
        r = footer_peek((const uint8_t *)p + n_bytes - sizeof(t), at, segment_bytes, &t, &n);
        if (r < 0)
                return r;
        footer_at.page = 0;
        if (n != n_bytes || t.hash != format_hash(p, n, n - sizeof(t) + offsetof(struct footer_trailer, hash), format_seed(&footer_at)))
                return -EBADMSG;

        used = (uint64_t)t.n_entries * sizeof(*entries);
        if (t.end_page < 1 || t.end_page > (segment_bytes - n) / FORMAT_PAGE_BYTES || t.zero[0] || t.zero[1] ||
            !format_all_zero((const uint8_t *)p + used, n - used - sizeof(t)))
                return -EPROTO;
        for (uint32_t i = 0; i < t.n_entries; i++) {
                if (!entry_ok(entries, i, begin_page, t.end_page))
                        return -EPROTO;
                begin_page = entries[i].page + entries[i].n_pages;
        }
        return 0;
}
