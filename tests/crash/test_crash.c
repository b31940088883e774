/* Crashes at random moments, thousands of them, against an oracle that keeps plain arrays of what it put and shares nothing with the store.
 *
 * What it holds the tier to:
 *  - a block whose durable put was answered is back, with all before it, byte for byte, unless it was taken out or pushed out since;
 *  - a replaced version is not back after the new one was durable; a dropped block is not back after an answered flush;
 *  - nothing is ever served under a key that was not put there;
 *  - where records are coded, what comes back is what was put, or, in a space with a bound, within it and as far off as the copy's header says;
 *  - of what was flushed without having been promised, nearly all is back.
 *
 * CRASH_SEED=n runs one seed, CRASHES=n so many crashes (default: as many as fit a few seconds). */
#include "libclient/codec/copy.h"
#include "daemon/util/metrics.h"
#include "tests/crash/model.h"

/* operations */

static struct op *idle_op(void)
{
        for (uint32_t i = 0; i < OPS; i++)
                if (w.ops[i].kind == OP_IDLE) {
                        w.ops[i] = (struct op){};
                        return &w.ops[i];
                }
        return NULL;
}

static void put_over(struct op *o, int r)
{
        struct part_model *p = &w.blocks[o->block].part[o->shard];

        if (r == 0) {
                if (o->put.replace) {
                        forget_promises(o->block);
                        p->min_asked = (uint8_t)o->version;
                }
                if (p->min_asked > o->version) /* dropped meanwhile, and taken all the same: it came later */
                        p->min_asked = (uint8_t)o->version;
                if (p->min > o->version)
                        p->min = (uint8_t)o->version;
        } else {
                p->failed |= 1ull << o->version;
        }
        o->kind = OP_IDLE;
}

static void on_put(struct engine *e, struct put *p, int r)
{
        if (!w.st.crashed)
                put_over(container_of(p, struct op, put), r);
}

static void put_one(uint32_t b, uint32_t shard, bool replace)
{
        struct part_model *p = &w.blocks[b].part[shard];
        struct op *o = idle_op();

        if (!o || p->last == VERSIONS)
                return;
        o->kind = OP_PUT;
        o->block = b;
        o->shard = shard;
        o->version = ++p->last;
        fill(slot_of(o), b, shard, o->version);
        o->put = (struct put){.space = space_of(b),
                              .shard = shard,
                              .has_parent = w.blocks[b].parent != NO_BLOCK,
                              .replace = replace,
                              .staging = w.st.staging,
                              .offset = (uint64_t)(slot_of(o) - w.st.staging->base),
                              .done = on_put};
        list_init(&o->put.link);
        key_make(b, o->put.key);
        if (o->put.has_parent)
                key_make(w.blocks[b].parent, o->put.parent);
        int r = put_start(&w.st.e, &o->put);
        if (r != PUT_PENDING)
                put_over(o, r);
}

static void on_got(struct engine *e, struct get *g, int r)
{
        struct op *o = container_of(g, struct op, get);

        if (w.st.crashed)
                return;
        if (r == 0) {
                check_content(o, slot_of(o));
                n_loads++;
        } else if (r == KVT_E_CORRUPT || (r == KVT_E_IO && !w.hung)) {
                wrong("a read failed on a disk without faults", o->block, o->shard);
        }
        if (o == w.looked)
                w.verified = r;
        o->kind = OP_IDLE;
}

/* The errors that the header of the copy in memory speaks of. */
static void take_header(struct op *o, const uint8_t key[16])
{
        struct space *s = space_of(o->block);
        uint32_t i = blocks_find(&w.st.e.blocks, s->id, key);
        struct part *p = i != POOL_NONE ? block_part(block_at(&w.st.e.blocks, i), s, o->shard) : NULL;

        o->has_header = p && p->at.slab;
        if (!o->has_header)
                return;
        const struct slab *slab = host_slab(&w.st.e.host, p->at.slab);
        static struct copy c;
        CHECK_OK(copy_look(&s->geometry, s->max_rel_l2, slab_slot_address(slab, p->at.slot), slab->slot_bytes, &c));
        for (uint32_t k = 0; k < s->geometry.n_planes; k++)
                o->rel_l2[k] = c.planes[k].rel_l2;
}

