/* Codecs, in three ways. An input's first byte says which:
 *
 * decode: a codec, a shape and flags; what is left is a payload. It is corrupt or garbage of the plane's size, the same garbage each time, by rows, with every
 * variant of the kernels.
 * encode: a spec, a shape, a bound, tokens to protect; what is left is a plane of any bits. What comes back keeps the promises of plane.h; its error is computed
 * here anew.
 * capture: a file's size and first bytes.
 *
 * Every buffer is as large as it must be, to the byte: the sanitizer sees what leaves it. */
#include <math.h>

#include "libclient/codec/capture.h"
#include "libclient/codec/hash.h"
#include "libclient/codec/kernels.h"
#include "libclient/codec/plane.h"
#include "tests/fuzz/fuzz.h"
#include "tests/unit/slow_number.h"

enum { DECODE, ENCODE, CAPTURE, N_MODES };
enum { VALUES_MAX = 6000, TOKENS_MAX = 200, DIM_MAX = 200, STATE_MAX = 8000 };

static const uint8_t key[16] = "0123456789abcdef";

static void *room(size_t n)
{
        void *p = NULL;

        FUZZ_CHECK(!posix_memalign(&p, 64, n ? n : 1));
        memset(p, 0xa5, n ? n : 1);
        return p;
}

static void *room_of(const void *bytes, size_t n)
{
        void *p = room(n);

        if (n)
                memcpy(p, bytes, n);
        return p;
}

/* 6 bytes. False: too large to be tried often. */
static bool read_shape(struct input *in, struct shape *ret)
{
        uint32_t role = input_u8(in) % (KVT_ROLE_INDEXER + 1), dtype = input_u8(in) % (KVT_DTYPE_OPAQUE + 1), heads = 1 + input_u8(in) % 4,
                 tokens = 1 + input_u8(in) % TOKENS_MAX, dim = 1 + input_u8(in) % DIM_MAX, seed = input_u8(in);

        if (role == KVT_ROLE_STATE) {
                dtype = KVT_DTYPE_OPAQUE;
                dim = 1 + (tokens * 211 + dim) % STATE_MAX;
                tokens = 1;
        }
        if (dtype == KVT_DTYPE_OPAQUE || role == KVT_ROLE_LATENT)
                heads = 1;
        return shape_make(ret, role, dtype, heads, tokens, dim, seed) && ret->n_values <= VALUES_MAX;
}

static bool read_spec(struct input *in, struct codec_spec *ret)
{
        const struct codec *c = codec_find(input_u8(in));

        if (!c)
                return false;
        *ret = codec_spec_default(c);
        for (unsigned i = 0; i < CODEC_PARAMS_MAX; i++) {
                const struct codec_param *p = &c->params[i];
                unsigned n = 0, choice = (unsigned)input_number(in, 2);

                if (!p->name)
                        continue; /* its choice is read all the same: specs of all codecs are as long */
                while (n < 8 && p->allowed[n])
                        n++;
                ret->params[i] = n ? p->allowed[choice % n] : (uint16_t)(p->min + choice % (p->max - p->min + 1u));
        }
        return true;
}

/* decode */

static int decode(const struct shape *p, const struct kvt_copy_plane *c, const uint8_t *payload, const void *base, uint8_t *dst)
{
        void *scratch = room(plane_decode_scratch(p, c));
        int r = plane_decode(p, c, payload, base, dst, scratch);

        free(scratch);
        FUZZ_CHECK(!r || r == KVT_E_CORRUPT);
        return r;
}

/* Rows are those of the whole plane, if that decodes. */
static void decode_rows(struct input *in, const struct shape *p, const struct kvt_copy_plane *c, const uint8_t *payload,
                        const uint8_t *whole)
{
        size_t row = (size_t)p->dim * p->elem_bytes;
        uint32_t tokens[5], n = 1 + input_u8(in) % 5, head = input_u8(in) % p->heads;
        uint8_t *dst = room(n * row), *scratch = room(plane_decode_scratch(p, c));
        int r;

        for (uint32_t i = 0; i < n; i++)
                tokens[i] = input_u8(in) % p->tokens;
        r = plane_decode_rows(p, c, payload, head, tokens, n, dst, scratch);
        FUZZ_CHECK(!r || r == KVT_E_CORRUPT || r == KVT_E_UNSUPPORTED);
        for (uint32_t i = 0; i < n && !r && whole; i++)
                FUZZ_CHECK(!memcmp(dst + i * row, whole + ((size_t)head * p->tokens + tokens[i]) * row, row));
        free(dst);
        free(scratch);
}

