/* The daemon that lies, of fuzz_reply.c: it answers rightly, or damages its answer, or sends any bytes, wrong descriptors, errors, nothing, events, or
 * hangs up. It has four slabs with sixteen blocks each, raw, under zbf and under kivi; it lies about their planes, too. */
#pragma once

#include <errno.h>
#include <sys/mman.h>
#include <sys/socket.h>

#include "proto/frame.h"
#include "proto/messages.h"
#include "tests/fuzz/liar_blocks.h"

static int memfd(size_t n, bool seal)
{
        int fd = memfd_create("fuzz", MFD_CLOEXEC | MFD_ALLOW_SEALING);

        FUZZ_CHECK(fd >= 0 && ftruncate(fd, (off_t)n) == 0);
        FUZZ_CHECK(!seal || fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) == 0);
        return fd;
}

/* the daemon */

static void daemon_init(void)
{
        const char *why;

        for (int i = 0; i < N_SLABS; i++) {
                slab_fds[i] = memfd(SLAB_BYTES, true);
                slabs[i] = mmap(NULL, SLAB_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, slab_fds[i], 0);
                FUZZ_CHECK(slabs[i] != MAP_FAILED);
        }
        FUZZ_CHECK(geometry_init(&block_geometry, TOKENS, 1, block_planes, N_PLANES, &why) == 0 && block_geometry.part_bytes == PART_BYTES);
        for (unsigned i = 0; i < N_SLABS * SLOTS; i++)
                block_store(i);
        for (int i = 0; i < N_SLABS; i++)
                memcpy(slabs_as_stored[i], slabs[i], SLAB_BYTES);
        unsealed_fd = memfd(SLAB_BYTES, false);
        FUZZ_CHECK(pipe(pipe_fds) == 0);
        d.fd = d.staging_fd = -1;
}

static void daemon_hang_up(void)
{
        if (d.fd >= 0)
                close(d.fd);
        if (d.staging)
                munmap(d.staging, STAGING_BYTES);
        if (d.staging_fd >= 0)
                close(d.staging_fd);
        d.fd = d.staging_fd = -1;
        d.staging = NULL;
        d.sent_slabs = 0;
        d.unacked = false;
}

static void daemon_send(const void *packet, size_t n, const int *fds, size_t n_fds)
{
        union {
                struct cmsghdr align;
                char bytes[CMSG_SPACE(sizeof(int) * KVT_FDS_MAX)];
        } control = {0};
        struct iovec v = {(void *)packet, n};
        struct msghdr m = {.msg_iov = &v, .msg_iovlen = 1};

        if (d.fd < 0)
                return;
        if (n_fds) {
                m.msg_control = &control;
                m.msg_controllen = CMSG_SPACE(sizeof(int) * n_fds);
                struct cmsghdr *h = CMSG_FIRSTHDR(&m);
                h->cmsg_level = SOL_SOCKET;
                h->cmsg_type = SCM_RIGHTS;
                h->cmsg_len = CMSG_LEN(sizeof(int) * n_fds);
                memcpy(CMSG_DATA(h), fds, sizeof(int) * n_fds);
        }
        if (sendmsg(d.fd, &m, MSG_DONTWAIT | MSG_NOSIGNAL) < 0 && errno != EAGAIN)
                daemon_hang_up();
}

struct answer {
        uint8_t packet[KVT_PACKET_MAX + 64];
        uint16_t type;
        uint32_t id;
        size_t n_body;
        int fds[KVT_FDS_MAX];
        size_t n_fds;
};
static struct answer a;

static void answer_pack(uint16_t type, const void *message)
{
        a.type = type;
        a.n_body = protobuf_c_message_pack(message, a.packet + KVT_FRAME_BYTES);
}

static void answer_error(uint32_t code)
{
        Kvtier__Error m = KVTIER__ERROR__INIT;

        m.code = code;
        m.text = (char *)"no";
        answer_pack(KVT_MSG_ERROR, &m);
}

static void answer_hello(void)
{
        static uint8_t token[16];
        Kvtier__HelloReply m = KVTIER__HELLO_REPLY__INIT;

        m.version = KVT_PROTO_MAX;
        m.boot_token = (ProtobufCBinaryData){sizeof(token), token};
        m.lease_usec = 1000000;
        m.staging_max_bytes = STAGING_BYTES;
        answer_pack(KVT_MSG_HELLO | KVT_REPLY, &m);
}

