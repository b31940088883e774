/* Recycling: one segment of a device is emptied so that it can be written again.
 *
 *     picked --> footer read --> each record: moved to the log's end if it is worth it, else out of the catalog --> sync --> no reader left --> [discard] --> wiped --> FREE
 *
 * Worth it: used since it was written, or continued by blocks that are in memory (is_needed), and reachable; at most seven eighths of a segment, so that
 * recycling always makes room, and at most a quarter of what is written for other reasons (move_pages), so that the device lasts. Parents lie before their children, and are moved in that order. A segment whose footer cannot be read is emptied by
 * looking through the catalog. Wiped: its header is that of a new life without records, or what was pushed out of it would be back after a crash, even
 * if it was replaced or dropped since; syncs wait for that. Drops are only overwritten when nothing older is left that they void: see pick(). */
#include <string.h>
#include <time.h>

#include "daemon/store/tier_nvme.h"
#include "daemon/util/log.h"
#include "daemon/util/metrics.h"
#include "libclient/codec/hash.h"

enum { MOVES_MAX = 4, SWEEP_STEPS = 16384, FREE_MIN = 2 /* one is for what is moved, see nvme_write_begin_on() */ };

enum phase { PHASE_FOOTER, PHASE_MOVING, PHASE_SWEEP, PHASE_SYNC, PHASE_DRAIN, PHASE_DISCARD, PHASE_WIPE };

struct move {
        struct recycle *recycle;
        struct nvme *nvme;
        enum { MOVE_IDLE, MOVE_READING, MOVE_WAITING, MOVE_COPYING, MOVE_WRITING } state;
        struct nvme_read read;
        struct nvme_write write;
        struct job job;
        struct space *space; /* kept open */
        bool ok;
};

struct recycle {
        struct nvme_device *device;
        uint32_t segment;
        uint64_t generation;
        enum phase phase;
        bool dead; /* freed when nothing is under way any more */
        uint8_t *buf;
        uint32_t n_buf;
        bool reading;
        bool syncing;
        uint32_t n_entries, i_entry;
        uint32_t cursor;
        uint32_t moved_pages, n_moves;
        struct nvme_sync_all sync;
        struct write_order order; /* of the wiping */
        struct move moves[MOVES_MAX];
};

static bool under_way(const struct recycle *c)
{
        return c->reading || c->syncing || c->n_moves;
}

static void give_buf(struct recycle *c, int r)
{
        if (c->buf && r != -ETIMEDOUT && r != -ECANCELED && c->device->buffers.arena)
                buffers_give(&c->device->buffers, c->buf, c->n_buf);
        c->buf = NULL;
}

static void move_end(struct move *m);

/* Ends it; what is under way comes back to nothing. */
void recycle_free(struct nvme_device *d)
{
        struct recycle *c = d->recycle;

        if (!c)
                return;
        d->recycle = NULL;
        if (d->segments && d->segments[c->segment].state == SEGMENT_RECYCLING)
                d->segments[c->segment].state = SEGMENT_SEALED;
        c->dead = true;
        if (!c->reading)
                give_buf(c, 0);
        c->n_moves++; /* keeps it until all are ended */
        for (int i = 0; i < MOVES_MAX; i++)
                if (c->moves[i].state == MOVE_WAITING) {
                        nvme_read_end(d->nvme, &c->moves[i].read);
                        move_end(&c->moves[i]);
                }
        c->n_moves--;
        if (!under_way(c))
                free(c);
}

static bool died(struct recycle *c)
{
        if (c->dead && !under_way(c)) {
                free(c);
                return true;
        }
        return c->dead;
}

/* moving */

static void forget_evicted(struct nvme *n, uint32_t entry)
{
        metrics.c_nvme_evicted++;
        nvme_forget(n, entry, KVT_WHY_EVICTED);
}

static void move_end(struct move *m)
{
        struct recycle *c = m->recycle;

        m->state = MOVE_IDLE;
        m->space->n_open--;
        if (m->nvme->on_settle)
                m->nvme->on_settle(m->nvme, m->space, m->nvme->arg);
        c->n_moves--;
        if (!died(c))
                recycle_some(c->device);
}

