/* The library against a daemon that lies: replies that no daemon sends give a named error each, and no crash. */
#include "tests/unit/client.h"

/* opening */

static void test_open_refused(void **state)
{
        kvt_options o = {.struct_size = sizeof(o), .path = "/tmp/kvtier-nobody-is-here"};
        char long_path[200];
        uint64_t start = now();
        kvt *c;

        assert_int_equal(kvt_open(&o, &c), KVT_E_DISCONNECTED);
        assert_true(now() - start < 100000);
        memset(long_path, 'x', sizeof(long_path) - 1);
        long_path[sizeof(long_path) - 1] = 0;
        o.path = long_path;
        assert_int_equal(kvt_open(&o, &c), -ENAMETOOLONG);
        o.path = "/tmp";
        o.flags = 1u << 30;
        assert_int_equal(kvt_open(&o, &c), KVT_E_BAD_REQUEST);
        assert_int_equal(kvt_open(&o, NULL), KVT_E_BAD_REQUEST);
        o.struct_size = 3;
        assert_int_equal(kvt_open(&o, &c), KVT_E_BAD_REQUEST);
        assert_int_equal(kvt_flush(NULL), KVT_E_BAD_REQUEST);
        kvt_close(NULL);
}

static void test_hello(void **state)
{
        struct fixture *x = *state;
        kvt *c;

        fake_do(x->f, FAKE_HELLO_REFUSED, 0, 0);
        assert_int_equal(open_at(x->f, 0, 0, &c), KVT_E_VERSION);
        fake_do(x->f, FAKE_HELLO_VERSION, 0, 0);
        assert_int_equal(open_at(x->f, 0, 0, &c), KVT_E_VERSION);
        fake_do(x->f, FAKE_HELLO_TOKEN, 0, 0);
        assert_int_equal(open_at(x->f, 0, 0, &c), KVT_E_DISCONNECTED);
        fake_do(x->f, FAKE_RIGHT, 0, 0);
        assert_int_equal(open_at(x->f, 0, 0, &c), 0);
        kvt_close(c);
}

static void test_large_options(void **state)
{
        struct fixture *x = *state;
        char *name = calloc(1, 300000);
        kvt_options o = {
                .struct_size = sizeof(o), .path = x->f->path, .name = name, .timeout_usec = UINT64_MAX, .staging_bytes = UINT64_MAX};
        kvt_match_result r;
        kvt_key key = fake_key(0);
        kvt_op *op;

        memset(name, 'n', 299999);
        kvt_close(x->c);
        assert_int_equal(kvt_open(&o, &x->c), 0);
        free(name);
        kvt_space_config config = space_config();
        assert_int_equal(kvt_space_open(x->c, &config, &x->s), 0);
        assert_int_equal(kvt_match(x->s, &key, 1, 0, 0, &r), 0);
        assert_int_equal(kvt_match_async(x->s, &key, 1, 0, 0, &r, NULL, NULL, &op), 0);
        assert_int_equal(kvt_wait(op, UINT64_MAX), 0);
        kvt_op_free(op);
}

