/* See slab.h. The helper thread populates new maps, so that their first reads do not fault a page at a time: it starts with the
 * first slab, takes one map after the other in steps of 16 MiB, and ends after a second without work. */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "libclient/huge.h"
#include "libclient/slab.h"

enum { TABLE_MIN = 16, SEALS = F_SEAL_SHRINK | F_SEAL_GROW };
static const size_t populate_step_bytes = 16u << 20;
static const uint64_t helper_idle_usec = 1000000;

/* table: open addressing, linear probing, at most half full */

static uint32_t table_slot(const kvt *c, uint32_t id)
{
        return (uint32_t)(id * 0x9E3779B97F4A7C15u >> 32) & (c->cap_slabs - 1);
}

struct slab_map *slab_find(kvt *c, uint32_t id)
{
        if (c->cap_slabs)
                for (uint32_t i = table_slot(c, id); c->slabs[i]; i = (i + 1) & (c->cap_slabs - 1))
                        if (c->slabs[i]->id == id)
                                return c->slabs[i];
        return NULL;
}

static void table_place(kvt *c, struct slab_map *m)
{
        uint32_t i = table_slot(c, m->id);

        while (c->slabs[i])
                i = (i + 1) & (c->cap_slabs - 1);
        c->slabs[i] = m;
}

static int table_insert(kvt *c, struct slab_map *m)
{
        if ((c->n_slabs + 1) * 2 > c->cap_slabs) {
                uint32_t old_cap = c->cap_slabs, cap = old_cap ? old_cap * 2 : TABLE_MIN;
                struct slab_map **old = c->slabs, **more = calloc(cap, sizeof(*more));

                if (!more)
                        return KVT_E_NO_MEMORY;
                c->slabs = more;
                c->cap_slabs = cap;
                for (uint32_t i = 0; i < old_cap; i++)
                        if (old[i])
                                table_place(c, old[i]);
                free(old);
        }
        table_place(c, m);
        c->n_slabs++;
        m->in_table = true;
        return 0;
}

static void table_remove(kvt *c, struct slab_map *m)
{
        uint32_t mask = c->cap_slabs - 1, i = table_slot(c, m->id);

        while (c->slabs[i] != m)
                i = (i + 1) & mask;
        c->slabs[i] = NULL;
        c->n_slabs--;
        m->in_table = false;
        for (uint32_t j = (i + 1) & mask; c->slabs[j]; j = (j + 1) & mask) { /* what probed past it moves up */
                struct slab_map *moved = c->slabs[j];

                c->slabs[j] = NULL;
                table_place(c, moved);
        }
}

/* acknowledgements */

static void slab_ack(kvt *c, const uint32_t *ids, size_t n)
{
        Kvtier__SlabAck m = KVTIER__SLAB_ACK__INIT;

        m.n_slabs = n;
        m.slabs = (uint32_t *)ids;
        tx_send(c, KVT_MSG_SLAB_ACK, 0, kvtier__slab_ack__pack(&m, tx_body(c)));
}

/* maps */

static void slab_free(struct slab_map *m)
{
        if (m->base)
                munmap((void *)m->base, m->bytes);
        free(m);
}

void slab_ref(struct slab_map *m)
{
        m->refs++;
}

void slab_unref(kvt *c, struct slab_map *m)
{
        bool ack = m->retired && m->epoch == c->epoch;
        uint32_t id = m->id;

        assert(m->refs);
        if (--m->refs)
                return;
        assert(!m->in_table);
        if (m->link_old) {
                *m->link_old = m->next_old;
                if (m->next_old)
                        m->next_old->link_old = m->link_old;
        }
        slab_free(m);
        if (ack)
                slab_ack(c, &id, 1);
}

/* Out of the table: only mappings keep it. */
static void slab_detach(kvt *c, struct slab_map *m)
{
        table_remove(c, m);
        if (m->refs > 1) {
                m->next_old = c->old_slabs;
                m->link_old = &c->old_slabs;
                if (c->old_slabs)
                        c->old_slabs->link_old = &m->next_old;
                c->old_slabs = m;
        }
        slab_unref(c, m);
}

static void populate(const uint8_t *p, size_t n)
{
        size_t page_bytes = (size_t)sysconf(_SC_PAGESIZE);

        if (!madvise((void *)p, n, MADV_POPULATE_READ) || errno != EINVAL)
                return;
        for (size_t i = 0; i < n; i += page_bytes) /* before Linux 5.14 */
                (void)*(const volatile uint8_t *)(p + i);
}

static void *helper_main(void *arg)
{
        kvt *c = arg;

        pthread_mutex_lock(&c->lock);
        for (;;) {
                struct slab_map *m = c->populate;
                size_t done = 0;

                if (!m && !c->closing) {
                        uint64_t until = now_usec() + helper_idle_usec;
                        struct timespec t = {.tv_sec = (time_t)(until / 1000000), .tv_nsec = (long)(until % 1000000 * 1000)};

                        if (pthread_cond_timedwait(&c->helper_cond, &c->lock, &t) != ETIMEDOUT || c->populate)
                                continue;
                }
                if (!m || c->closing)
                        break;
                c->populate = m->next_populate;
                while (done < m->bytes && !c->closing && m->refs > 1) { /* nobody wants it any more */
                        size_t n = m->bytes - done < populate_step_bytes ? m->bytes - done : populate_step_bytes;

                        pthread_mutex_unlock(&c->lock);
                        populate(m->base + done, n);
                        pthread_mutex_lock(&c->lock);
                        done += n;
                }
                slab_unref(c, m);
        }
        c->helper_runs = false;
        pthread_mutex_unlock(&c->lock);
        return NULL;
}

