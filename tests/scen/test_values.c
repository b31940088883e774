/* Well-framed requests with values out of range: each its named error, and the session goes on. */
#include <fcntl.h>
#include <sys/socket.h>

#include "tests/lib/daemon.h"
#include "tests/lib/raw.h"

static struct raw r;

/* A connection that has greeted. */
static void enter(const struct daemon *d)
{
        raw_open(&r, d->socket);
        raw_hello(&r);
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
        for (int what = -1; what <= 5; what++)
                for (size_t i = 0; i < sizeof(cursors) / sizeof(*cursors); i++)
                        for (uint32_t limit = 0; limit <= 2; limit++) {
                                Kvtier__ListRequest q = KVTIER__LIST_REQUEST__INIT;
                                q.what = (Kvtier__ListWhat)what;
                                q.space = space;
                                q.cursor = cursors[i];
                                q.limit = limit == 2 ? UINT32_MAX : limit;
                                REFUSED(KVT_MSG_LIST, q, what < 0 || what > 4 ? KVT_E_BAD_REQUEST : 0);
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

int main(void)
{
        const struct CMUnitTest tests[] = {
                TEST(test_keys_out_of_range),  TEST(test_shard_parent_and_reservations_out_of_range),
                TEST(test_unknown_space),      TEST(test_space_out_of_range),
                TEST(test_lists_out_of_range), TEST(test_other_values_out_of_range),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
