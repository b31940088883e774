/* kvtierctl's pure parts: formats, parsers, and the table of subcommands. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

/* kvtierctl is a program, not a library: its pure files are compiled into the test */
#include "libclient/ctl/format.c"
#include "libclient/ctl/latency.c"
#include "libclient/ctl/table.c"

static void test_bytes(void **state)
{
        static const struct {
                uint64_t n;
                const char *text;
        } cases[] = {
                {0, "0 B"},
                {1, "1 B"},
                {1023, "1023 B"},
                {1024, "1.0 KiB"},
                {1536, "1.5 KiB"},
                {1024 * 1024 - 1, "1.0 MiB"}, /* not 1024.0 KiB */
                {64ull << 20, "64.0 MiB"},
                {(1ull << 30) + (1ull << 29), "1.5 GiB"},
                {3ull << 40, "3.0 TiB"},
                {UINT64_MAX, "16.0 EiB"},
        };

        for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
                assert_string_equal(format_bytes(cases[i].n).text, cases[i].text);
}

static void test_duration(void **state)
{
        static const struct {
                uint64_t usec;
                const char *text;
        } cases[] = {
                {0, "0 us"},
                {999, "999 us"},
                {1000, "1.0 ms"},
                {12345, "12.3 ms"},
                {999949, "999.9 ms"},
                {999950, "1.0 s"},
                {4200000, "4.2 s"},
                {59949999, "59.9 s"},
                {60000000, "1m 00s"},
                {192000000, "3m 12s"},
                {3600000000, "1h 00m"},
                {7500000000, "2h 05m"},
                {273600000000, "3d 04h"},
                {UINT64_MAX, "213503982d 08h"},
        };

        for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
                assert_string_equal(format_duration(cases[i].usec).text, cases[i].text);
}

static void test_age(void **state)
{
        assert_string_equal(format_age(0).text, "0 s");
        assert_string_equal(format_age(59).text, "59 s");
        assert_string_equal(format_age(60).text, "1m 00s");
        assert_string_equal(format_age(UINT64_MAX).text, "213503982d 08h");
}

static void test_bar_percent_rate(void **state)
{
        assert_string_equal(format_bar(0, 10, 12).text, "[..........]");
        assert_string_equal(format_bar(5, 10, 12).text, "[#####.....]");
        assert_string_equal(format_bar(10, 10, 12).text, "[##########]");
        assert_string_equal(format_bar(20, 10, 12).text, "[##########]");
        assert_string_equal(format_bar(1, 1000000, 12).text, "[#.........]"); /* something is not nothing */
        assert_string_equal(format_bar(5, 0, 12).text, "[..........]");
        assert_string_equal(format_bar(1, 2, 0).text, "[]");
        assert_int_equal(strlen(format_bar(1, 2, 1000).text), 80);
        assert_string_equal(format_percent(1, 3).text, "33.3 %");
        assert_string_equal(format_percent(0, 0).text, "-");
        assert_string_equal(format_rate(0).text, "0");
        assert_string_equal(format_rate(.3).text, "0.3");
        assert_string_equal(format_rate(9.96).text, "10");
        assert_string_equal(format_rate(9999.4).text, "9999");
        assert_string_equal(format_rate(45000).text, "45k");
        assert_string_equal(format_rate(1234567).text, "1.2M");
        assert_string_equal(format_rate(123e6).text, "123M");
        assert_string_equal(format_rate(2.5e9).text, "2.5G");
}

static void assert_clean(const char *in, const char *out)
{
        char *s = format_clean(in);

        assert_non_null(s);
        assert_string_equal(s, out);
        free(s);
}

static void test_clean(void **state)
{
        assert_clean("", "");
        assert_clean("SmolLM2-135M", "SmolLM2-135M");
        assert_clean("Qwen\xc3\xa9 \xe4\xb8\x96 \xf0\x9f\x98\x80", "Qwen\xc3\xa9 \xe4\xb8\x96 \xf0\x9f\x98\x80");
        assert_clean("a\033[2Jb\nc\x7f", "a?[2Jb?c?");
        assert_clean("\xc2\x9b"
                     "31m",
                     "?31m"); /* C1: another CSI */
        assert_clean("\xff\xc0\xaf", "???"); /* no UTF-8, overlong */
        assert_clean("\xed\xa0\x80", "???"); /* surrogate */
        assert_clean("\xf4\x90\x80\x80", "????"); /* past the last code point */
        assert_clean("x\xe4\xb8", "x??"); /* cut short */
        assert_int_equal(format_width("\xe4\xb8\x96z"), 2); /* code points */
}

