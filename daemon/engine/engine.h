/* The engine: what the store's structures do together. Owned by the loop thread; transfers go through workers and come back.
 *
 * engine_pass() runs once per pass of the loop: it hands queued jobs to the workers and evicts above the watermark. */
#pragma once

#include "daemon/store/ghost.h"
#include "daemon/policy/admit.h"
#include "daemon/store/tier_host.h"
#include "daemon/store/tier_nvme.h"

struct engine {
        const struct conf *conf; /* borrowed; changes on reload */
        struct blocks blocks;
        struct tenants tenants;
        struct host host;
        struct ghosts ghosts;
        struct queue queue;
        struct workers *workers;
        struct pool xfers;
        uint32_t n_verifies; /* of them, checks of copies that clients called bad */
        struct nvme nvme;
        struct write_budget budget;
        uint64_t budgeted_bytes; /* of what was written, now or in the day before, how much is in the budget's account */
        struct ring_of_blocks { /* waiting to be written to NVMe; see engine/demote */
                uint32_t *blocks; /* owned */
                uint32_t n, head, max;
        } demotes;
        struct ring_of_blocks recodes; /* to be brought to their space's hot rung; see engine/recode */
        uint32_t n_recoding;
        uint64_t recoding_bytes; /* of them, as they were put */
        uint64_t recode_usec; /* when to look for cold blocks next */
        struct list coded; /* of struct xfer: demotions that are coded and wait for room in a log */
        uint64_t coding_bytes; /* of parts that are coded for demotion, as they were put */
        uint32_t n_demoting, n_loading;
        int demote_error; /* why a part was last not written */
        struct list loads; /* of struct tenant: those with loads that wait for room, in turn */
        struct list durables; /* of struct durable */
        struct ahead { /* records to be brought into memory without anybody waiting; see engine/load */
                uint32_t *entries; /* owned */
                uint32_t n, head, max;
        } ahead;
        bool draining; /* nothing new comes from clients */
        bool room; /* the NVMe tier may take what it refused */
        struct list incomplete; /* of struct shards, oldest first: blocks whose other parts may never come */
        bool above_mark; /* background eviction is on its way from the high mark to the low one */
        uint64_t now_usec; /* of this pass */
        uint32_t now_sec;
        /* told on the loop when a block can be matched from now on, and when no longer */
        void (*on_stored)(struct engine *e, struct space *s, const uint8_t key[16]);
        void (*on_removed)(struct engine *e, struct space *s, const uint8_t key[16]);
        void *arg;
};

int engine_init(struct engine *e, const struct conf *conf);
/* Stops the workers and frees everything; transfers under way are abandoned. */
void engine_deinit(struct engine *e);
void engine_tick(struct engine *e);
/* Takes back what workers finished: to be called when queue.event_fd is readable. */
void engine_collect(struct engine *e);
/* At the end, once a pass: what is to be on NVMe is written, then the devices are closed well. True: that is done. */
bool engine_quiet(struct engine *e);
/* Returns true if there is more to do soon (background eviction). */
bool engine_pass(struct engine *e);
/* When the next thing times out; UINT64_MAX: nothing waits. engine_expire() then does what is due. */
uint64_t engine_deadline(const struct engine *e);
void engine_expire(struct engine *e);

/* Takes the block and everything below it out; copies are freed once no lease is on them. Evicted: what has records stays on NVMe; for other
 * reasons the records go, too. */
void engine_kill(struct engine *e, uint32_t block, int why);
/* Frees the copies in memory of a block without pins that has records of all its parts. Its subtree stays. False: it has not. */
bool engine_uncache(struct engine *e, uint32_t block);
/* After something that held the block is over: it may be evicted now, or be a stub that holds nothing any more. */
void engine_settle_block(struct engine *e, uint32_t block);
/* A part of the block has a record that can be read. */
bool engine_has_record(const struct engine *e, const struct space *s, uint32_t shard, const uint8_t key[16]);
/* Kills the blocks of a space (of all spaces of a tenant: s NULL), and forgets their records, looking at n_steps numbers from the cursors (0 at
 * first) on. Returns true when that was all. */
bool engine_purge(struct engine *e, struct tenant *t, struct space *s, uint32_t cursors[2], uint32_t n_steps);
/* Gives a space without blocks and users back. */
void engine_settle_space(struct engine *e, struct space *s);
/* A block with several parts is filled from now on: lets the missing ones time out. */
void engine_watch_incomplete(struct engine *e, uint32_t block);

/* A lease on a copy, for as long as it is pinned. */
void engine_pin(struct engine *e, struct space *s, uint32_t block, struct location at);
void engine_unpin(struct engine *e, struct location at, struct tenant *t);

struct audit {
        uint64_t n_blocks, used_bytes, n_pins;
        const char *error; /* static text, NULL: all agrees */
};
/* Recomputes every sum from the structures. O(blocks + slots). */
void engine_audit(struct engine *e, struct audit *ret);
