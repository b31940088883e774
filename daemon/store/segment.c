/* The write side of a device: logs that fill segments, the order that makes "durable" mean something, and the syncs that wait for it.
 *
 * A log's life, each step started by the one before having come back:
 *
 *     opened: header written --> flushed (a previous footer must not speak for new records) --> ready: takes records
 *     full (or broken, or the tier stops), last write back: flushed --> footer written [--> flushed, if broken] --> freed, segment SEALED
 *
 * When a device fails, logs are freed as soon as their writes are back: their segments stay without a footer, which recovery can do without. */
#include <string.h>
#include <time.h>

#include "daemon/store/tier_nvme.h"
#include "daemon/util/clock.h"
#include "daemon/util/log.h"
#include "daemon/util/metrics.h"
#include "libclient/codec/hash.h"

static bool writable(const struct nvme_device *d)
{
        return d->state == DEVICE_SERVING && !d->nvme->stopping;
}
static bool alive(const struct nvme_device *d) /* footers and flushes still make sense */
{
        return d->state == DEVICE_SERVING || d->state == DEVICE_DRAINING;
}

uint32_t device_record_pages_max(const struct nvme_device *d)
{
        uint32_t in_segment = device_segment_pages(d) - 1 - SPACE_DESCRIPTOR_MAX / FORMAT_PAGE_BYTES - 2 - (uint32_t)(footer_bytes(3) / FORMAT_PAGE_BYTES);

        return MIN(in_segment, d->buffers.n_pages / 2);
}

static void log_free(struct log *l)
{
        struct nvme_device *d = l->device;

        list_remove(&l->link);
        if (!list_empty(&l->order.link))
                list_remove(&l->order.link);
        if (d->log == l)
                d->log = NULL;
        if (d->next == l)
                d->next = NULL;
        free(l->entries);
        free(l->spaces);
        free(l);
}

void log_free_all(struct nvme_device *d)
{
        while (!list_empty(&d->logs))
                log_free(list_first(&d->logs, struct log, link));
}

static void log_page_done(struct log *l, int r)
{
        if (r != -ETIMEDOUT && r != -ECANCELED) /* else the kernel may still have it */
                buffers_give(&l->device->buffers, l->page, l->n_page_bytes);
        l->page = NULL;
}

/* opening */

static void header_flushed(struct nvme_io *io, int r, void *arg)
{
        struct log *l = arg;
        struct nvme_device *d = l->device;

        l->ready = r == 0;
        if (r < 0) {
                l->full = true;
                device_fail(d, true, "it cannot be flushed");
        }
        log_settle(d);
        if (d->nvme->on_room)
                d->nvme->on_room(d->nvme, d->nvme->arg);
}

static void header_written(struct nvme_io *io, int r, void *arg)
{
        struct log *l = arg;
        struct nvme_device *d = l->device;

        log_page_done(l, r);
        if (r == 0 && device_io(d, RING_FLUSH, NULL, 0, 0, header_flushed, l))
                return;
        if (r == -ENOSPC)
                d->full_until_usec = d->nvme->now_usec + 60 * USEC_PER_SEC;
        else if (r < 0)
                device_count_error(d, true);
        l->full = true; /* nothing was put in it: the segment is free again */
        log_settle(d);
        if (d->nvme->on_room)
                d->nvme->on_room(d->nvme, d->nvme->arg);
}

static uint32_t find_free(struct nvme_device *d)
{
        bool no_virgins = d->full_until_usec > d->nvme->now_usec;

        for (uint32_t n = 0; n < d->sb.n_segments; n++) {
                d->i_free = (uint32_t)((d->i_free + 1) % d->sb.n_segments);
                if (d->segments[d->i_free].state == SEGMENT_FREE && !(no_virgins && d->segments[d->i_free].virgin))
                        return d->i_free;
        }
        return SEGMENT_NONE;
}

static struct log *log_new(struct nvme_device *d, uint32_t segment)
{
        struct log *l = new0(struct log, 1);

        if (!l)
                return NULL;
        l->device = d;
        l->segment = segment;
        l->end_page = 1;
        list_init(&l->order.link);
        list_append(&d->logs, &l->link);
        return l;
}

