#include "tests/lib/sim_disk.h"

#include <errno.h>

#include "daemon/util/macro.h"
#include "tests/lib/check.h"

struct sim_op { /* under way */
        struct list link; /* in disk.ops */
        struct ring_op *op;
        struct sim_ring *ring;
        uint8_t *data; /* owned: of a write, as it was when it was submitted */
        uint64_t serial; /* of a flush: what had come back by then */
};

struct sim_ring {
        struct ring ring;
        struct sim_disk *disk;
        struct list submitted; /* of struct ring_op, by job.link: not kicked yet */
};

static struct sim_disk *installed, *second;

/* images */

static void image_copy_out(uint8_t *const *image, uint64_t offset, uint8_t *to, uint64_t n)
{
        while (n) {
                uint64_t at = offset % RING_PAGE_BYTES, m = MIN(n, RING_PAGE_BYTES - at);
                const uint8_t *page = image[offset / RING_PAGE_BYTES];
                if (page)
                        memcpy(to, page + at, m);
                else
                        memset(to, 0, m);
                offset += m;
                to += m;
                n -= m;
        }
}

static void image_copy_in(uint8_t **image, uint64_t offset, const uint8_t *from, uint64_t n)
{
        while (n) {
                uint64_t at = offset % RING_PAGE_BYTES, m = MIN(n, RING_PAGE_BYTES - at);
                uint8_t **page = &image[offset / RING_PAGE_BYTES];
                if (!*page)
                        CHECK((*page = calloc(1, RING_PAGE_BYTES)) != NULL);
                memcpy(*page + at, from, m);
                offset += m;
                from += m;
                n -= m;
        }
}

static void image_free(struct sim_disk *d, uint8_t **image)
{
        for (uint64_t i = 0; i < d->bytes / RING_PAGE_BYTES; i++)
                free(image[i]);
        free(image);
}

/* operations */

static bool overlap(const struct ring_op *a, const struct ring_op *b)
{
        return a->offset < b->offset + b->bytes && b->offset < a->offset + a->bytes;
}

static void check_alone(const struct sim_disk *d, const struct ring_op *op)
{
        if (op->opcode != RING_READ && op->opcode != RING_WRITE)
                return;
        CHECK(op->offset + op->bytes <= d->bytes);
        list_for_each (o, &d->ops, struct sim_op, link)
                if ((o->op->opcode == RING_WRITE || (o->op->opcode == RING_READ && op->opcode == RING_WRITE)) && overlap(o->op, op))
                        check_failed(__FILE__, __LINE__, "a %s at %llu while a %s at %llu is under way",
                                     op->opcode == RING_READ ? "read" : "write", (unsigned long long)op->offset,
                                     o->op->opcode == RING_READ ? "read" : "write", (unsigned long long)o->op->offset);
}

static void op_free(struct sim_op *o)
{
        list_remove(&o->link);
        o->ring->disk->n_ops--;
        free(o->data);
        free(o);
}

static void sim_submit(struct ring *r, struct ring_op *op)
{
        struct sim_ring *s = container_of(r, struct sim_ring, ring);

        list_append(&s->submitted, &op->job.link);
}

static void sim_kick(struct ring *r)
{
        struct sim_ring *s = container_of(r, struct sim_ring, ring);
        struct sim_disk *d = s->disk;

        while (!list_empty(&s->submitted)) {
                struct ring_op *op = list_first(&s->submitted, struct ring_op, job.link);
                struct sim_op *o = calloc(1, sizeof *o);
                CHECK(o != NULL);
                list_remove(&op->job.link);
                if (!d->dead && !d->hangs)
                        check_alone(d, op);
                o->op = op;
                o->ring = s;
                o->serial = d->serial;
                if (op->opcode == RING_WRITE) {
                        CHECK((o->data = malloc(op->bytes)) != NULL);
                        memcpy(o->data, op->buf, op->bytes);
                }
                list_append(&d->ops, &o->link);
                d->n_ops++;
        }
}

static bool is_full(const struct sim_disk *d, const struct ring_op *op)
{
        uint64_t n = d->full_segment_bytes, start = 1 << 20;

        if (!n || op->offset < start)
                return false;
        uint64_t first = (start + (op->offset - start) / n * n) / RING_PAGE_BYTES;
        for (uint64_t i = first; i < first + n / RING_PAGE_BYTES && i < d->bytes / RING_PAGE_BYTES; i++)
                if (d->now[i])
                        return false;
        return true;
}

