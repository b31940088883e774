/* Answers as JSON, and tables drawn from them.
 *
 * message_json() turns any message of kvtier.proto into an object by reflection: a field's JSON name is its name there. A table's column
 * names such a field, and how to print it follows from the unit in the name (_bytes, _usec, _sec, _ratio). */
#pragma once

#include <stdbool.h>
#include <stdio.h>

#include <jansson.h>

#include "proto/messages.h"
#include "proto/shm.h"

/* Bytes become hexadecimal text, enums their value's name in lower case without the enum's prefix. NULL: out of memory. */
json_t *message_json(const ProtobufCMessage *message);
json_t *block_json(const struct kvt_block_entry *entry);
/* Adds "hit_ratio" (null when nothing was asked) to an object with hits and misses. */
void json_add_hit_ratio(json_t *object);
/* A JSON string of foreign text. */
json_t *json_clean(const char *s);

/* An array of texts as one: host+nvme. NULL: out of memory. */
char *json_join(const json_t *array);

struct column {
        const char *title;
        const char *field;
        size_t width; /* at least; for tables drawn page by page */
};

/* Draws rows (an array of objects). Numbers are right-aligned, text is left-aligned; columns are as wide as they need to be, the
 * same for all rows of one call. quiet: only the first column, without its title. Returns 0 or -ENOMEM. */
int table_print(FILE *f, const struct column *columns, size_t n_columns, const json_t *rows, bool header, bool quiet);
