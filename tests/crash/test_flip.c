/* One bit that flips while nobody looks, in each kind of thing that lies on a device: nothing wrong is ever served, no more is lost than must be, and the
 * log says where it was. */
#include <sys/syscall.h>
#include <time.h>

#include "tests/crash/blocks.h"

/* Each a prompt of its own, so that none hangs on another; the last segment has no footer yet. */
enum { N = 40, PER_SEGMENT = 15, OPEN = 2 /* the segment without footer, the others are before it */ };

/* Time goes by between two starts, so that the log does not leave messages out. */
static unsigned ahead_sec;

int clock_gettime(clockid_t clock, struct timespec *ret)
{
        int r = (int)syscall(SYS_clock_gettime, clock, ret);

        if (r == 0 && clock == CLOCK_MONOTONIC)
                ret->tv_sec += ahead_sec;
        return r;
}

static uint8_t *image; /* of a disk that is well; owned */
static uint64_t offsets[N]; /* of records */
static uint64_t starts[OPEN + 1]; /* of segments */
static char said[16384];
static int real_stderr = -1;

static void restore_stderr(void)
{
        if (real_stderr < 0)
                return;
        dup2(real_stderr, STDERR_FILENO);
        close(real_stderr);
        real_stderr = -1;
}

/* What the daemon says from here on ... */
static FILE *listen_begin(void)
{
        FILE *f = tmpfile();

        CHECK(f);
        fflush(stderr);
        real_stderr = fcntl(STDERR_FILENO, F_DUPFD_CLOEXEC, 0);
        CHECK(real_stderr >= 0 && dup2(fileno(f), STDERR_FILENO) >= 0);
        return f;
}
/* ... to here is in said[]. */
static void listen_end(FILE *f)
{
        restore_stderr();
        rewind(f);
        said[fread(said, 1, sizeof said - 1, f)] = 0;
        fclose(f);
}

static int setup(void **state)
{
        struct superblock *sb;

        log_set_level("warning");
        store_init(&st, 3, 6, "nvme_admit_hits=0\n");
        store_open(&st);
        store_serve(&st);
        sb = &store_device(&st)->sb;
        for (uint32_t b = 0; b < N; b++) {
                block_store(b, ROOT);
                offsets[b] = offset_of(b);
                CHECK_EQ(place_of(b).n_pages, RECORD_PAGES);
        }
        for (int i = 0; i <= OPEN; i++) {
                struct record_at at = place_of((uint32_t)i * PER_SEGMENT);
                starts[i] = format_segment_offset(sb, at.segment);
                CHECK_EQ(at.page, 3); /* behind the space's descriptor */
                TURN_UNTIL(&st, store_device(&st)->segments[at.segment].state == (i < OPEN ? SEGMENT_SEALED : SEGMENT_OPEN));
        }
        store_crash(&st);
        image = malloc(st.disk->bytes);
        CHECK(image);
        sim_peek(st.disk, 0, image, st.disk->bytes);
        return 0;
}

static int teardown(void **state)
{
        restore_stderr();
        store_deinit(&st);
        free(image);
        image = NULL;
        return 0;
}

/* The disk as it was, but for that bit. */
static void flip(uint64_t offset, unsigned bit)
{
        uint8_t byte = image[offset] ^ (uint8_t)(1 << bit);

        sim_poke(st.disk, 0, image, st.disk->bytes);
        sim_poke(st.disk, offset, &byte, 1);
        ahead_sec += 7;
}

/* A start, a look at every block, another start. Returns how many are served; whatever is, is right: block_read() sees to that. */
static uint32_t count_served(void)
{
        uint32_t n = 0, again = 0;

        store_open(&st);
        store_serve(&st);
        for (uint32_t b = 0; b < N; b++)
                n += block_read(b, 1) == 0;
        store_audit(&st);
        TURN_UNTIL(&st, list_empty(&st.e.nvme.drops));
        CHECK_OK(sync_all());
        reopen();
        for (uint32_t b = 0; b < N; b++)
                again += block_read(b, 1) == 0;
        CHECK_EQ(again, n); /* no second loss */
        CHECK_EQ(store_device(&st)->state, DEVICE_SERVING);
        store_audit(&st);
        store_crash(&st);
        return n;
}

/* offset: of the bit; told: where the thing begins, 0: nothing needs be said. */
static void one_bit(const char *what, uint64_t offset, uint64_t told, uint32_t n_lost)
{
        char text[40];
        FILE *f;

        snprintf(text, sizeof text, "byte %llu", (unsigned long long)told);
        flip(offset, ahead_sec % 8);
        f = listen_begin();
        uint32_t n = count_served();
        listen_end(f);
        if (n != N - n_lost)
                check_failed(__FILE__, __LINE__, "a bit of %s: %u blocks are served, not %u\n%s", what, n, N - n_lost, said);
        if (told && !strstr(said, text))
                check_failed(__FILE__, __LINE__, "a bit of %s: nothing is said of %s, but\n%s", what, text, said);
}

