/* kvtierctl: what its files share.
 *
 * main.c reads the command line by the table in commands.def (commands.c) and calls one cmd_*() function. Each fetches its answer, builds it
 * as JSON (the fields' names are those of kvtier.proto and of the structs in shm.h) and either dumps that or draws a table from it.
 * One thread, one connection. Functions that return int return an exit code and have said what went wrong. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <jansson.h>

#include "libclient/call.h"
#include "proto/frame.h"

enum {
        EXIT_OK = 0,
        EXIT_FAILED = 1, /* the daemon refused, or what was asked for is not there */
        EXIT_USAGE = 2,
        EXIT_CONNECT = 3,
};

enum { CTL_PING_BYTES = 16 };
#define CTL_UNSET UINT64_MAX /* a NUMBER or BYTES that was not given and has no default */

/* One field for each option in commands.def, whichever commands take it. NUMBER, BYTES: uint64_t, SECONDS: microseconds. */
struct options {
        /* global */
        const char *socket;
        uint64_t timeout;
        bool json;
        bool help;
        bool version;
        /* of commands */
        bool audit;
        bool quiet;
        bool tree;
        bool replace;
        bool durable;
        bool force;
        bool yes;
        uint64_t limit;
        uint64_t shard;
        uint64_t count;
        uint64_t size; /* CTL_UNSET by default */
        uint64_t segment;
        uint64_t frames;
        uint64_t delay;
        uint64_t block;
        uint64_t queries;
        const char *output;
        const char *planes;
        const char *parent;
        const char *tenant;
        const char *tokens;
        const char *salt;
        const char *base;
        const char *bound;
};

struct ctl {
        const char *command; /* name of the subcommand, for messages; NULL before it is known */
        struct options o;
        char **operands; /* not owned */
        int n_operands;
        kvt *connection; /* NULL for LOCAL commands, until ctl_connect() */
};

/* the table */

enum ctl_option_kind { CTL_FLAG, CTL_NUMBER, CTL_BYTES, CTL_TEXT, CTL_SECONDS };

struct ctl_command {
        const char *name;
        const char *operands;
        int min_operands;
        int max_operands;
        bool needs_daemon;
        const char *summary;
        int (*run)(struct ctl *x);
};

struct ctl_option {
        const char *command; /* "global": of all */
        const char *name;
        char letter;
        enum ctl_option_kind kind;
        const char *metavar;
        const char *summary;
        size_t field; /* offset in struct options */
};

extern const struct ctl_command ctl_commands[];
extern const size_t ctl_n_commands;
extern const struct ctl_option ctl_options[];
extern const size_t ctl_n_options;

#define COMMAND(name, operands, min, max, needs, summary) int cmd_##name(struct ctl *x);
#define OPTION(command, name, letter, kind, metavar, summary)
#include "libclient/ctl/commands.def"
#undef COMMAND
#undef OPTION

/* For LOCAL commands that need the daemon for some of what they do. */
int ctl_connect(struct ctl *x);

/* messages */

/* "kvtierctl: COMMAND: message", to stderr. ctl_fail() adds the text of r (KVT_E_* or -errno; 0: none) and returns the exit code for it. */
void ctl_say(const struct ctl *x, const char *format, ...) __attribute__((format(printf, 2, 3)));
int ctl_fail(const struct ctl *x, int r, const char *format, ...) __attribute__((format(printf, 3, 4)));
/* The same for mistakes on the command line; names the help to read. Returns EXIT_USAGE. */
int ctl_misuse(const struct ctl *x, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Prints one JSON value and a line end; takes the reference. Returns EXIT_OK or, when out of memory, EXIT_FAILED. */
int ctl_print_json(const struct ctl *x, json_t *value);
