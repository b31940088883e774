/* The format of devices: the vectors published in kvtier-format(7) hold, byte for byte. Superblocks, headers of segments, descriptors of spaces:
 * every flipped bit is found, what belongs to another device, place or life is refused, and so is what has the right hash and impossible contents. */
#include <errno.h>

#include "tests/unit/disk.h"

/* vectors */

static FILE *page_file;
static char page_line[256];

static bool next_line(void)
{
        return fgets(page_line, sizeof(page_line), page_file);
}

/* The lines of a dump up to an empty one, into room. */
static void read_dump(size_t n_bytes)
{
        unsigned offset;
        char hex[64];
        size_t n;

        CHECK(n_bytes <= ROOM);
        memset(room, 0, ROOM);
        while (next_line() && sscanf(page_line, "%x %32s", &offset, hex) == 2) {
                CHECK(offset + strlen(hex) / 2 <= n_bytes);
                CHECK_EQ(sodium_hex2bin(room + offset, 16, hex, strlen(hex), NULL, &n, NULL), 0);
        }
}

static void vector_record(size_t n_bytes, struct place at, uint64_t seed, uint64_t hash)
{
        struct record_header *h = (struct record_header *)room, *made = (struct record_header *)spare;

        at.page = h->page;
        CHECK_EQ(seed_of(&at), seed);
        CHECK_EQ(h->hash, hash);
        CHECK_EQ(record_header_check(h, PAGE, &at, SEGMENT_PAGES - at.page), 0);
        CHECK_EQ(h->n_pages * PAGE, n_bytes);
        CHECK_EQ(record_payload_check(h, record_payload(h)), 0);
        for (uint32_t i = 0; i < h->n_page_hashes; i++)
                CHECK_EQ(record_page_hashes(h)[i], record_page_hash((uint8_t *)record_payload(h) + i * PAGE, i));
        memcpy(spare, room, PAGE);
        memset(made->magic, 0, 4);
        made->version = 0;
        made->generation = made->hash = 1;
        made->segment = made->page = 0;
        memset(spare + PAGE - 64, 0xaa, 64); /* is zeroed */
        record_header_seal(made, &at);
        assert_memory_equal(made, h, PAGE);
}

static void vector_footer(size_t n_bytes, const struct place *at)
{
        struct footer_trailer t;
        uint64_t n;

        CHECK_EQ(footer_peek(room + n_bytes - 64, at, SEGMENT_BYTES, &t, &n), 0);
        CHECK_EQ(n, n_bytes);
        CHECK_EQ(footer_check(room, n, at, SEGMENT_BYTES), 0);
        footer_encode(spare, at, (struct footer_entry *)room, t.n_entries, t.end_page, t.opened_sec);
        assert_memory_equal(spare, room, n);
        memset(room + t.n_entries * 64, 0xaa, n - t.n_entries * 64);
        footer_encode(room, at, (struct footer_entry *)room, t.n_entries, t.end_page, t.opened_sec); /* in place */
        assert_memory_equal(spare, room, n);
}

static void vector_descriptor(size_t n_bytes, const char *digest_hex)
{
        struct space_descriptor d;
        uint8_t digest[16];
        char hex[33];

        space_digest(digest, room, n_bytes);
        sodium_bin2hex(hex, sizeof(hex), digest, 16);
        assert_string_equal(hex, digest_hex);
        CHECK_EQ(space_descriptor_decode(room, n_bytes, &d), 0);
        assert_string_equal(d.tenant, "user-1000");
        assert_string_equal(d.name, "m");
        CHECK_EQ(d.n_salt, 2);
        CHECK_EQ(d.salt[1], 0xff);
        CHECK(d.max_rel_l2 == 0.5f);
        CHECK_EQ(d.geometry.block_tokens, 4);
        CHECK_EQ(d.geometry.planes[0].dim, 64);
        CHECK_EQ(space_descriptor_encode(spare, d.tenant, d.name, d.salt, d.n_salt, d.max_rel_l2, &d.geometry), n_bytes);
        assert_memory_equal(spare, room, n_bytes);
        space_descriptor_deinit(&d);
}

