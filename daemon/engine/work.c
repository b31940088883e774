/* See work.h. Nothing that is read is believed: memory may be damaged, records may be, and a client may scribble on its staging meanwhile. A hash is checked
 * before what it is of is decoded or written elsewhere, or damage would get a good checksum. */
#include <string.h>

#include "daemon/engine/work.h"
#include "daemon/util/metrics.h"
#include "libclient/codec/hash.h"

struct coded *coded_free(struct coded *c)
{
        free(c);
        return NULL;
}

static void *scratch_new(size_t n)
{
        return aligned_alloc(64, align_up(MAX(n, 64u), 64));
}

int work_look(const struct space *s, const struct slab *slab, uint32_t slot, struct copy *ret)
{
        return copy_look(&s->geometry, s->max_rel_l2, slab_slot_address(slab, slot), slab->slot_bytes, ret);
}

/* Makes the slot one that is being written. NULL: no memory. */
static uint8_t *slot_open(struct slab *slab, uint32_t slot, const struct geometry *g, bool raw, uint64_t payload_bytes)
{
        uint64_t bytes = copy_bytes(g, raw, payload_bytes);

        ASSERT(bytes <= slab->slot_bytes);
        if (slab_populate(slab, (uint64_t)slot * slab->slot_bytes, bytes) < 0)
                return NULL;
        return copy_open(g, slab_slot_address(slab, slot), raw, payload_bytes);
}

/* Copies all payloads, the hints too, and checks their hashes. */
static int move_payload(const struct geometry *g, const struct kvt_copy_plane *planes, const uint8_t *from, uint8_t *to)
{
        for (uint32_t i = 0; i <= g->n_planes; i++) {
                uint32_t n = planes[i].bytes;
                if (hash_copy(to, from, n, kvt_plane_seed(&planes[i], i)) != planes[i].hash)
                        return KVT_E_CORRUPT;
                from += n;
                to += n;
        }
        return 0;
}

/* A whole copy -> slot, as it is. */
static int move_to_slot(struct slab *slab, uint32_t slot, const struct geometry *g, const struct kvt_copy_plane *planes,
                        const uint8_t *payload, uint64_t payload_bytes)
{
        uint8_t *to = slot_open(slab, slot, g, copy_is_raw(g, planes), payload_bytes);

        if (!to)
                return KVT_E_NO_MEMORY;
        copy_seal(g, slab_slot_address(slab, slot), planes);
        return move_payload(g, planes, payload, to);
}

/* staging -> slot, hashing what lies in the slot. The client may scribble meanwhile: it then stored what it wrote, and no more. */
static int work_put(struct xfer *x)
{
        const struct geometry *g = &x->space->geometry;
        const uint8_t *from = x->staging->base + x->offset;
        struct kvt_copy_plane planes[KVT_PLANES_MAX + 1];
        uint8_t *to = slot_open(x->slab, x->slot, g, !x->hint_bytes, g->part_bytes + x->hint_bytes);
        struct hints hints;

        if (!to)
                return KVT_E_NO_MEMORY;
        for (uint32_t i = 0; i < g->n_planes; i++) {
                uint32_t n = part_raw_bytes(g, i);
                planes[i] = (struct kvt_copy_plane){.hash = hash_copy(to + g->offsets[i], from + g->offsets[i], n, i), .bytes = n};
        }
        to += g->part_bytes;
        memcpy(to, from + g->part_bytes, x->hint_bytes);
        planes[g->n_planes] = (struct kvt_copy_plane){.hash = hash_bytes(to, x->hint_bytes, g->n_planes), .bytes = x->hint_bytes};
        copy_seal(g, slab_slot_address(x->slab, x->slot), planes);
        return hints_decode(g, to, x->hint_bytes, &hints);
}

