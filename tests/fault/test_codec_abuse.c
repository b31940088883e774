/* A client that writes what it likes: hints behind a part, ladders of its own and of others' spaces. It gets a named error, nothing changes, and nobody else notices. */
#include "libclient/codec/part.h"
#include "tests/lib/raw.h"
#include "tests/lib/values.h"

enum {
        TOKENS = 20, /* a map of them has bits to spare */
        DIM = 32,
        PLANE = TOKENS * DIM * 2,
        PART = 2 * PLANE,
        MAP = 3,
        SCORES = 2 * TOKENS,
        HINTS_MAX = 1 + MAP + SCORES,
};

/* K and V of one head. 0: see r->error */
static uint32_t open_salted(struct raw *r, const char *name, const char *salt, float max_rel_l2)
{
        Kvtier__SpaceOpenRequest q = KVTIER__SPACE_OPEN_REQUEST__INIT;
        Kvtier__Plane planes[2], *pp[2] = {&planes[0], &planes[1]};

        for (uint32_t i = 0; i < 2; i++) {
                kvtier__plane__init(&planes[i]);
                planes[i].role = i ? KVT_ROLE_V : KVT_ROLE_K;
                planes[i].dtype = KVT_DTYPE_F16;
                planes[i].heads = 1;
                planes[i].dim = DIM;
        }
        q.name = (char *)name;
        q.salt = (ProtobufCBinaryData){strlen(salt), (uint8_t *)salt};
        q.block_tokens = TOKENS;
        q.n_shards = 1;
        q.planes = pp;
        q.n_planes = 2;
        q.max_rel_l2 = max_rel_l2;
        Kvtier__SpaceOpenReply *m = raw_call(r, KVT_MSG_SPACE_OPEN, &q, &kvtier__space_open_reply__descriptor);
        if (!m)
                return 0;
        CHECK_EQ(m->part_bytes, PART);
        uint32_t space = m->space;
        protobuf_c_message_free_unpacked(&m->base, NULL);
        return space;
}

static uint32_t open_space(struct raw *r, const char *name, float max_rel_l2)
{
        return open_salted(r, name, "", max_rel_l2);
}

/* A put of one part from offset, with so many bytes behind it. Returns the request's error or the key's status. */
static int put_hints(struct raw *r, uint32_t space, const kvt_key *key, uint64_t offset, uint32_t hint_bytes, uint64_t reservation)
{
        Kvtier__PutCommitRequest q = KVTIER__PUT_COMMIT_REQUEST__INIT;
        uint8_t id[8];

        memcpy(id, &reservation, 8);
        q.space = space;
        q.keys = (ProtobufCBinaryData){16, (uint8_t *)key->bytes};
        q.offsets = (ProtobufCBinaryData){8, (uint8_t *)&offset};
        if (reservation)
                q.reservations = (ProtobufCBinaryData){8, id};
        q.hint_bytes = hint_bytes;
        Kvtier__PutCommitReply *m = raw_call(r, KVT_MSG_PUT_COMMIT, &q, &kvtier__put_commit_reply__descriptor);
        if (!m)
                return r->error;
        CHECK_EQ(m->statuses.len, 1);
        int status = m->statuses.data[0];
        protobuf_c_message_free_unpacked(&m->base, NULL);
        return status;
}

static bool is_there(struct raw *r, uint32_t space, const kvt_key *key)
{
        uint32_t n, stop;

        CHECK_OK(raw_match(r, space, key, 1, &n, &stop));
        return n == 1;
}

struct bad {
        const char *what;
        uint8_t flags;
        uint32_t n; /* bytes said */
        uint32_t at; /* offset of ... */
        uint8_t bytes[2]; /* ... what is wrong */
};

