/* Copies under codecs, in a real daemon: what comes back is what was put, or within the bound that its header says and the space allows. */
#include <math.h>
#include <signal.h>

#include "tests/lib/devices.h"
#include "tests/lib/pattern.h"

enum {
        LAYERS = 2,
        PLANES = 2 * LAYERS,
        HEADS = 2,
        DIM = 64,
        TOKENS = 64,
        VALUES = HEADS * TOKENS * DIM,
        PLANE = 2 * VALUES,
        PART = PLANES * PLANE,
        MANY = 16
};

static kvt_key keys[MANY];
static uint8_t statuses[MANY], bytes[MANY][PART], got[MANY][PART];

/* Keys and values as models have them, more or less: channels of different sizes, values nearly normal, a large token now and then. */
static uint16_t f16(float f)
{
        uint32_t u;

        memcpy(&u, &f, 4);
        int e = (int)(u >> 23 & 255) - 112;
        return e <= 0 ? (uint16_t)(u >> 16 & 0x8000) : (uint16_t)((u >> 16 & 0x8000) | (uint32_t)e << 10 | (u >> 13 & 0x3ff));
}

static float f32(uint16_t h)
{
        float f = ldexpf((float)(h & 0x3ff) + (h & 0x7c00 ? 1024 : 0), (h & 0x7c00 ? h >> 10 & 31 : 1) - 25);
        return h & 0x8000 ? -f : f;
}

static void make_blocks(void)
{
        uint64_t x = 88172645463325252ull;

        pattern_keys(5, 0, MANY, keys);
        for (int b = 0; b < MANY; b++)
                for (int p = 0; p < PLANES; p++)
                        for (int i = 0; i < VALUES; i++) {
                                float sum = 0;
                                for (int k = 0; k < 4; k++) {
                                        x ^= x << 13;
                                        x ^= x >> 7;
                                        x ^= x << 17;
                                        sum += (float)(x >> 40) / 0x1p24f - 0.5f;
                                }
                                float value = sum * (p % 2 ? 1 : 0.2f + (float)(i % DIM % 9)) + (p % 2 ? 0 : (float)(i % DIM % 5));
                                uint16_t h = f16(value);
                                memcpy(&bytes[b][p * PLANE + 2 * i], &h, 2);
                        }
}

struct user {
        struct daemon *d;
        kvt *c;
        kvt_space *s;
        kvt_plane_view views[PLANES];
        kvt_view view;
};

static int open_space(kvt *c, float max_rel_l2, kvt_space **ret)
{
        kvt_plane planes[PLANES];

        for (uint32_t i = 0; i < PLANES; i++)
                planes[i] = (kvt_plane){i / 2, i % 2 ? KVT_ROLE_V : KVT_ROLE_K, KVT_DTYPE_F16, HEADS, DIM, 0, 0};
        kvt_space_config config = {.struct_size = sizeof(config),
                                   .name = "codecs",
                                   .block_tokens = TOKENS,
                                   .n_shards = 1,
                                   .planes = planes,
                                   .n_planes = PLANES,
                                   .max_rel_l2 = max_rel_l2};
        return kvt_space_open(c, &config, ret);
}

static void user_open(struct user *u, struct daemon *d, uint32_t flags, float max_rel_l2)
{
        u->d = d;
        u->c = pattern_open(d, flags);
        CHECK_OK(open_space(u->c, max_rel_l2, &u->s));
}

static void user_close(struct user *u)
{
        kvt_space_close(u->s);
        kvt_close(u->c);
}

/* Block i of a prompt lies at base + i * PART: planes, heads, tokens. */
static kvt_view view_of(struct user *u, uint8_t (*blocks)[PART], int b)
{
        for (int p = 0; p < PLANES; p++)
                u->views[p] = (kvt_plane_view){blocks[b] + p * PLANE, .token_stride = 2 * DIM, .head_stride = 2 * DIM * TOKENS};
        return (kvt_view){.planes = u->views, .n_planes = PLANES};
}

static void store(struct user *u, int n, const kvt_hints *hints)
{
        for (int b = 0; b < n; b++) { /* one by one: each block is a view of its own */
                u->view = view_of(u, bytes, b);
                CHECK_OK(kvt_put_hints(u->s, b ? &keys[b - 1] : NULL, &keys[b], 1, 0, &u->view, 0, hints, statuses));
                CHECK_OK(statuses[0]);
        }
}