static void test_published_vectors(void **state)
{
        struct place at = place(0, 0, 0);
        char what[32], hex[64];
        unsigned long long seed, hash, generation;
        size_t n_bytes;
        unsigned seen = 0;

        page_file = fopen("man/kvtier-format.7", "re");
        if (!page_file)
                fail_msg("man/kvtier-format.7 is not here: run it from the root of the tree");
        while (next_line()) {
                if (sscanf(page_line, "device uuid=%63s segment=%u generation=%llu", hex, &at.segment, &generation) == 3) {
                        at.generation = generation;
                        CHECK_EQ(sodium_hex2bin(uuid, 16, hex, strlen(hex), NULL, NULL, NULL), 0);
                } else if (sscanf(page_line, "descriptor bytes=%zu digest=%63s", &n_bytes, hex) == 2) {
                        read_dump(n_bytes);
                        vector_descriptor(n_bytes, hex);
                        seen += 1;
                } else if (sscanf(page_line, "%31s bytes=%zu seed=%llx hash=%llx", what, &n_bytes, &seed, &hash) == 4) {
                        read_dump(n_bytes);
                        if (!strcmp(what, "superblock")) {
                                struct superblock s;

                                CHECK_EQ(seed, 0);
                                CHECK_EQ(superblock_decode(room, &s), 0);
                                CHECK_EQ(s.hash, hash);
                                assert_memory_equal(s.uuid, uuid, 16);
                                CHECK_EQ(s.segment_bytes, 64 << 20);
                                CHECK_EQ(s.n_segments, 15);
                                CHECK_EQ(s.device_bytes, 1 << 30);
                                CHECK_EQ(s.created_sec, 1764000000);
                                superblock_encode(spare, &s);
                                assert_memory_equal(spare, room, PAGE);
                                seen += 10;
                        } else if (!strcmp(what, "segment")) {
                                struct segment_header h;

                                CHECK_EQ(seed_of(&at), seed);
                                CHECK_EQ(format_seed(&at), seed);
                                CHECK_EQ(segment_header_decode(room, &at, &h), 0);
                                CHECK_EQ(h.hash, hash);
                                CHECK_EQ(h.generation, at.generation);
                                segment_header_encode(spare, &at, h.opened_sec);
                                assert_memory_equal(spare, room, PAGE);
                                CHECK_EQ(rehash(room, PAGE, SEGMENT_HASH, seed), hash);
                                seen += 100;
                        } else if (!strcmp(what, "record")) {
                                vector_record(n_bytes, at, seed, hash);
                                seen += 1000;
                        } else if (!strcmp(what, "footer")) {
                                CHECK_EQ(seed_of(&at), seed);
                                vector_footer(n_bytes, &at);
                                seen += 10000;
                        } else {
                                fail_msg("what is a '%s'?", what);
                        }
                }
        }
        fclose(page_file);
        CHECK_EQ(seen, 13111);
}

/* superblock */

static struct superblock superblock_sample(void)
{
        struct superblock s = {.segment_bytes = 64 << 20, .n_segments = 100, .device_bytes = 8ull << 30, .created_sec = 99};

        memcpy(s.uuid, uuid, 16);
        return s;
}

static void test_superblock_bits(void **state)
{
        struct superblock s = superblock_sample(), got;

        CHECK_EQ(superblock_decode(room, &got), -ENODATA);
        room[PAGE - 1] = 1;
        CHECK_EQ(superblock_decode(room, &got), -ENOMSG);
        superblock_encode(room, &s);
        CHECK_EQ(superblock_decode(room, &got), 0);
        CHECK_EQ(got.n_segments, 100);
        assert_memory_equal(got.uuid, uuid, 16);
        for (uint32_t bit = 0; bit < PAGE * 8; bit++) {
                memset(&got, 0x5a, sizeof(got));
                room[bit / 8] ^= (uint8_t)(1 << bit % 8);
                CHECK_EQ(superblock_decode(room, &got), bit < 64 ? -ENOMSG : bit < 96 ? -EPROTONOSUPPORT : -EBADMSG);
                room[bit / 8] ^= (uint8_t)(1 << bit % 8);
                CHECK_EQ(got.version, 0x5a5a5a5a); /* untouched */
        }
        room[8] = 3; /* a later version with whatever it has for a hash */
        rehash(room, PAGE, SUPERBLOCK_HASH, 0);
        CHECK_EQ(superblock_decode(room, &got), -EPROTONOSUPPORT);
}

