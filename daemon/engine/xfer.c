#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include "daemon/engine/xfer.h"
#include "libclient/codec/codec.h"
#include "libclient/codec/hash.h"

int staging_new(struct staging **ret, struct engine *e, struct tenant *t, uint64_t bytes)
{
        struct staging *s;
        int r = host_charge(&e->host, t, bytes);

        if (r != 0)
                return r;
        s = new0(struct staging, 1);
        if (!s) {
                host_uncharge(&e->host, t, bytes);
                return KVT_E_NO_MEMORY;
        }
        *s = (struct staging){.n_refs = 1, .bytes = bytes, .engine = e, .tenant = t, .base = MAP_FAILED};
        s->fd = memfd_create("kvtier-staging", MFD_CLOEXEC | MFD_ALLOW_SEALING);
        if (s->fd < 0 || ftruncate(s->fd, (off_t)bytes) < 0 || fcntl(s->fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) < 0 ||
            (s->base = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, s->fd, 0)) == MAP_FAILED) {
                staging_unref(s);
                return KVT_E_NO_MEMORY;
        }
        if (e->conf->p.huge_pages)
                madvise(s->base, bytes, MADV_HUGEPAGE);
        *ret = s;
        return 0;
}

struct staging *staging_ref(struct staging *s)
{
        s->n_refs++;
        return s;
}

struct staging *staging_unref(struct staging *s)
{
        if (!s || --s->n_refs)
                return NULL;
        if (s->base != MAP_FAILED)
                munmap(s->base, s->bytes);
        if (s->fd >= 0)
                close(s->fd);
        host_uncharge(&s->engine->host, s->tenant, s->bytes);
        free(s);
        return NULL;
}

/* Worker: staging -> slot, hashing what lies in the slot. The client may scribble meanwhile: it then stored what it wrote, and no more. */
static int work_put(struct xfer *x)
{
        const struct geometry *g = &x->space->geometry;
        struct kvt_copy_header *h = slab_header(x->slab, x->slot);
        uint32_t start = kvt_payload_offset(g->n_planes, g->part_bytes);
        uint8_t *to = slab_slot_address(x->slab, x->slot) + start;
        const uint8_t *from = x->staging->base + x->offset;

        if (slab_populate(x->slab, (uint64_t)x->slot * x->slab->slot_bytes, start + g->part_bytes) < 0)
                return KVT_E_NO_MEMORY;
        __atomic_store_n(&h->generation, 0, __ATOMIC_RELAXED);
        __atomic_thread_fence(__ATOMIC_RELEASE);
        h->payload_bytes = (uint32_t)g->part_bytes;
        h->n_planes = (uint16_t)g->n_planes;
        h->codec = codec_raw.id;
        h->layout = KVT_COPY_LAYOUT;
        for (uint32_t i = 0; i < g->n_planes; i++)
                h->plane_hash[i] = hash_copy(to + g->offsets[i], from + g->offsets[i], g->offsets[i + 1] - g->offsets[i], i);
        return 0;
}

/* Worker: slot -> staging (or nowhere), verified. A client that scribbles on its staging meanwhile spoils its own answer only. */
static int work_get(struct xfer *x)
{
        const struct geometry *g = &x->space->geometry;
        const struct kvt_copy_header *h = slab_header(x->slab, x->slot);
        const uint8_t *from = slab_slot_address(x->slab, x->slot) + kvt_payload_offset(g->n_planes, g->part_bytes);
        const struct codec *c = codec_find(h->codec);

        if (h->payload_bytes != g->part_bytes || h->n_planes != g->n_planes || h->layout != KVT_COPY_LAYOUT || !c)
                return KVT_E_CORRUPT;
        for (uint32_t i = x->first_plane; i < (x->kind == XFER_VERIFY ? g->n_planes : x->end_plane); i++) {
                uint64_t n = g->offsets[i + 1] - g->offsets[i], hash;
                uint8_t *to = x->kind == XFER_VERIFY ? NULL : x->staging->base + x->offset + (g->offsets[i] - g->offsets[x->first_plane]);
                hash = x->kind == XFER_VERIFY ? hash_bytes(from + g->offsets[i], n, i) : hash_copy(to, from + g->offsets[i], n, i);
                if (hash != h->plane_hash[i])
                        return KVT_E_CORRUPT;
        }
        return 0;
}

