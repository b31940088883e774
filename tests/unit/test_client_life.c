/* The library with a daemon that hangs, dies and restarts; threads, forks, event loops. */
#include <sys/wait.h>

#include "libclient/call.h"
#include "tests/unit/client.h"

/* time, threads, processes */

static void test_timeout(void **state)
{
        struct fixture *x = *state;
        kvt_match_result r;
        kvt_mapping m;
        kvt_key keys[1];
        uint64_t start;

        fill(x, 1);
        make_keys(keys, 1);
        kvt_close(x->c);
        open_both(x, 150000, 0);
        fake_do(x->f, FAKE_SILENT, 0, 1);
        start = now();
        assert_int_equal(kvt_match(x->s, keys, 1, 0, 0, &r), KVT_E_TIMEOUT);
        assert_in_range(now() - start, 140000, 400000);
        assert_int_equal(kvt_match(x->s, keys, 1, 0, 0, &r), 0);
        eventually(x->f->n_cancel == 1);
        fake_do(x->f, FAKE_SILENT, 0, 1);
        assert_int_equal(kvt_map(x->s, keys, 1, &m, NULL), KVT_E_TIMEOUT);
        assert_null(m.data);
}

static void test_busy_poll(void **state)
{
        struct fixture *x = *state;
        kvt_options o = {.struct_size = sizeof(o), .path = x->f->path, .timeout_usec = 1000000, .busy_poll_usec = 20000};
        kvt_space_config config = space_config();
        kvt_match_result r;
        kvt_key keys[1];

        fill(x, 1);
        make_keys(keys, 1);
        kvt_close(x->c);
        assert_int_equal(kvt_open(&o, &x->c), 0);
        assert_int_equal(kvt_space_open(x->c, &config, &x->s), 0);
        assert_int_equal(kvt_match(x->s, keys, 1, 0, 0, &r), 0);
        assert_int_equal(r.n_blocks, 1);
        fake_do(x->f, FAKE_LATE, 0, 1); /* later than it spins */
        assert_int_equal(kvt_match(x->s, keys, 1, 0, 0, &r), 0);
        fake_do(x->f, FAKE_SILENT, 0, 1);
        assert_int_equal(kvt_match(x->s, keys, 1, 0, 0, &r), KVT_E_TIMEOUT);
}

/* The daemon answers when nobody waits any more: what it grants is given back. */
static void test_late_answers(void **state)
{
        struct fixture *x = *state;
        kvt_reservation reservation;
        uint8_t statuses[1], get_status[1] = {99};
        struct memory memory;
        kvt_match_result r;
        kvt_mapping m;
        kvt_op *op;
        kvt_key keys[2];

        fill(x, 1);
        make_keys(keys, 2);
        memory_init(&memory, 2);
        kvt_close(x->c);
        open_both(x, 100000, 0);
        assert_int_equal(kvt_put(x->s, NULL, &keys[1], 1, 1, &memory.view, 0, NULL), 0);
        x->f->stored[1] = false;
        fake_do(x->f, FAKE_LATE, 0, 1);
        assert_int_equal(kvt_map(x->s, keys, 1, &m, statuses), KVT_E_TIMEOUT);
        usleep(100000);
        assert_int_equal(x->f->n_leases, 1);
        eventually(kvt_match(x->s, keys, 1, 0, 0, &r) == 0); /* takes the late answer in, too */
        assert_int_equal(kvt_flush(x->c), 0);
        eventually(x->f->n_leases == 0);

        fake_do(x->f, FAKE_LATE, 0, 1);
        assert_int_equal(kvt_get(x->s, keys, 1, 0, &memory.view, 0, get_status), KVT_E_TIMEOUT);
        usleep(100000);
        eventually(kvt_match(x->s, keys, 1, 0, 0, &r) == 0);
        assert_int_equal(kvt_flush(x->c), 0);
        assert_int_equal(get_status[0], 99);
        eventually(x->f->n_leases == 0);

        fake_do(x->f, FAKE_LATE, 0, 1);
        assert_int_equal(kvt_put_reserve(x->s, NULL, &keys[1], 1, 0, &reservation, statuses), KVT_E_TIMEOUT);
        assert_null(reservation.data);
        usleep(100000);
        eventually(kvt_match(x->s, keys, 1, 0, 0, &r) == 0);
        eventually(x->f->n_abort == 1);
        assert_int_equal(x->f->n_hello, 2);

        /* an asynchronous one goes on after its wait ran out, or after it was asked not to */
        fake_do(x->f, FAKE_LATE, 0, 1);
        assert_int_equal(kvt_map_async(x->s, keys, 1, &m, statuses, NULL, NULL, &op), 0);
        assert_int_equal(kvt_wait(op, 20000), KVT_E_TIMEOUT);
        kvt_cancel(op);
        assert_int_equal(kvt_wait(op, 1000000), 0);
        assert_int_equal(kvt_unmap(x->s, &m, 1, NULL), 0);
        kvt_op_free(op);
        free(memory.bytes);
}

