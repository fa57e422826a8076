/* Pipes of packets: one read takes one packet and no more, also where packets and a stream stand in one pipe. */
#include "guest.h"
#include <sys/ioctl.h>
#include <sys/wait.h>

enum { WAITING = 5 };

/* Packet `i` has a length and a content of its own; every seventh has one byte, every eleventh a whole page. */
static size_t packet(char *buffer, long i)
{
    size_t len = i % 7 == 0 ? 1 : i % 11 == 0 ? 4096 : (size_t)(i * 37 % 900) + 2;
    memset(buffer, (int)('a' + i % 26), len);
    return len;
}

static void put(int fd, long i)
{
    char buffer[4096];
    size_t len = packet(buffer, i);
    CHECK_EQ(write(fd, buffer, len), len);
}

static void take(int fd, long i)
{
    char wanted[4096], found[8192];
    size_t len = packet(wanted, i);
    CHECK_EQ(read(fd, found, sizeof found), len);
    CHECK(memcmp(wanted, found, len) == 0);
}

int main(int argc, char **argv)
{
    long steps = guest_steps(argc, argv);
    int held[2], mixed[2], to[2], ended[2], full[2];
    char found[8192];
    CHECK(pipe2(held, O_DIRECT) == 0 && pipe2(to, O_DIRECT | O_CLOEXEC) == 0 && pipe2(ended, O_DIRECT) == 0);
    CHECK(pipe(mixed) == 0);
    CHECK_EQ(pipe2(full, O_DIRECT | O_NONBLOCK), 0);
    /* All buffers are taken, by a byte each. */
    int in_full = 0;
    while (write(full[1], "f", 1) == 1)
        in_full++;
    CHECK_EQ(errno, EAGAIN);
    put(ended[1], 7), put(ended[1], 14), put(ended[1], 8);
    CHECK_EQ(close(ended[1]), 0);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        CHECK_EQ(close(to[1]), 0);
        for (long i = 0; i < steps + 2; i++)
            take(to[0], i);
        CHECK_EQ(read(to[0], found, sizeof found), 0);
        _exit(7);
    }
    CHECK_EQ(close(to[0]), 0);
    for (long i = 0; i < WAITING; i++)
        put(held[1], i);
    put(to[1], 0), put(to[1], 1);
    for (long i = 0; i < steps; i++) {
        /* Two packets, a stream, and a packet that does not fit behind that in one buffer. */
        CHECK_EQ(fcntl(mixed[1], F_SETFL, O_DIRECT), 0);
        CHECK_EQ(write(mixed[1], "a", 1), 1);
        CHECK_EQ(write(mixed[1], "packet", 6), 6);
        CHECK_EQ(fcntl(mixed[1], F_SETFL, 0), 0);
        CHECK_EQ(write(mixed[1], "stream", 6), 6);
        CHECK_EQ(fcntl(mixed[1], F_SETFL, O_DIRECT), 0);
        memset(found, 'p', 4096);
        CHECK_EQ(write(mixed[1], found, 4092), 4092);
        CHECK_EQ(write(mixed[1], "end", 3), 3);
        guest_step(i + 1);
        /* A read goes on from a stream into a packet, and ends behind that. */
        CHECK_EQ(read(mixed[0], found, sizeof found), 1);
        CHECK_EQ(read(mixed[0], found, 4), 4);
        CHECK_EQ(read(mixed[0], found, 3), 3);
        CHECK(memcmp(found, "str", 3) == 0);
        CHECK_EQ(read(mixed[0], found, sizeof found), 3 + 4092);
        CHECK_EQ(read(mixed[0], found, sizeof found), 3);
        CHECK(memcmp(found, "end", 3) == 0);

        take(held[0], i);
        put(held[1], i + WAITING);
        put(to[1], i + 2);
        int waiting = 0, wanted = 0;
        for (long k = 1; k <= WAITING; k++)
            wanted += (int)packet(found, i + k);
        CHECK_EQ(ioctl(held[0], FIONREAD, &waiting), 0);
        CHECK_EQ(waiting, wanted);
        CHECK_EQ(fcntl(held[1], F_GETFL), O_WRONLY | O_DIRECT);
        CHECK_EQ(fcntl(held[0], F_GETFL), O_RDONLY);
        CHECK_EQ(fcntl(to[1], F_GETFL), O_WRONLY | O_DIRECT);
        CHECK_EQ(write(full[1], "f", 1), -1);
        CHECK_EQ(errno, EAGAIN);
    }
    CHECK_EQ(close(to[1]), 0);
    for (int i = 0; i < in_full; i++)
        CHECK_EQ(read(full[0], found, sizeof found), 1);
    CHECK_EQ(read(full[0], found, 1), -1);
    take(ended[0], 7), take(ended[0], 14), take(ended[0], 8);
    CHECK_EQ(read(ended[0], found, 1), 0);
    int status = 0;
    CHECK_EQ(waitpid(child, &status, 0), child);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 7);
    guest_line("ok packets");
    return 0;
}
