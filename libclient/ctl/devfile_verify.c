/* devfile_verify(): reads a device or file itself, without a daemon. See kvtier-format(7).
 *
 *     superblocks --> each segment: header --> footer, if it verifies --> each record that it lists
 *                                          `-> records one after the other, up to the first that does not verify
 *
 * What a crash may leave behind is no problem: a segment without a footer, whose last record is torn. It is one when whole records lie behind
 * that: then something was lost that had been there. All bytes are foreign; a record is read only as far as its checked header says. */
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "libclient/codec/format.h"
#include "libclient/ctl/devfile.h"
#include "libclient/ctl/format.h"
#include "libclient/ctl/table.h"

enum { LISTED_MAX = 10000 }; /* problems in JSON; all are counted */

struct scan {
        struct ctl *x;
        struct devfile d;
        struct superblock sb;
        uint8_t *bytes; /* owned: what was read last */
        uint64_t n_bytes; /* room in it */
        uint8_t (*spaces)[16]; /* owned: digests of those described in this segment so far */
        size_t n_spaces, cap_spaces;
        bool no_memory;
        json_t *problems; /* NULL: they are printed */
        uint64_t n_problems, n_segments, n_records, n_record_bytes, n_torn;
};

static void problem(struct scan *s, uint64_t offset, const char *format, ...) __attribute__((format(printf, 3, 4)));
static void problem(struct scan *s, uint64_t offset, const char *format, ...)
{
        char text[256];
        va_list args;

        va_start(args, format);
        vsnprintf(text, sizeof text, format, args);
        va_end(args);
        s->n_problems++;
        if (!s->problems)
                printf("byte %llu: %s\n", (unsigned long long)offset, text);
        else if (s->n_problems <= LISTED_MAX)
                json_array_append_new(s->problems, json_pack("{s:I, s:o}", "offset", (json_int_t)offset, "text", json_clean(text)));
}

static const char *reason(int r)
{
        switch (r) {
        case -EBADMSG:
                return "it does not match its checksum";
        case -EPROTONOSUPPORT:
                return "its version is one that this program does not know";
        case -EPROTO:
                return "it matches its checksum, but says what cannot be";
        case -ENODATA:
                return "the file ends before it does";
        default:
                return strerror(-r);
        }
}

/* Reads into s->bytes: 0, -ENODATA (there is less), -ENOMEM, or -errno. */
static int read_bytes(struct scan *s, uint64_t offset, uint64_t n)
{
        uint64_t at = 0;

        if (n > s->n_bytes) {
                uint8_t *p = aligned_alloc(FORMAT_PAGE_BYTES, n);

                if (!p) {
                        s->no_memory = true;
                        return -ENOMEM;
                }
                free(s->bytes);
                s->bytes = p;
                s->n_bytes = n;
        }
        while (at < n) {
                ssize_t r = pread(s->d.fd, s->bytes + at, n - at, (off_t)(offset + at));

                if (r < 0 && errno == EINTR)
                        continue;
                if (r <= 0)
                        return r ? -errno : -ENODATA;
                at += (uint64_t)r;
        }
        return 0;
}

static bool is_zero(const uint8_t *p, size_t n)
{
        return !*p && memcmp(p, p + 1, n - 1) == 0;
}

/* superblocks */

/* Whether one of the two can be used: it is in s->sb then. */
static bool scan_superblocks(struct scan *s)
{
        static const uint64_t offsets[] = {0, FORMAT_SUPERBLOCK_COPY};
        struct superblock found[2];
        int r[2];

        for (int i = 0; i < 2; i++) {
                r[i] = read_bytes(s, offsets[i], FORMAT_PAGE_BYTES);
                r[i] = r[i] ? r[i] : superblock_decode(s->bytes, &found[i]);
                if (r[i] == -ENOMSG)
                        problem(s, offsets[i], "no superblock: something else is there");
                else if (r[i] == -ENODATA)
                        problem(s, offsets[i], "no superblock: nothing is there");
                else if (r[i])
                        problem(s, offsets[i], "the superblock: %s", reason(r[i]));
        }
        if (r[0] && r[1])
                return false;
        if (!r[0] && !r[1] && memcmp(&found[0], &found[1], sizeof found[0]) != 0)
                problem(s, offsets[1], "the second superblock is not that of the first");
        s->sb = found[r[0] ? 1 : 0];
        return true;
}

