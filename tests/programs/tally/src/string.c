#include "string.h"
#include "error.h"
#include <stdlib.h>
#include <string.h>

struct string {
    long count;
    size_t len;
    char text[];
};

static long alive;

static struct string *room(size_t len)
{
    struct string *string = malloc(sizeof *string + len + 1);
    if (string == NULL)
        fail(0, "out of memory for a string of %zu bytes", len);
    string->count = 1;
    string->len = len;
    string->text[len] = 0;
    alive++;
    return string;
}

struct string *string_new(const char *text, size_t len)
{
    struct string *string = room(len);
    memcpy(string->text, text, len);
    return string;
}

struct string *string_join(const struct string *a, const struct string *b)
{
    struct string *both = room(a->len + b->len);
    memcpy(both->text, a->text, a->len);
    memcpy(both->text + a->len, b->text, b->len);
    return both;
}

struct string *string_part(const struct string *whole, size_t from, size_t to)
{
    if (to > whole->len)
        to = whole->len;
    return from >= to ? string_new("", 0) : string_new(whole->text + from, to - from);
}

void string_keep(struct string *string)
{
    string->count++;
}

void string_drop(struct string *string)
{
    if (--string->count == 0) {
        alive--;
        free(string);
    }
}

size_t string_len(const struct string *string)
{
    return string->len;
}

const char *string_text(const struct string *string)
{
    return string->text;
}

int string_order(const struct string *a, const struct string *b)
{
    size_t len = a->len < b->len ? a->len : b->len;
    int order = memcmp(a->text, b->text, len);
    return order != 0 ? order : (a->len > b->len) - (a->len < b->len);
}

long strings_alive(void)
{
    return alive;
}
