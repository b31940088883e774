/* A daemon made of one thread, for tests of the library: it answers rightly, or in the one wrong way that a test asks for.
 *
 * It keeps one space of two planes, up to FAKE_BLOCKS blocks under keys whose first byte is their number, in slabs of one slot each
 * (so that every block brings a descriptor of its own), and counts what it was sent. */
#pragma once

#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "libclient/codec/geometry.h"
#include "libclient/codec/hash.h"
#include "proto/frame.h"
#include "proto/messages.h"
#include "proto/shm.h"

enum {
        FAKE_BLOCKS = 40,
        FAKE_CONNS = 8,
        FAKE_TOKENS = 16,
        FAKE_PART = 2 * 4 * 16 * 64 * 2,
        FAKE_STAGING = 16 * FAKE_PART,
        FAKE_GENERATION = 1000,
};

enum fake_wrong {
        FAKE_RIGHT,
        FAKE_SILENT,
        FAKE_LATE, /* by 150 ms */
        /* any reply */
        FAKE_SHORT_FRAME,
        FAKE_BAD_MAGIC,
        FAKE_BAD_LENGTH,
        FAKE_BAD_VERSION,
        FAKE_WRONG_ID,
        FAKE_WRONG_TYPE,
        FAKE_BAD_PROTOBUF,
        FAKE_UNKNOWN_FIELDS, /* so many that unpacking needs much memory */
        FAKE_EMPTY_BODY,
        FAKE_STRAY_FD,
        FAKE_ERROR_ZERO,
        FAKE_HANG_UP,
        FAKE_UNASKED, /* a reply to nothing comes first */
        /* hello */
        FAKE_HELLO_VERSION,
        FAKE_HELLO_TOKEN,
        FAKE_HELLO_REFUSED,
        /* space open */
        FAKE_SPACE_PART_BYTES,
        /* match */
        FAKE_MATCH_MANY,
        FAKE_MATCH_NO_STOP,
        /* map: the connection is given up */
        FAKE_MAP_FEW_ENTRIES,
        FAKE_MAP_SLABS_WITHOUT_FD,
        FAKE_MAP_UNSEALED,
        FAKE_MAP_PIPE,
        FAKE_MAP_LARGER_THAN_FILE,
        FAKE_MAP_EMPTY_SLAB,
        FAKE_MAP_TWICE,
        /* map: this key only */
        FAKE_MAP_FIRST_KEY_WRONG,
        FAKE_MAP_UNKNOWN_SLAB = FAKE_MAP_FIRST_KEY_WRONG,
        FAKE_MAP_OFFSET_END,
        FAKE_MAP_OFFSET_HUGE,
        FAKE_MAP_OFFSET_ODD,
        FAKE_MAP_GENERATION_ZERO,
        FAKE_MAP_HEADER_PLANES,
        FAKE_MAP_HEADER_BYTES,
        FAKE_MAP_HEADER_CODEC,
        FAKE_MAP_HEADER_LAYOUT,
        FAKE_MAP_LAST_KEY_WRONG = FAKE_MAP_HEADER_LAYOUT,
        FAKE_MAP_STALE, /* generation differs already */
        FAKE_MAP_AGAIN, /* as if descriptors were under way: half of the keys wait */
        FAKE_MAP_AGAIN_FOREVER,
        /* staging */
        FAKE_STAGING_UNSEALED,
        FAKE_STAGING_NO_FD,
        FAKE_STAGING_REFUSED,
        FAKE_STATUSES_SHORT,
        FAKE_GET_LOST, /* no status that a get through staging has */
        FAKE_GET_AGAIN,
};

struct fake {
        char dir[64], path[108];
        int listener, stop[2];
        pthread_t thread;
        int conns[FAKE_CONNS];
        atomic_int wrong, wrong_for; /* which answer; to which message type (0: all but the hello) */
        atomic_int n_wrong; /* answers wrong so far */
        atomic_int max_wrong; /* 0: no limit */
        atomic_uint boot;
        int slabs[FAKE_BLOCKS];
        struct kvt_copy_header *headers[FAKE_BLOCKS];
        atomic_bool stored[FAKE_BLOCKS];
        bool sent[FAKE_CONNS][FAKE_BLOCKS];
        bool unacked[FAKE_CONNS]; /* descriptors are on their way: no more before FD_ACK */
        uint8_t *staging[FAKE_CONNS];
        atomic_int n_hello, n_space, n_match, n_map, n_get, n_put, n_begin, n_abort, n_drop_corrupt, n_release_packets, n_leases_ended,
                n_fd_ack, n_cancel, n_events;
        atomic_int n_slab_ack; /* slabs */
        atomic_int n_prefetch, n_durable_begin, n_durable_put; /* of n_begin and n_put, those with the flag */
        atomic_int first_plane, n_planes; /* of the last get */
        atomic_ullong get_stride; /* from its first offset to its second */
        atomic_ullong prefetch_usec; /* deadline of the last prefetch */
        atomic_int n_leases;
        atomic_uint retire; /* 1 + a slab to retire */
        atomic_bool event; /* send one */
        atomic_bool drain; /* say that it is shutting down */
};

