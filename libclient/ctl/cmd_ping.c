/* ping: round trips through the library, the socket and the daemon's loop, one after the other. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "libclient/ctl/query.h"

enum { MAX_PINGS = 10000000, MAX_PAYLOAD = KVT_PACKET_MAX - KVT_FRAME_BYTES - 16 /* the field's tag and length */ };

static uint64_t now_nsec(void)
{
        struct timespec t;

        clock_gettime(CLOCK_MONOTONIC, &t);
        return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

static int compare_times(const void *a, const void *b)
{
        uint64_t left = *(const uint64_t *)a, right = *(const uint64_t *)b;

        return left < right ? -1 : left > right;
}

static int ping_once(struct ctl *x, uint8_t *payload, size_t n, uint64_t *ret_nsec)
{
        Kvtier__PingRequest request = KVTIER__PING_REQUEST__INIT;
        Kvtier__PingReply *reply;
        uint64_t start = now_nsec();
        int code;

        request.data = (ProtobufCBinaryData){.data = payload, .len = n};
        code = query_call(x, KVT_MSG_PING, &request.base, &kvtier__ping_reply__descriptor, (ProtobufCMessage **)&reply);
        if (code)
                return code;
        *ret_nsec = now_nsec() - start;
        if (reply->data.len != n || (n && memcmp(reply->data.data, payload, n) != 0))
                code = ctl_fail(x, 0, "the echo is not what was sent");
        kvt_call_free(&reply->base);
        return code;
}

int cmd_ping(struct ctl *x)
{
        size_t n = (size_t)x->o.count, n_payload = x->o.size == CTL_UNSET ? CTL_PING_BYTES : (size_t)x->o.size;
        uint64_t *times, sum = 0;
        uint8_t *payload;
        double min, p50, p99, max, mean;
        int code = EXIT_OK;

        if (x->o.count < 1 || x->o.count > MAX_PINGS)
                return ctl_misuse(x, "--count is from 1 to %d", MAX_PINGS);
        if (n_payload > MAX_PAYLOAD)
                return ctl_misuse(x, "--size is at most %d", MAX_PAYLOAD);
        times = calloc(n, sizeof *times);
        payload = malloc(n_payload + 1);
        if (!times || !payload)
                code = ctl_fail(x, KVT_E_NO_MEMORY, "%zu pings", n);
        for (size_t i = 0; i < n_payload && code == EXIT_OK; i++)
                payload[i] = (uint8_t)(i * 31 + 7);
        for (size_t i = 0; i < n && code == EXIT_OK; i++) {
                code = ping_once(x, payload, n_payload, times + i);
                sum += times[i];
        }
        if (code == EXIT_OK) {
                qsort(times, n, sizeof *times, compare_times);
                min = (double)times[0] / 1e3;
                p50 = (double)times[n / 2] / 1e3;
                p99 = (double)times[(n * 99 + 99) / 100 - 1] / 1e3;
                max = (double)times[n - 1] / 1e3;
                mean = (double)sum / (double)n / 1e3;
                if (x->o.json)
                        code = ctl_print_json(x, json_pack("{s:I, s:I, s:f, s:f, s:f, s:f, s:f}", "n", (json_int_t)n, "bytes",
                                                           (json_int_t)n_payload, "min_usec", min, "mean_usec", mean, "p50_usec", p50,
                                                           "p99_usec", p99, "max_usec", max));
                else
                        printf("%zu pings of %zu bytes: min %.1f  mean %.1f  p50 %.1f  p99 %.1f  max %.1f us\n", n, n_payload, min, mean,
                               p50, p99, max);
        }
        free(payload);
        free(times);
        return code;
}
