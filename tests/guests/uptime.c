/* Clocks that count from a boot go on where they stood, and waits until a time of theirs end neither early nor late. */
#include "guest.h"
#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>

enum { CLOCKS = 4, WAITERS = 5, WAIT_MS = 150 };

/* No checkpoint takes as long, and no other host's clock is as near. */
static const int64_t jump_ns = 60 * 1000000000ll;
static const clockid_t clocks[CLOCKS] = {CLOCK_MONOTONIC, CLOCK_MONOTONIC_RAW, CLOCK_MONOTONIC_COARSE, CLOCK_BOOTTIME};

static atomic_int stop;
static atomic_long waits[WAITERS];

static int64_t now(clockid_t clock)
{
    struct timespec t;
    CHECK_EQ(clock_gettime(clock, &t), 0);
    return t.tv_sec * 1000000000ll + t.tv_nsec;
}

static void *wait_until(void *argument)
{
    long which = (long)argument;
    sem_t never;
    pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    pthread_cond_t cond;
    pthread_condattr_t attributes;
    timer_t timer;
    struct sigevent none = {.sigev_notify = SIGEV_NONE};
    CHECK_EQ(sem_init(&never, 0, 0), 0);
    CHECK_EQ(pthread_condattr_init(&attributes), 0);
    CHECK_EQ(pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC), 0);
    CHECK_EQ(pthread_cond_init(&cond, &attributes), 0);
    CHECK_EQ(timer_create(CLOCK_MONOTONIC, &none, &timer), 0);
    while (!stop) {
        clockid_t clock = which == 1 ? CLOCK_BOOTTIME : CLOCK_MONOTONIC;
        int64_t at = now(clock) + WAIT_MS * 1000000ll;
        struct timespec t = {at / 1000000000, at % 1000000000};
        struct itimerspec spec = {{0, 0}, t};
        switch (which) {
        case 0:
        case 1:
            CHECK_EQ(clock_nanosleep(clock, TIMER_ABSTIME, &t, NULL), 0);
            break;
        case 2:
            CHECK(sem_clockwait(&never, CLOCK_MONOTONIC, &t) == -1 && errno == ETIMEDOUT);
            break;
        case 3:
            CHECK_EQ(pthread_mutex_lock(&lock), 0);
            CHECK_EQ(pthread_cond_timedwait(&cond, &lock, &t), ETIMEDOUT);
            CHECK_EQ(pthread_mutex_unlock(&lock), 0);
            break;
        default:
            CHECK_EQ(timer_settime(timer, TIMER_ABSTIME, &spec, NULL), 0);
            do {
                guest_nap_us(3000);
                CHECK_EQ(timer_gettime(timer, &spec), 0);
                CHECK(spec.it_value.tv_sec < 1);
            } while (spec.it_value.tv_nsec != 0);
        }
        int64_t late = now(clock) - at;
        CHECK(late >= 0);
        CHECK(late < jump_ns);
        waits[which]++;
    }
    return NULL;
}

int main(int argc, char **argv)
{
    long steps = guest_steps(argc, argv);
    pthread_t threads[WAITERS];
    int64_t last[CLOCKS];
    for (int c = 0; c < CLOCKS; c++)
        last[c] = now(clocks[c]);
    for (long i = 0; i < WAITERS; i++)
        CHECK_EQ(pthread_create(&threads[i], NULL, wait_until, (void *)i), 0);
    for (long i = 1; i <= steps; i++) {
        for (int j = 0; j < 1000; j++)
            for (int c = 0; c < CLOCKS; c++) {
                int64_t next = now(clocks[c]);
                CHECK(next >= last[c]);
                CHECK(next - last[c] < jump_ns);
                last[c] = next;
            }
        guest_step(i);
    }
    stop = 1;
    for (int i = 0; i < WAITERS; i++) {
        CHECK_EQ(pthread_join(threads[i], NULL), 0);
        CHECK(waits[i] > 0);
    }
    guest_line("ok uptime");
    return 0;
}
