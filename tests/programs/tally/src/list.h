#ifndef LIST_H
#define LIST_H
#include "value.h"
/* A growing list with a reference count. It owns its values. */
struct list *list_new(void);
void list_keep(struct list *list);
void list_drop(struct list *list);
void list_push(struct list *list, struct value value);
size_t list_len(const struct list *list);
struct value *list_at(struct list *list, size_t at);
void list_sort(struct list *list, int line);
#endif
