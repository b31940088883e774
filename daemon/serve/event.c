/* Events: blocks stored and removed, gathered during a pass and sent at its end, to sessions that asked. What does not fit because the
 * client does not read is counted, not kept. */
#include <string.h>

#include "daemon/serve/request.h"
#include "daemon/util/metrics.h"

enum { KEYS_MAX = sizeof((struct subscription *)0)->stored / 16, PER_SESSION = 16, PER_TENANT = 256 };

void request_events(struct session *c, uint32_t id, const void *message, const uint8_t *packet, size_t n_packet)
{
        const Kvtier__EventsRequest *m = message;
        Kvtier__EventsReply reply = KVTIER__EVENTS_REPLY__INIT;
        struct space *s = request_space(c, id, m->space);
        struct subscription *found = NULL;
        unsigned n = 0;

        if (!s)
                return;
        list_for_each (i, &c->server->subscriptions, struct subscription, link) {
                n += i->session == c;
                if (i->session == c && i->space == s->id)
                        found = i;
        }
        if (m->on && !found && (n == PER_SESSION || c->tenant->n_subscriptions == PER_TENANT)) {
                session_error(c, id, KVT_E_LIMIT, "a session watches at most 16 spaces, a tenant's sessions 256 together");
                return;
        }
        if (m->on && !found) {
                found = new0(struct subscription, 1);
                if (!found) {
                        session_error(c, id, KVT_E_NO_MEMORY, NULL);
                        return;
                }
                found->session = c;
                found->space = s->id;
                s->n_subscribers++;
                c->tenant->n_subscriptions++;
                s->n_open++;
                list_append(&c->server->subscriptions, &found->link);
        } else if (!m->on && found) {
                list_remove(&found->link);
                free(found);
                s->n_subscribers--;
                c->tenant->n_subscriptions--;
                s->n_open--;
        }
        session_reply(c, KVT_MSG_EVENTS, id, &reply);
        engine_settle_space(&c->server->engine, s);
}

void event_end_all(struct session *c)
{
        list_for_each_safe (i, &c->server->subscriptions, struct subscription, link) {
                if (i->session != c)
                        continue;
                struct space *s = space_at(&c->server->engine.tenants, i->space);
                list_remove(&i->link);
                free(i);
                s->n_subscribers--;
                c->tenant->n_subscriptions--;
                s->n_open--;
                engine_settle_space(&c->server->engine, s);
        }
}

static void send_one(struct subscription *i)
{
        Kvtier__Event m = KVTIER__EVENT__INIT;

        m.space = i->space;
        m.stored = (ProtobufCBinaryData){16ull * i->n_stored, i->stored};
        m.removed = (ProtobufCBinaryData){16ull * i->n_removed, i->removed};
        m.n_lost = i->n_lost;
        i->n_stored = i->n_removed = 0;
        i->n_lost = 0;
        session_send(i->session, KVT_MSG_EVENT, 0, &m.base, NULL, 0);
}

static void note(struct server *sv, struct space *s, const uint8_t key[16], bool stored)
{
        if (!s->n_subscribers)
                return;
        list_for_each (i, &sv->subscriptions, struct subscription, link) {
                if (i->space != s->id)
                        continue;
                uint32_t *n = stored ? &i->n_stored : &i->n_removed;
                if (!stored && i->n_stored && list_empty(&i->session->queue))
                        send_one(i); /* within a message removals come first */
                sv->events_dirty = true;
                if (*n == KEYS_MAX || !list_empty(&i->session->queue)) {
                        i->n_lost++;
                        metrics.c_events_lost++;
                        continue;
                }
                memcpy((stored ? i->stored : i->removed) + 16 * (*n)++, key, 16);
        }
}

void event_stored(struct engine *e, struct space *s, const uint8_t key[16])
{
        note(e->arg, s, key, true);
}

void event_removed(struct engine *e, struct space *s, const uint8_t key[16])
{
        note(e->arg, s, key, false);
}

void event_flush(struct server *s)
{
        if (!s->events_dirty)
                return;
        s->events_dirty = false;
        list_for_each (i, &s->subscriptions, struct subscription, link) {
                if (!i->n_stored && !i->n_removed && !i->n_lost)
                        continue;
                if (list_empty(&i->session->queue))
                        send_one(i);
                else
                        s->events_dirty = true; /* looked at again after the next event of any kind */
        }
}

void event_draining(struct server *s)
{
        Kvtier__Event m = KVTIER__EVENT__INIT;

        m.draining = true;
        list_for_each (c, &s->sessions, struct session, link)
                if (c->state == SESSION_READY)
                        session_send(c, KVT_MSG_EVENT, 0, &m.base, NULL, 0);
}
