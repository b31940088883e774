/* See part.h. */
#include <math.h>
#include <string.h>

#include "libclient/codec/hash.h"
#include "libclient/codec/part.h"

/* hints */

static size_t map_bytes(const struct geometry *g)
{
        return (g->block_tokens + 7u) / 8;
}

size_t hints_encode(const struct geometry *g, const uint8_t *protect, const float *scores, size_t first, uint8_t *dst)
{
        size_t n_map = map_bytes(g), n = 1;
        if (protect) {
                memset(dst + n, 0, n_map);
                for (size_t t = 0; t < g->block_tokens; t++) {
                        unsigned bit = protect[(first + t) / 8] >> (first + t) % 8 & 1;

                        dst[n + t / 8] |= (uint8_t)(bit << t % 8);
                }
                n += n_map;
        }
        dst[0] = (uint8_t)((protect ? HINT_PROTECT : 0) | (scores ? HINT_SCORES : 0));
        for (size_t t = 0; scores && t < g->block_tokens; t++) {
                float x = scores[first + t] > 0 ? scores[first + t] : 0;
                uint32_t bits;

                memcpy(&bits, &x, sizeof(bits));
                bits = bits >= 0x7f800000 ? 0x7f7f : bits >> 16; /* infinite: as much as there is */
                dst[n++] = (uint8_t)bits;
                dst[n++] = (uint8_t)(bits >> 8);
        }
        return dst[0] ? n : 0;
}

int hints_decode(const struct geometry *g, const uint8_t *p, size_t n, struct hints *ret)
{
        size_t n_map = map_bytes(g), at = 1;
        struct hints h = {0};

        if (!n) {
                *ret = h;
                return 0;
        }
        if (!p[0] || p[0] & ~(HINT_PROTECT | HINT_SCORES))
                return KVT_E_BAD_REQUEST;
        if (p[0] & HINT_PROTECT) {
                if (n - at < n_map)
                        return KVT_E_BAD_REQUEST;
                h.protect = p + at;
                at += n_map;
                if (g->block_tokens % 8 && p[at - 1] >> g->block_tokens % 8)
                        return KVT_E_BAD_REQUEST;
        }
        if (p[0] & HINT_SCORES) {
                if (n - at < 2 * (size_t)g->block_tokens)
                        return KVT_E_BAD_REQUEST;
                h.scores = p + at;
                at += 2 * (size_t)g->block_tokens;
                for (const uint8_t *s = h.scores; s < p + at; s += 2)
                        if (s[1] >= 0x80 || (s[1] == 0x7f && s[0] >= 0x80)) /* negative, infinite or no number */
                                return KVT_E_BAD_REQUEST;
        }
        if (at != n)
                return KVT_E_BAD_REQUEST;
        *ret = h;
        return 0;
}

/* looking at copies */

static bool plane_ok(const struct kvt_copy_plane *c, uint32_t raw_bytes, float max_rel_l2)
{
        const struct codec *codec = codec_find(c->codec);

        if (!codec || c->zero || c->flags & ~PLANE_EXACT_ROWS || !(c->rel_l2 >= 0 && c->rel_l2 <= max_rel_l2) ||
            !(c->max_abs >= 0 && isfinite(c->max_abs)))
                return false;
        if (c->codec == CODEC_RAW ? c->bytes != raw_bytes : !c->bytes || c->bytes >= raw_bytes)
                return false;
        return !(codec->flags & CODEC_LOSSLESS) || (c->rel_l2 == 0 && c->max_abs == 0 && !c->flags);
}

bool part_check(const struct geometry *g, const struct kvt_copy_plane *planes, uint32_t n_planes, uint64_t payload_bytes, float max_rel_l2)
{
        const struct kvt_copy_plane *hints = &planes[g->n_planes];
        uint64_t n = 0;

        if (n_planes != g->n_planes + 1)
                return false;
        for (uint32_t i = 0; i < g->n_planes; i++) {
                if (!plane_ok(&planes[i], part_raw_bytes(g, i), max_rel_l2))
                        return false;
                n += planes[i].bytes;
        }
        return hints->codec == CODEC_RAW && hints->bytes <= hints_max(g) && !hints->flags && !hints->zero && hints->rel_l2 == 0 &&
               hints->max_abs == 0 && n + hints->bytes == payload_bytes;
}

