#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <systemd/sd-daemon.h>

#include "daemon/serve/lease.h"
#include "daemon/serve/request.h"
#include "daemon/util/clock.h"
#include "daemon/util/log.h"
#include "daemon/util/metrics.h"

enum { ARENA_BYTES = 16 << 20, POLLS_A_TURN = 16 };

static void *arena_alloc(void *arg, size_t n)
{
        struct server *s = arg;

        n = align_up(n, 16);
        if (n > ARENA_BYTES - s->n_arena)
                return NULL; /* unpacking fails: a packet this size holds no honest message */
        s->n_arena += n;
        return s->arena + s->n_arena - n;
}

static void arena_free(void *arg, void *p)
{
}

static int on_queue(sd_event_source *source, int fd, uint32_t revents, void *arg)
{
        struct server *s = arg;

        engine_tick(&s->engine);
        engine_collect(&s->engine);
        return 0;
}

void server_expire(struct server *s)
{
        lease_expire(s);
        engine_expire(&s->engine);
        request_expire(s);
        list_for_each_safe (c, &s->greeting, struct session, greet_link) {
                if (c->opened_usec + s->conf.p.hello_timeout_usec > s->engine.now_usec)
                        break;
                session_close(c, "it never said hello");
        }
        list_for_each_safe (c, &s->unacked, struct session, fds_link) {
                if (c->fds_sent_usec + s->conf.p.put_timeout_usec > s->engine.now_usec)
                        break;
                session_close(c, "it does not take the descriptors it was sent");
        }
        if (s->retry_usec && s->retry_usec <= s->engine.now_usec) {
                s->retry_usec = 0;
                if (s->listen_source)
                        sd_event_source_set_enabled(s->listen_source, SD_EVENT_ON);
                list_for_each (c, &s->sessions, struct session, link)
                        if (c->stuck)
                                session_retry(c);
        }
        list_for_each_safe (b, &s->engine.host.retired, struct slab, link) {
                if (!b->n_holders || b->retired_usec + s->conf.p.put_timeout_usec > s->engine.now_usec)
                        continue;
                uint32_t id = b->id;
                list_for_each_safe (c, &s->sessions, struct session, link)
                        if (c->state != SESSION_CLOSED && session_has_slab(c, id))
                                session_close(c, "it kept the map of a retired slab");
                break; /* the list changed; the timer is armed again */
        }
}

static int on_timer(sd_event_source *source, uint64_t usec, void *arg)
{
        struct server *s = arg;

        s->armed_usec = UINT64_MAX;
        engine_tick(&s->engine);
        server_expire(s);
        return 0;
}

static uint64_t next_deadline(struct server *s)
{
        uint64_t d = MIN(lease_deadline(s), MIN(engine_deadline(&s->engine), request_deadline(s)));
        const struct session *c = list_first(&s->greeting, struct session, greet_link);

        if (c)
                d = MIN(d, c->opened_usec + s->conf.p.hello_timeout_usec);
        c = list_first(&s->unacked, struct session, fds_link);
        if (c)
                d = MIN(d, c->fds_sent_usec + s->conf.p.put_timeout_usec);
        list_for_each (b, &s->engine.host.retired, struct slab, link)
                if (b->n_holders)
                        d = MIN(d, b->retired_usec + s->conf.p.put_timeout_usec);
        if (s->retry_usec)
                d = MIN(d, s->retry_usec);
        if (s->draining)
                d = MIN(d, s->drain_deadline_usec);
        return d;
}

/* Only an earlier deadline costs a system call: a timer that fires early finds nothing due and is set again. */
static void arm_timer(struct server *s)
{
        uint64_t d = next_deadline(s);

        if (d >= s->armed_usec)
                return;
        s->armed_usec = d;
        sd_event_source_set_time(s->timer, d);
        sd_event_source_set_enabled(s->timer, SD_EVENT_ONESHOT);
}

void server_pass(struct server *s)
{
        if (s->more) {
                s->more = false;
                list_for_each_safe (c, &s->sessions, struct session, link)
                        if (c->state == SESSION_CLOSED)
                                session_free(c);
        }
        purge_some(s);
        event_flush(s);
        if (engine_pass(&s->engine))
                s->more = true;
        arm_timer(s);
        if (s->draining && list_empty(&s->requests) && engine_quiet(&s->engine))
                s->stop = true;
        if (s->draining && s->engine.now_usec >= s->drain_deadline_usec)
                s->stop = true;
}