static void test_space_arguments(void **state)
{
        struct fixture *x = *state;
        kvt_space_config config = space_config();
        char name[200];
        kvt_space *s;

        memset(name, 'n', sizeof(name));
#define REFUSED(field, value)                                                                                                              \
        do {                                                                                                                               \
                config = space_config();                                                                                                   \
                config.field = value;                                                                                                      \
                assert_int_equal(kvt_space_open(x->c, &config, &s), KVT_E_BAD_REQUEST);                                                    \
        } while (0)
        REFUSED(struct_size, 8);
        REFUSED(name, NULL);
        REFUSED(name, "");
        REFUSED(name, name);
        REFUSED(name, "\xff");
        REFUSED(name, "\xc0\x80");
        REFUSED(name, "\xed\xa0\x80");
        REFUSED(name, "caf\xc3");
        REFUSED(salt_bytes, 65);
        REFUSED(salt_bytes, 4);
        REFUSED(block_tokens, 0);
        REFUSED(n_shards, 0);
        REFUSED(shard, 1);
        REFUSED(planes, NULL);
        REFUSED(n_planes, 0);
        config = space_config();
        assert_int_equal(kvt_space_open(x->c, NULL, &s), KVT_E_BAD_REQUEST);
        assert_int_equal(kvt_space_open(x->c, &config, NULL), KVT_E_BAD_REQUEST);
        config.name = "caf\xc3\xa9 \xf0\x9f\x8d\xb5";
        assert_int_equal(kvt_space_open(x->c, &config, &s), 0);
        assert_int_equal(kvt_space_part_bytes(s), FAKE_PART);
        assert_int_equal(kvt_space_plane_offset(s, 0), 0);
        assert_int_equal(kvt_space_plane_offset(s, 1), FAKE_PART / 2);
        assert_int_equal(kvt_space_plane_offset(s, 2), FAKE_PART);
        kvt_space_close(s);

        fake_do(x->f, FAKE_SPACE_PART_BYTES, 0, 0);
        config = space_config();
        assert_int_equal(kvt_space_open(x->c, &config, &s), KVT_E_DISCONNECTED);
}

/* replies that no daemon sends */

static void test_bad_replies(void **state)
{
        static const enum fake_wrong wrongs[] = {FAKE_SHORT_FRAME, FAKE_BAD_MAGIC,     FAKE_BAD_LENGTH,    FAKE_BAD_VERSION,
                                                 FAKE_WRONG_ID,    FAKE_WRONG_TYPE,    FAKE_BAD_PROTOBUF,  FAKE_EMPTY_BODY,
                                                 FAKE_STRAY_FD,    FAKE_ERROR_ZERO,    FAKE_HANG_UP,       FAKE_UNASKED,
                                                 FAKE_MATCH_MANY,  FAKE_MATCH_NO_STOP, FAKE_UNKNOWN_FIELDS};
        struct fixture *x = *state;
        kvt_match_result m;
        kvt_key keys[3];

        fill(x, 2);
        make_keys(keys, 3);
        for (size_t i = 0; i < sizeof(wrongs) / sizeof(*wrongs); i++) {
                fake_do(x->f, wrongs[i], KVT_MSG_MATCH, 0);
                assert_int_equal(kvt_match(x->s, keys, 3, 0, 0, &m), KVT_E_DISCONNECTED);
                assert_int_equal(x->f->n_wrong, 2); /* it tried again on a new connection */
                fake_do(x->f, wrongs[i], KVT_MSG_MATCH, 1);
                assert_int_equal(kvt_match(x->s, keys, 3, 0, 0, &m), 0);
                assert_int_equal(m.n_blocks, 2);
                assert_int_equal(m.stop, KVT_E_MISS);
        }
}

static void test_bad_maps(void **state)
{
        struct fixture *x = *state;
        kvt_mapping m[3];
        uint8_t statuses[3];
        kvt_key keys[3];

        fill(x, 3);
        make_keys(keys, 3);
        for (int w = FAKE_MAP_FEW_ENTRIES; w < FAKE_MAP_FIRST_KEY_WRONG; w++) {
                kvt_close(x->c); /* a session that was not sent any descriptor */
                fake_do(x->f, FAKE_RIGHT, 0, 0);
                open_both(x, 1000000, 0);
                fake_do(x->f, w, 0, 0);
                assert_int_equal(kvt_map(x->s, keys, 3, m, statuses), KVT_E_DISCONNECTED);
                for (int i = 0; i < 3; i++)
                        assert_null(m[i].data);
                fake_do(x->f, FAKE_RIGHT, 0, 0);
                assert_int_equal(kvt_map(x->s, keys, 3, m, statuses), 0);
                for (int i = 0; i < 3; i++)
                        assert_int_equal(statuses[i], 0);
                assert_int_equal(kvt_unmap(x->s, m, 3, NULL), 0);
        }
        for (int w = FAKE_MAP_FIRST_KEY_WRONG; w <= FAKE_MAP_LAST_KEY_WRONG; w++) {
                fill(x, 3);
                fake_do(x->f, w, 0, 0);
                assert_int_equal(kvt_map(x->s, keys, 3, m, statuses), 0);
                assert_int_equal(statuses[0], KVT_E_CORRUPT);
                assert_null(m[0].data);
                assert_int_equal(statuses[1], 0);
                assert_int_equal(statuses[2], 0);
                assert_int_equal(kvt_unmap(x->s, m, 3, statuses), 0);
        }
        assert_int_equal(kvt_flush(x->c), 0);
        eventually(x->f->n_wrong == 1);
}

