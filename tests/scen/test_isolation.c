/* Users kept apart: what one tenant stores another can neither read, change, name, list nor explain; and nobody, not even root or the daemon's own
 * user, writes to a slab by its descriptor. The tests with several users run as root, and say so otherwise. */
#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include "tests/lib/pattern.h"
#include "tests/lib/raw.h"

enum { ALICE = 1001, BOB = 1002, NOBODY = 65533, UNMAPPED = 65534 };

static kvt_key keys[8];
static uint8_t statuses[8];

struct scene {
        struct daemon *d;
        struct meeting meet;
        const char *name;
        struct { /* shared memory: what a told b */
                uint32_t space;
                uint32_t slab;
                uint64_t lease;
                uint64_t reservation;
        } * told;
};

static void scene_init(struct scene *x, struct daemon *d)
{
        *x = (struct scene){.d = d};
        meeting_init(&x->meet);
        x->told = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        CHECK(x->told != MAP_FAILED);
        pattern_keys(1, 0, 8, keys);
}

static void scene_deinit(struct scene *x)
{
        meeting_deinit(&x->meet);
        munmap(x->told, 4096);
}

/* Gets the descriptor of the slab that holds the first key, as any client does. */
static int slab_fd(struct raw *r, const struct daemon *d, struct kvt_map_entry *e, uint64_t *ret_bytes)
{
        struct stat st;

        raw_open(r, d->socket);
        raw_hello(r);
        uint32_t space = raw_space(r, "model", 4096, 1);
        raw_staging(r, 1 << 20);
        pattern_fill(r->staging, 4096, &keys[0], 0, 0);
        CHECK_OK(raw_put(r, space, 0, NULL, keys, 1, 4096, statuses));
        CHECK(statuses[0] == 0 || statuses[0] == KVT_E_EXISTS);
        CHECK_OK(raw_map(r, space, 0, keys, 1, e));
        CHECK_OK(e->status);
        CHECK_EQ(r->n_fds, 1);
        CHECK(fstat(r->fds[0], &st) == 0);
        *ret_bytes = (uint64_t)st.st_size;
        return r->fds[0];
}

/* Every way in that Linux offers to whoever holds the descriptor. */
static void try_to_write(void *arg)
{
        struct scene *x = arg;
        static struct raw r;
        struct kvt_map_entry e;
        uint64_t bytes;
        char path[64];
        int fd = slab_fd(&r, x->d, &e, &bytes), again;

        CHECK(mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) == MAP_FAILED && errno == EPERM);
        CHECK(mmap(NULL, bytes, PROT_WRITE, MAP_SHARED, fd, 0) == MAP_FAILED && errno == EPERM);
        uint8_t *p = mmap(NULL, bytes, PROT_READ, MAP_SHARED, fd, 0);
        CHECK(p != MAP_FAILED);
        CHECK(mprotect(p, bytes, PROT_READ | PROT_WRITE) < 0 && errno == EACCES);
        CHECK(madvise(p, bytes, MADV_REMOVE) < 0);
        CHECK(pwrite(fd, "x", 1, 0) < 0 && errno == EPERM);
        CHECK(ftruncate(fd, 0) < 0 && errno == EPERM);
        CHECK(ftruncate(fd, (off_t)bytes * 2) < 0 && errno == EPERM);
        CHECK(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096) < 0 && errno == EPERM);
        CHECK(fallocate(fd, 0, (off_t)bytes, 4096) < 0 && errno == EPERM);
        CHECK(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE) < 0 && errno == EPERM); /* nor are seals added: F_SEAL_SEAL */
        CHECK_EQ(fcntl(fd, F_GET_SEALS) & (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_FUTURE_WRITE | F_SEAL_SEAL),
                 F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_FUTURE_WRITE | F_SEAL_SEAL);
        snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
        again = open(path, O_RDWR | O_CLOEXEC);
        if (again >= 0) { /* root, or who owns the file: opening is allowed, writing is not */
                CHECK(mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, again, 0) == MAP_FAILED && errno == EPERM);
                CHECK(pwrite(again, "x", 1, 0) < 0 && errno == EPERM);
                CHECK(ftruncate(again, 4096) < 0 && errno == EPERM);
                CHECK(fallocate(again, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096) < 0 && errno == EPERM);
                close(again);
        }
        again = open(path, O_RDWR | O_TRUNC | O_CLOEXEC);
        if (again >= 0)
                close(again);
        /* after all that the bytes are what they were */
        const struct kvt_copy_header *h = (const struct kvt_copy_header *)(const void *)(p + e.offset);
        CHECK_EQ(h->generation, e.generation);
        CHECK_EQ(pattern_find(p + e.offset + kvt_payload_offset(KVT_COPY_RAW, 2, 4096), 4096, &keys[0], 0, 0), 0);
        munmap(p, bytes);
        raw_close(&r);
}

