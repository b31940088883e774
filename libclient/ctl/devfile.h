/* NVMe devices and files: asked of the daemon, or opened here. */
#pragma once

#include "libclient/ctl/query.h"

/* DEVICE; path may be empty. */
int device_do(struct ctl *x, Kvtier__DeviceDo action, const char *path);

/* A device or regular file that was opened by this program and is locked against daemons (flock() of its open file description, which a daemon
 * that uses it holds exclusively). */
struct devfile {
        const char *path; /* not owned */
        int fd;
        bool is_block;
        bool is_new; /* made here */
        uint64_t bytes;
};
/* writes: to be changed; else only read, beside others who read. create: made if it is not there, empty. */
int devfile_open(struct ctl *x, const char *path, bool writes, bool create, struct devfile *ret);
void devfile_close(struct devfile *d);

/* Reads a device or file record by record and prints what is wrong with it. */
int devfile_verify(struct ctl *x, const char *path);