static void test_map(void **state)
{
        struct fixture *x = *state;
        kvt_mapping m[FAKE_BLOCKS + 1];
        uint8_t statuses[FAKE_BLOCKS + 1];
        kvt_key keys[FAKE_BLOCKS + 1];

        fill(x, FAKE_BLOCKS);
        make_keys(keys, FAKE_BLOCKS);
        memset(&keys[FAKE_BLOCKS], 0xee, sizeof(kvt_key));
        /* 40 slabs, 16 descriptors a packet: it has to ask three times */
        assert_int_equal(kvt_map(x->s, keys, FAKE_BLOCKS + 1, m, statuses), 0);
        assert_int_equal(x->f->n_map, 3);
        for (unsigned i = 0; i < FAKE_BLOCKS; i++) {
                assert_int_equal(statuses[i], 0);
                assert_int_equal(m[i].bytes, FAKE_PART);
                assert_true(m[i].deadline_usec > now() + 5000000);
                for (size_t at = 0; at < FAKE_PART; at += 100)
                        assert_int_equal(((const uint8_t *)m[i].data)[at], fake_byte(i, at));
                assert_int_equal(kvt_verify(x->s, &m[i]), 0);
        }
        assert_int_equal(statuses[FAKE_BLOCKS], KVT_E_MISS);
        assert_null(m[FAKE_BLOCKS].data);
        eventually(x->f->n_fd_ack == 3);

        fake_payload(x->f, 4)[99] ^= 1;
        assert_int_equal(kvt_verify(x->s, &m[4]), KVT_E_CORRUPT);
        x->f->headers[5]->generation = 0;
        assert_int_equal(kvt_verify(x->s, &m[5]), KVT_E_LEASE_LOST);
        assert_int_equal(kvt_unmap(x->s, m, FAKE_BLOCKS + 1, statuses), KVT_E_LEASE_LOST);
        for (unsigned i = 0; i <= FAKE_BLOCKS; i++)
                assert_int_equal(statuses[i], i == 5 ? KVT_E_LEASE_LOST : 0);
        assert_int_equal(kvt_unmap(x->s, m, FAKE_BLOCKS + 1, statuses), 0); /* all are void now */
        eventually(x->f->n_leases_ended == FAKE_BLOCKS); /* more than 32: sent at once */
        assert_int_equal(kvt_map(x->s, keys, 0, NULL, NULL), 0);
        assert_int_equal(kvt_map(x->s, keys, 1, NULL, statuses), KVT_E_BAD_REQUEST);
        assert_int_equal(kvt_map(NULL, keys, 1, m, statuses), KVT_E_BAD_REQUEST);
        assert_int_equal(kvt_verify(x->s, &m[0]), KVT_E_BAD_REQUEST);
}

