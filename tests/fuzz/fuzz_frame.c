/* The daemon in this process, and four hostile clients of two tenants: an input is what they send, and what happens meanwhile.
 *
 * The server is the real one; only its loop is turned here, its workers' jobs are run here, one by one, when the input says so, operations of its
 * NVMe device come back when the input says so (disk.h), and time passes when the input says so: every run of an input is the same. The limits
 * are small, so that they are reached. Each input has a daemon of its own with an empty device; a step may end it, as it is, and start another
 * one on what the device holds by then.
 *
 * An input is a list of steps of STEP_BYTES each: most send a request whose fields are drawn from small sets (keys of a few chains, spaces
 * that exist, leases that were granted) so that requests concern each other, some damage it, some send the bytes of the next steps as they
 * are. Mutations move, copy and change whole steps.
 *
 * What is checked: every packet of the daemon is a frame and unpacks; its own audit agrees in the middle and at the end; when all clients have
 * left and all blocks are purged, nothing is held any more. */
#include <sys/random.h>
#include <sys/socket.h>
#include <time.h>

#include "daemon/io/worker.h"
#include "daemon/serve/lease.h"
#include "daemon/serve/request.h"
#include "daemon/util/log.h"
#include "daemon/util/metrics.h"
#include "tests/fuzz/disk.h"
#include "tests/fuzz/frame_seeds.h"
#include "tests/fuzz/messages.h"
#include "tests/fuzz/still.h"

enum { N_CLIENTS = 4, N_STEPS = 400 };

static struct server server;
static const uid_t other_uid = 1234;
static struct client {
        int fd; /* -1: none */
        struct session *session;
        bool deaf; /* does not read its answers */
        bool rude; /* does not acknowledge */
} clients[N_CLIENTS];
static struct told known; /* what clients were told: spaces, leases, reservations */

/* Memory comes when it is touched: most of the time would go into pages that nobody uses. */
int fallocate(int fd, int mode, off_t offset, off_t n)
{
        return 0;
}
int madvise(void *p, size_t n, int advice)
{
        return 0;
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

static void clients_read(void);

static void run_all_jobs(void)
{
        struct queue *q = &server.engine.queue;

        do {
                turn();
                clients_read();
        } while (run_job(&q->urgent) || run_job(&q->background) || (!disk_stalled && disk_step(0, 0)));
}

/* tenants: forgotten when they hold nothing, and made anew */

static struct tenant *tenant_of(bool other)
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

static void client_acknowledge(struct client *c, uint16_t type, const uint8_t *body, size_t n_body)
{
        uint8_t packet[KVT_FRAME_BYTES + 512];

        if (c->rude || c->fd < 0 || n_body > 512)
                return;
        memcpy(packet + KVT_FRAME_BYTES, body, n_body);
        frame_put(packet, KVT_PROTO_MAX, type, 0, (uint32_t)n_body);
        ssize_t ignored = send(c->fd, packet, KVT_FRAME_BYTES + n_body, MSG_DONTWAIT | MSG_NOSIGNAL);
        (void)ignored;
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
                int fds[64];
                for (struct cmsghdr *h = CMSG_FIRSTHDR(&m); h; h = CMSG_NXTHDR(&m, h)) {
                        n_fds = (h->cmsg_len - CMSG_LEN(0)) / sizeof(int);
                        memcpy(fds, CMSG_DATA(h), n_fds * sizeof(int));
                }
                uint16_t type = known_learn(&known, packet, (size_t)n, n_fds);
                if (n_fds && type == (KVT_MSG_STAGING_OPEN | KVT_REPLY))
                        staging_fill(fds[0]);
                for (size_t i = 0; i < n_fds; i++)
                        close(fds[i]);
                if (n_fds)
                        client_acknowledge(c, KVT_MSG_FD_ACK, packet, 0);
                if (type == KVT_MSG_SLAB_RETIRED) /* the acknowledgement looks the same */
                        client_acknowledge(c, KVT_MSG_SLAB_ACK, packet + KVT_FRAME_BYTES, (size_t)n - KVT_FRAME_BYTES);
        }
}

