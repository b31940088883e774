/* cbf's encoder: which channels are alike, and which tables are worth their bits.
 *
 * Channels start in classes by how concentrated their symbols are, then move to the class that codes them in the fewest bits (k-means with coding cost as
 * distance, a few rounds). Classes are then joined two by two, the cheapest pair first, down to one; the number of classes with the fewest bits in all,
 * tables and the channels' class numbers counted, stays. The contexts of all classes are joined in the same way into tables, as long as that saves bits. Integers
 * only: the same on every machine. */
#include <assert.h>
#include <string.h>

#include "libclient/codec/cbf_model.h"
#include "libclient/codec/entropy.h"
#include "libclient/codec/kernels.h"

enum {
        ROUNDS = 3,
        SYMBOL_COST = 12000, /* a symbol in a table, in 1/4096 bit; with what entropy_of() adds, as measured */
        TABLE_COST = 12 * LOG2_ONE,
        TABLES_A_CLASS = 2, /* about as many are left of a class's contexts */
};

/* Coding these symbols, with their table; ret_folded: both signs alike. In 1/4096 bit. */
static uint64_t cost_of(const cbf_counts counts, unsigned n_symbols, unsigned n_tables, bool *ret_folded)
{
        uint32_t folded[CBF_LEVELS], n = 0, n_used = 0, n_levels = 0;
        uint64_t whole, half;

        for (unsigned i = 0; i < n_symbols; i += 2) {
                folded[i / 2] = counts[i] + counts[i + 1];
                n += folded[i / 2];
                n_used += (counts[i] != 0) + (counts[i + 1] != 0);
                n_levels += folded[i / 2] != 0;
        }
        if (!n)
                return 0;
        whole = entropy_of(counts, n_symbols, n) + (uint64_t)n_tables * n_used * SYMBOL_COST;
        half = entropy_of(folded, n_symbols / 2, n) + (uint64_t)n * LOG2_ONE + (uint64_t)n_tables * n_levels * SYMBOL_COST;
        *ret_folded = half <= whole;
        return (half < whole ? half : whole) + n_tables * TABLE_COST;
}

static void add(cbf_counts to, const cbf_counts x)
{
        for (unsigned i = 0; i < CBF_SYMBOLS; i++)
                to[i] += x[i];
}

static void count_classes(struct cbf_model *m, const cbf_marginal *channels, size_t n, unsigned n_symbols, const uint8_t *class_of)
{
        memset(m->class_counts, 0, sizeof(m->class_counts));
        for (size_t c = 0; c < n; c++)
                kernels()->cbf_count(m->class_counts[class_of[c]], channels[c], n_symbols);
}

/* Each channel to the class that is cheapest for it. */
static void move_channels(struct cbf_model *m, const cbf_marginal *channels, size_t n, unsigned n_symbols, uint8_t *class_of)
{
        for (unsigned k = 0; k < m->n_classes; k++) {
                uint32_t sum = 0;

                for (unsigned i = 0; i < n_symbols; i++)
                        sum += m->class_counts[k][i];
                /* a symbol that the class has not seen counts as 1/16 */
                for (unsigned i = 0; i < n_symbols; i++)
                        m->costs[k][i] = (int16_t)((log2_fixed(16 * sum + n_symbols) - log2_fixed(16 * m->class_counts[k][i] + 1)) >> 4);
        }
        for (size_t c = 0; c < n; c++) {
                uint32_t least = UINT32_MAX;

                for (unsigned k = 0; k < m->n_classes; k++) {
                        uint32_t cost = kernels()->cbf_cost(channels[c], m->costs[k], n_symbols);

                        if (cost < least) {
                                least = cost;
                                class_of[c] = (uint8_t)k;
                        }
                }
        }
}

static void start_classes(struct cbf_model *m, const cbf_marginal *channels, size_t n, unsigned n_symbols, uint8_t *class_of)
{
        size_t buckets[256] = {0}, before = 0;

        m->n_classes = n < CBF_START_CLASSES ? (unsigned)n : CBF_START_CLASSES;
        for (size_t c = 0; c < n; c++) {
                uint64_t sum = 0;
                uint32_t total = 0;

                for (unsigned i = 0; i < n_symbols; i++)
                        if (channels[c][i]) {
                                sum += (uint64_t)channels[c][i] * log2_fixed(channels[c][i]);
                                total += channels[c][i];
                        }
                sum = (uint64_t)total * log2_fixed(total) - sum; /* bits, of at most 7 each */
                class_of[c] = (uint8_t)(sum * 36 / ((uint64_t)total * LOG2_ONE));
                buckets[class_of[c]]++;
        }
        for (unsigned i = 0; i < 256; i++) { /* by rank */
                size_t here = buckets[i];

                buckets[i] = (before + here / 2) * m->n_classes / n;
                before += here;
        }
        for (size_t c = 0; c < n; c++)
                class_of[c] = (uint8_t)buckets[class_of[c]];
}