static void answer_space(void)
{
        Kvtier__SpaceOpenReply m = KVTIER__SPACE_OPEN_REPLY__INIT;

        m.space = 3;
        m.part_bytes = PART_BYTES;
        answer_pack(KVT_MSG_SPACE_OPEN | KVT_REPLY, &m);
}

static void answer_map(const Kvtier__MapRequest *q, bool odd)
{
        static struct kvt_map_entry entries[KVT_KEYS_MAX];
        static struct kvt_map_slab handed[KVT_FDS_MAX];
        Kvtier__MapReply m = KVTIER__MAP_REPLY__INIT;
        size_t n = q->keys.len / 16;

        a.n_fds = 0;
        for (size_t i = 0; i < n; i++) {
                unsigned b = q->keys.data[16 * i] % (N_SLABS * SLOTS), slab = b / SLOTS;

                entries[i] = (struct kvt_map_entry){.slab = FIRST_SLAB + slab,
                                                    .offset = b % SLOTS * SLOT_BYTES,
                                                    .generation = GENERATION + b,
                                                    .lease = b + 1};
                if (odd) {
                        uint8_t x = input_u8(&in);
                        if (x & 1)
                                entries[i].status = input_u8(&in);
                        if (x & 2)
                                entries[i].slab = input_u8(&in);
                        if (x & 4) /* near the end, anywhere, or far out */
                                entries[i].offset = x & 64   ? input_number(&in, 8)
                                                    : x & 32 ? SLAB_BYTES - 8u * input_u8(&in)
                                                             : 8 * input_number(&in, 2);
                        if (x & 8)
                                entries[i].generation = input_u8(&in);
                        if (x & 16)
                                entries[i].zero[0] = 1;
                }
                if (entries[i].status || d.sent_slabs >> slab & 1)
                        continue;
                if (d.unacked) {
                        entries[i] = (struct kvt_map_entry){.status = KVT_E_AGAIN};
                        continue;
                }
                d.sent_slabs |= 1u << slab;
                handed[a.n_fds] = (struct kvt_map_slab){.slab = FIRST_SLAB + slab, .bytes = SLAB_BYTES};
                a.fds[a.n_fds++] = slab_fds[slab];
        }
        for (size_t i = 0; odd && i < a.n_fds; i++) {
                uint8_t x = input_u8(&in);
                if (x & 1)
                        handed[i].slab = input_u8(&in);
                if (x & 2)
                        handed[i].bytes = input_number(&in, x & 64 ? 8 : 3);
        }
        d.unacked |= a.n_fds > 0;
        m.entries = (ProtobufCBinaryData){n * sizeof(*entries), (uint8_t *)entries};
        m.slabs = (ProtobufCBinaryData){a.n_fds * sizeof(*handed), (uint8_t *)handed};
        m.lease_usec = odd ? input_number(&in, 8) : 1000000;
        answer_pack(KVT_MSG_MAP | KVT_REPLY, &m);
}

static ProtobufCBinaryData statuses(size_t n, bool odd)
{
        static uint8_t s[KVT_KEYS_MAX];

        for (size_t i = 0; i < n && i < KVT_KEYS_MAX; i++)
                s[i] = odd ? input_u8(&in) % 35 : 0;
        return (ProtobufCBinaryData){n, s};
}

static void answer_staging(void)
{
        Kvtier__StagingOpenReply m = KVTIER__STAGING_OPEN_REPLY__INIT;

        if (d.staging) {
                answer_error(KVT_E_BAD_REQUEST);
                return;
        }
        d.staging_fd = memfd(STAGING_BYTES, true);
        d.staging = mmap(NULL, STAGING_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, d.staging_fd, 0);
        FUZZ_CHECK(d.staging != MAP_FAILED);
        m.bytes = STAGING_BYTES;
        a.fds[0] = d.staging_fd;
        a.n_fds = 1;
        answer_pack(KVT_MSG_STAGING_OPEN | KVT_REPLY, &m);
}

