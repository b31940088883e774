/* Formatting and parsing for kvtierctl: see format.h. */
#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "libclient/ctl/format.h"

struct formatted format_bytes(uint64_t n_bytes)
{
        static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
        struct formatted f;
        double value = (double)n_bytes;
        unsigned i = 0;

        /* 1023.96 would be printed as 1024.0 */
        while (value >= 1023.95 && i < 6) {
                value /= 1024;
                i++;
        }
        if (i == 0)
                snprintf(f.text, sizeof f.text, "%u B", (unsigned)n_bytes);
        else
                snprintf(f.text, sizeof f.text, "%.1f %s", value, units[i]);
        return f;
}

struct formatted format_duration(uint64_t usec)
{
        struct formatted f;
        uint64_t sec = usec / 1000000;

        if (usec < 1000)
                snprintf(f.text, sizeof f.text, "%u us", (unsigned)usec);
        else if (usec < 999950)
                snprintf(f.text, sizeof f.text, "%.1f ms", (double)usec / 1e3);
        else if (usec < 59950000)
                snprintf(f.text, sizeof f.text, "%.1f s", (double)usec / 1e6);
        else if (sec < 3600)
                snprintf(f.text, sizeof f.text, "%um %02us", (unsigned)(sec / 60), (unsigned)(sec % 60));
        else if (sec < 86400)
                snprintf(f.text, sizeof f.text, "%uh %02um", (unsigned)(sec / 3600), (unsigned)(sec / 60 % 60));
        else
                snprintf(f.text, sizeof f.text, "%llud %02uh", (unsigned long long)(sec / 86400), (unsigned)(sec / 3600 % 24));
        return f;
}

struct formatted format_age(uint64_t sec)
{
        struct formatted f;

        if (sec >= 60)
                return format_duration(sec < UINT64_MAX / 1000000 ? sec * 1000000 : UINT64_MAX);
        snprintf(f.text, sizeof f.text, "%u s", (unsigned)sec);
        return f;
}

struct formatted format_percent(double part, double whole)
{
        struct formatted f;

        if (whole > 0)
                snprintf(f.text, sizeof f.text, "%.1f %%", 100 * part / whole);
        else
                snprintf(f.text, sizeof f.text, "-");
        return f;
}

struct formatted format_bar(double part, double whole, int width)
{
        struct formatted f;
        int room, full;

        width = width < 2 ? 2 : width > 80 ? 80 : width;
        room = width - 2;
        full = whole > 0 ? (int)(room * (part < whole ? part : whole) / whole + .5) : 0;
        if (full == 0 && part > 0 && whole > 0 && room > 0)
                full = 1;
        f.text[0] = '[';
        memset(f.text + 1, '#', (size_t)full);
        memset(f.text + 1 + full, '.', (size_t)(room - full));
        f.text[width - 1] = ']';
        f.text[width] = 0;
        return f;
}

struct formatted format_rate(double per_sec)
{
        struct formatted f;

        if (per_sec < .05)
                snprintf(f.text, sizeof f.text, "0");
        else if (per_sec < 9.95)
                snprintf(f.text, sizeof f.text, "%.1f", per_sec);
        else if (per_sec < 9999.5)
                snprintf(f.text, sizeof f.text, "%.0f", per_sec);
        else if (per_sec < 999500)
                snprintf(f.text, sizeof f.text, "%.0fk", per_sec / 1e3);
        else if (per_sec < 999.5e6)
                snprintf(f.text, sizeof f.text, "%.*fM", per_sec < 9.95e6, per_sec / 1e6);
        else
                snprintf(f.text, sizeof f.text, "%.1fG", per_sec / 1e9);
        return f;
}

struct formatted format_hex(const uint8_t *p, size_t n_bytes)
{
        static const char digits[] = "0123456789abcdef";
        struct formatted f;
        size_t max = (sizeof f.text - 1) / 2;

        n_bytes = n_bytes < max ? n_bytes : max;
        for (size_t i = 0; i < n_bytes; i++) {
                f.text[2 * i] = digits[p[i] >> 4];
                f.text[2 * i + 1] = digits[p[i] & 15];
        }
        f.text[2 * n_bytes] = 0;
        return f;
}

struct formatted format_key(const uint8_t key[16])
{
        return format_hex(key, 16);
}

size_t format_width(const char *s)
{
        size_t n = 0;

        for (; *s; s++)
                n += ((unsigned char)*s & 0xc0) != 0x80;
        return n;
}

/* Length of the UTF-8 sequence at p (RFC 3629: shortest form, no surrogates), or 0. p is terminated by a zero byte. */
static unsigned sequence_length(const unsigned char *p, uint32_t *ret_code)
{
        static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
        unsigned n = *p < 0x80 ? 1 : *p >= 0xc2 && *p < 0xe0 ? 2 : (*p & 0xf0) == 0xe0 ? 3 : *p >= 0xf0 && *p < 0xf5 ? 4 : 0;
        uint32_t code = n == 1 ? *p : n ? *p & (0x7fu >> n) : 0;

        for (unsigned i = 1; i < n; i++) {
                if ((p[i] & 0xc0) != 0x80)
                        return 0;
                code = code << 6 | (p[i] & 0x3f);
        }
        if (n == 0 || code < least[n] || code > 0x10ffff || (code >= 0xd800 && code < 0xe000))
                return 0;
        *ret_code = code;
        return n;
}

