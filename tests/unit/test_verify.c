/* kvtierctl verify of a device that it reads itself: devices made here, whole and damaged in one place each. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

/* kvtierctl is a program, not a library */
#include "libclient/ctl/devfile.c"
#include "libclient/ctl/devfile_verify.c"
#include "libclient/ctl/format.c"
#include "libclient/ctl/table.c"

#include "libclient/codec/hash.h"

enum {
        SEGMENT = 1 << 20,
        N_SEGMENTS = 4,
        PAGE = FORMAT_PAGE_BYTES,
        PLANE = 5000, /* two of them: three pages */
        N_PLANES = 2,
        DEVICE = FORMAT_SEGMENTS_START + N_SEGMENTS * SEGMENT,
};

/* what main.c has */

static json_t *answer;

int ctl_fail(const struct ctl *x, int r, const char *format, ...)
{
        return EXIT_FAILED;
}

int ctl_print_json(const struct ctl *x, json_t *value)
{
        json_decref(answer);
        answer = value;
        return EXIT_OK;
}

/* a device */

static _Alignas(FORMAT_PAGE_BYTES) uint8_t image[DEVICE];
static struct superblock super = {.segment_bytes = SEGMENT, .n_segments = N_SEGMENTS, .device_bytes = DEVICE, .created_sec = 7};
static char path[] = "/tmp/kvtier-verify-XXXXXX";
static uint8_t space[16], descriptor[4096];
static size_t n_descriptor;

/* a segment that is being written */
struct writer {
        struct place at;
        struct footer_entry entries[128];
        uint32_t n;
        uint16_t i_space;
        uint64_t starts[128]; /* offset of each record */
};

static void writer_open(struct writer *w, uint32_t segment, uint64_t generation)
{
        *w = (struct writer){.at = {.uuid = super.uuid, .segment = segment, .generation = generation}, .i_space = 0xffff};
        segment_header_encode(image + format_segment_offset(&super, segment), &w->at, 9);
        w->at.page = 1;
}

/* h: all but what record_header_seal() fills in, sizes and hashes, which follow from the payload */
static void write_record(struct writer *w, struct record_header h, const void *payload, uint64_t n)
{
        uint64_t start = format_segment_offset(&super, w->at.segment) + (uint64_t)w->at.page * PAGE;
        struct record_header *to = (void *)(image + start);
        uint8_t *bytes;

        h.raw_bytes = h.stored_bytes = n;
        if (h.type == RECORD_BLOCK) {
                h.n_planes = N_PLANES;
                h.n_shards = 1;
                if (h.flags & RECORD_PAGE_HASHES)
                        h.n_page_hashes = (uint32_t)format_pages(n);
        } else if (n)
                h.payload_hash = hash_bytes(payload, n, 0);
        h.header_pages = record_header_pages(h.n_planes, h.n_page_hashes);
        h.n_pages = h.n_pages ? h.n_pages : (uint32_t)(h.header_pages + format_pages(n));
        *to = h;
        bytes = record_payload(to);
        if (n)
                memcpy(bytes, payload, n);
        for (uint32_t i = 0; i < h.n_planes; i++)
                record_planes(to)[i] = (struct kvt_copy_plane){.hash = hash_bytes(bytes + i * PLANE, PLANE, i), .bytes = PLANE};
        for (uint32_t i = 0; i < h.n_page_hashes; i++)
                record_page_hashes(to)[i] = record_page_hash(bytes + (uint64_t)i * PAGE, i);
        record_header_seal(to, &w->at);
        w->starts[w->n] = start;
        w->entries[w->n] = (struct footer_entry){.page = w->at.page,
                                                 .n_pages = h.n_pages,
                                                 .type = h.type,
                                                 .n_shards = h.n_shards,
                                                 .flags = h.flags,
                                                 .raw_bytes = h.raw_bytes,
                                                 .space = h.type == RECORD_SPACE || h.type == RECORD_PAD ? 0xffff : w->i_space};
        memcpy(w->entries[w->n].key, h.key, 16);
        memcpy(w->entries[w->n].parent, h.parent, 16);
        if (h.type == RECORD_SPACE)
                w->i_space = (uint16_t)w->n;
        w->n++;
        w->at.page += h.n_pages;
}