int server_run(struct server *s)
{
        sd_notifyf(0, "READY=1\nSTATUS=Serving %s", s->conf.p.socket);
        while (!s->stop) {
                bool polling = s->poll_until_usec && clock_usec() < s->poll_until_usec;
                if (!polling)
                        s->poll_until_usec = 0;
                /* the way round epoll is the shorter one; a request, and the others have their turn */
                for (int n = 0; polling && s->polled && n < POLLS_A_TURN; n++)
                        if (session_poll(s->polled)) {
                                s->poll_until_usec = s->engine.now_usec + s->conf.p.busy_poll_usec;
                                server_pass(s);
                                break;
                        }
                int r = sd_event_run(s->event, s->more || polling ? 0 : UINT64_MAX);
                if (r < 0 && r != -EINTR)
                        return log_errno(r, "The event loop failed: %m"), EXIT_FAILURE;
                server_pass(s);
        }
        return EXIT_SUCCESS;
}

static void on_populated(struct slab *b, void *arg)
{
        session_unpark(arg, b->id);
}

static void on_retired(struct slab *b, void *arg)
{
        struct server *s = arg;
        Kvtier__SlabRetired m = KVTIER__SLAB_RETIRED__INIT;

        b->retired_usec = s->engine.now_usec;
        m.n_slabs = 1;
        m.slabs = &b->id;
        list_for_each (c, &s->sessions, struct session, link)
                if (c->state != SESSION_CLOSED && session_has_slab(c, b->id))
                        session_send(c, KVT_MSG_SLAB_RETIRED, 0, &m.base, NULL, 0);
}

static int on_signal(sd_event_source *source, const struct signalfd_siginfo *si, void *arg)
{
        server_drain(arg);
        return 0;
}

void server_drain(struct server *s)
{
        engine_tick(&s->engine);
        if (s->draining) { /* the second time: at once */
                s->stop = true;
                return;
        }
        sd_notify(0, "STOPPING=1");
        log_info("Shutting down: finishing what is under way");
        s->draining = s->engine.draining = true;
        s->more = true;
        s->drain_deadline_usec = s->engine.now_usec + s->conf.p.drain_timeout_usec;
        listener_close(s);
        event_draining(s);
}

void server_reload(struct server *s, const char *path, const struct conf_flag *flags, size_t n_flags)
{
        struct conf fresh = {};
        char error[512];

        sd_notify(0, "RELOADING=1");
        if (conf_load(&fresh, path, flags, n_flags, error, sizeof error) < 0) {
                log_error("Configuration not reloaded: %s", error);
        } else {
                if (!*fresh.p.socket) { /* chosen at start */
                        free(fresh.p.socket);
                        fresh.p.socket = strdup(s->conf.p.socket);
                }
                if (!*fresh.p.nvme_devices) {
                        free(fresh.p.nvme_devices);
                        fresh.p.nvme_devices = strdup(s->conf.p.nvme_devices);
                }
                const char *differs = fresh.p.socket && fresh.p.nvme_devices ? conf_reload(&s->conf, &fresh) : NULL;
                tenants_configure(&s->engine.tenants, &s->conf);
                log_set_level(s->conf.p.log_level);
                budget_set(&s->engine.budget, s->conf.p.nvme_write_day_bytes, s->engine.now_usec);
                log_info("Configuration reloaded%s%s%s", differs ? "; '" : "", differs ?: "",
                         differs ? "' and others like it take a restart" : "");
                conf_deinit(&fresh);
        }
        sd_notify(0, "READY=1");
}

static void raise_nofile(void)
{
        struct rlimit l;

        if (getrlimit(RLIMIT_NOFILE, &l) == 0 && l.rlim_cur < l.rlim_max) {
                l.rlim_cur = l.rlim_max;
                setrlimit(RLIMIT_NOFILE, &l);
        }
}