static const kvt_plane fake_planes[] = {
        {.role = KVT_ROLE_K, .dtype = KVT_DTYPE_F16, .heads = 4, .dim = 64},
        {.role = KVT_ROLE_V, .dtype = KVT_DTYPE_F16, .heads = 4, .dim = 64, .window_tokens = 24},
};

static inline kvt_key fake_key(unsigned i)
{
        kvt_key k = {{(uint8_t)i, 77}};
        return k;
}

static inline uint8_t fake_byte(unsigned i_block, size_t at)
{
        return (uint8_t)(i_block * 31 + at * 7 + (at >> 8));
}

static inline uint8_t *fake_payload(struct fake *f, unsigned i)
{
        return (uint8_t *)f->headers[i] + kvt_payload_offset(KVT_COPY_RAW, 2, FAKE_PART);
}

static inline void fake_seal_block(struct fake *f, unsigned i)
{
        struct kvt_copy_header *h = f->headers[i];

        h->payload_bytes = FAKE_PART;
        h->n_planes = 2;
        h->zero = 0;
        h->layout = KVT_COPY_RAW;
        for (unsigned k = 0; k < 2; k++)
                kvt_copy_hashes(h)[k] = hash_bytes(fake_payload(f, i) + k * FAKE_PART / 2, FAKE_PART / 2, k);
        __atomic_store_n(&h->generation, FAKE_GENERATION + i, __ATOMIC_RELEASE);
}

enum { FAKE_SLAB_BYTES = 4096 * 5 };
static_assert(FAKE_PART + 4096 <= FAKE_SLAB_BYTES, "a block fits");

static inline int fake_memfd(size_t n, bool seal)
{
        int fd = memfd_create("fake", MFD_CLOEXEC | MFD_ALLOW_SEALING);

        if (fd < 0 || ftruncate(fd, (off_t)n) < 0 || (seal && fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) < 0))
                abort();
        return fd;
}

static inline void fake_fill(struct fake *f, unsigned i)
{
        for (size_t at = 0; at < FAKE_PART; at++)
                fake_payload(f, i)[at] = fake_byte(i, at);
        fake_seal_block(f, i);
        f->stored[i] = true;
}

static inline bool fake_errs(struct fake *f, enum fake_wrong w)
{
        if (f->wrong != (int)w || (f->max_wrong && f->n_wrong >= f->max_wrong))
                return false;
        f->n_wrong++;
        return true;
}

/* sending */

static inline void fake_send(int fd, const uint8_t *packet, size_t n, const int *fds, size_t n_fds)
{
        union {
                struct cmsghdr align;
                char bytes[CMSG_SPACE(KVT_FDS_MAX * sizeof(int))];
        } control = {0};
        struct iovec v = {.iov_base = (void *)packet, .iov_len = n};
        struct msghdr m = {.msg_iov = &v, .msg_iovlen = 1};

        if (n_fds) {
                struct cmsghdr *h;

                m.msg_control = &control;
                m.msg_controllen = CMSG_SPACE(n_fds * sizeof(int));
                h = CMSG_FIRSTHDR(&m);
                h->cmsg_level = SOL_SOCKET;
                h->cmsg_type = SCM_RIGHTS;
                h->cmsg_len = CMSG_LEN(n_fds * sizeof(int));
                memcpy(CMSG_DATA(h), fds, n_fds * sizeof(int));
        }
        sendmsg(fd, &m, MSG_NOSIGNAL);
}

