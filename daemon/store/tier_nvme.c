/* The NVMe tier as the engine sees it: finding and reading records, taking them out, remembering that they are out. */
#include <string.h>

#include "daemon/store/recovery.h"
#include "daemon/util/clock.h"
#include "daemon/util/log.h"
#include "daemon/util/metrics.h"

enum { DROPS_A_RECORD = FORMAT_PAGE_BYTES / sizeof(struct drop_entry), DROPS_MAX = 1024, /* records of them */ REMEMBERED_MAX = 1 << 18 };

static bool readable(const struct nvme_device *d)
{
        return d->segments && !d->detach && (d->state == DEVICE_SERVING || d->state == DEVICE_DRAINING || d->state == DEVICE_RECOVERING);
}

uint32_t nvme_find(const struct nvme *n, const struct space *s, uint32_t shard, const uint8_t key[16])
{
        uint32_t i = s->n_records ? catalog_find_live(&n->catalog, s->id, shard, key) : POOL_NONE;

        return i != POOL_NONE && readable(n->devices[entry_place(catalog_at(&n->catalog, i)).device]) ? i : POOL_NONE;
}

void nvme_account(struct nvme *n, struct space *s, struct record_at at, int sign)
{
        struct nvme_device *d = n->devices[at.device];
        uint64_t bytes = (uint64_t)(sign * (int64_t)at.n_pages * FORMAT_PAGE_BYTES);

        if (d->segments)
                d->segments[at.segment].live_pages += (uint32_t)(sign * (int32_t)at.n_pages);
        d->used_bytes += bytes;
        d->n_records += (uint64_t)(int64_t)sign;
        s->record_bytes += bytes;
        s->tenant->record_bytes += bytes;
        n->tier.used_bytes += bytes;
        n->tier.payload_bytes += (uint64_t)(sign * (int64_t)s->geometry.part_bytes);
}

struct space *nvme_space_of(const struct nvme *n, const uint8_t digest[16])
{
        list_for_each (s, &n->tenants->spaces, struct space, link)
                if (!memcmp(s->digest, digest, 16))
                        return s;
        return NULL;
}

static void take_out(struct nvme *n, uint32_t i)
{
        struct entry *e = catalog_at(&n->catalog, i);
        struct space *s = space_at(n->tenants, entry_space(e));

        nvme_account(n, s, entry_place(e), -1);
        s->n_records--;
        s->tenant->n_records--;
        catalog_remove(&n->catalog, i);
}

void nvme_forget(struct nvme *n, uint32_t i, int why)
{
        struct entry *e = catalog_at(&n->catalog, i);
        struct space *s = space_at(n->tenants, entry_space(e));
        uint32_t shard = entry_shard(e);
        uint8_t key[16];

        memcpy(key, e->key, 16);
        s->n_open++; /* it may be the space's last trace */
        take_out(n, i);
        if (n->on_gone)
                n->on_gone(n, s, shard, key, why, n->arg);
        s->n_open--;
        if (n->on_settle)
                n->on_settle(n, s, n->arg);
}

/* reading */

static void read_part_done(struct nvme_read *r, int result, unsigned which)
{
        struct nvme_device *d = r->device;
        struct place at = {d->sb.uuid, r->at.segment, r->generation, r->at.page};

        if (result == -ETIMEDOUT || result == -ECANCELED)
                r->n_buf_pages[which] = 0; /* the kernel may still write to it */
        if (result < 0) {
                r->result = KVT_E_IO;
                if (result != -ETIMEDOUT && result != -ECANCELED)
                        device_count_error(d, false);
        }
        if (--r->n_pending)
                return;
        if (r->cached) {
                r->done(r, r->result);
                return;
        }
        if (!r->result && record_header_check(r->header, (uint64_t)r->header_pages * FORMAT_PAGE_BYTES, &at, r->at.n_pages) != 0)
                r->result = KVT_E_CORRUPT;
        if (!r->result &&
            (r->header->type != RECORD_BLOCK || r->header->n_pages != r->at.n_pages || r->header->header_pages != r->header_pages))
                r->result = KVT_E_CORRUPT;
        if (!r->result && (r->in_part || r->keep_header))
                headers_add(&r->device->nvme->headers, r->at, r->generation, r->header, r->header_pages);
        r->done(r, r->result);
}