static void write_space(struct writer *w)
{
        struct record_header h = {.type = RECORD_SPACE};

        memcpy(h.key, space, 16);
        memcpy(h.space, space, 16);
        write_record(w, h, descriptor, n_descriptor);
}

static void write_block(struct writer *w, uint8_t key, uint16_t flags)
{
        struct record_header h = {.type = RECORD_BLOCK, .key = {key, 1}, .flags = flags};
        uint8_t payload[N_PLANES * PLANE];

        for (size_t i = 0; i < sizeof payload; i++)
                payload[i] = (uint8_t)(key * 31 + i * 7 + (i >> 8));
        memcpy(h.space, space, 16);
        if (flags & RECORD_HAS_PARENT)
                h.parent[0] = (uint8_t)(key - 1);
        write_record(w, h, payload, sizeof payload);
}

static void write_footer(struct writer *w)
{
        uint64_t n = footer_bytes(w->n);

        footer_encode(image + format_segment_offset(&super, w->at.segment) + SEGMENT - n, &w->at, w->entries, w->n, w->at.page, 9);
}

static struct writer full, open_one; /* segments 0 and 1; 2 was never used, 3 has the remains of another life */

static void make_image(void)
{
        static const kvt_plane planes[] = {{.dtype = KVT_DTYPE_OPAQUE, .heads = 1, .opaque_bytes = 312},
                                           {.role = KVT_ROLE_V, .dtype = KVT_DTYPE_OPAQUE, .heads = 1, .opaque_bytes = 312}};
        static const struct drop_entry drops[] = {{.key = {1}}, {.what = 1}, {.key = {2}, .what = 2, .shard = 1}};
        struct record_header h = {.type = RECORD_DROP};
        struct geometry g;
        const char *why;
        struct writer old;

        memset(image, 0, sizeof image);
        memset(super.uuid, 0x5a, 16);
        assert_int_equal(geometry_init(&g, 16, 1, planes, 2, &why), 0);
        n_descriptor = space_descriptor_encode(descriptor, "uid:7", "model", NULL, 0, 0, &g);
        space_digest(space, descriptor, n_descriptor);
        geometry_deinit(&g);
        superblock_encode(image, &super);
        superblock_encode(image + FORMAT_SUPERBLOCK_COPY, &super);

        writer_open(&full, 0, 11);
        write_space(&full);
        write_block(&full, 1, 0);
        write_block(&full, 2, RECORD_HAS_PARENT | RECORD_PAGE_HASHES);
        memcpy(h.space, space, 16);
        write_record(&full, h, drops, sizeof drops);
        write_record(&full, (struct record_header){.type = RECORD_PAD, .n_pages = 3}, NULL, 0);
        write_block(&full, 3, RECORD_HAS_PARENT | RECORD_DURABLE);
        write_footer(&full);

        writer_open(&open_one, 1, 12);
        write_space(&open_one);
        for (uint8_t i = 4; i < 7; i++)
                write_block(&open_one, i, RECORD_HAS_PARENT);

        writer_open(&old, 3, 5);
        write_space(&old);
        write_block(&old, 9, 0);
        write_block(&old, 10, 0);
        write_footer(&old);
        writer_open(&old, 3, 13);
        write_space(&old);
}

/* verifying */

static int verify(uint64_t n_bytes)
{
        struct ctl x = {.o = {.json = true}};
        int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

        assert_true(fd >= 0 && write(fd, image, n_bytes) == (ssize_t)n_bytes);
        close(fd);
        return devfile_verify(&x, path);
}

static json_int_t said(const char *field)
{
        return json_integer_value(json_object_get(answer, field));
}

/* The offsets of all problems, in order, until one is -1. */
static void assert_problems(int64_t offset, ...)
{
        const json_t *problems = json_object_get(answer, "problems");
        va_list args;
        size_t n = 0;

        va_start(args, offset);
        for (; offset >= 0; offset = va_arg(args, int64_t), n++)
                assert_int_equal(json_integer_value(json_object_get(json_array_get(problems, n), "offset")), offset);
        va_end(args);
        assert_int_equal(json_array_size(problems), n);
        assert_int_equal(said("n_problems"), n);
}
#define END ((int64_t)-1)

