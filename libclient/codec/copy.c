/* See copy.h. */
#include <assert.h>
#include <string.h>

#include "libclient/codec/copy.h"
#include "libclient/codec/hash.h"

bool copy_is_raw(const struct geometry *g, const struct kvt_copy_plane *planes)
{
        return !planes[g->n_planes].bytes && part_is_raw(g, planes);
}

uint64_t copy_bytes(const struct geometry *g, bool raw, uint64_t payload_bytes)
{
        return kvt_payload_offset(raw ? KVT_COPY_RAW : KVT_COPY_PLANES, g->n_planes, payload_bytes) + payload_bytes;
}

int copy_look(const struct geometry *g, float max_rel_l2, const void *slot, uint64_t n, struct copy *ret)
{
        struct kvt_copy_header h;
        const struct kvt_copy_header *at = slot;

        if (n < sizeof(h))
                return KVT_E_CORRUPT;
        memcpy(&h, slot, sizeof(h));
        if ((h.layout != KVT_COPY_RAW && h.layout != KVT_COPY_PLANES) || h.zero || h.n_planes != g->n_planes ||
            copy_bytes(g, h.layout == KVT_COPY_RAW, h.payload_bytes) > n)
                return KVT_E_CORRUPT;
        ret->payload = (const uint8_t *)slot + kvt_payload_offset(h.layout, g->n_planes, h.payload_bytes);
        ret->bytes = h.payload_bytes;
        ret->raw = h.layout == KVT_COPY_RAW;
        if (ret->raw) {
                if (h.payload_bytes != g->part_bytes)
                        return KVT_E_CORRUPT;
                for (uint32_t i = 0; i < g->n_planes; i++)
                        ret->planes[i] = (struct kvt_copy_plane){.hash = kvt_copy_hashes((void *)at)[i], .bytes = part_raw_bytes(g, i)};
                ret->planes[g->n_planes] = (struct kvt_copy_plane){.hash = hash_bytes(slot, 0, g->n_planes)};
                return 0;
        }
        memcpy(ret->planes, kvt_copy_planes((void *)at), (g->n_planes + 1) * sizeof(*ret->planes));
        return part_check(g, ret->planes, g->n_planes + 1, h.payload_bytes, max_rel_l2) && !copy_is_raw(g, ret->planes) ? 0 : KVT_E_CORRUPT;
}

uint8_t *copy_open(const struct geometry *g, void *slot, bool raw, uint64_t payload_bytes)
{
        struct kvt_copy_header *h = slot;

        __atomic_store_n(&h->generation, 0, __ATOMIC_RELAXED);
        __atomic_thread_fence(__ATOMIC_RELEASE); /* whoever sees a byte of what follows sees that the copy before is gone */
        h->payload_bytes = (uint32_t)payload_bytes;
        h->n_planes = (uint16_t)g->n_planes;
        h->zero = 0;
        h->layout = raw ? KVT_COPY_RAW : KVT_COPY_PLANES;
        return (uint8_t *)slot + kvt_payload_offset(h->layout, g->n_planes, payload_bytes);
}

void copy_seal(const struct geometry *g, void *slot, const struct kvt_copy_plane *planes)
{
        struct kvt_copy_header *h = slot;

        assert((h->layout == KVT_COPY_RAW) == copy_is_raw(g, planes));
        if (h->layout == KVT_COPY_PLANES)
                memcpy(kvt_copy_planes(h), planes, (g->n_planes + 1) * sizeof(*planes));
        else
                for (uint32_t i = 0; i < g->n_planes; i++)
                        kvt_copy_hashes(h)[i] = planes[i].hash;
}
