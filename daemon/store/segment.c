/* Logs: the segments of a device that are being filled, the order of writes that makes "durable" mean something, and the syncs that wait for it.
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

uint32_t device_record_pages_max(const struct nvme_device *d)
{
        uint32_t in_segment = device_segment_pages(d) - 1 - SPACE_DESCRIPTOR_MAX / FORMAT_PAGE_BYTES - 2 -
                              (uint32_t)(footer_bytes(3) / FORMAT_PAGE_BYTES);

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

        l->opening = false;
        l->ready = r == 0;
        if (r < 0) {
                l->full = true;
                device_unflushable(d);
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
        if (r < 0)
                device_write_failed(d, r);
        l->opening = false;
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
        list_init(&l->writes);
        list_init(&l->held);
        list_append(&d->logs, &l->link);
        return l;
}

uint64_t nvme_next_generation(struct nvme *n)
{
        struct timespec now;

        clock_gettime(CLOCK_REALTIME, &now);
        n->generation = MAX(n->generation + 1, (uint64_t)now.tv_sec * USEC_PER_SEC + (uint64_t)now.tv_nsec / 1000);
        return n->generation;
}

static struct log *log_open(struct nvme_device *d)
{
        uint32_t i = device_usable(d) ? find_free(d) : SEGMENT_NONE;
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
        s->generation = nvme_next_generation(d->nvme);
        s->opened_sec = (uint64_t)now.tv_sec;
        s->state = SEGMENT_OPEN;
        d->n_free--;
        d->n_virgin -= s->virgin;
        l->was_virgin = s->virgin;
        s->virgin = false;
        struct place at = {d->sb.uuid, i, s->generation, 0};
        segment_header_encode(page, &at, s->opened_sec);
        if (!device_io(d, RING_WRITE, page, format_segment_offset(&d->sb, i), FORMAT_PAGE_BYTES, header_written, l)) {
                buffers_give(&d->buffers, page, FORMAT_PAGE_BYTES);
                l->page = NULL;
                l->full = true;
        } else {
                l->opening = true;
        }
        return l;
}

void log_open_ahead(struct nvme_device *d, bool now)
{
        if (!device_writable(d))
                return;
        if (!d->log && (d->next || now)) {
                d->log = d->next ?: log_open(d);
                d->next = NULL;
        }
        if (d->log && !d->next && d->log->end_page > device_segment_pages(d) / 2 && device_usable(d) > 1)
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
                s->virgin = l->was_virgin;
                d->n_virgin += s->virgin;
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
                device_unflushable(l->device);
        log_closed(l);
}

static void sync_part_done(struct nvme_sync *s, int r);

/* Without the footer a scan finds nothing behind the hole: what lies there is taken out, and who waits for it is told. */
static void lose_behind_hole(struct log *l, int r)
{
        struct nvme_device *d = l->device;
        struct nvme *n = d->nvme;

        for (uint32_t k = 0; k < l->n_entries; k++) {
                const struct footer_entry *e = &l->entries[k];
                uint32_t i = POOL_NONE;
                for (uint32_t s = 0; s < l->n_spaces && e->type == RECORD_BLOCK && e->page > l->hole_page; s++)
                        if (l->spaces[s].entry == e->space)
                                i = catalog_find_live(&n->catalog, l->spaces[s].space, e->shard, e->key);
                struct record_at at = i != POOL_NONE ? entry_place(catalog_at(&n->catalog, i)) : (struct record_at){};
                if (i != POOL_NONE && at.device == d->i && at.segment == l->segment && at.page == e->page)
                        nvme_forget(n, i, KVT_WHY_EVICTED);
        }
        list_for_each_safe (s, &d->syncs, struct nvme_sync, link)
                if (s->serial >= l->order.serial)
                        sync_part_done(s, r == -ENOSPC ? KVT_E_NO_SPACE : KVT_E_IO);
}

