/* A new session: connect, hello, and what the connection had open before: spaces and event subscriptions.
 *
 * Runs without the lock, on a descriptor that nobody else knows yet, in the one thread that set c->connecting; spaces cannot be closed
 * meanwhile. Messages that the daemon sends of its own accord (events) are left out here: n_lost says so later. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "libclient/async.h"

enum { BODY_MAX = KVT_PACKET_MAX - KVT_FRAME_BYTES };

static int setup_timeouts(int fd, uint64_t usec, int option)
{
        struct timeval t = {.tv_sec = (time_t)(usec / 1000000), .tv_usec = (suseconds_t)(usec % 1000000)};

        return setsockopt(fd, SOL_SOCKET, option, &t, sizeof(t));
}

static int setup_connect(const char *path, uint64_t deadline_usec, int *ret_fd)
{
        struct sockaddr_un a = {.sun_family = AF_UNIX};
        uint64_t now = now_usec();
        int fd, r = 0;

        if (strlen(path) >= sizeof(a.sun_path))
                return -ENAMETOOLONG;
        strcpy(a.sun_path, path);
        fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
        if (fd < 0)
                return -errno;
        /* connect() waits while the listener's queue is full */
        if (setup_timeouts(fd, deadline_usec > now ? deadline_usec - now : 1, SO_SNDTIMEO) < 0 ||
            setup_timeouts(fd, RX_TICK_USEC, SO_RCVTIMEO) < 0 || connect(fd, (struct sockaddr *)&a, sizeof(a)) < 0)
                r = -errno;
        if (r) {
                close(fd);
                switch (-r) {
                case ECONNREFUSED:
                case ENOENT:
                case ENOTDIR:
                case EPROTOTYPE:
                case EINTR:
                        return KVT_E_DISCONNECTED;
                case EAGAIN:
                        return KVT_E_TIMEOUT;
                case EACCES:
                case EPERM:
                        return KVT_E_DENIED;
                default:
                        return r;
                }
        }
        *ret_fd = fd;
        return 0;
}

/* One request and its reply. buffer: KVT_PACKET_MAX bytes, with the request's body in place, and the reply's after it. */
static int setup_roundtrip(int fd, uint8_t *buffer, uint8_t version, uint16_t type, size_t body_bytes, uint64_t deadline_usec,
                           size_t *ret_n)
{
        struct frame f;
        ssize_t n;

        frame_put(buffer, version, type, 1, (uint32_t)body_bytes);
        /* A daemon that refuses the connection says why and hangs up: that answer is there even if nothing can be sent any more. */
        if (send(fd, buffer, KVT_FRAME_BYTES + body_bytes, MSG_NOSIGNAL) < 0 && errno != EPIPE && errno != ECONNRESET)
                return errno == EAGAIN ? KVT_E_TIMEOUT : KVT_E_DISCONNECTED;
        for (;;) {
                n = recv(fd, buffer, KVT_PACKET_MAX, 0); /* without room for descriptors: the kernel closes any */
                if (n < 0 && errno == ECONNRESET) /* said once, before what is queued */
                        n = recv(fd, buffer, KVT_PACKET_MAX, 0);
                if (n < 0 && (errno == EAGAIN || errno == EINTR)) {
                        if (now_usec() >= deadline_usec)
                                return KVT_E_TIMEOUT;
                        continue;
                }
                if (n <= 0 || frame_parse(buffer, (size_t)n, &f) < 0)
                        return KVT_E_DISCONNECTED;
                if (f.type == KVT_MSG_EVENT || f.type == KVT_MSG_SLAB_RETIRED)
                        continue;
                break;
        }
        if (f.type == KVT_MSG_ERROR) {
                Kvtier__Error *e = kvtier__error__unpack(NULL, f.body_bytes, buffer + KVT_FRAME_BYTES);
                int r = e && e->code && e->code <= UINT8_MAX ? (int)e->code : KVT_E_DISCONNECTED;

                if (e)
                        kvtier__error__free_unpacked(e, NULL);
                return r;
        }
        if (f.type != (type | KVT_REPLY) || f.request_id != 1)
                return KVT_E_DISCONNECTED;
        *ret_n = f.body_bytes;
        return 0;
}

