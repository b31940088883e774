/* Inputs that fuzz_frame begins with: what its steps are stands there. And what its clients have in staging. */
#pragma once

#include "libclient/codec/ladder.h"
#include "libclient/codec/part.h"
#include "tests/fuzz/messages.h"

enum { STEP_BYTES = 12, N_TYPES = 42 /* kinds of requests, see step() */ };

/* Which the daemon may have in its configuration: the last byte of the first step says. */
static const char *const ladders[][LADDER_N] = {{"raw", "zbf", "raw"},
                                                {"zbf", "zbf", "zbf"},
                                                {"kivi:bits=4", "kivi:bits=2", "zbf"},
                                                {"raw", "turbo", "turbo:bits=2"},
                                                {"stack:levels=4", "stack:levels=1", "kivi+zbf"},
                                                {"zbf", "gear", "mixed"},
                                                {"bitmap", "bitmap:keep=20", "raw"},
                                                {"turbo:bits=4", "turbo:bits=1", "turbo"}};

static const uint8_t park[][STEP_BYTES] = {{0, 0, 3, 0, 1, 0xd0}, {0xba}, {0xba}, {5}, {1, 0, 3, 0, 1},
                                           {1, 0, 3, 0, 1},       {0xc8}, {0xd0}, {5}, {0xe2, 200}};
static const uint8_t deaf[][STEP_BYTES] = {{0xe0}, {23, 0, 255}, {23, 0, 255}, {23, 0, 255}, {16}, {0xff}, {0xe7}, {23, 0, 255}, {0xd0}};
/* another tenant's leases on all it has, then somebody who needs room */
static const uint8_t leased[][STEP_BYTES] = {
        {24, 3, 3, 0},
        {0xff, 3, 4, 0, 0, 0xd0},
        {0xff, 3, 4, 0x40, 0, 0xd0},
        {0xff, 3, 4, 0x80, 0, 0xd0},
        {0xff, 3, 4, 0xc0, 0, 0xd0},
        {1, 3, 4, 0, 0},
        {1, 3, 4, 0x40, 0},
        {1, 3, 4, 0x80, 0},
        {1, 3, 4, 0xc0, 0},
        {0xff, 0, 3, 0, 0, 0xd0},
        {0xff, 0, 3, 0x40},
        {0xff, 0, 3, 0x80, 0, 0xd0},
        {0xff, 0, 3, 0xc0, 0, 0xd0},
        {0xff, 0, 3, 0, 3, 0xd0},
        {0xe2, 200},
        {0xff, 0, 3, 1, 5, 0xd0},
};

/* More than memory has room for, so that the first are on the device only; then they are read, the device goes and comes, and the daemon. */
static const uint8_t nvme[][STEP_BYTES] = {
        {0xff, 0, 3, 0, 5},
        {0xff, 0, 3, 0x40, 5},
        {0xff, 0, 3, 0x80, 5, 0, 8},
        {0xff, 0, 3, 0xc0, 5},
        {0xd0},
        {3, 0, 3, 0, 5},
        {0xe9},
        {0xd0},
        {9, 0, 3, 0x40, 5, 200},
        {6, 0, 3, 0x40, 5},
        {0xd0},
        {36, 0, 3, 0},
        {36, 0, 2, 0},
        {36, 0, 1, 0},
        {0xd0},
        {36, 0, 0, 0},
        {0xd0},
        {3, 0, 3, 0x80, 5, 0, 8, 0, 1},
        {21, 0, 4},
        {0xd0},
        {0xed},
        {0xd0},
        {6, 0, 3, 0x40, 5},
        {1, 0, 3, 0x40, 5},
        {0xd0},
        {0xec, 12, 24, 0, 1},
        {0xec, 16, 1, 0, 1, 1},
        {0xed},
        {0xd0},
        {10, 0, 3, 0, 3},
        {0xd0},
};

/* A space of this shape that is larger than memory, and then than the device: its blocks are replaced, read in part and whole, dropped, moved, and
 * found again by the next daemon. */
static void write_nvme_seed(const char *corpus, unsigned shape, uint8_t fidelity, uint8_t ladder)
{
        const uint8_t s = (uint8_t)shape, then[][STEP_BYTES] = {{0xd0},
                                                                {3, 0, 4, 0, 5, 0, 8, 1, 1},
                                                                {0xd0},
                                                                {3, 0, 4, 0x40, 5},
                                                                {9, 0, 4, 0x80, 5, 200},
                                                                {0xd0},
                                                                {6, 0, 4, 0x80, 5},
                                                                {1, 0, 4, 0x80, 5},
                                                                {0xd0},
                                                                {10, 0, 4, 0, 1},
                                                                {0xd0},
                                                                {36, 0, 2},
                                                                {0xd0},
                                                                {0xed},
                                                                {0xdd, 0, s, fidelity},
                                                                {0xd0},
                                                                {6, 0, 9, 0x40, 5},
                                                                {3, 0, 9, 0x40, 5, 0, 8, 1, 1},
                                                                {0xd0}};
        uint8_t seed[64][STEP_BYTES] = {{0xdd, 0, s, fidelity, [STEP_BYTES - 1] = ladder}};
        char name[32];
        unsigned n = 1;

        for (unsigned i = 0; i < 16; i++)
                memcpy(seed[n++], (uint8_t[STEP_BYTES]){0xff, 0, 4, (uint8_t)(i << 6), 5, 0, i < 4 ? 0 : 0x80}, STEP_BYTES);
        memcpy(seed[n], then, sizeof(then));
        snprintf(name, sizeof(name), "nvme-%u-%u-%u", shape, fidelity, ladder);
        fuzz_seed(corpus, name, seed, n * STEP_BYTES + sizeof(then));
}

