/* Devices that are missing, small, foreign, cut short, damaged or in use: the daemon serves what it can, says why it cannot, and never serves wrong bytes. */
#include <fcntl.h>

#include "tests/lib/devices.h"
#include "tests/lib/pattern.h"

enum { N = 32, PART = 32768 };

static kvt_key keys[N];
static uint8_t statuses[N];
static struct pattern_space sp;
static char path[256];

#define FILE_OF_1M "--nvme_devices=DIR/nvme.kvt", "--nvme_bytes=64M", "--nvme_segment_bytes=1M", "--nvme_admit_hits=0"

static void enter(const struct daemon *d, size_t part_bytes)
{
        PATTERN_SPACE(&sp, pattern_open(d, 0), .part_bytes = part_bytes);
        pattern_keys(1, 0, N, keys);
        device_path(d, "nvme.kvt", path, sizeof(path));
}

static void leave(void)
{
        kvt *c = sp.c;

        kvt_space_close(sp.s);
        kvt_close(c);
}

static void put_durable(size_t n, int expected)
{
        CHECK_OK(pattern_put(&sp, NULL, keys, n, 0, KVT_PUT_DURABLE, statuses));
        for (size_t i = 0; i < n; i++)
                CHECK_IS(statuses[i], expected);
}

static void test_durable_is_there_after_a_kill(void **state)
{
        struct daemon d;

        DAEMON_START(&d, FILE_OF_1M, "--nvme_admit_hits=1000");
        enter(&d, PART);
        WAIT_FOR(device_is(&d, 0, "serving"), 5000);
        pattern_store(&sp, NULL, keys, N / 2); /* volatile ancestors */
        CHECK_OK(pattern_put(&sp, &keys[N / 2 - 1], keys + N / 2, N / 2, 0, KVT_PUT_DURABLE, statuses));
        CHECK_EQ(pattern_count(statuses, N / 2, 0), N / 2);
        daemon_kill(&d);
        daemon_restart(&d);
        WAIT_FOR(device_is(&d, 0, "serving"), 5000);
        CHECK_EQ(pattern_match(&sp, keys, N), N);
        CHECK_OK(pattern_get(&sp, keys, N, 0, statuses));
        CHECK_EQ(pattern_count(statuses, N, 0), N);
        leave();
        daemon_end(&d);
}

static void refused(const char *param, size_t part_bytes, size_t n, int expected)
{
        struct daemon d;

        DAEMON_START(&d, FILE_OF_1M, param);
        enter(&d, part_bytes);
        put_durable(n, expected);
        CHECK_EQ(pattern_match(&sp, keys, n), n); /* stored all the same */
        leave();
        daemon_end(&d);
}

static void test_why_it_is_not_durable(void **state)
{
        refused("--nvme_devices=none", PART, 4, KVT_E_NO_DEVICE);
        refused("--nvme_devices=DIR/nowhere/nvme.kvt", PART, 4, KVT_E_NO_DEVICE);
        refused("--nvme_write_day_bytes=8K", PART, 1, KVT_E_BUDGET);
        refused("--tenant_nvme_bytes=8K", PART, 1, KVT_E_QUOTA);
        refused("--nvme_buffer_bytes=64M", 1 << 20, 1, KVT_E_TOO_LARGE);
}

static void test_threads_in_place_of_io_uring(void **state)
{
        struct device_seen v;
        struct daemon d;

        DAEMON_START(&d, FILE_OF_1M, "--nvme_uring=no");
        enter(&d, PART);
        put_durable(N, 0);
        CHECK(device_see(&d, 0, &v));
        CHECK(!strcmp(v.ring, "pread"));
        daemon_kill(&d);
        daemon_restart(&d);
        WAIT_FOR(device_is(&d, 0, "serving"), 5000);
        CHECK_EQ(pattern_match(&sp, keys, N), N);
        CHECK_OK(pattern_get(&sp, keys, N, 0, statuses));
        CHECK_EQ(pattern_count(statuses, N, 0), N);
        leave();
        daemon_end(&d);
}

