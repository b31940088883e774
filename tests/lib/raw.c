#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "tests/lib/pattern.h"
#include "tests/lib/raw.h"

void raw_open(struct raw *r, const char *path)
{
        struct sockaddr_un a = {.sun_family = AF_UNIX};

        *r = (struct raw){.version = KVT_PROTO_MAX, .n = -1, .staging_fd = -1};
        CHECK(strlen(path) < sizeof(a.sun_path));
        strcpy(a.sun_path, path);
        r->fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
        CHECK(r->fd >= 0);
        if (connect(r->fd, (struct sockaddr *)&a, sizeof(a)) < 0)
                check_failed(__FILE__, __LINE__, "connect: %s", strerror(errno));
}

static void close_fds(struct raw *r)
{
        for (size_t i = 0; i < r->n_fds; i++)
                close(r->fds[i]);
        r->n_fds = 0;
}

void raw_close(struct raw *r)
{
        close_fds(r);
        if (r->staging)
                munmap(r->staging, r->staging_bytes);
        if (r->staging_fd >= 0)
                close(r->staging_fd);
        if (r->fd >= 0)
                close(r->fd);
        r->fd = r->staging_fd = -1;
        r->staging = NULL;
}

void raw_leave(struct raw *r)
{
        shutdown(r->fd, SHUT_WR);
        while (raw_recv(r, RAW_TIMEOUT_MSEC) == RAW_PACKET)
                ;
        raw_close(r);
}

void raw_hello(struct raw *r)
{
        Kvtier__HelloRequest q = KVTIER__HELLO_REQUEST__INIT;

        q.version_min = KVT_PROTO_MIN;
        q.version_max = KVT_PROTO_MAX;
        q.library = (char *)"test";
        q.name = (char *)"raw";
        Kvtier__HelloReply *m = raw_call(r, KVT_MSG_HELLO, &q, &kvtier__hello_reply__descriptor);
        if (!m) {
                check_failed(__FILE__, __LINE__, "hello: %s %s", kvt_error_name(r->error), r->error_text);
                return;
        }
        CHECK_EQ(m->version, KVT_PROTO_MAX);
        CHECK_EQ(m->boot_token.len, 16);
        protobuf_c_message_free_unpacked(&m->base, NULL);
}

int raw_send_bytes(struct raw *r, const void *bytes, size_t n, const int *fds, size_t n_fds)
{
        union {
                struct cmsghdr align;
                char bytes[CMSG_SPACE(sizeof(int) * RAW_FDS_MAX)];
        } control;
        struct iovec iov = {(void *)bytes, n};
        struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1};

        if (n_fds) {
                m.msg_control = control.bytes;
                m.msg_controllen = CMSG_SPACE(sizeof(int) * n_fds);
                struct cmsghdr *h = CMSG_FIRSTHDR(&m);
                h->cmsg_level = SOL_SOCKET;
                h->cmsg_type = SCM_RIGHTS;
                h->cmsg_len = CMSG_LEN(sizeof(int) * n_fds);
                memcpy(CMSG_DATA(h), fds, sizeof(int) * n_fds);
        }
        return sendmsg(r->fd, &m, MSG_NOSIGNAL) < 0 ? -errno : 0;
}

int raw_send_body(struct raw *r, uint16_t type, uint32_t id, const void *body, size_t n)
{
        static __thread uint8_t packet[2 * KVT_PACKET_MAX];

        CHECK(n <= sizeof(packet) - KVT_FRAME_BYTES);
        frame_put(packet, r->version, type, id, (uint32_t)n);
        if (n)
                memcpy(packet + KVT_FRAME_BYTES, body, n);
        return raw_send_bytes(r, packet, KVT_FRAME_BYTES + n, NULL, 0);
}

int raw_send(struct raw *r, uint16_t type, uint32_t id, const void *message)
{
        static __thread uint8_t body[2 * KVT_PACKET_MAX];
        size_t n = protobuf_c_message_get_packed_size(message);

        CHECK(n <= sizeof(body));
        protobuf_c_message_pack(message, body);
        return raw_send_body(r, type, id, body, n);
}

