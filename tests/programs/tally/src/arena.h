#ifndef ARENA_H
#define ARENA_H
#include <stddef.h>
/* Memory that lives as long as the program text. */
void *arena_new(size_t size);
char *arena_text(const char *from, size_t len);
size_t arena_used(void);
void arena_free(void);
#endif
