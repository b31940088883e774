/* Bytes of a device: superblock, header of a segment, record with its payload, footer, descriptor of a space.
 *
 * An input is a byte that says which of these and how, one that says how many pages, and the bytes. With MEND, the hashes are made right after
 * kvtier-format(7) before the bytes are looked at, so that the fuzzer gets behind them; with MEND_PLACE, magic, version and place too. The bytes lie at the
 * end of an allocation of exactly their size: what reads past them is found.
 *
 * What is checked: what is taken keeps the promises of format.h, computed here once more, and encoding what was taken gives the same bytes. */
#define XXH_INLINE_ALL
#include <xxhash.h>

#include <errno.h>
#include <math.h>
#include <sodium.h>

#include "libclient/codec/format.h"
#include "tests/fuzz/fuzz.h"

enum {
        SUPERBLOCK,
        SEGMENT,
        RECORD,
        FOOTER,
        SPACE,
        N_WHAT,
        MEND = 8, /* the hash of the whole */
        MEND_PAYLOAD = 16, /* those of the payload, and the digest that is the key */
        MEND_PLACE = 32,
        LEAVE_KEY = 64, /* which is not the digest then */

        PAGE = 4096,
        PAGES_MAX = 24,
};

static const uint8_t uuid[16] = "a fuzzed device.";
static const struct place at = {.uuid = uuid, .segment = 3, .generation = 0x100, .page = 2};

static void mend(void *p, size_t n, size_t hash_at, uint64_t generation, uint32_t page)
{
        uint8_t in[32];
        uint64_t hash;

        memcpy(in, uuid, 16);
        memcpy(in + 16, &at.segment, 4);
        memcpy(in + 20, &page, 4);
        memcpy(in + 24, &generation, 8);
        memset((uint8_t *)p + hash_at, 0, 8);
        hash = XXH3_64bits_withSeed(p, n, XXH3_64bits_withSeed(in, sizeof(in), 0));
        memcpy((uint8_t *)p + hash_at, &hash, 8);
}

/* Magic, version and place, as if written for `at`. end: behind the last byte. */
static void mend_place(uint8_t *p, uint8_t *end, unsigned what)
{
        struct record_header *h = (struct record_header *)p;
        struct footer_trailer *t = (struct footer_trailer *)(end - 64);

        switch (what) {
        case SUPERBLOCK:
                memcpy(p, "kvtierDV\1\0\0\0\0\x10\0", 16);
                break;
        case SEGMENT:
                memcpy(p, "kvtierSG\1\0\0\0\3\0\0", 16);
                break;
        case RECORD:
                memcpy(h->magic, "kvtR", 4);
                h->version = FORMAT_VERSION;
                h->generation = at.generation;
                h->segment = at.segment;
                h->page = at.page;
                break;
        case FOOTER:
                memcpy(t->magic, "kvtierFT", 8);
                t->version = FORMAT_VERSION;
                t->segment = at.segment;
                t->generation = at.generation;
                break;
        }
}

static void try_superblock(uint8_t *p, bool mended)
{
        struct superblock s;
        uint8_t again[PAGE];

        if (mended) {
                memset(p + 64, 0, 8);
                uint64_t hash = XXH3_64bits_withSeed(p, PAGE, 0);
                memcpy(p + 64, &hash, 8);
        }
        int r = superblock_decode(p, &s);
        FUZZ_CHECK(r == 0 || r == -ENODATA || r == -ENOMSG || r == -EBADMSG || r == -EPROTONOSUPPORT || r == -EPROTO);
        FUZZ_CHECK(!mended || r != -EBADMSG);
        if (r)
                return;
        FUZZ_CHECK(s.n_segments && s.n_segments <= 1 << 24 && s.segment_bytes >= 1 << 20 && s.segment_bytes <= 1 << 30);
        FUZZ_CHECK(format_segment_offset(&s, (uint32_t)s.n_segments - 1) + s.segment_bytes <= s.device_bytes);
        superblock_encode(again, &s);
        FUZZ_CHECK(!memcmp(again, p, PAGE));
}

