/* get, put, drop, purge: the bytes of parts, by hand. For looking and for tests; engines use the library. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "libclient/ctl/format.h"
#include "libclient/ctl/query.h"

/* A part as one piece of memory in canonical layout, as the library sees it. */
struct part {
        uint8_t *bytes;
        kvt_plane_view *planes;
        kvt_view view;
        kvt_space *space; /* attached */
};

static void part_deinit(struct part *p)
{
        kvt_space_close(p->space);
        free(p->bytes);
        free(p->planes);
}

static int part_init(struct ctl *x, const struct space *s, struct part *ret)
{
        const struct geometry *g = &s->geometry;
        struct part p = {};
        int r;

        if (x->o.shard >= g->n_shards)
                return ctl_misuse(x, "--shard %llu: the space has %u part%s a block, counted from 0", (unsigned long long)x->o.shard,
                                  g->n_shards, g->n_shards == 1 ? "" : "s");
        p.bytes = malloc(g->part_bytes);
        p.planes = calloc(g->n_planes, sizeof *p.planes);
        if (!p.bytes || !p.planes) {
                part_deinit(&p);
                return ctl_fail(x, KVT_E_NO_MEMORY, "a part is %s", format_bytes(g->part_bytes).text);
        }
        for (uint32_t i = 0; i < g->n_planes; i++) {
                ptrdiff_t row = (ptrdiff_t)geometry_row_bytes(g->planes + i);

                p.planes[i] = (kvt_plane_view){p.bytes + g->offsets[i], row, row * g->block_tokens, 0};
        }
        p.view = (kvt_view){.planes = p.planes, .n_planes = g->n_planes};
        r = query_attach(x, s, (uint32_t)x->o.shard, NULL, 0, &p.space);
        if (r) {
                part_deinit(&p);
                return r;
        }
        *ret = p;
        return EXIT_OK;
}

/* get */

static int write_part(struct ctl *x, const uint8_t *bytes, size_t n)
{
        int fd = x->o.output ? open(x->o.output, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666) : STDOUT_FILENO;

        if (fd < 0)
                return ctl_fail(x, -errno, "cannot open %s", x->o.output);
        while (n) {
                ssize_t done = write(fd, bytes, n);

                if (done < 0 && errno == EINTR)
                        continue;
                if (done < 0) {
                        int code = ctl_fail(x, -errno, "cannot write %s", x->o.output ? x->o.output : "to standard output");

                        if (x->o.output)
                                close(fd);
                        return code;
                }
                bytes += done;
                n -= (size_t)done;
        }
        if (x->o.output && close(fd))
                return ctl_fail(x, -errno, "cannot write %s", x->o.output);
        return EXIT_OK;
}

static int get_part(struct ctl *x, const struct space *s)
{
        struct part p;
        kvt_key key;
        uint64_t first = 0, n_planes = s->geometry.n_planes, start, bytes;
        uint8_t status = 0;
        int code, r;

        if (x->o.planes && !parse_range(x->o.planes, &first, &n_planes))
                return ctl_misuse(x, "--planes takes the first plane and how many, such as 0:2, not '%s'", x->o.planes);
        if (first >= s->geometry.n_planes || n_planes > s->geometry.n_planes - first)
                return ctl_misuse(x, "--planes %s: the space has %u planes, counted from 0", x->o.planes, s->geometry.n_planes);
        start = s->geometry.offsets[first];
        bytes = s->geometry.offsets[first + n_planes] - start;
        code = query_key(x, s, x->operands[1], key.bytes);
        if (code)
                return code;
        code = part_init(x, s, &p);
        if (code)
                return code;
        r = x->o.planes ? kvt_get_planes(p.space, &key, 1, 0, &p.view, 0, first, n_planes, &status)
                        : kvt_get(p.space, &key, 1, 0, &p.view, 0, &status);
        if (r || status)
                code = ctl_fail(x, r ? r : status, "block %s", format_key(key.bytes).text);
        else
                code = write_part(x, p.bytes + start, bytes);
        if (code == EXIT_OK && x->o.json)
                code = ctl_print_json(x, json_pack("{s:s, s:I, s:I, s:I, s:I, s:s}", "key", format_key(key.bytes).text, "shard",
                                                   (json_int_t)x->o.shard, "first_plane", (json_int_t)first, "n_planes",
                                                   (json_int_t)n_planes, "bytes", (json_int_t)bytes, "file", x->o.output));
        part_deinit(&p);
        return code;
}

