/* Requests made from a few bytes of input, and what their answers tell: so that one request can name what another made. */
#pragma once

#include <assert.h>
#include <math.h>
#include <stdbool.h>

#include "proto/frame.h"
#include "proto/messages.h"
#include "proto/shm.h"
#include "tests/fuzz/fuzz.h"

enum { KNOWN_MAX = 16, LADDER_TEXTS = 3 };

/* Who adds a message adds it to replies[], message_make() and fuzz_proto.c; a field, to message_make(), which counts them. */
static_assert(KVT_MSG_MAX == 24, "a message that the fuzzers do not know");

/* Devices as requests name them; what lies behind the names is for the target to say. */
static const char *const device_paths[] = {"/a", "/b", "/a", "/same", "/other", "/small", "/null", "/nowhere/a", "a", ""};
enum { N_DEVICE_PATHS = sizeof(device_paths) / sizeof(*device_paths) };

struct told {
        uint32_t spaces[KNOWN_MAX];
        uint64_t leases[KNOWN_MAX], reservations[KNOWN_MAX];
        uint32_t slabs[KNOWN_MAX];
        unsigned n_spaces, n_leases, n_reservations, n_slabs; /* ever: the last KNOWN_MAX are kept */
};

static inline bool error_is_named(uint32_t code)
{
        switch (code) {
#define ERROR(number, name, text) case number:
#include "proto/errors.def"
#undef ERROR
                return true;
        }
        return false;
}

/* A packet of the daemon's, which came with this many descriptors. Returns its type. */
static inline uint16_t known_learn(struct told *k, const uint8_t *packet, size_t n, size_t n_fds)
{
        static const ProtobufCMessageDescriptor *const replies[KVT_MSG_MAX] = {
                [KVT_MSG_HELLO] = &kvtier__hello_reply__descriptor,
                [KVT_MSG_SPACE_OPEN] = &kvtier__space_open_reply__descriptor,
                [KVT_MSG_STAGING_OPEN] = &kvtier__staging_open_reply__descriptor,
                [KVT_MSG_MATCH] = &kvtier__match_reply__descriptor,
                [KVT_MSG_PUT_BEGIN] = &kvtier__put_begin_reply__descriptor,
                [KVT_MSG_PUT_COMMIT] = &kvtier__put_commit_reply__descriptor,
                [KVT_MSG_PUT_ABORT] = &kvtier__put_abort_reply__descriptor,
                [KVT_MSG_MAP] = &kvtier__map_reply__descriptor,
                [KVT_MSG_GET] = &kvtier__get_reply__descriptor,
                [KVT_MSG_PREFETCH] = &kvtier__prefetch_reply__descriptor,
                [KVT_MSG_DROP] = &kvtier__drop_reply__descriptor,
                [KVT_MSG_PURGE] = &kvtier__purge_reply__descriptor,
                [KVT_MSG_STAT] = &kvtier__stat_reply__descriptor,
                [KVT_MSG_LIST] = &kvtier__list_reply__descriptor,
                [KVT_MSG_EXPLAIN] = &kvtier__explain_reply__descriptor,
                [KVT_MSG_EVENTS] = &kvtier__events_reply__descriptor,
                [KVT_MSG_PING] = &kvtier__ping_reply__descriptor,
                [KVT_MSG_DEVICE] = &kvtier__device_reply__descriptor,
                [KVT_MSG_SPACE_SET] = &kvtier__space_set_reply__descriptor,
        };
        const ProtobufCMessageDescriptor *type;
        struct frame f;

        FUZZ_CHECK(frame_parse(packet, n, &f) == 0);
        if (f.type == KVT_MSG_ERROR)
                type = &kvtier__error__descriptor;
        else if (f.type == KVT_MSG_EVENT)
                type = &kvtier__event__descriptor;
        else if (f.type == KVT_MSG_SLAB_RETIRED)
                type = &kvtier__slab_retired__descriptor;
        else
                type = f.type & KVT_REPLY && (f.type & 0xff) < KVT_MSG_MAX ? replies[f.type & 0xff] : NULL;
        FUZZ_CHECK(type);
        ProtobufCMessage *m = protobuf_c_message_unpack(type, NULL, f.body_bytes, packet + KVT_FRAME_BYTES);
        FUZZ_CHECK(m && !m->n_unknown_fields);

        if (f.type == KVT_MSG_ERROR) {
                const Kvtier__Error *e = (void *)m;
                FUZZ_CHECK(error_is_named(e->code));
        } else if (f.type == (KVT_MSG_SPACE_OPEN | KVT_REPLY)) {
                k->spaces[k->n_spaces++ % KNOWN_MAX] = ((Kvtier__SpaceOpenReply *)(void *)m)->space;
        } else if (f.type == (KVT_MSG_PUT_BEGIN | KVT_REPLY)) {
                const Kvtier__PutBeginReply *r = (void *)m;
                for (size_t i = 0; i < r->entries.len / sizeof(struct kvt_put_entry); i++) {
                        struct kvt_put_entry e;
                        memcpy(&e, r->entries.data + i * sizeof(e), sizeof(e));
                        FUZZ_CHECK(!e.status == !!e.reservation);
                        if (!e.status)
                                k->reservations[k->n_reservations++ % KNOWN_MAX] = e.reservation;
                }
        } else if (f.type == (KVT_MSG_MAP | KVT_REPLY)) {
                const Kvtier__MapReply *r = (void *)m;
                FUZZ_CHECK(r->slabs.len == n_fds * sizeof(struct kvt_map_slab));
                for (size_t i = 0; i < r->entries.len / sizeof(struct kvt_map_entry); i++) {
                        struct kvt_map_entry e;
                        memcpy(&e, r->entries.data + i * sizeof(e), sizeof(e));
                        FUZZ_CHECK(e.status || (e.slab && e.generation && e.lease));
                        if (e.status)
                                continue;
                        k->leases[k->n_leases++ % KNOWN_MAX] = e.lease;
                        k->slabs[k->n_slabs++ % KNOWN_MAX] = e.slab;
                }
        }
        FUZZ_CHECK(!n_fds || f.type == (KVT_MSG_MAP | KVT_REPLY) || f.type == (KVT_MSG_STAGING_OPEN | KVT_REPLY));
        protobuf_c_message_free_unpacked(m, NULL);
        return f.type;
}

