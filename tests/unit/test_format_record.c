/* Records and footers: every flipped bit is found, what belongs to another device, place or life is refused, and so is what has the right hash and
 * impossible contents. */
#include <errno.h>
#include <math.h>

#include "tests/unit/disk.h"

/* records */

/* A block with three planes of 5000, 0 and 3500 bytes: 3 pages of payload, sealed at `at`. */
static struct record_header *block_make(const struct place *at, unsigned flags)
{
        struct record_header *h = memset(room, 0, 8 * PAGE);
        static const uint32_t bytes[] = {5000, 0, 3500};
        uint8_t *p;

        h->type = RECORD_BLOCK;
        h->codec = 3;
        h->flags = (uint16_t)flags;
        memset(h->key, 0x11, 16);
        if (flags & RECORD_HAS_PARENT)
                memset(h->parent, 0x22, 16);
        memset(h->space, 0x33, 16);
        memset(h->tenant, 0x44, 16);
        h->shard = 1;
        h->n_shards = 2;
        h->n_planes = 3;
        h->raw_bytes = 20000;
        h->stored_bytes = 8500;
        h->written_sec = 4321;
        h->max_rel_l2 = 0.5f;
        h->n_page_hashes = flags & RECORD_PAGE_HASHES ? 3 : 0;
        h->header_pages = 1;
        h->n_pages = 4;
        p = record_payload(h);
        for (uint32_t i = 0; i < 8500; i++)
                p[i] = (uint8_t)(i * 7 + i / 256);
        for (uint32_t i = 0; i < 3; i++) {
                record_planes(h)[i] =
                        (struct kvt_copy_plane){.hash = XXH3_64bits_withSeed(p, bytes[i], i == 2 ? 2 | 0x3f000000ull << 32 : i),
                                                .bytes = bytes[i],
                                                .rel_l2 = i == 2 ? 0.5f : 0};
                p += bytes[i];
        }
        for (uint32_t i = 0; i < h->n_page_hashes; i++)
                record_page_hashes(h)[i] = record_page_hash((uint8_t *)record_payload(h) + i * PAGE, i);
        record_header_seal(h, at);
        return h;
}

static struct record_header *other_make(const struct place *at, uint8_t type, const void *payload, uint32_t n)
{
        struct record_header *h = memset(room, 0, 16 * PAGE);

        h->type = type;
        h->header_pages = 1;
        h->stored_bytes = h->raw_bytes = n;
        h->n_pages = 1 + (n + PAGE - 1) / PAGE;
        if (n) {
                memcpy(record_payload(h), payload, n);
                h->payload_hash = XXH3_64bits_withSeed(payload, n, 0);
        }
        if (type == RECORD_SPACE) {
                crypto_generichash(h->key, 16, payload, n, NULL, 0);
                memcpy(h->space, h->key, 16);
        }
        record_header_seal(h, at);
        return h;
}

static void test_record_bits(void **state)
{
        struct place at = place(3, 1000, 17);
        struct record_header *h = block_make(&at, RECORD_HAS_PARENT | RECORD_DURABLE | RECORD_PAGE_HASHES);
        uint8_t *payload = record_payload(h), *bytes = (uint8_t *)h;

        CHECK_EQ(record_header_check(h, PAGE, &at, 4), 0);
        CHECK_EQ(record_payload_check(h, payload), 0);
        CHECK_EQ(h->generation, 1000);
        CHECK_EQ(h->segment, 3);
        CHECK_EQ(h->page, 17);
        for (uint32_t bit = 0; bit < PAGE * 8; bit++) {
                int r;

                bytes[bit / 8] ^= (uint8_t)(1 << bit % 8);
                r = record_header_check(h, PAGE, &at, 8);
                if (bit >= 24 * 8 && bit < 28 * 8) /* header_pages */
                        CHECK(r == -EBADMSG || (r == -EAGAIN && h->header_pages <= 8));
                else
                        CHECK_EQ(r, bit >= 32 && bit < 48 ? -EPROTONOSUPPORT : -EBADMSG);
                bytes[bit / 8] ^= (uint8_t)(1 << bit % 8);
        }
        CHECK_EQ(record_header_check(h, PAGE, &at, 8), 0);
        for (uint32_t bit = 0; bit < 8500 * 8; bit += 3) {
                payload[bit / 8] ^= (uint8_t)(1 << bit % 8);
                CHECK_EQ(record_payload_check(h, payload), -EBADMSG);
                payload[bit / 8] ^= (uint8_t)(1 << bit % 8);
        }
        for (uint32_t i = 0; i < 3; i++) {
                CHECK_EQ(record_page_hash(payload + i * PAGE, i), (uint32_t)XXH3_64bits_withSeed(payload + i * PAGE, PAGE, i));
                CHECK(record_page_hash(payload + i * PAGE, i) != record_page_hash(payload + i * PAGE, i + 1));
        }
}

