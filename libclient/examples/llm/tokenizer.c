/* Byte-level BPE.
 *
 * Text -> (special tokens cut out) -> pieces by the pre-tokenizer -> bytes, each one a token -> merges, lowest rank first.
 * Vocabulary entries spell byte b as the character byte_char(b), so that every byte is a printable letter.
 *
 * A piece is merged with a heap of candidate pairs over a linked list of symbols, so that a long run without a break costs
 * n log n. A candidate whose symbols were merged meanwhile is recognised by their ids and skipped.
 *
 * After tokenizer_init() nothing changes; any thread may encode. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "libclient/examples/llm/tokenizer.h"
#include "libclient/examples/llm/unicode.h"

enum { NO_TOKEN = UINT32_MAX, TYPE_CONTROL = 3, TYPE_USER_DEFINED = 4, MAX_SPECIALS = 4096, MAX_TOKEN_BYTES = 4096 };

struct merge_slot {
        uint32_t left, right, rank_plus_one, merged;
};

struct symbol {
        uint32_t id;
        int32_t prev, next;
};

struct candidate {
        uint32_t rank, left_id, right_id, merged;
        int32_t left;
};

/* GPT-2's alphabet: printable Latin-1 stands for itself, the rest for U+0100 and up, in order. */
static uint32_t byte_char(unsigned b)
{
        static const uint8_t others[][2] = {{0, 33}, {127, 161}, {173, 174}};
        uint32_t c = 256;

        for (size_t i = 0; i < 3; i++) {
                if (b >= others[i][0] && b < others[i][1])
                        return c + b - others[i][0];
                c += others[i][1] - others[i][0];
        }
        return b;
}

static uint64_t mix(uint64_t h)
{
        h = (h ^ h >> 32) * 0xd6e8feb86659fd93;
        return h ^ h >> 32;
}

static uint64_t text_hash(const char *s, size_t n)
{
        uint64_t h = 0xcbf29ce484222325;
        for (size_t i = 0; i < n; i++)
                h = (h ^ (uint8_t)s[i]) * 0x100000001b3;
        return mix(h);
}

static size_t table_size(size_t n)
{
        size_t size = 16;
        while (size < 2 * n)
                size *= 2;
        return size;
}

static uint32_t find_text(const struct tokenizer *t, const char *s, size_t n)
{
        for (size_t i = text_hash(s, n);; i++) {
                uint32_t id = t->by_text[i & (t->n_by_text - 1)] - 1;
                if (id == NO_TOKEN || (t->tokens[id].n == n && !memcmp(t->tokens[id].s, s, n)))
                        return id;
        }
}

static struct merge_slot *find_merge(const struct tokenizer *t, uint32_t left, uint32_t right)
{
        for (size_t i = mix((uint64_t)left << 32 | right);; i++) {
                struct merge_slot *m = &t->merges[i & (t->n_merge_slots - 1)];
                if (!m->rank_plus_one || (m->left == left && m->right == right))
                        return m;
        }
}

