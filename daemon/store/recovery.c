/* Recovery: what a device holds is learned again, while clients are served already: a key that is not found yet is a miss.
 *
 *     headers of all segments --> newest first: footer --good--> its entries into the catalog
 *                                                 '--none--> scan: record by record, payloads and all, up to the first that does not verify;
 *                                                            what was found gets a footer
 *
 * A footer's entries name their space by a digest; a digest that is new is looked up in the record that describes it, first. If that is damaged, the segment
 * has its turn again when all others had theirs.
 *
 * Of two records of one block the one written last counts, whichever is seen first (generation, page). Drops are remembered as DEAD entries with their
 * place until all is read; newest first means that a dropped record is hardly ever seen alive. What is dropped or replaced meanwhile is remembered, too.
 *
 * Loop thread; the device's ring reads. What is read is foreign. */
#include <string.h>
#include <time.h>

#include "daemon/store/recovery.h"
#include "daemon/util/clock.h"
#include "daemon/util/log.h"
#include "daemon/util/metrics.h"

enum { DAY_SEC = 86400, SPACE_PAGES_MAX = SPACE_DESCRIPTOR_MAX / FORMAT_PAGE_BYTES + 2, PURGE_STEPS = 8192 };

void recovery_tell_damage(const struct nvme_device *d, uint64_t offset, const char *what)
{
        log_limited(LOG_WARNING, "%s: byte %llu: %s", d->path, (unsigned long long)offset, what);
}

static bool gone(struct recovery *r)
{
        r->n_ios--;
        if (!r->dead)
                return false;
        if (!r->n_ios)
                free(r);
        return true;
}

void recovery_give(struct recovery *r, uint8_t **buf, uint32_t n, int result)
{
        if (*buf && result != -ETIMEDOUT && result != -ECANCELED)
                buffers_give(&r->device->buffers, *buf, n);
        *buf = NULL;
}

void recovery_free(struct nvme_device *d)
{
        struct recovery *r = d->recovery;

        if (!r)
                return;
        d->recovery = NULL;
        for (uint32_t i = 0; i < r->n_spaces; i++) {
                struct space *s = r->spaces[i].space;
                if (!s)
                        continue;
                s->n_open--;
                if (d->nvme->on_settle) /* one without records, or a tenant would have to live with all that it ever had */
                        d->nvme->on_settle(d->nvme, s, d->nvme->arg);
        }
        free(r->order);
        free(r->spaces);
        free(r->entries);
        r->order = NULL;
        r->spaces = NULL;
        r->entries = NULL;
        for (int i = 0; i < WINDOW; i++)
                if (r->slots[i].state == SLOT_READY)
                        recovery_give(r, &r->slots[i].buf, r->slots[i].n_bytes, 0);
        r->dead = true;
        if (!r->n_ios)
                free(r);
}

/* reading */

bool recovery_read_buf(struct recovery *r, uint64_t offset, uint32_t bytes, void (*done)(struct nvme_io *, int, void *))
{
        r->buf = buffers_take(&r->device->buffers, bytes);
        r->n_buf = bytes;
        if (!r->buf || !device_io(r->device, RING_READ, r->buf, offset, bytes, done, r)) {
                recovery_give(r, &r->buf, bytes, 0);
                return false; /* tried again at the next step */
        }
        r->n_ios++;
        r->busy = true;
        return true;
}

bool recovery_came_back(struct recovery *r, int result)
{
        struct nvme_device *d = r->device;

        if (gone(r))
                return false;
        r->busy = false;
        if (result == 0)
                return true;
        recovery_give(r, &r->buf, r->n_buf, result);
        device_count_error(d, false);
        return d->recovery == r; /* else that failed the device */
}

void recovery_segment_finished(struct recovery *r)
{
        struct slot *s = &r->slots[r->i_next % WINDOW];

        recovery_give(r, &s->buf, s->n_bytes, 0);
        s->state = SLOT_IDLE;
        r->i_next++;
        r->scan_page = 0;
}

/* footers */