static struct log *log_open(struct nvme_device *d)
{
        uint32_t i = d->n_free ? find_free(d) : SEGMENT_NONE;
        struct segment *s = i != SEGMENT_NONE ? &d->segments[i] : NULL;
        void *page = s ? buffers_take(&d->buffers, FORMAT_PAGE_BYTES) : NULL;
        struct log *l = page ? log_new(d, i) : NULL;
        struct timespec now;

        if (!l) {
                if (page)
                        buffers_give(&d->buffers, page, FORMAT_PAGE_BYTES);
                return NULL;
        }
        clock_gettime(CLOCK_REALTIME, &now);
        l->page = page;
        l->n_page_bytes = FORMAT_PAGE_BYTES;
        s->generation = ++d->nvme->generation;
        s->opened_sec = (uint64_t)now.tv_sec;
        s->state = SEGMENT_OPEN;
        d->n_free--;
        struct place at = {d->sb.uuid, i, s->generation, 0};
        segment_header_encode(page, &at, s->opened_sec);
        if (!device_io(d, RING_WRITE, page, format_segment_offset(&d->sb, i), FORMAT_PAGE_BYTES, header_written, l)) {
                buffers_give(&d->buffers, page, FORMAT_PAGE_BYTES);
                l->page = NULL;
                l->full = true;
        }
        return l;
}

void log_open_ahead(struct nvme_device *d)
{
        if (!writable(d))
                return;
        if (!d->log) {
                d->log = d->next ?: log_open(d);
                d->next = NULL;
        }
        if (d->log && !d->next && d->log->end_page > device_segment_pages(d) / 2 && d->n_free > 1)
                d->next = log_open(d);
}

/* closing */

static void log_closed(struct log *l)
{
        struct nvme_device *d = l->device;
        struct segment *s = &d->segments[l->segment];

        if (!l->n_entries) { /* its header may be there or not, and nothing else */
                s->state = SEGMENT_FREE;
                d->n_free++;
        } else {
                s->state = SEGMENT_SEALED;
        }
        log_free(l);
        log_settle(d);
}

static void footer_flushed(struct nvme_io *io, int r, void *arg)
{
        struct log *l = arg;

        if (r < 0)
                device_fail(l->device, true, "it cannot be flushed");
        log_closed(l);
}

static void footer_written(struct nvme_io *io, int r, void *arg)
{
        struct log *l = arg;
        struct nvme_device *d = l->device;

        log_page_done(l, r);
        if (r < 0 && alive(d))
                device_count_error(d, true);
        else if (r == 0)
                d->n_write_errors = 0;
        if (r == 0 && l->broken && device_io(d, RING_FLUSH, NULL, 0, 0, footer_flushed, l))
                return;
        log_closed(l);
}

static void records_flushed(struct nvme_io *io, int r, void *arg)
{
        struct log *l = arg;
        struct nvme_device *d = l->device;
        uint64_t n = footer_bytes(l->n_entries);

        if (r < 0)
                device_fail(d, true, "it cannot be flushed");
        l->page = r == 0 && alive(d) ? buffers_take(&d->buffers, n) : NULL;
        if (!l->page) { /* without a footer the segment is scanned at the next start */
                if (r == 0 && alive(d)) {
                        l->closing = false; /* no memory now: log_settle() tries again */
                        return;
                }
                log_closed(l);
                return;
        }
        l->n_page_bytes = (uint32_t)n;
        struct place at = {d->sb.uuid, l->segment, d->segments[l->segment].generation, 0};
        footer_encode(l->page, &at, l->entries, l->n_entries, l->end_page, d->segments[l->segment].opened_sec);
        if (!device_io(d, RING_WRITE, l->page, format_segment_offset(&d->sb, l->segment) + d->sb.segment_bytes - n, n, footer_written, l)) {
                buffers_give(&d->buffers, l->page, n);
                l->page = NULL;
                log_closed(l);
        }
}