static void start_get(struct op *o)
{
        uint8_t key[16];

        key_make(o->block, key);
        memset(slot_of(o), 0, VALUE_WORD_BYTES);
        take_header(o, key);
        o->kind = OP_GET;
        o->get.done = on_got;
        int r = get_start(&w.st.e, &o->get, space_of(o->block), o->shard, key, w.st.staging, (uint64_t)(slot_of(o) - w.st.staging->base), 0,
                          shapes[w.blocks[o->block].space].n_planes);
        if (r != PUT_PENDING) {
                if (o == w.looked)
                        w.verified = r;
                o->kind = OP_IDLE;
        }
}

static void on_loaded(struct engine *e, struct load *l, int r)
{
        struct op *o = container_of(l, struct op, load);

        if (w.st.crashed)
                return;
        if (r == KVT_E_CORRUPT || (r == KVT_E_IO && !w.hung))
                wrong("a load failed on a disk without faults", o->block, o->shard);
        if (o == w.looked)
                w.verified = r;
        o->kind = OP_IDLE;
        if (r == 0)
                start_get(o);
}

static bool load_one(uint32_t b, uint32_t shard)
{
        struct op *o = idle_op();

        if (!o)
                return false;
        o->kind = OP_LOAD;
        o->block = b;
        o->shard = shard;
        o->min = w.blocks[b].part[shard].min;
        o->load = (struct load){.space = space_of(b), .shard = shard, .done = on_loaded};
        key_make(b, o->load.key);
        w.looked = o;
        w.verified = 1;
        int r = load_start(&w.st.e, &o->load);
        if (r != PUT_PENDING)
                on_loaded(&w.st.e, &o->load, r);
        return true;
}

static void fetch_one(uint32_t b, uint32_t shard)
{
        struct op *o = idle_op();
        uint8_t key[16];

        if (!o)
                return;
        key_make(b, key);
        o->kind = OP_GET;
        o->block = b;
        o->shard = shard;
        o->min = w.blocks[b].part[shard].min;
        o->get.done = on_got;
        if (fetch_start(&w.st.e, &o->get, space_of(b), shard, key, w.st.staging, (uint64_t)(slot_of(o) - w.st.staging->base), 0,
                        shapes[w.blocks[b].space].n_planes) != PUT_PENDING)
                o->kind = OP_IDLE;
}

static void on_durable(struct durable *d, int r, void *arg)
{
        struct op *o = arg;

        if (w.st.crashed)
                return;
        n_durables += r == 0;
        for (uint32_t b = o->block; r == 0 && b != NO_BLOCK; b = w.blocks[b].parent) {
                struct part_model *p = &w.blocks[b].part[o->shard];
                if (o->epochs[b] != w.blocks[b].epoch)
                        break; /* what was below it at the start may not hang on it any more */
                p->must = true;
                if (o->mins[b] > p->min)
                        p->min = o->mins[b];
        }
        /* a break of the chain leaves what is below it without what it hangs on: chain_must() sees to that */
        o->kind = OP_IDLE;
}

static void durable_one(uint32_t b, uint32_t shard)
{
        struct op *o = idle_op();
        uint8_t key[16];
        int r;

        if (!o)
                return;
        o->kind = OP_DURABLE;
        o->block = b;
        o->shard = shard;
        for (uint32_t i = 0; i < BLOCKS; i++) {
                o->epochs[i] = w.blocks[i].epoch;
                o->mins[i] = w.blocks[i].part[shard].min_asked;
        }
        key_make(b, key);
        if (!durable_start(&w.st.e, space_of(b), shard, key, on_durable, o, &r))
                o->kind = OP_IDLE;
}

static void on_synced(struct nvme_sync_all *all, int r)
{
        w.syncing = false;
        if (w.st.crashed || r != 0)
                return;
        for (uint32_t b = 0; b < BLOCKS; b++)
                for (uint32_t s = 0; s < shards_of(b); s++) {
                        struct part_model *p = &w.blocks[b].part[s];
                        if (w.sync_mins[b][s] > p->min && p->min_asked >= w.sync_mins[b][s])
                                p->min = w.sync_mins[b][s];
                        if (w.sync_records[b][s] && w.sync_epochs[b] == w.blocks[b].epoch)
                                p->flushed = true;
                }
}

