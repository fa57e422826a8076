#ifndef AST_H
#define AST_H
#include "value.h"

enum node_kind { CONSTANT, VARIABLE, LET, ASSIGN, INDEX, STORE, CALL, BINARY, UNARY, AND, OR, IF, WHILE, BLOCK, RETURN, LAMBDA, LITERAL };

/* One node of the tree; what `first` to `third` and `rest` mean depends on the kind. */
struct node {
    enum node_kind kind;
    int line;
    const char *name;
    char operation[3];
    struct value value;
    struct node *first, *second, *third;
    struct node **rest;
    size_t count;
    struct function *function;
};

struct function {
    const char *name;
    const char **parameters;
    size_t count;
    struct node *body;
};

struct node *node_new(enum node_kind kind, int line);
void node_add(struct node *node, struct node *child);
size_t node_count(const struct node *node);
#endif
