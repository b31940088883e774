/* JSON from messages, tables from JSON: see table.h. */
#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "libclient/ctl/format.h"
#include "libclient/ctl/table.h"

enum { MAX_COLUMNS = 16 };

json_t *json_clean(const char *s)
{
        char *clean = format_clean(s);
        json_t *value = clean ? json_string(clean) : NULL;

        free(clean);
        return value;
}

/* JSON's integers here are signed; a larger count keeps its size, if not its last digits. */
static json_t *number_json(uint64_t value)
{
        return value <= INT64_MAX ? json_integer((json_int_t)value) : json_real((double)value);
}

static json_t *bytes_json(const ProtobufCBinaryData *data)
{
        static const char digits[] = "0123456789abcdef";
        char *text = malloc(2 * data->len + 1);
        json_t *value;

        if (!text)
                return NULL;
        for (size_t i = 0; i < data->len; i++) {
                text[2 * i] = digits[data->data[i] >> 4];
                text[2 * i + 1] = digits[data->data[i] & 15];
        }
        value = json_stringn(text, 2 * data->len);
        free(text);
        return value;
}

/* WHY_NO_PARENT -> "no_parent"; a value that this program does not know stays a number. */
static json_t *enum_json(const ProtobufCEnumDescriptor *type, int number)
{
        const ProtobufCEnumValue *value = protobuf_c_enum_descriptor_get_value(type, number);
        const char *name = value ? strchr(value->name, '_') : NULL;
        char text[64];
        size_t i;

        if (!name)
                return json_integer(number);
        name++;
        for (i = 0; name[i] && i < sizeof text - 1; i++)
                text[i] = (char)tolower((unsigned char)name[i]);
        return json_stringn(text, i);
}

static size_t field_bytes(ProtobufCType type)
{
        switch (type) {
        case PROTOBUF_C_TYPE_UINT32:
        case PROTOBUF_C_TYPE_ENUM:
        case PROTOBUF_C_TYPE_FLOAT:
                return 4;
        case PROTOBUF_C_TYPE_BOOL:
                return sizeof(protobuf_c_boolean);
        case PROTOBUF_C_TYPE_STRING:
        case PROTOBUF_C_TYPE_MESSAGE:
                return sizeof(void *);
        case PROTOBUF_C_TYPE_BYTES:
                return sizeof(ProtobufCBinaryData);
        default:
                return 8;
        }
}

static json_t *field_json(const ProtobufCFieldDescriptor *field, const void *p)
{
        switch (field->type) {
        case PROTOBUF_C_TYPE_UINT32:
                return json_integer(*(const uint32_t *)p);
        case PROTOBUF_C_TYPE_UINT64:
                return number_json(*(const uint64_t *)p);
        case PROTOBUF_C_TYPE_FLOAT:
                return json_real((double)*(const float *)p);
        case PROTOBUF_C_TYPE_BOOL:
                return json_boolean(*(const protobuf_c_boolean *)p);
        case PROTOBUF_C_TYPE_STRING:
                return json_clean(*(char *const *)p);
        case PROTOBUF_C_TYPE_BYTES:
                return bytes_json(p);
        case PROTOBUF_C_TYPE_ENUM:
                return enum_json(field->descriptor, *(const int *)p);
        case PROTOBUF_C_TYPE_MESSAGE:
                return message_json(*(ProtobufCMessage *const *)p);
        default: /* a type that kvtier.proto does not use */
                return json_null();
        }
}

json_t *message_json(const ProtobufCMessage *message)
{
        const ProtobufCMessageDescriptor *type = message->descriptor;
        json_t *object = json_object();

        for (unsigned i = 0; object && i < type->n_fields; i++) {
                const ProtobufCFieldDescriptor *field = type->fields + i;
                const char *base = (const char *)message;
                json_t *value;
                int r = 0;

                if (field->label == PROTOBUF_C_LABEL_REPEATED) {
                        size_t n = *(const size_t *)(base + field->quantifier_offset);
                        const char *items = *(const char *const *)(base + field->offset);

                        value = json_array();
                        for (size_t j = 0; value && j < n && r == 0; j++)
                                r = json_array_append_new(value, field_json(field, items + j * field_bytes(field->type)));
                } else
                        value = field_json(field, base + field->offset);
                if (r || json_object_set_new(object, field->name, value)) {
                        if (r)
                                json_decref(value);
                        json_decref(object);
                        return NULL;
                }
        }
        return object;
}

/* The names of the tiers in a set of bits; one that this program does not know is its number. */
static json_t *tiers_json(unsigned tiers)
{
        static const char *const names[] = {"host", "nvme"};
        json_t *array = json_array();

        for (unsigned i = 0; array && tiers >> i; i++)
                if (tiers >> i & 1)
                        json_array_append_new(array, i < sizeof names / sizeof *names ? json_string(names[i]) : json_sprintf("%u", i));
        return array;
}