/* records */

static uint64_t offset_of(const struct scan *s, const struct place *at)
{
        return format_segment_offset(&s->sb, at->segment) + (uint64_t)at->page * FORMAT_PAGE_BYTES;
}

static uint32_t segment_pages(const struct scan *s)
{
        return (uint32_t)(s->sb.segment_bytes / FORMAT_PAGE_BYTES);
}

/* Reads a whole record, header and payload, into s->bytes. *ret_part says which part an error is about. */
static int read_record(struct scan *s, const struct place *at, const char **ret_part)
{
        uint32_t max_pages = segment_pages(s) - at->page, header_pages;
        uint64_t n = FORMAT_PAGE_BYTES;
        const struct record_header *h;
        int r;

        *ret_part = "header";
        r = read_bytes(s, offset_of(s, at), n);
        r = r ? r : record_header_check((const void *)s->bytes, n, at, max_pages);
        if (r == -EAGAIN) {
                header_pages = ((const struct record_header *)(const void *)s->bytes)->header_pages;
                n = (uint64_t)header_pages * FORMAT_PAGE_BYTES;
                r = header_pages > 1 && header_pages <= max_pages ? read_bytes(s, offset_of(s, at), n) : -EPROTO;
                r = r ? r : record_header_check((const void *)s->bytes, n, at, max_pages);
        }
        if (r)
                return r == -EAGAIN ? -EPROTO : r;
        h = (const void *)s->bytes;
        if (h->type == RECORD_PAD) /* what lies in it does not count */
                return 0;
        *ret_part = "payload";
        r = read_bytes(s, offset_of(s, at), (uint64_t)h->n_pages * FORMAT_PAGE_BYTES);
        if (r)
                return r;
        *ret_part = "header"; /* read again, maybe from a device that does not give the same bytes twice */
        r = record_header_check((const void *)s->bytes, s->n_bytes, at, max_pages);
        if (r)
                return r;
        *ret_part = "payload";
        return record_payload_check((const void *)s->bytes, record_payload((void *)s->bytes));
}

static bool knows_space(const struct scan *s, const uint8_t digest[16])
{
        for (size_t i = s->n_spaces; i-- > 0;)
                if (memcmp(s->spaces[i], digest, 16) == 0)
                        return true;
        return false;
}

static void learn_space(struct scan *s, const uint8_t digest[16])
{
        if (knows_space(s, digest))
                return;
        if (s->n_spaces == s->cap_spaces) {
                size_t cap = s->cap_spaces ? 2 * s->cap_spaces : 16;
                void *p = reallocarray(s->spaces, cap, sizeof *s->spaces);

                if (!p) {
                        s->no_memory = true;
                        return;
                }
                s->spaces = p;
                s->cap_spaces = cap;
        }
        memcpy(s->spaces[s->n_spaces++], digest, 16);
}

/* What a record that verifies says, beside what stood before it. The record is in s->bytes. */
static void scan_contents(struct scan *s, const struct place *at)
{
        struct record_header *h = (void *)s->bytes;
        const uint8_t *payload = record_payload(h);
        const uint32_t *hashes = record_page_hashes(h);

        s->n_records++;
        s->n_record_bytes += (uint64_t)h->n_pages * FORMAT_PAGE_BYTES;
        switch (h->type) {
        case RECORD_SPACE: {
                struct space_descriptor d;
                int r = space_descriptor_decode(payload, h->stored_bytes, &d);

                learn_space(s, h->key);
                if (r)
                        problem(s, offset_of(s, at), "a space's description: %s", reason(r));
                else
                        space_descriptor_deinit(&d);
                break;
        }
        case RECORD_BLOCK:
                for (uint32_t i = 0; i < h->n_page_hashes; i++)
                        if (record_page_hash(payload + (uint64_t)i * FORMAT_PAGE_BYTES, i) != hashes[i])
                                problem(s, offset_of(s, at) + ((uint64_t)h->header_pages + i) * FORMAT_PAGE_BYTES,
                                        "block %s: page %u of its payload does not match its checksum", format_key(h->key).text, i);
                /* fall through */
        case RECORD_DROP:
                if (!knows_space(s, h->space))
                        problem(s, offset_of(s, at), "a record of a space that this segment does not describe before it");
                break;
        }
}

