/* Counters, one field a line of metrics.def. Owned by the loop thread. */
#pragma once

#include <stdint.h>

struct metrics {
#define METRIC(name, text) uint64_t c_##name;
#include "daemon/metrics.def"
#undef METRIC
};
extern struct metrics metrics;
