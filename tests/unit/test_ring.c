/* Rings: both implementations do the same over a real file. Runs in /var/tmp (or TMPDIR), with O_DIRECT where that file system can. */
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include "daemon/io/buffer.h"
#include "daemon/io/ring.h"
#include "tests/lib/check.h"

enum { PAGE = RING_PAGE_BYTES, FILE_PAGES = 4096, ARENA_PAGES = 4096 };

struct fixture {
        struct queue queue;
        struct buffers buffers;
        struct ring *ring;
        int fd;
        unsigned n_done, n_failed;
        uint64_t seed;
};

struct op {
        struct ring_op op;
        struct fixture *f;
        bool is_done;
};

static struct ring_options options; /* what the next ring is opened with */

static uint32_t rnd(struct fixture *f, uint32_t below)
{
        f->seed = f->seed * 6364136223846793005ull + 1442695040888963407ull;
        return (uint32_t)(f->seed >> 33) % below;
}

static int file_open(void)
{
        const char *dir = getenv("TMPDIR");
        char path[4096];

        snprintf(path, sizeof path, "%s/kvtier-ring-XXXXXX", dir ? dir : "/var/tmp");
        int fd = mkstemp(path);
        CHECK(fd >= 0);
        int direct = open(path, O_RDWR | O_CLOEXEC | O_DIRECT);
        unlink(path);
        if (direct < 0)
                return fd;
        close(fd);
        return direct;
}

static void fixture_open(struct fixture *f, const char *expected_name)
{
        *f = (struct fixture){.seed = 42};
        CHECK_EQ(queue_init(&f->queue), 0);
        CHECK_EQ(buffers_init(&f->buffers, (size_t)ARENA_PAGES * PAGE), 0);
        f->fd = file_open();
        CHECK_EQ(ftruncate(f->fd, (off_t)FILE_PAGES * PAGE), 0);
        CHECK_EQ(ring_open(&f->ring, f->fd, f->buffers.arena, (size_t)ARENA_PAGES * PAGE, &f->queue, &options), 0);
        if (strcmp(f->ring->ops->name, expected_name) != 0)
                check_failed(__FILE__, __LINE__, "the ring is %s, expected %s", f->ring->ops->name, expected_name);
}

static void fixture_close(struct fixture *f)
{
        CHECK_EQ(ring_close(f->ring, 10 * USEC_PER_SEC), 0);
        close(f->fd);
        buffers_deinit(&f->buffers);
        queue_deinit(&f->queue);
}

static void on_done(struct job *j)
{
        struct op *o = container_of(j, struct op, op.job);

        CHECK(!o->is_done);
        CHECK(o->op.finished_usec >= o->op.submitted_usec && o->op.submitted_usec);
        o->is_done = true;
        o->f->n_done++;
        o->f->n_failed += o->op.result != 0;
}

/* Waits until n more operations came back. */
static void collect(struct fixture *f, unsigned n)
{
        uint64_t until = check_now_usec() + 60 * USEC_PER_SEC;

        for (unsigned want = f->n_done + n; f->n_done < want;) {
                struct pollfd p = {.fd = f->queue.event_fd, .events = POLLIN};
                struct list done;
                list_init(&done);
                CHECK(check_now_usec() < until);
                poll(&p, 1, 1000);
                queue_collect(&f->queue, &done);
                list_for_each_safe (j, &done, struct job, link) {
                        list_remove(&j->link);
                        j->done(j);
                }
        }
}

static void submit(struct fixture *f, struct op *o, enum ring_opcode opcode, void *buf, uint64_t page, uint64_t n_pages)
{
        *o = (struct op){
                .f = f, .op = {.job.done = on_done, .opcode = (uint8_t)opcode, .buf = buf, .offset = page * PAGE, .bytes = n_pages * PAGE}};
        o->op.result = 12345;
        ring_submit(f->ring, &o->op);
}

static int run_one(struct fixture *f, enum ring_opcode opcode, void *buf, uint64_t page, uint64_t n_pages)
{
        struct op o;

        submit(f, &o, opcode, buf, page, n_pages);
        ring_kick(f->ring);
        collect(f, 1);
        return o.op.result;
}