static void test_a_slab_cannot_be_written_by_its_descriptor(void **state)
{
        struct scene x;
        struct daemon d;

        DAEMON_START(&d);
        scene_init(&x, &d);
        child_run(try_to_write, &x); /* as the daemon's own user, root if we are */
        if (geteuid() == 0) {
                child_run_as(ALICE, try_to_write, &x);
                child_run_as(NOBODY, try_to_write, &x);
        } else {
                printf("skip: the part as other users: run as root\n");
        }
        scene_deinit(&x);
        daemon_end(&d);
}

/* The slab is allocated whole before its descriptor leaves, so that reading makes nothing grow. */
static void test_reading_a_slab_allocates_nothing(void **state)
{
        static struct raw r;
        struct kvt_map_entry e;
        struct stat before, after;
        struct daemon d;
        uint64_t bytes;
        volatile uint8_t sum = 0;

        DAEMON_START(&d);
        pattern_keys(1, 0, 8, keys);
        int fd = slab_fd(&r, &d, &e, &bytes);
        CHECK(fstat(fd, &before) == 0);
        CHECK_EQ((uint64_t)before.st_blocks * 512, bytes);
        const uint8_t *p = mmap(NULL, bytes, PROT_READ, MAP_SHARED, fd, 0);
        CHECK(p != MAP_FAILED);
        for (uint64_t i = 0; i < bytes; i += 4096)
                sum = (uint8_t)(sum + p[i]);
        CHECK(fstat(fd, &after) == 0);
        CHECK_EQ(after.st_blocks, before.st_blocks);
        munmap((void *)p, bytes);
        raw_close(&r);
        daemon_end(&d);
}

static void alice(void *arg)
{
        struct scene *x = arg;
        static struct raw r;
        struct kvt_map_entry e;
        Kvtier__PutBeginRequest begin = KVTIER__PUT_BEGIN_REQUEST__INIT;
        uint64_t bytes;
        int fd = slab_fd(&r, x->d, &e, &bytes);

        (void)fd;
        raw_ack_fds(&r);
        x->told->space = raw_space(&r, "model", 4096, 1);
        x->told->slab = e.slab;
        x->told->lease = e.lease;
        begin.space = x->told->space;
        begin.keys = (ProtobufCBinaryData){16, keys[5].bytes};
        Kvtier__PutBeginReply *m = raw_call(&r, KVT_MSG_PUT_BEGIN, &begin, &kvtier__put_begin_reply__descriptor);
        CHECK(m);
        struct kvt_put_entry entry;
        memcpy(&entry, m->entries.data, sizeof(entry));
        CHECK_OK(entry.status);
        x->told->reservation = entry.reservation;
        protobuf_c_message_free_unpacked(&m->base, NULL);
        meeting_at(&x->meet, 1);
        meeting_at(&x->meet, 1); /* bob was there */
        Kvtier__StatRequest stat = KVTIER__STAT_REQUEST__INIT;
        Kvtier__StatReply *s = raw_call(&r, KVT_MSG_STAT, &stat, &kvtier__stat_reply__descriptor);
        CHECK(s);
        CHECK_EQ(s->n_blocks, 1);
        CHECK_EQ(s->n_leases, 1);
        protobuf_c_message_free_unpacked(&s->base, NULL);
        uint64_t zero = 0;
        Kvtier__PutCommitRequest commit = KVTIER__PUT_COMMIT_REQUEST__INIT;
        commit.space = x->told->space;
        commit.reservations = (ProtobufCBinaryData){8, (uint8_t *)&x->told->reservation};
        commit.offsets = (ProtobufCBinaryData){8, (uint8_t *)&zero};
        Kvtier__PutCommitReply *p = raw_call(&r, KVT_MSG_PUT_COMMIT, &commit, &kvtier__put_commit_reply__descriptor);
        CHECK(p);
        CHECK_OK(p->statuses.data[0]); /* her reservation is still hers */
        protobuf_c_message_free_unpacked(&p->base, NULL);
        raw_close(&r);
}

