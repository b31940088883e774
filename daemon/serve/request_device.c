/* Devices of the NVMe tier: what they are, and what root may tell them. */
#include <string.h>

#include "daemon/serve/request.h"
#include "daemon/util/log.h"

void request_list_devices(struct session *c, uint32_t id)
{
        struct nvme *n = &c->server->engine.nvme;
        Kvtier__ListReply reply = KVTIER__LIST_REPLY__INIT;
        Kvtier__DeviceEntry es[NVME_DEVICES_MAX], *ep[NVME_DEVICES_MAX];
        static const struct superblock none;

        reply.devices = ep;
        for (uint32_t i = 0; c->privileged && i < n->n_devices; i++) { /* whose disks these are is not a tenant's business */
                struct nvme_device *d = n->devices[i];
                const struct superblock *sb = d->open_busy ? &none : &d->sb; /* a worker writes it while the device is being opened */
                Kvtier__DeviceEntry *v = ep[reply.n_devices] = &es[reply.n_devices];
                kvtier__device_entry__init(v);
                reply.n_devices++;
                v->path = d->path;
                v->state = (char *)device_state_name(d);
                v->detail = d->detail;
                v->ring = (char *)(d->ring ? d->ring->ops->name : "");
                v->uuid = (ProtobufCBinaryData){16, (uint8_t *)sb->uuid};
                v->capacity_bytes = sb->n_segments * sb->segment_bytes;
                v->segment_bytes = sb->segment_bytes;
                v->n_segments = sb->n_segments;
                v->n_free_segments = d->n_free;
                v->used_bytes = d->used_bytes;
                v->n_records = d->n_records;
                v->queue_depth = d->n_ios;
                v->n_errors = d->counters.n_errors;
                v->n_recovered = d->counters.n_recovered;
                v->n_torn = d->counters.n_torn;
                v->recover_usec = d->counters.recover_usec;
                v->scrub_bytes = d->counters.scrub_bytes;
                v->scrub_passes = d->counters.scrub_passes;
                v->n_quarantined = d->counters.n_quarantined;
                v->n_read_usec = v->n_write_usec = NVME_HISTOGRAM;
                v->read_usec = d->counters.read_usec;
                v->write_usec = d->counters.write_usec;
        }
        session_reply(c, KVT_MSG_LIST, id, &reply);
}

struct flush { /* asked for by a client */
        struct nvme_sync_all sync;
        struct server *server;
        uint64_t session; /* by number: it may be gone */
        uint32_t id;
};

static void flushed(struct nvme_sync_all *sync, int r)
{
        struct flush *f = container_of(sync, struct flush, sync);
        Kvtier__DeviceReply reply = KVTIER__DEVICE_REPLY__INIT;

        list_for_each (c, &f->server->sessions, struct session, link) {
                if (c->id != f->session || c->state == SESSION_CLOSED)
                        continue;
                if (r != 0)
                        session_error(c, f->id, r, "a device failed");
                else
                        session_reply(c, KVT_MSG_DEVICE, f->id, &reply);
                break;
        }
        free(f);
}

static void start_flush(struct session *c, uint32_t id)
{
        struct flush *f = new0(struct flush, 1);

        if (!f) {
                session_error(c, id, KVT_E_NO_MEMORY, NULL);
                return;
        }
        *f = (struct flush){.sync.done = flushed, .server = c->server, .session = c->id, .id = id};
        nvme_flush_start(&c->server->engine.nvme, &f->sync);
}

void request_device(struct session *c, uint32_t id, const void *message, const uint8_t *packet, size_t n_packet)
{
        const Kvtier__DeviceRequest *m = message;
        struct nvme *n = &c->server->engine.nvme;
        Kvtier__DeviceReply reply = KVTIER__DEVICE_REPLY__INIT;
        struct nvme_device *d = *m->path ? nvme_find_device(n, m->path) : NULL;
        int r = 0;

        if (!c->privileged) {
                session_error(c, id, KVT_E_DENIED, "devices are for root and the daemon's own user");
                return;
        }
        switch (m->action) {
        case KVTIER__DEVICE_DO__DEVICE_ATTACH:
                r = *m->path == '/' ? nvme_attach(n, m->path) : KVT_E_BAD_REQUEST;
                break;
        case KVTIER__DEVICE_DO__DEVICE_DETACH:
                r = d && d->state != DEVICE_DETACHED ? nvme_detach(n, m->path) : KVT_E_NO_DEVICE;
                break;
        case KVTIER__DEVICE_DO__DEVICE_VERIFY:
                if (*m->path && (!d || d->state != DEVICE_SERVING))
                        r = KVT_E_NO_DEVICE;
                for (uint32_t i = 0; r == 0 && i < n->n_devices; i++)
                        if ((!d || n->devices[i] == d) && n->devices[i]->state == DEVICE_SERVING)
                                scrub_now(n->devices[i]);
                break;
        case KVTIER__DEVICE_DO__DEVICE_FLUSH:
                start_flush(c, id);
                return;
        default:
                r = KVT_E_BAD_REQUEST;
        }
        if (r != 0) {
                session_error(c, id, r,
                              r == KVT_E_EXISTS        ? "it is attached"
                              : r == KVT_E_AGAIN       ? "what it held before is being cleared away, or hangs"
                              : r == KVT_E_LIMIT       ? "too many devices"
                              : r == KVT_E_NO_DEVICE   ? "no such device is attached"
                              : r == KVT_E_BAD_REQUEST ? "no such action, or the path does not begin with /"
                                                       : NULL);
                return;
        }
        session_reply(c, KVT_MSG_DEVICE, id, &reply);
}