static void fill(uint8_t *p, size_t n, uint64_t tag)
{
        for (size_t i = 0; i < n; i += 8) {
                uint64_t v = (tag + i) * 0x9e3779b97f4a7c15ull;
                memcpy(p + i, &v, 8);
        }
}

/* The file agrees with a copy in memory after many random writes, and every read of it agrees, too. */
static void check_random(struct fixture *f)
{
        enum { ROUNDS = 40, BATCH = 16, MAX_PAGES = 40 };
        uint8_t *model = calloc(FILE_PAGES, PAGE);
        struct op ops[BATCH];
        unsigned at[BATCH], len[BATCH];
        void *buf[BATCH];

        for (unsigned round = 0; round < ROUNDS; round++) {
                bool writing = round % 2 == 0;
                unsigned share = FILE_PAGES / BATCH;
                for (unsigned i = 0; i < BATCH; i++) { /* each in its own part of the file: they are not ordered */
                        len[i] = 1 + rnd(f, MAX_PAGES);
                        at[i] = i * share + rnd(f, share - len[i]);
                        buf[i] = buffers_take(&f->buffers, (size_t)len[i] * PAGE);
                        CHECK(buf[i]);
                        if (writing) {
                                fill(buf[i], (size_t)len[i] * PAGE, round * 1000003u + i);
                                memcpy(model + (size_t)at[i] * PAGE, buf[i], (size_t)len[i] * PAGE);
                        } else {
                                memset(buf[i], 0xee, (size_t)len[i] * PAGE);
                        }
                        submit(f, &ops[i], writing ? RING_WRITE : RING_READ, buf[i], at[i], len[i]);
                }
                ring_kick(f->ring);
                collect(f, BATCH);
                for (unsigned i = 0; i < BATCH; i++) {
                        CHECK_EQ(ops[i].op.result, 0);
                        if (!writing)
                                CHECK(memcmp(model + (size_t)at[i] * PAGE, buf[i], (size_t)len[i] * PAGE) == 0);
                        buffers_give(&f->buffers, buf[i], (size_t)len[i] * PAGE);
                }
        }
        CHECK_EQ(run_one(f, RING_FLUSH, NULL, 0, 0), 0);
        uint8_t *all = buffers_take(&f->buffers, (size_t)FILE_PAGES * PAGE); /* more than one request's worth at once */
        CHECK(all);
        CHECK_EQ(run_one(f, RING_READ, all, 0, FILE_PAGES), 0);
        CHECK(memcmp(all, model, (size_t)FILE_PAGES * PAGE) == 0);
        buffers_give(&f->buffers, all, (size_t)FILE_PAGES * PAGE);
        free(model);
}

/* Neighbours, forwards and backwards and with gaps, come back with what is theirs. */
static void check_neighbours(struct fixture *f)
{
        enum { N = 600 };
        struct op *ops = calloc(N, sizeof *ops);
        uint8_t *buf = buffers_take(&f->buffers, (size_t)N * PAGE), *back = buffers_take(&f->buffers, (size_t)N * PAGE);

        CHECK(buf && back);
        fill(buf, (size_t)N * PAGE, 7);
        for (unsigned i = 0; i < N; i++)
                submit(f, &ops[i], RING_WRITE, buf + (size_t)i * PAGE, i, 1);
        ring_kick(f->ring);
        collect(f, N);
        for (unsigned i = 0; i < N; i++)
                CHECK_EQ(ops[i].op.result, 0);
        memset(back, 0, (size_t)N * PAGE);
        for (unsigned i = N; i-- > 0;)
                submit(f, &ops[i], RING_READ, back + (size_t)i * PAGE, i, 1);
        ring_kick(f->ring);
        collect(f, N);
        CHECK(memcmp(buf, back, (size_t)N * PAGE) == 0);
        /* next to each other in the file, but not in memory */
        memset(back, 0, (size_t)N * PAGE);
        for (unsigned i = 0; i < N; i++)
                submit(f, &ops[i], RING_READ, back + (size_t)(N - 1 - i) * PAGE, i, 1);
        ring_kick(f->ring);
        collect(f, N);
        for (unsigned i = 0; i < N; i++)
                CHECK(memcmp(buf + (size_t)i * PAGE, back + (size_t)(N - 1 - i) * PAGE, PAGE) == 0);
        CHECK_EQ(f->n_failed, 0);
        buffers_give(&f->buffers, buf, (size_t)N * PAGE);
        buffers_give(&f->buffers, back, (size_t)N * PAGE);
        free(ops);
}