static void answer_begin(const Kvtier__PutBeginRequest *q, bool odd)
{
        static struct kvt_put_entry entries[KVT_KEYS_MAX];
        Kvtier__PutBeginReply m = KVTIER__PUT_BEGIN_REPLY__INIT;
        size_t n = q->keys.len / 16;

        for (size_t i = 0; i < n; i++)
                entries[i] = (struct kvt_put_entry){.status = odd ? input_u8(&in) % 4 : 0, .reservation = 900 + i};
        m.entries = (ProtobufCBinaryData){n * sizeof(*entries), (uint8_t *)entries};
        answer_pack(KVT_MSG_PUT_BEGIN | KVT_REPLY, &m);
}

static void answer_get(const Kvtier__GetRequest *q, bool odd)
{
        Kvtier__GetReply m = KVTIER__GET_REPLY__INIT;
        size_t n = q->keys.len / 16, start = q->first_plane * PLANE_BYTES, bytes = PART_BYTES - start;
        uint8_t part[PART_BYTES];

        FUZZ_CHECK(d.staging && q->offsets.len == 8 * n);
        FUZZ_CHECK(q->first_plane < N_PLANES && q->n_planes <= N_PLANES - q->first_plane);
        if (q->n_planes)
                bytes = q->n_planes * PLANE_BYTES;
        m.statuses = statuses(n, odd);
        for (size_t i = 0; i < n; i++) {
                uint64_t at;
                memcpy(&at, q->offsets.data + 8 * i, 8);
                FUZZ_CHECK(at <= STAGING_BYTES - bytes);
                if (m.statuses.data[i])
                        continue;
                block_fill(part, q->keys.data[16 * i]);
                memcpy(d.staging + at, part + start, bytes);
        }
        answer_pack(KVT_MSG_GET | KVT_REPLY, &m);
}

#define UNPACK(Type, type)                                                                                                                 \
        Kvtier__##Type *q = kvtier__##type##__unpack(NULL, f.body_bytes, body);                                                            \
        FUZZ_CHECK(q && !q->base.n_unknown_fields)
#define DONE(type) kvtier__##type##__free_unpacked(q, NULL)