/* All that bob can say with alice's key, handle, lease, reservation, slab and name. */
static void bob(void *arg)
{
        struct scene *x = arg;
        static struct raw r;
        struct kvt_map_entry e;
        uint32_t n, stop, hers = x->told->space;
        ProtobufCBinaryData key = {16, keys[0].bytes};
        uint64_t zero = 0;

        raw_open(&r, x->d->socket);
        raw_hello(&r);
        raw_staging(&r, 1 << 20);
        /* her handle */
        CHECK_IS(raw_match(&r, hers, keys, 1, &n, &stop), KVT_E_UNKNOWN_SPACE);
        CHECK_IS(raw_map(&r, hers, 0, keys, 1, &e), KVT_E_UNKNOWN_SPACE);
        CHECK_IS(raw_put(&r, hers, 0, NULL, keys + 1, 1, 4096, statuses), KVT_E_UNKNOWN_SPACE);
        Kvtier__GetRequest get = KVTIER__GET_REQUEST__INIT;
        Kvtier__DropRequest drop = KVTIER__DROP_REQUEST__INIT;
        Kvtier__ExplainRequest explain = KVTIER__EXPLAIN_REQUEST__INIT;
        Kvtier__EventsRequest events = KVTIER__EVENTS_REQUEST__INIT;
        Kvtier__PrefetchRequest prefetch = KVTIER__PREFETCH_REQUEST__INIT;
        Kvtier__PurgeRequest purge = KVTIER__PURGE_REQUEST__INIT;
        Kvtier__ListRequest list = KVTIER__LIST_REQUEST__INIT;
        Kvtier__PutBeginRequest begin = KVTIER__PUT_BEGIN_REQUEST__INIT;
        get.space = drop.space = explain.space = events.space = prefetch.space = purge.space = list.space = begin.space = hers;
        get.keys = drop.keys = explain.key = prefetch.keys = begin.keys = key;
        get.offsets = (ProtobufCBinaryData){8, (uint8_t *)&zero};
        events.on = true;
        list.what = KVTIER__LIST_WHAT__LIST_BLOCKS;
        CHECK_IS(raw_status(&r, KVT_MSG_GET, &get), KVT_E_UNKNOWN_SPACE);
        CHECK_IS(raw_status(&r, KVT_MSG_DROP, &drop), KVT_E_UNKNOWN_SPACE);
        CHECK_IS(raw_status(&r, KVT_MSG_EXPLAIN, &explain), KVT_E_UNKNOWN_SPACE);
        CHECK_IS(raw_status(&r, KVT_MSG_EVENTS, &events), KVT_E_UNKNOWN_SPACE);
        CHECK_IS(raw_status(&r, KVT_MSG_PREFETCH, &prefetch), KVT_E_UNKNOWN_SPACE);
        CHECK_IS(raw_status(&r, KVT_MSG_LIST, &list), KVT_E_UNKNOWN_SPACE);
        CHECK_IS(raw_status(&r, KVT_MSG_PURGE, &purge), KVT_E_UNKNOWN_SPACE);
        CHECK_IS(raw_status(&r, KVT_MSG_PUT_BEGIN, &begin), KVT_E_UNKNOWN_SPACE);
        /* her name: the same answer whether there is such a tenant or not */
        purge.space = 0;
        purge.tenant = (char *)"uid:1001";
        CHECK_IS(raw_status(&r, KVT_MSG_PURGE, &purge), KVT_E_DENIED);
        purge.tenant = (char *)"uid:4711";
        CHECK_IS(raw_status(&r, KVT_MSG_PURGE, &purge), KVT_E_DENIED);
        /* a space of the same name, salt and geometry is another one, and another geometry is no conflict */
        uint32_t own = raw_space(&r, "model", 4096, 1);
        CHECK(own && own != hers);
        CHECK_OK(raw_match(&r, own, keys, 1, &n, &stop));
        CHECK_EQ(n, 0);
        CHECK_IS(stop, KVT_E_MISS);
        explain.space = own;
        Kvtier__ExplainReply *why = raw_call(&r, KVT_MSG_EXPLAIN, &explain, &kvtier__explain_reply__descriptor);
        CHECK(why);
        CHECK_EQ(why->why, KVTIER__WHY__WHY_NEVER);
        protobuf_c_message_free_unpacked(&why->base, NULL);
        Kvtier__SpaceOpenRequest open_ = KVTIER__SPACE_OPEN_REQUEST__INIT;
        Kvtier__Plane plane = KVTIER__PLANE__INIT, *planes[] = {&plane};
        plane.heads = 1;
        plane.dim = 8;
        open_.name = (char *)"other";
        open_.block_tokens = open_.n_shards = 1;
        open_.planes = planes;
        open_.n_planes = 1;
        CHECK_OK(raw_status(&r, KVT_MSG_SPACE_OPEN, &open_));
        /* her lease, reservation and slab */
        Kvtier__ReleaseRequest release = KVTIER__RELEASE_REQUEST__INIT;
        release.leases = (ProtobufCBinaryData){8, (uint8_t *)&x->told->lease};
        raw_send(&r, KVT_MSG_RELEASE, 0, &release);
        Kvtier__SlabAck ack = KVTIER__SLAB_ACK__INIT;
        ack.slabs = &x->told->slab;
        ack.n_slabs = 1;
        raw_send(&r, KVT_MSG_SLAB_ACK, 0, &ack);
        Kvtier__PutAbortRequest abort_ = KVTIER__PUT_ABORT_REQUEST__INIT;
        abort_.reservations = (ProtobufCBinaryData){8, (uint8_t *)&x->told->reservation};
        CHECK_OK(raw_status(&r, KVT_MSG_PUT_ABORT, &abort_));
        Kvtier__PutCommitRequest commit = KVTIER__PUT_COMMIT_REQUEST__INIT;
        commit.space = own;
        commit.reservations = abort_.reservations;
        commit.offsets = get.offsets;
        Kvtier__PutCommitReply *p = raw_call(&r, KVT_MSG_PUT_COMMIT, &commit, &kvtier__put_commit_reply__descriptor);
        CHECK(p);
        CHECK_IS(p->statuses.data[0], KVT_E_UNKNOWN_RESERVATION);
        protobuf_c_message_free_unpacked(&p->base, NULL);
        /* lists and sums show bob alone */
        for (int what = KVTIER__LIST_WHAT__LIST_TENANTS; what <= KVTIER__LIST_WHAT__LIST_SESSIONS; what++) {
                if (what == KVTIER__LIST_WHAT__LIST_BLOCKS)
                        continue;
                Kvtier__ListRequest q = KVTIER__LIST_REQUEST__INIT;
                q.what = (Kvtier__ListWhat)what;
                Kvtier__ListReply *m = raw_call(&r, KVT_MSG_LIST, &q, &kvtier__list_reply__descriptor);
                CHECK(m);
                CHECK(m->n_tenants + m->n_spaces + m->n_sessions > 0);
                for (size_t i = 0; i < m->n_tenants; i++)
                        CHECK(!strcmp(m->tenants[i]->name, "uid:1002"));
                for (size_t i = 0; i < m->n_spaces; i++)
                        CHECK(!strcmp(m->spaces[i]->tenant, "uid:1002"));
                for (size_t i = 0; i < m->n_sessions; i++)
                        CHECK(m->sessions[i]->uid == BOB);
                protobuf_c_message_free_unpacked(&m->base, NULL);
        }
        Kvtier__StatRequest stat = KVTIER__STAT_REQUEST__INIT;
        stat.audit = true;
        Kvtier__StatReply *s = raw_call(&r, KVT_MSG_STAT, &stat, &kvtier__stat_reply__descriptor);
        CHECK(s);
        CHECK_EQ(s->n_sessions, 1);
        CHECK_EQ(s->n_blocks, 0);
        CHECK_EQ(s->n_leases, 0);
        CHECK_EQ(s->n_tenants, 1);
        CHECK(!s->audited);
        CHECK_EQ(s->tiers[0]->used_bytes, 0);
        protobuf_c_message_free_unpacked(&s->base, NULL);
        raw_close(&r);
}

