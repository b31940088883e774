/* Appending to a log: room for a record, its header, its entry in the footer to be, and what becomes of it when it is written. */
#include <string.h>
#include <time.h>

#include "daemon/store/tier_nvme.h"
#include "daemon/util/clock.h"
#include "daemon/util/metrics.h"
#include "libclient/codec/hash.h"

enum { DESCRIPTOR_PENDING = 1 };

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
        list_append(&l->writes, &w->link);
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
        h->n_shards = w->type == RECORD_BLOCK ? (uint8_t)w->space->geometry.n_shards : 0;
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
        l->spaces[l->n_spaces].result = DESCRIPTOR_PENDING;
        l->spaces[l->n_spaces++].entry = (uint16_t)w->i_entry;
        *ret_entry = (uint16_t)w->i_entry;
        l->n_writes++; /* keeps the log if it fails at once */
        nvme_write_submit(d->nvme, w, true);
        l->n_writes--;
        if (!l->broken)
                return 0;
        log_settle(d); /* it is gone now, perhaps */
        return KVT_E_AGAIN;
}

int nvme_write_begin_on(struct nvme_device *d, struct nvme_write *w)
{
        uint32_t descriptor = record_header_pages(0, 0) + format_pages(w->space->n_descriptor);
        uint16_t space = 0xffff;
        int r;

        w->n_pages = record_header_pages(w->n_planes, w->n_page_hashes) + format_pages(w->stored_bytes);
        if (!device_writable(d))
                return KVT_E_NO_DEVICE;
        if (w->n_pages > device_record_pages_max(d))
                return KVT_E_TOO_LARGE;
        if (d->log && d->log->ready && (!fits(d->log, w->n_pages + descriptor, 2) || d->log->n_entries > 0xfff0)) {
                d->log->full = true;
                d->log = NULL;
                log_settle(d);
        }
        /* the last free segment is for what recycling moves, or it could not go on */
        bool moves = w->from.n_pages || w->type == RECORD_DROP;
        if (!d->log && (moves || d->next || device_usable(d) > 1))
                log_open_ahead(d, true);
        struct log *l = d->log;
        if (!l && !device_usable(d) && !d->recycle && d->n_free == d->sb.n_segments)
                return KVT_E_NO_SPACE; /* there is nothing to recycle either */
        bool stuck = w->type == RECORD_BLOCK && !moves && !d->recycle && device_stuck(d);
        if (!l && stuck)
                return KVT_E_NO_SPACE;
        if (!l || (!moves && !device_usable(d) && !stuck)) {
                d->wants_room = true; /* nvme_pass() sees to it */
                return KVT_E_AGAIN;
        }
        if (!l->ready || l->full || l->broken)
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
                if (device_writable(best))
                        return nvme_write_begin_on(best, w);
                best = NULL;
        }
        for (uint32_t k = 0; k < n->n_devices; k++) {
                struct nvme_device *d = n->devices[k];
                opening |= d->state == DEVICE_OPENING || d->state == DEVICE_RECOVERING;
                if (!device_writable(d))
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
                e->flags = (uint8_t)(e->flags | (w->durable ? ENTRY_DURABLE : 0));
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

/* How the descriptor that the write leans on came back: 0, -errno, or DESCRIPTOR_PENDING. */
static int descriptor_result(const struct nvme_write *w)
{
        const struct log *l = w->log;
        uint16_t entry = l->entries[w->i_entry].space;

        for (uint32_t i = 0; i < l->n_spaces; i++)
                if (l->spaces[i].entry == entry)
                        return l->spaces[i].result;
        return 0; /* it leans on none */
}

/* A place in the log that holds nothing. own_error: that of this very operation. */
static void fail_write(struct nvme_write *w, int r, bool own_error)
{
        struct log *l = w->log;
        struct nvme_device *d = l->device;
        struct footer_entry *e = &l->entries[w->i_entry];

        *e = (struct footer_entry){.page = e->page, .n_pages = e->n_pages, .space = 0xffff, .type = RECORD_PAD};
        if (!l->broken || w->order.serial < l->order.serial) { /* what comes behind the oldest hole is durable only with the footer */
                list_remove(&l->order.link);
                l->order.serial = w->order.serial;
                l->hole_page = w->at.page;
                list_append(&w->order.link, &l->order.link); /* in its place */
        }
        l->broken = l->full = true;
        if (d->log == l)
                d->log = NULL;
        if (own_error || r == -ENOSPC)
                device_write_failed(d, r);
}

static void finish_write(struct nvme_write *w, int r, bool own_error)
{
        struct log *l = w->log;
        struct nvme_device *d = l->device;
        struct nvme *n = d->nvme;

        l->n_writes--;
        if (r < 0) {
                fail_write(w, r, own_error);
        } else {
                d->n_write_errors = 0;
                if (w->type == RECORD_BLOCK && !w->is_void)
                        publish(n, w);
                if (!w->from.n_pages) {
                        uint32_t quarters = d->move_quarters + w->n_pages;
                        d->move_pages = MIN(d->move_pages + quarters / 4, MOVE_SEGMENTS * device_segment_pages(d));
                        d->move_quarters = quarters % 4;
                }
                metrics.c_nvme_records_written++;
        }
        list_remove(&w->order.link);
        list_remove(&w->link);
        w->done(w, r == -ENOSPC && !d->block_device ? KVT_E_NO_SPACE : r < 0 ? KVT_E_IO : 0);
}

/* The descriptor came back: what leans on it is as good as it is. */
static void finish_held(struct log *l, uint32_t i_entry, int r)
{
        for (uint32_t i = 0; i < l->n_spaces; i++)
                if (l->spaces[i].entry == i_entry)
                        l->spaces[i].result = MIN(r, 0);
        list_for_each_safe (w, &l->held, struct nvme_write, held)
                if (l->entries[w->i_entry].space == i_entry) {
                        list_remove(&w->held);
                        finish_write(w, r, false);
                }
}

static void record_written(struct nvme_io *io, int r, void *arg)
{
        struct nvme_write *w = arg;
        struct log *l = w->log;
        struct nvme_device *d = l->device;
        struct nvme *n = d->nvme;
        bool is_descriptor = w->type == RECORD_SPACE;
        uint32_t i_entry = w->i_entry;

        if (r != -ETIMEDOUT && r != -ECANCELED)
                buffers_give(&d->buffers, w->header, (size_t)w->n_pages * FORMAT_PAGE_BYTES);
        w->header = NULL;
        int leans_on = is_descriptor || r < 0 ? 0 : descriptor_result(w);
        if (leans_on == DESCRIPTOR_PENDING) { /* without it the record is nothing */
                list_append(&l->held, &w->held);
                return;
        }
        l->n_writes++; /* keeps the log */
        finish_write(w, r < 0 ? r : leans_on, r < 0);
        if (is_descriptor)
                finish_held(l, i_entry, r);
        l->n_writes--;
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
