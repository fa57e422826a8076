/* Files below `sub` that are written, appended to, read, full of holes and of two names: what they hold is
 * checked in every step. */
#include "guest.h"
#include <sys/stat.h>

enum { RECORD = 32, APART = 1 << 20 };

static void record(char *text, long i)
{
    memset(text, '.', RECORD);
    int len = snprintf(text, RECORD, "record %ld", i);
    text[len] = '.';
    text[RECORD - 1] = '\n';
}

static void check_record(int fd, long i, off_t at)
{
    char wanted[RECORD], found[RECORD];
    record(wanted, i);
    CHECK_EQ(pread(fd, found, RECORD, at), RECORD);
    CHECK(memcmp(wanted, found, RECORD) == 0);
}

int main(int argc, char **argv)
{
    long steps = guest_steps(argc, argv);
    char text[RECORD];
    struct stat status;
    CHECK_EQ(mkdir("sub", 0755), 0);
    int fd = open("sub/input", O_WRONLY | O_CREAT, 0444);
    CHECK(fd >= 0);
    for (long i = 0; i < steps + 1; i++) {
        record(text, i);
        CHECK_EQ(write(fd, text, RECORD), RECORD);
    }
    CHECK_EQ(close(fd), 0);
    int input = open("sub/input", O_RDONLY);
    int log = open("sub/log", O_RDWR | O_CREAT | O_APPEND, 0640);
    int holes = open("sub/holes", O_RDWR | O_CREAT, 0600);
    int first = open("sub/first", O_RDWR | O_CREAT, 0600);
    CHECK(input >= 0 && log >= 0 && holes >= 0 && first >= 0);
    CHECK_EQ(link("sub/first", "sub/second"), 0);
    int second = open("sub/second", O_RDONLY);
    /* Who has made a file may write to it whatever its mode. */
    int sealed = open("sub/sealed", O_RDWR | O_CREAT | O_EXCL, 0400);
    CHECK(sealed >= 0);
    CHECK(second >= 0);

    for (long i = 0; i < steps; i++) {
        char wanted[RECORD], found[RECORD];
        guest_pace(i + 1, NULL);
        record(wanted, i);
        CHECK_EQ(read(input, found, RECORD), RECORD);
        CHECK(memcmp(wanted, found, RECORD) == 0);
        CHECK_EQ(write(log, wanted, RECORD), RECORD);
        CHECK_EQ(fstat(log, &status), 0);
        CHECK_EQ(status.st_size, (i + 1) * RECORD);
        CHECK_EQ(status.st_mode & 07777, 0640);
        CHECK_EQ(pwrite(holes, wanted, RECORD, i * APART), RECORD);
        CHECK_EQ(fstat(holes, &status), 0);
        CHECK_EQ(status.st_size, i * APART + RECORD);
        CHECK(status.st_blocks < steps * 64);
        CHECK_EQ(pwrite(first, wanted, RECORD, 0), RECORD);
        check_record(second, i, 0);
        CHECK_EQ(pwrite(sealed, wanted, RECORD, i * RECORD), RECORD);
        check_record(sealed, i / 2, i / 2 * RECORD);
        CHECK_EQ(fstat(sealed, &status), 0);
        CHECK_EQ(status.st_mode & 07777, 0400);
        for (long j = 0; j <= i; j += 1 + i / 10) {
            check_record(log, j, j * RECORD);
            check_record(holes, j, j * APART);
        }
        /* By name, too. */
        fd = open("sub/log", O_RDONLY);
        CHECK(fd >= 0);
        check_record(fd, i, i * RECORD);
        CHECK_EQ(close(fd), 0);
        guest_line("step %ld", i + 1);
    }
    CHECK_EQ(fstat(input, &status), 0);
    CHECK_EQ(status.st_mode & 07777, 0444);
    guest_line("ok");
    return 0;
}
