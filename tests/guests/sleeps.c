/* Timed calls are not cut short by a checkpoint and do not report EINTR; those without limit do not return at all. */
#include "guest.h"
#include <poll.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <sys/select.h>
#include <sys/time.h>
#include <sys/wait.h>

/* Long enough that several checkpoints fall into one call. */
enum { CALL_MS = 400 };

static atomic_int stop;
static atomic_long calls;
static int empty_pipe[2], last_pipe[2];
static sem_t never, released;
static pthread_mutex_t held = PTHREAD_MUTEX_INITIALIZER, wait_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t never_moved = PTHREAD_COND_INITIALIZER;
static volatile sig_atomic_t alarms;

static struct timespec from_now(clockid_t clock, long ms)
{
    struct timespec t;
    CHECK_EQ(clock_gettime(clock, &t), 0);
    t.tv_nsec += ms * 1000000;
    t.tv_sec += t.tv_nsec / 1000000000;
    t.tv_nsec %= 1000000000;
    return t;
}

static void by_nanosleep(void)
{
    struct timespec t = {0, CALL_MS * 1000000L}, left = {9, 9};
    CHECK_EQ(nanosleep(&t, &left), 0);
}

static void by_clock_nanosleep(void)
{
    struct timespec t = from_now(CLOCK_MONOTONIC, CALL_MS);
    CHECK_EQ(clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL), 0);
}

static void by_usleep(void)
{
    CHECK_EQ(usleep(CALL_MS * 1000), 0);
}

static void by_sleep(void)
{
    CHECK_EQ(sleep(1), 0);
}

static void by_poll(void)
{
    struct pollfd fd = {empty_pipe[0], POLLIN, 0};
    CHECK_EQ(poll(&fd, 1, CALL_MS), 0);
}

static void by_ppoll(void)
{
    struct pollfd fd = {empty_pipe[0], POLLIN, 0};
    struct timespec t = {0, CALL_MS * 1000000L};
    CHECK_EQ(ppoll(&fd, 1, &t, NULL), 0);
}

static void by_select(void)
{
    fd_set set;
    FD_ZERO(&set);
    FD_SET(empty_pipe[0], &set);
    struct timeval t = {0, CALL_MS * 1000};
    CHECK_EQ(select(empty_pipe[0] + 1, &set, NULL, NULL, &t), 0);
}

static void by_pselect(void)
{
    struct timespec t = {0, CALL_MS * 1000000L};
    CHECK_EQ(pselect(0, NULL, NULL, NULL, &t, NULL), 0);
}

static void by_sem_timedwait(void)
{
    struct timespec t = from_now(CLOCK_REALTIME, CALL_MS);
    CHECK(sem_timedwait(&never, &t) == -1 && errno == ETIMEDOUT);
}

static void by_cond_timedwait(void)
{
    struct timespec t = from_now(CLOCK_REALTIME, CALL_MS);
    CHECK_EQ(pthread_mutex_lock(&wait_lock), 0);
    /* POSIX lets a condition wake for nothing; glibc does not natively, and is not to here. */
    CHECK_EQ(pthread_cond_timedwait(&never_moved, &wait_lock, &t), ETIMEDOUT);
    CHECK_EQ(pthread_mutex_unlock(&wait_lock), 0);
}

static void by_mutex_timedlock(void)
{
    struct timespec t = from_now(CLOCK_REALTIME, CALL_MS);
    CHECK_EQ(pthread_mutex_timedlock(&held, &t), ETIMEDOUT);
}

static void by_sigtimedwait(void)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGRTMIN + 4);
    struct timespec t = {0, CALL_MS * 1000000L};
    CHECK(sigtimedwait(&set, NULL, &t) == -1 && errno == EAGAIN);
}

static void (*const timed[])(void) = {by_nanosleep, by_clock_nanosleep, by_usleep,        by_sleep,
                                      by_poll,      by_ppoll,           by_select,        by_pselect,
                                      by_sem_timedwait, by_cond_timedwait, by_mutex_timedlock, by_sigtimedwait};
enum { TIMED = sizeof timed / sizeof *timed };

/* Those from by_sem_timedwait to by_mutex_timedlock wait until a time of day, which goes on while a program is saved
 * and not running; the monotonic clock does not. */
static int64_t now_of(long which)
{
    struct timespec t;
    int by_day = timed[which] == by_sem_timedwait || timed[which] == by_cond_timedwait || timed[which] == by_mutex_timedlock;
    CHECK_EQ(clock_gettime(by_day ? CLOCK_REALTIME : CLOCK_MONOTONIC, &t), 0);
    return t.tv_sec * (int64_t)1000000000 + t.tv_nsec;
}