/* fields */

static inline uint32_t make_space(const struct told *k, struct input *in)
{
        uint8_t x = input_u8(in);

        return x < 0xf0 && k->n_spaces ? k->spaces[x % (k->n_spaces < KNOWN_MAX ? k->n_spaces : KNOWN_MAX)] : x & 15;
}

/* The i-th key of one of four chains. */
static inline void make_key(uint8_t *p, unsigned chain, unsigned i)
{
        memset(p, (int)(chain + 1), 16);
        memcpy(p, &i, 2);
}

/* Mostly the first. */
static inline uint32_t make_shard(uint8_t x)
{
        return x & 4 ? x & 3 : 0;
}

/* chain and first index; how many */
static inline ProtobufCBinaryData make_keys(struct input *in, ProtobufCBinaryData *ret_parent)
{
        static uint8_t keys[2050 * 16], parent[16];
        uint8_t x = input_u8(in), how = input_u8(in);
        unsigned chain = x >> 6, first = x & 8 ? x & 7 : 0,
                 n = how < 0xd0   ? how % 6 + 1
                     : how < 0xf0 ? how - 0xd0u
                     : how < 0xf8 ? 2048
                     : how < 0xfa ? 2049
                                  : 0;

        for (unsigned i = 0; i < n; i++)
                make_key(keys + 16 * i, chain, x & 32 ? first : first + i);
        make_key(parent, chain, first - 1);
        if (ret_parent)
                *ret_parent = (ProtobufCBinaryData){first ? 16 : 0, first ? parent : NULL};
        return (ProtobufCBinaryData){16ull * n + (how >= 0xfc ? how & 3 : 0), keys};
}

static inline ProtobufCBinaryData make_numbers(struct input *in, const uint64_t *from, unsigned n_from, size_t n)
{
        static uint64_t numbers[4][2050];
        static unsigned i_slot;
        uint64_t *to = numbers[i_slot++ % 4];
        uint8_t x = input_u8(in);

        if (n_from > KNOWN_MAX)
                n_from = KNOWN_MAX;
        if (n > 2050)
                n = 2050;
        for (size_t i = 0; i < n; i++)
                to[i] = n_from && x < 0xf0 ? from[(x + i) % n_from] : x < 0xf8 ? i : UINT64_MAX - i;
        return (ProtobufCBinaryData){8 * n, (uint8_t *)to};
}

/* One for each key, into staging: one behind another, all at the same place, or far out. */
static inline ProtobufCBinaryData make_offsets(struct input *in, size_t n)
{
        static uint64_t offsets[2050];
        uint8_t x = input_u8(in);

        if (n > 2050)
                n = 2050;
        for (size_t i = 0; i < n; i++)
                offsets[i] = x < 0xc0 ? i * 1024 : x < 0xe0 ? 0 : x < 0xf0 ? (uint64_t)x << 12 : UINT64_MAX - i * x;
        return (ProtobufCBinaryData){x == 0xff ? 8 * n / 2 : 8 * n, (uint8_t *)offsets};
}