static const struct bad bads[] = {
        {"no flag", 0, 1, 0, {0}},
        {"no flag, and a map", 0, 1 + MAP, 0, {0}},
        {"an unknown flag", HINT_PROTECT | 4, 1 + MAP, 0, {0}},
        {"all flags there are, and are not", 0xff, HINTS_MAX, 0, {0}},
        {"a flag, and nothing behind it", HINT_PROTECT, 1, 0, {0}},
        {"a map too short", HINT_PROTECT, 1 + MAP - 1, 0, {0}},
        {"a map too long", HINT_PROTECT, 1 + MAP + 1, 0, {0}},
        {"a bit past the last token", HINT_PROTECT, 1 + MAP, MAP, {0x10}},
        {"the last bit there is", HINT_PROTECT, 1 + MAP, MAP, {0x80}},
        {"scores too short", HINT_SCORES, SCORES, 0, {0}},
        {"scores too long", HINT_SCORES, 1 + SCORES + 1, 0, {0}},
        {"both, without the scores", HINT_PROTECT | HINT_SCORES, 1 + MAP, 0, {0}},
        {"both, a byte too short", HINT_PROTECT | HINT_SCORES, HINTS_MAX - 1, 0, {0}},
        {"a score that is no number", HINT_SCORES, 1 + SCORES, 1, {0xc0, 0x7f}},
        {"the last score is no number", HINT_SCORES, 1 + SCORES, 1 + SCORES - 2, {0x81, 0x7f}},
        {"an infinite score", HINT_SCORES, 1 + SCORES, 1, {0x80, 0x7f}},
        {"a negative score", HINT_SCORES, 1 + SCORES, 3, {0x80, 0xbf}},
        {"minus nothing", HINT_SCORES, 1 + SCORES, 3, {0x00, 0x80}},
        {"a negative score behind a map", HINT_PROTECT | HINT_SCORES, HINTS_MAX, HINTS_MAX - 2, {0x80, 0xbf}},
};

static void write_part(struct raw *r, uint64_t word)
{
        memset(r->staging, 0, r->staging_bytes);
        values_fill(r->staging, PLANE, word);
        values_fill(r->staging + PLANE, PLANE, ~word);
}

