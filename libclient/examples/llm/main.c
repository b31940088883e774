/* llm: a small CPU engine for llama-architecture GGUF models that keeps its KV in kvtier.
 *
 * A request: tokens -> the stored prefix is loaded -> the rest is prefilled in chunks of block_tokens at multiples of it, each stored when it is
 * computed -> tokens are generated one by one -> the answer's whole blocks, whose KV the one-by-one steps computed with other bits, are
 * computed again in chunk shape and stored. Everything runs on the main thread but what the pool does inside a call. */
#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "libclient/examples/llm/engine.h"
#include "libclient/examples/llm/unicode.h"

double now_sec(void)
{
        struct timespec ts;

        clock_gettime(CLOCK_MONOTONIC, &ts);
        return (double)ts.tv_sec + (double)ts.tv_nsec * 1e-9;
}

void die(const char *format, ...)
{
        va_list ap;

        fputs("llm: ", stderr);
        va_start(ap, format);
        vfprintf(stderr, format, ap);
        va_end(ap);
        fputc('\n', stderr);
        exit(1);
}

char *read_file(const char *path, size_t *ret_n)
{
        FILE *f = fopen(path, "re");
        char *text = NULL;
        size_t n = 0, got;

        if (!f)
                die("%s: %s", path, strerror(errno));
        do {
                text = realloc(text, n + 65536);
                if (!text || n > INT32_MAX / 4)
                        die("%s: too large", path);
                got = fread(text + n, 1, 65536, f);
                n += got;
        } while (got);
        if (ferror(f))
                die("%s: %s", path, strerror(errno));
        fclose(f);
        *ret_n = n;
        return text;
}

static void load_engine(struct engine *e)
{
        double start = now_sec();

        e->pool = pool_new((unsigned)e->opt.n_threads);
        if (!e->pool)
                die("cannot start %u threads", (unsigned)e->opt.n_threads);
        if (gguf_open(&e->file, e->opt.model) || tokenizer_init(&e->tokenizer, &e->file) || model_load(&e->model, &e->file, e->pool))
                die("%s: %s", e->opt.model, e->file.error);
        e->load_sec = now_sec() - start;
}

void encode_text(struct engine *e, const char *text, size_t n, unsigned flags)
{
        if (tokenizer_encode(&e->tokenizer, text, n, flags, &e->tokens, &e->n_tokens))
                die("out of memory");
}

static void add_token(struct engine *e, uint32_t id)
{
        encode_text(e, "", 0, 0); /* makes room for one */
        e->tokens[e->n_tokens++] = id;
}

/* One turn of ChatML: text cannot close it, only this can. */
static void add_turn(struct engine *e, const char *role, const char *text, size_t n_text, int close)
{
        uint32_t start = tokenizer_special(&e->tokenizer, "<|im_start|>"), end = tokenizer_special(&e->tokenizer, "<|im_end|>");
        size_t n = strlen(role) + 1 + n_text;
        char *turn = malloc(n + 1);

        if (start == UINT32_MAX || end == UINT32_MAX)
                die("--chat: the model has no ChatML tokens");
        if (!turn)
                die("out of memory");
        memcpy(turn + sprintf(turn, "%s\n", role), text, n_text);
        add_token(e, start);
        encode_text(e, turn, n, 0);
        free(turn);
        if (close) {
                add_token(e, end);
                encode_text(e, "\n", 1, 0);
        }
}

static void make_prompt(struct engine *e)
{
        size_t n = 0, n_more = e->opt.prompt ? strlen(e->opt.prompt) : 0;
        char *text = e->opt.file ? read_file(e->opt.file, &n) : NULL;

        text = realloc(text, n + n_more + 1);
        if (!text)
                die("out of memory");
        memcpy(text + n, e->opt.prompt ? e->opt.prompt : "", n_more);
        n += n_more;
        if (e->tokenizer.bos != UINT32_MAX)
                add_token(e, e->tokenizer.bos);
        if (e->opt.chat) {
                add_turn(e, "system", e->opt.system, strlen(e->opt.system), 1);
                add_turn(e, "user", text, n, 1);
                add_turn(e, "assistant", "", 0, 0);
        } else {
                encode_text(e, text, n, TOKENIZER_SPECIALS);
        }
        free(text);
        if (!e->n_tokens)
                die("the prompt is empty");
        e->n_prompt = e->n_tokens;
}

static uint64_t hash_logits(const struct engine *e)
{
        return model_hash(e->run.logits, e->model.n_vocab * sizeof(float));
}

void open_coder(const struct engine *e, struct coder *c, struct run *run, size_t i)
{
        const char *why = NULL;
        struct codec_pair pair;

        if (codec_pair_parse(e->opt.kv_codecs.items[i], &pair, &why))
                die("--kv-codec %s: %s", e->opt.kv_codecs.items[i], why);
        if (coder_init(c, run, &pair, &e->opt))
                die("out of memory");
}