int cmd_get(struct ctl *x)
{
        struct space s;
        int code;

        if (!x->o.output && isatty(STDOUT_FILENO))
                return ctl_misuse(x, "a part is raw bytes; give --output FILE, or send standard output elsewhere");
        if (!x->o.output && x->o.json)
                return ctl_misuse(x, "--json needs --output FILE, since standard output has the bytes");
        code = query_space(x, x->operands[0], &s);
        if (code)
                return code;
        code = get_part(x, &s);
        space_deinit(&s);
        return code;
}

/* put */

/* Reads exactly n bytes; less or more is an error. */
static int read_part(struct ctl *x, const char *path, uint8_t *bytes, size_t n)
{
        bool is_stdin = strcmp(path, "-") == 0;
        int fd = is_stdin ? STDIN_FILENO : open(path, O_RDONLY | O_CLOEXEC), code = EXIT_OK;
        size_t at = 0;
        uint8_t more;

        if (fd < 0)
                return ctl_fail(x, -errno, "cannot open %s", path);
        for (;;) {
                ssize_t done = read(fd, at < n ? bytes + at : &more, at < n ? n - at : 1);

                if (done < 0 && errno == EINTR)
                        continue;
                if (done < 0)
                        code = ctl_fail(x, -errno, "cannot read %s", path);
                else if (done == 0 && at < n)
                        code = ctl_fail(x, 0, "%s has %zu bytes; a part of this space has %zu", path, at, n);
                else if (at == n && done > 0)
                        code = ctl_fail(x, 0, "%s has more than the %zu bytes of a part of this space", path, n);
                at += done > 0 ? (size_t)done : 0;
                if (done <= 0 || code)
                        break;
        }
        if (!is_stdin)
                close(fd);
        return code;
}

static int put_part(struct ctl *x, const struct space *s)
{
        struct part p;
        kvt_key key, parent;
        uint8_t status = 0;
        int code, r;

        if (!parse_key(x->operands[1], key.bytes))
                return ctl_misuse(x, "%s is no key: 32 hexadecimal digits", x->operands[1]);
        if (x->o.parent) {
                code = query_key(x, s, x->o.parent, parent.bytes);
                if (code)
                        return code;
        }
        code = part_init(x, s, &p);
        if (code)
                return code;
        code = read_part(x, x->operands[2], p.bytes, s->geometry.part_bytes);
        if (code == EXIT_OK) {
                r = kvt_put(p.space, x->o.parent ? &parent : NULL, &key, 1, 0, &p.view,
                            (x->o.replace ? KVT_PUT_REPLACE : 0) | (x->o.durable ? KVT_PUT_DURABLE : 0), &status);
                if (r || status)
                        code = ctl_fail(x, r ? r : status, "block %s", format_key(key.bytes).text);
                else if (x->o.json)
                        code = ctl_print_json(x, json_pack("{s:s, s:I, s:I}", "key", format_key(key.bytes).text, "shard",
                                                           (json_int_t)x->o.shard, "bytes", (json_int_t)s->geometry.part_bytes));
        }
        part_deinit(&p);
        return code;
}

int cmd_put(struct ctl *x)
{
        struct space s;
        int code = query_space(x, x->operands[0], &s);

        if (code)
                return code;
        code = put_part(x, &s);
        space_deinit(&s);
        return code;
}

/* drop */

static int drop_keys(struct ctl *x, const struct space *s, uint8_t *keys, size_t n_keys)
{
        Kvtier__DropRequest request = KVTIER__DROP_REQUEST__INIT;
        Kvtier__DropReply *reply;
        json_t *rows;
        int code = EXIT_OK, printed;

        request.space = s->entry->space;
        request.keys = (ProtobufCBinaryData){.data = keys, .len = n_keys * 16};
        code = query_call(x, KVT_MSG_DROP, &request.base, &kvtier__drop_reply__descriptor, (ProtobufCMessage **)&reply);
        if (code)
                return code;
        if (reply->statuses.len != n_keys) {
                code = ctl_fail(x, 0, "the daemon answered for %zu keys of %zu", reply->statuses.len, n_keys);
                n_keys = 0;
        }
        rows = json_array();
        for (size_t i = 0; i < n_keys; i++) {
                int status = reply->statuses.data[i];

                if (status)
                        code = ctl_fail(x, status, "block %s", format_key(keys + 16 * i).text);
                json_array_append_new(rows,
                                      json_pack("{s:s, s:s}", "key", format_key(keys + 16 * i).text, "status", kvt_error_name(status)));
        }
        kvt_call_free(&reply->base);
        if (x->o.json) {
                printed = ctl_print_json(x, json_pack("{s:o}", "dropped", rows));
                return code ? code : printed;
        }
        json_decref(rows);
        return code;
}