static void move_written(struct nvme_write *w, int r)
{
        struct move *m = container_of(w, struct move, write);
        uint32_t i = catalog_find_live(&m->nvme->catalog, m->space->id, w->shard, w->key);

        if (r == 0 && i != POOL_NONE) {
                struct entry *e = catalog_at(&m->nvme->catalog, i);
                e->flags &= (uint8_t)~ENTRY_USED; /* it has to earn the next move */
                metrics.c_nvme_moved++;
                metrics.c_nvme_moved_bytes += (uint64_t)w->n_pages * FORMAT_PAGE_BYTES;
        }
        move_end(m);
}

static void move_work(struct job *j)
{
        struct move *m = container_of(j, struct move, job);
        struct record_header *from = m->read.header, *to = m->write.header;
        const uint8_t *src = record_payload(from);
        uint8_t *dst = record_payload(to);
        uint64_t left = (uint64_t)(to->n_pages - to->header_pages) * FORMAT_PAGE_BYTES;

        memcpy(record_planes(to), record_planes(from), from->n_planes * sizeof(struct kvt_copy_plane));
        memcpy(record_page_hashes(to), record_page_hashes(from), (size_t)from->n_page_hashes * 4);
        m->ok = true;
        for (uint32_t i = 0; i < from->n_planes; i++) {
                uint32_t n = record_planes(from)[i].bytes;
                if (hash_copy(dst, src, n, kvt_plane_seed(&record_planes(from)[i], i)) != record_planes(from)[i].hash)
                        m->ok = false;
                src += n;
                dst += n;
                left -= n;
        }
        memset(dst, 0, left);
}

static void move_copied(struct job *j)
{
        struct move *m = container_of(j, struct move, job);

        if (!m->ok)
                nvme_quarantine(m->nvme, &m->read, m->space, m->write.shard, m->write.key);
        nvme_read_end(m->nvme, &m->read);
        m->state = MOVE_WRITING;
        nvme_write_submit(m->nvme, &m->write, m->ok);
}

/* What is moved has no place to go, and there will be none: a file system became full before a segment was kept for it. */
static bool no_room(const struct nvme_device *d)
{
        return !d->log && !d->next && !device_usable(d);
}

/* Nothing newer was written, nor was it dropped: what is moved lies behind that, and would be back after a crash. */
static bool still_there(const struct move *m)
{
        uint32_t i = catalog_find_live(&m->nvme->catalog, m->space->id, m->write.shard, m->write.key);
        struct record_at now = i != POOL_NONE ? entry_place(catalog_at(&m->nvme->catalog, i)) : (struct record_at){};

        return !memcmp(&now, &m->write.from, sizeof now);
}

static void move_try_write(struct move *m)
{
        struct nvme_write *w = &m->write;
        int r = m->recycle->dead || !still_there(m) ? KVT_E_IO : nvme_write_begin_on(m->recycle->device, w);

        m->state = MOVE_WAITING;
        if (r == KVT_E_AGAIN && !no_room(m->recycle->device))
                return;
        if (r != 0) {
                if (r == KVT_E_AGAIN)
                        forget_evicted(m->nvme, catalog_find_live(&m->nvme->catalog, m->space->id, w->shard, w->key));
                nvme_read_end(m->nvme, &m->read);
                move_end(m);
                return;
        }
        m->state = MOVE_COPYING;
        m->job = (struct job){.work = move_work, .done = move_copied, .background = true};
        list_init(&m->job.link);
        queue_submit(m->nvme->queue, &m->job);
}

static void move_read(struct nvme_read *r, int result)
{
        struct move *m = container_of(r, struct move, read);
        struct nvme_write *w = &m->write;
        const struct record_header *h = r->header;

        if (result != 0 || m->recycle->dead) {
                if (result != 0)
                        nvme_quarantine(m->nvme, r, m->space, w->shard, w->key);
                nvme_read_end(m->nvme, r);
                move_end(m);
                return;
        }
        w->codec = h->codec;
        w->n_planes = h->n_planes;
        w->n_page_hashes = h->n_page_hashes;
        w->raw_bytes = h->raw_bytes;
        w->stored_bytes = h->stored_bytes;
        w->max_rel_l2 = h->max_rel_l2;
        move_try_write(m);
}

