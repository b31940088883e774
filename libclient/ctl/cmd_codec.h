/* codec: the parts of it. Each returns an exit code. */
#pragma once

#include "libclient/ctl/capturefile.h"
#include "libclient/ctl/ctl.h"

/* Of the command line, checked. */
struct codec_task {
        struct capturefile file, base; /* base.bytes NULL: none */
        struct codec_pair *pairs; /* owned */
        size_t n_pairs;
        uint32_t block_tokens, n_queries;
        float max_rel_l2;
};

int codec_bench(struct ctl *x, const struct codec_task *t);
int codec_explain(struct ctl *x, const struct codec_task *t);