static void test_restart(void **state)
{
        struct fixture *x = *state;
        kvt_reservation reservation[2];
        kvt_match_result r;
        kvt_mapping m[2];
        kvt_key keys[2], other[1];
        uint8_t statuses[2];
        uint64_t start;

        fill(x, 2);
        make_keys(keys, 2);
        other[0] = fake_key(9);
        assert_int_equal(kvt_map(x->s, keys, 2, m, NULL), 0);
        assert_int_equal(kvt_put_reserve(x->s, NULL, other, 1, 0, reservation, statuses), 0);

        fake_stop(x->f);
        assert_int_equal(kvt_match(x->s, keys, 2, 0, 0, &r), KVT_E_DISCONNECTED);
        start = now();
        for (int i = 0; i < 50; i++)
                assert_int_equal(kvt_match(x->s, keys, 2, 0, 0, &r), KVT_E_DISCONNECTED);
        assert_true(now() - start < 50000);
        assert_int_equal(kvt_process(x->c), KVT_E_DISCONNECTED);
        assert_int_equal(kvt_unmap(x->s, &m[0], 1, NULL), 0); /* nobody has rewritten it */
        fake_listen(x->f);
        fake_restart(x->f);
        usleep(150000);
        assert_int_equal(kvt_match(x->s, keys, 2, 0, 0, &r), 0);
        assert_int_equal(r.n_blocks, 0);
        assert_int_equal(((const uint8_t *)m[1].data)[0], fake_byte(1, 0)); /* still mapped */
        assert_int_equal(kvt_unmap(x->s, &m[1], 1, statuses), KVT_E_RESTARTED);
        assert_int_equal(kvt_put_commit(x->s, reservation, 1, statuses), 0);
        assert_int_equal(statuses[0], KVT_E_RESTARTED);
        assert_null(reservation[0].data);
        fill(x, 2);
        assert_int_equal(kvt_map(x->s, keys, 2, m, statuses), 0);
        assert_int_equal(statuses[0], 0);
        assert_int_equal(kvt_unmap(x->s, m, 2, NULL), 0);

        kvt_close(x->c);
        open_both(x, 1000000, KVT_OPEN_NO_RECONNECT);
        fake_restart(x->f);
        usleep(150000);
        assert_int_equal(kvt_match(x->s, keys, 2, 0, 0, &r), KVT_E_DISCONNECTED);
        assert_int_equal(kvt_match(x->s, keys, 2, 0, 0, &r), KVT_E_DISCONNECTED);
}

static void test_fork(void **state)
{
        struct fixture *x = *state;
        kvt_match_result r;
        kvt_mapping m;
        kvt_stats stats = {.struct_size = sizeof(stats)};
        kvt_key keys[1];
        pid_t child;
        int status;

        fill(x, 1);
        make_keys(keys, 1);
        assert_int_equal(kvt_map(x->s, keys, 1, &m, NULL), 0);
        child = fork();
        assert_true(child >= 0);
        if (!child) {
                bool ok = kvt_match(x->s, keys, 1, 0, 0, &r) == KVT_E_FORKED && kvt_map(x->s, keys, 1, &m, NULL) == KVT_E_FORKED &&
                          kvt_stat(x->c, &stats) == KVT_E_FORKED && kvt_process(x->c) == KVT_E_FORKED && kvt_flush(x->c) == KVT_E_FORKED &&
                          kvt_unmap(x->s, &m, 1, NULL) == KVT_E_FORKED && kvt_fd(x->c) < 0;
                kvt_close(x->c);
                _exit(ok ? 0 : 1);
        }
        assert_int_equal(waitpid(child, &status, 0), child);
        assert_int_equal(status, 0);
        assert_int_equal(kvt_match(x->s, keys, 1, 0, 0, &r), 0); /* the child's closing hung nothing up */
        assert_int_equal(r.n_blocks, 1);
        assert_int_equal(kvt_unmap(x->s, &m, 1, NULL), 0);
        assert_int_equal(x->f->n_hello, 1);
}

