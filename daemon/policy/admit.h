/* What is written to NVMe, how much a day, and which segment goes for it. Pure: numbers in, a decision out; times are of a monotonic clock. */
#pragma once

#include "daemon/store/tier_nvme.h"

/* The write budget: a bucket that holds a day's bytes and is refilled as fast as a day brings them, told by what is missing in it.
 *
 * used_bytes <= per_day_bytes while there is a limit. What was used beyond a limit that was lowered since is kept aside for a day: raising it again
 * brings nothing that was used already. While there is no limit nothing is counted. A clock that goes back stands still until it is where it was. */
struct write_budget {
        uint64_t per_day_bytes; /* 0: no limit */
        uint64_t used_bytes;
        uint64_t fraction; /* refilled already of the next byte, in parts of a day's usec */
        uint64_t last_usec;
        uint64_t over_bytes; /* used, but more than the limit of now */
        uint64_t over_until_usec;
};

/* already_bytes: written in the last day, before this start. */
void budget_init(struct write_budget *b, uint64_t per_day_bytes, uint64_t already_bytes, uint64_t now_usec);
/* Another limit from now on; what was used stays used. */
void budget_set(struct write_budget *b, uint64_t per_day_bytes, uint64_t now_usec);
/* All of it or, when it is more than is left, nothing. */
bool budget_take(struct write_budget *b, uint64_t bytes, uint64_t now_usec);
/* Bytes that were taken and not written after all. */
void budget_give_back(struct write_budget *b, uint64_t bytes);
/* UINT64_MAX: no limit. */
uint64_t budget_left(struct write_budget *b, uint64_t now_usec);

/* Whether a block is worth writing: it was used min_hits times since it came, or came back after an eviction, or a client wants it durable. */
bool admit_block(uint32_t hits, uint32_t min_hits, bool was_ghost, bool durable);

/* The segment to recycle: one without live pages; else the one with the fewest if that is less than a quarter of it (little is lost or written
 * again); else the oldest. Among equals the oldest. -1: all are busy, or there is none. O(n). */
int admit_pick_segment(const struct victim_view *v, uint32_t n);
