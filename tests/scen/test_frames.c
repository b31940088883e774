/* Packets that no library sends, to a real daemon: each gets its named error or loses its own connection, and nobody else's. */
#include <fcntl.h>
#include <sys/socket.h>

#include "tests/lib/daemon.h"
#include "tests/lib/raw.h"

static struct raw r, other;

/* A connection that has greeted. */
static void enter(const struct daemon *d)
{
        raw_open(&r, d->socket);
        raw_hello(&r);
}

static void test_truncated_header(void **state)
{
        struct daemon d;
        uint8_t frame[KVT_FRAME_BYTES];

        DAEMON_START(&d);
        raw_open(&other, d.socket);
        raw_hello(&other);
        frame_put(frame, 1, KVT_MSG_PING, 7, 0);
        for (size_t n = 1; n < sizeof(frame); n++) {
                enter(&d);
                CHECK_EQ(raw_send_bytes(&r, frame, n, NULL, 0), 0);
                raw_expect_error(&r, 0, KVT_E_BAD_FRAME);
                raw_expect_closed(&r);
                raw_close(&r);
        }
        CHECK(raw_alive(&other));
        CHECK_EQ(daemon_counter(&d, "bad_packets"), sizeof(frame) - 1);
        raw_close(&other);
        daemon_end(&d);
}

static void test_empty_packet_closes(void **state)
{
        struct daemon d;

        DAEMON_START(&d);
        enter(&d);
        CHECK_EQ(raw_send_bytes(&r, "", 0, NULL, 0), 0);
        raw_expect_closed(&r);
        raw_close(&r);
        daemon_end(&d);
}

static void test_length_that_lies(void **state)
{
        static const int off[] = {-1, 1, 1000, -16};
        struct daemon d;
        uint8_t packet[64] = {};

        DAEMON_START(&d);
        for (size_t i = 0; i < sizeof(off) / sizeof(*off); i++) {
                enter(&d);
                frame_put(packet, 1, KVT_MSG_PING, 7, (uint32_t)(20 + off[i]));
                CHECK_EQ(raw_send_bytes(&r, packet, KVT_FRAME_BYTES + 20, NULL, 0), 0);
                raw_expect_error(&r, 0, KVT_E_BAD_FRAME);
                raw_expect_closed(&r);
                raw_close(&r);
        }
        enter(&d);
        frame_put(packet, 1, KVT_MSG_PING, 7, UINT32_MAX);
        CHECK_EQ(raw_send_bytes(&r, packet, KVT_FRAME_BYTES, NULL, 0), 0);
        raw_expect_error(&r, 0, KVT_E_BAD_FRAME);
        raw_expect_closed(&r);
        raw_close(&r);
        daemon_end(&d);
}

static void test_magic_and_zero_bytes(void **state)
{
        static const size_t at[] = {0, 1, 3, 6, 7};
        struct daemon d;

        DAEMON_START(&d);
        for (size_t i = 0; i < sizeof(at) / sizeof(*at); i++) {
                uint8_t frame[KVT_FRAME_BYTES];
                enter(&d);
                frame_put(frame, 1, KVT_MSG_PING, 7, 0);
                frame[at[i]] ^= 0x40;
                CHECK_EQ(raw_send_bytes(&r, frame, sizeof(frame), NULL, 0), 0);
                raw_expect_error(&r, 0, KVT_E_BAD_FRAME);
                raw_expect_closed(&r);
                raw_close(&r);
        }
        daemon_end(&d);
}