static void sync_one(void)
{
        if (w.syncing)
                return;
        w.syncing = true;
        for (uint32_t b = 0; b < BLOCKS; b++) {
                uint8_t key[16];
                key_make(b, key);
                w.sync_epochs[b] = w.blocks[b].epoch;
                for (uint32_t s = 0; s < shards_of(b); s++) {
                        const struct part_model *p = &w.blocks[b].part[s];
                        w.sync_mins[b][s] = p->min_asked;
                        w.sync_records[b][s] = nvme_find(&w.st.e.nvme, space_of(b), s, key) != POOL_NONE;
                }
        }
        w.sync.done = on_synced;
        nvme_flush_start(&w.st.e.nvme, &w.sync);
}

static void gone_for_good(uint32_t b)
{
        forget_promises(b);
        for (uint32_t s = 0; s < SHARDS; s++) {
                w.blocks[b].part[s].min_asked = (uint8_t)(w.blocks[b].part[s].last + 1);
        }
}

static void drop_one(uint32_t b)
{
        struct engine *e = &w.st.e;
        uint8_t key[16];

        key_make(b, key);
        uint32_t i = blocks_find(&e->blocks, space_of(b)->id, key);
        if (i == POOL_NONE && !get_is_whole(e, space_of(b), key) && !nvme_recovering(&e->nvme))
                return;
        gone_for_good(b);
        if (i != POOL_NONE)
                engine_kill(e, i, KVT_WHY_DROPPED);
        else
                nvme_drop(&e->nvme, space_of(b), key);
        for (uint32_t k = b + 1; k < BLOCKS; k++) /* parents come before their children */
                for (uint32_t up = w.blocks[k].parent; up != NO_BLOCK; up = w.blocks[up].parent)
                        if (up == b)
                                forget_promises(k);
}

static void purge_one(uint32_t space)
{
        uint32_t cursors[2] = {};

        for (uint32_t b = 0; b < BLOCKS; b++)
                if (w.blocks[b].space == space)
                        gone_for_good(b);
        while (!engine_purge(&w.st.e, w.st.t, w.st.s[space], cursors, 1000))
                ;
}

/* True: the whole chain up to b. */
static bool match_one(uint32_t b, bool probe)
{
        uint8_t keys[16 * BLOCKS];
        uint32_t n = 0, chain[BLOCKS];
        int stop;

        for (; b != NO_BLOCK; b = w.blocks[b].parent)
                chain[n++] = b;
        for (uint32_t i = 0; i < n; i++)
                key_make(chain[n - 1 - i], keys + 16 * i);
        return get_match(&w.st.e, space_of(chain[0]), keys, n, probe, &stop) == n;
}

/* It hangs for so long that it is given up, then goes on, and is attached again. */
static void hang_once(void)
{
        struct nvme_device *d = store_device(&w.st);

        if (list_empty(&d->ios))
                return;
        w.hung = w.st.disk->hangs = true;
        w.st.e.now_usec += 31 * USEC_PER_SEC;
        engine_expire(&w.st.e);
        CHECK_EQ(d->state, DEVICE_FAILED);
        for (uint32_t turns = any(&w.st, 5); turns; turns--)
                store_turn(&w.st, 4);
        w.st.disk->hangs = false;
        TURN_UNTIL(&w.st, nvme_attach(&w.st.e.nvme, w.st.path) == 0);
        store_audit(&w.st);
}

/* a round: work, crash, look */

static void act(void)
{
        uint32_t b = any(&w.st, BLOCKS), shard = any(&w.st, shards_of(b)), what = any(&w.st, 1000);

        if (what < 400)
                for (uint32_t s = 0; s < shards_of(b); s++)
                        put_one(b, s, false);
        else if (what < 500)
                durable_one(b, shard);
        else if (what < 540)
                put_one(b, shard, true);
        else if (what < 700)
                load_one(b, shard);
        else if (what < 780)
                fetch_one(b, shard);
        else if (what < 930)
                match_one(b, any(&w.st, 4) == 0);
        else if (what < 950)
                drop_one(b);
        else if (what < 990)
                sync_one();
        else if (what < 992)
                purge_one(any(&w.st, N_SPACES));
        else if (w.faulty && what == 999 && !any(&w.st, 2))
                hang_once();
        else if (w.faulty)
                sim_fail(w.st.disk, any(&w.st, 8) ? RING_WRITE : RING_FLUSH, 1 + any(&w.st, 12), any(&w.st, 4) ? -EIO : -ENOSPC);
}

