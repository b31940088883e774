/* Codec 1: byte planes, each under zstd's literal coder (ZipNN's way with floats: exponents have low entropy, mantissas none).
 *
 * Elements of 1, 2 or 4 bytes are split into byte planes: all lowest bytes, then all second ones... Elements may be rotated left by one bit first: the
 * sign moves to the mantissa's end and a bf16 or f32 exponent gets a byte of its own. Width and rotation are chosen by a sample of the plane.
 * Each plane of a chunk is a frame of zstd (RFC 8878, without magic) whose match search is all but off, so that what is left is its Huffman coder, or is
 * stored if that does not make it smaller. Planes where one byte value dominates are searched for matches, too: Huffman takes a bit a byte at least.
 *
 * Payload: u8 log2(width) | rotated << 4 · for each chunk of 65,536 elements: { u32 bytes of each plane of it (the plane's size: it is stored) · the planes } ·
 * the bytes that are left of a plane that is no multiple of width. Little-endian.
 */
#include <assert.h>
#include <string.h>

#include "libclient/codec/codec.h"
#include "libclient/codec/entropy.h"
#include "libclient/codec/kernels.h"
#include "libclient/codec/zbf.h"
#include "libclient/codec/zcontext.h"

enum {
        CHUNK = 1 << 16, /* elements: as many bytes as a plane of it has, below zstd's 128 KiB a block */
        ROTATED = 1 << 4,
        MAX_WIDTH = 4,
        N_RUNS = 16, /* sample: this many runs of RUN bytes, evenly spread */
        RUN = 128,
};

struct split {
        unsigned width;
        bool rotate;
};

/* Of each byte plane, from a sample. */
struct outlook {
        bool pays[MAX_WIDTH]; /* shrinks under the literal coder */
        bool dominated[MAX_WIDTH]; /* by one value */
};

static size_t aligned(size_t n)
{
        return (n + 63) & ~(size_t)63;
}

static size_t planes_room(size_t n_bytes)
{
        /* a chunk of the widest elements, or all there is, each plane aligned */
        return n_bytes < MAX_WIDTH * CHUNK ? aligned(n_bytes) + MAX_WIDTH * 64 : MAX_WIDTH * CHUNK;
}

size_t zbf_room(size_t n_bytes)
{
        /* planes, src ^ base of a chunk, a context */
        return 2 * planes_room(n_bytes) + zcontext_room();
}

size_t zbf_most(size_t n_bytes)
{
        /* narrow elements make most chunks, wide ones more sizes a chunk: four times as many for a fourth of the chunks */
        return 1 + n_bytes + (n_bytes / CHUNK + MAX_WIDTH) * sizeof(uint32_t);
}

/* the split */

typedef uint32_t histogram[256];

static void count16(const uint8_t *sample, size_t n, bool rotate, histogram ret[2])
{
        for (size_t i = 0; i + 2 <= n; i += 2) {
                uint16_t x;

                memcpy(&x, sample + i, 2);
                x = rotate ? (uint16_t)(x << 1 | x >> 15) : x;
                ret[0][x & 255]++;
                ret[1][x >> 8]++;
        }
}

static void count32(const uint8_t *sample, size_t n, bool rotate, histogram ret[4])
{
        for (size_t i = 0; i + 4 <= n; i += 4) {
                uint32_t x;

                memcpy(&x, sample + i, 4);
                x = rotate ? x << 1 | x >> 31 : x;
                for (unsigned k = 0; k < 4; k++)
                        ret[k][x >> 8 * k & 255]++;
        }
}

static void count(const uint8_t *sample, size_t n, struct split s, histogram *ret)
{
        memset(ret, 0, s.width * sizeof(*ret));
        if (s.width == 4)
                count32(sample, n, s.rotate, ret);
        else if (s.width == 2)
                count16(sample, n, s.rotate, ret);
        else
                for (size_t i = 0; i < n; i++)
                        ret[0][sample[i]]++;
}

/* Bits that the sample takes, in 1/4096. */
static uint64_t weigh(const uint8_t *sample, size_t n, struct split s, struct outlook *ret)
{
        histogram counts[MAX_WIDTH];
        uint32_t n_each = (uint32_t)(n / s.width);
        uint64_t sum = 0;

        count(sample, n, s, counts);
        for (unsigned k = 0; k < s.width; k++) {
                uint64_t bits = entropy_of(counts[k], 256, n_each), most = (uint64_t)n_each * 8 * LOG2_ONE;
                uint32_t max = 0;

                for (unsigned i = 0; i < 256; i++)
                        max = counts[k][i] > max ? counts[k][i] : max;
                ret->dominated[k] = max > n_each / 2;
                ret->pays[k] = bits < most - most / 64;
                sum += ret->pays[k] ? bits : most;
        }
        return sum;
}

static struct split choose(const struct shape *p, const uint8_t *src, const uint8_t *base, struct outlook *ret)
{
        static const struct split all[] = {{1, false}, {2, false}, {2, true}, {4, false}, {4, true}};
        uint8_t sample[N_RUNS * RUN];
        struct split best = {1, false};
        uint64_t least = UINT64_MAX;
        bool whole = p->n_bytes <= sizeof(sample);
        size_t n_runs = whole ? 1 : N_RUNS, run = whole ? p->n_bytes : RUN, step = p->n_bytes / N_RUNS & ~(size_t)(MAX_WIDTH - 1);

