/* A client without the library: sends whatever bytes a test wants to send, and shows what comes back. */
#pragma once

#include "proto/frame.h"
#include "proto/messages.h"
#include "proto/shm.h"
#include "tests/lib/check.h"

enum { RAW_TIMEOUT_MSEC = 10000, RAW_FDS_MAX = 64 };

struct raw {
        int fd;
        uint32_t last_id;
        uint8_t version;
        /* the last packet */
        ssize_t n; /* -1: none */
        struct frame f;
        int fds[RAW_FDS_MAX];
        size_t n_fds;
        int error; /* KVT_E_* if it was an error, else 0 */
        char error_text[256];
        /* raw_staging() */
        uint8_t *staging;
        uint64_t staging_bytes;
        int staging_fd;
        uint8_t buf[KVT_PACKET_MAX + 64];
        /* raw_put_under_way() */
        size_t n_early;
        uint8_t early[KVT_KEYS_MAX];
};

void raw_open(struct raw *r, const char *socket);
void raw_close(struct raw *r);
/* The same, and returns when the daemon has let go of everything, too. */
void raw_leave(struct raw *r);
/* Says hello, and takes the answer in. */
void raw_hello(struct raw *r);

/* Returns 0 or -errno. */
int raw_send_bytes(struct raw *r, const void *bytes, size_t n, const int *fds, size_t n_fds);
int raw_send(struct raw *r, uint16_t type, uint32_t id, const void *message);
/* A frame around any body. */
int raw_send_body(struct raw *r, uint16_t type, uint32_t id, const void *body, size_t n);

enum raw_got { RAW_CLOSED, RAW_PACKET, RAW_NOTHING };
/* Takes the next packet in: descriptors of the one before are closed. */
enum raw_got raw_recv(struct raw *r, int timeout_msec);
/* The next packet is this error to this request ... */
void raw_expect_error(struct raw *r, uint32_t id, int code);
/* ... and then the connection is closed. */
void raw_expect_closed(struct raw *r);
/* The body of the packet at hand; NULL if it is no such message. Free with protobuf_c_message_free_unpacked(). */
ProtobufCMessage *raw_unpack(struct raw *r, const ProtobufCMessageDescriptor *type);
/* A request and its answer, events and the like passed over. NULL: it was an error (see r->error) or the connection ended. */
void *raw_call(struct raw *r, uint16_t type, const void *message, const ProtobufCMessageDescriptor *reply);
/* The same when only the outcome counts: 0 or KVT_E_*; KVT_E_DISCONNECTED when it was closed. */
int raw_status(struct raw *r, uint16_t type, const void *message);
bool raw_alive(struct raw *r); /* a ping is answered */

/* work, as the library would do it */
/* A space of two planes of opaque bytes, as tests/lib/pattern.h has it. Returns its handle. */
uint32_t raw_space(struct raw *r, const char *name, size_t part_bytes, uint32_t n_shards);
void raw_staging(struct raw *r, uint64_t bytes);
/* Puts n parts whose bytes stand in staging one behind another from offset 0. Returns the error of the request, or 0. */
int raw_put(struct raw *r, uint32_t space, uint32_t shard, const kvt_key *parent, const kvt_key *keys, size_t n, size_t part_bytes,
            uint8_t *statuses);
/* A put in two steps: n parts that all have the bytes at offset 0, and the answer. */
void raw_put_send(struct raw *r, uint32_t id, uint32_t space, const kvt_key *parent, const kvt_key *keys, size_t n);
void raw_put_take(struct raw *r, uint32_t id, size_t n, uint8_t *ret);
/* Returns when the daemon has taken in a put that was sent: true if it was not answered yet. */
bool raw_put_under_way(struct raw *r, uint32_t id);
/* Reservations, and their commit with the bytes at offsets 0, stride, ... */
int raw_put_begin(struct raw *r, uint32_t space, const kvt_key *keys, size_t n, struct kvt_put_entry *ret);
int raw_put_commit(struct raw *r, uint32_t space, const struct kvt_put_entry *e, size_t n, uint64_t stride, uint8_t *ret);
/* Maps; descriptors that came along stay in r->fds until the next packet. entries: n of room. */
int raw_map(struct raw *r, uint32_t space, uint32_t shard, const kvt_key *keys, size_t n, struct kvt_map_entry *entries);
int raw_match(struct raw *r, uint32_t space, const kvt_key *keys, size_t n, uint32_t *ret_n, uint32_t *ret_stop);
void raw_ack_fds(struct raw *r);
