/* What puts in one go and puts with reservations share. */
#pragma once

#include "libclient/staging.h"
#include "libclient/wire.h"

/* of PutBeginRequest and PutCommitRequest */
enum { FIELD_PUT_SPACE = 1, FIELD_PUT_SHARD = 2, FIELD_PUT_PARENT = 3, FIELD_PUT_KEYS = 4 };
enum { FIELD_BEGIN_REPLACE = 5, FIELD_BEGIN_DURABLE = 6, FIELD_BEGIN_HINTS = 7 };
enum {
        FIELD_COMMIT_OFFSETS = 5,
        FIELD_COMMIT_RESERVATIONS = 6,
        FIELD_COMMIT_REPLACE = 7,
        FIELD_COMMIT_DURABLE = 8,
        FIELD_COMMIT_HINT_BYTES = 9
};
static const uint32_t put_flags = KVT_PUT_REPLACE | KVT_PUT_DURABLE;

static inline uint8_t *put_pack_head(const kvt_op *op, uint8_t *p, const kvt_key *parent)
{
        p = wire_uint(p, FIELD_PUT_SPACE, op->s->handle);
        p = wire_uint(p, FIELD_PUT_SHARD, op->s->shard);
        return wire_bytes(p, FIELD_PUT_PARENT, parent, parent ? sizeof(*parent) : 0);
}
