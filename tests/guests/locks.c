/* File locks: of flock, of fcntl for a process and for a description, some shared with a child, one for which a child waits;
 * and a lease. Another process looks at every step whether they exclude others as they should. */
#include "guest.h"
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/wait.h>

static struct flock range(short type, off_t start, off_t len)
{
    struct flock lock = {0};
    lock.l_type = type;
    lock.l_whence = SEEK_SET;
    lock.l_start = start;
    lock.l_len = len;
    return lock;
}

static int make(const char *path)
{
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
    CHECK(fd >= 0);
    CHECK_EQ(write(fd, "0123456789", 10), 10);
    return fd;
}

/* Checks that whoever opens the file anew cannot have a flock, or only a shared one. */
static void check_flock(const char *path, int shared)
{
    int fd = open(path, O_RDONLY);
    CHECK(fd >= 0);
    CHECK_EQ(flock(fd, LOCK_EX | LOCK_NB), -1);
    CHECK_EQ(errno, EWOULDBLOCK);
    CHECK_EQ(flock(fd, LOCK_SH | LOCK_NB), shared ? 0 : -1);
    CHECK_EQ(close(fd), 0);
}

/* Checks which lock stands in the way of a write lock from `start` to the end: its type, first byte and length. */
static void check_range(const char *path, off_t start, short type, off_t found, off_t len)
{
    int fd = open(path, O_RDWR);
    CHECK(fd >= 0);
    struct flock lock = range(F_WRLCK, start, 0);
    CHECK_EQ(fcntl(fd, F_OFD_GETLK, &lock), 0);
    CHECK_EQ(lock.l_type, type);
    CHECK_EQ(lock.l_start, found);
    CHECK_EQ(lock.l_len, len);
    CHECK_EQ(close(fd), 0);
}

/* A process that closes any descriptor of a file gives up its own locks of it: so the other one looks. */
static void check_all(int in_child)
{
    check_flock("alone", 0);
    check_flock("shared", 1);
    check_flock("waited", 0);
    if (in_child) {
        check_range("process", 0, F_WRLCK, 0, 4);
        check_range("process", 4, F_RDLCK, 6, 2);
        check_range("process", 8, F_UNLCK, 8, 0);
    } else {
        check_range("child", 0, F_WRLCK, 5, 1);
    }
    check_range("description", 0, F_WRLCK, 2, 3);
    check_range("description", 5, F_RDLCK, 100, 0);
}

