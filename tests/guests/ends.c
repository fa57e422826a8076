/* Ends at once in the way that the command line names: `ends exit N`, `ends signal N`, `ends abort`, `ends thread`. */
#include "guest.h"
#include <pthread.h>
#include <sys/resource.h>

static void *leave(void *status)
{
    exit((int)(long)status);
}

int main(int argc, char **argv)
{
    struct rlimit none = {0, 0};
    CHECK(argc > 1);
    CHECK_EQ(setrlimit(RLIMIT_CORE, &none), 0);
    int number = argc > 2 ? atoi(argv[2]) : 0;
    if (strcmp(argv[1], "exit") == 0)
        return number;
    if (strcmp(argv[1], "signal") == 0)
        raise(number);
    if (strcmp(argv[1], "abort") == 0)
        abort();
    /* Not the main thread ends the process. */
    pthread_t thread;
    CHECK_EQ(pthread_create(&thread, NULL, leave, (void *)(long)number), 0);
    pause();
    return 98;
}