static const struct plane_shape {
        uint32_t n_planes, dtype, heads, dim, opaque_bytes, block_tokens, n_shards;
} shapes[] = {{1, KVT_DTYPE_OPAQUE, 1, 0, 256, 16, 1},   {2, KVT_DTYPE_OPAQUE, 1, 0, 128, 16, 2},    {2, KVT_DTYPE_F16, 4, 64, 0, 64, 1},
              {1, KVT_DTYPE_OPAQUE, 1, 0, 65536, 16, 1}, {1, KVT_DTYPE_OPAQUE, 1, 0, 98304, 16, 1},  {1024, KVT_DTYPE_INT8, 1, 1, 0, 1, 1},
              {1, KVT_DTYPE_OPAQUE, 1, 0, 1, 1, 64},     {1, KVT_DTYPE_OPAQUE, 1, 0, 1 << 20, 8, 1}, {3, KVT_DTYPE_F32, 2, 16, 0, 16, 3},
              {1, KVT_DTYPE_OPAQUE, 1, 0, 65536, 32, 2}};
enum { N_SHAPES = sizeof(shapes) / sizeof(*shapes) };

static const char *const space_names[] = {"a", "b", "c", "d"};

/* Mostly valid pairs of codecs, with parameters and without; "" leaves a rung as it is. */
static inline char *make_codecs(struct input *in)
{
        static const char *const pairs[] = {"",
                                            "zbf",
                                            "kivi:bits=4,group=64",
                                            "turbo",
                                            "raw",
                                            "kivi+zbf",
                                            "mixed",
                                            "gear",
                                            "stack",
                                            "bitmap",
                                            "cbf",
                                            "turbo+kivi:bits=2",
                                            "xdelta",
                                            "zbf:level=999999999999",
                                            "kivi:bits=3,",
                                            "+",
                                            ":",
                                            "kivi:bits=4,bits=2+",
                                            "zbf+zbf+zbf",
                                            "no codec"};
        static char texts[LADDER_TEXTS][3000];
        static unsigned i_slot;
        char *to = texts[i_slot++ % LADDER_TEXTS];
        uint8_t x = input_u8(in);

        if (x < 0xe0)
                return (char *)pairs[x % (sizeof(pairs) / sizeof(*pairs))];
        memset(to, x & 1 ? ',' : 'k', sizeof(texts[0])); /* long */
        to[input_number(in, 2) % sizeof(texts[0])] = 0;
        memcpy(to, "kivi:", x & 2 ? 5 : 0);
        to[sizeof(texts[0]) - 1] = 0;
        return to;
}

static inline void make_geometry(struct input *in, Kvtier__SpaceOpenRequest *m)
{
        static const float bounds[] = {0, 0.1f, 0.5f, 1, NAN, -1, 0.01f, 1e30f};
        static Kvtier__Plane planes[KVT_PLANES_MAX], *pointers[KVT_PLANES_MAX];
        static uint8_t salt_bytes[128];
        uint8_t x = input_u8(in), salt = input_u8(in);
        const struct plane_shape *s = &shapes[x % N_SHAPES];

        m->name = (char *)space_names[x % N_SHAPES & 3];
        m->salt = (ProtobufCBinaryData){salt < 0xc0 ? x % N_SHAPES : salt >> 1, salt_bytes};
        m->block_tokens = s->block_tokens;
        m->n_shards = s->n_shards;
        m->n_planes = s->n_planes;
        m->planes = pointers;
        for (size_t i = 0; i < m->n_planes; i++) {
                kvtier__plane__init(&planes[i]);
                pointers[i] = &planes[i];
                planes[i].layer = (uint32_t)i;
                planes[i].dtype = s->dtype;
                planes[i].heads = s->heads;
                planes[i].dim = s->dim;
                planes[i].opaque_bytes = s->opaque_bytes;
                planes[i].window_tokens = (uint32_t)(i % 3);
        }
        if (x >= 0xe0) { /* any numbers */
                m->block_tokens = (uint32_t)input_number(in, 2);
                m->n_shards = (uint32_t)input_number(in, 1);
                planes[0].role = (uint32_t)input_number(in, 1);
                planes[0].dtype = (uint32_t)input_number(in, 1);
                planes[0].heads = (uint32_t)input_number(in, 1);
                planes[0].dim = (uint32_t)input_number(in, 2);
                planes[0].opaque_bytes = (uint32_t)input_number(in, 4);
        }
        m->max_rel_l2 = bounds[input_u8(in) % (sizeof(bounds) / sizeof(*bounds))];
}

