/* Planes of f16 values, which codecs make smaller, lossy ones too. The signs of a plane's first 64 values are its *word*, which says what it is; no codec that is
 * worth its name loses them, for no value is near 0. The rest follows from the word. Some planes have values that are no numbers.
 *
 * And blocks of such planes through the library, as tests/lib/pattern.h has them of opaque bytes; *flavours* are the same. */
#pragma once

#include <math.h>

#include "tests/lib/pattern.h"

enum { VALUE_WORD_BYTES = 128 };

static inline void values_fill(void *p, uint64_t n_bytes, uint64_t word)
{
        uint64_t x = word;
        uint8_t *to = p;

        for (uint64_t i = 0; i < n_bytes / 2; i++) {
                x = x * 6364136223846793005 + 1442695040888963407;
                uint64_t sign = i < 64 ? word >> i & 1 : x >> 63;
                uint16_t h = (uint16_t)(sign << 15 | 0x3c00 | (x >> 40 & 0x1ff)); /* 1 to 1.5 */
                if (i % 2999 == 1500 && word % 4 == 0)
                        h |= 0x7c00;
                memcpy(to + 2 * i, &h, 2);
        }
}

static inline uint64_t values_word(const void *p)
{
        const uint8_t *at = p;
        uint64_t word = 0;

        for (uint32_t i = 0; i < 64; i++)
                word |= (uint64_t)(at[2 * i + 1] >> 7) << i;
        return word;
}

static inline double value_of(uint16_t h)
{
        uint32_t bits = (h & 0x7fffu) << 13 | (uint32_t)(h >> 15) << 31;
        float f;

        memcpy(&f, &bits, 4);
        return (double)f * 0x1p112;
}

/* Relative L2 of a plane y against x. INFINITY: something that is no number in one of them is another thing in the other. */
static inline double values_error(const void *x, const void *y, uint64_t n_bytes)
{
        double diff = 0, norm = 0;

        if (!memcmp(x, y, n_bytes))
                return 0;
        for (uint64_t i = 0; i < n_bytes / 2; i++) {
                uint16_t a, b;
                memcpy(&a, (const uint8_t *)x + 2 * i, 2);
                memcpy(&b, (const uint8_t *)y + 2 * i, 2);
                if ((a & 0x7c00) == 0x7c00 || (b & 0x7c00) == 0x7c00) {
                        if (a != b)
                                return INFINITY;
                        continue;
                }
                double v = value_of(a), d = v - value_of(b);
                diff += d * d;
                norm += v * v;
        }
        return sqrt(diff / norm);
}

/* blocks */

enum {
        VALUES_PLANES = 4, /* K, V, K, V */
        VALUES_HEADS = 2,
        VALUES_DIM = 64,
        VALUES_TOKENS = 24,
        VALUES_PLANE = 2 * VALUES_HEADS * VALUES_TOKENS * VALUES_DIM,
        VALUES_PART = VALUES_PLANES * VALUES_PLANE,
};

struct values_space {
        kvt *c;
        kvt_space *s;
        float max_rel_l2;
};
int values_space_open(struct values_space *v, kvt *c, const char *name, float max_rel_l2);
void values_part(uint8_t part[VALUES_PART], const kvt_key *key, int flavour);
/* Planes first .. first + n - 1 of a part, at planes, are those of the key, each within the space's bound: the flavour found, or -1. */
int values_find(const struct values_space *v, const uint8_t *planes, uint32_t first, uint32_t n, const kvt_key *key, int flavour);
int values_put(const struct values_space *v, const kvt_key *parent, const kvt_key *keys, size_t n, int flavour, uint32_t flags,
               const kvt_hints *hints, uint8_t *statuses);
/* The usual case: all are new and all are stored. */
void values_store(const struct values_space *v, const kvt_key *parent, const kvt_key *keys, size_t n);
/* Planes of n blocks; what has status 0 must be right, or the test fails. */
int values_get(const struct values_space *v, const kvt_key *keys, size_t n, uint32_t first_plane, uint32_t n_planes, int flavour,
               uint8_t *statuses);
/* Decodes a mapping. What decodes must be right, or the test fails; *ret_error_is_wrong: it is, and is not as far from what was put as the copy's header says. Returns 0 or what
 * decoding says. */
int values_mapped(const struct values_space *v, const kvt_mapping *m, const kvt_key *key, int flavour, bool *ret_error_is_wrong);