static void *run_timed(void *argument)
{
    while (!stop) {
        int64_t begin = now_of((long)argument);
        timed[(long)argument]();
        int64_t took = now_of((long)argument) - begin;
        if (took < (int64_t)CALL_MS * 1000000)
            guest_fail(__FILE__, __LINE__, "a timed call ended early; the value is its number in timed[]", (long)argument);
        calls++;
    }
    return NULL;
}

static atomic_int may_return;

/* Without limit: each returns once, after the main thread has allowed it. */
static void *run_endless(void *argument)
{
    char byte = 0;
    struct pollfd fd = {last_pipe[0], POLLIN, 0};
    fd_set set;
    switch ((long)argument) {
    case 0:
        CHECK_EQ(poll(&fd, 1, -1), 1);
        break;
    case 1:
        FD_ZERO(&set);
        FD_SET(last_pipe[0], &set);
        CHECK_EQ(select(last_pipe[0] + 1, &set, NULL, NULL, NULL), 1);
        break;
    case 2:
        CHECK_EQ(sem_wait(&released), 0);
        break;
    case 3:
        CHECK_EQ(pthread_mutex_lock(&held), 0);
        CHECK_EQ(pthread_mutex_unlock(&held), 0);
        break;
    case 4: {
        /* One child for each thread that waits: this one leaves when its pipe ends. */
        pid_t child = fork();
        CHECK(child >= 0);
        if (child == 0) {
            CHECK_EQ(close(last_pipe[1]), 0);
            struct pollfd end = {last_pipe[0], POLLIN, 0};
            CHECK_EQ(poll(&end, 1, -1), 1);
            _exit(11);
        }
        int status = 0;
        CHECK_EQ(waitpid(child, &status, 0), child);
        CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 11);
        break;
    }
    default:
        CHECK_EQ(read(empty_pipe[0], &byte, 1), 1);
    }
    CHECK(may_return);
    return NULL;
}

static void on_alarm(int number)
{
    (void)number;
    alarms++;
}

int main(int argc, char **argv)
{
    long steps = guest_steps(argc, argv);
    CHECK_EQ(pipe(empty_pipe), 0);
    CHECK_EQ(pipe(last_pipe), 0);
    CHECK_EQ(sem_init(&never, 0, 0), 0);
    CHECK_EQ(sem_init(&released, 0, 0), 0);
    CHECK_EQ(pthread_mutex_lock(&held), 0);
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGRTMIN + 4);
    sigaddset(&set, SIGALRM);
    CHECK_EQ(pthread_sigmask(SIG_BLOCK, &set, NULL), 0);

    pthread_t threads[TIMED], endless[6];
    for (long i = 0; i < TIMED; i++)
        CHECK_EQ(pthread_create(&threads[i], NULL, run_timed, (void *)i), 0);
    for (long i = 0; i < 6; i++)
        CHECK_EQ(pthread_create(&endless[i], NULL, run_endless, (void *)i), 0);

    /* An interval timer goes on as well; its signal stays blocked but for one moment of each step. */
    CHECK(signal(SIGALRM, on_alarm) == SIG_DFL);
    struct itimerval interval = {{0, 20000}, {0, 20000}};
    CHECK_EQ(setitimer(ITIMER_REAL, &interval, NULL), 0);
    sigset_t alarm_only;
    sigemptyset(&alarm_only);
    sigaddset(&alarm_only, SIGALRM);
    for (long i = 1; i <= steps; i++) {
        guest_step(i);
        if (i % 8 == 0) {
            int number = 0;
            CHECK_EQ(sigwait(&alarm_only, &number), 0);
            CHECK_EQ(number, SIGALRM);
        }
    }
    CHECK_EQ(getitimer(ITIMER_REAL, &interval), 0);
    CHECK_EQ(interval.it_interval.tv_usec, 20000);
    stop = 1;
    for (int i = 0; i < TIMED; i++)
        CHECK_EQ(pthread_join(threads[i], NULL), 0);
    CHECK(calls >= TIMED);
    may_return = 1;
    CHECK_EQ(pthread_mutex_unlock(&held), 0);
    CHECK_EQ(sem_post(&released), 0);
    CHECK_EQ(write(last_pipe[1], "x", 1), 1);
    CHECK_EQ(write(empty_pipe[1], "x", 1), 1);
    for (int i = 0; i < 6; i++)
        CHECK_EQ(pthread_join(endless[i], NULL), 0);
    guest_line("ok sleeps");
    return 0;
}
