/* What goes out: packets, a backlog for those that the socket has no room for, and queued releases. Under the lock. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "libclient/async.h"
#include "libclient/wire.h"

enum { FIELD_RELEASE_LEASES = 1 };

static int backlog_add(kvt *c, size_t n)
{
        struct packet *p = c->n_backlog < BACKLOG_MAX ? malloc(sizeof(*p) + n) : NULL;

        if (!p)
                return KVT_E_AGAIN;
        p->next = NULL;
        p->n_bytes = n;
        memcpy(p->bytes, c->tx, n);
        *c->backlog_tail = p;
        c->backlog_tail = &p->next;
        c->n_backlog++;
        poll_writes(c, true);
        return 0;
}

int tx_send(kvt *c, uint16_t type, uint32_t request_id, size_t body_bytes)
{
        size_t n = KVT_FRAME_BYTES + body_bytes;

        if (c->closing)
                return KVT_E_CANCELLED;
        if (c->fd < 0 || c->broken)
                return KVT_E_DISCONNECTED;
        frame_put(c->tx, c->version, type, request_id, (uint32_t)body_bytes);
        if (c->backlog)
                return backlog_add(c, n);
        for (;;) {
                if (send(c->fd, c->tx, n, MSG_NOSIGNAL | MSG_DONTWAIT) >= 0)
                        return 0;
                if (errno == EAGAIN || errno == ENOBUFS || errno == ENOMEM)
                        return backlog_add(c, n);
                if (errno != EINTR) {
                        conn_lost(c);
                        return KVT_E_DISCONNECTED;
                }
        }
}

void tx_flush(kvt *c)
{
        while (c->backlog && c->fd >= 0 && !c->broken) {
                struct packet *p = c->backlog;

                if (send(c->fd, p->bytes, p->n_bytes, MSG_NOSIGNAL | MSG_DONTWAIT) < 0) {
                        if (errno == EINTR)
                                continue;
                        if (errno != EAGAIN && errno != ENOBUFS && errno != ENOMEM)
                                conn_lost(c);
                        return;
                }
                c->backlog = p->next;
                if (!c->backlog)
                        c->backlog_tail = &c->backlog;
                c->n_backlog--;
                free(p);
        }
        poll_writes(c, false);
}

void tx_drop(kvt *c)
{
        for (struct packet *p; (p = c->backlog);) {
                c->backlog = p->next;
                free(p);
        }
        c->backlog_tail = &c->backlog;
        c->n_backlog = 0;
}

/* releases */

uint8_t *release_ride(kvt *c, uint8_t *p, uint32_t field)
{
        p = wire_bytes(p, field, c->releases, c->n_releases * sizeof(*c->releases));
        c->n_releases = 0;
        return p;
}

void release_flush(kvt *c)
{
        uint8_t *p;

        if (!c->n_releases)
                return;
        p = release_ride(c, tx_body(c), FIELD_RELEASE_LEASES);
        tx_send(c, KVT_MSG_RELEASE, 0, (size_t)(p - tx_body(c)));
}

void release_queue(kvt *c, uint64_t lease)
{
        c->releases[c->n_releases++] = lease;
        if (c->n_releases == RELEASES_MAX)
                release_flush(c);
}