/* What was whole in another life, on another device or in another place. */
static void test_record_places(void **state)
{
        struct place at = place(3, 1000, 17), other;
        struct record_header *h = block_make(&at, 0);
        uint8_t other_uuid[16] = {};

        CHECK_EQ(record_header_check(h, PAGE, &at, 4), 0);
#define ELSEWHERE(field, value)                                                                                                            \
        do {                                                                                                                               \
                other = at;                                                                                                                \
                other.field = value;                                                                                                       \
                CHECK_EQ(record_header_check(h, PAGE, &other, 4), -EBADMSG);                                                               \
        } while (0)
        ELSEWHERE(uuid, other_uuid);
        ELSEWHERE(segment, 4);
        ELSEWHERE(generation, 1001);
        ELSEWHERE(generation, 999);
        ELSEWHERE(generation, 1000 | 1ull << 32);
        ELSEWHERE(page, 18);
#undef ELSEWHERE
        /* the header says where it is read, but was not written for it */
        other = place(3, 1001, 17);
        h->generation = 1001;
        CHECK_EQ(record_header_check(h, PAGE, &other, 4), -EBADMSG);
        h = block_make(&at, 0);
        h->page = 21;
        other = place(3, 1000, 21);
        CHECK_EQ(record_header_check(h, PAGE, &other, 4), -EBADMSG);
        /* nor does a hash help that is right for where it lies */
        h = block_make(&at, 0);
        h->generation = 999;
        rehash_record(h, &at);
        CHECK_EQ(record_header_check(h, PAGE, &at, 4), -EBADMSG);
        h = block_make(&at, 0);
        h->segment = 2;
        rehash_record(h, &at);
        CHECK_EQ(record_header_check(h, PAGE, &at, 4), -EBADMSG);
        h = block_make(&at, 0);
        h->page = 16;
        rehash_record(h, &at);
        CHECK_EQ(record_header_check(h, PAGE, &at, 4), -EBADMSG);
        /* an unknown version, whatever its hash */
        h = block_make(&at, 0);
        h->version = 1;
        rehash_record(h, &at);
        CHECK_EQ(record_header_check(h, PAGE, &at, 4), -EPROTONOSUPPORT);
        h->version = 3;
        rehash_record(h, &at);
        CHECK_EQ(record_header_check(h, PAGE, &at, 4), -EPROTONOSUPPORT);
        h->version = 0x101;
        CHECK_EQ(record_header_check(h, PAGE, &at, 4), -EPROTONOSUPPORT);
        h = block_make(&at, 0);
        CHECK_EQ(record_header_check(h, PAGE, &at, 3), -EPROTO); /* past the segment's end */
        CHECK_EQ(record_header_check(h, PAGE, &at, 0), -EBADMSG);
        CHECK_EQ(record_header_check(h, PAGE - 1, &at, 4), -EBADMSG);
}

