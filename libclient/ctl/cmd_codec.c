/* codec: what codecs make of captured KV. list: the registry; bench: several codecs on a whole capture; explain: one, plane by plane. */
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "libclient/ctl/cmd_codec.h"
#include "libclient/ctl/format.h"
#include "libclient/ctl/table.h"

/* What bench tries when it is not told: those of codecs that are there. A codec that is in no line is tried with its defaults. */
static const char *const usual_specs[] = {
        "raw",
        "zbf",
        "cbf",
        "xdelta",
        "kivi:bits=8",
        "kivi:bits=8,params=8",
        "kivi:bits=4",
        "kivi:bits=4,params=8",
        "kivi:bits=3",
        "kivi:bits=3,params=8",
        "kivi:bits=2",
        "kivi:bits=2,params=8",
        "kivi:bits=1",
        "kivi:bits=1,params=8",
        "turbo:bits=4",
        "turbo:bits=3",
        "turbo:bits=2",
        "turbo:bits=1",
        "turbo:bits=4,centre=0",
        "turbo:bits=2,centre=0",
        "mixed:low=4",
        "mixed:low=3",
        "mixed:low=2",
        "mixed:low=1",
        "gear:bits=4",
        "gear:bits=2",
        "stack:levels=5",
        "stack:levels=4",
        "stack:levels=3",
        "stack:levels=2",
        "bitmap:keep=70",
        "bitmap:keep=50",
        "bitmap:keep=50,small=1",
        "bitmap:keep=30,small=1",
};
enum { N_USUAL = sizeof usual_specs / sizeof *usual_specs };

static int parse_pair(struct ctl *x, const char *text, struct codec_pair *ret)
{
        const char *why = NULL;

        return codec_pair_parse(text, ret, &why) ? ctl_misuse(x, "%s: %s", text, why) : EXIT_OK;
}

static bool needs_base(const struct codec_pair *p)
{
        return (p->k.codec->flags | p->v.codec->flags) & CODEC_NEEDS_BASE;
}

static void add_usual(struct codec_task *t)
{
        for (const struct codec *c = NULL; (c = codec_next(c));) {
                size_t n_before = t->n_pairs;

                if (c->flags & CODEC_NEEDS_BASE && !t->base.bytes)
                        continue;
                for (size_t i = 0; i < N_USUAL; i++) {
                        struct codec_pair p;
                        const char *why;

                        if (!codec_pair_parse(usual_specs[i], &p, &why) && p.k.codec == c)
                                t->pairs[t->n_pairs++] = p;
                }
                if (t->n_pairs == n_before)
                        t->pairs[t->n_pairs++] = (struct codec_pair){codec_spec_default(c), codec_spec_default(c)};
        }
}

/* SPEC... of the command line; none: the usual ones, for explain zbf. */
static int read_pairs(struct ctl *x, struct codec_task *t, bool explains)
{
        size_t n = x->n_operands > 2 ? (size_t)x->n_operands - 2 : 0;
        int code = EXIT_OK;

        t->pairs = calloc(n + N_USUAL + CODEC_N_IDS, sizeof *t->pairs);
        if (!t->pairs)
                return ctl_fail(x, KVT_E_NO_MEMORY, "cannot start");
        for (size_t i = 0; i < n && !code; i++) {
                code = parse_pair(x, x->operands[i + 2], &t->pairs[i]);
                if (!code && needs_base(&t->pairs[i]) && !t->base.bytes)
                        code = ctl_misuse(x, "%s works against another capture of the same tokens: --base", x->operands[i + 2]);
        }
        t->n_pairs = n;
        if (!n && explains) {
                struct codec_spec s = codec_spec_default(codec_find(CODEC_ZBF) ?: codec_find(CODEC_RAW));

                t->pairs[t->n_pairs++] = (struct codec_pair){s, s};
        } else if (!n && !code) {
                add_usual(t);
        }
        return code;
}

static int open_base(struct ctl *x, struct codec_task *t)
{
        struct capture *a = &t->file.head, *b = &t->base.head;
        int code = capturefile_open(x, x->o.base, &t->base);

        if (code)
                return code;
        if (a->dtype != b->dtype || a->n_layers != b->n_layers || a->n_kv_heads != b->n_kv_heads || a->head_dim != b->head_dim ||
            a->n_tokens != b->n_tokens)
                return ctl_fail(x, 0, "%s is of another shape than %s", t->base.path, t->file.path);
        return EXIT_OK;
}

