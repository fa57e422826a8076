#ifndef EVAL_H
#define EVAL_H
#include "ast.h"
#include "env.h"
struct value evaluate(struct node *node, struct env *env);
struct value call(struct value callee, struct value *arguments, size_t count, int line);
extern struct env program_env;
extern long calls_made;
#endif
