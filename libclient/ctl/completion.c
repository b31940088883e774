/* completion: scripts for bash and zsh, made from the table of subcommands.
 *
 * What an operand may be is read from its word in the table (SPACE, KEY, ...); names and keys are asked from the daemon while
 * completing. They are foreign text there: the scripts never expand them. */
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "libclient/ctl/commands.h"
#include "libclient/ctl/ctl.h"

/* Calls fn for each operand word: "SPACE KEY..." -> SPACE, then KEY with repeats; brackets are taken off. */
static void each_operand(FILE *f, const struct ctl_command *c,
                         void (*fn)(FILE *f, const struct ctl_command *c, int i, const char *word, bool repeats))
{
        const char *p = c->operands;

        for (int i = 0; *p; i++) {
                char word[32];
                size_t n;

                p += strspn(p, " [");
                n = strcspn(p, " ].");
                snprintf(word, sizeof word, "%.*s", (int)n, p);
                p += n;
                fn(f, c, i, word, strncmp(p, "...", 3) == 0);
                p += strspn(p, " ].");
        }
}

/* What completes a word of the table: "kind" or, for words in lower case, the words themselves. */
static const char *kind_of(const char *word)
{
        static const struct {
                const char *word, *kind;
        } kinds[] = {{"SPACE", "spaces"}, {"NAME|ID", "spaces"}, {"KEY", "keys"},     {"TENANT", "tenants"}, {"DEVICE", "devices"},
                     {"PATH", "files"},   {"FILE", "files"},     {"FILE|-", "files"}, {"CMD", "commands"}};

        for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
                if (strcmp(kinds[i].word, word) == 0)
                        return kinds[i].kind;
        return "nothing";
}

static bool is_literal(const char *word)
{
        return islower((unsigned char)*word);
}

static void print_words(FILE *f, const char *word)
{
        for (; *word; word++)
                putc(*word == '|' ? ' ' : *word, f);
}

/* bash */

static const char bash_head[] =
        "# bash completion for kvtierctl, made by kvtierctl completion bash\n"
        "\n"
        "# Adds the lines of a question to the daemon that begin with the word to complete. They are foreign: no compgen -W.\n"
        "# bash breaks words at colons and wants only what follows the last one.\n"
        "_kvtierctl_ask()\n"
        "{\n"
        "        local line prefix=${cur%\"${cur##*:}\"}\n"
        "        while IFS= read -r line; do\n"
        "                if [[ $line == \"$cur\"* ]]; then\n"
        "                        COMPREPLY+=(\"$(printf %q \"${line#\"$prefix\"}\")\")\n"
        "                fi\n"
        "        done < <(kvtierctl \"${connect[@]}\" \"$@\" 2> /dev/null)\n"
        "}\n"
        "\n"
        "_kvtierctl()\n"
        "{\n"
        "        local cur cmd='' kind='' word value i\n"
        "        local -a words=() operands=() connect=(--timeout 1)\n"
        "        COMPREPLY=()\n"
        "        # --option=value and uid:0 as they were typed\n"
        "        for ((i = 0; i <= COMP_CWORD; i++)); do\n"
        "                word=${COMP_WORDS[i]}\n"
        "                if [[ $word == = ]]; then\n"
        "                        ((i < COMP_CWORD)) || words+=('')\n"
        "                elif ((i > 1)) && [[ $word == : || ${words[-1]} == *: ]]; then\n"
        "                        words[-1]+=$word\n"
        "                else\n"
        "                        words+=(\"$word\")\n"
        "                fi\n"
        "        done\n"
        "        cur=${words[-1]}\n"
        "        for ((i = 1; i < ${#words[@]} - 1; i++)); do\n"
        "                word=${words[i]}\n"
        "                value=''\n"
        "                case \"$cmd $word\" in\n";

static const char bash_middle[] = "                *' -'*) ;;\n"
                                  "                ' '*) cmd=$word ;;\n"
                                  "                *) operands+=(\"${word//[\\\\\\\"\\']/}\") ;;\n"
                                  "                esac\n"
                                  "                if [[ -n $value ]]; then\n"
                                  "                        ((i++))\n"
                                  "                        if ((i >= ${#words[@]} - 1)); then\n"
                                  "                                kind=$value\n"
                                  "                        elif [[ $word == -S || $word == --socket ]]; then\n"
                                  "                                connect+=(--socket \"${words[i]}\")\n"
                                  "                        fi\n"
                                  "                fi\n"
                                  "        done\n"
                                  "        if [[ -z $kind && $cur == -* ]]; then\n"
                                  "                kind=options\n"
                                  "        elif [[ -z $kind && -z $cmd ]]; then\n"
                                  "                kind=commands\n"
                                  "        elif [[ -z $kind ]]; then\n"
                                  "                case \"$cmd ${#operands[@]}\" in\n";

