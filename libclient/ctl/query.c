/* Questions to the daemon: see query.h. Answers are foreign: handles, cursors and geometries in them are checked before use. */
#include <stdlib.h>
#include <string.h>

#include "libclient/ctl/format.h"
#include "libclient/ctl/latency.h"
#include "libclient/ctl/query.h"
#include "libclient/ctl/table.h"

int query_call(struct ctl *x, uint16_t type, const ProtobufCMessage *request, const ProtobufCMessageDescriptor *reply_type,
               ProtobufCMessage **ret_reply)
{
        char text[256] = "";
        int code, r = kvt_call(x->connection, type, request, reply_type, ret_reply, text, sizeof text);
        char *clean;

        if (r == 0)
                return EXIT_OK;
        if (!text[0] || strcmp(text, kvt_strerror(r)) == 0)
                return ctl_fail(x, r, "request failed");
        clean = format_clean(text);
        if (clean && r != KVT_E_DISCONNECTED) /* the daemon's own words say it better than the error in general */
                code = ctl_fail(x, 0, "%s (%s)", clean, kvt_error_name(r));
        else
                code = ctl_fail(x, r, "request failed");
        free(clean);
        return code;
}

int query_stat(struct ctl *x, bool audit, Kvtier__StatReply **ret)
{
        Kvtier__StatRequest request = KVTIER__STAT_REQUEST__INIT;

        request.audit = audit;
        return query_call(x, KVT_MSG_STAT, &request.base, &kvtier__stat_reply__descriptor, (ProtobufCMessage **)ret);
}

uint64_t stat_counter(const Kvtier__StatReply *stat, const char *name)
{
        for (size_t i = 0; i < stat->n_counters; i++)
                if (strcmp(stat->counters[i]->name, name) == 0)
                        return stat->counters[i]->value;
        return 0;
}

static int list_page(struct ctl *x, const Kvtier__ListRequest *request, Kvtier__ListReply **ret)
{
        Kvtier__ListReply *reply;
        int code;

        code = query_call(x, KVT_MSG_LIST, &request->base, &kvtier__list_reply__descriptor, (ProtobufCMessage **)&reply);
        if (code)
                return code;
        if (reply->next_cursor && reply->next_cursor == request->cursor) {
                kvt_call_free(&reply->base);
                return ctl_fail(x, 0, "the daemon sent a page that leads to itself");
        }
        *ret = reply;
        return EXIT_OK;
}

int query_list(struct ctl *x, Kvtier__ListWhat what, json_t **ret_rows)
{
        Kvtier__ListRequest request = KVTIER__LIST_REQUEST__INIT;
        json_t *rows = json_array();
        int r = rows ? 0 : -1;

        request.what = what;
        do {
                Kvtier__ListReply *reply;
                int code = list_page(x, &request, &reply);

                if (code) {
                        json_decref(rows);
                        return code;
                }
                for (size_t i = 0; i < reply->n_tenants && r == 0; i++) {
                        json_t *row = message_json(&reply->tenants[i]->base);

                        json_add_hit_ratio(row);
                        r = json_array_append_new(rows, row);
                }
                for (size_t i = 0; i < reply->n_spaces && r == 0; i++) {
                        json_t *row = message_json(&reply->spaces[i]->base);

                        json_object_del(row, "planes"); /* only there when one space is asked for */
                        json_add_hit_ratio(row);
                        r = json_array_append_new(rows, row);
                }
                for (size_t i = 0; i < reply->n_sessions && r == 0; i++)
                        r = json_array_append_new(rows, message_json(&reply->sessions[i]->base));
                for (size_t i = 0; i < reply->n_devices && r == 0; i++)
                        r = json_array_append_new(rows, latency_json(reply->devices[i]));
                request.cursor = reply->next_cursor;
                kvt_call_free(&reply->base);
        } while (request.cursor && r == 0);
        if (r) {
                json_decref(rows);
                return ctl_fail(x, KVT_E_NO_MEMORY, "cannot list");
        }
        *ret_rows = rows;
        return EXIT_OK;
}

