/* The registry: index is the id. */
#include "libclient/codec/codec.h"

static const struct codec *const codecs[] = {
        [0] = &codec_raw,
};

const struct codec *codec_find(uint8_t id)
{
        return id < sizeof(codecs) / sizeof(*codecs) ? codecs[id] : NULL;
}
