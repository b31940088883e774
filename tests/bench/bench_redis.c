/* redis_*: 2 MiB values from a redis-server over its Unix socket (hiredis, no persistence), against the same bytes from kvtier: copied into the
 * engine's pages and verified (get), or mapped and every byte read (map). Clients and servers all on one core. */
#include <hiredis/hiredis.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "tests/bench/common.h"

enum { N = 64 };
static const double gib = 1u << 30;

static redisContext *redis_start(char *ret_version, size_t n_version, pid_t *ret_pid)
{
        uint64_t until = now_nsec() + 10000000000;
        char path[128], info[128] = "";
        redisContext *c = NULL;
        FILE *f = popen("redis-server --version 2>/dev/null", "re");

        if (f && fgets(info, sizeof(info), f)) {
                const char *v = strstr(info, " v=");

                snprintf(ret_version, n_version, "%.*s", v ? (int)strcspn(v + 3, " \n") : 1, v ? v + 3 : "?");
        }
        if (!f || pclose(f) != 0 || !*info)
                skip("there is no redis-server");
        snprintf(path, sizeof(path), "%s/redis.sock", scratch());
        *ret_pid = child_fork(0);
        if (!*ret_pid) {
                execlp("redis-server", "redis-server", "--port", "0", "--unixsocket", path, "--save", "", "--appendonly", "no",
                       "--daemonize", "no", "--dir", scratch(), "--logfile", "/dev/null", (char *)NULL);
                _exit(1);
        }
        for (;; usleep(1000)) {
                c = redisConnectUnix(path);
                if (c && !c->err)
                        return c;
                if (!c || now_nsec() > until)
                        die("redis-server does not answer");
                redisFree(c);
        }
}

static void redis_set(redisContext *c, size_t i, const void *bytes)
{
        redisReply *r = redisCommand(c, "SET block:%u %b", (unsigned)i, bytes, (size_t)MODEL_BLOCK_BYTES);

        if (!r || r->type != REDIS_REPLY_STATUS)
                die("redis SET: %s", r && r->str ? r->str : c->errstr);
        freeReplyObject(r);
}

static void redis_get(redisContext *c, size_t i, const void *expected)
{
        redisReply *r = redisCommand(c, "GET block:%u", (unsigned)i);

        if (!r || r->type != REDIS_REPLY_STRING || r->len != MODEL_BLOCK_BYTES)
                die("redis GET: %s", r && r->str ? r->str : c->errstr);
        if (expected && memcmp(r->str, expected, MODEL_BLOCK_BYTES) != 0)
                die("redis returned other bytes");
        freeReplyObject(r);
}

/* Reads every byte, in the way a matrix product would: all lanes of vectors. */
static uint64_t sum(const void *p, size_t n)
{
        const uint64_t *x = p;
        uint64_t s = 0;

        for (size_t i = 0; i < n / sizeof(*x); i++)
                s += x[i];
        return s;
}

struct state {
        redisContext *redis;
        pid_t redis_pid, daemon_pid;
        kvt_space *s;
        kvt_key keys[N];
        struct engine_kv *kv;
        uint64_t seed;
};

static void block_get(struct state *t, size_t i)
{
        kvt_view view = kv_view(t->kv, i, 1);
        uint8_t status;

        must(kvt_get(t->s, &t->keys[i], 1, 0, &view, 0, &status), "kvt_get");
        must(status, "kvt_get of a block");
}

static void block_put(struct state *t, size_t i, kvt_key *key)
{
        kvt_view view = kv_view(t->kv, i, 1);
        uint8_t status;

        must(kvt_put(t->s, NULL, key, 1, 0, &view, 0, &status), "kvt_put");
        must(status, "kvt_put of a block");
}

static void block_map(struct state *t, size_t i)
{
        kvt_mapping m;
        uint8_t status;

        must(kvt_map(t->s, &t->keys[i], 1, &m, &status), "kvt_map");
        must(status, "kvt_map of a block");
        uint64_t all = sum(m.data, m.bytes);
        __asm__ volatile("" ::"r"(all)); /* it is wanted, for all the compiler knows */
        must(kvt_unmap(t->s, &m, 1, NULL), "kvt_unmap");
}

