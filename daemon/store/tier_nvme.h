/* The NVMe tier: logs of records on devices, and the catalog that says where each lies. Owned by the loop thread; rings carry the bytes.
 *
 * A device:
 *
 *     DETACHED --attach--> OPENING --lock, superblock--> RECOVERING --headers, footers, tails--> SERVING
 *         ^                   |                             |                                      |--write errors, detach--> DRAINING (reads only)
 *         '--detach-----------'--> FAILED <-----------------'------------ hang, too many errors ---'
 *
 * A segment:
 *
 *     FREE --header written, flushed--> OPEN --full--> CLOSING --its writes, flush, footer--> SEALED --recycle--> RECYCLING --moved, flushed--> FREE
 *
 * Invariants.
 *  1. A record is in the catalog only after its write came back well; a footer is written only after a flush behind all its records.
 *  2. Records are appended in order of place. What is durable is durable with everything written before it on its device: nvme_sync() waits for all older
 *     writes, because a scan of an unfinished segment stops at the first hole. A write that failed holds later syncs up until its segment has a footer.
 *  3. A segment is overwritten only when nothing reads it, no catalog entry points into it, and what was moved out of it is on stable storage.
 *  4. Nothing here waits: what cannot go on says KVT_E_AGAIN, and on_room() is called when it may be worth trying again. */
#pragma once

#include "daemon/io/buffer.h"
#include "daemon/io/ring.h"
#include "daemon/store/catalog.h"
#include "daemon/store/headers.h"
#include "daemon/store/tenant.h"
#include "daemon/store/tier.h"
#include "libclient/codec/format.h"

enum { DEVICE_CLOSE_WAIT_USEC = 2000000 };
enum { NVME_DEVICES_MAX = 16, NVME_HISTOGRAM = 20, SEGMENT_NONE = 0xffffffff };
enum { MOVE_SEGMENTS = 4 /* what may be moved by recycling, saved up, at most */ };

enum device_state { DEVICE_DETACHED, DEVICE_OPENING, DEVICE_RECOVERING, DEVICE_SERVING, DEVICE_DRAINING, DEVICE_FAILED };
enum segment_state { SEGMENT_UNKNOWN, SEGMENT_FREE, SEGMENT_OPEN, SEGMENT_CLOSING, SEGMENT_SEALED, SEGMENT_RECYCLING };

struct segment {
        uint64_t generation; /* 0: never used */
        uint64_t opened_sec; /* realtime */
        uint32_t live_pages;
        uint32_t n_reads; /* under way */
        uint8_t state;
        bool virgin; /* FREE, and not written since the device was formatted: a file may have no room for it */
        bool has_drops;
};

struct victim_view { /* a segment, for the policy that decides which is recycled */
        uint64_t generation; /* the order of writing */
        uint32_t used_pages; /* LIVE */
        uint32_t capacity_pages;
        bool busy; /* cannot be taken now */
};

/* One operation on a device. It outlives its owner: a device that hangs keeps the buffer, the owner gets -ETIMEDOUT. */
struct nvme_io {
        struct ring_op op;
        struct list link; /* in device.ios, oldest first */
        struct nvme_device *device;
        void (*done)(struct nvme_io *io, int r, void *arg); /* NULL: given up */
        void *arg;
};

/* A place in the order of writes of a device, held until what stands there cannot get lost to a scan. */
struct write_order {
        struct list link; /* in device.order; unlinked when settled */
        uint64_t serial;
};

struct log { /* a segment that is being written */
        struct list link; /* in device.logs */
        struct nvme_device *device;
        uint32_t segment;
        uint32_t end_page;
        bool closing; /* flush, footer, and for a broken one another flush are under way */
        uint8_t *page; /* owned by the buffers: the header, then the footer, while they are written */
        uint32_t n_page_bytes;
        bool was_virgin;
        bool opening; /* its header is being written or flushed */
        bool ready; /* its header is on stable storage */
        bool full; /* takes no more */
        bool broken; /* a write failed: it needs its footer on stable storage before later records count as durable */
        uint32_t hole_page; /* if it is broken: where the first of those lies */
        uint32_t n_writes; /* under way */
        struct footer_entry *entries; /* owned */
        uint32_t n_entries, max_entries;
        struct { /* descriptors in this segment */
                uint32_t space;
                uint16_t entry;
                int result; /* of its write; 1: under way */
        } * spaces; /* owned */
        uint32_t n_spaces, max_spaces;
        struct list writes; /* of struct nvme_write: all that are under way */
        struct list held; /* of struct nvme_write: written, but what describes their space is not yet */
        struct write_order order;
};