static void footer_written(struct nvme_io *io, int r, void *arg)
{
        struct log *l = arg;
        struct nvme_device *d = l->device;

        log_page_done(l, r);
        if (r < 0 && device_alive(d))
                device_write_failed(d, r);
        else if (r == 0)
                d->n_write_errors = 0;
        if (r == 0 && l->broken && device_io(d, RING_FLUSH, NULL, 0, 0, footer_flushed, l))
                return;
        if (r < 0 && l->broken && device_alive(d))
                lose_behind_hole(l, r);
        log_closed(l);
}

static void records_flushed(struct nvme_io *io, int r, void *arg)
{
        struct log *l = arg;
        struct nvme_device *d = l->device;
        uint64_t n = footer_bytes(l->n_entries);

        if (r < 0)
                device_unflushable(d);
        l->page = r == 0 && device_alive(d) ? buffers_take(&d->buffers, n) : NULL;
        if (!l->page) { /* without a footer the segment is scanned at the next start */
                if (r == 0 && device_alive(d)) {
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
                l->closing = false; /* likewise; when the device is gone log_settle() ends it */
        }
}

void log_retry(struct nvme_device *d)
{
        list_for_each (l, &d->logs, struct log, link)
                if (l->full && !l->closing && !l->n_writes && !l->page) {
                        log_settle(d);
                        return;
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
        if (l->n_entries && device_alive(d) && device_io(d, RING_FLUSH, NULL, 0, 0, records_flushed, l))
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
                device_unflushable(d);
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
                else if (!device_alive(d) || d->unflushable ||
                         (s->serial == UINT64_MAX && d->state != DEVICE_SERVING)) /* drops cannot be written */
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
                bool done = l->full || l->broken || !device_alive(d);
                if (done && !l->closing && !l->n_writes && !l->page && !l->opening) {
                        close_log(l);
                        return log_settle(d); /* the list may be another one now */
                }
        }
        settle_syncs(d);
}

static void start_sync(struct nvme *n, struct nvme_sync_all *s, bool with_drops)
{
        s->n_pending = 1;
        s->result = 0;
        for (uint32_t i = 0; i < n->n_devices; i++) {
                struct nvme_device *d = n->devices[i];
                bool drops = with_drops && nvme_drops_wait(n, d, n->drops_serial);
                if (drops && (d->state == DEVICE_OPENING || d->state == DEVICE_RECOVERING))
                        s->result = KVT_E_AGAIN;
                if ((drops && d->state == DEVICE_FAILED) || (with_drops && device_alive(d) && d->drops_lost))
                        s->result = KVT_E_IO;
                if (d->state == DEVICE_RECOVERING && d->unflushable)
                        s->result = KVT_E_IO;
                if (!device_alive(d) || (d->serial <= d->flushed && !drops))
                        continue;
                s->parts[i] = (struct nvme_sync){.serial = drops ? UINT64_MAX : d->serial, .drops_serial = n->drops_serial, .all = s};
                list_append(&d->syncs, &s->parts[i].link);
                s->n_pending++;
        }
        for (uint32_t i = 0; i < n->n_devices; i++)
                settle_syncs(n->devices[i]);
        if (!--s->n_pending)
                s->done(s, s->result);
}

void nvme_sync_start(struct nvme *n, struct nvme_sync_all *s)
{
        start_sync(n, s, false);
}

void nvme_flush_start(struct nvme *n, struct nvme_sync_all *s)
{
        nvme_write_drops(n);
        start_sync(n, s, true);
}

void nvme_flushes_settle(struct nvme *n)
{
        for (uint32_t i = 0; i < n->n_devices; i++) {
                struct nvme_device *d = n->devices[i];
                bool any = false;
                list_for_each (s, &d->syncs, struct nvme_sync, link)
                        if (s->serial == UINT64_MAX && !nvme_drops_wait(n, d, s->drops_serial)) {
                                s->serial = d->serial;
                                any = true;
                        }
                if (any)
                        settle_syncs(d);
        }
}
