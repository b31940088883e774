/* Configuration: params.def's table, a file, its drop-ins, and flags, in this order of rising precedence.
 *
 * Every error names file and line (or the flag), what was found and what was expected, and leaves the old configuration in force. */
#pragma once

#include <sys/types.h>

#include "daemon/util/macro.h"
#include "libclient/codec/ladder.h"

enum param_type { PARAM_BYTES, PARAM_USEC, PARAM_COUNT, PARAM_PCT, PARAM_BOOL, PARAM_STRING };

#define PARAM_FIELD_BYTES uint64_t
#define PARAM_FIELD_USEC uint64_t
#define PARAM_FIELD_COUNT uint64_t
#define PARAM_FIELD_PCT uint64_t
#define PARAM_FIELD_BOOL uint64_t
#define PARAM_FIELD_STRING char *
struct params {
#define PARAM(type, name, def, min, max, reload, text) PARAM_FIELD_##type name;
#include "daemon/params.def"
#undef PARAM
};

struct tenant_conf {
        char *name;
        uid_t uid;
        gid_t gid;
        bool has_uid, has_gid;
        uint64_t hard_bytes, soft_bytes; /* 0: the default */
};

struct space_conf {
        char *name; /* counts for the spaces of this name of all tenants */
        char *rungs[LADDER_N]; /* NULL: the default; else checked */
};

struct conf {
        struct params p;
        struct tenant_conf *tenants;
        size_t n_tenants;
        struct space_conf *spaces;
        size_t n_spaces;
        uint64_t set_mask[2]; /* bit i: parameter i was given */
};

struct conf_flag { /* --name=value of the command line; strings borrowed */
        const char *name;
        const char *value;
};

/* path NULL: /etc/kvtier/kvtierd.conf for root, else $XDG_CONFIG_HOME/kvtier/kvtierd.conf, which may be absent; drop-ins are PATH.d/ *.conf in
 * order of name. On failure the reason is in ret_error and conf is untouched (it may be NULL: check only). Returns 0, -EINVAL, -ENOENT, -ENOMEM. */
int conf_load(struct conf *ret, const char *path, const struct conf_flag *flags, size_t n_flags, char *ret_error, size_t n_error);
/* The same parser over bytes in memory, for tests and fuzzing. */
int conf_parse(struct conf *ret, const char *text, size_t n, const char *file_name, char *ret_error, size_t n_error);
void conf_deinit(struct conf *c);

/* Copies what may change at run time; returns the name of the first parameter that differs and may not, or NULL. */
const char *conf_reload(struct conf *c, struct conf *fresh);

/* The ladder of a space of this name: its section's, else the codec_* parameters'. c NULL: raw everywhere. */
void conf_ladder(const struct conf *c, const char *space, struct ladder *ret);
/* For conf.c: whether the codec_* parameters name codecs (0, or -EINVAL and why not); gives [space] sections back. */
int conf_check_ladders(const struct conf *c, char *ret_why, size_t n);
void conf_spaces_free(struct conf *c);
/* Writes the configuration in force, in the form of the file. */
void conf_print(const struct conf *c);
bool conf_is_param(const char *name);