static void descriptor_read(struct nvme_io *io, int result, void *arg)
{
        struct recovery *r = arg;
        struct nvme_device *d = r->device;
        uint8_t *buf = r->buf;

        if (!recovery_came_back(r, result))
                return;
        struct slot *s = &r->slots[r->i_next % WINDOW];
        struct place at = {d->sb.uuid, s->segment, d->segments[s->segment].generation, 0};
        const struct footer_entry *es = (const struct footer_entry *)(const void *)s->buf;
        struct footer_trailer t;
        uint64_t n;
        ASSERT(footer_peek(s->buf + s->n_bytes - 64, &at, d->sb.segment_bytes, &t, &n) == 0);
        for (uint32_t i = 0; i < t.n_entries; i++) {
                const struct footer_entry *e = &es[i];
                if (e->type != RECORD_SPACE || !recovery_wants_space(r, e->key, s->segment))
                        continue;
                struct record_header *h = (struct record_header *)(void *)buf;
                at.page = e->page;
                bool good = result == 0 && record_header_check(h, r->n_buf, &at, r->n_buf / FORMAT_PAGE_BYTES) == 0 &&
                            h->type == RECORD_SPACE && !memcmp(h->key, e->key, 16) && record_payload_check(h, record_payload(h)) == 0;
                if (result == 0 && !good)
                        recovery_tell_damage(d, device_page_offset(d, (struct record_at){d->i, s->segment, e->page, 1}),
                                             "the record there, which describes a space, does not verify");
                recovery_learn_space(r, e->key, s->segment, good ? record_payload(h) : NULL, good ? h->stored_bytes : 0);
                break;
        }
        recovery_give(r, &r->buf, r->n_buf, 0);
        recovery_step(r);
}

static void drops_read(struct nvme_io *io, int result, void *arg);

/* A footer that verified. False: something has to be read first. */
static bool apply_footer(struct recovery *r, struct slot *s, const struct footer_trailer *t)
{
        struct nvme_device *d = r->device;
        const struct footer_entry *es = (const struct footer_entry *)(const void *)s->buf;
        uint64_t generation = d->segments[s->segment].generation;

        for (uint32_t i = 0; i < t->n_entries; i++)
                if (es[i].type == RECORD_SPACE && recovery_wants_space(r, es[i].key, s->segment)) {
                        struct record_at at = {d->i, s->segment, es[i].page, MIN(es[i].n_pages, (uint32_t)SPACE_PAGES_MAX)};
                        recovery_read_buf(r, device_page_offset(d, at), at.n_pages * FORMAT_PAGE_BYTES, descriptor_read);
                        return false;
                }
        /* newest first: a drop is known before what it voids; scan_page counts the drops of this segment that were read */
        for (uint32_t i = t->n_entries; i-- > 0;) {
                if (es[i].type != RECORD_DROP || es[i].n_pages > d->buffers.n_pages / 4 || (r->scan_page && es[i].page >= r->scan_page))
                        continue;
                struct record_at at = {d->i, s->segment, es[i].page, es[i].n_pages};
                if (recovery_read_buf(r, device_page_offset(d, at), es[i].n_pages * FORMAT_PAGE_BYTES, drops_read))
                        r->scan_page = es[i].page;
                return false;
        }
        bool again = false;
        for (uint32_t i = t->n_entries; i-- > 0;) {
                if (es[i].type != RECORD_BLOCK && es[i].type != RECORD_DROP)
                        continue;
                struct known_space *k = recovery_space(r, es[es[i].space].key);
                again |= k && !k->space && !k->refused;
                if (k && es[i].type == RECORD_BLOCK)
                        recovery_block(r, k, &es[i], s->segment, generation);
        }
        if (again && r->i_next < r->n_first) /* an older segment may have a descriptor that can be read */
                r->order[r->n_order++] = s->segment;
        d->segments[s->segment].state = SEGMENT_SEALED;
        return true;
}

