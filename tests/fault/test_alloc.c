/* The Nth allocation of the daemon fails, for N = 1, 2, ... until a whole script of requests passes without: each request is carried out, refused
 * with a named error, or costs the one connection that made it. The daemon lives, its sums agree, and afterwards it works as before. */
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "tests/fault/alloc.h"
#include "tests/lib/pattern.h"
#include "tests/lib/raw.h"

enum { PART = 100000 / 32 * 32, N = 6 };

static struct alloc_control *control;
static struct raw r;
static const struct daemon *server;
static kvt_key keys[N];
static unsigned turn; /* another space each time */
static bool failing;

static void arm(int64_t n, bool sticky)
{
        __atomic_store_n(&control->n_failed, 0, __ATOMIC_RELAXED);
        __atomic_store_n(&control->sticky, sticky, __ATOMIC_RELAXED);
        __atomic_store_n(&control->countdown, n, __ATOMIC_RELAXED);
        failing = n;
}

/* May this be an answer while allocations fail? */
static bool is_excuse(int code)
{
        return failing && (code == KVT_E_NO_MEMORY || code == KVT_E_AGAIN || code == KVT_E_DISCONNECTED || code == KVT_E_NO_PARENT ||
                           code == KVT_E_MISS || code == KVT_E_UNKNOWN_SPACE || code == KVT_E_UNKNOWN_RESERVATION ||
                           code == KVT_E_BAD_STAGING || code == KVT_E_CANCELLED || code == KVT_E_QUOTA || code == KVT_E_AGAIN_LEASED);
}

static void enter(void)
{
        Kvtier__HelloRequest q = KVTIER__HELLO_REQUEST__INIT;

        raw_open(&r, server->socket);
        q.version_min = q.version_max = KVT_PROTO_MAX;
        int code = raw_status(&r, KVT_MSG_HELLO, &q);
        if (code && !is_excuse(code))
                CHECK_OK(code);
}

/* The answer, or NULL after an excuse (and the connection made anew if that was the price). */
static void *ask(uint16_t type, const void *message, const ProtobufCMessageDescriptor *reply)
{
        void *m = raw_call(&r, type, message, reply);

        if (m)
                return m;
        if (!is_excuse(r.error))
                check_failed(__FILE__, __LINE__, "request %d: %s %s", type, kvt_error_name(r.error), r.error_text);
        if (r.error == KVT_E_DISCONNECTED) {
                raw_close(&r);
                enter();
        }
        return NULL;
}

static void done(void *m)
{
        if (m)
                protobuf_c_message_free_unpacked(m, NULL);
}

static void may_say(const ProtobufCBinaryData *statuses)
{
        for (size_t i = 0; i < statuses->len; i++)
                if (statuses->data[i] && !is_excuse(statuses->data[i]))
                        CHECK_OK(statuses->data[i]);
}

static uint32_t open_space(const char *name, uint32_t n_shards)
{
        char full[64];

        snprintf(full, sizeof(full), "%s-%u", name, turn);
        uint32_t space = raw_space(&r, full, PART, n_shards);
        if (!space && !is_excuse(r.error))
                CHECK_OK(r.error);
        return space;
}

static bool open_staging(void)
{
        Kvtier__StagingOpenRequest q = KVTIER__STAGING_OPEN_REQUEST__INIT;

        q.bytes = N * PART;
        Kvtier__StagingOpenReply *m = ask(KVT_MSG_STAGING_OPEN, &q, &kvtier__staging_open_reply__descriptor);
        if (!m)
                return false;
        CHECK_EQ(r.n_fds, 1);
        r.staging_fd = r.fds[0];
        r.n_fds = 0;
        r.staging_bytes = m->bytes;
        done(m);
        r.staging = mmap(NULL, r.staging_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, r.staging_fd, 0);
        CHECK(r.staging != MAP_FAILED);
        raw_ack_fds(&r);
        for (int i = 0; i < N; i++)
                pattern_fill(r.staging + i * PART, PART, &keys[i], 0, 0);
        return true;
}

static void put_all(uint32_t space, uint32_t shard)
{
        Kvtier__PutCommitRequest q = KVTIER__PUT_COMMIT_REQUEST__INIT;
        uint64_t offsets[N];

        for (uint64_t i = 0; i < N; i++)
                offsets[i] = i * PART;
        q.space = space;
        q.shard = shard;
        q.keys = (ProtobufCBinaryData){16 * N, keys[0].bytes};
        q.offsets = (ProtobufCBinaryData){8 * N, (uint8_t *)offsets};
        Kvtier__PutCommitReply *m = ask(KVT_MSG_PUT_COMMIT, &q, &kvtier__put_commit_reply__descriptor);
        if (m)
                may_say(&m->statuses);
        done(m);
}

