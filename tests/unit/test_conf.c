/* The configuration: every value that is taken, and for every one that is not, where it stood and what was expected. */
#include "daemon/util/conf.h"
#include "tests/lib/check.h"

static char error[512];
static struct conf conf;

static int parse_n(const char *text, size_t n)
{
        memset(error, 0, sizeof(error));
        return conf_parse(&conf, text, n, "f.conf", error, sizeof(error));
}

static void good(const char *text)
{
        int r = parse_n(text, strlen(text));

        if (r)
                check_failed(__FILE__, __LINE__, "'%s' is refused: %s", text, error);
}

static void bad(const char *text, const char *expect)
{
        int r = parse_n(text, strlen(text));

        if (!r)
                check_failed(__FILE__, __LINE__, "'%s' is taken", text);
        CHECK_EQ(r, -EINVAL);
        if (!strstr(error, expect))
                check_failed(__FILE__, __LINE__, "'%s': said '%s', expected '%s'", text, error, expect);
}

static void test_defaults(void **state)
{
        good("");
        CHECK_EQ(conf.p.host_bytes, 1ull << 30);
        CHECK_EQ(conf.p.slab_bytes, 16ull << 20); /* 1/256, at least 16 MiB */
        CHECK_EQ(conf.p.prealloc_bytes, 64ull << 20);
        CHECK_EQ(conf.p.lease_usec, 10000000);
        CHECK_EQ(conf.p.max_blocks, 262144);
        CHECK_EQ(conf.p.huge_pages, 1);
        CHECK(!strcmp(conf.p.log_level, "info"));
        CHECK(!strcmp(conf.p.socket, ""));
        CHECK_EQ(conf.n_tenants, 0);
        conf_deinit(&conf);
        good("host_bytes = 512G\n");
        CHECK_EQ(conf.p.slab_bytes, 1ull << 30); /* at most 1 GiB */
        conf_deinit(&conf);
        good("host_bytes = 16M\n");
        CHECK_EQ(conf.p.slab_bytes, 16ull << 20);
        conf_deinit(&conf);
}

static void test_units(void **state)
{
        static const struct {
                const char *text;
                uint64_t value;
        } bytes[] = {{"16777216", 16ull << 20}, {"16384K", 16ull << 20}, {"16M", 16ull << 20},
                     {"2G", 2ull << 30},        {"1T", 1ull << 40},      {"16 M", 16ull << 20}},
          times[] = {{"5000us", 5000},    {"5ms", 5000},         {"2s", 2000000},       {"2", 2000000},
                     {"3min", 180000000}, {"1h", 3600000000ull}, {"1 h", 3600000000ull}};
        char text[128];

        for (size_t i = 0; i < ELEMENTSOF(bytes); i++) {
                snprintf(text, sizeof(text), "host_bytes = %s\n", bytes[i].text);
                good(text);
                CHECK_EQ(conf.p.host_bytes, bytes[i].value);
                conf_deinit(&conf);
        }
        for (size_t i = 0; i < ELEMENTSOF(times); i++) {
                snprintf(text, sizeof(text), "lease_usec=%s", times[i].text);
                good(text);
                CHECK_EQ(conf.p.lease_usec, times[i].value);
                conf_deinit(&conf);
        }
        good("evict_high_pct = 90%\nevict_low_pct = 80\nhuge_pages = no\nlog_level = debug\nsocket_mode = 0600\n");
        CHECK_EQ(conf.p.evict_high_pct, 90);
        CHECK_EQ(conf.p.evict_low_pct, 80);
        CHECK_EQ(conf.p.huge_pages, 0);
        CHECK(!strcmp(conf.p.log_level, "debug"));
        conf_deinit(&conf);
}

