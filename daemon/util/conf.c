#include <assert.h>
#include <dirent.h>
#include <grp.h>
#include <ini.h>
#include <pwd.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "daemon/util/conf.h"

static const struct param {
        enum param_type type;
        const char *name, *def;
        uint64_t min, max;
        bool reload;
        const char *text;
        size_t offset;
} table[] = {
#define PARAM(t, n, d, min_, max_, r, x) {PARAM_##t, #n, d, min_, max_, r, x, offsetof(struct params, n)},
#include "daemon/params.def"
#undef PARAM
};
static_assert(ELEMENTSOF(table) <= 128, "set_mask is 128 bits");

enum { SECTION_MAX = 49 /* inih's */ };

struct parse {
        struct conf *conf;
        const char *file;
        const char *text; /* not read yet */
        size_t n;
        int line;
        struct tenant_conf *tenant; /* of the current section; NULL: none */
        struct space_conf *space; /* likewise */
        char section[64];
        char *error;
        size_t n_error;
        int r;
};

static int fail(struct parse *p, const char *format, ...) _printf_(2, 3);
static int fail(struct parse *p, const char *format, ...)
{
        char what[400];
        va_list ap;

        va_start(ap, format);
        vsnprintf(what, sizeof what, format, ap);
        va_end(ap);
        if (!p->r) {
                if (p->line)
                        snprintf(p->error, p->n_error, "%s:%d: %s", p->file, p->line, what);
                else
                        snprintf(p->error, p->n_error, "%s: %s", p->file, what);
                p->r = -EINVAL;
        }
        return -EINVAL;
}

static const struct unit {
        const char *name;
        uint64_t factor;
} bytes_units[] = {{"", 1}, {"K", 1ull << 10}, {"M", 1ull << 20}, {"G", 1ull << 30}, {"T", 1ull << 40}, {}},
  usec_units[] = {{"us", 1}, {"ms", 1000}, {"s", 1000000}, {"", 1000000}, {"min", 60000000}, {"h", 3600000000ull}, {}},
  no_units[] = {{"", 1}, {}}, pct_units[] = {{"", 1}, {"%", 1}, {}};

static int parse_number(struct parse *p, const char *name, const char *value, const struct unit *units, const char *expected, uint64_t min,
                        uint64_t max, uint64_t *ret)
{
        uint64_t x = 0;
        const char *s = value;

        if (*s < '0' || *s > '9')
                return fail(p, "%s: '%s' is not a number (expected %s)", name, value, expected);
        for (; *s >= '0' && *s <= '9'; s++)
                if (__builtin_mul_overflow(x, 10, &x) || __builtin_add_overflow(x, (uint64_t)(*s - '0'), &x))
                        return fail(p, "%s: '%s' overflows 64 bits", name, value);
        while (*s == ' ')
                s++;
        for (; units->name; units++)
                if (!strcmp(units->name, s))
                        break;
        if (!units->name)
                return fail(p, "%s: '%s' has an unknown unit '%s' (expected %s)", name, value, s, expected);
        if (__builtin_mul_overflow(x, units->factor, &x))
                return fail(p, "%s: '%s' overflows 64 bits", name, value);
        if (x < min || x > max)
                return fail(p, "%s: '%s' is out of range (%llu to %llu)", name, value, (unsigned long long)min, (unsigned long long)max);
        *ret = x;
        return 0;
}

#define EXPECT_BYTES "bytes with K, M, G or T, like 512M"

static int param_set(struct parse *p, const struct param *t, const char *value)
{
        void *field = (char *)&p->conf->p + t->offset;
        uint64_t *u = field;
        char **s = field;

        switch (t->type) {
        case PARAM_BYTES:
                return parse_number(p, t->name, value, bytes_units, EXPECT_BYTES, t->min, t->max, u);
        case PARAM_USEC:
                return parse_number(p, t->name, value, usec_units, "a time with us, ms, s, min or h, like 10s", t->min, t->max, u);
        case PARAM_COUNT:
                return parse_number(p, t->name, value, no_units, "a whole number", t->min, t->max, u);
        case PARAM_PCT:
                return parse_number(p, t->name, value, pct_units, "a percentage", t->min, t->max, u);
        case PARAM_BOOL:
                if (!strcmp(value, "yes") || !strcmp(value, "no")) {
                        *u = value[0] == 'y';
                        return 0;
                }
                return fail(p, "%s: '%s' is neither yes nor no", t->name, value);
        case PARAM_STRING:
                if (strlen(value) < t->min || strlen(value) > t->max)
                        return fail(p, "%s: '%s' must have %llu to %llu characters", t->name, value, (unsigned long long)t->min,
                                    (unsigned long long)t->max);
                for (const char *c = value; *c; c++)
                        if ((unsigned char)*c < ' ' || *c == 0x7f || *c == ';' || (*c == ' ' && (c == value || !c[1])))
                                return fail(p, "%s: '%s' holds ';', a control character or an outer blank", t->name, value);
                char *copy = strdup(value);
                if (!copy)
                        return p->r = -ENOMEM;
                free(*s);
                *s = copy;
                return 0;
        }
        return -EINVAL;
}

