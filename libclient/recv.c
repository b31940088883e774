/* What comes in: one packet at a time, read by the leader, checked, and handed to whom it concerns. A daemon that sends what it may not
 * send loses its connection, never more. Under the lock, except for the system call. */
#include <assert.h>
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "libclient/async.h"
#include "libclient/slab.h"

static void rx_close_fds(kvt *c)
{
        for (uint32_t i = 0; i < c->n_rx_fds; i++)
                if (c->rx_fds[i] >= 0)
                        close(c->rx_fds[i]);
        c->n_rx_fds = 0;
}

static int rx_take_fds(kvt *c, struct msghdr *m)
{
        int r = m->msg_flags & (MSG_TRUNC | MSG_CTRUNC) ? -1 : 0;

        c->n_rx_fds = 0;
        for (struct cmsghdr *h = CMSG_FIRSTHDR(m); h; h = CMSG_NXTHDR(m, h)) {
                size_t n;

                if (h->cmsg_level != SOL_SOCKET || h->cmsg_type != SCM_RIGHTS)
                        continue;
                n = (h->cmsg_len - CMSG_LEN(0)) / sizeof(int);
                assert(c->n_rx_fds + n <= KVT_FDS_MAX); /* there was no room for more */
                memcpy(c->rx_fds + c->n_rx_fds, CMSG_DATA(h), n * sizeof(int));
                c->n_rx_fds += (uint32_t)n;
        }
        return r;
}

static int rx_dispatch(kvt *c, size_t n)
{
        const uint8_t *body = c->rx + KVT_FRAME_BYTES;
        struct frame f;

        if (frame_parse(c->rx, n, &f) < 0 || f.version != c->version)
                return -1;
        if (c->n_rx_fds && f.type != (KVT_MSG_MAP | KVT_REPLY) && f.type != (KVT_MSG_STAGING_OPEN | KVT_REPLY))
                return -1;
        switch (f.type) {
        case KVT_MSG_EVENT:
                return f.request_id ? -1 : event_on_message(c, body, f.body_bytes);
        case KVT_MSG_SLAB_RETIRED:
                return f.request_id ? -1 : slab_on_retired(c, body, f.body_bytes);
        default:
                return request_on_reply(c, &f, body);
        }
}

/* As long as the socket may stay silent. The receive timeout of the socket covers the usual case without a further system call. */
static ssize_t rx_wait(int fd, struct msghdr *m, bool backlog, uint64_t busy_poll_usec, uint64_t deadline_usec)
{
        uint64_t now = now_usec(), spin_until = busy_poll_usec ? now + busy_poll_usec : 0;
        uint64_t left = deadline_usec > now ? deadline_usec - now : 0;
        ssize_t n;

        while (spin_until && now < spin_until && now < deadline_usec) {
                n = recvmsg(fd, m, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
                if (n >= 0 || errno != EAGAIN)
                        return n;
                now = now_usec();
        }
        if (backlog || left < RX_TICK_USEC) {
                struct pollfd p = {.fd = fd, .events = (short)(POLLIN | (backlog ? POLLOUT : 0))};
                struct timespec t = {.tv_sec = (time_t)(left / 1000000), .tv_nsec = (long)(left % 1000000 * 1000)};

                if (left > RX_TICK_USEC)
                        t = (struct timespec){.tv_nsec = RX_TICK_USEC * 1000};
                if (ppoll(&p, 1, &t, NULL) < 0)
                        return -1;
                return recvmsg(fd, m, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
        }
        return recvmsg(fd, m, MSG_CMSG_CLOEXEC);
}

bool rx_once(kvt *c, bool wait, uint64_t deadline_usec)
{
        union {
                struct cmsghdr align;
                char bytes[CMSG_SPACE(KVT_FDS_MAX * sizeof(int))];
        } control;
        struct iovec v = {.iov_base = c->rx, .iov_len = sizeof(c->rx)};
        struct msghdr m = {.msg_iov = &v, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control)};
        int fd = c->fd, error;
        ssize_t n;

        assert(!c->reading && fd >= 0);
        if (c->backlog)
                tx_flush(c);
        if (c->fd < 0)
                return true;
        if (wait) {
                bool backlog = c->backlog;

                c->reading = true;
                pthread_mutex_unlock(&c->lock);
                n = rx_wait(fd, &m, backlog, c->busy_poll_usec, deadline_usec);
                error = errno;
                pthread_mutex_lock(&c->lock);
                c->reading = false;
        } else {
                n = recvmsg(fd, &m, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
                error = errno;
        }

        if (n < 0) {
                if (c->broken)
                        conn_close_broken(c);
                else if (error != EAGAIN && error != EINTR)
                        conn_lost(c);
                return false;
        }
        if (rx_take_fds(c, &m) < 0 || n == 0 || c->broken || rx_dispatch(c, (size_t)n) < 0) {
                rx_close_fds(c);
                if (!c->broken)
                        conn_lost(c);
                if (c->broken)
                        conn_close_broken(c);
        } else
                rx_close_fds(c);
        return true;
}
