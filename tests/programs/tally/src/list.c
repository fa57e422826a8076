#include "list.h"
#include "error.h"
#include <stdlib.h>

struct list {
    long count;
    size_t len, room;
    struct value *values;
};

struct list *list_new(void)
{
    struct list *list = calloc(1, sizeof *list);
    if (list == NULL)
        fail(0, "out of memory for a list");
    list->count = 1;
    return list;
}

void list_keep(struct list *list)
{
    list->count++;
}

void list_drop(struct list *list)
{
    if (--list->count > 0)
        return;
    for (size_t i = 0; i < list->len; i++)
        value_drop(list->values[i]);
    free(list->values);
    free(list);
}

void list_push(struct list *list, struct value value)
{
    if (list->len == list->room) {
        size_t room = list->room == 0 ? 8 : list->room * 2;
        struct value *values = realloc(list->values, room * sizeof *values);
        if (values == NULL)
            fail(0, "out of memory for %zu values", room);
        list->values = values;
        list->room = room;
    }
    list->values[list->len++] = value;
}

size_t list_len(const struct list *list)
{
    return list->len;
}

struct value *list_at(struct list *list, size_t at)
{
    return at < list->len ? &list->values[at] : NULL;
}

/* A merge sort, for it keeps the order of equals. */
static void merge(struct value *values, struct value *spare, size_t len, int line)
{
    if (len < 2)
        return;
    size_t half = len / 2, a = 0, b = half;
    merge(values, spare, half, line);
    merge(values + half, spare, len - half, line);
    for (size_t i = 0; i < len; i++)
        spare[i] = b == len || (a < half && value_order(values[a], values[b], line) <= 0) ? values[a++] : values[b++];
    for (size_t i = 0; i < len; i++)
        values[i] = spare[i];
}

void list_sort(struct list *list, int line)
{
    struct value *spare = malloc((list->len + 1) * sizeof *spare);
    if (spare == NULL)
        fail(line, "out of memory to sort");
    merge(list->values, spare, list->len, line);
    free(spare);
}
