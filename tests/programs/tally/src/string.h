#ifndef TALLY_STRING_H
#define TALLY_STRING_H
#include <stddef.h>
/* Immutable text with a reference count. */
struct string;
struct string *string_new(const char *text, size_t len);
struct string *string_join(const struct string *a, const struct string *b);
struct string *string_part(const struct string *whole, size_t from, size_t to);
void string_keep(struct string *string);
void string_drop(struct string *string);
size_t string_len(const struct string *string);
const char *string_text(const struct string *string);
int string_order(const struct string *a, const struct string *b);
long strings_alive(void);
#endif
