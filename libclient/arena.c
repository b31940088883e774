/* An allocator for unpacked messages: a bump pointer in one buffer, given back as a whole. Foreign messages cannot take more. */
#include "libclient/client.h"

static void *arena_alloc(void *data, size_t n)
{
        struct arena *a = data;
        size_t start = a->used_bytes;

        if (n > sizeof(a->bytes) - start)
                return NULL;
        a->used_bytes = (start + n + 15) & ~(size_t)15;
        if (a->used_bytes > sizeof(a->bytes))
                a->used_bytes = sizeof(a->bytes);
        return a->bytes + start;
}

static void arena_free(void *data, void *p)
{
}

ProtobufCAllocator arena_start(struct arena *a)
{
        a->used_bytes = 0;
        return (ProtobufCAllocator){.alloc = arena_alloc, .free = arena_free, .allocator_data = a};
}