static void test_nothing_of_another_tenant_can_be_named(void **state)
{
        struct scene x;
        struct daemon d;

        if (geteuid() != 0)
                check_skip("two tenants take two users: run as root");
        DAEMON_START(&d);
        scene_init(&x, &d);
        pid_t pid = child_start_as(ALICE, alice, &x);
        meeting_at(&x.meet, 0);
        child_run_as(BOB, bob, &x);
        CHECK_EQ(daemon_audit(&d).n_tenants, 2); /* and the one that asks; who left nothing behind is forgotten */
        meeting_at(&x.meet, 0);
        child_join(pid);
        /* root sees all, by name */
        static struct raw r;
        Kvtier__PurgeRequest purge = KVTIER__PURGE_REQUEST__INIT;
        purge.tenant = (char *)"uid:1001";
        raw_open(&r, d.socket);
        raw_hello(&r);
        Kvtier__PurgeReply *m = raw_call(&r, KVT_MSG_PURGE, &purge, &kvtier__purge_reply__descriptor);
        CHECK(m);
        CHECK_EQ(m->n_blocks, 2);
        protobuf_c_message_free_unpacked(&m->base, NULL);
        raw_close(&r);
        scene_deinit(&x);
        daemon_end(&d);
}

/* A slab's memory goes to one tenant for its whole life: what another gets is fresh. */
static void read_every_byte(void *arg)
{
        struct scene *x = arg;
        static struct raw r;
        struct kvt_map_entry e;
        uint64_t bytes;
        int fd = slab_fd(&r, x->d, &e, &bytes);
        const uint8_t *p = mmap(NULL, bytes, PROT_READ, MAP_SHARED, fd, 0);

        CHECK(p != MAP_FAILED);
        CHECK(!memmem(p, bytes, "alice was here", 14));
        munmap((void *)p, bytes);
        raw_close(&r);
}

