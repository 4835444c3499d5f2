/* Finds one value in a JSON text, in place and without a tree: the config drive's files are small and well formed. */
#include <string.h>

#include "guest.h"

static const char *skip_space(const char *at)
{
    return at + strspn(at, " \t\r\n,:");
}

/* The first character behind the value that starts at `at`. */
static const char *skip_value(const char *at)
{
    int depth = 0;
    do {
        if (*at == '"') {
            for (at++; *at && *at != '"'; at++)
                if (*at == '\\' && at[1])
                    at++;
            at += *at == '"';
        } else if (*at == '{' || *at == '[') {
            depth++;
            at++;
        } else if (*at == '}' || *at == ']') {
            depth--;
            at++;
        } else {
            at += strcspn(at, "\"{}[], \t\r\n:");
        }
        if (depth > 0)
            at = skip_space(at);
    } while (*at && depth > 0);
    return at;
}

const char *json_get(const char *object, const char *key)
{
    size_t length = strlen(key);
    if (!object || *(object = skip_space(object)) != '{')
        return NULL;
    for (const char *at = skip_space(object + 1); *at == '"';) {
        int found = !strncmp(at + 1, key, length) && at[1 + length] == '"';
        at = skip_space(skip_value(at));
        if (found)
            return at;
        at = skip_space(skip_value(at));
    }
    return NULL;
}

const char *json_at(const char *array, int index)
{
    if (!array || *(array = skip_space(array)) != '[')
        return NULL;
    for (const char *at = skip_space(array + 1); *at && *at != ']'; at = skip_space(skip_value(at)))
        if (!index--)
            return at;
    return NULL;
}

/* Copies a string without its quotes, or a number as it stands; 0 if there is none, or it is null. */
size_t json_text(const char *value, char *into, size_t size)
{
    if (!value || !strncmp(value, "null", 4))
        return 0;
    int quoted = *value == '"';
    value += quoted;
    size_t length = strcspn(value, quoted ? "\"" : ",]} \t\r\n");
    if (length >= size)
        length = size - 1;
    memcpy(into, value, length);
    into[length] = 0;
    return length;
}
