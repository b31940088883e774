/* Maps and unmaps: kvt_map(), kvt_unmap().
 *
 * A reply carries, besides an entry a key, the descriptors of slabs that this session does not have yet: at most 16 a packet, and only
 * when the packet before was acknowledged. Keys in slabs that had to wait answer KVT_E_AGAIN and are asked for again. */
#include <stdlib.h>
#include <string.h>

#include "libclient/codec/copy.h"
#include "libclient/map.h"
#include "libclient/wire.h"

enum { FIELD_SPACE = 1, FIELD_SHARD = 2, FIELD_KEYS = 3, FIELD_RELEASES = 4 };

/* replies */

static bool mapping_gone(const struct kvt_copy_header *h, uint64_t generation)
{
        __atomic_thread_fence(__ATOMIC_ACQUIRE);
        return __atomic_load_n(&h->generation, __ATOMIC_RELAXED) != generation;
}

/* Everything in an entry, and in the header it points to, is checked against what the space says. */
static int map_resolve(kvt *c, const struct request *q, const struct kvt_map_entry *e, uint64_t deadline_usec, kvt_mapping *ret)
{
        const struct geometry *g = q->geometry;
        struct slab_map *m = slab_find(c, e->slab);
        const struct kvt_copy_header *h;
        struct copy copy;
        bool raw;

        if (!m)
                return KVT_E_CORRUPT;
        if (!m->base)
                return KVT_E_NO_MEMORY;
        if (e->offset % 8 || e->offset > m->bytes || m->bytes - e->offset < sizeof(*h) || !e->generation)
                return KVT_E_CORRUPT;
        h = (const struct kvt_copy_header *)(const void *)(m->base + e->offset);
        if (__atomic_load_n(&h->generation, __ATOMIC_ACQUIRE) != e->generation)
                return KVT_E_LEASE_LOST;
        if (copy_look(g, q->max_rel_l2, h, m->bytes - e->offset, &copy))
                return mapping_gone(h, e->generation) ? KVT_E_LEASE_LOST : KVT_E_CORRUPT;
        raw = part_is_raw(g, copy.planes);
        if (!raw && q->raw_only)
                return KVT_E_CODED;
        slab_ref(m);
        *ret = (kvt_mapping){
                .data = copy.payload,
                .bytes = (size_t)(raw ? g->part_bytes : copy.bytes),
                .deadline_usec = deadline_usec,
                .priv = {
                        [PRIV_SLAB] = (uintptr_t)m, [PRIV_OFFSET] = e->offset, [PRIV_GENERATION] = e->generation, [PRIV_LEASE] = e->lease}};
        return 0;
}

/* Takes the packet's descriptors in, and says so. */
static int map_take_slabs(kvt *c, const Kvtier__MapReply *m)
{
        if (m->slabs.len != c->n_rx_fds * sizeof(struct kvt_map_slab))
                return -1;
        for (uint32_t i = 0; i < c->n_rx_fds; i++) {
                struct kvt_map_slab s;
                int r;

                memcpy(&s, m->slabs.data + i * sizeof(s), sizeof(s));
                r = slab_add(c, s.slab, s.bytes, c->rx_fds[i]);
                if (r && (r != KVT_E_NO_MEMORY || !slab_find(c, s.slab)))
                        return -1;
        }
        if (c->n_rx_fds)
                tx_send(c, KVT_MSG_FD_ACK, 0, 0);
        return 0;
}

