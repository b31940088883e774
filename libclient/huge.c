/* Why: kernels put memfds on small pages unless shared memory gets huge ones unasked, which is rarely switched on. The daemon asks for its
 * slabs, but a client sees huge pages only through a map on a 2 MiB boundary. Measured in a virtual machine: reading blocks whose page
 * tables have left the caches at twice the speed, a first touch of 2 MiB in 0.13 instead of 1.7 ms. */
#include <sys/mman.h>

#include "libclient/huge.h"

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

void *huge_map(int fd, size_t bytes, int prot)
{
        uint8_t *room, *p;
        size_t n_before;

        if (bytes > SIZE_MAX - HUGE_BYTES)
                return MAP_FAILED;
        room = mmap(NULL, bytes + HUGE_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (room == MAP_FAILED)
                return MAP_FAILED;
        n_before = -(uintptr_t)room & (HUGE_BYTES - 1);
        p = mmap(room + n_before, bytes, prot, MAP_SHARED | MAP_FIXED, fd, 0);
        if (p == MAP_FAILED) {
                munmap(room, bytes + HUGE_BYTES);
                return MAP_FAILED;
        }
        if (n_before)
                munmap(room, n_before);
        if (n_before < HUGE_BYTES)
                munmap(p + bytes, HUGE_BYTES - n_before);
        return p;
}

void huge_prepare(uint8_t *chunk)
{
        (void)*(volatile uint8_t *)chunk; /* a collapse wants one page to start from */
        madvise(chunk, HUGE_BYTES, MADV_COLLAPSE); /* Linux 6.1; else small pages, one fault each */
}