static void test_superblock_contents(void **state)
{
        struct superblock got;

#define REFUSED(field, value)                                                                                                              \
        do {                                                                                                                               \
                struct superblock s = superblock_sample();                                                                                 \
                superblock_encode(room, &s);                                                                                               \
                ((struct superblock *)room)->field = value;                                                                                \
                rehash(room, PAGE, SUPERBLOCK_HASH, 0);                                                                                    \
                CHECK_EQ(superblock_decode(room, &got), -EPROTO);                                                                          \
        } while (0)
        REFUSED(page_bytes, 512);
        REFUSED(page_bytes, 0);
        REFUSED(segment_bytes, 0);
        REFUSED(segment_bytes, 1 << 19);
        REFUSED(segment_bytes, (64 << 20) + 4096);
        REFUSED(segment_bytes, 2ull << 30);
        REFUSED(segment_bytes, UINT64_MAX);
        REFUSED(n_segments, 0);
        REFUSED(n_segments, 128);
        REFUSED(n_segments, UINT64_MAX);
        REFUSED(device_bytes, 0);
        REFUSED(device_bytes, 1 << 20);
        REFUSED(device_bytes, UINT64_MAX);
        REFUSED(device_bytes, 1ull << 63);
#undef REFUSED
        room[100] = 1;
        rehash(room, PAGE, SUPERBLOCK_HASH, 0);
        CHECK_EQ(superblock_decode(room, &got), -EPROTO);
}

static void test_sizes(void **state)
{
        struct superblock s = superblock_sample();

        CHECK_EQ(format_n_segments(8ull << 30, 64 << 20), 127);
        CHECK_EQ(format_n_segments((64 << 20) + (1 << 20), 64 << 20), 1);
        CHECK_EQ(format_n_segments((64 << 20) + (1 << 20) - 1, 64 << 20), 0);
        CHECK_EQ(format_n_segments(0, 64 << 20), 0);
        CHECK_EQ(format_n_segments(1 << 20, 1 << 20), 0);
        CHECK_EQ(format_n_segments(UINT64_MAX, 1 << 20), 0);
        CHECK_EQ(format_n_segments(INT64_MAX, 1 << 20), 1 << 24);
        CHECK_EQ(format_n_segments(8ull << 30, 0), 0);
        CHECK_EQ(format_n_segments(8ull << 30, 3 << 19), 0);
        CHECK_EQ(format_segment_offset(&s, 0), 1 << 20);
        CHECK_EQ(format_segment_offset(&s, (1 << 24) - 1), (1ull << 20) + ((1ull << 24) - 1) * (64ull << 20));
        CHECK_EQ(format_pages(0), 0);
        CHECK_EQ(format_pages(1), 1);
        CHECK_EQ(format_pages(PAGE), 1);
        CHECK_EQ(format_pages(PAGE + 1), 2);
        CHECK(format_pages(UINT64_MAX) == 1ull << 52);
        CHECK_EQ(record_header_pages(0, 0), 1);
        CHECK_EQ(record_header_pages((PAGE - 152) / 24, 0), 1);
        CHECK_EQ(record_header_pages((PAGE - 152) / 24 + 1, 0), 2);
        CHECK_EQ(record_header_pages(1, (PAGE - 176) / 4), 1);
        CHECK_EQ(record_header_pages(1, (PAGE - 176) / 4 + 1), 2);
        CHECK_EQ(record_header_pages(FORMAT_PLANES_MAX, 1 << 18), RECORD_HEADER_PAGES_MAX);
        CHECK_EQ(footer_bytes(0), PAGE);
        CHECK_EQ(footer_bytes(63), PAGE);
        CHECK_EQ(footer_bytes(64), 2 * PAGE);
        CHECK(footer_bytes(UINT32_MAX) == 1ull << 38);
}

