/* why: what the daemon knows about keys, one by one; with --tokens, of each block of a prompt in turn. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <sodium.h>

#include "libclient/ctl/format.h"
#include "libclient/ctl/query.h"
#include "libclient/ctl/table.h"

enum { MAX_TOKEN_FILE = 64 << 20 };

/* keys of a prompt */

static int read_token_file(struct ctl *x, const char *path, char **ret, size_t *ret_n)
{
        bool is_stdin = strcmp(path, "-") == 0;
        int fd = is_stdin ? STDIN_FILENO : open(path, O_RDONLY | O_CLOEXEC), code = EXIT_OK;
        size_t n = 0, cap = 0;
        char *text = NULL;

        if (fd < 0)
                return ctl_fail(x, -errno, "cannot open %s", path);
        while (code == EXIT_OK) {
                ssize_t done;

                if (n == cap) {
                        char *larger = realloc(text, cap ? 2 * cap : 65536);

                        if (!larger) {
                                code = ctl_fail(x, KVT_E_NO_MEMORY, "cannot read %s", path);
                                break;
                        }
                        text = larger;
                        cap = cap ? 2 * cap : 65536;
                }
                done = read(fd, text + n, cap - n);
                if (done == 0)
                        break;
                if (done < 0 && errno != EINTR)
                        code = ctl_fail(x, -errno, "cannot read %s", path);
                n += done > 0 ? (size_t)done : 0;
                if (n > MAX_TOKEN_FILE)
                        code = ctl_fail(x, 0, "%s is larger than %s", path, format_bytes(MAX_TOKEN_FILE).text);
        }
        if (!is_stdin)
                close(fd);
        if (code) {
                free(text);
                return code;
        }
        *ret = text;
        *ret_n = n;
        return EXIT_OK;
}

static int read_tokens(struct ctl *x, uint32_t **ret, size_t *ret_n)
{
        const char *spec = x->o.tokens;
        char *owned = NULL;
        size_t n = strlen(spec), at = 0;
        int code, r;

        if (*spec == '@') {
                code = read_token_file(x, spec + 1, &owned, &n);
                if (code)
                        return code;
        }
        r = parse_tokens(owned ? owned : spec, n, ret, ret_n, &at);
        free(owned);
        if (r == -EINVAL)
                return ctl_misuse(x, "--tokens: no token id at character %zu; ids are numbers divided by commas or white space", at + 1);
        return r ? ctl_fail(x, r, "--tokens") : EXIT_OK;
}

/* The salt must be the space's own, else other keys would come out and every answer would be "never stored". */
static int check_salt(struct ctl *x, const struct space *s, const uint8_t *salt, size_t n_salt)
{
        uint8_t digest[16];
        ProtobufCBinaryData known = s->entry->salt_digest;

        if (n_salt == 0 && known.len == 0)
                return EXIT_OK;
        if (n_salt == 0)
                return ctl_fail(x, 0, "the space has a salt (digest %s); give it with --salt", format_hex(known.data, known.len).text);
        if (crypto_generichash(digest, sizeof digest, salt, n_salt, NULL, 0))
                return ctl_fail(x, 0, "cannot hash the salt");
        if (known.len != 8 || memcmp(digest, known.data, 8) != 0)
                return ctl_fail(x, 0, "the space has another salt: its digest is %s, that of --salt is %s",
                                known.len ? format_hex(known.data, known.len).text : "empty", format_hex(digest, 8).text);
        return EXIT_OK;
}

static int keys_of_tokens(struct ctl *x, const struct space *s, kvt_key **ret, size_t *ret_n)
{
        uint8_t salt[KVT_SALT_MAX];
        size_t n_salt = 0, n_tokens = 0, n_keys;
        uint32_t *tokens = NULL;
        kvt_space *space = NULL;
        kvt_key *keys = NULL;
        int code, r;

        if (x->o.salt && !parse_hex(x->o.salt, strlen(x->o.salt), salt, sizeof salt, &n_salt))
                return ctl_misuse(x, "--salt takes an even number of hexadecimal digits, at most %d", 2 * KVT_SALT_MAX);
        code = check_salt(x, s, salt, n_salt);
        code = code ? code : read_tokens(x, &tokens, &n_tokens);
        code = code ? code : query_attach(x, s, 0, salt, n_salt, &space);
        if (code == EXIT_OK) {
                n_keys = n_tokens / s->entry->block_tokens;
                keys = calloc(n_keys + 1, sizeof *keys);
                r = keys ? kvt_keys(space, NULL, tokens, n_tokens, NULL, 0, keys, n_keys, &n_keys) : KVT_E_NO_MEMORY;
                if (r)
                        code = ctl_fail(x, r, "cannot compute keys");
                else if (n_keys == 0)
                        code = ctl_fail(x, 0, "%zu tokens are less than one block of %u", n_tokens, s->entry->block_tokens);
        }
        kvt_space_close(space);
        free(tokens);
        if (code) {
                free(keys);
                return code;
        }
        *ret = keys;
        *ret_n = n_keys;
        return EXIT_OK;
}

static int keys_of_operands(struct ctl *x, const struct space *s, kvt_key **ret, size_t *ret_n)
{
        size_t n = (size_t)x->n_operands - 1;
        kvt_key *keys = calloc(n, sizeof *keys);
        int code = keys ? EXIT_OK : ctl_fail(x, KVT_E_NO_MEMORY, "%zu keys", n);

        for (size_t i = 0; i < n && code == EXIT_OK; i++)
                code = query_key(x, s, x->operands[1 + i], keys[i].bytes);
        if (code) {
                free(keys);
                return code;
        }
        *ret = keys;
        *ret_n = n;
        return EXIT_OK;
}

