/* Regular files: offsets, flags, offsets shared after fork and dup, descriptor numbers, cwd, umask and limits.
 * `files STEPS nameless` adds a file that is open and has no name. */
#include "guest.h"
#include <limits.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>

enum { RECORD = 32 };

static void record(char *text, long i)
{
    memset(text, '.', RECORD);
    int len = snprintf(text, RECORD, "record %ld", i);
    text[len] = '.';
    text[RECORD - 1] = '\n';
}

int main(int argc, char **argv)
{
    long steps = guest_steps(argc, argv);
    char start[PATH_MAX], here[PATH_MAX], text[RECORD], found[RECORD];
    CHECK(getcwd(start, sizeof start) != NULL);
    CHECK(mkdir("files.d", 0700) == 0 || errno == EEXIST);
    CHECK_EQ(chdir("files.d"), 0);
    CHECK(getcwd(here, sizeof here) != NULL);
    umask(027);
    struct rlimit files = {200, 200}, limit;
    CHECK_EQ(setrlimit(RLIMIT_NOFILE, &files), 0);
    struct rlimit core = {0, 0};
    CHECK_EQ(setrlimit(RLIMIT_CORE, &core), 0);

    /* What is read was written before the first step. */
    int fd = open("input", O_RDWR | O_CREAT | O_TRUNC, 0600);
    CHECK(fd >= 0);
    for (long i = 0; i <= steps * 3; i++) {
        record(text, i);
        CHECK_EQ(write(fd, text, RECORD), RECORD);
    }
    CHECK_EQ(close(fd), 0);

    int shared = open("input", O_RDONLY);
    int alone = open("input", O_RDONLY | O_CLOEXEC);
    int output = open("output", O_RDWR | O_CREAT | O_TRUNC, 0666);
    int log = open("log", O_WRONLY | O_CREAT | O_TRUNC | O_APPEND, 0666);
    int high = fcntl(output, F_DUPFD_CLOEXEC, 150);
    int folder = open(".", O_RDONLY | O_DIRECTORY);
    int null = open("/dev/null", O_RDWR), zero = open("/dev/zero", O_RDONLY), noise = open("/dev/urandom", O_RDONLY);
    int sync = open("sync", O_WRONLY | O_CREAT | O_SYNC | O_NONBLOCK, 0600);
    CHECK(shared >= 0 && alone >= 0 && output >= 0 && log >= 0 && high >= 150 && folder >= 0);
    CHECK(null >= 0 && zero >= 0 && noise >= 0 && sync >= 0);
    FILE *stream = fopen("input", "re");
    CHECK(stream != NULL);
    FILE *nameless = argc > 2 ? tmpfile() : fopen("named", "w+e");
    CHECK(nameless != NULL);
    CHECK_EQ(fcntl(STDERR_FILENO, F_SETFL, fcntl(STDERR_FILENO, F_GETFL) | O_NONBLOCK), 0);
    int flags[] = {fcntl(shared, F_GETFL), fcntl(output, F_GETFL), fcntl(log, F_GETFL), fcntl(sync, F_GETFL)};

    /* The child reads every other record through the same offset. */
    int ask[2], tell[2];
    CHECK_EQ(pipe(ask), 0);
    CHECK_EQ(pipe(tell), 0);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        CHECK_EQ(close(ask[1]), 0);
        CHECK_EQ(close(alone), 0);
        char go;
        while (read(ask[0], &go, 1) == 1) {
            CHECK_EQ(read(shared, found, RECORD), RECORD);
            CHECK_EQ(write(tell[1], found, RECORD), RECORD);
        }
        _exit(0);
    }
    CHECK_EQ(close(ask[0]), 0);

    for (long i = 0; i < steps; i++) {
        guest_step(i + 1);
        record(text, 2 * i);
        CHECK_EQ(read(shared, found, RECORD), RECORD);
        CHECK(memcmp(found, text, RECORD) == 0);
        CHECK_EQ(write(ask[1], "", 1), 1);
        CHECK_EQ(read(tell[0], found, RECORD), RECORD);
        record(text, 2 * i + 1);
        CHECK(memcmp(found, text, RECORD) == 0);
        /* Opened for itself, it has an offset for itself. */
        record(text, i);
        CHECK_EQ(read(alone, found, RECORD), RECORD);
        CHECK(memcmp(found, text, RECORD) == 0);
        CHECK_EQ(fread(found, RECORD, 1, stream), 1);
        CHECK(memcmp(found, text, RECORD) == 0);
        /* Two numbers for one open file. */
        CHECK_EQ(write(i % 2 ? output : high, text, RECORD), RECORD);
        CHECK_EQ(lseek(output, 0, SEEK_CUR), (i + 1) * RECORD);
        CHECK_EQ(lseek(high, 0, SEEK_CUR), (i + 1) * RECORD);
        CHECK_EQ(lseek(log, 0, SEEK_SET), 0);
        CHECK_EQ(write(log, text, RECORD), RECORD);
        CHECK(fprintf(nameless, "%ld\n", i) > 0);
        CHECK_EQ(fflush(nameless), 0);

        CHECK_EQ(fcntl(shared, F_GETFL), flags[0]);
        CHECK_EQ(fcntl(output, F_GETFL), flags[1]);
        CHECK_EQ(fcntl(log, F_GETFL), flags[2]);
        CHECK_EQ(fcntl(sync, F_GETFL), flags[3]);
        CHECK(fcntl(STDERR_FILENO, F_GETFL) & O_NONBLOCK);
        CHECK(!(fcntl(STDOUT_FILENO, F_GETFL) & O_NONBLOCK));
        CHECK_EQ(fcntl(shared, F_GETFD), 0);
        CHECK_EQ(fcntl(alone, F_GETFD), FD_CLOEXEC);
        CHECK_EQ(fcntl(high, F_GETFD), FD_CLOEXEC);
        CHECK(getcwd(found, 1) == NULL && errno == ERANGE);
        char now[PATH_MAX];
        CHECK(getcwd(now, sizeof now) != NULL && strcmp(now, here) == 0);
        CHECK_EQ(umask(027), 027);
        CHECK(getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur == 200 && limit.rlim_max == 200);
        CHECK(getrlimit(RLIMIT_CORE, &limit) == 0 && limit.rlim_cur == 0 && limit.rlim_max == 0);
        CHECK_EQ(write(null, text, RECORD), RECORD);
        CHECK_EQ(read(null, found, RECORD), 0);
        CHECK_EQ(read(zero, found, RECORD), RECORD);
        CHECK(found[0] == 0 && found[RECORD - 1] == 0);
        CHECK_EQ(read(noise, found, RECORD), RECORD);
        struct stat status;
        CHECK(fstatat(folder, "output", &status, 0) == 0 && status.st_mode == (S_IFREG | 0640));
        /* The lowest free number is what a new file gets. */
        int lowest = open("input", O_RDONLY);
        int above = dup(lowest);
        CHECK(above > lowest && lowest < 30);
        CHECK_EQ(close(above), 0);
        CHECK_EQ(close(lowest), 0);
    }
    CHECK_EQ(close(ask[1]), 0);
    int status = 0;
    CHECK_EQ(waitpid(child, &status, 0), child);
    CHECK_EQ(status, 0);

    CHECK_EQ(lseek(high, 0, SEEK_SET), 0);
    for (long i = 0; i < steps; i++) {
        record(text, i);
        CHECK_EQ(read(output, found, RECORD), RECORD);
        CHECK(memcmp(found, text, RECORD) == 0);
    }
    rewind(nameless);
    for (long i = 0, value; i < steps; i++)
        CHECK(fscanf(nameless, "%ld", &value) == 1 && value == i);
    /* A log may hold a record twice, from before and after a restart; none is missing and none is torn. */
    int read_log = open("log", O_RDONLY);
    long next = 0, value;
    while (read(read_log, found, RECORD) == RECORD) {
        CHECK(sscanf(found, "record %ld", &value) == 1 && found[RECORD - 1] == '\n');
        CHECK(value <= next);
        next = value + 1;
    }
    CHECK_EQ(next, steps);
    CHECK_EQ(fchdir(folder), 0);
    CHECK_EQ(chdir(start), 0);
    guest_line("ok files");
    return 0;
}
