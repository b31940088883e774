/* The library and a daemon that lies: an input is what an application calls, and what the daemon answers.
 *
 * Both live in one thread. connect() is replaced: it makes a pair of sockets, and the answers to the hello and to the spaces that are re-opened
 * lie in it already. A call that waits (ppoll(), while it is in the library) lets the daemon answer what it was asked; if it does not, time
 * passes at once. So every run of an input is the same.
 *
 * The daemon answers as liar.h has it. Its slabs and their headers are scribbled on as the input says.
 *
 * What is checked: every packet of the library is a frame and unpacks; every operation is done once; what the library says it gave is there; a
 * block that it got or decoded from a daemon that only scribbled is the block that was stored; planes of mappings lie in them; planes that it did not ask for are not written to, whatever
 * the daemon says. */
#include <poll.h>
#include <sys/syscall.h>
#include <time.h>

#include "tests/fuzz/liar.h"

enum { N_OPS = 12, N_CALLS = 14, N_SPACES = 2, N_STEPS = 64, KEYS_AN_OP = 6 };

static bool running;
static uint64_t ahead_usec;
static kvt *conn;
static kvt_space *spaces[N_SPACES];
static struct op {
        bool used, is_map, is_reserve, is_get;
        bool given; /* its tickets are those of another operation now, too */
        int n_done, status;
        kvt_op *op;
        kvt_key keys[KEYS_AN_OP];
        size_t n_keys;
        unsigned i_space;
        unsigned first_plane, n_planes; /* of a get */
        uint8_t statuses[KEYS_AN_OP];
        kvt_mapping mappings[KEYS_AN_OP];
        kvt_reservation reservations[KEYS_AN_OP];
        kvt_match_result match;
        kvt_explanation explanation;
        kvt_stats stats;
        uint8_t memory[KEYS_AN_OP * PART_BYTES];
} ops[N_OPS];

/* what the library calls */

static bool open_falsely; /* the next hello, or what is re-opened, is answered by what the input holds */
static unsigned n_open;
static bool coded; /* the connection takes copies under codecs */
static float max_rel_l2; /* of the first space */

int connect(int fd, const struct sockaddr *address, socklen_t n)
{
        struct timeval t = {.tv_usec = 1000};
        int pair[2];

        daemon_hang_up();
        FUZZ_CHECK(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) == 0);
        FUZZ_CHECK(dup3(pair[0], fd, O_CLOEXEC) == fd && setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &t, sizeof(t)) == 0);
        close(pair[0]);
        d.fd = pair[1];
        a.id = 1;
        a.n_fds = 0;
        for (unsigned i = 0; i <= n_open; i++) {
                if (i)
                        answer_space();
                else
                        answer_hello();
                if (open_falsely && d.fd >= 0)
                        answer_somehow(input_u8(&in));
                else
                        answer_send();
        }
        if (open_falsely)
                daemon_hang_up();
        open_falsely = false;
        return 0;
}

int clock_gettime(clockid_t id, struct timespec *ret)
{
        int r = (int)syscall(SYS_clock_gettime, id, ret);

        if (r == 0 && running && id == CLOCK_MONOTONIC) {
                uint64_t usec = (uint64_t)ret->tv_sec * 1000000 + (uint64_t)ret->tv_nsec / 1000 + ahead_usec;
                ret->tv_sec = (time_t)(usec / 1000000);
                ret->tv_nsec = (long)(usec % 1000000 * 1000);
        }
        return r;
}

int ppoll(struct pollfd *p, nfds_t n, const struct timespec *timeout, const sigset_t *mask)
{
        struct timespec none = {0};
        int r;

        FUZZ_CHECK(running && n == 1 && timeout);
        for (;;) {
                r = (int)syscall(SYS_ppoll, p, n, &none, NULL, 0);
                if (r || !daemon_serve())
                        break;
        }
        if (!r)
                ahead_usec += (uint64_t)timeout->tv_sec * 1000000 + (uint64_t)timeout->tv_nsec / 1000 + 1;
        return r;
}

/* the application */

static void on_done(int status, void *arg)
{
        struct op *o = arg;

        FUZZ_CHECK(o->used && !o->n_done);
        o->n_done++;
        o->status = status;
        if (!o->is_get)
                return;
        for (size_t i = 0; i < o->n_keys; i++)
                for (size_t at = 0; at < PART_BYTES; at++) {
                        bool wanted = at / PLANE_BYTES - o->first_plane < o->n_planes;
                        uint8_t byte = o->memory[at / PLANE_BYTES * KEYS_AN_OP * PLANE_BYTES + i * PLANE_BYTES + at % PLANE_BYTES];

                        FUZZ_CHECK(wanted || !byte);
                        FUZZ_CHECK(!wanted || status || d.lied || o->statuses[i] || byte == block_byte(o->keys[i].bytes[0], at));
                }
}

