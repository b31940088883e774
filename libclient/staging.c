/* See staging.h. */
#include <assert.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "libclient/huge.h"
#include "libclient/staging.h"
#include "libclient/wire.h"

enum { FIELD_STAGING_OPEN_BYTES = 1, SEALS = F_SEAL_SHRINK | F_SEAL_GROW, TRIES_MAX = 8 };

uint64_t staging_stride(uint64_t part_bytes)
{
        uint64_t align = part_bytes >= 4096 ? 4096 : 64;
        return (part_bytes + align - 1) / align * align;
}

/* opening */

static struct staging *staging_new(kvt *c, uint64_t bytes, int fd)
{
        int seals = fcntl(fd, F_GET_SEALS);
        struct staging *s;
        struct stat st;
        void *p;

        /* not sealed against shrinking, a daemon gone mad could make writing to it end in SIGBUS */
        if (seals < 0 || (seals & SEALS) != SEALS || fstat(fd, &st) < 0 || !bytes || bytes > (uint64_t)st.st_size || bytes > SIZE_MAX)
                return NULL;
        s = calloc(1, sizeof(*s));
        if (!s)
                return NULL;
        s->cap_free = 16;
        s->free = malloc(s->cap_free * sizeof(*s->free));
        s->prepared = calloc(1, bytes / HUGE_BYTES + 1);
        p = s->free && s->prepared ? huge_map(fd, bytes, PROT_READ | PROT_WRITE) : MAP_FAILED;
        if (p == MAP_FAILED) {
                free(s->free);
                free(s->prepared);
                free(s);
                return NULL;
        }
        madvise(p, bytes, MADV_DONTFORK);
        s->base = p;
        s->bytes = bytes;
        s->epoch = c->epoch;
        s->attached = true;
        s->free[0] = (struct extent){.bytes = bytes};
        s->n_free = 1;
        return s;
}

static int staging_on_reply(kvt *c, struct request *q, int error, const uint8_t *body, size_t n)
{
        ProtobufCAllocator allocator = arena_start(&c->arena);
        Kvtier__StagingOpenReply *m;

        if (!error) {
                m = kvtier__staging_open_reply__unpack(&allocator, n, body);
                if (!m || c->n_rx_fds != 1 || c->staging)
                        return -1;
                c->staging = staging_new(c, m->bytes, c->rx_fds[0]);
                if (!c->staging)
                        return -1;
                tx_send(c, KVT_MSG_FD_ACK, 0, 0);
        }
        c->staging_asked = false;
        c->staging_error = error;
        op_news_staging(c);
        return 0;
}

static int staging_ask(kvt *c)
{
        uint64_t wish = c->staging_wish_bytes;
        struct request *q;
        uint8_t *p;
        int r;

        if (c->staging_max_bytes && wish > c->staging_max_bytes)
                wish = c->staging_max_bytes;
        q = request_new(c, NULL, KVT_MSG_STAGING_OPEN);
        if (!q)
                return KVT_E_AGAIN;
        q->on_reply = staging_on_reply;
        p = wire_uint(tx_body(c), FIELD_STAGING_OPEN_BYTES, wish);
        r = request_send(c, q, (size_t)(p - tx_body(c)));
        if (r)
                request_free(c, q);
        else
                c->staging_asked = true;
        return r;
}

int staging_ensure(kvt_op *op)
{
        kvt *c = op->c;
        int r;

        if (c->closing)
                return KVT_E_CANCELLED;
        if (c->staging)
                return 0;
        if (!c->staging_asked) {
                /* KVT_E_AGAIN: other descriptors were on their way, and have been acknowledged since */
                if (op->asked_staging && (c->staging_error != KVT_E_AGAIN || op->asked_staging == TRIES_MAX))
                        return c->staging_error ? c->staging_error : KVT_E_DISCONNECTED;
                r = staging_ask(c);
                if (r)
                        return r;
        }
        op->asked_staging++;
        op->wants_staging = true;
        return STEP_PENDING;
}

