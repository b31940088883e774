/* A real kvtierd in a temporary directory, for tests: start, look at, stop.
 *
 * The binary is $KVTIERD, else the one beside the test's own build. It gets a small host tier unless the test says otherwise, its messages go
 * to a file, and it dies with the test. daemon_end() is how a test ends well: the daemon's own audit must agree, and so must its exit status
 * (where sanitizers speak). */
#pragma once

#include "tests/lib/check.h"

struct daemon {
        pid_t pid; /* 0: not running */
        char dir[64], socket[96], config[96], log[96];
        char *args[32]; /* borrowed: they live until the test ends */
        int n_args;
        int i_left; /* where it stands among those to be cleaned up */
};

/* TEST(f) for cmocka's table: whatever f left running is ended. */
#define TEST(f) cmocka_unit_test_teardown(f, daemon_teardown)
int daemon_teardown(void **state);

/* Parameters as on the command line; later ones win; DIR in them is the directory of this daemon. Returns when it serves. */
#define DAEMON_START(d, ...) daemon_start((d), (const char *const[]){__VA_ARGS__ __VA_OPT__(, ) NULL})
void daemon_start(struct daemon *d, const char *const *params);
/* Again, in the same directory and with the same parameters, after daemon_wait() or daemon_kill(). */
void daemon_restart(struct daemon *d);
/* Adds to the environment of daemons started from now on; NULL: nothing. */
void daemon_environment(const char *name_value);
/* Preloads this library into daemons started from now on; NULL: none. */
void daemon_preload(const char *path);
/* Daemons started from now on run as this user (if we are root; 0: as we are) and may open that many files (0: as we may). */
void daemon_user(uid_t uid, unsigned max_files);
const char *daemon_binary(void);
/* An exit status, or 128 + signal. */
int daemon_wait(struct daemon *d);
int daemon_stop(struct daemon *d); /* TERM, then wait */
void daemon_kill(struct daemon *d);
/* Audits, stops, checks exit status 0, removes the directory. */
void daemon_end(struct daemon *d);
/* Runs kvtierd to its end without a directory of its own; what it prints (stdout and stderr) goes to text. Returns the exit status. */
int daemon_run(const char *const *args, char *text, size_t n_text);
void daemon_write_config(const struct daemon *d, const char *text);
bool daemon_log_has(const struct daemon *d, const char *text);

/* seen from outside */
unsigned daemon_n_fds(const struct daemon *d);
uint64_t daemon_cpu_usec(const struct daemon *d);
/* how often its loop and its workers went to sleep, altogether */
uint64_t daemon_n_sleeps(const struct daemon *d);

/* seen through a connection of its own, which is not counted */
struct daemon_status {
        uint64_t n_sessions, n_spaces, n_tenants, n_blocks, n_leases, n_reservations, n_xfers, staging_bytes;
        uint64_t capacity_bytes, slab_bytes, used_bytes, payload_bytes, n_slabs, n_retired;
        bool audited;
        uint64_t audit_used_bytes, audit_n_blocks, audit_leases;
        char audit_error[128], boot_token[40];
        struct {
                char name[32];
                uint64_t value;
        } counters[128];
        size_t n_counters;
};
struct daemon_status daemon_status(const struct daemon *d);
/* Fails the test if the audit finds anything. */
struct daemon_status daemon_audit(const struct daemon *d);
uint64_t daemon_counter(const struct daemon *d, const char *name);