static void try_segment(uint8_t *p, bool mended)
{
        struct segment_header h;
        uint8_t again[PAGE];
        uint64_t generation;

        memcpy(&generation, p + 16, 8);
        if (mended)
                mend(p, PAGE, 32, generation, 0);
        int r = segment_header_decode(p, &at, &h);
        FUZZ_CHECK(r == 0 || r == -EBADMSG || r == -EPROTONOSUPPORT || r == -EPROTO);
        if (r)
                return;
        FUZZ_CHECK(h.segment == at.segment && h.generation == generation);
        segment_header_encode(again, &(struct place){uuid, at.segment, generation, 0}, h.opened_sec);
        FUZZ_CHECK(!memcmp(again, p, PAGE));
}

/* Planes, payload hash and key say what the payload is, as far as that can be read. */
static void mend_payload(struct record_header *h, uint64_t room, bool leave_key)
{
        uint64_t used = (uint64_t)h->header_pages * PAGE, payload = used;

        if (h->header_pages > PAGES_MAX || used > room)
                return;
        if (h->type == RECORD_BLOCK) {
                for (uint32_t i = 0; i < h->n_planes && sizeof(*h) + (i + 1) * 24ull <= used; i++) {
                        struct kvt_copy_plane *plane = &record_planes(h)[i];

                        if (plane->bytes > room - payload)
                                return;
                        plane->hash = XXH3_64bits_withSeed((uint8_t *)h + payload, plane->bytes, kvt_plane_seed(plane, i));
                        payload += plane->bytes;
                }
        } else if (h->type != RECORD_PAD && h->stored_bytes <= room - used) {
                h->payload_hash = XXH3_64bits_withSeed((uint8_t *)h + used, h->stored_bytes, 0);
                if (h->type == RECORD_SPACE && !leave_key) {
                        crypto_generichash(h->key, 16, (uint8_t *)h + used, h->stored_bytes, NULL, 0);
                        memcpy(h->space, h->key, 16);
                }
        }
}

static void check_record(struct record_header *h, uint64_t n, uint32_t max_pages)
{
        uint64_t stored = 0;

        FUZZ_CHECK(h->type >= RECORD_BLOCK && h->type <= RECORD_PAD);
        FUZZ_CHECK(h->n_pages && h->n_pages <= max_pages && h->header_pages && h->header_pages <= h->n_pages);
        FUZZ_CHECK(h->stored_bytes <= (uint64_t)(h->n_pages - h->header_pages) * PAGE);
        FUZZ_CHECK(h->n_planes <= 1024 && (h->n_planes != 0) == (h->type == RECORD_BLOCK));
        FUZZ_CHECK((uint8_t *)(record_page_hashes(h) + h->n_page_hashes) <= (uint8_t *)record_payload(h));
        FUZZ_CHECK(h->n_page_hashes <= h->n_pages && isfinite(h->max_rel_l2));
        for (uint32_t i = 0; i < h->n_planes; i++) {
                stored += record_planes(h)[i].bytes;
                FUZZ_CHECK(record_planes(h)[i].rel_l2 >= 0 && record_planes(h)[i].rel_l2 <= h->max_rel_l2);
        }
        if (h->type == RECORD_BLOCK)
                FUZZ_CHECK(stored == h->stored_bytes && h->shard < h->n_shards && h->n_shards <= 64);
        if ((uint64_t)h->header_pages * PAGE + h->stored_bytes > n)
                return;
        for (uint32_t i = 0; i < h->n_page_hashes && (h->header_pages + i + 1ull) * PAGE <= n; i++) {
                const uint8_t *page = (uint8_t *)h + (h->header_pages + (uint64_t)i) * PAGE;
                FUZZ_CHECK(record_page_hash(page, i) == (uint32_t)XXH3_64bits_withSeed(page, PAGE, i));
        }
        int r = record_payload_check(h, record_payload(h));
        FUZZ_CHECK(r == 0 || r == -EBADMSG || r == -EPROTO);
        if (r == 0 && h->type == RECORD_SPACE) {
                struct space_descriptor d;
                if (space_descriptor_decode(record_payload(h), h->stored_bytes, &d) == 0)
                        space_descriptor_deinit(&d);
        }
}

