/* Looking into mappings: kvt_mapped_plane(), kvt_decode(), kvt_decode_rows(), kvt_verify(). See decode.h. */
#include <stdlib.h>
#include <string.h>

#include "libclient/codec/hash.h"
#include "libclient/decode.h"

int mapped_copy(const kvt_space *s, const kvt_mapping *m, struct copy *ret)
{
        const struct slab_map *slab = mapping_slab(m);
        const uint8_t *at = (const uint8_t *)mapping_header(m);
        int r = copy_look(&s->geometry, s->max_rel_l2, at, (uint64_t)(slab->base + slab->bytes - at), ret);

        return !mapping_intact(m) ? KVT_E_LEASE_LOST : r || ret->payload != m->data ? KVT_E_CORRUPT : 0;
}

void *scratch_grow(void **p, size_t *n_p, size_t n)
{
        n = ((n ? n : 1) + 63) & ~(size_t)63;
        if (n > *n_p) {
                free(*p);
                *p = aligned_alloc(64, n);
                *n_p = *p ? n : 0;
        }
        return *p;
}

/* The planes, and where the payload of i_plane lies. */
static int look(kvt_space *s, const kvt_mapping *m, size_t i_plane, struct copy *ret, const uint8_t **ret_data)
{
        int r = s ? conn_check(s->c) : KVT_E_BAD_REQUEST;

        if (r)
                return r;
        if (!m || !m->data || i_plane >= s->geometry.n_planes)
                return KVT_E_BAD_REQUEST;
        r = mapped_copy(s, m, ret);
        if (!r)
                *ret_data = ret->payload + part_offset(ret->planes, (uint32_t)i_plane);
        return r;
}

int kvt_mapped_plane(kvt_space *s, const kvt_mapping *m, size_t i_plane, kvt_plane_copy *ret)
{
        struct copy p;
        const uint8_t *data;
        int r = ret ? look(s, m, i_plane, &p, &data) : KVT_E_BAD_REQUEST;

        if (!r)
                *ret = (kvt_plane_copy){.codec = codec_find(p.planes[i_plane].codec)->name,
                                        .data = data,
                                        .bytes = p.planes[i_plane].bytes,
                                        .rel_l2 = p.planes[i_plane].rel_l2,
                                        .max_abs = p.planes[i_plane].max_abs,
                                        .codec_id = p.planes[i_plane].codec};
        return r;
}

int kvt_decode(kvt_space *s, const kvt_mapping *m, size_t i_plane, void *dst)
{
        struct copy p;
        const uint8_t *data;
        int r = dst ? look(s, m, i_plane, &p, &data) : KVT_E_BAD_REQUEST;

        if (r)
                return r;
        const struct kvt_copy_plane *c = &p.planes[i_plane];
        struct shape shape = shape_of(&s->geometry, i_plane);
        size_t n_scratch = 0;
        void *scratch = NULL;
        bool same = hash_bytes(data, c->bytes, kvt_plane_seed(c, (uint32_t)i_plane)) == c->hash;

        if (same && !scratch_grow(&scratch, &n_scratch, plane_decode_scratch(&shape, c)))
                return KVT_E_NO_MEMORY;
        r = same ? plane_decode(&shape, c, data, NULL, dst, scratch) : KVT_E_CORRUPT;
        free(scratch);
        return mapping_intact(m) ? r : KVT_E_LEASE_LOST;
}

int kvt_decode_rows(kvt_space *s, const kvt_mapping *m, size_t i_plane, uint32_t head, const uint32_t *tokens, size_t n, void *dst)
{
        struct copy p;
        const uint8_t *data;
        int r = dst && tokens ? look(s, m, i_plane, &p, &data) : KVT_E_BAD_REQUEST;

        if (r)
                return r;
        struct shape shape = shape_of(&s->geometry, i_plane);
        size_t n_scratch = 0;
        void *scratch = NULL;

        if (head >= shape.heads)
                return KVT_E_BAD_REQUEST;
        for (size_t i = 0; i < n; i++)
                if (tokens[i] >= shape.tokens)
                        return KVT_E_BAD_REQUEST;
        if (!scratch_grow(&scratch, &n_scratch, plane_decode_scratch(&shape, &p.planes[i_plane])))
                return KVT_E_NO_MEMORY;
        r = plane_decode_rows(&shape, &p.planes[i_plane], data, head, tokens, n, dst, scratch);
        free(scratch);
        return mapping_intact(m) ? r : KVT_E_LEASE_LOST;
}

int kvt_verify(kvt_space *s, const kvt_mapping *m)
{
        struct copy p;
        const uint8_t *data;
        bool same = true;
        int r = look(s, m, 0, &p, &data);

        for (uint32_t i = 0; !r && i <= s->geometry.n_planes && same; data += p.planes[i++].bytes)
                same = hash_bytes(data, p.planes[i].bytes, kvt_plane_seed(&p.planes[i], i)) == p.planes[i].hash;
        if (r)
                return r;
        if (!mapping_intact(m))
                return KVT_E_LEASE_LOST;
        return same ? 0 : KVT_E_CORRUPT;
}
