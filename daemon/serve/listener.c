/* The listening socket: made under a lock file, so that of two daemons on one path the second is refused and a stale socket is not. */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include "daemon/serve/session.h"
#include "daemon/util/clock.h"
#include "daemon/util/log.h"

enum { ACCEPTS_A_TURN = 16 };

static int on_connection(sd_event_source *source, int fd, uint32_t revents, void *arg)
{
        struct server *s = arg;

        engine_tick(&s->engine);
        for (int i = 0; i < ACCEPTS_A_TURN; i++) {
                int peer = accept4(fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
                if (peer < 0 && (errno == EMFILE || errno == ENFILE)) {
                        log_limited(LOG_WARNING, "Out of file descriptors: a connection is refused");
                        if (s->reserve_fd >= 0)
                                close(s->reserve_fd);
                        peer = accept4(fd, NULL, NULL, SOCK_CLOEXEC);
                        if (peer >= 0)
                                close(peer);
                        s->reserve_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
                        if (peer >= 0)
                                return 0;
                }
                if (peer < 0) {
                        if (errno != EAGAIN && errno != EINTR && errno != ECONNABORTED) {
                                /* the socket stays readable: wait a moment, or it would keep a CPU busy */
                                sd_event_source_set_enabled(s->listen_source, SD_EVENT_OFF);
                                s->retry_usec = s->engine.now_usec + 50000;
                        }
                        return 0;
                }
                int bytes = 1 << 20; /* room for several of the largest packets; the kernel may give less */
                setsockopt(peer, SOL_SOCKET, SO_SNDBUF, &bytes, sizeof bytes);
                if (session_new(s, peer) < 0)
                        close(peer);
        }
        return 0;
}

static int make_parent(const char *path)
{
        char dir[108];
        char *slash;

        snprintf(dir, sizeof dir, "%s", path);
        slash = strrchr(dir, '/');
        if (!slash || slash == dir)
                return 0;
        *slash = 0;
        if (mkdir(dir, getuid() == 0 ? 0755 : 0700) < 0 && errno != EEXIST)
                return -errno;
        return 0;
}

int listener_open(struct server *s)
{
        const char *path = s->conf.p.socket;
        struct sockaddr_un a = {.sun_family = AF_UNIX};
        char lock[128];
        int r, fd;

        if (strlen(path) >= sizeof a.sun_path || path[0] != '/') {
                log_error("socket: '%s' is no absolute path of at most %zu characters", path, sizeof a.sun_path - 1);
                return -EINVAL;
        }
        r = make_parent(path);
        if (r < 0)
                return log_errno(r, "Failed to make the folder of %s: %m", path);
        snprintf(lock, sizeof lock, "%s.lock", path);
        s->lock_fd = open(lock, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
        if (s->lock_fd < 0)
                return log_errno(-errno, "Failed to open %s: %m", lock);
        if (flock(s->lock_fd, LOCK_EX | LOCK_NB) < 0)
                return log_errno(-errno, "Another kvtierd serves %s: %m", path);
        fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        if (fd < 0)
                return log_errno(-errno, "Failed to make a socket: %m");
        struct stat st;
        if (lstat(path, &st) == 0) {
                if (!S_ISSOCK(st.st_mode)) {
                        log_error("%s exists and is no socket", path);
                        close(fd);
                        return -EEXIST;
                }
                unlink(path); /* we hold the lock: nobody serves it */
        }
        strcpy(a.sun_path, path);
        mode_t mask = umask(0777 & ~(mode_t)strtoul(s->conf.p.socket_mode, NULL, 8));
        r = bind(fd, (struct sockaddr *)&a, sizeof a) < 0 ? -errno : 0;
        umask(mask);
        if (r < 0) {
                close(fd);
                return log_errno(r, "Failed to bind %s: %m", path);
        }
        s->listen_fd = fd; /* from here on the path is ours to remove */
        if (listen(fd, 4096) < 0)
                return log_errno(-errno, "Failed to listen on %s: %m", path);
        s->reserve_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
        r = sd_event_add_io(s->event, &s->listen_source, fd, EPOLLIN, on_connection, s);
        return r < 0 ? log_errno(r, "Failed to watch %s: %m", path) : 0;
}

void listener_close(struct server *s)
{
        s->listen_source = sd_event_source_disable_unref(s->listen_source);
        if (s->listen_fd >= 0) {
                close(s->listen_fd);
                unlink(s->conf.p.socket);
        }
        s->listen_fd = -1;
}