static void fill_with_name(void *arg)
{
        struct scene *x = arg;
        static struct raw r;
        kvt_key many[200];

        raw_open(&r, x->d->socket);
        raw_hello(&r);
        uint32_t space = raw_space(&r, "model", 65536, 1);
        raw_staging(&r, 65536);
        for (size_t i = 0; i + 16 < 65536; i += 16)
                memcpy(r.staging + i, "alice was here", 14);
        pattern_keys(900, 0, 200, many);
        for (int i = 0; i < 200; i++) {
                CHECK_OK(raw_put(&r, space, 0, NULL, &many[i], 1, 0, statuses));
                CHECK_OK(statuses[0]);
        }
        Kvtier__PurgeRequest purge = KVTIER__PURGE_REQUEST__INIT;
        CHECK_OK(raw_status(&r, KVT_MSG_PURGE, &purge));
        raw_close(&r);
}

static void test_memory_that_changes_hands_is_fresh(void **state)
{
        struct scene x;
        struct daemon d;

        if (geteuid() != 0)
                check_skip("two tenants take two users: run as root");
        DAEMON_START(&d, "--host_bytes=16M", "--prealloc_bytes=8M");
        scene_init(&x, &d);
        for (int i = 0; i < 3; i++) {
                child_run_as(ALICE, fill_with_name, &x);
                child_run_as(BOB, read_every_byte, &x);
        }
        scene_deinit(&x);
        daemon_end(&d);
}

