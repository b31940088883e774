/* A connection: opening, losing, re-opening, closing. The model stands in client.h. */
#include <errno.h>
#include <fcntl.h>
#include <sodium.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "libclient/async.h"
#include "libclient/slab.h"
#include "libclient/staging.h"

enum { NAME_MAX_BYTES = 63 }; /* of a program, for kvtierctl */
static const uint64_t timeout_default_usec = 5000000, staging_default_bytes = 64ull << 20;

uint64_t now_usec(void)
{
        struct timespec t;

        clock_gettime(CLOCK_MONOTONIC, &t);
        return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

/* a child of fork() has the connection's memory but none of its rights: a page that the kernel wipes in children tells */

static void fork_watch(kvt *c)
{
        long page_bytes = sysconf(_SC_PAGESIZE);
        uint8_t *p = mmap(NULL, (size_t)page_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

        c->fork_pid = getpid();
        if (p == MAP_FAILED)
                return;
        if (madvise(p, (size_t)page_bytes, MADV_WIPEONFORK) < 0) {
                munmap(p, (size_t)page_bytes);
                return;
        }
        *p = 1;
        c->fork_page = p;
}

int conn_check(const kvt *c)
{
        if (!c)
                return KVT_E_BAD_REQUEST;
        return c->fork_page ? (*c->fork_page ? 0 : KVT_E_FORKED) : getpid() == c->fork_pid ? 0 : KVT_E_FORKED;
}

/* the socket */

void conn_close_broken(kvt *c)
{
        close(c->fd);
        c->fd = -1;
        c->broken = false;
        waiter_wake_all(c);
}

void conn_lost(kvt *c)
{
        if (c->fd < 0 || c->broken)
                return;
        shutdown(c->fd, SHUT_RDWR);
        c->broken = true;
        if (!c->reading)
                conn_close_broken(c);
        tx_drop(c);
        c->n_releases = 0;
        c->draining = false;
        slab_forget_all(c);
        staging_detach(c);
        for (kvt_space *s = c->spaces; s; s = s->next)
                s->handle = 0;
        request_fail_all(c, c->closing ? KVT_E_CANCELLED : KVT_E_DISCONNECTED);
        op_news_staging(c);
        waiter_wake_all(c);
        poll_signal(c);
}

bool conn_is_draining(kvt *c)
{
        while (c->draining && c->fd >= 0 && !c->broken && !c->reading && rx_once(c, false, 0))
                ; /* until there is nothing, or it hung up: then there may be another */
        return c->draining;
}

static void conn_install(kvt *c, struct setup *u)
{
        Kvtier__HelloReply *hello = u->hello;

        c->fd = u->fd;
        c->version = (uint8_t)hello->version;
        if (!c->epoch || memcmp(c->boot_token, hello->boot_token.data, sizeof(c->boot_token)) != 0)
                c->boot++;
        c->epoch++;
        memcpy(c->boot_token, hello->boot_token.data, sizeof(c->boot_token));
        c->lease_usec = hello->lease_usec;
        c->staging_max_bytes = hello->staging_max_bytes;
        kvtier__hello_reply__free_unpacked(hello, NULL);
        for (size_t i = 0; i < u->n_spaces; i++) {
                u->spaces[i].space->handle = u->spaces[i].handle;
                u->spaces[i].space->error = u->spaces[i].error;
                if (u->spaces[i].events)
                        event_missed(c, u->spaces[i].space);
        }
        poll_attach(c);
}

static int setup_spaces(kvt *c, struct setup *u)
{
        size_t n = 0;

        for (kvt_space *s = c->spaces; s; s = s->next)
                n++;
        u->spaces = calloc(n ? n : 1, sizeof(*u->spaces));
        if (!u->spaces)
                return KVT_E_NO_MEMORY;
        for (kvt_space *s = c->spaces; s; s = s->next)
                u->spaces[u->n_spaces++] = (struct setup_space){.space = s, .events = s->event_fn};
        return 0;
}

int conn_ensure(kvt *c, uint64_t deadline_usec)
{
        struct setup u = {.fd = -1};
        int r;

        for (;;) {
                if (c->closing)
                        return KVT_E_CANCELLED;
                if (c->fd >= 0 && !c->broken)
                        return 0;
                if (!c->connecting && !c->broken)
                        break;
                if (now_usec() >= deadline_usec)
                        return KVT_E_TIMEOUT;
                waiter_sleep(c, NULL, deadline_usec);
        }
        if (c->epoch && (c->flags & KVT_OPEN_NO_RECONNECT || now_usec() < c->retry_usec))
                return KVT_E_DISCONNECTED;

        r = setup_spaces(c, &u);
        if (r)
                return r;
        c->connecting = true;
        pthread_mutex_unlock(&c->lock);
        r = conn_setup(c, deadline_usec, &u);
        pthread_mutex_lock(&c->lock);
        c->connecting = false;
        if (r)
                c->retry_usec = now_usec() + RETRY_USEC;
        else
                conn_install(c, &u);
        free(u.spaces);
        waiter_wake_all(c);
        return r;
}

/* opening and closing */

static char *default_name(void)
{
        char comm[32] = "";
        int fd = open("/proc/self/comm", O_RDONLY | O_CLOEXEC);

        if (fd >= 0) {
                ssize_t n = read(fd, comm, sizeof(comm) - 1);

                close(fd);
                comm[n > 0 ? n : 0] = 0;
                comm[strcspn(comm, "\n")] = 0;
        }
        return strdup(comm[0] ? comm : program_invocation_short_name);
}

static char *default_path(void)
{
        static const char system_path[] = "/run/kvtier/kvtier.sock";
        const char *e = secure_getenv("KVTIER_SOCKET");
        char *path;

        if (e && *e)
                return strdup(e);
        e = secure_getenv("XDG_RUNTIME_DIR");
        if (!e || !*e || !access(system_path, F_OK))
                return strdup(system_path);
        return asprintf(&path, "%s/kvtier/kvtier.sock", e) < 0 ? NULL : path;
}

static void conn_free(kvt *c, bool child)
{
        while (c->spaces) {
                kvt_space *s = c->spaces;

                c->spaces = s->next;
                space_free(s);
        }
        for (kvt_op *op = c->ops, *next; op; op = next) { /* whose handles are still out */
                next = op->next;
                op_free_owned(op);
                if (op->state != OP_DONE && !--op->refs) { /* in a child: nobody ends it any more */
                        free(op);
                        continue;
                }
                op->c = NULL;
        }
        for (kvt_op *op; (op = c->free_ops);) {
                c->free_ops = op->ready_next;
                free(op);
        }
        for (uint32_t i = 0; i < c->n_requests; i++) {
                if (c->requests[i]->owned)
                        free(c->requests[i]->owned);
                free(c->requests[i]);
        }
        free(c->requests);
        event_forget(c, NULL);
        tx_drop(c);
        slab_deinit(c, child);
        staging_deinit(c, child);
        if (c->fd >= 0)
                close(c->fd);
        if (c->epoll_fd >= 0)
                close(c->epoll_fd);
        if (c->event_fd >= 0)
                close(c->event_fd);
        if (c->fork_page)
                munmap((void *)c->fork_page, (size_t)sysconf(_SC_PAGESIZE));
        free(c->path);
        free(c->name);
        if (!child) {
                pthread_cond_destroy(&c->helper_cond);
                pthread_mutex_destroy(&c->lock);
        }
        free(c);
}

int kvt_open(const kvt_options *options, kvt **ret)
{
        kvt_options o = {0};
        pthread_condattr_t attr;
        kvt *c;
        int r;

        if (!ret || (options && options->struct_size < sizeof(options->struct_size)))
                return KVT_E_BAD_REQUEST;
        if (options)
                memcpy(&o, options, options->struct_size < sizeof(o) ? options->struct_size : sizeof(o));
        if (o.flags & ~(uint32_t)(KVT_OPEN_NO_MAP | KVT_OPEN_NO_THREAD | KVT_OPEN_NO_RECONNECT | KVT_OPEN_CODED))
                return KVT_E_BAD_REQUEST;
        if (sodium_init() < 0)
                return -ENOSYS;
        c = calloc(1, sizeof(*c));
        if (!c)
                return KVT_E_NO_MEMORY;

        c->fd = c->epoll_fd = c->event_fd = -1;
        c->backlog_tail = &c->backlog;
        c->events_tail = &c->events;
        c->timeout_usec = !o.timeout_usec ? timeout_default_usec : o.timeout_usec < timeout_max_usec ? o.timeout_usec : timeout_max_usec;
        c->staging_wish_bytes = o.staging_bytes ? o.staging_bytes : staging_default_bytes;
        c->busy_poll_usec = o.busy_poll_usec < timeout_max_usec ? o.busy_poll_usec : timeout_max_usec;
        c->flags = o.flags;
        pthread_mutex_init(&c->lock, NULL);
        pthread_condattr_init(&attr);
        pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
        pthread_cond_init(&c->helper_cond, &attr);
        pthread_condattr_destroy(&attr);
        fork_watch(c);
        c->path = o.path ? strdup(o.path) : default_path();
        c->name = o.name ? strndup(o.name, NAME_MAX_BYTES) : default_name();

        pthread_mutex_lock(&c->lock);
        r = c->path && c->name ? conn_ensure(c, now_usec() + c->timeout_usec) : KVT_E_NO_MEMORY;
        pthread_mutex_unlock(&c->lock);
        if (r) {
                conn_free(c, false);
                return r;
        }
        *ret = c;
        return 0;
}

void kvt_close(kvt *c)
{
        if (!c)
                return;
        if (conn_check(c)) {
                conn_free(c, true);
                return;
        }
        pthread_mutex_lock(&c->lock);
        release_flush(c);
        c->closing = true;
        conn_lost(c);
        op_run_ready(c);
        slab_stop_helper(c);
        pthread_mutex_unlock(&c->lock);
        conn_free(c, false);
}