static void test_oversized(void **state)
{
        struct daemon d;
        uint8_t *packet = calloc(1, KVT_PACKET_MAX + 4096);
        int bytes = 1 << 20;

        DAEMON_START(&d);
        for (size_t extra = 1; extra <= 4096; extra *= 64) {
                enter(&d);
                setsockopt(r.fd, SOL_SOCKET, SO_SNDBUF, &bytes, sizeof(bytes));
                frame_put(packet, 1, KVT_MSG_PING, 7, (uint32_t)(KVT_PACKET_MAX + extra - KVT_FRAME_BYTES));
                CHECK_EQ(raw_send_bytes(&r, packet, KVT_PACKET_MAX + extra, NULL, 0), 0);
                raw_expect_error(&r, 0, KVT_E_BAD_FRAME);
                raw_expect_closed(&r);
                raw_close(&r);
        }
        free(packet);
        daemon_end(&d);
}

/* The largest packet there may be is served, and its answer arrives whole. */
static void test_largest(void **state)
{
        size_t n = KVT_PACKET_MAX - KVT_FRAME_BYTES - 4; /* tag and length */
        uint8_t *data = malloc(n);
        Kvtier__PingRequest q = KVTIER__PING_REQUEST__INIT;
        struct daemon d;
        int bytes = 1 << 20;

        DAEMON_START(&d);
        enter(&d);
        setsockopt(r.fd, SOL_SOCKET, SO_SNDBUF, &bytes, sizeof(bytes));
        for (size_t i = 0; i < n; i++)
                data[i] = (uint8_t)(i * 7);
        q.data = (ProtobufCBinaryData){n, data};
        CHECK_EQ(protobuf_c_message_get_packed_size(&q.base), KVT_PACKET_MAX - KVT_FRAME_BYTES);
        Kvtier__PingReply *m = raw_call(&r, KVT_MSG_PING, &q, &kvtier__ping_reply__descriptor);
        CHECK(m && m->data.len == n && !memcmp(m->data.data, data, n));
        protobuf_c_message_free_unpacked(&m->base, NULL);
        free(data);
        raw_close(&r);
        daemon_end(&d);
}

static void test_unknown_type(void **state)
{
        static const uint16_t types[] = {
                0, KVT_MSG_MAX, 1000, KVT_MSG_EVENT, KVT_MSG_SLAB_RETIRED, KVT_REPLY | KVT_MSG_PING, KVT_MSG_ERROR};
        struct daemon d;

        DAEMON_START(&d);
        enter(&d);
        for (size_t i = 0; i < sizeof(types) / sizeof(*types); i++) {
                CHECK_EQ(raw_send_body(&r, types[i], 40 + (uint32_t)i, "xyz", 3), 0);
                raw_expect_error(&r, 40 + (uint32_t)i, KVT_E_BAD_TYPE);
        }
        CHECK(raw_alive(&r)); /* well framed: the session goes on */
        raw_close(&r);
        daemon_end(&d);
}

static void test_body_that_is_no_message(void **state)
{
        static const char *const bodies[] = {
                "\x07", /* wire type 7 */
                "\x0a\xff\xff\xff\xff\x0f", /* 4 GiB of bytes to come */
                "\x0a\x05xx", /* five bytes, two there */
                "\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80", /* a tag without end */
                "\x00\x01", /* field 0 */
        };
        struct daemon d;
        uint32_t id = 100;

        DAEMON_START(&d);
        enter(&d);
        for (uint16_t type = KVT_MSG_SPACE_OPEN; type < KVT_MSG_MAX; type++)
                for (size_t i = 0; i < sizeof(bodies) / sizeof(*bodies); i++) {
                        size_t n = i == 4 ? 2 : strlen(bodies[i]);
                        CHECK_EQ(raw_send_body(&r, type, ++id, bodies[i], n), 0);
                        raw_expect_error(&r, id, KVT_E_BAD_REQUEST);
                }
        CHECK(raw_alive(&r));
        raw_close(&r);
        raw_open(&r, d.socket); /* and a hello like that */
        CHECK_EQ(raw_send_body(&r, KVT_MSG_HELLO, 1, bodies[0], 1), 0);
        raw_expect_error(&r, 1, KVT_E_BAD_REQUEST);
        raw_close(&r);
        daemon_end(&d);
}