static void test_record_contents(void **state)
{
        struct place at = place(3, 1000, 17);
        struct record_header *h;

#define IS(result, flags, statement)                                                                                                       \
        do {                                                                                                                               \
                h = block_make(&at, flags);                                                                                                \
                statement;                                                                                                                 \
                rehash_record(h, &at);                                                                                                     \
                CHECK_EQ(record_header_check(h, 4 * PAGE, &at, 200), result);                                                              \
        } while (0)
#define REFUSED(flags, statement) IS(-EPROTO, flags, statement)
        IS(0, 0, h->codec = 255);
        IS(0, 7, h->shard = 0);
        IS(0, 0, h->written_sec = UINT64_MAX);
        REFUSED(0, h->type = 0);
        REFUSED(0, h->type = 5);
        REFUSED(0, h->type = RECORD_SPACE);
        REFUSED(0, h->type = RECORD_DROP);
        REFUSED(0, h->type = RECORD_PAD);
        REFUSED(0, h->header_pages = 2);
        REFUSED(0, (h->header_pages = 2, h->n_pages = 5, memset(record_planes(h) + 200, 0, 2 * PAGE - 152 - 3200)));
        REFUSED(0, h->n_pages = 0);
        REFUSED(0, h->n_pages = 3);
        REFUSED(0, h->n_pages = 5);
        REFUSED(0, h->n_pages = UINT32_MAX);
        REFUSED(0, h->shard = 2);
        REFUSED(0, h->n_shards = 0);
        REFUSED(0, h->n_shards = 65);
        REFUSED(0, h->flags = 8);
        REFUSED(0, h->flags = 0x8000);
        REFUSED(0, h->flags = RECORD_PAGE_HASHES);
        REFUSED(RECORD_PAGE_HASHES, h->flags = 0);
        REFUSED(RECORD_PAGE_HASHES, h->n_page_hashes = 2);
        REFUSED(RECORD_PAGE_HASHES, h->n_page_hashes = 4);
        REFUSED(RECORD_PAGE_HASHES, h->n_page_hashes = UINT32_MAX);
        REFUSED(0, h->n_page_hashes = 3);
        REFUSED(RECORD_HAS_PARENT, h->flags = 0);
        REFUSED(0, h->n_planes = 0);
        REFUSED(0, h->n_planes = 2);
        REFUSED(0, h->n_planes = 1025);
        REFUSED(0, h->n_planes = UINT32_MAX);
        REFUSED(0, h->n_planes = 1u << 28);
        REFUSED(0, h->raw_bytes = 0);
        REFUSED(0, h->raw_bytes = 1ull << 32);
        REFUSED(0, h->stored_bytes = 0);
        REFUSED(0, h->stored_bytes = 8501);
        REFUSED(0, h->stored_bytes = UINT64_MAX);
        REFUSED(0, h->stored_bytes = 8500 + (1ull << 32));
        REFUSED(0, h->stored_bytes = 8500 + (1ull << 44));
        REFUSED(0, h->payload_hash = 1);
        REFUSED(0, h->max_rel_l2 = 0.25f);
        REFUSED(0, h->max_rel_l2 = 0.75f);
        REFUSED(0, h->max_rel_l2 = NAN);
        REFUSED(0, (h->max_rel_l2 = record_planes(h)[2].rel_l2 = INFINITY));
        REFUSED(0, (h->max_rel_l2 = record_planes(h)[2].rel_l2 = NAN));
        REFUSED(0, record_planes(h)[0].rel_l2 = NAN);
        REFUSED(0, record_planes(h)[0].rel_l2 = -0.25f);
        REFUSED(0, record_planes(h)[1].rel_l2 = 0.75f);
        REFUSED(0, record_planes(h)[0].max_abs = NAN);
        REFUSED(0, record_planes(h)[0].max_abs = -1);
        REFUSED(0, record_planes(h)[2].max_abs = INFINITY);
        REFUSED(0, record_planes(h)[1].max_abs = -NAN);
        REFUSED(0, record_planes(h)[1].max_abs = -INFINITY);
        REFUSED(0, record_planes(h)[1].zero = 1);
        REFUSED(0, record_planes(h)[2].zero = 0x8000);
        REFUSED(0, record_planes(h)[0].bytes = 4999);
        REFUSED(0, (record_planes(h)[0].bytes = UINT32_MAX, record_planes(h)[2].bytes = 8501));
        REFUSED(0, ((uint8_t *)h)[152 + 3 * 24] = 1);
        REFUSED(7, ((uint8_t *)h)[PAGE - 1] = 1);
#undef IS
}