static void test_releases_ride(void **state)
{
        struct fixture *x = *state;
        kvt_match_result r;
        kvt_mapping m;
        kvt_key keys[2];

        fill(x, 2);
        make_keys(keys, 2);
        for (int i = 0; i < 4; i++) {
                assert_int_equal(kvt_map(x->s, keys, 1, &m, NULL), 0);
                assert_int_equal(kvt_unmap(x->s, &m, 1, NULL), 0);
        }
        assert_int_equal(x->f->n_leases_ended, 3);
        assert_int_equal(kvt_match(x->s, keys, 2, 0, 0, &r), 0);
        assert_int_equal(x->f->n_leases_ended, 4);
        assert_int_equal(x->f->n_release_packets, 0);
        assert_int_equal(kvt_map(x->s, keys, 1, &m, NULL), 0);
        assert_int_equal(kvt_unmap(x->s, &m, 1, NULL), 0);
        assert_int_equal(kvt_flush(x->c), 0);
        eventually(x->f->n_release_packets == 1 && x->f->n_leases == 0);
}

static void test_map_again(void **state)
{
        struct fixture *x = *state;
        kvt_mapping m[8];
        uint8_t statuses[8];
        kvt_key keys[8];

        fill(x, 8);
        make_keys(keys, 8);
        fake_do(x->f, FAKE_MAP_AGAIN, 0, 3);
        assert_int_equal(kvt_map(x->s, keys, 8, m, statuses), 0);
        for (int i = 0; i < 8; i++)
                assert_int_equal(statuses[i], 0);
        assert_int_equal(kvt_unmap(x->s, m, 8, NULL), 0);
        x->f->n_map = 0;
        fake_do(x->f, FAKE_MAP_AGAIN_FOREVER, 0, 0);
        assert_int_equal(kvt_map(x->s, keys, 8, m, statuses), 0);
        for (int i = 0; i < 8; i++) {
                assert_int_equal(statuses[i], KVT_E_AGAIN);
                assert_null(m[i].data);
        }
        assert_in_range(x->f->n_map, 2, 20);
}

static void test_retired(void **state)
{
        struct fixture *x = *state;
        kvt_mapping m;
        kvt_match_result r;
        kvt_key keys[1];

        fill(x, 1);
        make_keys(keys, 1);
        assert_int_equal(kvt_map(x->s, keys, 1, &m, NULL), 0);
        x->f->retire = 1 + 100;
        eventually(x->f->retire == 0);
        eventually(kvt_process(x->c) == 0 && x->f->n_slab_ack == 1); /* the unknown one at once; the packet comes when it comes */
        assert_int_equal(kvt_verify(x->s, &m), 0);
        assert_int_equal(kvt_unmap(x->s, &m, 1, NULL), 0);
        eventually(x->f->n_slab_ack == 2 ||
                   (usleep(1000), kvt_match(x->s, keys, 1, 0, 0, &r) && false)); /* after the helper let go of it */

        /* nothing refers to it: both at once */
        x->f->sent[0][0] = false;
        assert_int_equal(kvt_map(x->s, keys, 1, &m, NULL), 0);
        assert_int_equal(kvt_unmap(x->s, &m, 1, NULL), 0);
        usleep(20000);
        x->f->retire = 1 + 100;
        eventually(x->f->retire == 0);
        eventually(kvt_process(x->c) == 0 && x->f->n_slab_ack == 4);
}

/* get */

