/* The frame: one SOCK_SEQPACKET packet is one message.
 *
 *     byte  0..1   magic "kv"
 *     byte  2      protocol version of this frame (KVT_PROTO_MAX before the hello is answered, then the agreed one)
 *     byte  3      zero
 *     byte  4..5   message type, little endian (enum kvt_message)
 *     byte  6..7   zero
 *     byte  8..11  request id, chosen by the client, echoed in the reply; zero in messages that have no reply
 *     byte 12..15  length of the body in bytes
 *     byte 16..    body: the protobuf message of that type (kvtier.proto)
 *
 * Rules. A packet's length is 16 + body length exactly, at most KVT_PACKET_MAX. The first message of a session is HELLO.
 * A reply has the request's type with KVT_REPLY set, or is KVT_MSG_ERROR. A packet that breaks a frame rule is answered with
 * KVT_MSG_ERROR and the session is closed; a well-framed request with a bad body is answered with KVT_MSG_ERROR and the session
 * goes on. No client message carries file descriptors. Both sides parse with frame_parse() and build with frame_put(). */
#pragma once

#include <stdint.h>
#include <string.h>

#define KVT_PROTO_MIN 2 /* 2: copies have codecs */
#define KVT_PROTO_MAX 2

enum {
        KVT_FRAME_BYTES = 16,
        KVT_PACKET_MAX = 128 * 1024,
        KVT_KEY_BYTES = 16,
        KVT_KEYS_MAX = 2048, /* keys in one request */
        KVT_FDS_MAX = 16, /* descriptors in one packet, and unacknowledged in a session */
        KVT_PLANES_MAX = 1024, /* planes of a space */
        KVT_NAME_MAX = 128, /* bytes in the name of a space */
        KVT_SALT_MAX = 64, /* bytes of salt */
};

enum kvt_message {
        KVT_MSG_HELLO = 1,
        KVT_MSG_SPACE_OPEN = 2,
        KVT_MSG_STAGING_OPEN = 3, /* reply carries one descriptor */
        KVT_MSG_MATCH = 4,
        KVT_MSG_PUT_BEGIN = 5,
        KVT_MSG_PUT_COMMIT = 6,
        KVT_MSG_PUT_ABORT = 7,
        KVT_MSG_MAP = 8, /* reply carries the slabs' descriptors that the session does not have yet */
        KVT_MSG_RELEASE = 9, /* one way */
        KVT_MSG_FD_ACK = 10, /* one way: the descriptors of the last fd-bearing packet were received */
        KVT_MSG_SLAB_ACK = 11, /* one way: retired slabs are unmapped */
        KVT_MSG_GET = 12,
        KVT_MSG_PREFETCH = 13,
        KVT_MSG_DROP = 14,
        KVT_MSG_PURGE = 15,
        KVT_MSG_STAT = 16,
        KVT_MSG_LIST = 17,
        KVT_MSG_EXPLAIN = 18,
        KVT_MSG_EVENTS = 19,
        KVT_MSG_CANCEL = 20, /* one way: the cancelled request itself is answered */
        KVT_MSG_PING = 21,
        KVT_MSG_DEVICE = 22,
        KVT_MSG_SPACE_SET = 23,
        KVT_MSG_MAX = 24,

        KVT_REPLY = 0x8000,
        /* daemon to client, without a request */
        KVT_MSG_EVENT = 0x4001,
        KVT_MSG_SLAB_RETIRED = 0x4002,
        KVT_MSG_ERROR = 0xffff,
};

struct frame {
        uint8_t version;
        uint16_t type;
        uint32_t request_id;
        uint32_t body_bytes;
};

static inline void frame_put(uint8_t *p, uint8_t version, uint16_t type, uint32_t request_id, uint32_t body_bytes)
{
        p[0] = 'k';
        p[1] = 'v';
        p[2] = version;
        p[3] = 0;
        p[4] = (uint8_t)type;
        p[5] = (uint8_t)(type >> 8);
        p[6] = p[7] = 0;
        for (int i = 0; i < 4; i++) {
                p[8 + i] = (uint8_t)(request_id >> (8 * i));
                p[12 + i] = (uint8_t)(body_bytes >> (8 * i));
        }
}

/* Returns 0 and fills *ret, or -1 if these n_bytes are not one whole frame. Any bytes are allowed in. */
static inline int frame_parse(const uint8_t *p, size_t n_bytes, struct frame *ret)
{
        uint32_t id = 0, body = 0;

        if (n_bytes < KVT_FRAME_BYTES || n_bytes > KVT_PACKET_MAX || p[0] != 'k' || p[1] != 'v' || p[3] || p[6] || p[7])
                return -1;
        for (int i = 3; i >= 0; i--) {
                id = id << 8 | p[8 + i];
                body = body << 8 | p[12 + i];
        }
        if (body != n_bytes - KVT_FRAME_BYTES)
                return -1;
        *ret = (struct frame){.version = p[2], .type = (uint16_t)(p[4] | p[5] << 8), .request_id = id, .body_bytes = body};
        return 0;
}