/* Some planes of a copy -> staging, as they were put. payload starts with the first of them. */
static int planes_to_staging(struct xfer *x, const struct kvt_copy_plane *planes, const uint8_t *payload)
{
        const struct geometry *g = &x->space->geometry;
        uint8_t *to = x->staging->base + x->offset;
        _cleanup_(freep) void *scratch = NULL;
        uint64_t hash;

        for (uint32_t i = x->first_plane; i < x->end_plane; i++, payload += planes[i - 1].bytes) {
                uint32_t n = part_raw_bytes(g, i);
                if (planes[i].codec == CODEC_RAW) {
                        hash = hash_copy(to, payload, n, kvt_plane_seed(&planes[i], i));
                } else {
                        struct shape p = shape_of(g, i);
                        if (!scratch && !(scratch = scratch_new(part_decode_scratch(g, planes))))
                                return KVT_E_NO_MEMORY;
                        hash = hash_bytes(payload, planes[i].bytes, kvt_plane_seed(&planes[i], i));
                        if (hash == planes[i].hash && plane_decode(&p, &planes[i], payload, NULL, to, scratch) != 0)
                                return KVT_E_CORRUPT;
                }
                if (hash != planes[i].hash)
                        return KVT_E_CORRUPT;
                to += n;
        }
        return 0;
}

/* slot -> staging. A client that scribbles on its staging meanwhile spoils its own answer only. */
static int work_get(struct xfer *x)
{
        struct copy c;
        int r = work_look(x->space, x->slab, x->slot, &c);

        return r != 0 ? r : planes_to_staging(x, c.planes, c.payload + part_offset(c.planes, x->first_plane));
}

static int work_verify(struct xfer *x)
{
        struct copy c;
        int r = work_look(x->space, x->slab, x->slot, &c);

        for (uint32_t i = 0; r == 0 && i <= x->space->geometry.n_planes; c.payload += c.planes[i++].bytes)
                if (hash_bytes(c.payload, c.planes[i].bytes, kvt_plane_seed(&c.planes[i], i)) != c.planes[i].hash)
                        r = KVT_E_CORRUPT;
        return r;
}

/* slot -> x->coded, under x->to. */
static int work_code(struct xfer *x)
{
        const struct geometry *g = &x->space->geometry;
        size_t n_planes = align_up((g->n_planes + 1) * sizeof(struct kvt_copy_plane), 64);
        struct copy c;
        int r = work_look(x->space, x->slab, x->slot, &c);

        if (r != 0)
                return r;
        uint64_t bound = part_recode_bound(g, &x->to, c.planes);
        struct coded *made = aligned_alloc(64, align_up(64 + n_planes + bound, 64));
        _cleanup_(freep) void *scratch = scratch_new(part_recode_scratch(g, &x->to, c.planes));
        if (!made || !scratch) {
                free(made);
                return KVT_E_NO_MEMORY;
        }
        *made = (struct coded){.planes = (void *)((uint8_t *)made + 64), .payload = (uint8_t *)made + 64 + n_planes};
        r = part_recode(g, &x->to, x->space->max_rel_l2, c.planes, c.payload, x->n_exact, made->payload, scratch, made->planes,
                        &made->bytes, &made->counts);
        if (r != 0) {
                free(made);
                return r;
        }
        x->coded = made;
        return 0;
}

/* slot, or x->coded -> record */
static int work_write(struct xfer *x)
{
        const struct geometry *g = &x->space->geometry;
        struct record_header *to = x->write.header;
        uint8_t *to_payload = record_payload(to);
        const struct kvt_copy_plane *planes;
        const uint8_t *payload;
        uint64_t bytes;
        struct copy c;

        if (x->coded) {
                planes = x->coded->planes;
                payload = x->coded->payload;
                bytes = x->coded->bytes;
        } else {
                if (work_look(x->space, x->slab, x->slot, &c) != 0)
                        return KVT_E_CORRUPT;
                planes = c.planes;
                payload = c.payload;
                bytes = c.bytes;
        }
        if (bytes != to->stored_bytes || to->codec != planes[0].codec || to->max_rel_l2 != part_max_rel_l2(g, planes))
                return KVT_E_CORRUPT; /* it changed since room was made for it */
        int r = move_payload(g, planes, payload, to_payload);
        if (r != 0)
                return r;
        memcpy(record_planes(to), planes, (g->n_planes + 1) * sizeof *planes);
        memset(to_payload + bytes, 0, (uint64_t)(to->n_pages - to->header_pages) * FORMAT_PAGE_BYTES - bytes);
        for (uint32_t i = 0; i < to->n_page_hashes; i++)
                record_page_hashes(to)[i] = record_page_hash(to_payload + (uint64_t)i * FORMAT_PAGE_BYTES, i);
        return 0;
}

