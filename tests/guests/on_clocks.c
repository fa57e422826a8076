/* Signal handlers that take a while, on top of code that reads clocks all the time. */
#include "guest.h"
#include <pthread.h>
#include <stdatomic.h>
#include <sys/time.h>

static const int64_t jump_ns = 60 * 1000000000ll;
static atomic_int stop;
static atomic_long handled;

static void handler(int signal)
{
    (void)signal;
    int64_t begin = guest_now_ns();
    while (guest_now_ns() - begin < 400000)
        ;
    handled++;
}

static void *read_clocks(void *argument)
{
    (void)argument;
    int64_t last = guest_now_ns();
    while (!stop) {
        struct timespec t;
        CHECK_EQ(clock_gettime(CLOCK_MONOTONIC, &t), 0);
        int64_t now = t.tv_sec * 1000000000ll + t.tv_nsec;
        CHECK(now >= last);
        CHECK(now - last < jump_ns);
        last = now;
    }
    return NULL;
}

int main(int argc, char **argv)
{
    long steps = guest_steps(argc, argv);
    pthread_t threads[2];
    sigset_t alarms;
    struct itimerval every = {{0, 1000}, {0, 1000}};
    struct sigaction action = {.sa_handler = handler, .sa_flags = SA_RESTART};
    CHECK_EQ(sigaction(SIGALRM, &action, NULL), 0);
    CHECK_EQ(sigemptyset(&alarms), 0);
    CHECK_EQ(sigaddset(&alarms, SIGALRM), 0);
    for (int i = 0; i < 2; i++)
        CHECK_EQ(pthread_create(&threads[i], NULL, read_clocks, NULL), 0);
    /* For the threads only. */
    CHECK_EQ(pthread_sigmask(SIG_BLOCK, &alarms, NULL), 0);
    CHECK_EQ(setitimer(ITIMER_REAL, &every, NULL), 0);
    for (long i = 1; i <= steps; i++)
        guest_step(i);
    stop = 1;
    for (int i = 0; i < 2; i++)
        CHECK_EQ(pthread_join(threads[i], NULL), 0);
    CHECK(handled > 0);
    guest_line("ok on_clocks");
    return 0;
}