/* Each bit of each plane's entry, and of the hints', which is the last one: the hash is right, and what the entry then says counts. */
static void test_record_planes(void **state)
{
        struct place at = place(3, 1000, 17);

        for (uint32_t i = 0; i < 3; i++)
                for (uint32_t bit = 0; bit < 24 * 8; bit++) {
                        struct record_header *h = block_make(&at, RECORD_PAGE_HASHES);
                        struct kvt_copy_plane *planes = record_planes(h);
                        uint32_t byte = bit / 8;
                        bool ok = true;
                        float most = 0;

                        ((uint8_t *)&planes[i])[byte] ^= (uint8_t)(1 << bit % 8);
                        rehash_record(h, &at);
                        for (uint32_t k = 0; k < 3; k++) {
                                ok &= planes[k].rel_l2 >= 0 && isfinite(planes[k].rel_l2) && planes[k].max_abs >= 0 &&
                                      isfinite(planes[k].max_abs);
                                most = planes[k].rel_l2 > most ? planes[k].rel_l2 : most;
                        }
                        ok &= most == 0.5f; /* as the header says */
                        ok &= byte < 8 || byte >= 12; /* sizes do not add up */
                        ok &= byte < 22; /* zero */
                        CHECK_EQ(record_header_check(h, PAGE, &at, 4), ok ? 0 : -EPROTO);
                        if (ok) /* all that an entry says is under its hash */
                                CHECK_EQ(record_payload_check(h, record_payload(h)), -EBADMSG);
                }
}

