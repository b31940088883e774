/* What lies on an NVMe device: see kvtier-format(7). Pure functions over bytes, no I/O; the daemon and kvtierctl's offline verify share them.
 *
 * A device (or file) is cut like this, in pages of 4 KiB; all numbers are little endian:
 *
 *     page 0        superblock
 *     page 128      superblock, the same again (at 512 KiB)
 *     1 MiB         segment 0, segment 1, ..., each segment_bytes long
 *
 * A segment: page 0 is its header, then records back to back, each of whole pages, then unused room, and at the very end the footer (entries, then
 * the trailer in the last 64 bytes). A footer repeats what the records' headers say. It is written when all records of the segment are on stable
 * storage; a segment whose footer does not verify is scanned record by record from its start, up to the first that does not verify.
 * The order of writing is (generation, page): generations are drawn from one counter, a new one each time a segment is opened.
 *
 * Every hash is XXH3-64. That of a header or footer is seeded with format_seed(uuid, segment, generation, page), so that nothing verifies on
 * another device, in another place, or in another life of its segment. Bytes are foreign: every function checks all it reads, and says -EBADMSG (the
 * checksum is wrong), -EPROTONOSUPPORT (a version this code does not know) or -EPROTO (checksum right, contents impossible). The version is looked
 * at before the checksum, for another version may have another one: whoever could damage a byte can make any of these, so all mean "not there". */
#pragma once

#include <assert.h>
#include <stdbool.h>
#include <stdint.h>

#include "libclient/codec/geometry.h"
#include "proto/shm.h"

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the format is little endian");

enum {
        FORMAT_VERSION = 2,
        FORMAT_PAGE_BYTES = 4096,
        FORMAT_SEGMENTS_START = 1 << 20,
        FORMAT_SUPERBLOCK_COPY = 512 << 10,
        FORMAT_SEGMENT_MIN = 1 << 20,
        FORMAT_SEGMENT_MAX = 1 << 30,
        FORMAT_SEGMENTS_MAX = 1 << 24,
        FORMAT_SEGMENTS_MIN = 3, /* to work with: one that is written, one for what is moved, one that it is moved from */
        FORMAT_PLANES_MAX = 1025, /* a geometry's, and the hints */
        FORMAT_SHARDS_MAX = 64,
};

struct superblock { /* on disk, at the start of a page that is zero behind it */
        uint8_t magic[8]; /* "kvtierDV" */
        uint32_t version;
        uint32_t page_bytes;
        uint8_t uuid[16]; /* random, made by format */
        uint64_t segment_bytes; /* whole MiB, FORMAT_SEGMENT_MIN..MAX */
        uint64_t n_segments;
        uint64_t device_bytes; /* when it was formatted */
        uint64_t created_sec; /* realtime */
        uint64_t hash; /* of the whole page with this field zero; seed 0 */
};
static_assert(sizeof(struct superblock) == 72, "layout");

struct segment_header { /* on disk, likewise */
        uint8_t magic[8]; /* "kvtierSG" */
        uint32_t version;
        uint32_t segment;
        uint64_t generation; /* 0: never used */
        uint64_t opened_sec; /* realtime */
        uint64_t hash; /* of the page with this field zero; seed(uuid, segment, generation, 0) */
};
static_assert(sizeof(struct segment_header) == 40, "layout");

enum record_type {
        RECORD_BLOCK = 1, /* one part of a block */
        RECORD_SPACE = 2, /* payload: a space descriptor; stands before the first record of its space in a segment */
        RECORD_DROP = 3, /* payload: struct drop_entry each; what they name is void if it was written before */
        RECORD_PAD = 4, /* no payload (stored_bytes 0); its n_pages are skipped */
};
enum record_flags {
        RECORD_HAS_PARENT = 1,
        RECORD_DURABLE = 2, /* asked for by the client */
        RECORD_PAGE_HASHES = 4, /* a hash per payload page, so that rows can be read alone */
};