bool part_is_raw(const struct geometry *g, const struct kvt_copy_plane *planes)
{
        for (uint32_t i = 0; i < g->n_planes; i++)
                if (planes[i].codec != CODEC_RAW)
                        return false;
        return true;
}

bool part_is_lossless(const struct geometry *g, const struct kvt_copy_plane *planes)
{
        for (uint32_t i = 0; i < g->n_planes; i++)
                if (!(codec_find(planes[i].codec)->flags & CODEC_LOSSLESS))
                        return false;
        return true;
}

uint64_t part_offset(const struct kvt_copy_plane *planes, uint32_t i)
{
        uint64_t n = 0;

        for (uint32_t k = 0; k < i; k++)
                n += planes[k].bytes;
        return n;
}

float part_max_rel_l2(const struct geometry *g, const struct kvt_copy_plane *planes)
{
        float most = 0;

        for (uint32_t i = 0; i < g->n_planes; i++)
                most = planes[i].rel_l2 > most ? planes[i].rel_l2 : most;
        return most;
}

size_t part_decode_scratch(const struct geometry *g, const struct kvt_copy_plane *planes)
{
        size_t most = 0;

        for (uint32_t i = 0; i < g->n_planes; i++) {
                struct shape p = shape_of(g, i);
                size_t n = plane_decode_scratch(&p, &planes[i]);

                most = n > most ? n : most;
        }
        return most;
}

/* recoding */

enum way { KEEP, SHRINK, DECODE, ENCODE };

static enum way way_of(const struct kvt_copy_plane *c, const struct codec_spec *to)
{
        if (!(codec_find(c->codec)->flags & CODEC_LOSSLESS))
                return to->codec->id == c->codec && to->codec->flags & CODEC_TRUNCATES ? SHRINK : KEEP;
        if (c->codec == to->codec->id) /* what a lossless codec made is what it would make */
                return KEEP;
        return to->codec->id == CODEC_RAW ? DECODE : ENCODE;
}

bool part_needs_work(const struct geometry *g, const struct codec_pair *to, float max_rel_l2, const struct kvt_copy_plane *planes,
                     const uint8_t *payload)
{
        for (uint32_t i = 0; i < g->n_planes; payload += planes[i++].bytes) {
                const struct codec_spec *s = codec_pair_for(to, g->planes[i].role);
                enum way way = way_of(&planes[i], s);
                struct shape p = shape_of(g, i);
                struct kvt_copy_plane c = planes[i];

                if (way == SHRINK ? plane_shrinks(&p, s, max_rel_l2, payload, &c) : way != KEEP)
                        return true;
        }
        return false;
}

uint64_t part_recode_bound(const struct geometry *g, const struct codec_pair *to, const struct kvt_copy_plane *planes)
{
        uint64_t beyond = 0;

        /* a plane is at most its raw bytes long when it is done; the one that is being coded may need more for a while */
        for (uint32_t i = 0; i < g->n_planes; i++) {
                struct shape p = shape_of(g, i);
                uint64_t n = plane_bound(&p, codec_pair_for(to, p.role)) - p.n_bytes;

                beyond = n > beyond ? n : beyond;
        }
        return g->part_bytes + planes[g->n_planes].bytes + beyond;
}

static size_t aligned(size_t n)
{
        return (n + 63) & ~(size_t)63;
}

static size_t scores_bytes(const struct geometry *g)
{
        return aligned(g->block_tokens * sizeof(float));
}

size_t part_recode_scratch(const struct geometry *g, const struct codec_pair *to, const struct kvt_copy_plane *planes)
{
        size_t most = 0;

        for (uint32_t i = 0; i < g->n_planes; i++) {
                struct shape p = shape_of(g, i);
                enum way way = way_of(&planes[i], codec_pair_for(to, p.role));
                size_t n = planes[i].codec == CODEC_RAW ? 0 : plane_decode_scratch(&p, &planes[i]);

                if (way == ENCODE) {
                        size_t encode = aligned(p.n_bytes) + plane_encode_scratch(&p, codec_pair_for(to, p.role));

                        n = encode > n ? encode : n;
                        n = planes[i].codec == CODEC_RAW ? n : n + aligned(p.n_bytes);
                }
                most = n > most ? n : most;
        }
        return most + scores_bytes(g) + aligned(map_bytes(g));
}

