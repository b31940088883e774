/* The memory of a daemon, read and damaged from behind its back. */
#pragma once

#include "tests/lib/daemon.h"

/* A descriptor of its memory; the test is skipped where that is not allowed. */
int memory_open(const struct daemon *d);
/* Where a copy with this payload lies in a slab; 0: nowhere. n_header: bytes from its header to the payload. Copies that are gone do not count. */
uint64_t memory_find_copy(const struct daemon *d, int mem, const void *payload, size_t n, uint32_t n_header);
/* One bit of that byte. */
void memory_flip(int mem, uint64_t at);