static void test_get(void **state)
{
        struct fixture *x = *state;
        uint8_t statuses[FAKE_BLOCKS];
        kvt_key keys[FAKE_BLOCKS];
        struct memory m;

        fill(x, FAKE_BLOCKS);
        make_keys(keys, FAKE_BLOCKS);
        x->f->stored[7] = false;
        memory_init(&m, FAKE_BLOCKS);
        assert_int_equal(kvt_get(x->s, keys, FAKE_BLOCKS, 0, &m.view, 0, statuses), 0);
        for (unsigned i = 0; i < FAKE_BLOCKS; i++) {
                assert_int_equal(statuses[i], i == 7 ? KVT_E_MISS : 0);
                assert_int_equal(memory_holds(&m, i, 0, 0), i != 7);
                assert_int_equal(memory_holds(&m, i, 1, 0), i != 7);
        }
        eventually(x->f->n_leases == 0);

        /* only the window: 24 tokens before the end, the second half of block 1 and block 2 */
        free(m.bytes);
        memory_init(&m, 3);
        assert_int_equal(kvt_get(x->s, keys, 3, 0, &m.view, 48, statuses), 0);
        assert_true(memory_holds(&m, 0, 0, 0) && memory_holds(&m, 1, 0, 0) && memory_holds(&m, 2, 0, 0));
        assert_false(memory_holds(&m, 0, 1, 0));
        for (unsigned t = 0; t < 24; t++)
                assert_int_equal(*memory_at(&m, 1, t, 2), 0);
        assert_true(memory_holds(&m, 1, 1, 8));
        assert_true(memory_holds(&m, 2, 1, 0));
        free(m.bytes);

        memory_init(&m, 1);
        assert_int_equal(kvt_get(x->s, keys, 1, 0, &m.view, 0, NULL), 0); /* contiguous */
        assert_true(memory_holds(&m, 0, 0, 0) && memory_holds(&m, 0, 1, 0));
        m.view.n_planes = 1;
        assert_int_equal(kvt_get(x->s, keys, 1, 0, &m.view, 0, NULL), KVT_E_BAD_REQUEST);
        assert_int_equal(kvt_get(x->s, keys, 1, 0, NULL, 0, NULL), KVT_E_BAD_REQUEST);
        free(m.bytes);
}

static void test_get_faults(void **state)
{
        struct fixture *x = *state;
        uint8_t statuses[4];
        struct memory m;
        kvt_key keys[4];

        fill(x, 4);
        make_keys(keys, 4);
        memory_init(&m, 4);
        fake_payload(x->f, 1)[FAKE_PART - 1] ^= 1;
        assert_int_equal(kvt_get(x->s, keys, 4, 0, &m.view, 0, statuses), 0);
        assert_int_equal(statuses[0], 0);
        assert_int_equal(statuses[1], KVT_E_CORRUPT);
        assert_int_equal(statuses[2], 0);
        eventually(x->f->n_drop_corrupt == 1);

        fill(x, 4);
        fake_do(x->f, FAKE_MAP_STALE, 0, 1); /* once: it asks again */
        assert_int_equal(kvt_get(x->s, keys, 4, 0, &m.view, 0, statuses), 0);
        for (int i = 0; i < 4; i++)
                assert_int_equal(statuses[i], 0);
        fake_do(x->f, FAKE_MAP_STALE, 0, 0);
        assert_int_equal(kvt_get(x->s, keys, 4, 0, &m.view, 0, statuses), 0);
        assert_int_equal(statuses[0], KVT_E_LEASE_LOST);
        assert_int_equal(statuses[3], 0);
        fake_do(x->f, FAKE_MAP_AGAIN_FOREVER, 0, 0);
        assert_int_equal(kvt_get(x->s, keys, 4, 0, &m.view, 0, statuses), 0);
        assert_int_equal(statuses[0], KVT_E_AGAIN);
        fake_do(x->f, FAKE_MAP_AGAIN, 0, 1);
        assert_int_equal(kvt_get(x->s, keys, 4, 0, &m.view, 0, statuses), 0);
        for (int i = 0; i < 4; i++)
                assert_int_equal(statuses[i], 0);
        assert_int_equal(kvt_flush(x->c), 0);
        eventually(x->f->n_leases == 0);
        free(m.bytes);
}