/* What hints protect, and the first n tokens. */
static const uint8_t *protect_first(const struct geometry *g, const uint8_t *protect, uint32_t n, uint8_t *map)
{
        if (!n)
                return protect;
        if (protect)
                memcpy(map, protect, map_bytes(g));
        else
                memset(map, 0, map_bytes(g));
        for (uint32_t t = 0; t < n && t < g->block_tokens; t++)
                map[t / 8] |= (uint8_t)(1u << t % 8);
        return map;
}

static float *widen_scores(const struct geometry *g, const struct hints *h, float *dst)
{
        if (!h->scores)
                return NULL;
        for (size_t t = 0; t < g->block_tokens; t++) {
                uint32_t bits = (uint32_t)h->scores[2 * t] << 16 | (uint32_t)h->scores[2 * t + 1] << 24;

                memcpy(&dst[t], &bits, sizeof(bits));
        }
        return dst;
}

int part_recode(const struct geometry *g, const struct codec_pair *to, float max_rel_l2, const struct kvt_copy_plane *planes,
                const uint8_t *payload, uint32_t n_exact, uint8_t *dst, void *scratch, struct kvt_copy_plane *ret, uint64_t *ret_bytes,
                struct recode_counts *ret_counts)
{
        const struct kvt_copy_plane *h = &planes[g->n_planes];
        const uint8_t *hint_bytes = payload + part_offset(planes, g->n_planes);
        uint8_t *out = dst, *map = (uint8_t *)scratch + scores_bytes(g), *work = map + aligned(map_bytes(g));
        struct recode_counts counts = {0};
        struct hints hints;

        if (hash_bytes(hint_bytes, h->bytes, kvt_plane_seed(h, g->n_planes)) != h->hash || hints_decode(g, hint_bytes, h->bytes, &hints))
                return KVT_E_CORRUPT;
        const float *scores = widen_scores(g, &hints, scratch);
        const uint8_t *protect = protect_first(g, hints.protect, n_exact, map);
        for (uint32_t i = 0; i < g->n_planes; payload += planes[i].bytes, out += ret[i].bytes, i++) {
                struct shape p = shape_of(g, i);
                const struct codec_spec *s = codec_pair_for(to, p.role);
                struct plane_request q = {.spec = s, .max_rel_l2 = max_rel_l2, .protect = protect, .scores = scores};
                enum way way = way_of(&planes[i], s);

                if (way == KEEP || way == SHRINK) {
                        ret[i] = planes[i];
                        if (hash_copy(out, payload, planes[i].bytes, kvt_plane_seed(&planes[i], i)) != planes[i].hash)
                                return KVT_E_CORRUPT;
                        if (way == SHRINK)
                                counts.n_coded += plane_shrink(&p, s, max_rel_l2, out, &ret[i]);
                        continue;
                }
                if (hash_bytes(payload, planes[i].bytes, kvt_plane_seed(&planes[i], i)) != planes[i].hash)
                        return KVT_E_CORRUPT;
                if (way == DECODE) {
                        if (plane_decode(&p, &planes[i], payload, NULL, out, work))
                                return KVT_E_CORRUPT;
                        ret[i] = (struct kvt_copy_plane){.hash = hash_bytes(out, p.n_bytes, i), .bytes = (uint32_t)p.n_bytes};
                        continue;
                }
                const uint8_t *raw = payload;
                uint8_t *rest = work;
                if (planes[i].codec != CODEC_RAW) {
                        raw = work;
                        rest = work + aligned(p.n_bytes);
                        if (plane_decode(&p, &planes[i], payload, NULL, work, rest))
                                return KVT_E_CORRUPT;
                }
                counts.n_fell_back += !plane_encode(&p, &q, raw, out, rest, &ret[i]);
                counts.n_coded++;
        }
        ret[g->n_planes] = *h;
        memcpy(out, hint_bytes, h->bytes);
        *ret_bytes = (uint64_t)(out - dst) + h->bytes;
        *ret_counts = counts;
        return part_check(g, ret, g->n_planes + 1, *ret_bytes, part_max_rel_l2(g, ret))
                       ? 0
                       : KVT_E_CORRUPT; /* a payload may lie about itself */
}
