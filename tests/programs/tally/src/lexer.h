#ifndef LEXER_H
#define LEXER_H
#include <stddef.h>
#include <stdint.h>

enum token_kind { END, NAME, WORD, WHOLE, FRACTION, TEXT, SYMBOL };

struct token {
    enum token_kind kind;
    int line;
    const char *text;
    size_t len;
    int64_t integer;
    double real;
};

struct lexer {
    const char *at;
    int line;
    struct token token;
};

void lexer_start(struct lexer *lexer, const char *source);
void lexer_next(struct lexer *lexer);
int lexer_is(const struct lexer *lexer, const char *text);
#endif
