/* A device's latencies: histograms whose bucket i counts operations that took less than 2^(i+3) usec, the last one all that took longer. The
 * counts are foreign, as is how many there are. Pure functions. */
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <jansson.h>

#include "proto/messages.h"

/* Where bucket i ends, in usec. */
uint64_t latency_bound(size_t i);
/* The end of the bucket in which that many percent of all operations are reached; 0: there were none. */
uint64_t latency_percentile(const uint64_t *counts, size_t n, unsigned percent);
/* A device's row: the message's fields, and used_ratio, read_p50_usec, read_p99_usec, write_p50_usec, write_p99_usec (null: there were none). */
json_t *latency_json(const Kvtier__DeviceEntry *d);
/* Both histograms of such a row, side by side, from the first to the last bucket that is not empty. */
void latency_print(FILE *f, const json_t *device);
