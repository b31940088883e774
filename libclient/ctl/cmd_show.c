/* status, tiers, tenants, spaces, sessions: what the daemon holds, and for whom. */
#include <stdlib.h>
#include <string.h>

#include "libclient/ctl/format.h"
#include "libclient/ctl/query.h"
#include "libclient/ctl/table.h"

#define N(array) (sizeof(array) / sizeof *(array))

/* Prints {"name": rows} or the table; takes rows. */
static int show_rows(struct ctl *x, const char *name, const struct column *columns, size_t n_columns, json_t *rows)
{
        int r;

        if (x->o.json)
                return ctl_print_json(x, json_pack("{s:o}", name, rows));
        r = table_print(stdout, columns, n_columns, rows, true, x->o.quiet);
        json_decref(rows);
        return r ? ctl_fail(x, r, "cannot print") : EXIT_OK;
}

static json_t *stat_json(const Kvtier__StatReply *stat)
{
        json_t *object = message_json(&stat->base), *counters = json_object();

        for (size_t i = 0; i < stat->n_counters; i++)
                json_object_set_new(counters, stat->counters[i]->name, json_integer((json_int_t)stat->counters[i]->value));
        json_object_set_new(object, "counters", counters);
        json_object_set_new(object, "hits", json_integer((json_int_t)stat_counter(stat, "hits")));
        json_object_set_new(object, "misses", json_integer((json_int_t)stat_counter(stat, "misses")));
        json_add_hit_ratio(object);
        return object;
}

/* What lies on devices is not cut into slabs. */
static bool tier_has_slabs(const Kvtier__Tier *t)
{
        return strcmp(t->name, "nvme") != 0;
}

static void print_stat(const Kvtier__StatReply *stat)
{
        char *version = format_clean(stat->daemon);
        double hits = (double)stat_counter(stat, "hits"), misses = (double)stat_counter(stat, "misses");

        printf("kvtierd %s  pid %llu  up %s  boot %.8s\n\n", version ? version : "?", (unsigned long long)stat->pid,
               format_duration(stat->uptime_usec).text, stat->boot_token);
        free(version);
        for (size_t i = 0; i < stat->n_tiers; i++) {
                const Kvtier__Tier *t = stat->tiers[i];
                char *name = format_clean(t->name), *pages = format_clean(t->pages);

                printf("%-8.8s %s %7s  %s used", name ? name : "?", format_bar((double)t->used_bytes, (double)t->capacity_bytes, 32).text,
                       format_percent((double)t->used_bytes, (double)t->capacity_bytes).text, format_bytes(t->used_bytes).text);
                printf(" of %s\n", format_bytes(t->capacity_bytes).text);
                printf("         %s payload, ", format_bytes(t->payload_bytes).text);
                if (tier_has_slabs(t)) {
                        printf("%s in %llu slabs", format_bytes(t->slab_bytes).text, (unsigned long long)t->n_slabs);
                        if (t->n_retired)
                                printf(" (%llu retired)", (unsigned long long)t->n_retired);
                        printf("%s%s\n", pages && *pages ? ", pages " : "", pages ? pages : "");
                } else
                        printf("%llu parts%s%s\n", (unsigned long long)t->n_blocks, pages && *pages ? ", by " : "", pages ? pages : "");
                free(name);
                free(pages);
        }
        printf("\nblocks   %-10llu  spaces        %-8llu  tenants   %llu\n", (unsigned long long)stat->n_blocks,
               (unsigned long long)stat->n_spaces, (unsigned long long)stat->n_tenants);
        printf("sessions %-10llu  leases        %-8llu  transfers %llu\n", (unsigned long long)stat->n_sessions,
               (unsigned long long)stat->n_leases, (unsigned long long)stat->n_xfers);
        printf("staging  %-10s  reservations  %-8llu  evicted   %llu\n", format_bytes(stat->staging_bytes).text,
               (unsigned long long)stat->n_reservations, (unsigned long long)stat_counter(stat, "evicted"));
        printf("hits     %-10.0f  misses        %-8.0f  hit ratio %s\n", hits, misses, format_percent(hits, hits + misses).text);
}

int cmd_status(struct ctl *x)
{
        Kvtier__StatReply *stat;
        int code = query_stat(x, x->o.audit, &stat);

        if (code)
                return code;
        if (x->o.json)
                code = ctl_print_json(x, stat_json(stat));
        else
                print_stat(stat);
        if (code == EXIT_OK && x->o.audit) {
                char *error = format_clean(stat->audit_error);

                if (!stat->audited)
                        code = ctl_fail(x, 0, "the daemon audits only for root and for its own user");
                else if (!error || *error)
                        code = ctl_fail(x, 0, "audit failed: %s", error ? error : "out of memory");
                else if (!x->o.json)
                        printf("\naudit ok: %llu blocks use %s, %llu leases\n", (unsigned long long)stat->audit_n_blocks,
                               format_bytes(stat->audit_used_bytes).text, (unsigned long long)stat->audit_leases);
                free(error);
        }
        kvt_call_free(&stat->base);
        return code;
}

