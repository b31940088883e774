#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include "daemon/store/slab.h"

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif
#ifndef MFD_HUGE_2MB
#define MFD_HUGE_2MB (21u << 26)
#endif

uint64_t slab_class_bytes(uint64_t n)
{
        uint64_t step = 1;

        while (step * 32 <= n)
                step *= 2;
        step = MAX(step, n >= 65536 ? 4096ull : n >= 4096 ? 64ull : 8ull);
        return align_up(n, step);
}

/* Does a plain MADV_HUGEPAGE on shared memory work here, or must pages be collapsed by hand? */
static bool shmem_thp_enabled(void)
{
        char text[128] = "";
        FILE *f = fopen("/sys/kernel/mm/transparent_hugepage/shmem_enabled", "re");

        if (!f)
                return false;
        size_t n = fread(text, 1, sizeof text - 1, f);
        fclose(f);
        text[n] = 0;
        return !strstr(text, "[never]") && !strstr(text, "[deny]");
}

static bool free_huge_pages(uint64_t bytes)
{
        unsigned long long n = 0;
        FILE *f = fopen("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages", "re");

        if (!f)
                return false;
        if (fscanf(f, "%llu", &n) != 1)
                n = 0;
        fclose(f);
        return n >= bytes / CHUNK_BYTES;
}

/* A writable map on a 2 MiB boundary, then the seals, in this order: FUTURE_WRITE spares maps that exist. */
static int map_and_seal(struct slab *s)
{
        uint8_t *room, *at;

        if (ftruncate(s->fd, (off_t)s->bytes) < 0)
                return -errno;
        room = mmap(NULL, s->bytes + CHUNK_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (room == MAP_FAILED)
                return -errno;
        at = (uint8_t *)align_up((uintptr_t)room, CHUNK_BYTES);
        if (mmap(at, s->bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, s->fd, 0) == MAP_FAILED) {
                int r = -errno;
                munmap(room, s->bytes + CHUNK_BYTES);
                return r;
        }
        if (at > room)
                munmap(room, (size_t)(at - room));
        munmap(at + s->bytes, (size_t)(room + CHUNK_BYTES - at));
        s->base = at;
        if (fcntl(s->fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_FUTURE_WRITE | F_SEAL_SEAL) < 0)
                return -errno;
        return 0;
}

static int open_memory(struct slab *s, bool huge_pages)
{
        char name[32];
        int r;

        snprintf(name, sizeof name, "kvtier-slab-%u", s->id);
        if (huge_pages && free_huge_pages(s->bytes)) {
                s->fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_HUGETLB | MFD_HUGE_2MB);
                if (s->fd >= 0 && map_and_seal(s) == 0) { /* the map reserves the pages: no SIGBUS later */
                        s->kind = PAGES_HUGE;
                        return 0;
                }
                if (s->base)
                        munmap(s->base, s->bytes);
                s->base = NULL;
                if (s->fd >= 0)
                        close(s->fd);
        }
        s->fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
        if (s->fd < 0)
                return -errno;
        r = map_and_seal(s);
        if (r < 0)
                return r;
        if (huge_pages) {
                s->kind = PAGES_THP;
                s->collapse = !shmem_thp_enabled();
                if (madvise(s->base, s->bytes, MADV_HUGEPAGE) < 0)
                        s->kind = PAGES_4K;
        }
        return 0;
}

int slab_new(struct slab **ret, uint32_t id, uint64_t bytes, bool huge_pages)
{
        struct slab *s = new0(struct slab, 1);

        if (!s)
                return -ENOMEM;
        s->id = id;
        s->fd = -1;
        s->bytes = bytes;
        list_init(&s->link);
        list_init(&s->job.link);
        s->job.work = slab_populate_work;
        s->job.background = true;
        s->chunks = new0(uint64_t, bytes / CHUNK_BYTES / 64 + 1);
        int r = s->chunks ? open_memory(s, huge_pages) : -ENOMEM;
        if (r < 0) {
                slab_free(s);
                return r;
        }
        *ret = s;
        return 0;
}

struct slab *slab_free(struct slab *s)
{
        if (!s)
                return NULL;
        ASSERT(!s->n_jobs && !s->n_holders);
        list_remove(&s->link);
        if (s->slots)
                munmap(s->slots, s->n_slots * sizeof *s->slots);
        if (s->base)
                munmap(s->base, s->bytes);
        if (s->fd >= 0)
                close(s->fd);
        free(s->chunks);
        free(s);
        return NULL;
}

