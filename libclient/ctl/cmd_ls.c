/* ls: the blocks of a space, page by page; or all of them as a tree.
 *
 * In the tree, blocks with exactly one child are joined with it: a line is a *run*, a stretch of prompts without a branch. A chain of
 * a thousand blocks is one line, and what is indented below it are the different ways in which it goes on. */
#include <stdlib.h>
#include <string.h>

#include "libclient/ctl/format.h"
#include "libclient/ctl/query.h"
#include "libclient/ctl/table.h"

#define N(array) (sizeof(array) / sizeof *(array))

struct listing {
        struct ctl *x;
        size_t n_printed;
};

static int print_page(const struct kvt_block_entry *entries, size_t n, void *arg)
{
        static const struct column columns[] = {
                {"KEY", "key", 32},      {"PARENT", "parent", 32}, {"BYTES", "bytes", 10}, {"PARTS", "n_parts"},       {"HITS", "hits", 7},
                {"IDLE", "idle_sec", 7}, {"AGE", "age_sec", 7},    {"LEASES", "leases"},   {"CHILDREN", "n_children"}, {"IN", "tiers", 9},
        };
        struct listing *l = arg;
        json_t *rows = json_array();
        int r = rows ? 0 : -1;

        for (size_t i = 0; i < n && r == 0; i++)
                r = json_array_append_new(rows, block_json(entries + i));
        if (r == 0 && l->x->o.json) {
                for (size_t i = 0; i < n && r == 0; i++) {
                        fputs(l->n_printed + i ? "," : "", stdout);
                        r = json_dumpf(json_array_get(rows, i), stdout, JSON_COMPACT);
                }
        } else if (r == 0)
                r = table_print(stdout, columns, N(columns), rows, l->n_printed == 0, l->x->o.quiet);
        json_decref(rows);
        l->n_printed += n;
        return r ? ctl_fail(l->x, KVT_E_NO_MEMORY, "cannot print") : EXIT_OK;
}

/* the tree */

struct node {
        struct kvt_block_entry entry;
        size_t i_child, n_children; /* in forest.children: listed ones, whatever the daemon counts */
        bool is_root;
};

struct forest {
        struct ctl *x;
        struct node *nodes; /* sorted by key */
        size_t n, cap;
        size_t *children; /* indices into nodes, those of one parent side by side */
};

static int collect_page(const struct kvt_block_entry *entries, size_t n, void *arg)
{
        struct forest *f = arg;

        if (f->n + n > f->cap) {
                size_t cap = 2 * (f->n + n);
                struct node *nodes = reallocarray(f->nodes, cap, sizeof *nodes);

                if (!nodes)
                        return ctl_fail(f->x, KVT_E_NO_MEMORY, "%zu blocks are too many for a tree; use --limit", f->n + n);
                f->nodes = nodes;
                f->cap = cap;
        }
        for (size_t i = 0; i < n; i++)
                f->nodes[f->n++] = (struct node){.entry = entries[i]};
        return EXIT_OK;
}

static int compare_nodes(const void *a, const void *b)
{
        return memcmp(((const struct node *)a)->entry.key, ((const struct node *)b)->entry.key, 16);
}

static struct node *find_node(const struct forest *f, const uint8_t key[16])
{
        struct node wanted;

        memcpy(wanted.entry.key, key, 16);
        return bsearch(&wanted, f->nodes, f->n, sizeof wanted, compare_nodes);
}

/* Counts children, gives each parent its place, fills the places. */
static bool link_nodes(struct forest *f)
{
        size_t at = 0;

        qsort(f->nodes, f->n, sizeof *f->nodes, compare_nodes);
        f->children = calloc(f->n + 1, sizeof *f->children);
        if (!f->children)
                return false;
        for (size_t i = 0; i < f->n; i++) {
                struct node *parent = find_node(f, f->nodes[i].entry.parent);

                f->nodes[i].is_root = !parent;
                if (parent)
                        parent->n_children++;
        }
        for (size_t i = 0; i < f->n; i++) {
                f->nodes[i].i_child = at;
                at += f->nodes[i].n_children;
                f->nodes[i].n_children = 0;
        }
        for (size_t i = 0; i < f->n; i++)
                if (!f->nodes[i].is_root) {
                        struct node *parent = find_node(f, f->nodes[i].entry.parent);

                        f->children[parent->i_child + parent->n_children++] = i;
                }
        return true;
}

