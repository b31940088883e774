/* codec explain: one spec, layer by layer: what its bits are spent on and what planes became of it. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "libclient/ctl/cmd_codec.h"
#include "libclient/ctl/table.h"
#include "libclient/trial.h"

enum { MAX_ELEM_BYTES = 4 };
static const uint8_t base_key[16] = "base of a bench";

/* Order 0, in bits a byte, of every elem_bytes-th byte. */
static double entropy(const uint8_t *p, uint64_t n, unsigned elem_bytes)
{
        uint64_t counts[256] = {0};
        double bits = 0;

        for (uint64_t i = 0; i < n; i++)
                counts[p[i * elem_bytes]]++;
        for (unsigned i = 0; i < 256; i++)
                if (counts[i])
                        bits -= (double)counts[i] / (double)n * log2((double)counts[i] / (double)n);
        return bits;
}

/* Counts one more plane that ended as this. */
static void count_end(json_t *ends, const char *spec)
{
        json_t *end, *n;
        size_t i;

        json_array_foreach(ends, i, end)
        {
                if (strcmp(json_string_value(json_object_get(end, "codec")), spec) != 0)
                        continue;
                n = json_object_get(end, "n_planes");
                json_integer_set(n, json_integer_value(n) + 1);
                return;
        }
        json_array_append_new(ends, json_pack("{s:s, s:i}", "codec", spec, "n_planes", 1));
}

static int explain_part(struct ctl *x, const struct codec_task *t, struct trial *trial, uint32_t layer, enum capture_part part,
                        struct trial_sums *ret, json_t *ends)
{
        const struct capture *c = &t->file.head;
        const struct codec_spec *spec = part == CAPTURE_V ? &t->pairs[0].v : &t->pairs[0].k;
        struct plane_request q = {.spec = spec, .max_rel_l2 = t->max_rel_l2};
        uint32_t most = t->block_tokens < c->n_tokens ? t->block_tokens : c->n_tokens;
        char text[CODEC_SPEC_MAX];
        uint8_t *room;
        struct trial_plane made;
        struct shape p;
        int r = 0;

        if (!capturefile_shape(&t->file, layer, part, most, &p))
                return ctl_fail(x, KVT_E_BAD_REQUEST, "%s", t->file.path);
        room = malloc(3 * p.n_bytes);
        if (!room)
                return ctl_fail(x, KVT_E_NO_MEMORY, "%s", t->file.path);
        for (uint32_t at = 0, n; at < c->n_tokens && !r; at += n) {
                n = c->n_tokens - at < most ? c->n_tokens - at : most;
                capturefile_shape(&t->file, layer, part, n, &p);
                capturefile_take(&t->file, &p, capturefile_part(&t->file, layer, part), at, room);
                if (spec->codec->flags & CODEC_NEEDS_BASE) {
                        capturefile_take(&t->base, &p, capturefile_part(&t->base, layer, part), at, room + 2 * p.n_bytes);
                        q.base = room + 2 * p.n_bytes;
                        q.base_key = base_key;
                }
                r = trial_run(trial, &p, &q, room, room + p.n_bytes, &made);
                if (r)
                        break;
                trial_add(ret, &p, room, room + p.n_bytes, &made);
                count_end(ends, plane_describe(&p, &made.copy, trial->payload, text));
        }
        free(room);
        return r ? ctl_fail(x, r, "%s", t->file.path) : EXIT_OK;
}

static json_t *part_row(const struct capturefile *f, uint32_t layer, enum capture_part part, const struct trial_sums *s, json_t *ends)
{
        unsigned elem_bytes = (unsigned)(s->n_raw_bytes / s->n_values);
        uint64_t n = capture_part_bytes(&f->head, part) / elem_bytes;
        json_t *planes = json_array();

        for (unsigned i = 0; i < elem_bytes; i++)
                json_array_append_new(planes, json_real(entropy(capturefile_part(f, layer, part) + i, n, elem_bytes)));
        return json_pack("{s:i, s:s, s:f, s:f, s:f, s:f, s:o, s:O}", "layer", (int)layer, "role", part == CAPTURE_V ? "V" : "K", "bits",
                         trial_bits(s), "rel_l2", trial_rel_l2(s), "max_abs", (double)s->error.max_abs, "fell_back", trial_fell_back(s),
                         "entropy", planes, "ended_as", ends);
}

/* The numbers of a row as text, to print: the sum of the entropies, then each, the highest byte first. */
static void make_printable(json_t *row)
{
        json_t *entropies = json_object_get(row, "entropy"), *codecs = json_array(), *codec, *text = json_array();
        double sum = 0;
        size_t i_codec;

        for (size_t i = json_array_size(entropies); i-- > 0;) {
                sum += json_real_value(json_array_get(entropies, i));
                json_array_append_new(text, json_sprintf("%.3f", json_real_value(json_array_get(entropies, i))));
        }
        json_array_foreach(json_object_get(row, "ended_as"), i_codec, codec)
                json_array_append_new(codecs, json_sprintf("%s %lld", json_string_value(json_object_get(codec, "codec")),
                                                           (long long)json_integer_value(json_object_get(codec, "n_planes"))));
        json_object_set_new(row, "bits", json_sprintf("%6.3f", json_real_value(json_object_get(row, "bits"))));
        json_object_set_new(row, "rel_l2", json_sprintf("%7.5f", json_real_value(json_object_get(row, "rel_l2"))));
        json_object_set_new(row, "max_abs", json_sprintf("%7.4g", json_real_value(json_object_get(row, "max_abs"))));
        json_object_set_new(row, "sum", json_sprintf("%6.3f", sum));
        json_object_set_new(row, "entropy", text);
        json_object_set_new(row, "ended_as", codecs);
}

static int print_rows(struct ctl *x, json_t *rows)
{
        static const struct column columns[] = {
                {"LAYER", "layer"}, {"", "role"},       {"BITS", "bits"},        {"REL L2", "rel_l2"},
                {"MAX", "max_abs"}, {"ENTROPY", "sum"}, {"OF BYTES", "entropy"}, {"PLANES BY CODEC", "ended_as"},
        };
        json_t *row;
        size_t i;

        json_array_foreach(rows, i, row) make_printable(row);
        return table_print(stdout, columns, sizeof columns / sizeof *columns, rows, true, false)
                       ? ctl_fail(x, KVT_E_NO_MEMORY, "cannot print")
                       : EXIT_OK;
}

int codec_explain(struct ctl *x, const struct codec_task *t)
{
        json_t *rows = json_array();
        char spec[CODEC_PAIR_MAX];
        struct trial trial = {0};
        int code = EXIT_OK;

        for (uint32_t layer = 0; layer < t->file.head.n_layers && !code; layer++)
                for (enum capture_part part = CAPTURE_K; part <= CAPTURE_V && !code; part++) {
                        struct trial_sums sums = {0};
                        json_t *ends = json_array();

                        code = explain_part(x, t, &trial, layer, part, &sums, ends);
                        if (!code)
                                json_array_append_new(rows, part_row(&t->file, layer, part, &sums, ends));
                        json_decref(ends);
                }
        if (!code && x->o.json)
                code = ctl_print_json(x, json_pack("{s:s, s:i, s:O}", "spec", codec_pair_format(&t->pairs[0], spec), "block_tokens",
                                                   (int)t->block_tokens, "planes", rows));
        else if (!code)
                code = print_rows(x, rows);
        json_decref(rows);
        trial_deinit(&trial);
        return code;
}