/* A file that ends in the middle of what is read: only those who lie past its end fail. */
static void check_end(struct fixture *f)
{
        enum { N = 64, END = 41 };
        struct op ops[N];
        uint8_t *buf = buffers_take(&f->buffers, (size_t)N * PAGE);

        CHECK(buf);
        CHECK_EQ(ftruncate(f->fd, 0), 0);
        CHECK_EQ(run_one(f, RING_READ, buf, 0, 1), -ENODATA);
        fill(buf, (size_t)N * PAGE, 3);
        CHECK_EQ(run_one(f, RING_WRITE, buf, 0, N), 0);
        CHECK_EQ(ftruncate(f->fd, (off_t)END * PAGE), 0);
        for (unsigned turn = 0; turn < 4; turn++) {
                unsigned odd = turn / 2, backwards = turn % 2;
                if (odd)
                        CHECK_EQ(ftruncate(f->fd, (off_t)END * PAGE - 1000), 0);
                memset(buf, 0, (size_t)N * PAGE);
                for (unsigned k = 0; k < N; k++) {
                        unsigned i = backwards ? N - 1 - k : k;
                        submit(f, &ops[i], RING_READ, buf + (size_t)i * PAGE, i, 1);
                }
                ring_kick(f->ring);
                collect(f, N);
                for (unsigned i = 0; i < N; i++)
                        CHECK_EQ(ops[i].op.result, i < END - odd ? 0 : -ENODATA);
                uint8_t expected[N * PAGE];
                fill(expected, sizeof expected, 3);
                CHECK(memcmp(expected, buf, (size_t)(END - odd) * PAGE) == 0);
        }
        CHECK_EQ(run_one(f, RING_READ, buf, END - 2, 4), -ENODATA); /* one operation that only begins inside */
        CHECK_EQ(run_one(f, RING_READ, buf, 100000, 1), -ENODATA);
        CHECK_EQ(ftruncate(f->fd, (off_t)FILE_PAGES * PAGE), 0);
        buffers_give(&f->buffers, buf, (size_t)N * PAGE);
}

/* Writes past RLIMIT_FSIZE fail; their neighbours do not. */
static void check_bad_write(void *arg)
{
        enum { N = 64, END = 20 };
        struct fixture f;
        struct op ops[N];
        struct rlimit limit = {END * PAGE, END * PAGE};

        fixture_open(&f, arg);
        CHECK_EQ(ftruncate(f.fd, 0), 0);
        uint8_t *buf = buffers_take(&f.buffers, (size_t)N * PAGE);
        signal(SIGXFSZ, SIG_IGN);
        CHECK_EQ(setrlimit(RLIMIT_FSIZE, &limit), 0);
        for (unsigned i = 0; i < N; i++)
                submit(&f, &ops[i], RING_WRITE, buf + (size_t)i * PAGE, i, 1);
        ring_kick(f.ring);
        collect(&f, N);
        for (unsigned i = 0; i < N; i++)
                CHECK_EQ(ops[i].op.result, i < END ? 0 : -EFBIG);
        fixture_close(&f);
}