static void close_log(struct log *l)
{
        struct nvme_device *d = l->device;

        l->closing = true;
        if (d->log == l)
                d->log = NULL;
        if (d->next == l)
                d->next = NULL;
        d->segments[l->segment].state = SEGMENT_CLOSING;
        if (l->n_entries && alive(d) && device_io(d, RING_FLUSH, NULL, 0, 0, records_flushed, l))
                return;
        log_closed(l);
}

void log_close_scanned(struct nvme_device *d, uint32_t segment, struct footer_entry *entries, uint32_t n_entries, uint32_t end_page)
{
        struct log *l = log_new(d, segment);

        if (!l) { /* it will be scanned again */
                free(entries);
                d->segments[segment].state = SEGMENT_SEALED;
                return;
        }
        l->entries = entries;
        l->n_entries = l->max_entries = n_entries;
        l->end_page = end_page;
        l->ready = l->full = true;
        d->segments[segment].state = SEGMENT_CLOSING;
}

/* syncs */

static void sync_part_done(struct nvme_sync *s, int r)
{
        struct nvme_sync_all *all = s->all;

        list_remove(&s->link);
        if (r != 0)
                all->result = r;
        if (!--all->n_pending)
                all->done(all, all->result);
}

static void synced(struct nvme_io *io, int r, void *arg)
{
        struct nvme_device *d = arg;

        if (r < 0)
                device_fail(d, true, "it cannot be flushed");
        else
                d->flushed = MAX(d->flushed, d->flushing);
        d->flushing = 0;
        metrics.c_nvme_flushes++;
        log_settle(d);
}

/* Everything with a serial up to this is written. */
static uint64_t settled_serial(const struct nvme_device *d)
{
        const struct write_order *o = list_first(&d->order, struct write_order, link);

        return o ? o->serial - 1 : d->serial;
}

static void settle_syncs(struct nvme_device *d)
{
        uint64_t settled = settled_serial(d);
        bool wants = false;

        list_for_each_safe (s, &d->syncs, struct nvme_sync, link) {
                if (s->serial <= d->flushed)
                        sync_part_done(s, 0);
                else if (!alive(d))
                        sync_part_done(s, KVT_E_IO);
                else
                        wants |= s->serial <= settled;
        }
        if (wants && !d->flushing) {
                d->flushing = settled;
                if (!device_io(d, RING_FLUSH, NULL, 0, 0, synced, d))
                        d->flushing = 0;
        }
}

void log_settle(struct nvme_device *d)
{
        list_for_each_safe (l, &d->logs, struct log, link) {
                bool done = l->full || l->broken || !alive(d);
                if (done && !l->closing && !l->n_writes && !l->page && (l->ready || l->full)) {
                        close_log(l);
                        return log_settle(d); /* the list may be another one now */
                }
        }
        settle_syncs(d);
}

void nvme_sync_start(struct nvme *n, struct nvme_sync_all *s)
{
        s->n_pending = 1;
        s->result = 0;
        for (uint32_t i = 0; i < n->n_devices; i++) {
                struct nvme_device *d = n->devices[i];
                if (!alive(d) || d->serial <= d->flushed)
                        continue;
                s->parts[i] = (struct nvme_sync){.serial = d->serial, .all = s};
                list_append(&d->syncs, &s->parts[i].link);
                s->n_pending++;
        }
        for (uint32_t i = 0; i < n->n_devices; i++)
                settle_syncs(n->devices[i]);
        if (!--s->n_pending)
                s->done(s, s->result);
}

/* appending */

static bool fits(const struct log *l, uint32_t n_pages, uint32_t n_entries)
{
        return l->end_page + n_pages + footer_bytes(l->n_entries + n_entries) / FORMAT_PAGE_BYTES <= device_segment_pages(l->device);
}