/* Fields of another release are not an error. */
static void test_unknown_fields_are_ignored(void **state)
{
        struct daemon d;

        DAEMON_START(&d);
        enter(&d);
        CHECK_EQ(raw_send_body(&r, KVT_MSG_PING, 9, "\x0a\x01z\xf8\x06\x01", 6), 0); /* data "z", field 111 = 1 */
        CHECK_EQ(raw_recv(&r, RAW_TIMEOUT_MSEC), RAW_PACKET);
        CHECK_EQ(r.f.type, KVT_MSG_PING | KVT_REPLY);
        CHECK_EQ(r.f.request_id, 9);
        raw_close(&r);
        daemon_end(&d);
}

static void test_wrong_version_in_frame(void **state)
{
        struct daemon d;

        DAEMON_START(&d);
        enter(&d);
        r.version = KVT_PROTO_MAX + 1;
        CHECK_EQ(raw_send_body(&r, KVT_MSG_PING, 3, NULL, 0), 0);
        raw_expect_error(&r, 3, KVT_E_VERSION);
        raw_expect_closed(&r);
        raw_close(&r);
        daemon_end(&d);
}

static void test_hello_without_common_version(void **state)
{
        static const uint32_t ranges[][2] = {{KVT_PROTO_MAX + 1, KVT_PROTO_MAX + 5}, {0, 0}, {5, 2}, {UINT32_MAX, UINT32_MAX}};
        struct daemon d;

        DAEMON_START(&d);
        for (size_t i = 0; i < sizeof(ranges) / sizeof(*ranges); i++) {
                Kvtier__HelloRequest q = KVTIER__HELLO_REQUEST__INIT;
                raw_open(&r, d.socket);
                q.version_min = ranges[i][0];
                q.version_max = ranges[i][1];
                raw_send(&r, KVT_MSG_HELLO, 2, &q);
                raw_expect_error(&r, 2, KVT_E_VERSION);
                CHECK(strstr(r.error_text, "protocol versions"));
                raw_expect_closed(&r);
                raw_close(&r);
        }
        /* a wider range has one in common, whatever version its frame is of */
        Kvtier__HelloRequest q = KVTIER__HELLO_REQUEST__INIT;
        raw_open(&r, d.socket);
        r.version = 9;
        q.version_min = 0;
        q.version_max = UINT32_MAX;
        Kvtier__HelloReply *m = raw_call(&r, KVT_MSG_HELLO, &q, &kvtier__hello_reply__descriptor);
        CHECK(m && m->version == KVT_PROTO_MAX);
        protobuf_c_message_free_unpacked(&m->base, NULL);
        raw_close(&r);
        daemon_end(&d);
}

static void test_request_before_hello(void **state)
{
        struct daemon d;

        DAEMON_START(&d);
        for (uint16_t type = KVT_MSG_SPACE_OPEN; type < KVT_MSG_MAX; type++) {
                raw_open(&r, d.socket);
                CHECK_EQ(raw_send_body(&r, type, 5, NULL, 0), 0);
                raw_expect_error(&r, 5, KVT_E_BAD_TYPE);
                raw_expect_closed(&r);
                raw_close(&r);
        }
        daemon_end(&d);
}

static void test_second_hello(void **state)
{
        Kvtier__HelloRequest q = KVTIER__HELLO_REQUEST__INIT;
        struct daemon d;

        DAEMON_START(&d);
        enter(&d);
        q.version_min = q.version_max = 1;
        raw_send(&r, KVT_MSG_HELLO, 6, &q);
        raw_expect_error(&r, 6, KVT_E_BAD_TYPE);
        raw_expect_closed(&r);
        raw_close(&r);
        daemon_end(&d);
}

