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
        q.version_min = q.version_max = KVT_PROTO_MAX;
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
                TEST(test_noise),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