/* Appending a record: begin, fill the buffer, submit. */
struct nvme_write {
        /* set by the caller before begin */
        struct space *space;
        uint8_t type, codec, shard;
        bool durable, has_parent;
        uint8_t key[16], parent[16];
        uint32_t n_planes, n_page_hashes;
        uint64_t raw_bytes, stored_bytes;
        float max_rel_l2;
        void (*done)(struct nvme_write *w, int r); /* 0 or KVT_E_IO; the buffer is gone */
        /* filled in by begin */
        struct record_header
                *header; /* the whole record, n_pages; all fields set that the caller knows, payload and planes to be filled in */
        uint32_t n_pages;
        struct log *log;
        uint32_t i_entry;
        struct record_at at;
        uint64_t generation;
        struct write_order order;
        struct list link; /* in log.writes */
        struct list held; /* in log.held */
        bool is_void; /* must not become visible: dropped meanwhile */
        struct record_at from; /* a move: becomes visible only if the record is still here; n_pages 0: none */
};

/* Reading a record, or some of its payload. */
struct nvme_read {
        uint64_t first_byte, n_bytes; /* of the payload; set by the caller. Everything: 0, UINT64_MAX */
        void (*done)(
                struct nvme_read *r,
                int result); /* 0: header is checked, payload is not; KVT_E_IO, KVT_E_CORRUPT; the buffers are the caller's until nvme_read_end() */
        void *arg;
        /* filled in */
        struct record_header *header; /* header_pages pages */
        struct cached_header *cached; /* a reference: the header was not read; NULL: it was */
        bool keep_header; /* parts of this record will be asked for; set by the caller */
        bool in_part, tried_again;
        const uint8_t *payload; /* first_byte lies here */
        struct nvme_device *device;
        struct record_at at;
        uint64_t generation;
        void *buf[2];
        uint32_t n_buf_pages[2];
        uint32_t n_pending;
        int result;
        uint32_t header_pages;
};

struct nvme_sync { /* everything written before is on stable storage, or there is an error */
        struct list link; /* in device.syncs */
        uint64_t serial; /* UINT64_MAX: drops up to drops_serial have to be written first */
        uint64_t drops_serial;
        struct nvme_sync_all *all;
};
struct nvme_sync_all {
        void (*done)(struct nvme_sync_all *s, int r); /* 0, KVT_E_IO */
        void *arg;
        uint32_t n_pending;
        int result;
        struct nvme_sync parts[NVME_DEVICES_MAX];
};

struct device_counters {
        uint64_t n_errors, n_recovered, n_torn, n_quarantined, recover_usec;
        uint64_t scrub_bytes, scrub_passes;
        uint64_t read_usec[NVME_HISTOGRAM], write_usec[NVME_HISTOGRAM];
};

struct nvme_device {
        struct nvme *nvme;
        unsigned i; /* in nvme.devices */
        char *path; /* owned */
        uint8_t state;
        char detail[200];
        int fd; /* locked; owned */
        struct ring *ring; /* owned */
        struct buffers buffers;
        struct superblock sb;
        struct segment *segments; /* owned */
        uint32_t n_free, n_virgin; /* FREE; of them, never written */
        uint32_t i_free; /* where to look for a free one next */
        struct list logs; /* of struct log, owned: those below and those that are being closed */
        struct log *log, *next; /* next is opened ahead of need */
        struct list ios;
        uint32_t n_ios, n_stuck;
        /* order of writes and flushes */
        uint64_t serial; /* of the write begun last */
        uint64_t flushed; /* everything up to this is on stable storage */
        uint64_t flushing; /* what the flush under way will make so; 0: none */
        struct list order; /* of struct write_order: not settled, oldest first */
        struct list syncs; /* of struct nvme_sync */
        uint32_t n_write_errors; /* in a row */
        uint64_t errors_since_usec, n_errors_window;
        bool wants_room; /* a write was put off for lack of a segment */
        uint32_t move_pages, move_quarters; /* so much may be moved by recycling: grows with what is written, up to MOVE_SEGMENTS */
        uint64_t full_until_usec; /* the file system has no room: no virgin segment until then */
        uint64_t used_bytes, n_records;
        struct recycle *recycle; /* owned; under way */
        struct recovery *recovery; /* owned; under way */
        struct scrub *scrub; /* owned */
        struct job open_job; /* worker: opening and closing block */
        int open_result;
        uint64_t excused_usec; /* what is under way has time until then at least */
        uint64_t retry_usec; /* when to try again to lock it; 0: not */
        uint32_t n_retries;
        bool drops_lost; /* what was dropped may be back: no flush says otherwise any more */
        bool open_busy, detach, block_device, hangs, no_discard, unflushable;
        uint32_t sweep_cursor; /* catalog entries of a device that is gone are taken out bit by bit; UINT32_MAX: done */
        struct device_counters counters;
};