static void test_unknown_names(void **state)
{
        bad("speed = 9", "f.conf:1: unknown parameter 'speed'");
        bad("\n# comment\n; comment\n\n  HOST_BYTES = 1G\n", "f.conf:5: unknown parameter 'HOST_BYTES'");
        bad("= 1", "f.conf:1: unknown parameter ''");
        bad("[kvtierd]\nlease_usec = 1s\n[kvtier]\nlease_usec = 1s\n",
            "f.conf:4: unknown section [kvtier] (expected [kvtierd], [tenant NAME] or [space NAME])");
        bad("[tenants a]\nuid = 1\n", "unknown section [tenants a]");
}

static void test_ladders(void **state)
{
        struct conf c;
        struct ladder l;
        char text[CODEC_PAIR_MAX];
        const char *good =
                "codec_nvme = zbf\n[space m 7B]\nhot = kivi:bits=4+turbo\n[space other]\ncold = raw\n[space m 7B]\ncold = stack:levels=2\n"
                "[space 1234567890123456789012345678901234567890abc] ; and a comment\nhot = bitmap\n";

        bad("codec_hot = lz77\n", "codec_hot: 'lz77': no codec of that name");
        bad("codec_nvme = xdelta\n", "codec_nvme: 'xdelta': the codec works against another block");
        bad("codec_cold = kivi:bits=5\n", "codec_cold: 'kivi:bits=5': ");
        bad("[space m]\nwarm = raw\n", "f.conf:2: unknown key 'warm' in [space m] (expected hot, cold or nvme)");
        bad("[space m]\n\nhot = raw+\n", "f.conf:3: hot: 'raw+': no codec of that name");
        bad("[space ]\nhot = raw\n", "is no name of a space");
        bad("\n[space 1234567890123456789012345678901234567890abcd]\nhot = raw\n",
            "f.conf:2: a section's name is longer than 49 characters");
        CHECK_EQ(conf_parse(&c, good, strlen(good), "f.conf", error, sizeof error), 0);
        conf_ladder(&c, "m 7B", &l);
        assert_string_equal(codec_pair_format(&l.rungs[LADDER_HOT], text), "kivi+turbo");
        assert_string_equal(codec_pair_format(&l.rungs[LADDER_COLD], text), "stack:levels=2");
        assert_string_equal(codec_pair_format(&l.rungs[LADDER_NVME], text), "zbf");
        conf_ladder(&c, "1234567890123456789012345678901234567890abc", &l); /* as long as it may be */
        assert_string_equal(codec_pair_format(&l.rungs[LADDER_HOT], text), "bitmap");
        conf_ladder(&c, "other", &l);
        assert_string_equal(codec_pair_format(&l.rungs[LADDER_HOT], text), "raw");
        assert_string_equal(codec_pair_format(&l.rungs[LADDER_COLD], text), "raw");
        conf_ladder(&c, "m", &l);
        assert_string_equal(codec_pair_format(&l.rungs[LADDER_COLD], text), "raw");
        conf_ladder(NULL, "m", &l); /* as for a tree of tenants without a configuration */
        assert_string_equal(codec_pair_format(&l.rungs[LADDER_COLD], text), "raw");
        conf_deinit(&c);
}

static void test_bad_units(void **state)
{
        bad("host_bytes = 1g\n", "host_bytes: '1g' has an unknown unit 'g' (expected bytes with K, M, G or T, like 512M)");
        bad("host_bytes = 1GB\n", "unknown unit 'GB'");
        bad("host_bytes = 1.5G\n", "unknown unit '.5G'");
        bad("host_bytes = 1s\n", "unknown unit 's'");
        bad("lease_usec = 10m\n", "lease_usec: '10m' has an unknown unit 'm' (expected a time with us, ms, s, min or h, like 10s)");
        bad("lease_usec = 1G\n", "unknown unit 'G'");
        bad("workers = 2%\n", "workers: '2%' has an unknown unit '%' (expected a whole number)");
        bad("evict_high_pct = 9k\n", "(expected a percentage)");
}