static void test_no_hello_in_time(void **state)
{
        struct daemon d;
        uint64_t start;

        DAEMON_START(&d, "--hello_timeout_usec=100ms");
        start = check_now_usec();
        raw_open(&r, d.socket);
        raw_expect_closed(&r);
        CHECK(check_now_usec() - start >= 90000);
        raw_close(&r);
        enter(&d); /* one that did say it stays */
        usleep(250000);
        CHECK(raw_alive(&r));
        raw_close(&r);
        daemon_end(&d);
}

static void test_descriptors_are_refused_and_do_not_leak(void **state)
{
        struct daemon d;
        uint8_t frame[KVT_FRAME_BYTES];
        int fds[RAW_FDS_MAX], n_fds[] = {1, 2, 16, RAW_FDS_MAX};
        unsigned before;

        DAEMON_START(&d);
        for (size_t i = 0; i < RAW_FDS_MAX; i++)
                fds[i] = open("/dev/null", O_RDONLY | O_CLOEXEC);
        raw_open(&other, d.socket);
        raw_hello(&other);
        before = daemon_n_fds(&d);
        frame_put(frame, 1, KVT_MSG_PING, 7, 0);
        for (size_t i = 0; i < sizeof(n_fds) / sizeof(*n_fds); i++)
                for (int greeted = 0; greeted < 2; greeted++) {
                        raw_open(&r, d.socket);
                        if (greeted)
                                raw_hello(&r);
                        CHECK_EQ(raw_send_bytes(&r, frame, sizeof(frame), fds, (size_t)n_fds[i]), 0);
                        raw_expect_error(&r, 0, KVT_E_BAD_FDS);
                        raw_expect_closed(&r);
                        raw_close(&r);
                }
        CHECK(raw_alive(&other));
        CHECK_EQ(daemon_n_fds(&d), before);
        raw_close(&other);
        for (size_t i = 0; i < RAW_FDS_MAX; i++)
                close(fds[i]);
        daemon_end(&d);
}

#define REFUSED(type, message, code)                                                                                                       \
        do {                                                                                                                               \
                CHECK_IS(raw_status(&r, type, &(message).base), code);                                                                     \
                CHECK(raw_alive(&r));                                                                                                      \
        } while (0)

static ProtobufCBinaryData zeros(size_t n)
{
        static uint8_t bytes[KVT_PACKET_MAX];

        return (ProtobufCBinaryData){n, bytes};
}

static void test_keys_out_of_range(void **state)
{
        static const size_t lengths[] = {0, 1, 15, 17, 16 * (KVT_KEYS_MAX + 1)};
        struct daemon d;

        DAEMON_START(&d);
        enter(&d);
        uint32_t space = raw_space(&r, "m", 4096, 2);
        raw_staging(&r, 1 << 20);
        for (size_t i = 0; i < sizeof(lengths) / sizeof(*lengths); i++) {
                Kvtier__MatchRequest match = KVTIER__MATCH_REQUEST__INIT;
                Kvtier__MapRequest map = KVTIER__MAP_REQUEST__INIT;
                Kvtier__GetRequest get = KVTIER__GET_REQUEST__INIT;
                Kvtier__PutBeginRequest begin = KVTIER__PUT_BEGIN_REQUEST__INIT;
                Kvtier__PutCommitRequest commit = KVTIER__PUT_COMMIT_REQUEST__INIT;
                Kvtier__PrefetchRequest prefetch = KVTIER__PREFETCH_REQUEST__INIT;
                Kvtier__DropRequest drop = KVTIER__DROP_REQUEST__INIT;
                match.space = map.space = get.space = begin.space = commit.space = prefetch.space = drop.space = space;
                match.keys = map.keys = get.keys = begin.keys = commit.keys = prefetch.keys = drop.keys = zeros(lengths[i]);
                REFUSED(KVT_MSG_MATCH, match, KVT_E_BAD_REQUEST);
                REFUSED(KVT_MSG_MAP, map, KVT_E_BAD_REQUEST);
                REFUSED(KVT_MSG_GET, get, KVT_E_BAD_REQUEST);
                REFUSED(KVT_MSG_PUT_BEGIN, begin, KVT_E_BAD_REQUEST);
                REFUSED(KVT_MSG_PUT_COMMIT, commit, KVT_E_BAD_REQUEST);
                REFUSED(KVT_MSG_PREFETCH, prefetch, KVT_E_BAD_REQUEST);
                REFUSED(KVT_MSG_DROP, drop, KVT_E_BAD_REQUEST);
        }
        raw_close(&r);
        daemon_end(&d);
}