static void on_event(const kvt_key *stored, size_t n_stored, const kvt_key *removed, size_t n_removed, uint64_t n_lost, void *arg)
{
        uint8_t sum = 0;

        for (size_t i = 0; i < n_stored; i++)
                sum += stored[i].bytes[15];
        for (size_t i = 0; i < n_removed; i++)
                sum += removed[i].bytes[15];
        (void)sum;
        FUZZ_CHECK(n_stored || n_removed || n_lost);
}

/* A mapping of that block: its planes as they lie there, decoded, and some rows. */
static void look_at(kvt_space *s, const kvt_mapping *m, unsigned block)
{
        const uint8_t *first = m->data;
        uint32_t tokens[4];
        bool same;

        FUZZ_CHECK(coded ? m->bytes && m->bytes <= PART_BYTES + hints_max(&block_geometry) : m->bytes == PART_BYTES);
        same = kvt_verify(s, m) == 0 && !d.lied;
        for (uint32_t i = 0; i < 4; i++)
                tokens[i] = (block * 5 + i * 7) % TOKENS;
        for (size_t p = 0; p < N_PLANES; p++) {
                const uint32_t head_bytes = ROW_BYTES; /* one head in both; an opaque token's bytes are its row */
                uint8_t *whole = malloc(PLANE_BYTES),
                        *rows = malloc(sizeof(tokens) / 4 * head_bytes); /* so that a write past them is seen */
                kvt_plane_copy c;

                int r = kvt_mapped_plane(s, m, p, &c);
                if (r == 0) {
                        const uint8_t *data = c.data;
                        FUZZ_CHECK(c.codec && c.bytes <= PLANE_BYTES && data >= first && (size_t)(data - first) + c.bytes <= m->bytes);
                        FUZZ_CHECK(c.rel_l2 >= 0 && c.max_abs >= 0);
                }
                r = kvt_decode(s, m, p, whole);
                FUZZ_CHECK(!same || r == 0);
                for (size_t at = 0; same && at < PLANE_BYTES; at++)
                        FUZZ_CHECK(whole[at] == block_byte(block, p * PLANE_BYTES + at));
                r = kvt_decode_rows(s, m, p, 0, tokens, 4, rows);
                FUZZ_CHECK(!same || r == 0 || r == KVT_E_UNSUPPORTED);
                for (size_t at = 0; same && r == 0 && at < 4 * head_bytes; at++)
                        FUZZ_CHECK(rows[at] == block_byte(block, p * PLANE_BYTES + tokens[at / head_bytes] * head_bytes + at % head_bytes));
                free(whole);
                free(rows);
        }
        FUZZ_CHECK(kvt_mapped_plane(s, m, N_PLANES, &(kvt_plane_copy){0}) != 0 && kvt_decode_rows(s, m, 0, 1, tokens, 1, tokens) != 0);
}

/* Gives back what a finished operation gave, and the operation. */
static void op_finish(struct op *o)
{
        kvt_space *s = spaces[o->i_space];

        if (!o->used || !o->n_done || !s)
                return;
        for (size_t i = 0; i < o->n_keys; i++) {
                if (o->is_map && !o->status) {
                        FUZZ_CHECK(!!o->mappings[i].data == !o->statuses[i]);
                        if (o->mappings[i].data) {
                                look_at(s, &o->mappings[i], o->keys[i].bytes[0]);
                        }
                }
                if (o->is_map && o->status)
                        FUZZ_CHECK(!o->mappings[i].data);
                if (o->is_reserve && o->status)
                        FUZZ_CHECK(!o->reservations[i].data);
                if (o->is_reserve && o->reservations[i].data && !o->given)
                        memset(o->reservations[i].data, 1, PART_BYTES);
        }
        if (o->is_map)
                kvt_unmap(s, o->mappings, o->n_keys, NULL);
        if (o->is_reserve)
                kvt_put_abort(s, o->reservations, o->n_keys);
        kvt_op_free(o->op);
        o->op = NULL;
        o->used = false;
}