static void test_get_no_map(void **state)
{
        struct fixture *x = *state;
        uint8_t statuses[FAKE_BLOCKS];
        kvt_key keys[FAKE_BLOCKS];
        kvt_mapping mapping;
        struct memory m;

        fill(x, FAKE_BLOCKS);
        make_keys(keys, FAKE_BLOCKS);
        x->f->stored[7] = false;
        memory_init(&m, FAKE_BLOCKS);
        /* 40 blocks through a staging area of 16 */
        assert_int_equal(kvt_get(x->s, keys, FAKE_BLOCKS, 0, &m.view, 0, statuses), 0);
        for (unsigned i = 0; i < FAKE_BLOCKS; i++) {
                assert_int_equal(statuses[i], i == 7 ? KVT_E_MISS : 0);
                assert_int_equal(memory_holds(&m, i, 0, 0) && memory_holds(&m, i, 1, 0), i != 7);
        }
        assert_int_equal(x->f->n_map, 0);
        assert_int_equal(kvt_map(x->s, keys, 1, &mapping, NULL), KVT_E_DENIED);
        fake_do(x->f, FAKE_STATUSES_SHORT, 0, 0);
        assert_int_equal(kvt_get(x->s, keys, 4, 0, &m.view, 0, statuses), KVT_E_DISCONNECTED);
        fake_do(x->f, FAKE_RIGHT, 0, 0);
        assert_int_equal(kvt_get(x->s, keys, 4, 0, &m.view, 0, statuses), 0);
        free(m.bytes);
}

/* some planes: through staging, whatever the connection can map */

static void test_get_planes(void **state)
{
        struct fixture *x = *state;
        atomic_int done[2] = {0};
        uint8_t statuses[FAKE_BLOCKS];
        kvt_key keys[FAKE_BLOCKS];
        struct memory m;
        kvt_op *op;

        fill(x, FAKE_BLOCKS);
        make_keys(keys, FAKE_BLOCKS);
        x->f->stored[7] = false;
        for (unsigned p = 0; p < 2; p++) {
                memory_init(&m, FAKE_BLOCKS);
                assert_int_equal(kvt_get_planes(x->s, keys, FAKE_BLOCKS, 0, &m.view, 0, p, 1, statuses), 0);
                assert_int_equal(x->f->first_plane, p);
                assert_int_equal(x->f->n_planes, 1);
                assert_int_equal(x->f->get_stride, FAKE_PART / 2); /* no more room than they need */
                for (unsigned i = 0; i < FAKE_BLOCKS; i++) {
                        assert_int_equal(statuses[i], i == 7 ? KVT_E_MISS : 0);
                        assert_int_equal(memory_holds(&m, i, p, 0), i != 7);
                }
                for (size_t at = 0; at < m.plane_bytes; at++) /* nothing of the other */
                        assert_int_equal(((uint8_t *)m.planes[!p].base)[at], 0);
                free(m.bytes);
        }
        assert_int_equal(x->f->n_map, 0);

        /* in a window, in the middle of a prompt, and asynchronously */
        memory_init(&m, 3);
        assert_int_equal(kvt_get_planes_async(x->s, keys + 1, 2, 1, &m.view, 48, 1, 1, statuses, count_done, done, &op), 0);
        assert_int_equal(kvt_wait(op, 0), 0);
        kvt_op_free(op);
        assert_int_equal(done[0], 1);
        for (unsigned t = 0; t < 24; t++)
                assert_int_equal(*memory_at(&m, 1, t, 2), 0);
        assert_true(memory_holds(&m, 1, 1, 8) && memory_holds(&m, 2, 1, 0));
        free(m.bytes);

        memory_init(&m, 2);
        assert_int_equal(kvt_get_planes(x->s, keys, 2, 0, &m.view, 0, 0, 2, statuses), 0);
        assert_true(memory_holds(&m, 0, 0, 0) && memory_holds(&m, 1, 1, 0));
        assert_int_equal(kvt_get_planes(x->s, keys, 0, 0, &m.view, 0, 0, 2, NULL), 0);
        static const size_t wrong[][2] = {{0, 0}, {0, 3}, {1, 2}, {2, 1}, {1, SIZE_MAX}, {SIZE_MAX, 1}, {SIZE_MAX, SIZE_MAX}, {2, 0}};
        for (size_t i = 0; i < sizeof(wrong) / sizeof(*wrong); i++) {
                assert_int_equal(kvt_get_planes(x->s, keys, 2, 0, &m.view, 0, wrong[i][0], wrong[i][1], statuses), KVT_E_BAD_REQUEST);
                assert_int_equal(kvt_get_planes_async(x->s, keys, 2, 0, &m.view, 0, wrong[i][0], wrong[i][1], statuses, NULL, NULL, NULL),
                                 KVT_E_BAD_REQUEST);
        }
        m.view.n_planes = 1; /* it has all planes, whichever are asked for */
        assert_int_equal(kvt_get_planes(x->s, keys, 1, 0, &m.view, 0, 0, 1, NULL), KVT_E_BAD_REQUEST);
        assert_int_equal(kvt_get_planes(NULL, keys, 1, 0, &m.view, 0, 0, 1, NULL), KVT_E_BAD_REQUEST);
        free(m.bytes);
}

