/* Named pipes: content, capacity, flags, one end or both, a writer that is gone or has not come yet, one without a name, and
 * a reader outside of the job, if the second argument names its pipe. */
#include "guest.h"
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/wait.h>

static int events(int fd)
{
    struct pollfd poll_fd = {fd, POLLIN, 0};
    CHECK(poll(&poll_fd, 1, 0) >= 0);
    return poll_fd.revents;
}

static void make(const char *path, mode_t mode)
{
    CHECK(unlink(path) == 0 || errno == ENOENT);
    CHECK_EQ(mkfifo(path, mode), 0);
    CHECK_EQ(chmod(path, mode), 0);
}

int main(int argc, char **argv)
{
    long steps = guest_steps(argc, argv);
    char buffer[64];
    make("both", 0640), make("calm", 0600), make("ended", 0600), make("away", 0610), make("child", 0600);
    make("alone", 0600);
    /* One description for both ends, one for each, and a duplicate. */
    int both = open("both", O_RDWR);
    int reader = open("both", O_RDONLY | O_CLOEXEC), writer = open("both", O_WRONLY | O_NONBLOCK);
    int same = dup(writer);
    /* Its writer has not come yet: it waits. */
    int calm = open("calm", O_RDONLY | O_NONBLOCK);
    /* Its writer has gone: there is an end. */
    int ended = open("ended", O_RDONLY | O_NONBLOCK);
    int last = open("ended", O_WRONLY);
    /* Nobody reads any more. */
    int unread = open("alone", O_RDONLY | O_NONBLOCK);
    int alone = open("alone", O_WRONLY);
    /* Its name is gone. */
    int away = open("away", O_RDWR);
    CHECK(both >= 0 && reader >= 0 && writer >= 0 && same >= 0 && calm >= 0 && ended >= 0 && last >= 0);
    CHECK(away >= 0 && unread >= 0 && alone >= 0);
    CHECK_EQ(close(unread), 0);
    CHECK_EQ(close(last), 0);
    CHECK_EQ(unlink("away"), 0);
    CHECK(signal(SIGPIPE, SIG_IGN) == SIG_DFL);
    CHECK_EQ(fcntl(away, F_SETPIPE_SZ, 8192), 8192);
    CHECK_EQ(fcntl(both, F_SETPIPE_SZ, 128 * 1024), 128 * 1024);
    int outside = argc > 2 ? open(argv[2], O_WRONLY | O_NONBLOCK) : -1;
    CHECK(argc < 3 || outside >= 0);

    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        int from = open("child", O_RDONLY);
        CHECK(from >= 0);
        long number, expected = 0;
        while (read(from, &number, sizeof number) == sizeof number)
            CHECK_EQ(number, expected++);
        CHECK_EQ(expected, steps);
        _exit(0);
    }
    int to = open("child", O_WRONLY);
    CHECK(to >= 0);
    for (long i = 0; i < 3; i++) {
        CHECK_EQ(write(writer, &i, sizeof i), sizeof i);
        CHECK_EQ(write(away, &i, sizeof i), sizeof i);
    }
    for (long i = 0; i < steps; i++) {
        guest_step(i + 1);
        long number;
        CHECK_EQ(read(i % 2 ? reader : both, &number, sizeof number), sizeof number);
        CHECK_EQ(number, i);
        CHECK_EQ(read(away, &number, sizeof number), sizeof number);
        CHECK_EQ(number, i);
        number = i + 3;
        CHECK_EQ(write(i % 3 ? writer : same, &number, sizeof number), sizeof number);
        CHECK_EQ(write(away, &number, sizeof number), sizeof number);
        int waiting = 0;
        CHECK_EQ(ioctl(reader, FIONREAD, &waiting), 0);
        CHECK_EQ(waiting, 3 * sizeof number);
        CHECK_EQ(write(to, &i, sizeof i), sizeof i);
        if (outside >= 0) {
            int len = snprintf(buffer, sizeof buffer, "%ld\n", i);
            CHECK_EQ(write(outside, buffer, (size_t)len), len);
        }

        CHECK_EQ(fcntl(both, F_GETPIPE_SZ), 128 * 1024);
        CHECK_EQ(fcntl(away, F_GETPIPE_SZ), 8192);
        CHECK_EQ(fcntl(writer, F_GETFL) & (O_ACCMODE | O_NONBLOCK), O_WRONLY | O_NONBLOCK);
        CHECK_EQ(fcntl(reader, F_GETFL) & (O_ACCMODE | O_NONBLOCK), O_RDONLY);
        CHECK_EQ(fcntl(reader, F_GETFD), FD_CLOEXEC);
        CHECK_EQ(fcntl(both, F_GETFL) & O_ACCMODE, O_RDWR);
        CHECK_EQ(events(calm), 0);
        CHECK_EQ(events(ended), POLLHUP);
        CHECK_EQ(read(ended, buffer, 1), 0);
        CHECK_EQ(write(alone, "x", 1), -1);
        CHECK_EQ(errno, EPIPE);
        struct stat status, named;
        CHECK(fstat(both, &status) == 0 && stat("both", &named) == 0);
        CHECK(status.st_ino == named.st_ino && status.st_dev == named.st_dev);
        CHECK_EQ(status.st_mode, S_IFIFO | 0640);
        CHECK_EQ(fstat(away, &status), 0);
        CHECK_EQ(status.st_mode, S_IFIFO | 0610);
        CHECK_EQ(status.st_nlink, 0);
        CHECK(stat("away", &named) == -1 && errno == ENOENT);
        /* A name is as good as ever: whoever opens it now meets the old ends. */
        if (i % 8 == 0) {
            int late = open("calm", O_WRONLY | O_NONBLOCK);
            CHECK(late >= 0);
            CHECK_EQ(write(late, "late", 4), 4);
            CHECK_EQ(events(calm), POLLIN);
            CHECK_EQ(read(calm, buffer, sizeof buffer), 4);
            /* From now on its writer would have gone: another takes its place. */
            CHECK_EQ(close(calm), 0);
            CHECK_EQ(close(late), 0);
            calm = open("calm", O_RDONLY | O_NONBLOCK);
            CHECK(calm >= 0);
        }
    }
    CHECK_EQ(close(to), 0);
    int status = 0;
    CHECK_EQ(waitpid(child, &status, 0), child);
    CHECK_EQ(status, 0);
    guest_line("ok fifos");
    return 0;
}