static void clients_read(void)
{
        for (size_t i = 0; i < N_CLIENTS; i++)
                if (!clients[i].deaf)
                        client_read(&clients[i]);
}

static void client_open(struct client *c)
{
        int fds[2];

        client_close(c);
        turn();
        FUZZ_CHECK(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, fds) == 0);
        FUZZ_CHECK(setsockopt(fds[1], SOL_SOCKET, SO_SNDBUF, &(int){200000}, sizeof(int)) == 0);
        uint32_t before = server.n_sessions;
        FUZZ_CHECK(session_new(&server, fds[1]) == 0);
        c->fd = fds[0];
        c->deaf = c->rude = false;
        c->session = NULL;
        if (server.n_sessions == before) /* refused */
                return;
        c->session = container_of(server.sessions.prev, struct session, link);
        if (c == &clients[N_CLIENTS - 1]) { /* another user */
                c->session->tenant->n_sessions--;
                c->session->tenant = tenant_of(true);
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
        clients_read();
}

static void client_send_body(struct client *c, uint16_t type, uint32_t id, const uint8_t *body, size_t n)
{
        static uint8_t packet[KVT_PACKET_MAX];

        if (n)
                memcpy(packet + KVT_FRAME_BYTES, body, n);
        frame_put(packet, KVT_PROTO_MAX, type, id, (uint32_t)n);
        client_send(c, packet, KVT_FRAME_BYTES + n, NULL, 0);
}

static void client_request(struct client *c, struct input *in, uint16_t type)
{
        static uint8_t body[KVT_PACKET_MAX];
        size_t n = message_make(&known, in, type, body);

        client_send_body(c, type, input_u8(in) + 1u, body, n);
}

/* Hello, a space of this shape and fidelity, staging. */
static void client_begin(struct client *c, uint8_t shape, uint8_t fidelity)
{
        const uint8_t bytes[] = {shape, 0, fidelity};
        struct input none = {}, in = {bytes, sizeof(bytes)};

        client_open(c);
        client_request(c, &none, KVT_MSG_HELLO);
        client_request(c, &in, KVT_MSG_SPACE_OPEN);
        client_request(c, &none, KVT_MSG_STAGING_OPEN);
}

/* the daemon's life */

static unsigned which_ladder; /* the daemon's, for spaces without one of their own */

static void server_start(void)
{
        const char *const *l = ladders[which_ladder % ELEMENTSOF(ladders)];
        static const char options[] =
                "host_bytes=16M\nslab_bytes=2M\nprealloc_bytes=2M\nhuge_pages=no\nworkers=1\ntenant_hard_bytes=12M\n"
                "max_blocks=16\nmax_leases=48\nmax_spaces_tenant=6\nmax_inflight_session=24\nghost_entries=16\nstaging_bytes=2M\n"
                "lease_usec=1s\nput_timeout_usec=1s\nhello_timeout_usec=1s\nnvme_devices=none\nnvme_bytes=5M\nnvme_segment_bytes=1M\n"
                "nvme_buffer_bytes=4M\nnvme_max_records=64\nnvme_admit_hits=0\nnvme_timeout_usec=1s\nnvme_scrub_bytes_sec=1M\n"
                "codec_cold_pct=5\n";
        char dir[] = "/tmp/kvt-fuzz-XXXXXX", text[2048], error[256], path[64];
        struct conf conf = {};
        sigset_t set;

        disk_fence = false;
        FUZZ_CHECK(mkdtemp(dir));
        int n = snprintf(text, sizeof(text), "socket=%s/s\n%scodec_hot=%s\ncodec_cold=%s\ncodec_nvme=%s\n", dir, options, l[0], l[1], l[2]);
        if (conf_parse(&conf, text, (size_t)n, "fuzz", error, sizeof(error)) < 0) {
                fprintf(stderr, "%s\n", error);
                abort();
        }
        metrics = (struct metrics){}; /* one daemon's */
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
        disk_fence = true;
        disk_user = &server.engine.nvme;
        run_all_jobs();
        FUZZ_CHECK(nvme_attach(&server.engine.nvme, device_paths[0]) == 0);
}

