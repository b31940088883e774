/* kvtierd: options, configuration, start and end. */
#include <getopt.h>
#include <signal.h>
#include <sodium.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "daemon/serve/server.h"
#include "daemon/util/log.h"

static struct {
        const char *config;
        bool check, print;
        struct conf_flag *flags;
        size_t n_flags;
} options;

static int usage(FILE *f, int status)
{
        fprintf(f, "Usage: kvtierd [OPTION]... [--PARAMETER=VALUE]...\n"
                   "Serves KV cache blocks to inference processes.\n\n"
                   "  --config=FILE    read FILE and FILE.d/*.conf instead of the standard place\n"
                   "  --check-config   check the configuration and exit: 0 good, 1 bad\n"
                   "  --show-config    print the configuration in force and exit\n"
                   "  --version        print the release and exit\n"
                   "  --help           print this and exit\n\n"
                   "PARAMETER is one of kvtierd.conf(5), such as --host_bytes=16G or --socket=/run/x.sock ('-' may stand for '_').\n");
        return status;
}

/* --name=value or --name value; NULL value: the option is missing one. */
static int take_param(const char *arg, const char *next, bool *ret_used_next)
{
        const char *eq = strchr(arg, '=');
        char *name = strndup(arg, eq ? (size_t)(eq - arg) : strlen(arg));

        if (!name)
                return -ENOMEM;
        for (char *p = name; *p; p++)
                if (*p == '-')
                        *p = '_';
        *ret_used_next = !eq;
        if (!conf_is_param(name) || (!eq && !next)) {
                fprintf(stderr, "kvtierd: %s '--%s' (see kvtierd --help)\n", conf_is_param(name) ? "no value for" : "unknown option", arg);
                free(name);
                return -EINVAL;
        }
        options.flags[options.n_flags++] = (struct conf_flag){name, eq ? eq + 1 : next};
        return 0;
}

static int parse_options(int argc, char **argv)
{
        options.flags = calloc((size_t)argc, sizeof *options.flags);
        if (!options.flags)
                return EXIT_FAILURE;
        for (int i = 1; i < argc; i++) {
                const char *a = argv[i];
                bool used_next;
                if (!strcmp(a, "--help"))
                        exit(usage(stdout, EXIT_SUCCESS));
                if (!strcmp(a, "--version")) {
                        printf("kvtierd %s (protocol %d to %d)\n", KVT_RELEASE, KVT_PROTO_MIN, KVT_PROTO_MAX);
                        exit(EXIT_SUCCESS);
                }
                if (!strcmp(a, "--check-config")) {
                        options.check = true;
                } else if (!strcmp(a, "--show-config")) {
                        options.print = true;
                } else if (!strncmp(a, "--config=", 9)) {
                        options.config = a + 9;
                } else if (!strcmp(a, "--config") && i + 1 < argc) {
                        options.config = argv[++i];
                } else if (!strncmp(a, "--", 2) && a[2]) {
                        if (take_param(a + 2, argv[i + 1], &used_next) < 0)
                                return EXIT_FAILURE;
                        i += used_next;
                } else {
                        fprintf(stderr, "kvtierd: unexpected argument '%s' (see kvtierd --help)\n", a);
                        return EXIT_FAILURE;
                }
        }
        return EXIT_SUCCESS;
}

static int choose_socket(struct conf *c)
{
        char path[4096];
        const char *dir = getenv("XDG_RUNTIME_DIR");

        if (*c->p.socket)
                return 0;
        if (getuid() == 0)
                snprintf(path, sizeof path, "/run/kvtier/kvtier.sock");
        else if (dir && *dir == '/')
                snprintf(path, sizeof path, "%s/kvtier/kvtier.sock", dir);
        else {
                log_error("XDG_RUNTIME_DIR is not set: say --socket=PATH");
                return -EINVAL;
        }
        free(c->p.socket);
        c->p.socket = strdup(path);
        return c->p.socket ? 0 : -ENOMEM;
}

/* Any user gets a file of its own; root says which devices it means. */
static int choose_devices(struct conf *c)
{
        char path[4096], *slash;
        const char *cache = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");

        if (*c->p.nvme_devices || getuid() == 0)
                return 0;
        if (cache && *cache == '/')
                snprintf(path, sizeof path, "%s/kvtier/nvme.kvt", cache);
        else if (home && *home == '/')
                snprintf(path, sizeof path, "%s/.cache/kvtier/nvme.kvt", home);
        else
                return 0;
        for (slash = strchr(path + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
                *slash = 0;
                mkdir(path, 0700); /* where it cannot be made, opening the file says so */
                *slash = '/';
        }
        free(c->p.nvme_devices);
        c->p.nvme_devices = strdup(path);
        return c->p.nvme_devices ? 0 : -ENOMEM;
}

static int on_reload(sd_event_source *source, const struct signalfd_siginfo *si, void *arg)
{
        server_reload(arg, options.config, options.flags, options.n_flags);
        return 0;
}

int main(int argc, char **argv)
{
        static struct server server;
        struct conf conf = {};
        char error[512];
        int status;

        assert_bind_loop();
        status = parse_options(argc, argv);
        if (status != EXIT_SUCCESS)
                return status;
        if (sodium_init() < 0) {
                log_error("libsodium does not start");
                return EXIT_FAILURE;
        }
        if (conf_load(&conf, options.config, options.flags, options.n_flags, error, sizeof error) < 0) {
                log_error("%s", error);
                return EXIT_FAILURE;
        }
        if (options.check || options.print) {
                if (options.print)
                        conf_print(&conf);
                else
                        printf("The configuration is good.\n");
                conf_deinit(&conf);
                return EXIT_SUCCESS;
        }
        log_set_level(conf.p.log_level);
        if (choose_socket(&conf) < 0 || choose_devices(&conf) < 0)
                return EXIT_FAILURE;
        status = EXIT_FAILURE;
        if (server_init(&server, &conf) >= 0 && sd_event_add_signal(server.event, NULL, SIGHUP, on_reload, &server) >= 0) {
                log_info("kvtierd %s serves %s: host tier of %llu MiB in slabs of %llu MiB", KVT_RELEASE, server.conf.p.socket,
                         (unsigned long long)server.conf.p.host_bytes >> 20, (unsigned long long)server.conf.p.slab_bytes >> 20);
                status = server_run(&server);
        }
        server_deinit(&server);
        for (size_t i = 0; i < options.n_flags; i++)
                free((char *)options.flags[i].name);
        free(options.flags);
        return status;
}
