/* Threads that read clocks through the vDSO all the time, and call libc's functions for the first time late in their life. */
#include "guest.h"
#include <pthread.h>
#include <stdatomic.h>
#include <sys/time.h>

enum { THREADS = 4, BUCKETS = 64 };

static atomic_int stop;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static uint64_t buckets[BUCKETS], total;

/* Every clock is read, and the two that tell the time of day agree within a minute. */
static void read_clocks(void)
{
    struct timespec t, other;
    struct timeval day;
    CHECK_EQ(clock_gettime(CLOCK_MONOTONIC, &t), 0);
    CHECK_EQ(clock_getres(CLOCK_MONOTONIC, &t), 0);
    CHECK_EQ(clock_gettime(CLOCK_REALTIME, &t), 0);
    CHECK_EQ(clock_gettime(CLOCK_REALTIME_COARSE, &other), 0);
    CHECK(labs((long)(t.tv_sec - other.tv_sec)) < 60);
    CHECK_EQ(gettimeofday(&day, NULL), 0);
    CHECK(labs((long)(day.tv_sec - t.tv_sec)) < 60);
    CHECK(labs((long)(time(NULL) - t.tv_sec)) < 60);
    CHECK(sched_getcpu() >= 0);
}

static void *work(void *argument)
{
    uint64_t state = (uint64_t)(long)argument + 77;
    while (!stop) {
        for (int i = 0; i < 200; i++)
            read_clocks();
        uint64_t amount = guest_random(&state) % 1000;
        CHECK_EQ(pthread_mutex_lock(&lock), 0);
        buckets[guest_random(&state) % BUCKETS] += amount;
        total += amount;
        CHECK_EQ(pthread_mutex_unlock(&lock), 0);
    }
    return NULL;
}

/* Functions that nothing has called before: the linker looks them up, and saves vector registers meanwhile. */
static void late_calls(long step)
{
    char text[80], copy[80];
    snprintf(text, sizeof text, "%ld,%ld,%ld", step, 2 * step, 3 * step);
    memset(copy, 'x', sizeof copy);
    CHECK(stpcpy(copy, text) == copy + strlen(text));
    CHECK(strrchr(copy, ',') != NULL && strstr(copy, ",") == strchr(copy, ','));
    CHECK(strcasecmp(copy, text) == 0 && strspn(copy, "0123456789,") == strlen(text));
    CHECK(strtol(copy, NULL, 10) == step);
}

/* `clocks STEPS [STEP]`: the late calls are made from step STEP on. */
int main(int argc, char **argv)
{
    long steps = guest_steps(argc, argv);
    long late = argc > 2 ? atol(argv[2]) : 1;
    pthread_t threads[THREADS];
    uint64_t state = 88172645463325252u;
    for (long i = 0; i < THREADS; i++)
        CHECK_EQ(pthread_create(&threads[i], NULL, work, (void *)i), 0);
    for (long i = 1; i <= steps; i++) {
        /* No nap of guest.h: it measures the monotonic clock, which another boot counts from another zero. */
        do
            usleep(GUEST_PACE_MS * 1000);
        while (guest_limit(NULL) < i);
        if (i >= late)
            late_calls(i);
        guest_line("step %ld %016lx", i, (unsigned long)guest_random(&state));
    }
    stop = 1;
    for (int i = 0; i < THREADS; i++)
        CHECK_EQ(pthread_join(threads[i], NULL), 0);
    uint64_t sum = 0;
    for (int i = 0; i < BUCKETS; i++)
        sum += buckets[i];
    CHECK(sum == total && total > 0);
    guest_line("ok clocks %016lx", (unsigned long)state);
    return 7;
}
