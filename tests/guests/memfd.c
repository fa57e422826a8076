/* Files of memfd_create(2): names, modes and seals, with holes, mapped, shared with a child. */
#include "guest.h"
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>

#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x10
#endif
#ifndef F_SEAL_EXEC
#define F_SEAL_EXEC 0x20
#endif
#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 8u
#endif

enum { PAGE = 4096, WORDS = 2 * PAGE / 8, FAR = 300 << 20 };
#define FIXED (F_SEAL_SHRINK | F_SEAL_GROW)

static int make(const char *name, unsigned flags, off_t len)
{
    int fd = memfd_create(name, flags);
    CHECK(fd >= 0);
    CHECK_EQ(ftruncate(fd, len), 0);
    return fd;
}

static void check_name(int fd, const char *name)
{
    char link[64], wanted[300], found[300] = {0};
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    snprintf(wanted, sizeof wanted, "/memfd:%s (deleted)", name);
    CHECK(readlink(link, found, sizeof found - 1) > 0);
    if (strcmp(found, wanted) != 0) {
        fprintf(stderr, "%s is %s\n", wanted, found);
        CHECK(strcmp(found, wanted) == 0);
    }
}

/* Whether something of that name is mapped there, with these permissions. */
static int is_mapped(const void *at, const char *name, const char *permissions)
{
    char line[512], wanted[100];
    unsigned long start;
    FILE *maps = fopen("/proc/self/maps", "re");
    CHECK(maps != NULL);
    int found = 0;
    snprintf(wanted, sizeof wanted, "/memfd:%s (deleted)", name);
    while (fgets(line, sizeof line, maps) != NULL)
        if (sscanf(line, "%lx-", &start) == 1 && start == (unsigned long)at)
            found = strstr(line, wanted) != NULL && strstr(line, permissions) != NULL;
    CHECK_EQ(fclose(maps), 0);
    return found;
}

static void check_mapped(const void *at, const char *name, const char *permissions)
{
    /* The list is read in several parts. Behind a restart the text has other lengths, and the next part begins
       somewhere else. */
    for (int again = 0; again < 3; again++)
        if (is_mapped(at, name, permissions))
            return;
    CHECK(is_mapped(at, name, permissions));
}

static uint64_t *map(int fd, int protection)
{
    uint64_t *memory = mmap(NULL, 2 * PAGE, protection, MAP_SHARED, fd, 0);
    CHECK(memory != MAP_FAILED);
    return memory;
}

static mode_t mode_of(int fd)
{
    struct stat status;
    CHECK_EQ(fstat(fd, &status), 0);
    CHECK_EQ(status.st_nlink, 0);
    return status.st_mode & 07777;
}

static int refuses_writing(int fd)
{
    return pwrite(fd, "x", 1, 0) == -1 && errno == EPERM;
}

static int cannot_be_mapped_for_writing(int fd)
{
    return mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) == MAP_FAILED && errno == EPERM;
}

static int cannot_become_writable(void *at)
{
    return mprotect(at, PAGE, PROT_READ | PROT_WRITE) == -1 && errno == EACCES;
}

