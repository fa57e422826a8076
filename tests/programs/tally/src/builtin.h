#ifndef BUILTIN_H
#define BUILTIN_H
#include "value.h"
struct value builtin_call(const char *name, struct value *arguments, size_t count, int line);
int builtin_known(const char *name);
#endif
