/* Threads and a child contend for mutexes with priority inheritance, whose word the kernel reads. */
#include "guest.h"
#include <pthread.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/wait.h>

enum { THREADS = 3 };

/* In memory that processes share. */
static struct {
    pthread_mutex_t mutex;
    atomic_int stop;
    volatile long inside, entries, of_child;
} *shared;

static void enter(volatile long *count)
{
    CHECK_EQ(pthread_mutex_lock(&shared->mutex), 0);
    CHECK_EQ(shared->inside++, 0);
    shared->entries++;
    ++*count;
    guest_nap_us(200); /* The others come to wait in the kernel. */
    CHECK_EQ(--shared->inside, 0);
    CHECK_EQ(pthread_mutex_unlock(&shared->mutex), 0);
}

static void *contend(void *argument)
{
    while (!shared->stop)
        enter(argument);
    return NULL;
}

int main(int argc, char **argv)
{
    long steps = guest_steps(argc, argv);
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(shared != MAP_FAILED);
    pthread_mutexattr_t attributes;
    pthread_mutexattr_init(&attributes);
    CHECK_EQ(pthread_mutexattr_setprotocol(&attributes, PTHREAD_PRIO_INHERIT), 0);
    pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
    pthread_mutex_init(&shared->mutex, &attributes);

    pid_t parent = getpid(), child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        while (!shared->stop && getppid() == parent)
            enter(&shared->of_child);
        _exit(0);
    }
    pthread_t threads[THREADS];
    static volatile long counts[THREADS];
    for (int i = 0; i < THREADS; i++)
        CHECK_EQ(pthread_create(&threads[i], NULL, contend, (void *)&counts[i]), 0);
    for (long i = 1; i <= steps; i++) {
        guest_step(i);
        static volatile long own;
        enter(&own);
        CHECK_EQ(own, i);
    }
    shared->stop = 1;
    for (int i = 0; i < THREADS; i++)
        CHECK_EQ(pthread_join(threads[i], NULL), 0);
    int status = 0;
    CHECK_EQ(waitpid(child, &status, 0), child);
    CHECK_EQ(status, 0);
    long sum = steps + shared->of_child;
    for (int i = 0; i < THREADS; i++)
        sum += counts[i];
    CHECK_EQ(sum, shared->entries);
    guest_line("ok pi_mutex");
    return 0;
}
