#include "value.h"
#include "error.h"
#include "list.h"
#include "string.h"

struct value value_nil(void) { return (struct value){.kind = NIL}; }
struct value value_boolean(bool boolean) { return (struct value){.kind = BOOLEAN, .boolean = boolean}; }
struct value value_integer(int64_t integer) { return (struct value){.kind = INTEGER, .integer = integer}; }
struct value value_real(double real) { return (struct value){.kind = REAL, .real = real}; }
struct value value_string(struct string *string) { return (struct value){.kind = STRING, .string = string}; }
struct value value_list(struct list *list) { return (struct value){.kind = LIST, .list = list}; }

struct value value_function(const struct function *function)
{
    return (struct value){.kind = FUNCTION, .function = function};
}

struct value value_keep(struct value value)
{
    if (value.kind == STRING)
        string_keep(value.string);
    else if (value.kind == LIST)
        list_keep(value.list);
    return value;
}

void value_drop(struct value value)
{
    if (value.kind == STRING)
        string_drop(value.string);
    else if (value.kind == LIST)
        list_drop(value.list);
}

bool value_true(struct value value)
{
    switch (value.kind) {
    case NIL:
        return false;
    case BOOLEAN:
        return value.boolean;
    case INTEGER:
        return value.integer != 0;
    case REAL:
        return value.real != 0;
    case STRING:
        return string_len(value.string) > 0;
    case LIST:
        return list_len(value.list) > 0;
    default:
        return true;
    }
}

static bool numeric(struct value value)
{
    return value.kind == INTEGER || value.kind == REAL;
}

double value_number(struct value value, int line)
{
    if (!numeric(value))
        fail(line, "a number is wanted, not a %s", value_kind(value));
    return value.kind == INTEGER ? (double)value.integer : value.real;
}

bool value_equal(struct value a, struct value b)
{
    if (numeric(a) && numeric(b))
        return a.kind == INTEGER && b.kind == INTEGER ? a.integer == b.integer : value_number(a, 0) == value_number(b, 0);
    if (a.kind != b.kind)
        return false;
    switch (a.kind) {
    case NIL:
        return true;
    case BOOLEAN:
        return a.boolean == b.boolean;
    case STRING:
        return string_order(a.string, b.string) == 0;
    case LIST:
        if (list_len(a.list) != list_len(b.list))
            return false;
        for (size_t i = 0; i < list_len(a.list); i++)
            if (!value_equal(*list_at(a.list, i), *list_at(b.list, i)))
                return false;
        return true;
    default:
        return a.function == b.function;
    }
}

int value_order(struct value a, struct value b, int line)
{
    if (a.kind == STRING && b.kind == STRING)
        return string_order(a.string, b.string);
    if (a.kind == INTEGER && b.kind == INTEGER)
        return a.integer < b.integer ? -1 : a.integer > b.integer;
    double x = value_number(a, line), y = value_number(b, line);
    return x < y ? -1 : x > y;
}

const char *value_kind(struct value value)
{
    static const char *const names[] = {"nil", "boolean", "integer", "real", "string", "list", "function"};
    return names[value.kind];
}
