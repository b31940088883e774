/* For event loops: an epoll descriptor over the socket, and an eventfd for operations that became ready in calls that do not run them. */
#include <errno.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "libclient/async.h"

void poll_attach(kvt *c)
{
        struct epoll_event e = {.events = EPOLLIN | EPOLLRDHUP};

        c->epoll_writes = false;
        if (c->epoll_fd >= 0 && c->fd >= 0)
                epoll_ctl(c->epoll_fd, EPOLL_CTL_ADD, c->fd, &e);
}

void poll_writes(kvt *c, bool on)
{
        struct epoll_event e = {.events = EPOLLIN | EPOLLRDHUP | (on ? EPOLLOUT : 0)};

        if (c->epoll_fd >= 0 && c->fd >= 0 && c->epoll_writes != on) {
                epoll_ctl(c->epoll_fd, EPOLL_CTL_MOD, c->fd, &e);
                c->epoll_writes = on;
        }
}

void poll_signal(kvt *c)
{
        if (c->event_fd >= 0 && !c->event_set)
                c->event_set = !eventfd_write(c->event_fd, 1);
}

void poll_clear(kvt *c)
{
        eventfd_t n;

        if (c->event_set)
                c->event_set = eventfd_read(c->event_fd, &n) < 0;
}

int kvt_fd(kvt *c)
{
        struct epoll_event e = {.events = EPOLLIN};
        int r = conn_check(c);

        if (r)
                return r == KVT_E_FORKED ? -EPERM : -EINVAL;
        pthread_mutex_lock(&c->lock);
        if (c->epoll_fd < 0) {
                c->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
                c->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
                if (c->epoll_fd < 0 || c->event_fd < 0 || epoll_ctl(c->epoll_fd, EPOLL_CTL_ADD, c->event_fd, &e) < 0) {
                        r = -errno;
                        if (c->epoll_fd >= 0)
                                close(c->epoll_fd);
                        if (c->event_fd >= 0)
                                close(c->event_fd);
                        c->epoll_fd = c->event_fd = -1;
                } else {
                        poll_attach(c);
                        if (c->backlog)
                                poll_writes(c, true);
                        if (c->ready.head || c->events)
                                poll_signal(c);
                }
        }
        if (!r)
                r = c->epoll_fd;
        pthread_mutex_unlock(&c->lock);
        return r;
}

int kvt_process(kvt *c)
{
        int r = conn_check(c);

        if (r)
                return r;
        pthread_mutex_lock(&c->lock);
        if (c->fd < 0)
                r = conn_ensure(c, now_usec() + CONNECT_USEC) ? KVT_E_DISCONNECTED : 0;
        else {
                release_flush(c);
                tx_flush(c);
                while (c->fd >= 0 && !c->broken && !c->reading && rx_once(c, false, 0))
                        ;
                if (c->fd < 0 || c->broken)
                        r = KVT_E_DISCONNECTED;
        }
        op_run_ready(c);
        pthread_mutex_unlock(&c->lock);
        return r;
}

int kvt_flush(kvt *c)
{
        int r = conn_check(c);

        if (r)
                return r;
        pthread_mutex_lock(&c->lock);
        release_flush(c);
        tx_flush(c);
        pthread_mutex_unlock(&c->lock);
        return 0;
}