json_t *report_coder(const struct coder *c)
{
        char spec[CODEC_PAIR_MAX];

        return json_pack("{s:s, s:f, s:f, s:f, s:f, s:f, s:f}", "spec", codec_pair_format(&c->pair, spec), "k_bits", trial_bits(&c->k),
                         "v_bits", trial_bits(&c->v), "k_rel_l2", trial_rel_l2(&c->k), "v_rel_l2", trial_rel_l2(&c->v), "k_fell_back",
                         trial_fell_back(&c->k), "v_fell_back", trial_fell_back(&c->v));
}

/* The first n tokens' KV is there. */
static void code_blocks(struct engine *e, size_t n)
{
        int r = e->opt.kv_codecs.n ? coder_advance(&e->coder, n) : 0;

        if (r)
                die("--kv-codec: %s", kvt_strerror(r));
}

static void prefill(struct engine *e)
{
        double start = now_sec();
        size_t bt = e->opt.block_tokens;

        e->n_reused = cache_load(&e->cache, e->tokens, e->n_prompt);
        e->cache_sec = now_sec() - start;
        for (size_t at = e->n_reused, n; at < e->n_prompt; at += n) {
                n = e->n_prompt - at < bt ? e->n_prompt - at : bt;
                model_forward(&e->run, e->tokens + at, n, at, at + n == e->n_prompt ? LOGITS_LAST : LOGITS_NONE);
                cache_store(&e->cache, e->tokens, at + n);
                code_blocks(e, at + n);
        }
        e->hashes[0] = hash_logits(e);
        e->prefill_sec = now_sec() - start - e->cache_sec;
}

static void write_logits(const struct engine *e)
{
        FILE *f = fopen(e->opt.logits, "we");

        if (!f || fwrite(e->run.logits, sizeof(float), e->model.n_vocab, f) != e->model.n_vocab || fclose(f))
                die("%s: %s", e->opt.logits, strerror(errno));
}

static void add_text(struct engine *e, uint32_t id)
{
        char piece[4096];
        size_t n = tokenizer_decode(&e->tokenizer, id, piece, sizeof(piece));

        e->text = realloc(e->text, e->n_text + n + 1);
        if (!e->text)
                die("out of memory");
        memcpy(e->text + e->n_text, piece, n);
        e->n_text += n;
        if (!e->opt.json) {
                fwrite(piece, 1, n, stdout);
                fflush(stdout);
        }
}

static int ends_text(const struct engine *e, uint32_t id)
{
        return id == e->tokenizer.eos || id == tokenizer_special(&e->tokenizer, "<|endoftext|>") ||
               id == tokenizer_special(&e->tokenizer, "<|im_end|>");
}

/* Generates up to n tokens. The last one's KV is not computed: nothing follows it. */
static void generate(struct engine *e, size_t n, double start)
{
        double first = 0;

        for (size_t i = 0; i < n; i++) {
                uint32_t id;

                if (i > 0) {
                        model_forward(&e->run, e->tokens + e->n_tokens - 1, 1, e->n_tokens - 1, LOGITS_LAST);
                        e->hashes[i] = hash_logits(e);
                        code_blocks(e, e->n_tokens);
                }
                id = sampler_next(&e->sampler, e->run.logits);
                if (i == 0) {
                        first = now_sec();
                        e->first_sec = first - start;
                }
                add_token(e, id);
                if (ends_text(e, id))
                        break;
                add_text(e, id);
        }
        e->decode_sec = now_sec() - first;
}

/* Brings the KV behind the prompt's last whole block into chunk shape, as far as there are whole blocks, and stores it. */
static void store_answer(struct engine *e)
{
        size_t bt = e->opt.block_tokens;

        for (size_t at = e->n_prompt / bt * bt; e->cache.space && !e->cache.stopped && at + bt <= e->n_tokens; at += bt) {
                model_forward(&e->run, e->tokens + at, bt, at, LOGITS_NONE);
                cache_store(&e->cache, e->tokens, at + bt);
        }
}

/* json_stringn() takes valid UTF-8 only, and a model may produce anything. */
static json_t *json_text(const char *s, size_t n)
{
        char *valid = malloc(3 * n + 1);
        size_t n_valid = 0;
        json_t *j;

        for (size_t at = 0, len; valid && at < n; at += len) {
                uint32_t c;

                len = unicode_next(s + at, n - at, &c);
                memcpy(valid + n_valid, c == 0xfffd ? "\xef\xbf\xbd" : s + at, c == 0xfffd ? 3 : len);
                n_valid += c == 0xfffd ? 3 : len;
        }
        j = valid ? json_stringn(valid, n_valid) : NULL;
        free(valid);
        return j;
}

static json_t *json_hash(uint64_t h)
{
        return json_sprintf("%016llx", (unsigned long long)h);
}