struct record_header { /* on disk, at the start of a record; n_planes struct kvt_copy_plane, then page hashes (u32 each) follow; zero up to header_pages */
        uint8_t magic[4]; /* "kvtR" */
        uint16_t version;
        uint8_t type;
        uint8_t codec; /* the first plane's; each says its own */
        uint64_t generation; /* of the segment */
        uint32_t segment;
        uint32_t page; /* within the segment */
        uint32_t header_pages;
        uint32_t n_pages; /* with the header and the padding behind the payload */
        uint8_t key[16]; /* RECORD_SPACE: the space's digest, as in space; PAD, DROP: zero */
        uint8_t parent[16]; /* zero without RECORD_HAS_PARENT */
        uint8_t space[16]; /* digest, see space_digest() */
        uint8_t tenant[16]; /* BLAKE2b-128 of the tenant's name */
        uint8_t shard, n_shards;
        uint16_t flags;
        uint32_t n_planes; /* the space's and one for the hints; 0 but for RECORD_BLOCK, as codec, shard, n_shards, flags and max_rel_l2 */
        uint64_t raw_bytes; /* of the payload when decoded; SPACE, DROP: stored_bytes */
        uint64_t stored_bytes; /* of the payload */
        uint64_t payload_hash; /* types other than RECORD_BLOCK: XXH3-64 of the payload, seed 0 */
        uint64_t written_sec;
        float max_rel_l2; /* the planes' largest */
        uint32_t n_page_hashes; /* with RECORD_PAGE_HASHES: of pages of the payload, else 0 */
        uint64_t hash; /* of all header_pages pages with this field zero; seed(uuid, segment, generation, page) */
};
static_assert(sizeof(struct record_header) == 152, "layout");

struct drop_entry { /* payload of RECORD_DROP; space digests are the record's */
        uint8_t key[16]; /* what 1: zero */
        uint32_t what; /* 0: the block under key, all parts; 1: the whole space, key 0; 2: one part of the block under key */
        uint32_t shard; /* which, if what is 2, else 0 */
};
static_assert(sizeof(struct drop_entry) == 24, "layout");

struct footer_entry { /* fields as in the record's header */
        uint8_t key[16], parent[16];
        uint32_t page, n_pages;
        uint16_t space; /* BLOCK, DROP: index of the RECORD_SPACE among the entries before; PAD, SPACE: 0xffff, none */
        uint16_t flags;
        uint8_t type, codec, shard, n_shards;
        uint64_t raw_bytes;
        float max_rel_l2;
        uint32_t zero;
};
static_assert(sizeof(struct footer_entry) == 64, "layout");

struct footer_trailer { /* the last 64 bytes of a segment */
        uint8_t magic[8]; /* "kvtierFT" */
        uint32_t version;
        uint32_t segment;
        uint64_t generation;
        uint32_t n_entries;
        uint32_t end_page; /* first page behind the last record */
        uint64_t opened_sec;
        uint64_t zero[2];
        uint64_t
                hash; /* of entries and trailer (as they lie, from the footer's first page to its end) with this field zero; seed as for page 0 */
};
static_assert(sizeof(struct footer_trailer) == 64, "layout");

/* where something lies: what header hashes are bound to */
struct place {
        const uint8_t *uuid; /* 16 bytes */
        uint32_t segment;
        uint64_t generation;
        uint32_t page;
};

/* XXH3-64, seed 0, of uuid, segment, page, generation: 32 bytes */
uint64_t format_seed(const struct place *at);

/* superblock: fills magic, version, page_bytes and hash in; writes a whole page */
void superblock_encode(void *page, const struct superblock *s);
/* 0; -ENODATA: all zero, nothing was ever here; -ENOMSG: something else is (no magic); -EBADMSG, -EPROTONOSUPPORT, -EPROTO */
int superblock_decode(const void *page, struct superblock *ret);
/* How many segments of that size fit, at most FORMAT_SEGMENTS_MAX. 0: too small, or no such size. */
uint64_t format_n_segments(uint64_t device_bytes, uint64_t segment_bytes);
static inline bool format_segment_bytes_ok(uint64_t n)
{
        return n >= FORMAT_SEGMENT_MIN && n <= FORMAT_SEGMENT_MAX && n % (1 << 20) == 0;
}
static inline uint64_t format_segment_offset(const struct superblock *s, uint32_t segment)
{
        return FORMAT_SEGMENTS_START + segment * s->segment_bytes;
}

/* segment header: at = {uuid, segment, generation, -}; writes a whole page */
void segment_header_encode(void *page, const struct place *at, uint64_t opened_sec);
/* at.generation is not looked at. 0 or -EBADMSG (also for pages of other devices, places, or none), -EPROTONOSUPPORT, -EPROTO */
int segment_header_decode(const void *page, const struct place *at, struct segment_header *ret);

/* records */

/* Pages of a header with so many planes and page hashes. */
uint32_t record_header_pages(uint32_t n_planes, uint32_t n_page_hashes);
/* How many of a record's n_pages are its header, if it has a hash for each page of its payload; 0: no record has that many. */
uint32_t record_header_pages_of(uint32_t n_planes, uint32_t n_pages);
static inline uint64_t format_pages(uint64_t bytes)
{
        return bytes / FORMAT_PAGE_BYTES + (bytes % FORMAT_PAGE_BYTES != 0);
}
/* Completes a header in place: h, its planes and page hashes are filled in (all but magic, version, generation, segment, page, hash). Zeroes what
 * is behind them in the header's pages. Asserts that record_header_check() would take it. */