/* Every kind of request. What it needs of an earlier one that failed, it does without. */
static void script(void)
{
        Kvtier__EventsRequest events = KVTIER__EVENTS_REQUEST__INIT;
        Kvtier__MapRequest map = KVTIER__MAP_REQUEST__INIT;
        Kvtier__GetRequest get = KVTIER__GET_REQUEST__INIT;
        Kvtier__PutBeginRequest begin = KVTIER__PUT_BEGIN_REQUEST__INIT;
        Kvtier__DropRequest drop = KVTIER__DROP_REQUEST__INIT;
        Kvtier__PrefetchRequest prefetch = KVTIER__PREFETCH_REQUEST__INIT;
        Kvtier__ExplainRequest explain = KVTIER__EXPLAIN_REQUEST__INIT;
        Kvtier__StatRequest stat = KVTIER__STAT_REQUEST__INIT;
        Kvtier__PurgeRequest purge = KVTIER__PURGE_REQUEST__INIT;
        uint64_t offsets[N];

        turn++;
        enter();
        uint32_t space = open_space("one", 1), sharded = open_space("two", 2);
        events.space = space;
        events.on = true;
        done(ask(KVT_MSG_EVENTS, &events, &kvtier__events_reply__descriptor));
        open_staging();
        put_all(space, 0);
        put_all(sharded, 0);
        put_all(sharded, 1);
        for (uint64_t i = 0; i < N; i++)
                offsets[i] = i * PART;
        map.space = get.space = begin.space = drop.space = prefetch.space = explain.space = space;
        map.keys = get.keys = prefetch.keys = (ProtobufCBinaryData){16 * N, keys[0].bytes};
        drop.keys = explain.key = (ProtobufCBinaryData){16, keys[N - 1].bytes};
        get.offsets = (ProtobufCBinaryData){8 * N, (uint8_t *)offsets};
        Kvtier__MapReply *mapped = ask(KVT_MSG_MAP, &map, &kvtier__map_reply__descriptor);
        if (mapped) {
                const struct kvt_map_entry *e = (const struct kvt_map_entry *)(const void *)mapped->entries.data;
                for (size_t i = 0; i < N; i++)
                        if (e[i].status && !is_excuse(e[i].status))
                                CHECK_OK(e[i].status);
                if (r.n_fds)
                        raw_send_body(&r, KVT_MSG_FD_ACK, 0, NULL, 0);
        }
        done(mapped);
        Kvtier__GetReply *got = ask(KVT_MSG_GET, &get, &kvtier__get_reply__descriptor);
        if (got)
                may_say(&got->statuses);
        for (size_t i = 0; got && i < N; i++)
                if (!got->statuses.data[i])
                        CHECK(pattern_find(r.staging + i * PART, PART, &keys[i], 0, 0) == 0);
        done(got);
        begin.keys = (ProtobufCBinaryData){16 * N, keys[0].bytes};
        begin.replace = true;
        Kvtier__PutBeginReply *begun = ask(KVT_MSG_PUT_BEGIN, &begin, &kvtier__put_begin_reply__descriptor);
        if (begun) {
                struct kvt_put_entry e[N];
                uint64_t ids[N];
                memcpy(e, begun->entries.data, sizeof(e));
                for (int i = 0; i < N; i++) {
                        if (e[i].status && !is_excuse(e[i].status))
                                CHECK_OK(e[i].status);
                        ids[i] = e[i].reservation;
                }
                Kvtier__PutCommitRequest commit = KVTIER__PUT_COMMIT_REQUEST__INIT;
                commit.space = space;
                commit.reservations = (ProtobufCBinaryData){8 * (N - 2), (uint8_t *)ids};
                commit.offsets = (ProtobufCBinaryData){8 * (N - 2), (uint8_t *)offsets};
                Kvtier__PutCommitReply *m = ask(KVT_MSG_PUT_COMMIT, &commit, &kvtier__put_commit_reply__descriptor);
                if (m)
                        may_say(&m->statuses);
                done(m);
                Kvtier__PutAbortRequest abort_ = KVTIER__PUT_ABORT_REQUEST__INIT;
                abort_.reservations = (ProtobufCBinaryData){8, (uint8_t *)&ids[N - 2]};
                done(ask(KVT_MSG_PUT_ABORT, &abort_, &kvtier__put_abort_reply__descriptor)); /* and the last one is left */
        }
        done(begun);
        done(ask(KVT_MSG_PREFETCH, &prefetch, &kvtier__prefetch_reply__descriptor));
        done(ask(KVT_MSG_EXPLAIN, &explain, &kvtier__explain_reply__descriptor));
        drop.corrupt = true;
        done(ask(KVT_MSG_DROP, &drop, &kvtier__drop_reply__descriptor));
        drop.corrupt = false;
        done(ask(KVT_MSG_DROP, &drop, &kvtier__drop_reply__descriptor));
        stat.audit = true;
        Kvtier__StatReply *s = ask(KVT_MSG_STAT, &stat, &kvtier__stat_reply__descriptor);
        if (s && s->audit_error[0])
                check_failed(__FILE__, __LINE__, "audit: %s", s->audit_error);
        done(s);
        for (int what = 0; what < 4; what++) {
                Kvtier__ListRequest list = KVTIER__LIST_REQUEST__INIT;
                list.what = (Kvtier__ListWhat)what;
                list.space = space;
                done(ask(KVT_MSG_LIST, &list, &kvtier__list_reply__descriptor));
        }
        done(ask(KVT_MSG_PURGE, &purge, &kvtier__purge_reply__descriptor)); /* so that the next turn makes slabs anew */
        raw_close(&r);
}

