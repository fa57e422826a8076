/* Counters of eventfd: kept with their kind, blocking and not, shared with a child, one with a reader that waits. */
#include "guest.h"
#include <pthread.h>
#include <stdatomic.h>
#include <sys/eventfd.h>
#include <sys/wait.h>

static int asked, answered;

/* Waits in read nearly all the time. */
static void *reader(void *argument)
{
    long count = (long)argument;
    for (long i = 0; i < count; i++) {
        uint64_t value;
        CHECK_EQ(read(asked, &value, sizeof value), sizeof value);
        CHECK_EQ(value, i + 1);
        CHECK_EQ(write(answered, &value, sizeof value), sizeof value);
    }
    return NULL;
}

static uint64_t take(int fd)
{
    uint64_t value = 0;
    CHECK_EQ(read(fd, &value, sizeof value), sizeof value);
    return value;
}

static void add(int fd, uint64_t value)
{
    CHECK_EQ(write(fd, &value, sizeof value), sizeof value);
}

int main(int argc, char **argv)
{
    long steps = guest_steps(argc, argv);
    int counter = eventfd(5, EFD_NONBLOCK), empty = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    int semaphore = eventfd(0, EFD_NONBLOCK | EFD_SEMAPHORE), full = eventfd(0, EFD_NONBLOCK);
    int shared = eventfd(3, EFD_SEMAPHORE), to_child = eventfd(0, 0), from_child = eventfd(0, 0);
    CHECK(counter >= 0 && empty >= 0 && semaphore >= 0 && full >= 0 && shared >= 0);
    asked = eventfd(0, 0);
    answered = eventfd(0, 0);
    add(full, UINT64_MAX - 1);
    int again = fcntl(counter, F_DUPFD, 60);
    CHECK(again >= 60);

    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        for (long i = 0; i < steps; i++) {
            CHECK_EQ(take(to_child), i + 1);
            CHECK_EQ(take(shared), 1);
            add(from_child, (uint64_t)i + 7);
        }
        _exit(22);
    }
    pthread_t thread;
    CHECK_EQ(pthread_create(&thread, NULL, reader, (void *)steps), 0);
    uint64_t value;
    for (long i = 0; i < steps; i++) {
        add(counter, 10);
        add(semaphore, 2);
        guest_step(i + 1);
        CHECK_EQ(take(i % 2 ? counter : again), i == 0 ? 15 : 10);
        CHECK(read(again, &value, sizeof value) == -1 && errno == EAGAIN);
        CHECK(read(empty, &value, sizeof value) == -1 && errno == EAGAIN);
        CHECK_EQ(fcntl(empty, F_GETFD), FD_CLOEXEC);
        CHECK_EQ(fcntl(shared, F_GETFL) & O_NONBLOCK, 0);
        CHECK_EQ(take(semaphore), 1);
        CHECK_EQ(take(semaphore), 1);
        CHECK(read(semaphore, &value, sizeof value) == -1 && errno == EAGAIN);
        value = 1;
        CHECK(write(full, &value, sizeof value) == -1 && errno == EAGAIN);
        add(to_child, (uint64_t)i + 1);
        CHECK_EQ(take(from_child), i + 7);
        add(shared, 1);
        add(asked, (uint64_t)i + 1);
        CHECK_EQ(take(answered), i + 1);
    }
    CHECK_EQ(take(full), UINT64_MAX - 1);
    CHECK_EQ(pthread_join(thread, NULL), 0);
    int status = 0;
    CHECK_EQ(waitpid(child, &status, 0), child);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 22);
    for (int i = 0; i < 3; i++)
        CHECK_EQ(take(shared), 1);
    guest_line("ok eventfd");
    return 0;
}