/* A record's length says how long its header is, for every length that there is, and those in between. By the page's words, not with record_header_pages(). */
static void test_header_pages_of(void **state)
{
        enum { PAGES = 9000 };
        static const uint32_t n_planes[] = {0, 1, 2, 3, 64, 164, 165, 335, 336, 512, 680, 1023, 1024, 1025};
        static uint32_t answers[PAGES];

        for (size_t i = 0; i < sizeof(n_planes) / sizeof(*n_planes); i++) {
                memset(answers, 0, sizeof(answers));
                for (uint32_t payload = 1; payload < PAGES; payload++) {
                        uint32_t header = (152 + 24 * n_planes[i] + 4 * payload + PAGE - 1) / PAGE;

                        if (header + payload >= PAGES)
                                break;
                        CHECK_EQ(answers[header + payload], 0); /* no two records are as long */
                        answers[header + payload] = header;
                }
                for (uint32_t n = 0; n < PAGES; n++)
                        CHECK_EQ(record_header_pages_of(n_planes[i], n), answers[n]);
        }
        /* the longest record that a segment can have */
        CHECK_EQ(record_header_pages_of(1025, (1 << 18) - 2), (152 + 24 * 1025 + 4 * 261880 + PAGE - 1) / PAGE);
        for (uint32_t n = UINT32_MAX - 9; n; n++) /* bytes of a device may say so */
                CHECK(record_header_pages_of(2, n) < n);
}

/* version 1 */

/* What is taken, is taken as it is: encoding it again gives the same bytes. */
static int descriptor_try(const uint8_t *p, size_t n)
{
        uint8_t *exact = memcpy(malloc(n + !n), p, n), *again = malloc(SPACE_DESCRIPTOR_MAX);
        struct space_descriptor d;
        int r = space_descriptor_decode(exact, n, &d);

        if (r == 0) {
                CHECK_EQ(space_descriptor_encode(again, d.tenant, d.name, d.salt, d.n_salt, d.max_rel_l2, &d.geometry), n);
                assert_memory_equal(again, exact, n);
                space_descriptor_deinit(&d);
        }
        free(exact);
        free(again);
        return r;
}

/* A device as version 1 published it, from the kvtier-format(7) of its time: whole, and refused. */
static void test_version_1(void **state)
{
        static const char superblock[] = "6b767469657244560100000000100000"
                                         "00112233445566778899aabbccddeeff"
                                         "00000004000000000f00000000000000"
                                         "00000040000000000081246900000000"
                                         "1321d8b2255ff3c2",
                          segment[] = "6b767469657253470100000007000000"
                                      "2a000000000000000081246900000000"
                                      "2bbad0a5b0181506",
                          descriptor[] = "0100000009000000757365722d313030"
                                         "30010000006d0200000000ff04000000"
                                         "01000000010000000000000000000000"
                                         "01000000020000004000000000000000"
                                         "00000000",
                          record[] = "6b767452010001012a00000000000000"
                                     "07000000030000000100000002000000"
                                     "101112131415161718191a1b1c1d1e1f"
                                     "202122232425262728292a2b2c2d2e2f"
                                     "e1a135a591b3cf788ff5ebf70eb59895"
                                     "de3ab2c669965380b6a6cc2aca409dba"
                                     "00010700020000000004000000000000"
                                     "28000000000000000000000000000000"
                                     "00812469000000000000803e01000000"
                                     "3410b096525beaa6936a20b0700e4550"
                                     "2000000000000000cfbb288f6cae742a"
                                     "080000000000803e758a29b700000000";
        static const struct {
                const char *hex;
                size_t hash_at;
        } all[] = {{superblock, SUPERBLOCK_HASH}, {segment, SEGMENT_HASH}, {record, RECORD_HASH}};
        struct place at = place(7, 42, 3);
        struct superblock s;
        struct segment_header h;
        size_t n;

        for (uint8_t i = 0; i < 16; i++)
                uuid[i] = (uint8_t)(i * 0x11);
        for (size_t i = 0; i < 3; i++) {
                struct place header = place(7, 42, i == 2 ? 3 : 0);
                uint64_t hash;

                memset(room, 0, PAGE);
                CHECK_EQ(sodium_hex2bin(room, PAGE, all[i].hex, strlen(all[i].hex), NULL, &n, NULL), 0);
                memcpy(&hash, room + all[i].hash_at, 8);
                CHECK(rehash(room, PAGE, all[i].hash_at, i ? seed_of(&header) : 0) == hash); /* nothing else is wrong with it */
                CHECK_EQ(i == 0   ? superblock_decode(room, &s)
                         : i == 1 ? segment_header_decode(room, &at, &h)
                                  : record_header_check((struct record_header *)room, PAGE, &at, 8),
                         -EPROTONOSUPPORT);
                room[all[i].hash_at] ^= 1; /* which hash another version has is not known */
                CHECK_EQ(i == 0   ? superblock_decode(room, &s)
                         : i == 1 ? segment_header_decode(room, &at, &h)
                                  : record_header_check((struct record_header *)room, PAGE, &at, 8),
                         -EPROTONOSUPPORT);
        }
        CHECK_EQ(sodium_hex2bin(room, PAGE, descriptor, strlen(descriptor), NULL, &n, NULL), 0);
        CHECK_EQ(n, 68);
        for (size_t i = 4; i <= n; i++)
                CHECK_EQ(descriptor_try(room, i), -EPROTONOSUPPORT);
        for (size_t i = 0; i < 4; i++)
                CHECK_EQ(descriptor_try(room, i), -EPROTO);
}