/* One round of each over all blocks. GiB/s of each. */
enum what { REDIS_GET, OUR_GET, OUR_MAP, REDIS_SET, OUR_PUT, N_WHAT };

static void round_of(struct state *t, enum what what, struct undisturbed *ret)
{
        for (size_t i = 0; i < N; i++) {
                struct watch w;
                kvt_key fresh;

                if (what == OUR_PUT)
                        prompt_keys(t->s, MODEL_TOKENS, ++t->seed, &fresh, 1);
                watch_start(&w, what == REDIS_GET || what == REDIS_SET ? t->redis_pid : t->daemon_pid);
                switch (what) {
                case REDIS_GET:
                        redis_get(t->redis, i, NULL);
                        break;
                case OUR_GET:
                        block_get(t, i);
                        break;
                case OUR_MAP:
                        block_map(t, i);
                        break;
                case REDIS_SET:
                        redis_set(t->redis, i, t->kv->base + i * MODEL_BLOCK_BYTES);
                        break;
                default:
                        block_put(t, i, &fresh);
                }
                watch_stop(&w, ret, MODEL_BLOCK_BYTES / gib);
        }
}

static void prepare(struct state *t)
{
        for (size_t i = 0; i < N; i++) {
                redis_set(t->redis, i, t->kv->base + i * MODEL_BLOCK_BYTES);
                redis_get(t->redis, i, t->kv->base + i * MODEL_BLOCK_BYTES);
                prompt_keys(t->s, MODEL_TOKENS, ++t->seed, &t->keys[i], 1);
                block_put(t, i, &t->keys[i]);
        }
}

int main(void)
{
        static struct state t;
        struct undisturbed x[N_WHAT] = {0}, ignored = {0};
        struct engine_kv kv;
        struct daemon d;
        char version[32] = "?", note[96];
        double median[N_WHAT];

        need_memory(1536ull << 20);
        pin(0);
        t.redis = redis_start(version, sizeof(version), &t.redis_pid);
        daemon_start(&d, 0, (const char *[]){"--host_bytes=640M", NULL});
        t.daemon_pid = d.pid;
        kvt *c = daemon_open(&d, NULL);
        t.s = model_open(c);
        kv_init(&kv, N, 1);
        t.kv = &kv;
        prepare(&t);
        for (unsigned r = 0; r < 6; r++) /* until puts find the daemon full, and reuse its memory */
                round_of(&t, OUR_PUT, &ignored);
        prepare(&t);
        daemon_rest(&d);
        for (unsigned r = 0; r < (quick() ? 4u : 13u); r++)
                for (unsigned w = 0; w < N_WHAT; w++)
                        round_of(&t, w, r ? &x[w] : &ignored);
        for (unsigned w = 0; w < N_WHAT; w++) {
                median[w] = undisturbed_median(&x[w]);
                undisturbed_deinit(&x[w]);
        }
        undisturbed_deinit(&ignored);
        snprintf(note, sizeof(note), "redis %s; one core for all; a block at a time of %d", version, N);
        row_print(
                &(struct row){"redis_get_2mib", "GiB/s", median[OUR_GET], median[REDIS_GET], "redis GET over a Unix socket", '>', 4, note});
        row_print(&(struct row){"redis_map_2mib", "GiB/s", median[OUR_MAP], median[REDIS_GET], "redis GET, its bytes not read", '>', 4,
                                "kvt_map, every byte read, kvt_unmap"});
        row_print(&(struct row){"redis_set_2mib", "GiB/s", median[OUR_PUT], median[REDIS_SET], "redis SET over a Unix socket", 0, 0,
                                "kvt_put"});
        redisFree(t.redis);
        kvt_space_close(t.s);
        kvt_close(c);
        daemon_stop(&d);
        return 0;
}
