/* Putting, in one go and with reservations, and the staging area. */
#include "tests/unit/client.h"

/* put */

static void test_put(void **state)
{
        struct fixture *x = *state;
        uint8_t statuses[FAKE_BLOCKS];
        kvt_key keys[FAKE_BLOCKS];
        struct memory m;

        make_keys(keys, FAKE_BLOCKS);
        memory_init(&m, FAKE_BLOCKS);
        memory_fill(&m, FAKE_BLOCKS);
        fake_fill(x->f, 0);
        fake_fill(x->f, 1);
        /* 38 blocks through a staging area of 16; two are there, and nothing of them is copied */
        assert_int_equal(kvt_put(x->s, NULL, keys, FAKE_BLOCKS, 0, &m.view, 0, statuses), 0);
        for (unsigned i = 0; i < FAKE_BLOCKS; i++) {
                assert_int_equal(statuses[i], i < 2 ? KVT_E_EXISTS : 0);
                assert_true(x->f->stored[i]);
                for (size_t at = 0; at < FAKE_PART; at++)
                        assert_int_equal(fake_payload(x->f, i)[at], fake_byte(i, at));
        }
        assert_int_equal(x->f->n_match, 1);
        x->f->n_put = 0;
        assert_int_equal(kvt_put(x->s, NULL, keys, FAKE_BLOCKS, 0, &m.view, 0, statuses), 0);
        assert_int_equal(x->f->n_put, 0);
        for (unsigned i = 0; i < FAKE_BLOCKS; i++)
                assert_int_equal(statuses[i], KVT_E_EXISTS);

        fake_do(x->f, FAKE_STATUSES_SHORT, 0, 0);
        x->f->stored[0] = false;
        assert_int_equal(kvt_put(x->s, NULL, keys, 1, 0, &m.view, 0, statuses), KVT_E_DISCONNECTED);
        fake_do(x->f, FAKE_RIGHT, 0, 0);
        assert_int_equal(kvt_put(x->s, NULL, keys, 1, 0, &m.view, 0, statuses), 0);
        assert_int_equal(kvt_put(x->s, NULL, keys, 0, 0, &m.view, 0, statuses), 0);
        assert_int_equal(kvt_put(x->s, NULL, keys, 1, SIZE_MAX / 8, &m.view, 0, statuses), KVT_E_BAD_REQUEST);
        assert_int_equal(kvt_put(x->s, NULL, keys, 1, 0, &m.view, 8, statuses), KVT_E_BAD_REQUEST);
        free(m.bytes);
}

/* What is there already is asked for with its bytes, too: it may go before the daemon looks. */
static void test_put_durable(void **state)
{
        struct fixture *x = *state;
        atomic_int done[2] = {0};
        uint8_t statuses[FAKE_BLOCKS];
        kvt_key keys[FAKE_BLOCKS];
        struct memory m;
        int n_put;
        kvt_op *op;

        make_keys(keys, FAKE_BLOCKS);
        memory_init(&m, FAKE_BLOCKS);
        memory_fill(&m, FAKE_BLOCKS);
        fill(x, 3);
        assert_int_equal(kvt_put(x->s, NULL, keys, FAKE_BLOCKS, 0, &m.view, KVT_PUT_DURABLE, statuses), 0);
        assert_int_equal(x->f->n_match, 0);
        assert_true(x->f->n_put > 0);
        assert_int_equal(x->f->n_durable_put, x->f->n_put);
        for (unsigned i = 0; i < FAKE_BLOCKS; i++) {
                assert_int_equal(statuses[i], i < 3 ? KVT_E_EXISTS : 0);
                assert_memory_equal(fake_payload(x->f, i) + 5, ((uint8_t[]){fake_byte(i, 5), fake_byte(i, 6)}), 2);
        }
        n_put = x->f->n_put;
        assert_int_equal(kvt_put(x->s, NULL, keys, 1, 0, &m.view, 0, statuses), 0);
        assert_int_equal(kvt_put(x->s, NULL, keys, 1, 0, &m.view, KVT_PUT_REPLACE | KVT_PUT_DURABLE, statuses), 0);
        assert_int_equal(x->f->n_put, n_put + 2);
        assert_int_equal(x->f->n_durable_put, n_put + 1);
        assert_int_equal(kvt_put_async(x->s, NULL, keys, 2, 0, &m.view, KVT_PUT_DURABLE, statuses, count_done, done, &op), 0);
        assert_int_equal(kvt_wait(op, 0), 0);
        kvt_op_free(op);
        assert_int_equal(done[0], 1);
        assert_int_equal(x->f->n_durable_put, n_put + 2);

        /* the device takes longer than the caller wants to wait */
        kvt_close(x->c);
        open_both(x, 50000, 0);
        fake_do(x->f, FAKE_LATE, KVT_MSG_PUT_COMMIT, 1);
        assert_int_equal(kvt_put(x->s, NULL, keys, 2, 0, &m.view, KVT_PUT_DURABLE, statuses), KVT_E_TIMEOUT);
        eventually(x->f->n_cancel == 1);
        assert_int_equal(kvt_put(x->s, NULL, keys, 2, 0, &m.view, KVT_PUT_DURABLE, statuses), 0);
        free(m.bytes);
}

