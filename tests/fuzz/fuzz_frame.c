/* The daemon in this process, and four hostile clients of two tenants: an input is what they send, and what happens meanwhile.
 *
 * The server is the real one; only its loop is turned here, its workers' jobs are run here, one by one, when the input says so, and time passes
 * when the input says so: every run of an input is the same. The limits are small, so that they are reached.
 *
 * An input is a list of steps (see step()): most send a request whose fields are drawn from small sets (keys of a few chains, spaces
 * that exist, leases that were granted) so that requests concern each other, some damage it, some send any bytes at all.
 *
 * What is checked: every packet of the daemon is a frame and unpacks; its own audit agrees in the middle and at the end; when all clients have
 * left and all blocks are purged, nothing is held any more. */
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>

#include "daemon/io/worker.h"
#include "daemon/serve/lease.h"
#include "daemon/serve/request.h"
#include "daemon/util/log.h"
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/messages.h"

enum { N_CLIENTS = 4, N_STEPS = 400 };

static struct server server;
static const uid_t other_uid = 1234;
static struct client {
        int fd; /* -1: none */
        struct session *session;
        bool deaf; /* does not read its answers */
} clients[N_CLIENTS];
static struct known known; /* what clients were told: spaces, leases, reservations */

/* time: CLOCK_MONOTONIC is ahead of the system's while an input runs */

static bool running;
static uint64_t ahead_usec;

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

static void pass_time(uint64_t usec)
{
        ahead_usec += usec;
        engine_tick(&server.engine);
        server_expire(&server);
        server_pass(&server);
}

/* the loop, and the work of workers */

static void turn(void)
{
        int r;

        for (int i = 0; i < 256; i++) {
                r = sd_event_run(server.event, 0);
                server_pass(&server);
                if (r <= 0 && !server.more)
                        break;
        }
}

static bool run_job(struct list *jobs)
{
        struct queue *q = &server.engine.queue;
        struct job *j = list_first(jobs, struct job, link);

        if (!j)
                return false;
        list_remove(&j->link);
        j->work(j);
        queue_finish(q, j);
        return true;
}

static void run_all_jobs(void)
{
        struct queue *q = &server.engine.queue;

        do
                turn();
        while (run_job(&q->urgent) || run_job(&q->background));
}

/* tenants: forgotten when they hold nothing, and made anew */

static struct tenant *tenant_get(bool other)
{
        struct tenant *t;

        FUZZ_CHECK(tenant_of_peer(&server.engine.tenants, &server.conf, other ? other_uid : geteuid(), NULL, 0, &t) == 0);
        return t;
}

/* clients */

static void client_close(struct client *c)
{
        if (c->fd >= 0)
                close(c->fd);
        c->fd = -1;
}

static void client_read(struct client *c)
{
        static uint8_t packet[KVT_PACKET_MAX + 1];
        union {
                struct cmsghdr align;
                char bytes[CMSG_SPACE(sizeof(int) * 64)];
        } control;

        while (c->fd >= 0) {
                struct iovec v = {packet, sizeof(packet)};
                struct msghdr m = {.msg_iov = &v, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control)};
                ssize_t n = recvmsg(c->fd, &m, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
                size_t n_fds = 0;

                if (n < 0 && errno == EAGAIN)
                        return;
                if (n <= 0) {
                        client_close(c);
                        return;
                }
                FUZZ_CHECK(!(m.msg_flags & (MSG_TRUNC | MSG_CTRUNC)));
                for (struct cmsghdr *h = CMSG_FIRSTHDR(&m); h; h = CMSG_NXTHDR(&m, h)) {
                        n_fds = (h->cmsg_len - CMSG_LEN(0)) / sizeof(int);
                        for (size_t i = 0; i < n_fds; i++)
                                close(((int *)CMSG_DATA(h))[i]);
                }
                known_learn(&known, packet, (size_t)n, n_fds);
        }
}

static void client_open(struct client *c)
{
        int fds[2];

        client_close(c);
        turn();
        FUZZ_CHECK(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, fds) == 0);
        FUZZ_CHECK(session_new(&server, fds[1]) == 0);
        c->fd = fds[0];
        c->deaf = false;
        c->session = container_of(server.sessions.prev, struct session, link);
        if (c == &clients[N_CLIENTS - 1]) { /* another user */
                c->session->tenant->n_sessions--;
                c->session->tenant = tenant_get(true);
                c->session->tenant->n_sessions++;
                c->session->uid = other_uid;
                c->session->privileged = false;
                server.engine.tenants.n_active = 0;
                list_for_each (t, &server.engine.tenants.all, struct tenant, link)
                        server.engine.tenants.n_active += t->n_sessions > 0;
        }
}