static void try_record(uint8_t *p, size_t n, unsigned how)
{
        struct record_header *h = (struct record_header *)p, *again;
        const uint32_t max_pages = PAGES_MAX;

        if (how & MEND_PAYLOAD)
                mend_payload(h, n, how & LEAVE_KEY);
        uint64_t header_bytes = (uint64_t)h->header_pages * PAGE;
        bool mended = how & MEND && h->header_pages && header_bytes <= n;
        if (mended)
                mend(p, header_bytes, 144, at.generation, at.page);
        int r = record_header_check(h, n, &at, max_pages);
        FUZZ_CHECK(r == 0 || r == -EAGAIN || r == -EBADMSG || r == -EPROTONOSUPPORT || r == -EPROTO);
        FUZZ_CHECK(r != -EAGAIN || (header_bytes > n && h->header_pages <= max_pages));
        if (r)
                return;
        FUZZ_CHECK(header_bytes <= n);
        check_record(h, n, max_pages);
        again = memcpy(aligned_alloc(PAGE, header_bytes), p, header_bytes);
        memset(again->magic, 0, 4);
        again->version = 0;
        again->segment = again->page = 0;
        again->generation = again->hash = 0;
        record_header_seal(again, &at);
        FUZZ_CHECK(!memcmp(again, p, header_bytes));
        free(again);
}

static void try_footer(uint8_t *p, size_t n, bool mended)
{
        const uint64_t segment_bytes = 1 << 20;
        struct footer_trailer t;
        uint64_t n_footer;

        int r = footer_peek(p + n - 64, &at, segment_bytes, &t, &n_footer);
        FUZZ_CHECK(r == 0 || r == -EBADMSG || r == -EPROTONOSUPPORT);
        if (r) {
                FUZZ_CHECK(footer_check(p, n, &at, segment_bytes) == r && footer_check(p, n, &at, n - 1) == -EBADMSG);
                return;
        }
        FUZZ_CHECK(n_footer % PAGE == 0 && n_footer >= PAGE && n_footer < segment_bytes && n_footer >= t.n_entries * 64ull + 64);
        if (mended)
                mend(p, n, n - 8, at.generation, 0);
        r = footer_check(p, n, &at, segment_bytes);
        FUZZ_CHECK(r == 0 || r == -EBADMSG || r == -EPROTO);
        FUZZ_CHECK(!mended || r != -EBADMSG || n_footer != n);
        if (r)
                return;
        FUZZ_CHECK(n == n_footer && t.end_page && t.end_page * (uint64_t)PAGE + n <= segment_bytes);
        const struct footer_entry *e = (struct footer_entry *)p;
        uint64_t behind = 1;
        for (uint32_t i = 0; i < t.n_entries; i++) {
                FUZZ_CHECK(e[i].type >= RECORD_BLOCK && e[i].type <= RECORD_PAD && e[i].n_pages);
                FUZZ_CHECK(e[i].page >= behind && (behind = (uint64_t)e[i].page + e[i].n_pages) <= t.end_page);
                FUZZ_CHECK(e[i].space == 0xffff || (e[i].space < i && e[e[i].space].type == RECORD_SPACE));
                FUZZ_CHECK((e[i].space == 0xffff) == (e[i].type == RECORD_SPACE || e[i].type == RECORD_PAD));
        }
        uint8_t *again = aligned_alloc(PAGE, n);
        footer_encode(again, &at, e, t.n_entries, t.end_page, t.opened_sec);
        FUZZ_CHECK(!memcmp(again + n - 64, p + n - 64, 64) && !memcmp(again, p, n));
        free(again);
}

