/* Byte planes of little-endian elements of 1, 2 or 4 bytes, and back. See zbf.c. */

static inline uint16_t rotated16(uint16_t x)
{
        return (uint16_t)(x << 1 | x >> 15);
}

static inline uint16_t unrotated16(uint16_t x)
{
        return (uint16_t)(x >> 1 | x << 15);
}

static inline uint32_t rotated32(uint32_t x)
{
        return x << 1 | x >> 31;
}

static inline uint32_t unrotated32(uint32_t x)
{
        return x >> 1 | x << 31;
}

/* The loops that the compiler vectorises: `rotate` is constant in each. */
static inline __attribute__((always_inline)) void split16(uint8_t *restrict d0, uint8_t *restrict d1, const uint8_t *restrict src, size_t n,
                                                          bool rotate)
{
        for (size_t i = 0; i < n; i++) {
                uint16_t x;

                memcpy(&x, src + 2 * i, 2);
                x = rotate ? rotated16(x) : x;
                d0[i] = (uint8_t)x;
                d1[i] = (uint8_t)(x >> 8);
        }
}

static inline __attribute__((always_inline)) void split32(uint8_t *restrict d0, uint8_t *restrict d1, uint8_t *restrict d2,
                                                          uint8_t *restrict d3, const uint8_t *restrict src, size_t n, bool rotate)
{
        for (size_t i = 0; i < n; i++) {
                uint32_t x;

                memcpy(&x, src + 4 * i, 4);
                x = rotate ? rotated32(x) : x;
                d0[i] = (uint8_t)x;
                d1[i] = (uint8_t)(x >> 8);
                d2[i] = (uint8_t)(x >> 16);
                d3[i] = (uint8_t)(x >> 24);
        }
}

static inline __attribute__((always_inline)) void merge16(uint8_t *restrict dst, const uint8_t *restrict s0, const uint8_t *restrict s1,
                                                          size_t n, bool rotate)
{
        for (size_t i = 0; i < n; i++) {
                uint16_t x = (uint16_t)(s0[i] | s1[i] << 8);

                x = rotate ? unrotated16(x) : x;
                memcpy(dst + 2 * i, &x, 2);
        }
}

static inline __attribute__((always_inline)) void merge32(uint8_t *restrict dst, const uint8_t *restrict s0, const uint8_t *restrict s1,
                                                          const uint8_t *restrict s2, const uint8_t *restrict s3, size_t n, bool rotate)
{
        for (size_t i = 0; i < n; i++) {
                uint32_t x = (uint32_t)s0[i] | (uint32_t)s1[i] << 8 | (uint32_t)s2[i] << 16 | (uint32_t)s3[i] << 24;

                x = rotate ? unrotated32(x) : x;
                memcpy(dst + 4 * i, &x, 4);
        }
}

static void zbf_split(uint8_t *const dst[4], const void *restrict src, size_t n, unsigned width, bool rotate)
{
        if (width == 1)
                memcpy(dst[0], src, n);
        else if (width == 2 && rotate)
                split16(dst[0], dst[1], src, n, true);
        else if (width == 2)
                split16(dst[0], dst[1], src, n, false);
        else if (rotate)
                split32(dst[0], dst[1], dst[2], dst[3], src, n, true);
        else
                split32(dst[0], dst[1], dst[2], dst[3], src, n, false);
}

static void zbf_merge(void *restrict dst, const uint8_t *const src[4], size_t n, unsigned width, bool rotate)
{
        if (width == 1)
                memcpy(dst, src[0], n);
        else if (width == 2 && rotate)
                merge16(dst, src[0], src[1], n, true);
        else if (width == 2)
                merge16(dst, src[0], src[1], n, false);
        else if (rotate)
                merge32(dst, src[0], src[1], src[2], src[3], n, true);
        else
                merge32(dst, src[0], src[1], src[2], src[3], n, false);
}

/* dst may be a or b. */
static void zbf_xor(uint8_t *dst, const uint8_t *a, const uint8_t *b, size_t n)
{
        typedef uint64_t lanes __attribute__((vector_size(32)));
        size_t i = 0;

        for (; i + sizeof(lanes) <= n; i += sizeof(lanes)) {
                lanes x, y;

                memcpy(&x, a + i, sizeof(x));
                memcpy(&y, b + i, sizeof(y));
                x ^= y;
                memcpy(dst + i, &x, sizeof(x));
        }
        for (; i < n; i++)
                dst[i] = a[i] ^ b[i];
}