static int init_loop(struct server *s)
{
        sigset_t set;
        int r;

        sigemptyset(&set);
        sigaddset(&set, SIGTERM);
        sigaddset(&set, SIGINT);
        sigaddset(&set, SIGHUP);
        sigprocmask(SIG_BLOCK, &set, NULL);
        signal(SIGPIPE, SIG_IGN);
        if ((r = sd_event_new(&s->event)) < 0 || (r = sd_event_set_watchdog(s->event, true)) < 0 ||
            (r = sd_event_add_signal(s->event, NULL, SIGTERM, on_signal, s)) < 0 ||
            (r = sd_event_add_signal(s->event, NULL, SIGINT, on_signal, s)) < 0 ||
            (r = sd_event_add_time(s->event, &s->timer, CLOCK_MONOTONIC, UINT64_MAX, 1, on_timer, s)) < 0 ||
            (r = sd_event_add_io(s->event, &s->queue_source, s->engine.queue.event_fd, EPOLLIN, on_queue, s)) < 0)
                return r;
        sd_event_source_set_enabled(s->timer, SD_EVENT_OFF);
        s->armed_usec = UINT64_MAX;
        return 0;
}

int server_init(struct server *s, struct conf *conf)
{
        int r;

        *s = (struct server){.conf = *conf, .listen_fd = -1, .lock_fd = -1, .reserve_fd = -1};
        *conf = (struct conf){};
        list_init(&s->sessions);
        list_init(&s->greeting);
        list_init(&s->unacked);
        list_init(&s->lease_order);
        list_init(&s->reservation_order);
        list_init(&s->subscriptions);
        list_init(&s->requests);
        list_init(&s->prefetches);
        list_init(&s->purges);
        s->allocator = (ProtobufCAllocator){arena_alloc, arena_free, s};
        raise_nofile();
        if (getrandom(s->boot_token, sizeof s->boot_token, 0) != sizeof s->boot_token)
                return log_errno(-EIO, "No random numbers: %m");
        s->in = malloc(KVT_PACKET_MAX + 1);
        s->out = malloc(KVT_PACKET_MAX);
        s->arena = mmap(NULL, ARENA_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (s->arena == MAP_FAILED)
                s->arena = NULL;
        if (!s->in || !s->out || !s->arena)
                return log_errno(-ENOMEM, "Failed to start: %m");
        /* signals are blocked before the first thread is made */
        sigset_t set;
        sigfillset(&set);
        sigdelset(&set, SIGSEGV);
        sigdelset(&set, SIGBUS);
        sigset_t old;
        sigprocmask(SIG_BLOCK, &set, &old);
        r = engine_init(&s->engine, &s->conf);
        sigprocmask(SIG_SETMASK, &old, NULL);
        if (r < 0)
                return log_errno(r, "Failed to start the engine: %m");
        s->started_usec = s->engine.now_usec;
        s->engine.on_stored = event_stored;
        s->engine.on_removed = event_removed;
        s->engine.arg = s;
        s->engine.host.on_populated = on_populated;
        s->engine.host.on_retired = on_retired;
        s->engine.host.arg = s;
        uint32_t max_leases = (uint32_t)MIN(s->conf.p.max_leases, (1u << 20) - 1);
        if ((r = pool_init(&s->leases, sizeof(struct lease), max_leases)) < 0 ||
            (r = pool_init(&s->reservations, sizeof(struct reservation), 65536)) < 0 || (r = init_loop(s)) < 0)
                return log_errno(r, "Failed to start: %m");
        return listener_open(s);
}

void server_deinit(struct server *s)
{
        if (s->sessions.next) {
                list_for_each_safe (c, &s->sessions, struct session, link) {
                        session_close(c, NULL);
                        session_free(c);
                }
        }
        if (s->purges.next)
                purge_end_all(s);
        if (s->engine.conf)
                engine_deinit(&s->engine);
        listener_close(s);
        sd_event_source_unref(s->queue_source);
        sd_event_source_unref(s->timer);
        sd_event_unref(s->event);
        pool_deinit(&s->leases);
        pool_deinit(&s->reservations);
        if (s->lock_fd >= 0)
                close(s->lock_fd);
        if (s->reserve_fd >= 0)
                close(s->reserve_fd);
        if (s->arena)
                munmap(s->arena, ARENA_BYTES);
        free(s->in);
        free(s->out);
        conf_deinit(&s->conf);
}