static void test_numbers(void **state)
{
        uint64_t n = 77;

        assert_true(parse_number("0", 0, 9, &n) && n == 0);
        assert_true(parse_number("18446744073709551615", 0, UINT64_MAX, &n) && n == UINT64_MAX);
        n = 77;
        assert_false(parse_number("18446744073709551616", 0, UINT64_MAX, &n));
        assert_false(parse_number("", 0, 9, &n));
        assert_false(parse_number("-1", 0, 9, &n));
        assert_false(parse_number(" 1", 0, 9, &n));
        assert_false(parse_number("1x", 0, 9, &n));
        assert_false(parse_number("10", 0, 9, &n));
        assert_false(parse_number("1", 2, 9, &n));
        assert_true(parse_seconds("0.25", &n) && n == 250000);
        assert_true(parse_seconds("10", &n) && n == 10000000);
        n = 77;
        assert_false(parse_seconds("1e9", &n));
        assert_false(parse_seconds("nan", &n));
        assert_false(parse_seconds("1.2.3", &n));
        assert_false(parse_seconds(".", &n));
        assert_false(parse_seconds("99999999999", &n));
        assert_int_equal(n, 77);
}

static void test_keys(void **state)
{
        const char *text = "00ff10aBcdef0123456789ABCDEF7f80";
        uint8_t key[16];

        assert_true(parse_key(text, key));
        assert_string_equal(format_key(key).text, "00ff10abcdef0123456789abcdef7f80");
        assert_false(parse_key("00ff", key));
        assert_false(parse_key("00ff10aBcdef0123456789ABCDEF7f8g", key));
        assert_false(parse_key("00ff10aBcdef0123456789ABCDEF7f8000", key));
        assert_int_equal(strlen(format_hex((const uint8_t[64]){0}, 64).text), 94); /* cut, not overrun */
}

static void assert_tokens(const char *s, size_t n, const uint32_t *ids)
{
        uint32_t *tokens = NULL;
        size_t got = 99, at = 99;

        assert_int_equal(parse_tokens(s, strlen(s), &tokens, &got, &at), 0);
        assert_int_equal(got, n);
        for (size_t i = 0; i < n; i++)
                assert_int_equal(tokens[i], ids[i]);
        free(tokens);
}

static void assert_no_tokens(const char *s, size_t where)
{
        uint32_t *tokens = NULL;
        size_t n, at = 99;

        assert_int_equal(parse_tokens(s, strlen(s), &tokens, &n, &at), -EINVAL);
        assert_int_equal(at, where);
        assert_null(tokens);
}

static void test_tokens(void **state)
{
        uint32_t *tokens = NULL;
        char *many = malloc(40000 * 6 + 1);
        size_t n, at, length = 0;

        assert_tokens("", 0, NULL);
        assert_tokens("1,2,3", 3, (uint32_t[]){1, 2, 3});
        assert_tokens(" 1 , 2\n3\t4294967295 \n", 4, (uint32_t[]){1, 2, 3, UINT32_MAX});
        assert_no_tokens("1,,2", 2);
        assert_no_tokens(",1", 0);
        assert_no_tokens("1,", 2);
        assert_no_tokens("1,-2", 2);
        assert_no_tokens("1,2x", 2);
        assert_no_tokens("4294967296", 0);
        assert_no_tokens("99999999999999999999999999", 0);
        for (unsigned i = 0; i < 40000; i++)
                length += (size_t)sprintf(many + length, "%u ", i);
        assert_int_equal(parse_tokens(many, length, &tokens, &n, &at), 0);
        assert_int_equal(n, 40000);
        assert_int_equal(tokens[39999], 39999);
        free(tokens);
        free(many);
}