static void *hammer(void *arg)
{
        struct fixture *x = arg;
        kvt_key keys[8];
        struct memory m;

        make_keys(keys, 8);
        memory_init(&m, 8);
        for (int i = 0; i < 150; i++) {
                kvt_match_result r;
                kvt_mapping mappings[8];
                uint8_t statuses[8];

                if (kvt_match(x->s, keys, 8, 0, 0, &r) || r.n_blocks != 8)
                        abort();
                if (kvt_map(x->s, keys, 8, mappings, statuses))
                        abort();
                for (int k = 0; k < 8; k++)
                        if (statuses[k] || kvt_verify(x->s, &mappings[k]))
                                abort();
                if (kvt_unmap(x->s, mappings, 8, NULL))
                        abort();
                if (i % 5 == 0 && (kvt_get(x->s, keys, 8, 0, &m.view, 0, statuses) || statuses[3] || !memory_holds(&m, 3, 1, 0)))
                        abort();
                if (i % 5 == 1) {
                        kvt_reservation reservations[2];
                        kvt_key mine[2] = {fake_key(20), fake_key(21)};

                        if (!kvt_put_reserve(x->s, NULL, mine, 2, 0, reservations, statuses))
                                kvt_put_abort(x->s, reservations, 2);
                }
        }
        free(m.bytes);
        return NULL;
}

static void test_threads(void **state)
{
        struct fixture *x = *state;
        pthread_t threads[4];

        fill(x, 8);
        for (int i = 0; i < 4; i++)
                assert_int_equal(pthread_create(&threads[i], NULL, hammer, x), 0);
        for (int i = 0; i < 4; i++)
                pthread_join(threads[i], NULL);
        assert_int_equal(kvt_flush(x->c), 0);
        eventually(x->f->n_leases == 0);
}

static void *hammer_restarts(void *arg)
{
        struct fixture *x = arg;
        kvt_key keys[8];
        struct memory m;

        make_keys(keys, 8);
        memory_init(&m, 8);
        for (int i = 0; i < 300; i++) {
                kvt_match_result r;
                kvt_mapping mappings[8];
                uint8_t statuses[8];

                kvt_match(x->s, keys, 8, 0, 0, &r);
                if (!kvt_map(x->s, keys, 8, mappings, NULL)) {
                        usleep(500);
                        kvt_unmap(x->s, mappings, 8, NULL);
                }
                kvt_put(x->s, NULL, keys, 8, 0, &m.view, 0, statuses);
                kvt_get(x->s, keys, 8, 0, &m.view, 0, statuses);
                kvt_put_async(x->s, NULL, keys, 8, 0, &m.view, 0, NULL, NULL, NULL, NULL);
        }
        free(m.bytes);
        return NULL;
}

static void test_threads_and_restarts(void **state)
{
        struct fixture *x = *state;
        kvt_match_result r;
        pthread_t threads[3];
        kvt_key keys[1];

        make_keys(keys, 1);
        for (int i = 0; i < 3; i++)
                assert_int_equal(pthread_create(&threads[i], NULL, hammer_restarts, x), 0);
        for (int i = 0; i < 4; i++) {
                usleep(30000);
                fake_restart(x->f);
        }
        for (int i = 0; i < 3; i++)
                pthread_join(threads[i], NULL);
        usleep(120000);
        assert_int_equal(kvt_match(x->s, keys, 1, 0, 0, &r), 0);
}

/* asynchronous forms */

