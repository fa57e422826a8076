/* Clocks that count from a boot go on where they stood, by whatever way they are read, and waits until a time of theirs
 * end neither early nor late. */
#include "guest.h"
#include <aio.h>
#include <elf.h>
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <sys/auxv.h>
#include <sys/syscall.h>
#include <sys/sysinfo.h>
#include <sys/timerfd.h>
#include <sys/wait.h>

enum { CLOCKS = 4, WAIT_MS = 150 };

/* No checkpoint takes as long, and no other host's clock is as near. */
static const int64_t jump_ns = 60 * 1000000000ll;
static const clockid_t clocks[CLOCKS] = {CLOCK_MONOTONIC, CLOCK_MONOTONIC_RAW, CLOCK_MONOTONIC_COARSE, CLOCK_BOOTTIME};

static atomic_int stop;
static int (*vdso_clock_gettime)(clockid_t, struct timespec *);

static int64_t ns(struct timespec t)
{
    return t.tv_sec * 1000000000ll + t.tv_nsec;
}

static int64_t now(clockid_t clock)
{
    struct timespec t;
    CHECK_EQ(clock_gettime(clock, &t), 0);
    return ns(t);
}

/* What a program that finds the vDSO itself has found. */
static void find_vdso(void)
{
    const char *start = (const char *)getauxval(AT_SYSINFO_EHDR);
    if (start == NULL)
        return;
    const Elf64_Ehdr *header = (const void *)start;
    const Elf64_Shdr *sections = (const void *)(start + header->e_shoff);
    for (int i = 0; i < header->e_shnum; i++) {
        if (sections[i].sh_type != SHT_DYNSYM)
            continue;
        const Elf64_Sym *symbols = (const void *)(start + sections[i].sh_offset);
        const char *names = start + sections[sections[i].sh_link].sh_offset;
        for (size_t j = 0; j < sections[i].sh_size / sizeof *symbols; j++)
            if (strcmp(names + symbols[j].st_name, "__vdso_clock_gettime") == 0)
                vdso_clock_gettime = (void *)(start + symbols[j].st_value);
    }
    CHECK(vdso_clock_gettime != NULL);
}

static pthread_mutex_t held = PTHREAD_MUTEX_INITIALIZER;
static pthread_rwlock_t held_rw = PTHREAD_RWLOCK_INITIALIZER, read_rw = PTHREAD_RWLOCK_INITIALIZER;
static pthread_cond_t by_attribute, plain = PTHREAD_COND_INITIALIZER;
static sem_t never, called;
static timer_t quiet, calling;
static int fds[2];
static uint32_t word;

static void set_up(void)
{
    pthread_condattr_t attributes;
    struct sigevent none = {.sigev_notify = SIGEV_NONE};
    CHECK_EQ(sem_init(&never, 0, 0), 0);
    CHECK_EQ(sem_init(&called, 0, 0), 0);
    CHECK_EQ(pthread_condattr_init(&attributes), 0);
    CHECK_EQ(pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC), 0);
    CHECK_EQ(pthread_cond_init(&by_attribute, &attributes), 0);
    CHECK_EQ(pthread_mutex_lock(&held), 0);
    CHECK_EQ(pthread_rwlock_wrlock(&held_rw), 0);
    CHECK_EQ(pthread_rwlock_rdlock(&read_rw), 0);
    CHECK_EQ(timer_create(CLOCK_MONOTONIC, &none, &quiet), 0);
    fds[0] = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC);
    fds[1] = timerfd_create(CLOCK_BOOTTIME, TFD_CLOEXEC);
    CHECK(fds[0] >= 0 && fds[1] >= 0);
}

static void tell(union sigval value)
{
    (void)value;
    CHECK_EQ(sem_post(&called), 0);
}

/* The ways to wait. Each returns once the clock shows `t`. */

static void by_clock_nanosleep(const struct timespec *t)
{
    CHECK_EQ(clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, t, NULL), 0);
}

static void by_raw_clock_nanosleep(const struct timespec *t)
{
    while (syscall(SYS_clock_nanosleep, CLOCK_MONOTONIC, TIMER_ABSTIME, t, NULL) != 0)
        CHECK_EQ(errno, EINTR);
}

