#include <stdio.h>
#include <string.h>
#include <linux/sockios.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include "daemon/serve/lease.h"
#include "daemon/serve/request.h"
#include "daemon/util/clock.h"
#include "daemon/util/log.h"
#include "daemon/util/metrics.h"

enum {
        QUEUE_BYTES_MAX = 4 << 20, /* answers to pipelined requests; beyond it the client is not reading at all */
        PACKETS_A_TURN = 8,
};

static void update_events(struct session *c)
{
        uint32_t events = c->stuck ? 0 : !list_empty(&c->queue) ? EPOLLOUT : c->parked ? 0 : EPOLLIN;

        if (c->source)
                sd_event_source_set_io_events(c->source, events);
}

static int send_packet(struct session *c, const uint8_t *bytes, size_t n, const int *fds, size_t n_fds)
{
        union {
                struct cmsghdr align;
                char bytes[CMSG_SPACE(sizeof(int) * KVT_FDS_MAX)];
        } control;
        struct iovec iov = {(void *)bytes, n};
        struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1};

        if (!n_fds)
                return send(c->fd, bytes, n, MSG_DONTWAIT | MSG_NOSIGNAL) < 0 ? -errno : 0;
        m.msg_control = control.bytes;
        m.msg_controllen = CMSG_SPACE(sizeof(int) * n_fds);
        struct cmsghdr *h = CMSG_FIRSTHDR(&m);
        h->cmsg_level = SOL_SOCKET;
        h->cmsg_type = SCM_RIGHTS;
        h->cmsg_len = CMSG_LEN(sizeof(int) * n_fds);
        memcpy(CMSG_DATA(h), fds, sizeof(int) * n_fds);
        return sendmsg(c->fd, &m, MSG_DONTWAIT | MSG_NOSIGNAL) < 0 ? -errno : 0;
}

static int enqueue(struct session *c, const uint8_t *bytes, size_t n, const int *fds, size_t n_fds)
{
        if (c->queued_bytes + n > QUEUE_BYTES_MAX)
                return -EOVERFLOW;
        struct packet *p = malloc(sizeof *p + n);
        if (!p)
                return -ENOMEM;
        p->n_bytes = n;
        p->n_fds = n_fds;
        if (n_fds)
                memcpy(p->fds, fds, n_fds * sizeof *fds);
        memcpy(p->bytes, bytes, n);
        list_append(&c->queue, &p->link);
        c->queued_bytes += n;
        update_events(c);
        return 0;
}

int session_send(struct session *c, uint16_t type, uint32_t request_id, const ProtobufCMessage *m, const int *fds, size_t n_fds)
{
        uint8_t *out = c->server->out;
        size_t body = protobuf_c_message_get_packed_size(m), n = KVT_FRAME_BYTES + body;
        int r;

        if (c->state == SESSION_CLOSED)
                return 0;
        ASSERT(n <= KVT_PACKET_MAX);
        frame_put(out, c->version, type, request_id, (uint32_t)body);
        protobuf_c_message_pack(m, out + KVT_FRAME_BYTES);
        r = list_empty(&c->queue) ? send_packet(c, out, n, fds, n_fds) : -EAGAIN;
        if (r == -ETOOMANYREFS && n_fds)
                return KVT_E_AGAIN;
        if (r == -EAGAIN || r == -ENOBUFS || r == -ENOMEM)
                r = enqueue(c, out, n, fds, n_fds);
        if (r < 0)
                session_close(c, r == -EPIPE || r == -ECONNRESET ? NULL : r == -EOVERFLOW ? "it does not read its answers" : strerror(-r));
        else if (n_fds) {
                c->fds_outstanding = true;
                c->fds_acked = false;
                c->fds_sent_usec = c->server->engine.now_usec;
                list_append(&c->server->unacked, &c->fds_link);
        }
        return 0;
}

void session_reply(struct session *c, uint16_t type, uint32_t request_id, const void *m)
{
        session_send(c, type | KVT_REPLY, request_id, m, NULL, 0);
}

void session_error(struct session *c, uint32_t request_id, int code, const char *text)
{
        Kvtier__Error m = KVTIER__ERROR__INIT;

        m.code = (uint32_t)code;
        m.text = (char *)(text ?: "");
        session_send(c, KVT_MSG_ERROR, request_id, &m.base, NULL, 0);
}

/* Returns false when the queue is blocked again. */
static bool flush_queue(struct session *c)
{
        while (!list_empty(&c->queue)) {
                struct packet *p = list_first(&c->queue, struct packet, link);
                int r = send_packet(c, p->bytes, p->n_bytes, p->fds, p->n_fds);
                if (r == -EAGAIN)
                        return false;
                if (r == -ETOOMANYREFS || r == -ENOBUFS ||
                    r == -ENOMEM) { /* the socket stays writable, so EPOLLOUT would come again at once */
                        c->stuck = true;
                        c->server->retry_usec = c->server->engine.now_usec + 50000;
                        update_events(c);
                        return false;
                }
                if (r < 0) {
                        session_close(c, NULL);
                        return false;
                }
                c->queued_bytes -= p->n_bytes;
                list_remove(&p->link);
                free(p);
        }
        return true;
}