/* Takes data over. */
static void add_doubt(struct sim_disk *d, const struct ring_op *op, uint8_t *data)
{
        if (d->n_doubts == d->max_doubts) {
                d->max_doubts = d->max_doubts ? 2 * d->max_doubts : 64;
                CHECK((d->doubts = reallocarray(d->doubts, d->max_doubts, sizeof *d->doubts)) != NULL);
        }
        d->doubts[d->n_doubts++] = (struct sim_write){op->offset, op->bytes, data, ++d->serial};
}

/* What came back before the flush was submitted is safe. */
static void flush(struct sim_disk *d, uint64_t serial)
{
        uint32_t left = 0;

        for (uint32_t i = 0; i < d->n_doubts; i++) {
                struct sim_write *w = &d->doubts[i];
                if (w->serial > serial) {
                        d->doubts[left++] = *w;
                        continue;
                }
                image_copy_in(d->stable, w->offset, w->data, w->bytes);
                free(w->data);
        }
        d->n_doubts = left;
}

static int carry_out(struct sim_disk *d, struct sim_op *o)
{
        struct ring_op *op = o->op;
        int error = d->faults[op->opcode].error;

        if (d->dead)
                return -EIO;
        if (d->faults[op->opcode].in && !--d->faults[op->opcode].in)
                return error;
        switch (op->opcode) {
        case RING_READ:
                d->n_reads++;
                if (d->bad_bytes && op->offset < d->bad_offset + d->bad_bytes && d->bad_offset < op->offset + op->bytes)
                        return -EIO;
                image_copy_out(d->now, op->offset, op->buf, op->bytes);
                return 0;
        case RING_WRITE:
                d->n_writes++;
                if (memcmp(o->data, op->buf, op->bytes))
                        check_failed(__FILE__, __LINE__, "what is written at %llu changed under way", (unsigned long long)op->offset);
                if (d->bad_write_bytes && op->offset < d->bad_write_offset + d->bad_write_bytes &&
                    d->bad_write_offset < op->offset + op->bytes)
                        return -EIO;
                if (is_full(d, op))
                        return -ENOSPC;
                image_copy_in(d->now, op->offset, o->data, op->bytes);
                add_doubt(d, op, o->data);
                o->data = NULL;
                return 0;
        case RING_FLUSH:
                d->n_flushes++;
                flush(d, o->serial);
                return 0;
        default:
                return -EOPNOTSUPP;
        }
}

static void finish(struct sim_disk *d, struct sim_op *o)
{
        struct ring_op *op = o->op;
        struct queue *q = o->ring->ring.queue;

        op->result = carry_out(d, o);
        op->finished_usec = clock_usec();
        op_free(o);
        queue_finish(q, &op->job);
}

uint32_t sim_step(struct sim_disk *d, uint32_t n)
{
        while (n-- && d->n_ops && !d->hangs) {
                uint32_t i = sim_random(d, d->n_ops);
                list_for_each (o, &d->ops, struct sim_op, link)
                        if (!i--) {
                                finish(d, o);
                                break;
                        }
        }
        return d->n_ops;
}

static int sim_close(struct ring *r, uint64_t wait_usec)
{
        struct sim_ring *s = container_of(r, struct sim_ring, ring);
        struct sim_disk *d = s->disk;

        d->n_rings--;
        if (d->hangs) { /* for ever: they are forgotten here, and left alone there */
                list_for_each_safe (o, &d->ops, struct sim_op, link)
                        if (o->ring == s)
                                op_free(o);
                list_init(&s->submitted);
                free(s);
                return -EBUSY;
        }
        sim_kick(r);
        list_for_each_safe (o, &d->ops, struct sim_op, link)
                if (o->ring == s)
                        finish(d, o);
        free(s);
        return 0;
}

static int sim_open(struct ring **ret, int fd, void *arena, size_t n_arena, struct queue *q, const struct ring_options *options)
{
        static const struct ring_ops ops = {.name = "simulated", .submit = sim_submit, .kick = sim_kick, .close = sim_close};
        struct sim_ring *s = calloc(1, sizeof *s);

        CHECK(s && installed);
        s->ring = (struct ring){.ops = &ops, .queue = q, .fd = fd};
        s->disk = second && installed->n_rings ? second : installed;
        s->disk->n_rings++;
        list_init(&s->submitted);
        *ret = &s->ring;
        return 0;
}

