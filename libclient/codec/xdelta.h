/* What a caller of xdelta's decoder needs to know: which block's bytes it was made against. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { XDELTA_KEY_BYTES = 16 };

/* The key that stands in a payload of codec xdelta. False: the payload is too short to be one. */
bool xdelta_base_key(const void *payload, size_t n, uint8_t ret[XDELTA_KEY_BYTES]);