enum raw_got raw_recv(struct raw *r, int timeout_msec)
{
        union {
                struct cmsghdr align;
                char bytes[CMSG_SPACE(sizeof(int) * RAW_FDS_MAX)];
        } control;
        struct iovec iov = {r->buf, sizeof(r->buf)};
        struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control.bytes, .msg_controllen = sizeof(control.bytes)};
        struct pollfd p = {.fd = r->fd, .events = POLLIN};

        close_fds(r);
        r->n = -1;
        r->error = 0;
        if (poll(&p, 1, timeout_msec) == 0)
                return RAW_NOTHING;
        r->n = recvmsg(r->fd, &m, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
        if (r->n <= 0)
                return RAW_CLOSED;
        for (struct cmsghdr *h = CMSG_FIRSTHDR(&m); h; h = CMSG_NXTHDR(&m, h))
                if (h->cmsg_level == SOL_SOCKET && h->cmsg_type == SCM_RIGHTS) {
                        size_t n = (h->cmsg_len - CMSG_LEN(0)) / sizeof(int);
                        memcpy(r->fds + r->n_fds, CMSG_DATA(h), n * sizeof(int));
                        r->n_fds += n;
                }
        CHECK_EQ(frame_parse(r->buf, (size_t)r->n, &r->f), 0); /* whatever we sent, what the daemon sends is well formed */
        if (r->f.type == KVT_MSG_ERROR) {
                Kvtier__Error *e = (Kvtier__Error *)raw_unpack(r, &kvtier__error__descriptor);
                CHECK(e);
                r->error = (int)e->code;
                snprintf(r->error_text, sizeof(r->error_text), "%s", e->text);
                protobuf_c_message_free_unpacked(&e->base, NULL);
        }
        return RAW_PACKET;
}

void raw_expect_error(struct raw *r, uint32_t id, int code)
{
        CHECK_EQ(raw_recv(r, RAW_TIMEOUT_MSEC), RAW_PACKET);
        CHECK_EQ(r->f.type, KVT_MSG_ERROR);
        CHECK_IS(r->error, code);
        CHECK_EQ(r->f.request_id, id);
        CHECK_EQ(r->n_fds, 0);
}

void raw_expect_closed(struct raw *r)
{
        CHECK_EQ(raw_recv(r, RAW_TIMEOUT_MSEC), RAW_CLOSED);
}

ProtobufCMessage *raw_unpack(struct raw *r, const ProtobufCMessageDescriptor *type)
{
        return protobuf_c_message_unpack(type, NULL, r->f.body_bytes, r->buf + KVT_FRAME_BYTES);
}

void *raw_call(struct raw *r, uint16_t type, const void *message, const ProtobufCMessageDescriptor *reply)
{
        uint32_t id = ++r->last_id;

        r->error = KVT_E_DISCONNECTED;
        if (raw_send(r, type, id, message) < 0)
                return NULL;
        for (;;) {
                enum raw_got got = raw_recv(r, RAW_TIMEOUT_MSEC * CHECK_SLOW);
                if (got == RAW_CLOSED) {
                        r->error = KVT_E_DISCONNECTED;
                        return NULL;
                }
                CHECK_EQ(got, RAW_PACKET);
                if (r->f.type == KVT_MSG_EVENT || r->f.type == KVT_MSG_SLAB_RETIRED)
                        continue;
                CHECK_EQ(r->f.request_id, id);
                if (r->f.type == KVT_MSG_ERROR)
                        return NULL;
                CHECK_EQ(r->f.type, type | KVT_REPLY);
                void *m = raw_unpack(r, reply);
                CHECK(m);
                return m;
        }
}

int raw_status(struct raw *r, uint16_t type, const void *message)
{
        uint32_t id = ++r->last_id;

        if (raw_send(r, type, id, message) < 0)
                return KVT_E_DISCONNECTED;
        for (;;) {
                enum raw_got got = raw_recv(r, RAW_TIMEOUT_MSEC * CHECK_SLOW);
                if (got == RAW_CLOSED)
                        return KVT_E_DISCONNECTED;
                CHECK_EQ(got, RAW_PACKET);
                if (r->f.request_id == id)
                        return r->error;
        }
}

bool raw_alive(struct raw *r)
{
        Kvtier__PingRequest q = KVTIER__PING_REQUEST__INIT;

        q.data = (ProtobufCBinaryData){3, (uint8_t *)"abc"};
        Kvtier__PingReply *m = raw_call(r, KVT_MSG_PING, &q, &kvtier__ping_reply__descriptor);
        bool yes = m && m->data.len == 3 && !memcmp(m->data.data, "abc", 3);
        if (m)
                protobuf_c_message_free_unpacked(&m->base, NULL);
        return yes;
}

