/* The configuration parser, on any text: an error names the file; a configuration that is taken is within the table's ranges, and what
 * --show-config prints of it is taken, too, and says the same. */
#include "daemon/util/conf.h"
#include "tests/fuzz/fuzz.h"

static const char *const seeds[] = {
        "",
        "# a comment\n[kvtierd]\nhost_bytes = 2G\nslab_bytes=4M ; another\nlease_usec = 500ms\nhuge_pages = no\n",
        "[tenant red]\nuid = 1000\ngroup = 100\nhard_bytes = 512M\nsoft_bytes = 256M\n[tenant blue]\nuid = root\n",
        "socket = /run/x.sock\nsocket_mode = 0660\nlog_level = debug\nworkers = 3\nevict_high_pct = 90%\nevict_low_pct = 80%\n",
        "staging_bytes = 18446744073709551616\n",
        "busy_poll_usec = 10us\nput_timeout_usec = 1min\ndrain_timeout_usec = 1h\nghost_entries = 1024\n",
};

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
        char name[16];

        for (size_t i = 0; i < ELEMENTSOF(seeds); i++) {
                snprintf(name, sizeof(name), "%zu", i);
                fuzz_seed(fuzz_corpus(*argc, *argv), name, seeds[i], strlen(seeds[i]));
        }
        return 0;
}

static void check_ranges(const struct conf *c)
{
#define CHECK_BYTES(name, min, max) FUZZ_CHECK(c->p.name <= (max)) /* zeros are replaced, sizes are rounded */
#define CHECK_USEC(name, min, max) FUZZ_CHECK(c->p.name >= (min) && c->p.name <= (max))
#define CHECK_COUNT(name, min, max) FUZZ_CHECK(c->p.name <= (max) && c->p.name + 1 > (min))
#define CHECK_PCT(name, min, max) CHECK_USEC(name, min, max)
#define CHECK_BOOL(name, min, max) FUZZ_CHECK(c->p.name <= 1)
#define CHECK_STRING(name, min, max) FUZZ_CHECK(c->p.name &&strlen(c->p.name) <= (max))
#define PARAM(type, name, def, min, max, reload, text) CHECK_##type(name, min, max);
#include "daemon/params.def"
#undef PARAM
        FUZZ_CHECK(c->p.slab_bytes && c->p.slab_bytes % (2 << 20) == 0 && c->p.slab_bytes <= c->p.host_bytes);
        FUZZ_CHECK(c->p.max_blocks && c->p.evict_low_pct <= c->p.evict_high_pct);
        for (size_t i = 0; i < c->n_tenants; i++) {
                FUZZ_CHECK(c->tenants[i].name && *c->tenants[i].name);
                for (size_t j = 0; j < i; j++)
                        FUZZ_CHECK(strcmp(c->tenants[i].name, c->tenants[j].name));
        }
}

static void check_same(const struct conf *a, const struct conf *b)
{
#define SAME_BYTES(name) FUZZ_CHECK(a->p.name == b->p.name)
#define SAME_USEC SAME_BYTES
#define SAME_COUNT SAME_BYTES
#define SAME_PCT SAME_BYTES
#define SAME_BOOL SAME_BYTES
#define SAME_STRING(name) FUZZ_CHECK(!strcmp(a->p.name, b->p.name))
#define PARAM(type, name, def, min, max, reload, text) SAME_##type(name);
#include "daemon/params.def"
#undef PARAM
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n)
{
        char *text = memcpy(malloc(n + !n), bytes, n), error[256] = "", *printed = NULL;
        struct conf c = {}, again = {};
        size_t n_printed = 0;
        int r = conf_parse(&c, text, n, "the-file", error, sizeof(error));

        free(text);
        if (r < 0) {
                FUZZ_CHECK(!strncmp(error, "the-file:", 9) || !strncmp(error, "configuration:", 14));
                FUZZ_CHECK(!c.tenants && !c.n_tenants && !c.p.socket);
                return 0;
        }
        check_ranges(&c);
        FILE *out = stdout;
        stdout = open_memstream(&printed, &n_printed);
        conf_print(&c);
        fclose(stdout);
        stdout = out;
        r = conf_parse(&again, printed, n_printed, "printed", error, sizeof(error));
        if (r < 0)
                fprintf(stderr, "%s\n%s\n", error, printed);
        FUZZ_CHECK(r == 0);
        check_ranges(&again);
        check_same(&c, &again);
        free(printed);
        conf_deinit(&c);
        conf_deinit(&again);
        return 0;
}