static const char bash_tail[] = "        files)\n"
                                "                compopt -o filenames\n"
                                "                mapfile -t COMPREPLY < <(compgen -f -- \"$cur\")\n"
                                "                ;;\n"
                                "        spaces) _kvtierctl_ask spaces --quiet ;;\n"
                                "        tenants) _kvtierctl_ask tenants --quiet ;;\n"
                                "        devices) _kvtierctl_ask devices --quiet ;;\n"
                                "        keys) _kvtierctl_ask ls --quiet --limit 256 -- \"${operands[0]}\" ;;\n"
                                "        nothing | '') ;;\n"
                                "        *) mapfile -t COMPREPLY < <(compgen -W \"$kind\" -- \"$cur\") ;;\n"
                                "        esac\n"
                                "}\n"
                                "complete -F _kvtierctl kvtierctl\n";

static void bash_operand(FILE *f, const struct ctl_command *c, int i, const char *word, bool repeats)
{
        if (repeats)
                fprintf(f, "                '%s '*) kind=", c->name);
        else
                fprintf(f, "                '%s %d') kind=", c->name, i);
        if (is_literal(word)) {
                fputs("'", f);
                print_words(f, word);
                fputs("'", f);
        } else
                fputs(kind_of(word), f);
        fputs(" ;;\n", f);
}

static void bash_options(FILE *f, const struct ctl_command *c)
{
        for (size_t i = 0; i < ctl_n_options; i++)
                if (commands_takes(c, ctl_options + i))
                        fprintf(f, " --%s", ctl_options[i].name);
}

static void print_bash(FILE *f)
{
        fputs(bash_head, f);
        for (size_t i = 0; i < ctl_n_options; i++) {
                const struct ctl_option *o = ctl_options + i;
                bool is_global = commands_takes(NULL, o);

                if (o->kind != CTL_FLAG)
                        fprintf(f, "                %s%s -%c' | %s%s --%s') value=%s ;;\n", is_global ? "*'" : "'",
                                is_global ? "" : o->command, o->letter, is_global ? "*'" : "'", is_global ? "" : o->command, o->name,
                                kind_of(o->metavar));
        }
        fputs(bash_middle, f);
        for (size_t i = 0; i < ctl_n_commands; i++)
                each_operand(f, ctl_commands + i, bash_operand);
        fputs("                esac\n        fi\n        case $kind in\n        options)\n                case $cmd in\n", f);
        for (size_t i = 0; i < ctl_n_commands; i++) {
                fprintf(f, "                %s) word='", ctl_commands[i].name);
                bash_options(f, ctl_commands + i);
                fputs("' ;;\n", f);
        }
        fputs("                *) word='", f);
        bash_options(f, NULL);
        fputs("' ;;\n                esac\n                mapfile -t COMPREPLY < <(compgen -W \"$word\" -- \"$cur\")\n                ;;\n"
              "        commands) mapfile -t COMPREPLY < <(compgen -W '",
              f);
        for (size_t i = 0; i < ctl_n_commands; i++)
                fprintf(f, "%s%s", i ? " " : "", ctl_commands[i].name);
        fputs("' -- \"$cur\") ;;\n", f);
        fputs(bash_tail, f);
}

/* zsh */

static const char zsh_head[] = "#compdef kvtierctl\n"
                               "# zsh completion for kvtierctl, made by kvtierctl completion zsh\n"
                               "\n"
                               "_kvtierctl_ask() {\n"
                               "        local -a lines connect\n"
                               "        connect=(--timeout 1)\n"
                               "        local socket=${opt_args[--socket]:-${opt_args[-S]:-$outer_socket}}\n"
                               "        [[ -n $socket ]] && connect+=(--socket ${(Q)socket})\n"
                               "        lines=(${(f)\"$(kvtierctl $connect \"$@\" 2> /dev/null)\"})\n"
                               "        compadd -a lines\n"
                               "}\n"
                               "_kvtierctl_spaces() { _kvtierctl_ask spaces --quiet }\n"
                               "_kvtierctl_tenants() { _kvtierctl_ask tenants --quiet }\n"
                               "_kvtierctl_devices() { _kvtierctl_ask devices --quiet }\n"
                               "_kvtierctl_keys() {\n"
                               "        local space=${${words[2,-1]:#-*}[1]}\n"
                               "        [[ -n $space ]] && _kvtierctl_ask ls --quiet --limit 256 -- ${(Q)space}\n"
                               "}\n"
                               "_kvtierctl_files() { _files }\n"
                               "_kvtierctl_nothing() { _message 'a value' }\n"
                               "_kvtierctl_commands() {\n"
                               "        local -a commands=(\n";