static void test_get_planes_faults(void **state)
{
        struct fixture *x = *state;
        uint8_t statuses[4];
        struct memory m;
        kvt_key keys[4];

        fill(x, 4);
        make_keys(keys, 4);
        memory_init(&m, 4);
        fake_do(x->f, FAKE_STATUSES_SHORT, 0, 0);
        assert_int_equal(kvt_get_planes(x->s, keys, 4, 0, &m.view, 0, 1, 1, statuses), KVT_E_DISCONNECTED);
        fake_do(x->f, FAKE_STATUSES_SHORT, 0, 1);
        assert_int_equal(kvt_get_planes(x->s, keys, 4, 0, &m.view, 0, 1, 1, statuses), 0); /* on a new connection */
        assert_true(memory_holds(&m, 3, 1, 0));
        /* never by a map, whatever the answer: that would be all planes */
        fake_do(x->f, FAKE_GET_LOST, 0, 1);
        assert_int_equal(kvt_get_planes(x->s, keys, 4, 0, &m.view, 0, 1, 1, statuses), 0);
        assert_int_equal(statuses[3], 0);
        fake_do(x->f, FAKE_GET_LOST, 0, 0);
        assert_int_equal(kvt_get_planes(x->s, keys, 4, 0, &m.view, 0, 1, 1, statuses), 0);
        assert_int_equal(statuses[3], KVT_E_LEASE_LOST);
        fake_do(x->f, FAKE_GET_AGAIN, 0, 3);
        assert_int_equal(kvt_get_planes(x->s, keys, 4, 0, &m.view, 0, 1, 1, statuses), 0);
        assert_int_equal(statuses[0], 0);
        x->f->n_get = 0;
        fake_do(x->f, FAKE_GET_AGAIN, 0, 0);
        assert_int_equal(kvt_get_planes(x->s, keys, 4, 0, &m.view, 0, 1, 1, statuses), 0);
        assert_int_equal(statuses[0], KVT_E_AGAIN);
        assert_in_range(x->f->n_get, 2, 20);
        assert_int_equal(x->f->n_map, 0);
        assert_int_equal(*memory_at(&m, 0, 0, 0), 0);
        free(m.bytes);
}

/* prefetch */