/* The right answer, or one with odd contents. Returns false if none is due. */
static bool answer_make(const struct frame f, const uint8_t *body, bool odd)
{
        a.n_fds = 0;
        a.id = f.request_id;
        switch (f.type) {
        case KVT_MSG_SPACE_OPEN: {
                UNPACK(SpaceOpenRequest, space_open_request);
                DONE(space_open_request);
                answer_space();
                break;
        }
        case KVT_MSG_STAGING_OPEN:
                answer_staging();
                break;
        case KVT_MSG_MATCH: {
                UNPACK(MatchRequest, match_request);
                Kvtier__MatchReply m = KVTIER__MATCH_REPLY__INIT;
                FUZZ_CHECK(q->keys.len && q->keys.len % 16 == 0 && q->keys.len / 16 <= KVT_KEYS_MAX && q->releases.len % 8 == 0);
                m.n_blocks = odd ? (uint32_t)input_number(&in, 4) : (uint32_t)(q->keys.len / 16);
                m.stop = odd ? (uint32_t)input_number(&in, 2) : 0;
                answer_pack(KVT_MSG_MATCH | KVT_REPLY, &m);
                DONE(match_request);
                break;
        }
        case KVT_MSG_MAP: {
                UNPACK(MapRequest, map_request);
                FUZZ_CHECK(q->keys.len && q->keys.len % 16 == 0 && q->keys.len / 16 <= KVT_KEYS_MAX && q->releases.len % 8 == 0);
                answer_map(q, odd);
                DONE(map_request);
                break;
        }
        case KVT_MSG_GET: {
                UNPACK(GetRequest, get_request);
                answer_get(q, odd);
                DONE(get_request);
                break;
        }
        case KVT_MSG_PUT_BEGIN: {
                UNPACK(PutBeginRequest, put_begin_request);
                answer_begin(q, odd);
                DONE(put_begin_request);
                break;
        }
        case KVT_MSG_PUT_COMMIT: {
                UNPACK(PutCommitRequest, put_commit_request);
                Kvtier__PutCommitReply m = KVTIER__PUT_COMMIT_REPLY__INIT;
                FUZZ_CHECK(q->offsets.len % 8 == 0 && (q->reservations.len == q->offsets.len || q->keys.len == 2 * q->offsets.len));
                m.statuses = statuses(q->offsets.len / 8, odd);
                answer_pack(KVT_MSG_PUT_COMMIT | KVT_REPLY, &m);
                DONE(put_commit_request);
                break;
        }
        case KVT_MSG_PUT_ABORT: {
                UNPACK(PutAbortRequest, put_abort_request);
                Kvtier__PutAbortReply m = KVTIER__PUT_ABORT_REPLY__INIT;
                m.statuses = statuses(q->reservations.len / 8, odd);
                answer_pack(KVT_MSG_PUT_ABORT | KVT_REPLY, &m);
                DONE(put_abort_request);
                break;
        }
        case KVT_MSG_PREFETCH:
        case KVT_MSG_DROP: { /* the same shapes */
                UNPACK(DropRequest, drop_request);
                Kvtier__DropReply m = KVTIER__DROP_REPLY__INIT;
                m.statuses = statuses(q->keys.len / 16, odd);
                answer_pack(f.type | KVT_REPLY, &m);
                DONE(drop_request);
                break;
        }
        case KVT_MSG_EXPLAIN: {
                static struct kvt_block_entry entry;
                UNPACK(ExplainRequest, explain_request);
                Kvtier__ExplainReply m = KVTIER__EXPLAIN_REPLY__INIT;
                m.why = odd ? (Kvtier__Why)input_number(&in, 4) : KVTIER__WHY__WHY_RESIDENT;
                m.entry = (ProtobufCBinaryData){odd ? input_u8(&in) % (sizeof(entry) + 1) : sizeof(entry), (uint8_t *)&entry};
                m.text = (char *)"because";
                answer_pack(KVT_MSG_EXPLAIN | KVT_REPLY, &m);
                DONE(explain_request);
                break;
        }
        case KVT_MSG_STAT: {
                Kvtier__StatReply m = KVTIER__STAT_REPLY__INIT;
                Kvtier__Tier tier = KVTIER__TIER__INIT, *tiers[] = {&tier};
                Kvtier__Counter counter = KVTIER__COUNTER__INIT, *counters[] = {&counter};
                tier.name = (char *)"host";
                counter.name = (char *)"hits";
                m.n_tiers = m.n_counters = 1;
                m.tiers = tiers;
                m.counters = counters;
                answer_pack(KVT_MSG_STAT | KVT_REPLY, &m);
                break;
        }
        case KVT_MSG_EVENTS: {
                UNPACK(EventsRequest, events_request);
                Kvtier__EventsReply m = KVTIER__EVENTS_REPLY__INIT;
                answer_pack(KVT_MSG_EVENTS | KVT_REPLY, &m);
                DONE(events_request);
                break;
        }
        case KVT_MSG_RELEASE: {
                UNPACK(ReleaseRequest, release_request);
                FUZZ_CHECK(q->leases.len && q->leases.len % 8 == 0);
                DONE(release_request);
                return false;
        }
        case KVT_MSG_SLAB_ACK: {
                UNPACK(SlabAck, slab_ack);
                FUZZ_CHECK(q->n_slabs);
                DONE(slab_ack);
                return false;
        }
        case KVT_MSG_CANCEL: {
                UNPACK(CancelRequest, cancel_request);
                FUZZ_CHECK(q->request_id);
                DONE(cancel_request);
                return false;
        }
        case KVT_MSG_FD_ACK:
                FUZZ_CHECK(!f.body_bytes);
                d.unacked = false;
                return false;
        default:
                FUZZ_CHECK(!"a message of this type");
        }
        return true;
}

static void answer_send(void)
{
        frame_put(a.packet, KVT_PROTO_MAX, a.type, a.id, (uint32_t)a.n_body);
        daemon_send(a.packet, KVT_FRAME_BYTES + a.n_body, a.fds, a.n_fds);
}

