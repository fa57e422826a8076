#include "builtin.h"
#include "crc.h"
#include "error.h"
#include "eval.h"
#include "format.h"
#include "list.h"
#include "string.h"
#include <stdio.h>
#include <string.h>

static struct list *as_list(struct value value, int line)
{
    if (value.kind != LIST)
        fail(line, "a list is wanted, not a %s", value_kind(value));
    return value.list;
}

static struct value print(struct value *arguments, size_t count, int line)
{
    (void)line;
    for (size_t i = 0; i < count; i++) {
        struct string *text = format_value(arguments[i]);
        fwrite(string_text(text), 1, string_len(text), stdout);
        string_drop(text);
    }
    putchar('\n');
    return value_nil();
}

static struct value len(struct value *arguments, size_t count, int line)
{
    (void)count;
    if (arguments[0].kind == STRING)
        return value_integer((int64_t)string_len(arguments[0].string));
    return value_integer((int64_t)list_len(as_list(arguments[0], line)));
}

static struct value push(struct value *arguments, size_t count, int line)
{
    (void)count;
    list_push(as_list(arguments[0], line), value_keep(arguments[1]));
    return value_keep(arguments[0]);
}

static struct value map(struct value *arguments, size_t count, int line)
{
    struct list *from = as_list(arguments[0], line), *to = list_new();
    (void)count;
    for (size_t i = 0; i < list_len(from); i++)
        list_push(to, call(arguments[1], list_at(from, i), 1, line));
    return value_list(to);
}

static struct value sort(struct value *arguments, size_t count, int line)
{
    struct list *from = as_list(arguments[0], line), *to = list_new();
    (void)count;
    for (size_t i = 0; i < list_len(from); i++)
        list_push(to, value_keep(*list_at(from, i)));
    list_sort(to, line);
    return value_list(to);
}

static struct value crc(struct value *arguments, size_t count, int line)
{
    struct string *text = format_value(arguments[0]);
    uint32_t sum = crc32_of(0, string_text(text), string_len(text));
    (void)count, (void)line;
    string_drop(text);
    return value_integer(sum);
}

static struct value text(struct value *arguments, size_t count, int line)
{
    (void)count, (void)line;
    return value_string(format_value(arguments[0]));
}

static struct value kind(struct value *arguments, size_t count, int line)
{
    const char *name = value_kind(arguments[0]);
    (void)count, (void)line;
    return value_string(string_new(name, strlen(name)));
}

/* `count` is -1 where any number of values will do. */
static const struct builtin {
    const char *name;
    int count;
    struct value (*run)(struct value *arguments, size_t count, int line);
} builtins[] = {{"crc", 1, crc},     {"kind", 1, kind}, {"len", 1, len},   {"map", 2, map},
                {"print", -1, print}, {"push", 2, push}, {"sort", 1, sort}, {"text", 1, text}};

static const struct builtin *find(const char *name)
{
    for (size_t i = 0; i < sizeof builtins / sizeof *builtins; i++)
        if (strcmp(builtins[i].name, name) == 0)
            return &builtins[i];
    return NULL;
}

int builtin_known(const char *name)
{
    return find(name) != NULL;
}

struct value builtin_call(const char *name, struct value *arguments, size_t count, int line)
{
    const struct builtin *builtin = find(name);
    if (builtin == NULL)
        fail(line, "there is no function %s", name);
    if (builtin->count >= 0 && (size_t)builtin->count != count)
        fail(line, "%s takes %d values, not %zu", name, builtin->count, count);
    return builtin->run(arguments, count, line);
}