static void test_hints(void **state)
{
        static struct raw r;
        struct values_space other;
        struct kvt_put_entry e;
        kvt_key keys[8], key;
        uint8_t statuses[8];
        struct daemon d;

        DAEMON_START(&d, "--codec_hot=kivi:bits=4");
        CHECK_OK(values_space_open(&other, pattern_open(&d, 0), "other", 0.1f));
        pattern_keys(1, 0, 8, keys);
        values_store(&other, NULL, keys, 8);
        WAIT_FOR(daemon_counter(&d, "recoded") == 8, 5000);
        raw_open(&r, d.socket);
        raw_hello(&r);
        raw_staging(&r, 64 << 10);
        uint32_t space = open_space(&r, "values", 0.1f);
        CHECK(space);
        uint64_t used = daemon_status(&d).used_bytes;
        write_part(&r, 1);
        for (size_t i = 0; i < sizeof(bads) / sizeof(*bads); i++)
                for (int reserved = 0; reserved < 2; reserved++) {
                        const struct bad *b = &bads[i];
                        uint8_t *hints = r.staging + PART;
                        key = pattern_key(2, i);
                        memset(hints, 0, HINTS_MAX + 1);
                        hints[0] = b->flags;
                        if (b->at)
                                memcpy(hints + b->at, b->bytes, 1 + (b->flags & HINT_SCORES && b->at < HINTS_MAX));
                        e.reservation = 0;
                        if (reserved)
                                CHECK_OK(raw_put_begin(&r, space, &key, 1, &e) ?: e.status);
                        int s = put_hints(&r, space, &key, 0, b->n, e.reservation);
                        if (s != KVT_E_BAD_REQUEST)
                                check_failed(__FILE__, __LINE__, "%s: %s", b->what, kvt_error_name(s));
                        CHECK(!is_there(&r, space, &key));
                }
        /* lengths that no hints have, and places where there is no room for them */
        key = pattern_key(2, 100);
        CHECK_IS(put_hints(&r, space, &key, 0, HINTS_MAX + 1, 0), KVT_E_BAD_REQUEST);
        CHECK_IS(put_hints(&r, space, &key, 0, UINT32_MAX, 0), KVT_E_BAD_REQUEST);
        CHECK_IS(put_hints(&r, space, &key, r.staging_bytes - PART - MAP, 1 + MAP, 0), KVT_E_BAD_STAGING);
        CHECK_IS(put_hints(&r, space, &key, r.staging_bytes - PART, 1, 0), KVT_E_BAD_STAGING);
        CHECK_IS(put_hints(&r, space, &key, UINT64_MAX - PART, HINTS_MAX, 0), KVT_E_BAD_STAGING);
        CHECK(!is_there(&r, space, &key));
        WAIT_FOR(daemon_status(&d).n_xfers == 0, 2000);
        CHECK_EQ(daemon_audit(&d).used_bytes, used);
        CHECK_EQ(daemon_status(&d).n_reservations, 0);
        /* and all that hints may be: at the very end of staging; what is protected stays exact, the rest is coded */
        uint64_t end = r.staging_bytes - PART - HINTS_MAX;
        values_fill(r.staging + end, PLANE, 7);
        values_fill(r.staging + end + PLANE, PLANE, 8);
        memset(r.staging + end + PART, 0, HINTS_MAX);
        r.staging[end + PART] = HINT_PROTECT | HINT_SCORES;
        r.staging[end + PART + 1] = 1;
        r.staging[end + PART + MAP] = 0x0f;
        for (uint32_t t = 0; t < TOKENS; t++)
                r.staging[end + PART + 1 + MAP + 2 * t + 1] = (uint8_t)(0x3f + t % 2);
        CHECK_OK(put_hints(&r, space, &key, end, HINTS_MAX, 0));
        key = pattern_key(2, 101);
        CHECK_OK(raw_put_begin(&r, space, &key, 1, &e) ?: e.status);
        CHECK_OK(put_hints(&r, space, &key, end, HINTS_MAX, e.reservation));
        WAIT_FOR(daemon_counter(&d, "recoded") == 10, 5000);
        for (int i = 0; i < 2; i++) {
                Kvtier__GetRequest q = KVTIER__GET_REQUEST__INIT;
                uint64_t offset = 0;
                key = pattern_key(2, 100 + (uint64_t)i);
                q.space = space;
                q.keys = (ProtobufCBinaryData){16, key.bytes};
                q.offsets = (ProtobufCBinaryData){8, (uint8_t *)&offset};
                memset(r.staging, 0, PART);
                CHECK_OK(raw_status(&r, KVT_MSG_GET, &q));
                for (int p = 0; p < 2; p++) {
                        const uint8_t *was = r.staging + end + p * PLANE, *is = r.staging + p * PLANE;
                        double error = values_error(was, is, PLANE);
                        CHECK(error > 0 && error <= 0.1);
                        CHECK(!memcmp(is, was, 2 * DIM) && !memcmp(is + 16 * 2 * DIM, was + 16 * 2 * DIM, 4 * 2 * DIM));
                }
        }
        CHECK_OK(values_get(&other, keys, 8, 0, VALUES_PLANES, 0, statuses));
        CHECK_EQ(pattern_count(statuses, 8, 0), 8);
        raw_leave(&r);
        kvt *c = other.c;
        kvt_space_close(other.s);
        kvt_close(c);
        daemon_end(&d);
}

/* ladders */

static int set(struct raw *r, const char *tenant, const char *name, const char *hot, const char *cold, const char *nvme)
{
        Kvtier__SpaceSetRequest q = KVTIER__SPACE_SET_REQUEST__INIT;

        q.tenant = (char *)tenant;
        q.name = (char *)name;
        q.hot = (char *)hot;
        q.cold = (char *)cold;
        q.nvme = (char *)nvme;
        return raw_status(r, KVT_MSG_SPACE_SET, &q);
}

/* "hot cold nvme" of the space, and its tenant. */
static void see(struct raw *r, const char *name, char ladder[200], char tenant[40])
{
        Kvtier__ListRequest q = KVTIER__LIST_REQUEST__INIT;

        q.what = KVTIER__LIST_WHAT__LIST_SPACES;
        Kvtier__ListReply *m = raw_call(r, KVT_MSG_LIST, &q, &kvtier__list_reply__descriptor);
        CHECK(m);
        *ladder = 0;
        for (size_t i = 0; i < m->n_spaces; i++)
                if (!strcmp(m->spaces[i]->name, name)) {
                        snprintf(ladder, 200, "%s %s %s", m->spaces[i]->hot, m->spaces[i]->cold, m->spaces[i]->nvme);
                        snprintf(tenant, 40, "%s", m->spaces[i]->tenant);
                }
        protobuf_c_message_free_unpacked(&m->base, NULL);
}