/* Tickets of both kinds in one commit: as many requests as there are changes from one kind to the other. */
static void test_reserve_durable(void **state)
{
        struct fixture *x = *state;
        kvt_reservation r[6];
        uint8_t statuses[6];
        kvt_key keys[6];

        make_keys(keys, 6);
        assert_int_equal(kvt_put_reserve(x->s, NULL, keys, 2, KVT_PUT_DURABLE, r, statuses), 0);
        assert_int_equal(kvt_put_reserve(x->s, &keys[1], keys + 2, 1, 0, r + 2, statuses), 0);
        assert_int_equal(kvt_put_reserve(x->s, &keys[2], keys + 3, 3, KVT_PUT_DURABLE | KVT_PUT_REPLACE, r + 3, statuses), 0);
        assert_int_equal(kvt_put_reserve(x->s, NULL, keys, 1, 8, r, statuses), KVT_E_BAD_REQUEST);
        assert_int_equal(x->f->n_begin, 3);
        assert_int_equal(x->f->n_durable_begin, 2);
        for (unsigned i = 0; i < 6; i++)
                memset(r[i].data, (int)i + 1, FAKE_PART);
        r[4].data = NULL; /* skipped, between two of a kind */
        assert_int_equal(kvt_put_commit(x->s, r, 6, statuses), 0);
        assert_int_equal(x->f->n_put, 3);
        assert_int_equal(x->f->n_durable_put, 2);
        for (unsigned i = 0; i < 6; i++) {
                assert_int_equal(statuses[i], i == 4 ? KVT_E_UNKNOWN_RESERVATION : 0);
                assert_null(r[i].data);
                assert_int_equal(x->f->stored[i], i != 4);
                if (i != 4)
                        assert_int_equal(fake_payload(x->f, i)[FAKE_PART - 1], i + 1);
        }
}

static void test_staging_faults(void **state)
{
        static const struct {
                enum fake_wrong wrong;
                int r;
        } faults[] = {{FAKE_STAGING_UNSEALED, KVT_E_DISCONNECTED},
                      {FAKE_STAGING_NO_FD, KVT_E_DISCONNECTED},
                      {FAKE_STAGING_REFUSED, KVT_E_QUOTA}};
        struct fixture *x = *state;
        kvt_reservation reservation;
        struct memory m;
        kvt_key keys[2];
        uint8_t status;

        make_keys(keys, 2);
        memory_init(&m, 2);
        for (size_t i = 0; i < 3; i++) {
                fake_do(x->f, faults[i].wrong, 0, 0);
                assert_int_equal(kvt_put(x->s, NULL, keys, 2, 0, &m.view, 0, NULL), faults[i].r);
                assert_int_equal(kvt_put_reserve(x->s, NULL, keys, 1, 0, &reservation, &status), faults[i].r);
                assert_null(reservation.data);
        }
        fake_do(x->f, FAKE_RIGHT, 0, 0);
        assert_int_equal(kvt_put(x->s, NULL, keys, 2, 0, &m.view, 0, NULL), 0);
        free(m.bytes);
}