uint32_t raw_space(struct raw *r, const char *name, size_t part_bytes, uint32_t n_shards)
{
        Kvtier__SpaceOpenRequest q = KVTIER__SPACE_OPEN_REQUEST__INIT;
        Kvtier__Plane planes[PATTERN_PLANES], *pp[PATTERN_PLANES];
        kvt_plane shape[PATTERN_PLANES];

        pattern_planes(shape, part_bytes);
        for (int i = 0; i < PATTERN_PLANES; i++) {
                kvtier__plane__init(&planes[i]);
                planes[i].layer = shape[i].layer;
                planes[i].role = shape[i].role;
                planes[i].dtype = shape[i].dtype;
                planes[i].heads = shape[i].heads;
                planes[i].opaque_bytes = shape[i].opaque_bytes;
                pp[i] = &planes[i];
        }
        q.name = (char *)name;
        q.block_tokens = PATTERN_TOKENS;
        q.n_shards = n_shards;
        q.planes = pp;
        q.n_planes = PATTERN_PLANES;
        Kvtier__SpaceOpenReply *m = raw_call(r, KVT_MSG_SPACE_OPEN, &q, &kvtier__space_open_reply__descriptor);
        if (!m)
                return 0;
        uint32_t space = m->space;
        CHECK_EQ(m->part_bytes, part_bytes);
        protobuf_c_message_free_unpacked(&m->base, NULL);
        return space;
}

void raw_staging(struct raw *r, uint64_t bytes)
{
        Kvtier__StagingOpenRequest q = KVTIER__STAGING_OPEN_REQUEST__INIT;

        q.bytes = bytes;
        Kvtier__StagingOpenReply *m = raw_call(r, KVT_MSG_STAGING_OPEN, &q, &kvtier__staging_open_reply__descriptor);
        if (!m) {
                check_failed(__FILE__, __LINE__, "staging: %s", kvt_error_name(r->error));
                return;
        }
        CHECK_EQ(r->n_fds, 1);
        r->staging_fd = r->fds[0];
        r->n_fds = 0;
        r->staging_bytes = m->bytes;
        r->staging = mmap(NULL, m->bytes, PROT_READ | PROT_WRITE, MAP_SHARED, r->staging_fd, 0);
        CHECK(r->staging != MAP_FAILED);
        protobuf_c_message_free_unpacked(&m->base, NULL);
        raw_ack_fds(r);
}

int raw_put(struct raw *r, uint32_t space, uint32_t shard, const kvt_key *parent, const kvt_key *keys, size_t n, size_t part_bytes,
            uint8_t *statuses)
{
        Kvtier__PutCommitRequest q = KVTIER__PUT_COMMIT_REQUEST__INIT;
        uint64_t offsets[KVT_KEYS_MAX];

        for (size_t i = 0; i < n; i++)
                offsets[i] = i * part_bytes;
        q.space = space;
        q.shard = shard;
        if (parent)
                q.parent = (ProtobufCBinaryData){16, (uint8_t *)parent->bytes};
        q.keys = (ProtobufCBinaryData){16 * n, (uint8_t *)keys->bytes};
        q.offsets = (ProtobufCBinaryData){8 * n, (uint8_t *)offsets};
        Kvtier__PutCommitReply *m = raw_call(r, KVT_MSG_PUT_COMMIT, &q, &kvtier__put_commit_reply__descriptor);
        if (!m)
                return r->error;
        CHECK_EQ(m->statuses.len, n);
        if (statuses)
                memcpy(statuses, m->statuses.data, n);
        protobuf_c_message_free_unpacked(&m->base, NULL);
        return 0;
}

void raw_put_send(struct raw *r, uint32_t id, uint32_t space, const kvt_key *parent, const kvt_key *keys, size_t n)
{
        Kvtier__PutCommitRequest q = KVTIER__PUT_COMMIT_REQUEST__INIT;
        static const uint64_t zeros[KVT_KEYS_MAX];

        q.space = space;
        if (parent)
                q.parent = (ProtobufCBinaryData){16, (uint8_t *)parent->bytes};
        q.keys = (ProtobufCBinaryData){16 * n, (uint8_t *)keys->bytes};
        q.offsets = (ProtobufCBinaryData){8 * n, (uint8_t *)zeros};
        CHECK_EQ(raw_send(r, KVT_MSG_PUT_COMMIT, id, &q), 0);
}

static size_t put_reply(struct raw *r, uint32_t id, uint8_t *ret, size_t cap)
{
        CHECK_EQ(r->f.type, KVT_MSG_PUT_COMMIT | KVT_REPLY);
        CHECK_EQ(r->f.request_id, id);
        Kvtier__PutCommitReply *m = (Kvtier__PutCommitReply *)raw_unpack(r, &kvtier__put_commit_reply__descriptor);
        CHECK(m && m->statuses.len <= cap);
        size_t n = m->statuses.len;
        memcpy(ret, m->statuses.data, n);
        protobuf_c_message_free_unpacked(&m->base, NULL);
        return n;
}