static void read_packets(struct session *c)
{
        struct server *s = c->server;

        for (int n = 0; n < PACKETS_A_TURN && c->state != SESSION_CLOSED && list_empty(&c->queue) && !c->parked; n++) {
                struct iovec iov = {s->in, KVT_PACKET_MAX + 1};
                struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1}; /* no room for descriptors: none is ever installed here */
                ssize_t k = recvmsg(c->fd, &m, MSG_DONTWAIT);
                if (k < 0) {
                        if (errno != EAGAIN && errno != EINTR)
                                session_close(c, NULL);
                        return;
                }
                if (k == 0) {
                        session_close(c, NULL);
                        return;
                }
                engine_tick(&s->engine);
                if (m.msg_flags & MSG_CTRUNC) {
                        metrics.c_bad_packets++;
                        session_error(c, 0, KVT_E_BAD_FDS, "packet with file descriptors");
                        session_close(c, "it sent file descriptors");
                        return;
                }
                if ((m.msg_flags & MSG_TRUNC) || k > KVT_PACKET_MAX) {
                        metrics.c_bad_packets++;
                        session_error(c, 0, KVT_E_BAD_FRAME, "oversized packet");
                        session_close(c, "it sent an oversized packet");
                        return;
                }
                uint64_t before = c->n_requests;
                request_handle(c, s->in, (size_t)k);
                if (c->n_requests != before) /* a client that waits for this answer has sent nothing more yet */
                        return;
        }
}

static int on_io(sd_event_source *source, int fd, uint32_t revents, void *arg)
{
        struct session *c = arg;

        if (revents & EPOLLOUT && flush_queue(c) && c->state != SESSION_CLOSED)
                update_events(c);
        if (c->state != SESSION_CLOSED && revents & EPOLLIN)
                read_packets(c);
        else if (c->state != SESSION_CLOSED && revents & (EPOLLHUP | EPOLLERR))
                session_close(c, NULL);
        if (c->state == SESSION_CLOSED)
                return 0;
        if (c->server->conf.p.busy_poll_usec) {
                c->server->poll_until_usec = c->server->engine.now_usec + c->server->conf.p.busy_poll_usec;
                c->server->polled = c;
        }
        return 0;
}

bool session_poll(struct session *c)
{
        uint64_t before = c->n_requests;

        read_packets(c);
        return c->state == SESSION_CLOSED || c->n_requests != before;
}

static int peer_tenant(struct session *c)
{
        struct ucred u;
        socklen_t n = sizeof u;
        gid_t *groups;
        size_t n_supplementary = 0;
        int r;

        if (getsockopt(c->fd, SOL_SOCKET, SO_PEERCRED, &u, &n) < 0)
                return -errno;
        c->pid = u.pid;
        c->uid = u.uid;
        c->privileged = u.uid == 0 || u.uid == geteuid();
        n = 0;
        if (getsockopt(c->fd, SOL_SOCKET, SO_PEERGROUPS, NULL, &n) < 0 && errno == ERANGE) {
                n_supplementary = n / sizeof *groups;
        }
        groups = malloc((n_supplementary + 1) * sizeof *groups);
        if (!groups)
                return KVT_E_NO_MEMORY;
        n = (socklen_t)(n_supplementary * sizeof *groups);
        if (n && getsockopt(c->fd, SOL_SOCKET, SO_PEERGROUPS, groups, &n) < 0)
                n_supplementary = 0;
        groups[n_supplementary] = u.gid; /* the primary group need not be among the others */
        r = tenant_of_peer(&c->server->engine.tenants, &c->server->conf, u.uid, groups, n_supplementary + 1, &c->tenant);
        free(groups);
        return r;
}

int session_new(struct server *s, int fd)
{
        struct session *c = new0(struct session, 1);
        const char *why = NULL;
        int r;

        if (!c)
                return -ENOMEM;
        c->server = s;
        c->fd = fd;
        c->version = KVT_PROTO_MAX;
        c->opened_usec = s->engine.now_usec;
        list_init(&c->link);
        list_init(&c->greet_link);
        list_init(&c->queue);
        list_init(&c->fds_link);
        list_init(&c->leases);
        list_init(&c->reservations);
        r = peer_tenant(c);
        if (r == 0) {
                if (s->n_sessions >= s->conf.p.max_sessions || c->tenant->n_sessions >= s->conf.p.max_sessions_tenant) {
                        r = KVT_E_LIMIT;
                        why = "too many connections";
                } else if (s->draining) {
                        r = KVT_E_DRAINING;
                        why = "shutting down";
                }
        } else {
                why = r == KVT_E_DENIED ? "this user has no tenant here" : "out of memory";
        }
        if (r == 0)
                r = sd_event_add_io(s->event, &c->source, fd, EPOLLIN, on_io, c);
        if (r != 0) {
                metrics.c_sessions_refused++;
                if (r > 0)
                        session_error(c, 0, r, why);
                log_limited(LOG_INFO, "Refused a connection of uid %u: %s", c->uid, r > 0 ? why : strerror(-r));
                close(fd);
                free(c);
                return 0;
        }
        c->id = ++s->last_session;
        s->engine.tenants.n_active += !c->tenant->n_sessions++;
        s->n_sessions++;
        metrics.c_sessions_opened++;
        list_append(&s->sessions, &c->link);
        list_append(&s->greeting, &c->greet_link);
        return 0;
}