static void get_blocks(struct user *u, int n)
{
        memset(got, 0x5a, sizeof(got));
        for (int b = 0; b < n; b++) {
                u->view = view_of(u, got, b);
                CHECK_OK(kvt_get(u->s, &keys[b], 1, 0, &u->view, 0, statuses));
                CHECK_OK(statuses[0]);
        }
}

static void check_exact(struct user *u, int n)
{
        get_blocks(u, n);
        for (int b = 0; b < n; b++)
                CHECK(!memcmp(got[b], bytes[b], PART));
}

static double error_of(const uint8_t *x, const uint8_t *y, double *ret_max)
{
        double diff = 0, norm = 0, max = 0;

        for (int i = 0; i < VALUES; i++) {
                uint16_t a, b;
                memcpy(&a, x + 2 * i, 2);
                memcpy(&b, y + 2 * i, 2);
                double d = fabs((double)f32(a) - (double)f32(b));
                diff += d * d;
                norm += (double)f32(a) * (double)f32(a);
                max = d > max ? d : max;
        }
        *ret_max = max;
        return sqrt(diff / norm);
}

/* Each block is mapped: each plane under this codec, as far from what was put as its header says, within the bound; get and decode agree, rows too. Returns how
 * many planes had that codec. */
static int check_mapped(struct user *u, int n, const char *codec, double bound)
{
        static uint8_t plane[PLANE], rows[3 * 2 * DIM];
        static const uint32_t tokens[3] = {63, 0, 17};
        int n_named = 0;

        get_blocks(u, n);
        for (int b = 0; b < n; b++) {
                kvt_mapping m;
                CHECK_OK(kvt_map(u->s, &keys[b], 1, &m, statuses));
                CHECK_OK(statuses[0]);
                CHECK_OK(kvt_verify(u->s, &m));
                for (size_t p = 0; p < PLANES; p++) {
                        kvt_plane_copy c;
                        double max, error = error_of(bytes[b] + p * PLANE, got[b] + p * PLANE, &max);
                        CHECK_OK(kvt_mapped_plane(u->s, &m, p, &c));
                        n_named += !strcmp(c.codec, codec);
                        CHECK(error <= bound && fabs(error - (double)c.rel_l2) <= 1e-6 + error * 1e-5);
                        CHECK(fabs(max - (double)c.max_abs) <= 1e-6 + max * 1e-5);
                        CHECK_OK(kvt_decode(u->s, &m, p, plane));
                        CHECK(!memcmp(plane, got[b] + p * PLANE, PLANE));
                        int r = kvt_decode_rows(u->s, &m, p, 1, tokens, 3, rows);
                        CHECK(r == 0 || r == KVT_E_UNSUPPORTED);
                        for (int i = 0; i < 3 && !r; i++)
                                CHECK(!memcmp(rows + i * 2 * DIM, plane + (TOKENS + tokens[i]) * 2 * DIM, 2 * DIM));
                }
                CHECK_OK(kvt_unmap(u->s, &m, 1, NULL));
        }
        return n_named;
}

static void test_hot(void **state)
{
        struct daemon d;
        struct user u, coded;
        kvt_mapping m;
        uint8_t plane[PLANE];
        uint32_t token = 0;

        DAEMON_START(&d, "--codec_hot=zbf");
        user_open(&u, &d, 0, 0);
        store(&u, MANY, NULL);
        WAIT_FOR(daemon_counter(&d, "recoded") == MANY, 5000);
        CHECK(daemon_counter(&d, "coded_stored_bytes") < daemon_counter(&d, "coded_bytes") * 9 / 10);
        check_exact(&u, MANY);
        CHECK_OK(kvt_map(u.s, keys, 1, &m, statuses)); /* who does not know of codecs is not given their bytes */
        CHECK_IS(statuses[0], KVT_E_CODED);
        CHECK(!m.data);
        user_open(&coded, &d, KVT_OPEN_CODED, 0);
        CHECK(check_mapped(&coded, MANY, "zbf", 0) > MANY * PLANES / 2);
        CHECK_OK(kvt_map(coded.s, keys, 1, &m, statuses));
        CHECK_IS(kvt_decode_rows(coded.s, &m, 0, 0, &token, 1, plane), KVT_E_UNSUPPORTED);
        CHECK_IS(kvt_decode_rows(coded.s, &m, 0, HEADS, &token, 1, plane), KVT_E_BAD_REQUEST);
        token = TOKENS;
        CHECK_IS(kvt_decode_rows(coded.s, &m, 0, 0, &token, 1, plane), KVT_E_BAD_REQUEST);
        CHECK_IS(kvt_decode(coded.s, &m, PLANES, plane), KVT_E_BAD_REQUEST);
        CHECK_OK(kvt_unmap(coded.s, &m, 1, NULL));
        user_close(&coded);
        user_open(&coded, &d, KVT_OPEN_NO_MAP, 0);
        check_exact(&coded, MANY);
        user_close(&coded);
        user_close(&u);
        daemon_end(&d);
}