void record_header_seal(struct record_header *h, const struct place *at);
enum {
        RECORD_HEADER_PAGES_MAX = (sizeof(struct record_header) + sizeof(struct kvt_copy_plane) * FORMAT_PLANES_MAX +
                                   4 * (FORMAT_SEGMENT_MAX / FORMAT_PAGE_BYTES) + FORMAT_PAGE_BYTES - 1) /
                                  FORMAT_PAGE_BYTES
};
/* n_bytes: how many bytes can be read at h; max_pages: room from at->page to the end of the segment. 0; -EAGAIN: the header is longer than n_bytes
 * (h->header_pages can be believed to be at most max_pages and RECORD_HEADER_PAGES_MAX); -EBADMSG, -EPROTONOSUPPORT, -EPROTO. After 0 every field is
 * within its limits: type known, header_pages + payload == n_pages <= max_pages (PAD: header_pages <= n_pages), planes' bytes add up to
 * stored_bytes, errors are finite; codec not checked. */
int record_header_check(const struct record_header *h, uint64_t n_bytes, const struct place *at, uint32_t max_pages);
static inline struct kvt_copy_plane *record_planes(struct record_header *h)
{
        return (struct kvt_copy_plane *)(h + 1);
}
static inline uint32_t *record_page_hashes(struct record_header *h)
{
        return (uint32_t *)(record_planes(h) + h->n_planes);
}
static inline void *record_payload(struct record_header *h)
{
        return (uint8_t *)h + (uint64_t)h->header_pages * FORMAT_PAGE_BYTES;
}
/* The hash of one payload page, zero padded: low half of XXH3-64 seeded with its number. */
uint32_t record_page_hash(const void *page, uint32_t i_page);
/* All planes (or payload_hash) of a checked header against stored_bytes of payload, 8-byte aligned. 0 or -EBADMSG; -EPROTO: the hash is right, but a
 * SPACE's payload has another digest than its key, or a DROP's entries are none. Page hashes are for partial reads and not looked at. */
int record_payload_check(const struct record_header *h, const void *payload);

/* footers */

/* Bytes of a footer with so many entries: whole pages. */
uint64_t footer_bytes(uint32_t n_entries);
/* Writes footer_bytes(n) bytes: entries at the start (they may lie there already), zeros, the trailer in the last 64. */
void footer_encode(void *p, const struct place *at, const struct footer_entry *entries, uint32_t n_entries, uint32_t end_page,
                   uint64_t opened_sec);
/* The trailer in the last 64 bytes of a segment, not yet verified (the hash covers the entries): 0, and how long the footer says it is (sane:
 * it leaves room for the segment's header), or -EBADMSG if magic, segment or generation are wrong, -EPROTONOSUPPORT. at->page is not looked at. */
int footer_peek(const void *last_64_bytes, const struct place *at, uint64_t segment_bytes, struct footer_trailer *ret, uint64_t *ret_bytes);
/* n_bytes = footer_bytes(n_entries of its trailer) at p, 8-byte aligned. 0: all entries are between the segment's header and end_page, in order, do
 * not overlap (but there may be gaps), of known types, and their space index names a RECORD_SPACE before them; -EBADMSG, -EPROTONOSUPPORT, -EPROTO. */
int footer_check(const void *p, uint64_t n_bytes, const struct place *at, uint64_t segment_bytes);

/* spaces */

/* What a space is made of, as bytes: tenant's name, name, salt, fidelity, block_tokens, n_shards, planes. Returns the length; dst NULL: only that. The names
 * are as long as the daemon lets them be. */
#define SPACE_DESCRIPTOR_MAX (64 + 128 + 64 + 64 + 1024 * 28)
size_t space_descriptor_encode(void *dst, const char *tenant, const char *name, const uint8_t *salt, uint32_t n_salt, float max_rel_l2,
                               const struct geometry *g);
/* A space's fidelity: the largest relative L2 error of a plane that it allows, 0 (lossless) to 1. */
bool fidelity_ok(float max_rel_l2);
struct space_descriptor {
        char tenant[40], name[129];
        uint8_t salt[64];
        uint32_t n_salt;
        float max_rel_l2;
        struct geometry geometry; /* owned */
};
/* Foreign bytes. 0, -EPROTONOSUPPORT, -EPROTO, -ENOMEM; *ret is untouched then. */
int space_descriptor_decode(const void *p, size_t n, struct space_descriptor *ret);
void space_descriptor_deinit(struct space_descriptor *d);
/* BLAKE2b-128 of the descriptor's bytes. */
void space_digest(uint8_t ret[16], const void *descriptor, size_t n);