static void knock(void *arg)
{
        struct scene *x = arg;
        static struct raw r;
        kvt_options o = {.struct_size = sizeof(o), .path = x->d->socket};
        kvt *c;

        raw_open(&r, x->d->socket);
        raw_expect_error(&r, 0, KVT_E_DENIED);
        raw_expect_closed(&r);
        raw_close(&r);
        CHECK_IS(kvt_open(&o, &c), KVT_E_DENIED);
}

static void test_the_unmapped_user_is_refused(void **state)
{
        struct scene x;
        struct daemon d;

        if (geteuid() != 0)
                check_skip("another user: run as root");
        DAEMON_START(&d);
        scene_init(&x, &d);
        child_run_as(UNMAPPED, knock, &x);
        CHECK_EQ(daemon_counter(&d, "sessions_refused"), 2);
        CHECK_EQ(daemon_status(&d).n_sessions, 0);
        scene_deinit(&x);
        daemon_end(&d);
}

static void what_tenant(void *arg)
{
        struct scene *x = arg;
        static struct raw r;
        Kvtier__HelloRequest q = KVTIER__HELLO_REQUEST__INIT;

        raw_open(&r, x->d->socket);
        q.version_min = q.version_max = KVT_PROTO_MAX;
        Kvtier__HelloReply *m = raw_call(&r, KVT_MSG_HELLO, &q, &kvtier__hello_reply__descriptor);
        CHECK(m);
        if (strcmp(m->tenant, x->name))
                check_failed(__FILE__, __LINE__, "tenant is %s, expected %s", m->tenant, x->name);
        protobuf_c_message_free_unpacked(&m->base, NULL);
        raw_close(&r);
}

static void test_tenants_from_the_configuration(void **state)
{
        struct scene x;
        struct daemon d;

        if (geteuid() != 0)
                check_skip("several users: run as root");
        DAEMON_START(&d);
        daemon_write_config(&d, "[tenant team]\ngroup = 1002\nhard_bytes = 8M\n[tenant one]\nuid = 1001\n");
        CHECK_EQ(daemon_stop(&d), 0);
        daemon_restart(&d);
        scene_init(&x, &d);
        x.name = "one";
        child_run_as(1001, what_tenant, &x);
        x.name = "team"; /* by its group: child_run_as() sets it to the same number */
        child_run_as(1002, what_tenant, &x);
        x.name = "uid:1003";
        child_run_as(1003, what_tenant, &x);
        scene_deinit(&x);
        daemon_end(&d);
}

int main(void)
{
        const struct CMUnitTest tests[] = {
                TEST(test_a_slab_cannot_be_written_by_its_descriptor),
                TEST(test_reading_a_slab_allocates_nothing),
                TEST(test_nothing_of_another_tenant_can_be_named),
                TEST(test_memory_that_changes_hands_is_fresh),
                TEST(test_the_unmapped_user_is_refused),
                TEST(test_tenants_from_the_configuration),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
