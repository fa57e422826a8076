#include "check.h"
#include "builtin.h"
#include "error.h"
#include "table.h"

static struct table known;

static void visit(struct node *node, void (*action)(struct node *))
{
    if (node == NULL)
        return;
    action(node);
    visit(node->first, action);
    visit(node->second, action);
    visit(node->third, action);
    for (size_t i = 0; i < node->count; i++)
        visit(node->rest[i], action);
    if (node->function != NULL)
        visit(node->function->body, action);
}

static void collect(struct node *node)
{
    if (node->kind == LET)
        table_put(&known, node->name, value_nil());
    if (node->kind == LAMBDA)
        for (size_t i = 0; i < node->function->count; i++)
            table_put(&known, node->function->parameters[i], value_nil());
}

static void look(struct node *node)
{
    if (node->kind == VARIABLE && table_find(&known, node->name) == NULL && !builtin_known(node->name))
        fail(node->line, "%s is set nowhere", node->name);
}

void check(struct node *program)
{
    visit(program, collect);
    visit(program, look);
    table_clear(&known);
}
