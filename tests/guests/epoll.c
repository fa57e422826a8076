/* What epoll watches: every kind of registration, numbers that were closed or given to other files, nested and shared
 * instances, threads that wait. */
#include "guest.h"
#include <pthread.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/wait.h>

#ifndef EPOLLEXCLUSIVE
#define EPOLLEXCLUSIVE (1u << 28)
#endif

static int control(int epoll, int operation, int fd, uint32_t events, uint64_t data)
{
    struct epoll_event event = {.events = events, .data.u64 = data};
    return epoll_ctl(epoll, operation, fd, &event);
}

/* Whether the instance tells `data` now; nothing else may be told that is not in `also`. */
static int tells(int epoll, uint64_t data, uint64_t also)
{
    struct epoll_event events[16];
    int found = 0, count = epoll_wait(epoll, events, 16, 0);
    CHECK(count >= 0);
    for (int i = 0; i < count; i++) {
        if (events[i].data.u64 == data)
            found++;
        else
            CHECK_EQ(events[i].data.u64, also);
    }
    CHECK(found <= 1);
    return found;
}

static int none(int epoll)
{
    struct epoll_event event;
    return epoll_wait(epoll, &event, 1, 0) == 0;
}

static void add(int fd, uint64_t value)
{
    CHECK_EQ(write(fd, &value, sizeof value), sizeof value);
}

static uint64_t take(int fd)
{
    uint64_t value = 0;
    CHECK_EQ(read(fd, &value, sizeof value), sizeof value);
    return value;
}

struct waiter {
    int epoll, counter, answer, timeout_ms;
    long steps;
};

/* Waits without a limit, or for spans of time which end without an event. */
static void *waiter(void *argument)
{
    struct waiter *own = argument;
    for (long i = 0; i < own->steps;) {
        struct epoll_event event;
        int64_t begin = guest_now_ns();
        int count = epoll_wait(own->epoll, &event, 1, own->timeout_ms);
        CHECK(count >= 0);
        if (count == 0) {
            CHECK(own->timeout_ms > 0 && guest_now_ns() - begin >= own->timeout_ms * INT64_C(1000000));
            continue;
        }
        CHECK_EQ(event.data.u64, 0xfeedfacecafebeef);
        CHECK_EQ(event.events, EPOLLIN);
        add(own->answer, take(own->counter) + 1);
        i++;
    }
    return NULL;
}