static void test_no_numbers(void **state)
{
        bad("host_bytes = \n", "f.conf:1: host_bytes: '' is not a number");
        bad("host_bytes = -1G\n", "'-1G' is not a number (expected bytes");
        bad("host_bytes = +1G\n", "'+1G' is not a number");
        bad("host_bytes = much\n", "'much' is not a number");
        bad("lease_usec = 0x10\n", "unknown unit 'x10'");
        bad("huge_pages = true\n", "huge_pages: 'true' is neither yes nor no");
        bad("huge_pages = yess\n", "'yess' is neither yes nor no");
        bad("log_level = loud\n", "log_level: 'loud' is none of error, warning, info, debug");
        bad("log_level = xx\n", "must have 3 to 8 characters");
        bad("socket_mode = 0999\n", "socket_mode: '0999' is no octal mode");
        bad("socket_mode = rwx\n", "is no octal mode");
        bad("socket_mode = 1777\n", "is no octal mode");
}

static void test_overflow(void **state)
{
        bad("host_bytes = 18446744073709551616\n", "'18446744073709551616' overflows 64 bits");
        bad("host_bytes = 18446744073709551615K\n", "overflows 64 bits");
        bad("host_bytes = 99999999999999999999999999999999999999\n", "overflows 64 bits");
        bad("host_bytes = 16777216T\n", "overflows 64 bits"); /* exactly 2^64 */
        bad("lease_usec = 18446744073709551615h\n", "overflows 64 bits");
        bad("host_bytes = 18446744073709551615\n", "is out of range (16777216 to 70368744177664)");
}

static void test_ranges(void **state)
{
        good("host_bytes = 16M\nlease_usec = 1ms\nworkers = 256\nmax_sessions = 1\n");
        conf_deinit(&conf);
        bad("host_bytes = 16777215\n", "out of range (16777216 to ");
        bad("lease_usec = 999us\n", "out of range (1000 to 3600000000)");
        bad("lease_usec = 61min\n", "out of range");
        bad("workers = 257\n", "out of range (0 to 256)");
        bad("max_sessions = 0\n", "out of range (1 to ");
        bad("evict_high_pct = 101\n", "out of range (1 to 100)");
        bad("slab_bytes = 2G\n", "slab_bytes is larger than host_bytes");
        bad("evict_high_pct = 50\nevict_low_pct = 60\n", "evict_low_pct is above evict_high_pct");
        char text[300];
        memset(text, 'x', sizeof(text));
        memcpy(text, "socket = /", 10);
        strcpy(text + 120, "\n");
        bad(text, "socket: '");
        CHECK(strstr(error, "must have 0 to 100 characters"));
}

static void test_lines_that_are_none(void **state)
{
        bad("lease_usec 1s\n", "f.conf:1: expected 'name = value' or '[section]'");
        bad("\n\n[kvtierd\nlease_usec = 1s\n", "f.conf:3: expected 'name = value' or '[section]'");
        bad("lease_usec = 1s\n   garbage\n", "f.conf:2: expected 'name = value'");
        CHECK_EQ(parse_n("lease_usec = 1s\nwork\0ers = 3\n", 29), -EINVAL);
        CHECK(strstr(error, "f.conf:2: the line holds a zero byte"));
        CHECK_EQ(parse_n("\0", 1), -EINVAL);
        CHECK(strstr(error, "f.conf:1: the line holds a zero byte"));
}

static void test_long_lines(void **state)
{
        static char text[100000];

        memset(text, 'x', sizeof(text) - 1);
        memcpy(text, "lease_usec = 1s\nsocket = ", 25);
        bad(text, "f.conf:2: the line is longer than ");
        memset(text, ' ', sizeof(text) - 1); /* long, but of blanks in front: fine */
        strcpy(text + 5000, "lease_usec = 3s\n");
        good(text);
        CHECK_EQ(conf.p.lease_usec, 3000000);
        conf_deinit(&conf);
        memset(text, '#', sizeof(text) - 1); /* a comment as long is refused too, and says so, rather than cut in two */
        text[sizeof(text) - 1] = 0;
        bad(text, "the line is longer than ");
}

