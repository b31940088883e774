/* The part of the configuration that is about codecs. See conf.h. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "daemon/util/assert.h"
#include "daemon/util/conf.h"

static const char *default_rung(const struct conf *c, unsigned i)
{
        return i == LADDER_HOT ? c->p.codec_hot : i == LADDER_COLD ? c->p.codec_cold : c->p.codec_nvme;
}

int conf_check_ladders(const struct conf *c, char *ret_why, size_t n)
{
        struct ladder ladder;
        const char *why;

        for (unsigned i = 0; i < LADDER_N; i++)
                if (ladder_set(&ladder, i, default_rung(c, i), &why) != 0) {
                        snprintf(ret_why, n, "codec_%s: '%s': %s", ladder_rung_name(i), default_rung(c, i), why);
                        return -EINVAL;
                }
        return 0;
}

void conf_ladder(const struct conf *c, const char *space, struct ladder *ret)
{
        const char *why;

        for (unsigned i = 0; i < LADDER_N; i++) {
                const char *text = (c ? default_rung(c, i) : NULL) ?: "raw";

                for (size_t k = 0; c && k < c->n_spaces; k++)
                        if (!strcmp(c->spaces[k].name, space) && c->spaces[k].rungs[i])
                                text = c->spaces[k].rungs[i];
                ASSERT(ladder_set(ret, i, text, &why) == 0); /* checked when it was read */
        }
}

void conf_spaces_free(struct conf *c)
{
        for (size_t i = 0; i < c->n_spaces; i++) {
                free(c->spaces[i].name);
                for (unsigned k = 0; k < LADDER_N; k++)
                        free(c->spaces[i].rungs[k]);
        }
        free(c->spaces);
        c->spaces = NULL;
        c->n_spaces = 0;
}
