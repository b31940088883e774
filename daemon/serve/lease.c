#include "daemon/serve/lease.h"
#include "daemon/util/metrics.h"

enum { NUMBER_BITS = 20 };

static uint64_t next_id(struct server *s, uint32_t number)
{
        return ++s->serial << NUMBER_BITS | number;
}

uint64_t lease_grant(struct session *c, struct space *s, uint32_t block, struct location at)
{
        struct server *sv = c->server;
        uint32_t i;

        if (c->tenant->n_leases >= tenants_share(&sv->engine.tenants, sv->leases.max) || !(i = pool_take(&sv->leases)))
                return 0;
        struct lease *l = pool_at(&sv->leases, i);
        l->session = c;
        l->id = next_id(sv, i);
        l->deadline_usec = sv->engine.now_usec + sv->conf.p.lease_usec;
        l->at = at;
        list_init(&l->order_link);
        list_append(&c->leases, &l->session_link);
        struct list *before = sv->lease_order.prev; /* only a reload that shortens leases puts earlier deadlines behind later ones */
        while (before != &sv->lease_order && container_of(before, struct lease, order_link)->deadline_usec > l->deadline_usec)
                before = before->prev;
        list_append(before->next, &l->order_link);
        c->n_leases++;
        engine_pin(&sv->engine, s, block, at);
        return l->id;
}

void lease_end(struct server *s, struct lease *l)
{
        struct session *c = l->session;

        list_remove(&l->session_link);
        list_remove(&l->order_link);
        c->n_leases--;
        engine_unpin(&s->engine, l->at, c->tenant);
        l->id = 0;
        pool_give(&s->leases, (uint32_t)(((uint8_t *)l - s->leases.base) / s->leases.object_bytes));
}

void lease_release(struct session *c, uint64_t id)
{
        struct server *s = c->server;
        uint32_t i = id & ((1u << NUMBER_BITS) - 1);

        if (!i || i > s->leases.n_touched)
                return;
        struct lease *l = pool_at(&s->leases, i);
        if (l->id == id && l->session == c)
                lease_end(s, l);
}

struct reservation *reservation_new(struct session *c, struct space *s, struct location at)
{
        struct server *sv = c->server;
        uint32_t i = c->tenant->n_reservations < tenants_share(&sv->engine.tenants, sv->reservations.max) ? pool_take(&sv->reservations)
                                                                                                          : POOL_NONE;

        if (!i)
                return NULL;
        c->tenant->n_reservations++;
        struct reservation *r = pool_at(&sv->reservations, i);
        r->session = c;
        r->id = next_id(sv, i);
        r->deadline_usec = sv->engine.now_usec + sv->conf.p.put_timeout_usec;
        r->space = s;
        s->n_open++;
        r->at = at;
        list_append(&c->reservations, &r->session_link);
        struct list *before = sv->reservation_order.prev;
        while (before != &sv->reservation_order && container_of(before, struct reservation, order_link)->deadline_usec > r->deadline_usec)
                before = before->prev;
        list_append(before->next, &r->order_link);
        c->n_inflight++;
        return r;
}

struct reservation *reservation_find(struct session *c, uint64_t id)
{
        uint32_t i = id & ((1u << NUMBER_BITS) - 1);

        if (!i || i > c->server->reservations.n_touched)
                return NULL;
        struct reservation *r = pool_at(&c->server->reservations, i);
        return r->id == id && r->session == c ? r : NULL;
}

void reservation_end(struct server *s, struct reservation *r)
{
        struct space *space = r->space;

        list_remove(&r->session_link);
        list_remove(&r->order_link);
        r->session->n_inflight--;
        r->session->tenant->n_reservations--;
        if (r->at.slab)
                s->engine.host.tier.ops->abandon(&s->engine.host.tier, space, r->at);
        r->id = 0;
        pool_give(&s->reservations, (uint32_t)(((uint8_t *)r - s->reservations.base) / s->reservations.object_bytes));
        space->n_open--;
        engine_settle_space(&s->engine, space);
}

void lease_end_all(struct session *c)
{
        list_for_each_safe (l, &c->leases, struct lease, session_link)
                lease_end(c->server, l);
        list_for_each_safe (r, &c->reservations, struct reservation, session_link)
                reservation_end(c->server, r);
}

uint64_t lease_deadline(const struct server *s)
{
        const struct lease *l = list_first(&s->lease_order, struct lease, order_link);
        const struct reservation *r = list_first(&s->reservation_order, struct reservation, order_link);

        return MIN(l ? l->deadline_usec : UINT64_MAX, r ? r->deadline_usec : UINT64_MAX);
}

void lease_expire(struct server *s)
{
        list_for_each_safe (l, &s->lease_order, struct lease, order_link) {
                if (l->deadline_usec > s->engine.now_usec)
                        break;
                metrics.c_leases_expired++;
                lease_end(s, l);
        }
        list_for_each_safe (r, &s->reservation_order, struct reservation, order_link) {
                if (r->deadline_usec > s->engine.now_usec)
                        break;
                metrics.c_put_timeouts++;
                reservation_end(s, r);
        }
}
