/* A space's ladder: which codecs its copies are under, rung by rung. Lossy ones do what the space's fidelity allows: in a lossless space they give way to
 * lossless ones. */
#pragma once

#include "libclient/codec/codec.h"

enum ladder_rung {
        LADDER_HOT, /* in memory, soon after the put; raw: as it was put, and it can be mapped as it is */
        LADDER_COLD, /* in memory, when room gets short, what was not used lately */
        LADDER_NVME, /* on NVMe */
        LADDER_N,
};

struct ladder {
        struct codec_pair rungs[LADDER_N];
};

/* "hot", "cold", "nvme" */
const char *ladder_rung_name(unsigned rung);
/* Sets a rung from text (a pair, see codec.h). 0 or KVT_E_BAD_REQUEST with *ret_why, a static text: it is no pair, or one of its codecs needs a base. */
int ladder_set(struct ladder *l, unsigned rung, const char *text, const char **ret_why);