static void test_message_json(void **state)
{
        Kvtier__TenantEntry tenant = KVTIER__TENANT_ENTRY__INIT;
        Kvtier__ListReply list = KVTIER__LIST_REPLY__INIT;
        Kvtier__ExplainReply explain = KVTIER__EXPLAIN_REPLY__INIT;
        Kvtier__TenantEntry *tenants[] = {&tenant, &tenant};
        json_t *o;

        tenant.name = (char *)"a\033b";
        tenant.hard_bytes = UINT64_MAX;
        tenant.hits = 3;
        tenant.misses = 1;
        list.n_tenants = 2;
        list.tenants = tenants;
        list.blocks = (ProtobufCBinaryData){.data = (uint8_t *)"\x01\xfe", .len = 2};
        o = message_json(&list.base);
        assert_int_equal(json_array_size(json_object_get(o, "tenants")), 2);
        assert_string_equal(json_string_value(json_object_get(o, "blocks")), "01fe");
        assert_string_equal(json_string_value(json_object_get(json_array_get(json_object_get(o, "tenants"), 1), "name")), "a?b");
        assert_true(json_is_real(json_object_get(json_array_get(json_object_get(o, "tenants"), 0), "hard_bytes")));
        json_decref(o);
        o = message_json(&tenant.base);
        json_add_hit_ratio(o);
        assert_true(json_real_value(json_object_get(o, "hit_ratio")) == .75);
        json_decref(o);
        explain.why = KVTIER__WHY__WHY_NO_PARENT;
        o = message_json(&explain.base);
        assert_string_equal(json_string_value(json_object_get(o, "why")), "no_parent");
        json_decref(o);
        explain.why = 200; /* of a later release */
        o = message_json(&explain.base);
        assert_int_equal(json_integer_value(json_object_get(o, "why")), 200);
        json_decref(o);
}

static void test_table(void **state)
{
        static const struct column columns[] = {
                {"NAME", "name"}, {"SIZE", "n_bytes"}, {"AGE", "age_sec"}, {"R", "hit_ratio"}, {"END", "end", 5}};
        json_t *rows = json_pack("[{s:s, s:i, s:i, s:f, s:s}, {s:s, s:i, s:n}]", "name", "x", "n_bytes", 2048, "age_sec", 61, "hit_ratio",
                                 .5, "end", "e", "name", "\xc3\xa9long", "n_bytes", 1, "age_sec");
        char *text = NULL;
        size_t n;
        FILE *f = open_memstream(&text, &n);

        assert_non_null(rows);
        assert_int_equal(table_print(f, columns, 5, rows, true, false), 0);
        fclose(f);
        assert_string_equal(text, "NAME      SIZE     AGE       R  END\n"
                                  "x      2.0 KiB  1m 01s  50.0 %  e\n"
                                  "\xc3\xa9long      1 B       -       -  -\n");
        free(text);
        f = open_memstream(&text, &n);
        assert_int_equal(table_print(f, columns, 5, rows, true, true), 0);
        fclose(f);
        assert_string_equal(text, "x\n\xc3\xa9long\n");
        free(text);
        json_decref(rows);
}

static void test_sizes(void **state)
{
        static const char *const wrong[] = {
                "", "K", "-1", "1.5G", "1KB", "1 K", "64m1", "0x10", "18446744073709551615", "16777216T", "99999999999999999999"};
        uint64_t n = 77, first = 78;

        assert_true(parse_bytes("0", &n) && n == 0);
        assert_true(parse_bytes("4096", &n) && n == 4096);
        assert_true(parse_bytes("64M", &n) && n == 64 << 20);
        assert_true(parse_bytes("64m", &n) && n == 64 << 20);
        assert_true(parse_bytes("3k", &n) && n == 3 << 10);
        assert_true(parse_bytes("4G", &n) && n == 4ull << 30);
        assert_true(parse_bytes("16777215T", &n) && n == 16777215ull << 40);
        n = 77;
        for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++)
                assert_false(parse_bytes(wrong[i], &n));
        assert_int_equal(n, 77);
        assert_false(parse_range("1", &first, &n));
        assert_false(parse_range(":1", &first, &n));
        assert_false(parse_range("1:", &first, &n));
        assert_false(parse_range("1:0", &first, &n));
        assert_false(parse_range("1:2:3", &first, &n));
        assert_false(parse_range("-1:2", &first, &n));
        assert_false(parse_range("1111111111111111111111111111:2", &first, &n));
        assert_true(n == 77 && first == 78);
        assert_true(parse_range("4:2", &first, &n) && first == 4 && n == 2);
        assert_true(parse_range("0:18446744073709551615", &first, &n) && first == 0 && n == UINT64_MAX);
}