/* answers */

static int explain(struct ctl *x, const struct space *s, const kvt_key *key, json_t **ret)
{
        Kvtier__ExplainRequest request = KVTIER__EXPLAIN_REQUEST__INIT;
        Kvtier__ExplainReply *reply;
        struct kvt_block_entry entry;
        json_t *object;
        int code;

        request.space = s->entry->space;
        request.key = (ProtobufCBinaryData){.data = (uint8_t *)key->bytes, .len = 16};
        code = query_call(x, KVT_MSG_EXPLAIN, &request.base, &kvtier__explain_reply__descriptor, (ProtobufCMessage **)&reply);
        if (code)
                return code;
        object = message_json(&reply->base);
        json_object_del(object, "entry");
        if (reply->entry.len == sizeof entry) {
                memcpy(&entry, reply->entry.data, sizeof entry);
                json_object_set_new(object, "block", block_json(&entry));
        }
        json_object_set_new(object, "key", json_string(format_key(key->bytes).text));
        kvt_call_free(&reply->base);
        if (!object)
                return ctl_fail(x, KVT_E_NO_MEMORY, "cannot explain");
        *ret = object;
        return EXIT_OK;
}

static void print_tiers(const json_t *block)
{
        char *tiers = json_join(json_object_get(block, "tiers"));

        if (json_array_size(json_object_get(block, "tiers")) && tiers)
                printf(", in %s", tiers);
        free(tiers);
}

static void print_answer(const json_t *answer, size_t i, bool numbered, uint32_t block_tokens)
{
        const json_t *block = json_object_get(answer, "block");
        const char *text = json_string_value(json_object_get(answer, "text"));
        const json_t *why = json_object_get(answer, "why");

        if (numbered)
                printf("%5zu  tokens %zu-%zu\n       ", i, i * block_tokens, (i + 1) * block_tokens - 1);
        printf("%s  ", json_string_value(json_object_get(answer, "key")));
        if (json_is_string(why))
                fputs(json_string_value(why), stdout);
        else
                printf("reason %lld", (long long)json_integer_value(why));
        if (json_integer_value(json_object_get(answer, "age_usec")))
                printf(", %s ago", format_duration((uint64_t)json_integer_value(json_object_get(answer, "age_usec"))).text);
        else if (!block && !(json_is_string(why) && strcmp(json_string_value(why), "never") == 0))
                fputs(", just now", stdout);
        printf("\n%s%s\n", numbered ? "       " : "", text && *text ? text : "(no more is known)");
        if (block) {
                printf("%s%s, %lld part%s, %lld hits, %lld leases, %lld continue it, idle %s", numbered ? "       " : "",
                       format_bytes((uint64_t)json_integer_value(json_object_get(block, "bytes"))).text,
                       (long long)json_integer_value(json_object_get(block, "n_parts")),
                       json_integer_value(json_object_get(block, "n_parts")) == 1 ? "" : "s",
                       (long long)json_integer_value(json_object_get(block, "hits")),
                       (long long)json_integer_value(json_object_get(block, "leases")),
                       (long long)json_integer_value(json_object_get(block, "n_children")),
                       format_age((uint64_t)json_integer_value(json_object_get(block, "idle_sec"))).text);
                print_tiers(block);
                putchar('\n');
        }
}

static int explain_keys(struct ctl *x, const struct space *s, const kvt_key *keys, size_t n_keys)
{
        json_t *answers = json_array();
        size_t n_leading = 0;
        int code = EXIT_OK;

        for (size_t i = 0; i < n_keys && code == EXIT_OK; i++) {
                json_t *answer = NULL;

                code = explain(x, s, keys + i, &answer);
                if (code)
                        break;
                json_object_set_new(answer, "i_block", json_integer((json_int_t)i));
                if (n_leading == i && json_is_string(json_object_get(answer, "why")) &&
                    strcmp(json_string_value(json_object_get(answer, "why")), "resident") == 0)
                        n_leading++;
                if (x->o.json)
                        json_array_append(answers, answer);
                else
                        print_answer(answer, i, x->o.tokens != NULL, s->entry->block_tokens);
                json_decref(answer);
        }
        if (code || !x->o.json) {
                json_decref(answers);
                if (code == EXIT_OK && x->o.tokens)
                        printf("the first %zu of %zu blocks are resident: a match covers %llu tokens\n", n_leading, n_keys,
                               (unsigned long long)n_leading * s->entry->block_tokens);
                return code;
        }
        return ctl_print_json(x, json_pack("{s:o, s:I}", "blocks", answers, "n_leading", (json_int_t)n_leading));
}

int cmd_why(struct ctl *x)
{
        struct space s;
        kvt_key *keys = NULL;
        size_t n_keys = 0;
        int code;

        if ((x->n_operands > 1) == (x->o.tokens != NULL))
                return ctl_misuse(x, "give either KEYs or --tokens");
        if (x->o.salt && !x->o.tokens)
                return ctl_misuse(x, "--salt belongs to --tokens");
        code = query_space(x, x->operands[0], &s);
        if (code)
                return code;
        code = x->o.tokens ? keys_of_tokens(x, &s, &keys, &n_keys) : keys_of_operands(x, &s, &keys, &n_keys);
        if (code == EXIT_OK)
                code = explain_keys(x, &s, keys, n_keys);
        free(keys);
        space_deinit(&s);
        return code;
}