/* Sends the answer that was made, as the input has it. */
static void answer_somehow(uint8_t how)
{
        size_t n;
        const uint8_t *p;

        d.lied |= how >= 0x80 && how < 0xe8;
        switch (how) {
        case 0x80 ... 0x9f: /* odd contents: it was made so */
                break;
        case 0xa0 ... 0xaf: /* damage */
                frame_put(a.packet, KVT_PROTO_MAX, a.type, a.id, (uint32_t)a.n_body);
                for (uint8_t i = how & 3; i < 4; i++) {
                        size_t at = input_number(&in, 2) % (KVT_FRAME_BYTES + a.n_body);
                        a.packet[at] = input_u8(&in);
                }
                daemon_send(a.packet, KVT_FRAME_BYTES + a.n_body, a.fds, a.n_fds);
                return;
        case 0xb0 ... 0xbf: /* any body */
                p = input_bytes(&in, input_number(&in, 2) % 2048, &n);
                memcpy(a.packet + KVT_FRAME_BYTES, p, n);
                a.n_body = n;
                break;
        case 0xc0 ... 0xc7: /* cut */
                a.n_body = input_u8(&in) % (a.n_body + 1);
                break;
        case 0xc8 ... 0xcf: { /* other descriptors */
                const int others[] = {unsealed_fd, pipe_fds[0], slab_fds[0], d.fd};
                a.n_fds = input_u8(&in) % (KVT_FDS_MAX + 1);
                for (size_t i = 0; i < a.n_fds; i++)
                        a.fds[i] = others[input_u8(&in) % 4];
                break;
        }
        case 0xd0 ... 0xd7: /* another request */
                a.id += input_u8(&in) - 128u;
                break;
        case 0xd8 ... 0xdf: /* another type */
                a.type ^= input_u8(&in);
                break;
        case 0xe8 ... 0xef:
                answer_error(input_u8(&in));
                a.n_fds = 0;
                break;
        case 0xf0 ... 0xf7: /* none */
                return;
        case 0xf8 ... 0xfb:
                daemon_hang_up();
                return;
        }
        answer_send();
}

/* Answers one packet; false: there is none. */
static bool daemon_serve(void)
{
        static uint8_t packet[KVT_PACKET_MAX + 1];
        struct frame f;
        ssize_t n = d.fd >= 0 ? recv(d.fd, packet, sizeof(packet), MSG_DONTWAIT) : -1;

        if (n <= 0) {
                if (n == 0)
                        daemon_hang_up();
                return false;
        }
        FUZZ_CHECK(frame_parse(packet, (size_t)n, &f) == 0 && f.version == KVT_PROTO_MAX);
        if (f.type == KVT_MSG_HELLO || (f.type == KVT_MSG_SPACE_OPEN && f.request_id == 1)) /* answered by connect() */
                return true;
        uint8_t how = f.type == KVT_MSG_RELEASE || f.type >= KVT_MSG_MAX ? 0 : input_u8(&in);
        if (answer_make(f, packet + KVT_FRAME_BYTES, how >= 0x80 && how < 0xa0))
                answer_somehow(how);
        return true;
}

static void daemon_unasked(void)
{
        uint8_t what = input_u8(&in);
        size_t n;

        a.id = 0;
        a.n_fds = 0;
        if (what < 0x60) {
                Kvtier__Event m = KVTIER__EVENT__INIT;
                static uint8_t keys[64 * 16];
                m.space = what & 1 ? 3 : what;
                m.stored = (ProtobufCBinaryData){what & 2 ? 64 * 16 : 16, keys};
                m.removed = (ProtobufCBinaryData){what & 4 ? 15 : 32, keys};
                m.n_lost = what & 8;
                m.draining = what & 16;
                answer_pack(KVT_MSG_EVENT, &m);
        } else if (what < 0xc0) {
                Kvtier__SlabRetired m = KVTIER__SLAB_RETIRED__INIT;
                uint32_t ids[3] = {FIRST_SLAB + (what & 3), FIRST_SLAB + (what >> 2 & 3), 77};
                m.slabs = ids;
                m.n_slabs = what % 4;
                answer_pack(KVT_MSG_SLAB_RETIRED, &m);
        } else if (what < 0xe0) { /* a reply to nothing */
                a.id = (uint32_t)input_number(&in, 4);
                answer_error(what & 31);
        } else {
                const uint8_t *p = input_bytes(&in, input_number(&in, 2) % 2048, &n);
                d.lied = true;
                daemon_send(p, n, NULL, 0);
                return;
        }
        answer_send();
}
