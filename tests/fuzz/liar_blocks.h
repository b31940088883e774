/* The blocks of the daemon that lies (liar.h): how they lie in its slabs, and what may be said falsely in their headers. */
#pragma once

#include <stdbool.h>

#include "include/kvtier.h"
#include "libclient/codec/hash.h"
#include "libclient/codec/copy.h"
#include "proto/shm.h"
#include "tests/fuzz/fuzz.h"

enum {
        N_SLABS = 4,
        TOKENS = 16,
        ROW_BYTES = 64, /* of a token, in each of two planes */
        PLANE_BYTES = TOKENS * ROW_BYTES,
        N_PLANES = 2,
        PART_BYTES = N_PLANES * PLANE_BYTES,
        SLAB_BYTES = 1 << 16,
        SLOT_BYTES = 4096,
        SLOTS = SLAB_BYTES / SLOT_BYTES,
        STAGING_BYTES = 1 << 16,
        FIRST_SLAB = 7,
        GENERATION = 100,
};

static struct input in; /* of this run */
static int slab_fds[N_SLABS], unsealed_fd, pipe_fds[2];
static uint8_t *slabs[N_SLABS];
static struct {
        int fd; /* the daemon's end; -1: hung up */
        uint32_t sent_slabs; /* bits */
        int staging_fd;
        uint8_t *staging;
        bool lied; /* in an answer: what the application gets may then be anything */
        bool unacked;
} d;

/* blocks: 16 a slab, one a slot; the first byte of a key is its number */

static kvt_key block_key(unsigned i)
{
        return (kvt_key){{(uint8_t)(i % (N_SLABS * SLOTS)), 7}};
}

static struct kvt_copy_header *block_header(unsigned i)
{
        return (struct kvt_copy_header *)(void *)(slabs[i / SLOTS % N_SLABS] + i % SLOTS * SLOT_BYTES);
}

static uint8_t block_bytes[N_SLABS * SLOTS][PART_BYTES]; /* what readers get */

static uint8_t block_byte(unsigned i, size_t at)
{
        return block_bytes[i % (N_SLABS * SLOTS)][at];
}

static void block_fill(uint8_t *p, unsigned i)
{
        memcpy(p, block_bytes[i % (N_SLABS * SLOTS)], PART_BYTES);
}

static const kvt_plane block_planes[N_PLANES] = {
        {.dtype = KVT_DTYPE_F16, .heads = 1, .dim = ROW_BYTES / 2},
        {.role = KVT_ROLE_V, .dtype = KVT_DTYPE_OPAQUE, .heads = 1, .opaque_bytes = ROW_BYTES, .window_tokens = 8}};
static struct geometry block_geometry;
static uint8_t slabs_as_stored[N_SLABS][SLAB_BYTES];

/* Makes a header of planes agree with them, whatever those say, as far as the slot has room. */
static void block_seal(struct kvt_copy_header *h)
{
        struct kvt_copy_plane *planes = kvt_copy_planes(h);
        uint64_t at, n = 0;

        for (uint32_t p = 0; p <= N_PLANES; p++)
                n += planes[p].bytes;
        h->payload_bytes = (uint32_t)n;
        at = kvt_payload_offset(KVT_COPY_PLANES, N_PLANES, n);
        for (uint32_t p = 0; p <= N_PLANES && at + planes[p].bytes <= SLOT_BYTES; at += planes[p++].bytes)
                planes[p].hash = hash_bytes((uint8_t *)h + at, planes[p].bytes, kvt_plane_seed(&planes[p], p));
}