/* In single quotes, in a spec of _arguments or _describe. */
static void zsh_escape(FILE *f, const char *s)
{
        for (; *s; s++) {
                if (*s == '\'')
                        fputs("'\\'", f);
                else if (strchr("[]:\\", *s))
                        putc('\\', f);
                putc(*s, f);
        }
}

static void zsh_options(FILE *f, const char *command)
{
        for (size_t i = 0; i < ctl_n_options; i++) {
                const struct ctl_option *o = ctl_options + i;

                if (strcmp(o->command, command) != 0)
                        continue;
                fprintf(f, "                '(-%c --%s)'{-%c,--%s}'[", o->letter, o->name, o->letter, o->name);
                zsh_escape(f, o->summary);
                fputs("]", f);
                if (o->kind != CTL_FLAG) {
                        putc(':', f);
                        zsh_escape(f, o->metavar);
                        fprintf(f, ":_kvtierctl_%s", kind_of(o->metavar));
                }
                fputs("' \\\n", f);
        }
}

static void zsh_operand(FILE *f, const struct ctl_command *c, int i, const char *word, bool repeats)
{
        if (repeats)
                fputs("                '*:", f);
        else
                fprintf(f, "                '%d:", i + 1);
        zsh_escape(f, word);
        putc(':', f);
        if (is_literal(word)) {
                putc('(', f);
                print_words(f, word);
                putc(')', f);
        } else
                fprintf(f, "_kvtierctl_%s", kind_of(word));
        fputs("' \\\n", f);
}

static void print_zsh(FILE *f)
{
        fputs(zsh_head, f);
        for (size_t i = 0; i < ctl_n_commands; i++) {
                fprintf(f, "                '%s:", ctl_commands[i].name);
                zsh_escape(f, ctl_commands[i].summary);
                fputs("'\n", f);
        }
        fputs("        )\n        _describe -t commands command commands\n}\n\n_kvtierctl() {\n"
              "        local curcontext=$curcontext state line\n        local -a globals\n        typeset -A opt_args\n"
              "        globals=( \\\n",
              f);
        zsh_options(f, "global");
        fputs("        )\n        _arguments -C $globals '1:command:_kvtierctl_commands' '*::operand:->operand'\n"
              "        [[ $state == operand ]] || return\n        local outer_socket=${opt_args[--socket]:-${opt_args[-S]}}\n        case "
              "$words[1] in\n",
              f);
        for (size_t i = 0; i < ctl_n_commands; i++) {
                fprintf(f, "        %s)\n                _arguments $globals \\\n", ctl_commands[i].name);
                zsh_options(f, ctl_commands[i].name);
                each_operand(f, ctl_commands + i, zsh_operand);
                fputs("                && return\n                ;;\n", f);
        }
        fputs("        esac\n}\n\n_kvtierctl \"$@\"\n", f);
}

int cmd_completion(struct ctl *x)
{
        const char *shell = x->operands[0];
        char *script = NULL;
        size_t n;
        FILE *f;

        if (strcmp(shell, "bash") != 0 && strcmp(shell, "zsh") != 0)
                return ctl_misuse(x, "there is no completion for %s, only for bash and zsh", shell);
        f = open_memstream(&script, &n);
        if (!f)
                return ctl_fail(x, KVT_E_NO_MEMORY, "cannot print");
        (*shell == 'b' ? print_bash : print_zsh)(f);
        if (fclose(f)) {
                free(script);
                return ctl_fail(x, KVT_E_NO_MEMORY, "cannot print");
        }
        if (x->o.json) {
                int code = ctl_print_json(x, json_pack("{s:s, s:s}", "shell", shell, "script", script));

                free(script);
                return code;
        }
        fputs(script, stdout);
        free(script);
        return EXIT_OK;
}