static void op_start(uint8_t what)
{
        uint8_t how = input_u8(&in), first = input_u8(&in);
        struct op *o = &ops[how % N_OPS], *other = &ops[first % N_OPS];
        kvt_plane_view planes[2];
        kvt_view view = {.planes = planes, .n_planes = 2};
        bool sync = how >= 0xc0;
        kvt_space *s;
        int r = -1;

        if (o->used)
                op_finish(o);
        if (o->used)
                return;
        *o = (struct op){.used = true,
                         .n_keys = how / N_OPS % KEYS_AN_OP + 1,
                         .i_space = first >> 7,
                         .n_planes = N_PLANES,
                         .stats.struct_size = sizeof(o->stats)};
        s = spaces[o->i_space];
        if (!s) {
                o->used = false;
                return;
        }
        for (size_t i = 0; i < o->n_keys; i++)
                o->keys[i] = block_key(first + (unsigned)i * (how & 1 ? SLOTS : 1));
        for (int p = 0; p < 2; p++)
                planes[p] = (kvt_plane_view){.base = o->memory + p * KEYS_AN_OP * PLANE_BYTES,
                                             .token_stride = ROW_BYTES,
                                             .head_stride = ROW_BYTES};
#define EITHER(name, ...) (sync ? name(__VA_ARGS__) : name##_async(__VA_ARGS__, on_done, o, &o->op))
        switch (what) {
        case 0:
                r = EITHER(kvt_match, s, o->keys, o->n_keys, o->n_keys * TOKENS, first & KVT_MATCH_LEAVE_LAST, &o->match);
                break;
        case 1:
                r = EITHER(kvt_put, s, first & 2 ? &o->keys[0] : NULL, o->keys, o->n_keys, 0, &view, first >> 2 & 3, o->statuses);
                break;
        case 2:
        case 3:
                o->is_get = true;
                r = EITHER(kvt_get, s, o->keys, o->n_keys, 0, &view, 0, o->statuses);
                break;
        case 4:
        case 5:
                o->is_map = true;
                r = EITHER(kvt_map, s, o->keys, o->n_keys, o->mappings, o->statuses);
                break;
        case 6:
                o->is_reserve = true;
                r = EITHER(kvt_put_reserve, s, NULL, o->keys, o->n_keys, first >> 2 & 3, o->reservations, o->statuses);
                break;
        case 7: /* what another operation reserved */
                if (other != o && other->used && other->n_done && other->is_reserve && other->i_space == o->i_space) {
                        memcpy(o->reservations, other->reservations, sizeof(o->reservations));
                        o->n_keys = other->n_keys;
                        other->given = true;
                        if (first & 64)
                                o->reservations[0].priv[0] ^= first;
                }
                r = EITHER(kvt_put_commit, s, o->reservations, o->n_keys, o->statuses);
                break;
        case 8:
                r = EITHER(kvt_prefetch, s, o->keys, o->n_keys, first & 64 ? 20000 : 0, o->statuses);
                break;
        case 9:
                r = EITHER(kvt_drop, s, o->keys, o->n_keys, o->statuses);
                break;
        case 10:
                r = EITHER(kvt_explain, s, o->keys, &o->explanation);
                break;
        case 11:
                r = EITHER(kvt_stat, conn, &o->stats);
                break;
        case 12:
        case 13:
                o->is_get = true;
                o->first_plane = first & 1;
                o->n_planes = first & 1 ? 1 : 1 + (first >> 1 & 1);
                r = EITHER(kvt_get_planes, s, o->keys, o->n_keys, 0, &view, 0, o->first_plane, o->n_planes, o->statuses);
                break;
        }
        if (sync)
                on_done(r, o);
        else if (r)
                o->used = false;
        o->status = r ? r : o->status;
}

static void scribble(void)
{
        unsigned b = input_u8(&in) % (N_SLABS * SLOTS), at = (unsigned)input_number(&in, 2) % (SLOT_BYTES / 2);
        uint8_t *slot = (uint8_t *)block_header(b);

        d.lied |= at >= 8 && at < sizeof(struct kvt_copy_header) + 3 * sizeof(struct kvt_copy_plane); /* lengths, checksums, codecs */
        slot[at] = input_u8(&in);
}

static void open_space(unsigned i)
{
        kvt_space_config config = {.struct_size = sizeof(config),
                                   .name = i ? "b" : "a",
                                   .block_tokens = TOKENS,
                                   .n_shards = 1,
                                   .planes = block_planes,
                                   .n_planes = N_PLANES,
                                   .max_rel_l2 = i ? 0.5f : max_rel_l2};

        if (!spaces[i] && kvt_space_open(conn, &config, &spaces[i]) == 0)
                n_open++;
}

static void close_space(unsigned i)
{
        if (!spaces[i])
                return;
        for (size_t o = 0; o < N_OPS; o++) {
                if (ops[o].used && ops[o].i_space == i)
                        op_finish(&ops[o]);
                if (ops[o].used && ops[o].i_space == i)
                        return; /* it is in use */
        }
        kvt_space_close(spaces[i]);
        spaces[i] = NULL;
        n_open--;
}