void raw_put_take(struct raw *r, uint32_t id, size_t n, uint8_t *ret)
{
        if (r->n_early) {
                CHECK_EQ(r->n_early, n);
                memcpy(ret, r->early, n);
                r->n_early = 0;
                return;
        }
        CHECK_EQ(raw_recv(r, RAW_TIMEOUT_MSEC * CHECK_SLOW), RAW_PACKET);
        CHECK_EQ(put_reply(r, id, ret, n), n);
}

bool raw_put_under_way(struct raw *r, uint32_t id)
{
        Kvtier__PingRequest q = KVTIER__PING_REQUEST__INIT;

        CHECK_EQ(raw_send(r, KVT_MSG_PING, UINT32_MAX, &q), 0); /* one session's packets are taken in one after another */
        for (;;) {
                CHECK_EQ(raw_recv(r, RAW_TIMEOUT_MSEC * CHECK_SLOW), RAW_PACKET);
                if (r->f.type == (KVT_MSG_PING | KVT_REPLY))
                        return !r->n_early;
                r->n_early = put_reply(r, id, r->early, sizeof(r->early));
        }
}

int raw_put_begin(struct raw *r, uint32_t space, const kvt_key *keys, size_t n, struct kvt_put_entry *ret)
{
        Kvtier__PutBeginRequest q = KVTIER__PUT_BEGIN_REQUEST__INIT;

        q.space = space;
        q.keys = (ProtobufCBinaryData){16 * n, (uint8_t *)keys->bytes};
        Kvtier__PutBeginReply *m = raw_call(r, KVT_MSG_PUT_BEGIN, &q, &kvtier__put_begin_reply__descriptor);
        if (!m)
                return r->error;
        CHECK_EQ(m->entries.len, n * sizeof(*ret));
        memcpy(ret, m->entries.data, m->entries.len);
        protobuf_c_message_free_unpacked(&m->base, NULL);
        return 0;
}

int raw_put_commit(struct raw *r, uint32_t space, const struct kvt_put_entry *e, size_t n, uint64_t stride, uint8_t *ret)
{
        Kvtier__PutCommitRequest q = KVTIER__PUT_COMMIT_REQUEST__INIT;
        uint64_t ids[64], offsets[64];

        CHECK(n <= 64);
        for (size_t i = 0; i < n; i++) {
                ids[i] = e[i].reservation;
                offsets[i] = i * stride;
        }
        q.space = space;
        q.reservations = (ProtobufCBinaryData){8 * n, (uint8_t *)ids};
        q.offsets = (ProtobufCBinaryData){8 * n, (uint8_t *)offsets};
        Kvtier__PutCommitReply *m = raw_call(r, KVT_MSG_PUT_COMMIT, &q, &kvtier__put_commit_reply__descriptor);
        if (!m)
                return r->error;
        CHECK_EQ(m->statuses.len, n);
        memcpy(ret, m->statuses.data, n);
        protobuf_c_message_free_unpacked(&m->base, NULL);
        return 0;
}

int raw_map(struct raw *r, uint32_t space, uint32_t shard, const kvt_key *keys, size_t n, struct kvt_map_entry *entries)
{
        Kvtier__MapRequest q = KVTIER__MAP_REQUEST__INIT;

        q.space = space;
        q.shard = shard;
        q.keys = (ProtobufCBinaryData){16 * n, (uint8_t *)keys->bytes};
        Kvtier__MapReply *m = raw_call(r, KVT_MSG_MAP, &q, &kvtier__map_reply__descriptor);
        if (!m)
                return r->error;
        CHECK_EQ(m->entries.len, n * sizeof(*entries));
        CHECK_EQ(m->slabs.len, r->n_fds * sizeof(struct kvt_map_slab));
        memcpy(entries, m->entries.data, m->entries.len);
        protobuf_c_message_free_unpacked(&m->base, NULL);
        return 0;
}

int raw_match(struct raw *r, uint32_t space, const kvt_key *keys, size_t n, uint32_t *ret_n, uint32_t *ret_stop)
{
        Kvtier__MatchRequest q = KVTIER__MATCH_REQUEST__INIT;

        q.space = space;
        q.keys = (ProtobufCBinaryData){16 * n, (uint8_t *)keys->bytes};
        Kvtier__MatchReply *m = raw_call(r, KVT_MSG_MATCH, &q, &kvtier__match_reply__descriptor);
        if (!m)
                return r->error;
        *ret_n = m->n_blocks;
        *ret_stop = m->stop;
        protobuf_c_message_free_unpacked(&m->base, NULL);
        return 0;
}

void raw_ack_fds(struct raw *r)
{
        CHECK_EQ(raw_send_body(r, KVT_MSG_FD_ACK, 0, NULL, 0), 0);
}