/* One page of memory in the middle cannot be written to: only the operation on it fails, whatever it was merged with and in which order. */
static void check_bad_page(const char *name)
{
        enum { N = 64, BAD = 29 };
        struct fixture f;
        struct op ops[N];

        fixture_open(&f, name);
        uint8_t *buf = buffers_take(&f.buffers, (size_t)N * PAGE), *expected = malloc((size_t)N * PAGE);
        fill(buf, (size_t)N * PAGE, 11);
        memcpy(expected, buf, (size_t)N * PAGE);
        CHECK_EQ(run_one(&f, RING_WRITE, buf, 0, N), 0);
        CHECK_EQ(ring_close(f.ring, 10 * USEC_PER_SEC), 0); /* the next one finds an arena it cannot register */
        CHECK_EQ(mprotect(buf + BAD * PAGE, PAGE, PROT_NONE), 0);
        CHECK_EQ(ring_open(&f.ring, f.fd, f.buffers.arena, (size_t)ARENA_PAGES * PAGE, &f.queue, &options), 0);
        for (unsigned backwards = 0; backwards < 2; backwards++) {
                memset(buf, 0, (size_t)BAD * PAGE);
                memset(buf + (size_t)(BAD + 1) * PAGE, 0, (size_t)(N - BAD - 1) * PAGE);
                for (unsigned k = 0; k < N; k++) {
                        unsigned i = backwards ? N - 1 - k : k;
                        submit(&f, &ops[i], RING_READ, buf + (size_t)i * PAGE, i, 1);
                }
                ring_kick(f.ring);
                collect(&f, N);
                for (unsigned i = 0; i < N; i++) {
                        CHECK_EQ(ops[i].op.result, i == BAD ? -EFAULT : 0);
                        CHECK(i == BAD || memcmp(buf + (size_t)i * PAGE, expected + (size_t)i * PAGE, PAGE) == 0);
                }
        }
        free(expected);
        fixture_close(&f);
}

/* A ring that has nothing to do costs nothing. */
static void check_idle(struct fixture *f)
{
        struct timespec before, after;

        CHECK_EQ(run_one(f, RING_FLUSH, NULL, 0, 0), 0);
        clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &before);
        usleep(300000);
        clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &after);
        CHECK((after.tv_sec - before.tv_sec) * 1000 + (after.tv_nsec - before.tv_nsec) / 1000000 < 100);
}

static void check_discard(struct fixture *f)
{
        struct stat before, after;
        uint8_t *buf = buffers_take(&f->buffers, (size_t)1024 * PAGE);

        CHECK(buf);
        fill(buf, (size_t)1024 * PAGE, 5);
        CHECK_EQ(run_one(f, RING_WRITE, buf, 0, 1024), 0);
        CHECK_EQ(run_one(f, RING_FLUSH, NULL, 0, 0), 0);
        CHECK_EQ(fstat(f->fd, &before), 0);
        int r = run_one(f, RING_DISCARD, NULL, 256, 512);
        if (r == -EOPNOTSUPP) {
                printf("this file system punches no holes\n");
        } else {
                CHECK_EQ(r, 0);
                CHECK_EQ(fstat(f->fd, &after), 0);
                CHECK(after.st_blocks <= before.st_blocks - 512 * PAGE / 512);
                CHECK_EQ(after.st_size, before.st_size);
                CHECK_EQ(run_one(f, RING_READ, buf, 0, 1024), 0);
                for (unsigned i = 256 * PAGE; i < 768 * PAGE; i++)
                        CHECK(buf[i] == 0);
                CHECK(buf[255 * PAGE + 8] && buf[768 * PAGE + 8]);
        }
        buffers_give(&f->buffers, buf, (size_t)1024 * PAGE);
        CHECK_EQ(run_one(f, RING_DISCARD, NULL, 0, 0), -EINVAL); /* the kernel's word comes through */
}

/* Many more operations than the kernel is given at once, kicked in portions of all sizes. */
static void check_many(struct fixture *f)
{
        enum { N = 10000, SLOTS = 1024 };
        struct op *ops = calloc(N, sizeof *ops);
        uint8_t *buf = buffers_take(&f->buffers, (size_t)SLOTS * PAGE);

        CHECK(buf);
        fill(buf, (size_t)SLOTS * PAGE, 9);
        for (unsigned i = 0; i < N; i++) {
                unsigned slot = i % SLOTS;
                /* all writers of a page write the same bytes: the outcome does not depend on order */
                submit(f, &ops[i], i >= SLOTS && i % 997 == 0 ? RING_FLUSH : RING_WRITE, buf + (size_t)slot * PAGE, slot, 1);
                if (rnd(f, 200) == 0)
                        ring_kick(f->ring);
        }
        ring_kick(f->ring);
        ring_kick(f->ring); /* nothing to do */
        collect(f, N);
        for (unsigned i = 0; i < N; i++)
                CHECK_EQ(ops[i].op.result, 0);
        uint8_t *back = buffers_take(&f->buffers, (size_t)SLOTS * PAGE);
        CHECK(back);
        CHECK_EQ(run_one(f, RING_READ, back, 0, SLOTS), 0);
        CHECK(memcmp(buf, back, (size_t)SLOTS * PAGE) == 0);
        buffers_give(&f->buffers, back, (size_t)SLOTS * PAGE);
        buffers_give(&f->buffers, buf, (size_t)SLOTS * PAGE);
        free(ops);
}

