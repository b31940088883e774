/* See work.h. Nothing that is read is believed: memory may be damaged, records may be, and a client may scribble on its staging meanwhile. A hash is checked
 * before what it is of is decoded or written elsewhere, or damage would get a good checksum. */
#include <string.h>

#include "daemon/engine/work.h"
#include "daemon/util/metrics.h"
#include "libclient/codec/hash.h"
#include "libclient/codec/part.h"

/* a copy, wherever it lies */
struct copy {
        const struct kvt_copy_plane *planes;
        const uint8_t *payload;
        uint64_t bytes;
};

struct coded *coded_free(struct coded *c)
{
        free(c);
        return NULL;
}

static void *scratch_new(size_t n)
{
        return aligned_alloc(64, align_up(MAX(n, 64u), 64));
}

static bool header_ok(const struct space *s, const struct kvt_copy_header *h, uint64_t slot_bytes)
{
        const struct geometry *g = &s->geometry;

        return h->layout == KVT_COPY_LAYOUT && !h->zero && h->n_planes == g->n_planes + 1 && h->payload_bytes <= slot_bytes &&
               h->payload_at == kvt_payload_offset(h->n_planes, h->payload_bytes) && h->payload_at <= slot_bytes - h->payload_bytes &&
               part_check(g, h->planes, h->n_planes, h->payload_bytes, s->max_rel_l2) && h->max_rel_l2 == part_max_rel_l2(g, h->planes);
}

/* The copy in the transfer's slot. */
static int slot_copy(const struct xfer *x, struct location at, const struct slab *slab, struct copy *ret)
{
        const struct kvt_copy_header *h = slab_header(slab, at.slot);

        if (!header_ok(x->space, h, slab->slot_bytes))
                return KVT_E_CORRUPT;
        *ret = (struct copy){h->planes, (const uint8_t *)h + h->payload_at, h->payload_bytes};
        return 0;
}

/* Makes the slot one that is being written, for so much payload: NULL: no memory. */
static struct kvt_copy_header *slot_open(struct slab *slab, uint32_t slot, const struct space *s, uint64_t payload_bytes)
{
        struct kvt_copy_header *h = slab_header(slab, slot);
        uint32_t n_planes = s->geometry.n_planes + 1, at = kvt_payload_offset(n_planes, payload_bytes);

        ASSERT(at + payload_bytes <= slab->slot_bytes);
        if (slab_populate(slab, (uint64_t)slot * slab->slot_bytes, at + payload_bytes) < 0)
                return NULL;
        __atomic_store_n(&h->generation, 0, __ATOMIC_RELAXED);
        __atomic_thread_fence(__ATOMIC_RELEASE);
        h->payload_bytes = (uint32_t)payload_bytes;
        h->n_planes = (uint16_t)n_planes;
        h->zero = 0;
        h->layout = KVT_COPY_LAYOUT;
        h->payload_at = at;
        return h;
}

/* Copies all payloads, the hints too, and checks their hashes. */
static int move_payload(const struct geometry *g, const struct copy *from, struct kvt_copy_plane *planes, uint8_t *to)
{
        const uint8_t *src = from->payload;

        for (uint32_t i = 0; i <= g->n_planes; i++) {
                uint32_t n = from->planes[i].bytes;
                if (hash_copy(to, src, n, i) != from->planes[i].hash)
                        return KVT_E_CORRUPT;
                src += n;
                to += n;
        }
        memcpy(planes, from->planes, (g->n_planes + 1) * sizeof *planes);
        return 0;
}

/* staging -> slot, hashing what lies in the slot. The client may scribble meanwhile: it then stored what it wrote, and no more. */
static int work_put(struct xfer *x)
{
        const struct geometry *g = &x->space->geometry;
        const uint8_t *from = x->staging->base + x->offset;
        struct kvt_copy_header *h = slot_open(x->slab, x->slot, x->space, g->part_bytes + x->hint_bytes);
        struct hints hints;

        if (!h)
                return KVT_E_NO_MEMORY;
        uint8_t *to = (uint8_t *)h + h->payload_at, *hints_at = to + g->part_bytes;
        for (uint32_t i = 0; i < g->n_planes; i++) {
                uint32_t n = part_raw_bytes(g, i);
                h->planes[i] = (struct kvt_copy_plane){.hash = hash_copy(to + g->offsets[i], from + g->offsets[i], n, i), .bytes = n};
        }
        memcpy(hints_at, from + g->part_bytes, x->hint_bytes);
        h->planes[g->n_planes] = (struct kvt_copy_plane){.hash = hash_bytes(hints_at, x->hint_bytes, g->n_planes), .bytes = x->hint_bytes};
        h->max_rel_l2 = 0;
        return hints_decode(g, hints_at, x->hint_bytes, &hints);
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
                        hash = hash_copy(to, payload, n, i);
                } else {
                        struct shape p = shape_of(g, i);
                        if (!scratch && !(scratch = scratch_new(part_decode_scratch(g, planes))))
                                return KVT_E_NO_MEMORY;
                        hash = hash_bytes(payload, planes[i].bytes, i);
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
        int r = slot_copy(x, x->at, x->slab, &c);

        return r != 0 ? r : planes_to_staging(x, c.planes, c.payload + part_offset(c.planes, x->first_plane));
}

