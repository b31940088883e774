/* Questions to the daemon that several subcommands ask. All return an exit code and have said what went wrong. */
#pragma once

#include "libclient/codec/geometry.h"
#include "libclient/ctl/ctl.h"
#include "proto/shm.h"

/* kvt_call(), with the error printed. Free *ret_reply with kvt_call_free(). */
int query_call(struct ctl *x, uint16_t type, const ProtobufCMessage *request, const ProtobufCMessageDescriptor *reply_type,
               ProtobufCMessage **ret_reply);
int query_stat(struct ctl *x, bool audit, Kvtier__StatReply **ret);
uint64_t stat_counter(const Kvtier__StatReply *stat, const char *name); /* 0 if this daemon does not count that */

/* All pages of a list of tenants, spaces, sessions or devices, as an array of objects. */
int query_list(struct ctl *x, Kvtier__ListWhat what, json_t **ret_rows);
/* Calls fn for blocks of a space, a page at a time, until it returns another exit code than EXIT_OK or limit (0: none) is reached. */
int query_blocks(struct ctl *x, uint32_t space, uint64_t limit, int (*fn)(const struct kvt_block_entry *entries, size_t n, void *arg),
                 void *arg);

/* One space in full, by its name or handle. */
struct space {
        Kvtier__ListReply *reply; /* owned */
        Kvtier__SpaceEntry *entry; /* in reply */
        struct geometry geometry;
};
int query_space(struct ctl *x, const char *name, struct space *ret);
void space_deinit(struct space *s);

/* cmd_spaces_set.c: `spaces set`, a part of cmd_spaces() */
int spaces_set(struct ctl *x);

/* The space as the library sees it, for calls that move bytes (its handle) or compute keys (its name and salt). */
int query_attach(struct ctl *x, const struct space *s, uint32_t shard, const void *salt, size_t n_salt, kvt_space **ret);

/* A key from 32 digits, or from the first 4 or more of a key that is in the space. */
int query_key(struct ctl *x, const struct space *s, const char *text, uint8_t ret[16]);