int main(int argc, char **argv)
{
    long steps = guest_steps(argc, argv);
    char byte;
    int level = epoll_create1(EPOLL_CLOEXEC), edge = epoll_create1(0), once = epoll_create1(0);
    CHECK(level >= 0 && edge >= 0 && once >= 0);

    /* Level-triggered, with a word of 64 bits; the same file under a second number. */
    int pipe1[2];
    CHECK_EQ(pipe(pipe1), 0);
    CHECK_EQ(control(level, EPOLL_CTL_ADD, pipe1[0], EPOLLIN, 0x123456789abcdef0), 0);
    int second = fcntl(pipe1[0], F_DUPFD, 70);
    CHECK_EQ(control(level, EPOLL_CTL_ADD, second, EPOLLIN, 2), 0);

    /* Edge-triggered. */
    int counter = eventfd(0, EFD_NONBLOCK);
    CHECK_EQ(control(edge, EPOLL_CTL_ADD, counter, EPOLLIN | EPOLLET, 3), 0);

    /* Registered with a number that is closed then, while a duplicate lives. */
    int odd = epoll_create1(0);
    int kept = eventfd(0, EFD_NONBLOCK), number = fcntl(kept, F_DUPFD, 80);
    CHECK_EQ(number, 80);
    CHECK_EQ(control(odd, EPOLL_CTL_ADD, number, EPOLLIN, 4), 0);
    CHECK_EQ(close(number), 0);
    /* Then another file gets that number, and is watched as well. */
    int kept2 = eventfd(0, EFD_NONBLOCK);
    CHECK_EQ(dup2(kept2, number), number);
    CHECK_EQ(control(odd, EPOLL_CTL_ADD, number, EPOLLIN, 5), 0);
    CHECK_EQ(close(number), 0);
    /* And a third, which is not watched. */
    CHECK_EQ(dup2(pipe1[1], number), number);

    /* One-shot registrations that have fired: ready for more, full to the brim, and with an end to come. */
    int shot = eventfd(1, EFD_NONBLOCK), ended[2];
    CHECK_EQ(control(once, EPOLL_CTL_ADD, shot, EPOLLIN | EPOLLONESHOT, 6), 0);
    CHECK(tells(once, 6, 0));
    CHECK_EQ(pipe(ended), 0);
    CHECK_EQ(write(ended[1], "e", 1), 1);
    CHECK_EQ(control(once, EPOLL_CTL_ADD, ended[0], EPOLLIN | EPOLLONESHOT | EPOLLET, 7), 0);
    CHECK(tells(once, 7, 0));
    CHECK_EQ(close(ended[1]), 0);
    CHECK(none(once));

    /* One instance in another, and that in a third. */
    int inner = epoll_create1(0), middle = epoll_create1(0), outer = epoll_create1(0);
    int deep = eventfd(0, EFD_NONBLOCK);
    CHECK_EQ(control(outer, EPOLL_CTL_ADD, middle, EPOLLIN, 10), 0);
    CHECK_EQ(control(middle, EPOLL_CTL_ADD, inner, EPOLLIN | EPOLLET, 11), 0);
    CHECK_EQ(control(inner, EPOLL_CTL_ADD, deep, EPOLLIN, 12), 0);

    /* Watched by two instances, of which each event wakes one only. */
    int exclusive[2] = {epoll_create1(0), epoll_create1(0)}, herd = eventfd(0, EFD_NONBLOCK);
    CHECK_EQ(control(exclusive[0], EPOLL_CTL_ADD, herd, EPOLLIN | EPOLLEXCLUSIVE, 13), 0);
    CHECK_EQ(control(exclusive[1], EPOLL_CTL_ADD, herd, EPOLLIN | EPOLLEXCLUSIVE | EPOLLET, 14), 0);

    /* Files that cannot be told apart by number, in numbers. */
    enum { MANY = 100 };
    int crowd = epoll_create1(0), many[MANY];
    for (int i = 0; i < MANY; i++) {
        many[i] = eventfd(0, EFD_NONBLOCK);
        CHECK_EQ(control(crowd, EPOLL_CTL_ADD, many[i], EPOLLIN, (uint64_t)i), 0);
    }

    /* An instance that a child shares, which waits in it; and a pipe that only the child can read. */
    int shared = epoll_create1(0), ask = eventfd(0, EFD_NONBLOCK), answer = eventfd(0, 0), other[2];
    int apart = epoll_create1(0);
    CHECK_EQ(pipe(other), 0);
    CHECK_EQ(control(shared, EPOLL_CTL_ADD, ask, EPOLLIN, 15), 0);
    CHECK_EQ(control(apart, EPOLL_CTL_ADD, other[0], EPOLLIN, 16), 0);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        CHECK(close(other[1]) == 0 && close(apart) == 0);
        for (long i = 0; i < steps; i++) {
            struct epoll_event event;
            CHECK_EQ(epoll_wait(shared, &event, 1, -1), 1);
            CHECK_EQ(event.data.u64, 15);
            CHECK_EQ(take(ask), i + 1);
            CHECK_EQ(read(other[0], &byte, 1), 1);
            add(answer, (uint64_t)i + 1);
        }
        _exit(23);
    }
    CHECK_EQ(close(other[0]), 0);

    struct waiter waiters[2];
    pthread_t threads[2];
    for (int i = 0; i < 2; i++) {
        waiters[i] = (struct waiter){epoll_create1(0), eventfd(0, EFD_NONBLOCK), eventfd(0, 0), i == 0 ? -1 : 3, steps};
        CHECK_EQ(control(waiters[i].epoll, EPOLL_CTL_ADD, waiters[i].counter, EPOLLIN, 0xfeedfacecafebeef), 0);
        CHECK_EQ(pthread_create(&threads[i], NULL, waiter, &waiters[i]), 0);
    }

    for (long i = 0; i < steps; i++) {
        /* Events that wait while the step is taken. */
        CHECK_EQ(write(pipe1[1], "x", 1), 1);
        add(counter, 1);
        add(deep, 1);
        add(herd, 1);
        CHECK_EQ(write(other[1], "o", 1), 1);
        guest_step(i + 1);
        CHECK(tells(level, 0x123456789abcdef0, 2));
        CHECK(tells(level, 2, 0x123456789abcdef0));
        CHECK_EQ(read(second, &byte, 1), 1);
        CHECK(none(level));
        CHECK(tells(edge, 3, 0));
        CHECK(none(edge));
        CHECK_EQ(take(counter), 1);
        CHECK(none(edge));
        add(counter, 1);
        CHECK(tells(edge, 3, 0));
        CHECK_EQ(take(counter), 1);

        CHECK(none(odd));
        add(kept, 1);
        CHECK(tells(odd, 4, 0));
        add(kept2, 1);
        CHECK(tells(odd, 4, 5) && tells(odd, 5, 4));
        CHECK(take(kept) == 1 && take(kept2) == 1);
        CHECK(none(odd));
        CHECK(control(odd, EPOLL_CTL_MOD, number, EPOLLIN, 0) == -1 && errno == ENOENT);

        CHECK(none(once));
        CHECK_EQ(control(once, EPOLL_CTL_MOD, shot, EPOLLIN | EPOLLONESHOT, 6), 0);
        CHECK(tells(once, 6, 0));
        CHECK(none(once));

        CHECK(tells(outer, 10, 0));
        CHECK(tells(middle, 11, 0));
        CHECK(tells(inner, 12, 0));
        CHECK_EQ(take(deep), 1);
        CHECK(none(inner) && none(middle) && none(outer));

        CHECK(tells(exclusive[0], 13, 0) && tells(exclusive[1], 14, 0));
        CHECK_EQ(take(herd), 1);
        CHECK(none(exclusive[0]) && none(exclusive[1]));
        CHECK(control(exclusive[0], EPOLL_CTL_MOD, herd, EPOLLIN, 13) == -1 && errno == EINVAL);

        int which = (int)(i * 7 % MANY);
        add(many[which], 1);
        CHECK(tells(crowd, (uint64_t)which, 0xffff));
        CHECK_EQ(take(many[which]), 1);
        /* Registrations are found again by file and number. */
        CHECK_EQ(control(crowd, EPOLL_CTL_DEL, many[which], 0, 0), 0);
        CHECK(control(crowd, EPOLL_CTL_MOD, many[which], EPOLLIN, 0) == -1 && errno == ENOENT);
        CHECK_EQ(control(crowd, EPOLL_CTL_ADD, many[which], EPOLLIN, (uint64_t)which), 0);
        CHECK_EQ(control(level, EPOLL_CTL_MOD, second, EPOLLIN, 2), 0);

        CHECK(tells(apart, 16, 0));
        add(ask, (uint64_t)i + 1);
        CHECK_EQ(take(answer), i + 1);
        CHECK(none(apart));
        for (int k = 0; k < 2; k++) {
            add(waiters[k].counter, (uint64_t)i + 40);
            CHECK_EQ(take(waiters[k].answer), i + 41);
        }
    }
    for (int i = 0; i < 2; i++)
        CHECK_EQ(pthread_join(threads[i], NULL), 0);
    CHECK_EQ(control(once, EPOLL_CTL_MOD, ended[0], EPOLLIN | EPOLLONESHOT, 7), 0);
    CHECK(tells(once, 7, 0));
    CHECK_EQ(fcntl(level, F_GETFD), FD_CLOEXEC);
    int status = 0;
    CHECK_EQ(waitpid(child, &status, 0), child);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 23);
    guest_line("ok epoll");
    return 0;
}
