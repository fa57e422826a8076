/* Pipes keep what they hold: some bytes, a full pipe with a writer that waits, one without writers, one without readers. */
#include "guest.h"
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/ioctl.h>
#include <sys/wait.h>

static int full[2];
static atomic_long written;

/* Writes a stream of numbers; the pipe is full nearly all the time. */
static void *writer(void *argument)
{
    long count = (long)argument;
    uint32_t block[1024];
    for (long i = 0; i < count; i++) {
        for (int k = 0; k < 1024; k++)
            block[k] = (uint32_t)(i * 1024 + k);
        CHECK_EQ(write(full[1], block, sizeof block), sizeof block);
        written = i + 1;
    }
    CHECK_EQ(close(full[1]), 0);
    return NULL;
}

int main(int argc, char **argv)
{
    long steps = guest_steps(argc, argv);
    int held[2], ended[2], broken[2], sized[2], flagged[2];
    char byte;
    CHECK(signal(SIGPIPE, SIG_IGN) == SIG_DFL);
    CHECK(pipe(held) == 0 && pipe(ended) == 0 && pipe(broken) == 0 && pipe(full) == 0);
    CHECK(pipe2(flagged, O_NONBLOCK | O_CLOEXEC) == 0 && pipe(sized) == 0);
    CHECK_EQ(fcntl(sized[1], F_SETPIPE_SZ, 256 * 1024), 256 * 1024);
    char large[200 * 1024];
    memset(large, 'L', sizeof large);
    CHECK_EQ(write(sized[1], large, sizeof large), sizeof large);
    CHECK_EQ(write(ended[1], "last words", 10), 10);
    CHECK_EQ(close(ended[1]), 0);
    CHECK_EQ(close(broken[0]), 0);

    /* Full, without anyone who waits. */
    int brim[2];
    CHECK_EQ(pipe2(brim, O_NONBLOCK), 0);
    long in_brim = 0;
    while (write(brim[1], "b", 1) == 1)
        in_brim++;
    CHECK_EQ(errno, EAGAIN);

    /* An echo in another process. */
    int to[2], from[2];
    CHECK(pipe(to) == 0 && pipe(from) == 0);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        CHECK(close(to[1]) == 0 && close(from[0]) == 0 && close(full[0]) == 0 && close(full[1]) == 0);
        long number;
        while (read(to[0], &number, sizeof number) == sizeof number) {
            number = number * 2 + 1;
            if (write(from[1], &number, sizeof number) != sizeof number)
                break;
        }
        _exit(21);
    }
    CHECK(close(to[0]) == 0 && close(from[1]) == 0);

    pthread_t thread;
    CHECK_EQ(pthread_create(&thread, NULL, writer, (void *)(steps * 4)), 0);
    for (long i = 0; i < 3; i++)
        CHECK_EQ(write(held[1], &i, sizeof i), sizeof i);
    for (long i = 0; i < 2; i++)
        CHECK_EQ(write(to[1], &i, sizeof i), sizeof i);

    uint32_t next = 0, block[1024];
    for (long i = 0; i < steps; i++) {
        guest_step(i + 1);
        /* Three messages stand in the pipe at every step. */
        long number;
        CHECK_EQ(read(held[0], &number, sizeof number), sizeof number);
        CHECK_EQ(number, i);
        number = i + 3;
        CHECK_EQ(write(held[1], &number, sizeof number), sizeof number);
        int waiting = 0;
        CHECK_EQ(ioctl(held[0], FIONREAD, &waiting), 0);
        CHECK_EQ(waiting, 3 * sizeof number);
        /* Two are under way to the child and back. */
        CHECK_EQ(read(from[0], &number, sizeof number), sizeof number);
        CHECK_EQ(number, 2 * i + 1);
        number = i + 2;
        CHECK_EQ(write(to[1], &number, sizeof number), sizeof number);

        for (int k = 0; k < 4; k++) {
            size_t len = 0;
            while (len < sizeof block) {
                ssize_t n = read(full[0], (char *)block + len, sizeof block - len);
                CHECK(n > 0);
                len += (size_t)n;
            }
            for (int word = 0; word < 1024; word++)
                CHECK(block[word] == next++);
        }
        CHECK_EQ(fcntl(sized[1], F_GETPIPE_SZ), 256 * 1024);
        CHECK_EQ(ioctl(sized[0], FIONREAD, &waiting), 0);
        CHECK_EQ(waiting, sizeof large);
        CHECK(write(broken[1], "x", 1) == -1 && errno == EPIPE);
        CHECK(read(flagged[0], &byte, 1) == -1 && errno == EAGAIN);
        CHECK_EQ(fcntl(flagged[1], F_GETFL) & O_NONBLOCK, O_NONBLOCK);
        CHECK_EQ(fcntl(flagged[0], F_GETFD), FD_CLOEXEC);
        CHECK_EQ(fcntl(held[0], F_GETFL) & O_NONBLOCK, 0);
        CHECK(write(brim[1], "b", 1) == -1 && errno == EAGAIN);
        CHECK_EQ(ioctl(brim[0], FIONREAD, &waiting), 0);
        CHECK_EQ(waiting, in_brim);
    }
    CHECK_EQ(pthread_join(thread, NULL), 0);
    CHECK_EQ(read(full[0], &byte, 1), 0);
    char words[16];
    CHECK_EQ(read(ended[0], words, sizeof words), 10);
    CHECK(memcmp(words, "last words", 10) == 0);
    CHECK_EQ(read(ended[0], words, sizeof words), 0);
    CHECK_EQ(read(sized[0], large, sizeof large), sizeof large);
    for (size_t i = 0; i < sizeof large; i++)
        CHECK_EQ(large[i], 'L');
    CHECK_EQ(close(to[1]), 0);
    int status = 0;
    CHECK_EQ(waitpid(child, &status, 0), child);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 21);
    guest_line("ok pipes %u", next);
    return 0;
}
