/* Every message of the protocol, unpacked from any bytes within a limit of memory, as the daemon and the library do it.
 *
 * The first byte of an input says which message. What unpacks must pack again, unknown fields left out, to bytes that unpack to the same; a
 * body as large as a packet may not take more than the daemon's arena, whatever stands in it. */
#include <assert.h>

#include "libclient/client.h"
#include "tests/fuzz/fuzz.h"

enum { DAEMON_ARENA_BYTES = 16 << 20 }; /* as in daemon/serve/server.c */

static const ProtobufCMessageDescriptor *const types[] = {
        &kvtier__hello_request__descriptor,
        &kvtier__hello_reply__descriptor,
        &kvtier__error__descriptor,
        &kvtier__space_open_request__descriptor,
        &kvtier__space_open_reply__descriptor,
        &kvtier__staging_open_request__descriptor,
        &kvtier__staging_open_reply__descriptor,
        &kvtier__match_request__descriptor,
        &kvtier__match_reply__descriptor,
        &kvtier__put_begin_request__descriptor,
        &kvtier__put_begin_reply__descriptor,
        &kvtier__put_commit_request__descriptor,
        &kvtier__put_commit_reply__descriptor,
        &kvtier__put_abort_request__descriptor,
        &kvtier__put_abort_reply__descriptor,
        &kvtier__map_request__descriptor,
        &kvtier__map_reply__descriptor,
        &kvtier__release_request__descriptor,
        &kvtier__fd_ack__descriptor,
        &kvtier__slab_ack__descriptor,
        &kvtier__slab_retired__descriptor,
        &kvtier__get_request__descriptor,
        &kvtier__get_reply__descriptor,
        &kvtier__prefetch_request__descriptor,
        &kvtier__prefetch_reply__descriptor,
        &kvtier__drop_request__descriptor,
        &kvtier__drop_reply__descriptor,
        &kvtier__purge_request__descriptor,
        &kvtier__purge_reply__descriptor,
        &kvtier__stat_request__descriptor,
        &kvtier__stat_reply__descriptor,
        &kvtier__list_request__descriptor,
        &kvtier__list_reply__descriptor,
        &kvtier__explain_request__descriptor,
        &kvtier__explain_reply__descriptor,
        &kvtier__events_request__descriptor,
        &kvtier__events_reply__descriptor,
        &kvtier__event__descriptor,
        &kvtier__cancel_request__descriptor,
        &kvtier__ping_request__descriptor,
        &kvtier__ping_reply__descriptor,
        &kvtier__device_request__descriptor,
        &kvtier__device_reply__descriptor,
        &kvtier__space_set_request__descriptor,
        &kvtier__space_set_reply__descriptor,
        /* what others hold, so that seeds fill it in, too */
        &kvtier__plane__descriptor,
        &kvtier__tier__descriptor,
        &kvtier__counter__descriptor,
        &kvtier__tenant_entry__descriptor,
        &kvtier__space_entry__descriptor,
        &kvtier__session_entry__descriptor,
        &kvtier__device_entry__descriptor,
};
static_assert(KVT_MSG_MAX == 24, "a message that this list does not have");
enum { N_TYPES = sizeof(types) / sizeof(*types) };

/* Memory of its own for each piece, so that a write past one is seen; the limit is that of all together. */
struct limited {
        size_t used_bytes;
        void *pieces[1 << 20];
        size_t n_pieces;
};
static struct limited limited;

static void *limited_alloc(void *arg, size_t n)
{
        struct limited *l = arg;
        size_t counted = (n + 15) / 16 * 16;

        if (counted > DAEMON_ARENA_BYTES - l->used_bytes || l->n_pieces == sizeof(l->pieces) / sizeof(*l->pieces))
                return NULL;
        l->used_bytes += counted;
        return l->pieces[l->n_pieces++] = malloc(n ? n : 1);
}

static void limited_free(void *arg, void *p)
{
}

static void limited_clear(void)
{
        while (limited.n_pieces)
                free(limited.pieces[--limited.n_pieces]);
        limited.used_bytes = 0;
}

