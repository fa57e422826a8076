#include "ast.h"
#include "arena.h"
#include <string.h>

struct node *node_new(enum node_kind kind, int line)
{
    struct node *node = arena_new(sizeof *node);
    node->kind = kind;
    node->line = line;
    return node;
}

/* The list doubles at powers of two; the arena keeps the old one. */
void node_add(struct node *node, struct node *child)
{
    if ((node->count & (node->count - 1)) == 0) {
        struct node **more = arena_new((node->count == 0 ? 1 : node->count * 2) * sizeof *more);
        if (node->count > 0)
            memcpy(more, node->rest, node->count * sizeof *more);
        node->rest = more;
    }
    node->rest[node->count++] = child;
}

size_t node_count(const struct node *node)
{
    if (node == NULL)
        return 0;
    size_t count = 1 + node_count(node->first) + node_count(node->second) + node_count(node->third);
    for (size_t i = 0; i < node->count; i++)
        count += node_count(node->rest[i]);
    return node->function == NULL ? count : count + node_count(node->function->body);
}