static void test_async(void **state)
{
        struct fixture *x = *state;
        kvt_stats stats = {.struct_size = sizeof(stats)};
        kvt_explanation why;
        kvt_match_result r[3];
        atomic_int done[2] = {0};
        uint8_t statuses[4], get_statuses[2];
        kvt_mapping m[4];
        struct memory memory;
        kvt_key keys[4];
        kvt_op *op;
        int fd;

        fill(x, 4);
        make_keys(keys, 4);
        memory_init(&memory, 2);
        fd = kvt_fd(x->c);
        assert_true(fd >= 0);
        assert_int_equal(kvt_match_async(x->s, keys, 1, 0, 0, &r[0], count_done, done, NULL), 0);
        assert_int_equal(kvt_match_async(x->s, keys, 4, 40, KVT_MATCH_LEAVE_LAST, &r[1], count_done, done, NULL), 0);
        assert_int_equal(kvt_map_async(x->s, keys, 4, m, statuses, count_done, done, NULL), 0);
        assert_int_equal(kvt_get_async(x->s, keys, 2, 0, &memory.view, 0, get_statuses, count_done, done, NULL), 0);
        assert_int_equal(kvt_stat_async(x->c, &stats, count_done, done, NULL), 0);
        assert_int_equal(kvt_explain_async(x->s, &keys[0], &why, count_done, done, NULL), 0);
        assert_int_equal(kvt_drop_async(x->s, keys, 4, NULL, count_done, done, NULL), 0);
        memset(keys, 0, sizeof(keys)); /* arguments were copied */
        while (done[0] < 7) {
                struct pollfd p = {.fd = fd, .events = POLLIN};

                assert_int_equal(poll(&p, 1, 1000), 1);
                assert_int_equal(kvt_process(x->c), 0);
        }
        assert_int_equal(r[0].n_blocks, 1);
        assert_int_equal(r[1].n_blocks, 3); /* 40 tokens: 39 of them, in three blocks */
        assert_int_equal(r[1].n_tokens, 39);
        assert_int_equal(statuses[3], 0);
        assert_int_equal(kvt_unmap(x->s, m, 4, NULL), 0);
        assert_true(memory_holds(&memory, 1, 1, 0));
        assert_int_equal(stats.capacity_bytes, 1234);
        assert_int_equal(stats.hits, 77);
        assert_int_equal(stats.n_blocks, 5);
        assert_int_equal(why.why, KVT_WHY_EVICTED);
        assert_string_equal(why.text, "gone");

        /* waiting for one runs the others' done as well; a handle may go first */
        make_keys(keys, 4);
        assert_int_equal(kvt_match_async(x->s, keys, 1, 0, 0, &r[0], count_done, done, NULL), 0);
        assert_int_equal(kvt_match_async(x->s, keys, 1, 0, 0, &r[1], NULL, NULL, &op), 0);
        assert_int_equal(kvt_wait(op, 0), 0);
        assert_int_equal(kvt_wait(op, 0), 0);
        assert_int_equal(done[0], 8);
        kvt_op_free(op);
        assert_int_equal(kvt_match_async(x->s, keys, 1, 0, 0, &r[1], count_done, done, &op), 0);
        kvt_op_free(op);
        assert_int_equal(kvt_match(x->s, keys, 1, 0, 0, &r[2]), 0);
        assert_int_equal(done[0], 9);

        /* pending at close: cancelled, and a handle outlives the connection */
        fake_do(x->f, FAKE_SILENT, 0, 0);
        assert_int_equal(kvt_match_async(x->s, keys, 1, 0, 0, &r[1], count_done, done, &op), 0);
        assert_int_equal(kvt_get_async(x->s, keys, 1, 0, &memory.view, 0, get_statuses, count_done, done, NULL), 0);
        kvt_close(x->c);
        assert_int_equal(done[0], 11);
        assert_int_equal(done[1], KVT_E_CANCELLED);
        kvt_op_free(op);
        fake_do(x->f, FAKE_RIGHT, 0, 0);
        open_both(x, 1000000, 0);
        free(memory.bytes);
}

static void test_many_async(void **state)
{
        struct fixture *x = *state;
        atomic_int done[2] = {0};
        kvt_match_result r[600];
        kvt_key keys[100];
        int n = 0;

        make_keys(keys, 100);
        /* more than the socket holds: they wait in the library, and go out as answers come in */
        for (int i = 0; i < 600; i++) {
                int e = kvt_match_async(x->s, keys, 100, 0, 0, &r[i], count_done, done, NULL);

                assert_true(e == 0 || e == KVT_E_AGAIN);
                n += !e;
        }
        assert_true(n > 100);
        while (done[0] < n) {
                struct pollfd p = {.fd = kvt_fd(x->c), .events = POLLIN};

                assert_int_equal(poll(&p, 1, 1000), 1);
                assert_int_equal(kvt_process(x->c), 0);
        }
        assert_int_equal(done[1], 0);
}

