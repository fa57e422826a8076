#include "format.h"
#include "ast.h"
#include "list.h"
#include "string.h"
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

static struct string *append(struct string *left, struct string *right)
{
    struct string *both = string_join(left, right);
    string_drop(left);
    string_drop(right);
    return both;
}

struct string *format_value(struct value value)
{
    char text[64] = "";
    switch (value.kind) {
    case NIL:
        strcpy(text, "nil");
        break;
    case BOOLEAN:
        strcpy(text, value.boolean ? "true" : "false");
        break;
    case INTEGER:
        snprintf(text, sizeof text, "%" PRId64, value.integer);
        break;
    case REAL:
        snprintf(text, sizeof text, "%.12g", value.real);
        if (strpbrk(text, ".en") == NULL)
            strcat(text, ".0");
        break;
    case STRING:
        string_keep(value.string);
        return value.string;
    case LIST: {
        struct string *all = string_new("[", 1);
        for (size_t i = 0; i < list_len(value.list); i++) {
            if (i > 0)
                all = append(all, string_new(", ", 2));
            all = append(all, format_value(*list_at(value.list, i)));
        }
        return append(all, string_new("]", 1));
    }
    case FUNCTION:
        snprintf(text, sizeof text, "function %.40s", value.function->name);
        break;
    }
    return string_new(text, strlen(text));
}