static void by_boottime(const struct timespec *t)
{
    /* Both clocks go on as they stood, so their distance stays. */
    int64_t at = ns(*t) - now(CLOCK_MONOTONIC) + now(CLOCK_BOOTTIME) + 1000000;
    struct timespec boot = {at / 1000000000, at % 1000000000};
    CHECK_EQ(clock_nanosleep(CLOCK_BOOTTIME, TIMER_ABSTIME, &boot, NULL), 0);
}

static void by_semaphore(const struct timespec *t)
{
    CHECK(sem_clockwait(&never, CLOCK_MONOTONIC, t) == -1 && errno == ETIMEDOUT);
}

static void by_cond_attribute(const struct timespec *t)
{
    pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    CHECK_EQ(pthread_mutex_lock(&lock), 0);
    CHECK_EQ(pthread_cond_timedwait(&by_attribute, &lock, t), ETIMEDOUT);
    CHECK_EQ(pthread_mutex_unlock(&lock), 0);
}

static void by_cond_clock(const struct timespec *t)
{
    pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    CHECK_EQ(pthread_mutex_lock(&lock), 0);
    CHECK_EQ(pthread_cond_clockwait(&plain, &lock, CLOCK_MONOTONIC, t), ETIMEDOUT);
    CHECK_EQ(pthread_mutex_unlock(&lock), 0);
}

/* The same until a time of day, which stays what it is. */
static void by_cond_realtime(const struct timespec *t)
{
    static pthread_cond_t cond = PTHREAD_COND_INITIALIZER;
    pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    struct timespec day;
    CHECK_EQ(clock_gettime(CLOCK_REALTIME, &day), 0);
    int64_t at = ns(day) + WAIT_MS * 1000000ll / 2;
    day = (struct timespec){at / 1000000000, at % 1000000000};
    CHECK_EQ(pthread_mutex_lock(&lock), 0);
    CHECK_EQ(pthread_cond_timedwait(&cond, &lock, &day), ETIMEDOUT);
    CHECK_EQ(pthread_mutex_unlock(&lock), 0);
    by_clock_nanosleep(t);
}

static void by_mutex(const struct timespec *t)
{
    CHECK_EQ(pthread_mutex_clocklock(&held, CLOCK_MONOTONIC, t), ETIMEDOUT);
}

static void by_read_lock(const struct timespec *t)
{
    CHECK_EQ(pthread_rwlock_clockrdlock(&held_rw, CLOCK_MONOTONIC, t), ETIMEDOUT);
}

static void by_write_lock(const struct timespec *t)
{
    CHECK_EQ(pthread_rwlock_clockwrlock(&read_rw, CLOCK_MONOTONIC, t), ETIMEDOUT);
}

/* By syscall(2), where a checkpoint may be seen as EINTR: as all that do so, it waits again. */
static void by_futex(const struct timespec *t)
{
    do
        CHECK(syscall(SYS_futex, &word, FUTEX_WAIT_BITSET_PRIVATE, 0, t, NULL, FUTEX_BITSET_MATCH_ANY) == -1);
    while (errno == EINTR);
    CHECK_EQ(errno, ETIMEDOUT);
}

/* Its time is relative. */
static void by_futex_left(const struct timespec *t)
{
    int64_t left;
    while ((left = ns(*t) - now(CLOCK_MONOTONIC)) > 0) {
        struct timespec wait = {left / 1000000000, left % 1000000000};
        CHECK(syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 0, &wait, NULL, 0) == -1);
        CHECK(errno == ETIMEDOUT || errno == EINTR);
    }
}

/* libc adds the timeout to what it reads from the clock, and waits until then. */
static void by_aio(const struct timespec *t)
{
    static struct aiocb request;
    static char byte;
    const struct aiocb *list[1] = {&request};
    if (request.aio_buf == NULL) {
        int ends[2];
        CHECK_EQ(pipe2(ends, O_CLOEXEC), 0);
        request = (struct aiocb){.aio_fildes = ends[0], .aio_buf = &byte, .aio_nbytes = 1};
        CHECK_EQ(aio_read(&request), 0);
    }
    int64_t left = ns(*t) - now(CLOCK_MONOTONIC);
    if (left > 0) {
        struct timespec wait = {left / 1000000000, left % 1000000000};
        CHECK(aio_suspend(list, 1, &wait) == -1 && errno == EAGAIN);
    }
}

