/* Eight threads that allocate and free from one arena, so that its lock is taken at most moments. */
#include "guest.h"
#include <malloc.h>
#include <pthread.h>
#include <stdatomic.h>

enum { THREADS = 8, SLOTS = 256 };

static atomic_int stop;

struct slot {
    unsigned char *block;
    size_t len;
    unsigned char fill;
};

static void verify(const struct slot *slot, size_t len)
{
    for (size_t i = 0; i < len; i++)
        CHECK_EQ(slot->block[i], slot->fill);
}

static void *storm(void *argument)
{
    uint64_t state = 0x9e3779b97f4a7c15u * ((uint64_t)(long)argument + 1);
    struct slot *slots = calloc(SLOTS, sizeof *slots);
    long done = 0;
    CHECK(slots != NULL);
    while (!stop) {
        uint64_t random = guest_random(&state);
        struct slot *slot = &slots[random % SLOTS];
        /* One in 64 is large enough to be mapped for itself. */
        size_t len = (random >> 20) % 64 == 0 ? 200000 : 1 + (random >> 30) % 1500;
        if (slot->block == NULL) {
            slot->fill = (unsigned char)(random >> 12);
            slot->block = (random >> 9) % 4 == 0 ? memalign(64, len) : malloc(len);
            CHECK(slot->block != NULL);
            slot->len = len;
            memset(slot->block, slot->fill, len);
        } else if ((random >> 10) % 3 == 0) {
            slot->block = realloc(slot->block, len);
            CHECK(slot->block != NULL);
            verify(slot, len < slot->len ? len : slot->len);
            memset(slot->block, slot->fill, len);
            slot->len = len;
        } else {
            verify(slot, slot->len);
            free(slot->block);
            slot->block = NULL;
        }
        if (++done % 512 == 0)
            guest_nap_us(500);
    }
    for (int i = 0; i < SLOTS; i++) {
        if (slots[i].block == NULL)
            continue;
        verify(&slots[i], slots[i].len);
        free(slots[i].block);
    }
    free(slots);
    return NULL;
}

int main(int argc, char **argv)
{
    long steps = guest_steps(argc, argv);
    CHECK_EQ(mallopt(M_ARENA_MAX, 1), 1);
    pthread_t threads[THREADS];
    for (long i = 0; i < THREADS; i++)
        CHECK_EQ(pthread_create(&threads[i], NULL, storm, (void *)i), 0);
    for (long i = 1; i <= steps; i++) {
        guest_step(i);
        char *text = malloc(100);
        CHECK(text != NULL);
        snprintf(text, 100, "%ld", i);
        CHECK_EQ(atol(text), i);
        free(text);
    }
    stop = 1;
    for (int i = 0; i < THREADS; i++)
        CHECK_EQ(pthread_join(threads[i], NULL), 0);
    guest_line("ok malloc_storm");
    return 0;
}