static void report(const struct engine *e)
{
        size_t n_answer = e->n_tokens - e->n_prompt, n_computed = e->n_prompt - e->n_reused;
        double prefill_rate = (double)n_computed / e->prefill_sec, decode_rate = n_answer > 1 ? (double)(n_answer - 1) / e->decode_sec : 0;
        const struct cache *c = &e->cache;
        json_t *steps = json_array(), *j;

        if (!e->opt.json) {
                fprintf(stderr, "\nllm: %zu tokens of prompt, %zu reused; first token after %.0f ms; prefill %.0f/s, decode %.1f/s\n",
                        e->n_prompt, e->n_reused, e->first_sec * 1e3, prefill_rate, decode_rate);
                if (e->opt.kv_codecs.n && !e->coder.n_coded)
                        fprintf(stderr, "llm: nothing was coded: no whole block has --kv-window tokens behind it\n");
                else if (e->opt.kv_codecs.n)
                        fprintf(stderr, "llm: whole blocks were coded: %.3f bits a value of K, %.3f of V\n", trial_bits(&e->coder.k),
                                trial_bits(&e->coder.v));
                json_decref(steps);
                return;
        }
        for (size_t i = 1; i < n_answer; i++)
                json_array_append_new(steps, json_hash(e->hashes[i]));
        j = json_pack("{s:s, s:i, s:i, s:i, s:f, s:f, s:f, s:f, s:f, s:s, s:I, s:I, s:i, s:i, s:i, s:o*, s:o*, s:o, s:o*}", "model",
                      e->model.name, "prompt_tokens", (int)e->n_prompt, "reused_tokens", (int)e->n_reused, "answer_tokens", (int)n_answer,
                      "load_ms", e->load_sec * 1e3, "cache_ms", e->cache_sec * 1e3, "ttft_ms", e->first_sec * 1e3, "prefill_tokens_per_sec",
                      prefill_rate, "decode_tokens_per_sec", decode_rate, "kvtier", c->space ? "on" : c->off, "cache_loaded_bytes",
                      (json_int_t)c->loaded_bytes, "cache_stored_bytes", (json_int_t)c->stored_bytes, "cache_stored_blocks",
                      (int)c->n_stored, "cache_existing_blocks", (int)c->n_existing, "cache_errors", (int)c->n_errors, "text",
                      json_text(e->text, e->n_text), "logits_hash", json_hash(e->hashes[0]), "step_hashes", steps, "kv_codec",
                      e->opt.kv_codecs.n ? report_coder(&e->coder) : NULL);
        if (!j || json_dumpf(j, stdout, JSON_INDENT(2)) || puts("") < 0)
                die("cannot write the report");
        json_decref(j);
}

enum kv_type kv_type(const struct options *o)
{
        return strcmp(o->kv, "bf16") ? KV_F16 : KV_BF16;
}

static void answer(struct engine *e)
{
        const struct options *o = &e->opt;
        size_t n = o->n_generate, room = o->n_ctx ? o->n_ctx : e->model.n_ctx_train;
        double start = now_sec();

        if (room > e->model.n_ctx_train)
                room = e->model.n_ctx_train;
        make_prompt(e);
        if (e->n_prompt >= room)
                die("the prompt has %zu tokens, there is room for %zu", e->n_prompt, room);
        if (n > room - e->n_prompt)
                n = room - e->n_prompt;
        room = e->n_prompt + n;
        e->hashes = calloc(n, sizeof(*e->hashes));
        if (!e->hashes || run_init(&e->run, &e->model, e->pool, kv_type(o), room, o->block_tokens, 0) ||
            sampler_init(&e->sampler, e->model.n_vocab, (float)o->temperature, (float)o->top_p, o->seed))
                die("out of memory for %zu tokens", room);
        if (o->kv_codecs.n)
                open_coder(e, &e->coder, &e->run, 0);
        if (o->kv_codecs.n || (o->kvtier && !strcmp(o->kvtier, "off"))) {
                snprintf(e->cache.off, sizeof(e->cache.off), "off");
        } else {
                cache_open(&e->cache, o->kvtier, &e->run, o->block_tokens, room / o->block_tokens);
                if (!e->cache.space)
                        fprintf(stderr, "llm: kvtier is off: %s\n", e->cache.off);
        }
        prefill(e);
        if (o->logits)
                write_logits(e);
        generate(e, n, start);
        if (!o->no_store_answer)
                store_answer(e);
        cache_finish(&e->cache);
        report(e);
        if (o->kv_codecs.n)
                coder_deinit(&e->coder);
        cache_close(&e->cache);
        sampler_deinit(&e->sampler);
        free(e->hashes);
        free(e->text);
}

int main(int argc, char **argv)
{
        struct engine e = {0};

        options_parse(&e.opt, argc, argv);
        load_engine(&e);
        if (e.opt.perplexity)
                perplexity(&e);
        else
                answer(&e);
        run_deinit(&e.run);
        free(e.tokens);
        tokenizer_deinit(&e.tokenizer);
        model_unload(&e.model);
        gguf_close(&e.file);
        pool_free(e.pool);
        return 0;
}
