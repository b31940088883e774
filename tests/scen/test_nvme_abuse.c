/* What clients of the NVMe tier may do to themselves and to others: nothing that lasts. */
#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "tests/lib/devices.h"
#include "tests/lib/pattern.h"
#include "tests/lib/raw.h"

enum { MANY = 512, PART = 32768 };

static kvt_key keys[MANY];
static uint8_t statuses[MANY];

static void again(struct daemon *d)
{
        daemon_kill(d);
        daemon_restart(d);
        WAIT_FOR(device_is(d, 0, "serving"), 10000);
}

/* A space that nothing is left of is forgotten, whatever took its last record. */
static void test_spaces_go_with_their_last_record(void **state)
{
        struct daemon d;
        char path[256], salt[32];

        NVME(&d);
        pattern_keys(1, 0, 4, keys);
        for (int i = 0; i < 20; i++) {
                struct pattern_space sp;
                kvt *c = pattern_open(&d, 0);
                snprintf(salt, sizeof(salt), "salt %d", i);
                PATTERN_SPACE(&sp, c, .part_bytes = PART, .salt = salt);
                CHECK_OK(pattern_put(&sp, NULL, keys, 4, 0, KVT_PUT_DURABLE, statuses));
                CHECK_EQ(pattern_count(statuses, 4, 0), 4);
                kvt_space_close(sp.s);
                kvt_close(c);
        }
        again(&d); /* none is in memory any more */
        CHECK_EQ(daemon_status(&d).n_spaces, 20);
        device_path(&d, "nvme.kvt", path, sizeof(path));
        CHECK_OK(device_do(&d, KVTIER__DEVICE_DO__DEVICE_DETACH, path));
        WAIT_FOR(device_is(&d, 0, "detached"), 5000);
        WAIT_FOR(!daemon_status(&d).n_spaces, 5000);
        daemon_end(&d);
}

/* Spaces of which there are only records do not stand in the way of new ones. */
static void test_spaces_on_nvme_only_do_not_count(void **state)
{
        struct daemon d;
        struct pattern_space sp[5];
        char salt[32];

        NVME(&d, "--max_spaces_tenant=4");
        kvt *c = pattern_open(&d, 0);
        pattern_keys(1, 0, 4, keys);
        for (int i = 0; i < 4; i++) {
                snprintf(salt, sizeof(salt), "salt %d", i);
                PATTERN_SPACE(&sp[i], c, .part_bytes = PART, .salt = salt);
                CHECK_OK(pattern_put(&sp[i], NULL, keys, 4, 0, KVT_PUT_DURABLE, statuses));
        }
        CHECK_IS(pattern_space_open(&sp[4], c, (struct pattern_config){.part_bytes = PART, .salt = "one more"}), KVT_E_LIMIT);
        for (int i = 0; i < 4; i++)
                kvt_space_close(sp[i].s);
        kvt_close(c);
        again(&d);
        c = pattern_open(&d, 0);
        for (int i = 0; i < 4; i++) {
                snprintf(salt, sizeof(salt), "new %d", i);
                PATTERN_SPACE(&sp[i], c, .part_bytes = PART, .salt = salt);
        }
        CHECK_IS(pattern_space_open(&sp[4], c, (struct pattern_config){.part_bytes = PART, .salt = "one more"}), KVT_E_LIMIT);
        for (int i = 0; i < 4; i++)
                kvt_space_close(sp[i].s);
        kvt_close(c);
        daemon_end(&d);
}

/* Two roots in one request, as if the second continued the first: both are durable, or it is not said. */
static void test_durable_is_what_was_named(void **state)
{
        struct daemon d;
        struct pattern_space sp;

        NVME(&d, "--nvme_admit_hits=1000");
        kvt *c = pattern_open(&d, 0);
        PATTERN_SPACE(&sp, c, .part_bytes = PART);
        keys[0] = pattern_key(1, 0);
        keys[1] = pattern_key(2, 0);
        pattern_store(&sp, NULL, &keys[0], 1);
        pattern_store(&sp, NULL, &keys[1], 1);
        CHECK_OK(pattern_put(&sp, NULL, keys, 2, 0, KVT_PUT_DURABLE, statuses));
        CHECK_EQ(pattern_count(statuses, 2, KVT_E_EXISTS), 2);
        again(&d);
        CHECK_EQ(pattern_match(&sp, &keys[0], 1), 1);
        CHECK_EQ(pattern_match(&sp, &keys[1], 1), 1);
        kvt_space_close(sp.s);
        kvt_close(c);
        daemon_end(&d);
}

