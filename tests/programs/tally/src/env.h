#ifndef ENV_H
#define ENV_H
#include "table.h"
/* Names in scope: those of the running function, then those of the program. */
struct env {
    struct table names;
    struct env *outer;
};
struct value *env_find(struct env *env, const char *name);
void env_put(struct env *env, const char *name, struct value value);
#endif
