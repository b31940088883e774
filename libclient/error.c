/* Names and texts of results, from proto/errors.def. Pure; any thread. */
#include <string.h>

#include "include/kvtier.h"

const char *kvt_strerror(int r)
{
        const char *text;

        switch (r) {
        case 0:
                return "no error";
#define ERROR(code, name, text)                                                                                                            \
        case code:                                                                                                                         \
                return text;
#include "proto/errors.def"
#undef ERROR
        }
        text = r < 0 && r >= -4095 ? strerrordesc_np(-r) : NULL;
        return text ? text : "unknown error";
}

const char *kvt_error_name(int r)
{
        const char *name;

        switch (r) {
        case 0:
                return "OK";
#define ERROR(code, name, text)                                                                                                            \
        case code:                                                                                                                         \
                return "KVT_E_" #name;
#include "proto/errors.def"
#undef ERROR
        }
        name = r < 0 && r >= -4095 ? strerrorname_np(-r) : NULL;
        return name ? name : "UNKNOWN";
}

const char *kvt_version(void)
{
        return KVT_RELEASE;
}