struct nvme_options {
        uint64_t segment_bytes; /* of devices that are formatted now */
        uint64_t file_bytes; /* of files that are made now */
        uint64_t buffer_bytes; /* a device */
        uint64_t timeout_usec;
        uint64_t scrub_bytes_sec; /* 0: no scrubbing */
        uint64_t spin_usec; /* of rings */
        unsigned depth;
        bool poll, discard, no_uring;
};

struct nvme {
        struct tier tier; /* sums of all devices; ops NULL */
        struct nvme_options options;
        struct catalog catalog;
        struct headers headers; /* of records that were read in part */
        struct tenants *tenants; /* borrowed */
        const struct conf *conf; /* borrowed */
        struct queue *queue; /* borrowed */
        struct nvme_device *devices[NVME_DEVICES_MAX]; /* owned; NULL: none */
        uint32_t n_devices;
        uint64_t generation; /* highest that was seen or given to a segment */
        uint32_t
                forget_cursor; /* drops remembered for recovery are forgotten bit by bit when none is under way; UINT32_MAX: there are none */
        uint64_t now_usec;
        bool stopping; /* no new writes */
        bool closed; /* rings are gone: a device that was just being opened is not begun with */
        uint64_t recent_bytes; /* about what was written to the devices in the day before they were attached: whole segments */
        struct list drops; /* of struct drops: not yet written down */
        uint64_t drops_serial;
        uint32_t n_drops, n_remembered;
        /* called on the loop */
        void (*on_room)(struct nvme *n, void *arg); /* a write or read that was told AGAIN may go now */
        void (*on_gone)(struct nvme *n, struct space *s, uint32_t shard, const uint8_t key[16], int why,
                        void *arg); /* a record left the catalog */
        int (*pick)(const struct victim_view *v, uint32_t n); /* policy: the segment to recycle, -1: none */
        void (*on_settle)(struct nvme *n, struct space *s, void *arg); /* a space that was kept open for a while may be nothing now */
        bool (*is_needed)(struct nvme *n, struct space *s, const uint8_t key[16], void *arg); /* must not be evicted if it can be helped */
        void *arg;
};

/* Starts nothing. -errno */
int nvme_init(struct nvme *n, const struct nvme_options *o, const struct conf *conf, struct tenants *t, struct queue *q,
              uint64_t max_records);
/* At the end: waits a moment for what is under way. Then the owner collects the queue once more, then calls deinit; what hangs in the kernel is leaked. */
void nvme_close_rings(struct nvme *n);
void nvme_deinit(struct nvme *n);
/* Once a pass: hands operations over, opens segments ahead, recycles, scrubs, takes out what is gone. True: there is more to do now. */
bool nvme_pass(struct nvme *n, uint64_t now_usec);
uint64_t nvme_deadline(const struct nvme *n);
void nvme_expire(struct nvme *n, uint64_t now_usec);
/* Writes footers and flushes, and takes no more writes; nvme_idle() says when that is done. */
void nvme_stop(struct nvme *n);
bool nvme_idle(const struct nvme *n);

