/* kvtierctl: looks at and operates kvtierd. The command line, the connection and the messages; the subcommands are in cmd_*.c. */
#include <errno.h>
#include <getopt.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "libclient/ctl/commands.h"
#include "libclient/ctl/ctl.h"
#include "libclient/ctl/format.h"

enum { MAX_OPTIONS = 16 }; /* of one command, with the global ones; checked */

static void say(const struct ctl *x, const char *format, va_list args)
{
        fflush(stdout);
        fprintf(stderr, "kvtierctl: %s%s", x->command ? x->command : "", x->command ? ": " : "");
        vfprintf(stderr, format, args);
}

void ctl_say(const struct ctl *x, const char *format, ...)
{
        va_list args;

        va_start(args, format);
        say(x, format, args);
        va_end(args);
        putc('\n', stderr);
}

int ctl_fail(const struct ctl *x, int r, const char *format, ...)
{
        va_list args;

        va_start(args, format);
        say(x, format, args);
        va_end(args);
        if (r)
                fprintf(stderr, ": %s (%s)", kvt_strerror(r), kvt_error_name(r));
        putc('\n', stderr);
        return r == KVT_E_DISCONNECTED ? EXIT_CONNECT : EXIT_FAILED;
}

int ctl_misuse(const struct ctl *x, const char *format, ...)
{
        va_list args;

        va_start(args, format);
        say(x, format, args);
        va_end(args);
        fprintf(stderr, "\nTry 'kvtierctl help%s%s'.\n", x->command ? " " : "", x->command ? x->command : "");
        return EXIT_USAGE;
}

int ctl_print_json(const struct ctl *x, json_t *value)
{
        int r = value ? json_dumpf(value, stdout, JSON_COMPACT) : -1;

        json_decref(value);
        if (r)
                return ctl_fail(x, KVT_E_NO_MEMORY, "cannot print JSON");
        putchar('\n');
        return EXIT_OK;
}

static int set_option(struct ctl *x, const struct ctl_option *option, const char *value)
{
        void *field = (char *)&x->o + option->field;

        switch (option->kind) {
        case CTL_FLAG:
                *(bool *)field = true;
                return EXIT_OK;
        case CTL_TEXT:
                *(const char **)field = value;
                return EXIT_OK;
        case CTL_NUMBER:
                if (!parse_number(value, 0, CTL_UNSET - 1, field))
                        return ctl_misuse(x, "--%s takes a number, not '%s'", option->name, value);
                return EXIT_OK;
        case CTL_BYTES:
                if (!parse_bytes(value, field))
                        return ctl_misuse(x, "--%s takes a number of bytes, such as 64M or 4G, not '%s'", option->name, value);
                return EXIT_OK;
        case CTL_SECONDS:
                if (!parse_seconds(value, field) || *(uint64_t *)field == 0)
                        return ctl_misuse(x, "--%s takes a time in seconds, such as 1 or 0.5, not '%s'", option->name, value);
                return EXIT_OK;
        }
        return EXIT_USAGE;
}

/* Reads the options of a command (NULL: only those before it) and leaves optind at the first operand. */
static int read_options(struct ctl *x, const struct ctl_command *command, int argc, char **argv)
{
        const struct ctl_option *taken[MAX_OPTIONS];
        struct option longs[MAX_OPTIONS + 1] = {};
        char letters[2 + 2 * MAX_OPTIONS] = "";
        size_t n = 0, n_letters = 0;
        int c;

        if (!command) /* stop at the command; its options are its own */
                letters[n_letters++] = '+';
        for (size_t i = 0; i < ctl_n_options; i++) {
                const struct ctl_option *o = ctl_options + i;

                if (!commands_takes(command, o))
                        continue;
                if (n == MAX_OPTIONS)
                        abort(); /* the table outgrew MAX_OPTIONS; the tests run every command */
                longs[n] = (struct option){o->name, o->kind == CTL_FLAG ? no_argument : required_argument, NULL, o->letter};
                letters[n_letters++] = o->letter;
                if (o->kind != CTL_FLAG)
                        letters[n_letters++] = ':';
                taken[n++] = o;
        }
        optind = 0; /* glibc: start over */
        while ((c = getopt_long(argc, argv, letters, longs, NULL)) >= 0) {
                int code = EXIT_USAGE;

                for (size_t i = 0; i < n; i++)
                        if (taken[i]->letter == c)
                                code = set_option(x, taken[i], optarg);
                if (c == '?')
                        fprintf(stderr, "Try 'kvtierctl help%s%s'.\n", command ? " " : "", command ? command->name : "");
                if (code)
                        return code;
        }
        return EXIT_OK;
}

int ctl_connect(struct ctl *x)
{
        kvt_options options = {
                .struct_size = sizeof options,
                .path = x->o.socket,
                .name = "kvtierctl",
                .timeout_usec = x->o.timeout,
                .flags = KVT_OPEN_NO_THREAD,
        };
        int r = kvt_open(&options, &x->connection);

        if (r) {
                ctl_fail(x, r, "cannot connect to kvtierd%s%s", x->o.socket ? " at " : "", x->o.socket ? x->o.socket : "");
                return EXIT_CONNECT;
        }
        return EXIT_OK;
}

static int run(struct ctl *x, const struct ctl_command *command)
{
        int code;

        if (x->n_operands < command->min_operands || x->n_operands > command->max_operands) {
                commands_print_usage(stderr, command);
                return ctl_misuse(x, x->n_operands < command->min_operands ? "too few operands" : "too many operands");
        }
        if (command->needs_daemon) {
                code = ctl_connect(x);
                if (code)
                        return code;
        }
        code = command->run(x);
        kvt_close(x->connection);
        return code;
}

int main(int argc, char **argv)
{
        struct ctl x = {.o = {.timeout = 5000000,
                              .count = 10,
                              .size = CTL_UNSET,
                              .segment = 64 << 20,
                              .delay = 1000000,
                              .block = 64,
                              .queries = 64}};
        const struct ctl_command *command;
        char name[64] = "kvtierctl", *no_name[] = {name, NULL};
        int code;

        if (argc < 1) {
                argc = 1;
                argv = no_name;
        }
        argv[0] = name; /* getopt's messages begin with it */
        code = read_options(&x, NULL, argc, argv);
        if (code)
                return code;
        if (x.o.version)
                return cmd_version(&x);
        argc -= optind;
        argv += optind;
        if (argc == 0 && !x.o.help) {
                commands_print_usage(stderr, NULL);
                return ctl_misuse(&x, "which command?");
        }
        if (argc == 0)
                return cmd_help(&x);
        command = commands_find(argv[0]);
        if (!command)
                return ctl_misuse(&x, "no command is called %s", argv[0]);
        x.command = command->name;
        snprintf(name, sizeof name, "kvtierctl: %s", command->name);
        argv[0] = name;
        code = read_options(&x, command, argc, argv);
        if (code)
                return code;
        x.operands = argv + optind;
        x.n_operands = argc - optind;
        if (x.o.version)
                code = cmd_version(&x);
        else if (x.o.help) {
                x.operands = (char *[]){(char *)command->name};
                x.n_operands = 1;
                code = cmd_help(&x);
        } else
                code = run(&x, command);
        if (fflush(stdout) || ferror(stdout)) {
                ctl_say(&x, "cannot write: %s", strerror(errno));
                code = code ? code : EXIT_FAILED;
        }
        return code;
}