static const char *const bad_codecs[] = {"nonesuch",
                                         "Zbf",
                                         " zbf",
                                         "zbf ",
                                         "zbf+",
                                         "+zbf",
                                         "+",
                                         "zbf+zbf+zbf",
                                         "zbf:",
                                         "zbf:level=1",
                                         "kivi:",
                                         "kivi:bits",
                                         "kivi:bits=",
                                         "kivi:bits=9",
                                         "kivi:bits=-4",
                                         "kivi:bits=4,",
                                         "kivi:bits=4,bits",
                                         "kivi:bits=99999999999999999999",
                                         "kivi:bits=4;group=64",
                                         "xdelta",
                                         "zbf+xdelta",
                                         "kivi:bits=4\n",
                                         "raw\x01",
                                         "%s%n"};

/* Of two spaces of a name one cannot take the ladder: neither does. */
static void test_all_spaces_or_none(void **state)
{
        static const char *const salts[] = {"a", "b", "c"};
        Kvtier__ListRequest q = KVTIER__LIST_REQUEST__INIT;
        static struct raw r;
        struct daemon d;

        DAEMON_START(&d);
        raw_open(&r, d.socket);
        raw_hello(&r);
        for (int i = 0; i < 3; i++) /* whichever comes first */
                CHECK(open_salted(&r, "same", salts[i], i == 1 ? 0 : 0.1f));
        CHECK_IS(set(&r, "", "same", "zbf", "zbf", "kivi:bits=4"), KVT_E_FIDELITY);
        q.what = KVTIER__LIST_WHAT__LIST_SPACES;
        for (int again = 0; again < 2; again++) {
                Kvtier__ListReply *m = raw_call(&r, KVT_MSG_LIST, &q, &kvtier__list_reply__descriptor);
                CHECK(m);
                CHECK_EQ(m->n_spaces, 3);
                for (size_t i = 0; i < m->n_spaces; i++)
                        CHECK(!strcmp(m->spaces[i]->hot, again ? "zbf" : "raw") && !strcmp(m->spaces[i]->nvme, "raw"));
                protobuf_c_message_free_unpacked(&m->base, NULL);
                if (!again)
                        CHECK_OK(set(&r, "", "same", "zbf", "", ""));
        }
        raw_leave(&r);
        daemon_end(&d);
}

static void test_ladders_that_are_none(void **state)
{
        static char long_text[50000];
        char before[200], after[200], tenant[40];
        static struct raw r;
        struct daemon d;

        DAEMON_START(&d, "--codec_cold=zbf");
        raw_open(&r, d.socket);
        raw_hello(&r);
        CHECK(open_space(&r, "lossless", 0) && open_space(&r, "bounded", 0.1f));
        see(&r, "bounded", before, tenant);
        CHECK(!strcmp(before, "raw zbf raw"));
        for (size_t i = 0; i < sizeof(bad_codecs) / sizeof(*bad_codecs); i++)
                for (int rung = 0; rung < 3; rung++) {
                        const char *t = bad_codecs[i]; /* the others are good, and are not taken either */
                        int s = set(&r, "", "bounded", rung == 0 ? t : "zbf", rung == 1 ? t : "raw", rung == 2 ? t : "zbf");
                        if (s != KVT_E_BAD_REQUEST)
                                check_failed(__FILE__, __LINE__, "'%s': %s", t, kvt_error_name(s));
                }
        size_t lengths[] = {127, 128, 255, 256, 257, 4096, sizeof(long_text) - 1};
        for (size_t i = 0; i < sizeof(lengths) / sizeof(*lengths); i++) {
                memset(long_text, 'z', lengths[i]);
                long_text[lengths[i]] = 0;
                CHECK_IS(set(&r, "", "bounded", long_text, "", ""), KVT_E_BAD_REQUEST);
                CHECK_IS(set(&r, "", "bounded", "zbf", "raw", long_text), KVT_E_BAD_REQUEST);
                CHECK_IS(set(&r, "", long_text, "zbf", "raw", "raw"), KVT_E_UNKNOWN_SPACE);
                CHECK_IS(set(&r, long_text, "bounded", "zbf", "raw", "raw"), KVT_E_DENIED);
                memcpy(long_text, "kivi:bits=4", 11);
                memset(long_text + 11, '0', lengths[i] - 11); /* a number that goes on and on */
                CHECK_IS(set(&r, "", "bounded", long_text, "", ""), KVT_E_BAD_REQUEST);
        }
        CHECK_IS(set(&r, "", "nonesuch", "zbf", "", ""), KVT_E_UNKNOWN_SPACE);
        CHECK_IS(set(&r, "", "", "zbf", "", ""), KVT_E_UNKNOWN_SPACE);
        CHECK_IS(set(&r, "", "lossless", "kivi:bits=4", "", ""), KVT_E_FIDELITY);
        CHECK_IS(set(&r, "", "lossless", "zbf", "zbf", "zbf+turbo"), KVT_E_FIDELITY);
        see(&r, "bounded", after, tenant);
        CHECK(!strcmp(before, after));
        see(&r, "lossless", after, tenant);
        CHECK(!strcmp(before, after));
        CHECK_OK(set(&r, "", "bounded", "kivi:bits=4+turbo", "", "zbf"));
        see(&r, "bounded", after, tenant);
        if (strcmp(after, "kivi+turbo zbf zbf") && strcmp(after, "kivi:bits=4+turbo zbf zbf"))
                check_failed(__FILE__, __LINE__, "the ladder is '%s'", after);
        CHECK(raw_alive(&r));
        raw_leave(&r);
        daemon_end(&d);
}

