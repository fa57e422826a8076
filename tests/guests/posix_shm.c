/* POSIX shared memory and named semaphores: mapped by two processes, one with a name and one without. */
#include "guest.h"
#include <semaphore.h>
#include <sys/mman.h>
#include <sys/wait.h>

enum { LEN = 5 * 4096 + 10, WORDS = LEN / 8 };

static uint64_t *make(const char *name)
{
    int fd = shm_open(name, O_RDWR | O_CREAT | O_EXCL, 0600);
    CHECK(fd >= 0);
    CHECK_EQ(ftruncate(fd, LEN), 0);
    uint64_t *memory = mmap(NULL, LEN, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    CHECK(memory != MAP_FAILED);
    CHECK_EQ(close(fd), 0);
    return memory;
}

static void wait_for(sem_t *semaphore)
{
    CHECK_EQ(sem_wait(semaphore), 0);
}

int main(int argc, char **argv)
{
    long steps = guest_steps(argc, argv);
    char named[64], nameless[64], ask[64], tell[64];
    int id = (int)getpid();
    snprintf(named, sizeof named, "/ulpm-test-%d-n", id);
    snprintf(nameless, sizeof nameless, "/ulpm-test-%d-u", id);
    snprintf(ask, sizeof ask, "/ulpm-test-%d-a", id);
    snprintf(tell, sizeof tell, "/ulpm-test-%d-t", id);
    fprintf(stderr, "name %d\n", id);
    uint64_t *memory = make(named), *secret = make(nameless);
    CHECK_EQ(shm_unlink(nameless), 0);
    sem_t *go = sem_open(ask, O_CREAT | O_EXCL, 0600, 0), *done = sem_open(tell, O_CREAT | O_EXCL, 0600, 0);
    CHECK(go != SEM_FAILED && done != SEM_FAILED);
    CHECK_EQ(sem_unlink(tell), 0);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        for (long i = 0; i < steps; i++) {
            wait_for(go);
            CHECK_EQ(memory[i % WORDS], i + 1);
            memory[i % WORDS] += 1;
            secret[0] += (uint64_t)i;
            CHECK_EQ(sem_post(done), 0);
        }
        _exit(0);
    }
    uint64_t sum = 0;
    for (long i = 0; i < steps; i++) {
        guest_step(i + 1);
        memory[i % WORDS] = (uint64_t)i + 1;
        CHECK_EQ(sem_post(go), 0);
        wait_for(done);
        sum += (uint64_t)i;
        CHECK_EQ(secret[0], sum);
        for (long k = i > 20 ? i - 20 : 0; k <= i; k++)
            CHECK_EQ(memory[k % WORDS], k + 2);
        int value = -1;
        CHECK_EQ(sem_getvalue(go, &value), 0);
        CHECK_EQ(value, 0);
        /* The name leads to the same memory. */
        int fd = shm_open(named, O_RDWR, 0);
        CHECK(fd >= 0);
        uint64_t *again = mmap(NULL, LEN, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        CHECK(again != MAP_FAILED);
        CHECK_EQ(close(fd), 0);
        CHECK_EQ(again[i % WORDS], i + 2);
        again[WORDS - 1] = (uint64_t)i;
        CHECK_EQ(memory[WORDS - 1], i);
        CHECK_EQ(munmap(again, LEN), 0);
        CHECK(shm_open(nameless, O_RDWR, 0) == -1 && errno == ENOENT);
    }
    int end = 0;
    CHECK_EQ(waitpid(child, &end, 0), child);
    CHECK_EQ(end, 0);
    CHECK(shm_unlink(named) == 0 && sem_unlink(ask) == 0);
    guest_line("ok posix_shm %llu", (unsigned long long)sum);
    return 0;
}
