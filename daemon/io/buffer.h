/* Memory for what goes to and comes from a device: whole pages out of one arena, given out next to each other as long as they can be, so that
 * neighbours on the device are neighbours here and a ring can merge them. Owned by the loop; the memory belongs to whoever holds it. */
#pragma once

#include "daemon/util/assert.h"

struct buffers {
        uint8_t *arena; /* immutable */
        uint32_t n_pages; /* immutable */
        uint32_t n_used;
        uint32_t i_next; /* where to look first */
        uint64_t *used; /* owned bitmap */
};

/* Reserves address space and touches nothing. -ENOMEM. */
int buffers_init(struct buffers *b, size_t bytes);
void buffers_deinit(struct buffers *b);
/* NULL: no run of that many pages is free now. bytes: whole pages. */
void *buffers_take(struct buffers *b, size_t bytes);
void buffers_give(struct buffers *b, void *p, size_t bytes);