static void test_damage_is_never_served(void **state)
{
        struct daemon d;
        uint8_t part[PART];

        DAEMON_START(&d, FILE_OF_1M);
        enter(&d, PART);
        put_durable(N, 0);
        /* the first segment has its footer, else the start reads its records and leaves out this one and those behind it: torn, not quarantined */
        WAIT_FOR(device_find(path, 0, "kvtierFT", 8) > 0, 5000);
        daemon_kill(&d);
        pattern_fill(part, PART, &keys[9], 0, 0);
        int64_t at = device_find(path, 0, part, 4096);
        CHECK(at > 0);
        device_damage(path, (uint64_t)at + 1000, 1);
        device_damage(path, 24, 1); /* of the superblock, which has a copy */
        daemon_restart(&d);
        WAIT_FOR(device_is(&d, 0, "serving"), 5000);
        CHECK(daemon_log_has(&d, "restored from its copy"));
        CHECK_OK(pattern_get(&sp, keys, N, 0, statuses)); /* looks at every byte that is served */
        CHECK(statuses[9] != 0);
        CHECK_EQ(pattern_count(statuses, 9, 0), 9);
        WAIT_FOR(daemon_counter(&d, "nvme_quarantined") == 1, 2000);
        leave();
        daemon_end(&d);
}

enum { CHAINS = 5 }; /* 6 segments */

/* How many blocks are served; whatever is, is right. */
static size_t count_served(void)
{
        size_t n = 0;

        for (uint64_t chain = 1; chain <= CHAINS; chain++) {
                pattern_keys(chain, 0, N, keys);
                CHECK_OK(pattern_get(&sp, keys, N, 0, statuses));
                n += pattern_count(statuses, N, 0);
        }
        return n;
}

static void cut_short(bool is_up)
{
        struct daemon d;

        DAEMON_START(&d, FILE_OF_1M);
        enter(&d, PART);
        for (uint64_t chain = 1; chain <= CHAINS; chain++) {
                pattern_keys(chain, 0, N, keys);
                put_durable(N, 0);
        }
        daemon_kill(&d);
        if (is_up) {
                daemon_restart(&d);
                WAIT_FOR(device_is(&d, 0, "serving"), 5000);
        }
        CHECK(truncate(path, (4 << 20) + 400000) == 0); /* three segments are whole */
        if (!is_up) {
                daemon_restart(&d);
                WAIT_FOR(device_is(&d, 0, "serving"), 5000);
                CHECK(daemon_log_has(&d, "is shorter than it was"));
        }
        size_t n = count_served();
        if (n < 50 || n >= CHAINS * N)
                check_failed(__FILE__, __LINE__, "%zu blocks of %d are served, the daemon %s", n, CHAINS * N, is_up ? "up" : "down");
        if (is_up)
                CHECK(daemon_counter(&d, "nvme_errors") > 0 || daemon_counter(&d, "nvme_quarantined") > 0);
        leave();
        daemon_end(&d);
}

static void test_a_file_cut_short(void **state)
{
        cut_short(false);
}

static void test_a_file_cut_short_while_it_is_in_use(void **state)
{
        cut_short(true);
}

