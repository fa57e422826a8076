/* Paths below /proc with ids in them lead to the processes and threads that the program knows by these; /proc/self/exe is the program. */
#include "guest.h"
#include <dirent.h>
#include <limits.h>
#include <pthread.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

/* As programs that were built with _FORTIFY_SOURCE call them. */
extern ssize_t __readlink_chk(const char *path, char *buffer, size_t len, size_t room);
extern char *__realpath_chk(const char *path, char *resolved, size_t room);

static pid_t tid;
static volatile int ready, stop;

static void *work(void *nothing)
{
    CHECK_EQ(prctl(PR_SET_NAME, "worker", 0, 0, 0), 0);
    tid = gettid();
    ready = 1;
    while (!stop)
        guest_nap_us(2000);
    return nothing;
}

__attribute__((format(printf, 1, 2))) static const char *path(const char *format, ...)
{
    static char text[128];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    return text;
}

static void check_content(int fd, const char *wanted)
{
    char text[64] = {0};
    CHECK(fd >= 0);
    CHECK(read(fd, text, sizeof text - 1) > 0);
    text[strcspn(text, "\n")] = 0;
    CHECK_EQ(strcmp(text, wanted), 0);
    CHECK_EQ(close(fd), 0);
}

int main(int argc, char **argv)
{
    long steps = guest_steps(argc, argv);
    pid_t self = getpid();
    int alive[2];
    CHECK_EQ(pipe(alive), 0);
    struct stat own;
    CHECK_EQ(stat("/proc/self/exe", &own), 0);
    char program[PATH_MAX] = {0}, same[PATH_MAX] = {0};
    CHECK(readlink("/proc/self/exe", program, sizeof program - 1) > 0);
    CHECK_EQ(prctl(PR_SET_NAME, "child", 0, 0, 0), 0);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        CHECK_EQ(close(alive[1]), 0);
        char byte;
        CHECK_EQ(read(alive[0], &byte, 1), 0);
        _exit(9);
    }
    CHECK_EQ(prctl(PR_SET_NAME, "parent", 0, 0, 0), 0);
    pthread_t worker;
    CHECK_EQ(pthread_create(&worker, NULL, work, NULL), 0);
    while (!ready)
        guest_nap_us(500);
    for (long i = 1; i <= steps; i++) {
        guest_step(i);
        check_content(open(path("/proc/%d/comm", child), O_RDONLY), "child");
        check_content(open(path("/proc/%d/comm", self), O_RDONLY), "parent");
        check_content(open("/proc/self/comm", O_RDONLY), "parent");
        check_content(openat(AT_FDCWD, path("/proc/%d/task/%d/comm", self, tid), O_RDONLY), "worker");
        check_content(open(path("/proc/self/task/%d/comm", tid), O_RDONLY), "worker");
        check_content(open(path("/proc/%d/task/%d/comm", self, self), O_RDONLY), "parent");
        FILE *file = fopen(path("/proc/%d/status", child), "r");
        CHECK(file != NULL);
        char line[128];
        CHECK(fgets(line, sizeof line, file) != NULL);
        CHECK_EQ(strcmp(line, "Name:\tchild\n"), 0);
        CHECK_EQ(fclose(file), 0);
        DIR *dir = opendir(path("/proc/%d/fd", child));
        CHECK(dir != NULL);
        int found = 0;
        char number[16];
        snprintf(number, sizeof number, "%d", alive[0]);
        for (struct dirent *entry; (entry = readdir(dir)) != NULL;)
            found += strcmp(entry->d_name, number) == 0;
        CHECK_EQ(found, 1);
        CHECK_EQ(closedir(dir), 0);
        CHECK_EQ(access(path("/proc/%d", child), R_OK), 0);
        struct stat status, link;
        CHECK_EQ(stat(path("/proc/%d", child), &status), 0);
        CHECK(S_ISDIR(status.st_mode));
        CHECK_EQ(lstat(path("/proc/%d/exe", child), &link), 0);
        CHECK(S_ISLNK(link.st_mode));
        CHECK_EQ(fstatat(AT_FDCWD, path("/proc/%d/cwd", child), &status, 0), 0);
        CHECK_EQ(stat(".", &link), 0);
        CHECK(status.st_ino == link.st_ino && status.st_dev == link.st_dev);
        char cwd[PATH_MAX] = {0};
        CHECK(readlink(path("/proc/%d/cwd", child), cwd, sizeof cwd - 1) > 0);
        CHECK(getcwd(same, sizeof same) != NULL);
        CHECK_EQ(strcmp(cwd, same), 0);
        memset(same, 0, sizeof same);
        CHECK(readlink("/proc/self", same, sizeof same - 1) > 0);
        CHECK_EQ(atoi(same), self);
        /* The program itself. */
        CHECK_EQ(stat("/proc/self/exe", &status), 0);
        CHECK(status.st_ino == own.st_ino && status.st_size == own.st_size);
        int fd = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
        CHECK(fd >= 0);
        CHECK_EQ(fstat(fd, &status), 0);
        CHECK(status.st_ino == own.st_ino);
        CHECK_EQ(close(fd), 0);
        memset(same, 0, sizeof same);
        CHECK(readlink(path("/proc/%d/exe", self), same, sizeof same - 1) > 0);
        CHECK_EQ(strcmp(same, program), 0);
        memset(same, 0, sizeof same);
        CHECK(__readlink_chk("/proc/self/exe", same, sizeof same - 1, sizeof same) > 0);
        CHECK_EQ(strcmp(same, program), 0);
        memset(same, 0, sizeof same);
        CHECK(__realpath_chk("/proc/self/exe", same, sizeof same) == same);
        CHECK_EQ(strcmp(same, program), 0);
        struct dirent **entries;
        int count = scandir(path("/proc/%d/task", child), &entries, NULL, NULL);
        CHECK(count >= 3);
        while (count > 0)
            free(entries[--count]);
        free(entries);
        CHECK_EQ(faccessat(AT_FDCWD, path("/proc/%d/stat", child), R_OK, 0), 0);
        /* One that is gone. */
        pid_t gone = fork();
        CHECK(gone >= 0);
        if (gone == 0)
            _exit(0);
        CHECK_EQ(access(path("/proc/%d/stat", gone), F_OK), 0);
        CHECK_EQ(waitpid(gone, NULL, 0), gone);
        errno = 0;
        CHECK(open(path("/proc/%d/stat", gone), O_RDONLY) == -1 && errno == ENOENT);
        CHECK(open("/proc/self/nothing", O_RDONLY) == -1 && errno == ENOENT);
    }
    stop = 1;
    CHECK_EQ(pthread_join(worker, NULL), 0);
    CHECK_EQ(close(alive[1]), 0);
    int status = 0;
    CHECK_EQ(waitpid(child, &status, 0), child);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 9);
    guest_line("ok proc_paths");
    return 0;
}