static void test_shard_parent_and_reservations_out_of_range(void **state)
{
        struct daemon d;

        DAEMON_START(&d);
        enter(&d);
        uint32_t space = raw_space(&r, "m", 4096, 2);
        raw_staging(&r, 1 << 20);
        for (uint32_t shard = 2; shard; shard = shard == 2 ? UINT32_MAX : 0) {
                Kvtier__MapRequest map = KVTIER__MAP_REQUEST__INIT;
                Kvtier__GetRequest get = KVTIER__GET_REQUEST__INIT;
                Kvtier__PutBeginRequest begin = KVTIER__PUT_BEGIN_REQUEST__INIT;
                Kvtier__PutCommitRequest commit = KVTIER__PUT_COMMIT_REQUEST__INIT;
                map.space = get.space = begin.space = commit.space = space;
                map.keys = get.keys = begin.keys = commit.keys = zeros(16);
                get.offsets = commit.offsets = zeros(8);
                map.shard = get.shard = begin.shard = commit.shard = shard;
                REFUSED(KVT_MSG_MAP, map, KVT_E_BAD_REQUEST);
                REFUSED(KVT_MSG_GET, get, KVT_E_BAD_REQUEST);
                REFUSED(KVT_MSG_PUT_BEGIN, begin, KVT_E_BAD_REQUEST);
                REFUSED(KVT_MSG_PUT_COMMIT, commit, KVT_E_BAD_REQUEST);
        }
        for (size_t n = 1; n <= 32; n = n == 1 ? 15 : n == 15 ? 17 : n == 17 ? 32 : 33) {
                Kvtier__PutBeginRequest begin = KVTIER__PUT_BEGIN_REQUEST__INIT;
                Kvtier__PutCommitRequest commit = KVTIER__PUT_COMMIT_REQUEST__INIT;
                begin.space = commit.space = space;
                begin.keys = commit.keys = zeros(16);
                commit.offsets = zeros(8);
                begin.parent = commit.parent = zeros(n);
                REFUSED(KVT_MSG_PUT_BEGIN, begin, KVT_E_BAD_REQUEST);
                REFUSED(KVT_MSG_PUT_COMMIT, commit, KVT_E_BAD_REQUEST);
        }
        for (size_t n = 0; n <= 8 * (KVT_KEYS_MAX + 1); n = n == 0 ? 7 : n == 7 ? 12 : n == 12 ? 8 * (KVT_KEYS_MAX + 1) : SIZE_MAX) {
                Kvtier__PutAbortRequest abort_ = KVTIER__PUT_ABORT_REQUEST__INIT;
                abort_.reservations = zeros(n);
                REFUSED(KVT_MSG_PUT_ABORT, abort_, KVT_E_BAD_REQUEST);
                if (!n)
                        continue;
                Kvtier__PutCommitRequest commit = KVTIER__PUT_COMMIT_REQUEST__INIT;
                commit.space = space;
                commit.reservations = zeros(n);
                commit.offsets = zeros(n);
                REFUSED(KVT_MSG_PUT_COMMIT, commit, KVT_E_BAD_REQUEST);
        }
        Kvtier__PutCommitRequest uneven = KVTIER__PUT_COMMIT_REQUEST__INIT; /* two reservations, one key */
        uneven.space = space;
        uneven.reservations = uneven.offsets = zeros(16);
        uneven.keys = zeros(16);
        REFUSED(KVT_MSG_PUT_COMMIT, uneven, KVT_E_BAD_REQUEST);
        raw_close(&r);
        daemon_end(&d);
}