static bool start_move(struct recycle *c, const struct footer_entry *f, uint32_t entry)
{
        struct nvme *n = c->device->nvme;
        struct move *m = NULL;

        for (int i = 0; i < MOVES_MAX && !m; i++)
                if (c->moves[i].state == MOVE_IDLE)
                        m = &c->moves[i];
        if (!m)
                return false;
        struct entry *e = catalog_at(&n->catalog, entry);
        *m = (struct move){.recycle = c, .nvme = n, .space = space_at(n->tenants, entry_space(e))};
        m->write =
                (struct nvme_write){.space = m->space, .type = RECORD_BLOCK, .shard = f->shard, .has_parent = f->flags & RECORD_HAS_PARENT};
        m->write.durable = f->flags & RECORD_DURABLE;
        m->write.from = entry_place(e);
        m->write.done = move_written;
        memcpy(m->write.key, f->key, 16);
        memcpy(m->write.parent, f->parent, 16);
        m->read = (struct nvme_read){.n_bytes = UINT64_MAX, .done = move_read};
        int r = nvme_read_begin(n, &m->read, entry);
        if (r != 0) {
                m->state = MOVE_IDLE;
                if (r == KVT_E_AGAIN)
                        return false;
                nvme_forget(n, entry, KVT_WHY_EVICTED);
                return true;
        }
        m->state = MOVE_READING;
        m->space->n_open++;
        c->n_moves++;
        c->moved_pages += f->n_pages;
        c->device->move_pages -= MIN(c->device->move_pages, f->n_pages);
        return true;
}

/* phases */

/* What was moved must be safe, and so must be the end of what the drops in it void. */
static bool must_sync(const struct recycle *c)
{
        return c->moved_pages || c->device->segments[c->segment].has_drops;
}

/* True: all entries are looked at. */
static bool move_some(struct recycle *c)
{
        struct nvme_device *d = c->device;
        struct nvme *n = d->nvme;
        const struct footer_entry *es = (const struct footer_entry *)(const void *)c->buf;

        for (; c->i_entry < c->n_entries; c->i_entry++) {
                const struct footer_entry *f = &es[c->i_entry];
                if (f->type != RECORD_BLOCK)
                        continue;
                struct space *s = nvme_space_of(n, es[f->space].key);
                uint32_t i = s ? catalog_find_live(&n->catalog, s->id, f->shard, f->key) : POOL_NONE;
                if (i == POOL_NONE)
                        continue;
                struct entry *e = catalog_at(&n->catalog, i);
                struct record_at at = entry_place(e);
                if (at.device != d->i || at.segment != c->segment || at.page != f->page)
                        continue; /* a newer record of it is elsewhere */
                bool needed = n->is_needed && n->is_needed(n, s, f->key, n->arg);
                bool worth = (needed || e->flags & ENTRY_USED) && c->moved_pages < device_segment_pages(d) / 8 * 7 &&
                             f->n_pages <= d->move_pages && catalog_reachable(&n->catalog, i);
                if (!worth)
                        forget_evicted(n, i);
                else if (!start_move(c, f, i))
                        return false;
        }
        return true;
}

static bool sweep_some(struct recycle *c)
{
        struct nvme *n = c->device->nvme;

        for (uint32_t steps = 0; steps < SWEEP_STEPS && c->cursor < n->catalog.pool.n_touched; steps++) {
                struct entry *e = catalog_at(&n->catalog, ++c->cursor);
                struct record_at at = entry_place(e);
                if (entry_live(e) && at.device == c->device->i && at.segment == c->segment)
                        forget_evicted(n, c->cursor);
        }
        return c->cursor >= n->catalog.pool.n_touched;
}

static void synced(struct nvme_sync_all *s, int r)
{
        struct recycle *c = container_of(s, struct recycle, sync);

        c->syncing = false;
        if (died(c))
                return;
        if (r != 0) { /* what was moved may not be there after a crash: its old place must stay */
                recycle_free(c->device);
                return;
        }
        c->phase = PHASE_DRAIN;
        recycle_some(c->device);
}

