/* A process with threads forks a child that makes threads of its own, before anybody has asked for a checkpoint. */
#include "guest.h"
#include <pthread.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/wait.h>

static struct {
    atomic_int end;
    atomic_long beats;
} *shared;

static void *beat(void *argument)
{
    while (!shared->end) {
        shared->beats++;
        guest_nap_us(1000);
    }
    return argument;
}

static pthread_t start(void)
{
    pthread_t thread;
    CHECK_EQ(pthread_create(&thread, NULL, beat, NULL), 0);
    return thread;
}

int main(int argc, char **argv)
{
    long steps = guest_steps(argc, argv);
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(shared != MAP_FAILED);
    pthread_t own = start();
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        pthread_t threads[2] = {start(), start()};
        for (int i = 0; i < 2; i++)
            CHECK_EQ(pthread_join(threads[i], NULL), 0);
        _exit(4);
    }
    for (long i = 1; i <= steps; i++) {
        long before = shared->beats;
        guest_step(i);
        while (shared->beats < before + 3)
            guest_nap_us(500);
    }
    shared->end = 1;
    CHECK_EQ(pthread_join(own, NULL), 0);
    int status = 0;
    CHECK_EQ(waitpid(child, &status, 0), child);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 4);
    guest_line("ok forked_threads");
    return 0;
}
