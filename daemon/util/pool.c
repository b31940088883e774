#include <string.h>
#include <sys/mman.h>

#include "daemon/util/pool.h"

int pool_init(struct pool *p, size_t object_bytes, uint32_t max)
{
        void *base;

        ASSERT(object_bytes >= sizeof(uint32_t));
        base = mmap(NULL, object_bytes * ((size_t)max + 1), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (base == MAP_FAILED)
                return -errno;
        *p = (struct pool){.base = base, .object_bytes = object_bytes, .max = max};
        return 0;
}

void pool_deinit(struct pool *p)
{
        if (p->base)
                munmap(p->base, p->object_bytes * ((size_t)p->max + 1));
        *p = (struct pool){};
}

uint32_t pool_take(struct pool *p)
{
        uint32_t i = p->free_head;

        if (i != POOL_NONE) {
                memcpy(&p->free_head, pool_at(p, i), sizeof p->free_head);
                memset(pool_at(p, i), 0, p->object_bytes);
        } else {
                if (p->n_touched == p->max)
                        return POOL_NONE;
                i = ++p->n_touched;
        }
        p->n_used++;
        return i;
}

void pool_give(struct pool *p, uint32_t i)
{
        memcpy(pool_at(p, i), &p->free_head, sizeof p->free_head);
        p->free_head = i;
        ASSERT(p->n_used > 0);
        p->n_used--;
}