/* devices. Opening goes on in the background; how it ended stands in state and detail. */
int nvme_attach(struct nvme *n, const char *path); /* 0; KVT_E_EXISTS: it is there; KVT_E_LIMIT; KVT_E_NO_MEMORY */
int nvme_detach(struct nvme *n, const char *path); /* 0; KVT_E_MISS */
struct nvme_device *nvme_find_device(struct nvme *n, const char *path);
const char *device_state_name(const struct nvme_device *d);
static inline bool nvme_writable(const struct nvme *n) /* some device takes writes now, or will shortly */
{
        for (uint32_t i = 0; i < n->n_devices; i++)
                if (n->devices[i] && (n->devices[i]->state == DEVICE_SERVING || n->devices[i]->state == DEVICE_RECOVERING ||
                                      n->devices[i]->state == DEVICE_OPENING))
                        return true;
        return false;
}

/* The LIVE entry of a part on a device that can be read; POOL_NONE. */
uint32_t nvme_find(const struct nvme *n, const struct space *s, uint32_t shard, const uint8_t key[16]);

/* Room in a log for *w. 0; KVT_E_AGAIN: on_room() will be called; KVT_E_NO_DEVICE; KVT_E_TOO_LARGE; KVT_E_NO_SPACE. */
int nvme_write_begin(struct nvme *n, struct nvme_write *w);
int nvme_write_begin_on(struct nvme_device *d, struct nvme_write *w);
/* The caller filled in planes, page hashes and payload; ok false: it could not, the room is padded. The header is sealed here. Then done(). Never fails. */
void nvme_write_submit(struct nvme *n, struct nvme_write *w, bool ok);

/* Starts reading entry i. 0 or KVT_E_AGAIN (no buffers: on_room()), KVT_E_MISS. The segment is not recycled meanwhile. */
int nvme_read_begin(struct nvme *n, struct nvme_read *r, uint32_t entry);
void nvme_read_end(struct nvme *n, struct nvme_read *r);
/* The header of entry i, if it is in memory: a new reference. Else NULL. */
struct cached_header *nvme_header_at_hand(struct nvme *n, uint32_t entry);
/* The record that r read does not verify (or could not be read): if it is still where it was, it is taken out of service. */
void nvme_quarantine(struct nvme *n, struct nvme_read *r, const struct space *s, uint32_t shard, const uint8_t key[16]);

/* Takes a part out, on the devices too: it does not come back at the next start, nor from a device that is still being recovered. in_flight: it may be being
 * written just now. on_gone() is not called. */
void nvme_drop_part(struct nvme *n, struct space *s, uint32_t shard, const uint8_t key[16], bool in_flight);
/* All parts of a block, none of which is being written. */
void nvme_drop(struct nvme *n, struct space *s, const uint8_t key[16]);
/* A whole space, likewise: what was written up to now. The caller takes its entries out first. */
void nvme_drop_space(struct nvme *n, struct space *s);
void nvme_drop_later(struct nvme *n, struct space *s, uint32_t shard, const uint8_t key[16], uint32_t device);
/* One entry out of the catalog, nothing on the device. why: enum kvt_why. The space is gone if that was all of it and nobody has it open. */
void nvme_forget(struct nvme *n, uint32_t entry, int why);

void nvme_sync_start(struct nvme *n, struct nvme_sync_all *s);
/* Likewise, and what was dropped or replaced before is written down, too: it is not back after a crash. KVT_E_AGAIN, too: a device is being opened. */
void nvme_flush_start(struct nvme *n, struct nvme_sync_all *s);

/* shared by the files of this tier */

/* For a segment that is begun anew: later than all that are known, and in all likelihood than those of devices that are not known yet. */
uint64_t nvme_next_generation(struct nvme *n);
/* Some device is being opened or recovered: it may bring records that nobody knows of yet. */
bool nvme_recovering(const struct nvme *n);
/* What was pushed out a moment ago is still on some device: a crash may bring it back. */
bool nvme_recycling(const struct nvme *n);
/* Some device is out of service, for now or for good: what is dropped meanwhile is remembered, in case that it comes back. */
bool nvme_away(const struct nvme *n);
/* Older records of the part are void when they are recovered. at: n_pages 0: all are older. There is no LIVE entry. */
void nvme_remember_drop(struct nvme *n, struct space *s, uint32_t shard, const uint8_t key[16], struct record_at at);