/* segment headers */

static void test_segment_header(void **state)
{
        struct place at = place(5, 77, 0), other = at;
        struct segment_header h;
        uint8_t other_uuid[16];

        CHECK_EQ(segment_header_decode(room, &at, &h), -EBADMSG);
        segment_header_encode(room, &at, 1234);
        at.generation = 0; /* is not looked at */
        at.page = 9;
        CHECK_EQ(segment_header_decode(room, &at, &h), 0);
        CHECK_EQ(h.segment, 5);
        CHECK_EQ(h.generation, 77);
        CHECK_EQ(h.opened_sec, 1234);
        for (uint32_t bit = 0; bit < PAGE * 8; bit++) {
                room[bit / 8] ^= (uint8_t)(1 << bit % 8);
                CHECK_EQ(segment_header_decode(room, &at, &h), bit >= 64 && bit < 96 ? -EPROTONOSUPPORT : -EBADMSG);
                room[bit / 8] ^= (uint8_t)(1 << bit % 8);
        }
        other.segment = 6; /* lies elsewhere */
        CHECK_EQ(segment_header_decode(room, &other, &h), -EBADMSG);
        memcpy(spare, room, PAGE);
        spare[12] = 6; /* and says so */
        CHECK_EQ(segment_header_decode(spare, &other, &h), -EBADMSG);
        at = place(5, 77, 0); /* and has the hash of where it lies */
        rehash(spare, PAGE, SEGMENT_HASH, seed_of(&at));
        CHECK_EQ(segment_header_decode(spare, &at, &h), -EBADMSG);
        memcpy(other_uuid, uuid, 16);
        other_uuid[15] ^= 1;
        other = at;
        other.uuid = other_uuid;
        CHECK_EQ(segment_header_decode(room, &other, &h), -EBADMSG);
        room[2000] = 1;
        at = place(5, 77, 0);
        rehash(room, PAGE, SEGMENT_HASH, seed_of(&at));
        CHECK_EQ(segment_header_decode(room, &at, &h), -EPROTO);
        segment_header_encode(room, &at, 1234);
        room[8] = 0;
        rehash(room, PAGE, SEGMENT_HASH, seed_of(&at));
        CHECK_EQ(segment_header_decode(room, &at, &h), -EPROTONOSUPPORT);
}

/* space descriptors */

