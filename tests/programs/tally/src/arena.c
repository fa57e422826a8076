#include "arena.h"
#include "error.h"
#include <stdalign.h>
#include <stdlib.h>
#include <string.h>

struct block {
    struct block *next;
    size_t used, size;
    alignas(16) unsigned char data[];
};

static struct block *first;
static size_t total;

void *arena_new(size_t size)
{
    size = (size + 15) & ~(size_t)15;
    if (first == NULL || first->size - first->used < size) {
        size_t want = size > 4096 ? size : 4096;
        struct block *block = malloc(sizeof *block + want);
        if (block == NULL)
            fail(0, "out of memory");
        block->next = first;
        block->used = 0;
        block->size = want;
        first = block;
    }
    void *at = first->data + first->used;
    first->used += size;
    total += size;
    memset(at, 0, size);
    return at;
}

char *arena_text(const char *from, size_t len)
{
    char *text = arena_new(len + 1);
    memcpy(text, from, len);
    return text;
}

size_t arena_used(void)
{
    return total;
}

void arena_free(void)
{
    while (first != NULL) {
        struct block *next = first->next;
        free(first);
        first = next;
    }
    total = 0;
}
