/* One request and its reply as protobuf messages: what the public calls and kvtierctl are made of. */
#pragma once

#include <stdint.h>

#include "proto/messages.h"

#include "include/kvtier.h"

/* Sends request as a message of this type and waits for the reply. Returns 0 with *ret_reply (free with kvt_call_free()), KVT_E_*
 * from the daemon (its text then in errbuf, if given), KVT_E_TIMEOUT, KVT_E_DISCONNECTED, or -errno. Thread-safe. */
int kvt_call(kvt *c, uint16_t type, const ProtobufCMessage *request, const ProtobufCMessageDescriptor *reply_type,
             ProtobufCMessage **ret_reply, char *errbuf, size_t n_errbuf);
void kvt_call_free(ProtobufCMessage *reply);

/* The daemon's handle of a space, for messages that name one. */
uint32_t kvt_space_handle(const kvt_space *s);

/* A space that the daemon has under this handle, as LIST tells of it, without opening it by name and salt: for kvtierctl. config is
 * believed; its name and salt are used by kvt_keys() only. Calls return KVT_E_RESTARTED once the connection was lost, since the space is not
 * re-opened: its salt may be unknown. Close it with kvt_space_close(). */
int kvt_space_attach(kvt *c, uint32_t handle, const kvt_space_config *config, kvt_space **ret);
