/* Recovery's own: see recovery.c. */
#pragma once

#include "daemon/store/tier_nvme.h"

enum { WINDOW = 16, TAIL_BYTES = 16384, SCAN_BYTES = 4 << 20, SPACES_MAX = 4096 };

enum slot_state { SLOT_IDLE, SLOT_READING, SLOT_READY };
struct slot { /* a footer that is read ahead */
        struct recovery *recovery;
        uint32_t segment;
        enum slot_state state;
        uint8_t *buf;
        uint32_t n_bytes;
        int result;
};

struct known_space { /* by digest */
        uint8_t digest[16];
        struct space *space; /* kept open until the end; NULL: its descriptor is no good */
        bool refused; /* no descriptor of it can be taken; else the one that was looked at cannot be read, and another segment has one, too */
        uint32_t tried; /* segment whose descriptor was looked at last */
        uint64_t purged_generation; /* records before this place are void */
        uint32_t purged_page;
};

struct recovery {
        struct nvme_device *device;
        uint64_t started_usec;
        bool dead; /* freed when the last operation comes back */
        uint32_t n_ios;
        /* headers */
        uint32_t i_header, n_headers_pending, n_unreadable;
        uint32_t *order; /* owned: segments in use, newest first; behind them those of which something could not be understood at first */
        uint32_t n_first, n_order, i_ahead, i_next;
        struct slot slots[WINDOW];
        struct known_space *spaces; /* owned */
        uint32_t n_spaces, max_spaces;
        bool spaces_full; /* no room for more: their records stay unknown */
        uint32_t purge_cursor; /* all is read: entry of the catalog looked at last */
        /* the segment at hand */
        uint8_t *buf; /* a descriptor, or a window of a scan */
        uint32_t n_buf;
        bool busy;
        uint32_t scan_page; /* where the window starts */
        uint32_t want_bytes;
        struct footer_entry *entries; /* owned; of a scan */
        uint32_t n_entries, max_entries;
};

/* shared by the files of recovery */

/* After a crash some is to be expected: what was being written then. */
void recovery_tell_damage(const struct nvme_device *d, uint64_t offset, const char *what);
/* Gives a buffer back, unless the kernel may still have it. */
void recovery_give(struct recovery *r, uint8_t **buf, uint32_t n, int result);
/* Into r->buf. False: tried again at the next step. */
bool recovery_read_buf(struct recovery *r, uint64_t offset, uint32_t bytes, void (*done)(struct nvme_io *, int, void *));
/* A read for the segment at hand came back. False: that was the end of it all, or is to be. A read that failed gave its buffer back already. */
bool recovery_came_back(struct recovery *r, int result);
void recovery_segment_finished(struct recovery *r);
/* As far as it goes without waiting. */
void recovery_step(struct recovery *r);
void recovery_scan_some(struct recovery *r, struct slot *s);

/* NULL: none of this digest was seen yet */
struct known_space *recovery_space(struct recovery *r, const uint8_t digest[16]);
/* The descriptor that a segment has of it is to be read. */
bool recovery_wants_space(struct recovery *r, const uint8_t digest[16], uint32_t segment);
/* payload: the descriptor's bytes, checked against the record's hash; n 0: unreadable. */
void recovery_learn_space(struct recovery *r, const uint8_t digest[16], uint32_t segment, const void *payload, size_t n);
/* Is what lies at a later than (generation, page), in the order of writing? */
bool recovery_later(const struct nvme *n, struct record_at a, uint64_t generation, uint32_t page);
void recovery_block(struct recovery *r, struct known_space *k, const struct footer_entry *e, uint32_t segment, uint64_t generation);
/* The space was purged there, or nobody knows what was dropped there. */
void recovery_void_older(struct known_space *k, uint64_t generation, uint32_t page);
void recovery_drops(struct recovery *r, struct known_space *k, const struct drop_entry *drops, size_t n_drops, uint32_t segment,
                    uint64_t generation, uint32_t page);