static void shrink(const struct shape *p, const struct codec_spec *to, const uint8_t *payload, const struct kvt_copy_plane *c)
{
        struct kvt_copy_plane made = *c;
        uint8_t *bytes = room_of(payload, c->bytes);

        if (plane_shrink(p, to, INFINITY, bytes, &made))
                FUZZ_CHECK(made.bytes < c->bytes && made.codec == c->codec &&
                           made.hash == hash_bytes(bytes, made.bytes, kvt_plane_seed(&made, p->seed)));
        else
                FUZZ_CHECK(!memcmp(&made, c, sizeof(made)) && !memcmp(bytes, payload, c->bytes));
        free(bytes);
}

static void run_decode(struct input *in)
{
        struct kvt_copy_plane c = {.codec = input_u8(in), .flags = input_u8(in) & 3};
        struct codec_spec to;
        bool with_base = input_u8(in) & 1, may_shrink = read_spec(in, &to);
        struct input rows = {in->p, in->n};
        struct shape p;

        input_number(in, 8);
        if (!read_shape(in, &p))
                return;
        const struct codec *codec = codec_find(c.codec);
        uint8_t *payload = room_of(in->p, in->n), *base = room(p.n_bytes), *got = room(p.n_bytes), *again = room(p.n_bytes);
        char text[32];
        int r;

        c.bytes = (uint32_t)in->n;
        r = decode(&p, &c, payload, with_base ? base : NULL, got);
        for (unsigned v = 0; kernels_nth(v); v++) {
                kernels_choose(kernels_nth(v));
                FUZZ_CHECK(decode(&p, &c, payload, with_base ? base : NULL, again) == r);
                FUZZ_CHECK(r || !memcmp(got, again, p.n_bytes));
        }
        kernels_choose(NULL);
        decode_rows(&rows, &p, &c, payload, r ? NULL : got);
        if (codec && codec->describe)
                FUZZ_CHECK(codec->describe(&p, payload, c.bytes, text, sizeof(text)) >= 0 && memchr(text, 0, sizeof(text)));
        if (may_shrink)
                shrink(&p, &to, payload, &c);
        free(payload);
        free(base);
        free(got);
        free(again);
}

/* encode */

static bool equal(double header, double computed)
{
        return header == computed || fabs(header - computed) <= 1e-6 * computed + 0x1p-149;
}

static void check_error(const struct shape *p, const uint8_t *x, const uint8_t *y, const struct kvt_copy_plane *c)
{
        double diff = 0, norm = 0, max = 0;

        for (size_t i = 0; i < p->n_values && p->dtype != KVT_DTYPE_OPAQUE; i++) {
                double a = slow_number(x, i, p->dtype), b = slow_number(y, i, p->dtype);

                if (!isfinite(a)) { /* exact */
                        FUZZ_CHECK(!memcmp(x + i * p->elem_bytes, y + i * p->elem_bytes, p->elem_bytes));
                        continue;
                }
                if (!isfinite(b)) {
                        FUZZ_CHECK(isinf(c->rel_l2) && isinf(c->max_abs));
                        return;
                }
                diff += (a - b) * (a - b);
                norm += a * a;
                max = fabs(a - b) > max ? fabs(a - b) : max;
        }
        FUZZ_CHECK(equal((double)c->rel_l2, diff > 0 ? sqrt(diff / norm) : 0) && equal((double)c->max_abs, (double)(float)max));
}