/* segments */

static bool entry_agrees(const struct footer_entry *e, const struct record_header *h)
{
        return e->type == h->type && e->codec == h->codec && e->shard == h->shard && e->n_shards == h->n_shards && e->flags == h->flags &&
               e->n_pages == h->n_pages && e->raw_bytes == h->raw_bytes && memcmp(&e->max_rel_l2, &h->max_rel_l2, sizeof(float)) == 0 &&
               memcmp(e->key, h->key, 16) == 0 && memcmp(e->parent, h->parent, 16) == 0;
}

/* All that a footer lists. It is a footer of the segment's present life that verifies. */
static void scan_listed(struct scan *s, struct place at, const struct footer_entry *entries, uint32_t n)
{
        const char *part;

        for (uint32_t i = 0; i < n && !s->no_memory; i++) {
                int r;

                at.page = entries[i].page;
                r = read_record(s, &at, &part);
                if (r && entries[i].type == RECORD_PAD)
                        continue; /* a write that failed may have left anything */
                if (r)
                        problem(s, offset_of(s, &at), "the %s of a record (key %s): %s", part, format_key(entries[i].key).text, reason(r));
                else if (!entry_agrees(&entries[i], (const void *)s->bytes))
                        problem(s, offset_of(s, &at), "the footer has another record here than there is");
                else
                        scan_contents(s, &at);
        }
}

/* Records one behind the other, without a footer. */
static void scan_unlisted(struct scan *s, struct place at)
{
        uint32_t n_pages = segment_pages(s), torn;
        const struct record_header *h;
        const char *part, *unused;
        uint64_t n_behind = 0;
        bool begun;
        int r = 0;

        for (at.page = 1; at.page < n_pages && !s->no_memory; at.page += h->n_pages) {
                r = read_record(s, &at, &part);
                if (r)
                        break;
                scan_contents(s, &at);
                h = (const void *)s->bytes;
        }
        if (at.page >= n_pages || s->no_memory)
                return;
        torn = at.page;
        /* was there going to be a record of this life? */
        h = (const void *)s->bytes;
        begun = read_bytes(s, offset_of(s, &at), FORMAT_PAGE_BYTES) == 0 && memcmp(h->magic, "kvtR", 4) == 0 &&
                h->generation == at.generation && h->segment == at.segment;
        while (++at.page < n_pages && !s->no_memory) {
                if (read_record(s, &at, &unused))
                        continue;
                n_behind++;
                at.page += ((const struct record_header *)(const void *)s->bytes)->n_pages - 1;
        }
        at.page = torn;
        if (n_behind)
                problem(s, offset_of(s, &at), "the %s of a record: %s; %llu whole record%s behind it", part, reason(r),
                        (unsigned long long)n_behind, n_behind == 1 ? " lies" : "s lie");
        else if (r != -EBADMSG && r != -EPROTONOSUPPORT && r != -EPROTO)
                problem(s, offset_of(s, &at), "cannot read: %s", reason(r));
        else
                s->n_torn += begun;
}