static void test_bounded(void **state)
{
        static const char *const ladders[] = {"--codec_hot=kivi:bits=4", "--codec_hot=turbo:bits=4",      "--codec_hot=stack",
                                              "--codec_hot=mixed",       "--codec_hot=kivi:bits=2+turbo", "--codec_hot=gear:bits=4",
                                              "--codec_hot=kivi:bits=1"};
        struct daemon d;
        struct user u;

        for (size_t i = 0; i < sizeof(ladders) / sizeof(*ladders); i++) {
                DAEMON_START(&d, ladders[i]);
                user_open(&u, &d, KVT_OPEN_CODED, 0.15f);
                store(&u, MANY, NULL);
                WAIT_FOR(daemon_counter(&d, "recoded") == MANY, 10000);
                CHECK(daemon_counter(&d, "coded_stored_bytes") < daemon_counter(&d, "coded_bytes") * 2 / 3);
                check_mapped(&u, MANY, "", 0.15);
                CHECK(daemon_audit(&d).used_bytes < MANY * PART);
                user_close(&u);
                daemon_end(&d);
        }
        /* no lossy codec is that good: all planes fell back */
        DAEMON_START(&d, "--codec_hot=kivi:bits=2");
        user_open(&u, &d, KVT_OPEN_CODED, 1e-5f);
        store(&u, MANY, NULL);
        WAIT_FOR(daemon_counter(&d, "recoded") == MANY, 10000);
        check_exact(&u, MANY);
        CHECK_EQ(daemon_counter(&d, "fallback_planes"), MANY * PLANES);
        CHECK_EQ(check_mapped(&u, MANY, "kivi", 0), 0);
        user_close(&u);
        daemon_end(&d);
}

static void test_fidelity(void **state)
{
        static const float bad[] = {NAN, -0.5f, 1.5f, INFINITY};
        struct daemon d;
        struct user u;
        kvt_space *s;

        DAEMON_START(&d, "--codec_hot=kivi:bits=2"); /* what a lossless space makes lossless */
        user_open(&u, &d, KVT_OPEN_CODED, 0);
        CHECK_IS(open_space(u.c, 0.1f, &s), KVT_E_FIDELITY);
        for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++)
                CHECK_IS(open_space(u.c, bad[i], &s), KVT_E_BAD_REQUEST);
        store(&u, MANY, NULL);
        WAIT_FOR(daemon_counter(&d, "recoded") == MANY, 5000);
        CHECK_EQ(check_mapped(&u, MANY, "kivi", 0), 0);
        check_exact(&u, MANY);
        user_close(&u);
        daemon_end(&d);
}

