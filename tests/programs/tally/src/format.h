#ifndef FORMAT_H
#define FORMAT_H
#include "value.h"
struct string *format_value(struct value value);
#endif
