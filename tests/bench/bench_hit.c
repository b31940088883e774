/* map_hit_*: a resident block is mapped and given back (the release rides on the next map), against a bare ping-pong of packets of the same
 * sizes; on one core, where all that either side computes counts, across two, and with both sides polling. match_1024_keys: what matching
 * a prefix of 1,024 resident blocks costs beyond the bare round trip. keys_1024: naming them, against plain BLAKE2b. */
#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "proto/frame.h"
#include "proto/messages.h"
#include "proto/shm.h"
#include "tests/bench/common.h"

enum { N_KEYS = 1024, BLOCK_TOKENS = 256, TOKEN_BYTES = 16, PART_BYTES = BLOCK_TOKENS * TOKEN_BYTES };

struct engine {
        struct daemon d;
        kvt *c;
        kvt_space *s;
        kvt_key keys[N_KEYS];
};

static void engine_start(struct engine *e, int cpu, uint64_t poll_usec)
{
        static uint8_t bytes[N_KEYS * PART_BYTES];
        static uint8_t statuses[N_KEYS];
        char poll_param[64];
        kvt_plane_view plane = {.base = bytes, .token_stride = TOKEN_BYTES, .head_stride = PART_BYTES};
        kvt_view view = {.planes = &plane, .n_planes = 1};

        snprintf(poll_param, sizeof(poll_param), "--busy_poll_usec=%lluus", (unsigned long long)poll_usec);
        daemon_start(&e->d, cpu, (const char *[]){"--host_bytes=256M", poll_param, NULL});
        e->c = daemon_open(&e->d, &(kvt_options){.busy_poll_usec = poll_usec});
        e->s = tiny_open(e->c, BLOCK_TOKENS, TOKEN_BYTES);
        prompt_keys(e->s, BLOCK_TOKENS, 1, e->keys, N_KEYS);
        must(kvt_put(e->s, NULL, e->keys, N_KEYS, 0, &view, 0, statuses), "kvt_put");
        for (size_t i = 0; i < N_KEYS; i++)
                must(statuses[i], "kvt_put of a block");
}

static void engine_stop(struct engine *e)
{
        kvt_space_close(e->s);
        kvt_close(e->c);
        daemon_stop(&e->d);
}

static void map_once(struct engine *e, size_t i)
{
        kvt_mapping m;
        uint8_t status;

        must(kvt_map(e->s, &e->keys[i % N_KEYS], 1, &m, &status), "kvt_map");
        must(status, "kvt_map of a block");
        must(kvt_unmap(e->s, &m, 1, NULL), "kvt_unmap");
}

static void match_once(struct engine *e, size_t i)
{
        kvt_match_result m;

        must(kvt_match(e->s, e->keys, N_KEYS, 0, 0, &m), "kvt_match");
        if (m.n_blocks != N_KEYS)
                die("matched %zu blocks of %d", m.n_blocks, N_KEYS);
}

/* What the library and the daemon send for these, computed from the messages. */

static size_t map_request_bytes(void)
{
        Kvtier__MapRequest m = KVTIER__MAP_REQUEST__INIT;

        m.space = 1;
        m.keys.len = KVT_KEY_BYTES;
        m.releases.len = sizeof(uint64_t);
        return KVT_FRAME_BYTES + kvtier__map_request__get_packed_size(&m);
}

static size_t map_reply_bytes(void)
{
        Kvtier__MapReply m = KVTIER__MAP_REPLY__INIT;

        m.entries.len = sizeof(struct kvt_map_entry);
        m.lease_usec = 10000000;
        return KVT_FRAME_BYTES + kvtier__map_reply__get_packed_size(&m);
}

static size_t match_request_bytes(void)
{
        Kvtier__MatchRequest m = KVTIER__MATCH_REQUEST__INIT;

        m.space = 1;
        m.keys.len = N_KEYS * KVT_KEY_BYTES;
        return KVT_FRAME_BYTES + kvtier__match_request__get_packed_size(&m);
}

static size_t match_reply_bytes(void)
{
        Kvtier__MatchReply m = KVTIER__MATCH_REPLY__INIT;

        m.n_blocks = N_KEYS;
        return KVT_FRAME_BYTES + kvtier__match_reply__get_packed_size(&m);
}

/* One side of a comparison: what a round of it measured. */
struct side {
        struct samples round, p50, p99, cpu;
};

static void side_round(struct side *s, pid_t server, struct engine *e, void (*op)(struct engine *e, size_t i), struct pingpong *p, size_t n)
{
        uint64_t cpu = cpu_nsec(server);

        samples_reset(&s->round);
        for (size_t i = 0; i < n; i++) {
                uint64_t start = now_nsec();

                if (op)
                        op(e, i);
                else
                        pingpong_once(p);
                samples_add(&s->round, (double)(now_nsec() - start) / 1e3);
        }
        samples_add(&s->cpu, (double)(cpu_nsec(server) - cpu) / 1e3 / (double)n);
        samples_add(&s->p50, samples_quantile(&s->round, 0.5));
        samples_add(&s->p99, samples_quantile(&s->round, 0.99));
}

static void side_deinit(struct side *s)
{
        samples_deinit(&s->round);
        samples_deinit(&s->p50);
        samples_deinit(&s->p99);
        samples_deinit(&s->cpu);
}