static void test_ends_of_lines(void **state)
{
        good("lease_usec = 3s\r\nworkers = 2\r\n");
        CHECK_EQ(conf.p.lease_usec, 3000000);
        CHECK_EQ(conf.p.workers, 2);
        conf_deinit(&conf);
        good("\xef\xbb\xbflease_usec = 3s"); /* a byte order mark, and no newline at the end */
        CHECK_EQ(conf.p.lease_usec, 3000000);
        conf_deinit(&conf);
        good("\n\n\n");
        conf_deinit(&conf);
        good("workers = 1\nworkers = 2\n"); /* the last one counts */
        CHECK_EQ(conf.p.workers, 2);
        conf_deinit(&conf);
}

static void test_tenants(void **state)
{
        good("lease_usec = 1s\n[tenant web]\nuid = 33\nhard_bytes = 1G\n[tenant team_a.b-2]\ngroup = 1000\nsoft_bytes = "
             "5M\n[kvtierd]\nworkers = 2\n"
             "[tenant web]\nsoft_bytes = 1M\n");
        CHECK_EQ(conf.n_tenants, 2);
        CHECK(!strcmp(conf.tenants[0].name, "web"));
        CHECK(conf.tenants[0].has_uid && conf.tenants[0].uid == 33 && !conf.tenants[0].has_gid);
        CHECK_EQ(conf.tenants[0].hard_bytes, 1 << 30);
        CHECK_EQ(conf.tenants[0].soft_bytes, 1 << 20);
        CHECK(conf.tenants[1].has_gid && conf.tenants[1].gid == 1000 && !conf.tenants[1].has_uid);
        CHECK_EQ(conf.p.workers, 2);
        conf_deinit(&conf);
        good("[tenant r]\nuid = root\ngroup = root\n"); /* names, too */
        CHECK(conf.tenants[0].has_uid && conf.tenants[0].uid == 0);
        CHECK(conf.tenants[0].has_gid && conf.tenants[0].gid == 0);
        conf_deinit(&conf);
        bad("[tenant a]\nlease_usec = 1s\n",
            "f.conf:2: unknown key 'lease_usec' in [tenant a] (expected uid, group, hard_bytes or soft_bytes)");
        bad("[tenant a]\nuid = nobody-of-this-name\n", "f.conf:2: uid: ");
        bad("[tenant a]\ngroup = nobody-of-this-name\n", "f.conf:2: group: there is no group 'nobody-of-this-name'");
        bad("[tenant a]\nuid = 4294967295\n", "out of range");
        bad("[tenant a]\nuid = 1x\n", "unknown unit 'x'");
        bad("[tenant a]\nhard_bytes = 0\n", "out of range");
        bad("[tenant ]\nuid = 1\n", "is no tenant name");
        bad("[tenant a b]\nuid = 1\n", "'a b' is no tenant name (1 to 32 letters");
        bad("[tenant uid:0]\nuid = 1\n", "is no tenant name");
        bad("[tenant aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa]\nuid = 1\n", "is no tenant name");
}

static void test_many_tenants(void **state)
{
        size_t n = 0, cap = 200 * 40;
        char *text = malloc(cap);

        for (int i = 0; i < 200; i++)
                n += (size_t)snprintf(text + n, cap - n, "[tenant t%d]\nuid = %d\n", i, i);
        CHECK_EQ(parse_n(text, n), 0);
        CHECK_EQ(conf.n_tenants, 200);
        for (unsigned i = 0; i < 200; i++)
                CHECK_EQ(conf.tenants[i].uid, i);
        conf_deinit(&conf);
        free(text);
}