static int helper_start(kvt *c)
{
        sigset_t all, old;
        int r;

        if (c->helper_runs) {
                pthread_cond_signal(&c->helper_cond);
                return 0;
        }
        if (c->helper_exists)
                pthread_join(c->helper, NULL); /* it has left the lock for the last time */
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &old);
        r = pthread_create(&c->helper, NULL, helper_main, c);
        pthread_sigmask(SIG_SETMASK, &old, NULL);
        c->helper_exists = c->helper_runs = !r;
        return r;
}

void slab_stop_helper(kvt *c)
{
        bool join = c->helper_exists;

        pthread_cond_signal(&c->helper_cond);
        c->helper_exists = false;
        pthread_mutex_unlock(&c->lock);
        if (join)
                pthread_join(c->helper, NULL);
        pthread_mutex_lock(&c->lock);
        for (struct slab_map *m; (m = c->populate);) {
                c->populate = m->next_populate;
                slab_unref(c, m);
        }
}

static void slab_populate(kvt *c, struct slab_map *m)
{
        if (!(c->flags & KVT_OPEN_NO_THREAD)) {
                struct slab_map **last = &c->populate;

                while (*last)
                        last = &(*last)->next_populate;
                m->next_populate = NULL;
                *last = m;
                slab_ref(m);
                if (!helper_start(c))
                        return;
                *last = NULL;
                m->refs--;
        }
        populate(m->base, m->bytes);
}

int slab_add(kvt *c, uint32_t id, uint64_t bytes, int fd)
{
        int seals = fcntl(fd, F_GET_SEALS);
        struct slab_map *m;
        struct stat st;
        void *p;

        /* sealed against shrinking: else reading it could end in SIGBUS */
        if (seals < 0 || (seals & SEALS) != SEALS || fstat(fd, &st) < 0 || !bytes || bytes % 4096 || bytes > (uint64_t)st.st_size ||
            bytes > SIZE_MAX || slab_find(c, id))
                return KVT_E_CORRUPT;
        m = calloc(1, sizeof(*m));
        if (!m)
                return KVT_E_NO_MEMORY;
        *m = (struct slab_map){.id = id, .refs = 1, .bytes = bytes, .epoch = c->epoch, .boot = c->boot};
        if (table_insert(c, m)) {
                free(m);
                return KVT_E_NO_MEMORY;
        }
        p = huge_map(fd, bytes, PROT_READ);
        if (p == MAP_FAILED)
                return KVT_E_NO_MEMORY;
        madvise(p, bytes, MADV_DONTFORK);
        m->base = p;
        slab_populate(c, m);
        return 0;
}

static bool slab_is_retiring(const kvt *c, uint32_t id)
{
        for (const struct slab_map *m = c->old_slabs; m; m = m->next_old)
                if (m->retired && m->id == id)
                        return true;
        return false;
}

int slab_on_retired(kvt *c, const uint8_t *body, size_t n)
{
        ProtobufCAllocator allocator = arena_start(&c->arena);
        Kvtier__SlabRetired *message = kvtier__slab_retired__unpack(&allocator, n, body);
        uint64_t epoch = c->epoch;
        size_t n_ack = 0;

        if (!message)
                return -1;
        for (size_t i = 0; i < message->n_slabs; i++) {
                struct slab_map *m = slab_find(c, message->slabs[i]);

                if (m) {
                        m->retired = true;
                        if (m->refs > 1)
                                slab_detach(c, m); /* the last mapping acknowledges */
                        else {
                                m->retired = false; /* here, with the others */
                                slab_detach(c, m);
                                message->slabs[n_ack++] = message->slabs[i];
                        }
                } else if (!slab_is_retiring(c, message->slabs[i]))
                        message->slabs[n_ack++] = message->slabs[i];
        }
        if (n_ack && c->epoch == epoch)
                slab_ack(c, message->slabs, n_ack);
        return 0;
}

void slab_forget_all(kvt *c)
{
        while (c->n_slabs) /* removals move others about */
                for (uint32_t i = 0; i < c->cap_slabs; i++)
                        if (c->slabs[i])
                                slab_detach(c, c->slabs[i]);
        for (struct slab_map *m = c->old_slabs; m; m = m->next_old)
                m->retired = false; /* nobody to acknowledge to */
}

void slab_deinit(kvt *c, bool child)
{
        for (uint32_t i = 0; i < c->cap_slabs; i++)
                if (c->slabs[i]) {
                        if (child)
                                c->slabs[i]->base = NULL;
                        slab_free(c->slabs[i]);
                }
        for (struct slab_map *m; (m = c->old_slabs);) {
                c->old_slabs = m->next_old;
                if (child)
                        m->base = NULL;
                slab_free(m);
        }
        free(c->slabs);
}