static int work_verify(struct xfer *x)
{
        struct copy c;
        int r = slot_copy(x, x->at, x->slab, &c);

        for (uint32_t i = 0; r == 0 && i <= x->space->geometry.n_planes; c.payload += c.planes[i++].bytes)
                if (hash_bytes(c.payload, c.planes[i].bytes, i) != c.planes[i].hash)
                        r = KVT_E_CORRUPT;
        return r;
}

bool work_would_change(const struct space *s, const struct kvt_copy_header *h, uint64_t slot_bytes, const struct codec_pair *to)
{
        return header_ok(s, h, slot_bytes) && part_needs_work(&s->geometry, to, h->planes);
}

/* slot -> x->coded, under x->to. */
static int work_code(struct xfer *x)
{
        const struct geometry *g = &x->space->geometry;
        size_t n_planes = align_up((g->n_planes + 1) * sizeof(struct kvt_copy_plane), 64);
        struct copy c;
        int r = slot_copy(x, x->at, x->slab, &c);

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
        r = part_recode(g, &x->to, x->space->max_rel_l2, c.planes, c.payload, made->payload, scratch, made->planes, &made->bytes);
        if (r != 0) {
                free(made);
                return r;
        }
        x->coded = made;
        return 0;
}

/* x->coded -> slot */
static int work_place(struct xfer *x)
{
        struct copy from = {x->coded->planes, x->coded->payload, x->coded->bytes};
        struct kvt_copy_header *h = slot_open(x->to_slab, x->to_at.slot, x->space, from.bytes);

        if (!h)
                return KVT_E_NO_MEMORY;
        h->max_rel_l2 = part_max_rel_l2(&x->space->geometry, from.planes);
        return move_payload(&x->space->geometry, &from, h->planes, (uint8_t *)h + h->payload_at);
}

/* slot, or x->coded -> record */
static int work_write(struct xfer *x)
{
        struct record_header *to = x->write.header;
        uint8_t *payload = record_payload(to);
        struct copy c = {};
        int r = 0;

        if (x->coded)
                c = (struct copy){x->coded->planes, x->coded->payload, x->coded->bytes};
        else
                r = slot_copy(x, x->at, x->slab, &c);
        if (r != 0 || c.bytes != to->stored_bytes)
                return KVT_E_CORRUPT;
        r = move_payload(&x->space->geometry, &c, record_planes(to), payload);
        if (r != 0)
                return r;
        if (to->codec != c.planes[0].codec || to->max_rel_l2 != part_max_rel_l2(&x->space->geometry, c.planes))
                return KVT_E_CORRUPT; /* it changed since it was looked at */
        memset(payload + c.bytes, 0, (uint64_t)(to->n_pages - to->header_pages) * FORMAT_PAGE_BYTES - c.bytes);
        for (uint32_t i = 0; i < to->n_page_hashes; i++)
                record_page_hashes(to)[i] = record_page_hash(payload + (uint64_t)i * FORMAT_PAGE_BYTES, i);
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
        struct copy c = {record_planes(from), x->read.payload, from->stored_bytes};
        _cleanup_(freep) void *scratch = NULL;
        uint64_t bytes = x->decodes ? x->space->geometry.part_bytes + c.planes[g->n_planes].bytes : c.bytes;

        if (!work_record_fits(from, x))
                return KVT_E_CORRUPT;
        struct kvt_copy_header *h = slot_open(x->slab, x->slot, x->space, bytes);
        if (!h || (x->decodes && !(scratch = scratch_new(part_recode_scratch(g, &to, c.planes)))))
                return KVT_E_NO_MEMORY;
        h->max_rel_l2 = part_max_rel_l2(g, c.planes);
        if (!x->decodes)
                return move_payload(g, &c, h->planes, (uint8_t *)h + h->payload_at);
        int r = part_recode(g, &to, 0, c.planes, c.payload, (uint8_t *)h + h->payload_at, scratch, h->planes, &bytes);
        return r == 0 && bytes != h->payload_bytes ? KVT_E_CORRUPT : r;
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
                        x->result = x->coded ? work_place(x) : work_code(x);
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