static void test_unknown_space(void **state)
{
        static const uint32_t spaces[] = {0, 2, 64, UINT32_MAX};
        struct daemon d;

        DAEMON_START(&d);
        enter(&d);
        CHECK_EQ(raw_space(&r, "m", 4096, 1), 1);
        for (size_t i = 0; i < sizeof(spaces) / sizeof(*spaces); i++) {
                Kvtier__MatchRequest match = KVTIER__MATCH_REQUEST__INIT;
                Kvtier__MapRequest map = KVTIER__MAP_REQUEST__INIT;
                Kvtier__GetRequest get = KVTIER__GET_REQUEST__INIT;
                Kvtier__PutBeginRequest begin = KVTIER__PUT_BEGIN_REQUEST__INIT;
                Kvtier__PutCommitRequest commit = KVTIER__PUT_COMMIT_REQUEST__INIT;
                Kvtier__PrefetchRequest prefetch = KVTIER__PREFETCH_REQUEST__INIT;
                Kvtier__DropRequest drop = KVTIER__DROP_REQUEST__INIT;
                Kvtier__ExplainRequest explain = KVTIER__EXPLAIN_REQUEST__INIT;
                Kvtier__EventsRequest events = KVTIER__EVENTS_REQUEST__INIT;
                Kvtier__ListRequest list = KVTIER__LIST_REQUEST__INIT;
                match.space = map.space = get.space = begin.space = commit.space = prefetch.space = drop.space = explain.space = spaces[i];
                events.space = list.space = spaces[i];
                match.keys = map.keys = get.keys = begin.keys = commit.keys = prefetch.keys = drop.keys = explain.key = zeros(16);
                events.on = true;
                list.what = KVTIER__LIST_WHAT__LIST_BLOCKS;
                REFUSED(KVT_MSG_MATCH, match, KVT_E_UNKNOWN_SPACE);
                REFUSED(KVT_MSG_MAP, map, KVT_E_UNKNOWN_SPACE);
                REFUSED(KVT_MSG_GET, get, KVT_E_UNKNOWN_SPACE);
                REFUSED(KVT_MSG_PUT_BEGIN, begin, KVT_E_UNKNOWN_SPACE);
                REFUSED(KVT_MSG_PUT_COMMIT, commit, KVT_E_UNKNOWN_SPACE);
                REFUSED(KVT_MSG_PREFETCH, prefetch, KVT_E_UNKNOWN_SPACE);
                REFUSED(KVT_MSG_DROP, drop, KVT_E_UNKNOWN_SPACE);
                REFUSED(KVT_MSG_EXPLAIN, explain, KVT_E_UNKNOWN_SPACE);
                REFUSED(KVT_MSG_EVENTS, events, KVT_E_UNKNOWN_SPACE);
                REFUSED(KVT_MSG_LIST, list, KVT_E_UNKNOWN_SPACE);
        }
        raw_close(&r);
        daemon_end(&d);
}

