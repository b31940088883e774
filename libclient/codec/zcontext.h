/* zstd's contexts for zbf: one coder and one decoder a thread. See zcontext.c. */
#pragma once

#include <stdbool.h>

#define ZSTD_STATIC_LINKING_ONLY
#include <zstd.h>

/* Bytes, 64-byte aligned, that the functions below may use at `room`. */
size_t zcontext_room(void);
/* A Huffman coder of frames of up to 64 KiB: RFC 8878 without magic, sizes or checksums. The thread's own, or one at room if there is no memory for it.
 * NULL: zstd refused. */
ZSTD_CCtx *zcontext_coder(void *room);
/* Whether it looks for matches, too. */
void zcontext_search(ZSTD_CCtx *c, bool search);
ZSTD_DCtx *zcontext_decoder(void *room);