static void test_record_others(void **state)
{
        struct place at = place(3, 1000, 17);
        struct drop_entry drops[200] = {{.key = {1}, .what = 0}, {.what = 1}};
        uint8_t descriptor[100] = {1, 2, 3};
        struct record_header *h;

        for (uint8_t type = RECORD_SPACE; type <= RECORD_PAD; type++) {
#define MAKE()                                                                                                                             \
        (type == RECORD_SPACE ? other_make(&at, type, descriptor, sizeof(descriptor))                                                      \
                              : other_make(&at, type, drops, type == RECORD_DROP ? sizeof(drops) : 0))
#define IS(result, statement)                                                                                                              \
        do {                                                                                                                               \
                h = MAKE();                                                                                                                \
                statement;                                                                                                                 \
                rehash_record(h, &at);                                                                                                     \
                CHECK_EQ(record_header_check(h, PAGE, &at, 200), result);                                                                  \
        } while (0)
#undef REFUSED
#define REFUSED(statement) IS(-EPROTO, statement)
                IS(0, CHECK_EQ(record_payload_check(h, record_payload(h)), 0));
                REFUSED(h->codec = 1);
                REFUSED(h->parent[15] = 1);
                REFUSED(h->n_shards = 1);
                REFUSED(h->shard = 1);
                for (int bit = 0; bit < 16; bit++)
                        REFUSED(h->flags = (uint16_t)(1 << bit));
                REFUSED(h->n_planes = 1);
                REFUSED(h->raw_bytes++);
                REFUSED(h->stored_bytes++);
                REFUSED(h->max_rel_l2 = 1);
                REFUSED(h->n_page_hashes = 1);
                REFUSED(h->key[3] ^= 1);
                REFUSED(h->n_pages = 0);
                REFUSED(h->n_pages = 201);
                IS(type == RECORD_PAD ? 0 : -EPROTO, h->n_pages = 200);
                IS(type == RECORD_SPACE ? -EPROTO : 0, h->space[3] ^= 1);
                IS(type == RECORD_PAD ? -EPROTO : 0, h->payload_hash ^= 1);
                if (type != RECORD_PAD) {
                        CHECK_EQ(record_payload_check(h, record_payload(h)), -EBADMSG);
                        h = MAKE();
                        ((uint8_t *)record_payload(h))[99] ^= 1;
                        CHECK_EQ(record_payload_check(h, record_payload(h)), -EBADMSG);
                        REFUSED((h->stored_bytes = h->raw_bytes = 0, h->n_pages = 1));
                }
        }
        /* hash right, contents wrong */
        h = other_make(&at, RECORD_SPACE, descriptor, sizeof(descriptor));
        h->key[0] ^= 1;
        h->space[0] ^= 1;
        rehash_record(h, &at);
        CHECK_EQ(record_header_check(h, PAGE, &at, 200), 0);
        CHECK_EQ(record_payload_check(h, record_payload(h)), -EPROTO);
        h = other_make(&at, RECORD_DROP, drops, 240);
        h->stored_bytes = h->raw_bytes = 239;
        rehash_record(h, &at);
        CHECK_EQ(record_header_check(h, PAGE, &at, 200), -EPROTO);
        h = other_make(&at, RECORD_SPACE, descriptor, 100);
        h->stored_bytes = h->raw_bytes = SPACE_DESCRIPTOR_MAX + 1;
        h->n_pages = 1 + (SPACE_DESCRIPTOR_MAX + PAGE) / PAGE;
        rehash_record(h, &at);
        CHECK_EQ(record_header_check(h, PAGE, &at, 200), -EPROTO);
        struct drop_entry parts[2] = {{.key = {1}, .what = 2}, {.key = {1}, .what = 2, .shard = FORMAT_SHARDS_MAX - 1}};
        h = other_make(&at, RECORD_DROP, parts, sizeof(parts));
        CHECK_EQ(record_header_check(h, PAGE, &at, 200), 0);
        CHECK_EQ(record_payload_check(h, record_payload(h)), 0);
        for (int i = 0; i < 5; i++) {
                struct drop_entry bad[3] = {{.key = {1}}, {.key = {2}}, {.key = {3}}};

                if (i == 0) {
                        bad[2].what = 3;
                } else if (i == 1) {
                        bad[2].shard = 1; /* all parts are meant */
                } else if (i == 2) {
                        bad[2].what = 1; /* a whole space has no key */
                } else if (i == 3) {
                        bad[2] = (struct drop_entry){.what = 1, .shard = 1};
                } else {
                        bad[2].what = 2;
                        bad[2].shard = FORMAT_SHARDS_MAX;
                }
                h = other_make(&at, RECORD_DROP, bad, sizeof(bad));
                CHECK_EQ(record_header_check(h, PAGE, &at, 200), 0);
                CHECK_EQ(record_payload_check(h, record_payload(h)), -EPROTO);
        }
#undef MAKE
#undef IS
#undef REFUSED
}