static void start(struct daemon *d, char *path)
{
        static char library[4200], file[128];
        ssize_t n = readlink("/proc/self/exe", library, 4096);

        CHECK(n > 0);
        library[n] = 0;
        strcpy(strrchr(library, '/'), "/preload_alloc.so");
        int fd = mkstemp(path);
        CHECK(fd >= 0 && ftruncate(fd, sizeof(*control)) == 0 && fchmod(fd, 0666) == 0);
        control = mmap(NULL, sizeof(*control), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        CHECK(control != MAP_FAILED);
        close(fd);
        snprintf(file, sizeof(file), "KVT_ALLOC_FILE=%s", path);
        daemon_environment(file);
        daemon_preload(library);
        DAEMON_START(d, "--host_bytes=32M", "--log_level=error", "--workers=1");
        daemon_preload(NULL);
        server = d;
        pattern_keys(1, 0, N, keys);
}

static void quiet(const struct daemon *d)
{
        WAIT_FOR(daemon_status(d).n_sessions == 0, 5000);
        WAIT_FOR(daemon_status(d).n_xfers == 0, 5000);
        struct daemon_status s = daemon_audit(d);
        CHECK_EQ(s.n_leases, 0);
        CHECK_EQ(s.n_reservations, 0);
        CHECK_EQ(s.n_blocks, 0);
        CHECK_EQ(s.staging_bytes, 0);
}

static void fail_each(bool sticky)
{
        char path[] = "/tmp/kvt-alloc-XXXXXX";
        struct daemon d;
        unsigned n_fds = 0;
        int64_t n;

        start(&d, path);
        script(); /* all goes well when nothing fails */
        script();
        quiet(&d);
        n_fds = daemon_n_fds(&d);
        for (n = 1;; n++) {
                CHECK(n < 2000);
                arm(n, sticky);
                script();
                bool passed = !__atomic_load_n(&control->n_failed, __ATOMIC_RELAXED);
                arm(0, false);
                if (passed)
                        break;
                Kvtier__PurgeRequest purge = KVTIER__PURGE_REQUEST__INIT;
                enter();
                done(ask(KVT_MSG_PURGE, &purge, &kvtier__purge_reply__descriptor));
                raw_close(&r);
                if (n % 16 == 0)
                        script(); /* with nothing left of the failures before */
                quiet(&d);
                CHECK(daemon_n_fds(&d) <= n_fds + 1); /* a spare slab or one that is not settled yet */
        }
        printf("%lld allocations in the script\n", (long long)n - 1);
        CHECK(n > 20);
        script();
        quiet(&d);
        unlink(path);
        munmap(control, sizeof(*control));
        daemon_end(&d);
}

static void test_each_allocation_fails_once(void **state)
{
        fail_each(false);
}

static void test_from_each_allocation_on_all_fail(void **state)
{
        fail_each(true);
}

int main(void)
{
        const struct CMUnitTest tests[] = {TEST(test_each_allocation_fails_once), TEST(test_from_each_allocation_on_all_fail)};

        return cmocka_run_group_tests(tests, NULL, NULL);
}
