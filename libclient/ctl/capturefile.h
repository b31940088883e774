/* Captured KV on disk (libclient/codec/capture.h), mapped. */
#pragma once

#include "libclient/codec/capture.h"
#include "libclient/codec/codec.h"
#include "libclient/ctl/ctl.h"

struct capturefile {
        const char *path; /* not owned */
        struct capture head;
        const uint8_t *bytes; /* mapped */
        size_t n_bytes;
};

/* Returns an exit code, having said what is wrong. */
int capturefile_open(struct ctl *x, const char *path, struct capturefile *ret);
void capturefile_close(struct capturefile *f);
/* The values of a part of a layer, [head][token][dim]. */
const uint8_t *capturefile_part(const struct capturefile *f, uint32_t layer, enum capture_part part);
/* The shape of tokens [first, first + n) of K or V of a layer, as a block's plane; false: none is that large. */
bool capturefile_shape(const struct capturefile *f, uint32_t layer, enum capture_part part, uint32_t n, struct shape *ret);
/* Copies them out, [head][n][dim], or back into a part (p->tokens of them at first). */
void capturefile_take(const struct capturefile *f, const struct shape *p, const uint8_t *part, uint32_t first, uint8_t *dst);
void capturefile_put(const struct capturefile *f, const struct shape *p, uint8_t *part, uint32_t first, const uint8_t *src);