int cmd_tiers(struct ctl *x)
{
        static const struct column columns[] = {
                {"TIER", "name"},           {"CAPACITY", "capacity_bytes"}, {"USED", "used_bytes"},
                {"USE", "used_ratio"},      {"PAYLOAD", "payload_bytes"},   {"SLABS", "n_slabs"},
                {"IN SLABS", "slab_bytes"}, {"RETIRED", "n_retired"},       {"PAGES", "pages"},
                {"PARTS", "n_blocks"},
        };
        Kvtier__StatReply *stat;
        json_t *rows;
        int code = query_stat(x, false, &stat);

        if (code)
                return code;
        rows = json_array();
        for (size_t i = 0; i < stat->n_tiers; i++) {
                const Kvtier__Tier *t = stat->tiers[i];
                json_t *row = message_json(&t->base);

                json_object_set_new(row, "used_ratio",
                                    t->capacity_bytes ? json_real((double)t->used_bytes / (double)t->capacity_bytes) : json_null());
                json_array_append_new(rows, row);
        }
        kvt_call_free(&stat->base);
        return show_rows(x, "tiers", columns, N(columns), rows);
}

int cmd_tenants(struct ctl *x)
{
        static const struct column columns[] = {
                {"TENANT", "name"},     {"USED", "used_bytes"}, {"HELD", "held_bytes"},     {"SOFT", "soft_bytes"},
                {"HARD", "hard_bytes"}, {"BLOCKS", "n_blocks"}, {"SESSIONS", "n_sessions"}, {"LEASES", "n_leases"},
                {"HITS", "hits"},       {"MISSES", "misses"},   {"HIT RATIO", "hit_ratio"}, {"EVICTED", "evicted"},
        };
        json_t *rows;
        int code = query_list(x, KVTIER__LIST_WHAT__LIST_TENANTS, &rows);

        return code ? code : show_rows(x, "tenants", columns, N(columns), rows);
}

int cmd_sessions(struct ctl *x)
{
        static const struct column columns[] = {
                {"ID", "id"},           {"TENANT", "tenant"},         {"NAME", "name"},           {"PID", "pid"},      {"UID", "uid"},
                {"LEASES", "n_leases"}, {"STAGING", "staging_bytes"}, {"REQUESTS", "n_requests"}, {"AGE", "age_usec"},
        };
        json_t *rows;
        int code = query_list(x, KVTIER__LIST_WHAT__LIST_SESSIONS, &rows);

        return code ? code : show_rows(x, "sessions", columns, N(columns), rows);
}

/* planes */

static const char *role_name(uint32_t role)
{
        static const char *const names[] = {[KVT_ROLE_K] = "k",
                                            [KVT_ROLE_V] = "v",
                                            [KVT_ROLE_LATENT] = "latent",
                                            [KVT_ROLE_STATE] = "state",
                                            [KVT_ROLE_INDEXER] = "indexer"};

        return role < N(names) ? names[role] : "unknown";
}

static const char *dtype_name(uint32_t dtype)
{
        static const char *const names[] = {[KVT_DTYPE_F32] = "f32", [KVT_DTYPE_F16] = "f16",   [KVT_DTYPE_BF16] = "bf16",
                                            [KVT_DTYPE_FP8] = "fp8", [KVT_DTYPE_INT8] = "int8", [KVT_DTYPE_OPAQUE] = "opaque"};

        return dtype < N(names) ? names[dtype] : "unknown";
}

static json_t *planes_json(const struct geometry *g)
{
        json_t *planes = json_array();

        for (uint32_t i = 0; i < g->n_planes; i++) {
                const kvt_plane *p = g->planes + i;

                json_array_append_new(planes,
                                      json_pack("{s:I, s:s, s:s, s:I, s:I, s:I, s:I, s:I, s:I}", "layer", (json_int_t)p->layer, "role",
                                                role_name(p->role), "dtype", dtype_name(p->dtype), "heads", (json_int_t)p->heads, "dim",
                                                (json_int_t)p->dim, "opaque_bytes", (json_int_t)p->opaque_bytes, "window_tokens",
                                                (json_int_t)p->window_tokens, "offset", (json_int_t)g->offsets[i], "bytes",
                                                (json_int_t)(g->offsets[i + 1] - g->offsets[i])));
        }
        return planes;
}

static bool planes_alike(const kvt_plane *a, const kvt_plane *b)
{
        return a->role == b->role && a->dtype == b->dtype && a->heads == b->heads && a->dim == b->dim &&
               a->opaque_bytes == b->opaque_bytes && a->window_tokens == b->window_tokens;
}

/* Number of planes from i on that belong to one layer. */
static uint32_t layer_planes(const struct geometry *g, uint32_t i)
{
        uint32_t n = 1;

        while (i + n < g->n_planes && g->planes[i + n].layer == g->planes[i].layer)
                n++;
        return n;
}