static void drops_read(struct nvme_io *io, int result, void *arg)
{
        struct recovery *r = arg;
        struct nvme_device *d = r->device;

        if (!recovery_came_back(r, result))
                return;
        struct slot *s = &r->slots[r->i_next % WINDOW];
        uint64_t generation = d->segments[s->segment].generation;
        struct place at = {d->sb.uuid, s->segment, generation, r->scan_page};
        struct record_header *h = (struct record_header *)(void *)r->buf;
        if (result == 0 && record_header_check(h, r->n_buf, &at, r->n_buf / FORMAT_PAGE_BYTES) == 0 && h->type == RECORD_DROP &&
            record_payload_check(h, record_payload(h)) == 0) {
                struct known_space *k = recovery_space(r, h->space);
                if (k)
                        recovery_drops(r, k, record_payload(h), h->stored_bytes / sizeof(struct drop_entry), s->segment, generation,
                                       r->scan_page);
        } else {
                const struct footer_entry *es = (const struct footer_entry *)(const void *)s->buf, *e = es;
                while (e->page != r->scan_page)
                        e++;
                recovery_tell_damage(
                        d, device_page_offset(d, (struct record_at){d->i, s->segment, r->scan_page, 1}),
                        "what was dropped is not known: the record there does not verify, and older ones of its space are not served");
                struct known_space *k = recovery_space(r, es[e->space].key);
                if (k)
                        recovery_void_older(k, generation, r->scan_page);
                d->segments[s->segment].has_drops = true;
        }
        recovery_give(r, &r->buf, r->n_buf, 0);
        recovery_step(r);
}

/* reading ahead */

static void tail_read(struct nvme_io *io, int result, void *arg)
{
        struct slot *s = arg;
        struct recovery *r = s->recovery;
        uint8_t *buf = s->buf;
        struct nvme_device *d = r->device;

        if (r->dead) {
                if (result != -ETIMEDOUT && result != -ECANCELED)
                        buffers_give(&d->buffers, buf, s->n_bytes);
                gone(r);
                return;
        }
        gone(r);
        s->state = SLOT_READY;
        s->result = result;
        if (result < 0) {
                recovery_give(r, &s->buf, s->n_bytes, result);
                device_count_error(d, false);
                if (d->recovery != r)
                        return;
        }
        recovery_step(r);
}

static bool read_tail(struct recovery *r, struct slot *s, uint32_t bytes)
{
        struct nvme_device *d = r->device;

        s->recovery = r;
        s->buf = buffers_take(&d->buffers, bytes);
        s->n_bytes = bytes;
        if (!s->buf || !device_io(d, RING_READ, s->buf, format_segment_offset(&d->sb, s->segment) + d->sb.segment_bytes - bytes, bytes,
                                  tail_read, s)) {
                recovery_give(r, &s->buf, bytes, 0);
                return false;
        }
        s->state = SLOT_READING;
        r->n_ios++;
        return true;
}

/* The segment at hand, as far as it goes without waiting. True: it is finished. */
static bool segment_step(struct recovery *r, struct slot *s)
{
        struct nvme_device *d = r->device;
        struct place at = {d->sb.uuid, s->segment, d->segments[s->segment].generation, 0};
        struct footer_trailer t;
        uint64_t n;

        if (s->buf && !r->entries && footer_peek(s->buf + s->n_bytes - 64, &at, d->sb.segment_bytes, &t, &n) == 0) {
                if (n > s->n_bytes && n <= (uint64_t)d->buffers.n_pages / 2 * FORMAT_PAGE_BYTES) {
                        recovery_give(r, &s->buf, s->n_bytes, 0);
                        s->state = SLOT_IDLE;
                        read_tail(r, s, (uint32_t)n); /* else recovery_step() tries again */
                        return false;
                }
                if (n < s->n_bytes) { /* entries at the start, as footer_check() wants them */
                        memmove(s->buf, s->buf + s->n_bytes - n, n);
                        buffers_give(&d->buffers, s->buf + n, s->n_bytes - n);
                        s->n_bytes = (uint32_t)n;
                }
                if (n == s->n_bytes && footer_check(s->buf, n, &at, d->sb.segment_bytes) == 0) {
                        if (!apply_footer(r, s, &t))
                                return false;
                        recovery_segment_finished(r);
                        return true;
                }
                recovery_tell_damage(d, format_segment_offset(&d->sb, s->segment) + d->sb.segment_bytes - n,
                                     "the footer there does not verify: the segment is read record by record");
        }
        if (s->buf)
                recovery_give(r, &s->buf, s->n_bytes, 0);
        recovery_scan_some(r, s);
        return false;
}

