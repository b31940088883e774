#pragma once
#include "daemon/store/tier_nvme.h"
struct write_budget { uint64_t per_day_bytes, tokens, last_usec; };
void budget_init(struct write_budget *b, uint64_t per_day_bytes, uint64_t written_bytes, uint64_t now_usec);
void budget_set(struct write_budget *b, uint64_t per_day_bytes, uint64_t now_usec);
void budget_charge(struct write_budget *b, uint64_t bytes, uint64_t now_usec);
bool budget_allows(struct write_budget *b, uint64_t bytes, uint64_t now_usec);
bool admit_block(uint32_t hits, uint32_t min_hits, bool was_ghost, bool durable);
int admit_pick_segment(const struct victim_view *v, uint32_t n);