/* Worker: slot -> record, verified on the way: what was damaged in memory must not get a good checksum on the device. */
static int work_demote(struct xfer *x)
{
        const struct geometry *g = &x->space->geometry;
        const struct kvt_copy_header *h = slab_header(x->slab, x->slot);
        const uint8_t *from = slab_slot_address(x->slab, x->slot) + kvt_payload_offset(g->n_planes, g->part_bytes);
        struct record_header *to = x->write.header;
        uint8_t *payload = record_payload(to);
        uint32_t n_pages = to->n_pages - to->header_pages;

        if (h->payload_bytes != g->part_bytes || h->n_planes != g->n_planes || h->layout != KVT_COPY_LAYOUT || h->codec != to->codec)
                return KVT_E_CORRUPT;
        for (uint32_t i = 0; i < g->n_planes; i++) {
                uint64_t n = g->offsets[i + 1] - g->offsets[i];
                struct record_plane *p = &record_planes(to)[i];
                *p = (struct record_plane){.hash = hash_copy(payload + g->offsets[i], from + g->offsets[i], n, i),
                                           .stored_bytes = (uint32_t)n};
                if (p->hash != h->plane_hash[i])
                        return KVT_E_CORRUPT;
        }
        memset(payload + g->part_bytes, 0, (uint64_t)n_pages * FORMAT_PAGE_BYTES - g->part_bytes);
        for (uint32_t i = 0; i < to->n_page_hashes; i++)
                record_page_hashes(to)[i] = record_page_hash(payload + (uint64_t)i * FORMAT_PAGE_BYTES, i);
        return 0;
}

static bool record_fits(const struct record_header *h, const struct xfer *x)
{
        const struct geometry *g = &x->space->geometry;

        if (h->n_planes != g->n_planes || h->raw_bytes != g->part_bytes || h->stored_bytes != g->part_bytes || h->codec != codec_raw.id ||
            h->shard != x->shard || memcmp(h->key, x->key, 16) || memcmp(h->space, x->space->digest, 16))
                return false;
        for (uint32_t i = 0; i < g->n_planes; i++)
                if (record_planes((struct record_header *)h)[i].stored_bytes != g->offsets[i + 1] - g->offsets[i])
                        return false;
        return true;
}

/* Worker: record -> slot, or some planes of it -> staging. */
static int work_load(struct xfer *x)
{
        const struct geometry *g = &x->space->geometry;
        struct record_header *from = x->read.header;
        struct kvt_copy_header *h = x->kind == XFER_LOAD ? slab_header(x->slab, x->slot) : NULL;
        uint32_t start = kvt_payload_offset(g->n_planes, g->part_bytes);
        uint8_t *to = h ? slab_slot_address(x->slab, x->slot) + start : x->staging->base + x->offset;

        if (!record_fits(from, x))
                return KVT_E_CORRUPT;
        if (h) {
                if (slab_populate(x->slab, (uint64_t)x->slot * x->slab->slot_bytes, start + g->part_bytes) < 0)
                        return KVT_E_NO_MEMORY;
                __atomic_store_n(&h->generation, 0, __ATOMIC_RELAXED);
                __atomic_thread_fence(__ATOMIC_RELEASE);
                h->payload_bytes = (uint32_t)g->part_bytes;
                h->n_planes = (uint16_t)g->n_planes;
                h->codec = from->codec;
                h->layout = KVT_COPY_LAYOUT;
        }
        for (uint32_t i = x->first_plane; i < x->end_plane; i++) {
                uint64_t at = g->offsets[i] - g->offsets[x->first_plane],
                         hash = hash_copy(to + at, x->read.payload + at, g->offsets[i + 1] - g->offsets[i], i);
                if (hash != record_planes(from)[i].hash)
                        return KVT_E_CORRUPT;
                if (h)
                        h->plane_hash[i] = hash;
        }
        return 0;
}