static void test_reload_takes_what_may_change(void **state)
{
        struct conf now;

        good("lease_usec = 1s\nworkers = 2\nlog_level = info\n[tenant a]\nuid = 1\n");
        now = conf;
        good("lease_usec = 7s\nworkers = 2\nlog_level = debug\n[tenant b]\nuid = 2\n[tenant c]\nuid = 3\n");
        CHECK(conf_reload(&now, &conf) == NULL);
        conf_deinit(&conf);
        CHECK_EQ(now.p.lease_usec, 7000000);
        CHECK(!strcmp(now.p.log_level, "debug"));
        CHECK_EQ(now.n_tenants, 2);
        good("lease_usec = 8s\nworkers = 4\nmax_leases = 9\n");
        const char *differs = conf_reload(&now, &conf);
        CHECK(differs && !strcmp(differs, "max_leases")); /* the first of the table */
        conf_deinit(&conf);
        CHECK_EQ(now.p.lease_usec, 8000000); /* what may change did */
        CHECK_EQ(now.p.workers, 2); /* the rest not */
        conf_deinit(&now);
}

static void test_failure_leaves_the_old_one_alone(void **state)
{
        struct conf before;

        good("lease_usec = 5s\n[tenant a]\nuid = 1\n");
        before = conf;
        bad("lease_usec = 6s\n[tenant b]\nuid = 2\nuid = x y\n", "f.conf:4");
        CHECK(!memcmp(&before, &conf, sizeof(conf)));
        conf_deinit(&conf);
}

static void test_flags(void **state)
{
        struct conf_flag flags[] = {{"lease_usec", "4s"}, {"workers", "3"}};
        struct conf c;
        char path[] = "/tmp/kvt-conf-XXXXXX";
        int fd = mkstemp(path);

        CHECK(fd >= 0 && write(fd, "lease_usec = 9s\nmax_leases = 5\n", 31) == 31);
        close(fd);
        CHECK_EQ(conf_load(&c, path, flags, 2, error, sizeof(error)), 0);
        CHECK_EQ(c.p.lease_usec, 4000000);
        CHECK_EQ(c.p.workers, 3);
        CHECK_EQ(c.p.max_leases, 5);
        conf_deinit(&c);
        flags[1].value = "some";
        CHECK_EQ(conf_load(&c, path, flags, 2, error, sizeof(error)), -EINVAL);
        CHECK(strstr(error, "--workers: workers: 'some' is not a number"));
        flags[1].name = "nothing";
        CHECK_EQ(conf_load(&c, path, flags, 2, error, sizeof(error)), -EINVAL);
        CHECK(strstr(error, "unknown parameter 'nothing'"));
        unlink(path);
        CHECK_EQ(conf_load(&c, path, flags, 1, error, sizeof(error)), -ENOENT);
        CHECK(strstr(error, path));
        CHECK_EQ(conf_load(&c, "/tmp", flags, 1, error, sizeof(error)), -EINVAL);
        CHECK(strstr(error, "/tmp: not a regular file"));
        CHECK(conf_is_param("lease_usec") && !conf_is_param("lease") && !conf_is_param(""));
}

int main(void)
{
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_defaults),
                cmocka_unit_test(test_units),
                cmocka_unit_test(test_unknown_names),
                cmocka_unit_test(test_ladders),
                cmocka_unit_test(test_bad_units),
                cmocka_unit_test(test_no_numbers),
                cmocka_unit_test(test_overflow),
                cmocka_unit_test(test_ranges),
                cmocka_unit_test(test_lines_that_are_none),
                cmocka_unit_test(test_long_lines),
                cmocka_unit_test(test_ends_of_lines),
                cmocka_unit_test(test_tenants),
                cmocka_unit_test(test_many_tenants),
                cmocka_unit_test(test_reload_takes_what_may_change),
                cmocka_unit_test(test_failure_leaves_the_old_one_alone),
                cmocka_unit_test(test_flags),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