static void run_encode(struct input *in)
{
        static const float bounds[] = {0, 0.001f, 0.01f, 0.1f, 0.5f, INFINITY, INFINITY, INFINITY};
        unsigned flags = input_u8(in);
        struct codec_spec spec, to;
        struct shape p;
        uint8_t protect[(TOKENS_MAX + 7) / 8];
        float scores[TOKENS_MAX];
        struct kvt_copy_plane c, other;
        size_t n;

        if (!read_spec(in, &spec))
                return;
        if (!read_shape(in, &p))
                return;
        uint8_t *src = room(p.n_bytes), *base = room(p.n_bytes);
        struct plane_request q = {.spec = &spec,
                                  .max_rel_l2 = bounds[flags % 8],
                                  .protect = flags & 8 ? protect : NULL,
                                  .scores = flags & 16 ? scores : NULL,
                                  .base = flags & 32 ? base : NULL,
                                  .base_key = key};
        for (size_t i = 0; i < TOKENS_MAX; i++)
                scores[i] = (float)(i * 37 % 11);
        for (size_t i = 0; i < sizeof(protect); i++)
                protect[i] = flags & 8 ? (uint8_t)(input_u8(in) & 0x55) : 0;
        const uint8_t *bytes = input_bytes(in, p.n_bytes, &n);
        for (size_t i = 0; i < p.n_bytes; i++) /* over and over */
                src[i] = n ? bytes[i % n] : 0;
        memcpy(base, src, p.n_bytes);
        base[p.n_bytes / 2] ^= 0x80;

        size_t bound = plane_bound(&p, &spec);
        uint8_t *payload = room(bound), *dst = room(bound), *got = room(p.n_bytes);
        for (unsigned v = 0; kernels_nth(v); v++) {
                uint8_t *scratch = room(plane_encode_scratch(&p, &spec));

                kernels_choose(kernels_nth(v));
                plane_encode(&p, &q, src, dst, scratch, &c);
                FUZZ_CHECK(c.bytes <= p.n_bytes && c.bytes <= bound);
                if (v)
                        FUZZ_CHECK(!memcmp(&c, &other, sizeof(c)) && !memcmp(payload, dst, c.bytes));
                other = c;
                memcpy(payload, dst, c.bytes);
                free(scratch);
        }
        kernels_choose(NULL);
        free(dst);
        dst = room_of(payload, c.bytes);
        const struct codec *codec = codec_find(c.codec);
        FUZZ_CHECK(codec && (codec == spec.codec || codec->flags & CODEC_LOSSLESS));
        FUZZ_CHECK(c.hash == hash_bytes(dst, c.bytes, kvt_plane_seed(&c, p.seed)) && c.rel_l2 <= q.max_rel_l2);
        FUZZ_CHECK(!decode(&p, &c, dst, q.base, got));
        if (codec->flags & CODEC_LOSSLESS)
                FUZZ_CHECK(!memcmp(src, got, p.n_bytes));
        check_error(&p, src, got, &c);
        for (size_t r = 0, row = (size_t)p.dim * p.elem_bytes; r < (size_t)p.heads * p.tokens && q.protect; r++)
                if (protect[r % p.tokens / 8] >> r % p.tokens % 8 & 1)
                        FUZZ_CHECK(!memcmp(src + r * row, got + r * row, row));
        decode_rows(in, &p, &c, dst, got);
        to = spec;
        for (; codec->flags & CODEC_TRUNCATES && to.params[0] > codec->params[0].min; to.params[0]--) {
                other = c;
                memcpy(payload, dst, c.bytes);
                if (plane_shrink(&p, &to, INFINITY, payload, &other)) {
                        uint8_t *less = room_of(payload, other.bytes);

                        FUZZ_CHECK(!decode(&p, &other, less, NULL, got));
                        check_error(&p, src, got, &other);
                        free(less);
                }
        }
        free(src);
        free(base);
        free(payload);
        free(dst);
        free(got);
}

/* capture */

static void run_capture(struct input *in)
{
        uint64_t n_file = input_number(in, 8);
        uint8_t *bytes = room_of(in->p, in->n), header[CAPTURE_HEADER_BYTES];
        const char *why = NULL;
        struct capture c, other;

        if (n_file % 2) /* as the header will have it */
                n_file = in->n;
        if (capture_decode(&c, bytes, in->n, n_file, &why)) {
                FUZZ_CHECK(why);
        } else {
                uint64_t at = CAPTURE_HEADER_BYTES;

                FUZZ_CHECK(in->n >= CAPTURE_HEADER_BYTES);
                for (uint32_t i = 0; i < c.n_layers && i < 1000; i++)
                        for (int part = CAPTURE_Q; part <= CAPTURE_V; part++) {
                                FUZZ_CHECK(capture_offset(&c, i, part) == at);
                                at += capture_part_bytes(&c, part);
                                FUZZ_CHECK(at <= n_file);
                        }
                FUZZ_CHECK(capture_offset(&c, c.n_layers, CAPTURE_Q) <= n_file);
                capture_encode(header, &c);
                FUZZ_CHECK(!capture_decode(&other, header, sizeof(header), n_file, &why) && !memcmp(&c, &other, sizeof(c)));
        }
        free(bytes);
}

/* seeds: what encoders make of planes that look like real ones, and those planes */

struct seed {
        uint8_t bytes[65536];
        size_t n;
};

static void put(struct seed *s, const void *bytes, size_t n)
{
        FUZZ_CHECK(n <= sizeof(s->bytes) - s->n);
        memcpy(s->bytes + s->n, bytes, n);
        s->n += n;
}

