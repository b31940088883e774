/* The least that a request and its answer over a SEQPACKET socket can cost here: two processes, one send and one recv each. */
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include "tests/bench/common.h"

enum { PACKET_MAX = 128 * 1024 };
static uint8_t packet[PACKET_MAX];

static void take(int fd, size_t n, uint64_t poll_usec)
{
        uint64_t until = poll_usec ? now_nsec() + poll_usec * 1000 : 0;
        ssize_t k = -1;

        errno = EAGAIN;
        while (poll_usec && k < 0 && errno == EAGAIN && now_nsec() < until)
                k = recv(fd, packet, sizeof(packet), MSG_DONTWAIT);
        if (k < 0 && errno == EAGAIN)
                k = recv(fd, packet, sizeof(packet), 0);
        if (k != (ssize_t)n)
                die("ping-pong: packet of %zd bytes: %m", k);
}

static void give(int fd, size_t n)
{
        if (send(fd, packet, n, MSG_NOSIGNAL) != (ssize_t)n)
                die("ping-pong: %m");
}

void pingpong_start(struct pingpong *p, int cpu, size_t n_request, size_t n_reply, uint64_t poll_usec)
{
        int fds[2];

        if (n_request > PACKET_MAX || n_reply > PACKET_MAX || socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds) < 0)
                die("ping-pong: %m");
        *p = (struct pingpong){.fd = fds[0], .n_request = n_request, .n_reply = n_reply, .poll_usec = poll_usec};
        p->pid = child_fork(cpu);
        if (!p->pid)
                for (close(fds[0]);;) {
                        take(fds[1], n_request, poll_usec);
                        give(fds[1], n_reply);
                }
        close(fds[1]);
}

void pingpong_once(struct pingpong *p)
{
        give(p->fd, p->n_request);
        take(p->fd, p->n_reply, p->poll_usec);
}

void pingpong_stop(struct pingpong *p)
{
        child_end(p->pid, SIGKILL);
        close(p->fd);
}