static void test_space_out_of_range(void **state)
{
        struct daemon d;
        char name[KVT_NAME_MAX + 2];
        Kvtier__Plane plane = KVTIER__PLANE__INIT, *many[KVT_PLANES_MAX + 1];

        DAEMON_START(&d);
        enter(&d);
        plane.dtype = KVT_DTYPE_F16;
        plane.heads = 2;
        plane.dim = 64;
        for (size_t i = 0; i < sizeof(many) / sizeof(*many); i++)
                many[i] = &plane;
        memset(name, 'n', sizeof(name) - 1);
        name[sizeof(name) - 1] = 0;
        const Kvtier__SpaceOpenRequest good = {
                PROTOBUF_C_MESSAGE_INIT(&kvtier__space_open_request__descriptor), (char *)"m", {0, NULL}, 16, 1, 1, many};
        Kvtier__SpaceOpenRequest q = good;
        CHECK_OK(raw_status(&r, KVT_MSG_SPACE_OPEN, &q.base));
#define BAD(field, value, code)                                                                                                            \
        q = good;                                                                                                                          \
        q.field = value;                                                                                                                   \
        REFUSED(KVT_MSG_SPACE_OPEN, q, code)
        BAD(name, (char *)"", KVT_E_BAD_REQUEST);
        BAD(name, name, KVT_E_BAD_REQUEST);
        BAD(name, (char *)"a\nb", KVT_E_BAD_REQUEST);
        BAD(name, (char *)"a\x7f", KVT_E_BAD_REQUEST);
        BAD(salt, zeros(KVT_SALT_MAX + 1), KVT_E_BAD_REQUEST);
        BAD(block_tokens, 0, KVT_E_BAD_REQUEST);
        BAD(block_tokens, UINT32_MAX, KVT_E_BAD_REQUEST);
        BAD(n_shards, 0, KVT_E_BAD_REQUEST);
        BAD(n_shards, 65, KVT_E_BAD_REQUEST);
        BAD(n_planes, 0, KVT_E_BAD_REQUEST);
        BAD(n_planes, KVT_PLANES_MAX + 1, KVT_E_BAD_REQUEST);
        BAD(block_tokens, 65536, KVT_E_GEOMETRY); /* under this name stands another */
        Kvtier__Plane odd = plane;
        many[0] = &odd;
        odd.dtype = 99;
        q = good;
        REFUSED(KVT_MSG_SPACE_OPEN, q, KVT_E_BAD_REQUEST);
        odd = plane;
        odd.role = 99;
        REFUSED(KVT_MSG_SPACE_OPEN, q, KVT_E_BAD_REQUEST);
        odd = plane;
        odd.heads = UINT32_MAX;
        odd.dim = UINT32_MAX;
        REFUSED(KVT_MSG_SPACE_OPEN, q, KVT_E_BAD_REQUEST);
        odd = plane;
        odd.heads = 0;
        REFUSED(KVT_MSG_SPACE_OPEN, q, KVT_E_BAD_REQUEST);
        CHECK_EQ(daemon_status(&d).n_spaces, 1);
        raw_close(&r);
        daemon_end(&d);
}

static void test_lists_out_of_range(void **state)
{
        static const uint64_t cursors[] = {0, 1, UINT32_MAX, UINT32_MAX + 1ull, UINT64_MAX - 1, UINT64_MAX};
        struct daemon d;

        DAEMON_START(&d);
        enter(&d);
        uint32_t space = raw_space(&r, "m", 4096, 1);
        for (int what = -1; what <= 4; what++)
                for (size_t i = 0; i < sizeof(cursors) / sizeof(*cursors); i++)
                        for (uint32_t limit = 0; limit <= 2; limit++) {
                                Kvtier__ListRequest q = KVTIER__LIST_REQUEST__INIT;
                                q.what = (Kvtier__ListWhat)what;
                                q.space = space;
                                q.cursor = cursors[i];
                                q.limit = limit == 2 ? UINT32_MAX : limit;
                                REFUSED(KVT_MSG_LIST, q, what < 0 || what > 3 ? KVT_E_BAD_REQUEST : 0);
                        }
        raw_close(&r);
        daemon_end(&d);
}

