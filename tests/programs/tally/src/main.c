/* tally FILE: runs a program in a small language with integers, reals, strings, lists and functions. */
#include "arena.h"
#include "check.h"
#include "error.h"
#include "eval.h"
#include "parser.h"
#include "string.h"
#include <stdio.h>
#include <stdlib.h>

static char *read_all(const char *path)
{
    FILE *file = fopen(path, "r");
    if (file == NULL)
        fail(0, "cannot open %s", path);
    size_t len = 0, room = 4096;
    char *text = malloc(room + 1);
    for (size_t n; text != NULL && (n = fread(text + len, 1, room - len, file)) > 0;) {
        len += n;
        if (len == room)
            text = realloc(text, (room *= 2) + 1);
    }
    if (text == NULL)
        fail(0, "out of memory for %s", path);
    text[len] = 0;
    fclose(file);
    return text;
}

int main(int argc, char **argv)
{
    if (argc != 2)
        fail(0, "usage: tally FILE");
    char *source = read_all(argv[1]);
    struct node *program = parse(source);
    check(program);
    value_drop(evaluate(program, &program_env));
    table_clear(&program_env.names);
    printf("%zu nodes, %ld calls, %s memory\n", node_count(program), calls_made, arena_used() > 0 ? "some" : "no");
    arena_free();
    free(source);
    return 0;
}