/* As it is: whatever is under way. Or its devices hang. */
static void server_end(bool hangs)
{
        disk_hangs = hangs;
        server_deinit(&server);
        disk_hangs = disk_stalled = false;
        disk_free_hung();
        for (size_t i = 0; i < N_CLIENTS; i++)
                client_close(&clients[i]);
}

static void clients_begin(void)
{
        client_begin(&clients[0], 0, 0);
        client_begin(&clients[1], 1, 0);
        client_begin(&clients[N_CLIENTS - 1], 0, 0);
        client_begin(&clients[2], 3, 0);
}

/* steps */

static void audit(void)
{
        struct audit a;
        const char *error = catalog_audit(&server.engine.nvme.catalog);

        if (error)
                fprintf(stderr, "audit of the catalog: %s\n", error);
        FUZZ_CHECK(!error);

        engine_audit(&server.engine, &a);
        if (a.error)
                fprintf(stderr, "audit: %s\n", a.error);
        FUZZ_CHECK(!a.error && a.used_bytes == server.engine.host.tier.used_bytes);
}

static void step(struct input *all)
{
        static const uint8_t types[] = {
                KVT_MSG_PUT_COMMIT,   KVT_MSG_MAP,    KVT_MSG_PUT_BEGIN, KVT_MSG_GET,        KVT_MSG_PUT_COMMIT, KVT_MSG_RELEASE,
                KVT_MSG_MATCH,        KVT_MSG_MAP,    KVT_MSG_PUT_ABORT, KVT_MSG_PREFETCH,   KVT_MSG_DROP,       KVT_MSG_PUT_COMMIT,
                KVT_MSG_PUT_BEGIN,    KVT_MSG_GET,    KVT_MSG_CANCEL,    KVT_MSG_EXPLAIN,    KVT_MSG_EVENTS,     KVT_MSG_PUT_COMMIT,
                KVT_MSG_MAP,          KVT_MSG_FD_ACK, KVT_MSG_SLAB_ACK,  KVT_MSG_LIST,       KVT_MSG_STAT,       KVT_MSG_PING,
                KVT_MSG_SPACE_OPEN,   KVT_MSG_PING,   KVT_MSG_DROP,      KVT_MSG_SPACE_OPEN, KVT_MSG_PUT_COMMIT, KVT_MSG_PUT_COMMIT,
                KVT_MSG_STAGING_OPEN, KVT_MSG_PURGE,  KVT_MSG_GET,       KVT_MSG_MAP,        KVT_MSG_RELEASE,    KVT_MSG_HELLO,
                KVT_MSG_DEVICE,       KVT_MSG_LIST,   KVT_MSG_PREFETCH,  KVT_MSG_DEVICE,     KVT_MSG_SPACE_SET,  KVT_MSG_SPACE_SET,
        };
        static_assert(ELEMENTSOF(types) == N_TYPES, "seeds go through them");
        static const uint64_t quotas[] = {16 << 20, 8 << 20, 4 << 20, 2 << 20};
        size_t n;
        const uint8_t *bytes = input_bytes(all, STEP_BYTES, &n), *more;
        struct input in = {bytes, n};
        uint8_t op = input_u8(&in), arg = input_u8(&in);
        struct client *c = &clients[arg % N_CLIENTS];

        if (op < 0xb4) {
                client_request(c, &in, types[op % ELEMENTSOF(types)]);
                return;
        }
        switch (op) {
        case 0xb4 ... 0xb7: /* any body */
                more = input_bytes(all, (op & 3) * STEP_BYTES + arg / N_CLIENTS % STEP_BYTES, &n);
                client_send_body(c, input_u8(&in) % (KVT_MSG_MAX + 2), input_u8(&in), more, n);
                break;
        case 0xb8: /* any packet */
                more = input_bytes(all, 2 * STEP_BYTES, &n);
                client_send(c, more, n, NULL, 0);
                break;
        case 0xb9: { /* with descriptors */
                int fds[2] = {STDERR_FILENO, c->fd};
                client_send(c, bytes, STEP_BYTES, fds, 1 + arg / N_CLIENTS % 2);
                break;
        }
        case 0xba ... 0xc7:
                run_job(&server.engine.queue.urgent);
                break;
        case 0xc8 ... 0xcf:
                run_job(&server.engine.queue.background);
                break;
        case 0xd0 ... 0xdb:
                run_all_jobs();
                break;
        case 0xdc:
                client_close(c);
                break;
        case 0xdd ... 0xde:
                more = input_bytes(&in, 2, &n);
                client_begin(c, n ? more[0] : 0, n > 1 ? more[1] : 0);
                break;
        case 0xdf:
                client_open(c);
                break;
        case 0xe0:
                c->deaf = !c->deaf;
                break;
        case 0xe1:
                c->rude = !c->rude;
                break;
        case 0xe2 ... 0xe4:
                pass_time((uint64_t)arg * 10000);
                break;
        case 0xe5:
                tenant_of(arg % 2)->hard_bytes = quotas[arg / 2 % ELEMENTSOF(quotas)];
                server.conf.p.tenant_nvme_bytes = (uint64_t)input_u8(&in) << 16;
                server.conf.p.nvme_admit_hits = input_u8(&in) % 3;
                budget_set(&server.engine.budget, (uint64_t)input_u8(&in) << 16, server.engine.now_usec);
                break;
        case 0xe6:
                audit();
                break;
        case 0xe7:
                client_read(c);
                break;
        case 0xe8:
                if (arg % 16 == 0)
                        server_drain(&server);
                break;
        case 0xe9 ... 0xea:
                disk_step(arg, 0);
                turn();
                break;
        case 0xeb:
                disk_step(arg >> 1, arg & 1 ? -EIO : -ENOSPC);
                turn();
                break;
        case 0xec: {
                unsigned at = (unsigned)input_number(&in, 2);
                disk_damage(arg, at, input_u8(&in), !(input_u8(&in) & 1));
                break;
        }
        case 0xed:
                server_end(arg & 1);
                server_start();
                clients_begin();
                break;
        case 0xee:
                disk_stalled = arg & 1;
                break;
        default: /* puts are what the rest lives on */
                client_request(c, &in, KVT_MSG_PUT_COMMIT);
                run_all_jobs();
        }
}