/* Records that were seen before the purge that voids them. True: there are none left. */
static bool purge_some(struct recovery *r)
{
        struct nvme *n = r->device->nvme;
        bool any = false;

        for (uint32_t i = 0; i < r->n_spaces; i++)
                any |= r->spaces[i].space && r->spaces[i].purged_generation;
        if (!any)
                return true;
        for (uint32_t steps = PURGE_STEPS; steps && r->purge_cursor < n->catalog.pool.n_touched; steps--) {
                struct entry *e = catalog_at(&n->catalog, ++r->purge_cursor);
                if (!entry_live(e) || entry_place(e).device != r->device->i)
                        continue;
                for (uint32_t i = 0; i < r->n_spaces; i++) {
                        const struct known_space *k = &r->spaces[i];
                        if (k->space && k->space->id == entry_space(e) && k->purged_generation &&
                            !recovery_later(n, entry_place(e), k->purged_generation, k->purged_page)) {
                                nvme_forget(n, r->purge_cursor, KVT_WHY_PURGED);
                                break;
                        }
                }
        }
        return r->purge_cursor >= n->catalog.pool.n_touched;
}

static void recovery_finished(struct recovery *r)
{
        struct nvme_device *d = r->device;

        time_t now = time(NULL);
        for (uint32_t i = 0; i < r->n_first; i++) /* one that was opened in the future was so before the clock was set back */
                if (d->segments[r->order[i]].opened_sec + DAY_SEC > (uint64_t)now)
                        d->nvme->recent_bytes += d->sb.segment_bytes;
        d->counters.recover_usec = clock_usec() - r->started_usec;
        d->state = DEVICE_SERVING;
        d->nvme->forget_cursor = 0;
        log_info("%s: %llu records of %llu segments recovered in %llu ms, %llu torn", d->path, (unsigned long long)d->n_records,
                 (unsigned long long)d->sb.n_segments, (unsigned long long)d->counters.recover_usec / 1000,
                 (unsigned long long)d->counters.n_torn);
        recovery_free(d);
        log_settle(d);
        if (d->unflushable)
                device_unflushable(d);
        if (d->nvme->on_room)
                d->nvme->on_room(d->nvme, d->nvme->arg);
}

void recovery_step(struct recovery *r)
{
        while (!r->busy) {
                while (r->i_ahead < r->n_order && r->i_ahead < r->i_next + WINDOW) {
                        struct slot *s = &r->slots[r->i_ahead % WINDOW];
                        s->segment = r->order[r->i_ahead];
                        if (!read_tail(r, s, (uint32_t)MIN((uint64_t)TAIL_BYTES, r->device->sb.segment_bytes)))
                                break;
                        r->i_ahead++;
                }
                if (r->i_next == r->n_order) {
                        if (purge_some(r))
                                recovery_finished(r);
                        return;
                }
                struct slot *s = &r->slots[r->i_next % WINDOW];
                if (r->i_next < r->i_ahead && s->state == SLOT_IDLE && !read_tail(r, s, s->n_bytes))
                        return;
                if (r->i_next == r->i_ahead || s->state != SLOT_READY)
                        return;
                if (!segment_step(r, s))
                        return;
        }
}

/* headers */

static int newest_first(const void *a, const void *b, void *arg)
{
        const struct nvme_device *d = arg;
        uint64_t x = d->segments[*(const uint32_t *)a].generation, y = d->segments[*(const uint32_t *)b].generation;

        return x < y ? 1 : x > y ? -1 : 0;
}

bool recovery_kick(struct nvme_device *d)
{
        struct recovery *r = d->recovery;

        if (r && r->i_header == d->sb.n_segments && !r->n_headers_pending)
                recovery_step(r);
        r = d->recovery;
        return r && r->purge_cursor;
}

static void headers_step(struct recovery *r);

/* Generations go up from that of now, a little faster than the clock if need be. One from a far future is nobody's, and there would soon be none left. */
static bool is_plausible(uint64_t generation)
{
        static const uint64_t ahead_usec = 1ull << 55; /* a thousand years */

        return generation && generation < (uint64_t)time(NULL) * USEC_PER_SEC + ahead_usec;
}