/* A record that cannot be read is taken out for good, so it is tried twice. */
static bool read_again(struct nvme_read *r, struct nvme_io *io, int result, void (*done)(struct nvme_io *, int, void *))
{
        struct nvme_device *d = r->device;

        if (result != -EIO || r->tried_again || !readable(d) || !device_io(d, RING_READ, io->op.buf, io->op.offset, io->op.bytes, done, r))
                return false;
        r->tried_again = true;
        device_count_error(d, false); /* r may be gone afterwards */
        return true;
}

static void read_first(struct nvme_io *io, int result, void *arg)
{
        if (!read_again(arg, io, result, read_first))
                read_part_done(arg, result, 0);
}
static void read_second(struct nvme_io *io, int result, void *arg)
{
        if (!read_again(arg, io, result, read_second))
                read_part_done(arg, result, 1);
}

static void give_bufs(struct nvme_read *r)
{
        for (int i = 0; i < 2; i++) {
                if (r->buf[i] && r->n_buf_pages[i] && r->device->buffers.arena)
                        buffers_give(&r->device->buffers, r->buf[i], (size_t)r->n_buf_pages[i] * FORMAT_PAGE_BYTES);
                r->buf[i] = NULL;
        }
        r->cached = headers_unref(r->cached);
}

int nvme_read_begin(struct nvme *n, struct nvme_read *r, uint32_t entry)
{
        const struct entry *e = catalog_at(&n->catalog, entry);
        const struct space *s = space_at(n->tenants, entry_space(e));
        struct nvme_device *d;

        r->at = entry_place(e);
        d = r->device = n->devices[r->at.device];
        if (!readable(d) || (d->detach && d->state == DEVICE_DRAINING)) /* who never stops reading must not keep it from going */
                return KVT_E_MISS;
        r->generation = d->segments[r->at.segment].generation;
        r->result = 0;
        r->n_pending = 0;
        r->buf[0] = r->buf[1] = NULL;
        r->cached = NULL;
        r->tried_again = false;
        /* the header's length follows from the record's: what does not agree is refused when it is read */
        r->header_pages = record_header_pages_of(s->geometry.n_planes + 1, r->at.n_pages);
        if (!r->header_pages)
                return KVT_E_MISS;
        uint64_t payload = (uint64_t)(r->at.n_pages - r->header_pages) * FORMAT_PAGE_BYTES;
        uint64_t from = MIN(r->first_byte, payload), to = r->n_bytes > payload - from ? payload : from + r->n_bytes;
        uint32_t first = (uint32_t)(from / FORMAT_PAGE_BYTES), last = format_pages(to);
        r->in_part = to - from < payload;
        if (r->in_part)
                r->cached = headers_find(&n->headers, r->at, r->generation);
        bool together = !r->cached && first <= 8; /* reading a few pages too many is faster than asking twice */
        uint32_t n0 = r->cached ? 0 : r->header_pages + (together ? last : 0), n1 = together ? 0 : last - first;

        r->n_buf_pages[0] = n0;
        r->n_buf_pages[1] = n1;
        r->buf[0] = n0 ? buffers_take(&d->buffers, (size_t)n0 * FORMAT_PAGE_BYTES) : NULL;
        r->buf[1] = n1 && (r->buf[0] || !n0) ? buffers_take(&d->buffers, (size_t)n1 * FORMAT_PAGE_BYTES) : NULL;
        if ((n0 && !r->buf[0]) || (n1 && !r->buf[1])) {
                give_bufs(r);
                return n0 + n1 > d->buffers.n_pages ? KVT_E_MISS : KVT_E_AGAIN;
        }
        r->header = r->cached ? r->cached->header : r->buf[0];
        r->payload = together ? (uint8_t *)r->buf[0] + (size_t)r->header_pages * FORMAT_PAGE_BYTES + from
                              : (uint8_t *)r->buf[1] + from % FORMAT_PAGE_BYTES;
        uint64_t offset = device_page_offset(d, r->at);
        r->n_pending = (n0 > 0) + (n1 > 0);
        d->segments[r->at.segment].n_reads++;
        bool ok = !n0 || device_io(d, RING_READ, r->buf[0], offset, (uint64_t)n0 * FORMAT_PAGE_BYTES, read_first, r);
        if (ok && n1 &&
            !device_io(d, RING_READ, r->buf[1], offset + (uint64_t)(r->header_pages + first) * FORMAT_PAGE_BYTES,
                       (uint64_t)n1 * FORMAT_PAGE_BYTES, read_second, r)) {
                ok = --r->n_pending > 0; /* what is under way comes back first */
                r->result = KVT_E_AGAIN;
        }
        if (!ok) {
                d->segments[r->at.segment].n_reads--;
                give_bufs(r);
                return KVT_E_AGAIN;
        }
        return 0;
}