int cmd_drop(struct ctl *x)
{
        size_t n_keys = (size_t)x->n_operands - 1;
        uint8_t *keys;
        struct space s;
        int code = query_space(x, x->operands[0], &s);

        if (code)
                return code;
        keys = malloc(16 * n_keys);
        if (!keys)
                code = ctl_fail(x, KVT_E_NO_MEMORY, "%zu keys", n_keys);
        for (size_t i = 0; i < n_keys && code == EXIT_OK; i++)
                code = query_key(x, &s, x->operands[1 + i], keys + 16 * i);
        if (code == EXIT_OK)
                code = drop_keys(x, &s, keys, n_keys);
        free(keys);
        space_deinit(&s);
        return code;
}

/* purge */

/* What a purge would take away: blocks and bytes of one space, or of a tenant. */
static int purge_size(struct ctl *x, const struct space *s, uint64_t *ret_n_blocks, uint64_t *ret_n_bytes)
{
        json_t *rows, *row;
        size_t i;
        bool found = false;
        int code;

        if (s->entry) {
                *ret_n_blocks = s->entry->n_blocks;
                *ret_n_bytes = s->entry->used_bytes;
                return EXIT_OK;
        }
        code = query_list(x, KVTIER__LIST_WHAT__LIST_TENANTS, &rows);
        if (code)
                return code;
        json_array_foreach(rows, i, row)
        {
                if (strcmp(json_string_value(json_object_get(row, "name")), x->o.tenant) != 0)
                        continue;
                found = true;
                *ret_n_blocks = (uint64_t)json_integer_value(json_object_get(row, "n_blocks"));
                *ret_n_bytes = (uint64_t)json_integer_value(json_object_get(row, "used_bytes"));
        }
        json_decref(rows);
        return found ? EXIT_OK : ctl_fail(x, 0, "no tenant is called %s", x->o.tenant);
}

static int purge(struct ctl *x, const struct space *s)
{
        Kvtier__PurgeRequest request = KVTIER__PURGE_REQUEST__INIT;
        Kvtier__PurgeReply *reply;
        uint64_t n_blocks = 0, n_bytes = 0;
        int code = purge_size(x, s, &n_blocks, &n_bytes);

        if (code)
                return code;
        if (!x->o.yes) {
                ctl_say(x, "this would take %llu block%s (%s) of %s %s out of the cache; add --yes to do it", (unsigned long long)n_blocks,
                        n_blocks == 1 ? "" : "s", format_bytes(n_bytes).text, s->entry ? "space" : "tenant",
                        s->entry ? x->operands[0] : x->o.tenant);
                return EXIT_USAGE;
        }
        request.space = s->entry ? s->entry->space : 0;
        request.tenant = s->entry ? s->entry->tenant : (char *)x->o.tenant;
        code = query_call(x, KVT_MSG_PURGE, &request.base, &kvtier__purge_reply__descriptor, (ProtobufCMessage **)&reply);
        if (code)
                return code;
        if (x->o.json)
                code = ctl_print_json(x,
                                      json_pack("{s:I, s:I}", "n_blocks", (json_int_t)reply->n_blocks, "bytes", (json_int_t)reply->bytes));
        else
                printf("purged %llu block%s, %s\n", (unsigned long long)reply->n_blocks, reply->n_blocks == 1 ? "" : "s",
                       format_bytes(reply->bytes).text);
        kvt_call_free(&reply->base);
        return code;
}

int cmd_purge(struct ctl *x)
{
        struct space s = {};
        int code = EXIT_OK;

        if (!x->o.tenant == !x->n_operands)
                return ctl_misuse(x, "give either a SPACE or --tenant TENANT");
        if (x->n_operands)
                code = query_space(x, x->operands[0], &s);
        if (code == EXIT_OK)
                code = purge(x, &s);
        if (s.reply)
                space_deinit(&s);
        return code;
}