/* Three times what the device holds: what is matched often survives, whatever is served is right. */
static void test_recycling(void **state)
{
        enum { BIG = 131072, ROUNDS = 48 /* of 4 MiB */ };
        kvt_key hot[8];
        struct daemon d;
        size_t n_served = 0;

        DAEMON_START(&d, FILE_OF_1M, "--host_bytes=16M");
        enter(&d, BIG);
        pattern_keys(999, 0, 8, hot);
        pattern_store(&sp, NULL, hot, 8);
        for (uint64_t chain = 1; chain <= ROUNDS; chain++) {
                pattern_keys(chain, 0, N, keys);
                CHECK_OK(pattern_put(&sp, NULL, keys, N, 0, KVT_PUT_DURABLE, statuses));
                CHECK_EQ(pattern_count(statuses, N, 0), N);
                CHECK_EQ(pattern_match(&sp, hot, 8), 8);
        }
        CHECK(daemon_counter(&d, "nvme_recycled") > 60);
        for (int killed = 0; killed < 2; killed++) {
                CHECK_OK(pattern_get(&sp, hot, 8, 0, statuses));
                CHECK_EQ(pattern_count(statuses, 8, 0), 8);
                n_served = 0;
                for (uint64_t chain = 1; chain <= ROUNDS; chain++) {
                        pattern_keys(chain, 0, N, keys);
                        CHECK_OK(pattern_get(&sp, keys, N, 0, statuses));
                        n_served += pattern_count(statuses, N, 0);
                }
                CHECK(n_served > 200);
                if (killed)
                        break;
                print_message("write amplification %.2f\n",
                              (double)daemon_counter(&d, "nvme_written_bytes") / (double)daemon_counter(&d, "demoted_bytes"));
                daemon_kill(&d);
                daemon_restart(&d);
                WAIT_FOR(device_is(&d, 0, "serving"), 5000);
        }
        leave();
        daemon_end(&d);
}

static void test_a_file_of_something_else(void **state)
{
        char other[256], text[4096] = {};
        struct daemon d;

        DAEMON_START(&d);
        enter(&d, PART);
        device_path(&d, "other", other, sizeof(other));
        int fd = open(other, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
        CHECK(fd >= 0 && write(fd, "precious", 8) == 8 && ftruncate(fd, 8 << 20) == 0);
        CHECK_OK(device_do(&d, 0, other));
        WAIT_FOR(device_is(&d, 0, "failed"), 5000);
        put_durable(1, KVT_E_NO_DEVICE);
        CHECK(pread(fd, text, 4096, 0) == 4096 && !strcmp(text, "precious"));
        close(fd);
        leave();
        daemon_end(&d);
}

static void test_two_daemons_on_one_file(void **state)
{
        char param[300];
        struct device_seen v;
        struct daemon a, b;

        DAEMON_START(&a, FILE_OF_1M);
        enter(&a, PART);
        put_durable(4, 0);
        leave();
        snprintf(param, sizeof(param), "--nvme_devices=%s", path);
        DAEMON_START(&b, param);
        WAIT_FOR(device_is(&b, 0, "failed"), 15000);
        CHECK(device_see(&b, 0, &v) && strstr(v.detail, "locked"));
        CHECK(daemon_log_has(&b, "locked"));
        enter(&b, PART);
        put_durable(1, KVT_E_NO_DEVICE);
        leave();
        daemon_end(&b);
        CHECK(device_is(&a, 0, "serving"));
        daemon_end(&a);
}

/* Sanitizers look at what is left over. */
static void test_an_end_while_a_device_is_opened(void **state)
{
        struct daemon d;

        DAEMON_START(&d, FILE_OF_1M);
        enter(&d, PART);
        put_durable(N, 0);
        leave();
        CHECK_EQ(daemon_stop(&d), 0);
        for (int i = 0; i < 20; i++) {
                daemon_restart(&d);
                usleep((useconds_t)(i % 5) * 500);
                CHECK_EQ(daemon_stop(&d), 0);
        }
        CHECK(!daemon_log_has(&d, "taken out of service"));
        daemon_restart(&d);
        enter(&d, PART);
        WAIT_FOR(device_is(&d, 0, "serving"), 5000);
        CHECK_EQ(pattern_match(&sp, keys, N), N);
        leave();
        daemon_end(&d);
}

int main(void)
{
        const struct CMUnitTest tests[] = {
                TEST(test_durable_is_there_after_a_kill),
                TEST(test_why_it_is_not_durable),
                TEST(test_threads_in_place_of_io_uring),
                TEST(test_damage_is_never_served),
                TEST(test_a_file_cut_short),
                TEST(test_a_file_cut_short_while_it_is_in_use),
                TEST(test_recycling),
                TEST(test_a_file_of_something_else),
                TEST(test_two_daemons_on_one_file),
                TEST(test_an_end_while_a_device_is_opened),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