static void end(void)
{
        struct engine *e = &server.engine;

        disk_stalled = false;
        for (size_t i = 0; i < N_CLIENTS; i++)
                client_close(&clients[i]);
        run_all_jobs();
        for (int i = 0; i < 50; i++) { /* a device that is locked is tried again for a while */
                pass_time(100000);
                run_all_jobs();
        }
        pass_time(3600 * 1000000ull); /* incomplete blocks, too */
        run_all_jobs();
        FUZZ_CHECK(!server.draining || server.stop);
        if (server.stop) {
                server_end(false);
                server_start();
                run_all_jobs();
        }
        FUZZ_CHECK(!server.n_sessions && list_empty(&server.sessions) && list_empty(&server.requests));
        FUZZ_CHECK(list_empty(&server.subscriptions) && list_empty(&server.purges) && list_empty(&server.unacked));
        FUZZ_CHECK(!server.leases.n_used && !server.reservations.n_used && !e->xfers.n_used && list_empty(&e->incomplete));
        FUZZ_CHECK(!e->n_verifies && !e->tenants.n_active);
        FUZZ_CHECK(!e->demotes.n && !e->n_demoting && !e->n_recoding && !e->n_loading && list_empty(&e->loads) && list_empty(&e->durables));
        audit();
        tenant_of(0);
        tenant_of(1);
        list_for_each_safe (t, &e->tenants.all, struct tenant, link) {
                uint32_t cursors[2] = {};

                while (!engine_purge(e, t, NULL, cursors, 16))
                        ;
                run_all_jobs();
                FUZZ_CHECK(!t->n_records && !t->record_bytes);
                FUZZ_CHECK(!nvme_drops_writable(&e->nvme)); /* those that are left wait for devices that are away */
                nvme_drops_free(&e->nvme);
                list_for_each_safe (s, &e->tenants.spaces, struct space, link)
                        if (s->is_kept) { /* likewise */
                                FUZZ_CHECK(nvme_away(&e->nvme));
                                s->is_kept = false;
                                s->n_open--;
                                engine_settle_space(e, s);
                        }
                FUZZ_CHECK(!t->n_blocks && !t->used_bytes && !t->payload_bytes && !t->held_bytes && !t->staging_bytes && !t->retired_bytes);
                list_for_each (s, &e->tenants.spaces, struct space, link)
                        if (s->tenant == t)
                                fprintf(stderr, "left: space %u '%s': %u blocks, %llu records, open %u, purging %d\n", s->id, s->name,
                                        s->n_blocks, (unsigned long long)s->n_records, s->n_open, s->purging);
                FUZZ_CHECK(!t->n_sessions && !t->n_leases && !t->n_spaces && !t->n_xfers && !t->n_reservations && !t->n_subscriptions);
                FUZZ_CHECK(!t->lru_cold && !t->lru_hot && !t->condemned);
                tenant_settle(&e->tenants, t);
        }
        audit();
        FUZZ_CHECK(!e->nvme.catalog.n_live && !e->nvme.tier.used_bytes && list_empty(&e->nvme.drops));
        FUZZ_CHECK(e->host.tier.held_bytes == e->host.spare_bytes && !e->host.tier.n_retired && !e->blocks.pool.n_used);
        FUZZ_CHECK(!e->tenants.n_spaces && !e->tenants.n_tenants);
}

