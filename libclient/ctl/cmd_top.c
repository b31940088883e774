/* top: what changes from second to second, on one screen of 80 columns.
 *
 * Every frame is two requests (STAT, and the list of tenants) compared with the frame before. The first frame has none before it and
 * shows averages since the daemon started, as does the first one after a restart of the daemon. On a terminal it redraws in place, in
 * raw mode, on the alternate screen; both are undone on every way out. Elsewhere it prints frame after frame. */
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#include "libclient/ctl/format.h"
#include "libclient/ctl/query.h"
#include "libclient/ctl/table.h"

struct sample {
        Kvtier__StatReply *stat; /* owned */
        json_t *tenants; /* owned */
        uint64_t at_usec;
};

static void sample_deinit(struct sample *s)
{
        if (s->stat)
                kvt_call_free(&s->stat->base);
        json_decref(s->tenants);
        *s = (struct sample){};
}

static uint64_t now_usec(void)
{
        struct timespec t;

        clock_gettime(CLOCK_MONOTONIC, &t);
        return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

static int sample_take(struct ctl *x, struct sample *ret)
{
        struct sample s = {};
        int code = query_stat(x, false, &s.stat);

        if (code)
                return code;
        code = query_list(x, KVTIER__LIST_WHAT__LIST_TENANTS, &s.tenants);
        if (code) {
                sample_deinit(&s);
                return code;
        }
        s.at_usec = now_usec();
        *ret = s;
        return EXIT_OK;
}

/* rates */

static double per_sec(uint64_t now, uint64_t before, uint64_t interval_usec)
{
        return now > before && interval_usec ? (double)(now - before) * 1e6 / (double)interval_usec : 0;
}

static json_t *find_tenant(json_t *tenants, const char *name)
{
        json_t *tenant;
        size_t i;

        json_array_foreach(tenants, i, tenant)
        {
                if (strcmp(json_string_value(json_object_get(tenant, "name")), name) == 0)
                        return tenant;
        }
        return NULL;
}

/* The frame as JSON: what the drawing below is made from. before may be all zero. */
static json_t *frame_json(const struct sample *now, const struct sample *before)
{
        static const char *const counters[] = {"hits", "misses", "requests", "puts", "put_bytes", "map_bytes", "get_bytes", "evicted"};
        static const char *const of_tenants[] = {"hits", "misses", "evicted"};
        bool same_boot = before->stat && strcmp(before->stat->boot_token, now->stat->boot_token) == 0;
        uint64_t interval = same_boot ? now->at_usec - before->at_usec : now->stat->uptime_usec;
        json_t *rates = json_object(), *tenants = json_deep_copy(now->tenants), *tiers = json_array(), *tenant;
        double hits, misses;
        size_t i;

        for (i = 0; i < sizeof counters / sizeof *counters; i++)
                json_object_set_new(rates, counters[i],
                                    json_real(per_sec(stat_counter(now->stat, counters[i]),
                                                      same_boot ? stat_counter(before->stat, counters[i]) : 0, interval)));
        hits = json_real_value(json_object_get(rates, "hits"));
        misses = json_real_value(json_object_get(rates, "misses"));
        json_array_foreach(tenants, i, tenant)
        {
                json_t *old = same_boot ? find_tenant(before->tenants, json_string_value(json_object_get(tenant, "name"))) : NULL;
                json_t *of_tenant = json_object();

                for (size_t j = 0; j < sizeof of_tenants / sizeof *of_tenants; j++)
                        json_object_set_new(of_tenant, of_tenants[j],
                                            json_real(per_sec((uint64_t)json_integer_value(json_object_get(tenant, of_tenants[j])),
                                                              (uint64_t)json_integer_value(json_object_get(old, of_tenants[j])),
                                                              interval)));
                json_object_set_new(tenant, "per_sec", of_tenant);
        }
        for (i = 0; i < now->stat->n_tiers; i++)
                json_array_append_new(tiers, message_json(&now->stat->tiers[i]->base));
        return json_pack("{s:o, s:I, s:I, s:I, s:I, s:I, s:I, s:o, s:o, s:o, s:o}", "daemon", json_clean(now->stat->daemon), "pid",
                         (json_int_t)now->stat->pid, "uptime_usec", (json_int_t)now->stat->uptime_usec, "interval_usec",
                         (json_int_t)interval, "n_sessions", (json_int_t)now->stat->n_sessions, "n_blocks", (json_int_t)now->stat->n_blocks,
                         "n_leases", (json_int_t)now->stat->n_leases, "hit_ratio",
                         hits + misses > 0 ? json_real(hits / (hits + misses)) : json_null(), "per_sec", rates, "tiers", tiers, "tenants",
                         tenants);
}

/* drawing: into memory, then line by line, cut at 80 columns */

static double number(const json_t *object, const char *field)
{
        return json_number_value(json_object_get(object, field));
}

static uint64_t whole(const json_t *object, const char *field)
{
        return (uint64_t)number(object, field);
}

static void draw_tier(FILE *f, const json_t *tier)
{
        double used = number(tier, "used_bytes"), capacity = number(tier, "capacity_bytes");

        fprintf(f, "%-6.6s %s %7s %10s of", json_string_value(json_object_get(tier, "name")), format_bar(used, capacity, 28).text,
                format_percent(used, capacity).text, format_bytes((uint64_t)used).text);
        if (strcmp(json_string_value(json_object_get(tier, "name")), "nvme") == 0)
                fprintf(f, " %-10s %s parts\n", format_bytes((uint64_t)capacity).text, format_rate(number(tier, "n_blocks")).text);
        else
                fprintf(f, " %-10s %4llu slab%s\n", format_bytes((uint64_t)capacity).text, (unsigned long long)whole(tier, "n_slabs"),
                        whole(tier, "n_slabs") == 1 ? "" : "s");
}

static void draw_tenant(FILE *f, const json_t *tenant)
{
        const json_t *rates = json_object_get(tenant, "per_sec");
        const char *name = json_string_value(json_object_get(tenant, "name"));
        double hits = number(rates, "hits"), misses = number(rates, "misses");
        char label[64];
        size_t width = 0, n = 0;

        /* the first 18 code points */
        for (; name[n] && n < sizeof label - 1 && (width < 18 || ((unsigned char)name[n] & 0xc0) == 0x80); n++)
                width += ((unsigned char)name[n] & 0xc0) != 0x80;
        snprintf(label, sizeof label, "%.*s", (int)n, name);
        fprintf(f, "%s%*s %6s %6s %8s", label, 18 - (int)width, "", format_rate(hits).text, format_rate(misses).text,
                format_percent(hits, hits + misses).text);
        fprintf(f, " %6s %8llu", format_rate(number(rates, "evicted")).text, (unsigned long long)whole(tenant, "n_blocks"));
        fprintf(f, " %10s %10s\n", format_bytes(whole(tenant, "used_bytes")).text, format_bytes(whole(tenant, "held_bytes")).text);
}

static void draw_frame(FILE *f, const json_t *frame, size_t max_tenants)
{
        const json_t *rates = json_object_get(frame, "per_sec"), *row;
        double hits = number(rates, "hits"), misses = number(rates, "misses");
        size_t i, n = json_array_size(json_object_get(frame, "tenants"));

        fprintf(f, "kvtierd %.16s  pid %llu  up %-10s", json_string_value(json_object_get(frame, "daemon")),
                (unsigned long long)whole(frame, "pid"), format_duration(whole(frame, "uptime_usec")).text);
        fprintf(f, "  sessions %llu  blocks %llu\n", (unsigned long long)whole(frame, "n_sessions"),
                (unsigned long long)whole(frame, "n_blocks"));
        fprintf(f, "hits %s/s  misses %s/s  ratio %s", format_rate(hits).text, format_rate(misses).text,
                format_percent(hits, hits + misses).text);
        fprintf(f, "  puts %s/s  evicted %s/s  leases %llu\n", format_rate(number(rates, "puts")).text,
                format_rate(number(rates, "evicted")).text, (unsigned long long)whole(frame, "n_leases"));
        fprintf(f, "stored %s/s", format_bytes((uint64_t)number(rates, "put_bytes")).text);
        fprintf(f, "  mapped %s/s", format_bytes((uint64_t)number(rates, "map_bytes")).text);
        fprintf(f, "  copied %s/s  requests %s/s\n\n", format_bytes((uint64_t)number(rates, "get_bytes")).text,
                format_rate(number(rates, "requests")).text);
        json_array_foreach(json_object_get(frame, "tiers"), i, row) draw_tier(f, row);
        fprintf(f, "\n%-18s %6s %6s %8s %6s %8s %10s %10s\n", "TENANT", "HIT/S", "MISS/S", "RATIO", "EVCT/S", "BLOCKS", "USED", "HELD");
        json_array_foreach(json_object_get(frame, "tenants"), i, row)
        {
                if (i == max_tenants) {
                        fprintf(f, "... and %zu more\n", n - i);
                        break;
                }
                draw_tenant(f, row);
        }
}

static bool print_frame(const json_t *frame, size_t max_tenants)
{
        char *text = NULL, *p;
        size_t n;
        FILE *f = open_memstream(&text, &n);

        if (!f)
                return false;
        draw_frame(f, frame, max_tenants);
        if (fclose(f)) {
                free(text);
                return false;
        }
        for (p = text; *p; p += *p == '\n') {
                for (size_t width = 0; *p && *p != '\n'; p++) {
                        width += ((unsigned char)*p & 0xc0) != 0x80;
                        if (width <= 80)
                                putchar(*p);
                }
                putchar('\n');
        }
        free(text);
        return true;
}

/* the terminal */

static volatile sig_atomic_t stop_signal, continued;

static void on_signal(int number)
{
        if (number == SIGCONT)
                continued = 1;
        else
                stop_signal = number;
}

static void catch_signals(void)
{
        struct sigaction action = {.sa_handler = on_signal}; /* no SA_RESTART: poll() must return */

        sigaction(SIGINT, &action, NULL);
        sigaction(SIGTERM, &action, NULL);
        sigaction(SIGHUP, &action, NULL);
        sigaction(SIGCONT, &action, NULL);
}

struct screen {
        bool is_terminal;
        bool has_keys; /* standard input is a terminal in raw mode */
        struct termios saved;
};

static void screen_enter(struct screen *s)
{
        struct termios raw;

        if (s->has_keys) {
                raw = s->saved;
                raw.c_lflag &= ~(tcflag_t)(ICANON | ECHO); /* ISIG stays: ^C and ^Z are signals */
                raw.c_cc[VMIN] = 0;
                raw.c_cc[VTIME] = 0;
                tcsetattr(STDIN_FILENO, TCSANOW, &raw);
        }
        fputs(s->is_terminal ? "\033[?1049h\033[?25l" : "", stdout);
}

static void screen_leave(struct screen *s)
{
        if (s->has_keys)
                tcsetattr(STDIN_FILENO, TCSANOW, &s->saved);
        fputs(s->is_terminal ? "\033[?25h\033[?1049l" : "", stdout);
        fflush(stdout);
}

/* Sleeps until deadline. Returns false when it is time to quit. */
static bool screen_wait(struct screen *s, uint64_t deadline_usec)
{
        while (!stop_signal) {
                struct pollfd p = {.fd = s->has_keys ? STDIN_FILENO : -1, .events = POLLIN};
                uint64_t now = now_usec();
                char keys[16];
                ssize_t n;

                if (now >= deadline_usec)
                        return true;
                if (poll(&p, 1, (int)((deadline_usec - now) / 1000 < 1000000 ? (deadline_usec - now + 999) / 1000 : 1000000)) > 0) {
                        n = read(STDIN_FILENO, keys, sizeof keys);
                        if (n > 0 && memchr(keys, 'q', (size_t)n))
                                return false;
                        if (n == 0 || (n < 0 && errno != EINTR && errno != EAGAIN))
                                s->has_keys = false; /* hung up */
                }
                if (continued) { /* after ^Z and fg the shell gave the terminal back in its own mode */
                        continued = 0;
                        screen_enter(s);
                        return true;
                }
        }
        return false;
}

static void clear_screen(void)
{
        fputs("\033[H\033[J", stdout);
        fflush(stdout);
}

static int show_frame(struct ctl *x, const struct screen *screen, const struct sample *now, const struct sample *before, uint64_t i)
{
        json_t *frame = frame_json(now, before);
        bool drawn;

        if (!frame)
                return ctl_fail(x, KVT_E_NO_MEMORY, "cannot draw");
        if (x->o.json)
                return ctl_print_json(x, frame);
        if (screen->is_terminal)
                clear_screen();
        else if (i)
                putchar('\n');
        drawn = print_frame(frame, screen->is_terminal ? 14 : SIZE_MAX);
        json_decref(frame);
        return drawn ? EXIT_OK : ctl_fail(x, KVT_E_NO_MEMORY, "cannot draw");
}

int cmd_top(struct ctl *x)
{
        struct screen screen = {.is_terminal = !x->o.json && isatty(STDOUT_FILENO)};
        struct sample now = {}, before = {};
        bool lost = false;
        int code = EXIT_OK;

        screen.has_keys = screen.is_terminal && isatty(STDIN_FILENO) && tcgetattr(STDIN_FILENO, &screen.saved) == 0;
        catch_signals();
        screen_enter(&screen);
        for (uint64_t i = 0; code == EXIT_OK; i++) {
                uint64_t next = now_usec() + x->o.delay;

                if (lost) /* room for one message */
                        clear_screen();
                code = sample_take(x, &now);
                lost = code && screen.is_terminal;
                if (code == EXIT_OK)
                        code = show_frame(x, &screen, &now, &before, i);
                else if (lost)
                        code = EXIT_OK; /* the daemon may come back */
                if (fflush(stdout))
                        break; /* main says so */
                sample_deinit(&before);
                before = now;
                now = (struct sample){};
                if (i + 1 == x->o.frames || code || !screen_wait(&screen, next))
                        break;
        }
        screen_leave(&screen);
        sample_deinit(&before);
        sample_deinit(&now);
        return code;
}