int main(int argc, char **argv)
{
    long steps = guest_steps(argc, argv);
    struct flock lock;
    char byte;
    int alone = make("alone"), shared = make("shared"), process = make("process"), of_file = make("description");
    int leased = make("leased"), waited = make("waited"), childs = make("child"), ranges = make("ranges");
    CHECK_EQ(flock(alone, LOCK_EX), 0);
    CHECK_EQ(flock(shared, LOCK_SH), 0);
    CHECK_EQ(flock(waited, LOCK_EX), 0);
    lock = range(F_WRLCK, 0, 4);
    CHECK_EQ(fcntl(process, F_SETLK, &lock), 0);
    lock = range(F_RDLCK, 6, 2);
    CHECK_EQ(fcntl(process, F_SETLK, &lock), 0);
    lock = range(F_WRLCK, 3, 1);
    CHECK_EQ(fcntl(ranges, F_SETLK, &lock), 0);
    lock = range(F_WRLCK, 2, 3);
    CHECK_EQ(fcntl(of_file, F_OFD_SETLK, &lock), 0);
    lock = range(F_RDLCK, 100, 0);
    CHECK_EQ(fcntl(of_file, F_OFD_SETLK, &lock), 0);
    CHECK_EQ(close(leased), 0);
    leased = open("leased", O_RDONLY);
    CHECK_EQ(fcntl(leased, F_SETSIG, SIGUSR1), 0);
    CHECK_EQ(fcntl(leased, F_SETLEASE, F_RDLCK), 0);
    /* Nobody else has it open, not even to look at it: that would break the lease. */
    int sole = argc > 2 ? make("sole") : -1;
    if (sole >= 0) {
        CHECK_EQ(fcntl(sole, F_SETSIG, SIGUSR1), 0);
        CHECK_EQ(fcntl(sole, F_SETLEASE, F_WRLCK), 0);
    }

    int ask[2], tell[2], got[2];
    CHECK(pipe(ask) == 0 && pipe(tell) == 0 && pipe(got) == 0);
    pid_t watcher = fork();
    CHECK(watcher >= 0);
    if (watcher == 0) {
        /* Closing its copies drops neither its parent's locks nor those of descriptions. It has one of its own. */
        CHECK(close(ask[1]) == 0 && close(process) == 0 && close(of_file) == 0 && close(ranges) == 0);
        lock = range(F_WRLCK, 5, 1);
        CHECK_EQ(fcntl(childs, F_SETLK, &lock), 0);
        CHECK_EQ(write(tell[1], "r", 1), 1);
        while (read(ask[0], &byte, 1) == 1) {
            check_all(1);
            /* The same description: the lock is its own too. */
            CHECK_EQ(flock(alone, LOCK_EX | LOCK_NB), 0);
            CHECK_EQ(write(tell[1], "k", 1), 1);
        }
        _exit(0);
    }
    pid_t waiters[2];
    for (int i = 0; i < 2; i++) {
        waiters[i] = fork();
        CHECK(waiters[i] >= 0);
        if (waiters[i] == 0) {
            CHECK(close(ask[1]) == 0 && close(waited) == 0);
            int fd = open(i ? "ranges" : "waited", O_RDWR);
            CHECK(fd >= 0);
            lock = range(F_WRLCK, 0, 0);
            CHECK_EQ(i ? fcntl(fd, F_SETLKW, &lock) : flock(fd, LOCK_EX), 0);
            CHECK_EQ(write(got[1], i ? "p" : "f", 1), 1);
            _exit(0);
        }
    }
    CHECK(close(ask[0]) == 0 && close(tell[1]) == 0 && close(got[1]) == 0);
    CHECK_EQ(fcntl(got[0], F_SETFL, O_NONBLOCK), 0);
    CHECK_EQ(read(tell[0], &byte, 1), 1);
    for (long i = 0; i < steps; i++) {
        guest_step(i + 1);
        CHECK_EQ(write(ask[1], "", 1), 1);
        CHECK_EQ(read(tell[0], &byte, 1), 1);
        CHECK_EQ(byte, 'k');
        CHECK_EQ(read(got[0], &byte, 1), -1);
        CHECK_EQ(errno, EAGAIN);
        CHECK_EQ(fcntl(leased, F_GETLEASE), F_RDLCK);
        CHECK(sole < 0 || fcntl(sole, F_GETLEASE) == F_WRLCK);
        CHECK_EQ(fcntl(leased, F_GETSIG), SIGUSR1);
        check_all(0);
    }
    /* Now those who waited get theirs. */
    CHECK_EQ(fcntl(got[0], F_SETFL, 0), 0);
    CHECK_EQ(flock(waited, LOCK_UN), 0);
    CHECK(read(got[0], &byte, 1) == 1 && byte == 'f');
    lock = range(F_UNLCK, 0, 0);
    CHECK_EQ(fcntl(ranges, F_SETLK, &lock), 0);
    CHECK(read(got[0], &byte, 1) == 1 && byte == 'p');
    CHECK_EQ(close(ask[1]), 0);
    int status = 0;
    CHECK_EQ(waitpid(watcher, &status, 0), watcher);
    CHECK_EQ(status, 0);
    for (int i = 0; i < 2; i++) {
        CHECK_EQ(waitpid(waiters[i], &status, 0), waiters[i]);
        CHECK_EQ(status, 0);
    }
    guest_line("ok locks");
    return 0;
}