struct intruder {
        const struct daemon *d;
        char owner[40];
};

static void intrude(void *arg)
{
        const struct intruder *x = arg;
        char ladder[200], tenant[40];
        static struct raw r;

        raw_open(&r, x->d->socket);
        raw_hello(&r);
        CHECK_IS(set(&r, x->owner, "bounded", "zbf", "", ""), KVT_E_DENIED);
        CHECK_IS(set(&r, x->owner, "nonesuch", "zbf", "", ""), KVT_E_DENIED); /* nor does it learn what there is */
        CHECK_IS(set(&r, "no such tenant", "bounded", "zbf", "", ""), KVT_E_DENIED);
        CHECK_IS(set(&r, "*", "bounded", "zbf", "", ""), KVT_E_DENIED);
        CHECK_IS(set(&r, "", "bounded", "zbf", "", ""), KVT_E_UNKNOWN_SPACE);
        CHECK(open_space(&r, "bounded", 0)); /* its own, of the same name */
        CHECK_OK(set(&r, "", "bounded", "zbf", "", ""));
        see(&r, "bounded", ladder, tenant);
        CHECK(!strcmp(ladder, "zbf raw raw") && strcmp(tenant, x->owner) != 0);
        CHECK_OK(set(&r, tenant, "bounded", "raw", "", ""));
        raw_leave(&r);
}

static void test_ladders_of_others(void **state)
{
        char ladder[200];
        struct intruder x;
        static struct raw r;
        struct daemon d;

        if (geteuid() != 0)
                check_skip("only root can be two users");
        DAEMON_START(&d);
        x.d = &d;
        raw_open(&r, d.socket);
        raw_hello(&r);
        CHECK(open_space(&r, "bounded", 0.1f));
        see(&r, "bounded", ladder, x.owner);
        child_run_as(2001, intrude, &x);
        CHECK_OK(set(&r, "", "bounded", "", "zbf", "")); /* and its own still answers to it */
        Kvtier__ListRequest q = KVTIER__LIST_REQUEST__INIT;
        q.what = KVTIER__LIST_WHAT__LIST_SPACES;
        Kvtier__ListReply *m = raw_call(&r, KVT_MSG_LIST, &q, &kvtier__list_reply__descriptor);
        CHECK(m);
        for (size_t i = 0; i < m->n_spaces; i++)
                if (!strcmp(m->spaces[i]->tenant, x.owner))
                        CHECK(!strcmp(m->spaces[i]->hot, "raw") && !strcmp(m->spaces[i]->cold, "zbf"));
        protobuf_c_message_free_unpacked(&m->base, NULL);
        raw_leave(&r);
        daemon_end(&d);
}

int main(void)
{
        const struct CMUnitTest tests[] = {TEST(test_hints), TEST(test_ladders_that_are_none), TEST(test_all_spaces_or_none),
                                           TEST(test_ladders_of_others)};

        return cmocka_run_group_tests(tests, NULL, NULL);
}