/* n_fields: how many are set below, or left as they are on purpose */
#define MAKE(type, message, n)                                                                                                             \
        Kvtier__##type m;                                                                                                                  \
        FUZZ_CHECK(kvtier__##message##__descriptor.n_fields == (n));                                                                       \
        kvtier__##message##__init(&m)
#define MADE n = protobuf_c_message_pack(&m.base, body)

/* Packs a request of this type at body, which has room for a packet. Returns its length. */
static inline size_t message_make(const struct told *k, struct input *in, uint16_t type, uint8_t *body)
{
        static uint8_t data[KVT_PACKET_MAX];
        static uint32_t slabs[KNOWN_MAX];
        size_t n = 0, n_keys;

        switch (type) {
        case KVT_MSG_HELLO: {
                MAKE(HelloRequest, hello_request, 4);
                m.version_min = KVT_PROTO_MIN;
                m.version_max = KVT_PROTO_MAX + input_u8(in);
                m.name = (char *)"fuzz\n";
                m.library = (char *)"0";
                MADE;
                break;
        }
        case KVT_MSG_SPACE_OPEN: {
                MAKE(SpaceOpenRequest, space_open_request, 6);
                make_geometry(in, &m);
                MADE;
                break;
        }
        case KVT_MSG_STAGING_OPEN: {
                MAKE(StagingOpenRequest, staging_open_request, 1);
                uint8_t x = input_u8(in);
                m.bytes = x ? (uint64_t)x << x % 57 : 2 << 20;
                MADE;
                break;
        }
        case KVT_MSG_MATCH: {
                MAKE(MatchRequest, match_request, 4);
                m.space = make_space(k, in);
                m.keys = make_keys(in, NULL);
                uint8_t x = input_u8(in);
                m.releases = make_numbers(in, k->leases, k->n_leases, x & 3);
                m.probe = x >> 7;
                MADE;
                break;
        }
        case KVT_MSG_PUT_BEGIN: {
                MAKE(PutBeginRequest, put_begin_request, 7);
                m.space = make_space(k, in);
                m.keys = make_keys(in, &m.parent);
                uint8_t x = input_u8(in);
                m.shard = make_shard(x);
                m.replace = x >> 7;
                m.durable = x >> 3 & 1;
                m.hints = x >> 4 & 1;
                MADE;
                break;
        }
        case KVT_MSG_PUT_COMMIT: {
                MAKE(PutCommitRequest, put_commit_request, 9);
                m.space = make_space(k, in);
                m.keys = make_keys(in, &m.parent);
                n_keys = m.keys.len / 16;
                m.offsets = make_offsets(in, n_keys);
                uint8_t x = input_u8(in);
                m.shard = make_shard(x);
                m.replace = x >> 7;
                m.durable = x >> 3 & 1;
                if (x & 0x40)
                        m.reservations = make_numbers(in, k->reservations, k->n_reservations, n_keys);
                if (x & 0x20)
                        m.keys.len = 0;
                if (x & 0x10) { /* right for some block, or any */
                        static const uint32_t lengths[] = {3, 33, 35, 9, 129, 137, 17, 19, 5, 65};
                        uint8_t h = input_u8(in);
                        m.hint_bytes = h < 0xe0 ? lengths[h % 10] : (uint32_t)input_number(in, 4);
                }
                MADE;
                break;
        }
        case KVT_MSG_PUT_ABORT: {
                MAKE(PutAbortRequest, put_abort_request, 1);
                m.reservations = make_numbers(in, k->reservations, k->n_reservations, input_u8(in) % 20);
                MADE;
                break;
        }
        case KVT_MSG_MAP: {
                MAKE(MapRequest, map_request, 4);
                m.space = make_space(k, in);
                m.keys = make_keys(in, NULL);
                uint8_t x = input_u8(in);
                m.shard = make_shard(x);
                m.releases = make_numbers(in, k->leases, k->n_leases, x >> 6);
                MADE;
                break;
        }
        case KVT_MSG_RELEASE: {
                MAKE(ReleaseRequest, release_request, 1);
                m.leases = make_numbers(in, k->leases, k->n_leases, input_u8(in) % 20);
                MADE;
                break;
        }
        case KVT_MSG_SLAB_ACK: {
                MAKE(SlabAck, slab_ack, 1);
                uint8_t x = input_u8(in);
                for (size_t i = 0; i < KNOWN_MAX; i++)
                        slabs[i] = x & 0x80 ? k->slabs[i] : (uint32_t)i * (x & 31);
                m.slabs = slabs;
                m.n_slabs = KNOWN_MAX;
                MADE;
                break;
        }
        case KVT_MSG_GET: {
                MAKE(GetRequest, get_request, 6);
                m.space = make_space(k, in);
                m.keys = make_keys(in, NULL);
                m.offsets = make_offsets(in, m.keys.len / 16);
                uint8_t x = input_u8(in);
                m.shard = make_shard(x);
                if (x & 8) {
                        m.first_plane = x & 16 ? (uint32_t)input_number(in, 4) : input_u8(in) & 3;
                        m.n_planes = x & 32 ? (uint32_t)input_number(in, 4) : input_u8(in) & 3;
                }
                MADE;
                break;
        }
        case KVT_MSG_PREFETCH: {
                MAKE(PrefetchRequest, prefetch_request, 3);
                m.space = make_space(k, in);
                m.keys = make_keys(in, NULL);
                uint8_t x = input_u8(in);
                m.deadline_usec = x < 0xf8 ? x * 10000ull : UINT64_MAX >> (x & 7) * 8;
                MADE;
                break;
        }
        case KVT_MSG_DROP: {
                MAKE(DropRequest, drop_request, 3);
                m.space = make_space(k, in);
                m.keys = make_keys(in, NULL);
                m.corrupt = input_u8(in) & 1;
                MADE;
                break;
        }
        case KVT_MSG_PURGE: {
                static const char *const names[] = {"", "uid:0", "uid:1234", "nobody"};
                MAKE(PurgeRequest, purge_request, 2);
                uint8_t x = input_u8(in);
                m.tenant = (char *)names[x & 3];
                m.space = x & 4 ? make_space(k, in) : 0;
                MADE;
                break;
        }
        case KVT_MSG_STAT: {
                MAKE(StatRequest, stat_request, 1);
                m.audit = input_u8(in) & 1;
                MADE;
                break;
        }
        case KVT_MSG_LIST: {
                MAKE(ListRequest, list_request, 4);
                uint8_t x = input_u8(in);
                m.what = (Kvtier__ListWhat)(x % 6);
                m.space = x & 0x40 ? make_space(k, in) : 0;
                m.cursor = x & 0x20 ? input_number(in, 8) : 0;
                m.limit = x & 0x80 ? input_u8(in) : 0;
                MADE;
                break;
        }
        case KVT_MSG_EXPLAIN: {
                MAKE(ExplainRequest, explain_request, 2);
                m.space = make_space(k, in);
                m.key = make_keys(in, NULL);
                if (m.key.len > 16)
                        m.key.len = 16;
                MADE;
                break;
        }
        case KVT_MSG_EVENTS: {
                MAKE(EventsRequest, events_request, 2);
                m.space = make_space(k, in);
                m.on = !(input_u8(in) & 1);
                MADE;
                break;
        }
        case KVT_MSG_CANCEL: {
                MAKE(CancelRequest, cancel_request, 1);
                m.request_id = input_u8(in) + 1u;
                MADE;
                break;
        }
        case KVT_MSG_PING: {
                MAKE(PingRequest, ping_request, 1);
                m.data = (ProtobufCBinaryData){(size_t)input_u8(in) * 510, data};
                MADE;
                break;
        }
        case KVT_MSG_SPACE_SET: {
                static const char *const tenants[] = {"", "uid:0", "*", "uid:1234", "nobody"};
                MAKE(SpaceSetRequest, space_set_request, 5);
                uint8_t x = input_u8(in);
                m.tenant = (char *)tenants[x % 5];
                m.name = (char *)(x >= 0xf0 ? "" : space_names[x / 5 % 4]);
                m.hot = make_codecs(in);
                m.cold = make_codecs(in);
                m.nvme = make_codecs(in);
                MADE;
                break;
        }
        case KVT_MSG_DEVICE: {
                MAKE(DeviceRequest, device_request, 2);
                m.action = (Kvtier__DeviceDo)(input_u8(in) % 5);
                m.path = (char *)device_paths[input_u8(in) % N_DEVICE_PATHS];
                MADE;
                break;
        }
        }
        if (input_u8(in) >= 0xf0 && n) /* damage */
                for (uint8_t i = input_u8(in) % 4; i; i--) {
                        size_t at = input_number(in, 2) % n;
                        body[at] = input_u8(in);
                }
        return n;
}
#undef MAKE
#undef MADE
