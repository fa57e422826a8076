#include "eval.h"
#include "builtin.h"
#include "error.h"
#include "format.h"
#include "list.h"
#include "string.h"
#include <string.h>

struct env program_env;
long calls_made;
static int returning, depth;

static struct value arithmetic(const char *operation, struct value a, struct value b, int line)
{
    char kind = operation[0];
    if (kind == '+' && (a.kind == STRING || b.kind == STRING)) {
        struct string *left = format_value(a), *right = format_value(b);
        struct value joined = value_string(string_join(left, right));
        string_drop(left);
        string_drop(right);
        return joined;
    }
    if (a.kind == INTEGER && b.kind == INTEGER) {
        uint64_t x = (uint64_t)a.integer, y = (uint64_t)b.integer;
        switch (kind) {
        case '+':
            return value_integer((int64_t)(x + y));
        case '-':
            return value_integer((int64_t)(x - y));
        case '*':
            return value_integer((int64_t)(x * y));
        default:
            if (b.integer == 0)
                fail(line, "division by zero");
            return value_integer(kind == '/' ? a.integer / b.integer : a.integer % b.integer);
        }
    }
    double x = value_number(a, line), y = value_number(b, line);
    switch (kind) {
    case '+':
        return value_real(x + y);
    case '-':
        return value_real(x - y);
    case '*':
        return value_real(x * y);
    case '/':
        return value_real(x / y);
    default:
        fail(line, "%% wants integers");
    }
}

static struct value binary(struct node *node, struct env *env)
{
    struct value a = evaluate(node->first, env), b = evaluate(node->second, env), result;
    const char *o = node->operation;
    if (strcmp(o, "==") == 0)
        result = value_boolean(value_equal(a, b));
    else if (strcmp(o, "!=") == 0)
        result = value_boolean(!value_equal(a, b));
    else if (o[0] == '<')
        result = value_boolean(value_order(a, b, node->line) < (o[1] == '='));
    else if (o[0] == '>')
        result = value_boolean(value_order(a, b, node->line) > -(o[1] == '='));
    else
        result = arithmetic(o, a, b, node->line);
    value_drop(a);
    value_drop(b);
    return result;
}

static struct value element(struct value whole, struct value at, int line)
{
    if (at.kind != INTEGER)
        fail(line, "an index is an integer, not a %s", value_kind(at));
    if (whole.kind == LIST) {
        struct value *found = at.integer < 0 ? NULL : list_at(whole.list, (size_t)at.integer);
        if (found == NULL)
            fail(line, "index %lld of %zu", (long long)at.integer, list_len(whole.list));
        return value_keep(*found);
    }
    if (whole.kind == STRING)
        return value_string(string_part(whole.string, (size_t)at.integer, (size_t)at.integer + 1));
    fail(line, "a %s has no elements", value_kind(whole));
}

struct value call(struct value callee, struct value *arguments, size_t count, int line)
{
    if (callee.kind != FUNCTION)
        fail(line, "a %s cannot be called", value_kind(callee));
    if (callee.function->count != count)
        fail(line, "%s takes %zu values, not %zu", callee.function->name, callee.function->count, count);
    if (++depth > 2000)
        fail(line, "calls are more than 2000 deep");
    calls_made++;
    struct env env = {.outer = &program_env};
    for (size_t i = 0; i < count; i++)
        env_put(&env, callee.function->parameters[i], value_keep(arguments[i]));
    struct value result = evaluate(callee.function->body, &env);
    returning = 0;
    depth--;
    table_clear(&env.names);
    return result;
}

static struct value call_node(struct node *node, struct env *env)
{
    struct value arguments[16], result;
    if (node->count > 16)
        fail(node->line, "more than 16 values");
    for (size_t i = 0; i < node->count; i++)
        arguments[i] = evaluate(node->rest[i], env);
    struct value *own = node->first->kind == VARIABLE ? env_find(env, node->first->name) : NULL;
    if (own == NULL && node->first->kind == VARIABLE) {
        result = builtin_call(node->first->name, arguments, node->count, node->line);
    } else {
        struct value callee = evaluate(node->first, env);
        result = call(callee, arguments, node->count, node->line);
        value_drop(callee);
    }
    for (size_t i = 0; i < node->count; i++)
        value_drop(arguments[i]);
    return result;
}

static struct value block(struct node *node, struct env *env)
{
    struct value last = value_nil();
    for (size_t i = 0; i < node->count && !returning; i++) {
        value_drop(last);
        last = evaluate(node->rest[i], env);
    }
    return last;
}

static struct value store(struct node *node, struct env *env)
{
    struct value whole = evaluate(node->second, env), at = evaluate(node->third, env);
    struct value *place = whole.kind == LIST && at.kind == INTEGER ? list_at(whole.list, (size_t)at.integer) : NULL;
    if (place == NULL)
        fail(node->line, "no such element");
    struct value value = evaluate(node->first, env);
    value_drop(*place);
    *place = value;
    value_drop(whole);
    return value_nil();
}

struct value evaluate(struct node *node, struct env *env)
{
    struct value value, *place;
    switch (node->kind) {
    case CONSTANT:
        return value_keep(node->value);
    case LAMBDA:
        return value_function(node->function);
    case VARIABLE:
        place = env_find(env, node->name);
        if (place == NULL)
            fail(node->line, "%s has no value", node->name);
        return value_keep(*place);
    case LET:
        env_put(env, node->name, evaluate(node->first, env));
        return value_nil();
    case ASSIGN:
        value = evaluate(node->first, env);
        place = env_find(env, node->name);
        if (place == NULL)
            fail(node->line, "%s has no value yet: use let", node->name);
        value_drop(*place);
        *place = value;
        return value_nil();
    case INDEX: {
        struct value whole = evaluate(node->first, env), at = evaluate(node->second, env);
        value = element(whole, at, node->line);
        value_drop(whole);
        value_drop(at);
        return value;
    }
    case STORE:
        return store(node, env);
    case CALL:
        return call_node(node, env);
    case BINARY:
        return binary(node, env);
    case UNARY:
        value = evaluate(node->first, env);
        if (node->operation[0] == '-')
            return arithmetic("-", value_integer(0), value, node->line);
        struct value negated = value_boolean(!value_true(value));
        value_drop(value);
        return negated;
    case AND:
    case OR:
        value = evaluate(node->first, env);
        if (value_true(value) == (node->kind == OR))
            return value;
        value_drop(value);
        return evaluate(node->second, env);
    case IF: {
        value = evaluate(node->first, env);
        int yes = value_true(value);
        value_drop(value);
        if (yes)
            return evaluate(node->second, env);
        return node->third == NULL ? value_nil() : evaluate(node->third, env);
    }
    case WHILE:
        for (;;) {
            value = evaluate(node->first, env);
            int yes = value_true(value);
            value_drop(value);
            if (!yes)
                return value_nil();
            value = evaluate(node->second, env);
            if (returning)
                return value;
            value_drop(value);
        }
    case BLOCK:
        return block(node, env);
    case RETURN:
        value = evaluate(node->first, env);
        returning = 1;
        return value;
    case LITERAL: {
        struct list *list = list_new();
        for (size_t i = 0; i < node->count; i++)
            list_push(list, evaluate(node->rest[i], env));
        return value_list(list);
    }
    }
    return value_nil();
}
