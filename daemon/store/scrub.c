/* The scrubber: reads all records of a device again, at a set rate, and takes out what does not verify before somebody needs it.
 *
 * A pass goes through the catalog by number; the next begins when it is over. Verify (scrub_now) is a pass at full speed. */
#include <string.h>

#include "daemon/store/tier_nvme.h"
#include "daemon/util/clock.h"
#include "daemon/util/metrics.h"

enum { SCRUBS_MAX = 4, SCRUB_STEPS = 8192 };
#define SCRUB_PAUSE_USEC (60 * USEC_PER_SEC) /* between passes over next to nothing */

struct scrubbing {
        struct scrub *scrub;
        bool busy;
        struct nvme_read read;
        struct space *space; /* kept open */
        uint32_t shard;
        uint8_t key[16];
        struct job job;
        bool good;
};

struct scrub {
        struct nvme_device *device;
        bool dead; /* freed when the last one comes back */
        bool now; /* at full speed */
        uint32_t cursor, n_busy;
        uint64_t next_usec, pass_started_usec;
        struct scrubbing slots[SCRUBS_MAX];
};

void scrub_free(struct nvme_device *d)
{
        struct scrub *c = d->scrub;

        if (!c)
                return;
        d->scrub = NULL;
        c->dead = true;
        if (!c->n_busy)
                free(c);
}

static void scrubbed(struct scrubbing *s)
{
        struct scrub *c = s->scrub;
        struct nvme *n = s->read.device->nvme;

        nvme_read_end(n, &s->read);
        s->space->n_open--;
        if (n->on_settle)
                n->on_settle(n, s->space, n->arg);
        s->busy = false;
        c->n_busy--;
        if (c->dead && !c->n_busy)
                free(c);
        else if (!c->dead)
                scrub_some(c->device);
}

static void verify_work(struct job *j)
{
        struct scrubbing *s = container_of(j, struct scrubbing, job);

        s->good = record_payload_check(s->read.header, s->read.payload) == 0;
}

static void verified(struct job *j)
{
        struct scrubbing *s = container_of(j, struct scrubbing, job);

        if (!s->good)
                nvme_quarantine(s->read.device->nvme, &s->read, s->space, s->shard, s->key);
        scrubbed(s);
}

static void scrub_read(struct nvme_read *r, int result)
{
        struct scrubbing *s = container_of(r, struct scrubbing, read);

        r->device->counters.scrub_bytes += (uint64_t)r->at.n_pages * FORMAT_PAGE_BYTES;
        metrics.c_nvme_scrubbed_bytes += (uint64_t)r->at.n_pages * FORMAT_PAGE_BYTES;
        if (result == KVT_E_CORRUPT || result == KVT_E_IO) {
                if (r->device->state == DEVICE_SERVING || r->device->state == DEVICE_DRAINING)
                        nvme_quarantine(r->device->nvme, r, s->space, s->shard, s->key);
                scrubbed(s);
                return;
        }
        s->job = (struct job){.work = verify_work, .done = verified, .background = true};
        list_init(&s->job.link);
        queue_submit(r->device->nvme->queue, &s->job);
}

static bool scrub_one(struct scrub *c, uint32_t i)
{
        struct nvme *n = c->device->nvme;
        struct entry *e = catalog_at(&n->catalog, i);
        struct scrubbing *s = NULL;

        for (int k = 0; k < SCRUBS_MAX && !s; k++)
                if (!c->slots[k].busy)
                        s = &c->slots[k];
        if (!s)
                return false;
        *s = (struct scrubbing){.scrub = c, .space = space_at(n->tenants, entry_space(e)), .shard = entry_shard(e)};
        memcpy(s->key, e->key, 16);
        s->read = (struct nvme_read){.n_bytes = UINT64_MAX, .done = scrub_read};
        int r = nvme_read_begin(n, &s->read, i);
        if (r == KVT_E_AGAIN)
                return false;
        if (r != 0)
                return true;
        s->busy = true;
        s->space->n_open++;
        c->n_busy++;
        return true;
}

void scrub_some(struct nvme_device *d)
{
        struct nvme *n = d->nvme;
        struct scrub *c = d->scrub;
        uint64_t rate = n->options.scrub_bytes_sec;

        if (!c) {
                if (!rate || !(c = new0(struct scrub, 1)))
                        return;
                c->device = d;
                c->next_usec = c->pass_started_usec = n->now_usec;
                d->scrub = c;
        }
        for (uint32_t steps = 0; steps < SCRUB_STEPS && (c->now || (rate && c->next_usec <= n->now_usec)); steps++) {
                if (c->cursor >= n->catalog.pool.n_touched) {
                        if (c->n_busy)
                                return;
                        d->counters.scrub_passes++;
                        d->counters.scrub_bytes = 0;
                        c->cursor = 0;
                        c->now = false;
                        if (n->now_usec - c->pass_started_usec < SCRUB_PAUSE_USEC)
                                c->next_usec = n->now_usec + SCRUB_PAUSE_USEC;
                        c->pass_started_usec = n->now_usec;
                        return;
                }
                struct entry *e = catalog_at(&n->catalog, c->cursor + 1);
                struct record_at at = entry_place(e);
                if (!entry_live(e) || at.device != d->i) {
                        c->cursor++;
                        continue;
                }
                if (!scrub_one(c, c->cursor + 1))
                        return;
                c->cursor++;
                if (!c->now)
                        c->next_usec = MAX(c->next_usec, n->now_usec - USEC_PER_SEC) +
                                       (uint64_t)at.n_pages * FORMAT_PAGE_BYTES * USEC_PER_SEC / rate;
        }
}

uint64_t scrub_deadline(const struct nvme_device *d)
{
        const struct scrub *c = d->scrub;

        if (!c || d->state != DEVICE_SERVING || (!d->nvme->options.scrub_bytes_sec && !c->now) || c->n_busy == SCRUBS_MAX)
                return UINT64_MAX;
        return c->now ? (c->n_busy ? UINT64_MAX : 0) : c->next_usec;
}

void scrub_now(struct nvme_device *d)
{
        struct scrub *c = d->scrub;

        if (!c && (c = new0(struct scrub, 1))) {
                c->device = d;
                d->scrub = c;
        }
        if (!c)
                return;
        c->now = true; /* a pass under way is begun again: all records are read from here on */
        c->cursor = 0;
        d->counters.scrub_bytes = 0;
        c->pass_started_usec = d->nvme->now_usec;
        scrub_some(d);
}