static void test_descriptor(void **state)
{
        kvt_plane planes[3] = {{.role = KVT_ROLE_K, .dtype = KVT_DTYPE_BF16, .heads = 8, .dim = 128},
                               {.role = KVT_ROLE_V, .dtype = KVT_DTYPE_BF16, .heads = 8, .dim = 128, .window_tokens = 4096},
                               {.layer = 1, .role = KVT_ROLE_STATE, .dtype = KVT_DTYPE_OPAQUE, .heads = 1, .opaque_bytes = 999}};
        uint8_t p[512], q[512], salt[5] = {1, 2, 3, 0, 5}, digest[16], other[16];
        struct space_descriptor d;
        struct geometry g;
        const char *why;
        size_t n;

        CHECK_EQ(geometry_init(&g, 256, 2, planes, 3, &why), 0);
        n = space_descriptor_encode(NULL, "red", "a model", salt, 5, 0.125f, &g);
        CHECK_EQ(n, 32 + 3 + 7 + 5 + 3 * 28);
        CHECK_EQ(space_descriptor_encode(p, "red", "a model", salt, 5, 0.125f, &g), n);
        CHECK_EQ(space_descriptor_decode(p, n, &d), 0);
        assert_string_equal(d.tenant, "red");
        assert_string_equal(d.name, "a model");
        CHECK_EQ(d.n_salt, 5);
        assert_memory_equal(d.salt, salt, 5);
        CHECK(geometry_equal(&d.geometry, &g));
        space_descriptor_deinit(&d);
        space_digest(digest, p, n);

        for (size_t i = 0; i < n; i++) /* cut */
                CHECK_EQ(descriptor_try(p, i), -EPROTO);
        memcpy(q, p, n);
        q[n] = 0; /* a byte too long */
        CHECK_EQ(descriptor_try(q, n + 1), -EPROTO);
        for (size_t bit = 0; bit < n * 8; bit++) {
                int r;

                memcpy(q, p, n);
                q[bit / 8] ^= (uint8_t)(1 << bit % 8);
                r = descriptor_try(q, n);
                CHECK(bit < 32 ? r == -EPROTONOSUPPORT : r == 0 || r == -EPROTO);
                space_digest(other, q, n);
                CHECK(memcmp(digest, other, 16) != 0);
        }
        /* each number of 4 bytes, at every place */
        for (size_t i = 4; i + 4 <= n; i++) {
                static const uint32_t values[] = {0, 1, 39, 40, 64, 65, 128, 129, 1024, 1025, 65537, 1u << 28, INT32_MAX, UINT32_MAX};

                for (size_t j = 0; j < sizeof(values) / sizeof(*values); j++) {
                        memcpy(q, p, n);
                        memcpy(q + i, &values[j], 4);
                        int r = descriptor_try(q, n);
                        CHECK(r == 0 || r == -EPROTO);
                }
        }
        memcpy(q, p, n);
        q[8] = 0; /* a name with an end in it */
        CHECK_EQ(descriptor_try(q, n), -EPROTO);
        q[8] = 'r';
        q[15] = '\n';
        CHECK_EQ(descriptor_try(q, n), -EPROTO);
        q[15] = 0x7f;
        CHECK_EQ(descriptor_try(q, n), -EPROTO);
        q[15] = 0xc3;
        CHECK_EQ(descriptor_try(q, n), 0);
        geometry_deinit(&g);
}