struct seen {
        size_t n_stored, n_removed;
        uint64_t n_lost;
};

static void on_event(const kvt_key *stored, size_t n_stored, const kvt_key *removed, size_t n_removed, uint64_t n_lost, void *arg)
{
        struct seen *seen = arg;

        seen->n_stored += n_stored;
        seen->n_removed += n_removed;
        seen->n_lost += n_lost;
        if (n_stored)
                assert_int_equal(stored[1].bytes[0], 2);
        if (n_removed)
                assert_int_equal(removed[0].bytes[0], 3);
}

static void test_events(void **state)
{
        struct fixture *x = *state;
        struct seen seen = {0};
        kvt_match_result r;

        assert_int_equal(kvt_events(x->s, on_event, &seen), 0);
        x->f->event = true;
        for (int i = 0; i < 200 && !seen.n_stored; i++) {
                assert_int_equal(kvt_process(x->c), 0);
                usleep(1000);
        }
        assert_int_equal(seen.n_stored, 2);
        assert_int_equal(seen.n_removed, 1);
        assert_int_equal(seen.n_lost, 9);
        fake_restart(x->f);
        usleep(1000);
        assert_int_equal(kvt_match(x->s, NULL, 0, 0, 0, &r), 0); /* reconnects, and asks for events again */
        kvt_process(x->c);
        eventually(x->f->n_events == 2 || (kvt_process(x->c), false));
        assert_int_equal(kvt_process(x->c), 0);
        assert_int_equal(seen.n_lost, 10); /* who knows what happened meanwhile */
        assert_int_equal(kvt_events(x->s, NULL, NULL), 0);
        assert_int_equal(x->f->n_events, 3);
        x->f->event = true;
        eventually(!x->f->event);
        assert_int_equal(kvt_process(x->c), 0);
        assert_int_equal(seen.n_stored, 2);
}

static void test_call(void **state)
{
        struct fixture *x = *state;
        Kvtier__PingRequest ping = KVTIER__PING_REQUEST__INIT;
        Kvtier__ListRequest list = KVTIER__LIST_REQUEST__INIT;
        ProtobufCMessage *reply;
        char text[64];

        assert_int_equal(kvt_call(x->c, KVT_MSG_PING, &ping.base, &kvtier__ping_reply__descriptor, &reply, text, sizeof(text)), 0);
        kvt_call_free(reply);
        assert_int_equal(kvt_call(x->c, KVT_MSG_LIST, &list.base, &kvtier__list_reply__descriptor, &reply, text, sizeof(text)),
                         KVT_E_BAD_TYPE);
        assert_string_equal(text, "the fake says so");
        assert_int_equal(kvt_call(x->c, KVT_MSG_MAP, &list.base, &kvtier__map_reply__descriptor, &reply, text, sizeof(text)),
                         KVT_E_BAD_REQUEST);
        assert_int_equal(kvt_space_handle(x->s), 3);
}

int main(void)
{
        const struct CMUnitTest tests[] = {
                cmocka_unit_test_setup_teardown(test_timeout, setup, teardown),
                cmocka_unit_test_setup_teardown(test_busy_poll, setup, teardown),
                cmocka_unit_test_setup_teardown(test_late_answers, setup, teardown),
                cmocka_unit_test_setup_teardown(test_restart, setup, teardown),
                cmocka_unit_test_setup_teardown(test_fork, setup, teardown),
                cmocka_unit_test_setup_teardown(test_threads, setup, teardown),
                cmocka_unit_test_setup_teardown(test_threads_and_restarts, setup, teardown),
                cmocka_unit_test_setup_teardown(test_async, setup, teardown),
                cmocka_unit_test_setup_teardown(test_many_async, setup, teardown),
                cmocka_unit_test_setup_teardown(test_events, setup, teardown),
                cmocka_unit_test_setup_teardown(test_call, setup, teardown),
        };
        return cmocka_run_group_tests(tests, NULL, NULL);
}
