/* Prints what a program can see of its surroundings, without numbers that differ from run to run: nothing may change under ULPM. */
#include "guest.h"
#include <dirent.h>
#include <limits.h>
#include <pthread.h>
#include <sched.h>
#include <sys/auxv.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/wait.h>

extern char **environ;

static int by_text(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

static void *thread(void *argument)
{
    sigset_t mask;
    pthread_sigmask(SIG_BLOCK, NULL, &mask);
    for (int number = 1; number < SIGRTMAX; number++)
        if (sigismember(&mask, number) == 1)
            guest_line("blocked in thread: %d", number);
    return argument;
}

static unsigned long field(const char *file, const char *name)
{
    FILE *stream = fopen(file, "re");
    char line[1024];
    unsigned long value = 0;
    CHECK(stream != NULL);
    while (fgets(line, sizeof line, stream) != NULL)
        if (strncmp(line, name, strlen(name)) == 0)
            value = strtoul(line + strlen(name) + 1, NULL, 16);
    fclose(stream);
    return value;
}

int main(int argc, char **argv)
{
    guest_line("errno %d", errno);
    for (int i = 1; i < argc; i++)
        guest_line("argument %s", argv[i]);
    size_t count = 0;
    while (environ[count] != NULL)
        count++;
    qsort(environ, count, sizeof *environ, by_text);
    for (size_t i = 0; i < count; i++)
        if (strncmp(environ[i], "_=", 2) != 0)
            guest_line("environment %.300s", environ[i]);
    char cwd[PATH_MAX];
    guest_line("directory %s", getcwd(cwd, sizeof cwd));
    mode_t mask = umask(0);
    umask(mask);
    guest_line("umask %o", mask);
    for (int resource = 0; resource < RLIM_NLIMITS; resource++) {
        struct rlimit limit;
        CHECK_EQ(getrlimit(resource, &limit), 0);
        guest_line("limit %d: %llu %llu", resource, (unsigned long long)limit.rlim_cur, (unsigned long long)limit.rlim_max);
    }

    /* Open descriptors, by trying and by reading the list. */
    for (int fd = 0; fd < 1200; fd++) {
        struct stat status;
        if (fstat(fd, &status) == 0)
            guest_line("descriptor %d: type %o, flags %x, %x", fd, status.st_mode & S_IFMT, fcntl(fd, F_GETFL), fcntl(fd, F_GETFD));
    }
    DIR *list = opendir("/proc/self/fd");
    CHECK(list != NULL);
    long entries = 0;
    for (struct dirent *entry; (entry = readdir(list)) != NULL;)
        entries += entry->d_name[0] != '.';
    closedir(list);
    guest_line("descriptors %ld", entries);

    for (int number = 1; number < SIGRTMAX; number++) {
        struct sigaction action;
        if (sigaction(number, NULL, &action) == 0 && action.sa_handler != SIG_DFL)
            guest_line("signal %d: %s, flags %x", number, action.sa_handler == SIG_IGN ? "ignored" : "handled", action.sa_flags);
    }
    sigset_t blocked, pending;
    sigprocmask(SIG_BLOCK, NULL, &blocked);
    sigpending(&pending);
    for (int number = 1; number < SIGRTMAX; number++)
        if (sigismember(&blocked, number) == 1 || sigismember(&pending, number) == 1)
            guest_line("signal %d: blocked %d, pending %d", number, sigismember(&blocked, number), sigismember(&pending, number));
    guest_line("real-time signals %d to %d", SIGRTMIN, SIGRTMAX);
    stack_t stack;
    CHECK_EQ(sigaltstack(NULL, &stack), 0);
    guest_line("alternate stack %d", stack.ss_flags);
    /* What the kernel says is caught leaves out the two signals of glibc itself, 32 and 33. */
    guest_line("caught %lx, blocked %lx", field("/proc/self/status", "SigCgt") & ~(3ul << 31), field("/proc/self/status", "SigBlk"));

    guest_line("leads its group %d, its session %d", getpgrp() == getpid(), getsid(0) == getpid());
    guest_line("thread is process %d", gettid() == getpid());
    guest_line("user %d %d, group %d %d", getuid(), geteuid(), getgid(), getegid());
    guest_line("secure %lu", getauxval(AT_SECURE));
    guest_line("dumpable %d, subreaper %d", prctl(PR_GET_DUMPABLE), prctl(PR_GET_CHILD_SUBREAPER, &argc) == 0 ? argc : -1);
    int death = -1;
    prctl(PR_GET_PDEATHSIG, &death);
    guest_line("death signal %d, new privileges %d, seccomp %d", death, prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0), prctl(PR_GET_SECCOMP));
    char name[16];
    prctl(PR_GET_NAME, name);
    guest_line("name %s, timer slack %d", name, prctl(PR_GET_TIMERSLACK));
    guest_line("nice %d, policy %d", getpriority(PRIO_PROCESS, 0), sched_getscheduler(0));
    cpu_set_t cpus;
    CHECK_EQ(sched_getaffinity(0, sizeof cpus, &cpus), 0);
    guest_line("processors %d", CPU_COUNT(&cpus));
    struct itimerval timer;
    for (int which = ITIMER_REAL; which <= ITIMER_PROF; which++)
        CHECK(getitimer(which, &timer) == 0 && timer.it_value.tv_sec == 0 && timer.it_value.tv_usec == 0);
    char self[PATH_MAX] = {0};
    CHECK(readlink("/proc/self/exe", self, sizeof self - 1) > 0);
    guest_line("program %s", self);
    guest_line("children %d", waitpid(-1, NULL, WNOHANG) == -1 && errno == ECHILD ? 0 : 1);

    pthread_t id;
    CHECK_EQ(pthread_create(&id, NULL, thread, NULL), 0);
    CHECK_EQ(pthread_join(id, NULL), 0);
    void *before = sbrk(0);
    guest_line("break moves %d", sbrk(4096) == before && sbrk(-4096) != (void *)-1);
    guest_line("ok presence");
    return 0;
}
