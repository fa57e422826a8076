#ifndef CHECK_H
#define CHECK_H
#include "ast.h"
/* Finds names that can never have a value, before the program runs. */
void check(struct node *program);
#endif