bool work_record_fits(const struct record_header *h, const struct xfer *x)
{
        const struct geometry *g = &x->space->geometry;

        return h->raw_bytes == g->part_bytes && h->shard == x->shard && !memcmp(h->key, x->key, 16) &&
               !memcmp(h->space, x->space->digest, 16) &&
               part_check(g, record_planes((struct record_header *)h), h->n_planes, h->stored_bytes, x->space->max_rel_l2);
}

/* record -> slot, decoded if x->decodes. */
static int work_load(struct xfer *x)
{
        static const struct codec_pair to = {.k = {.codec = &codec_raw}, .v = {.codec = &codec_raw}};
        const struct geometry *g = &x->space->geometry;
        struct record_header *from = x->read.header;
        const struct kvt_copy_plane *planes = record_planes(from);
        struct kvt_copy_plane made[KVT_PLANES_MAX + 1];
        uint64_t hint_bytes, bytes;
        struct recode_counts counts;

        if (!work_record_fits(from, x))
                return KVT_E_CORRUPT;
        hint_bytes = planes[g->n_planes].bytes;
        if (!x->decodes)
                return move_to_slot(x->slab, x->slot, g, planes, x->read.payload, from->stored_bytes);
        _cleanup_(freep) void *scratch = scratch_new(part_recode_scratch(g, &to, planes));
        uint8_t *payload = scratch ? slot_open(x->slab, x->slot, g, !hint_bytes, g->part_bytes + hint_bytes) : NULL;
        if (!payload)
                return KVT_E_NO_MEMORY;
        int r = part_recode(g, &to, 0, planes, x->read.payload, 0, payload, scratch, made, &bytes, &counts);
        if (r == 0)
                copy_seal(g, slab_slot_address(x->slab, x->slot), made);
        return r;
}

/* Some planes of a record -> staging. */
static int work_fetch(struct xfer *x)
{
        const struct record_header *h = x->read.header;
        const struct kvt_copy_plane *planes = record_planes((struct record_header *)h);

        if (!work_record_fits(h, x))
                return KVT_E_CORRUPT;
        uint64_t first = part_offset(planes, x->first_plane), end = part_offset(planes, x->end_plane);
        ASSERT(first >= x->read.first_byte && end - x->read.first_byte <= x->read.n_bytes); /* the loop has seen to it */
        return planes_to_staging(x, planes, x->read.payload + (first - x->read.first_byte));
}

void work_do(struct job *j)
{
        struct xfer *x = container_of(j, struct xfer, job);

        ASSERT(x->owner == XFER_WORKER && x->state == XFER_QUEUED);
        x->state = XFER_CODING;
        if (__atomic_load_n(&x->cancelled, __ATOMIC_RELAXED))
                x->result = KVT_E_CANCELLED;
        else
                switch (x->kind) {
                case XFER_PUT:
                        x->result = work_put(x);
                        break;
                case XFER_GET:
                        x->result = work_get(x);
                        break;
                case XFER_VERIFY:
                        x->result = work_verify(x);
                        break;
                case XFER_RECODE:
                        x->result = x->coded ? move_to_slot(x->to_slab, x->to_at.slot, &x->space->geometry, x->coded->planes,
                                                            x->coded->payload, x->coded->bytes)
                                             : work_code(x);
                        break;
                case XFER_DEMOTE:
                        x->result = x->codes && !x->coded ? work_code(x) : work_write(x);
                        break;
                case XFER_LOAD:
                        x->result = work_load(x);
                        break;
                case XFER_FETCH:
                        x->result = work_fetch(x);
                        break;
                }
        x->state = x->result ? XFER_FAILED : XFER_COMMITTED;
}
