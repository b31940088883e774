/* What all draw on cannot be used up by one: leases, block numbers, memory under lease, the loop's time. And a file in the socket's place. */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "tests/lib/pattern.h"
#include "tests/lib/raw.h"

enum { GREEDY = 1001, OTHER = 1002 };

struct pair {
        struct daemon *d;
        struct meeting meet;
        bool stop; /* atomic, shared */
        size_t n_leased;
};

static kvt_key keys[2048];
static kvt_mapping maps[2048];
static uint8_t statuses[2048];

/* greedy is at work when it has met us the first time, and stops when it meets us again. */
static void beside(struct pair *x, struct daemon *d, void (*greedy)(void *), void (*other)(void *))
{
        x->d = d;
        meeting_init(&x->meet);
        pid_t pid = child_start_as(GREEDY, greedy, x);
        meeting_at(&x->meet, 0);
        child_run_as(OTHER, other, x);
        __atomic_store_n(&x->stop, true, __ATOMIC_RELEASE);
        meeting_at(&x->meet, 0);
        child_join(pid);
        meeting_deinit(&x->meet);
}

static struct pair *pair_new(void)
{
        if (geteuid() != 0)
                check_skip("two tenants take two users: run as root");
        return mmap(NULL, sizeof(struct pair), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
}

static void lease_all(void *arg)
{
        struct pair *x = arg;
        struct pattern_space sp;
        kvt *c = pattern_open(x->d, 0);

        PATTERN_SPACE(&sp, c, .part_bytes = 4096);
        pattern_keys(1, 0, 64, keys);
        pattern_store(&sp, NULL, keys, 64);
        CHECK_OK(kvt_map(sp.s, keys, 64, maps, statuses));
        x->n_leased = pattern_count(statuses, 64, 0);
        CHECK_EQ(x->n_leased + pattern_count(statuses, 64, KVT_E_AGAIN), 64);
        meeting_at(&x->meet, 1);
        meeting_at(&x->meet, 1);
        kvt_close(c);
}

static void lease_some(void *arg)
{
        struct pair *x = arg;
        struct pattern_space sp;
        kvt *c = pattern_open(x->d, 0);

        PATTERN_SPACE(&sp, c, .part_bytes = 4096);
        pattern_keys(2, 0, 8, keys);
        pattern_store(&sp, NULL, keys, 8);
        CHECK_OK(kvt_map(sp.s, keys, 8, maps, statuses));
        CHECK_EQ(pattern_count(statuses, 8, 0), 8);
        kvt_close(c);
}

static void test_leases_are_shared(void **state)
{
        struct pair *x = pair_new();
        struct daemon d;

        DAEMON_START(&d, "--max_leases=48");
        beside(x, &d, lease_all, lease_some);
        CHECK(x->n_leased > 0 && x->n_leased < 40);
        daemon_end(&d);
}

static void fill_index(void *arg)
{
        struct pair *x = arg;
        struct pattern_space sp;
        kvt *c = pattern_open(x->d, 0);

        PATTERN_SPACE(&sp, c, .part_bytes = 32);
        pattern_keys(1, 0, 2000, keys);
        for (size_t i = 0; i < 2000; i++) /* each a prompt of its own */
                CHECK_OK(kvt_prefetch(sp.s, &keys[i], 1, 0, statuses) ?: pattern_put(&sp, NULL, &keys[i], 1, 0, 0, statuses));
        meeting_at(&x->meet, 1);
        meeting_at(&x->meet, 1);
        kvt_close(c);
}

static void put_some(void *arg)
{
        struct pair *x = arg;
        struct pattern_space sp;
        kvt *c = pattern_open(x->d, 0);

        PATTERN_SPACE(&sp, c, .part_bytes = 32);
        pattern_keys(2, 0, 100, keys);
        for (size_t i = 0; i < 100; i++)
                pattern_store(&sp, NULL, &keys[i], 1);
        for (size_t i = 0; i < 100; i++)
                CHECK_EQ(pattern_match(&sp, &keys[i], 1), 1);
        kvt_close(c);
}

static void test_block_numbers_are_shared(void **state)
{
        struct pair *x = pair_new();
        struct daemon d;

        DAEMON_START(&d, "--max_blocks=1000");
        beside(x, &d, fill_index, put_some);
        daemon_end(&d);
}

enum { PART = 64 << 10, MANY = 600 };

/* Holds a lease on a block of every slab, all the time. */
static void pin_everywhere(void *arg)
{
        struct pair *x = arg;
        struct pattern_space sp;
        kvt *c = pattern_open(x->d, 0);
        size_t n = 0;

        PATTERN_SPACE(&sp, c, .part_bytes = PART);
        pattern_keys(1, 0, MANY, keys);
        for (size_t i = 0; i < MANY; i++)
                CHECK_OK(pattern_put(&sp, NULL, &keys[i], 1, 0, 0, statuses));
        for (bool met = false;; met = true) {
                kvt_mapping fresh[MANY / 8];
                size_t k = 0;
                for (size_t i = 0; i < MANY; i += 8, k++)
                        CHECK_OK(kvt_map(sp.s, &keys[i], 1, &fresh[k], &statuses[k]));
                if (n)
                        kvt_unmap(sp.s, maps, n, NULL);
                memcpy(maps, fresh, k * sizeof(*fresh));
                n = k;
                CHECK_OK(kvt_flush(c));
                if (!met)
                        meeting_at(&x->meet, 1);
                if (__atomic_load_n(&x->stop, __ATOMIC_ACQUIRE))
                        break;
                usleep(20000);
                CHECK_OK(kvt_process(c));
        }
        meeting_at(&x->meet, 1);
        kvt_close(c);
}

static void come_late(void *arg)
{
        struct pair *x = arg;
        struct pattern_space sp;
        kvt *c = pattern_open(x->d, 0);
        uint64_t until = check_now_usec() + 10000000 * CHECK_SLOW;
        size_t n = 0;

        PATTERN_SPACE(&sp, c, .part_bytes = PART);
        pattern_keys(2, 0, 64, keys);
        while (n < 64) { /* until it gets memory from the other it may have to take turns with itself */
                CHECK(check_now_usec() < until);
                n = 0;
                for (size_t i = 0; i < 64; i++) {
                        if (pattern_match(&sp, &keys[i], 1) == 0)
                                (void)pattern_put(&sp, NULL, &keys[i], 1, 0, 0, statuses);
                        n += pattern_match(&sp, &keys[i], 1);
                }
                for (size_t i = 0; n == 64 && i < 64; i++)
                        if (!pattern_match(&sp, &keys[i], 1))
                                n = 0;
                usleep(5000);
        }
        kvt_close(c);
}

static void test_leases_do_not_keep_others_out(void **state)
{
        struct pair *x = pair_new();
        struct daemon d;

        DAEMON_START(&d, "--host_bytes=32M", "--tenant_soft_bytes=12M", "--lease_usec=200ms");
        beside(x, &d, pin_everywhere, come_late);
        daemon_end(&d);
}

/* Work that grows with the square of a chain's length would run into the library's time limit here. */
static void test_a_long_chain_is_dropped_at_once(void **state)
{
        enum { LONG = 60000 };
        kvt_key *chain = calloc(LONG, sizeof(*chain));
        uint8_t *all = calloc(LONG, 1);
        struct pattern_space sp;
        struct daemon d;

        DAEMON_START(&d, "--max_blocks=100000", "--host_bytes=128M");
        kvt *c = pattern_open(&d, 0);
        PATTERN_SPACE(&sp, c, .part_bytes = 32);
        pattern_keys(1, 0, LONG, chain);
        CHECK_OK(pattern_put(&sp, NULL, chain, LONG, 0, 0, all));
        CHECK_EQ(pattern_count(all, LONG, 0), LONG);
        CHECK_OK(kvt_drop(sp.s, chain, 1, statuses));
        CHECK_OK(statuses[0]);
        CHECK_EQ(daemon_audit(&d).n_blocks, 0);
        /* and a purge answers with what it took, whoever else is at work */
        static struct raw r;
        Kvtier__PurgeRequest purge = KVTIER__PURGE_REQUEST__INIT;
        CHECK_OK(pattern_put(&sp, NULL, chain, LONG, 0, 0, all));
        raw_open(&r, d.socket);
        raw_hello(&r);
        Kvtier__PurgeReply *m = raw_call(&r, KVT_MSG_PURGE, &purge, &kvtier__purge_reply__descriptor);
        CHECK(m);
        CHECK_EQ(m->n_blocks, LONG);
        protobuf_c_message_free_unpacked(&m->base, NULL);
        raw_close(&r);
        CHECK_EQ(daemon_audit(&d).n_blocks, 0);
        kvt_space_close(sp.s);
        kvt_close(c);
        free(chain);
        free(all);
        daemon_end(&d);
}

static void test_a_file_in_the_sockets_place_stays(void **state)
{
        char path[] = "/tmp/kvt-file-XXXXXX", flag[64], lock[64], text[1024];
        struct stat st;
        int fd = mkstemp(path);

        CHECK(fd >= 0 && write(fd, "mine", 4) == 4);
        close(fd);
        snprintf(flag, sizeof(flag), "--socket=%s", path);
        CHECK_EQ(daemon_run((const char *const[]){flag, NULL}, text, sizeof(text)), 1);
        CHECK(strstr(text, "is no socket"));
        CHECK(stat(path, &st) == 0 && st.st_size == 4);
        snprintf(lock, sizeof(lock), "%s.lock", path);
        unlink(lock);
        unlink(path);
}

int main(void)
{
        const struct CMUnitTest tests[] = {
                TEST(test_leases_are_shared),
                TEST(test_block_numbers_are_shared),
                TEST(test_leases_do_not_keep_others_out),
                TEST(test_a_long_chain_is_dropped_at_once),
                TEST(test_a_file_in_the_sockets_place_stays),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