struct cached_header *nvme_header_at_hand(struct nvme *n, uint32_t entry)
{
        struct record_at at = entry_place(catalog_at(&n->catalog, entry));
        const struct nvme_device *d = n->devices[at.device];

        return readable(d) ? headers_find(&n->headers, at, d->segments[at.segment].generation) : NULL;
}

void nvme_read_end(struct nvme *n, struct nvme_read *r)
{
        struct nvme_device *d = r->device;

        give_bufs(r);
        if (d->segments && r->at.segment < d->sb.n_segments && d->segments[r->at.segment].generation == r->generation)
                d->segments[r->at.segment].n_reads--;
        if (n->on_room)
                n->on_room(n, n->arg);
}

void nvme_quarantine(struct nvme *n, struct nvme_read *r, const struct space *s, uint32_t shard, const uint8_t key[16])
{
        uint32_t i = catalog_find_live(&n->catalog, s->id, shard, key);
        struct record_at now = i != POOL_NONE ? entry_place(catalog_at(&n->catalog, i)) : (struct record_at){};

        if (i == POOL_NONE || now.device != r->at.device || now.segment != r->at.segment || now.page != r->at.page ||
            !readable(r->device) || r->device->segments[now.segment].generation != r->generation)
                return; /* it is another one by now */
        r->device->counters.n_quarantined++;
        metrics.c_nvme_quarantined++;
        log_limited(LOG_WARNING, "%s: the record at byte %llu is damaged and taken out of service", r->device->path,
                    (unsigned long long)device_page_offset(r->device, now));
        nvme_drop_later(n, space_at(n->tenants, s->id), shard, key, now.device);
        nvme_forget(n, i, KVT_WHY_CORRUPT);
}

/* drops: collected, and written before anything else is, so that a record put afterwards is behind them */

struct drops {
        struct list link; /* in nvme.drops */
        struct space *space; /* kept open */
        uint32_t device;
        uint32_t n;
        bool late; /* the device was not there yet, or a write failed: newer records of what they name may be there by now */
        bool failed; /* they were tried to be written before: then first at */
        uint64_t generation;
        uint32_t page;
        uint64_t serial; /* of the first of them */
        struct nvme_write write;
        struct nvme *nvme;
        struct drop_entry entries[DROPS_A_RECORD];
};

static void drops_free(struct drops *p)
{
        struct nvme *n = p->nvme;

        list_remove(&p->link);
        n->n_drops--;
        p->space->n_open--;
        if (n->on_settle)
                n->on_settle(n, p->space, n->arg);
        free(p);
}

/* They may be written only when the device is back. What it brings until then, as far as it is older, must not be found. */
static void drops_are_away(struct nvme *n, struct drops *p)
{
        p->late = true;
        for (uint32_t k = 0; k < p->n; k++) {
                const struct drop_entry *e = &p->entries[k];
                if (e->what == 1 && !p->space->n_records)
                        p->space->not_recovered = true;
                else if (e->what == 2 && catalog_find_live(&n->catalog, p->space->id, e->shard, e->key) == POOL_NONE)
                        nvme_remember_drop(n, p->space, e->shard, e->key, (struct record_at){});
        }
}

void nvme_drops_leave(struct nvme *n, const struct nvme_device *d)
{
        list_for_each (p, &n->drops, struct drops, link)
                if (p->device == d->i)
                        drops_are_away(n, p);
}

static void drops_written(struct nvme_write *w, int r)
{
        struct drops *p = container_of(w, struct drops, write);
        struct nvme_device *d = p->nvme->devices[p->device];

        if (r == 0) {
                drops_free(p);
                return;
        }
        p->late = p->failed = true;
        list_append(&p->nvme->drops, &p->link); /* again, elsewhere: errors in a row fail the device */
        if (d->state != DEVICE_SERVING)
                drops_are_away(p->nvme, p);
        list_for_each (s, &d->syncs, struct nvme_sync, link)
                if (s->drops_serial >= p->serial)
                        s->serial = UINT64_MAX;
}

