/* See cache.h.
 *
 * Blocks of a sequence go through the counters in order: n_keys >= n_ready >= n_sent >= n_settled. A put is one asynchronous operation a block: it copies into
 * staging and returns, so that storing costs a prefill its memcpy and no more; when staging is full the block stays unsent until the next
 * call. The engine's KV is [token][head][dim] a plane; the library stores and returns it through strided views.
 *
 * The space's salt names everything that the bits of the KV depend on beside the tokens: weights, KV type, chunk size, this program's
 * arithmetic and the CPU's. So engines that would compute other bits have spaces of their own. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "libclient/examples/llm/cache.h"

enum { NUMERICS = 1 }; /* raise it with every change to this engine that changes a bit of KV */

struct cache_put {
        kvt_op *op; /* owned; NULL: none under way */
};

struct salt {
        uint8_t digest[MODEL_DIGEST_BYTES];
        uint32_t numerics, kv_type, chunk_tokens;
        char arithmetic[16];
};

static void complain(struct cache *c, const char *what, int r)
{
        if (c->n_errors++ == 0)
                fprintf(stderr, "llm: kvtier: %s: %s; going on without\n", what, kvt_strerror(r));
}

static int open_space(struct cache *c)
{
        const struct model *m = c->run->model;
        struct salt salt = {.numerics = NUMERICS, .kv_type = c->run->kv_type, .chunk_tokens = (uint32_t)c->block_tokens};
        kvt_space_config config = {.struct_size = sizeof(config),
                                   .name = m->name,
                                   .salt = &salt,
                                   .salt_bytes = sizeof(salt),
                                   .block_tokens = (uint32_t)c->block_tokens,
                                   .n_shards = 1,
                                   .n_planes = 2 * m->n_layers};
        kvt_plane *planes = calloc(config.n_planes, sizeof(*planes));
        int r;

        if (!planes)
                return KVT_E_NO_MEMORY;
        memcpy(salt.digest, m->digest, sizeof(salt.digest));
        memcpy(salt.arithmetic, tensor_arithmetic(), strnlen(tensor_arithmetic(), sizeof(salt.arithmetic)));
        for (size_t i = 0; i < config.n_planes; i++) {
                size_t row_bytes = m->head_dim * sizeof(uint16_t);

                planes[i] = (kvt_plane){.layer = (uint32_t)(i / 2),
                                        .role = i % 2 ? KVT_ROLE_V : KVT_ROLE_K,
                                        .dtype = c->run->kv_type == KV_F16 ? KVT_DTYPE_F16 : KVT_DTYPE_BF16,
                                        .heads = (uint32_t)m->n_kv_heads,
                                        .dim = (uint32_t)m->head_dim};
                c->views[i] = (kvt_plane_view){.base = run_kv(c->run, i / 2, (int)(i % 2)),
                                               .token_stride = (ptrdiff_t)(m->n_kv_heads * row_bytes),
                                               .head_stride = (ptrdiff_t)row_bytes};
        }
        config.planes = planes;
        r = kvt_space_open(c->connection, &config, &c->space);
        free(planes);
        return r;
}

void cache_open(struct cache *c, const char *path, struct run *run, size_t block_tokens, size_t max_blocks)
{
        kvt_options options = {.struct_size = sizeof(options), .path = path, .name = "llm"};
        int r;

        *c = (struct cache){.run = run, .block_tokens = block_tokens, .max_blocks = max_blocks};
        c->views = calloc(2 * run->model->n_layers, sizeof(*c->views));
        c->keys = calloc(max_blocks + 1, sizeof(*c->keys));
        c->statuses = calloc(max_blocks + 1, 1);
        c->replace = calloc(max_blocks + 1, 1);
        c->puts = calloc(max_blocks + 1, sizeof(*c->puts));
        if (!c->views || !c->keys || !c->statuses || !c->replace || !c->puts)
                r = KVT_E_NO_MEMORY;
        else
                r = kvt_open(&options, &c->connection);
        if (!r)
                r = open_space(c);
        if (r) {
                snprintf(c->off, sizeof(c->off), "%s: %s", path ? path : "default socket", kvt_strerror(r));
                c->space = NULL;
        }
}