static void by_timer(const struct timespec *t)
{
    struct itimerspec spec = {{0, 0}, *t};
    CHECK_EQ(timer_settime(quiet, TIMER_ABSTIME, &spec, NULL), 0);
    do {
        guest_nap_us(3000);
        CHECK_EQ(timer_gettime(quiet, &spec), 0);
        CHECK(spec.it_value.tv_sec < 1);
    } while (spec.it_value.tv_nsec != 0);
}

/* A timer that libc knows nothing of. */
static void by_raw_timer(const struct timespec *t)
{
    struct sigevent none = {.sigev_notify = SIGEV_NONE};
    struct itimerspec spec = {{0, 0}, *t};
    int id;
    CHECK_EQ(syscall(SYS_timer_create, CLOCK_MONOTONIC, &none, &id), 0);
    CHECK_EQ(syscall(SYS_timer_settime, id, TIMER_ABSTIME, &spec, NULL), 0);
    do {
        guest_nap_us(3000);
        CHECK_EQ(syscall(SYS_timer_gettime, id, &spec), 0);
        CHECK(spec.it_value.tv_sec < 1);
    } while (spec.it_value.tv_nsec != 0);
    CHECK_EQ(syscall(SYS_timer_delete, id), 0);
}

static void by_call_of_timer(const struct timespec *t)
{
    struct itimerspec spec = {{0, 0}, *t};
    CHECK_EQ(timer_settime(calling, TIMER_ABSTIME, &spec, NULL), 0);
    while (sem_wait(&called) != 0)
        CHECK_EQ(errno, EINTR);
}

static void by_timerfd(const struct timespec *t)
{
    struct itimerspec spec = {{0, 0}, *t};
    uint64_t count;
    CHECK_EQ(timerfd_settime(fds[0], TFD_TIMER_ABSTIME, &spec, NULL), 0);
    CHECK_EQ(read(fds[0], &count, sizeof count), sizeof count);
    CHECK_EQ(count, 1);
}

static void by_boottime_timerfd(const struct timespec *t)
{
    int64_t at = ns(*t) - now(CLOCK_MONOTONIC) + now(CLOCK_BOOTTIME) + 1000000;
    struct itimerspec spec = {{0, 0}, {at / 1000000000, at % 1000000000}};
    uint64_t count;
    CHECK_EQ(timerfd_settime(fds[1], TFD_TIMER_ABSTIME, &spec, NULL), 0);
    CHECK_EQ(read(fds[1], &count, sizeof count), sizeof count);
    CHECK_EQ(count, 1);
}

static void (*const ways[])(const struct timespec *) = {
    by_clock_nanosleep, by_raw_clock_nanosleep, by_boottime, by_semaphore, by_cond_attribute, by_cond_clock,
    by_cond_realtime, by_mutex, by_read_lock, by_write_lock, by_futex, by_futex_left, by_aio, by_timer, by_raw_timer,
    by_call_of_timer, by_timerfd, by_boottime_timerfd,
};
enum { WAYS = sizeof ways / sizeof *ways };
static atomic_long waits[WAYS];

static void *wait_again_and_again(void *argument)
{
    long which = (long)argument;
    while (!stop) {
        int64_t at = now(CLOCK_MONOTONIC) + WAIT_MS * 1000000ll;
        struct timespec t = {at / 1000000000, at % 1000000000};
        ways[which](&t);
        int64_t late = now(CLOCK_MONOTONIC) - at;
        CHECK(late >= 0);
        CHECK(late < jump_ns);
        waits[which]++;
    }
    return NULL;
}

/* Times that have passed, and those that never come, are so for the kernel too. */
static void wait_at_the_ends(void)
{
    struct timespec first = {0, 1}, bad = {1, 1000000000}, before = {-1, 0};
    struct itimerspec spec = {{0, 0}, {1, 0}}, last = {{0, 0}, {LONG_MAX, 999999999}};
    uint64_t count;
    CHECK_EQ(clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &first, NULL), 0);
    CHECK_EQ(clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &bad, NULL), EINVAL);
    CHECK_EQ(clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &before, NULL), EINVAL);
    CHECK(sem_clockwait(&never, CLOCK_MONOTONIC, &first) == -1 && errno == ETIMEDOUT);
    CHECK(sem_clockwait(&never, CLOCK_MONOTONIC, &bad) == -1 && errno == EINVAL);
    CHECK(syscall(SYS_clock_gettime, 77, &first) == -1 && errno == EINVAL);
    int fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC);
    CHECK(fd >= 0);
    CHECK_EQ(timerfd_settime(fd, TFD_TIMER_ABSTIME, &spec, NULL), 0);
    CHECK_EQ(read(fd, &count, sizeof count), sizeof count);
    CHECK_EQ(timerfd_settime(fd, TFD_TIMER_ABSTIME, &last, NULL), 0);
    CHECK_EQ(timerfd_gettime(fd, &spec), 0);
    CHECK(spec.it_value.tv_sec > 1000000000);
    CHECK_EQ(close(fd), 0);
}