/* The device may have been away, and may have brought back what they void: what lies before the place where they were to be written first. */
static void take_out_dropped(struct nvme *n, const struct drops *p)
{
        for (uint32_t k = 0; k < p->n; k++) {
                const struct drop_entry *e = &p->entries[k];
                uint32_t i = e->what == 2 ? catalog_find_live(&n->catalog, p->space->id, e->shard, e->key) : POOL_NONE;
                struct record_at at = i != POOL_NONE ? entry_place(catalog_at(&n->catalog, i)) : (struct record_at){};
                if (i != POOL_NONE && at.device == p->device && (!p->failed || !recovery_later(n, at, p->generation, p->page)))
                        nvme_forget(n, i, KVT_WHY_DROPPED);
        }
}

/* A record of it is being written that was begun after the drop: those from before are void, and what is moved is what was there. */
static bool is_coming(const struct nvme *n, const struct space *s, const struct drop_entry *drop)
{
        for (uint32_t i = 0; i < n->n_devices; i++)
                list_for_each (l, &n->devices[i]->logs, struct log, link)
                        list_for_each (w, &l->writes, struct nvme_write, link)
                                if (w->type == RECORD_BLOCK && w->space == s && !w->is_void && !w->from.n_pages &&
                                    (drop->what == 1 || (w->shard == drop->shard && !memcmp(w->key, drop->key, 16))))
                                        return true;
        return false;
}

/* A drop voids what lies before it. One that comes late must not void what was put since; and the newest record of a part counts anyway. */
static void take_late_out(struct nvme *n, struct drops *p)
{
        uint32_t left = 0;

        for (uint32_t i = 0; i < p->n; i++) {
                const struct drop_entry *e = &p->entries[i];
                bool newer = e->what == 1 ? p->failed && (p->space->n_records || is_coming(n, p->space, e))
                                          : catalog_find_live(&n->catalog, p->space->id, e->shard, e->key) != POOL_NONE ||
                                                    is_coming(n, p->space, e);
                if (!newer)
                        p->entries[left++] = *e;
                else if (e->what == 1)
                        log_limited(LOG_WARNING,
                                    "What was purged from an NVMe device may be back after a restart: it could not be written down");
        }
        p->n = left;
}

bool nvme_write_drops(struct nvme *n)
{
        list_for_each_safe (p, &n->drops, struct drops, link) {
                struct nvme_write *w = &p->write;
                struct nvme_device *d = n->devices[p->device];
                if (d->state != DEVICE_SERVING) /* it may come back */
                        continue;
                if (p->late) {
                        take_out_dropped(n, p);
                        take_late_out(n, p);
                }
                if (!p->n) {
                        drops_free(p);
                        continue;
                }
                *w = (struct nvme_write){.space = p->space, .type = RECORD_DROP, .done = drops_written};
                w->raw_bytes = w->stored_bytes = p->n * sizeof *p->entries;
                int r = nvme_write_begin_on(d, w);
                if (r == KVT_E_NO_SPACE) { /* nothing is on the device that could come back */
                        drops_free(p);
                        continue;
                }
                if (r != 0)
                        return false;
                list_remove(&p->link); /* drops_free() unlinks it once more, from itself */
                if (!p->failed) {
                        p->generation = w->generation;
                        p->page = w->at.page;
                }
                memset(record_payload(w->header), 0, (size_t)(w->n_pages - w->header->header_pages) * FORMAT_PAGE_BYTES);
                memcpy(record_payload(w->header), p->entries, w->stored_bytes);
                d->segments[w->at.segment].has_drops = true;
                nvme_write_submit(n, w, true);
        }
        return true;
}

bool nvme_drops_wait(const struct nvme *n, const struct nvme_device *d, uint64_t serial)
{
        list_for_each (p, &n->drops, struct drops, link)
                if (p->device == d->i && p->serial <= serial)
                        return true;
        return false;
}

static void add_drop(struct nvme *n, struct space *s, uint32_t device, const struct drop_entry *e)
{
        struct drops *p = NULL;
        bool late = n->devices[device]->state != DEVICE_SERVING;

        struct list *l = n->drops.prev;
        for (int steps = 0; !p && l != &n->drops && steps < 64; steps++, l = l->prev) { /* it is among the last, or a record is not full */
                struct drops *last = container_of(l, struct drops, link);
                if (last->space == s && last->device == device && last->n < DROPS_A_RECORD && last->late == late && !last->failed)
                        p = last;
        }
        if (!p) {
                /* those that wait for a device that may never come back do not take the room of others */
                if (n->n_drops >= (late ? DROPS_MAX / 2 : DROPS_MAX) || !(p = new0(struct drops, 1))) {
                        log_limited(LOG_WARNING, "What was dropped from an NVMe device may be back after a restart: too many drops wait");
                        n->devices[device]->drops_lost = true;
                        return;
                }
                p->nvme = n;
                p->space = s;
                p->device = device;
                p->late = late;
                s->n_open++;
                n->n_drops++;
                p->serial = ++n->drops_serial;
                list_append(&n->drops, &p->link);
        }
        p->entries[p->n++] = *e;
}