int main(int argc, char **argv)
{
    long steps = guest_steps(argc, argv);
    char text[16] = {0};

    /* Not to be sealed, with a hole, mapped by two processes, and with an offset that they share. */
    int plain = make("plain one", MFD_CLOEXEC, FAR);
    uint64_t *shared = map(plain, PROT_READ | PROT_WRITE);
    CHECK_EQ(pwrite(plain, "the end", 7, FAR - 7), 7);
    /* All seals that matter, and mapped for reading. */
    int sealed = make("sealed", MFD_ALLOW_SEALING, 2 * PAGE);
    CHECK_EQ(pwrite(sealed, "sealed content", 14, PAGE), 14);
    CHECK_EQ(fcntl(sealed, F_ADD_SEALS, FIXED | F_SEAL_WRITE | F_SEAL_SEAL), 0);
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", sealed);
    int reader = open(link, O_RDONLY | O_CLOEXEC);
    CHECK(reader >= 0);
    CHECK_EQ(lseek(reader, PAGE + 7, SEEK_SET), PAGE + 7);
    uint64_t *constant = map(reader, PROT_READ);
    /* Written to through what was mapped before it was sealed. */
    int future = make("future", MFD_ALLOW_SEALING, 2 * PAGE);
    uint64_t *before = map(future, PROT_READ | PROT_WRITE);
    CHECK_EQ(fcntl(future, F_ADD_SEALS, FIXED | F_SEAL_FUTURE_WRITE | F_SEAL_SEAL), 0);
    snprintf(link, sizeof link, "/proc/self/fd/%d", future);
    int future_reader = open(link, O_RDONLY);
    CHECK(future_reader >= 0);
    uint64_t *behind = map(future_reader, PROT_READ);
    /* Sealed bit by bit. */
    int later = make("", MFD_ALLOW_SEALING | MFD_CLOEXEC, PAGE);
    int wanted_seals = 0;
    /* Not to be executed. Linux before 6.3 does not know that. */
    int inert = memfd_create("inert", MFD_NOEXEC_SEAL);
    if (inert < 0)
        CHECK_EQ(errno, EINVAL);
    /* With a mode that would not let its owner open it again. */
    int closed = make("a name (deleted)", 0, PAGE);
    CHECK_EQ(fchmod(closed, 0), 0);
    CHECK_EQ(write(closed, "locked up", 9), 9);
    /* Mapped only: by its mapping it is known, and stays what it is. */
    int gone = make("gone", MFD_ALLOW_SEALING, 2 * PAGE);
    CHECK_EQ(pwrite(gone, "only a mapping", 14, PAGE + 100), 14);
    CHECK_EQ(fcntl(gone, F_ADD_SEALS, F_SEAL_WRITE), 0);
    snprintf(link, sizeof link, "/proc/self/fd/%d", gone);
    int gone_reader = open(link, O_RDONLY);
    char *left = (char *)map(gone_reader, PROT_READ);
    CHECK(close(gone) == 0 && close(gone_reader) == 0);
    int gone_writable = make("gone too", 0, 2 * PAGE);
    uint64_t *left_writable = map(gone_writable, PROT_READ | PROT_WRITE);
    uint64_t *left_readable = map(gone_writable, PROT_READ);
    CHECK_EQ(close(gone_writable), 0);

    int ask[2], tell[2];
    CHECK(pipe(ask) == 0 && pipe(tell) == 0);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        long i;
        CHECK(close(ask[1]) == 0 && close(tell[0]) == 0);
        while (read(ask[0], &i, sizeof i) == sizeof i) {
            CHECK_EQ(shared[i % WORDS], i + 1);
            CHECK_EQ(lseek(plain, 0, SEEK_CUR), i + 5);
            CHECK_EQ(lseek(plain, 1, SEEK_CUR), i + 6);
            CHECK_EQ(fcntl(sealed, F_GET_SEALS), FIXED | F_SEAL_WRITE | F_SEAL_SEAL);
            CHECK(cannot_become_writable(constant));
            before[1] = (uint64_t)i * 3;
            left_writable[1] = (uint64_t)i * 5;
            shared[i % WORDS]++;
            CHECK_EQ(write(tell[1], &i, sizeof i), (long)sizeof i);
        }
        _exit(0);
    }
    CHECK(close(ask[0]) == 0 && close(tell[1]) == 0);
    for (long i = 0; i < steps; i++) {
        guest_step(i + 1);
        shared[i % WORDS] = (uint64_t)i + 1;
        CHECK_EQ(lseek(plain, i + 5, SEEK_SET), i + 5);
        CHECK_EQ(write(ask[1], &i, sizeof i), (long)sizeof i);
        long answer = -1;
        CHECK_EQ(read(tell[0], &answer, sizeof answer), (long)sizeof answer);
        CHECK_EQ(answer, i);
        CHECK_EQ(shared[i % WORDS], i + 2);
        CHECK_EQ(lseek(plain, 0, SEEK_CUR), i + 6);

        check_name(plain, "plain one");
        check_mapped(shared, "plain one", "rw-s");
        CHECK_EQ(fcntl(plain, F_GET_SEALS), F_SEAL_SEAL);
        CHECK(fcntl(plain, F_ADD_SEALS, F_SEAL_GROW) == -1 && errno == EPERM);
        CHECK_EQ(mode_of(plain), 0777);
        CHECK_EQ(fcntl(plain, F_GETFD), FD_CLOEXEC);
        struct stat status;
        CHECK(fstat(plain, &status) == 0 && status.st_size == FAR && status.st_blocks < 1000);
        memset(text, 0, sizeof text);
        CHECK_EQ(pread(plain, text, 10, FAR - 7), 7);
        CHECK(strcmp(text, "the end") == 0);

        check_name(sealed, "sealed");
        check_name(reader, "sealed");
        check_mapped(constant, "sealed", "r--s");
        CHECK_EQ(fcntl(sealed, F_GET_SEALS), FIXED | F_SEAL_WRITE | F_SEAL_SEAL);
        CHECK_EQ(fcntl(reader, F_GETFL) & O_ACCMODE, O_RDONLY);
        CHECK_EQ(fcntl(sealed, F_GETFL) & O_ACCMODE, O_RDWR);
        CHECK(refuses_writing(sealed) && cannot_be_mapped_for_writing(sealed));
        CHECK(cannot_become_writable(constant));
        CHECK(ftruncate(sealed, PAGE) == -1 && errno == EPERM);
        CHECK(ftruncate(sealed, 3 * PAGE) == -1 && errno == EPERM);
        CHECK(fcntl(sealed, F_ADD_SEALS, F_SEAL_WRITE) == -1 && errno == EPERM);
        CHECK(memcmp((char *)constant + PAGE, "sealed content", 14) == 0);
        memset(text, 0, sizeof text);
        CHECK_EQ(read(reader, text, 7), 7);
        CHECK(strcmp(text, "content") == 0);
        CHECK_EQ(lseek(reader, PAGE + 7, SEEK_SET), PAGE + 7);

        check_name(future, "future");
        check_mapped(before, "future", "rw-s");
        check_mapped(behind, "future", "r--s");
        CHECK_EQ(fcntl(future, F_GET_SEALS), FIXED | F_SEAL_FUTURE_WRITE | F_SEAL_SEAL);
        CHECK(refuses_writing(future) && cannot_be_mapped_for_writing(future));
        CHECK(cannot_become_writable(behind));
        CHECK_EQ(behind[1], i * 3);
        before[0] = (uint64_t)i;
        CHECK_EQ(behind[0], i);

        check_name(later, "");
        CHECK_EQ(fcntl(later, F_GET_SEALS), wanted_seals);
        int more = i == steps / 5 ? F_SEAL_GROW : i == steps / 4 ? F_SEAL_SHRINK : 0;
        more |= i == steps / 3 ? F_SEAL_WRITE : i == steps / 2 ? F_SEAL_SEAL : 0;
        if (more != 0) {
            CHECK_EQ(fcntl(later, F_ADD_SEALS, more), 0);
            wanted_seals |= more;
        }
        CHECK_EQ(refuses_writing(later), (wanted_seals & F_SEAL_WRITE) != 0);

        if (inert >= 0) {
            check_name(inert, "inert");
            CHECK_EQ(mode_of(inert), 0666);
            CHECK_EQ(fcntl(inert, F_GET_SEALS), F_SEAL_EXEC);
            CHECK(fchmod(inert, 0777) == -1 && errno == EPERM);
            CHECK(fchmod(inert, 0600) == 0 && mode_of(inert) == 0600 && fchmod(inert, 0666) == 0);
        }

        check_name(closed, "a name (deleted)");
        CHECK_EQ(mode_of(closed), 0);
        CHECK_EQ(lseek(closed, 0, SEEK_CUR), 9);
        memset(text, 0, sizeof text);
        CHECK_EQ(pread(closed, text, 9, 0), 9);
        CHECK(strcmp(text, "locked up") == 0);

        check_mapped(left, "gone", "r--s");
        CHECK(memcmp(left + PAGE + 100, "only a mapping", 14) == 0);
        CHECK(cannot_become_writable(left));
        check_mapped(left_writable, "gone too", "rw-s");
        check_mapped(left_readable, "gone too", "r--s");
        CHECK_EQ(left_readable[1], i * 5);
        CHECK_EQ(mprotect(left_readable, PAGE, PROT_READ | PROT_WRITE), 0);
        left_readable[0] = (uint64_t)i;
        CHECK_EQ(left_writable[0], i);
        CHECK_EQ(mprotect(left_readable, PAGE, PROT_READ), 0);
    }
    CHECK_EQ(close(ask[1]), 0);
    int end = 0;
    CHECK_EQ(waitpid(child, &end, 0), child);
    CHECK_EQ(end, 0);
    guest_line("ok %ld", steps);
    return 0;
}