/* The run that begins at node i, as a row; *ret_last is its last node. */
static json_t *run_json(const struct forest *f, size_t i, unsigned depth, const struct node **ret_last)
{
        const struct node *node = f->nodes + i;
        uint64_t n_blocks = 1, n_bytes = node->entry.bytes;
        uint32_t hits = node->entry.hits, idle = node->entry.idle_sec;
        static const uint8_t none[16];
        char label[160];
        bool is_cut = node->is_root && memcmp(node->entry.parent, none, 16) != 0;

        while (node->n_children == 1) {
                node = f->nodes + f->children[node->i_child];
                n_blocks++;
                n_bytes += node->entry.bytes;
                hits = node->entry.hits > hits ? node->entry.hits : hits;
                idle = node->entry.idle_sec < idle ? node->entry.idle_sec : idle;
        }
        *ret_last = node;
        /* a root with a parent: that one is not stored, or past the limit */
        snprintf(label, sizeof label, "%*s%s%s", 2 * (int)(depth < 24 ? depth : 24), "", is_cut ? "...." : "",
                 format_key(f->nodes[i].entry.key).text);
        return json_pack("{s:s, s:I, s:s, s:s, s:s, s:s, s:I, s:I, s:I, s:I, s:I}", "tree", label, "depth", (json_int_t)depth, "first",
                         format_key(f->nodes[i].entry.key).text, "last", format_key(node->entry.key).text, "last_short",
                         format_hex(node->entry.key, 4).text, "parent", depth || is_cut ? format_key(f->nodes[i].entry.parent).text : "",
                         "n_blocks", (json_int_t)n_blocks, "bytes", (json_int_t)n_bytes, "hits", (json_int_t)hits, "idle_sec",
                         (json_int_t)idle, "n_branches", (json_int_t)node->n_children);
}

/* Depth first with a stack of its own: prompts may branch as often as they are long. */
static int print_forest(struct forest *f)
{
        static const struct column columns[] = {
                {"FIRST KEY", "tree", 32}, {"BLOCKS", "n_blocks"}, {"LAST KEY", "last_short"},
                {"BYTES", "bytes"},        {"HITS", "hits"},       {"IDLE", "idle_sec"},
        };
        struct {
                size_t node;
                unsigned depth;
        } *stack = calloc(f->n + 1, sizeof *stack);
        json_t *runs = json_array();
        int r = stack && runs && link_nodes(f) ? 0 : -1;
        size_t n = 0;

        for (size_t root = 0; r == 0 && root < f->n; root++) {
                if (!f->nodes[root].is_root)
                        continue;
                stack[n].node = root;
                stack[n++].depth = 0;
                while (n && r == 0) {
                        size_t i = stack[--n].node;
                        unsigned depth = stack[n].depth;
                        const struct node *last;

                        r = json_array_append_new(runs, run_json(f, i, depth, &last));
                        for (size_t j = last->n_children; r == 0 && j-- > 0;) {
                                stack[n].node = f->children[last->i_child + j];
                                stack[n++].depth = depth + 1;
                        }
                }
        }
        free(stack);
        if (r) {
                json_decref(runs);
                return ctl_fail(f->x, KVT_E_NO_MEMORY, "cannot draw a tree of %zu blocks", f->n);
        }
        if (f->x->o.json) {
                json_t *run;
                size_t i;

                json_array_foreach(runs, i, run)
                {
                        json_object_del(run, "tree");
                        json_object_del(run, "last_short");
                }
                return ctl_print_json(f->x, json_pack("{s:o}", "runs", runs));
        }
        r = table_print(stdout, columns, N(columns), runs, true, f->x->o.quiet);
        json_decref(runs);
        return r ? ctl_fail(f->x, r, "cannot print") : EXIT_OK;
}

int cmd_ls(struct ctl *x)
{
        struct listing l = {.x = x};
        struct forest f = {.x = x};
        struct space s;
        int code = query_space(x, x->operands[0], &s);

        if (code)
                return code;
        if (x->o.tree) {
                code = query_blocks(x, s.entry->space, x->o.limit, collect_page, &f);
                code = code ? code : print_forest(&f);
                free(f.nodes);
                free(f.children);
        } else {
                fputs(x->o.json ? "{\"blocks\":[" : "", stdout);
                code = query_blocks(x, s.entry->space, x->o.limit, print_page, &l);
                if (code == EXIT_OK && x->o.json)
                        puts("]}");
        }
        space_deinit(&s);
        return code;
}