/* Each fourth block is coded without loss, each fourth is lossy. */
static void block_store(unsigned i)
{
        static uint8_t coded[N_PLANES][1 << 16];
        static _Alignas(64) uint8_t scratch[1 << 20];
        static const char *const texts[] = {"raw", "raw", "zbf", "kivi:bits=4,group=16"};
        struct kvt_copy_header *h = block_header(i);
        uint8_t *bytes = block_bytes[i], *payload;
        struct plane_request q = {.max_rel_l2 = i % 4 == 3 ? 0.5f : 0};
        struct kvt_copy_plane planes[N_PLANES + 1] = {0};
        struct codec_spec spec;
        static struct copy look;
        const char *why;

        FUZZ_CHECK(codec_spec_parse(texts[i % 4], strlen(texts[i % 4]), &spec, &why) == 0);
        q.spec = &spec;
        for (size_t at = 0; at < PART_BYTES; at++) /* as floats: between 1 and 2 */
                bytes[at] = at & 1 ? 0x3c : (uint8_t)(i * 31 + at * 7 + (at >> 8));
        for (uint32_t p = 0; p < N_PLANES; p++) {
                struct shape shape = shape_of(&block_geometry, p);

                FUZZ_CHECK(plane_bound(&shape, &spec) <= sizeof(coded[p]) && plane_encode_scratch(&shape, &spec) <= sizeof(scratch));
                plane_encode(&shape, &q, bytes + p * PLANE_BYTES, coded[p], scratch, &planes[p]);
                FUZZ_CHECK(!plane_decode(&shape, &planes[p], coded[p], NULL, bytes + p * PLANE_BYTES, scratch));
        }
        FUZZ_CHECK(i % 4 < 2 || planes[0].codec == spec.codec->id);
        payload = copy_open(&block_geometry, h, copy_is_raw(&block_geometry, planes), planes[0].bytes + planes[1].bytes);
        memcpy(payload, coded[0], planes[0].bytes);
        memcpy(payload + planes[0].bytes, coded[1], planes[1].bytes);
        copy_seal(&block_geometry, h, planes);
        if (h->layout == KVT_COPY_PLANES)
                block_seal(h); /* the hints' hash, too */
        h->generation = GENERATION + i;
        FUZZ_CHECK(!copy_look(&block_geometry, q.max_rel_l2, h, SLOT_BYTES, &look) && look.raw == (i % 4 < 2));
}

/* All blocks, as at the start. */
static void blocks_store(void)
{
        for (int i = 0; i < N_SLABS; i++)
                memcpy(slabs[i], slabs_as_stored[i], SLAB_BYTES);
}

/* A header that says what is not so; mostly it agrees with itself. */
static void block_lie(void)
{
        static const float errors[] = {0, 0.1f, 0.5f, 1, -0.1f, 1e-30f};
        struct kvt_copy_header *h = block_header(input_u8(&in) % (N_SLABS * SLOTS));
        uint8_t how = input_u8(&in), field = input_u8(&in);
        struct kvt_copy_plane *planes = kvt_copy_planes(h), *c = &planes[how >> 4 & 3 & (how >> 6 ? 1 : 3)];
        uint8_t *payload =
                (uint8_t *)h + kvt_payload_offset(KVT_COPY_PLANES, N_PLANES, PART_BYTES); /* wherever: it is bytes of some plane */
        bool seal = (how & 3) != 3 && h->layout == KVT_COPY_PLANES;

        d.lied = true;
        if (c > &planes[N_PLANES])
                c = &planes[0];
        if (h->layout == KVT_COPY_RAW && field % 9 < 6) { /* it has no planes: it becomes one that has, or says another length */
                if (field & 64)
                        h->payload_bytes = (uint32_t)input_number(&in, field & 16 ? 4 : 2);
                else
                        h->layout = KVT_COPY_PLANES;
        }
        switch (field % 9) {
        case 0:
                c->codec = input_u8(&in) % (CODEC_N_IDS + 1);
                break;
        case 1:
                c->bytes = (uint32_t)input_number(&in, field & 16 ? 4 : 2) & (field & 32 ? ~0u : 0x7ff);
                break;
        case 2:
                c->bytes += input_u8(&in) - 128u;
                break;
        case 3:
                c->rel_l2 = errors[input_u8(&in) % 6];
                c->max_abs = errors[input_u8(&in) % 6];
                break;
        case 4: { /* any float */
                uint32_t x = (uint32_t)input_number(&in, 4);
                memcpy(&c->rel_l2, &x, sizeof(x));
                break;
        }
        case 5:
                c->flags = field & 128 ? input_u8(&in) : c->flags ^ PLANE_EXACT_ROWS;
                break;
        case 6:
                if (field & 64)
                        h->layout = input_u8(&in) % 4;
                else
                        h->payload_bytes = (uint32_t)input_number(&in, field & 16 ? 4 : 2);
                seal = false;
                break;
        case 7: /* the payload */
                for (uint8_t i = input_u8(&in) % 8 + 1; i; i--) {
                        size_t at = input_number(&in, 2) % 2048;
                        payload[at < 1024 ? at & 63 : at] = input_u8(&in); /* heads of payloads, mostly */
                }
                break;
        case 8: /* one codec's payload under another's name, as long as that one's may be */
                c->codec = input_u8(&in) % CODEC_N_IDS;
                c->flags = 0;
                c->bytes = c->codec == CODEC_RAW ? PLANE_BYTES : input_number(&in, 2) % (PLANE_BYTES - 1) + 1;
                c->rel_l2 = c->max_abs = codec_find(c->codec) && codec_find(c->codec)->flags & CODEC_LOSSLESS ? 0 : 0.125f;
                break;
        }
        if (seal)
                block_seal(h);
}