/* The most planes, and page hashes over several header pages. */
static void test_record_large(void **state)
{
        struct place at = place(0, 1, 1);
        struct record_header *h = (struct record_header *)room;
        uint32_t n_payload = 200; /* pages */

        h->type = RECORD_BLOCK;
        h->n_shards = 64;
        h->shard = 63;
        h->flags = RECORD_PAGE_HASHES;
        h->n_planes = 1025;
        h->n_page_hashes = n_payload;
        h->header_pages = record_header_pages(1025, n_payload);
        CHECK_EQ(h->header_pages, 7);
        h->n_pages = h->header_pages + n_payload;
        h->raw_bytes = h->stored_bytes = n_payload * PAGE;
        for (uint32_t i = 0; i < 1024; i++)
                record_planes(h)[i] = (struct kvt_copy_plane){.bytes = n_payload * PAGE / 1024, .rel_l2 = (float)i / 1024};
        h->max_rel_l2 = 1023.0f / 1024;
        for (uint32_t i = 0; i < n_payload; i++)
                record_page_hashes(h)[i] = i;
        memset((uint8_t *)record_payload(h) - 100, 0xee, 100); /* the seal's to clear */
        record_header_seal(h, &at);
        CHECK_EQ(record_header_check(h, 7 * PAGE, &at, h->n_pages), 0);
        CHECK_EQ(record_header_check(h, 7 * PAGE, &at, h->n_pages - 1), -EPROTO);
        for (uint32_t pages = 1; pages < 7; pages++)
                CHECK_EQ(record_header_check(h, pages * PAGE, &at, h->n_pages), -EAGAIN);
        CHECK_EQ(record_header_check(h, PAGE, &at, 6), -EBADMSG); /* could not be there */
        for (uint32_t bit = 152 * 8; bit < 7 * PAGE * 8; bit += 37) {
                room[bit / 8] ^= (uint8_t)(1 << bit % 8);
                CHECK_EQ(record_header_check(h, 7 * PAGE, &at, h->n_pages), -EBADMSG);
                room[bit / 8] ^= (uint8_t)(1 << bit % 8);
        }
        /* a plane more than there may be, and all else agrees */
        memmove(record_planes(h) + 1026, record_planes(h) + 1025, n_payload * 4);
        record_planes(h)[1025] = (struct kvt_copy_plane){};
        h->n_planes = 1026;
        CHECK_EQ(record_header_pages(1026, n_payload), 7);
        rehash_record(h, &at);
        CHECK_EQ(record_header_check(h, 7 * PAGE, &at, h->n_pages), -EPROTO);
        h->header_pages = RECORD_HEADER_PAGES_MAX + 1;
        CHECK_EQ(record_header_check(h, 7 * PAGE, &at, 1 << 18), -EBADMSG);
        h->header_pages = RECORD_HEADER_PAGES_MAX;
        CHECK_EQ(record_header_check(h, 7 * PAGE, &at, 1 << 18), -EAGAIN);
}

/* footers */

static struct place footer_place = {.uuid = uuid, .segment = 9, .generation = 50};

/* A space, 97 blocks of it, a drop, a pad; 100 entries in 2 pages. */
static uint64_t footer_make(void)
{
        struct footer_entry e[100] = {};

        e[0] = (struct footer_entry){.key = {7}, .page = 1, .n_pages = 2, .type = RECORD_SPACE, .space = 0xffff, .raw_bytes = 90};
        for (uint32_t i = 1; i < 98; i++)
                e[i] = (struct footer_entry){.key = {(uint8_t)i},
                                             .parent = {(uint8_t)(i - 1)},
                                             .page = 1 + 2 * i,
                                             .n_pages = 2,
                                             .type = RECORD_BLOCK,
                                             .flags = i > 1 ? RECORD_HAS_PARENT : 0,
                                             .n_shards = 1,
                                             .raw_bytes = 4096,
                                             .max_rel_l2 = 0.125f};
        e[98] = (struct footer_entry){.page = 197, .n_pages = 3, .type = RECORD_DROP, .raw_bytes = 4800};
        e[99] = (struct footer_entry){.page = 200, .n_pages = 1, .type = RECORD_PAD, .space = 0xffff};
        footer_encode(room, &footer_place, e, 100, 201, 555);
        return footer_bytes(100);
}