static int map_on_reply(kvt *c, struct request *q, int error, const uint8_t *body, size_t n)
{
        ProtobufCAllocator allocator = arena_start(&c->arena);
        uint64_t epoch = c->epoch, deadline_usec;
        Kvtier__MapReply *m;

        if (error)
                return 0;
        m = kvtier__map_reply__unpack(&allocator, n, body);
        if (!m || m->entries.len != q->n * sizeof(struct kvt_map_entry) || map_take_slabs(c, m) < 0)
                return -1;
        if (c->fd < 0 || c->broken || c->epoch != epoch)
                return -1; /* lost while acknowledging: the table is gone */

        deadline_usec = q->sent_usec + m->lease_usec;
        for (uint32_t i = 0; i < q->n; i++) {
                uint32_t at = q->op && q->positions ? q->positions[q->i_first + i] : q->i_first + i;
                kvt_mapping mapping = {0};
                struct kvt_map_entry e;
                uint8_t status;

                memcpy(&e, m->entries.data + i * sizeof(e), sizeof(e));
                status = e.status;
                if (!status) {
                        status = q->op ? (uint8_t)map_resolve(c, q, &e, deadline_usec, &mapping) : KVT_E_CANCELLED;
                        if (status)
                                release_queue(c, e.lease);
                }
                if (q->op) {
                        q->mappings[at] = mapping;
                        q->statuses[at] = status;
                }
        }
        if (q->op && q->answered)
                *q->answered = true;
        if (q->op && q->op->then)
                q->op->then(q->op);
        return 0;
}

int map_send(kvt_op *op, struct request *q, const kvt_key *keys, kvt_mapping *mappings, uint8_t *statuses)
{
        kvt *c = op->c;
        kvt_space *s = op->s;
        uint8_t *p = tx_body(c);
        int r;

        q->on_reply = map_on_reply;
        q->geometry = &s->geometry;
        q->max_rel_l2 = s->max_rel_l2;
        q->mappings = mappings;
        q->statuses = statuses;
        q->sent_usec = now_usec();
        p = wire_uint(p, FIELD_SPACE, s->handle);
        p = wire_uint(p, FIELD_SHARD, s->shard);
        if (q->positions) {
                p = wire_open(p, FIELD_KEYS, q->n * sizeof(*keys));
                for (uint32_t i = 0; i < q->n; i++, p += sizeof(*keys))
                        memcpy(p, &keys[q->positions[q->i_first + i]], sizeof(*keys));
        } else
                p = wire_bytes(p, FIELD_KEYS, keys + q->i_first, q->n * sizeof(*keys));
        p = release_ride(c, p, FIELD_RELEASES);
        r = request_send(c, q, (size_t)(p - tx_body(c)));
        if (r)
                request_free(c, q);
        return r;
}

void mapping_release(kvt *c, kvt_mapping *m)
{
        struct slab_map *slab = mapping_slab(m);

        if (slab->epoch == c->epoch && c->fd >= 0)
                release_queue(c, m->priv[PRIV_LEASE]);
        slab_unref(c, slab);
        m->data = NULL;
}

/* kvt_map(): slices in order, then what must be asked again, as long as that helps. All in the handlers of replies. */

struct map_again {
        uint32_t n, i_next;
        unsigned tries; /* without progress */
        uint32_t positions[];
};

static int map_next(kvt_op *op)
{
        struct map_again *again = op->work;
        size_t left = again ? again->n - again->i_next : op->n_keys - op->i_next;
        struct request *q = request_new(op->c, op, KVT_MSG_MAP);

        if (!q)
                return KVT_E_AGAIN;
        q->n = left < KVT_KEYS_MAX ? (uint32_t)left : KVT_KEYS_MAX;
        q->raw_only = !(op->c->flags & KVT_OPEN_CODED);
        if (again) {
                q->positions = again->positions;
                q->i_first = again->i_next;
                again->i_next += q->n;
        } else {
                q->i_first = (uint32_t)op->i_next;
                op->i_next += q->n;
        }
        return map_send(op, q, op->keys, op->mappings, op->statuses);
}

/* Lists what is to be asked again; false: nothing, or it does not help. */
static bool map_list_again(kvt_op *op)
{
        struct map_again *again = op->work;
        uint32_t n = 0;

        for (size_t i = 0; i < op->n_keys; i++)
                n += op->statuses[i] == KVT_E_AGAIN;
        if (!n)
                return false;
        if (!again) {
                op->work = again = malloc(sizeof(*again) + n * sizeof(*again->positions));
                if (!again)
                        return false;
                again->tries = 0;
        } else if (n < again->n)
                again->tries = 0;
        else if (++again->tries == MAP_TRIES_MAX)
                return false;
        again->n = again->i_next = 0;
        for (size_t i = 0; i < op->n_keys; i++)
                if (op->statuses[i] == KVT_E_AGAIN)
                        again->positions[again->n++] = (uint32_t)i;
        return true;
}