static void xfer_work(struct job *j)
{
        struct xfer *x = container_of(j, struct xfer, job);

        ASSERT(x->owner == XFER_WORKER && x->state == XFER_QUEUED);
        x->state = XFER_CODING;
        if (__atomic_load_n(&x->cancelled, __ATOMIC_RELAXED))
                x->result = KVT_E_CANCELLED;
        else
                x->result = x->kind == XFER_PUT                             ? work_put(x)
                            : x->kind == XFER_DEMOTE                        ? work_demote(x)
                            : x->kind == XFER_LOAD || x->kind == XFER_FETCH ? work_load(x)
                                                                            : work_get(x);
        x->state = x->result ? XFER_FAILED : XFER_COMMITTED;
}

struct xfer *xfer_new(struct engine *e, enum xfer_kind kind, struct space *s, struct staging *staging, struct location at)
{
        uint32_t i = s->tenant->n_xfers < tenants_share(&e->tenants, e->xfers.max) ? pool_take(&e->xfers) : POOL_NONE;

        if (i == POOL_NONE)
                return NULL;
        s->tenant->n_xfers++;
        struct xfer *x = pool_at(&e->xfers, i);
        x->id = i;
        x->kind = kind;
        x->owner = XFER_LOOP;
        x->space = s;
        s->n_open++;
        x->staging = staging ? staging_ref(staging) : NULL;
        x->at = at;
        x->slab = at.slab ? host_slab(&e->host, at.slab) : NULL;
        x->slot = at.slot;
        x->engine = e;
        x->end_plane = s->geometry.n_planes;
        list_init(&x->job.link);
        list_init(&x->waiters);
        list_init(&x->loads);
        x->job.work = xfer_work;
        return x;
}

void xfer_submit(struct engine *e, struct xfer *x)
{
        ASSERT(x->owner == XFER_LOOP && x->state == XFER_QUEUED);
        x->owner = XFER_WORKER;
        queue_submit(&e->queue, &x->job);
}

void xfer_work_here(struct engine *e, struct xfer *x)
{
        ASSERT(x->owner == XFER_LOOP && x->state == XFER_QUEUED);
        x->owner = XFER_WORKER;
        x->job.work(&x->job);
        xfer_complete(e, x);
}

void xfer_cancel(struct xfer *x)
{
        __atomic_store_n(&x->cancelled, true, __ATOMIC_RELAXED); /* a hint: the worker may be past looking */
}

void xfer_free(struct engine *e, struct xfer *x)
{
        struct space *s = x->space;

        ASSERT(x->owner == XFER_LOOP && list_empty(&x->waiters) && list_empty(&x->loads));
        staging_unref(x->staging);
        pool_give(&e->xfers, x->id);
        s->tenant->n_xfers--;
        s->n_open--;
        engine_settle_space(e, s);
}

void xfer_complete(struct engine *e, struct xfer *x)
{
        assert_on_loop();
        ASSERT(x->owner == XFER_WORKER && (x->state == XFER_COMMITTED || x->state == XFER_FAILED));
        x->owner = XFER_LOOP;
        x->done(e, x, x->arg);
        xfer_free(e, x);
}

void xfer_finish(struct engine *e, struct xfer *x, int result)
{
        ASSERT(x->owner == XFER_LOOP);
        x->result = result;
        x->state = result ? XFER_FAILED : XFER_COMMITTED;
        x->done(e, x, x->arg);
        xfer_free(e, x);
}

void xfer_abandon(struct engine *e, struct xfer *x)
{
        ASSERT(x->owner == XFER_WORKER && x->state == XFER_QUEUED);
        x->state = XFER_FAILED;
        x->result = KVT_E_CANCELLED;
        xfer_complete(e, x);
}