static int read_numbers(struct ctl *x, struct codec_task *t)
{
        t->max_rel_l2 = INFINITY;
        if (x->o.bound) {
                char *end;

                errno = 0;
                t->max_rel_l2 = strtof(x->o.bound, &end);
                if (errno || end == x->o.bound || *end || !(t->max_rel_l2 >= 0) || signbit(t->max_rel_l2))
                        return ctl_misuse(x, "--bound takes a relative error, such as 0.05, not '%s'", x->o.bound);
        }
        if (!x->o.block || x->o.block > UINT32_MAX)
                return ctl_misuse(x, "--block: a block has at least one token");
        if (x->o.queries > 65536)
                return ctl_misuse(x, "--queries takes at most 65536");
        t->block_tokens = (uint32_t)x->o.block;
        t->n_queries = (uint32_t)x->o.queries;
        return EXIT_OK;
}

/* codec list */

static json_t *params_json(const struct codec *c)
{
        json_t *array = json_array();

        for (unsigned i = 0; i < CODEC_PARAMS_MAX && c->params[i].name; i++) {
                const struct codec_param *p = &c->params[i];
                json_t *values = json_array();

                for (unsigned j = 0; j < 8 && p->allowed[j]; j++)
                        json_array_append_new(values, json_integer(p->allowed[j]));
                json_array_append_new(array, json_pack("{s:s, s:i, s:i, s:i, s:o, s:s}", "name", p->name, "default", p->value, "min",
                                                       p->min, "max", p->max, "allowed", values, "help", p->help ? p->help : ""));
        }
        return array;
}

static void print_codec(const struct codec *c)
{
        printf("%-8s%s%s%s%s\n", c->name, c->summary, c->flags & CODEC_LOSSLESS ? "; lossless" : "",
               c->flags & CODEC_ROW_ACCESS ? "; row access" : "", c->flags & CODEC_TRUNCATES ? "; can be truncated" : "");
        for (unsigned i = 0; i < CODEC_PARAMS_MAX && c->params[i].name; i++) {
                const struct codec_param *p = &c->params[i];

                printf("        %s=%u (", p->name, p->value);
                for (unsigned j = 0; j < 8 && p->allowed[j]; j++)
                        printf("%s%u", j ? ", " : "", p->allowed[j]);
                if (!p->allowed[0])
                        printf("%u to %u", p->min, p->max);
                printf(") %s\n", p->help ? p->help : "");
        }
}

static int codec_list(struct ctl *x)
{
        json_t *array;

        if (x->n_operands > 1)
                return ctl_misuse(x, "list takes no file");
        array = json_array();
        for (const struct codec *c = NULL; (c = codec_next(c));) {
                if (x->o.json)
                        json_array_append_new(array,
                                              json_pack("{s:i, s:s, s:s, s:b, s:b, s:b, s:b, s:o}", "id", c->id, "name", c->name, "summary",
                                                        c->summary, "lossless", !!(c->flags & CODEC_LOSSLESS), "row_access",
                                                        !!(c->flags & CODEC_ROW_ACCESS), "truncates", !!(c->flags & CODEC_TRUNCATES),
                                                        "needs_base", !!(c->flags & CODEC_NEEDS_BASE), "params", params_json(c)));
                else
                        print_codec(c);
        }
        if (x->o.json)
                return ctl_print_json(x, array);
        json_decref(array);
        return EXIT_OK;
}

int cmd_codec(struct ctl *x)
{
        bool explains = !strcmp(x->operands[0], "explain");
        struct codec_task t = {0};
        int code;

        if (!strcmp(x->operands[0], "list"))
                return codec_list(x);
        if (!explains && strcmp(x->operands[0], "bench") != 0)
                return ctl_misuse(x, "codec does bench, explain or list, not '%s'", x->operands[0]);
        if (x->n_operands < 2)
                return ctl_misuse(x, "which capture?");
        if (explains && x->n_operands > 3)
                return ctl_misuse(x, "explain takes one codec");
        code = read_numbers(x, &t);
        code = code ? code : capturefile_open(x, x->operands[1], &t.file);
        if (!code && x->o.base)
                code = open_base(x, &t);
        code = code ? code : read_pairs(x, &t, explains);
        if (!code)
                code = explains ? codec_explain(x, &t) : codec_bench(x, &t);
        capturefile_close(&t.file);
        capturefile_close(&t.base);
        free(t.pairs);
        return code;
}