static inline void fake_reply(struct fake *f, int fd, const struct frame *to, uint16_t type, const ProtobufCMessage *m, const int *fds,
                              size_t n_fds)
{
        static uint8_t packet[KVT_PACKET_MAX + 64];
        size_t n = m ? protobuf_c_message_pack(m, packet + KVT_FRAME_BYTES) : 0;
        bool err = to->type != KVT_MSG_HELLO && (!f->wrong_for || f->wrong_for == to->type);
        uint32_t id = to->request_id;
        uint8_t version = to->version;

        if (err) {
                if (fake_errs(f, FAKE_SILENT))
                        return;
                if (fake_errs(f, FAKE_LATE))
                        usleep(150000);
                if (fake_errs(f, FAKE_HANG_UP)) {
                        shutdown(fd, SHUT_RDWR);
                        return;
                }
                if (fake_errs(f, FAKE_WRONG_ID))
                        id += 0x10000;
                if (fake_errs(f, FAKE_WRONG_TYPE))
                        type = type == (KVT_MSG_PING | KVT_REPLY) ? KVT_MSG_STAT | KVT_REPLY : KVT_MSG_PING | KVT_REPLY;
                if (fake_errs(f, FAKE_BAD_VERSION))
                        version++;
                if (fake_errs(f, FAKE_BAD_PROTOBUF)) {
                        memset(packet + KVT_FRAME_BYTES, 0xff, 40);
                        n = 40;
                }
                if (fake_errs(f, FAKE_UNKNOWN_FIELDS)) {
                        n = KVT_PACKET_MAX - KVT_FRAME_BYTES;
                        for (size_t i = 0; i < n; i += 2) { /* field 15, varint 0 */
                                packet[KVT_FRAME_BYTES + i] = 15 << 3;
                                packet[KVT_FRAME_BYTES + i + 1] = 0;
                        }
                }
                if (fake_errs(f, FAKE_EMPTY_BODY))
                        n = 0;
                if (fake_errs(f, FAKE_ERROR_ZERO)) {
                        type = KVT_MSG_ERROR;
                        n = 0;
                }
        }
        frame_put(packet, version, type, id, (uint32_t)n);
        if (err) {
                if (fake_errs(f, FAKE_BAD_MAGIC))
                        packet[0] = 'x';
                if (fake_errs(f, FAKE_BAD_LENGTH))
                        packet[12]++;
                if (fake_errs(f, FAKE_SHORT_FRAME)) {
                        fake_send(fd, packet, 7, NULL, 0);
                        return;
                }
                if (fake_errs(f, FAKE_UNASKED)) {
                        uint8_t other[KVT_FRAME_BYTES];

                        frame_put(other, version, KVT_MSG_PING | KVT_REPLY, 0x00070003, 0);
                        fake_send(fd, other, sizeof(other), NULL, 0);
                }
                if (fake_errs(f, FAKE_STRAY_FD)) {
                        int stray[16];

                        for (int i = 0; i < 16; i++)
                                stray[i] = f->listener;
                        fake_send(fd, packet, KVT_FRAME_BYTES + n, stray, 16);
                        return;
                }
        }
        fake_send(fd, packet, KVT_FRAME_BYTES + n, fds, n_fds);
}

static inline void fake_error(struct fake *f, int fd, const struct frame *to, uint32_t code)
{
        Kvtier__Error e = KVTIER__ERROR__INIT;

        e.code = code;
        e.text = (char *)"the fake says so";
        fake_reply(f, fd, to, KVT_MSG_ERROR, &e.base, NULL, 0);
}

#include "tests/unit/fake_requests.h"

static inline void fake_unasked(struct fake *f, int fd)
{
        struct frame none = {.version = KVT_PROTO_MAX};
        unsigned slab = atomic_exchange(&f->retire, 0);

        if (slab) {
                Kvtier__SlabRetired m = KVTIER__SLAB_RETIRED__INIT;
                uint32_t ids[2] = {slab - 1, 777};

                m.slabs = ids;
                m.n_slabs = 2; /* one that nobody knows, too */
                fake_reply(f, fd, &none, KVT_MSG_SLAB_RETIRED, &m.base, NULL, 0);
        }
        if (atomic_exchange(&f->drain, false)) {
                Kvtier__Event m = KVTIER__EVENT__INIT;

                m.draining = true;
                fake_reply(f, fd, &none, KVT_MSG_EVENT, &m.base, NULL, 0);
        }
        if (atomic_exchange(&f->event, false)) {
                Kvtier__Event m = KVTIER__EVENT__INIT;
                kvt_key stored[2] = {fake_key(1), fake_key(2)}, removed = fake_key(3);

                m.space = 3 + f->boot;
                m.stored = (ProtobufCBinaryData){.len = sizeof(stored), .data = stored[0].bytes};
                m.removed = (ProtobufCBinaryData){.len = sizeof(removed), .data = removed.bytes};
                m.n_lost = 9;
                fake_reply(f, fd, &none, KVT_MSG_EVENT, &m.base, NULL, 0);
        }
}