static int init_vocabulary(struct tokenizer *t, struct gguf *g)
{
        const struct gguf_kv *types = gguf_find(g, "tokenizer.ggml.token_type");
        int r = gguf_get_strings(g, "tokenizer.ggml.tokens", &t->tokens, &t->n_tokens);

        if (r)
                return r;
        if (t->n_tokens == 0 || t->n_tokens > INT32_MAX / 8)
                return gguf_fail(g, -EINVAL, "tokenizer.ggml.tokens: %zu tokens", t->n_tokens);
        if (types && (!types->is_array || types->type != GGUF_I32 || types->n_elems != t->n_tokens))
                return gguf_fail(g, -EINVAL, "tokenizer.ggml.token_type: not an array of %zu 32-bit integers", t->n_tokens);
        t->n_by_text = table_size(t->n_tokens);
        t->by_text = calloc(t->n_by_text, sizeof(*t->by_text));
        t->is_special = calloc(t->n_tokens, 1);
        t->specials = calloc(MAX_SPECIALS, sizeof(*t->specials));
        if (!t->by_text || !t->is_special || !t->specials)
                return gguf_fail(g, -ENOMEM, "out of memory");
        for (uint32_t id = 0; id < t->n_tokens; id++) {
                struct gguf_string s = t->tokens[id];
                int32_t type = 1;

                if (types)
                        memcpy(&type, types->data + 4 * (size_t)id, 4);
                if (s.n > MAX_TOKEN_BYTES)
                        return gguf_fail(g, -EINVAL, "token %u has %zu bytes", id, s.n);
                if ((type == TYPE_CONTROL || type == TYPE_USER_DEFINED) && s.n) {
                        size_t at = t->n_specials++;
                        if (at == MAX_SPECIALS)
                                return gguf_fail(g, -EINVAL, "more than %d special tokens", MAX_SPECIALS);
                        t->is_special[id] = 1;
                        for (; at > 0 && t->tokens[t->specials[at - 1]].n < s.n; at--)
                                t->specials[at] = t->specials[at - 1];
                        t->specials[at] = id;
                }
                for (size_t i = text_hash(s.s, s.n);; i++) {
                        uint32_t *slot = &t->by_text[i & (t->n_by_text - 1)];
                        if (!*slot) {
                                *slot = id + 1;
                                break;
                        }
                        if (t->tokens[*slot - 1].n == s.n && !memcmp(t->tokens[*slot - 1].s, s.s, s.n))
                                return gguf_fail(g, -EINVAL, "tokens %u and %u are the same", *slot - 1, id);
                }
        }
        for (unsigned b = 0; b < 256; b++) {
                uint32_t c = byte_char(b);
                char s[2] = {(char)(c < 0x80 ? c : 0xc0 | c >> 6), (char)(0x80 | (c & 0x3f))};
                t->byte_token[b] = find_text(t, s, c < 0x80 ? 1 : 2);
        }
        return 0;
}

static int init_merges(struct tokenizer *t, struct gguf *g)
{
        char both[2 * MAX_TOKEN_BYTES];
        struct gguf_string *merges;
        size_t n;
        int r = gguf_get_strings(g, "tokenizer.ggml.merges", &merges, &n);

        if (r)
                return r;
        t->n_merge_slots = table_size(n);
        t->merges = n < INT32_MAX ? calloc(t->n_merge_slots, sizeof(*t->merges)) : NULL;
        if (!t->merges)
                r = gguf_fail(g, -ENOMEM, "out of memory");
        for (uint32_t rank = 0; !r && rank < n; rank++) {
                struct gguf_string s = merges[rank];
                const char *space = s.n > 1 ? memchr(s.s + 1, ' ', s.n - 1) : NULL;
                size_t n_left = space ? (size_t)(space - s.s) : 0, n_right = s.n - n_left - 1;
                uint32_t left = NO_TOKEN, right = NO_TOKEN, merged = NO_TOKEN;

                if (space && s.n <= sizeof(both)) {
                        memcpy(both, s.s, n_left);
                        memcpy(both + n_left, space + 1, n_right);
                        left = find_text(t, s.s, n_left);
                        right = find_text(t, space + 1, n_right);
                        merged = find_text(t, both, n_left + n_right);
                }
                if (left == NO_TOKEN || right == NO_TOKEN || merged == NO_TOKEN) {
                        r = gguf_fail(g, -EINVAL, "merge %u, '%.*s', is not of two tokens to a third", rank, (int)(s.n < 64 ? s.n : 64),
                                      s.s);
                } else {
                        struct merge_slot *m = find_merge(t, left, right);
                        if (!m->rank_plus_one)
                                *m = (struct merge_slot){left, right, rank + 1, merged};
                }
        }
        free(merges);
        return r;
}

static int get_token_id(struct tokenizer *t, struct gguf *g, const char *key, uint32_t *ret)
{
        uint64_t v = NO_TOKEN;
        int r = gguf_get_u64(g, key, 0, t->n_tokens - 1, &v);

        *ret = (uint32_t)v;
        return r == -ENOENT ? 0 : r;
}

