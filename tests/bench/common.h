/* What the benchmarks share: clocks and samples, result rows, pinned child processes (kvtierd, a bare ping-pong), a model's space and an
 * engine's paged KV memory. A benchmark that cannot measure prints why and exits with 1, or with 77 if something it needs is not there.
 *
 * Every row is measured against a baseline in the same run: samples of both alternate (a batch of blocks, or the median latency of a round),
 * and their medians are compared. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "include/kvtier.h"

/* time and processors */

uint64_t now_nsec(void);
/* CPU time of a process, all its threads. */
uint64_t cpu_nsec(pid_t pid);
/* This thread (and what it starts) runs on this CPU only; on the last one if there are not as many. ALL_CPUS: on any. */
enum { ALL_CPUS = -1 };
void pin(int cpu);
/* BENCH_QUICK=1: the short form. */
bool quick(void);
/* Prints why and exits. */
void __attribute__((noreturn, format(printf, 1, 2))) die(const char *format, ...);
void __attribute__((noreturn, format(printf, 1, 2))) skip(const char *format, ...);
/* r is what a kvt_ function returned. */
void must(int r, const char *what);
/* Skips unless this much memory is free, and as much again for others. */
void need_memory(uint64_t bytes);

/* samples */

struct samples {
        double *x;
        size_t n, cap;
};
void samples_add(struct samples *s, double x);
/* Sorts. q: 0.5 is the median. */
double samples_quantile(struct samples *s, double q);
void samples_reset(struct samples *s);
void samples_deinit(struct samples *s);

/* Something that this process and a server do on one CPU, one after the other. What was timed while other programs ran in between (wall time
 * exceeds the CPU time of both by a tenth) does not count. Where too little is left, on a machine that is never quiet, the CPU time of both
 * stands for the wall time: with the CPU to themselves they are the same. */
struct undisturbed {
        struct samples clean, by_cpu;
};
enum { WALL_ONLY = -1 }; /* they work at the same time, on two CPUs: all is counted */
struct watch {
        pid_t server; /* 0: none; WALL_ONLY */
        uint64_t wall_nsec, cpu_nsec;
};
void watch_start(struct watch *w, pid_t server);
/* Stops; amount is what was done: adds amount per second. */
void watch_stop(struct watch *w, struct undisturbed *ret, double amount);
double undisturbed_median(struct undisturbed *u);
void undisturbed_deinit(struct undisturbed *u);

/* rows: one line of JSON each on stdout. The names are stable: scripts compare them between releases. */

struct row {
        const char *name, *unit;
        double value;
        double baseline; /* 0: none */
        const char *of; /* what the baseline is */
        char sense; /* '<' or '>': the limit is an upper or a lower one; 0: for the record */
        double limit; /* of ratio = value / baseline, or of value where there is no baseline */
        const char *note; /* NULL: none */
};
void row_print(const struct row *r);

/* processes. Children die with this process. */

/* A directory that is removed at exit. */
const char *scratch(void);
/* fork(), the child pinned. */
pid_t child_fork(int cpu);
/* Sends the signal and waits for the end. */
void child_end(pid_t pid, int sig);

struct daemon {
        pid_t pid;
        char socket[96];
        char log[96];
};
/* Starts build/.../kvtierd in a temporary directory of its own; params: "--host_bytes=1G", ..., NULL. Does not wait for it. */
void daemon_start(struct daemon *d, int cpu, const char *const *params);
/* Connects, and waits for the daemon if it is not listening yet. */
kvt *daemon_open(const struct daemon *d, const kvt_options *options);
/* Waits until it has prepared what memory it wants to have ready, and sleeps. */
void daemon_rest(const struct daemon *d);
void daemon_stop(struct daemon *d);

/* A process that answers packets of n_request bytes with n_reply bytes over a SEQPACKET socketpair, and does nothing else. */
struct pingpong {
        pid_t pid;
        int fd;
        size_t n_request, n_reply;
        uint64_t poll_usec; /* both sides spin this long before they sleep */
};
void pingpong_start(struct pingpong *p, int cpu, size_t n_request, size_t n_reply, uint64_t poll_usec);
void pingpong_once(struct pingpong *p);
void pingpong_stop(struct pingpong *p);

/* a model: 16 layers of 8 KV heads of 64 16-bit elements, 64 tokens a block: 2 MiB, in 32 planes of 64 KiB */

enum {
        MODEL_LAYERS = 16,
        MODEL_HEADS = 8,
        MODEL_DIM = 64,
        MODEL_TOKENS = 64,
        MODEL_PLANES = 2 * MODEL_LAYERS,
        MODEL_PLANE_BYTES = MODEL_HEADS * MODEL_DIM * 2 * MODEL_TOKENS,
        MODEL_BLOCK_BYTES = MODEL_PLANES * MODEL_PLANE_BYTES,
};
kvt_space *model_open(kvt *c);
/* A space of one plane of opaque bytes, for what is not about bandwidth. */
kvt_space *tiny_open(kvt *c, uint32_t block_tokens, uint32_t opaque_bytes);
/* Keys of a made-up prompt of n blocks; the same for the same seed. */
void prompt_keys(const kvt_space *s, uint32_t block_tokens, uint64_t seed, kvt_key *ret, size_t n);

/* An engine's KV memory: for each plane a pool of n_pages pages of one block each, in huge pages where there are any, all touched.
 * Blocks lie in pages in a random order. */
struct engine_kv {
        size_t n_pages;
        uint8_t *base;
        size_t bytes;
        uint32_t *table; /* a permutation of the pages, twice over: any n_pages in a row are different */
        kvt_plane_view planes[MODEL_PLANES];
};
void kv_init(struct engine_kv *k, size_t n_pages, uint64_t seed);
/* Page of the i-th block when blocks are laid out from at on. */
uint8_t *kv_plane(const struct engine_kv *k, size_t at, size_t i, unsigned plane);
kvt_view kv_view(const struct engine_kv *k, size_t at, size_t n);