static void scan_segment(struct scan *s, uint32_t segment)
{
        struct place at = {.uuid = s->sb.uuid, .segment = segment};
        uint64_t start = offset_of(s, &at), end = start + s->sb.segment_bytes, n = 0;
        struct footer_entry *footer;
        struct segment_header header;
        struct footer_trailer t;
        int r;

        r = read_bytes(s, start, FORMAT_PAGE_BYTES);
        if (!r && is_zero(s->bytes, FORMAT_PAGE_BYTES))
                return; /* never used */
        r = r ? r : segment_header_decode(s->bytes, &at, &header);
        if (r) {
                problem(s, start, "the header of segment %u: %s", segment, reason(r));
                return;
        }
        if (!header.generation)
                return;
        at.generation = header.generation;
        s->n_segments++;
        s->n_spaces = 0;
        r = read_bytes(s, end - FORMAT_PAGE_BYTES, FORMAT_PAGE_BYTES);
        r = r ? r : footer_peek(s->bytes + FORMAT_PAGE_BYTES - sizeof t, &at, s->sb.segment_bytes, &t, &n);
        if (r == -EBADMSG) { /* none of this life */
                scan_unlisted(s, at);
                return;
        }
        footer = r ? NULL : malloc(n);
        if (!r && !footer)
                s->no_memory = true;
        if (footer) {
                r = read_bytes(s, end - n, n);
                if (!r)
                        memcpy(footer, s->bytes, n); /* s->bytes is for the records */
                r = r ? r : footer_check(footer, n, &at, s->sb.segment_bytes);
        }
        if (footer && !r) {
                memcpy(&t, (uint8_t *)footer + n - sizeof t, sizeof t); /* what was checked is what counts */
                scan_listed(s, at, footer, t.n_entries);
        } else if (!s->no_memory) {
                problem(s, end - (n ? n : sizeof t), "the footer of segment %u: %s", segment, reason(r));
                scan_unlisted(s, at);
        }
        free(footer);
}

static void scan_segments(struct scan *s)
{
        uint64_t n_fit = format_n_segments(s->d.bytes, s->sb.segment_bytes);
        uint32_t n = (uint32_t)(s->sb.n_segments < n_fit ? s->sb.n_segments : n_fit);

        if (n_fit < s->sb.n_segments)
                problem(s, s->d.bytes, "the end is here, and %llu of %llu segments lie behind it",
                        (unsigned long long)(s->sb.n_segments - n_fit), (unsigned long long)s->sb.n_segments);
        for (uint32_t i = 0; i < n && !s->no_memory; i++)
                scan_segment(s, i);
}

static int conclude(struct scan *s)
{
        int code = EXIT_OK;

        if (s->problems) {
                code = ctl_print_json(s->x,
                                      json_pack("{s:o, s:I, s:I, s:I, s:I, s:I, s:I, s:O}", "file", json_clean(s->d.path), "n_segments",
                                                (json_int_t)s->sb.n_segments, "n_used_segments", (json_int_t)s->n_segments, "n_records",
                                                (json_int_t)s->n_records, "bytes", (json_int_t)s->n_record_bytes, "n_torn",
                                                (json_int_t)s->n_torn, "n_problems", (json_int_t)s->n_problems, "problems", s->problems));
        } else {
                printf("%llu of %llu segments used, ", (unsigned long long)s->n_segments, (unsigned long long)s->sb.n_segments);
                printf("%llu records of %s verified, %llu torn by a crash\n", (unsigned long long)s->n_records,
                       format_bytes(s->n_record_bytes).text, (unsigned long long)s->n_torn);
        }
        if (s->n_problems)
                return ctl_fail(s->x, 0, "%s: %llu problem%s", s->d.path, (unsigned long long)s->n_problems, s->n_problems == 1 ? "" : "s");
        return code;
}

int devfile_verify(struct ctl *x, const char *path)
{
        struct scan s = {.x = x};
        int code = devfile_open(x, path, false, false, &s.d);

        if (code)
                return code;
        posix_fadvise(s.d.fd, 0, 0, POSIX_FADV_DONTNEED); /* what is on the device, not in memory */
        if (x->o.json)
                s.problems = json_array();
        if (x->o.json && !s.problems)
                s.no_memory = true;
        else if (scan_superblocks(&s))
                scan_segments(&s);
        code = s.no_memory ? ctl_fail(x, KVT_E_NO_MEMORY, "cannot verify %s", path) : conclude(&s);
        json_decref(s.problems);
        free(s.spaces);
        free(s.bytes);
        devfile_close(&s.d);
        return code;
}