static int add_entry(struct log *l, const struct nvme_write *w, uint16_t space)
{
        if (l->n_entries == l->max_entries) {
                uint32_t n = l->max_entries ? 2 * l->max_entries : 64;
                struct footer_entry *grown = reallocarray(l->entries, n, sizeof *grown);
                if (!grown)
                        return KVT_E_NO_MEMORY;
                l->entries = grown;
                l->max_entries = n;
        }
        struct footer_entry *e = &l->entries[l->n_entries];
        *e = (struct footer_entry){
                .page = l->end_page,
                .n_pages = w->n_pages,
                .space = space,
                .flags = w->header->flags,
                .type = w->type,
                .codec = w->codec,
                .shard = w->shard,
                .n_shards = w->header->n_shards,
                .raw_bytes = w->raw_bytes,
                .max_rel_l2 = w->max_rel_l2,
        };
        memcpy(e->key, w->key, 16);
        if (w->has_parent)
                memcpy(e->parent, w->parent, 16);
        return 0;
}

static void place_write(struct nvme_device *d, struct log *l, struct nvme_write *w)
{
        w->log = l;
        w->i_entry = l->n_entries++;
        w->at = (struct record_at){d->i, l->segment, l->end_page, w->n_pages};
        w->generation = d->segments[l->segment].generation;
        w->order.serial = ++d->serial;
        list_init(&w->order.link);
        list_append(&d->order, &w->order.link);
        l->end_page += w->n_pages;
        l->n_writes++;
}

/* The record at w->header: all that is known by now. */
static void fill_header(struct nvme_write *w)
{
        struct record_header *h = w->header;
        struct timespec now;

        memset(h, 0, (size_t)record_header_pages(w->n_planes, w->n_page_hashes) * FORMAT_PAGE_BYTES);
        clock_gettime(CLOCK_REALTIME, &now);
        h->type = w->type;
        h->codec = w->codec;
        h->header_pages = record_header_pages(w->n_planes, w->n_page_hashes);
        h->n_pages = w->n_pages;
        memcpy(h->key, w->key, 16);
        if (w->has_parent)
                memcpy(h->parent, w->parent, 16);
        memcpy(h->space, w->space->digest, 16);
        memcpy(h->tenant, w->space->tenant_digest, 16);
        h->shard = w->shard;
        h->n_shards = (uint8_t)w->space->geometry.n_shards;
        h->flags = (uint16_t)((w->has_parent ? RECORD_HAS_PARENT : 0) | (w->durable ? RECORD_DURABLE : 0) |
                              (w->n_page_hashes ? RECORD_PAGE_HASHES : 0));
        h->n_planes = w->n_planes;
        h->n_page_hashes = w->n_page_hashes;
        h->raw_bytes = w->raw_bytes;
        h->stored_bytes = w->stored_bytes;
        h->max_rel_l2 = w->max_rel_l2;
        h->written_sec = (uint64_t)now.tv_sec;
}

static void descriptor_done(struct nvme_write *w, int r)
{
        free(w);
}

/* The space's descriptor, once a segment. */
static int describe_space(struct nvme_device *d, struct log *l, struct space *s, uint16_t *ret_entry)
{
        for (uint32_t i = 0; i < l->n_spaces; i++)
                if (l->spaces[i].space == s->id) {
                        *ret_entry = l->spaces[i].entry;
                        return 0;
                }
        if (l->n_spaces == l->max_spaces) {
                uint32_t n = l->max_spaces ? 2 * l->max_spaces : 8;
                void *grown = reallocarray(l->spaces, n, sizeof *l->spaces);
                if (!grown)
                        return KVT_E_NO_MEMORY;
                l->spaces = grown;
                l->max_spaces = n;
        }
        struct nvme_write *w = new0(struct nvme_write, 1);
        if (!w)
                return KVT_E_NO_MEMORY;
        w->space = s;
        w->type = RECORD_SPACE;
        memcpy(w->key, s->digest, 16);
        w->raw_bytes = w->stored_bytes = s->n_descriptor;
        w->n_pages = record_header_pages(0, 0) + format_pages(s->n_descriptor);
        w->done = descriptor_done;
        w->header = buffers_take(&d->buffers, (size_t)w->n_pages * FORMAT_PAGE_BYTES);
        if (!w->header) {
                free(w);
                return KVT_E_AGAIN;
        }
        fill_header(w);
        memset(record_payload(w->header), 0, (size_t)format_pages(s->n_descriptor) * FORMAT_PAGE_BYTES);
        memcpy(record_payload(w->header), s->descriptor, s->n_descriptor);
        if (add_entry(l, w, 0xffff) != 0) {
                buffers_give(&d->buffers, w->header, (size_t)w->n_pages * FORMAT_PAGE_BYTES);
                free(w);
                return KVT_E_NO_MEMORY;
        }
        place_write(d, l, w);
        l->spaces[l->n_spaces].space = s->id;
        l->spaces[l->n_spaces++].entry = (uint16_t)w->i_entry;
        *ret_entry = (uint16_t)w->i_entry;
        nvme_write_submit(d->nvme, w, true);
        return 0;
}

