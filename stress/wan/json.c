/* json.c - the JSON the control socket speaks: one flat object per line in, anything out. */
#include "json.h"

#include <ctype.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *skip_space(const char *at)
{
    while (isspace((unsigned char)*at))
        at++;
    return at;
}

/* After the string, or NULL. Escapes other than \" \\ and \/ are refused: names and paths need none. */
static const char *parse_string(const char *at, char *string_p, size_t bytes)
{
    size_t used = 0;
    if (*at++ != '"')
        return NULL;
    for (; *at != '"'; at++) {
        if (*at == '\\' && !strchr("\"\\/", *++at))
            return NULL;
        if ((unsigned char)*at < ' ' || used + 1 >= bytes)
            return NULL;
        string_p[used++] = *at;
    }
    string_p[used] = '\0';
    return at + 1;
}

static const char *parse_value(const char *at, struct json_field *field)
{
    static const struct {
        const char *word;
        double value;
    } words[] = {{"true", 1}, {"false", 0}, {"null", 0}};
    if (*at == '"') {
        field->is_string = true;
        return parse_string(at, field->string, sizeof field->string);
    }
    field->is_string = false;
    for (size_t i = 0; i < sizeof words / sizeof *words; i++) {
        field->number = words[i].value;
        if (strncmp(at, words[i].word, strlen(words[i].word)) == 0)
            return at + strlen(words[i].word);
    }
    if (*at != '-' && !isdigit((unsigned char)*at))
        return NULL;
    char *end;
    field->number = strtod(at, &end);
    return end;
}

static const char *parse_field(const char *at, struct json_field *field)
{
    at = parse_string(skip_space(at), field->name, sizeof field->name);
    if (!at || *(at = skip_space(at)) != ':')
        return NULL;
    at = parse_value(skip_space(at + 1), field);
    return at ? skip_space(at) : NULL;
}

bool json_parse(const char *line, struct json_object *object_p)
{
    object_p->count = 0;
    const char *at = skip_space(line);
    if (*at++ != '{')
        return false;
    at = skip_space(at);
    if (*at == '}')
        return *skip_space(at + 1) == '\0';
    for (;;) {
        if (object_p->count == JSON_FIELDS_MAX)
            return false;
        at = parse_field(at, &object_p->fields[object_p->count]);
        if (!at)
            return false;
        object_p->count++;
        if (*at == '}')
            return *skip_space(at + 1) == '\0';
        if (*at++ != ',')
            return false;
    }
}

static const struct json_field *find(const struct json_object *object, const char *name)
{
    for (unsigned i = 0; i < object->count; i++)
        if (strcmp(object->fields[i].name, name) == 0)
            return &object->fields[i];
    return NULL;
}

const char *json_string(const struct json_object *object, const char *name)
{
    const struct json_field *field = find(object, name);
    return field && field->is_string ? field->string : NULL;
}

const double *json_number(const struct json_object *object, const char *name)
{
    const struct json_field *field = find(object, name);
    return field && !field->is_string ? &field->number : NULL;
}

static bool text_reserve(struct text *text, size_t more)
{
    if (text->bytes + more <= text->capacity)
        return true;
    size_t capacity = (text->bytes + more) * 2;
    char *data = realloc(text->data, capacity);
    if (!data)
        return false;
    text->data = data;
    text->capacity = capacity;
    return true;
}

void text_add(struct text *text, const char *format, ...)
{
    va_list arguments, again;
    va_start(arguments, format);
    va_copy(again, arguments);
    int needed = vsnprintf(NULL, 0, format, arguments);
    va_end(arguments);
    if (needed < 0 || text->failed || !text_reserve(text, (size_t)needed + 1))
        text->failed = true;
    else
        text->bytes += (size_t)vsnprintf(text->data + text->bytes, (size_t)needed + 1, format, again);
    va_end(again);
}

void text_free(struct text *text)
{
    free(text->data);
    *text = (struct text){0};
}
