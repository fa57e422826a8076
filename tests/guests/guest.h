/* What all guests share: steps that the harness waits for and holds back, and checks that end the guest.
 *
 * A guest counts steps. It prints each as one line in one write, so that output joins without a seam. The
 * file named by GUEST_LIMIT holds the number of the last step that may be taken; the harness raises it, so
 * no test depends on how fast the machine is. Without the file there is no limit.
 *
 * A line beginning with "note " is information that the harness leaves out of comparisons.
 */
#ifndef GUEST_H
#define GUEST_H

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

/* Steps that are taken when the command line names no number. */
#define GUEST_STEPS 40
/* Time from one step to the next. */
#define GUEST_PACE_MS 5

/* One line in one write. */
__attribute__((format(printf, 1, 2), unused)) static void guest_line(const char *format, ...)
{
    char line[512];
    va_list arguments;
    va_start(arguments, format);
    int len = vsnprintf(line, sizeof line - 1, format, arguments);
    va_end(arguments);
    if (len < 0)
        abort();
    if (len > (int)sizeof line - 2)
        len = (int)sizeof line - 2;
    line[len++] = '\n';
    for (int done = 0; done < len;) {
        ssize_t n = write(STDOUT_FILENO, line + done, (size_t)(len - done));
        if (n < 0)
            _exit(98);
        done += (int)n;
    }
}

__attribute__((unused, noreturn)) static void guest_fail(const char *file, int line, const char *what, long got)
{
    int error = errno;
    char text[512];
    int len = snprintf(text, sizeof text, "FAILED %s:%d: %s (value %ld, errno %d: %s, pid %d)\n", file, line, what,
                       got, error, strerror(error), (int)getpid());
    if (write(STDERR_FILENO, text, (size_t)len) < 0)
        _exit(97);
    if (write(STDOUT_FILENO, text, (size_t)len) < 0)
        _exit(97);
    _exit(99);
}

/* Ends the guest with a message and status 99 unless `what` holds. */
#define CHECK(what)                                            \
    do {                                                       \
        if (!(what))                                           \
            guest_fail(__FILE__, __LINE__, #what, 0);          \
    } while (0)

/* The same, with the value that was found instead of `wanted`. */
#define CHECK_EQ(found, wanted)                                                            \
    do {                                                                                   \
        long found_value = (long)(found);                                                  \
        if (found_value != (long)(wanted))                                                 \
            guest_fail(__FILE__, __LINE__, #found " is to equal " #wanted, found_value);   \
    } while (0)

__attribute__((unused)) static int64_t guest_now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* Sleeps; neither EINTR nor an early end is accepted. */
__attribute__((unused)) static void guest_nap_us(long us)
{
    struct timespec t = {us / 1000000, us % 1000000 * 1000};
    int64_t begin = guest_now_ns();
    int result = nanosleep(&t, NULL);
    CHECK(result == 0);
    CHECK(guest_now_ns() - begin >= us * 1000);
}

/* Steps from the command line. */
__attribute__((unused)) static long guest_steps(int argc, char **argv)
{
    long steps = argc > 1 ? atol(argv[1]) : GUEST_STEPS;
    return steps > 0 ? steps : GUEST_STEPS;
}

/* The last step that may be taken; `path` is NULL for the file in GUEST_LIMIT. */
__attribute__((unused)) static long guest_limit(const char *path)
{
    if (path == NULL)
        path = getenv("GUEST_LIMIT");
    if (path == NULL)
        return INT64_MAX;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return INT64_MAX;
    char text[32] = {0};
    ssize_t len = read(fd, text, sizeof text - 1);
    CHECK(len >= 0);
    CHECK(close(fd) == 0);
    return atol(text);
}

/* Paces, and waits until step `step` may be taken. */
__attribute__((unused)) static void guest_pace(long step, const char *path)
{
    guest_nap_us(GUEST_PACE_MS * 1000);
    while (guest_limit(path) < step)
        guest_nap_us(GUEST_PACE_MS * 1000);
}

/* Waits until the step may be taken, and says that it is. */
__attribute__((unused)) static void guest_step(long step)
{
    guest_pace(step, NULL);
    guest_line("step %ld", step);
}

/* A reproducible stream of numbers; `state` is not to be zero. */
__attribute__((unused)) static uint64_t guest_random(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

/* A checksum of `len` bytes. */
__attribute__((unused)) static uint64_t guest_sum(const void *data, size_t len)
{
    const unsigned char *bytes = (const unsigned char *)data;
    uint64_t sum = 14695981039346656037u;
    for (size_t i = 0; i < len; i++)
        sum = (sum ^ bytes[i]) * 1099511628211u;
    return sum;
}

#endif
