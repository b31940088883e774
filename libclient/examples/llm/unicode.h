/* Character classes and UTF-8, for the pre-tokenizer. */
#pragma once

#include <stddef.h>
#include <stdint.h>

enum unicode_class { UNICODE_OTHER, UNICODE_LETTER, UNICODE_NUMBER, UNICODE_SPACE };

enum unicode_class unicode_class(uint32_t c);
/* Takes one character off s (n > 0 bytes): returns its length. A byte that is no valid UTF-8 counts as U+FFFD of length 1. */
size_t unicode_next(const char *s, size_t n, uint32_t *ret);