int nvme_write_begin_on(struct nvme_device *d, struct nvme_write *w)
{
        uint32_t descriptor = record_header_pages(0, 0) + format_pages(w->space->n_descriptor);
        uint16_t space = 0xffff;
        int r;

        w->n_pages = record_header_pages(w->n_planes, w->n_page_hashes) + format_pages(w->stored_bytes);
        if (!writable(d))
                return KVT_E_NO_DEVICE;
        if (w->n_pages > device_record_pages_max(d))
                return KVT_E_TOO_LARGE;
        if (d->log && d->log->ready && (!fits(d->log, w->n_pages + descriptor, 2) || d->log->n_entries > 0xfff0)) {
                d->log->full = true;
                d->log = NULL;
                log_settle(d);
        }
        if (!d->log)
                log_open_ahead(d);
        if (!d->log && !d->n_free && !d->recycle)
                recycle_some(d);
        struct log *l = d->log;
        if (!l || !l->ready || l->full || l->broken)
                return KVT_E_AGAIN;
        w->header = buffers_take(&d->buffers, (size_t)w->n_pages * FORMAT_PAGE_BYTES);
        if (!w->header)
                return KVT_E_AGAIN;
        r = describe_space(d, l, w->space, &space);
        if (r == 0) {
                fill_header(w);
                r = add_entry(l, w, space);
        }
        if (r != 0) {
                buffers_give(&d->buffers, w->header, (size_t)w->n_pages * FORMAT_PAGE_BYTES);
                w->header = NULL;
                return r;
        }
        place_write(d, l, w);
        return 0;
}

int nvme_write_begin(struct nvme *n, struct nvme_write *w)
{
        struct nvme_device *best = NULL;
        uint32_t i = w->type == RECORD_BLOCK ? catalog_find_live(&n->catalog, w->space->id, w->shard, w->key) : POOL_NONE;
        bool opening = false, too_large = false;

        w->n_pages = record_header_pages(w->n_planes, w->n_page_hashes) + format_pages(w->stored_bytes);
        if (w->n_pages >= 1u << 18)
                return KVT_E_TOO_LARGE;
        if (!nvme_write_drops(n))
                return KVT_E_AGAIN;
        if (i != POOL_NONE) { /* where it was: so that one device alone says what is newest */
                best = n->devices[entry_place(catalog_at(&n->catalog, i)).device];
                return nvme_write_begin_on(best, w);
        }
        for (uint32_t k = 0; k < n->n_devices; k++) {
                struct nvme_device *d = n->devices[k];
                opening |= d->state == DEVICE_OPENING || d->state == DEVICE_RECOVERING;
                if (!writable(d))
                        continue;
                if (w->n_pages > device_record_pages_max(d))
                        too_large = true;
                else if (!best || d->n_ios < best->n_ios || (d->n_ios == best->n_ios && d->used_bytes < best->used_bytes))
                        best = d;
        }
        if (best)
                return nvme_write_begin_on(best, w);
        return too_large ? KVT_E_TOO_LARGE : opening && !n->stopping ? KVT_E_AGAIN : KVT_E_NO_DEVICE;
}

