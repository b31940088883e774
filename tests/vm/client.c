/* The guest suite's client: blocks of 256 KiB whose every byte follows from a seed, so that another process, after a restart, can tell right ones
 * from wrong ones.
 *
 *     client put SEED N      one prompt of N blocks, KVT_PUT_DURABLE
 *     client store SEED N    the same, not durable
 *     client get SEED N      reads them; each byte of each block with status 0 is compared
 *     client match SEED N    how many are matched
 *
 * Prints a line "STATUS COUNT" for each status there was, OK being that of success ("matched COUNT" for match). Exit: 0 the requests were carried out,
 * whatever the statuses; 1 they were not; 2 usage; 3 wrong bytes came with status 0. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <kvtier.h>

enum { LAYERS = 2, PLANES = 2 * LAYERS, HEADS = 8, DIM = 256, TOKENS = 16, BATCH = 8, MAX_BLOCKS = 16384, TRY_AGAIN_MSEC = 60000 };
enum { WORDS = TOKENS * HEADS * DIM * 2 / 8 }; /* of one plane of one block */

static uint64_t kv[PLANES][BATCH][WORDS];
static kvt_plane_view views[PLANES];
static const kvt_view view = {.planes = views, .n_planes = PLANES};
static uint64_t counts[256]; /* by status */

static uint64_t word_of(uint64_t seed, uint64_t block, uint64_t plane, uint64_t i)
{
        uint64_t x = (seed << 40 ^ block << 16 ^ plane << 12 ^ i) * 0x9e3779b97f4a7c15ull;
        return x ^ x >> 31;
}

static void fill(uint64_t seed, size_t first, size_t n)
{
        for (size_t p = 0; p < PLANES; p++)
                for (size_t b = 0; b < n; b++)
                        for (size_t i = 0; i < WORDS; i++)
                                kv[p][b][i] = word_of(seed, first + b, p, i);
}

static int is_right(uint64_t seed, size_t first, size_t b)
{
        for (size_t p = 0; p < PLANES; p++)
                for (size_t i = 0; i < WORDS; i++)
                        if (kv[p][b][i] != word_of(seed, first + b, p, i))
                                return 0;
        return 1;
}

static int put(kvt_space *s, const kvt_key *keys, uint64_t seed, size_t n, uint32_t flags)
{
        uint8_t statuses[BATCH];

        for (size_t at = 0; at < n; at += BATCH) {
                size_t k = n - at < BATCH ? n - at : BATCH;
                fill(seed, at, k);
                int r = kvt_put(s, at ? &keys[at - 1] : NULL, keys + at, k, 0, &view, flags, statuses);
                if (r)
                        return r;
                for (size_t i = 0; i < k; i++)
                        counts[statuses[i]]++;
        }
        return 0;
}

/* A status KVT_E_AGAIN is tried again, for a minute: the guest is slow. */
static int get_one(kvt_space *s, const kvt_key *key, uint8_t *status)
{
        int r = 0;

        for (int waited = 0; waited < TRY_AGAIN_MSEC; waited += 10) {
                memset(kv, 0xee, sizeof(kv));
                r = kvt_get(s, key, 1, 0, &view, 0, status);
                if (r || *status != KVT_E_AGAIN)
                        break;
                nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL);
        }
        return r;
}

static int get(kvt_space *s, const kvt_key *keys, uint64_t seed, size_t n, size_t *ret_wrong)
{
        for (size_t at = 0; at < n; at += BATCH) {
                size_t k = n - at < BATCH ? n - at : BATCH;
                uint8_t statuses[BATCH], status;
                memset(kv, 0xee, sizeof(kv));
                int r = kvt_get(s, keys + at, k, 0, &view, 0, statuses);
                if (r)
                        return r;
                for (size_t i = 0; i < k; i++)
                        if (!statuses[i] && !is_right(seed, at, i))
                                (*ret_wrong)++;
                for (size_t i = 0; i < k; i++) {
                        if (statuses[i] == KVT_E_AGAIN) {
                                r = get_one(s, &keys[at + i], &status);
                                if (r)
                                        return r;
                                if (!status && !is_right(seed, at + i, 0))
                                        (*ret_wrong)++;
                                statuses[i] = status;
                        }
                        counts[statuses[i]]++;
                }
        }
        return 0;
}

static int match(kvt_space *s, const kvt_key *keys, size_t n)
{
        kvt_match_result m = {0};
        int r = kvt_match(s, keys, n, 0, 0, &m);

        if (!r)
                printf("matched %zu\n", m.n_blocks);
        return r;
}

static int run(const char *what, kvt_space *s, uint64_t seed, size_t n, size_t *ret_wrong)
{
        static uint32_t tokens[MAX_BLOCKS * TOKENS];
        static kvt_key keys[MAX_BLOCKS];
        size_t n_keys = 0;

        for (size_t i = 0; i < n * TOKENS; i++)
                tokens[i] = (uint32_t)(word_of(seed, 0, 0, i) % 50000);
        int r = kvt_keys(s, NULL, tokens, n * TOKENS, NULL, 0, keys, n, &n_keys);
        if (r)
                return r;
        for (size_t i = 0; i < PLANES; i++)
                views[i] = (kvt_plane_view){kv[i], .token_stride = HEADS * DIM * 2, .head_stride = DIM * 2};
        if (!strcmp(what, "put"))
                return put(s, keys, seed, n_keys, KVT_PUT_DURABLE);
        if (!strcmp(what, "store"))
                return put(s, keys, seed, n_keys, 0);
        if (!strcmp(what, "get"))
                return get(s, keys, seed, n_keys, ret_wrong);
        return match(s, keys, n_keys);
}

int main(int argc, char **argv)
{
        kvt_options options = {.struct_size = sizeof(options), .timeout_usec = 60000000, .staging_bytes = 8 << 20};
        kvt_plane planes[PLANES];
        kvt_space_config config = {sizeof(config),   "guest",           "vm", 2, .block_tokens = TOKENS, .n_shards = 1,
                                   .planes = planes, .n_planes = PLANES};
        kvt *c = NULL;
        kvt_space *s = NULL;
        size_t wrong = 0;
        long n = argc == 4 ? strtol(argv[3], NULL, 10) : 0;

        if (n < 1 || n > MAX_BLOCKS ||
            (strcmp(argv[1], "put") && strcmp(argv[1], "store") && strcmp(argv[1], "get") && strcmp(argv[1], "match"))) {
                fprintf(stderr, "usage: client put|store|get|match SEED N\n");
                return 2;
        }
        for (uint32_t i = 0; i < PLANES; i++)
                planes[i] = (kvt_plane){i / 2, i % 2 ? KVT_ROLE_V : KVT_ROLE_K, KVT_DTYPE_F16, HEADS, DIM, 0, 0};
        int r = kvt_open(&options, &c);
        if (!r)
                r = kvt_space_open(c, &config, &s);
        if (!r)
                r = run(argv[1], s, strtoull(argv[2], NULL, 10), (size_t)n, &wrong);
        for (int i = 0; i < 256; i++)
                if (counts[i])
                        printf("%s %llu\n", i ? kvt_error_name(i) : "OK", (unsigned long long)counts[i]);
        if (r)
                printf("failed: %s\n", kvt_strerror(r));
        if (wrong)
                printf("wrong %zu\n", wrong);
        kvt_space_close(s);
        kvt_close(c);
        return wrong ? 3 : r != 0;
}