void cache_close(struct cache *c)
{
        for (size_t i = 0; c->puts && i < c->max_blocks; i++)
                kvt_op_free(c->puts[i].op);
        kvt_space_close(c->space);
        kvt_close(c->connection);
        free(c->views);
        free(c->keys);
        free(c->statuses);
        free(c->replace);
        free(c->puts);
        *c = (struct cache){0};
}

static const kvt_key *parent_of(const struct cache *c, size_t block)
{
        return block ? &c->keys[block - 1] : NULL;
}

/* Computes the keys of whole blocks that are new since the last call. */
static int extend_keys(struct cache *c, const uint32_t *tokens, size_t n)
{
        size_t done = c->n_keys * c->block_tokens, n_new = 0;
        int r = 0;

        if (n >= done + c->block_tokens)
                r = kvt_keys(c->space, parent_of(c, c->n_keys), tokens + done, n - done, NULL, 0, c->keys + c->n_keys,
                             c->max_blocks - c->n_keys, &n_new);
        if (!r)
                c->n_keys += n_new;
        return r;
}

static kvt_view view_of(const struct cache *c)
{
        return (kvt_view){.planes = c->views, .n_planes = 2 * c->run->model->n_layers};
}

size_t cache_load(struct cache *c, const uint32_t *tokens, size_t n)
{
        kvt_match_result match = {0};
        kvt_view view;
        size_t n_wanted, n_good;
        int r;

        if (!c->space)
                return 0;
        view = view_of(c);
        r = extend_keys(c, tokens, n);
        if (!r && c->n_keys)
                r = kvt_match(c->space, c->keys, c->n_keys, n, KVT_MATCH_LEAVE_LAST, &match);
        if (r) {
                complain(c, "match", r);
                return 0;
        }
        n_wanted = match.n_tokens / c->block_tokens; /* a block that is needed in part is computed: chunks keep their shape */
        if (!n_wanted)
                return 0;
        r = kvt_get(c->space, c->keys, n_wanted, 0, &view, 0, c->statuses);
        if (r) {
                complain(c, "get", r);
                return 0;
        }
        for (n_good = 0; n_good < n_wanted && !c->statuses[n_good]; n_good++)
                continue;
        for (size_t i = n_good; i < n_wanted; i++) {
                c->replace[i] = c->statuses[i] == KVT_E_CORRUPT;
                if (c->statuses[i] && c->statuses[i] != KVT_E_MISS)
                        complain(c, "get", c->statuses[i]);
        }
        c->loaded_bytes += n_good * kvt_space_part_bytes(c->space);
        c->n_ready = c->n_sent = c->n_settled = n_good;
        return n_good * c->block_tokens;
}

/* Takes the result of the oldest put. */
static void settle(struct cache *c)
{
        size_t i = c->n_settled++;
        int r = kvt_wait(c->puts[i].op, 0);

        kvt_op_free(c->puts[i].op);
        c->puts[i].op = NULL;
        if (!r)
                r = c->statuses[i];
        if (!r) {
                c->n_stored++;
                c->stored_bytes += kvt_space_part_bytes(c->space);
        } else if (r == KVT_E_EXISTS) {
                c->n_existing++;
        } else {
                if (!c->stopped)
                        complain(c, "put", r);
                c->stopped = 1;
        }
}

static void send_puts(struct cache *c)
{
        kvt_view view = view_of(c);

        while (c->n_sent < c->n_ready && !c->stopped) {
                size_t i = c->n_sent;
                int r = kvt_put_async(c->space, parent_of(c, i), &c->keys[i], 1, i, &view, c->replace[i] ? KVT_PUT_REPLACE : 0,
                                      &c->statuses[i], NULL, NULL, &c->puts[i].op);
                if (r == KVT_E_AGAIN)
                        return;
                if (r) {
                        complain(c, "put", r);
                        c->stopped = 1;
                        return;
                }
                c->n_sent++;
        }
}

void cache_store(struct cache *c, const uint32_t *tokens, size_t n)
{
        int r;

        if (!c->space || c->stopped)
                return;
        r = extend_keys(c, tokens, n);
        if (!r)
                r = kvt_process(c->connection);
        if (r) {
                complain(c, "put", r);
                c->stopped = 1;
                return;
        }
        c->n_ready = n / c->block_tokens;
        send_puts(c);
}

void cache_finish(struct cache *c)
{
        if (!c->space)
                return;
        do {
                while (c->n_settled < c->n_sent)
                        settle(c);
                send_puts(c);
        } while (c->n_settled < c->n_sent);
}
