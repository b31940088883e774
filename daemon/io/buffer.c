/* buffer.h: a bitmap of pages, searched next-fit. A run never wraps around the end of the arena. Loop only. */
#include <sys/mman.h>

#include "daemon/io/buffer.h"

enum { PAGE_BYTES = 4096, WORD_BITS = 64 };

int buffers_init(struct buffers *b, size_t bytes)
{
        size_t n = bytes / PAGE_BYTES;

        if (!n || n > UINT32_MAX / 2)
                return -EINVAL;
        uint64_t *used = new0(uint64_t, align_up(n, WORD_BITS) / WORD_BITS);
        if (!used)
                return -ENOMEM;
        void *p = mmap(NULL, n * PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (p == MAP_FAILED) {
                free(used);
                return -ENOMEM;
        }
        *b = (struct buffers){.arena = p, .n_pages = (uint32_t)n, .used = used};
        return 0;
}

void buffers_deinit(struct buffers *b)
{
        if (b->arena)
                munmap(b->arena, (size_t)b->n_pages * PAGE_BYTES);
        free(b->used);
        *b = (struct buffers){};
}

/* The first page from i on, and before end, that is used (or free); end: none is. */
static uint32_t find_page(const struct buffers *b, uint32_t i, uint32_t end, bool used)
{
        while (i < end) {
                uint64_t word = used ? b->used[i / WORD_BITS] : ~b->used[i / WORD_BITS];
                word &= UINT64_MAX << i % WORD_BITS;
                if (word)
                        return MIN(i / WORD_BITS * WORD_BITS + (uint32_t)__builtin_ctzll(word), end);
                i = (i / WORD_BITS + 1) * WORD_BITS;
        }
        return end;
}

/* The start of n free pages that lie between begin and end; end: there is none. */
static uint32_t find_run(const struct buffers *b, uint32_t begin, uint32_t end, uint32_t n)
{
        for (uint32_t i = begin; i < end;) {
                i = find_page(b, i, end, false);
                if (end - i < n)
                        break;
                uint32_t stop = find_page(b, i, i + n, true);
                if (stop == i + n)
                        return i;
                i = stop;
        }
        return end;
}

/* Marks n pages as used or free; all of them are the other now. */
static void mark_run(struct buffers *b, uint32_t i, uint32_t n, bool used)
{
        while (n) {
                uint32_t bit = i % WORD_BITS, here = MIN(n, WORD_BITS - bit);
                uint64_t mask = (here == WORD_BITS ? UINT64_MAX : (1ull << here) - 1) << bit;
                uint64_t *word = &b->used[i / WORD_BITS];

                ASSERT((*word & mask) == (used ? 0 : mask)); /* taken or given twice */
                *word ^= mask;
                i += here;
                n -= here;
        }
}

void *buffers_take(struct buffers *b, size_t bytes)
{
        ASSERT(bytes && bytes % PAGE_BYTES == 0);
        if (bytes / PAGE_BYTES > b->n_pages - b->n_used)
                return NULL;
        uint32_t n = (uint32_t)(bytes / PAGE_BYTES);
        uint32_t i = find_run(b, b->i_next, b->n_pages, n);
        if (i == b->n_pages) { /* then what lies before, with the run that begins before i_next and ends after it */
                uint32_t end = (uint32_t)MIN((uint64_t)b->i_next + n - 1, b->n_pages);
                i = find_run(b, 0, end, n);
                if (i == end)
                        return NULL;
        }
        mark_run(b, i, n, true);
        b->n_used += n;
        b->i_next = i + n == b->n_pages ? 0 : i + n;
        return b->arena + (size_t)i * PAGE_BYTES;
}

void buffers_give(struct buffers *b, void *p, size_t bytes)
{
        size_t at = (size_t)((uint8_t *)p - b->arena);

        ASSERT(bytes && bytes % PAGE_BYTES == 0 && at % PAGE_BYTES == 0);
        ASSERT((uint8_t *)p >= b->arena && at + bytes <= (size_t)b->n_pages * PAGE_BYTES);
        mark_run(b, (uint32_t)(at / PAGE_BYTES), (uint32_t)(bytes / PAGE_BYTES), false);
        b->n_used -= (uint32_t)(bytes / PAGE_BYTES);
}