static void test_footer_bits(void **state)
{
        struct place at = footer_place;
        uint64_t n = footer_make(), got_bytes;
        struct footer_trailer t;

        CHECK_EQ(n, 2 * PAGE);
        CHECK_EQ(footer_peek(room + n - 64, &at, SEGMENT_BYTES, &t, &got_bytes), 0);
        CHECK_EQ(got_bytes, n);
        CHECK_EQ(t.n_entries, 100);
        CHECK_EQ(t.end_page, 201);
        CHECK_EQ(t.opened_sec, 555);
        at.page = 3; /* is not looked at */
        CHECK_EQ(footer_check(room, n, &at, SEGMENT_BYTES), 0);
        for (uint32_t bit = 0; bit < n * 8; bit++) {
                room[bit / 8] ^= (uint8_t)(1 << bit % 8);
                CHECK_EQ(footer_check(room, n, &at, SEGMENT_BYTES),
                         bit >= (n - 56) * 8 && bit < (n - 52) * 8 ? -EPROTONOSUPPORT : -EBADMSG);
                room[bit / 8] ^= (uint8_t)(1 << bit % 8);
        }
        CHECK_EQ(footer_check(room, n, &at, SEGMENT_BYTES), 0);
        CHECK_EQ(footer_check(room, PAGE, &at, SEGMENT_BYTES), -EBADMSG);
        CHECK_EQ(footer_check(room, 0, &at, SEGMENT_BYTES), -EBADMSG);
        CHECK_EQ(footer_check(room, n, &at, PAGE), -EBADMSG);
        footer_encode(spare, &at, NULL, 0, 1, 1);
        CHECK_EQ(footer_check(spare, PAGE, &at, SEGMENT_BYTES), 0);
}

static void test_footer_places(void **state)
{
        uint64_t n = footer_make(), got_bytes = 1;
        uint8_t other_uuid[16] = {};
        struct footer_trailer t;
        struct place other;

#define ELSEWHERE(field, value, peek)                                                                                                      \
        do {                                                                                                                               \
                other = footer_place;                                                                                                      \
                other.field = value;                                                                                                       \
                CHECK_EQ(footer_peek(room + n - 64, &other, SEGMENT_BYTES, &t, &got_bytes), peek);                                         \
                CHECK_EQ(footer_check(room, n, &other, SEGMENT_BYTES), -EBADMSG);                                                          \
        } while (0)
        ELSEWHERE(segment, 8, -EBADMSG);
        ELSEWHERE(generation, 51, -EBADMSG);
        CHECK_EQ(got_bytes, 1); /* untouched */
        ELSEWHERE(uuid, other_uuid, 0);
#undef ELSEWHERE
        /* bytes that lie about the place */
        other = footer_place;
        other.generation = 51;
        room[n - 64 + 16] = 51;
        CHECK_EQ(footer_check(room, n, &other, SEGMENT_BYTES), -EBADMSG);
        footer_make();
        room[n - 56] = 1;
        rehash_footer(room, n, &footer_place);
        CHECK_EQ(footer_peek(room + n - 64, &footer_place, SEGMENT_BYTES, &t, &got_bytes), -EPROTONOSUPPORT);
        CHECK_EQ(footer_check(room, n, &footer_place, SEGMENT_BYTES), -EPROTONOSUPPORT);
        /* more than a segment holds: nobody reads that much */
        footer_make();
        memcpy(&t, room + n - 64, 64);
        for (uint32_t i = 0; i < 3; i++) {
                t.n_entries = (const uint32_t[]){UINT32_MAX, SEGMENT_BYTES / 64, (SEGMENT_BYTES - PAGE) / 64}[i];
                CHECK_EQ(footer_peek(&t, &footer_place, SEGMENT_BYTES, &t, &got_bytes), -EBADMSG);
        }
        t.n_entries = (SEGMENT_BYTES - PAGE) / 64 - 1;
        CHECK_EQ(footer_peek(&t, &footer_place, SEGMENT_BYTES, &t, &got_bytes), 0);
        CHECK_EQ(got_bytes, SEGMENT_BYTES - PAGE);
        CHECK_EQ(footer_peek(&t, &footer_place, 0, &t, &got_bytes), -EBADMSG);
}