char *format_clean(const char *s)
{
        const unsigned char *p = (const unsigned char *)s;
        size_t n = strlen(s), at = 0;
        char *out = malloc(n + 1);

        if (!out)
                return NULL;
        while (*p) {
                uint32_t code = 0;
                unsigned length = sequence_length(p, &code);

                /* C0, DEL and C1 could drive a terminal */
                if (length == 0 || code < 0x20 || (code >= 0x7f && code < 0xa0)) {
                        out[at++] = '?';
                        p += length ? length : 1;
                        continue;
                }
                memcpy(out + at, p, length);
                at += length;
                p += length;
        }
        out[at] = 0;
        return out;
}

bool parse_number(const char *s, uint64_t min, uint64_t max, uint64_t *ret)
{
        unsigned long long value;
        char *end;

        if (!isdigit((unsigned char)*s))
                return false;
        errno = 0;
        value = strtoull(s, &end, 10);
        if (errno || *end || value < min || value > max)
                return false;
        *ret = value;
        return true;
}

bool parse_bytes(const char *s, uint64_t *ret)
{
        static const char units[] = "KMGT";
        unsigned long long value;
        const char *unit;
        char *end;

        if (!isdigit((unsigned char)*s))
                return false;
        errno = 0;
        value = strtoull(s, &end, 10);
        unit = *end ? strchr(units, toupper((unsigned char)*end)) : NULL;
        if (errno || (*end && (!unit || end[1])) || __builtin_mul_overflow(value, unit ? 1024ull << 10 * (unit - units) : 1, &value) ||
            value == UINT64_MAX)
                return false;
        *ret = value;
        return true;
}

bool parse_range(const char *s, uint64_t *ret_first, uint64_t *ret_n)
{
        const char *colon = strchr(s, ':');
        char first[24];
        uint64_t n;

        if (!colon || (size_t)(colon - s) >= sizeof first)
                return false;
        memcpy(first, s, (size_t)(colon - s));
        first[colon - s] = 0;
        if (!parse_number(colon + 1, 1, UINT64_MAX, &n) || !parse_number(first, 0, UINT64_MAX, ret_first))
                return false;
        *ret_n = n;
        return true;
}

bool parse_seconds(const char *s, uint64_t *ret_usec)
{
        double value;
        char *end;

        if (!isdigit((unsigned char)*s) && *s != '.')
                return false;
        if (strspn(s, "0123456789.") != strlen(s))
                return false;
        value = strtod(s, &end);
        if (*end || end == s || !(value <= 366. * 86400))
                return false;
        *ret_usec = (uint64_t)(value * 1e6 + .5);
        return true;
}

static int digit_value(char c)
{
        return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

bool parse_hex(const char *s, size_t n_digits, uint8_t *ret, size_t cap, size_t *ret_n_bytes)
{
        if (n_digits % 2 || n_digits / 2 > cap)
                return false;
        for (size_t i = 0; i < n_digits; i++)
                if (digit_value(s[i]) < 0)
                        return false;
        for (size_t i = 0; i < n_digits / 2; i++)
                ret[i] = (uint8_t)(digit_value(s[2 * i]) << 4 | digit_value(s[2 * i + 1]));
        *ret_n_bytes = n_digits / 2;
        return true;
}

bool parse_key(const char *s, uint8_t ret[16])
{
        size_t n;

        return strlen(s) == 32 && parse_hex(s, 32, ret, 16, &n);
}

int parse_tokens(const char *s, size_t n_bytes, uint32_t **ret, size_t *ret_n, size_t *ret_at)
{
        uint32_t *tokens = NULL;
        size_t n = 0, cap = 0, at = 0;
        bool comma = true; /* a number may stand here without a divider before it */

        while (at < n_bytes) {
                uint64_t value = 0;
                size_t start = at;

                if (isspace((unsigned char)s[at])) {
                        at++;
                        continue;
                }
                if (s[at] == ',' && !comma) {
                        comma = true;
                        at++;
                        continue;
                }
                while (at < n_bytes && isdigit((unsigned char)s[at]) && value <= UINT32_MAX)
                        value = value * 10 + (uint64_t)(s[at++] - '0');
                if (at == start || value > UINT32_MAX || (at < n_bytes && s[at] != ',' && !isspace((unsigned char)s[at]))) {
                        free(tokens);
                        *ret_at = start;
                        return -EINVAL;
                }
                if (n == cap) {
                        size_t larger = cap ? cap * 2 : 1024;
                        uint32_t *p = reallocarray(tokens, larger, sizeof *p);

                        if (!p) {
                                free(tokens);
                                return -ENOMEM;
                        }
                        tokens = p;
                        cap = larger;
                }
                tokens[n++] = (uint32_t)value;
                comma = false;
        }
        if (comma && n) { /* "1,2," */
                free(tokens);
                *ret_at = n_bytes;
                return -EINVAL;
        }
        *ret = tokens;
        *ret_n = n;
        return 0;
}
