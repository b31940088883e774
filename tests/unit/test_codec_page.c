/* kvtier-codecs(7) says what codecs do: it lists each of the registry with its number and parameters, and no others; its vectors are what codecs
 * make of a plane, and what they give back for it, byte for byte. */
#include "tests/unit/codecs.h"

enum { ROOM = 512 };

static FILE *page_file;
static char page_line[512];

static bool next_line(void)
{
        return fgets(page_line, sizeof(page_line), page_file);
}

static void open_page(void)
{
        page_file = fopen("man/kvtier-codecs.7", "re");
        if (!page_file)
                fail_msg("man/kvtier-codecs.7 is not here: run it from the root of the tree");
}

static bool line_is(const char *text)
{
        size_t n = strlen(text);

        return !strncmp(page_line, text, n) && (page_line[n] == '\n' || !page_line[n]);
}

/* The registry */

/* "4 Ta 1, 2, 4": a parameter's default, and what it may be. */
static void range_text(const struct codec_param *p, char *ret, size_t n_ret)
{
        int n = snprintf(ret, n_ret, ".It %s Ta %u Ta ", p->name, p->value);

        if (!p->allowed[0])
                n += snprintf(ret + n, n_ret - (size_t)n, "%u to %u", p->min, p->max);
        for (size_t i = 0; i < 8 && p->allowed[i]; i++)
                n += snprintf(ret + n, n_ret - (size_t)n, "%s%u", i ? ", " : "", p->allowed[i]);
        snprintf(ret + n, n_ret - (size_t)n, " Ta ");
}

/* Reads what the page says of a codec, up to the next one. */
static void check_codec(const struct codec *c)
{
        char start[128];
        bool lossless = false, rows = false;
        size_t n_params = 0;

        while (next_line() && strncmp(page_line, ".S", 2) != 0) {
                lossless |= strstr(page_line, "Lossless") != NULL;
                rows |= strstr(page_line, "Rows.") || strstr(page_line, "; rows.");
                if (strncmp(page_line, ".It ", 4) != 0)
                        continue;
                if (n_params == CODEC_PARAMS_MAX || !c->params[n_params].name)
                        fail_msg("%s has no such parameter: %s", c->name, page_line);
                range_text(&c->params[n_params], start, sizeof(start));
                if (strncmp(page_line, start, strlen(start)) != 0)
                        fail_msg("%s: the page says '%s', not '%s'", c->name, page_line, start);
                n_params++;
        }
        if (n_params < CODEC_PARAMS_MAX && c->params[n_params].name)
                fail_msg("the page does not list %s of %s", c->params[n_params].name, c->name);
        assert_int_equal(lossless, (c->flags & CODEC_LOSSLESS) != 0);
        assert_int_equal(rows, (c->flags & CODEC_ROW_ACCESS) != 0);
}

static void test_registry(void **state)
{
        char title[64];

        open_page();
        while (next_line() && !line_is(".Sh CODECS"))
                ;
        while (next_line() && strncmp(page_line, ".Ss ", 4) != 0)
                ;
        for (const struct codec *c = NULL; (c = codec_next(c));) {
                snprintf(title, sizeof(title), ".Ss %s (%u)", c->name, c->id);
                if (!line_is(title))
                        fail_msg("the page goes on with '%s', not '%s'", page_line, title);
                check_codec(c);
        }
        assert_true(line_is(".Sh PAYLOADS"));
        for (const struct codec *c = NULL; (c = codec_next(c));) { /* each has a payload, in the order of numbers, and sections between */
                snprintf(title, sizeof(title), ".Ss %s", c->name);
                while (!line_is(title))
                        if (!next_line())
                                fail_msg("the page does not say what a payload of %s is", c->name);
        }
        fclose(page_file);
}

/* Vectors */

struct vector {
        struct codec_spec spec;
        struct shape shape;
        struct kvt_copy_plane c;
        uint8_t put[ROOM], base[ROOM], payload[ROOM], decoded[ROOM];
        size_t n_put, n_base, n_payload, n_decoded;
};

static unsigned hex_digit(char c)
{
        return (unsigned)(c <= '9' ? c - '0' : c - 'a' + 10);
}

/* The lines of a dump, which say all n bytes. The line behind them is read already. */
static void read_dump(uint8_t *to, size_t n)
{
        size_t at = 0;
        unsigned offset;
        char hex[64];

        assert_true(n && n <= ROOM);
        while (next_line() && strspn(page_line, "0123456789abcdef") == 4 && sscanf(page_line, "%x %63s", &offset, hex) == 2) {
                assert_int_equal(offset, at);
                assert_true(strlen(hex) % 2 == 0 && at + strlen(hex) / 2 <= n);
                for (const char *p = hex; *p; p += 2)
                        to[at++] = (uint8_t)(hex_digit(p[0]) << 4 | hex_digit(p[1]));
        }
        assert_int_equal(at, n);
}