static void client_send(struct client *c, const void *bytes, size_t n, const int *fds, size_t n_fds)
{
        union {
                struct cmsghdr align;
                char bytes[CMSG_SPACE(sizeof(int) * 4)];
        } control = {};
        struct iovec v = {(void *)bytes, n};
        struct msghdr m = {.msg_iov = &v, .msg_iovlen = 1};

        if (c->fd < 0)
                return;
        if (n_fds) {
                m.msg_control = &control;
                m.msg_controllen = CMSG_SPACE(sizeof(int) * n_fds);
                struct cmsghdr *h = CMSG_FIRSTHDR(&m);
                h->cmsg_level = SOL_SOCKET;
                h->cmsg_type = SCM_RIGHTS;
                h->cmsg_len = CMSG_LEN(sizeof(int) * n_fds);
                memcpy(CMSG_DATA(h), fds, sizeof(int) * n_fds);
        }
        ssize_t ignored = sendmsg(c->fd, &m, MSG_DONTWAIT | MSG_NOSIGNAL); /* full: it is lost */
        (void)ignored;
        turn();
        if (!c->deaf)
                client_read(c);
}

static void client_request(struct client *c, struct input *in, uint16_t type, bool any_body)
{
        static uint8_t packet[KVT_PACKET_MAX + 64];
        size_t n;

        if (any_body) {
                const uint8_t *p = input_bytes(in, input_number(in, 2), &n);
                memcpy(packet + KVT_FRAME_BYTES, p, n);
        } else {
                n = message_make(&known, in, type, packet + KVT_FRAME_BYTES);
        }
        frame_put(packet, KVT_PROTO_MAX, type, (uint32_t)input_number(in, 1) + 1, (uint32_t)n);
        client_send(c, packet, KVT_FRAME_BYTES + n, NULL, 0);
}

static void client_hello(struct client *c)
{
        struct input none = {};

        client_open(c);
        client_request(c, &none, KVT_MSG_HELLO, false);
}

/* steps */

static void audit(void)
{
        struct audit a;

        engine_audit(&server.engine, &a);
        if (a.error)
                fprintf(stderr, "audit: %s\n", a.error);
        FUZZ_CHECK(!a.error && a.used_bytes == server.engine.host.tier.used_bytes);
}

static void step(struct input *in)
{
        static const uint64_t quotas[] = {16 << 20, 8 << 20, 4 << 20, 2 << 20};
        uint8_t op = input_u8(in), arg = input_u8(in);
        struct client *c = &clients[arg % N_CLIENTS];
        size_t n;

        if (op < 0xc0) {
                client_request(c, in, (uint16_t)(op % (KVT_MSG_MAX - 1) + 1), false);
                return;
        }
        switch (op) {
        case 0xc0 ... 0xc7:
                client_request(c, in, (uint16_t)(arg / N_CLIENTS % (KVT_MSG_MAX + 2)), true);
                break;
        case 0xc8: { /* anything */
                const uint8_t *p = input_bytes(in, input_number(in, 2), &n);
                client_send(c, p, n, NULL, 0);
                break;
        }
        case 0xc9: { /* with descriptors */
                int fds[2] = {STDERR_FILENO, c->fd};
                const uint8_t *p = input_bytes(in, input_number(in, 1), &n);
                client_send(c, p, n, fds, 1 + arg / N_CLIENTS % 2);
                break;
        }
        case 0xca ... 0xd3:
                run_job(&server.engine.queue.urgent);
                break;
        case 0xd4 ... 0xd6:
                run_job(&server.engine.queue.background);
                break;
        case 0xd7 ... 0xdb:
                run_all_jobs();
                break;
        case 0xdc:
                client_close(c);
                break;
        case 0xdd ... 0xde:
                client_hello(c);
                break;
        case 0xdf:
                client_open(c);
                break;
        case 0xe0:
                c->deaf = !c->deaf;
                break;
        case 0xe1 ... 0xe3:
                pass_time((uint64_t)arg * 10000);
                break;
        case 0xe4:
                tenant_get(arg % 2)->hard_bytes = quotas[arg / 2 % ELEMENTSOF(quotas)];
                break;
        case 0xe5:
                audit();
                break;
        default:
                turn();
        }
}