static void test_whole(void **state)
{
        make_image();
        assert_int_equal(verify(DEVICE), EXIT_OK);
        assert_problems(END);
        assert_int_equal(said("n_segments"), 4);
        assert_int_equal(said("n_used_segments"), 3);
        assert_int_equal(said("n_records"), 6 + 4 + 1); /* and none of another life */
        assert_int_equal(said("n_torn"), 0);
        assert_int_equal(said("bytes"), (full.at.page - 1 + open_one.at.page - 1 + 2) * PAGE);
}

static void test_superblocks(void **state)
{
        make_image();
        image[30] ^= 1;
        assert_int_equal(verify(DEVICE), EXIT_FAILED);
        assert_problems((int64_t)0, END);
        assert_int_equal(said("n_records"), 11); /* by the second one */
        image[FORMAT_SUPERBLOCK_COPY + 4000] ^= 1;
        assert_int_equal(verify(DEVICE), EXIT_FAILED);
        assert_problems((int64_t)0, (int64_t)FORMAT_SUPERBLOCK_COPY, END);
        assert_int_equal(said("n_records"), 0);
        make_image();
        super.created_sec++;
        superblock_encode(image + FORMAT_SUPERBLOCK_COPY, &super);
        super.created_sec--;
        assert_int_equal(verify(DEVICE), EXIT_FAILED);
        assert_problems((int64_t)FORMAT_SUPERBLOCK_COPY, END);
        assert_int_equal(verify(100), EXIT_FAILED);
        assert_problems((int64_t)0, (int64_t)FORMAT_SUPERBLOCK_COPY, END);
        assert_int_equal(verify(0), EXIT_FAILED);
        memset(image, 0, sizeof image);
        assert_int_equal(verify(DEVICE), EXIT_FAILED);
        assert_problems((int64_t)0, (int64_t)FORMAT_SUPERBLOCK_COPY, END);
        memset(image, 0xee, sizeof image);
        assert_int_equal(verify(DEVICE), EXIT_FAILED);
        assert_problems((int64_t)0, (int64_t)FORMAT_SUPERBLOCK_COPY, END);
}

/* A bit anywhere in what a footer lists: that record is named, and only that. */
static void test_listed(void **state)
{
        make_image();
        for (uint32_t i = 0; i < full.n; i++) {
                struct record_header *h = (void *)(image + full.starts[i]);
                uint64_t n = (uint64_t)h->header_pages * PAGE + h->stored_bytes;
                bool is_pad = h->type == RECORD_PAD; /* a failed write may have left anything there */

                for (uint64_t at = 0; at < n; at += at < 300 ? 13 : 997) {
                        image[full.starts[i] + at] ^= 0x10;
                        if (is_pad) {
                                assert_int_equal(verify(DEVICE), EXIT_OK);
                                image[full.starts[i] + at] ^= 0x10;
                                continue;
                        }
                        assert_int_equal(verify(DEVICE), EXIT_FAILED);
                        assert_int_equal(json_integer_value(
                                                 json_object_get(json_array_get(json_object_get(answer, "problems"), 0), "offset")),
                                         full.starts[i]);
                        /* without the space, none of its records can be used */
                        assert_int_equal(said("n_problems"), i == 0 ? 5 : 1);
                        assert_int_equal(said("n_records"), 10);
                        image[full.starts[i] + at] ^= 0x10;
                }
        }
        /* behind the payload, where only a page's own hash looks */
        struct record_header *h = (void *)(image + full.starts[2]);
        uint64_t padding = (uint64_t)h->header_pages * PAGE + h->stored_bytes + 5;
        image[full.starts[2] + padding] ^= 1;
        assert_int_equal(verify(DEVICE), EXIT_FAILED);
        assert_problems((int64_t)(full.starts[2] + padding / PAGE * PAGE), END);
}

