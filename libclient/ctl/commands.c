/* The table of subcommands and options made from commands.def, and what only reads it: lookup, usage, help. */
#include <stdio.h>
#include <string.h>

#include "libclient/ctl/commands.h"
#include "libclient/ctl/ctl.h"

#define NEEDS_DAEMON true
#define NEEDS_LOCAL false
const struct ctl_command ctl_commands[] = {
#define COMMAND(name, operands, min, max, needs, summary) {#name, operands, min, max, NEEDS_##needs, summary, cmd_##name},
#define OPTION(command, name, letter, kind, metavar, summary)
#include "libclient/ctl/commands.def"
#undef COMMAND
#undef OPTION
};
const size_t ctl_n_commands = sizeof ctl_commands / sizeof *ctl_commands;

/* The field's type must be the kind's: there is no other branch to take. */
#define TYPE_FLAG bool
#define TYPE_NUMBER uint64_t
#define TYPE_SECONDS uint64_t
#define TYPE_BYTES uint64_t
#define TYPE_TEXT const char *
#define FIELD(kind, name) _Generic(((struct options *)0)->name, TYPE_##kind : offsetof(struct options, name))
const struct ctl_option ctl_options[] = {
#define COMMAND(name, operands, min, max, needs, summary)
#define OPTION(command, name, letter, kind, metavar, summary) {#command, #name, letter, CTL_##kind, metavar, summary, FIELD(kind, name)},
#include "libclient/ctl/commands.def"
#undef COMMAND
#undef OPTION
};
const size_t ctl_n_options = sizeof ctl_options / sizeof *ctl_options;

const struct ctl_command *commands_find(const char *name)
{
        for (size_t i = 0; i < ctl_n_commands; i++)
                if (strcmp(ctl_commands[i].name, name) == 0)
                        return ctl_commands + i;
        return NULL;
}

bool commands_takes(const struct ctl_command *command, const struct ctl_option *option)
{
        return strcmp(option->command, "global") == 0 || (command && strcmp(option->command, command->name) == 0);
}

/* Words of text, from column indent on, in lines of less than 80; the line is at column at. */
static void print_wrapped(FILE *f, int indent, int at, const char *text)
{
        bool first = true;

        fprintf(f, "%*s", at < indent ? indent - at : 0, "");
        at = at < indent ? indent : at;
        while (*text) {
                int n = (int)strcspn(text, " ");

                if (!first && at + 1 + n > 79) {
                        fprintf(f, "\n%*s", indent, "");
                        at = indent;
                } else if (!first) {
                        putc(' ', f);
                        at++;
                }
                at += fprintf(f, "%.*s", n, text);
                text += n + (text[n] == ' ');
                first = false;
        }
        putc('\n', f);
}

static void print_options(FILE *f, const char *command)
{
        for (size_t i = 0; i < ctl_n_options; i++) {
                const struct ctl_option *o = ctl_options + i;

                if (strcmp(o->command, command) == 0)
                        print_wrapped(f, 26, fprintf(f, "  -%c, --%s %s", o->letter, o->name, o->metavar), o->summary);
        }
}

static bool has_options(const struct ctl_command *command)
{
        for (size_t i = 0; i < ctl_n_options; i++)
                if (strcmp(ctl_options[i].command, command->name) == 0)
                        return true;
        return false;
}

void commands_print_usage(FILE *f, const struct ctl_command *command)
{
        if (!command)
                fprintf(f, "usage: kvtierctl [options] COMMAND [operands]\n");
        else
                fprintf(f, "usage: kvtierctl %s%s%s%s\n", command->name, *command->operands ? " " : "", command->operands,
                        has_options(command) ? " [options]" : "");
}

void commands_print_help(FILE *f, const struct ctl_command *command)
{
        commands_print_usage(f, command);
        putc('\n', f);
        if (command) {
                print_wrapped(f, 0, 0, command->summary);
                if (has_options(command)) {
                        fprintf(f, "\noptions:\n");
                        print_options(f, command->name);
                }
        } else {
                fprintf(f, "Looks at and operates kvtierd.\n\ncommands:\n");
                for (size_t i = 0; i < ctl_n_commands; i++) {
                        const struct ctl_command *c = ctl_commands + i;

                        print_wrapped(f, 26, fprintf(f, "  %s %s", c->name, c->operands), c->summary);
                }
                putc('\n', f);
                print_wrapped(f, 0, 0,
                              "SPACE is a name or a handle; KEY is 32 hexadecimal digits, or the first 4 or more of a stored one.");
        }
        fprintf(f, "\nglobal options:\n");
        print_options(f, "global");
        putc('\n', f);
        print_wrapped(f, 0, 0, "exit status: 0 done, 1 refused or not found, 2 usage, 3 no connection. More: man 1 kvtierctl");
}

static json_t *options_json(const char *command)
{
        static const char *const kinds[] = {
                [CTL_FLAG] = "flag", [CTL_NUMBER] = "number", [CTL_BYTES] = "bytes", [CTL_TEXT] = "text", [CTL_SECONDS] = "seconds"};
        json_t *array = json_array();

        for (size_t i = 0; i < ctl_n_options; i++) {
                const struct ctl_option *o = ctl_options + i;

                if (strcmp(o->command, command) == 0)
                        json_array_append_new(array,
                                              json_pack("{s:s, s:s%, s:s, s:s, s:s}", "name", o->name, "letter", &o->letter, (size_t)1,
                                                        "kind", kinds[o->kind], "metavar", o->metavar, "summary", o->summary));
        }
        return array;
}

static json_t *command_json(const struct ctl_command *c)
{
        return json_pack("{s:s, s:s, s:s, s:o}", "name", c->name, "operands", c->operands, "summary", c->summary, "options",
                         options_json(c->name));
}

int cmd_help(struct ctl *x)
{
        const struct ctl_command *command = NULL;
        json_t *object, *list;

        if (x->n_operands) {
                command = commands_find(x->operands[0]);
                if (!command)
                        return ctl_misuse(x, "no command is called %s", x->operands[0]);
        }
        if (!x->o.json) {
                commands_print_help(stdout, command);
                return EXIT_OK;
        }
        if (command)
                return ctl_print_json(x, command_json(command));
        list = json_array();
        for (size_t i = 0; i < ctl_n_commands; i++)
                json_array_append_new(list, command_json(ctl_commands + i));
        object = json_pack("{s:o, s:o}", "commands", list, "global_options", options_json("global"));
        return ctl_print_json(x, object);
}

int cmd_version(struct ctl *x)
{
        if (x->o.json)
                return ctl_print_json(x, json_pack("{s:s, s:s, s:i, s:i}", "kvtierctl", KVT_RELEASE, "libkvtier", kvt_version(),
                                                   "protocol_min", KVT_PROTO_MIN, "protocol_max", KVT_PROTO_MAX));
        printf("kvtierctl %s, libkvtier %s, protocol ", KVT_RELEASE, kvt_version());
        if (KVT_PROTO_MIN == KVT_PROTO_MAX)
                printf("%d\n", KVT_PROTO_MAX);
        else
                printf("%d to %d\n", KVT_PROTO_MIN, KVT_PROTO_MAX);
        return EXIT_OK;
}