static void test_prefetch(void **state)
{
        struct fixture *x = *state;
        atomic_int done[2] = {0};
        uint8_t statuses[FAKE_BLOCKS];
        kvt_key keys[FAKE_BLOCKS], *many = calloc(20000, sizeof(*many));
        uint64_t start;
        kvt_op *op;

        fill(x, FAKE_BLOCKS);
        x->f->stored[1] = false;
        make_keys(keys, FAKE_BLOCKS);
        assert_int_equal(kvt_prefetch(x->s, keys, FAKE_BLOCKS, 0, statuses), 0);
        assert_int_equal(x->f->prefetch_usec, 0);
        for (unsigned i = 0; i < FAKE_BLOCKS; i++)
                assert_int_equal(statuses[i], i == 1 ? KVT_E_MISS : i < 30 ? 0 : KVT_E_AGAIN);
        assert_int_equal(kvt_prefetch(x->s, keys, FAKE_BLOCKS, 900000, statuses), 0);
        assert_in_range(x->f->prefetch_usec, 1, 900000);
        assert_int_equal(statuses[39], KVT_E_TIMEOUT);

        /* several requests, all with what is left of one deadline */
        for (size_t i = 0; i < 20000; i++)
                many[i] = fake_key(i % 30);
        x->f->n_prefetch = 0;
        assert_int_equal(kvt_prefetch(x->s, many, 20000, 900000, NULL), 0);
        assert_int_equal(x->f->n_prefetch, 10);
        fake_do(x->f, FAKE_LATE, KVT_MSG_PREFETCH, 1);
        assert_int_equal(kvt_prefetch(x->s, many, 20000, 100000, NULL), 0);
        assert_int_equal(x->f->prefetch_usec, 1); /* sent after the deadline: still no other question */

        /* the answer comes later than the timeout allows others to */
        kvt_close(x->c);
        open_both(x, 50000, 0);
        fake_do(x->f, FAKE_LATE, KVT_MSG_PREFETCH, 1);
        assert_int_equal(kvt_prefetch(x->s, keys, 2, 10000000, statuses), 0);
        assert_int_equal(x->f->n_wrong, 1);
        fake_do(x->f, FAKE_LATE, KVT_MSG_PREFETCH, 1);
        assert_int_equal(kvt_prefetch_async(x->s, keys, 2, 10000000, statuses, count_done, done, &op), 0);
        assert_int_equal(kvt_wait(op, 0), 0);
        kvt_op_free(op);
        assert_int_equal(done[0], 1);
        fake_do(x->f, FAKE_LATE, KVT_MSG_PREFETCH, 1);
        assert_int_equal(kvt_prefetch(x->s, keys, 2, 0, statuses), KVT_E_TIMEOUT);
        eventually(x->f->n_cancel == 1);
        /* but never for ever */
        fake_do(x->f, FAKE_SILENT, KVT_MSG_PREFETCH, 0);
        start = now();
        assert_int_equal(kvt_prefetch(x->s, keys, 2, 100000, statuses), KVT_E_TIMEOUT);
        assert_in_range(now() - start, 150000, 1000000);
        fake_do(x->f, FAKE_RIGHT, 0, 0);
        assert_int_equal(kvt_prefetch(x->s, keys, 2, UINT64_MAX, statuses), 0);
        assert_in_range(x->f->prefetch_usec, 1, 1ull << 50);
        fake_do(x->f, FAKE_STATUSES_SHORT, 0, 0);
        assert_int_equal(kvt_prefetch(x->s, keys, 2, 0, statuses), KVT_E_DISCONNECTED);
        free(many);
}

int main(void)
{
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_open_refused),
                cmocka_unit_test_setup_teardown(test_hello, setup, teardown),
                cmocka_unit_test_setup_teardown(test_large_options, setup, teardown),
                cmocka_unit_test_setup_teardown(test_space_arguments, setup, teardown),
                cmocka_unit_test_setup_teardown(test_bad_replies, setup, teardown),
                cmocka_unit_test_setup_teardown(test_bad_maps, setup, teardown),
                cmocka_unit_test_setup_teardown(test_map, setup, teardown),
                cmocka_unit_test_setup_teardown(test_map, setup_no_thread, teardown),
                cmocka_unit_test_setup_teardown(test_releases_ride, setup, teardown),
                cmocka_unit_test_setup_teardown(test_map_again, setup, teardown),
                cmocka_unit_test_setup_teardown(test_retired, setup, teardown),
                cmocka_unit_test_setup_teardown(test_get, setup, teardown),
                cmocka_unit_test_setup_teardown(test_get_faults, setup, teardown),
                cmocka_unit_test_setup_teardown(test_get_no_map, setup_no_map, teardown),
                cmocka_unit_test_setup_teardown(test_get_planes, setup, teardown),
                cmocka_unit_test_setup_teardown(test_get_planes, setup_no_map, teardown),
                cmocka_unit_test_setup_teardown(test_get_planes_faults, setup, teardown),
                cmocka_unit_test_setup_teardown(test_prefetch, setup, teardown),
        };
        return cmocka_run_group_tests(tests, NULL, NULL);
}
