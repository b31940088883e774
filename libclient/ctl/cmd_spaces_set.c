/* kvtierctl spaces set: changes ladders. */
#include <stdio.h>
#include <string.h>

#include "libclient/codec/ladder.h"
#include "libclient/ctl/query.h"

/* RUNG=CODECS; the text is checked here, too, so that what is wrong is said with the word it is about. */
static int take_operand(struct ctl *x, const char *operand, Kvtier__SpaceSetRequest *ret)
{
        char **fields[LADDER_N] = {&ret->hot, &ret->cold, &ret->nvme};
        const char *equals = strchr(operand, '='), *why;
        struct ladder ladder;

        for (unsigned i = 0; equals && i < LADDER_N; i++) {
                const char *name = ladder_rung_name(i);

                if (strlen(name) != (size_t)(equals - operand) || memcmp(name, operand, strlen(name)) != 0)
                        continue;
                if (ladder_set(&ladder, i, equals + 1, &why))
                        return ctl_misuse(x, "%s: %s", operand, why);
                *fields[i] = (char *)equals + 1;
                return EXIT_OK;
        }
        return ctl_misuse(x, "%s: not hot=CODECS, cold=CODECS or nvme=CODECS", operand);
}

int spaces_set(struct ctl *x)
{
        Kvtier__SpaceSetRequest request = KVTIER__SPACE_SET_REQUEST__INIT;
        Kvtier__SpaceSetReply *reply;
        int code = EXIT_OK;

        if (x->n_operands < 3)
                return ctl_misuse(x, "set takes the name of a space and what to change: hot=CODECS, cold=CODECS or nvme=CODECS");
        request.name = x->operands[1];
        if (x->o.tenant)
                request.tenant = (char *)x->o.tenant;
        for (int i = 2; i < x->n_operands && code == EXIT_OK; i++)
                code = take_operand(x, x->operands[i], &request);
        if (code == EXIT_OK)
                code = query_call(x, KVT_MSG_SPACE_SET, &request.base, &kvtier__space_set_reply__descriptor, (ProtobufCMessage **)&reply);
        if (code)
                return code;
        if (x->o.json)
                code = ctl_print_json(x, json_pack("{s:i}", "n_spaces", (int)reply->n_spaces));
        else
                printf("%u space%s changed; a change of hot counts for blocks from now on\n", reply->n_spaces,
                       reply->n_spaces == 1 ? "" : "s");
        kvt_call_free(&reply->base);
        return code;
}