static void put_spec(struct seed *s, const struct codec_spec *spec)
{
        put(s, &spec->codec->id, 1);
        for (unsigned i = 0; i < CODEC_PARAMS_MAX; i++) {
                const struct codec_param *p = &spec->codec->params[i];
                uint16_t choice = (uint16_t)(spec->params[i] - p->min);

                for (uint16_t k = 0; k < 8 && p->allowed[k]; k++)
                        if (p->allowed[k] == spec->params[i])
                                choice = k;
                put(s, &choice, 2);
        }
}

static void write_seed(const char *corpus, const struct codec_spec *spec, const uint8_t shape[6], unsigned i_shape)
{
        static const uint8_t no_rows[8] = {4, 0, 0, 1, 2, 3, 4, 5};
        struct input in = {shape, 6};
        struct seed s = {.n = 0};
        struct shape p;
        char name[64];

        FUZZ_CHECK(read_shape(&in, &p));
        uint8_t *src = room(p.n_bytes), *base, *dst = room(plane_bound(&p, spec)), *scratch = room(plane_encode_scratch(&p, spec));
        float *x = room(p.n_values * sizeof(*x));
        uint8_t protect[25] = {i_shape % 2 ? 0x11 : 0};
        struct kvt_copy_plane c;

        for (size_t i = 0; i < p.n_values; i++)
                x[i] = 4 * sinf((float)(i % p.dim)) + (float)(i * 2654435761u % 1000) / 1000;
        if (p.dtype == KVT_DTYPE_OPAQUE)
                memset(src, 'x', p.n_bytes / 2);
        else
                kernels()->narrow(src, x, p.n_values, p.dtype);
        base = room_of(src, p.n_bytes);
        memset(base, 0xa5, p.n_bytes); /* as run_decode() has it */
        struct plane_request q = {.spec = spec, .max_rel_l2 = INFINITY, .protect = protect, .base = base, .base_key = key};
        plane_encode(&p, &q, src, dst, scratch, &c);

        put(&s, (uint8_t[]){DECODE, c.codec, c.flags, 1}, 4);
        put_spec(&s, spec);
        put(&s, no_rows, sizeof(no_rows));
        put(&s, shape, 6);
        put(&s, dst, c.bytes);
        snprintf(name, sizeof(name), "decode-%s-%u", spec->codec->name, i_shape);
        fuzz_seed(corpus, name, s.bytes, s.n);
        s.n = 0;
        put(&s, (uint8_t[]){ENCODE, 5 + 16 + 32}, 2);
        put_spec(&s, spec);
        put(&s, shape, 6);
        put(&s, src, p.n_bytes);
        snprintf(name, sizeof(name), "encode-%s-%u", spec->codec->name, i_shape);
        fuzz_seed(corpus, name, s.bytes, s.n);
        free(src);
        free(base);
        free(dst);
        free(scratch);
        free(x);
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
        static const uint8_t shapes[][6] = {{KVT_ROLE_K, KVT_DTYPE_F16, 1, 32, 63, 1}, {KVT_ROLE_V, KVT_DTYPE_BF16, 0, 16, 31, 2},
                                            {KVT_ROLE_K, KVT_DTYPE_F32, 0, 8, 4, 3},   {KVT_ROLE_V, KVT_DTYPE_INT8, 0, 63, 63, 4},
                                            {KVT_ROLE_K, KVT_DTYPE_FP8, 2, 0, 127, 5}, {KVT_ROLE_K, KVT_DTYPE_OPAQUE, 0, 9, 99, 6}};
        const char *corpus = fuzz_corpus(*argc, *argv);
        struct capture c = {.dtype = KVT_DTYPE_F16,
                            .q_dtype = KVT_DTYPE_F16,
                            .n_layers = 1,
                            .n_heads = 2,
                            .n_kv_heads = 1,
                            .head_dim = 4,
                            .n_tokens = 3,
                            .chunk_tokens = 2};
        uint8_t capture[1 + 8 + 1024] = {CAPTURE, 1};

        for (const struct codec *codec = NULL; corpus && (codec = codec_next(codec));) {
                struct codec_spec s = codec_spec_default(codec);

                for (unsigned i = 0; i < sizeof(shapes) / sizeof(*shapes); i++)
                        write_seed(corpus, &s, shapes[i], i);
        }
        capture_encode(capture + 9, &c);
        fuzz_seed(corpus, "capture", capture, 9 + capture_offset(&c, c.n_layers, CAPTURE_Q));
        return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n)
{
        struct input in = {bytes, n};

        switch (input_u8(&in) % N_MODES) {
        case DECODE:
                run_decode(&in);
                break;
        case ENCODE:
                run_encode(&in);
                break;
        default:
                run_capture(&in);
        }
        return 0;
}