/* The first 10 tokens and the last one stay exact whatever the codec, and the hints outlive the daemon. */
static void test_hints(void **state)
{
        static uint8_t protect[MANY * TOKENS / 8];
        static float scores[MANY * TOKENS];
        kvt_hints hints = {sizeof(hints), protect, scores};
        struct daemon d;
        struct user u;
        kvt_reservation r;

        memset(protect, 0, sizeof(protect));
        protect[0] = 0xff;
        protect[1] = 3;
        protect[7] = 0x80;
        for (int i = 0; i < MANY * TOKENS; i++)
                scores[i] = (float)(i % 7);
        NVME(&d, "--codec_nvme=zbf");
        user_open(&u, &d, 0, 0.5f);
        store(&u, MANY - 1, &hints);
        CHECK_OK(kvt_put_reserve(u.s, &keys[MANY - 2], &keys[MANY - 1], 1, 0, &r, statuses)); /* without saying that hints follow */
        CHECK_OK(statuses[0]);
        CHECK_OK(kvt_put_commit_hints(u.s, &r, 1, &hints, statuses));
        CHECK_IS(statuses[0], KVT_E_BAD_REQUEST);
        CHECK(!r.data);
        CHECK_OK(kvt_put_reserve(u.s, &keys[MANY - 2], &keys[MANY - 1], 1, KVT_PUT_HINTS, &r, statuses));
        CHECK_OK(statuses[0]);
        memcpy(r.data, bytes[MANY - 1], PART);
        CHECK_OK(kvt_put_commit_hints(u.s, &r, 1, &hints, statuses));
        CHECK_OK(statuses[0]);
        check_exact(&u, MANY);
        WAIT_FOR(device_records(&d) == MANY, 5000);
        device_flush(&d);
        user_close(&u);
        daemon_kill(&d);
        d.args[d.n_args++] = (char *)"--codec_hot=kivi:bits=2";
        d.args[d.n_args] = NULL;
        daemon_restart(&d);
        WAIT_FOR(device_is(&d, 0, "serving"), 10000);
        user_open(&u, &d, KVT_OPEN_CODED, 0.5f);
        get_blocks(&u, MANY);
        WAIT_FOR(daemon_counter(&d, "recoded") == MANY, 5000);
        CHECK_EQ(check_mapped(&u, MANY, "kivi", 0.5), MANY * PLANES);
        for (int b = 0; b < MANY; b++)
                for (int row = 0; row < PLANES * HEADS * TOKENS; row++) {
                        int t = row % TOKENS;
                        bool same = !memcmp(got[b] + row * 2 * DIM, bytes[b] + row * 2 * DIM, 2 * DIM);
                        CHECK(same || !(t < 10 || t == 63));
                }
        user_close(&u);
        daemon_end(&d);
}

/* Of what was got, the first n tokens of the prompt are what was put, and in no row of another token all values are. */
static void check_first(int n_blocks, int n)
{
        for (int b = 0; b < n_blocks; b++)
                for (int row = 0; row < PLANES * HEADS * TOKENS; row++) {
                        bool same = !memcmp(got[b] + row * 2 * DIM, bytes[b] + row * 2 * DIM, 2 * DIM);
                        CHECK_EQ(same, b * TOKENS + row % TOKENS < n);
                }
}

/* The first tokens of a prompt stay exact, whatever a block holds of them; lossy copies are not coded again when their number changes. */
static void test_sinks(void **state)
{
        static const struct {
                const char *param;
                int n;
        } cases[] = {{"--codec_sinks=0", 0},
                     {"--codec_sinks=4", 4},
                     {"--codec_sinks=64", 64},
                     {"--codec_sinks=70", 70},
                     {"--codec_hot=kivi", 4}};
        struct daemon d;
        struct user u;
        kvt_key other;

        for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
                DAEMON_START(&d, "--codec_hot=kivi", cases[i].param);
                user_open(&u, &d, KVT_OPEN_CODED, 0.5f);
                store(&u, 3, NULL);
                WAIT_FOR(daemon_counter(&d, "recoded") == 3, 5000);
                CHECK_EQ(check_mapped(&u, 3, "kivi", 0.5), (cases[i].n < TOKENS ? 3 : 2) * PLANES);
                check_first(3, cases[i].n);
                if (i + 1 < sizeof(cases) / sizeof(*cases)) {
                        user_close(&u);
                        daemon_end(&d);
                }
        }
        daemon_write_config(&d, "codec_sinks = 2\n");
        kill(d.pid, SIGHUP);
        WAIT_FOR(daemon_log_has(&d, "Configuration reloaded"), 2000);
        pattern_keys(6, 0, 1, &other);
        u.view = view_of(&u, bytes, 0);
        CHECK_OK(kvt_put(u.s, NULL, &other, 1, 0, &u.view, 0, statuses));
        WAIT_FOR(daemon_counter(&d, "recoded") == 4, 5000);
        get_blocks(&u, 3);
        check_first(3, 4);
        u.view = view_of(&u, got, 0);
        CHECK_OK(kvt_get(u.s, &other, 1, 0, &u.view, 0, statuses));
        check_first(1, 2);
        user_close(&u);
        daemon_end(&d);

        NVME(&d, "--codec_nvme=turbo+kivi");
        user_open(&u, &d, 0, 0.5f);
        store(&u, 3, NULL);
        WAIT_FOR(device_records(&d) == 3, 5000);
        check_exact(&u, 3);
        device_flush(&d);
        user_close(&u);
        daemon_kill(&d);
        daemon_restart(&d);
        WAIT_FOR(device_is(&d, 0, "serving"), 10000);
        user_open(&u, &d, 0, 0.5f);
        get_blocks(&u, 3);
        check_first(3, 4);
        user_close(&u);
        daemon_end(&d);
}