static void test_reserve(void **state)
{
        struct fixture *x = *state;
        kvt_reservation r[20], copy[3];
        uint8_t statuses[20];
        kvt_key keys[20];

        make_keys(keys, 20);
        fake_fill(x->f, 1);
        assert_int_equal(kvt_put_reserve(x->s, NULL, keys, 20, 0, r, statuses), 0);
        assert_int_equal(statuses[1], KVT_E_EXISTS);
        for (unsigned i = 0; i < 20; i++) {
                bool room = i < 17 && i != 1; /* the one of block 1 was given on */

                assert_int_equal(!!r[i].data, room);
                if (!room && i != 1)
                        assert_int_equal(statuses[i], KVT_E_AGAIN); /* staging has room for 16 */
                for (size_t at = 0; room && at < FAKE_PART; at++)
                        ((uint8_t *)r[i].data)[at] = fake_byte(i, at);
        }
        memcpy(copy, &r[2], sizeof(copy));
        assert_int_equal(kvt_put_commit(x->s, r, 3, statuses), 0);
        assert_int_equal(statuses[0], 0);
        assert_int_equal(statuses[1], KVT_E_UNKNOWN_RESERVATION);
        assert_int_equal(statuses[2], 0);
        assert_null(r[0].data);
        for (size_t at = 0; at < FAKE_PART; at++)
                assert_int_equal(fake_payload(x->f, 2)[at], fake_byte(2, at));

        /* twice, made up, and twice in one call */
        assert_int_equal(kvt_put_commit(x->s, copy, 1, statuses), 0);
        assert_int_equal(statuses[0], KVT_E_UNKNOWN_RESERVATION);
        copy[0] = copy[1];
        copy[0].priv[0] = 12345678;
        copy[1].priv[1]++;
        assert_int_equal(kvt_put_commit(x->s, copy, 2, statuses), 0);
        assert_int_equal(statuses[0], KVT_E_UNKNOWN_RESERVATION);
        assert_int_equal(statuses[1], KVT_E_UNKNOWN_RESERVATION);
        copy[0] = copy[1] = r[3];
        assert_int_equal(kvt_put_commit(x->s, copy, 2, statuses), 0);
        assert_int_equal(statuses[0], 0);
        assert_int_equal(statuses[1], KVT_E_UNKNOWN_RESERVATION);

        copy[0] = r[4];
        assert_int_equal(kvt_put_abort(x->s, &r[4], 13), 0);
        eventually(x->f->n_abort == 13);
        assert_int_equal(kvt_put_abort(x->s, copy, 1), KVT_E_UNKNOWN_RESERVATION);

        /* all of staging is free again */
        for (unsigned i = 0; i < 20; i++)
                x->f->stored[i] = false;
        assert_int_equal(kvt_put_reserve(x->s, NULL, keys, 16, 0, r, statuses), 0);
        for (unsigned i = 0; i < 16; i++)
                assert_int_equal(statuses[i], 0);
        assert_int_equal(kvt_put_reserve(x->s, NULL, keys, 1, 0, copy, statuses), KVT_E_AGAIN);
        fake_do(x->f, FAKE_STATUSES_SHORT, KVT_MSG_PUT_COMMIT, 0);
        assert_int_equal(kvt_put_commit(x->s, r, 1, statuses), KVT_E_DISCONNECTED);
        fake_do(x->f, FAKE_RIGHT, 0, 0);
        assert_int_equal(kvt_put_commit(x->s, &r[1], 1, statuses), 0); /* the session that knew it is gone */
        assert_int_equal(statuses[0], KVT_E_UNKNOWN_RESERVATION);
        memset(r[2].data, 1, FAKE_PART); /* still memory */
        assert_int_equal(kvt_put_abort(x->s, &r[2], 14), 0);
}