static void header_read(struct nvme_io *io, int result, void *arg)
{
        struct recovery *r = arg;
        struct nvme_device *d = r->device;
        uint8_t *page = io->op.buf;
        uint32_t i = (uint32_t)((io->op.offset - FORMAT_SEGMENTS_START) / d->sb.segment_bytes);
        struct segment_header h = {};

        if (r->dead) {
                if (result != -ETIMEDOUT && result != -ECANCELED)
                        buffers_give(&d->buffers, page, FORMAT_PAGE_BYTES);
                gone(r);
                return;
        }
        gone(r);
        r->n_headers_pending--;
        struct segment *s = &d->segments[i];
        struct place at = {d->sb.uuid, i, 0, 0};
        if (result == 0 && segment_header_decode(page, &at, &h) == 0 && is_plausible(h.generation)) {
                s->generation = h.generation;
                s->opened_sec = h.opened_sec;
                s->state = SEGMENT_UNKNOWN;
                d->nvme->generation = MAX(d->nvme->generation, h.generation);
                r->order[r->n_order++] = i;
        } else if (result == 0) {
                const uint8_t zero[FORMAT_PAGE_BYTES] = {};
                s->state = SEGMENT_FREE;
                s->virgin = !memcmp(page, zero, sizeof zero);
                d->n_virgin += s->virgin;
                if (!s->virgin)
                        recovery_tell_damage(d, io->op.offset, "the header there does not verify: nothing of its segment is served");
                d->n_free++;
        } else { /* what it holds may be read another time: it is left alone */
                r->n_unreadable++;
        }
        if (result != -ETIMEDOUT && result != -ECANCELED)
                buffers_give(&d->buffers, page, FORMAT_PAGE_BYTES);
        if (result < 0) {
                device_count_error(d, false);
                if (d->recovery != r)
                        return;
        }
        headers_step(r);
}

static void headers_step(struct recovery *r)
{
        struct nvme_device *d = r->device;

        while (r->i_header < d->sb.n_segments && r->n_headers_pending < 64) {
                void *page = buffers_take(&d->buffers, FORMAT_PAGE_BYTES);
                if (!page ||
                    !device_io(d, RING_READ, page, format_segment_offset(&d->sb, r->i_header), FORMAT_PAGE_BYTES, header_read, r)) {
                        if (page)
                                buffers_give(&d->buffers, page, FORMAT_PAGE_BYTES);
                        if (!r->n_headers_pending)
                                device_fail(d, false, "no memory to read it");
                        return;
                }
                r->n_ios++;
                r->n_headers_pending++;
                r->i_header++;
        }
        if (r->i_header == d->sb.n_segments && !r->n_headers_pending) {
                if (r->n_unreadable == d->sb.n_segments) {
                        device_fail(d, false, "it cannot be read");
                        return;
                }
                if (r->n_unreadable)
                        log_warning("%s: %u segments cannot be read and are not used", d->path, r->n_unreadable);
                r->n_first = r->n_order;
                qsort_r(r->order, r->n_first, sizeof *r->order, newest_first, d);
                recovery_step(r);
        }
}

/* What an earlier daemon wrote last may be in the device's cache only. All that is found counts as safe, so it is made so first. */
static void flushed(struct nvme_io *io, int result, void *arg)
{
        struct recovery *r = arg;

        if (gone(r))
                return;
        if (result < 0) { /* it is read all the same; but nothing on it counts as safe */
                r->device->unflushable = true;
                r->device->serial = 1;
        }
        headers_step(r);
}

void recovery_start(struct nvme_device *d)
{
        struct recovery *r = new0(struct recovery, 1);

        if (!r || !(r->order = new0(uint32_t, 2 * d->sb.n_segments))) {
                free(r);
                device_fail(d, false, "no memory to recover it");
                return;
        }
        r->device = d;
        r->started_usec = clock_usec();
        d->recovery = r;
        if (!device_io(d, RING_FLUSH, NULL, 0, 0, flushed, r)) {
                device_fail(d, false, "no memory to recover it");
                return;
        }
        r->n_ios++;
}