/* A fidelity is a number from 0 to 1; -0 is none, or one space had two digests. */
static void test_descriptor_fidelity(void **state)
{
        static const struct {
                uint32_t bits;
                bool ok;
        } all[] = {
                {0x00000000, true},  {0x00000001, true},  {0x007fffff, true},  {0x00800000, true},  {0x3dcccccd, true},
                {0x3f7fffff, true},  {0x3f800000, true},  {0x3f800001, false}, {0x40000000, false}, {0x7f7fffff, false},
                {0x7f800000, false}, {0x7f800001, false}, {0x7fc00000, false}, {0x7fffffff, false}, {0x80000000, false},
                {0x80000001, false}, {0xbf000000, false}, {0xbf800000, false}, {0xff800000, false}, {0xffc00000, false},
                {0xffffffff, false},
        };
        enum { AT = 16 + 3 + 1 + 2 };
        kvt_plane plane = {.role = KVT_ROLE_K, .dtype = KVT_DTYPE_F16, .heads = 1, .dim = 8};
        struct space_descriptor d;
        struct geometry g;
        const char *why;
        uint32_t bits;
        size_t n;

        CHECK_EQ(geometry_init(&g, 16, 1, &plane, 1, &why), 0);
        n = space_descriptor_encode(room, "red", "m", (const uint8_t *)"xy", 2, 0.25f, &g);
        memcpy(&bits, room + AT, 4);
        CHECK_EQ(bits, 0x3e800000);
        for (size_t i = 0; i < sizeof(all) / sizeof(*all); i++) {
                float x;

                memcpy(&x, &all[i].bits, 4);
                CHECK_EQ(fidelity_ok(x), all[i].ok);
                memcpy(room + AT, &all[i].bits, 4);
                CHECK_EQ(descriptor_try(room, n), all[i].ok ? 0 : -EPROTO);
                memset(&d, 0x5a, sizeof(d));
                if (!all[i].ok) {
                        CHECK_EQ(space_descriptor_decode(room, n, &d), -EPROTO);
                        CHECK_EQ(d.n_salt, 0x5a5a5a5a); /* untouched */
                        continue;
                }
                CHECK_EQ(space_descriptor_decode(room, n, &d), 0);
                memcpy(&bits, &d.max_rel_l2, 4);
                CHECK_EQ(bits, all[i].bits);
                space_descriptor_deinit(&d);
        }
        geometry_deinit(&g);
}

/* All at their largest, and one more. */
static void test_descriptor_limits(void **state)
{
        static kvt_plane planes[1024];
        char tenant[41], name[130];
        uint8_t salt[65];
        struct geometry g;
        const char *why;
        size_t n;

        memset(tenant, 't', sizeof(tenant));
        memset(name, 'n', sizeof(name));
        memset(salt, 's', sizeof(salt));
        tenant[39] = name[128] = 0;
        for (size_t i = 0; i < 1024; i++)
                planes[i] = (kvt_plane){.layer = (uint32_t)i, .role = KVT_ROLE_V, .dtype = KVT_DTYPE_FP8, .heads = 1, .dim = 64};
        CHECK_EQ(geometry_init(&g, 16, 1, planes, 1024, &why), 0);
        n = space_descriptor_encode(room, tenant, name, salt, 64, 1, &g);
        CHECK(n <= SPACE_DESCRIPTOR_MAX);
        CHECK_EQ(descriptor_try(room, n), 0);

        /* a byte more of each, the rest moved */
        static const struct {
                size_t count_at, end;
                uint32_t count;
        } parts[] = {{4, 8 + 39, 40}, {8 + 39, 12 + 39 + 128, 129}, {12 + 39 + 128, 16 + 39 + 128 + 64, 65}};
        for (size_t i = 0; i < 3; i++) {
                memcpy(spare, room, parts[i].end);
                spare[parts[i].end] = 'x';
                memcpy(spare + parts[i].end + 1, room + parts[i].end, n - parts[i].end);
                memcpy(spare + parts[i].count_at, &parts[i].count, 4);
                CHECK_EQ(descriptor_try(spare, n + 1), -EPROTO);
        }
        memcpy(spare, room, n);
        memcpy(spare + n, planes, sizeof(planes[0]));
        memcpy(spare + n - 1024 * 28 - 4, &(uint32_t){1025}, 4);
        CHECK_EQ(descriptor_try(spare, n + 28), -EPROTO);
        geometry_deinit(&g);
}

#define TEST(name) cmocka_unit_test_setup(name, setup)
int main(void)
{
        const struct CMUnitTest tests[] = {
                TEST(test_published_vectors), TEST(test_superblock_bits),     TEST(test_superblock_contents), TEST(test_sizes),
                TEST(test_segment_header),    TEST(test_descriptor),          TEST(test_descriptor_limits),   TEST(test_header_pages_of),
                TEST(test_version_1),         TEST(test_descriptor_fidelity),
        };
        return cmocka_run_group_tests(tests, NULL, NULL);
}
