#ifndef VALUE_H
#define VALUE_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct list;
struct string;
struct function;

enum kind { NIL, BOOLEAN, INTEGER, REAL, STRING, LIST, FUNCTION };

/* A value; strings and lists are counted, the others copied. */
struct value {
    enum kind kind;
    union {
        bool boolean;
        int64_t integer;
        double real;
        struct string *string;
        struct list *list;
        const struct function *function;
    };
};

struct value value_nil(void);
struct value value_boolean(bool boolean);
struct value value_integer(int64_t integer);
struct value value_real(double real);
struct value value_string(struct string *string);
struct value value_list(struct list *list);
struct value value_function(const struct function *function);
struct value value_keep(struct value value);
void value_drop(struct value value);
bool value_true(struct value value);
bool value_equal(struct value a, struct value b);
int value_order(struct value a, struct value b, int line);
double value_number(struct value value, int line);
const char *value_kind(struct value value);
#endif