static void freed(struct recycle *c)
{
        struct nvme_device *d = c->device;
        struct segment *s = &d->segments[c->segment];

        s->state = SEGMENT_FREE;
        s->has_drops = false;
        d->wants_room = false;
        d->n_free++;
        metrics.c_nvme_recycled++;
        recycle_free(d);
        if (d->nvme->on_room)
                d->nvme->on_room(d->nvme, d->nvme->arg);
}

static void wiped(struct nvme_io *io, int r, void *arg)
{
        struct recycle *c = arg;
        struct nvme_device *d = c->device;

        c->reading = false;
        list_remove(&c->order.link);
        give_buf(c, r);
        if (r < 0) /* what it held may still be there, and is as old as it was: drops of it have to stay */
                d->segments[c->segment].generation = c->generation;
        if (!died(c)) {
                if (r == 0) {
                        freed(c);
                } else {
                        device_write_failed(d, r);
                        if (d->recycle == c) /* picked again */
                                recycle_free(d);
                }
        }
        log_settle(d);
}

/* Without memory it stays as it is, and is tried again in the next pass. */
static void wipe(struct recycle *c)
{
        struct nvme_device *d = c->device;
        struct segment *s = &d->segments[c->segment];
        struct timespec now;

        c->n_buf = FORMAT_PAGE_BYTES;
        c->buf = buffers_take(&d->buffers, c->n_buf);
        if (!c->buf)
                return;
        clock_gettime(CLOCK_REALTIME, &now);
        struct place at = {d->sb.uuid, c->segment, nvme_next_generation(d->nvme), 0};
        segment_header_encode(c->buf, &at, (uint64_t)now.tv_sec);
        if (!device_io(d, RING_WRITE, c->buf, format_segment_offset(&d->sb, c->segment), c->n_buf, wiped, c)) {
                give_buf(c, 0);
                return;
        }
        s->generation = at.generation;
        s->opened_sec = (uint64_t)now.tv_sec;
        c->order.serial = ++d->serial;
        list_init(&c->order.link);
        list_append(&d->order, &c->order.link);
        c->reading = true;
}

static void discarded(struct nvme_io *io, int r, void *arg)
{
        struct recycle *c = arg;

        c->reading = false;
        if (r == -EOPNOTSUPP)
                c->device->no_discard = true;
        if (!died(c))
                c->phase = PHASE_WIPE;
}

static void read_footer(struct recycle *c, uint32_t bytes);

static void footer_read(struct nvme_io *io, int r, void *arg)
{
        struct recycle *c = arg;
        struct nvme_device *d = c->device;
        struct place at = {d->sb.uuid, c->segment, c->generation, 0};
        struct footer_trailer t;
        uint64_t n = 0;

        c->reading = false;
        if (c->dead)
                give_buf(c, r);
        if (died(c))
                return;
        if (r < 0)
                device_count_error(d, false);
        if (d->recycle != c)
                return;
        bool good = r == 0 && footer_peek(c->buf + c->n_buf - 64, &at, d->sb.segment_bytes, &t, &n) == 0;
        if (good && n > c->n_buf && n <= (uint64_t)d->buffers.n_pages / 2 * FORMAT_PAGE_BYTES) {
                give_buf(c, 0);
                read_footer(c, (uint32_t)n);
                return;
        }
        if (good && n < c->n_buf) {
                memmove(c->buf, c->buf + c->n_buf - n, n);
                buffers_give(&d->buffers, c->buf + n, c->n_buf - n);
                c->n_buf = (uint32_t)n;
        }
        if (good && n == c->n_buf && footer_check(c->buf, n, &at, d->sb.segment_bytes) == 0) {
                c->n_entries = t.n_entries;
                c->phase = PHASE_MOVING;
        } else {
                give_buf(c, r);
                c->phase = PHASE_SWEEP;
        }
        recycle_some(d);
}

static void read_footer(struct recycle *c, uint32_t bytes)
{
        struct nvme_device *d = c->device;

        c->n_buf = bytes;
        c->buf = buffers_take(&d->buffers, bytes);
        if (c->buf &&
            device_io(d, RING_READ, c->buf, format_segment_offset(&d->sb, c->segment) + d->sb.segment_bytes - bytes, bytes, footer_read, c))
                c->reading = true;
        else
                give_buf(c, 0); /* tried again in the next pass */
}

