/* Latencies of devices: see latency.h. */
#include "libclient/ctl/latency.h"
#include "libclient/ctl/format.h"
#include "libclient/ctl/table.h"

enum { FIRST_BIT = 3, LAST_BIT = 62 };

uint64_t latency_bound(size_t i)
{
        return 1ull << (i < LAST_BIT - FIRST_BIT ? i + FIRST_BIT : LAST_BIT);
}

uint64_t latency_percentile(const uint64_t *counts, size_t n, unsigned percent)
{
        double total = 0, sum = 0;

        for (size_t i = 0; i < n; i++)
                total += (double)counts[i];
        for (size_t i = 0; i < n; i++) {
                sum += (double)counts[i];
                if (counts[i] && sum >= total * percent / 100)
                        return latency_bound(i);
        }
        return 0;
}

static void add_percentile(json_t *row, const char *field, const uint64_t *counts, size_t n, unsigned percent)
{
        uint64_t usec = latency_percentile(counts, n, percent);

        json_object_set_new(row, field, usec ? json_integer((json_int_t)usec) : json_null());
}

json_t *latency_json(const Kvtier__DeviceEntry *d)
{
        json_t *row = message_json(&d->base);

        if (!row)
                return NULL;
        json_object_set_new(row, "used_ratio",
                            d->capacity_bytes ? json_real((double)d->used_bytes / (double)d->capacity_bytes) : json_null());
        add_percentile(row, "read_p50_usec", d->read_usec, d->n_read_usec, 50);
        add_percentile(row, "read_p99_usec", d->read_usec, d->n_read_usec, 99);
        add_percentile(row, "write_p50_usec", d->write_usec, d->n_write_usec, 50);
        add_percentile(row, "write_p99_usec", d->write_usec, d->n_write_usec, 99);
        return row;
}

static double count_of(const json_t *device, const char *field, size_t i)
{
        return json_number_value(json_array_get(json_object_get(device, field), i)); /* 0 past the end */
}

void latency_print(FILE *f, const json_t *device)
{
        size_t n_reads = json_array_size(json_object_get(device, "read_usec"));
        size_t n_writes = json_array_size(json_object_get(device, "write_usec"));
        size_t n = n_reads > n_writes ? n_reads : n_writes, first = n, end = 0;
        double most = 0;

        for (size_t i = 0; i < n; i++) {
                double reads = count_of(device, "read_usec", i), writes = count_of(device, "write_usec", i);

                if (reads + writes <= 0)
                        continue;
                first = first < i ? first : i;
                end = i + 1;
                most = reads > most ? reads : most;
                most = writes > most ? writes : most;
        }
        if (end)
                fprintf(f, "  %10s  %31s  %31s\n", "took", "reads", "writes");
        for (size_t i = first; i < end; i++) {
                double reads = count_of(device, "read_usec", i), writes = count_of(device, "write_usec", i);

                if (i + 1 == n && i) /* the last takes all that took longer */
                        fprintf(f, "  >%9s", format_duration(latency_bound(i - 1)).text);
                else
                        fprintf(f, "  <%9s", format_duration(latency_bound(i)).text);
                fprintf(f, "  %10.0f %s", reads, format_bar(reads, most, 20).text);
                fprintf(f, "  %10.0f %s\n", writes, format_bar(writes, most, 20).text);
        }
}