/* Joins classes while that pays in the end. */
static void join_classes(struct cbf_model *m, size_t n_channels, unsigned n_symbols, uint8_t ret_map[CBF_START_CLASSES])
{
        uint8_t map[CBF_START_CLASSES];
        uint64_t own[CBF_START_CLASSES], least = UINT64_MAX;
        bool gone[CBF_START_CLASSES] = {false}, folded;

        for (unsigned k = 0; k < m->n_classes; k++) {
                map[k] = (uint8_t)k;
                own[k] = cost_of(m->class_counts[k], n_symbols, TABLES_A_CLASS, &folded);
                gone[k] = !own[k];
                for (unsigned j = 0; j < k && !gone[k]; j++)
                        if (!gone[j]) {
                                cbf_counts both;

                                memcpy(both, m->class_counts[k], sizeof(both));
                                add(both, m->class_counts[j]);
                                m->pairs[j][k] = cost_of(both, n_symbols, TABLES_A_CLASS, &folded);
                        }
        }
        for (;;) {
                unsigned n = 0, best_j = 0, best_k = 0;
                uint64_t sum = 0;
                int64_t most = INT64_MIN;

                for (unsigned k = 0; k < m->n_classes; k++) {
                        if (gone[k])
                                continue;
                        n++;
                        sum += own[k];
                        for (unsigned j = 0; j < k; j++)
                                if (!gone[j] && (int64_t)(own[j] + own[k] - m->pairs[j][k]) > most) {
                                        most = (int64_t)(own[j] + own[k] - m->pairs[j][k]);
                                        best_j = j;
                                        best_k = k;
                                }
                }
                sum += (uint64_t)n_channels * cbf_index_bits(n) * LOG2_ONE;
                if (sum <= least) {
                        least = sum;
                        memcpy(ret_map, map, sizeof(map));
                }
                if (n < 2)
                        return;
                add(m->class_counts[best_j], m->class_counts[best_k]);
                own[best_j] = m->pairs[best_j][best_k];
                gone[best_k] = true;
                for (unsigned k = 0; k < m->n_classes; k++) {
                        if (map[k] == best_k)
                                map[k] = (uint8_t)best_j;
                        if (!gone[k] && k != best_j) {
                                cbf_counts both;

                                memcpy(both, m->class_counts[k], sizeof(both));
                                add(both, m->class_counts[best_j]);
                                m->pairs[k < best_j ? k : best_j][k < best_j ? best_j : k] =
                                        cost_of(both, n_symbols, TABLES_A_CLASS, &folded);
                        }
                }
        }
}

void cbf_choose_classes(struct cbf_model *m, const cbf_marginal *channels, size_t n, unsigned n_symbols, uint8_t *class_of)
{
        uint8_t map[CBF_START_CLASSES], dense[CBF_START_CLASSES];
        unsigned n_dense = 0;

        start_classes(m, channels, n, n_symbols, class_of);
        for (unsigned i = 0; i < ROUNDS; i++) {
                count_classes(m, channels, n, n_symbols, class_of);
                move_channels(m, channels, n, n_symbols, class_of);
        }
        count_classes(m, channels, n, n_symbols, class_of);
        join_classes(m, n, n_symbols, map);
        for (unsigned round = 0; round < 2; round++) { /* joined classes; then the channels move once more, and some may be left empty */
                bool used[CBF_START_CLASSES] = {false};

                for (size_t c = 0; c < n; c++) {
                        class_of[c] = round ? class_of[c] : map[class_of[c]];
                        used[class_of[c]] = true;
                }
                n_dense = 0;
                for (unsigned k = 0; k < m->n_classes; k++) {
                        dense[k] = (uint8_t)n_dense;
                        n_dense += used[k];
                }
                m->n_classes = n_dense;
                for (size_t c = 0; c < n; c++)
                        class_of[c] = dense[class_of[c]];
                count_classes(m, channels, n, n_symbols, class_of);
                if (!round && n_dense > 1)
                        move_channels(m, channels, n, n_symbols, class_of);
        }
        for (unsigned k = 0; k < m->n_classes; k++) {
                size_t n_here = 0;
                bool folded;
                uint64_t cost = cost_of(m->class_counts[k], n_symbols, 1, &folded);

                for (size_t c = 0; c < n; c++)
                        n_here += class_of[c] == k;
                m->classes[k].flips = false;
                if (!folded) { /* worth the channels' flips? */
                        cbf_counts even;

                        for (unsigned i = 0; i < n_symbols; i++)
                                even[i] = (m->class_counts[k][i & ~1u] + m->class_counts[k][i | 1]) / 2;
                        m->classes[k].flips = cost + n_here * LOG2_ONE < cost_of(even, n_symbols, 1, &folded);
                }
        }
}