static void map_then(kvt_op *op)
{
        struct map_again *again = op->work;
        int r = 0;

        if (again ? again->i_next < again->n : op->i_next < op->n_keys)
                r = op->cancelled ? KVT_E_CANCELLED : map_next(op);
        else if (!op->cancelled && map_list_again(op))
                r = map_next(op);
        if (r && !op->error)
                op->error = r;
}

static int map_start(kvt_op *op)
{
        op->i_next = 0;
        if (!op->n_keys)
                return 0;
        memset(op->mappings, 0, op->n_keys * sizeof(*op->mappings));
        return map_next(op);
}

static void map_deinit(kvt_op *op)
{
        if (op->status)
                for (size_t i = 0; i < op->n_keys; i++)
                        if (op->mappings[i].data)
                                mapping_release(op->c, &op->mappings[i]);
        free(op->work);
        op->work = NULL;
}

static int map_op(kvt_space *s, const kvt_key *keys, size_t n_keys, kvt_mapping *ret, uint8_t *statuses, kvt_op **ret_op)
{
        kvt_op *op;
        int r = s ? conn_check(s->c) : KVT_E_BAD_REQUEST;

        if (r)
                return r;
        if (n_keys > UINT32_MAX || (n_keys && (!keys || !ret)))
                return KVT_E_BAD_REQUEST;
        if (s->c->flags & KVT_OPEN_NO_MAP)
                return KVT_E_DENIED;
        op = op_new(s->c, s);
        if (!op)
                return KVT_E_NO_MEMORY;
        op->start = map_start;
        op->then = map_then;
        op->deinit = map_deinit;
        op->keys = keys;
        op->n_keys = n_keys;
        op->mappings = ret;
        op->statuses = statuses;
        if (op_own_statuses(op)) {
                op_free(op);
                return KVT_E_NO_MEMORY;
        }
        *ret_op = op;
        return 0;
}

int kvt_map(kvt_space *s, const kvt_key *keys, size_t n_keys, kvt_mapping *ret, uint8_t *statuses)
{
        kvt_op *op;
        int r = map_op(s, keys, n_keys, ret, statuses, &op);

        return r ? r : op_sync(op, true);
}

int kvt_map_async(kvt_space *s, const kvt_key *keys, size_t n_keys, kvt_mapping *ret, uint8_t *statuses, kvt_done done, void *arg,
                  kvt_op **ret_op)
{
        kvt_op *op;
        int r = map_op(s, keys, n_keys, ret, statuses, &op);

        return r ? r : op_async_keys(op, done, arg, ret_op);
}

/* giving back */

int kvt_unmap(kvt_space *s, kvt_mapping *m, size_t n, uint8_t *statuses)
{
        kvt *c;
        int r = s ? conn_check(s->c) : KVT_E_BAD_REQUEST, result = 0;

        if (r || (n && !m))
                return r ? r : KVT_E_BAD_REQUEST;
        c = s->c;
        pthread_mutex_lock(&c->lock);
        for (size_t i = 0; i < n; i++) {
                int status = 0;

                if (m[i].data) {
                        if (mapping_slab(&m[i])->boot != c->boot)
                                status = KVT_E_RESTARTED;
                        else if (!mapping_intact(&m[i]))
                                status = KVT_E_LEASE_LOST;
                        mapping_release(c, &m[i]);
                }
                if (statuses)
                        statuses[i] = (uint8_t)status;
                if (!result)
                        result = status;
        }
        if (c->n_releases >= RELEASES_SEND)
                release_flush(c);
        pthread_mutex_unlock(&c->lock);
        return result;
}