static void test_put_async(void **state)
{
        struct fixture *x = *state;
        atomic_int done[2] = {0};
        uint8_t statuses[20];
        kvt_op *op;
        struct memory m;
        kvt_key keys[20];

        make_keys(keys, 20);
        memory_init(&m, 20);
        memory_fill(&m, 20);
        fake_do(x->f, FAKE_SILENT, KVT_MSG_PUT_COMMIT, 1);
        assert_int_equal(kvt_put_async(x->s, NULL, keys, 10, 0, &m.view, 0, statuses, count_done, done, &op), 0);
        assert_int_equal(kvt_wait(op, 20000), KVT_E_TIMEOUT);
        assert_int_equal(done[0], 0);
        /* the daemon may still read those ten: there is room for six */
        assert_int_equal(kvt_put_async(x->s, NULL, keys, 20, 0, &m.view, 0, statuses, count_done, done, NULL), 0);
        memset(m.bytes, 0, 2 * m.plane_bytes); /* it was read before it returned */
        for (int i = 0; i < 200 && !done[0]; i++) {
                assert_int_equal(kvt_process(x->c), 0);
                usleep(1000);
        }
        assert_int_equal(done[0], 1);
        assert_int_equal(done[1], 0);
        for (unsigned i = 0; i < 20; i++)
                assert_int_equal(statuses[i], i < 6 ? KVT_E_EXISTS : KVT_E_AGAIN);
        assert_int_equal(fake_payload(x->f, 5)[5], fake_byte(5, 5));
        kvt_op_free(op);
        free(m.bytes);
}

/* The area is asked for while descriptors of slabs are on their way. */
static void test_staging_beside_map(void **state)
{
        struct fixture *x = *state;
        uint8_t statuses[2];
        kvt_mapping m[2];
        struct memory memory;
        kvt_key keys[2];
        kvt_op *op;

        fill(x, 1);
        make_keys(keys, 2);
        memory_init(&memory, 2);
        assert_int_equal(kvt_map_async(x->s, keys, 1, m, statuses, NULL, NULL, &op), 0);
        assert_int_equal(kvt_put(x->s, &keys[0], &keys[1], 1, 1, &memory.view, 0, NULL), 0);
        assert_int_equal(kvt_wait(op, 0), 0);
        assert_int_equal(statuses[0], 0);
        assert_int_equal(kvt_unmap(x->s, m, 1, NULL), 0);
        kvt_op_free(op);
        free(memory.bytes);
}

static void test_draining(void **state)
{
        struct fixture *x = *state;
        kvt_reservation reservation;
        uint8_t statuses[2];
        struct memory m;
        kvt_key keys[2];

        make_keys(keys, 2);
        memory_init(&m, 2);
        x->f->drain = true;
        eventually(!x->f->drain);
        assert_int_equal(kvt_process(x->c), 0);
        assert_int_equal(kvt_put(x->s, NULL, keys, 2, 0, &m.view, 0, statuses), KVT_E_DRAINING);
        assert_int_equal(kvt_put_async(x->s, NULL, keys, 2, 0, &m.view, 0, statuses, NULL, NULL, NULL), KVT_E_DRAINING);
        assert_int_equal(kvt_put_reserve(x->s, NULL, keys, 1, 0, &reservation, statuses), KVT_E_DRAINING);
        assert_null(reservation.data);
        assert_int_equal(x->f->n_put + x->f->n_begin, 0);
        fake_restart(x->f); /* the next put notices that this one is gone, and finds the new one */
        assert_int_equal(kvt_put(x->s, NULL, keys, 2, 0, &m.view, 0, statuses), 0);
        assert_int_equal(x->f->n_put, 1);
        free(m.bytes);
}

int main(void)
{
        const struct CMUnitTest tests[] = {
                cmocka_unit_test_setup_teardown(test_put, setup, teardown),
                cmocka_unit_test_setup_teardown(test_put_durable, setup, teardown),
                cmocka_unit_test_setup_teardown(test_reserve_durable, setup, teardown),
                cmocka_unit_test_setup_teardown(test_staging_faults, setup, teardown),
                cmocka_unit_test_setup_teardown(test_staging_beside_map, setup, teardown),
                cmocka_unit_test_setup_teardown(test_reserve, setup, teardown),
                cmocka_unit_test_setup_teardown(test_draining, setup, teardown),
                cmocka_unit_test_setup_teardown(test_put_async, setup, teardown),
        };
        return cmocka_run_group_tests(tests, NULL, NULL);
}