static void test_other_values_out_of_range(void **state)
{
        struct daemon d;

        DAEMON_START(&d);
        enter(&d);
        uint32_t space = raw_space(&r, "m", 4096, 1);
        Kvtier__ExplainRequest explain = KVTIER__EXPLAIN_REQUEST__INIT;
        explain.space = space;
        explain.key = zeros(15);
        REFUSED(KVT_MSG_EXPLAIN, explain, KVT_E_BAD_REQUEST);
        Kvtier__PurgeRequest purge = KVTIER__PURGE_REQUEST__INIT;
        purge.tenant = (char *)"nobody";
        REFUSED(KVT_MSG_PURGE, purge, KVT_E_DENIED);
        purge.tenant = (char *)"";
        purge.space = 99;
        REFUSED(KVT_MSG_PURGE, purge, KVT_E_UNKNOWN_SPACE);
        /* one way: nothing to refuse, nothing to happen */
        Kvtier__ReleaseRequest release = KVTIER__RELEASE_REQUEST__INIT;
        uint64_t ids[] = {0, 1, 1 << 20, UINT64_MAX, 1ull << 20 | 1};
        release.leases = (ProtobufCBinaryData){sizeof(ids) - 3, (uint8_t *)ids};
        raw_send(&r, KVT_MSG_RELEASE, 0, &release);
        Kvtier__SlabAck ack = KVTIER__SLAB_ACK__INIT;
        uint32_t slabs[] = {0, 1, 63, 64, UINT32_MAX};
        ack.slabs = slabs;
        ack.n_slabs = 5;
        raw_send(&r, KVT_MSG_SLAB_ACK, 0, &ack);
        Kvtier__CancelRequest cancel = KVTIER__CANCEL_REQUEST__INIT;
        cancel.request_id = 12345;
        raw_send(&r, KVT_MSG_CANCEL, 0, &cancel);
        raw_send_body(&r, KVT_MSG_FD_ACK, 0, NULL, 0);
        CHECK(raw_alive(&r));
        raw_close(&r);
        daemon_end(&d);
}

/* Noise, half of it in a good frame: the daemon lives, and a bystander is served all the time. */
static void test_noise(void **state)
{
        struct daemon d;
        uint8_t bytes[512];
        unsigned seed = 12345;

        DAEMON_START(&d);
        raw_open(&other, d.socket);
        raw_hello(&other);
        for (int i = 0; i < 400; i++) {
                enter(&d);
                for (int k = 0; k < 5; k++) {
                        size_t n = (size_t)rand_r(&seed) % sizeof(bytes);
                        for (size_t j = 0; j < n; j++)
                                bytes[j] = (uint8_t)(rand_r(&seed) >> 7);
                        if (i % 2)
                                raw_send_bytes(&r, bytes, n, NULL, 0);
                        else
                                raw_send_body(&r, (uint16_t)(2 + rand_r(&seed) % (KVT_MSG_MAX - 2)), 1, bytes, n);
                }
                if (i % 100 == 0)
                        CHECK(raw_alive(&other));
                raw_close(&r);
        }
        CHECK(raw_alive(&other));
        raw_close(&other);
        WAIT_FOR(daemon_status(&d).n_sessions == 0, 5000);
        daemon_end(&d);
}

int main(void)
{
        const struct CMUnitTest tests[] = {
                TEST(test_truncated_header),
                TEST(test_empty_packet_closes),
                TEST(test_length_that_lies),
                TEST(test_magic_and_zero_bytes),
                TEST(test_oversized),
                TEST(test_largest),
                TEST(test_unknown_type),
                TEST(test_body_that_is_no_message),
                TEST(test_unknown_fields_are_ignored),
                TEST(test_wrong_version_in_frame),
                TEST(test_hello_without_common_version),
                TEST(test_request_before_hello),
                TEST(test_second_hello),
                TEST(test_no_hello_in_time),
                TEST(test_descriptors_are_refused_and_do_not_leak),
                TEST(test_keys_out_of_range),
                TEST(test_shard_parent_and_reservations_out_of_range),
                TEST(test_unknown_space),
                TEST(test_space_out_of_range),
                TEST(test_lists_out_of_range),
                TEST(test_other_values_out_of_range),
                TEST(test_noise),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