/* What became of a block's record: into the catalog with it. */
static void publish(struct nvme *n, struct nvme_write *w)
{
        struct space *s = w->space;
        uint32_t i = catalog_find_live(&n->catalog, s->id, w->shard, w->key);
        struct entry *e = i != POOL_NONE ? catalog_at(&n->catalog, i) : NULL;

        if (w->from.n_pages) {
                struct record_at now = e ? entry_place(e) : (struct record_at){};
                if (memcmp(&now, &w->from, sizeof now))
                        return; /* dropped, or written anew, while it was moved */
        }
        if (e) {
                nvme_account(n, s, entry_place(e), -1);
                entry_move(e, w->at);
                e->flags = (uint16_t)(e->flags | (w->durable ? ENTRY_DURABLE : 0));
        } else {
                i = catalog_add(&n->catalog, s->id, w->shard, w->key, w->has_parent ? w->parent : NULL, w->at,
                                w->durable ? ENTRY_DURABLE | ENTRY_USED : 0);
                if (i == POOL_NONE)
                        return; /* the index is full: the record is there for nobody */
                s->n_records++;
                s->tenant->n_records++;
        }
        nvme_account(n, s, w->at, 1);
}

static void record_written(struct nvme_io *io, int r, void *arg)
{
        struct nvme_write *w = arg;
        struct log *l = w->log;
        struct nvme_device *d = l->device;
        struct nvme *n = d->nvme;

        if (r != -ETIMEDOUT && r != -ECANCELED)
                buffers_give(&d->buffers, w->header, (size_t)w->n_pages * FORMAT_PAGE_BYTES);
        w->header = NULL;
        l->n_writes--;
        if (r < 0) {
                struct footer_entry *e = &l->entries[w->i_entry];
                *e = (struct footer_entry){.page = e->page, .n_pages = e->n_pages, .space = 0xffff, .type = RECORD_PAD};
                if (w->type == RECORD_SPACE) /* those that lean on it are void, too */
                        for (uint32_t k = 0; k < l->n_entries; k++)
                                if (l->entries[k].space == w->i_entry)
                                        l->entries[k] = (struct footer_entry){
                                                .page = l->entries[k].page, .n_pages = l->entries[k].n_pages, .space = 0xffff, .type = RECORD_PAD};
                if (!l->broken || w->order.serial < l->order.serial) { /* what comes behind the oldest hole is durable only with the footer */
                        list_remove(&l->order.link);
                        l->order.serial = w->order.serial;
                        list_append(&w->order.link, &l->order.link); /* in its place */
                }
                l->broken = l->full = true;
                if (d->log == l)
                        d->log = NULL;
                if (r == -ENOSPC)
                        d->full_until_usec = n->now_usec + 60 * USEC_PER_SEC;
                else
                        device_count_error(d, true);
        } else {
                d->n_write_errors = 0;
                if (w->type == RECORD_BLOCK && !w->is_void)
                        publish(n, w);
                metrics.c_nvme_records_written++;
        }
        list_remove(&w->order.link);
        w->done(w, r < 0 ? KVT_E_IO : 0);
        log_settle(d);
        if (n->on_room)
                n->on_room(n, n->arg);
}

void nvme_write_submit(struct nvme *n, struct nvme_write *w, bool ok)
{
        struct log *l = w->log;
        struct nvme_device *d = l->device;
        struct record_header *h = w->header;

        if (!ok) {
                uint32_t n_pages = h->n_pages;
                memset(h, 0, FORMAT_PAGE_BYTES);
                h->type = RECORD_PAD;
                h->header_pages = 1;
                h->n_pages = n_pages;
                h->raw_bytes = h->stored_bytes = (uint64_t)(n_pages - 1) * FORMAT_PAGE_BYTES;
                h->payload_hash = 0;
                w->type = RECORD_PAD;
                struct footer_entry *e = &l->entries[w->i_entry];
                *e = (struct footer_entry){.page = e->page, .n_pages = e->n_pages, .space = 0xffff, .type = RECORD_PAD};
        } else if (w->type != RECORD_BLOCK) {
                h->payload_hash = hash_bytes(record_payload(h), h->stored_bytes, 0);
        }
        struct place at = {d->sb.uuid, w->at.segment, w->generation, w->at.page};
        record_header_seal(h, &at);
        if (!device_io(d, RING_WRITE, h, device_page_offset(d, w->at), (uint64_t)w->n_pages * FORMAT_PAGE_BYTES, record_written, w))
                record_written(NULL, -ENOMEM, w);
}
