/* Layouts that two processes see: packed per-key results in message fields, and the copy header in slabs.
 *
 * All integers are in host byte order (little endian on every machine kvtier builds for, asserted below): the socket is local.
 *
 * A slab is a memfd owned by the daemon, mapped read-only by clients of one tenant, cut into slots of one size. A slot holds one
 * copy: a header, then the payload at payload_offset(). A copy is addressed by (slab, offset of its slot, generation).
 *
 * Generation protocol (a seqlock whose writer is the daemon). Generations are drawn from one 64-bit counter and never repeat
 * within a boot, and a slab keeps its slot size while any client holds its map, so the word at a slot's offset is always a generation.
 *   writer: generation = 0; release fence; write payload and header; generation = g (release store).
 *   reader: read payload; acquire fence; generation still g -> what was read is the copy; else it is to be discarded. */
#pragma once

#include <assert.h>
#include <stdint.h>
#include <string.h>

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "kvtier's shared layouts are little endian");

/* One plane of a copy; its payload stands behind that of the plane before. Also in records on disk, see kvtier-format(7). */
struct kvt_copy_plane {
        uint64_t hash; /* XXH3-64 of its payload bytes, seeded with kvt_plane_seed() */
        uint32_t bytes; /* of its payload */
        float rel_l2, max_abs; /* measured error against the bytes that were put; 0: lossless */
        uint8_t codec; /* id in libclient/codec; 0 is raw */
        uint8_t flags; /* enum plane_flags */
        uint16_t zero;
};
static_assert(sizeof(struct kvt_copy_plane) == 24, "layout");

/* So that the hash of a payload is also over what says how to read it: the number of the plane, for raw ones that alone, in the low 16 bits; the codec in
 * the next 8, flags in 8; above, rel_l2's bits xor those of max_abs, whose halves change places. */
static inline uint64_t kvt_plane_seed(const struct kvt_copy_plane *c, uint32_t i_plane)
{
        uint32_t rel, max;

        memcpy(&rel, &c->rel_l2, sizeof(rel));
        memcpy(&max, &c->max_abs, sizeof(max));
        return i_plane | (uint64_t)c->codec << 16 | (uint64_t)c->flags << 24 | (uint64_t)(rel ^ (max << 16 | max >> 16)) << 32;
}

/* At the start of a slot. Behind it, KVT_COPY_RAW: a hash a plane, XXH3-64 of its payload bytes, seeded with its number; all planes are raw, and the payload is
 * their canonical bytes. KVT_COPY_PLANES: an entry a plane, and one more for the hints that came with the put (libclient/codec/part.h), raw, 0 bytes if there were
 * none. The payload, at kvt_payload_offset(), is that of all entries, back to back. */
struct kvt_copy_header {
        uint64_t generation; /* atomic; 0: free or being written */
        uint32_t payload_bytes;
        uint16_t n_planes; /* the space's */
        uint8_t zero;
        uint8_t layout; /* KVT_COPY_* */
};
static_assert(sizeof(struct kvt_copy_header) == 16, "layout");

enum { KVT_COPY_RAW = 1, KVT_COPY_PLANES = 2 };

static inline uint64_t *kvt_copy_hashes(struct kvt_copy_header *h)
{
        return (uint64_t *)(void *)(h + 1);
}
static inline struct kvt_copy_plane *kvt_copy_planes(struct kvt_copy_header *h)
{
        return (struct kvt_copy_plane *)(void *)(h + 1);
}

/* Where the payload starts in a slot: large payloads on a page, so that devices can read them where they lie. */
static inline uint32_t kvt_payload_offset(uint8_t layout, uint32_t n_planes, uint64_t payload_bytes)
{
        uint64_t align = payload_bytes >= 65536 ? 4096 : payload_bytes >= 4096 ? 64 : 8;
        uint64_t header = sizeof(struct kvt_copy_header) +
                          (layout == KVT_COPY_RAW ? 8ull * n_planes : sizeof(struct kvt_copy_plane) * (n_planes + 1ull));
        return (uint32_t)((header + align - 1) / align * align);
}

/* MapReply.entries: one per key, in the order asked. */
struct kvt_map_entry {
        uint8_t status; /* 0 or KVT_E_*; the rest is zero unless 0 */
        uint8_t zero[3];
        uint32_t slab;
        uint64_t offset; /* of the slot, in the slab */
        uint64_t generation;
        uint64_t lease; /* for RELEASE */
};
static_assert(sizeof(struct kvt_map_entry) == 32, "layout");

/* MapReply.slabs: one per descriptor in the packet, in order. */
struct kvt_map_slab {
        uint32_t slab;
        uint32_t zero;
        uint64_t bytes;
};
static_assert(sizeof(struct kvt_map_slab) == 16, "layout");

/* PutBegin reply: one per key. PutCommit and Get take arrays of offsets (uint64_t) into staging beside the keys. */
struct kvt_put_entry {
        uint8_t status;
        uint8_t zero[7];
        uint64_t reservation; /* for PutCommit and PutAbort */
};
static_assert(sizeof(struct kvt_put_entry) == 16, "layout");

/* ListReply.blocks: one per block */
struct kvt_block_entry {
        uint8_t key[16];
        uint8_t parent[16]; /* zero: first block of a prefix */
        uint64_t bytes; /* all parts, as stored */
        uint32_t idle_sec; /* since it was last matched or mapped */
        uint32_t age_sec;
        uint32_t hits;
        uint32_t n_children; /* 64: that many or more */
        uint16_t leases;
        uint8_t n_parts; /* parts present */
        uint8_t tiers; /* where whole copies are: 1 host, 2 nvme */
        uint32_t zero;
};
static_assert(sizeof(struct kvt_block_entry) == 64, "layout");