/* Of a client that writes what it likes behind the part. */
static void test_bad_hints(void **state)
{
        kvt_hints hints = {0};
        struct daemon d;
        struct user u;

        DAEMON_START(&d);
        user_open(&u, &d, 0, 0);
        u.view = view_of(&u, bytes, 0);
        CHECK_IS(kvt_put_hints(u.s, NULL, keys, 1, 0, &u.view, 0, &hints, statuses), KVT_E_BAD_REQUEST);
        hints.struct_size = sizeof(hints); /* none is known: like no hints */
        CHECK_OK(kvt_put_hints(u.s, NULL, keys, 1, 0, &u.view, 0, &hints, statuses));
        CHECK_OK(statuses[0]);
        check_exact(&u, 1);
        user_close(&u);
        daemon_end(&d);
}

static void test_nvme(void **state)
{
        struct daemon d;
        struct user u;

        NVME(&d, "--codec_nvme=zbf");
        user_open(&u, &d, 0, 0);
        store(&u, MANY, NULL);
        WAIT_FOR(device_records(&d) == MANY, 5000);
        device_flush(&d);
        struct device_seen seen;
        CHECK(device_see(&d, 0, &seen) && seen.used_bytes < MANY * PART * 95 / 100);
        user_close(&u);
        daemon_kill(&d);
        daemon_restart(&d);
        WAIT_FOR(device_is(&d, 0, "serving"), 10000);
        user_open(&u, &d, 0, 0);
        /* some planes alone, from the device; the second time their header is at hand */
        for (int again = 0; again < 2; again++)
                for (int b = 0; b < MANY; b++) {
                        memset(got[b], 0, PART);
                        u.view = view_of(&u, got, b);
                        CHECK_OK(kvt_get_planes(u.s, &keys[b], 1, 0, &u.view, 0, 1, 2, statuses));
                        CHECK_OK(statuses[0]);
                        CHECK(!memcmp(got[b] + PLANE, bytes[b] + PLANE, 2 * PLANE));
                        for (int i = 0; i < PLANE; i++)
                                CHECK(!got[b][i] && !got[b][3 * PLANE + i]);
                }
        CHECK_EQ(daemon_counter(&d, "nvme_gets"), 2 * MANY);
        check_exact(&u, MANY);
        kvt_mapping m; /* raw is the hot rung: it can be mapped as it was put */
        CHECK_OK(kvt_map(u.s, keys, 1, &m, statuses));
        CHECK_OK(statuses[0]);
        CHECK(m.bytes == PART && !memcmp(m.data, bytes[0], PART));
        CHECK_OK(kvt_unmap(u.s, &m, 1, NULL));
        user_close(&u);
        user_open(&u, &d, KVT_OPEN_NO_MAP, 0);
        check_exact(&u, MANY);
        user_close(&u);
        daemon_end(&d);
}

/* What is lossy on NVMe stays as it is in memory: nothing is coded twice. */
static void test_nvme_lossy(void **state)
{
        static uint8_t before[MANY][PART];
        struct daemon d;
        struct user u;

        NVME(&d, "--codec_nvme=kivi:bits=4+turbo:bits=4");
        user_open(&u, &d, KVT_OPEN_CODED, 0.2f);
        store(&u, MANY, NULL);
        check_exact(&u, MANY);
        WAIT_FOR(device_records(&d) == MANY, 5000);
        device_flush(&d);
        for (int again = 0; again < 2; again++) {
                user_close(&u);
                daemon_kill(&d);
                daemon_restart(&d);
                WAIT_FOR(device_is(&d, 0, "serving"), 10000);
                user_open(&u, &d, KVT_OPEN_CODED, 0.2f);
                CHECK_EQ(check_mapped(&u, MANY, "kivi", 0.2), MANY * PLANES / 2);
                CHECK(!again || !memcmp(before, got, sizeof(got)));
                memcpy(before, got, sizeof(got));
                CHECK(daemon_audit(&d).used_bytes < MANY * PART / 3);
        }
        user_close(&u);
        /* a space of the same name that is lossless is another one: that is refused, and what is there is not touched */
        kvt *c = pattern_open(&d, 0);
        kvt_space *s;
        CHECK_IS(open_space(c, 0, &s), KVT_E_FIDELITY);
        kvt_close(c);
        daemon_end(&d);
}