static void check_near(int64_t found, int64_t wanted)
{
    CHECK(found - wanted < jump_ns);
    CHECK(wanted - found < jump_ns);
}

/* A program that is started later reads the same clocks. */
static void check_new_program(void)
{
    char mono[32], boot[32];
    snprintf(mono, sizeof mono, "%lld", (long long)now(CLOCK_MONOTONIC));
    snprintf(boot, sizeof boot, "%lld", (long long)now(CLOCK_BOOTTIME));
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        execl("/proc/self/exe", "uptime", "new", mono, boot, NULL);
        _exit(96);
    }
    int status;
    CHECK_EQ(waitpid(child, &status, 0), child);
    CHECK_EQ(status, 0);
}

static int new_program(char **argv)
{
    find_vdso();
    int64_t mono = now(CLOCK_MONOTONIC);
    CHECK(mono >= atoll(argv[2]));
    check_near(mono, atoll(argv[2]));
    check_near(now(CLOCK_BOOTTIME), atoll(argv[3]));
    int64_t at = mono + 2000000;
    struct timespec t = {at / 1000000000, at % 1000000000};
    CHECK_EQ(sem_init(&never, 0, 0), 0);
    by_semaphore(&t);
    by_clock_nanosleep(&t);
    CHECK(now(CLOCK_MONOTONIC) >= at);
    struct timespec day;
    CHECK_EQ(clock_gettime(CLOCK_REALTIME, &day), 0);
    CHECK(labs((long)(time(NULL) - day.tv_sec)) < 60);
    return 0;
}

int main(int argc, char **argv)
{
    if (argc == 4)
        return new_program(argv);
    long steps = guest_steps(argc, argv);
    pthread_t threads[WAYS];
    int64_t last[CLOCKS];
    struct sigevent call = {.sigev_notify = SIGEV_THREAD, .sigev_notify_function = tell};
    find_vdso();
    set_up();
    CHECK_EQ(timer_create(CLOCK_MONOTONIC, &call, &calling), 0);
    for (int c = 0; c < CLOCKS; c++)
        last[c] = now(clocks[c]);
    for (long i = 0; i < WAYS; i++)
        CHECK_EQ(pthread_create(&threads[i], NULL, wait_again_and_again, (void *)i), 0);
    for (long i = 1; i <= steps; i++) {
        for (int j = 0; j < 300; j++)
            for (int c = 0; c < CLOCKS; c++) {
                struct timespec t;
                if (j % 3 == 0)
                    CHECK_EQ(clock_gettime(clocks[c], &t), 0);
                else if (j % 3 == 1 && vdso_clock_gettime != NULL)
                    CHECK_EQ(vdso_clock_gettime(clocks[c], &t), 0);
                else
                    CHECK_EQ(syscall(SYS_clock_gettime, clocks[c], &t), 0);
                CHECK(ns(t) >= last[c]);
                CHECK(ns(t) - last[c] < jump_ns);
                last[c] = ns(t);
            }
        struct sysinfo info;
        CHECK_EQ(sysinfo(&info), 0);
        check_near(info.uptime * 1000000000ll, now(CLOCK_BOOTTIME));
        struct timespec day;
        CHECK_EQ(clock_gettime(CLOCK_REALTIME, &day), 0);
        CHECK(labs((long)(time(NULL) - day.tv_sec)) < 60);
        if (i % 5 == 0) {
            wait_at_the_ends();
            check_new_program();
        }
        guest_step(i);
    }
    stop = 1;
    for (int i = 0; i < WAYS; i++) {
        CHECK_EQ(pthread_join(threads[i], NULL), 0);
        CHECK(waits[i] > 0);
    }
    guest_line("ok uptime");
    return 0;
}
