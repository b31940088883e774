/* Where to start when building kvtier into an engine: a prompt's KV is looked up, what is missing is computed and stored. Run it twice. */
#include <stdio.h>
#include <string.h>

#include <kvtier.h>

enum { LAYERS = 4, HEADS = 2, DIM = 64, BLOCK = 16, PROMPT = 100, N_BLOCKS = PROMPT / BLOCK };
static uint16_t kv[2 * LAYERS][PROMPT][HEADS][DIM]; /* the engine's own KV: K, then V of each layer, 16-bit floats */

int main(void)
{
        uint32_t tokens[PROMPT];
        kvt_plane planes[2 * LAYERS];
        kvt_plane_view views[2 * LAYERS];
        for (uint32_t t = 0; t < PROMPT; t++)
                tokens[t] = t * 7919 % 50000;
        for (uint32_t i = 0; i < 2 * LAYERS; i++) {
                planes[i] = (kvt_plane){i / 2, i % 2 ? KVT_ROLE_V : KVT_ROLE_K, KVT_DTYPE_F16, HEADS, DIM, 0, 0};
                views[i] = (kvt_plane_view){kv[i], .token_stride = sizeof(kv[i][0]), .head_stride = sizeof(kv[i][0][0])};
        }
        kvt_view view = {.planes = views, .n_planes = 2 * LAYERS};
        kvt_space_config config = {sizeof(config),        "embed-example", "weights digest", 14,
                                   .block_tokens = BLOCK, .n_shards = 1,   .planes = planes, .n_planes = 2 * LAYERS};
        kvt *c = NULL;
        kvt_space *s = NULL;
        kvt_key keys[N_BLOCKS];
        uint8_t status[N_BLOCKS];
        size_t n_keys = 0, have = 0;
        kvt_match_result match = {0};

        int r = kvt_open(NULL, &c); /* from here on a failure costs hits, never the answer: what is not loaded is computed */
        if (!r && !(r = kvt_space_open(c, &config, &s)) && !(r = kvt_keys(s, NULL, tokens, PROMPT, NULL, 0, keys, N_BLOCKS, &n_keys)) &&
            !(r = kvt_match(s, keys, n_keys, PROMPT, KVT_MATCH_LEAVE_LAST, &match)) &&
            !(r = kvt_get(s, keys, match.n_blocks, 0, &view, 0, status)))
                while (have < match.n_blocks && status[have] == KVT_OK)
                        have++; /* a block that was evicted or found corrupt meanwhile ends the prefix */
        printf("%zu tokens from the cache, %zu to compute: %s\n", have * BLOCK, PROMPT - have * BLOCK, kvt_strerror(r));
        for (size_t i = 0; i < 2 * LAYERS; i++) /* the engine's prefill of the rest */
                memset(kv[i][have * BLOCK], (int)i + 1, (PROMPT - have * BLOCK) * sizeof(kv[i][0]));
        if (!r && have < n_keys && !(r = kvt_put(s, have ? &keys[have - 1] : NULL, keys + have, n_keys - have, have, &view, 0, status)))
                printf("%zu blocks stored, the first says: %s\n", n_keys - have, kvt_strerror(status[0]));
        kvt_space_close(s);
        kvt_close(c);
        return r != 0;
}