static inline void fake_hang_up(struct fake *f, unsigned i)
{
        close(f->conns[i]);
        f->conns[i] = -1;
        memset(f->sent[i], 0, sizeof(f->sent[i]));
        f->unacked[i] = false;
        if (f->staging[i])
                munmap(f->staging[i], FAKE_STAGING);
        f->staging[i] = NULL;
}

static inline void *fake_main(void *arg)
{
        static uint8_t packet[KVT_PACKET_MAX];
        struct fake *f = arg;

        for (;;) {
                struct pollfd p[FAKE_CONNS + 2];

                for (unsigned i = 0; i < FAKE_CONNS; i++)
                        p[i] = (struct pollfd){.fd = f->conns[i], .events = POLLIN};
                p[FAKE_CONNS] = (struct pollfd){.fd = f->listener, .events = POLLIN};
                p[FAKE_CONNS + 1] = (struct pollfd){.fd = f->stop[0], .events = POLLIN};
                poll(p, FAKE_CONNS + 2, 5);
                if (p[FAKE_CONNS + 1].revents)
                        return NULL;
                if (p[FAKE_CONNS].revents) {
                        int fd = accept4(f->listener, NULL, NULL, SOCK_CLOEXEC);
                        unsigned i = 0;

                        while (f->conns[i] >= 0)
                                i++;
                        f->conns[i] = fd;
                }
                for (unsigned i = 0; i < FAKE_CONNS; i++) {
                        struct frame to;
                        ssize_t n;

                        if (f->conns[i] < 0)
                                continue;
                        fake_unasked(f, f->conns[i]);
                        if (!p[i].revents || p[i].fd != f->conns[i])
                                continue;
                        n = recv(f->conns[i], packet, sizeof(packet), MSG_DONTWAIT);
                        if (n < 0 && errno == EAGAIN)
                                continue;
                        if (n <= 0 || frame_parse(packet, (size_t)n, &to) < 0)
                                fake_hang_up(f, i);
                        else
                                fake_request(f, i, &to, packet + KVT_FRAME_BYTES);
                }
        }
}

/* life */

static inline void fake_listen(struct fake *f)
{
        struct sockaddr_un a = {.sun_family = AF_UNIX};

        snprintf(a.sun_path, sizeof(a.sun_path), "%s", f->path);
        f->listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
        if (bind(f->listener, (struct sockaddr *)&a, sizeof(a)) < 0 || listen(f->listener, 16) < 0 || pipe2(f->stop, O_CLOEXEC) < 0 ||
            pthread_create(&f->thread, NULL, fake_main, f))
                abort();
}

static inline void fake_stop(struct fake *f)
{
        close(f->stop[1]);
        pthread_join(f->thread, NULL);
        close(f->stop[0]);
        close(f->listener);
        unlink(f->path);
        for (unsigned i = 0; i < FAKE_CONNS; i++)
                if (f->conns[i] >= 0)
                        fake_hang_up(f, i);
}

static inline struct fake *fake_new(void)
{
        struct fake *f = calloc(1, sizeof(*f));

        snprintf(f->dir, sizeof(f->dir), "/tmp/kvtier-fake-XXXXXX");
        if (!mkdtemp(f->dir))
                abort();
        snprintf(f->path, sizeof(f->path), "%s/s", f->dir);
        for (unsigned i = 0; i < FAKE_CONNS; i++)
                f->conns[i] = -1;
        for (unsigned i = 0; i < FAKE_BLOCKS; i++) {
                f->slabs[i] = fake_memfd(FAKE_SLAB_BYTES, true);
                f->headers[i] = mmap(NULL, FAKE_SLAB_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, f->slabs[i], 0);
        }
        fake_listen(f);
        return f;
}

static inline void fake_free(struct fake *f)
{
        fake_stop(f);
        rmdir(f->dir);
        for (unsigned i = 0; i < FAKE_BLOCKS; i++) {
                munmap(f->headers[i], FAKE_SLAB_BYTES);
                close(f->slabs[i]);
        }
        free(f);
}

/* Another start of the daemon: other token, other handles, nothing stored. */
static inline void fake_restart(struct fake *f)
{
        fake_stop(f);
        f->boot++;
        for (unsigned i = 0; i < FAKE_BLOCKS; i++)
                f->stored[i] = false;
        fake_listen(f);
}

static inline void fake_do(struct fake *f, enum fake_wrong wrong, int wrong_for, int max_wrong)
{
        f->wrong_for = wrong_for;
        f->max_wrong = max_wrong;
        f->n_wrong = 0;
        f->wrong = (int)wrong;
}