static void test_one_bit_of_each(void **state)
{
        uint64_t n_footer = footer_bytes(PER_SEGMENT + 1), footer = starts[1] + SEGMENT - n_footer;

        one_bit("nothing", st.disk->bytes - 1, 0, 0);
        one_bit("the header of a segment", starts[1] + 16, starts[1], PER_SEGMENT);
        one_bit("the magic of a segment", starts[1], starts[1], PER_SEGMENT);
        one_bit("a record's magic", offsets[20], offsets[20], 1);
        one_bit("a record's generation", offsets[20] + 8, offsets[20], 1);
        one_bit("a record's key", offsets[20] + 32, offsets[20], 1);
        one_bit("a plane's hash", offsets[20] + 152, offsets[20], 1);
        one_bit("a payload", offsets[20] + FORMAT_PAGE_BYTES, offsets[20], 1);
        one_bit("the end of a payload", offsets[20] + FORMAT_PAGE_BYTES + BYTES - 1, offsets[20], 1);
        one_bit("a descriptor", starts[1] + FORMAT_PAGE_BYTES + 32, 0, 0); /* there are others of that space */
        one_bit("a descriptor's payload", starts[1] + 2 * FORMAT_PAGE_BYTES + 30, 0, 0);
        one_bit("a footer's key", footer + 64 * 4, footer, 0);
        one_bit("a footer's page number", footer + 64 * 4 + 32, footer, 0);
        one_bit("a footer's count", starts[1] + SEGMENT - 64 + 24, 0, 0);
        one_bit("a footer's magic", starts[1] + SEGMENT - 64, 0, 0);
        one_bit("a footer's generation", starts[1] + SEGMENT - 64 + 16, 0, 0);
        one_bit("a footer's hash", starts[1] + SEGMENT - 8, footer, 0);
        /* without a footer, a scan ends there */
        one_bit("the open segment's header", starts[OPEN] + 16, starts[OPEN], N - OPEN * PER_SEGMENT);
        one_bit("a scanned record's key", offsets[35] + 32, offsets[35], N - 35);
        one_bit("a scanned payload", offsets[35] + 2 * FORMAT_PAGE_BYTES, offsets[35], N - 35);
}

/* The newest descriptor is the first to be read: what it describes must not depend on it. */
static void test_one_bit_of_the_newest_descriptor(void **state)
{
        store_open(&st); /* the last segment gets its footer */
        store_serve(&st);
        TURN_UNTIL(&st, list_empty(&store_device(&st)->logs));
        store_close(&st); /* a crash might lose the footer */
        sim_peek(st.disk, 0, image, st.disk->bytes);
        one_bit("the newest descriptor", starts[OPEN] + 2 * FORMAT_PAGE_BYTES + 30, starts[OPEN] + FORMAT_PAGE_BYTES, 0);
}

static void test_any_bit(void **state)
{
        enum { FLIPS = 24 / CHECK_SLOW };
        unsigned random = (unsigned)check_now_usec();
        unsigned first = random;
        uint32_t worst = N;
        FILE *f = listen_begin();

        for (int i = 0; i < FLIPS; i++) {
                uint64_t segment = starts[rand_r(&random) % (OPEN + 1)], offset = (uint64_t)rand_r(&random) % SEGMENT;
                uint32_t record = (uint32_t)rand_r(&random) % N;
                switch (i % 4) { /* most bits are of payloads */
                case 0:
                        offset = segment + offset % 8192;
                        break;
                case 1:
                        offset = segment + SEGMENT - 1 - offset % 2048;
                        break;
                case 2:
                        offset = offsets[record] + offset % 512;
                        break;
                default:
                        offset += segment;
                }
                flip(offset, (unsigned)rand_r(&random) % 8);
                uint32_t n = count_served();
                worst = n < worst ? n : worst;
                if (n < N - PER_SEGMENT)
                        check_failed(__FILE__, __LINE__, "seed %u, flip %d, byte %llu: %u blocks are served", first, i,
                                     (unsigned long long)offset, n);
        }
        listen_end(f);
        CHECK(worst < N);
}

/* Read from the file itself, not through a ring. */
static void test_one_bit_of_each_superblock(void **state)
{
        static const uint64_t copies[] = {0, FORMAT_SUPERBLOCK_COPY};
        static const uint64_t fields[] = {0, 16, 64};
        int fd = open(st.path, O_RDWR | O_CLOEXEC);
        uint8_t byte;

        CHECK(fd >= 0);
        for (size_t i = 0; i < ELEMENTSOF(copies) * ELEMENTSOF(fields); i++) {
                uint64_t copy = copies[i % 2], offset = copy + fields[i / 2];
                char text[40];
                CHECK_EQ(pread(fd, &byte, 1, (off_t)offset), 1);
                byte ^= 1;
                CHECK_EQ(pwrite(fd, &byte, 1, (off_t)offset), 1);
                ahead_sec += 7;
                FILE *f = listen_begin();
                CHECK_EQ(count_served(), N);
                listen_end(f);
                snprintf(text, sizeof text, "byte %llu: the ", (unsigned long long)copy);
                if (!strstr(said, text))
                        check_failed(__FILE__, __LINE__, "nothing is said of %s, but\n%s", text, said);
                f = listen_begin();
                CHECK_EQ(count_served(), N); /* it was made good */
                listen_end(f);
                CHECK(!strstr(said, text));
        }
        for (size_t i = 0; i < 2; i++) {
                CHECK_EQ(pread(fd, &byte, 1, (off_t)copies[i] + 20), 1);
                byte ^= 1;
                CHECK_EQ(pwrite(fd, &byte, 1, (off_t)copies[i] + 20), 1);
        }
        close(fd);
        FILE *f = listen_begin();
        store_open(&st);
        TURN_UNTIL(&st, store_device(&st)->state == DEVICE_FAILED);
        listen_end(f);
        CHECK(strstr(said, "both superblocks, at bytes 0 and 524288, are damaged"));
        CHECK_IS(block_make_durable(0), KVT_E_NO_DEVICE);
}

#define FAULT(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
        const struct CMUnitTest tests[] = {
                FAULT(test_one_bit_of_each),
                FAULT(test_one_bit_of_the_newest_descriptor),
                FAULT(test_any_bit),
                FAULT(test_one_bit_of_each_superblock),
        };

        assert_bind_loop();
        return cmocka_run_group_tests(tests, NULL, NULL);
}
