/* Results have names and texts, the ones of proto/errors.def; the man pages list all of them, and every function of the header. */
#include <dirent.h>
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "include/kvtier.h"

static const struct {
        int code;
        const char *name, *text;
} errors[] = {
#define ERROR(code, name, text) {code, "KVT_E_" #name, text},
#include "proto/errors.def"
#undef ERROR
};
enum { N_ERRORS = sizeof(errors) / sizeof(*errors) };

static void test_names(void **state)
{
        bool seen[256] = {false};

        for (size_t i = 0; i < N_ERRORS; i++) {
                assert_in_range(errors[i].code, 1, 255); /* they travel in a byte */
                assert_false(seen[errors[i].code]);
                seen[errors[i].code] = true;
                assert_string_equal(kvt_strerror(errors[i].code), errors[i].text);
                assert_string_equal(kvt_error_name(errors[i].code), errors[i].name);
        }
        assert_int_equal(KVT_E_MISS, 3);
        assert_string_equal(kvt_error_name(KVT_E_MISS), "KVT_E_MISS");
        assert_string_equal(kvt_error_name(0), "OK");
        assert_string_equal(kvt_error_name(-ENOENT), "ENOENT");
        assert_string_equal(kvt_strerror(-ENOENT), strerror(ENOENT));
        for (int r = -5000; r < 300; r++) {
                assert_non_null(kvt_strerror(r));
                assert_true(*kvt_strerror(r));
                assert_true(*kvt_error_name(r));
        }
        assert_string_equal(kvt_strerror(255), "unknown error");
        assert_string_equal(kvt_error_name(-4000), "UNKNOWN");
        assert_non_null(kvt_strerror(-2147483647 - 1));
        assert_non_null(kvt_error_name(-2147483647 - 1));
}

static void test_version(void **state)
{
        char text[32];

        snprintf(text, sizeof(text), "%d.%d.%d", KVT_VERSION_MAJOR, KVT_VERSION_MINOR, KVT_VERSION_PATCH);
        assert_string_equal(kvt_version(), text);
}

static char *slurp(const char *path)
{
        FILE *f = fopen(path, "re");
        char *text;
        long n;

        if (!f)
                fail_msg("%s is not here: run it from the root of the tree", path);
        fseek(f, 0, SEEK_END);
        n = ftell(f);
        rewind(f);
        text = malloc((size_t)n + 1);
        assert_int_equal(fread(text, 1, (size_t)n, f), n);
        text[n] = 0;
        fclose(f);
        for (char *p = text; *p; p++) /* lines are filled when they are shown */
                if (*p == '\n')
                        *p = ' ';
        return text;
}

static void test_errors_are_documented(void **state)
{
        char *page = slurp("man/kvtier.3"), entry[512];

        for (size_t i = 0; i < N_ERRORS; i++) {
                snprintf(entry, sizeof(entry), ".It Er %s Pq %d %s ", errors[i].name, errors[i].code, errors[i].text);
                if (!strstr(page, entry))
                        fail_msg("man/kvtier.3 does not say: %s", entry);
        }
        free(page);
}

/* Whether some page of section 3 lists the function in its NAME section. */
static bool is_documented(const char *function)
{
        char name[80], path[300];
        bool found = false;
        struct dirent *e;
        DIR *d = opendir("man");

        assert_non_null(d);
        snprintf(name, sizeof(name), ".Nm %s ", function);
        while (!found && (e = readdir(d))) {
                size_t n = strlen(e->d_name);
                char *page, *end;

                if (n < 3 || strcmp(e->d_name + n - 2, ".3") != 0)
                        continue;
                snprintf(path, sizeof(path), "man/%s", e->d_name);
                page = slurp(path);
                end = strstr(page, ".Sh LIBRARY");
                if (end)
                        *end = 0;
                found = strstr(page, name);
                free(page);
        }
        closedir(d);
        return found;
}

static void test_functions_are_documented(void **state)
{
        char *header = slurp("libclient/include/kvtier.h.in"), *library = slurp("man/kvtier.3"), *async = slurp("man/kvt_async.3");
        size_t n = 0;

        for (char *p = header; (p = strstr(p, "KVT_PUBLIC ")); p++) {
                char function[64], line[80], *open = strchr(p, '('), *start = open;

                if (strstr(p, "__attribute__") && strstr(p, "__attribute__") < open)
                        continue;
                while (start > p && (start[-1] == '_' || (start[-1] >= 'a' && start[-1] <= 'z')))
                        start--;
                if (strncmp(start, "kvt_", 4) != 0)
                        continue;
                snprintf(function, sizeof(function), "%.*s", (int)(open - start), start);
                snprintf(line, sizeof(line), ".Fn %s ", function); /* the three of kvtier(3) have no page of their own */
                if (!is_documented(function) && !strstr(library, line))
                        fail_msg("no page documents %s", function);
                n++;
        }
        assert_true(n >= 40);
        assert_non_null(strstr(async, "_async"));
        free(header);
        free(library);
        free(async);
}

int main(void)
{
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_names),
                cmocka_unit_test(test_version),
                cmocka_unit_test(test_errors_are_documented),
                cmocka_unit_test(test_functions_are_documented),
        };
        return cmocka_run_group_tests(tests, NULL, NULL);
}