static bool chain_is(uint32_t b, bool must)
{
        for (; b != NO_BLOCK; b = w.blocks[b].parent)
                for (uint32_t s = 0; s < shards_of(b); s++) {
                        const struct part_model *p = &w.blocks[b].part[s];
                        if (!p->must && (must || !p->flushed))
                                return false;
                }
        return true;
}

static bool is_back(uint32_t b)
{
        if (!match_one(b, true))
                return false;
        for (uint32_t s = 0; s < shards_of(b); s++) {
                CHECK(load_one(b, s));
                TURN_UNTIL(&w.st, w.verified != 1);
                if (w.verified != 0)
                        return false;
        }
        return true;
}

static bool puts_are_over(void)
{
        for (uint32_t i = 0; i < OPS; i++)
                if (w.ops[i].kind == OP_PUT)
                        return false;
        return true;
}

/* acted: clients did something since the start */
static void look(bool acted)
{
        bool must[BLOCKS], flushed[BLOCKS], back[BLOCKS];

        TURN_UNTIL(&w.st, puts_are_over()); /* what is put once more, before its record was found, is not whole meanwhile */
        looking = true;
        for (uint32_t b = 0; b < BLOCKS; b++) {
                must[b] = chain_is(b, true);
                flushed[b] = chain_is(b, false);
        }
        for (uint32_t b = 0; b < BLOCKS; b++) {
                n_must += must[b];
                if (must[b] && !match_one(b, true)) {
                        uint8_t key[16];
                        key_make(b, key);
                        for (uint32_t s = 0; s < shards_of(b); s++)
                                if (nvme_find(&w.st.e.nvme, space_of(b), s, key) == POOL_NONE)
                                        wrong("what was durable is not back", b, s);
                        wrong("what was durable cannot be matched", b, 0);
                }
        }
        for (uint32_t b = 0; b < BLOCKS; b++) {
                back[b] = is_back(b);
                if (must[b] && !back[b] && chain_is(b, true)) /* nor was it pushed out just now */
                        wrong("what was durable cannot be read", b, 0);
                flushed[b] &= chain_is(b, false);
                n_flushed += flushed[b] && !must[b];
                n_flushed_back += flushed[b] && !must[b] && back[b];
        }
        for (uint32_t b = 0; b < BLOCKS; b++) { /* what is there now is on stable storage */
                if (!must[b] && back[b])
                        w.blocks[b].epoch++;
                for (uint32_t s = 0; s < SHARDS; s++) {
                        struct part_model *p = &w.blocks[b].part[s];
                        p->must &= back[b];
                        p->flushed = back[b] && (p->flushed || !acted);
                }
        }
        store_audit(&w.st);
        looking = false;
}

static void new_world(unsigned seed)
{
        static const uint32_t sizes[] = {6, 10, 24, 48};
        static const char *const ladders[] = {"", "", "codec_nvme=zbf\n", "codec_nvme=kivi:bits=4\n"};
        char more[200];
        unsigned r = seed * 2654435761u;

        memset(&w, 0, sizeof w);
        w.seed = seed;
        snprintf(more, sizeof more, "nvme_admit_hits=%d\n%s", rand_r(&r) & 1, ladders[seed % 4]);
        store_init(&w.st, seed, sizes[(unsigned)rand_r(&r) % 4], more);
        w.st.values = seed % 4 >= 2;
        w.st.max_rel_l2 = seed % 4 == 3 ? 0.1f : 0;
        w.st.told_gone = told_gone;
        for (uint32_t b = 0; b < BLOCKS; b++) {
                w.blocks[b].space = any(&w.st, 8) ? any(&w.st, 3) : 3;
                w.blocks[b].parent = NO_BLOCK;
                for (int tries = 0; b && tries < 6 && any(&w.st, 8); tries++) {
                        uint32_t up = b - 1 - any(&w.st, b < 12 ? b : 12);
                        if (w.blocks[up].space == w.blocks[b].space) {
                                w.blocks[b].parent = up;
                                break;
                        }
                }
        }
}

