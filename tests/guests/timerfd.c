/* Timers of timerfd: time that is left, intervals, expirations that were not read, dates, a reader that waits. */
#include "guest.h"
#include <poll.h>
#include <pthread.h>
#include <sys/timerfd.h>

static const struct timespec second = {1, 0}, never = {0, 0};

static int timer(clockid_t clock, int flags, struct timespec value, struct timespec interval)
{
    int fd = timerfd_create(clock, TFD_NONBLOCK);
    CHECK(fd >= 0);
    struct itimerspec spec = {interval, value};
    CHECK_EQ(timerfd_settime(fd, flags, &spec, NULL), 0);
    return fd;
}

static struct itimerspec state(int fd)
{
    struct itimerspec spec;
    CHECK_EQ(timerfd_gettime(fd, &spec), 0);
    return spec;
}

static int64_t ns(struct timespec time)
{
    return time.tv_sec * INT64_C(1000000000) + time.tv_nsec;
}

static uint64_t ticks(int fd)
{
    uint64_t count = 0;
    ssize_t len = read(fd, &count, sizeof count);
    CHECK(len == sizeof count || (len == -1 && errno == EAGAIN));
    return count;
}

static int blocking;

/* Waits in read for a periodic timer. */
static void *reader(void *argument)
{
    for (long left = (long)argument; left > 0;) {
        uint64_t count = 0;
        CHECK_EQ(read(blocking, &count, sizeof count), sizeof count);
        CHECK(count > 0);
        left -= (long)count;
    }
    return NULL;
}

int main(int argc, char **argv)
{
    long steps = guest_steps(argc, argv);
    struct timespec hour = {3600, 0}, ms = {0, 1000000}, now;
    int idle = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC);
    CHECK(idle >= 0);
    int far = timer(CLOCK_MONOTONIC, 0, hour, second);
    int64_t far_left = ns(hour);
    int booted = timer(CLOCK_BOOTTIME, 0, hour, never);
    CHECK_EQ(clock_gettime(CLOCK_REALTIME, &now), 0);
    struct timespec date = {now.tv_sec + 7200, 0};
    int dated = timer(CLOCK_REALTIME, TFD_TIMER_ABSTIME | TFD_TIMER_CANCEL_ON_SET, date, never);
    struct timespec soon = {now.tv_sec + 2, 0};
    int due = timer(CLOCK_REALTIME, TFD_TIMER_ABSTIME, soon, never);
    int expired = timer(CLOCK_MONOTONIC, 0, ms, never);
    int periodic = timer(CLOCK_MONOTONIC, 0, ms, ms);
    int64_t begin = guest_now_ns();
    int slow = timer(CLOCK_MONOTONIC, 0, second, second);
    blocking = timerfd_create(CLOCK_MONOTONIC, 0);
    struct itimerspec spec = {ms, ms};
    CHECK_EQ(timerfd_settime(blocking, 0, &spec, NULL), 0);
    pthread_t thread;
    CHECK_EQ(pthread_create(&thread, NULL, reader, (void *)(steps * 2)), 0);
    guest_nap_us(5000);

    uint64_t seen = 0;
    for (long i = 0; i < steps; i++) {
        guest_step(i + 1);
        CHECK_EQ(fcntl(idle, F_GETFD), FD_CLOEXEC);
        CHECK_EQ(fcntl(idle, F_GETFL) & O_NONBLOCK, 0);
        CHECK_EQ(ns(state(idle).it_value), 0);
        /* It goes on, and never gains. */
        struct itimerspec left = state(far);
        CHECK(ns(left.it_value) > 0 && ns(left.it_value) <= far_left && far_left - ns(left.it_value) < ns(second) * 600);
        CHECK_EQ(ns(left.it_interval), ns(second));
        far_left = ns(left.it_value);
        CHECK(ns(state(booted).it_value) > 0);
        /* A date stays one. */
        CHECK_EQ(clock_gettime(CLOCK_REALTIME, &now), 0);
        int64_t to_date = ns(date) - ns(now) - ns(state(dated).it_value);
        CHECK(to_date > -ns(second) / 100 && to_date < ns(second));
        CHECK_EQ(ticks(dated), 0);
        struct pollfd ready = {expired, POLLIN, 0};
        CHECK_EQ(poll(&ready, 1, 0), 1);
        CHECK_EQ(ns(state(expired).it_value), 0);
        /* Expirations are counted while nobody reads; then they are all told. */
        if (i % 10 == 9) {
            seen += ticks(periodic);
            CHECK((int64_t)seen <= (guest_now_ns() - begin) / 1000000 + 1);
            CHECK(seen >= (uint64_t)i * 4);
        }
    }
    CHECK_EQ(ticks(expired), 1);
    CHECK_EQ(ticks(expired), 0);
    struct pollfd ready[2] = {{due, POLLIN, 0}, {slow, POLLIN, 0}};
    CHECK_EQ(poll(&ready[0], 1, 30000), 1);
    CHECK_EQ(clock_gettime(CLOCK_REALTIME, &now), 0);
    CHECK(ns(now) >= ns(soon));
    CHECK_EQ(ticks(due), 1);
    CHECK_EQ(poll(&ready[1], 1, 30000), 1);
    CHECK(ticks(slow) >= 1);
    CHECK_EQ(pthread_join(thread, NULL), 0);
    guest_line("ok timerfd");
    return 0;
}