static void end(void)
{
        struct engine *e = &server.engine;

        for (size_t i = 0; i < N_CLIENTS; i++)
                client_close(&clients[i]);
        run_all_jobs();
        pass_time(3600 * 1000000ull); /* incomplete blocks, too */
        run_all_jobs();
        FUZZ_CHECK(!server.n_sessions && list_empty(&server.sessions) && list_empty(&server.requests));
        FUZZ_CHECK(list_empty(&server.subscriptions) && list_empty(&server.purges) && list_empty(&server.unacked));
        FUZZ_CHECK(!server.leases.n_used && !server.reservations.n_used && !e->xfers.n_used && list_empty(&e->incomplete));
        FUZZ_CHECK(!e->n_verifies && !e->tenants.n_active);
        audit();
        for (int i = 0; i < 2; i++) {
                struct tenant *t = tenant_get(i);
                uint32_t cursor = 0;

                while (!engine_purge(e, t, NULL, &cursor, 16))
                        ;
                run_all_jobs();
                FUZZ_CHECK(!t->n_blocks && !t->used_bytes && !t->payload_bytes && !t->held_bytes && !t->staging_bytes && !t->retired_bytes);
                FUZZ_CHECK(!t->n_sessions && !t->n_leases && !t->n_spaces && !t->n_xfers && !t->n_reservations && !t->n_subscriptions);
                FUZZ_CHECK(!t->lru_cold && !t->lru_hot && !t->condemned);
                tenant_settle(&e->tenants, t);
        }
        audit();
        FUZZ_CHECK(!e->host.tier.held_bytes && !e->host.tier.n_slabs && !e->host.tier.n_retired && !e->blocks.pool.n_used);
        FUZZ_CHECK(!e->tenants.n_spaces && !e->tenants.n_tenants);
}

static void write_seeds(const char *corpus)
{
        uint8_t seed[512], *p = seed;
        char name[16];

        if (!corpus)
                return;
        /* a space of each shape, staging, then every request at the first keys, in three orders */
        for (uint8_t shape = 0; shape < 10; shape++) {
                p = seed;
                *p++ = KVT_MSG_SPACE_OPEN - 1;
                *p++ = 0;
                *p++ = shape;
                memset(p, 0, 3);
                p += 3;
                *p++ = KVT_MSG_STAGING_OPEN - 1;
                *p++ = 0;
                for (uint8_t i = 0; i < 40; i++) {
                        static const uint8_t types[] = {KVT_MSG_PUT_COMMIT, KVT_MSG_FD_ACK,  KVT_MSG_MAP,     KVT_MSG_GET,
                                                        KVT_MSG_PUT_BEGIN,  KVT_MSG_EXPLAIN, KVT_MSG_RELEASE, KVT_MSG_PREFETCH,
                                                        KVT_MSG_EVENTS,     KVT_MSG_MATCH};
                        *p++ = (uint8_t)(types[i * (shape % 3 + 1) % sizeof(types)] - 1);
                        *p++ = i % 5 == 4;
                        memset(p, i % 3, 6);
                        p += 6;
                        if (i % 2)
                                *p++ = 0xd7, *p++ = 0;
                }
                snprintf(name, sizeof(name), "%u", shape);
                fuzz_seed(corpus, name, seed, (size_t)(p - seed));
        }
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
        char dir[] = "/tmp/kvt-fuzz-XXXXXX", text[1024], error[256], path[64];
        struct conf conf = {};
        sigset_t set;

        FUZZ_CHECK(mkdtemp(dir));
        int n = snprintf(text, sizeof(text),
                         "socket=%s/s\nhost_bytes=16M\nslab_bytes=2M\nprealloc_bytes=0\nhuge_pages=no\nworkers=1\n"
                         "max_blocks=40\nmax_leases=48\nmax_spaces_tenant=6\nmax_inflight_session=24\nghost_entries=16\nstaging_bytes=2M\n"
                         "lease_usec=1s\nput_timeout_usec=1s\nhello_timeout_usec=1s\n",
                         dir);
        assert_bind_loop();
        if (conf_parse(&conf, text, (size_t)n, "fuzz", error, sizeof(error)) < 0) {
                fprintf(stderr, "%s\n", error);
                abort();
        }
        log_set_level("error");
        FUZZ_CHECK(server_init(&server, &conf) == 0);
        for (int i = 0; i < 2; i++) {
                snprintf(path, sizeof(path), i ? "%s/s.lock" : "%s/s", dir);
                unlink(path);
        }
        rmdir(dir);
        server.engine.workers = workers_stop(server.engine.workers); /* their work is done here */
        server.engine.queue.stop = false;
        sigemptyset(&set); /* as they were: the fuzzer's */
        sigprocmask(SIG_SETMASK, &set, NULL);
        for (size_t i = 0; i < N_CLIENTS; i++)
                clients[i].fd = -1;
        write_seeds(fuzz_corpus(*argc, *argv));
        return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n)
{
        struct input in = {bytes, n};

        running = true;
        known = (struct known){};
        engine_tick(&server.engine);
        client_hello(&clients[0]);
        client_hello(&clients[1]);
        client_hello(&clients[N_CLIENTS - 1]);
        for (int i = 0; in.n && i < N_STEPS; i++)
                step(&in);
        end();
        running = false;
        return 0;
}