/* A device whose first flush failed is read, and not written: all that was promised is there all the same. */
static void serve(void)
{
        TURN_UNTIL(&w.st, store_device(&w.st)->state == DEVICE_SERVING || store_device(&w.st)->state == DEVICE_DRAINING);
        store_audit(&w.st);
}

static void run_seed(unsigned seed)
{
        uint32_t rounds;

        new_world(seed);
        rounds = 2 + any(&w.st, 5);
        w.faulty = !any(&w.st, 3);
        for (uint32_t round = 0; round < rounds; round++) {
                store_open(&w.st);
                if (round && !any(&w.st, 6)) { /* while it recovers */
                        for (uint32_t turns = any(&w.st, 30); turns; turns--)
                                store_turn(&w.st, any(&w.st, 6));
                        store_crash(&w.st);
                        n_crashes++;
                        store_open(&w.st);
                }
                bool acted = !any(&w.st, 3); /* while it recovers */
                for (uint32_t turns = acted ? any(&w.st, 40) : 0; turns; turns--) {
                        act();
                        store_turn(&w.st, any(&w.st, 4));
                }
                serve();
                if (round)
                        look(acted);
                uint32_t turns = 20 + any(&w.st, 400), speed = 1 + any(&w.st, 10);
                for (uint32_t t = 0; t < turns; t++) {
                        for (uint32_t n = any(&w.st, 4); n; n--)
                                act();
                        store_turn(&w.st, any(&w.st, speed));
                }
                store_audit(&w.st);
                w.st.crashed = true;
                for (uint32_t i = 0; i < OPS; i++)
                        if (w.ops[i].kind ==
                            OP_PUT) { /* never answered, and in no memory then; staging goes first, as when a session ends */
                                w.blocks[w.ops[i].block].part[w.ops[i].shard].failed |= 1ull << w.ops[i].version;
                                put_cancel(&w.ops[i].put);
                        }
                store_crash(&w.st);
                n_crashes++;
                for (uint32_t i = 0; i < OPS; i++)
                        w.ops[i].kind = OP_IDLE;
                for (uint32_t b = 0; b < BLOCKS; b++) /* what was asked for, and not flushed, is forgotten */
                        for (uint32_t s = 0; s < SHARDS; s++)
                                w.blocks[b].part[s].min_asked = w.blocks[b].part[s].min;
                w.syncing = false;
        }
        store_open(&w.st);
        serve();
        look(false);
        store_deinit(&w.st);
}

static void test_crashes(void **state)
{
        const char *one = getenv("CRASH_SEED"), *many = getenv("CRASHES");
        unsigned seed = one ? (unsigned)atoi(one) : many ? 1 : (unsigned)(check_now_usec() % 1000000);
        uint64_t until = check_now_usec() + 8000000, least = many ? (uint64_t)atoll(many) : 0;

        log_set_level("error");
        do {
                run_seed(seed++);
        } while (!one && (many ? n_crashes < least : check_now_usec() < until));
        printf("%llu crashes, seeds up to %u: %llu durable blocks back, %llu of %llu flushed ones; %llu durable puts, %llu reads, %llu of "
               "them lossy; %llu pushed out; %llu planes coded, %llu of them lossless for want of better\n",
               (unsigned long long)n_crashes, seed - 1, (unsigned long long)n_must, (unsigned long long)n_flushed_back,
               (unsigned long long)n_flushed, (unsigned long long)n_durables, (unsigned long long)n_loads, (unsigned long long)n_lossy,
               (unsigned long long)n_gone, (unsigned long long)metrics.c_coded_planes, (unsigned long long)metrics.c_fallback_planes);
        if (!one) {
                CHECK(n_must > 0 && n_flushed > 0);
                CHECK(n_flushed_back * 100 >= n_flushed * 95);
        }
        if (!one && n_crashes >= 60) { /* some worlds of each kind */
                CHECK(metrics.c_coded_planes > 0 && metrics.c_fallback_planes < metrics.c_coded_planes / 10);
                CHECK(n_lossy > 0);
        }
}

int main(void)
{
        const struct CMUnitTest tests[] = {cmocka_unit_test(test_crashes)};

        assert_bind_loop();
        return cmocka_run_group_tests(tests, NULL, NULL);
}