static int setup_hello(kvt *c, int fd, uint8_t *buffer, uint64_t deadline_usec, Kvtier__HelloReply **ret)
{
        Kvtier__HelloRequest hello = KVTIER__HELLO_REQUEST__INIT;
        Kvtier__HelloReply *reply;
        size_t n;
        int r;

        hello.version_min = KVT_PROTO_MIN;
        hello.version_max = KVT_PROTO_MAX;
        hello.library = (char *)kvt_version();
        hello.name = c->name;
        n = kvtier__hello_request__pack(&hello, buffer + KVT_FRAME_BYTES);
        r = setup_roundtrip(fd, buffer, KVT_PROTO_MAX, KVT_MSG_HELLO, n, deadline_usec, &n);
        if (r)
                return r;
        reply = kvtier__hello_reply__unpack(NULL, n, buffer + KVT_FRAME_BYTES);
        if (!reply)
                return KVT_E_DISCONNECTED;
        if (reply->version < KVT_PROTO_MIN || reply->version > KVT_PROTO_MAX)
                r = KVT_E_VERSION;
        else if (reply->boot_token.len != sizeof(c->boot_token))
                r = KVT_E_DISCONNECTED;
        if (r)
                kvtier__hello_reply__free_unpacked(reply, NULL);
        else
                *ret = reply;
        return r;
}

size_t space_pack(const kvt_space *s, uint8_t *body)
{
        Kvtier__SpaceOpenRequest m = KVTIER__SPACE_OPEN_REQUEST__INIT;
        Kvtier__Plane planes[KVT_PLANES_MAX], *pointers[KVT_PLANES_MAX];

        for (uint32_t i = 0; i < s->geometry.n_planes; i++) {
                const kvt_plane *p = &s->geometry.planes[i];

                kvtier__plane__init(&planes[i]);
                planes[i].layer = p->layer;
                planes[i].role = p->role;
                planes[i].dtype = p->dtype;
                planes[i].heads = p->heads;
                planes[i].dim = p->dim;
                planes[i].opaque_bytes = p->opaque_bytes;
                planes[i].window_tokens = p->window_tokens;
                pointers[i] = &planes[i];
        }
        m.name = s->name;
        m.salt = (ProtobufCBinaryData){.len = s->salt_bytes, .data = (uint8_t *)s->salt};
        m.block_tokens = s->geometry.block_tokens;
        m.n_shards = s->geometry.n_shards;
        m.n_planes = s->geometry.n_planes;
        m.planes = pointers;
        m.max_rel_l2 = s->max_rel_l2;
        static_assert(KVT_PLANES_MAX * (7 * 6 + 4) + 1024 < BODY_MAX, "the largest geometry fits in a packet");
        return kvtier__space_open_request__pack(&m, body);
}

/* Fills handle or error of what it opened; KVT_E_DISCONNECTED and KVT_E_TIMEOUT end the attempt. */
static int setup_space(int fd, uint8_t *buffer, uint8_t version, uint64_t deadline_usec, const kvt_space *s, struct setup_space *ret)
{
        Kvtier__SpaceOpenReply *reply;
        size_t n;
        int r;

        if (s->attached) {
                ret->error = KVT_E_RESTARTED;
                return 0;
        }
        n = space_pack(s, buffer + KVT_FRAME_BYTES);
        r = setup_roundtrip(fd, buffer, version, KVT_MSG_SPACE_OPEN, n, deadline_usec, &n);
        if (r == KVT_E_DISCONNECTED || r == KVT_E_TIMEOUT)
                return r;
        if (r) {
                ret->error = r;
                return 0;
        }
        reply = kvtier__space_open_reply__unpack(NULL, n, buffer + KVT_FRAME_BYTES);
        if (!reply || reply->part_bytes != s->geometry.part_bytes)
                r = KVT_E_DISCONNECTED;
        else
                ret->handle = reply->space;
        if (reply)
                kvtier__space_open_reply__free_unpacked(reply, NULL);
        if (!r && ret->events) {
                Kvtier__EventsRequest m = KVTIER__EVENTS_REQUEST__INIT;

                m.space = ret->handle;
                m.on = true;
                n = kvtier__events_request__pack(&m, buffer + KVT_FRAME_BYTES);
                r = setup_roundtrip(fd, buffer, version, KVT_MSG_EVENTS, n, deadline_usec, &n);
                if (r && r != KVT_E_DISCONNECTED && r != KVT_E_TIMEOUT)
                        r = 0;
        }
        return r;
}

int conn_setup(kvt *c, uint64_t deadline_usec, struct setup *ret)
{
        uint8_t *buffer = malloc(KVT_PACKET_MAX);
        Kvtier__HelloReply *hello = NULL;
        int r, fd = -1;

        if (!buffer)
                return KVT_E_NO_MEMORY;
        r = setup_connect(c->path, deadline_usec, &fd);
        if (!r)
                r = setup_hello(c, fd, buffer, deadline_usec, &hello);
        for (size_t i = 0; !r && i < ret->n_spaces; i++)
                r = setup_space(fd, buffer, (uint8_t)hello->version, deadline_usec, ret->spaces[i].space, &ret->spaces[i]);
        free(buffer);
        if (r) {
                if (hello)
                        kvtier__hello_reply__free_unpacked(hello, NULL);
                if (fd >= 0)
                        close(fd);
                return r;
        }
        ret->fd = fd;
        ret->hello = hello;
        return 0;
}