json_t *block_json(const struct kvt_block_entry *entry)
{
        static const uint8_t none[16];
        json_t *object = json_pack("{s:s, s:s, s:o, s:I, s:I, s:I, s:I, s:i, s:i, s:o}", "key", format_key(entry->key).text, "parent",
                                   memcmp(entry->parent, none, 16) ? format_key(entry->parent).text : "", "bytes",
                                   number_json(entry->bytes), "idle_sec", (json_int_t)entry->idle_sec, "age_sec",
                                   (json_int_t)entry->age_sec, "hits", (json_int_t)entry->hits, "n_children", (json_int_t)entry->n_children,
                                   "leases", entry->leases, "n_parts", entry->n_parts, "tiers", tiers_json(entry->tiers));

        return object;
}

void json_add_hit_ratio(json_t *object)
{
        double hits = json_number_value(json_object_get(object, "hits")), misses = json_number_value(json_object_get(object, "misses"));

        json_object_set_new(object, "hit_ratio", hits + misses > 0 ? json_real(hits / (hits + misses)) : json_null());
}

static bool ends_with(const char *s, const char *end)
{
        size_t n = strlen(s), m = strlen(end);

        return n >= m && strcmp(s + n - m, end) == 0;
}

/* Texts with a plus between them; "-" for none. */
char *json_join(const json_t *array)
{
        size_t i, n;
        json_t *item;
        char *text;
        FILE *f = json_array_size(array) ? open_memstream(&text, &n) : NULL;

        if (!json_array_size(array))
                return strdup("-");
        if (!f)
                return NULL;
        json_array_foreach(array, i, item) fprintf(f, "%s%s", i ? "+" : "", json_is_string(item) ? json_string_value(item) : "?");
        if (fclose(f)) {
                free(text);
                return NULL;
        }
        return text;
}

static char *cell_text(const char *field, const json_t *value)
{
        char *text = NULL;
        int r;

        if (json_is_string(value))
                return strdup(json_string_value(value));
        if (json_is_array(value))
                return json_join(value);
        if (!json_is_number(value))
                return strdup(json_is_true(value) ? "yes" : json_is_false(value) ? "no" : "-");
        if (ends_with(field, "bytes"))
                r = asprintf(&text, "%s", format_bytes((uint64_t)json_number_value(value)).text);
        else if (ends_with(field, "_usec"))
                r = asprintf(&text, "%s", format_duration((uint64_t)json_number_value(value)).text);
        else if (ends_with(field, "_sec"))
                r = asprintf(&text, "%s", format_age((uint64_t)json_number_value(value)).text);
        else if (ends_with(field, "_ratio"))
                r = asprintf(&text, "%s", format_percent(json_number_value(value), 1).text);
        else
                r = asprintf(&text, "%.0f", json_number_value(value));
        return r < 0 ? NULL : text;
}

static void pad(FILE *f, size_t n)
{
        while (n--)
                putc(' ', f);
}

int table_print(FILE *f, const struct column *columns, size_t n_columns, const json_t *rows, bool header, bool quiet)
{
        size_t n_rows = json_array_size(rows), width[MAX_COLUMNS];
        bool right[MAX_COLUMNS] = {false};
        char **cells;
        int r = 0;

        n_columns = quiet ? 1 : n_columns < MAX_COLUMNS ? n_columns : MAX_COLUMNS;
        cells = calloc(n_rows * n_columns + 1, sizeof *cells);
        if (!cells)
                return -ENOMEM;
        for (size_t c = 0; c < n_columns; c++) {
                width[c] = columns[c].width > strlen(columns[c].title) ? columns[c].width : strlen(columns[c].title);
                for (size_t i = 0; i < n_rows && r == 0; i++) {
                        const json_t *value = json_object_get(json_array_get(rows, i), columns[c].field);
                        char **cell = cells + i * n_columns + c;

                        *cell = cell_text(columns[c].field, value);
                        r = *cell ? 0 : -ENOMEM;
                        right[c] = right[c] || json_is_number(value);
                        width[c] = *cell && format_width(*cell) > width[c] ? format_width(*cell) : width[c];
                }
        }
        for (size_t i = 0; r == 0 && i < n_rows + 1; i++) { /* line 0: titles */
                bool bold = i == 0 && isatty(fileno(f)) && !getenv("NO_COLOR");

                if (i == 0 && (!header || quiet))
                        continue;
                fputs(bold ? "\033[1m" : "", f);
                for (size_t c = 0; c < n_columns; c++) {
                        const char *text = i ? cells[(i - 1) * n_columns + c] : columns[c].title;
                        size_t room = quiet ? 0 : width[c] - format_width(text);

                        pad(f, (c ? 2 : 0) + (right[c] ? room : 0));
                        fputs(text, f);
                        pad(f, right[c] || c + 1 == n_columns ? 0 : room);
                }
                fputs(bold ? "\033[0m\n" : "\n", f);
        }
        for (size_t i = 0; i < n_rows * n_columns; i++)
                free(cells[i]);
        free(cells);
        return r;
}
