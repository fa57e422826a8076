/* What libc promises about fork, errno and cancellation holds, whoever stands in between. */
#include "guest.h"
#include <pthread.h>
#include <stdatomic.h>
#include <sys/stat.h>
#include <sys/wait.h>

static char order[64];

#define HANDLERS(n)                                      \
    static void prepare##n(void) { strcat(order, "p" #n); } \
    static void parent##n(void) { strcat(order, "q" #n); }  \
    static void child##n(void) { strcat(order, "c" #n); }
HANDLERS(1)
HANDLERS(2)

static atomic_int blocked, cleaned;
static atomic_int waited_child;

static void clean(void *argument)
{
    (void)argument;
    cleaned++;
}

enum { CANCELLABLE = 5 };

/* Each blocks in another cancellation point, and none of them ends by itself. */
static void *cancelled(void *argument)
{
    int ends[2], status;
    char byte;
    pthread_cleanup_push(clean, NULL);
    switch ((long)argument) {
    case 0:
        CHECK_EQ(pipe(ends), 0);
        blocked = 1;
        CHECK(read(ends[0], &byte, 1) == 77);
        break;
    case 1:
        blocked = 1;
        sleep(1000);
        break;
    case 2:
        blocked = 1;
        waitpid(waited_child, &status, 0);
        break;
    case 3:
        blocked = 1;
        pause();
        break;
    default:
        blocked = 1;
        for (;;) {
            pthread_testcancel();
            guest_nap_us(500);
        }
    }
    pthread_cleanup_pop(0);
    CHECK(!"a call that was to be cancelled returned");
    return NULL;
}

/* errno stays what it was where a call succeeds, and is set where it fails. */
static void check_errno(void)
{
    static const int marker = 4711;
    char here[4096];
    struct stat status;
    int ends[2], code;
#define KEEPS(call)                 \
    do {                            \
        errno = marker;             \
        CHECK((call) >= 0);         \
        CHECK_EQ(errno, marker);    \
    } while (0)
#define FAILS(call, wanted)         \
    do {                            \
        errno = marker;             \
        CHECK((call) == -1);        \
        CHECK_EQ(errno, wanted);    \
    } while (0)
    KEEPS(getpid());
    KEEPS(getppid());
    KEEPS(gettid());
    KEEPS(getpgid(0));
    KEEPS(getsid(0));
    KEEPS(kill(getpid(), 0));
    KEEPS(pipe(ends));
    KEEPS(dup2(ends[0], ends[0]));
    KEEPS(close(ends[0]));
    KEEPS(close(ends[1]));
    KEEPS(stat(".", &status));
    KEEPS(access(".", R_OK));
    KEEPS(getcwd(here, sizeof here) != NULL ? 0 : -1);
    KEEPS(pthread_kill(pthread_self(), 0));
    FAILS(close(ends[0]), EBADF);
    FAILS(kill(getpid(), 1000), EINVAL);
    FAILS(kill(0x3ffffff, 0), ESRCH);
    FAILS(waitpid(getpid(), &code, 0), ECHILD);
    FAILS(getpgid(0x3ffffff), ESRCH);
    FAILS(open("/nonexistent/file", O_RDONLY), ENOENT);
    FAILS(execl("/nonexistent/program", "program", (char *)NULL), ENOENT);
    FAILS(setpgid(1, 0), ESRCH);
    FAILS(dup2(1000000, 3), EBADF);
    CHECK_EQ(sigqueue(0x3ffffff, 0, (union sigval){0}), -1);
    CHECK_EQ(errno, ESRCH);
}

int main(int argc, char **argv)
{
    long steps = guest_steps(argc, argv);
    CHECK_EQ(pthread_atfork(prepare1, parent1, child1), 0);
    CHECK_EQ(pthread_atfork(prepare2, parent2, child2), 0);
    for (long i = 1; i <= steps; i++) {
        guest_step(i);
        check_errno();
        /* Handlers run once each: the last registered first before the fork, the first registered first after it. */
        order[0] = 0;
        int ends[2];
        CHECK_EQ(pipe(ends), 0);
        errno = 4711;
        pid_t child = fork();
        CHECK_EQ(errno, 4711);
        CHECK(child >= 0);
        if (child == 0) {
            CHECK(strcmp(order, "p2p1c1c2") == 0);
            pid_t parent = getppid();
            CHECK_EQ(close(ends[1]), 0);
            CHECK_EQ(pthread_kill(pthread_self(), 0), 0);
            CHECK_EQ(getpid(), gettid());
            char byte;
            CHECK_EQ(read(ends[0], &byte, 1), 0);
            CHECK_EQ(getppid(), parent);
            _exit(0);
        }
        CHECK(strcmp(order, "p2p1q1q2") == 0);
        CHECK_EQ(close(ends[0]), 0);

        waited_child = child;
        pthread_t thread;
        void *result;
        blocked = 0;
        int before = cleaned;
        CHECK_EQ(pthread_create(&thread, NULL, cancelled, (void *)(i % CANCELLABLE)), 0);
        while (!blocked)
            guest_nap_us(200);
        guest_nap_us(1000);
        CHECK_EQ(pthread_cancel(thread), 0);
        CHECK_EQ(pthread_join(thread, &result), 0);
        CHECK(result == PTHREAD_CANCELED);
        CHECK_EQ(cleaned, before + 1);

        CHECK_EQ(close(ends[1]), 0);
        int status = 0;
        errno = 4711;
        CHECK_EQ(waitpid(child, &status, 0), child);
        CHECK_EQ(errno, 4711);
        CHECK_EQ(status, 0);
    }
    guest_line("ok libc_contract");
    return 0;
}