/* What is under way at close is finished and can be collected afterwards. */
static void check_close_busy(const char *name)
{
        enum { N = 500 };
        struct fixture f;
        struct op *ops = calloc(N, sizeof *ops);

        fixture_open(&f, name);
        uint8_t *buf = buffers_take(&f.buffers, (size_t)N * PAGE);
        for (unsigned i = 0; i < N; i++) {
                submit(&f, &ops[i], RING_WRITE, buf + (size_t)i * PAGE, (uint64_t)i * 3 % FILE_PAGES, 1);
                if (i == N / 2)
                        ring_kick(f.ring);
        }
        CHECK_EQ(ring_close(f.ring, 60 * USEC_PER_SEC), 0);
        f.ring = NULL;
        collect(&f, N);
        CHECK_EQ(f.n_failed, 0);
        fixture_close(&f);
        free(ops);
}

/* A read that hangs (its buffer is a page nobody provides): close gives up in time, and nothing comes back ever. */
static void check_hang(void *arg)
{
        struct fixture f;
        struct op hung;
        struct list done;

        int ufd = (int)syscall(SYS_userfaultfd, O_CLOEXEC);
        if (ufd < 0) {
                printf("no userfaultfd: a hang is not tried\n");
                return;
        }
        fixture_open(&f, arg);
        CHECK_EQ(run_one(&f, RING_FLUSH, NULL, 0, 0), 0);
        uint8_t *trap = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        struct uffdio_api api = {.api = UFFD_API};
        struct uffdio_register reg = {.range = {(uintptr_t)trap, PAGE}, .mode = UFFDIO_REGISTER_MODE_MISSING};
        CHECK_EQ(ioctl(ufd, UFFDIO_API, &api), 0);
        CHECK_EQ(ioctl(ufd, UFFDIO_REGISTER, &reg), 0);
        submit(&f, &hung, RING_READ, trap, 0, 1);
        ring_kick(f.ring);
        struct pollfd p = {.fd = ufd, .events = POLLIN};
        CHECK_EQ(poll(&p, 1, 10000), 1); /* it hangs now */
        uint64_t begin = check_now_usec();
        CHECK_EQ(ring_close(f.ring, 50000), -EBUSY);
        CHECK(check_now_usec() - begin >= 50000 && check_now_usec() - begin < 5 * USEC_PER_SEC);
        /* let it go: still nothing may arrive in a queue that may be gone */
        struct uffdio_zeropage zero = {.range = {(uintptr_t)trap, PAGE}};
        CHECK_EQ(ioctl(ufd, UFFDIO_ZEROPAGE, &zero), 0);
        usleep(100000);
        list_init(&done);
        queue_collect(&f.queue, &done);
        CHECK(list_empty(&done));
        CHECK(!hung.is_done);
        _exit(0); /* the ring is leaked on purpose */
}

static void check_all(const char *name)
{
        struct fixture f;

        fixture_open(&f, name);
        check_random(&f);
        check_neighbours(&f);
        check_end(&f);
        check_discard(&f);
        fixture_close(&f);
        fixture_open(&f, name);
        check_many(&f);
        check_idle(&f);
        fixture_close(&f);
        check_bad_page(name);
        check_close_busy(name);
        child_run(check_bad_write, (void *)name);
        child_run(check_hang, (void *)name);
}

/* The name of what serves where io_uring is asked for. */
static const char *uring_name(void)
{
        struct ring *r;
        struct queue q;
        int fd = file_open();

        CHECK_EQ(queue_init(&q), 0);
        int e = ring_uring_open(&r, fd, NULL, 0, &q, &options);
        const char *name = e < 0 ? NULL : r->ops->name;
        if (!name)
                check_skip("io_uring is forbidden or absent here");
        CHECK_EQ(ring_close(r, USEC_PER_SEC), 0);
        queue_deinit(&q);
        close(fd);
        return name;
}

static void test_uring(void **state)
{
        options = (struct ring_options){.depth = 32};
        check_all(uring_name());
}