/* One line for each run of layers whose planes are alike. */
static void print_planes(const struct geometry *g)
{
        for (uint32_t i = 0, next; i < g->n_planes; i = next) {
                uint32_t n = layer_planes(g, i), last = g->planes[i].layer;
                bool alike = true;

                for (next = i + n; alike && next < g->n_planes; next += alike ? n : 0) {
                        alike = layer_planes(g, next) == n && g->planes[next].layer == last + 1;
                        for (uint32_t j = 0; alike && j < n; j++)
                                alike = planes_alike(g->planes + i + j, g->planes + next + j);
                        last += alike;
                }
                if (last == g->planes[i].layer)
                        printf("  layer  %-9u", last);
                else {
                        struct formatted range;

                        snprintf(range.text, sizeof range.text, "%u-%u", g->planes[i].layer, last);
                        printf("  layers %-9s", range.text);
                }
                for (uint32_t j = 0; j < n; j++) {
                        const kvt_plane *p = g->planes + i + j;

                        printf("%s%s ", j ? ", " : "", role_name(p->role));
                        if (p->dtype == KVT_DTYPE_OPAQUE)
                                printf("%u bytes a %s", p->opaque_bytes, p->role == KVT_ROLE_STATE ? "block" : "token");
                        else
                                printf("%s %ux%u", dtype_name(p->dtype), p->heads, p->dim);
                        if (p->window_tokens)
                                printf(" window %u", p->window_tokens);
                }
                putchar('\n');
        }
}

static void print_space(const struct space *s, const char *name)
{
        const Kvtier__SpaceEntry *e = s->entry;
        char *tenant = format_clean(e->tenant);

        printf("space    %s\nhandle   %u\ntenant   %s\n", name, e->space, tenant ? tenant : "?");
        printf("salt     %s\n", e->salt_digest.len ? format_hex(e->salt_digest.data, e->salt_digest.len).text : "none");
        printf("block    %u tokens, %u part%s of %s\n", e->block_tokens, e->n_shards, e->n_shards == 1 ? "" : "s",
               format_bytes(e->part_bytes).text);
        printf("stored   %llu blocks, %s\n", (unsigned long long)e->n_blocks, format_bytes(e->used_bytes).text);
        printf("hits     %llu of %llu, %s\n", (unsigned long long)e->hits, (unsigned long long)(e->hits + e->misses),
               format_percent((double)e->hits, (double)e->hits + (double)e->misses).text);
        if (e->max_rel_l2 > 0)
                printf("fidelity relative L2 error of a plane at most %g\n", (double)e->max_rel_l2);
        else
                puts("fidelity lossless");
        printf("codecs   hot %s, cold %s, nvme %s\n", e->hot, e->cold, e->nvme);
        if (e->n_copies)
                printf("memory   %llu parts in %s, put as %s\n", (unsigned long long)e->n_copies, format_bytes(e->used_bytes).text,
                       format_bytes(e->n_copies * e->part_bytes).text);
        printf("planes   %u, heads x dim:\n", s->geometry.n_planes);
        print_planes(&s->geometry);
        free(tenant);
}

static int show_space(struct ctl *x, const char *which)
{
        struct space s;
        char *name;
        int code = query_space(x, which, &s);

        if (code)
                return code;
        name = format_clean(s.entry->name);
        if (!name)
                code = ctl_fail(x, KVT_E_NO_MEMORY, "cannot print");
        else if (x->o.json) {
                json_t *object = message_json(&s.entry->base);

                json_object_set_new(object, "planes", planes_json(&s.geometry));
                json_add_hit_ratio(object);
                code = ctl_print_json(x, object);
        } else if (x->o.quiet)
                puts(name);
        else
                print_space(&s, name);
        free(name);
        space_deinit(&s);
        return code;
}

int cmd_spaces(struct ctl *x)
{
        static const struct column columns[] = {
                {"NAME", "name"},           {"ID", "space"},        {"TENANT", "tenant"},       {"SALT", "salt_digest"},
                {"TOKENS", "block_tokens"}, {"SHARDS", "n_shards"}, {"PLANES", "plane_count"},  {"PART", "part_bytes"},
                {"BLOCKS", "n_blocks"},     {"USED", "used_bytes"}, {"HIT RATIO", "hit_ratio"},
        };
        json_t *rows;
        int code;

        if (x->n_operands > 1 && !strcmp(x->operands[0], "set"))
                return spaces_set(x);
        if (x->n_operands > 1 || x->o.tenant)
                return ctl_misuse(x, "give one space, or set NAME RUNG=CODECS...");
        if (x->n_operands)
                return show_space(x, x->operands[0]);
        code = query_list(x, KVTIER__LIST_WHAT__LIST_SPACES, &rows);
        return code ? code : show_rows(x, "spaces", columns, N(columns), rows);
}
