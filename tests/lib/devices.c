#include <fcntl.h>

#include "tests/lib/devices.h"
#include "tests/lib/raw.h"

static Kvtier__ListReply *list(const struct daemon *d)
{
        Kvtier__ListRequest q = KVTIER__LIST_REQUEST__INIT;
        struct raw r;

        q.what = KVTIER__LIST_WHAT__LIST_DEVICES;
        raw_open(&r, d->socket);
        raw_hello(&r);
        Kvtier__ListReply *m = raw_call(&r, KVT_MSG_LIST, &q, &kvtier__list_reply__descriptor);
        CHECK(m);
        raw_leave(&r);
        return m;
}

bool device_see(const struct daemon *d, size_t i, struct device_seen *ret)
{
        Kvtier__ListReply *m = list(d);
        bool there = i < m->n_devices;

        *ret = (struct device_seen){};
        if (there) {
                const Kvtier__DeviceEntry *v = m->devices[i];
                *ret = (struct device_seen){
                        .capacity_bytes = v->capacity_bytes,
                        .segment_bytes = v->segment_bytes,
                        .n_segments = v->n_segments,
                        .n_free_segments = v->n_free_segments,
                        .used_bytes = v->used_bytes,
                        .n_records = v->n_records,
                        .n_errors = v->n_errors,
                        .n_recovered = v->n_recovered,
                        .n_torn = v->n_torn,
                        .scrub_passes = v->scrub_passes,
                        .n_quarantined = v->n_quarantined,
                };
                snprintf(ret->path, sizeof(ret->path), "%s", v->path);
                snprintf(ret->state, sizeof(ret->state), "%s", v->state);
                snprintf(ret->detail, sizeof(ret->detail), "%s", v->detail);
                snprintf(ret->ring, sizeof(ret->ring), "%s", v->ring);
        }
        protobuf_c_message_free_unpacked(&m->base, NULL);
        return there;
}

bool device_is(const struct daemon *d, size_t i, const char *state)
{
        struct device_seen v;

        return device_see(d, i, &v) && !strcmp(v.state, state);
}

uint64_t device_records(const struct daemon *d)
{
        struct device_seen v;
        uint64_t n = 0;

        for (size_t i = 0; device_see(d, i, &v); i++)
                n += v.n_records;
        return n;
}

int device_do(const struct daemon *d, int action, const char *path)
{
        Kvtier__DeviceRequest q = KVTIER__DEVICE_REQUEST__INIT;
        struct raw r;

        q.action = (Kvtier__DeviceDo)action;
        q.path = (char *)path;
        raw_open(&r, d->socket);
        raw_hello(&r);
        int result = raw_status(&r, KVT_MSG_DEVICE, &q);
        raw_leave(&r);
        return result;
}

void device_flush(const struct daemon *d)
{
        CHECK_OK(device_do(d, KVTIER__DEVICE_DO__DEVICE_FLUSH, ""));
}

void device_path(const struct daemon *d, const char *name, char *ret, size_t n_ret)
{
        snprintf(ret, n_ret, "%s/%s", d->dir, name);
}

void device_damage(const char *path, uint64_t offset, size_t n)
{
        int fd = open(path, O_RDWR | O_CLOEXEC);
        uint8_t c;

        CHECK(fd >= 0);
        for (size_t i = 0; i < n; i++) {
                CHECK_EQ(pread(fd, &c, 1, (off_t)(offset + i)), 1);
                c ^= 0x10;
                CHECK_EQ(pwrite(fd, &c, 1, (off_t)(offset + i)), 1);
        }
        close(fd);
}

int64_t device_find(const char *path, uint64_t offset, const void *bytes, size_t n)
{
        enum { STEP = 1 << 20 };
        uint8_t *buf = malloc(STEP + n);
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        int64_t at = -1;

        CHECK(buf && fd >= 0);
        for (ssize_t k; at < 0 && (k = pread(fd, buf, STEP + n, (off_t)offset)) >= (ssize_t)n; offset += STEP) {
                const uint8_t *found = memmem(buf, (size_t)k, bytes, n);
                if (found)
                        at = (int64_t)offset + (found - buf);
        }
        close(fd);
        free(buf);
        return at;
}