int slab_format(struct slab *s, uint64_t slot_bytes)
{
        uint32_t n = (uint32_t)MIN(s->bytes / slot_bytes, (uint64_t)UINT32_MAX - 1);
        struct slot *slots;

        ASSERT(!s->n_used && n > 0);
        if (s->slot_bytes == slot_bytes)
                return 0;
        ASSERT(!s->n_holders); /* they would find generations elsewhere */
        slots = mmap(NULL, n * sizeof *slots, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (slots == MAP_FAILED)
                return -ENOMEM;
        if (s->slots)
                munmap(s->slots, s->n_slots * sizeof *s->slots);
        s->slots = slots;
        s->n_slots = n;
        s->n_bumped = 0;
        s->free_head = 0;
        s->slot_bytes = slot_bytes;
        return 0;
}

uint32_t slab_take_slot(struct slab *s)
{
        uint32_t i;

        ASSERT(!slab_full(s));
        if (s->free_head) {
                i = s->free_head - 1;
                s->free_head = s->slots[i].block;
        } else {
                i = s->n_bumped++;
                ASSERT(i < s->n_slots);
        }
        ASSERT(s->slots[i].state == SLOT_FREE && !s->slots[i].n_pins);
        s->slots[i] = (struct slot){.state = SLOT_RESERVED};
        s->n_used++;
        s->n_held++;
        return i;
}

void slab_give_slot(struct slab *s, uint32_t slot)
{
        struct slot *k = &s->slots[slot];

        ASSERT(k->state != SLOT_FREE && !k->n_pins && s->n_used > 0);
        if (k->generation) {
                __atomic_store_n(&slab_header(s, slot)->generation, 0, __ATOMIC_RELAXED);
                __atomic_thread_fence(__ATOMIC_RELEASE); /* before anything is written over the payload */
        }
        s->n_held -= k->state != SLOT_LIVE;
        *k = (struct slot){.block = s->free_head};
        s->free_head = slot + 1;
        s->n_used--;
}

static bool chunk_there(const struct slab *s, uint64_t i)
{
        return __atomic_load_n(&s->chunks[i / 64], __ATOMIC_ACQUIRE) >> i % 64 & 1;
}

/* The value does not matter, and somebody else may be writing it. */
__attribute__((no_sanitize("thread"), noinline)) static void touch(const uint8_t *at)
{
        (void)*(const volatile uint8_t *)at;
}

/* Two workers may do this to one chunk at once: nothing here writes to it. */
static int populate_chunk(struct slab *s, uint64_t i)
{
        uint8_t *at = s->base + i * CHUNK_BYTES;

        if (s->collapse && __atomic_load_n((int *)&s->kind, __ATOMIC_RELAXED) == PAGES_THP) {
                touch(at); /* a collapse wants one page to start from */
                if (madvise(at, CHUNK_BYTES, MADV_COLLAPSE) < 0)
                        __atomic_store_n((int *)&s->kind, PAGES_4K,
                                         __ATOMIC_RELAXED); /* fragmented or forbidden: small pages from here on */
        }
        /* EINVAL: a kernel before 5.14 */
        if (madvise(at, CHUNK_BYTES, MADV_POPULATE_WRITE) < 0 &&
            (errno != EINVAL || fallocate(s->fd, 0, (off_t)(i * CHUNK_BYTES), (off_t)CHUNK_BYTES) < 0))
                return -errno;
        __atomic_fetch_or(&s->chunks[i / 64], 1ull << i % 64, __ATOMIC_RELEASE);
        return 0;
}

int slab_populate(struct slab *s, uint64_t offset, uint64_t n)
{
        for (uint64_t i = offset / CHUNK_BYTES; i <= (offset + n - 1) / CHUNK_BYTES; i++) {
                int r = chunk_there(s, i) ? 0 : populate_chunk(s, i);
                if (r < 0)
                        return r;
        }
        return 0;
}

void slab_populate_work(struct job *j)
{
        struct slab *s = container_of(j, struct slab, job);
        uint32_t n_chunks = (uint32_t)(s->bytes / CHUNK_BYTES);

        while (s->i_chunk < n_chunks && chunk_there(s, s->i_chunk))
                s->i_chunk++;
        s->populate_result = s->i_chunk < n_chunks;
        if (s->populate_result) { /* one chunk, then what is urgent comes first */
                int r = populate_chunk(s, s->i_chunk);
                if (r < 0)
                        s->populate_result = r;
        }
}

void slab_release_work(struct job *j)
{
        struct slab *s = container_of(j, struct slab, job);

        munmap(s->base, s->bytes);
        s->base = NULL;
        close(s->fd);
        s->fd = -1;
}