static void compare(struct side *bare, struct side *ours, struct engine *e, void (*op)(struct engine *e, size_t i), struct pingpong *p,
                    unsigned n_rounds, size_t n)
{
        for (unsigned i = 0; i <= n_rounds; i++) {
                if (i == 1) { /* the first was to warm up */
                        side_deinit(bare);
                        side_deinit(ours);
                }
                side_round(bare, p->pid, NULL, NULL, p, n);
                side_round(ours, e->d.pid, e, op, NULL, n);
        }
}

static const char bare_is[] = "bare SEQPACKET ping-pong of equal sizes", server_is[] = "CPU time of the ping-pong's server";

static void map_rows(const char *suffix, int cpu, uint64_t poll_usec, char sense, const char *note)
{
        struct side bare = {0}, ours = {0};
        char names[3][64];
        struct engine e;
        struct pingpong p;

        engine_start(&e, cpu, poll_usec);
        pingpong_start(&p, cpu, map_request_bytes(), map_reply_bytes(), poll_usec);
        compare(&bare, &ours, &e, map_once, &p, quick() ? 5 : 31, quick() ? 500 : 2000);
        snprintf(names[0], sizeof(names[0]), "map_hit_rtt_p50%s", suffix);
        snprintf(names[1], sizeof(names[1]), "map_hit_rtt_p99%s", suffix);
        snprintf(names[2], sizeof(names[2]), "map_hit_daemon_cpu_usec%s", suffix);
        row_print(&(struct row){names[0], "usec", samples_quantile(&ours.p50, 0.5), samples_quantile(&bare.p50, 0.5), bare_is, sense, 1.5,
                                note});
        row_print(&(struct row){names[1], "usec", samples_quantile(&ours.p99, 0.5), samples_quantile(&bare.p99, 0.5), bare_is});
        if (!poll_usec)
                row_print(&(struct row){names[2], "usec", samples_quantile(&ours.cpu, 0.5), samples_quantile(&bare.cpu, 0.5), server_is});
        side_deinit(&bare);
        side_deinit(&ours);
        pingpong_stop(&p);
        engine_stop(&e);
}

static void keys_row(const struct engine *e)
{
        static uint32_t tokens[N_KEYS * BLOCK_TOKENS];
        static kvt_key keys[N_KEYS];
        struct samples bare = {0}, ours = {0};
        size_t n;

        for (size_t i = 0; i < N_KEYS * BLOCK_TOKENS; i++)
                tokens[i] = (uint32_t)(i * 2654435761u);
        for (unsigned i = 0; i < (quick() ? 20u : 200u); i++) {
                uint64_t start = now_nsec(), middle;

                for (size_t k = 0; k < N_KEYS; k++)
                        crypto_generichash(keys[k].bytes, sizeof(keys[k]), (const uint8_t *)&tokens[k * BLOCK_TOKENS], BLOCK_TOKENS * 4,
                                           NULL, 0);
                middle = now_nsec();
                must(kvt_keys(e->s, NULL, tokens, N_KEYS * BLOCK_TOKENS, NULL, 0, keys, N_KEYS, &n), "kvt_keys");
                samples_add(&ours, (double)(now_nsec() - middle) / 1e3);
                samples_add(&bare, (double)(middle - start) / 1e3);
        }
        row_print(&(struct row){"keys_1024", "usec", samples_quantile(&ours, 0.5), samples_quantile(&bare, 0.5),
                                "crypto_generichash, 16 bytes, over the same 1,024 x 1,024 bytes of token ids", '<', 1.1,
                                "256 tokens each; the parent's key goes in as BLAKE2b's salt, so it adds no bytes"});
        samples_deinit(&bare);
        samples_deinit(&ours);
}

static void match_row(struct engine *e)
{
        struct side bare = {0}, ours = {0};
        struct pingpong p;
        char note[128];

        pingpong_start(&p, 0, match_request_bytes(), match_reply_bytes(), 0);
        compare(&bare, &ours, e, match_once, &p, quick() ? 5 : 31, quick() ? 100 : 500);
        double all = samples_quantile(&ours.p50, 0.5), trip = samples_quantile(&bare.p50, 0.5);
        snprintf(note, sizeof(note), "p50 %.1f usec, less %.1f of a bare ping-pong of equal sizes (%zu bytes, %zu back)", all, trip,
                 match_request_bytes(), match_reply_bytes());
        row_print(&(struct row){.name = "match_1024_keys",
                                .unit = "usec beyond the round trip",
                                .value = all - trip,
                                .sense = '<',
                                .limit = 80,
                                .note = note});
        side_deinit(&bare);
        side_deinit(&ours);
        pingpong_stop(&p);
}

int main(void)
{
        struct engine e;
        char note[96];

        if (sodium_init() < 0)
                die("libsodium");
        pin(0);
        snprintf(note, sizeof(note), "client and daemon on one core; packets of %zu and %zu bytes", map_request_bytes(), map_reply_bytes());
        map_rows("", 0, 0, '<', note);
        map_rows("_cross", 1, 0, 0, "client on one core, daemon on another");
        map_rows("_polled", 1, 1000, 0, "on two cores, both sides poll (busy_poll_usec)");
        engine_start(&e, 0, 0);
        keys_row(&e);
        match_row(&e);
        engine_stop(&e);
        return 0;
}