/* Weight nearest to count / n. */
static uint8_t weight_of(uint64_t count, uint64_t n)
{
        uint64_t w = (count * 65536 + n / 2) / n; /* eight times what it is */
        unsigned k = 0;

        if (!count)
                return 0;
        w = w < 32 ? 32 : w;
        while (w >> k >= 64)
                k++;
        w = (w >> k) + 4; /* 32..63, rounded to a multiple of 8 */
        return (uint8_t)(1 + 4 * k + (w >> 3) - 4);
}

static void make_table(const cbf_counts counts, unsigned n_symbols, struct cbf_table *ret)
{
        uint64_t n = 0;
        bool folded = true;

        memset(ret, 0, sizeof(*ret));
        cost_of(counts, n_symbols, 1, &folded);
        ret->folded = folded;
        for (unsigned i = 0; i < n_symbols; i++)
                n += counts[i];
        for (unsigned i = 0; i < n_symbols; i++) {
                uint64_t count = folded ? ((uint64_t)counts[i & ~1u] + counts[i | 1] + 1) / 2 : counts[i];

                ret->weights[i % 2][i / 2] = weight_of(count, n ? n : 1);
                if (count)
                        ret->n[i % 2] = (uint8_t)(i / 2 + 1);
        }
}

void cbf_choose_tables(struct cbf_model *m, unsigned n_symbols)
{
        unsigned n = m->n_classes * CBF_CONTEXTS, n_left = 0;
        uint8_t map[CBF_START_TABLES], dense[CBF_START_TABLES];
        uint64_t own[CBF_START_TABLES];
        bool gone[CBF_START_TABLES], folded;

        for (unsigned k = 0; k < n; k++) {
                own[k] = cost_of(m->joint[k], n_symbols, 1, &folded);
                gone[k] = !own[k];
                map[k] = (uint8_t)k;
                n_left += !gone[k];
                for (unsigned j = 0; j < k && !gone[k]; j++)
                        if (!gone[j]) {
                                cbf_counts both;

                                memcpy(both, m->joint[k], sizeof(both));
                                add(both, m->joint[j]);
                                m->pairs[j][k] = cost_of(both, n_symbols, 1, &folded);
                        }
        }
        for (; n_left > 1; n_left--) {
                unsigned best_j = 0, best_k = 0;
                int64_t most = INT64_MIN;

                for (unsigned k = 0; k < n; k++)
                        for (unsigned j = 0; j < k && !gone[k]; j++)
                                if (!gone[j] && (int64_t)(own[j] + own[k] - m->pairs[j][k]) > most) {
                                        most = (int64_t)(own[j] + own[k] - m->pairs[j][k]);
                                        best_j = j;
                                        best_k = k;
                                }
                if (most < 0 && n_left <= CBF_MAX_TABLES)
                        break;
                add(m->joint[best_j], m->joint[best_k]);
                own[best_j] = m->pairs[best_j][best_k];
                gone[best_k] = true;
                for (unsigned k = 0; k < n; k++) {
                        if (map[k] == best_k)
                                map[k] = (uint8_t)best_j;
                        if (!gone[k] && k != best_j) {
                                cbf_counts both;

                                memcpy(both, m->joint[k], sizeof(both));
                                add(both, m->joint[best_j]);
                                m->pairs[k < best_j ? k : best_j][k < best_j ? best_j : k] = cost_of(both, n_symbols, 1, &folded);
                        }
                }
        }
        m->n_tables = 0;
        for (unsigned k = 0; k < n; k++) {
                unsigned t = m->n_tables;

                if (gone[k])
                        continue;
                dense[k] = (uint8_t)m->n_tables++;
                make_table(m->joint[k], n_symbols, &m->tables[t]);
                cbf_frequencies(&m->tables[t], m->frequencies[t]);
                for (unsigned i = 0, at = 0; i < CBF_SYMBOLS; at += m->frequencies[t][i++])
                        m->starts[t][i] = (uint16_t)at;
        }
        assert(m->n_tables);
        for (unsigned k = 0; k < n; k++) /* contexts that never come take table 0 */
                m->classes[k / CBF_CONTEXTS].tables[k % CBF_CONTEXTS] = gone[map[k]] ? 0 : dense[map[k]];
}
