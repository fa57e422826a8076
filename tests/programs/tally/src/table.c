#include "table.h"
#include "crc.h"
#include "error.h"
#include <stdlib.h>
#include <string.h>

static struct entry *place(struct entry *entries, size_t room, const char *key)
{
    size_t at = crc32_of(0, key, strlen(key)) & (room - 1);
    while (entries[at].key != NULL && strcmp(entries[at].key, key) != 0)
        at = (at + 1) & (room - 1);
    return &entries[at];
}

struct value *table_find(const struct table *table, const char *key)
{
    if (table->room == 0)
        return NULL;
    struct entry *entry = place(table->entries, table->room, key);
    return entry->key == NULL ? NULL : &entry->value;
}

static void grow(struct table *table)
{
    size_t room = table->room == 0 ? 8 : table->room * 2;
    struct entry *entries = calloc(room, sizeof *entries);
    if (entries == NULL)
        fail(0, "out of memory for %zu names", room);
    for (size_t i = 0; i < table->room; i++)
        if (table->entries[i].key != NULL)
            *place(entries, room, table->entries[i].key) = table->entries[i];
    free(table->entries);
    table->entries = entries;
    table->room = room;
}

void table_put(struct table *table, const char *key, struct value value)
{
    if (table->len * 4 >= table->room * 3)
        grow(table);
    struct entry *entry = place(table->entries, table->room, key);
    if (entry->key == NULL) {
        entry->key = key;
        table->len++;
    } else {
        value_drop(entry->value);
    }
    entry->value = value;
}

void table_clear(struct table *table)
{
    for (size_t i = 0; i < table->room; i++)
        if (table->entries[i].key != NULL)
            value_drop(table->entries[i].value);
    free(table->entries);
    *table = (struct table){0};
}