/* From its first line on. */
static void read_vector(struct vector *v)
{
        unsigned role, dtype, heads, tokens, dim, seed, flags;
        char text[CODEC_SPEC_MAX], what[32];
        const char *why;
        size_t n;

        memset(v, 0, sizeof(*v));
        assert_int_equal(sscanf(page_line, "vector %127s", text), 1);
        if (codec_spec_parse(text, strlen(text), &v->spec, &why))
                fail_msg("%s: %s", text, why);
        assert_true(next_line());
        assert_int_equal(sscanf(page_line, "role=%u dtype=%u heads=%u tokens=%u dim=%u seed=%u flags=%u", &role, &dtype, &heads, &tokens,
                                &dim, &seed, &flags),
                         7);
        assert_true(shape_make(&v->shape, role, dtype, heads, tokens, dim, seed));
        assert_true(next_line());
        while (sscanf(page_line, "%31s bytes=%zu", what, &n) == 2) {
                const struct {
                        const char *name;
                        uint8_t *to;
                        size_t *ret_n;
                } all[] = {{"put", v->put, &v->n_put},
                           {"base", v->base, &v->n_base},
                           {"payload", v->payload, &v->n_payload},
                           {"decoded", v->decoded, &v->n_decoded}};
                size_t i = 0;

                while (i < 4 && strcmp(all[i].name, what) != 0)
                        i++;
                if (i == 4 || *all[i].ret_n)
                        fail_msg("%s: what is '%s'?", text, what);
                *all[i].ret_n = n;
                read_dump(all[i].to, n);
        }
        v->c = (struct kvt_copy_plane){.bytes = (uint32_t)v->n_payload, .codec = v->spec.codec->id, .flags = (uint8_t)flags};
        if (v->spec.codec->flags & CODEC_LOSSLESS) {
                assert_int_equal(v->n_decoded, 0); /* what was put */
                memcpy(v->decoded, v->put, v->n_put);
                v->n_decoded = v->n_put;
        }
        assert_int_equal(v->n_put, v->shape.n_bytes);
        assert_int_equal(v->n_decoded, v->shape.n_bytes);
        assert_int_equal(v->n_base, v->spec.codec->flags & CODEC_NEEDS_BASE ? v->shape.n_bytes : 0);
}

static void check_decoding(const struct vector *v)
{
        struct room dst = room_new(v->shape.n_bytes, 1), scratch = room_new(plane_decode_scratch(&v->shape, &v->c), 0);
        size_t row = v->shape.n_bytes / v->shape.heads / v->shape.tokens;

        assert_int_equal(plane_decode(&v->shape, &v->c, v->payload, v->n_base ? v->base : NULL, dst.p, scratch.p), 0);
        assert_memory_equal(dst.p, v->decoded, v->n_decoded);
        if (v->spec.codec->flags & CODEC_ROW_ACCESS)
                for (uint32_t h = 0; h < v->shape.heads; h++)
                        for (uint32_t t = 0; t < v->shape.tokens; t++) {
                                assert_int_equal(plane_decode_rows(&v->shape, &v->c, v->payload, h, &t, 1, dst.p, scratch.p), 0);
                                assert_memory_equal(dst.p, v->decoded + (h * v->shape.tokens + t) * row, row);
                        }
        room_free(&dst);
        room_free(&scratch);
}

/* What zstd makes of byte planes is its release's business. */
static void check_encoding(const struct vector *v)
{
        struct room dst = room_new(plane_bound(&v->shape, &v->spec), 1), scratch = room_new(plane_encode_scratch(&v->shape, &v->spec), 0);
        float values[ROOM];
        struct codec_input in = {.bytes = v->put, .values = values};
        size_t n, n_codec = v->n_payload;

        if (v->c.flags) { /* the codec's payload is what the end says */
                uint32_t n_bytes;

                memcpy(&n_bytes, v->payload + v->n_payload - 4, 4);
                n_codec = n_bytes;
        }
        kernels()->widen(values, v->put, v->shape.n_values, v->shape.dtype);
        n = v->spec.codec->encode(&v->spec, &v->shape, &in, dst.p, scratch.p);
        assert_int_equal(n, n_codec);
        assert_memory_equal(dst.p, v->payload, n);
        room_free(&dst);
        room_free(&scratch);
}

static void test_vectors(void **state)
{
        unsigned seen[CODEC_N_IDS] = {0}, exact = 0;
        struct vector v;

        open_page();
        while (next_line())
                while (!strncmp(page_line, "vector ", 7)) {
                        read_vector(&v);
                        for (unsigned k = 0; kernels_nth(k); k++) {
                                kernels_choose(kernels_nth(k));
                                check_decoding(&v);
                                if (v.spec.codec->id != CODEC_ZBF && v.spec.codec->id != CODEC_XDELTA)
                                        check_encoding(&v);
                        }
                        kernels_choose(kernels_nth(0));
                        seen[v.spec.codec->id]++;
                        exact += v.c.flags & PLANE_EXACT_ROWS;
                }
        fclose(page_file);
        for (const struct codec *c = NULL; (c = codec_next(c));)
                if (c->id != CODEC_RAW && !seen[c->id])
                        fail_msg("the page has no vector of %s", c->name);
        assert_true(exact);
}

int main(void)
{
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_registry),
                cmocka_unit_test(test_vectors),
        };
        return cmocka_run_group_tests(tests, NULL, NULL);
}
