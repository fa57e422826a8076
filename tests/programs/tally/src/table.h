#ifndef TABLE_H
#define TABLE_H
#include "value.h"
/* Values by name; open addressing, keys are not copied. */
struct table {
    size_t len, room;
    struct entry {
        const char *key;
        struct value value;
    } *entries;
};
struct value *table_find(const struct table *table, const char *key);
void table_put(struct table *table, const char *key, struct value value);
void table_clear(struct table *table);
#endif