/* Whole steps are copied, moved, dropped and changed; sometimes libFuzzer does as it likes. */
size_t LLVMFuzzerMutate(uint8_t *bytes, size_t n, size_t max);
size_t LLVMFuzzerCustomMutator(uint8_t *bytes, size_t n, size_t max, unsigned seed);
size_t LLVMFuzzerCustomMutator(uint8_t *bytes, size_t n, size_t max, unsigned seed)
{
        size_t n_steps = n / STEP_BYTES, at, from;
        unsigned r = seed;

        if (r % 8 == 0 || !n_steps)
                return LLVMFuzzerMutate(bytes, n, max);
        at = (r >> 3) % n_steps * STEP_BYTES;
        from = (r >> 13) % n_steps * STEP_BYTES;
        switch (r % 8) {
        case 1:
        case 2: /* once more, here */
                if (n + STEP_BYTES > max)
                        break;
                memmove(bytes + at + STEP_BYTES, bytes + at, n - at);
                memmove(bytes + at, bytes + (from < at ? from : from + STEP_BYTES), STEP_BYTES);
                if (r >> 31)
                        bytes[at + (r >> 24) % STEP_BYTES] ^= (uint8_t)(r >> 16);
                return n + STEP_BYTES;
        case 3:
                memmove(bytes + at, bytes + at + STEP_BYTES, n - at - STEP_BYTES);
                return n - STEP_BYTES;
        case 4: { /* trade places */
                uint8_t t[STEP_BYTES];
                memcpy(t, bytes + at, STEP_BYTES);
                memcpy(bytes + at, bytes + from, STEP_BYTES);
                memcpy(bytes + from, t, STEP_BYTES);
                return n;
        }
        case 5: /* another step */
                bytes[at] = (uint8_t)(r >> 24);
                return n;
        }
        from = LLVMFuzzerMutate(bytes + at, STEP_BYTES, STEP_BYTES);
        if (from < STEP_BYTES)
                memset(bytes + at + from, 0, STEP_BYTES - from);
        return n;
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
        assert_bind_loop();
        log_set_level("error");
        ring_set_open(disk_open_ring);
        for (size_t i = 0; i < N_CLIENTS; i++)
                clients[i].fd = -1;
        write_seeds(fuzz_corpus(*argc, *argv));
        return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n)
{
        struct input in = {bytes, n};

        running = true;
        ahead_usec = 0;
        known = (struct told){};
        which_ladder = n >= STEP_BYTES ? bytes[STEP_BYTES - 1] : 0;
        server_start();
        clients_begin();
        for (int i = 0; in.n && i < N_STEPS; i++) {
                step(&in);
                if (server.stop) { /* it was told to, and is done */
                        server_end(false);
                        server_start();
                        clients_begin();
                }
        }
        end();
        server_end(false);
        disk_forget_files();
        running = disk_fence = false;
        return 0;
}