/* Writes down what was dropped; false: not all could be, and nothing else may be written before. */
bool nvme_write_drops(struct nvme *n);
void nvme_drops_free(struct nvme *n);
/* The device is not served any more, maybe for a while. */
void nvme_drops_leave(struct nvme *n, const struct nvme_device *d);
bool nvme_drops_writable(const struct nvme *n); /* there are some, for a device that serves */
/* Drops of the device are still to be written, of those up to serial. */
bool nvme_drops_wait(const struct nvme *n, const struct nvme_device *d, uint64_t serial);
/* Once a pass: flushes that waited for drops go on. */
void nvme_flushes_settle(struct nvme *n);
struct space *nvme_space_of(const struct nvme *n, const uint8_t digest[16]);
/* A record that becomes (sign 1) or stops being (-1) part of all sums. */
void nvme_account(struct nvme *n, struct space *s, struct record_at at, int sign);

/* device: one operation. bytes at buf, in device.buffers. */
struct nvme_io *device_io(struct nvme_device *d, enum ring_opcode opcode, void *buf, uint64_t offset, uint64_t bytes,
                          void (*done)(struct nvme_io *io, int r, void *arg), void *arg);
void device_fail(struct nvme_device *d, bool readable, const char *format, ...) _printf_(3, 4);
/* A flush failed: what was written since the last good one may be lost, and nothing more can be made durable. */
void device_unflushable(struct nvme_device *d);
void device_close(struct nvme_device *d);
bool device_is_read(const struct nvme_device *d); /* somebody holds what was read from it, or waits for it */
void device_submit_open(struct nvme_device *d);
void device_count_error(struct nvme_device *d, bool write);
/* A write came back with -errno r: a file system without room is no failing device. */
void device_write_failed(struct nvme_device *d, int r);
static inline uint64_t device_page_offset(const struct nvme_device *d, struct record_at at)
{
        return format_segment_offset(&d->sb, at.segment) + (uint64_t)at.page * FORMAT_PAGE_BYTES;
}
static inline uint32_t device_segment_pages(const struct nvme_device *d)
{
        return (uint32_t)(d->sb.segment_bytes / FORMAT_PAGE_BYTES);
}
/* Segments that can be opened: a file system without room has none for those that were never written. */
static inline uint32_t device_usable(const struct nvme_device *d)
{
        return d->full_until_usec > d->nvme->now_usec ? d->n_free - d->n_virgin : d->n_free;
}
/* A file system that became full left too few segments to go round with: they are filled, and that is all. */
static inline bool device_stuck(const struct nvme_device *d)
{
        return d->full_until_usec > d->nvme->now_usec && d->sb.n_segments - d->n_virgin < FORMAT_SEGMENTS_MIN;
}
static inline bool device_writable(const struct nvme_device *d)
{
        return d->state == DEVICE_SERVING && !d->nvme->stopping;
}
static inline bool device_alive(const struct nvme_device *d) /* footers and flushes still make sense */
{
        return d->state == DEVICE_SERVING || d->state == DEVICE_DRAINING;
}
/* The largest record that fits, in pages. */
uint32_t device_record_pages_max(const struct nvme_device *d);

/* log: the write side */
void log_settle(struct nvme_device *d); /* after a write or flush came back: what waits for it goes on */
void log_retry(struct nvme_device *d); /* once a pass: a log that could not be closed for lack of memory */
/* now: something is to be written. Else only what is needed soon is opened. */
void log_open_ahead(struct nvme_device *d, bool now);
void log_free_all(struct nvme_device *d);
/* Takes over entries (scanned, not appended): writes the footer of a segment whose writer died. */
void log_close_scanned(struct nvme_device *d, uint32_t segment, struct footer_entry *entries, uint32_t n_entries, uint32_t end_page);

/* recycle */
void recycle_some(struct nvme_device *d);
bool recycle_sweeps(const struct nvme_device *d); /* it does not wait for anything */
void recycle_free(struct nvme_device *d);

/* recovery, scrub */
void recovery_start(struct nvme_device *d);
void recovery_free(struct nvme_device *d);
bool recovery_kick(struct nvme_device *d); /* true: there is more to do now */
void scrub_some(struct nvme_device *d);
uint64_t scrub_deadline(const struct nvme_device *d);
void scrub_now(struct nvme_device *d);
void scrub_free(struct nvme_device *d);