/* Memory is full of what is leased: a block on NVMe is read from there all the same. */
static void test_reading_needs_no_room_in_memory(void **state)
{
        struct daemon d;
        struct pattern_space sp, leased;
        static kvt_mapping maps[MANY];
        size_t n = 0;

        NVME(&d, "--host_bytes=16M", "--lease_usec=60s");
        kvt *c = pattern_open(&d, KVT_OPEN_NO_MAP), *other = pattern_open(&d, 0);
        PATTERN_SPACE(&sp, c, .part_bytes = PART);
        PATTERN_SPACE(&leased, other, .part_bytes = PART);
        pattern_keys(1, 0, 8, keys);
        CHECK_OK(pattern_put(&sp, NULL, keys, 8, 0, KVT_PUT_DURABLE, statuses));
        again(&d);
        CHECK_OK(pattern_get(&sp, keys, 1, 0, statuses)); /* it has its staging now */
        for (uint64_t chain = 2; n < MANY; chain++, n++) {
                kvt_key k = pattern_key(chain, 0);
                uint8_t status;
                CHECK_OK(pattern_put(&leased, NULL, &k, 1, 0, 0, &status));
                if (status)
                        break;
                if (kvt_map(leased.s, &k, 1, &maps[n], &status) || status)
                        break;
        }
        CHECK(n > 8 && n < MANY);
        CHECK_OK(pattern_get(&sp, keys, 8, 0, statuses));
        for (size_t i = 0; i < 8; i++)
                CHECK_OK(statuses[i]);
        kvt_unmap(leased.s, maps, n, NULL);
        kvt_space_close(sp.s);
        kvt_space_close(leased.s);
        kvt_close(c);
        kvt_close(other);
        daemon_end(&d);
}

/* What the index has no room for is not written over and over again. */
static void test_a_full_index_is_no_reason_to_write(void **state)
{
        struct daemon d;
        struct pattern_space sp;

        NVME(&d, "--nvme_max_records=64");
        kvt *c = pattern_open(&d, 0);
        PATTERN_SPACE(&sp, c, .part_bytes = PART);
        pattern_keys(1, 0, 128, keys);
        CHECK_OK(pattern_put(&sp, NULL, keys, 128, 0, 0, statuses));
        WAIT_FOR(device_records(&d) >= 62, 5000);
        usleep(300000 * CHECK_SLOW);
        uint64_t before = daemon_counter(&d, "nvme_written_bytes");
        for (int i = 0; i < 20; i++) {
                CHECK_EQ(pattern_match(&sp, keys, 128), 128);
                usleep(20000);
        }
        CHECK(daemon_counter(&d, "nvme_written_bytes") - before < 4 * PART);
        CHECK_OK(pattern_put(&sp, NULL, keys, 128, 0, KVT_PUT_DURABLE, statuses));
        CHECK_IS(statuses[127], KVT_E_NO_SPACE);
        kvt_space_close(sp.s);
        kvt_close(c);
        daemon_end(&d);
}

/* A device that failed is let go of when it is detached: it can be formatted then, or given to another daemon. */
static void test_a_failed_device_is_let_go(void **state)
{
        struct daemon d;
        struct pattern_space sp;
        char path[256];

        NVME(&d, "--nvme_readahead_blocks=0");
        kvt *c = pattern_open(&d, 0);
        PATTERN_SPACE(&sp, c, .part_bytes = PART);
        device_path(&d, "nvme.kvt", path, sizeof(path));
        for (int i = 0; i < 128; i++)
                keys[i] = pattern_key(100 + (uint64_t)i, 0);
        for (int i = 0; i < 128; i++)
                CHECK_OK(pattern_put(&sp, NULL, &keys[i], 1, 0, KVT_PUT_DURABLE, statuses));
        again(&d);
        for (int i = 0; i < 128 && device_is(&d, 0, "serving"); i++) {
                device_do(&d, KVTIER__DEVICE_DO__DEVICE_FLUSH, ""); /* what was written down of the damage made it longer again */
                CHECK_EQ(truncate(path, 2 << 20), 0);
                CHECK_OK(kvt_prefetch(sp.s, &keys[i], 1, 5000000, statuses));
        }
        WAIT_FOR(device_is(&d, 0, "failed"), 5000);
        CHECK_OK(device_do(&d, KVTIER__DEVICE_DO__DEVICE_DETACH, path));
        WAIT_FOR(device_is(&d, 0, "detached"), 5000);
        CHECK_IS(device_do(&d, KVTIER__DEVICE_DO__DEVICE_DETACH, path), KVT_E_NO_DEVICE);
        int fd = open(path, O_RDWR | O_CLOEXEC);
        WAIT_FOR(fd >= 0 && flock(fd, LOCK_EX | LOCK_NB) == 0, 5000); /* the kernel takes rings apart in the background */
        close(fd);
        kvt_space_close(sp.s);
        kvt_close(c);
        daemon_end(&d);
}