/* ranges */

int staging_alloc(kvt *c, uint64_t bytes, struct staging **ret, uint64_t *ret_offset)
{
        struct staging *s = c->staging;

        if (!s)
                return KVT_E_DISCONNECTED;
        if (bytes > s->bytes)
                return KVT_E_TOO_LARGE;
        if (s->n_used + 3 > s->cap_free) { /* n ranges in use part at most n + 1 free ones: giving back never fails */
                struct extent *more = realloc(s->free, s->cap_free * 2 * sizeof(*more));

                if (!more)
                        return KVT_E_NO_MEMORY;
                s->free = more;
                s->cap_free *= 2;
        }
        for (uint32_t i = 0; i < s->n_free; i++) {
                struct extent *e = &s->free[i];

                if (e->bytes < bytes)
                        continue;
                *ret_offset = e->offset;
                *ret = s;
                e->offset += bytes;
                e->bytes -= bytes;
                if (!e->bytes)
                        memmove(e, e + 1, (--s->n_free - i) * sizeof(*e));
                s->n_used++;
                return 0;
        }
        return KVT_E_AGAIN;
}

void staging_prepare(struct staging *s, uint64_t offset, uint64_t bytes)
{
        /* only what is filled whole: small parts take small pages */
        for (uint64_t i = (offset + HUGE_BYTES - 1) / HUGE_BYTES; (i + 1) * HUGE_BYTES <= offset + bytes; i++)
                if (!__atomic_exchange_n(&s->prepared[i], 1, __ATOMIC_RELAXED)) /* relaxed: whoever comes second may fault, no more */
                        huge_prepare(s->base + i * HUGE_BYTES);
}

static void staging_unmap(struct staging *s)
{
        if (s->base)
                munmap(s->base, s->bytes);
        free(s->free);
        free(s->prepared);
        free(s);
}

void staging_free(kvt *c, struct staging *s, uint64_t offset, uint64_t bytes)
{
        uint32_t i = 0;

        assert(s->n_used && s->n_free < s->cap_free);
        while (i < s->n_free && s->free[i].offset < offset)
                i++;
        memmove(&s->free[i + 1], &s->free[i], (s->n_free - i) * sizeof(*s->free));
        s->free[i] = (struct extent){.offset = offset, .bytes = bytes};
        s->n_free++;
        for (uint32_t j = i ? i - 1 : 0; j + 1 < s->n_free && j <= i;) { /* join neighbours */
                struct extent *e = &s->free[j];

                if (e->offset + e->bytes != e[1].offset) {
                        j++;
                        continue;
                }
                e->bytes += e[1].bytes;
                memmove(e + 1, e + 2, (s->n_free - j - 2) * sizeof(*e));
                s->n_free--;
        }
        if (--s->n_used || s->attached) {
                if (s->attached)
                        op_news_staging(c);
                return;
        }
        *s->link_old = s->next_old;
        if (s->next_old)
                s->next_old->link_old = s->link_old;
        staging_unmap(s);
}

void staging_detach(kvt *c)
{
        struct staging *s = c->staging;

        c->staging = NULL;
        if (!s)
                return;
        s->attached = false;
        if (!s->n_used) {
                staging_unmap(s);
                return;
        }
        s->next_old = c->old_staging;
        s->link_old = &c->old_staging;
        if (s->next_old)
                s->next_old->link_old = &s->next_old;
        c->old_staging = s;
}

void staging_deinit(kvt *c, bool child)
{
        if (c->staging) {
                c->staging->next_old = c->old_staging;
                c->old_staging = c->staging;
                c->staging = NULL;
        }
        for (struct staging *s; (s = c->old_staging);) {
                c->old_staging = s->next_old;
                if (child)
                        s->base = NULL;
                staging_unmap(s);
        }
        free(c->reservations);
}
