/* What the device does without us: fio on a file of its own, with the io_uring engine and direct I/O. */
#pragma once

#include <stddef.h>
#include <stdint.h>

struct fio_job {
        const char *path; /* written before, at least size bytes */
        const char *rw; /* "write", "randread" */
        uint64_t block_bytes, size_bytes;
        unsigned depth;
        unsigned msec; /* how long; 0: once over size, and synced at the end */
};
struct fio_result {
        double bytes_sec;
        double p50_usec; /* of lat */
};
/* Skips the benchmark where there is no fio. */
struct fio_result fio_run(const struct fio_job *j);

/* A file of noise, all its blocks allocated and written; the first zero_bytes are zeros. Skips if there is no room for it and as much again. */
void noise_file(const char *path, uint64_t bytes, uint64_t zero_bytes);
