/* How cbf's encoder chooses classes and tables. See cbf_model.c. */
#pragma once

#include "libclient/codec/cbf.h"

typedef uint16_t cbf_marginal[CBF_SYMBOLS]; /* a channel's symbols, each count below 2^15 */
typedef uint32_t cbf_counts[CBF_SYMBOLS];

enum { CBF_START_CLASSES = 8, CBF_START_TABLES = CBF_START_CLASSES * CBF_CONTEXTS, CBF_SAMPLE_TOKENS = 4096 };

struct cbf_model {
        unsigned n_classes, n_tables;
        struct cbf_class classes[CBF_START_CLASSES];
        struct cbf_table tables[CBF_MAX_TABLES];
        uint16_t frequencies[CBF_MAX_TABLES][CBF_SYMBOLS], starts[CBF_MAX_TABLES][CBF_SYMBOLS];
        /* work */
        cbf_counts joint[CBF_START_TABLES]; /* of each class and context */
        cbf_counts class_counts[CBF_START_CLASSES];
        int16_t costs[CBF_START_CLASSES][CBF_SYMBOLS];
        uint64_t pairs[CBF_START_TABLES][CBF_START_TABLES];
};

/* Gives each of n channels a class: fills class_of, n_classes, flips. n_symbols: all symbols are below, a multiple of 16. */
void cbf_choose_classes(struct cbf_model *m, const cbf_marginal *channels, size_t n, unsigned n_symbols, uint8_t *class_of);
/* Joins what is in m->joint into tables: fills tables, frequencies, starts and the classes' tables. */
void cbf_choose_tables(struct cbf_model *m, unsigned n_symbols);