/* No file is made in place of a device that is missing, nor through a link, and nothing else is opened. */
static void test_what_is_no_device(void **state)
{
        static const char missing[] = "/dev/kvtier-test-missing";
        struct daemon d;
        char path[256], target[256];
        struct device_seen v;
        struct stat st;

        DAEMON_START(&d, "--nvme_devices=/dev/kvtier-test-missing,/dev/null", "--nvme_bytes=64M");
        device_path(&d, "link", path, sizeof(path));
        device_path(&d, "target", target, sizeof(target));
        CHECK_EQ(symlink(target, path), 0);
        CHECK_OK(device_do(&d, KVTIER__DEVICE_DO__DEVICE_ATTACH, path));
        close(open(target, O_RDWR | O_CREAT | O_CLOEXEC, 0600)); /* first dangling, then not */
        for (size_t i = 0; i < 3; i++)
                WAIT_FOR(device_is(&d, i, "failed"), 5000);
        CHECK_OK(device_do(&d, KVTIER__DEVICE_DO__DEVICE_ATTACH, path));
        WAIT_FOR(device_see(&d, 2, &v) && strstr(v.detail, "symbolic link"), 5000);
        CHECK(stat(target, &st) == 0 && !st.st_size);
        CHECK(lstat(missing, &st) < 0);
        CHECK(device_see(&d, 1, &v) && strstr(v.detail, "neither a file nor a block device"));
        unlink(target);
        unlink(path);
        daemon_end(&d);
}

/* A durable put waits for the parts of other shards. When the daemon ends they cannot come any more. */
static void test_the_end_does_not_wait_for_other_shards(void **state)
{
        struct daemon d;
        struct pattern_space sp;
        kvt_op *op;

        NVME(&d, "--drain_timeout_usec=60s", "--put_timeout_usec=60s");
        kvt *c = pattern_open(&d, KVT_OPEN_NO_RECONNECT);
        PATTERN_SPACE(&sp, c, .part_bytes = PART, .n_shards = 2);
        keys[0] = pattern_key(1, 0);
        static uint8_t part[PART];
        kvt_plane_view planes[PATTERN_PLANES];
        kvt_view view = {.planes = planes, .n_planes = PATTERN_PLANES};
        for (int i = 0; i < PATTERN_PLANES; i++)
                planes[i] = (kvt_plane_view){part + i * PART / 2, PART / 2 / PATTERN_TOKENS, PART / 2, 0};
        CHECK_OK(kvt_put_async(sp.s, NULL, keys, 1, 0, &view, KVT_PUT_DURABLE, statuses, NULL, NULL, &op));
        WAIT_FOR(daemon_counter(&d, "puts") == 1, 5000);
        uint64_t before = check_now_usec();
        CHECK_EQ(daemon_stop(&d), 0);
        CHECK(check_now_usec() - before < 10000000);
        CHECK_OK(kvt_wait(op, 5000000));
        kvt_op_free(op);
        CHECK_IS(statuses[0], KVT_E_DRAINING);
        kvt_space_close(sp.s);
        kvt_close(c);
        daemon_restart(&d);
        daemon_end(&d);
}

/* One tenant reads all it has, again and again, thousands of blocks at once; another one wants a block now and then. */

enum { GREEDY = 1001, OTHER = 1002, CROWD = 4096, SMALL = 16384 };

struct pair {
        struct daemon *d;
        struct meeting meet;
        bool stop; /* atomic, shared */
};

