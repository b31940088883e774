#include "daemon/policy/admit.h"

static const uint64_t day_usec = 86400ull * 1000000;

/* Brings the bucket to now. Exact: what is less than a byte is carried over, however often this is called. */
static void refill(struct write_budget *b, uint64_t now_usec)
{
        if (now_usec <= b->last_usec)
                return;
        if (now_usec >= b->over_until_usec)
                b->over_bytes = 0;
        if (b->per_day_bytes) {
                __uint128_t sum = (__uint128_t)b->per_day_bytes * (now_usec - b->last_usec) + b->fraction, bytes = sum / day_usec;
                if (bytes >= b->used_bytes) {
                        b->used_bytes = 0;
                        b->fraction = 0;
                } else {
                        b->used_bytes -= (uint64_t)bytes;
                        b->fraction = (uint64_t)(sum % day_usec);
                }
        }
        b->last_usec = now_usec;
}

void budget_init(struct write_budget *b, uint64_t per_day_bytes, uint64_t already_bytes, uint64_t now_usec)
{
        *b = (struct write_budget){.used_bytes = already_bytes, .last_usec = now_usec};
        budget_set(b, per_day_bytes, now_usec);
}

void budget_set(struct write_budget *b, uint64_t per_day_bytes, uint64_t now_usec)
{
        refill(b, now_usec);
        if (per_day_bytes == b->per_day_bytes)
                return;
        b->per_day_bytes = per_day_bytes;
        b->fraction = 0;
        if (!per_day_bytes)
                return;
        uint64_t used = b->used_bytes > UINT64_MAX - b->over_bytes ? UINT64_MAX : b->used_bytes + b->over_bytes;
        b->used_bytes = MIN(used, per_day_bytes);
        if (used - b->used_bytes > b->over_bytes) /* more than was aside before: its day begins now */
                b->over_until_usec = b->last_usec > UINT64_MAX - day_usec ? UINT64_MAX : b->last_usec + day_usec;
        b->over_bytes = used - b->used_bytes;
}

uint64_t budget_left(struct write_budget *b, uint64_t now_usec)
{
        refill(b, now_usec);
        return b->per_day_bytes ? b->per_day_bytes - b->used_bytes : UINT64_MAX;
}

bool budget_take(struct write_budget *b, uint64_t bytes, uint64_t now_usec)
{
        if (bytes > budget_left(b, now_usec))
                return false;
        if (b->per_day_bytes)
                b->used_bytes += bytes;
        return true;
}

void budget_give_back(struct write_budget *b, uint64_t bytes)
{
        if (b->per_day_bytes)
                b->used_bytes -= MIN(bytes, b->used_bytes);
}

bool admit_block(uint32_t hits, uint32_t min_hits, bool was_ghost, bool durable)
{
        return durable || was_ghost || hits >= min_hits;
}

int admit_pick_segment(const struct victim_view *v, uint32_t n)
{
        int emptiest = -1, oldest = -1; /* of those that are less than a quarter full; of all */

        for (uint32_t i = 0; i < n; i++) {
                if (v[i].busy)
                        continue;
                if (oldest < 0 || v[i].generation < v[oldest].generation)
                        oldest = (int)i;
                if (v[i].used_pages && 4ull * v[i].used_pages >= v[i].capacity_pages)
                        continue;
                if (emptiest < 0 || v[i].used_pages < v[emptiest].used_pages ||
                    (v[i].used_pages == v[emptiest].used_pages && v[i].generation < v[emptiest].generation))
                        emptiest = (int)i;
        }
        return emptiest >= 0 ? emptiest : oldest;
}
