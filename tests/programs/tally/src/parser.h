#ifndef PARSER_H
#define PARSER_H
#include "ast.h"
struct node *parse(const char *source);
#endif
