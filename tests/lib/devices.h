/* The NVMe devices of a daemon, seen from outside, and told what to do. Through connections of their own, which are not counted. */
#pragma once

#include "tests/lib/check.h"
#include "tests/lib/daemon.h"

struct device_seen {
        char path[128], state[16], detail[200], ring[24];
        uint64_t capacity_bytes, segment_bytes, n_segments, n_free_segments, used_bytes, n_records;
        uint64_t n_errors, n_recovered, n_torn, scrub_passes, n_quarantined;
};
/* Device i as in nvme_devices; false: there is none. */
bool device_see(const struct daemon *d, size_t i, struct device_seen *ret);
bool device_is(const struct daemon *d, size_t i, const char *state);
uint64_t device_records(const struct daemon *d); /* of all */
/* DEVICE requests. 0 or KVT_E_* */
int device_do(const struct daemon *d, int action, const char *path);
/* What was stored on NVMe up to now is on stable storage. */
void device_flush(const struct daemon *d);

/* the file of a daemon, or another one: from behind its back */
void device_path(const struct daemon *d, const char *name, char *ret, size_t n_ret);
/* Flips one bit in each byte from offset on. */
void device_damage(const char *path, uint64_t offset, size_t n);
/* The first place from offset on where these bytes stand; -1: none. */
int64_t device_find(const char *path, uint64_t offset, const void *bytes, size_t n);

/* A daemon with one device of 64 MiB, where all that is put is written; further parameters follow. Needs daemon.h. */
#define NVME(d, ...)                                                                                                                       \
        do {                                                                                                                               \
                DAEMON_START(d, "--nvme_devices=DIR/nvme.kvt", "--nvme_bytes=64M", "--nvme_segment_bytes=1M",                              \
                             "--nvme_admit_hits=0" __VA_OPT__(, ) __VA_ARGS__);                                                            \
                WAIT_FOR(device_is(d, 0, "serving"), 5000);                                                                                \
        } while (0)