static void test_truncated(void **state)
{
        struct daemon d;
        struct user u;
        kvt_mapping m;
        kvt_plane_copy c;
        size_t n = 0;

        NVME(&d, "--codec_hot=stack:levels=5", "--codec_nvme=stack:levels=2", "--nvme_admit_hits=1");
        user_open(&u, &d, KVT_OPEN_CODED, 0.5f);
        store(&u, MANY, NULL);
        WAIT_FOR(daemon_counter(&d, "recoded") == MANY, 10000);
        CHECK_EQ(check_mapped(&u, MANY, "stack", 0.05), MANY * PLANES);
        CHECK_OK(kvt_map(u.s, &keys[1], 1, &m, statuses));
        CHECK_OK(kvt_mapped_plane(u.s, &m, 0, &c));
        n = c.bytes;
        CHECK_OK(kvt_unmap(u.s, &m, 1, NULL));
        kvt_match_result match;
        CHECK_OK(kvt_match(u.s, keys, MANY, 0, 0, &match)); /* used: it is written */
        WAIT_FOR(device_records(&d) == MANY, 5000);
        device_flush(&d);
        user_close(&u);
        daemon_kill(&d);
        daemon_restart(&d);
        WAIT_FOR(device_is(&d, 0, "serving"), 10000);
        user_open(&u, &d, KVT_OPEN_CODED, 0.5f);
        CHECK_EQ(check_mapped(&u, MANY, "stack", 0.5), MANY * PLANES); /* the header's error is that of what is left */
        CHECK_OK(kvt_map(u.s, &keys[1], 1, &m, statuses)); /* not the first block, which has exact rows */
        CHECK_OK(kvt_mapped_plane(u.s, &m, 0, &c));
        CHECK(c.bytes < n * 2 / 3);
        CHECK_OK(kvt_unmap(u.s, &m, 1, NULL));
        user_close(&u);
        daemon_end(&d);
}

/* Room gets short: what was not used for a while is made smaller, nothing is lost, and readers keep what they read. */
static void test_cold(void **state)
{
        struct daemon d;
        struct user u;
        kvt_mapping m;

        DAEMON_START(&d, "--host_bytes=16M", "--slab_bytes=2M", "--codec_cold=zbf", "--codec_cold_pct=5");
        user_open(&u, &d, 0, 0);
        store(&u, MANY, NULL);
        CHECK_OK(kvt_map(u.s, keys, 1, &m, statuses));
        CHECK_OK(statuses[0]);
        uint64_t used = daemon_status(&d).used_bytes;
        WAIT_FOR(({
                         struct daemon_status s = daemon_status(&d); /* its question is a pass of the loop, too */
                         daemon_counter(&d, "recoded") >= MANY - 1 && s.used_bytes < used;
                 }),
                 10000);
        CHECK(!memcmp(m.data, bytes[0], PART));
        CHECK_OK(kvt_unmap(u.s, &m, 1, NULL));
        CHECK_OK(kvt_flush(u.c));
        check_exact(&u, MANY);
        WAIT_FOR(daemon_status(&d).n_leases == 0, 2000);
        CHECK_EQ(daemon_audit(&d).n_blocks, MANY);
        user_close(&u);
        daemon_end(&d);
}

int main(void)
{
        const struct CMUnitTest tests[] = {
                TEST(test_hot),       TEST(test_bounded), TEST(test_fidelity),   TEST(test_hints),     TEST(test_sinks),
                TEST(test_bad_hints), TEST(test_nvme),    TEST(test_nvme_lossy), TEST(test_truncated), TEST(test_cold),
        };

        make_blocks();
        return cmocka_run_group_tests(tests, NULL, NULL);
}
