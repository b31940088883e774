/* nvme_write_amplification: the requests of a trace of hashed prompts ($KVTIER_TRACE, one JSON object a line with "hash_ids", each of which stands for a
 * block and all before it) replayed against the daemon's engine in this process: match, bring what was matched into memory, put the rest. Blocks
 * have 4 KiB, a block is a hundredth of what it would be for a small model; the memory and the device are as small in comparison. The device is memory
 * behind a ring that answers at once: nothing here depends on its speed. Its segments keep being recycled; the row says at what occupancy.
 *
 * nvme_write_amplification is with the daemon's default admission, nvme_write_amplification_all with every block written. */
#include <stdlib.h>
#include <unistd.h>

#include "tests/bench/nvme_engine.h"

enum {
        BLOCK_BYTES = 4096,
        DEVICE_MIB = 128, /* of 8 KiB records: a tenth of the trace's blocks */
        HOST_MIB = 32,
        KEYS_MAX = 1024, /* of a request */
};

/* a ring over memory */

struct memory_ring {
        struct ring ring;
        struct list done;
};
static uint8_t *memory; /* the device */

static void memory_submit(struct ring *r, struct ring_op *op)
{
        struct memory_ring *m = container_of(r, struct memory_ring, ring);

        if (op->opcode == RING_READ)
                memcpy(op->buf, memory + op->offset, op->bytes);
        else if (op->opcode == RING_WRITE)
                memcpy(memory + op->offset, op->buf, op->bytes);
        op->result = 0;
        op->finished_usec = op->submitted_usec;
        list_append(&m->done, &op->job.link);
}

static void memory_kick(struct ring *r)
{
        struct memory_ring *m = container_of(r, struct memory_ring, ring);

        if (!list_empty(&m->done))
                queue_finish_list(r->queue, &m->done);
}

static int memory_close(struct ring *r, uint64_t wait_usec)
{
        memory_kick(r);
        free(container_of(r, struct memory_ring, ring));
        return 0;
}

static const struct ring_ops memory_ops = {"memory", memory_submit, memory_kick, memory_close};

static int memory_open(struct ring **ret, int fd, void *arena, size_t n_arena, struct queue *q, const struct ring_options *o)
{
        struct memory_ring *m = new0(struct memory_ring, 1);

        if (!m)
                return -ENOMEM;
        m->ring = (struct ring){.ops = &memory_ops, .queue = q, .fd = fd};
        list_init(&m->done);
        *ret = &m->ring;
        return 0;
}

/* the replay */

struct replay {
        struct loop l;
        struct space *s;
        struct staging *staging;
        uint8_t keys[KEYS_MAX][16];
        struct put puts[KEYS_MAX];
        struct load loads[KEYS_MAX];
        uint64_t n_keys, n_hits, n_refused, n_requests;
};
static struct replay *the; /* done() has no argument */

static void put_done(struct engine *e, struct put *p, int r)
{
        the->l.n_pending--;
        the->n_refused += r != 0;
}

static void load_done(struct engine *e, struct load *l, int r)
{
        the->l.n_pending--;
}

static void request(struct replay *r, uint32_t n)
{
        int stop;
        uint32_t hit;

        engine_tick(&r->l.e);
        hit = get_match(&r->l.e, r->s, r->keys[0], n, false, &stop);
        r->n_requests++;
        r->n_keys += n;
        r->n_hits += hit;
        for (uint32_t i = 0; i < hit; i++) {
                struct load *l = &r->loads[i];
                *l = (struct load){.space = r->s, .done = load_done};
                memcpy(l->key, r->keys[i], 16);
                r->l.n_pending += load_start(&r->l.e, l) == PUT_PENDING;
        }
        while (r->l.n_pending)
                loop_pass(&r->l);
        for (uint32_t i = hit; i < n; i++) {
                struct put *p = &r->puts[i];
                *p = (struct put){.space = r->s, .staging = r->staging, .has_parent = i > 0, .done = put_done};
                list_init(&p->link);
                memcpy(p->key, r->keys[i], 16);
                if (i)
                        memcpy(p->parent, r->keys[i - 1], 16);
                int status = put_start(&r->l.e, p);
                r->l.n_pending += status == PUT_PENDING;
                r->n_refused += status > 0 && status != KVT_E_EXISTS;
        }
        while (r->l.n_pending || r->l.e.demotes.n)
                loop_pass(&r->l);
}

