/* json.h - the JSON the control socket speaks: one flat object per line in, anything out. */
#ifndef WAN_JSON_H
#define WAN_JSON_H

#include <stdbool.h>
#include <stddef.h>

enum { JSON_FIELDS_MAX = 16, JSON_STRING_BYTES = 128 };

struct json_field {
    char name[32];
    bool is_string;
    char string[JSON_STRING_BYTES];
    double number; /* true is 1, false and null are 0 */
};

struct json_object {
    struct json_field fields[JSON_FIELDS_MAX];
    unsigned count;
};

/* False unless the line is one object whose values are strings, numbers, booleans or null. */
bool json_parse(const char *line, struct json_object *object_p);
const char *json_string(const struct json_object *object, const char *name); /* NULL: not there */
const double *json_number(const struct json_object *object, const char *name);

/* Text that grows. `failed` once memory was short; then nothing more is added. */
struct text {
    char *data;
    size_t bytes, capacity;
    bool failed;
};

__attribute__((format(printf, 2, 3))) void text_add(struct text *text, const char *format, ...);
void text_free(struct text *text);

#endif
