#include "parser.h"
#include "arena.h"
#include "error.h"
#include "lexer.h"
#include "string.h"
#include <string.h>

static struct lexer lexer;

static struct node *expression(int strength);
static struct node *block(const char *end, const char *other);

static int accept(const char *text)
{
    if (!lexer_is(&lexer, text))
        return 0;
    lexer_next(&lexer);
    return 1;
}

static void expect(const char *text)
{
    if (!accept(text))
        fail(lexer.token.line, "'%s' is wanted before '%s'", text, lexer.token.text);
}

static const char *name(void)
{
    const char *text = lexer.token.text;
    if (lexer.token.kind != NAME)
        fail(lexer.token.line, "a name is wanted, not '%s'", text);
    lexer_next(&lexer);
    return text;
}

static struct node *function(int line, const char *own_name)
{
    struct node *node = node_new(LAMBDA, line);
    struct function *made = arena_new(sizeof *made);
    const char *names[16];
    expect("(");
    while (!accept(")")) {
        if (made->count == 16)
            fail(line, "more than 16 parameters");
        names[made->count++] = name();
        if (!lexer_is(&lexer, ")"))
            expect(",");
    }
    made->parameters = arena_new((made->count + 1) * sizeof *names);
    memcpy(made->parameters, names, made->count * sizeof *names);
    made->name = own_name;
    made->body = block("end", NULL);
    expect("end");
    node->function = made;
    return node;
}

static struct node *constant(struct value value)
{
    struct node *node = node_new(CONSTANT, lexer.token.line);
    node->value = value;
    lexer_next(&lexer);
    return node;
}

static struct node *primary(void)
{
    int line = lexer.token.line;
    struct node *node;
    switch (lexer.token.kind) {
    case WHOLE:
        return constant(value_integer(lexer.token.integer));
    case FRACTION:
        return constant(value_real(lexer.token.real));
    case TEXT:
        return constant(value_string(string_new(lexer.token.text, lexer.token.len)));
    case NAME:
        node = node_new(VARIABLE, line);
        node->name = name();
        return node;
    default:
        break;
    }
    if (lexer_is(&lexer, "true") || lexer_is(&lexer, "false"))
        return constant(value_boolean(lexer_is(&lexer, "true")));
    if (lexer_is(&lexer, "nil"))
        return constant(value_nil());
    if (accept("function"))
        return function(line, "nameless");
    if (accept("(")) {
        node = expression(0);
        expect(")");
        return node;
    }
    if (accept("[")) {
        node = node_new(LITERAL, line);
        while (!accept("]")) {
            node_add(node, expression(0));
            if (!lexer_is(&lexer, "]"))
                expect(",");
        }
        return node;
    }
    if (lexer_is(&lexer, "not") || lexer_is(&lexer, "-")) {
        node = node_new(UNARY, line);
        strcpy(node->operation, accept("not") ? "!" : (lexer_next(&lexer), "-"));
        node->first = expression(6);
        return node;
    }
    fail(line, "'%s' begins no expression", lexer.token.text);
}

static struct node *postfix(void)
{
    struct node *node = primary();
    for (;;) {
        int line = lexer.token.line;
        struct node *outer;
        if (accept("(")) {
            outer = node_new(CALL, line);
            while (!accept(")")) {
                node_add(outer, expression(0));
                if (!lexer_is(&lexer, ")"))
                    expect(",");
            }
        } else if (accept("[")) {
            outer = node_new(INDEX, line);
            outer->second = expression(0);
            expect("]");
        } else {
            return node;
        }
        outer->first = node;
        node = outer;
    }
}

static int strength_of(const char **operation)
{
    static const struct {
        const char *text;
        int strength;
    } table[] = {{"or", 1}, {"and", 2}, {"==", 3}, {"!=", 3}, {"<", 3}, {">", 3},
                 {"<=", 3}, {">=", 3},  {"+", 4},  {"-", 4},  {"*", 5}, {"/", 5}, {"%", 5}};
    for (size_t i = 0; i < sizeof table / sizeof *table; i++)
        if (lexer_is(&lexer, table[i].text)) {
            *operation = table[i].text;
            return table[i].strength;
        }
    return 0;
}

static struct node *expression(int strength)
{
    struct node *left = postfix();
    for (;;) {
        const char *operation = "";
        int line = lexer.token.line, found = strength_of(&operation);
        if (found == 0 || found <= strength)
            return left;
        lexer_next(&lexer);
        struct node *node = node_new(found == 1 ? OR : found == 2 ? AND : BINARY, line);
        if (found > 2)
            strcpy(node->operation, operation);
        node->first = left;
        node->second = expression(found);
        left = node;
    }
}

static struct node *statement(void)
{
    int line = lexer.token.line;
    struct node *node;
    if (accept("let")) {
        node = node_new(LET, line);
        node->name = name();
        expect("=");
        node->first = expression(0);
        return node;
    }
    if (accept("function")) {
        node = node_new(LET, line);
        node->name = name();
        node->first = function(line, node->name);
        return node;
    }
    if (accept("return")) {
        node = node_new(RETURN, line);
        node->first = expression(0);
        return node;
    }
    if (accept("while")) {
        node = node_new(WHILE, line);
        node->first = expression(0);
        expect("do");
        node->second = block("end", NULL);
        expect("end");
        return node;
    }
    if (accept("if")) {
        node = node_new(IF, line);
        node->first = expression(0);
        expect("then");
        node->second = block("end", "else");
        if (accept("else"))
            node->third = block("end", NULL);
        expect("end");
        return node;
    }
    node = expression(0);
    if (!accept("="))
        return node;
    if (node->kind != VARIABLE && node->kind != INDEX)
        fail(line, "only a name or an element can be given a value");
    struct node *target = node;
    node = node_new(target->kind == VARIABLE ? ASSIGN : STORE, line);
    node->name = target->name;
    node->first = expression(0);
    node->second = target->first;
    node->third = target->second;
    return node;
}

static struct node *block(const char *end, const char *other)
{
    struct node *node = node_new(BLOCK, lexer.token.line);
    while (lexer.token.kind != END && !(end != NULL && lexer_is(&lexer, end)) && !(other != NULL && lexer_is(&lexer, other)))
        node_add(node, statement());
    return node;
}

struct node *parse(const char *source)
{
    lexer_start(&lexer, source);
    struct node *program = block(NULL, NULL);
    if (lexer.token.kind != END)
        fail(lexer.token.line, "'%s' was not expected", lexer.token.text);
    return program;
}