int query_blocks(struct ctl *x, uint32_t space, uint64_t limit, int (*fn)(const struct kvt_block_entry *entries, size_t n, void *arg),
                 void *arg)
{
        Kvtier__ListRequest request = KVTIER__LIST_REQUEST__INIT;
        uint64_t left = limit ? limit : UINT64_MAX;
        int code;

        request.what = KVTIER__LIST_WHAT__LIST_BLOCKS;
        request.space = space;
        do {
                Kvtier__ListReply *reply;
                struct kvt_block_entry *entries;
                size_t n;

                request.limit = left < 1024 ? (uint32_t)left : 1024;
                code = list_page(x, &request, &reply);
                if (code)
                        return code;
                n = reply->blocks.len / sizeof *entries;
                n = n < left ? n : (size_t)left;
                entries = malloc(n * sizeof *entries + 1); /* the message's bytes may lie anywhere; entries are aligned */
                if (entries) {
                        if (n) { /* a page may be empty: blocks of other spaces were looked at */
                                memcpy(entries, reply->blocks.data, n * sizeof *entries);
                                code = fn(entries, n, arg);
                        }
                        free(entries);
                } else
                        code = ctl_fail(x, KVT_E_NO_MEMORY, "cannot list");
                left -= n;
                request.cursor = reply->next_cursor;
                kvt_call_free(&reply->base);
        } while (code == EXIT_OK && request.cursor && left);
        return code;
}

/* A number is a handle if there is such a handle, else a name like any other. */
static int find_handle(struct ctl *x, const char *name, uint32_t *ret)
{
        json_t *rows, *row;
        uint64_t number = 0;
        size_t i, n_found = 0;
        bool is_number = parse_number(name, 1, UINT32_MAX, &number), handle_exists = false;
        int code = query_list(x, KVTIER__LIST_WHAT__LIST_SPACES, &rows);

        if (code)
                return code;
        json_array_foreach(rows, i, row)
        {
                json_int_t handle = json_integer_value(json_object_get(row, "space"));

                handle_exists = handle_exists || (is_number && (uint64_t)handle == number);
                if (strcmp(json_string_value(json_object_get(row, "name")), name) == 0) {
                        n_found++;
                        *ret = (uint32_t)handle;
                }
        }
        if (n_found > 1 && !handle_exists) {
                ctl_say(x, "%zu spaces are called %s; give a handle:", n_found, name);
                json_array_foreach(rows, i, row)
                {
                        if (strcmp(json_string_value(json_object_get(row, "name")), name) == 0)
                                ctl_say(x, "  %lld  tenant %s, salt %s", (long long)json_integer_value(json_object_get(row, "space")),
                                        json_string_value(json_object_get(row, "tenant")),
                                        *json_string_value(json_object_get(row, "salt_digest"))
                                                ? json_string_value(json_object_get(row, "salt_digest"))
                                                : "none");
                }
                code = EXIT_FAILED;
        } else if (handle_exists)
                *ret = (uint32_t)number;
        else if (n_found == 0)
                code = ctl_fail(x, 0, "no space is called %s", name);
        json_decref(rows);
        return code;
}