/* The segment to empty; SEGMENT_NONE. */
static uint32_t pick(struct nvme_device *d)
{
        struct victim_view *v = new0(struct victim_view, d->sb.n_segments);
        uint64_t oldest = UINT64_MAX, newest = 0;
        int i;

        if (!v)
                return SEGMENT_NONE;
        for (uint32_t k = 0; k < d->sb.n_segments; k++)
                if (d->segments[k].state > SEGMENT_FREE && d->segments[k].generation < oldest)
                        oldest = d->segments[k].generation;
        /* the newest says which generation is the next: without it one could be given twice */
        for (uint32_t k = 0; k < d->sb.n_segments; k++)
                if (d->segments[k].state > SEGMENT_FREE) /* not one that could not be read: its generation is not known */
                        newest = MAX(newest, d->segments[k].generation);
        for (uint32_t k = 0; k < d->sb.n_segments; k++) {
                const struct segment *s = &d->segments[k];
                v[k] = (struct victim_view){.generation = s->generation,
                                            .used_pages = s->live_pages,
                                            .capacity_pages = device_segment_pages(d)};
                /* a drop must outlive what it voids, which is older */
                v[k].busy = s->state != SEGMENT_SEALED || (s->has_drops && s->generation != oldest) || s->generation == newest;
        }
        i = d->nvme->pick(v, (uint32_t)d->sb.n_segments);
        free(v);
        return i < 0 ? SEGMENT_NONE : (uint32_t)i;
}

bool recycle_sweeps(const struct nvme_device *d)
{
        return d->recycle && d->recycle->phase == PHASE_SWEEP;
}

void recycle_some(struct nvme_device *d)
{
        struct recycle *c = d->recycle;

        if (d->state != DEVICE_SERVING)
                return;
        if (!c) {
                /* not before something is written: whatever is there may be wanted */
                if (d->nvme->forget_cursor != UINT32_MAX)
                        return;
                bool wanted = d->wants_room || (d->log && d->log->end_page > device_segment_pages(d) / 2);
                uint32_t i = wanted && device_usable(d) < FREE_MIN && !device_stuck(d) && !d->nvme->stopping ? pick(d) : SEGMENT_NONE;
                if (i == SEGMENT_NONE || !(c = new0(struct recycle, 1)))
                        return;
                c->device = d;
                c->sync.done = synced;
                c->segment = i;
                c->generation = d->segments[i].generation;
                c->phase = d->segments[i].live_pages ? PHASE_FOOTER : must_sync(c) ? PHASE_SYNC : PHASE_DRAIN;
                d->segments[i].state = SEGMENT_RECYCLING;
                d->recycle = c;
        }
        if (c->phase == PHASE_FOOTER && !c->reading)
                read_footer(c, (uint32_t)MIN(16384ull, d->sb.segment_bytes));
        if (c->phase == PHASE_MOVING) {
                for (int i = 0; i < MOVES_MAX; i++)
                        if (c->moves[i].state == MOVE_WAITING)
                                move_try_write(&c->moves[i]);
                if (d->recycle != c || c->phase != PHASE_MOVING)
                        return;
                if (move_some(c) && !c->n_moves) {
                        give_buf(c, 0);
                        c->phase = d->segments[c->segment].live_pages ? PHASE_SWEEP : must_sync(c) ? PHASE_SYNC : PHASE_DRAIN;
                }
        }
        if (c->phase == PHASE_SWEEP && sweep_some(c))
                c->phase = must_sync(c) ? PHASE_SYNC : PHASE_DRAIN;
        if (c->phase == PHASE_SYNC && !c->syncing) {
                c->syncing = true;
                nvme_sync_start(d->nvme, &c->sync);
                return; /* it may be over already */
        }
        if (c->phase == PHASE_DRAIN && !d->segments[c->segment].n_reads) {
                if (d->nvme->options.discard && d->block_device && !d->no_discard &&
                    device_io(d, RING_DISCARD, NULL, format_segment_offset(&d->sb, c->segment), d->sb.segment_bytes, discarded, c)) {
                        c->reading = true;
                        c->phase = PHASE_DISCARD;
                        return;
                }
                c->phase = PHASE_WIPE;
        }
        if (c->phase == PHASE_WIPE && !c->reading)
                wipe(c);
}