static void test_uring_shallow(void **state)
{
        options = (struct ring_options){.depth = 1};
        check_all(uring_name());
}

static void test_uring_poll(void **state)
{
        struct fixture f;

        options = (struct ring_options){.depth = 16, .poll = true};
        (void)uring_name();
        f = (struct fixture){.seed = 42};
        CHECK_EQ(queue_init(&f.queue), 0);
        CHECK_EQ(buffers_init(&f.buffers, (size_t)ARENA_PAGES * PAGE), 0);
        f.fd = file_open();
        uint8_t *buf = f.buffers.arena;
        fill(buf, PAGE * 16, 1);
        CHECK_EQ(pwrite(f.fd, buf, PAGE * 16, 0), PAGE * 16);
        CHECK_EQ(fsync(f.fd), 0);
        CHECK_EQ(ring_open(&f.ring, f.fd, f.buffers.arena, (size_t)ARENA_PAGES * PAGE, &f.queue, &options), 0);
        printf("asked to poll: %s\n", f.ring->ops->name);
        CHECK(strncmp(f.ring->ops->name, "io_uring", 8) == 0);
        CHECK_EQ(ftruncate(f.fd, 0), 0);
        CHECK_EQ(ftruncate(f.fd, (off_t)FILE_PAGES * PAGE), 0);
        check_random(&f);
        check_end(&f);
        check_discard(&f);
        check_many(&f);
        fixture_close(&f);
}

static void test_pread(void **state)
{
        options = (struct ring_options){.depth = 32, .no_uring = true};
        check_all("pread");
}

static void forbid_io_uring(void)
{
        struct sock_filter code[] = {
                BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 0 /* the number of the call */),
                BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_io_uring_setup, 0, 1),
                BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
                BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
        };
        struct sock_fprog program = {.len = sizeof code / sizeof *code, .filter = code};

        CHECK_EQ(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        CHECK_EQ(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program), 0);
}

static void check_forbidden(void *arg)
{
        struct fixture f;

        forbid_io_uring();
        fixture_open(&f, "pread");
        check_random(&f);
        fixture_close(&f);
}

static void test_forbidden(void **state)
{
        options = (struct ring_options){.depth = 32};
        child_run(check_forbidden, NULL);
}

/* Without the right to pin memory all goes the plain way. */
static void test_no_memlock(void **state)
{
        struct fixture f;
        struct rlimit limit = {1 << 20, 1 << 20}; /* enough for the ring itself, not for the arena */

        if (geteuid() != 0)
                check_skip("not root");
        options = (struct ring_options){.depth = 32};
        const char *name = uring_name();
        pid_t pid = fork();
        if (pid == 0) {
                if (setrlimit(RLIMIT_MEMLOCK, &limit) != 0 || setgid(65534) != 0 || setuid(65534) != 0)
                        _exit(9);
                fixture_open(&f, name);
                check_random(&f);
                check_neighbours(&f);
                fixture_close(&f);
                _exit(0);
        }
        child_join(pid);
}

static int open_mine(struct ring **ret, int fd, void *arena, size_t n_arena, struct queue *q, const struct ring_options *o)
{
        return fd == 77 ? -EXDEV : 0;
}

static void test_set_open(void **state)
{
        struct ring *r = NULL;

        ring_set_open(open_mine);
        CHECK_EQ(ring_open(&r, 77, NULL, 0, NULL, &options), -EXDEV);
        ring_set_open(NULL);
        struct queue q;
        CHECK_EQ(queue_init(&q), 0);
        CHECK_EQ(ring_open(&r, 0, NULL, 0, &q, &(struct ring_options){.no_uring = true}), 0);
        CHECK(strcmp(r->ops->name, "pread") == 0);
        CHECK_EQ(ring_close(r, USEC_PER_SEC), 0);
        CHECK_EQ(ring_close(NULL, 0), 0);
        queue_deinit(&q);
}

int main(void)
{
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_uring),    cmocka_unit_test(test_uring_shallow), cmocka_unit_test(test_uring_poll),
                cmocka_unit_test(test_pread),    cmocka_unit_test(test_forbidden),     cmocka_unit_test(test_no_memlock),
                cmocka_unit_test(test_set_open),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