static void read_all(void *arg)
{
        static kvt_key all[CROWD];
        static uint8_t told[CROWD];
        struct pair *x = arg;
        struct pattern_space sp;
        kvt *c = pattern_open(x->d, 0);
        uint8_t *bytes = malloc((size_t)CROWD * SMALL);
        kvt_plane_view planes[PATTERN_PLANES];
        kvt_view view = {.planes = planes, .n_planes = PATTERN_PLANES};
        kvt_op *ops[4];

        for (int i = 0; i < PATTERN_PLANES; i++)
                planes[i] = (kvt_plane_view){bytes + (size_t)i * CROWD * SMALL / 2, SMALL / 2 / PATTERN_TOKENS, SMALL / 2, 0};
        PATTERN_SPACE(&sp, c, .part_bytes = SMALL);
        pattern_keys(1, 0, CROWD, all);
        CHECK_OK(pattern_put(&sp, NULL, all, CROWD, 0, KVT_PUT_DURABLE, told));
        meeting_at(&x->meet, 1);
        meeting_at(&x->meet, 1); /* the daemon was started anew */
        WAIT_FOR(kvt_prefetch(sp.s, all, 1, 0, told) == 0, 5000);
        while (!__atomic_load_n(&x->stop, __ATOMIC_ACQUIRE)) {
                for (int i = 0; i < 2; i++)
                        CHECK_OK(kvt_prefetch_async(sp.s, all + i * CROWD / 2, CROWD / 2, 2000000, told, NULL, NULL, &ops[i]));
                for (int i = 2; i < 4; i++)
                        CHECK_OK(kvt_get_planes_async(sp.s, all, CROWD / 2, 0, &view, 0, (size_t)i - 2, 1, told, NULL, NULL, &ops[i]));
                for (int i = 0; i < 4; i++) {
                        kvt_wait(ops[i], 20000000);
                        kvt_op_free(ops[i]);
                }
        }
        kvt_space_close(sp.s);
        kvt_close(c);
        free(bytes);
}

static void want_one(void *arg)
{
        struct pair *x = arg;
        struct pattern_space sp;
        kvt *c = pattern_open(x->d, 0);
        int n_slow = 0;

        PATTERN_SPACE(&sp, c, .part_bytes = SMALL);
        for (int i = 0; i < 64; i++) {
                kvt_key k = pattern_key(1000 + (uint64_t)i, 0);
                uint8_t status;
                uint64_t before = check_now_usec();
                do { /* memory is full of what the other one reads: the first slab that comes free is ours */
                        CHECK_OK(pattern_get(&sp, &k, 1, 0, &status));
                        if (status)
                                CHECK(status == KVT_E_AGAIN || status == KVT_E_AGAIN_LEASED);
                        if (status)
                                usleep(1000);
                } while (status);
                n_slow += check_now_usec() - before > 50000 * CHECK_SLOW;
                usleep(10000);
        }
        CHECK(n_slow < 8); /* the loop was held up for half a second, every fifth time */
        kvt_space_close(sp.s);
        kvt_close(c);
}

static void store_some(void *arg)
{
        struct pair *x = arg;
        struct pattern_space sp;
        kvt *c = pattern_open(x->d, 0);

        PATTERN_SPACE(&sp, c, .part_bytes = SMALL);
        for (int i = 0; i < 64; i++) {
                kvt_key k = pattern_key(1000 + (uint64_t)i, 0);
                uint8_t status;
                CHECK_OK(pattern_put(&sp, NULL, &k, 1, 0, KVT_PUT_DURABLE, &status));
                CHECK_OK(status);
        }
        kvt_space_close(sp.s);
        kvt_close(c);
}

static void test_one_who_reads_everything(void **state)
{
        struct daemon d;
        struct pair *x;

        if (geteuid() != 0)
                check_skip("two tenants take two users: run as root");
        x = mmap(NULL, sizeof(struct pair), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        CHECK(x != MAP_FAILED);
        DAEMON_START(&d, "--nvme_devices=DIR/nvme.kvt", "--nvme_bytes=256M", "--nvme_segment_bytes=4M", "--host_bytes=32M");
        WAIT_FOR(device_is(&d, 0, "serving"), 5000);
        x->d = &d;
        meeting_init(&x->meet);
        pid_t pid = child_start_as(GREEDY, read_all, x);
        meeting_at(&x->meet, 0);
        child_run_as(OTHER, store_some, x);
        again(&d);
        meeting_at(&x->meet, 0);
        usleep(200000);
        child_run_as(OTHER, want_one, x);
        __atomic_store_n(&x->stop, true, __ATOMIC_RELEASE);
        child_join(pid);
        meeting_deinit(&x->meet);
        munmap(x, sizeof(struct pair));
        daemon_end(&d);
}

int main(void)
{
        const struct CMUnitTest tests[] = {
                TEST(test_spaces_go_with_their_last_record),
                TEST(test_spaces_on_nvme_only_do_not_count),
                TEST(test_durable_is_what_was_named),
                TEST(test_reading_needs_no_room_in_memory),
                TEST(test_a_full_index_is_no_reason_to_write),
                TEST(test_a_failed_device_is_let_go),
                TEST(test_what_is_no_device),
                TEST(test_one_who_reads_everything),
                TEST(test_the_end_does_not_wait_for_other_shards),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
