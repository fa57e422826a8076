/* Files and directories in odd states: a working directory that is gone, files without a name or with another one, holes, O_PATH,
 * O_DIRECT, a directory that is being read, devices, and files of the kernel. */
#include "guest.h"
#include <dirent.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>

enum { ENTRIES = 500 };

static void check_gone(int fd)
{
    char path[64];
    struct stat here, open_one;
    CHECK(getcwd(path, sizeof path) == NULL && errno == ENOENT);
    CHECK(stat(".", &here) == 0 && fstat(fd, &open_one) == 0);
    CHECK(here.st_ino == open_one.st_ino && here.st_dev == open_one.st_dev);
    CHECK_EQ(here.st_mode, S_IFDIR | 0710);
    CHECK_EQ(openat(fd, "new", O_RDWR | O_CREAT, 0600), -1);
    CHECK_EQ(errno, ENOENT);
}

int main(int argc, char **argv)
{
    long steps = guest_steps(argc, argv);
    char text[64], name[300];
    struct stat status, other;
    int top = open(".", O_RDONLY | O_DIRECTORY);
    CHECK(top >= 0);

    /* Moved over another one: the old name of the open file is gone, it lives on under a second one. */
    int linked = open("first", O_RDWR | O_CREAT | O_TRUNC, 0600);
    CHECK(linked >= 0);
    CHECK(unlink("second") == 0 || errno == ENOENT);
    CHECK_EQ(link("first", "second"), 0);
    int late = open("new", O_RDWR | O_CREAT, 0600);
    CHECK(late >= 0);
    CHECK_EQ(close(late), 0);
    CHECK_EQ(rename("new", "first"), 0);

    /* Without a name, with holes: more than could be saved, if they counted. */
    int holes = open("holes", O_RDWR | O_CREAT | O_TRUNC, 0640);
    CHECK(holes >= 0);
    CHECK_EQ(unlink("holes"), 0);
    CHECK_EQ(ftruncate(holes, (off_t)1 << 32), 0);
    CHECK_EQ(pwrite(holes, "middle", 6, (off_t)1 << 31), 6);
    CHECK_EQ(pwrite(holes, "begin", 5, 0), 5);
    snprintf(name, sizeof name, "/proc/self/fd/%d", holes);
    int read_only = open(name, O_RDONLY);
    CHECK(read_only >= 0);

    /* Made without a name. */
    int made = open(".", O_TMPFILE | O_RDWR, 0604);
    CHECK(made >= 0);

    int direct = open("direct", O_RDWR | O_CREAT | O_TRUNC | O_DIRECT, 0600);
    int is_direct = direct >= 0;
    if (!is_direct)
        direct = open("direct", O_RDWR | O_CREAT | O_TRUNC, 0600);
    CHECK(direct >= 0);
    void *block = NULL;
    CHECK_EQ(posix_memalign(&block, 4096, 4096), 0);

    CHECK(symlink("first", "pointer") == 0 || errno == EEXIST);
    int path_file = open("second", O_PATH), path_link = open("pointer", O_PATH | O_NOFOLLOW);
    int path_dir = open(".", O_PATH | O_DIRECTORY);
    CHECK(path_file >= 0 && path_link >= 0 && path_dir >= 0);

    CHECK(mkdir("many", 0700) == 0 || errno == EEXIST);
    for (int i = 0; i < ENTRIES; i++) {
        snprintf(name, sizeof name, "many/a-rather-long-name-so-that-one-call-does-not-read-them-all-%03d", i);
        int fd = open(name, O_WRONLY | O_CREAT, 0600);
        CHECK(fd >= 0);
        CHECK_EQ(close(fd), 0);
    }
    DIR *many = opendir("many");
    CHECK(many != NULL);
    char seen[ENTRIES] = {0};

    int full = open("/dev/full", O_RDWR), zero = open("/dev/zero", O_RDONLY), noise = open("/dev/urandom", O_RDONLY);
    int null = open("/dev/null", O_WRONLY);
    int version = open("/proc/version", O_RDONLY), own = open("/proc/self/comm", O_RDONLY);
    int kernel = open("/sys/kernel/mm/transparent_hugepage/enabled", O_RDONLY);
    CHECK(full >= 0 && zero >= 0 && noise >= 0 && null >= 0 && version >= 0 && own >= 0);
    char whole[512];
    ssize_t version_len = pread(version, whole, sizeof whole, 0);
    CHECK(version_len > 20);

    CHECK_EQ(mkdir("gone", 0710), 0);
    CHECK_EQ(chdir("gone"), 0);
    CHECK_EQ(unlinkat(top, "gone", AT_REMOVEDIR), 0);
    int gone = open(".", O_RDONLY | O_DIRECTORY);
    CHECK(gone >= 0);
    CHECK_EQ(mkdirat(top, "gone-too", 0700), 0);
    int gone_too = openat(top, "gone-too", O_PATH);
    CHECK(gone_too >= 0);
    CHECK_EQ(unlinkat(top, "gone-too", AT_REMOVEDIR), 0);
    int ask[2], tell[2];
    CHECK(pipe(ask) == 0 && pipe(tell) == 0);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        CHECK_EQ(close(ask[1]), 0);
        char byte;
        while (read(ask[0], &byte, 1) == 1) {
            check_gone(gone);
            CHECK_EQ(write(tell[1], "", 1), 1);
        }
        _exit(0);
    }
    CHECK_EQ(close(ask[0]), 0);

    int entries = 0, dots = 0;
    for (long i = 0; i < steps; i++) {
        guest_step(i + 1);
        check_gone(gone);
        char byte;
        CHECK_EQ(write(ask[1], "", 1), 1);
        CHECK_EQ(read(tell[0], &byte, 1), 1);
        CHECK(fstat(gone_too, &status) == 0 && fstat(gone, &other) == 0);
        CHECK_EQ(status.st_mode, S_IFDIR | 0700);
        CHECK(status.st_ino != other.st_ino);

        /* What is written stands under the second name. */
        int len = snprintf(text, sizeof text, "%ld\n", i);
        CHECK_EQ(write(linked, text, (size_t)len), len);
        CHECK(fstat(linked, &status) == 0 && fstatat(top, "second", &other, 0) == 0);
        CHECK(status.st_ino == other.st_ino && status.st_size == other.st_size && status.st_nlink == 1);

        CHECK_EQ(fstat(holes, &status), 0);
        CHECK_EQ(status.st_size, (off_t)1 << 32);
        CHECK(status.st_blocks < 4096);
        CHECK_EQ(status.st_mode, S_IFREG | 0640);
        CHECK_EQ(status.st_nlink, 0);
        CHECK(pread(holes, text, 6, (off_t)1 << 31) == 6 && memcmp(text, "middle", 6) == 0);
        CHECK(pread(read_only, text, 5, 0) == 5 && memcmp(text, "begin", 5) == 0);
        CHECK_EQ(pwrite(holes, &i, sizeof i, 100), sizeof i);
        long number = -1;
        CHECK_EQ(pread(read_only, &number, sizeof number, 100), sizeof number);
        CHECK_EQ(number, i);

        CHECK_EQ(write(made, &i, sizeof i), sizeof i);
        CHECK_EQ(pread(made, &number, sizeof number, i * (off_t)sizeof number), sizeof number);
        CHECK_EQ(number, i);
        CHECK(fstat(made, &status) == 0 && status.st_mode == (S_IFREG | 0604));

        memset(block, (int)i, 4096);
        CHECK_EQ(write(direct, block, 4096), 4096);
        CHECK_EQ(pread(direct, block, 4096, i / 2 * 4096), 4096);
        CHECK_EQ(((unsigned char *)block)[17], (unsigned char)(i / 2));
        CHECK_EQ((fcntl(direct, F_GETFL) & O_DIRECT) != 0, is_direct);

        CHECK_EQ(read(path_file, text, 1), -1);
        CHECK_EQ(errno, EBADF);
        CHECK(fcntl(path_file, F_GETFL) & O_PATH);
        CHECK(fstat(path_file, &status) == 0 && status.st_ino == other.st_ino);
        CHECK(fstat(path_link, &status) == 0 && S_ISLNK(status.st_mode));
        CHECK_EQ(readlinkat(path_link, "", text, sizeof text), 5);
        CHECK_EQ(fstatat(path_dir, "second", &status, 0), 0);

        for (int k = 0; k < 3 && entries < ENTRIES; k++) {
            struct dirent *entry = readdir(many);
            CHECK(entry != NULL);
            if (entry->d_name[0] == '.') {
                dots++;
                continue;
            }
            int index = atoi(strrchr(entry->d_name, '-') + 1);
            CHECK(index >= 0 && index < ENTRIES && !seen[index]);
            seen[index] = 1;
            entries++;
        }

        CHECK(write(full, "x", 1) == -1 && errno == ENOSPC);
        CHECK_EQ(read(full, text, 8), 8);
        CHECK_EQ(read(zero, text, 8), 8);
        CHECK_EQ(text[7], 0);
        CHECK_EQ(read(noise, text, 8), 8);
        CHECK_EQ(write(null, "x", 1), 1);
        /* A file of the kernel, one byte at a time, and its offset. */
        CHECK_EQ(lseek(version, 0, SEEK_CUR), i % 20);
        CHECK_EQ(read(version, text, 1), 1);
        CHECK_EQ(text[0], whole[i % 20]);
        if (i % 20 == 19)
            CHECK_EQ(lseek(version, 0, SEEK_SET), 0);
        CHECK(pread(own, text, 10, 0) == 10 && memcmp(text, "odd_files\n", 10) == 0);
        if (kernel >= 0)
            CHECK(pread(kernel, text, 6, 0) == 6);
    }
    while (entries < ENTRIES) {
        struct dirent *entry = readdir(many);
        CHECK(entry != NULL);
        if (entry->d_name[0] == '.') {
            dots++;
            continue;
        }
        int index = atoi(strrchr(entry->d_name, '-') + 1);
        CHECK(index >= 0 && index < ENTRIES && !seen[index]);
        seen[index] = 1;
        entries++;
    }
    CHECK(dots <= 2);
    /* What was made without a name can be given one. */
    snprintf(name, sizeof name, "/proc/self/fd/%d", made);
    CHECK(unlinkat(top, "named", 0) == 0 || errno == ENOENT);
    CHECK_EQ(linkat(AT_FDCWD, name, top, "named", AT_SYMLINK_FOLLOW), 0);
    CHECK_EQ(fstatat(top, "named", &status, 0), 0);
    CHECK_EQ(status.st_size, steps * (long)sizeof(long));
    CHECK_EQ(close(ask[1]), 0);
    int ended = 0;
    CHECK_EQ(waitpid(child, &ended, 0), child);
    CHECK_EQ(ended, 0);
    CHECK_EQ(fchdir(top), 0);
    guest_line("ok odd_files");
    return 0;
}
