/* Recovery of a segment without a footer that verifies: it is read record by record, payloads and all, up to the first that does not verify. */
#include <string.h>

#include "daemon/store/recovery.h"
#include "daemon/util/metrics.h"

static bool scan_add(struct recovery *r, const struct record_header *h)
{
        uint32_t space = 0xffff;

        if (r->n_entries == r->max_entries) {
                uint32_t n = r->max_entries ? 2 * r->max_entries : 64;
                struct footer_entry *grown = reallocarray(r->entries, n, sizeof *grown);
                if (!grown)
                        return false;
                r->entries = grown;
                r->max_entries = n;
        }
        if (h->type == RECORD_BLOCK || h->type == RECORD_DROP) {
                for (uint32_t i = 0; i < r->n_entries && space == 0xffff; i++)
                        if (r->entries[i].type == RECORD_SPACE && !memcmp(r->entries[i].key, h->space, 16))
                                space = i;
                if (space == 0xffff)
                        return false; /* a record whose space is not described before it */
        }
        struct footer_entry *e = &r->entries[r->n_entries++];
        *e = (struct footer_entry){
                .page = h->page,
                .n_pages = h->n_pages,
                .space = (uint16_t)space,
                .flags = h->flags,
                .type = h->type,
                .codec = h->codec,
                .shard = h->shard,
                .n_shards = h->n_shards,
                .raw_bytes = h->raw_bytes,
                .max_rel_l2 = h->max_rel_l2,
        };
        memcpy(e->key, h->key, 16);
        memcpy(e->parent, h->parent, 16);
        return true;
}

/* whole: it was looked at to its end. Else there may be more, which a later start may find: no footer may say otherwise. */
static void scan_finished(struct recovery *r, struct slot *s, bool torn, bool whole)
{
        struct nvme_device *d = r->device;
        uint32_t n = r->n_entries, end = r->scan_page;
        uint64_t generation = d->segments[s->segment].generation;

        if (torn) {
                d->counters.n_torn++;
                metrics.c_nvme_torn++;
                recovery_tell_damage(d, format_segment_offset(&d->sb, s->segment) + (uint64_t)end * FORMAT_PAGE_BYTES,
                                     "the record there does not verify: the segment ends before it");
        }
        for (uint32_t i = n; i-- > 0;)
                if (r->entries[i].type == RECORD_BLOCK) {
                        struct known_space *k = recovery_space(r, r->entries[r->entries[i].space].key);
                        if (k)
                                recovery_block(r, k, &r->entries[i], s->segment, generation);
                }
        if (n && whole) {
                log_close_scanned(d, s->segment, TAKE_PTR(r->entries), n, end);
        } else if (!whole) {
                free(TAKE_PTR(r->entries)); /* what was found is served; the segment is left alone */
        } else {
                free(TAKE_PTR(r->entries));
                d->segments[s->segment].state = SEGMENT_FREE;
                d->n_free++;
        }
        r->n_entries = r->max_entries = 0;
        recovery_segment_finished(r);
}

static void scan_read(struct nvme_io *io, int result, void *arg)
{
        struct recovery *r = arg;
        struct nvme_device *d = r->device;
        uint32_t done = 0, n_pages = r->n_buf / FORMAT_PAGE_BYTES;
        bool torn = false, end = false, whole = result == 0;

        if (!recovery_came_back(r, result))
                return;
        struct slot *s = &r->slots[r->i_next % WINDOW];
        uint64_t generation = d->segments[s->segment].generation;
        r->want_bytes = 0;
        while (result == 0 && done < n_pages) {
                uint32_t page = r->scan_page + done, max = device_segment_pages(d) - page;
                struct record_header *h = (struct record_header *)(void *)(r->buf + (size_t)done * FORMAT_PAGE_BYTES);
                struct place at = {d->sb.uuid, s->segment, generation, page};
                int c = record_header_check(h, (uint64_t)(n_pages - done) * FORMAT_PAGE_BYTES, &at, max);
                if (c == -EAGAIN || (c == 0 && h->n_pages > n_pages - done)) {
                        uint32_t need = (c == 0 ? h->n_pages : MIN(h->header_pages, max)) * FORMAT_PAGE_BYTES;
                        if (done == 0 && need <= r->n_buf)
                                torn = end = true; /* cannot be: the window was as long as asked for */
                        r->want_bytes = MAX(need, (uint32_t)SCAN_BYTES);
                        break;
                }
                if (c != 0 || (h->type != RECORD_PAD && record_payload_check(h, record_payload(h)) != 0)) {
                        uint8_t zero[FORMAT_PAGE_BYTES] = {};
                        torn = memcmp(h, zero, sizeof zero) && !memcmp(h->magic, "kvtR", 4) && h->generation == generation;
                        end = true; /* nothing more, or the record that was being written */
                        break;
                }
                if (h->type == RECORD_SPACE && recovery_wants_space(r, h->key, s->segment))
                        recovery_learn_space(r, h->key, s->segment, record_payload(h), h->stored_bytes);
                if (!scan_add(r, h)) {
                        end = true;
                        whole = false;
                        break;
                }
                if (h->type == RECORD_DROP) {
                        struct known_space *k = recovery_space(r, h->space);
                        if (k)
                                recovery_drops(r, k, record_payload(h), h->stored_bytes / sizeof(struct drop_entry), s->segment, generation,
                                               page);
                }
                done += h->n_pages;
        }
        recovery_give(r, &r->buf, r->n_buf, 0);
        r->scan_page += done;
        if (end || !whole || r->scan_page >= device_segment_pages(d))
                scan_finished(r, s, torn, whole);
        recovery_step(r);
}

void recovery_scan_some(struct recovery *r, struct slot *s)
{
        struct nvme_device *d = r->device;
        uint32_t left, bytes;

        if (!r->scan_page) {
                r->scan_page = 1;
                r->want_bytes = SCAN_BYTES;
        }
        left = (device_segment_pages(d) - r->scan_page) * FORMAT_PAGE_BYTES;
        bytes = MIN(r->want_bytes ?: (uint32_t)SCAN_BYTES, left);
        if (bytes > d->buffers.n_pages / 2 * FORMAT_PAGE_BYTES) {
                scan_finished(r, s, true, false);
                recovery_step(r);
                return;
        }
        recovery_read_buf(r, format_segment_offset(&d->sb, s->segment) + (uint64_t)r->scan_page * FORMAT_PAGE_BYTES, bytes, scan_read);
}
