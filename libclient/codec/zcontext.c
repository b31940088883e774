/* zstd's contexts for zbf.
 *
 * A codec has no globals and allocates nothing, but for this: to set up a context, zstd executes CPUID, which traps where the machine is virtual (measured:
 * 16 us, as long as coding a plane of 24 KiB takes). So a thread makes its contexts once and keeps them until it ends; they hold no state between calls
 * but the parameters set here. If there is no memory for them, the call makes do with its scratch: same bytes, only slower.
 *
 * ZSTD_initStatic* is called experimental by zstd's header, but has been in its shared libraries unchanged since 1.3.0; so has
 * ZSTD_compressionParameters, the struct that crosses the ABI. */
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>

#include "libclient/codec/zcontext.h"

struct contexts {
        ZSTD_CCtx *coder;
        ZSTD_DCtx *decoder;
};

static pthread_once_t once = PTHREAD_ONCE_INIT;
static pthread_key_t key;
static bool has_key;

/* The window is what is coded at once; a step of 128 KiB after what did not match leaves the search nothing to look at. */
static const ZSTD_compressionParameters params = {.windowLog = 16,
                                                  .chainLog = 6,
                                                  .hashLog = 12,
                                                  .searchLog = 1,
                                                  .minMatch = 7,
                                                  .targetLength = ZSTD_TARGETLENGTH_MAX,
                                                  .strategy = ZSTD_fast};

static void contexts_free(void *p)
{
        struct contexts *c = p;

        if (!c)
                return;
        ZSTD_freeCCtx(c->coder);
        ZSTD_freeDCtx(c->decoder);
        free(c);
}

static void make_key(void)
{
        has_key = !pthread_key_create(&key, contexts_free);
}

/* The library may be unloaded while threads that used it go on; theirs are lost then. */
__attribute__((destructor)) static void drop_key(void)
{
        if (!has_key)
                return;
        contexts_free(pthread_getspecific(key));
        pthread_key_delete(key);
        has_key = false;
}

static struct contexts *mine(void)
{
        struct contexts *c;

        pthread_once(&once, make_key);
        if (!has_key)
                return NULL;
        c = pthread_getspecific(key);
        if (!c) {
                c = calloc(1, sizeof(*c));
                if (c && pthread_setspecific(key, c)) {
                        free(c);
                        c = NULL;
                }
        }
        return c;
}

size_t zcontext_room(void)
{
        size_t c = ZSTD_estimateCCtxSize_usingCParams(params), d = ZSTD_estimateDCtxSize();

        return ((c > d ? c : d) + 63) & ~(size_t)63;
}

static bool set_up(ZSTD_CCtx *c)
{
        const struct {
                ZSTD_cParameter name;
                int value;
        } all[] = {
                {ZSTD_c_format, ZSTD_f_zstd1_magicless},
                {ZSTD_c_contentSizeFlag, 0},
                {ZSTD_c_dictIDFlag, 0},
                {ZSTD_c_windowLog, (int)params.windowLog},
                {ZSTD_c_hashLog, (int)params.hashLog},
                {ZSTD_c_chainLog, (int)params.chainLog},
                {ZSTD_c_searchLog, (int)params.searchLog},
                {ZSTD_c_strategy, (int)params.strategy},
                {ZSTD_c_literalCompressionMode, ZSTD_ps_enable},
        };

        for (size_t i = 0; i < sizeof(all) / sizeof(*all); i++)
                if (ZSTD_isError(ZSTD_CCtx_setParameter(c, all[i].name, all[i].value)))
                        return false;
        return true;
}

ZSTD_CCtx *zcontext_coder(void *room)
{
        struct contexts *own = mine();
        ZSTD_CCtx *c;

        if (own && own->coder)
                return own->coder;
        c = own ? ZSTD_createCCtx() : NULL;
        if (c && set_up(c))
                return own->coder = c;
        ZSTD_freeCCtx(c);
        c = ZSTD_initStaticCCtx(room, zcontext_room());
        return c && set_up(c) ? c : NULL;
}

void zcontext_search(ZSTD_CCtx *c, bool search)
{
        /* values within bounds: cannot fail */
        ZSTD_CCtx_setParameter(c, ZSTD_c_minMatch, search ? 5 : (int)params.minMatch);
        ZSTD_CCtx_setParameter(c, ZSTD_c_targetLength, search ? 1 : (int)params.targetLength);
}

ZSTD_DCtx *zcontext_decoder(void *room)
{
        struct contexts *own = mine();
        ZSTD_DCtx *d;

        if (own && own->decoder)
                return own->decoder;
        d = own ? ZSTD_createDCtx() : NULL;
        if (d && !ZSTD_isError(ZSTD_DCtx_setParameter(d, ZSTD_d_format, ZSTD_f_zstd1_magicless)))
                return own->decoder = d;
        ZSTD_freeDCtx(d);
        d = ZSTD_initStaticDCtx(room, zcontext_room());
        return d && !ZSTD_isError(ZSTD_DCtx_setParameter(d, ZSTD_d_format, ZSTD_f_zstd1_magicless)) ? d : NULL;
}
