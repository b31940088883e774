#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include "daemon/engine/work.h"

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
        x->job.work = work_do;
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
        coded_free(x->coded);
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