/* They are kept as they were written, and some ways to write the number zero can be unpacked but not packed. */
static void drop_unknown(ProtobufCMessage *m)
{
        m->n_unknown_fields = 0;
        for (unsigned i = 0; i < m->descriptor->n_fields; i++) {
                const ProtobufCFieldDescriptor *d = &m->descriptor->fields[i];
                void *field = (uint8_t *)m + d->offset;

                if (d->type != PROTOBUF_C_TYPE_MESSAGE)
                        continue;
                FUZZ_CHECK(d->label == PROTOBUF_C_LABEL_REPEATED); /* the protocol has no others */
                for (size_t k = 0; k < *(size_t *)((uint8_t *)m + d->quantifier_offset); k++)
                        drop_unknown((*(ProtobufCMessage ***)field)[k]);
        }
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
        const char *corpus = fuzz_corpus(*argc, *argv);

        /* every message with every field there: numbers 1, bytes and texts of 16, submessages empty */
        for (size_t i = 0; i < N_TYPES; i++) {
                uint8_t seed[4096] = {(uint8_t)i}, *p = seed + 1;
                char name[16];

                for (unsigned f = 0; f < types[i]->n_fields; f++) {
                        const ProtobufCFieldDescriptor *d = &types[i]->fields[f];
                        uint8_t wire =
                                d->type == PROTOBUF_C_TYPE_BYTES || d->type == PROTOBUF_C_TYPE_STRING || d->type == PROTOBUF_C_TYPE_MESSAGE
                                        ? 2
                                        : 0;
                        if (d->id > 15) /* two bytes */
                                *p++ = (uint8_t)(d->id << 3 | wire | 0x80);
                        *p++ = (uint8_t)(d->id > 15 ? d->id >> 4 : d->id << 3 | wire);
                        *p++ = wire ? (d->type == PROTOBUF_C_TYPE_MESSAGE ? 0 : 16) : 1;
                        if (wire && d->type != PROTOBUF_C_TYPE_MESSAGE)
                                p = (uint8_t *)memset(p, 'a', 16) + 16;
                }
                snprintf(name, sizeof(name), "%zu", i);
                fuzz_seed(corpus, name, seed, (size_t)(p - seed));
        }
        return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n)
{
        static uint8_t packed[2][16 << 20];
        static struct arena arena;
        ProtobufCAllocator allocator = {limited_alloc, limited_free, &limited}, library;
        const ProtobufCMessageDescriptor *type;
        ProtobufCMessage *m;
        uint8_t *body;
        size_t k[2];

        if (!n || n - 1 > KVT_PACKET_MAX - KVT_FRAME_BYTES)
                return 0;
        type = types[bytes[0] % N_TYPES];
        n--;
        body = memcpy(malloc(n + !n), bytes + 1, n); /* so that a read past it is seen */

        m = protobuf_c_message_unpack(type, &allocator, n, body);
        for (int i = 0; m && i < 2; i++) {
                drop_unknown(m);
                size_t size = protobuf_c_message_get_packed_size(m);
                FUZZ_CHECK(size <= sizeof(packed[i])); /* enumerations may grow from one byte to ten */
                k[i] = protobuf_c_message_pack(m, packed[i]);
                FUZZ_CHECK(k[i] == size && protobuf_c_message_check(m));
                if (i == 0) {
                        limited_clear(); /* m is gone */
                        m = protobuf_c_message_unpack(type, &allocator, k[0], packed[0]);
                        FUZZ_CHECK(m);
                } else {
                        FUZZ_CHECK(k[0] == k[1] && !memcmp(packed[0], packed[1], k[0]));
                }
        }
        limited_clear();

        library = arena_start(&arena);
        m = protobuf_c_message_unpack(type, &library, n, body);
        if (m)
                FUZZ_CHECK(arena.used_bytes <= sizeof(arena.bytes) && protobuf_c_message_check(m));
        free(body);
        return 0;
}
