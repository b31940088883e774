/* kvt_call(): any request as a protobuf message, for what is not on a hot path and for kvtierctl. */
#include <stdio.h>
#include <string.h>

#include "libclient/async.h"
#include "libclient/call.h"

struct call {
        uint16_t type;
        const ProtobufCMessage *request;
        const ProtobufCMessageDescriptor *reply_type;
        ProtobufCMessage *reply;
        char *errbuf;
        size_t n_errbuf;
};

static int call_on_reply(kvt *c, struct request *q, int error, const uint8_t *body, size_t n)
{
        struct call *call = q->op ? q->op->result : NULL;

        if (!call)
                return 0;
        if (error) {
                if (call->errbuf && call->n_errbuf)
                        snprintf(call->errbuf, call->n_errbuf, "%s", error == KVT_E_DISCONNECTED ? kvt_strerror(error) : c->error_text);
                return 0;
        }
        call->reply = protobuf_c_message_unpack(call->reply_type, NULL, n, body);
        return call->reply ? 0 : -1;
}

static int call_start(kvt_op *op)
{
        struct call *call = op->result;
        struct request *q;
        int r;

        if (protobuf_c_message_get_packed_size(call->request) > TX_MAX)
                return KVT_E_BAD_REQUEST;
        q = request_new(op->c, op, call->type);
        if (!q)
                return KVT_E_AGAIN;
        q->on_reply = call_on_reply;
        r = request_send(op->c, q, protobuf_c_message_pack(call->request, tx_body(op->c)));
        if (r)
                request_free(op->c, q);
        return r;
}

int kvt_call(kvt *c, uint16_t type, const ProtobufCMessage *request, const ProtobufCMessageDescriptor *reply_type,
             ProtobufCMessage **ret_reply, char *errbuf, size_t n_errbuf)
{
        struct call call = {.type = type, .request = request, .reply_type = reply_type, .errbuf = errbuf, .n_errbuf = n_errbuf};
        kvt_op *op;
        int r = conn_check(c);

        if (errbuf && n_errbuf)
                *errbuf = 0;
        if (r)
                return r;
        switch (type) { /* those whose answers carry descriptors, or that have none, or that change the session, are not for here */
        case KVT_MSG_HELLO:
        case KVT_MSG_STAGING_OPEN:
        case KVT_MSG_MAP:
        case KVT_MSG_RELEASE:
        case KVT_MSG_FD_ACK:
        case KVT_MSG_SLAB_ACK:
        case KVT_MSG_CANCEL:
                return KVT_E_BAD_REQUEST;
        }
        op = op_new(c, NULL);
        if (!op)
                return KVT_E_NO_MEMORY;
        op->start = call_start;
        op->result = &call;
        r = op_sync(op, true);
        if (!r)
                *ret_reply = call.reply;
        else if (errbuf && n_errbuf && !*errbuf)
                snprintf(errbuf, n_errbuf, "%s", kvt_strerror(r));
        return r;
}

void kvt_call_free(ProtobufCMessage *reply)
{
        if (reply)
                protobuf_c_message_free_unpacked(reply, NULL);
}