/* Of the segment itself. */
static void test_segments(void **state)
{
        uint64_t end = FORMAT_SEGMENTS_START + SEGMENT, footer = end - footer_bytes(6);

        make_image();
        image[FORMAT_SEGMENTS_START + 17] ^= 1;
        assert_int_equal(verify(DEVICE), EXIT_FAILED);
        assert_problems((int64_t)FORMAT_SEGMENTS_START, END);
        assert_int_equal(said("n_records"), 5);
        for (uint64_t at = footer; at < end; at += 61) {
                make_image();
                image[at] ^= 1;
                verify(DEVICE);
                assert_int_equal(said("n_records"), 11); /* the records themselves are all found */
                if (at < end - sizeof(struct footer_trailer))
                        assert_problems((int64_t)footer, END);
        }
        make_image(); /* a footer that verifies, and is that of other records */
        full.entries[1].key[3] ^= 1;
        write_footer(&full);
        assert_int_equal(verify(DEVICE), EXIT_FAILED);
        assert_problems((int64_t)full.starts[1], END);
        make_image(); /* a device that got shorter */
        assert_int_equal(verify(DEVICE - 5000), EXIT_FAILED);
        assert_problems((int64_t)DEVICE - 5000, END);
        assert_int_equal(said("n_records"), 10);
        make_image(); /* a segment copied to another place is no segment there */
        memcpy(image + FORMAT_SEGMENTS_START + 2 * SEGMENT, image + FORMAT_SEGMENTS_START, SEGMENT);
        assert_int_equal(verify(DEVICE), EXIT_FAILED);
        assert_problems((int64_t)FORMAT_SEGMENTS_START + 2 * SEGMENT, END);
}

/* A segment without a footer: its end may be torn, its middle may not. */
static void test_torn(void **state)
{
        for (uint32_t i = 1; i < 4; i++) {
                for (uint64_t at = 24; at < PAGE + N_PLANES * PLANE; at += 599) {
                        make_image();
                        image[open_one.starts[i] + at] ^= 4;
                        assert_int_equal(verify(DEVICE), i < 3 ? EXIT_FAILED : EXIT_OK);
                        if (i < 3)
                                assert_problems((int64_t)open_one.starts[i], END);
                        else
                                assert_problems(END);
                        assert_int_equal(said("n_torn"), i == 3);
                        assert_int_equal(said("n_records"), 6 + i + 1);
                }
        }
        make_image(); /* full to the last page */
        while (open_one.at.page + 4 <= SEGMENT / PAGE)
                write_block(&open_one, 7, 0);
        if (open_one.at.page < SEGMENT / PAGE)
                write_record(&open_one, (struct record_header){.type = RECORD_PAD, .n_pages = SEGMENT / PAGE - open_one.at.page}, NULL, 0);
        assert_int_equal(verify(DEVICE), EXIT_OK);
        assert_problems(END);
}

static void test_lock(void **state)
{
        struct ctl x = {.o = {.json = true}};
        struct devfile d;
        int fd;

        make_image();
        verify(DEVICE);
        fd = open(path, O_RDWR | O_CLOEXEC);
        assert_int_equal(flock(fd, LOCK_EX | LOCK_NB), 0);
        assert_int_equal(devfile_verify(&x, path), EXIT_FAILED);
        assert_int_equal(devfile_open(&x, path, true, true, &d), EXIT_FAILED);
        assert_int_equal(flock(fd, LOCK_SH | LOCK_NB), 0);
        assert_int_equal(devfile_verify(&x, path), EXIT_OK);
        assert_int_equal(devfile_open(&x, path, true, true, &d), EXIT_FAILED);
        close(fd);
        assert_int_equal(devfile_open(&x, path, true, true, &d), EXIT_OK);
        assert_false(d.is_new || d.is_block);
        assert_int_equal(d.bytes, DEVICE);
        devfile_close(&d);
        assert_int_equal(devfile_open(&x, "/tmp", false, false, &d), EXIT_FAILED);
        assert_int_equal(devfile_open(&x, "/dev/zero", true, true, &d), EXIT_FAILED);
        assert_int_equal(devfile_open(&x, "/nowhere/at/all", true, true, &d), EXIT_FAILED);
}

static int group_setup(void **state)
{
        int fd = mkstemp(path);

        if (fd < 0)
                return -1;
        close(fd);
        return 0;
}

static int group_teardown(void **state)
{
        json_decref(answer);
        return unlink(path);
}

int main(void)
{
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_whole),    cmocka_unit_test(test_superblocks), cmocka_unit_test(test_listed),
                cmocka_unit_test(test_segments), cmocka_unit_test(test_torn),        cmocka_unit_test(test_lock),
        };

        return cmocka_run_group_tests(tests, group_setup, group_teardown);
}