void session_close(struct session *c, const char *why)
{
        struct server *s = c->server;

        if (c->state == SESSION_CLOSED || list_empty(&c->link))
                return;
        if (why) {
                metrics.c_sessions_broken++;
                log_limited(LOG_WARNING, "Closed the connection of '%s' (pid %d, uid %u): %s", c->name, c->pid, c->uid, why);
        }
        c->state = SESSION_CLOSED;
        if (s->polled == c)
                s->polled = NULL;
        s->more = true; /* there is a pass to come that frees it */
        c->source = sd_event_source_disable_unref(c->source);
        list_remove(&c->greet_link);
        list_remove(&c->fds_link);
}

void session_free(struct session *c)
{
        struct server *s = c->server;

        request_orphan(c);
        purge_orphan(c);
        event_end_all(c);
        lease_end_all(c);
        for (uint32_t w = 0; w < c->n_slab_words; w++)
                for (uint32_t i = w * 64; c->slabs[w]; i++)
                        session_remove_slab(c, i);
        for (uint32_t i = 0; i < c->n_spaces; i++) {
                struct space *sp = space_at(&s->engine.tenants, c->spaces[i]);
                sp->n_open--;
                sp->n_sessions--;
                engine_settle_space(&s->engine, sp);
        }
        staging_unref(c->staging);
        s->engine.tenants.n_active -= !--c->tenant->n_sessions;
        s->n_sessions--;
        while (!list_empty(&c->queue)) {
                struct packet *p = list_first(&c->queue, struct packet, link);
                list_remove(&p->link);
                free(p);
        }
        list_remove(&c->link);
        close(c->fd);
        free(c->parked);
        free(c->slabs);
        free(c->spaces);
        tenant_settle(&s->engine.tenants, c->tenant);
        free(c);
}

void session_retry(struct session *c)
{
        c->stuck = false;
        if (c->state != SESSION_CLOSED)
                flush_queue(c);
        if (c->state != SESSION_CLOSED)
                update_events(c);
}

void session_park(struct session *c, const uint8_t *bytes, size_t n, uint32_t slab)
{
        uint8_t *copy = malloc(n);

        if (!copy) {
                struct frame f;
                if (frame_parse(bytes, n, &f) == 0)
                        session_error(c, f.request_id, KVT_E_NO_MEMORY, NULL);
                return;
        }
        memcpy(copy, bytes, n);
        free(c->parked);
        c->parked = copy;
        c->n_parked = n;
        c->parked_slab = slab;
        update_events(c);
}

void session_unpark(struct server *s, uint32_t slab)
{
        list_for_each_safe (c, &s->sessions, struct session, link) {
                if (c->state == SESSION_CLOSED || !c->parked || c->parked_slab != slab)
                        continue;
                _cleanup_(freep) uint8_t *packet = TAKE_PTR(c->parked);
                update_events(c);
                request_handle(c, packet, c->n_parked); /* may park again, on another slab */
        }
}

bool session_may_send_fds(struct session *c)
{
        int unread = 0;

        if (c->fds_outstanding && c->fds_acked && ioctl(c->fd, SIOCOUTQ, &unread) == 0 && !unread)
                c->fds_outstanding = false;
        return !c->fds_outstanding;
}

bool session_has_slab(const struct session *c, uint32_t slab)
{
        return slab / 64 < c->n_slab_words && c->slabs[slab / 64] >> slab % 64 & 1;
}

bool session_add_slab(struct session *c, struct slab *slab)
{
        uint32_t need = slab->id / 64 + 1;

        if (need > c->n_slab_words) {
                uint64_t *grown = reallocarray(c->slabs, need, sizeof *grown);
                if (!grown)
                        return false;
                memset(grown + c->n_slab_words, 0, (need - c->n_slab_words) * sizeof *grown);
                c->slabs = grown;
                c->n_slab_words = need;
        }
        ASSERT(!session_has_slab(c, slab->id));
        c->slabs[slab->id / 64] |= 1ull << slab->id % 64;
        slab->n_holders++;
        return true;
}

void session_remove_slab(struct session *c, uint32_t slab)
{
        if (!session_has_slab(c, slab))
                return;
        c->slabs[slab / 64] &= ~(1ull << slab % 64);
        host_drop_holder(&c->server->engine.host, host_slab(&c->server->engine.host, slab));
}
