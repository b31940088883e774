/* Events of spaces: queued when they arrive, delivered without the lock. What the application does not take in is counted, not kept. */
#include <stdlib.h>
#include <string.h>

#include "libclient/async.h"

struct event {
        struct event *next;
        kvt_space *space;
        size_t n_stored, n_removed;
        uint64_t n_lost;
        kvt_key keys[]; /* stored, then removed */
};

static void event_queue(kvt *c, kvt_space *s, const Kvtier__Event *m)
{
        size_t n_stored = m->stored.len / sizeof(kvt_key), n_removed = m->removed.len / sizeof(kvt_key);
        struct event *e = c->n_events < EVENTS_MAX ? malloc(sizeof(*e) + (n_stored + n_removed) * sizeof(kvt_key)) : NULL;

        if (!e) {
                s->n_events_lost += m->n_lost + n_stored + n_removed;
                return;
        }
        *e = (struct event){.space = s, .n_stored = n_stored, .n_removed = n_removed, .n_lost = m->n_lost + s->n_events_lost};
        s->n_events_lost = 0;
        if (n_stored)
                memcpy(e->keys, m->stored.data, m->stored.len);
        if (n_removed)
                memcpy(e->keys + n_stored, m->removed.data, m->removed.len);
        *c->events_tail = e;
        c->events_tail = &e->next;
        c->n_events++;
}

void event_missed(kvt *c, kvt_space *s)
{
        Kvtier__Event m = KVTIER__EVENT__INIT;

        m.n_lost = 1;
        event_queue(c, s, &m);
        poll_signal(c);
}

int event_on_message(kvt *c, const uint8_t *body, size_t n)
{
        ProtobufCAllocator allocator = arena_start(&c->arena);
        Kvtier__Event *m = kvtier__event__unpack(&allocator, n, body);

        if (!m || m->stored.len % sizeof(kvt_key) || m->removed.len % sizeof(kvt_key))
                return -1;
        if (m->draining)
                c->draining = true;
        if (!m->stored.len && !m->removed.len && !m->n_lost)
                return 0;
        for (kvt_space *s = c->spaces; s; s = s->next)
                if (s->handle == m->space && s->event_fn)
                        event_queue(c, s, m);
        return 0;
}

void event_deliver(kvt *c)
{
        for (struct event *e; (e = c->events);) {
                kvt_space *s = e->space;
                kvt_event fn = s->event_fn;
                void *arg = s->event_arg;

                c->events = e->next;
                if (!c->events)
                        c->events_tail = &c->events;
                c->n_events--;
                if (fn) {
                        s->n_delivering++;
                        pthread_mutex_unlock(&c->lock);
                        fn(e->keys, e->n_stored, e->keys + e->n_stored, e->n_removed, e->n_lost, arg);
                        pthread_mutex_lock(&c->lock);
                        if (!--s->n_delivering)
                                waiter_wake_all(c);
                }
                free(e);
        }
}

void event_forget(kvt *c, kvt_space *s)
{
        struct event **link = &c->events;

        while (*link) {
                struct event *e = *link;

                if (s && e->space != s) {
                        link = &e->next;
                        continue;
                }
                *link = e->next;
                c->n_events--;
                free(e);
        }
        c->events_tail = link;
}