static void test_tiers(void **state)
{
        static const struct {
                uint8_t tiers;
                const char *text;
        } cases[] = {{0, "-"}, {1, "host"}, {2, "nvme"}, {3, "host+nvme"}, {0x81, "host+7"}};

        for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
                struct kvt_block_entry entry = {.tiers = cases[i].tiers};
                json_t *block = block_json(&entry);
                char *text = json_join(json_object_get(block, "tiers"));

                assert_true(json_is_array(json_object_get(block, "tiers")));
                assert_string_equal(text, cases[i].text);
                free(text);
                json_decref(block);
        }
}

static void test_latency(void **state)
{
        uint64_t reads[] = {0, 0, 50, 48, 0, 2}, writes[] = {0, 0, 0, 0, 100}, wild[70] = {[69] = UINT64_MAX, [3] = UINT64_MAX};
        Kvtier__DeviceEntry d = KVTIER__DEVICE_ENTRY__INIT;
        char *text = NULL;
        json_t *row;
        size_t n;
        FILE *f;

        assert_int_equal(latency_percentile(reads, 0, 50), 0);
        assert_int_equal(latency_percentile(reads, 2, 50), 0);
        assert_int_equal(latency_percentile(reads, 6, 50), 32);
        assert_int_equal(latency_percentile(reads, 6, 51), 64);
        assert_int_equal(latency_percentile(reads, 6, 98), 64);
        assert_int_equal(latency_percentile(reads, 6, 99), 256);
        assert_int_equal(latency_percentile(wild, 70, 99), 1ull << 62); /* of no daemon */
        assert_int_equal(latency_bound(SIZE_MAX), 1ull << 62);

        d.path = (char *)"/dev/\033x";
        d.capacity_bytes = 200;
        d.used_bytes = 50;
        d.read_usec = reads;
        d.n_read_usec = 6;
        row = latency_json(&d);
        assert_string_equal(json_string_value(json_object_get(row, "path")), "/dev/?x");
        assert_true(json_real_value(json_object_get(row, "used_ratio")) == .25);
        assert_int_equal(json_integer_value(json_object_get(row, "read_p50_usec")), 32);
        assert_int_equal(json_integer_value(json_object_get(row, "read_p99_usec")), 256);
        assert_true(json_is_null(json_object_get(row, "write_p50_usec")));
        assert_int_equal(json_array_size(json_object_get(row, "read_usec")), 6);
        json_decref(row);

        d.write_usec = writes;
        d.n_write_usec = 5;
        row = latency_json(&d);
        f = open_memstream(&text, &n);
        latency_print(f, row);
        fclose(f);
        assert_string_equal(text, "        took                            reads                           writes\n"
                                  "  <    32 us          50 [#########.........]           0 [..................]\n"
                                  "  <    64 us          48 [#########.........]           0 [..................]\n"
                                  "  <   128 us           0 [..................]         100 [##################]\n"
                                  "  >   128 us           2 [#.................]           0 [..................]\n");
        free(text);
        json_decref(row);
        d.n_read_usec = d.n_write_usec = 0;
        row = latency_json(&d);
        f = open_memstream(&text, &n);
        latency_print(f, row);
        fclose(f);
        assert_string_equal(text, "");
        free(text);
        json_decref(row);
}

int main(void)
{
        const struct CMUnitTest tests[] = {
                cmocka_unit_test(test_bytes),        cmocka_unit_test(test_duration),
                cmocka_unit_test(test_age),          cmocka_unit_test(test_bar_percent_rate),
                cmocka_unit_test(test_clean),        cmocka_unit_test(test_numbers),
                cmocka_unit_test(test_keys),         cmocka_unit_test(test_tokens),
                cmocka_unit_test(test_message_json), cmocka_unit_test(test_table),
                cmocka_unit_test(test_sizes),        cmocka_unit_test(test_tiers),
                cmocka_unit_test(test_latency),
        };

        return cmocka_run_group_tests(tests, NULL, NULL);
}