int tokenizer_init(struct tokenizer *t, struct gguf *g)
{
        struct gguf_string s;
        uint64_t add_bos = 0;
        int r;

        *t = (struct tokenizer){.bos = NO_TOKEN, .eos = NO_TOKEN};
        r = gguf_get_string(g, "tokenizer.ggml.model", &s);
        if (!r && (s.n != 4 || memcmp(s.s, "gpt2", 4)))
                r = gguf_fail(g, -EINVAL, "tokenizer.ggml.model: '%.*s' is not gpt2, the one this program has", (int)s.n, s.s);
        if (!r)
                r = gguf_get_string(g, "tokenizer.ggml.pre", &s);
        if (!r && (s.n != 6 || memcmp(s.s, "smollm", 6)))
                r = gguf_fail(g, -EINVAL, "tokenizer.ggml.pre: '%.*s' is not smollm, the one this program has", (int)s.n, s.s);
        if (!r)
                r = init_vocabulary(t, g);
        if (!r)
                r = init_merges(t, g);
        if (!r)
                r = get_token_id(t, g, "tokenizer.ggml.eos_token_id", &t->eos);
        if (!r) {
                r = gguf_get_u64(g, "tokenizer.ggml.add_bos_token", 0, 1, &add_bos);
                r = r == -ENOENT ? 0 : r;
        }
        if (!r && add_bos)
                r = get_token_id(t, g, "tokenizer.ggml.bos_token_id", &t->bos);
        return r;
}

void tokenizer_deinit(struct tokenizer *t)
{
        free(t->tokens);
        free(t->is_special);
        free(t->specials);
        free(t->by_text);
        free(t->merges);
        *t = (struct tokenizer){0};
}

/* The next piece, by hand what these do one after the other (the first cuts digits out; the second sees what is between them):
 *     \p{N}
 *     's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+ */
static size_t next_piece(const char *s, size_t n)
{
        static const char *const suffixes[] = {"'s", "'t", "'re", "'ve", "'m", "'ll", "'d"};
        uint32_t c;
        size_t len = unicode_next(s, n, &c), at = 0, last = 0, step;
        enum unicode_class class = unicode_class(c), next = UNICODE_SPACE;

        if (class == UNICODE_NUMBER)
                return len;
        for (size_t i = 0; c == '\'' && i < sizeof(suffixes) / sizeof(suffixes[0]); i++)
                if (n >= strlen(suffixes[i]) && !memcmp(s, suffixes[i], strlen(suffixes[i])))
                        return strlen(suffixes[i]);
        if (class == UNICODE_SPACE) {
                for (at = 0; at < n; at += step) { /* the run of spaces, and what follows it */
                        step = unicode_next(s + at, n - at, &c);
                        next = unicode_class(c);
                        if (next != UNICODE_SPACE)
                                break;
                        last = at;
                }
                if (at >= n || next == UNICODE_NUMBER)
                        return at; /* at the end, or before a digit, where the text was cut */
                if (last > 0)
                        return last; /* the last one goes with the word */
                if (s[0] != ' ')
                        return at;
                class = next;
        }
        for (; at < n; at += step) { /* at is 0, or behind one blank */
                step = unicode_next(s + at, n - at, &c);
                if (unicode_class(c) != class)
                        break;
        }
        return at;
}

static int candidate_less(const struct candidate *a, const struct candidate *b)
{
        return a->rank != b->rank ? a->rank < b->rank : a->left < b->left;
}

static void push(const struct tokenizer *t, struct candidate *heap, size_t *n, const struct symbol *symbols, int32_t left)
{
        const struct symbol *s = &symbols[left];
        const struct merge_slot *m;
        struct candidate c;
        size_t i = *n;

        if (left < 0 || s->next < 0)
                return;
        m = find_merge(t, s->id, symbols[s->next].id);
        if (!m->rank_plus_one)
                return;
        c = (struct candidate){m->rank_plus_one, m->left, m->right, m->merged, left};
        for (; i > 0 && candidate_less(&c, &heap[(i - 1) / 2]); i = (i - 1) / 2)
                heap[i] = heap[(i - 1) / 2];
        heap[i] = c;
        ++*n;
}

static struct candidate pop(struct candidate *heap, size_t *n)
{
        struct candidate top = heap[0], last = heap[--*n];
        size_t i = 0;

        for (size_t child; (child = 2 * i + 1) < *n; i = child) {
                if (child + 1 < *n && candidate_less(&heap[child + 1], &heap[child]))
                        child++;
                if (!candidate_less(&heap[child], &last))
                        break;
                heap[i] = heap[child];
        }
        heap[i] = last;
        return top;
}

