/* What fuzz targets share: an input taken apart piece by piece, checks, and seeds.
 *
 * No seed is kept as a file in the repository: a target makes its own when it starts, and puts them into the corpus directory it was
 * given, where libFuzzer reads them next. */
#pragma once

#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n);

#define FUZZ_CHECK(x)                                                                                                                      \
        do {                                                                                                                               \
                if (!(x)) {                                                                                                                \
                        fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #x);                                                    \
                        abort();                                                                                                           \
                }                                                                                                                          \
        } while (0)

/* What is left of an input. Past its end everything is zero. */
struct input {
        const uint8_t *p;
        size_t n;
};

static inline const uint8_t *input_bytes(struct input *in, size_t wish, size_t *ret_n)
{
        const uint8_t *p = in->p;

        *ret_n = wish < in->n ? wish : in->n;
        if (*ret_n)
                in->p += *ret_n;
        in->n -= *ret_n;
        return p;
}
static inline uint64_t input_number(struct input *in, size_t n_bytes)
{
        uint64_t x = 0;
        size_t n;
        const uint8_t *p = input_bytes(in, n_bytes, &n);

        if (n)
                memcpy(&x, p, n);
        return x;
}
static inline uint8_t input_u8(struct input *in)
{
        return (uint8_t)input_number(in, 1);
}

/* The corpus directory of the command line; NULL: a single input is being run. */
static inline const char *fuzz_corpus(int argc, char **argv)
{
        struct stat st;

        for (int i = 1; i < argc; i++)
                if (argv[i][0] != '-')
                        return stat(argv[i], &st) == 0 && S_ISDIR(st.st_mode) ? argv[i] : NULL;
        return NULL;
}
static inline void fuzz_seed(const char *corpus, const char *name, const void *bytes, size_t n)
{
        char path[4096];

        if (!corpus)
                return;
        snprintf(path, sizeof(path), "%s/seed-%s", corpus, name);
        int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
        FUZZ_CHECK(fd >= 0 && write(fd, bytes, n) == (ssize_t)n);
        close(fd);
}
