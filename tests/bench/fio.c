#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "tests/bench/common.h"
#include "tests/bench/fio.h"

enum { CHUNK = 4 << 20, PAGE = 4096 };

/* The number behind "name", somewhere behind at. */
static double number_after(const char *at, const char *name)
{
        char quoted[48];

        snprintf(quoted, sizeof(quoted), "\"%s\" : ", name);
        at = at ? strstr(at, quoted) : NULL;
        if (!at)
                die("fio did not say %s", name);
        return atof(at + strlen(quoted));
}

struct fio_result fio_run(const struct fio_job *j)
{
        char command[768], text[1 << 16], length[64];
        const char *part;
        FILE *f;

        if (j->msec)
                snprintf(length, sizeof(length), "--time_based --runtime=%ums", j->msec);
        else
                snprintf(length, sizeof(length), "--end_fsync=1");
        snprintf(command, sizeof(command),
                 "exec fio --name=bare --ioengine=io_uring --direct=1 --overwrite=1 --lat_percentiles=1 --output-format=json "
                 "--filename='%s' --rw=%s --bs=%llu "
                 "--size=%llu --iodepth=%u %s",
                 j->path, j->rw, (unsigned long long)j->block_bytes, (unsigned long long)j->size_bytes, j->depth, length);
        f = popen(command, "re");
        size_t n = f ? fread(text, 1, sizeof(text) - 1, f) : 0;
        int status = f ? pclose(f) : -1;
        text[n] = 0;
        if (status == 127 << 8)
                skip("needs fio");
        if (status != 0)
                die("fio failed (%d)", status);
        part = strstr(text, strstr(j->rw, "read") ? "\"read\" : {" : "\"write\" : {");
        return (struct fio_result){.bytes_sec = number_after(part, "bw_bytes"),
                                   .p50_usec = number_after(part ? strstr(part, "\"lat_ns\"") : NULL, "50.000000") / 1000};
}

void noise_file(const char *path, uint64_t bytes, uint64_t zero_bytes)
{
        uint64_t *chunk = aligned_alloc(PAGE, CHUNK), x = 88172645463325252u;
        int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_DIRECT, 0600);
        struct statvfs v;

        if (!chunk || fd < 0 || fstatvfs(fd, &v) < 0)
                die("%s: %m", path);
        if ((uint64_t)v.f_bavail * v.f_frsize < 2 * bytes)
                skip("needs %llu MiB of disk and wants as much again left free", (unsigned long long)bytes >> 20);
        for (uint64_t at = 0; at < bytes; at += CHUNK) {
                for (size_t i = 0; i < CHUNK / 8; i++) {
                        x ^= x << 13;
                        x ^= x >> 7;
                        x ^= x << 17;
                        chunk[i] = at + 8 * i < zero_bytes ? 0 : x;
                }
                if (pwrite(fd, chunk, CHUNK, (off_t)at) != CHUNK)
                        die("%s: %m", path);
        }
        if (fsync(fd) < 0 || close(fd) < 0)
                die("%s: %m", path);
        free(chunk);
}
