/* devices, attach, detach, flush: the NVMe devices of the daemon. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "libclient/ctl/devfile.h"
#include "libclient/ctl/format.h"
#include "libclient/ctl/latency.h"
#include "libclient/ctl/table.h"

#define N(array) (sizeof(array) / sizeof *(array))

enum { POLL_USEC = 20000 };

static uint64_t whole(const json_t *object, const char *field)
{
        return (uint64_t)json_number_value(json_object_get(object, field));
}

static void print_device(const json_t *d)
{
        const char *detail = json_string_value(json_object_get(d, "detail"));

        printf("\n%s  uuid %s\n", json_string_value(json_object_get(d, "path")), json_string_value(json_object_get(d, "uuid")));
        if (detail && *detail)
                printf("  %s: %s\n", json_string_value(json_object_get(d, "state")), detail);
        printf("  segments of %s; found %llu records in %s, %llu torn\n", format_bytes(whole(d, "segment_bytes")).text,
               (unsigned long long)whole(d, "n_recovered"), format_duration(whole(d, "recover_usec")).text,
               (unsigned long long)whole(d, "n_torn"));
        printf("  scrubber: %llu passes, %s of the next one, %llu records quarantined\n", (unsigned long long)whole(d, "scrub_passes"),
               format_bytes(whole(d, "scrub_bytes")).text, (unsigned long long)whole(d, "n_quarantined"));
        latency_print(stdout, d);
}

int cmd_devices(struct ctl *x)
{
        static const struct column columns[] = {
                {"PATH", "path"},
                {"STATE", "state"},
                {"RING", "ring"},
                {"CAPACITY", "capacity_bytes"},
                {"USED", "used_bytes"},
                {"USE", "used_ratio"},
                {"SEGMENTS", "n_segments"},
                {"FREE", "n_free_segments"},
                {"RECORDS", "n_records"},
                {"QUEUE", "queue_depth"},
                {"ERRORS", "n_errors"},
                {"BAD", "n_quarantined"},
                {"READ P50", "read_p50_usec"},
                {"READ P99", "read_p99_usec"},
                {"WRITE P50", "write_p50_usec"},
                {"WRITE P99", "write_p99_usec"},
        };
        json_t *rows, *row;
        size_t i;
        int r, code = query_list(x, KVTIER__LIST_WHAT__LIST_DEVICES, &rows);

        if (code)
                return code;
        if (x->o.json)
                return ctl_print_json(x, json_pack("{s:o}", "devices", rows));
        r = table_print(stdout, columns, N(columns), rows, true, x->o.quiet);
        json_array_foreach(rows, i, row)
        {
                if (r == 0 && !x->o.quiet)
                        print_device(row);
        }
        json_decref(rows);
        return r ? ctl_fail(x, r, "cannot print") : EXIT_OK;
}

int device_do(struct ctl *x, Kvtier__DeviceDo action, const char *path)
{
        Kvtier__DeviceRequest request = KVTIER__DEVICE_REQUEST__INIT;
        Kvtier__DeviceReply *reply;
        int code;

        request.action = action;
        request.path = (char *)path;
        code = query_call(x, KVT_MSG_DEVICE, &request.base, &kvtier__device_reply__descriptor, (ProtobufCMessage **)&reply);
        if (code == EXIT_OK)
                kvt_call_free(&reply->base);
        return code;
}

/* The daemon's working directory is another one. Links are left as they are: a device's name may be one on purpose. */
static int absolute_path(struct ctl *x, const char *path, char **ret)
{
        char *cwd, *absolute = NULL;
        int r;

        if (*path == '/') {
                absolute = strdup(path);
                r = absolute ? 0 : -1;
        } else {
                while (path[0] == '.' && path[1] == '/')
                        path += 2;
                cwd = getcwd(NULL, 0);
                if (!cwd)
                        return ctl_fail(x, -errno, "where is %s", path);
                r = asprintf(&absolute, "%s%s%s", cwd, strcmp(cwd, "/") ? "/" : "", path);
                free(cwd);
        }
        if (r < 0)
                return ctl_fail(x, KVT_E_NO_MEMORY, "%s", path);
        *ret = absolute;
        return EXIT_OK;
}

/* The daemon answers when it has begun. What is said here is how it ended, so that the exit status can be relied on, and what comes next in a script
 * finds the device attached, or let go of. */
static int wait_device(struct ctl *x, Kvtier__DeviceDo action, const char *path)
{
        for (uint64_t waited = 0;; waited += POLL_USEC) {
                bool opening = false, failed = false, gone = true;
                char state[16] = "", detail[256] = "";
                json_t *rows, *row;
                size_t i;
                int code = query_list(x, KVTIER__LIST_WHAT__LIST_DEVICES, &rows);

                if (code)
                        return code;
                json_array_foreach(rows, i, row)
                {
                        if (strcmp(json_string_value(json_object_get(row, "path")), path) != 0)
                                continue;
                        snprintf(state, sizeof(state), "%s", json_string_value(json_object_get(row, "state")));
                        snprintf(detail, sizeof(detail), "%s", json_string_value(json_object_get(row, "detail")));
                        opening = strcmp(state, "opening") == 0;
                        failed = strcmp(state, "failed") == 0;
                        gone = strcmp(state, "detached") == 0;
                }
                json_decref(rows);
                if (action == KVTIER__DEVICE_DO__DEVICE_ATTACH && failed)
                        return ctl_fail(x, 0, "%s: %s", path, detail);
                if (action == KVTIER__DEVICE_DO__DEVICE_ATTACH ? !opening : gone)
                        return EXIT_OK;
                if (waited >= x->o.timeout)
                        return ctl_fail(x, KVT_E_TIMEOUT, "%s is still %s", path, *detail ? detail : state);
                usleep(POLL_USEC);
        }
}

static int device_do_path(struct ctl *x, Kvtier__DeviceDo action, const char *done)
{
        char *path = NULL;
        int code;

        if (!*x->operands[0])
                return ctl_misuse(x, "the path is empty");
        code = absolute_path(x, x->operands[0], &path);
        if (code)
                return code;
        code = device_do(x, action, path);
        if (code == EXIT_OK)
                code = wait_device(x, action, path);
        if (code == EXIT_OK && x->o.json)
                code = ctl_print_json(x, json_pack("{s:o}", done, json_clean(path)));
        free(path);
        return code;
}

int cmd_attach(struct ctl *x)
{
        return device_do_path(x, KVTIER__DEVICE_DO__DEVICE_ATTACH, "attached");
}

int cmd_detach(struct ctl *x)
{
        return device_do_path(x, KVTIER__DEVICE_DO__DEVICE_DETACH, "detached");
}

int cmd_flush(struct ctl *x)
{
        int code = device_do(x, KVTIER__DEVICE_DO__DEVICE_FLUSH, "");

        return code == EXIT_OK && x->o.json ? ctl_print_json(x, json_pack("{s:b}", "flushed", 1)) : code;
}
