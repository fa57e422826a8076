/* POSIX timers of every kind of notice and clock: the same numbers, intervals and times left; each end is told once. */
#include "guest.h"
#include <pthread.h>
#include <stdatomic.h>

enum { GAP = 3, TICK = 10, ONCE, TID, CPU, BLOCKED, DAY };

static atomic_long ticks, calls, told, burnt;
static timer_t tick, idle, called, thread, cpu, once, blocked, day, unarmed;
static pid_t worker;
static pthread_t waiter, taker;

/* The kernel's number of a timer that calls no function is the handle itself. */
static int number(timer_t timer)
{
    return (int)(long)timer;
}

static void on_tick(int signo, siginfo_t *info, void *context)
{
    (void)context;
    int error = errno;
    CHECK_EQ(signo, SIGRTMIN + TICK);
    CHECK_EQ(info->si_code, SI_TIMER);
    CHECK_EQ(info->si_timerid, number(tick));
    CHECK(info->si_value.sival_ptr == &tick);
    ticks += 1 + info->si_overrun;
    errno = error;
}

static void on_cpu(int signo, siginfo_t *info, void *context)
{
    (void)signo, (void)context;
    CHECK_EQ(info->si_code, SI_TIMER);
    CHECK_EQ(info->si_timerid, number(cpu));
    burnt++;
}

static void on_call(union sigval value)
{
    CHECK(value.sival_ptr == &called);
    calls++;
}

static atomic_int stop;

static void *work(void *nothing)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGRTMIN + TID);
    CHECK_EQ(pthread_sigmask(SIG_BLOCK, &set, NULL), 0);
    worker = gettid();
    while (!stop) {
        siginfo_t info;
        CHECK_EQ(sigwaitinfo(&set, &info), SIGRTMIN + TID);
        CHECK_EQ(info.si_code, SI_TIMER);
        CHECK_EQ(info.si_timerid, number(thread));
        CHECK_EQ(info.si_value.sival_int, 77);
        told++;
    }
    return nothing;
}

/* Handlers run here, so that they interrupt no other thread. */
static void *take(void *set)
{
    CHECK_EQ(pthread_sigmask(SIG_UNBLOCK, set, NULL), 0);
    while (!stop)
        pause();
    return NULL;
}

static timer_t make(clockid_t clock, int notify, int signo, void *value)
{
    struct sigevent event;
    memset(&event, 0, sizeof event);
    event.sigev_notify = notify;
    event.sigev_signo = signo;
    event.sigev_value.sival_ptr = value;
    if (notify == SIGEV_THREAD)
        event.sigev_notify_function = on_call;
    if (notify == SIGEV_THREAD_ID) {
        event._sigev_un._tid = worker;
        event.sigev_value.sival_int = 77;
    }
    timer_t timer;
    CHECK_EQ(timer_create(clock, &event, &timer), 0);
    return timer;
}

static void set(timer_t timer, int flags, int64_t value_ns, int64_t interval_ns)
{
    struct itimerspec spec = {{interval_ns / 1000000000, interval_ns % 1000000000},
                              {value_ns / 1000000000, value_ns % 1000000000}};
    CHECK_EQ(timer_settime(timer, flags, &spec, NULL), 0);
}

static int64_t left(timer_t timer, int64_t interval_ns)
{
    struct itimerspec spec;
    CHECK_EQ(timer_gettime(timer, &spec), 0);
    CHECK_EQ(spec.it_interval.tv_sec * 1000000000 + spec.it_interval.tv_nsec, interval_ns);
    return spec.it_value.tv_sec * 1000000000 + spec.it_value.tv_nsec;
}

/* Waits until a counter has gone on; a checkpoint may fall into the wait. */
static void more(atomic_long *counter)
{
    long seen = *counter;
    for (int i = 0; *counter == seen; i++) {
        CHECK(i < 20000);
        guest_nap_us(1000);
    }
}

static void wait_once(sigset_t *only, int lasts_ms)
{
    struct timespec none = {0, 0}, long_time = {30, 0};
    siginfo_t info;
    set(once, 0, lasts_ms * 1000000L, 0);
    CHECK_EQ(sigtimedwait(only, &info, &long_time), SIGRTMIN + ONCE);
    CHECK_EQ(info.si_code, SI_TIMER);
    CHECK_EQ(info.si_timerid, number(once));
    CHECK_EQ(info.si_overrun, 0);
    CHECK_EQ(left(once, 0), 0);
    guest_nap_us(2000);
    CHECK(sigtimedwait(only, &info, &none) == -1 && errno == EAGAIN);
}