static void try_space(const uint8_t *p, size_t n)
{
        struct space_descriptor d = {};
        int r = space_descriptor_decode(p, n, &d);

        FUZZ_CHECK(r == 0 || r == -EPROTO || r == -EPROTONOSUPPORT);
        if (r) {
                FUZZ_CHECK(!d.geometry.planes && !d.tenant[0]);
                return;
        }
        FUZZ_CHECK(*d.tenant && *d.name && d.n_salt <= 64 && d.geometry.n_planes && d.geometry.part_bytes);
        FUZZ_CHECK(n <= SPACE_DESCRIPTOR_MAX &&
                   space_descriptor_encode(NULL, d.tenant, d.name, d.salt, d.n_salt, d.max_rel_l2, &d.geometry) == n);
        uint8_t *again = malloc(n);
        space_descriptor_encode(again, d.tenant, d.name, d.salt, d.n_salt, d.max_rel_l2, &d.geometry);
        FUZZ_CHECK(!memcmp(again, p, n));
        free(again);
        space_descriptor_deinit(&d);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n)
{
        struct input in = {bytes, n};
        unsigned how = input_u8(&in);
        size_t n_pages = input_u8(&in) % PAGES_MAX + 1, room = n_pages * PAGE, n_given;
        unsigned what = how % 8;

        if (what == SPACE || what >= N_WHAT) {
                const uint8_t *p = input_bytes(&in, in.n, &n_given);
                uint8_t *exact = n_given ? memcpy(malloc(n_given), p, n_given) : malloc(1);

                try_space(exact, n_given);
                free(exact);
                return 0;
        }
        if (what == SUPERBLOCK || what == SEGMENT)
                room = PAGE;
        const uint8_t *given = input_bytes(&in, room, &n_given);
        uint8_t *p = aligned_alloc(PAGE, room);
        memset(p, 0, room);
        if (n_given) {
                memcpy(p, given, n_given);
                if (what == FOOTER && n_given >= 64) { /* an input ends with the trailer */
                        memset(p + n_given - 64, 0, 64);
                        memcpy(p + room - 64, given + n_given - 64, 64);
                }
        }
        if (how & MEND_PLACE)
                mend_place(p, p + room, what);
        switch (what) {
        case SUPERBLOCK:
                try_superblock(p, how & MEND);
                break;
        case SEGMENT:
                try_segment(p, how & MEND);
                break;
        case RECORD:
                try_record(p, room, how);
                break;
        case FOOTER:
                try_footer(p, room, how & MEND);
                break;
        }
        free(p);
        return 0;
}

/* seeds */

static uint8_t seed[2 + PAGES_MAX * PAGE];

static void put_seed(const char *corpus, const char *name, unsigned how, size_t n_pages, size_t n)
{
        char other[32];

        seed[0] = (uint8_t)how;
        seed[1] = (uint8_t)(n_pages - 1);
        fuzz_seed(corpus, name, seed, 2 + n);
        if (!(how & MEND_PLACE))
                return;
        snprintf(other, sizeof(other), "%s-as-it-is", name); /* so that other versions, places and hashes come, too */
        seed[0] = (uint8_t)(how & ~(MEND_PLACE | MEND_PAYLOAD));
        fuzz_seed(corpus, other, seed, 2 + n);
}