void nvme_drop_later(struct nvme *n, struct space *s, uint32_t shard, const uint8_t key[16], uint32_t device)
{
        struct drop_entry e = {.what = 2, .shard = shard};

        memcpy(e.key, key, 16);
        add_drop(n, s, device, &e);
}

/* Until what is remembered is forgotten, see forget_drops(): under another number it would say nothing. */
static void keep_space(struct space *s)
{
        s->n_open += !s->is_kept;
        s->is_kept = true;
}

void nvme_remember_drop(struct nvme *n, struct space *s, uint32_t shard, const uint8_t key[16], struct record_at at)
{
        if (at.n_pages || nvme_recovering(n)) /* else it names no place, and is forgotten when what is away has come back */
                n->forget_cursor = 0;
        keep_space(s);
        if (catalog_add_drop(&n->catalog, s->id, shard, key, at) == POOL_NONE)
                log_limited(LOG_WARNING, "What was dropped from an NVMe device may be back: the index is full");
}

bool nvme_recovering(const struct nvme *n)
{
        for (uint32_t i = 0; i < n->n_devices; i++)
                if (n->devices[i]->state == DEVICE_OPENING || n->devices[i]->state == DEVICE_RECOVERING)
                        return true;
        return false;
}

bool nvme_away(const struct nvme *n)
{
        for (uint32_t i = 0; i < n->n_devices; i++)
                if (n->devices[i]->state != DEVICE_SERVING)
                        return true;
        return false;
}

bool nvme_recycling(const struct nvme *n)
{
        for (uint32_t i = 0; i < n->n_devices; i++)
                if (n->devices[i]->recycle)
                        return true;
        return false;
}

void nvme_drop_part(struct nvme *n, struct space *s, uint32_t shard, const uint8_t key[16], bool in_flight)
{
        uint32_t i = s->n_records ? catalog_find_live(&n->catalog, s->id, shard, key) : POOL_NONE, device = NVME_DEVICES_MAX;

        if (i != POOL_NONE) {
                device = entry_place(catalog_at(&n->catalog, i)).device;
                take_out(n, i);
        }
        for (uint32_t k = 0; k < n->n_devices; k++)
                /* what is being recycled may hold a record that the catalog does not know any more */
                if (k == device || in_flight || n->devices[k]->recycle || n->devices[k]->state != DEVICE_SERVING)
                        nvme_drop_later(n, s, shard, key, k);
        if (nvme_away(n) && s->id < 1u << 24 && n->n_remembered < REMEMBERED_MAX) { /* clients must not fill the catalog with it */
                n->n_remembered++;
                nvme_remember_drop(n, s, shard, key, (struct record_at){});
        }
}

void nvme_drop(struct nvme *n, struct space *s, const uint8_t key[16])
{
        for (uint32_t shard = 0; shard < s->geometry.n_shards; shard++)
                nvme_drop_part(n, s, shard, key, false);
}

void nvme_drop_space(struct nvme *n, struct space *s)
{
        struct drop_entry e = {.what = 1};

        for (uint32_t i = 0; i < n->n_devices; i++)
                add_drop(n, s, i, &e);
        if (nvme_away(n)) {
                s->not_recovered = true;
                if (nvme_recovering(n))
                        n->forget_cursor = 0;
                keep_space(s);
        }
}

bool nvme_drops_writable(const struct nvme *n)
{
        list_for_each (p, &n->drops, struct drops, link)
                if (n->devices[p->device]->state == DEVICE_SERVING)
                        return true;
        return false;
}

void nvme_drops_free(struct nvme *n)
{
        if (!list_empty(&n->drops))
                log_warning("What was dropped from NVMe devices that were out of service is back when they are");
        while (!list_empty(&n->drops))
                drops_free(list_first(&n->drops, struct drops, link));
}