static void test_footer_contents(void **state)
{
        struct footer_entry *e = (struct footer_entry *)room;
        const struct footer_entry late = {.page = 200, .n_pages = 2, .type = RECORD_SPACE, .space = 0xffff, .raw_bytes = 90};
        uint64_t n = footer_make();
        struct footer_trailer *t = (struct footer_trailer *)(room + n - 64);

#define IS(result, statement)                                                                                                              \
        do {                                                                                                                               \
                footer_make();                                                                                                             \
                statement;                                                                                                                 \
                rehash_footer(room, n, &footer_place);                                                                                     \
                CHECK_EQ(footer_check(room, n, &footer_place, SEGMENT_BYTES), result);                                                     \
        } while (0)
#define REFUSED(statement) IS(-EPROTO, statement)
        IS(0, (void)0);
        IS(0, e[50].codec = 200);
        IS(0, t->end_page = SEGMENT_PAGES - 2);
        IS(0, e[99].n_pages = 1);
        IS(0, (e[98].n_pages = 2)); /* a gap */
        REFUSED(t->end_page = SEGMENT_PAGES - 1);
        REFUSED(t->end_page = UINT32_MAX);
        REFUSED(t->end_page = 0);
        REFUSED(t->end_page = 200);
        REFUSED(t->zero[0] = 1);
        REFUSED(t->zero[1] = 1);
        REFUSED(room[100 * 64] = 1);
        REFUSED(room[n - 65] = 1);
        REFUSED(t->n_entries = 101); /* an entry of zeros */
        REFUSED(t->n_entries = 99); /* an entry where zeros belong */
        REFUSED(e[0].page = 0); /* over the header */
        REFUSED(e[40].n_pages = 3); /* overlap */
        REFUSED(e[40].page--);
        REFUSED((e[40].page++, e[41].page--));
        REFUSED((e[40].page = e[41].page, e[41].page -= 2)); /* order */
        REFUSED(e[99].page = 201);
        REFUSED(e[99].n_pages = 2);
        REFUSED(e[99].n_pages = 0);
        REFUSED(e[99].n_pages = UINT32_MAX);
        REFUSED(e[99].page = UINT32_MAX);
        REFUSED((e[99].page = 200, e[99].n_pages = UINT32_MAX - 199));
        REFUSED(e[50].n_pages = 1); /* without payload */
        REFUSED(e[50].type = 0);
        REFUSED(e[50].type = 5);
        REFUSED(e[50].space = 1); /* a block */
        REFUSED(e[50].space = 50);
        REFUSED(e[50].space = 99);
        REFUSED(e[50].space = 100);
        REFUSED(e[50].space = 0xffff);
        IS(0, (e[99] = late, t->end_page = 202));
        REFUSED((e[99] = late, t->end_page = 202, e[50].space = 99)); /* comes too late */
        REFUSED(e[98].space = 0xffff);
        REFUSED(e[0].space = 0);
        REFUSED(e[99].space = 0);
        REFUSED(e[0].type = RECORD_PAD);
        REFUSED(e[50].flags = 8);
        REFUSED(e[50].flags = 0); /* and yet a parent */
        REFUSED(e[0].flags = RECORD_DURABLE);
        REFUSED(e[50].shard = 1);
        REFUSED(e[50].n_shards = 0);
        REFUSED(e[50].n_shards = 65);
        REFUSED(e[50].raw_bytes = 0);
        REFUSED(e[50].raw_bytes = UINT64_MAX);
        REFUSED(e[50].max_rel_l2 = NAN);
        REFUSED(e[50].max_rel_l2 = INFINITY);
        REFUSED(e[50].max_rel_l2 = -1);
        REFUSED(e[50].zero = 1);
        REFUSED(e[98].key[0] = 1);
        REFUSED(e[98].codec = 1);
        REFUSED(e[99].raw_bytes = 1);
        REFUSED(e[99].parent[0] = 1);
#undef IS
#undef REFUSED
}

#define TEST(name) cmocka_unit_test_setup(name, setup)
int main(void)
{
        const struct CMUnitTest tests[] = {
                TEST(test_record_bits),   TEST(test_record_places), TEST(test_record_contents),
                TEST(test_record_planes), TEST(test_record_others), TEST(test_record_large),
                TEST(test_footer_bits),   TEST(test_footer_places), TEST(test_footer_contents),
        };
        return cmocka_run_group_tests(tests, NULL, NULL);
}