int main(int argc, char **argv)
{
    long steps = guest_steps(argc, argv);
    sigset_t set_of_once, set_of_blocked;
    sigemptyset(&set_of_once);
    sigaddset(&set_of_once, SIGRTMIN + ONCE);
    sigemptyset(&set_of_blocked);
    sigaddset(&set_of_blocked, SIGRTMIN + BLOCKED);
    CHECK_EQ(pthread_sigmask(SIG_BLOCK, &set_of_once, NULL), 0);
    CHECK_EQ(pthread_sigmask(SIG_BLOCK, &set_of_blocked, NULL), 0);
    struct sigaction action = {.sa_sigaction = on_tick, .sa_flags = SA_SIGINFO | SA_RESTART};
    CHECK_EQ(sigaction(SIGRTMIN + TICK, &action, NULL), 0);
    action.sa_sigaction = on_cpu;
    CHECK_EQ(sigaction(SIGRTMIN + CPU, &action, NULL), 0);
    sigset_t handled;
    sigemptyset(&handled);
    sigaddset(&handled, SIGRTMIN + TICK);
    sigaddset(&handled, SIGRTMIN + CPU);
    CHECK_EQ(pthread_sigmask(SIG_BLOCK, &handled, NULL), 0);
    CHECK_EQ(pthread_create(&waiter, NULL, work, NULL), 0);
    CHECK_EQ(pthread_create(&taker, NULL, take, &handled), 0);
    while (*(volatile pid_t *)&worker == 0)
        guest_nap_us(1000);

    /* Numbers with gaps. */
    timer_t gap[GAP];
    tick = make(CLOCK_REALTIME, SIGEV_SIGNAL, SIGRTMIN + TICK, &tick);
    for (int i = 0; i < GAP; i++)
        gap[i] = make(CLOCK_MONOTONIC, SIGEV_NONE, 0, NULL);
    idle = make(CLOCK_MONOTONIC, SIGEV_NONE, 0, NULL);
    called = make(CLOCK_BOOTTIME, SIGEV_THREAD, 0, &called);
    for (int i = 0; i < GAP; i++)
        CHECK_EQ(timer_delete(gap[i]), 0);
    thread = make(CLOCK_MONOTONIC, SIGEV_THREAD_ID, SIGRTMIN + TID, NULL);
    cpu = make(CLOCK_PROCESS_CPUTIME_ID, SIGEV_SIGNAL, SIGRTMIN + CPU, NULL);
    once = make(CLOCK_BOOTTIME, SIGEV_SIGNAL, SIGRTMIN + ONCE, NULL);
    blocked = make(CLOCK_REALTIME, SIGEV_SIGNAL, SIGRTMIN + BLOCKED, NULL);
    day = make(CLOCK_REALTIME, SIGEV_NONE, 0, NULL);
    unarmed = make(CLOCK_MONOTONIC, SIGEV_SIGNAL, SIGKILL, NULL);

    const int64_t ms = 1000000, s = 1000 * ms;
    set(tick, 0, 7 * ms, 7 * ms);
    set(idle, 0, 5000 * s, 11 * s);
    set(called, 0, 5 * ms, 9 * ms);
    set(thread, 0, 5 * ms, 8 * ms);
    set(cpu, 0, 3 * ms, 3 * ms);
    set(blocked, 0, 2 * ms, 2 * ms);
    struct timespec now;
    CHECK_EQ(clock_gettime(CLOCK_REALTIME, &now), 0);
    int64_t at = now.tv_sec * s + 7000 * s;
    set(day, TIMER_ABSTIME, at, 0);

    int64_t was = 5000 * s;
    for (long i = 1; i <= steps; i++) {
        more(&ticks);
        more(&calls);
        more(&told);
        wait_once(&set_of_once, 1 + (int)(i * 7 % 23));
        int64_t still = left(idle, 11 * s);
        CHECK(still > 0 && still < was);
        was = still;
        CHECK_EQ(left(unarmed, 0), 0);
        /* What is left of a time of day is told by the clock. */
        CHECK_EQ(clock_gettime(CLOCK_REALTIME, &now), 0);
        int64_t difference = now.tv_sec * s + now.tv_nsec + left(day, 0) - at;
        CHECK(difference > -200 * ms && difference < 200 * ms);
        /* Burns processor time until its timer tells. */
        for (long seen = burnt; burnt == seen;)
            ;
        siginfo_t info;
        CHECK_EQ(sigwaitinfo(&set_of_blocked, &info), SIGRTMIN + BLOCKED);
        CHECK_EQ(info.si_timerid, number(blocked));
        CHECK(info.si_overrun >= 0 && timer_getoverrun(blocked) >= 0);
        /* A new one gets a new number. */
        timer_t other = make(CLOCK_MONOTONIC, SIGEV_NONE, 0, NULL);
        CHECK(number(other) > number(unarmed));
        CHECK_EQ(timer_delete(other), 0);
        other = make(CLOCK_MONOTONIC, SIGEV_THREAD_ID, SIGRTMIN + TID, NULL);
        CHECK_EQ(timer_delete(other), 0);
        guest_step(i);
    }
    stop = 1;
    CHECK_EQ(pthread_join(waiter, NULL), 0);
    CHECK_EQ(pthread_join(taker, NULL), 0);
    CHECK_EQ(timer_delete(idle), 0);
    errno = 0;
    CHECK(timer_gettime(idle, &(struct itimerspec){0}) == -1 && errno == EINVAL);
    for (timer_t *timer = (timer_t[]){tick, called, thread, cpu, once, blocked, day, unarmed, 0}, *end = timer + 8;
         timer < end; timer++)
        CHECK_EQ(timer_delete(*timer), 0);
    guest_line("ok posix_timers");
    return 0;
}