/* the power */

/* One write that is in doubt, decided. */
static void decide(struct sim_disk *d, const struct sim_write *w)
{
        uint64_t sectors = w->bytes / SIM_SECTOR, at = sim_random(d, (uint32_t)sectors), n;
        uint8_t garbage[SIM_SECTOR];

        switch (sim_random(d, 8)) {
        case 0:
        case 1:
        case 2:
                image_copy_in(d->stable, w->offset, w->data, w->bytes);
                d->n_landed++;
                return;
        case 3:
        case 4:
                d->n_vanished++;
                return;
        case 5: /* the first half */
                image_copy_in(d->stable, w->offset, w->data, at * SIM_SECTOR);
                d->n_torn++;
                return;
        case 6: /* the second half */
                image_copy_in(d->stable, w->offset + at * SIM_SECTOR, w->data + at * SIM_SECTOR, w->bytes - at * SIM_SECTOR);
                d->n_torn++;
                return;
        case 7: /* all of it but some sectors */
                image_copy_in(d->stable, w->offset, w->data, w->bytes);
                n = 1 + sim_random(d, (uint32_t)(sectors - at));
                for (uint64_t i = at; i < at + n; i++) {
                        for (int k = 0; k < SIM_SECTOR; k++)
                                garbage[k] = (uint8_t)sim_random(d, 256);
                        image_copy_in(d->stable, w->offset + i * SIM_SECTOR, garbage, SIM_SECTOR);
                }
                d->n_garbage++;
        }
}

void sim_crash(struct sim_disk *d)
{
        d->dead = true;
        d->hangs = false;
        for (uint32_t i = 0; i < d->n_doubts; i++) {
                decide(d, &d->doubts[i]);
                free(d->doubts[i].data);
        }
        d->n_doubts = 0;
        list_for_each (o, &d->ops, struct sim_op, link)
                if (o->op->opcode == RING_WRITE)
                        decide(d, &(struct sim_write){o->op->offset, o->op->bytes, o->data, 0});
        for (uint64_t i = 0; i < d->bytes / RING_PAGE_BYTES; i++) {
                if (!d->stable[i]) {
                        free(d->now[i]);
                        d->now[i] = NULL;
                } else {
                        image_copy_in(d->now, i * RING_PAGE_BYTES, d->stable[i], RING_PAGE_BYTES);
                }
        }
}

void sim_power_on(struct sim_disk *d)
{
        CHECK_EQ(d->n_ops, 0);
        d->dead = d->hangs = false;
        memset(d->faults, 0, sizeof d->faults);
}

void sim_fail(struct sim_disk *d, enum ring_opcode opcode, uint32_t nth, int error)
{
        d->faults[opcode].in = nth;
        d->faults[opcode].error = error;
}

void sim_peek(const struct sim_disk *d, uint64_t offset, void *p, uint64_t n)
{
        image_copy_out(d->now, offset, p, n);
}

void sim_poke(struct sim_disk *d, uint64_t offset, const void *p, uint64_t n)
{
        image_copy_in(d->now, offset, p, n);
        image_copy_in(d->stable, offset, p, n);
}

struct sim_disk *sim_disk_new(uint64_t bytes, unsigned seed)
{
        struct sim_disk *d = calloc(1, sizeof *d);

        CHECK(d && bytes % RING_PAGE_BYTES == 0);
        d->bytes = bytes;
        d->random = seed;
        list_init(&d->ops);
        d->now = calloc(bytes / RING_PAGE_BYTES, sizeof *d->now);
        d->stable = calloc(bytes / RING_PAGE_BYTES, sizeof *d->stable);
        CHECK(d->now && d->stable);
        return d;
}

struct sim_disk *sim_disk_free(struct sim_disk *d)
{
        if (!d)
                return NULL;
        CHECK_EQ(d->n_ops, 0);
        for (uint32_t i = 0; i < d->n_doubts; i++)
                free(d->doubts[i].data);
        free(d->doubts);
        image_free(d, d->now);
        image_free(d, d->stable);
        free(d);
        return NULL;
}

void sim_install_second(struct sim_disk *d)
{
        second = d;
}

void sim_install(struct sim_disk *d)
{
        installed = d;
        second = NULL;
        ring_set_open(d ? sim_open : NULL);
}