/* Puts with hints under a ladder, which then changes; they get cold, are read, mapped and replaced meanwhile. */
static void write_coded_seed(const char *corpus, unsigned shape, uint8_t ladder)
{
        const uint8_t s = (uint8_t)shape, l = ladder, hints = shape == 2 ? 5 : 2,
                      seed[][STEP_BYTES] = {{0xdd, 0, s, 3, [STEP_BYTES - 1] = l},
                                            {0, 0, 4, 0, 0, 0, 0x10, hints},
                                            {0, 0, 4, 0x40, 1, 0, 0x10, hints},
                                            {0xba},
                                            {1, 0, 4, 0, 0},
                                            {0xc8},
                                            {0xc8},
                                            {0xe2, 200},
                                            {0xc8},
                                            {3, 0, 4, 0x40, 1, 0},
                                            {0xd0},
                                            {0xe2, 250},
                                            {0xd0},
                                            {40, 0, shape == 2 ? 10 : 0, l, 2, 5},
                                            {0xff, 0, 4, 0, 1, 0, 0x90, hints},
                                            {0xe2, 200},
                                            {0xc8},
                                            {10, 0, 4, 0x40, 1, 1},
                                            {0xff, 0, 4, 0x80, 5},
                                            {0xe2, 250},
                                            {0xc8},
                                            {0xe6},
                                            {1, 0, 4, 0, 0},
                                            {0xd0},
                                            {0xe6}};
        char name[16];

        snprintf(name, sizeof(name), "coded-%u-%u", shape, ladder);
        fuzz_seed(corpus, name, seed, sizeof(seed));
}

/* For each shape, every kind of request at a few keys, in three orders. */
static void write_seeds(const char *corpus)
{
        uint8_t seed[64][STEP_BYTES];
        char name[16];

        fuzz_seed(corpus, "park", park, sizeof(park));
        fuzz_seed(corpus, "deaf", deaf, sizeof(deaf));
        fuzz_seed(corpus, "leased", leased, sizeof(leased));
        fuzz_seed(corpus, "nvme", nvme, sizeof(nvme));
        for (unsigned shape = 0; corpus && shape < N_SHAPES; shape++) {
                memset(seed, 0, sizeof(seed));
                for (unsigned i = 0; i < 64; i++) {
                        uint8_t *p = seed[i];
                        unsigned what = i * (shape % 3 * 2 + 1) % 64;
                        p[0] = what < N_TYPES ? (uint8_t)what : what % 2 ? 0xff : 0xd0;
                        p[2] = (uint8_t)(shape + i / 16);
                        p[1] = i % 7 ? 0 : (uint8_t)(i % 4);
                        p[3] = (uint8_t)(i % 4);
                        p[4] = (uint8_t)(i % 5);
                }
                write_nvme_seed(corpus, shape, 0, (uint8_t)(shape % 3));
                for (uint8_t ladder = 0; ladder < 8 && (shape == 2 || shape == 8); ladder++) { /* floats: under lossy codecs */
                        write_nvme_seed(corpus, shape, 3, ladder);
                        write_coded_seed(corpus, shape, ladder);
                }
                seed[0][0] = 0xdd; /* begins anew, with this shape */
                seed[0][2] = (uint8_t)shape;
                seed[0][3] = shape & 1 ? 3 : 0;
                seed[0][STEP_BYTES - 1] = (uint8_t)shape;
                snprintf(name, sizeof(name), "%u", shape);
                fuzz_seed(corpus, name, seed, sizeof(seed));
        }
}

/* Numbers that look like values, so that codecs have work; each kilobyte begins with what may be hints. */
static void staging_fill(int fd)
{
        static uint8_t bytes[128 << 10];
        static bool filled;

        for (size_t i = 0; !filled && i < sizeof(bytes); i++) {
                bytes[i] = (uint8_t)(i & 1 ? 0x38 + i / 2 % 64 / 8 % 4 : i * i * 7 >> 5 & 0x7f);
                if (i % 1024 > 160 && i & 1)
                        bytes[i] |= (uint8_t)(i * 3 & 0x80);
                if (i % 1024 == 0)
                        bytes[i] = HINT_PROTECT | HINT_SCORES;
        }
        filled = true;
        ssize_t ignored = pwrite(fd, bytes, sizeof(bytes), 0); /* a small one: as far as it goes */
        (void)ignored;
}
