/* What test_crash.c remembers of what it put: plain arrays, which share nothing with the store. */
#pragma once

#include "libclient/codec/codec.h"
#include "tests/crash/store.h"
#include "tests/lib/values.h"

enum { BLOCKS = 150, SHARDS = 2, VERSIONS = 60, NO_BLOCK = BLOCKS, OPS = N_SLOTS };

struct part_model {
        uint8_t last; /* version offered last; 0: none */
        uint8_t min; /* what lies before it must not be served any more */
        uint8_t min_asked; /* the same, once what was asked for is on stable storage */
        bool must; /* durable, and that was answered */
        bool flushed; /* written, and that flushed */
        uint64_t failed; /* versions that were not taken */
};
struct block_model {
        uint32_t space, parent, epoch; /* epoch: of what was promised; counts up when that is void */
        struct part_model part[SHARDS];
};

enum op_kind { OP_IDLE, OP_PUT, OP_LOAD, OP_GET, OP_DURABLE };
struct op {
        uint8_t kind;
        uint32_t block, shard, version, min;
        struct put put;
        struct load load;
        struct get get;
        uint32_t epochs[BLOCKS];
        uint8_t mins[BLOCKS];
        bool has_header; /* GET: of the copy that is read */
        float rel_l2[4]; /* in it */
};

static struct world {
        struct store st;
        unsigned seed;
        bool faulty; /* some writes and flushes fail, and now and then it hangs */
        bool hung;
        struct block_model blocks[BLOCKS];
        struct op ops[OPS];
        struct nvme_sync_all sync;
        bool syncing;
        uint32_t sync_epochs[BLOCKS];
        uint8_t sync_mins[BLOCKS][SHARDS];
        bool sync_records[BLOCKS][SHARDS];
        const struct op *looked; /* the load begun last */
        int verified; /* its result of the read under way when looking at what is back; 1: not there yet */
} w;

static uint64_t n_crashes, n_must, n_flushed, n_flushed_back, n_loads, n_durables, n_gone, n_lossy /* parts that came back so */;

static bool looking; /* at what is back after a crash */
static uint32_t served; /* version */

static uint32_t shards_of(uint32_t b)
{
        return shapes[w.blocks[b].space].n_shards;
}
static uint64_t bytes_of(uint32_t b)
{
        return (uint64_t)shapes[w.blocks[b].space].n_planes * shapes[w.blocks[b].space].plane_bytes;
}
static struct space *space_of(uint32_t b)
{
        return w.st.s[w.blocks[b].space];
}
static uint8_t *slot_of(const struct op *o)
{
        return w.st.staging->base + (size_t)(o - w.ops) * SLOT_BYTES;
}

static void wrong(const char *what, uint32_t block, uint32_t shard)
{
        const struct part_model *p = &w.blocks[block].part[shard];

        check_failed(__FILE__, __LINE__,
                     "CRASH_SEED=%u, crash %llu, %s: %s: version %u of block %u, space %u, parent %u, part %u; last %u min %u asked %u "
                     "must %d flushed %d",
                     w.seed, (unsigned long long)n_crashes, looking ? "after it" : "working", what, served, block, w.blocks[block].space,
                     w.blocks[block].parent, shard, p->last, p->min, p->min_asked, p->must, p->flushed);
}

/* What is promised of the block is void. */
static void forget_promises(uint32_t b)
{
        w.blocks[b].epoch++;
        for (uint32_t s = 0; s < SHARDS; s++)
                w.blocks[b].part[s].must = w.blocks[b].part[s].flushed = false;
}

static void told_gone(struct store *st, struct space *s, uint32_t shard, const uint8_t key[16], int why)
{
        uint8_t k[16];

        for (uint32_t b = 0; b < BLOCKS; b++) {
                key_make(b, k);
                if (memcmp(k, key, 16) || space_of(b) != s)
                        continue;
                if (why == KVT_WHY_CORRUPT)
                        wrong("a record is damaged on a disk that damages nothing", b, shard);
                n_gone++;
                forget_promises(b);
        }
}

static void fill(void *p, uint32_t b, uint32_t shard, uint32_t version)
{
        if (w.st.values)
                values_fill(p, bytes_of(b), part_word(b, shard, version));
        else
                part_fill(p, bytes_of(b), part_word(b, shard, version));
}

/* Each plane is what was put, or as far from it as the copy's header says, within the space's bound. */
static bool values_are(const struct op *o, const uint8_t *p, uint32_t version)
{
        static uint8_t put[SLOT_BYTES];
        uint32_t space = w.blocks[o->block].space, n = shapes[space].plane_bytes;
        bool lossy = false;

        fill(put, o->block, o->shard, version);
        for (uint32_t i = 0; i < shapes[space].n_planes; i++) {
                double error = values_error(put + i * n, p + i * n, n), said = o->has_header ? (double)o->rel_l2[i] : error;
                if (!(error <= (double)w.st.max_rel_l2) || fabs(error - said) > 1e-6 + 1e-5 * error)
                        return false;
                lossy |= error > 0;
        }
        n_lossy += lossy;
        return true;
}

/* What was read is what was put, and not what had to go before the read began. */
static void check_content(const struct op *o, const uint8_t *p)
{
        uint32_t b = o->block, shard = o->shard;
        const struct part_model *m = &w.blocks[b].part[shard];
        uint64_t word;

        memcpy(&word, p, 8);
        if (w.st.values)
                word = values_word(p);
        for (uint32_t v = 1; v <= m->last; v++)
                if (word == part_word(b, shard, v)) {
                        served = v;
                        if (!(w.st.values ? values_are(o, p, v) : part_is(p, bytes_of(b), word)))
                                wrong("what is served was never put so", b, shard);
                        if (v < o->min)
                                wrong("what is served was replaced or dropped for good", b, shard);
                        if (m->failed >> v & 1)
                                wrong("what is served was refused", b, shard);
                        return;
                }
        wrong("what is served was never put", b, shard);
}