        for (size_t i = 0; i < n_runs; i++) {
                memcpy(sample + i * run, src + i * step, run);
                if (base)
                        kernels()->xor (sample + i * run, sample + i * run, base + i * step, run);
        }
        for (size_t i = 0; i < sizeof(all) / sizeof(*all); i++) {
                struct outlook o = {{0}};
                uint64_t bits;

                /* bytes of unknown kind may be elements of any width */
                if (p->dtype != KVT_DTYPE_OPAQUE && all[i].width != 1 && all[i].width != p->elem_bytes)
                        continue;
                bits = weigh(sample, n_runs * run, all[i], &o);
                if (bits < least) {
                        least = bits;
                        best = all[i];
                        *ret = o;
                }
        }
        return best;
}

/* coding */

/* Returns the bytes written at dst, at most n. */
static size_t code_plane(ZSTD_CCtx *c, const uint8_t *plane, size_t n, bool pays, bool dominated, uint8_t *dst)
{
        size_t r = 0;

        if (pays) {
                zcontext_search(c, dominated);
                r = ZSTD_compress2(c, dst, n, plane, n);
        }
        if (!pays || ZSTD_isError(r) || r >= n) {
                memcpy(dst, plane, n);
                return n;
        }
        return r;
}

size_t zbf_code(const struct shape *p, const uint8_t *src, const uint8_t *base, uint8_t *restrict dst, void *scratch)
{
        size_t room = planes_room(p->n_bytes), at = 1;
        uint8_t *planes = scratch, *delta = planes + room;
        ZSTD_CCtx *c = zcontext_coder(delta + room);
        struct outlook o = {{0}};
        struct split s = choose(p, src, base, &o);
        size_t n_elems = p->n_bytes / s.width, tail = p->n_bytes % s.width;

        if (!c)
                return 0;
        dst[0] = (uint8_t)(__builtin_ctz(s.width) | (s.rotate ? ROTATED : 0));
        for (size_t i = 0, n; i < n_elems; i += n) {
                const uint8_t *from = src + i * s.width;
                uint8_t *each[MAX_WIDTH];
                size_t sizes = at;

                n = n_elems - i < CHUNK ? n_elems - i : CHUNK;
                for (unsigned k = 0; k < s.width; k++)
                        each[k] = planes + k * aligned(n);
                if (base) {
                        kernels()->xor (delta, from, base + i * s.width, n * s.width);
                        from = delta;
                }
                kernels()->zbf_split(each, from, n, s.width, s.rotate);
                at += s.width * sizeof(uint32_t);
                for (unsigned k = 0; k < s.width; k++) {
                        uint32_t size = (uint32_t)code_plane(c, each[k], n, o.pays[k], o.dominated[k], dst + at);

                        memcpy(dst + sizes + k * sizeof(size), &size, sizeof(size));
                        at += size;
                }
        }
        for (size_t i = p->n_bytes - tail; i < p->n_bytes; i++)
                dst[at++] = base ? src[i] ^ base[i] : src[i];
        assert(at <= zbf_most(p->n_bytes));
        return at;
}

int zbf_decode(const struct shape *p, const uint8_t *restrict src, size_t n_src, const uint8_t *base, uint8_t *restrict dst, void *scratch)
{
        size_t room = planes_room(p->n_bytes), at = 1, width, n_elems;
        uint8_t *planes = scratch;
        ZSTD_DCtx *d = zcontext_decoder(planes + 2 * room);

        if (!d || n_src < 1 || src[0] & ~(ROTATED | 3) || (src[0] & 3) > 2)
                return KVT_E_CORRUPT;
        width = (size_t)1 << (src[0] & 3);
        n_elems = p->n_bytes / width;
        if (src[0] & ROTATED && width == 1)
                return KVT_E_CORRUPT;
        for (size_t i = 0, n; i < n_elems; i += n) {
                const uint8_t *each[MAX_WIDTH], *sizes = src + at;

                n = n_elems - i < CHUNK ? n_elems - i : CHUNK;
                if (n_src - at < width * sizeof(uint32_t))
                        return KVT_E_CORRUPT;
                at += width * sizeof(uint32_t);
                for (unsigned k = 0; k < width; k++) {
                        uint8_t *plane = planes + k * aligned(n);
                        uint32_t size;

                        memcpy(&size, sizes + k * sizeof(size), sizeof(size));
                        if (size > n || size > n_src - at)
                                return KVT_E_CORRUPT;
                        each[k] = size == n ? src + at : plane;
                        if (size < n && ZSTD_decompressDCtx(d, plane, n, src + at, size) != n)
                                return KVT_E_CORRUPT;
                        at += size;
                }
                kernels()->zbf_merge(dst + i * width, each, n, (unsigned)width, src[0] & ROTATED);
                if (base)
                        kernels()->xor (dst + i * width, dst + i * width, base + i * width, n * width);
        }
        if (n_src - at != p->n_bytes % width)
                return KVT_E_CORRUPT;
        for (size_t i = n_elems * width; i < p->n_bytes; i++, at++)
                dst[i] = base ? src[at] ^ base[i] : src[at];
        return 0;
}

/* the codec */

static size_t bound(const struct codec_spec *s, const struct shape *p)
{
        return zbf_most(p->n_bytes);
}

static size_t scratch_bytes(const struct codec_spec *s, const struct shape *p)
{
        return zbf_room(p->n_bytes);
}

static size_t encode(const struct codec_spec *s, const struct shape *p, const struct codec_input *in, uint8_t *restrict dst, void *scratch)
{
        return zbf_code(p, in->bytes, NULL, dst, scratch);
}

static int decode(const struct shape *p, const uint8_t *restrict src, size_t n_src, const void *base, void *restrict dst, void *scratch)
{
        return zbf_decode(p, src, n_src, NULL, dst, scratch);
}

const struct codec codec_zbf = {
        .id = CODEC_ZBF,
        .name = "zbf",
        .summary = "lossless: byte planes under a Huffman coder",
        .flags = CODEC_LOSSLESS,
        .bound = bound,
        .scratch = scratch_bytes,
        .encode = encode,
        .decode = decode,
};
