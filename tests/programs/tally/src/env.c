#include "env.h"

struct value *env_find(struct env *env, const char *name)
{
    for (; env != NULL; env = env->outer) {
        struct value *found = table_find(&env->names, name);
        if (found != NULL)
            return found;
    }
    return NULL;
}

void env_put(struct env *env, const char *name, struct value value)
{
    table_put(&env->names, name, value);
}
