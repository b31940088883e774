/* Maps of memfds that get huge pages where the kernel has them: for slabs and staging. Any thread; no lock needed. */
#pragma once

#include <stddef.h>
#include <stdint.h>

enum { HUGE_BYTES = 2 << 20 };

/* mmap() on a boundary of 2 MiB, shared. MAP_FAILED and errno. munmap() what it returns. */
void *huge_map(int fd, size_t bytes, int prot);
/* The chunk of 2 MiB at chunk, which is writable and about to be written whole, gets its memory in one go if it can. */
void huge_prepare(uint8_t *chunk);
