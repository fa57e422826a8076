#include "lexer.h"
#include "arena.h"
#include "error.h"
#include <ctype.h>
#include <stdlib.h>
#include <string.h>

static const char *const words[] = {"and", "do", "else", "end", "false", "function", "if", "let",
                                    "nil", "not", "or", "return", "then", "true", "while"};

static void space(struct lexer *lexer)
{
    for (;; lexer->at++) {
        if (*lexer->at == '#')
            while (lexer->at[1] != 0 && lexer->at[1] != '\n')
                lexer->at++;
        else if (*lexer->at == '\n')
            lexer->line++;
        else if (!isspace((unsigned char)*lexer->at))
            return;
    }
}

static void text(struct lexer *lexer)
{
    const char *from = ++lexer->at;
    while (*lexer->at != '"') {
        if (*lexer->at == 0 || *lexer->at == '\n')
            fail(lexer->line, "a string does not end");
        lexer->at++;
    }
    lexer->token.kind = TEXT;
    lexer->token.text = arena_text(from, (size_t)(lexer->at - from));
    lexer->token.len = (size_t)(lexer->at++ - from);
}

static void number(struct lexer *lexer)
{
    char *end;
    lexer->token.integer = strtoll(lexer->at, &end, 10);
    lexer->token.kind = WHOLE;
    if (*end == '.' && isdigit((unsigned char)end[1])) {
        lexer->token.real = strtod(lexer->at, &end);
        lexer->token.kind = FRACTION;
    }
    lexer->at = end;
}

static void name(struct lexer *lexer)
{
    const char *from = lexer->at;
    while (isalnum((unsigned char)*lexer->at) || *lexer->at == '_')
        lexer->at++;
    lexer->token.kind = NAME;
    lexer->token.len = (size_t)(lexer->at - from);
    lexer->token.text = arena_text(from, lexer->token.len);
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        if (strcmp(words[i], lexer->token.text) == 0)
            lexer->token.kind = WORD;
}

void lexer_start(struct lexer *lexer, const char *source)
{
    *lexer = (struct lexer){.at = source, .line = 1};
    lexer_next(lexer);
}

void lexer_next(struct lexer *lexer)
{
    space(lexer);
    lexer->token = (struct token){.kind = END, .line = lexer->line, .text = ""};
    char c = *lexer->at;
    if (c == 0)
        return;
    if (c == '"') {
        text(lexer);
    } else if (isdigit((unsigned char)c)) {
        number(lexer);
    } else if (isalpha((unsigned char)c) || c == '_') {
        name(lexer);
    } else {
        static const char *const pairs[] = {"==", "!=", "<=", ">="};
        size_t len = 1;
        for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++)
            if (strncmp(pairs[i], lexer->at, 2) == 0)
                len = 2;
        if (len == 1 && strchr("+-*/%<>=()[],", c) == NULL)
            fail(lexer->line, "'%c' begins nothing that is known", c);
        lexer->token.kind = SYMBOL;
        lexer->token.text = arena_text(lexer->at, len);
        lexer->token.len = len;
        lexer->at += len;
    }
}

int lexer_is(const struct lexer *lexer, const char *wanted)
{
    return (lexer->token.kind == WORD || lexer->token.kind == SYMBOL) && strcmp(lexer->token.text, wanted) == 0;
}
