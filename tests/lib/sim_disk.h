/* A simulated disk behind the ring interface: its operations come back when the test says so, in random order; the power can be cut at any moment; and it
 * fails on demand. One thread: the test is the loop.
 *
 * What is on it lies in two images: `now` is what reads see, `stable` what the last flushes made safe. A write that is not covered by a flush that was
 * submitted after the write came back is in doubt: sim_crash() decides for each whether it lands, vanishes, is torn at a sector, or turns to garbage.
 *
 * It also holds its user to the rules: a buffer must not change while it is written, and nothing may be read or written that is being written. */
#pragma once

#include "daemon/io/ring.h"

enum { SIM_SECTOR = 512 };

struct sim_write { /* in doubt */
        uint64_t offset, bytes;
        uint8_t *data; /* owned */
        uint64_t serial; /* the order of coming back */
};

struct sim_disk {
        uint64_t bytes;
        unsigned random; /* state */
        uint8_t **now, **stable; /* pages, owned; NULL: zeros */
        struct list ops; /* of struct sim_op: under way */
        uint32_t n_ops;
        uint32_t n_rings;
        struct sim_write *doubts; /* owned */
        uint32_t n_doubts, max_doubts;
        uint64_t serial;
        bool dead; /* the power is gone: everything is -EIO, and changes nothing */
        struct {
                uint32_t in; /* so many more go well, and then one does not; 0: none is to fail */
                int error;
        } faults[4]; /* by opcode */
        uint64_t
                full_segment_bytes; /* -ENOSPC for writes to segments (of this size, from 1 MiB on) that were never written; 0: there is room */
        uint64_t bad_offset, bad_bytes; /* reads that touch this are -EIO */
        uint64_t bad_write_offset, bad_write_bytes; /* likewise, writes */
        bool hangs; /* what is under way, or comes, does not come back */
        uint64_t n_reads, n_writes, n_flushes;
        uint64_t n_landed, n_vanished, n_torn, n_garbage; /* by crashes */
};

struct sim_disk *sim_disk_new(uint64_t bytes, unsigned seed);
struct sim_disk *sim_disk_free(struct sim_disk *d); /* no ring is open */
/* All rings are opened on this disk from now on; NULL: on the file again. */
void sim_install(struct sim_disk *d);
/* But a second one, opened while the first is, on this. */
void sim_install_second(struct sim_disk *d);
/* At most n operations come back. Returns how many are still under way. */
uint32_t sim_step(struct sim_disk *d, uint32_t n);
/* The power is cut: what is in doubt is decided, and what is under way fails without a trace. */
void sim_crash(struct sim_disk *d);
/* The power is back: rings may be opened again. */
void sim_power_on(struct sim_disk *d);
/* The nth operation (1: the next) of that kind fails. */
void sim_fail(struct sim_disk *d, enum ring_opcode opcode, uint32_t nth, int error);
/* Behind everybody's back, in both images. */
void sim_peek(const struct sim_disk *d, uint64_t offset, void *p, uint64_t n);
void sim_poke(struct sim_disk *d, uint64_t offset, const void *p, uint64_t n);
static inline uint32_t sim_random(struct sim_disk *d, uint32_t n)
{
        return (uint32_t)rand_r(&d->random) % n;
}
