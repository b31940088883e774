/* See ladder.h. */
#include "libclient/codec/ladder.h"

const char *ladder_rung_name(unsigned rung)
{
        static const char *const names[LADDER_N] = {"hot", "cold", "nvme"};

        return names[rung];
}

int ladder_set(struct ladder *l, unsigned rung, const char *text, const char **ret_why)
{
        struct codec_pair p;
        int r = codec_pair_parse(text, &p, ret_why);

        if (r)
                return r;
        if ((p.k.codec->flags | p.v.codec->flags) & CODEC_NEEDS_BASE) {
                *ret_why = "the codec works against another block: it is no rung of a ladder";
                return KVT_E_BAD_REQUEST;
        }
        l->rungs[rung] = p;
        return 0;
}