static const struct param *param_find(const char *name)
{
        for (size_t i = 0; i < ELEMENTSOF(table); i++)
                if (!strcmp(table[i].name, name))
                        return &table[i];
        return NULL;
}

bool conf_is_param(const char *name)
{
        return param_find(name);
}

static int set_by_name(struct parse *p, const char *name, const char *value)
{
        const struct param *t = param_find(name);

        if (!t)
                return fail(p, "unknown parameter '%s' (see kvtierd.conf(5))", name);
        size_t i = (size_t)(t - table);
        p->conf->set_mask[i / 64] |= 1ull << i % 64;
        return param_set(p, t, value);
}

static int tenant_begin(struct parse *p, const char *name)
{
        struct tenant_conf *tenants;

        if (!*name || strlen(name) > 32 ||
            strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-") != strlen(name))
                return fail(p, "'%s' is no tenant name (1 to 32 letters, digits, '_', '.', '-')", name);
        for (size_t i = 0; i < p->conf->n_tenants; i++)
                if (!strcmp(p->conf->tenants[i].name, name)) {
                        p->tenant = &p->conf->tenants[i];
                        return 0;
                }
        tenants = reallocarray(p->conf->tenants, p->conf->n_tenants + 1, sizeof *tenants);
        if (!tenants)
                return p->r = -ENOMEM;
        p->conf->tenants = tenants;
        p->tenant = &tenants[p->conf->n_tenants];
        *p->tenant = (struct tenant_conf){.name = strdup(name)};
        if (!p->tenant->name)
                return p->r = -ENOMEM;
        p->conf->n_tenants++;
        return 0;
}

static int tenant_set(struct parse *p, const char *name, const char *value)
{
        uint64_t x;
        bool is_number = value[0] >= '0' && value[0] <= '9';

        if (!strcmp(name, "hard_bytes"))
                return parse_number(p, name, value, bytes_units, EXPECT_BYTES, 1, 64ull << 40, &p->tenant->hard_bytes);
        if (!strcmp(name, "soft_bytes"))
                return parse_number(p, name, value, bytes_units, EXPECT_BYTES, 1, 64ull << 40, &p->tenant->soft_bytes);
        if (!strcmp(name, "uid")) {
                struct passwd *pw = is_number ? NULL : getpwnam(value);
                if (!is_number && !pw)
                        return fail(p, "uid: there is no user '%s'", value);
                x = pw ? pw->pw_uid : 0;
                if (!pw && parse_number(p, name, value, no_units, "a user's name or number", 0, UINT32_MAX - 1, &x) < 0)
                        return -EINVAL;
                p->tenant->uid = (uid_t)x;
                p->tenant->has_uid = true;
                return 0;
        }
        if (!strcmp(name, "group")) {
                struct group *gr = is_number ? NULL : getgrnam(value);
                if (!is_number && !gr)
                        return fail(p, "group: there is no group '%s'", value);
                x = gr ? gr->gr_gid : 0;
                if (!gr && parse_number(p, name, value, no_units, "a group's name or number", 0, UINT32_MAX - 1, &x) < 0)
                        return -EINVAL;
                p->tenant->gid = (gid_t)x;
                p->tenant->has_gid = true;
                return 0;
        }
        return fail(p, "unknown key '%s' in [tenant %s] (expected uid, group, hard_bytes or soft_bytes)", name, p->tenant->name);
}

static int space_begin(struct parse *p, const char *name)
{
        struct space_conf *spaces;

        if (!*name || strlen(name) > 128)
                return fail(p, "'%s' is no name of a space (1 to 128 bytes)", name);
        for (size_t i = 0; i < p->conf->n_spaces; i++)
                if (!strcmp(p->conf->spaces[i].name, name)) {
                        p->space = &p->conf->spaces[i];
                        return 0;
                }
        spaces = reallocarray(p->conf->spaces, p->conf->n_spaces + 1, sizeof *spaces);
        if (!spaces)
                return p->r = -ENOMEM;
        p->conf->spaces = spaces;
        p->space = &spaces[p->conf->n_spaces];
        *p->space = (struct space_conf){.name = strdup(name)};
        if (!p->space->name)
                return p->r = -ENOMEM;
        p->conf->n_spaces++;
        return 0;
}

static int space_set(struct parse *p, const char *name, const char *value)
{
        struct ladder ladder;
        const char *why;

        for (unsigned i = 0; i < LADDER_N; i++) {
                if (strcmp(name, ladder_rung_name(i)) != 0)
                        continue;
                if (ladder_set(&ladder, i, value, &why) != 0)
                        return fail(p, "%s: '%s': %s", name, value, why);
                free(p->space->rungs[i]);
                p->space->rungs[i] = strdup(value);
                return p->space->rungs[i] ? 0 : (p->r = -ENOMEM);
        }
        return fail(p, "unknown key '%s' in [space %s] (expected hot, cold or nvme)", name, p->space->name);
}

static int on_key(void *user, const char *section, const char *name, const char *value)
{
        struct parse *p = user;

        if (p->r)
                return 0;
        if (strcmp(section, p->section)) {
                snprintf(p->section, sizeof p->section, "%s", section);
                p->tenant = NULL;
                p->space = NULL;
        }
        if (!strncmp(section, "space ", 6)) {
                if (!p->space && space_begin(p, section + 6) < 0)
                        return 0;
                return space_set(p, name, value) >= 0;
        }
        if (!strncmp(section, "tenant ", 7)) {
                if (!p->tenant && tenant_begin(p, section + 7) < 0)
                        return 0;
                return tenant_set(p, name, value) >= 0;
        }
        if (*section && strcmp(section, "kvtierd")) {
                fail(p, "unknown section [%s] (expected [kvtierd], [tenant NAME] or [space NAME])", section);
                return 0;
        }
        return set_by_name(p, name, value) >= 0;
}

/* Feeds inih line by line, so that errors know their line; refuses what inih would silently cut. */
static char *next_line(char *buf, int n_buf, void *user)
{
        struct parse *p = user;
        size_t n = 0;

        if (p->r || !p->n)
                return NULL;
        p->line++;
        while (n < p->n && p->text[n] != '\n')
                n++;
        const char *s = p->text;
        size_t k = n;
        while (k && (*s == ' ' || *s == '\t')) /* no continuation lines */
                s++, k--;
        if (memchr(s, 0, k)) {
                fail(p, "the line holds a zero byte");
                return NULL;
        }
        if (k + 2 > (size_t)n_buf) {
                fail(p, "the line is longer than %d characters", n_buf - 2);
                return NULL;
        }
        const char *end = k && *s == '[' ? memchr(s, ']', k) : NULL;
        if (end && end - s - 1 > SECTION_MAX) { /* inih would cut it, and then it is another one's */
                fail(p, "a section's name is longer than %d characters", SECTION_MAX);
                return NULL;
        }
        memcpy(buf, s, k);
        buf[k] = '\n';
        buf[k + 1] = 0;
        p->text += MIN(n + 1, p->n);
        p->n -= MIN(n + 1, p->n);
        return buf;
}

static int parse_text(struct parse *p, const char *text, size_t n)
{
        p->text = text;
        p->n = n;
        p->line = 0;
        p->tenant = NULL;
        p->space = NULL;
        p->section[0] = 0;
        int line = ini_parse_stream(next_line, p, on_key, p);
        if (p->r)
                return p->r;
        if (line > 0) {
                p->line = line;
                return fail(p, "expected 'name = value' or '[section]'");
        }
        return line < 0 ? -ENOMEM : 0;
}

static int parse_file(struct parse *p, const char *path)
{
        _cleanup_(freep) char *text = NULL;
        struct stat st;
        size_t n;

        p->file = path;
        p->line = 0;
        FILE *f = fopen(path, "re");
        if (!f)
                return -errno;
        if (fstat(fileno(f), &st) < 0 || !S_ISREG(st.st_mode) || st.st_size > 1 << 20) {
                fclose(f);
                return fail(p, "not a regular file of at most 1 MiB");
        }
        text = malloc((size_t)st.st_size + 1);
        n = text ? fread(text, 1, (size_t)st.st_size, f) : 0;
        fclose(f);
        if (!text)
                return p->r = -ENOMEM;
        return parse_text(p, text, n);
}

static int is_conf(const struct dirent *d)
{
        size_t n = strlen(d->d_name);
        return d->d_name[0] != '.' && n > 5 && !strcmp(d->d_name + n - 5, ".conf");
}

static int parse_dropins(struct parse *p, const char *path)
{
        struct dirent **names;
        char dir[4096], file[8192];
        int r = 0;

        if (snprintf(dir, sizeof dir, "%s.d", path) >= (int)sizeof dir)
                return -ENAMETOOLONG;
        int n = scandir(dir, &names, is_conf, alphasort);
        if (n < 0 && errno == ENOENT)
                return 0;
        if (n < 0) {
                r = -errno;
                snprintf(p->error, p->n_error, "%s: %s", dir, strerror(-r));
                return r;
        }
        for (int i = 0; i < n; i++) {
                if (snprintf(file, sizeof file, "%s/%s", dir, names[i]->d_name) >= (int)sizeof file)
                        r = r ?: -ENAMETOOLONG;
                if (!r)
                        r = parse_file(p, file);
                free(names[i]);
        }
        free(names);
        if (r && !p->r)
                snprintf(p->error, p->n_error, "%s: %s", file, strerror(-r));
        return r;
}

static int set_defaults(struct parse *p)
{
        for (size_t i = 0; i < ELEMENTSOF(table); i++) {
                if (!*table[i].def && table[i].type != PARAM_STRING)
                        continue;
                if (param_set(p, &table[i], table[i].def) < 0)
                        return p->r;
        }
        return 0;
}

static bool given(const struct conf *c, const char *name)
{
        size_t i = (size_t)(param_find(name) - table);
        return c->set_mask[i / 64] >> i % 64 & 1;
}

/* What depends on several parameters. */
static int finish(struct parse *p)
{
        struct params *q = &p->conf->p;

        p->file = "configuration";
        p->line = 0;
        for (size_t i = 0; i < p->conf->n_tenants; i++)
                if (!p->conf->tenants[i].has_uid && !p->conf->tenants[i].has_gid)
                        return fail(p, "[tenant %s] has neither uid nor group: nobody would be in it", p->conf->tenants[i].name);
        if (!q->slab_bytes)
                q->slab_bytes = MIN(MAX(q->host_bytes / 256, 16ull << 20), 1ull << 30);
        q->slab_bytes = align_up(q->slab_bytes, 2ull << 20);
        if (q->slab_bytes > q->host_bytes)
                return fail(p, "slab_bytes is larger than host_bytes");
        if (!given(p->conf, "prealloc_bytes"))
                q->prealloc_bytes = q->host_bytes / 16;
        q->prealloc_bytes = MIN(q->prealloc_bytes, q->host_bytes / 2);
        if (!q->max_blocks)
                q->max_blocks = MIN(MAX(q->host_bytes / 4096, 65536), 1u << 30);
        if (q->evict_low_pct > q->evict_high_pct)
                return fail(p, "evict_low_pct is above evict_high_pct");
        char *end, what[300];
        unsigned long mode = strtoul(q->socket_mode, &end, 8);
        if (*end || mode > 0777)
                return fail(p, "socket_mode: '%s' is no octal mode like 0660", q->socket_mode);
        static const char *levels[] = {"error", "warning", "info", "debug"};
        for (size_t i = 0; i < ELEMENTSOF(levels); i++)
                if (!strcmp(levels[i], q->log_level))
                        return conf_check_ladders(p->conf, what, sizeof what) < 0 ? fail(p, "%s", what) : 0;
        return fail(p, "log_level: '%s' is none of error, warning, info, debug", q->log_level);
}

int conf_parse(struct conf *ret, const char *text, size_t n, const char *file_name, char *ret_error, size_t n_error)
{
        struct conf c = {};
        struct parse p = {.conf = &c, .file = file_name, .error = ret_error, .n_error = n_error};

        int r = set_defaults(&p);
        if (!r)
                r = parse_text(&p, text, n);
        if (!r)
                r = finish(&p);
        if (!r)
                *ret = c;
        else
                conf_deinit(&c);
        return r;
}

static int load(struct parse *p, const char *path, const struct conf_flag *flags, size_t n_flags)
{
        char standard[4096] = "/etc/kvtier/kvtierd.conf";
        const char *file = path ?: standard;

        int r = set_defaults(p);
        if (r < 0)
                return r;
        if (!path && getuid() != 0) {
                const char *home = getenv("XDG_CONFIG_HOME");
                if (home && *home == '/')
                        snprintf(standard, sizeof standard, "%s/kvtier/kvtierd.conf", home);
                else
                        snprintf(standard, sizeof standard, "%s/.config/kvtier/kvtierd.conf", getenv("HOME") ?: "");
        }
        r = parse_file(p, file);
        if (r < 0 && !p->r && (r != -ENOENT || path)) {
                snprintf(p->error, p->n_error, "%s: %s", file, strerror(-r));
                return r;
        }
        if (p->r)
                return p->r;
        r = parse_dropins(p, file);
        if (r < 0)
                return r;
        for (size_t i = 0; i < n_flags; i++) {
                char name[128];
                snprintf(name, sizeof name, "--%s", flags[i].name);
                p->file = name;
                p->line = 0;
                r = set_by_name(p, flags[i].name, flags[i].value);
                if (r < 0)
                        return r;
        }
        return finish(p);
}

int conf_load(struct conf *ret, const char *path, const struct conf_flag *flags, size_t n_flags, char *ret_error, size_t n_error)
{
        struct conf c = {};
        struct parse p = {.conf = &c, .file = path ?: "", .error = ret_error, .n_error = n_error};

        *ret_error = 0;
        int r = load(&p, path, flags, n_flags);
        if (r < 0 && !*ret_error)
                snprintf(ret_error, n_error, "%s", strerror(-r));
        if (r < 0 || !ret)
                conf_deinit(&c);
        else
                *ret = c;
        return r;
}

void conf_deinit(struct conf *c)
{
        for (size_t i = 0; i < ELEMENTSOF(table); i++)
                if (table[i].type == PARAM_STRING)
                        free(*(char **)((char *)&c->p + table[i].offset));
        for (size_t i = 0; i < c->n_tenants; i++)
                free(c->tenants[i].name);
        free(c->tenants);
        conf_spaces_free(c);
        *c = (struct conf){};
}

const char *conf_reload(struct conf *c, struct conf *fresh)
{
        const char *differs = NULL;

        for (size_t i = 0; i < ELEMENTSOF(table); i++) {
                void *a = (char *)&c->p + table[i].offset, *b = (char *)&fresh->p + table[i].offset;
                bool same = table[i].type == PARAM_STRING ? !strcmp(*(char **)a, *(char **)b) : *(uint64_t *)a == *(uint64_t *)b;
                if (same)
                        continue;
                if (!table[i].reload) {
                        differs = differs ?: table[i].name;
                } else if (table[i].type == PARAM_STRING) {
                        char *t = *(char **)a;
                        *(char **)a = *(char **)b;
                        *(char **)b = t;
                } else {
                        *(uint64_t *)a = *(uint64_t *)b;
                }
        }
        struct tenant_conf *tenants = c->tenants;
        size_t n = c->n_tenants;
        c->tenants = fresh->tenants;
        c->n_tenants = fresh->n_tenants;
        fresh->tenants = tenants;
        fresh->n_tenants = n;
        struct space_conf *spaces = c->spaces;
        n = c->n_spaces;
        c->spaces = fresh->spaces;
        c->n_spaces = fresh->n_spaces;
        fresh->spaces = spaces;
        fresh->n_spaces = n;
        return differs;
}

void conf_print(const struct conf *c)
{
        printf("[kvtierd]\n");
        for (size_t i = 0; i < ELEMENTSOF(table); i++) {
                const void *field = (const char *)&c->p + table[i].offset;
                if (table[i].type == PARAM_STRING)
                        printf("%s = %s\n", table[i].name, *(char *const *)field);
                else if (table[i].type == PARAM_BOOL)
                        printf("%s = %s\n", table[i].name, *(const uint64_t *)field ? "yes" : "no");
                else
                        printf("%s = %llu%s\n", table[i].name, (unsigned long long)*(const uint64_t *)field,
                               table[i].type == PARAM_USEC ? "us" : "");
        }
        for (size_t i = 0; i < c->n_tenants; i++) {
                const struct tenant_conf *t = &c->tenants[i];
                printf("\n[tenant %s]\n", t->name);
                if (t->has_uid)
                        printf("uid = %u\n", t->uid);
                if (t->has_gid)
                        printf("group = %u\n", t->gid);
                if (t->hard_bytes)
                        printf("hard_bytes = %llu\n", (unsigned long long)t->hard_bytes);
                if (t->soft_bytes)
                        printf("soft_bytes = %llu\n", (unsigned long long)t->soft_bytes);
        }
        for (size_t i = 0; i < c->n_spaces; i++) {
                printf("\n[space %s]\n", c->spaces[i].name);
                for (unsigned k = 0; k < LADDER_N; k++)
                        if (c->spaces[i].rungs[k])
                                printf("%s = %s\n", ladder_rung_name(k), c->spaces[i].rungs[k]);
        }
}