static void step(void)
{
        uint8_t what = input_u8(&in);

        switch (what) {
        case 0 ... 0x9f:
                op_start(what % N_CALLS);
                break;
        case 0xa0 ... 0xb7:
                daemon_serve();
                break;
        case 0xb8 ... 0xcf:
                kvt_process(conn);
                break;
        case 0xd0 ... 0xd7:
                daemon_unasked();
                break;
        case 0xd8 ... 0xdb:
                kvt_wait(ops[input_u8(&in) % N_OPS].op, 1000);
                break;
        case 0xdc ... 0xdf: {
                struct op *o = &ops[input_u8(&in) % N_OPS];
                if (o->used)
                        kvt_cancel(o->op);
                break;
        }
        case 0xe0 ... 0xe7:
                if (what & 1)
                        block_lie();
                else
                        scribble();
                break;
        case 0xe8 ... 0xef:
                op_finish(&ops[input_u8(&in) % N_OPS]);
                break;
        case 0xf0:
                daemon_hang_up();
                break;
        case 0xf1:
                open_falsely = true;
                break;
        case 0xf2:
                ahead_usec += input_number(&in, 3);
                break;
        case 0xf3:
                if (spaces[0])
                        kvt_events(spaces[0], input_u8(&in) & 1 ? on_event : NULL, NULL);
                break;
        case 0xf4:
                open_space(1);
                break;
        case 0xf5:
                close_space(1);
                break;
        case 0xf6:
                kvt_fd(conn);
                break;
        case 0xf7:
                kvt_flush(conn);
                break;
        }
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
        const char *corpus = fuzz_corpus(*argc, *argv);
        uint8_t all[N_CALLS * 27];
        char name[16];

        daemon_init();
        for (uint8_t i = 0; i < N_CALLS; i++) { /* each operation, both ways, on both kinds of connection */
                const uint8_t seed[] = {i * 5 & 15, 0, 0,    i,    i, 0,    0xb8, 0,    0xa0, 0, 0xb8, 0xa0, 0, 0xb8,
                                        0xa0,       0, 0xb8, 0xa0, 0, 0xb8, i,    0xc0, 9,    0, 0,    0,    0};
                snprintf(name, sizeof(name), "%u", i);
                fuzz_seed(corpus, name, seed, sizeof(seed));
                memcpy(all + i * sizeof(seed), seed, sizeof(seed));
        }
        fuzz_seed(corpus, "all", all, sizeof(all));
        for (uint8_t i = 0; i < 9; i++) { /* maps and gets of blocks that are lied about, of each kind */
                const uint8_t seed[] = {8, 4, 0xc0 + 49, 0, 0,         0, 0, 0, 0xe1, 3, 0x10,      i, 2, 100, 0xe1, 2,    0,
                                        i, 4, 2,         4, 0xc0 + 49, 0, 0, 0, 0,    2, 0xc0 + 49, 0, 0, 0,   0,    0xe8, 1};
                snprintf(name, sizeof(name), "lie-%u", i);
                fuzz_seed(corpus, name, seed, sizeof(seed));
        }
        return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n)
{
        kvt_options o = {.struct_size = sizeof(o), .path = "/none", .name = "fuzz", .timeout_usec = 50000, .staging_bytes = STAGING_BYTES};
        uint8_t flags;

        in = (struct input){bytes, n};
        running = true;
        d.lied = false;
        n_open = 0;
        blocks_store();
        memset(ops, 0, sizeof(ops));
        flags = input_u8(&in);
        o.flags = KVT_OPEN_NO_THREAD | (flags & (KVT_OPEN_NO_MAP | KVT_OPEN_NO_RECONNECT | KVT_OPEN_CODED));
        coded = flags & KVT_OPEN_CODED;
        max_rel_l2 = flags & 16 ? 0 : 0.5f;
        open_falsely = flags >= 0xf0;
        if (kvt_open(&o, &conn) == 0) {
                open_space(0);
                for (int i = 0; in.n && i < N_STEPS; i++)
                        step();
                kvt_close(conn);
                for (size_t i = 0; i < N_OPS; i++)
                        if (ops[i].used) {
                                FUZZ_CHECK(ops[i].n_done == 1);
                                kvt_op_free(ops[i].op);
                        }
        }
        conn = NULL;
        memset(spaces, 0, sizeof(spaces));
        daemon_hang_up();
        running = false;
        return 0;
}