/* Merges n bytes and writes at most n ids. symbols has room for n, heap for 3 n (each merge adds at most two candidates). */
static size_t encode_piece(const struct tokenizer *t, const char *s, size_t n, struct symbol *symbols, struct candidate *heap,
                           uint32_t *ids)
{
        size_t n_symbols = 0, n_heap = 0, n_ids = 0;

        for (size_t i = 0; i < n; i++) {
                uint32_t id = t->byte_token[(uint8_t)s[i]];
                if (id == NO_TOKEN)
                        continue;
                symbols[n_symbols] = (struct symbol){id, (int32_t)n_symbols - 1, (int32_t)n_symbols + 1};
                n_symbols++;
        }
        if (n_symbols == 0)
                return 0;
        symbols[n_symbols - 1].next = -1;
        for (size_t i = 0; i + 1 < n_symbols; i++)
                push(t, heap, &n_heap, symbols, (int32_t)i);
        while (n_heap > 0) {
                struct candidate c = pop(heap, &n_heap);
                struct symbol *left = &symbols[c.left], *right;

                if (left->id != c.left_id || left->next < 0 || symbols[left->next].id != c.right_id)
                        continue;
                right = &symbols[left->next];
                left->id = c.merged;
                left->next = right->next;
                right->id = NO_TOKEN;
                if (left->next >= 0)
                        symbols[left->next].prev = c.left;
                push(t, heap, &n_heap, symbols, c.left);
                if (left->prev >= 0)
                        push(t, heap, &n_heap, symbols, left->prev);
        }
        for (int32_t i = 0; i >= 0; i = symbols[i].next)
                ids[n_ids++] = symbols[i].id;
        return n_ids;
}

static uint32_t special_at(const struct tokenizer *t, const char *s, size_t n)
{
        for (size_t i = 0; i < t->n_specials; i++) {
                struct gguf_string text = t->tokens[t->specials[i]];
                if (text.n <= n && !memcmp(text.s, s, text.n))
                        return t->specials[i];
        }
        return NO_TOKEN;
}

int tokenizer_encode(const struct tokenizer *t, const char *text, size_t n_text, unsigned flags, uint32_t **ids, size_t *n)
{
        uint32_t *grown, special = NO_TOKEN;
        struct candidate *heap = NULL;
        struct symbol *symbols = NULL;
        size_t cap = 0;
        int r = 0;

        if (n_text > INT32_MAX / 4 || !(grown = realloc(*ids, (*n + n_text + 1) * sizeof(**ids))))
                return -ENOMEM;
        *ids = grown;
        for (size_t at = 0, end; !r && at < n_text; at = end) {
                for (end = at, special = NO_TOKEN; end < n_text; end++) /* text up to the next special token */
                        if ((flags & TOKENIZER_SPECIALS) && (special = special_at(t, text + end, n_text - end)) != NO_TOKEN)
                                break;
                for (size_t len; at < end; at += len) {
                        len = next_piece(text + at, end - at);
                        if (len > cap) {
                                cap = len + 64;
                                free(symbols);
                                free(heap);
                                symbols = malloc(cap * sizeof(*symbols));
                                heap = malloc(3 * cap * sizeof(*heap));
                                if (!symbols || !heap) {
                                        r = -ENOMEM;
                                        break;
                                }
                        }
                        *n += encode_piece(t, text + at, len, symbols, heap, *ids + *n);
                }
                if (special != NO_TOKEN) {
                        (*ids)[(*n)++] = special;
                        end += t->tokens[special].n;
                }
        }
        free(symbols);
        free(heap);
        return r;
}

uint32_t tokenizer_special(const struct tokenizer *t, const char *text)
{
        uint32_t id = find_text(t, text, strlen(text));
        return id != NO_TOKEN && t->is_special[id] ? id : NO_TOKEN;
}

size_t tokenizer_decode(const struct tokenizer *t, uint32_t id, char *dst, size_t cap)
{
        struct gguf_string s = id < t->n_tokens && !t->is_special[id] ? t->tokens[id] : (struct gguf_string){"", 0};
        size_t n = 0;
        uint32_t c;

        for (size_t at = 0; at < s.n && n < cap;) {
                at += unicode_next(s.s + at, s.n - at, &c);
                for (unsigned b = 0; b < 256; b++)
                        if (byte_char(b) == c) {
                                dst[n++] = (char)b;
                                break;
                        }
        }
        return n;
}
