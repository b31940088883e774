/* Byte-level BPE ("gpt2" in GGUF metadata), with the "smollm" pre-tokenizer. */
#pragma once

#include "libclient/examples/llm/gguf.h"

struct tokenizer {
        struct gguf_string *tokens; /* owned; the strings lie in the file */
        size_t n_tokens;
        uint8_t *is_special; /* owned; never produced from text, printed as nothing */
        uint32_t *specials; /* owned; their ids, longest text first */
        size_t n_specials;
        uint32_t *by_text; /* owned; key: token text -> value: id + 1; open addressing, power of two */
        size_t n_by_text;
        struct merge_slot *merges; /* owned; key: two ids -> value: rank and id of both together */
        size_t n_merge_slots;
        uint32_t byte_token[256]; /* UINT32_MAX: the vocabulary has none */
        uint32_t bos; /* UINT32_MAX: none is put before a text */
        uint32_t eos; /* UINT32_MAX: none */
};

enum { TOKENIZER_SPECIALS = 1 }; /* <|im_start|> and the like in the text stand for themselves, not for their letters */

/* 0 or a negative errno with g->error. g must stay open. */
int tokenizer_init(struct tokenizer *t, struct gguf *g);
void tokenizer_deinit(struct tokenizer *t);
/* Appends the tokens of a text to *ids (realloc'd), *n of them so far. Bytes that the vocabulary lacks are left out. 0 or -ENOMEM. */
int tokenizer_encode(const struct tokenizer *t, const char *text, size_t n_text, unsigned flags, uint32_t **ids, size_t *n);
/* The id of a special token, UINT32_MAX if there is none. */
uint32_t tokenizer_special(const struct tokenizer *t, const char *text);
/* Writes a token's bytes to dst, at most cap, and returns their number. */
size_t tokenizer_decode(const struct tokenizer *t, uint32_t id, char *dst, size_t cap);