static void put_record(const char *corpus, const char *name, struct record_header *h, const void *payload, size_t n)
{
        h->stored_bytes = n;
        h->raw_bytes = h->type == RECORD_BLOCK ? 2 * n : n;
        h->header_pages = record_header_pages(h->n_planes, h->n_page_hashes);
        h->n_pages = h->header_pages + (uint32_t)format_pages(n);
        if (n)
                memcpy(record_payload(h), payload, n);
        mend_payload(h, PAGES_MAX * PAGE, false);
        record_header_seal(h, &at);
        FUZZ_CHECK(record_header_check(h, PAGES_MAX * PAGE, &at, PAGES_MAX) == 0 && record_payload_check(h, record_payload(h)) == 0);
        memcpy(seed + 2, h, (size_t)h->n_pages * PAGE);
        put_seed(corpus, name, RECORD | MEND | MEND_PAYLOAD | MEND_PLACE, h->n_pages, h->header_pages * PAGE + n);
        memset(h, 0, PAGES_MAX * PAGE);
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
        const char *corpus = fuzz_corpus(*argc, *argv), *why;
        struct superblock s = {.segment_bytes = 1 << 20, .n_segments = 10, .device_bytes = 12 << 20};
        kvt_plane planes[2] = {{.role = KVT_ROLE_K, .dtype = KVT_DTYPE_BF16, .heads = 2, .dim = 64},
                               {.role = KVT_ROLE_STATE, .dtype = KVT_DTYPE_OPAQUE, .heads = 1, .opaque_bytes = 99}};
        struct record_header *h = aligned_alloc(PAGE, PAGES_MAX * PAGE);
        struct drop_entry drops[4] = {{.key = {1}}, {.key = {2}}, {.what = 1}, {.key = {1}, .what = 2, .shard = 1}};
        uint8_t descriptor[256], bytes[3 * PAGE];
        struct geometry g;

        if (sodium_init() < 0)
                return -1;
        superblock_encode(seed + 2, &s);
        put_seed(corpus, "superblock", SUPERBLOCK | MEND | MEND_PLACE, 1, 128);
        segment_header_encode(seed + 2, &at, 5);
        put_seed(corpus, "segment", SEGMENT | MEND | MEND_PLACE, 1, 128);
        FUZZ_CHECK(geometry_init(&g, 16, 2, planes, 2, &why) == 0);
        size_t n = space_descriptor_encode(descriptor, "user-1", "a model", (const uint8_t *)"salt", 4, 0.25f, &g);
        geometry_deinit(&g);
        memcpy(seed + 2, descriptor, n);
        put_seed(corpus, "space", SPACE, 1, n);

        memset(h, 0, PAGES_MAX * PAGE);
        memset(bytes, 0x6b, sizeof(bytes));
        h->type = RECORD_SPACE;
        put_record(corpus, "record-space", h, descriptor, n);
        h->type = RECORD_DROP;
        put_record(corpus, "record-drop", h, drops, sizeof(drops));
        h->type = RECORD_PAD;
        put_record(corpus, "record-pad", h, NULL, 0);
        for (uint32_t n_planes = 2; n_planes <= 500; n_planes += 498) {
                h->type = RECORD_BLOCK;
                h->n_shards = 1;
                h->flags = RECORD_HAS_PARENT | RECORD_PAGE_HASHES;
                h->n_planes = n_planes;
                h->n_page_hashes = (uint32_t)format_pages(n_planes * 20);
                h->max_rel_l2 = 0.5f;
                for (uint32_t i = 0; i < n_planes; i++)
                        record_planes(h)[i] = (struct kvt_copy_plane){.bytes = 20, .rel_l2 = 0.5f};
                put_record(corpus, n_planes == 2 ? "record-block" : "record-planes", h, bytes, n_planes * 20);
        }
        struct footer_entry e[4] = {
                {.key = {9}, .page = 1, .n_pages = 2, .space = 0xffff, .type = RECORD_SPACE, .raw_bytes = n},
                {.key = {1}, .page = 3, .n_pages = 4, .type = RECORD_BLOCK, .n_shards = 1, .raw_bytes = 9000, .max_rel_l2 = 0.5f},
                {.page = 7, .n_pages = 2, .type = RECORD_DROP, .raw_bytes = 48},
                {.page = 9, .n_pages = 1, .space = 0xffff, .type = RECORD_PAD},
        };
        footer_encode(h, &at, e, 4, 10, 5);
        memcpy(seed + 2, h, sizeof(e));
        memcpy(seed + 2 + sizeof(e), (uint8_t *)h + PAGE - 64, 64);
        put_seed(corpus, "footer", FOOTER | MEND | MEND_PLACE, 1, sizeof(e) + 64);
        free(h);
        return 0;
}
