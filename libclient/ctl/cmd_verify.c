/* verify: has the daemon read all records of its devices and waits for it, or reads a device that no daemon uses. */
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "libclient/ctl/devfile.h"
#include "libclient/ctl/format.h"
#include "libclient/ctl/table.h"

#define N(array) (sizeof(array) / sizeof *(array))

enum { POLL_USEC = 200000, STALL_USEC = 30000000 };

static uint64_t whole(const json_t *object, const char *field)
{
        return (uint64_t)json_number_value(json_object_get(object, field));
}

static bool is_in(const json_t *device, const char *state)
{
        const char *now = json_string_value(json_object_get(device, "state"));

        return now && strcmp(now, state) == 0;
}

static const json_t *find_device(const json_t *devices, const char *path)
{
        const json_t *device;
        size_t i;

        json_array_foreach(devices, i, device)
        {
                if (strcmp(json_string_value(json_object_get(device, "path")), path) == 0)
                        return device;
        }
        return NULL;
}

/* Whether anything moved between two answers. */
static bool has_moved(const json_t *now, const json_t *before)
{
        const json_t *device;
        size_t i;

        if (json_array_size(now) != json_array_size(before))
                return true;
        json_array_foreach(now, i, device)
        {
                const json_t *old = json_array_get(before, i);

                if (whole(device, "scrub_bytes") != whole(old, "scrub_bytes") ||
                    whole(device, "scrub_passes") != whole(old, "scrub_passes") ||
                    !json_equal(json_object_get(device, "state"), json_object_get(old, "state")))
                        return true;
        }
        return false;
}

/* before: as it was when the pass was asked for. A device that is not in service has no pass to wait for. */
static bool is_over(const json_t *device, const json_t *before)
{
        return !is_in(device, "serving") || (before && whole(device, "scrub_passes") > whole(before, "scrub_passes"));
}

static void pause_usec(uint64_t usec)
{
        struct timespec t = {.tv_sec = (time_t)(usec / 1000000), .tv_nsec = (long)(usec % 1000000 * 1000)};

        nanosleep(&t, NULL);
}

/* Until all passes are over. *ret: the devices then. */
static int wait_passes(struct ctl *x, const json_t *before, json_t **ret)
{
        json_t *last = NULL, *now, *device;
        uint64_t still_usec = 0, stall_usec = x->o.timeout > STALL_USEC ? x->o.timeout : STALL_USEC;
        size_t i, n_over;
        int code;

        for (;;) {
                code = query_list(x, KVTIER__LIST_WHAT__LIST_DEVICES, &now);
                if (code)
                        break;
                n_over = 0;
                json_array_foreach(now, i, device) n_over +=
                        is_over(device, find_device(before, json_string_value(json_object_get(device, "path"))));
                still_usec = last && !has_moved(now, last) ? still_usec + POLL_USEC : 0;
                json_decref(last);
                last = now;
                if (n_over == json_array_size(now))
                        break;
                if (still_usec >= stall_usec) {
                        code = ctl_fail(x, 0, "the scrubber has read nothing for %s", format_duration(still_usec).text);
                        break;
                }
                pause_usec(POLL_USEC);
        }
        if (code)
                json_decref(last);
        else
                *ret = last;
        return code;
}

static int report(struct ctl *x, const json_t *before, const json_t *after)
{
        static const struct column columns[] = {
                {"PATH", "path"}, {"STATE", "state"}, {"RECORDS", "n_records"}, {"BAD", "n_bad"}, {"USED", "used_bytes"},
        };
        json_t *rows = json_array(), *device;
        uint64_t n_bad = 0, n_unread = 0;
        size_t i;
        int code;

        json_array_foreach(after, i, device)
        {
                const json_t *old = find_device(before, json_string_value(json_object_get(device, "path")));
                uint64_t was = old ? whole(old, "n_quarantined") : 0, is = whole(device, "n_quarantined");
                bool read = old && whole(device, "scrub_passes") > whole(old, "scrub_passes");

                n_bad += is > was ? is - was : 0;
                n_unread += !read && !(old && is_in(old, "detached"));
                json_array_append_new(rows, json_pack("{s:O, s:O, s:b, s:O, s:I, s:O}", "path", json_object_get(device, "path"), "state",
                                                      json_object_get(device, "state"), "verified", read, "n_records",
                                                      json_object_get(device, "n_records"), "n_bad", (json_int_t)(is > was ? is - was : 0),
                                                      "used_bytes", json_object_get(device, "used_bytes")));
        }
        if (x->o.json)
                code = ctl_print_json(x, json_pack("{s:O, s:I}", "devices", rows, "n_bad", (json_int_t)n_bad));
        else
                code = table_print(stdout, columns, N(columns), rows, true, false) ? ctl_fail(x, KVT_E_NO_MEMORY, "cannot print") : EXIT_OK;
        json_decref(rows);
        if (n_bad)
                return ctl_fail(x, 0, "%llu record%s did not verify", (unsigned long long)n_bad, n_bad == 1 ? "" : "s");
        if (n_unread)
                return ctl_fail(x, 0, "%llu device%s could not be read to the end", (unsigned long long)n_unread, n_unread == 1 ? "" : "s");
        return code;
}

static int verify_online(struct ctl *x)
{
        json_t *before, *after;
        int code = query_list(x, KVTIER__LIST_WHAT__LIST_DEVICES, &before);

        if (code)
                return code;
        if (!json_array_size(before)) {
                json_decref(before);
                return ctl_fail(x, 0, "the daemon has no devices");
        }
        code = device_do(x, KVTIER__DEVICE_DO__DEVICE_VERIFY, "");
        code = code ? code : wait_passes(x, before, &after);
        if (code == EXIT_OK) {
                code = report(x, before, after);
                json_decref(after);
        }
        json_decref(before);
        return code;
}

int cmd_verify(struct ctl *x)
{
        int code;

        if (x->n_operands)
                return devfile_verify(x, x->operands[0]);
        code = ctl_connect(x);
        return code ? code : verify_online(x);
}
