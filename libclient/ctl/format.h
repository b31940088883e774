/* Numbers, keys and foreign text as people read and write them. Pure functions.
 *
 * Text is returned by value: use it in the same expression, as in printf("%s", format_bytes(n).text). */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct formatted {
        char text[96];
};

struct formatted format_bytes(uint64_t n_bytes); /* 512 B, 1.5 KiB, 64.0 MiB */
struct formatted format_duration(uint64_t usec); /* 850 us, 12.3 ms, 4.2 s, 3m 12s, 2h 05m, 3d 04h */
struct formatted format_age(uint64_t sec); /* whole seconds: 0 s, 59 s, then as above */
struct formatted format_percent(double part, double whole); /* 38.2 %; - when whole is 0 */
struct formatted format_bar(double part, double whole, int width); /* [####......], width 2 to 80 with its brackets */
struct formatted format_rate(double per_sec); /* 0, 0.3, 12, 45k, 1.2M */
struct formatted format_key(const uint8_t key[16]);
struct formatted format_hex(const uint8_t *p, size_t n_bytes); /* at most 47 bytes */

/* Columns a UTF-8 text takes on a terminal, one per code point. */
size_t format_width(const char *s);
/* A copy of foreign text that is valid UTF-8 without control characters (each replaced by '?'). NULL: out of memory. */
char *format_clean(const char *s);

/* The parsers take the whole text or nothing; *ret is untouched when they return false. */
bool parse_number(const char *s, uint64_t min, uint64_t max, uint64_t *ret);
bool parse_bytes(const char *s, uint64_t *ret); /* 4096, 64M: K, M, G, T are powers of 1024; less than UINT64_MAX */
bool parse_range(const char *s, uint64_t *ret_first, uint64_t *ret_n); /* 4:2; n is at least 1 */
bool parse_seconds(const char *s, uint64_t *ret_usec); /* 1, 0.25; at most a year */
bool parse_hex(const char *s, size_t n_digits, uint8_t *ret, size_t cap, size_t *ret_n_bytes);
bool parse_key(const char *s, uint8_t ret[16]); /* 32 digits */
/* Token ids divided by commas or white space. Returns 0 with *ret (free it) and *ret_n, -EINVAL (*ret_at: where), or -ENOMEM. */
int parse_tokens(const char *s, size_t n_bytes, uint32_t **ret, size_t *ret_n, size_t *ret_at);