/* The keys of a line. */
static uint32_t parse_line(struct replay *r, const char *line)
{
        const char *at = strstr(line, "\"hash_ids\": [");
        uint32_t n = 0;

        if (!at)
                die("a line of the trace has no hash_ids");
        for (at += 13; *at && *at != ']' && n < KEYS_MAX; n++) {
                char *end;
                loop_key(strtoull(at, &end, 10) + 1, r->keys[n]);
                if (end == at)
                        die("the trace is not as expected: %.40s", at);
                at = end + strspn(end, ", ");
        }
        return n;
}

static void replay(const char *trace, const char *name, unsigned admit_hits)
{
        static struct replay r;
        char config[512], path[128], note[256], line[1 << 16];
        FILE *f = fopen(trace, "re");
        double written, demoted;

        if (!f)
                die("%s: %m", trace);
        snprintf(path, sizeof(path), "%s/%s", scratch(), name);
        snprintf(config, sizeof(config),
                 "nvme_devices = %s\nnvme_bytes = %dM\nnvme_segment_bytes = 4M\nnvme_scrub_bytes_sec = 0\nhost_bytes = %dM\nworkers = 1\n"
                 "nvme_admit_hits = %u\nnvme_buffer_bytes = 16M\n",
                 path, DEVICE_MIB, HOST_MIB, admit_hits);
        memory = calloc(1, (size_t)DEVICE_MIB << 20);
        if (!memory)
                die("no memory");
        memset(&metrics, 0, sizeof(metrics));
        the = &r;
        r = (struct replay){};
        loop_start(&r.l, config);
        r.s = loop_space(&r.l, "trace", 1, BLOCK_BYTES);
        must(staging_new(&r.staging, &r.l.e, r.l.tenant, 64 << 10), "staging_new");
        while (fgets(line, sizeof(line), f)) {
                uint32_t n = parse_line(&r, line);
                if (n)
                        request(&r, n);
        }
        fclose(f);
        for (uint64_t until = now_nsec() + 1000000000; r.l.e.n_demoting && now_nsec() < until;)
                loop_pass(&r.l);
        written = (double)metrics.c_nvme_written_bytes;
        demoted = (double)metrics.c_demoted_bytes;
        snprintf(note, sizeof(note),
                 "%llu requests; hit ratio %.3f; %.0f MiB demoted, %.0f MiB moved, %llu segments recycled; occupancy at the end %.2f; %llu "
                 "records evicted, %llu puts refused",
                 (unsigned long long)r.n_requests, (double)r.n_hits / (double)r.n_keys, demoted / (1 << 20),
                 (double)metrics.c_nvme_moved_bytes / (1 << 20), (unsigned long long)metrics.c_nvme_recycled,
                 (double)r.l.e.nvme.tier.used_bytes / (double)r.l.e.nvme.tier.capacity_bytes, (unsigned long long)metrics.c_nvme_evicted,
                 (unsigned long long)r.n_refused);
        row_print(&(struct row){.name = name, .unit = "bytes/byte", .value = written / demoted, .sense = '<', .limit = 1.3, .note = note});
        r.staging = staging_unref(r.staging);
        loop_stop(&r.l);
        free(memory);
}

int main(void)
{
        const char *trace = getenv("KVTIER_TRACE");

        if (!trace || access(trace, R_OK) < 0) {
                fprintf(stderr, "bench_nvme_trace: no nvme_write_amplification: $KVTIER_TRACE names no trace that can be read\n");
                return 0;
        }
        need_memory(1024ull << 20);
        ring_set_open(memory_open);
        replay(trace, "nvme_write_amplification", 1);
        replay(trace, "nvme_write_amplification_all", 0);
        return 0;
}