int query_space(struct ctl *x, const char *name, struct space *ret)
{
        Kvtier__ListRequest request = KVTIER__LIST_REQUEST__INIT;
        struct space s = {};
        kvt_plane *planes;
        const char *why = "out of memory";
        int code, r = KVT_E_NO_MEMORY;

        request.what = KVTIER__LIST_WHAT__LIST_SPACES;
        code = find_handle(x, name, &request.space);
        if (code)
                return code;
        code = list_page(x, &request, &s.reply);
        if (code)
                return code;
        if (s.reply->n_spaces != 1 || s.reply->spaces[0]->space != request.space) {
                space_deinit(&s);
                return ctl_fail(x, 0, "space %u is gone", request.space);
        }
        s.entry = s.reply->spaces[0];
        planes = calloc(s.entry->n_planes + 1, sizeof *planes);
        if (planes) {
                for (size_t i = 0; i < s.entry->n_planes; i++) {
                        const Kvtier__Plane *p = s.entry->planes[i];

                        planes[i] = (kvt_plane){p->layer, p->role, p->dtype, p->heads, p->dim, p->opaque_bytes, p->window_tokens};
                }
                r = geometry_init(&s.geometry, s.entry->block_tokens, s.entry->n_shards, planes, s.entry->n_planes, &why);
                free(planes);
        }
        if (r == 0 && s.geometry.part_bytes != s.entry->part_bytes) {
                why = "its planes do not add up to part_bytes";
                r = KVT_E_BAD_REQUEST;
        }
        if (r) {
                space_deinit(&s);
                return ctl_fail(x, 0, "the daemon described space %s in a way that cannot be: %s", name, why);
        }
        *ret = s;
        return EXIT_OK;
}

void space_deinit(struct space *s)
{
        geometry_deinit(&s->geometry);
        if (s->reply)
                kvt_call_free(&s->reply->base);
        *s = (struct space){};
}

int query_attach(struct ctl *x, const struct space *s, uint32_t shard, const void *salt, size_t n_salt, kvt_space **ret)
{
        const kvt_space_config config = {
                .struct_size = sizeof config,
                .name = s->entry->name,
                .salt = salt,
                .salt_bytes = n_salt,
                .block_tokens = s->geometry.block_tokens,
                .n_shards = s->geometry.n_shards,
                .shard = shard,
                .planes = s->geometry.planes,
                .n_planes = s->geometry.n_planes,
                .max_rel_l2 = s->entry->max_rel_l2,
        };
        int r = kvt_space_attach(x->connection, s->entry->space, &config, ret);

        return r ? ctl_fail(x, r, "cannot use space %u", s->entry->space) : EXIT_OK;
}

struct prefix {
        uint8_t bytes[16];
        size_t n_digits;
        uint8_t found[2][16];
        size_t n_found;
};

static bool prefix_matches(const struct prefix *p, const uint8_t key[16])
{
        return memcmp(p->bytes, key, p->n_digits / 2) == 0 &&
               (p->n_digits % 2 == 0 || p->bytes[p->n_digits / 2] >> 4 == key[p->n_digits / 2] >> 4);
}

static int collect_prefix(const struct kvt_block_entry *entries, size_t n, void *arg)
{
        struct prefix *p = arg;

        for (size_t i = 0; i < n && p->n_found < 2; i++)
                if (prefix_matches(p, entries[i].key))
                        memcpy(p->found[p->n_found++], entries[i].key, 16);
        return p->n_found < 2 ? EXIT_OK : EXIT_FAILED;
}

int query_key(struct ctl *x, const struct space *s, const char *text, uint8_t ret[16])
{
        struct prefix p = {.n_digits = strlen(text)};
        char padded[33];
        size_t n;
        int code;

        if (parse_key(text, ret))
                return EXIT_OK;
        if (p.n_digits < 4 || p.n_digits > 31)
                return ctl_misuse(x, "%s is no key: 32 hexadecimal digits, or at least the first 4 of a stored one", text);
        memset(padded, '0', 32);
        memcpy(padded, text, p.n_digits);
        if (!parse_hex(padded, 32, p.bytes, 16, &n))
                return ctl_misuse(x, "%s is no key: it has other than hexadecimal digits", text);
        code = query_blocks(x, s->entry->space, 0, collect_prefix, &p);
        if (p.n_found == 2)
                return ctl_fail(x, 0, "more than one key begins with %s, such as %s and %s", text, format_key(p.found[0]).text,
                                format_key(p.found[1]).text);
        if (code)
                return code;
        if (p.n_found == 0)
                return ctl_fail(x, 0, "no stored key begins with %s", text);
        memcpy(ret, p.found[0], 16);
        return EXIT_OK;
}
