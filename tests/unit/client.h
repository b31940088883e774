/* What the tests of the library share: a connection to a fake daemon, and memory to put from and get into. */
#pragma once

#include <time.h>

#include "include/kvtier.h"
#include "tests/unit/fake.h"

struct fixture {
        struct fake *f;
        kvt *c;
        kvt_space *s;
};

static inline uint64_t now(void)
{
        struct timespec t;

        clock_gettime(CLOCK_MONOTONIC, &t);
        return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

/* Waits, at most a second, until a counter that another thread moves has this value. */
#define eventually(expression)                                                                                                             \
        do {                                                                                                                               \
                uint64_t until = now() + 1000000;                                                                                          \
                while (!(expression) && now() < until)                                                                                     \
                        usleep(1000);                                                                                                      \
                assert_true(expression);                                                                                                   \
        } while (0)

static inline int open_at(struct fake *f, uint64_t timeout_usec, uint32_t flags, kvt **ret)
{
        kvt_options o = {.struct_size = sizeof(o), .path = f->path, .timeout_usec = timeout_usec, .flags = flags};
        return kvt_open(&o, ret);
}

static inline kvt_space_config space_config(void)
{
        return (kvt_space_config){.struct_size = sizeof(kvt_space_config),
                                  .name = "model",
                                  .block_tokens = FAKE_TOKENS,
                                  .n_shards = 1,
                                  .planes = fake_planes,
                                  .n_planes = 2};
}

static inline void open_both(struct fixture *x, uint64_t timeout_usec, uint32_t flags)
{
        kvt_space_config config = space_config();

        assert_int_equal(open_at(x->f, timeout_usec, flags, &x->c), 0);
        assert_int_equal(kvt_space_open(x->c, &config, &x->s), 0);
}

static inline int setup_flags(void **state, uint32_t flags)
{
        struct fixture *x = calloc(1, sizeof(*x));

        x->f = fake_new();
        open_both(x, 1000000, flags);
        *state = x;
        return 0;
}

static inline int setup(void **state)
{
        return setup_flags(state, 0);
}

static inline int setup_no_map(void **state)
{
        return setup_flags(state, KVT_OPEN_NO_MAP);
}

static inline int setup_no_thread(void **state)
{
        return setup_flags(state, KVT_OPEN_NO_THREAD);
}

static inline int teardown(void **state)
{
        struct fixture *x = *state;

        kvt_close(x->c);
        fake_free(x->f);
        free(x);
        return 0;
}

static inline void fill(struct fixture *x, unsigned n)
{
        for (unsigned i = 0; i < n; i++)
                fake_fill(x->f, i);
}

static inline void make_keys(kvt_key *keys, unsigned n)
{
        for (unsigned i = 0; i < n; i++)
                keys[i] = fake_key(i);
}

/* an HND view over memory for n blocks: each plane of a block is contiguous if n is 1, else heads are apart */
struct memory {
        uint8_t *bytes;
        size_t plane_bytes;
        kvt_plane_view planes[2];
        kvt_view view;
};

static inline void memory_init(struct memory *m, unsigned n)
{
        size_t row = 128, head = row * FAKE_TOKENS * n;

        m->plane_bytes = 4 * head;
        m->bytes = calloc(2, m->plane_bytes);
        for (int i = 0; i < 2; i++)
                m->planes[i] = (kvt_plane_view){.base = m->bytes + (size_t)i * m->plane_bytes,
                                                .token_stride = (ptrdiff_t)row,
                                                .head_stride = (ptrdiff_t)head};
        m->view = (kvt_view){.planes = m->planes, .n_planes = 2};
}

static inline uint8_t *memory_at(const struct memory *m, unsigned plane, size_t token, unsigned head)
{
        return (uint8_t *)m->planes[plane].base + (ptrdiff_t)token * m->planes[plane].token_stride +
               (ptrdiff_t)head * m->planes[plane].head_stride;
}

/* Whether these tokens of block i hold what fake_fill() stored. */
static inline bool memory_holds(const struct memory *m, unsigned i_block, unsigned plane, unsigned first_token)
{
        for (unsigned h = 0; h < 4; h++)
                for (unsigned t = first_token; t < FAKE_TOKENS; t++)
                        for (unsigned b = 0; b < 128; b++)
                                if (memory_at(m, plane, i_block * FAKE_TOKENS + t, h)[b] !=
                                    fake_byte(i_block, plane * FAKE_PART / 2 + (h * FAKE_TOKENS + t) * 128 + b))
                                        return false;
        return true;
}

static inline void memory_fill(struct memory *m, unsigned n)
{
        for (unsigned i = 0; i < n; i++)
                for (unsigned p = 0; p < 2; p++)
                        for (unsigned h = 0; h < 4; h++)
                                for (unsigned t = 0; t < FAKE_TOKENS; t++)
                                        for (unsigned b = 0; b < 128; b++)
                                                memory_at(m, p, i * FAKE_TOKENS + t, h)[b] =
                                                        fake_byte(i, p * FAKE_PART / 2 + (h * FAKE_TOKENS + t) * 128 + b);
}

static inline void count_done(int status, void *arg)
{
        atomic_int *n = arg;

        n[0]++;
        n[1] = status;
}
