/* POSIX message queues: priorities and order, what is full or empty, who waits, notices, names and no names. */
#include "guest.h"
#include <mqueue.h>
#include <pthread.h>
#include <sys/stat.h>
#include <sys/wait.h>

enum { LEN = 64, DEEP = 8 };

static mqd_t make(const char *name, int flags, long count)
{
    struct mq_attr attributes = {0};
    attributes.mq_maxmsg = count;
    attributes.mq_msgsize = LEN;
    mqd_t queue = mq_open(name, flags | O_CREAT | O_EXCL, 0620, &attributes);
    CHECK(queue >= 0);
    return queue;
}

static void put(mqd_t queue, const char *text, unsigned priority)
{
    CHECK_EQ(mq_send(queue, text, strlen(text), priority), 0);
}

/* Takes a message, which is to be this one. */
static void get(mqd_t queue, const char *text, unsigned priority)
{
    char found[LEN + 1];
    unsigned its = 99;
    ssize_t len = mq_receive(queue, found, LEN, &its);
    CHECK(len >= 0);
    found[len] = 0;
    if (strcmp(found, text) != 0)
        fprintf(stderr, "%s instead of %s\n", found, text);
    CHECK(strcmp(found, text) == 0);
    CHECK_EQ(its, priority);
}

static long held(mqd_t queue)
{
    struct mq_attr attributes;
    CHECK_EQ(mq_getattr(queue, &attributes), 0);
    CHECK_EQ(attributes.mq_msgsize, LEN);
    return attributes.mq_curmsgs;
}

/* A thread that takes from one queue, waiting for a time of day that does not come, and puts into a full one. */
static mqd_t asked, full;

static void *thread(void *nothing)
{
    for (;;) {
        char text[LEN + 1];
        struct timespec until;
        CHECK_EQ(clock_gettime(CLOCK_REALTIME, &until), 0);
        until.tv_sec += 3600;
        ssize_t len = mq_timedreceive(asked, text, LEN, NULL, &until);
        CHECK(len >= 0);
        text[len] = 0;
        if (strcmp(text, "end") == 0)
            return nothing;
        /* It is full: this waits until somebody takes one. */
        CHECK_EQ(mq_timedsend(full, text, (size_t)len, 1, &until), 0);
    }
}

static volatile sig_atomic_t told, told_value;

static void on_notice(int signal, siginfo_t *info, void *context)
{
    (void)context;
    if (signal == SIGUSR1 && info->si_code == SI_MESGQ) {
        told_value = info->si_value.sival_int;
        told++;
    }
}

static void ask(mqd_t queue, int value)
{
    struct sigevent event = {0};
    event.sigev_notify = SIGEV_SIGNAL;
    event.sigev_signo = SIGUSR1;
    event.sigev_value.sival_int = value;
    CHECK_EQ(mq_notify(queue, &event), 0);
}

static void await_notice(long count, int value)
{
    for (int i = 0; i < 2000 && told < count; i++)
        guest_nap_us(1000);
    CHECK_EQ(told, count);
    CHECK_EQ(told_value, value);
}

int main(int argc, char **argv)
{
    long steps = guest_steps(argc, argv);
    char named[64], nameless[64], work[64], text[LEN + 1], more[LEN + 1];
    int id = (int)getpid();
    snprintf(named, sizeof named, "/ulpm-test-%d-n", id);
    snprintf(nameless, sizeof nameless, "/ulpm-test-%d-u", id);
    snprintf(work, sizeof work, "/ulpm-test-%d-w", id);
    umask(0);

    /* Holds messages of several priorities from step to step. */
    mqd_t kept = make(nameless, O_RDWR | O_NONBLOCK, DEEP);
    CHECK_EQ(mq_unlink(nameless), 0);
    const char *texts[] = {"first of 9", "second of 9", "first of 3", "", "third of 3", "zero"};
    const unsigned priorities[] = {9, 9, 3, 3, 3, 0};
    for (int i = 0; i < 6; i++)
        put(kept, texts[i], priorities[i]);
    /* Full. */
    full = make(nameless, O_RDWR, 2);
    CHECK_EQ(mq_unlink(nameless), 0);
    put(full, "left 0 0", 1);
    put(full, "left 0 1", 1);
    asked = make(nameless, O_RDWR | O_CLOEXEC, 4);
    CHECK_EQ(mq_unlink(nameless), 0);
    pthread_t waiting;
    CHECK_EQ(pthread_create(&waiting, NULL, thread, NULL), 0);
    /* With a name, by which a child opens it; what it answers goes through a queue that it has inherited. */
    mqd_t jobs = make(work, O_WRONLY, 4), answers = make(nameless, O_RDWR, 4);
    CHECK_EQ(mq_unlink(nameless), 0);
    /* With a name, and a number that goes on. */
    mqd_t number = make(named, O_RDWR | O_NONBLOCK, 1);
    CHECK_EQ(mq_send(number, "0", 1, 0), 0);
    /* Of which we are told, and one of which nobody else can be told. */
    mqd_t bell = make(nameless, O_RDWR, 4);
    CHECK_EQ(mq_unlink(nameless), 0);
    mqd_t mute = make(nameless, O_RDWR, 4);
    CHECK_EQ(mq_unlink(nameless), 0);
    struct sigevent none = {0};
    none.sigev_notify = SIGEV_NONE;
    CHECK_EQ(mq_notify(mute, &none), 0);
    /* And one that is the child's. */
    mqd_t deaf = make(nameless, O_RDWR, 4);
    CHECK_EQ(mq_unlink(nameless), 0);
    struct sigaction action = {0};
    action.sa_sigaction = on_notice;
    action.sa_flags = SA_SIGINFO | SA_RESTART;
    CHECK_EQ(sigaction(SIGUSR1, &action, NULL), 0);

    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        mqd_t mine = mq_open(work, O_RDONLY);
        CHECK(mine >= 0);
        CHECK_EQ(mq_notify(deaf, &none), 0);
        for (long i = 0; i < steps; i++) {
            char found[LEN + 1];
            ssize_t len = mq_receive(mine, found, LEN, NULL);
            CHECK(len > 0);
            found[len] = 0;
            CHECK_EQ(atol(found), i);
            CHECK(mq_notify(mute, &none) == -1 && errno == EBUSY);
            snprintf(text, sizeof text, "%ld done", i);
            put(answers, text, 5);
        }
        CHECK_EQ(mq_close(mine), 0);
        _exit(0);
    }
    ask(bell, 0);
    for (long i = 0; i < steps; i++) {
        guest_step(i + 1);
        snprintf(text, sizeof text, "%ld", i);
        put(jobs, text, (unsigned)i % 7);
        snprintf(text, sizeof text, "%ld done", i);
        get(answers, text, 5);
        /* Until the child has ended. */
        CHECK(i + 1 == steps || (mq_notify(deaf, &none) == -1 && errno == EBUSY));

        CHECK_EQ(held(kept), 6);
        for (int k = 0; k < 6; k++)
            get(kept, texts[k], priorities[k]);
        CHECK(mq_receive(kept, text, LEN, NULL) == -1 && errno == EAGAIN);
        for (int k = 0; k < 6; k++)
            put(kept, texts[k], priorities[k]);

        /* The thread is waiting to be asked, and is kept waiting by a full queue until one is taken. */
        CHECK_EQ(held(full), 2);
        snprintf(more, sizeof more, "more %ld", i);
        put(asked, more, 0);
        guest_nap_us(1000);
        for (int k = 0; k < 2; k++) {
            snprintf(text, sizeof text, "left %ld %d", i, k);
            get(full, text, 1);
        }
        get(full, more, 1);
        for (int k = 0; k < 2; k++) {
            snprintf(text, sizeof text, "left %ld %d", i + 1, k);
            put(full, text, 1);
        }

        snprintf(text, sizeof text, "%ld", i);
        mqd_t again = mq_open(named, O_RDONLY | O_NONBLOCK);
        CHECK(again >= 0);
        get(again, text, 0);
        CHECK_EQ(mq_close(again), 0);
        snprintf(text, sizeof text, "%ld", i + 1);
        put(number, text, 0);
        CHECK(mq_send(number, "x", 1, 0) == -1 && errno == EAGAIN);
        struct stat status;
        CHECK_EQ(fstat(number, &status), 0);
        CHECK_EQ(status.st_mode & 07777, 0620);
        CHECK_EQ(status.st_nlink, 1);
        CHECK(fstat(kept, &status) == 0 && status.st_nlink == 0);
        struct mq_attr attributes;
        CHECK_EQ(mq_getattr(full, &attributes), 0);
        CHECK(attributes.mq_maxmsg == 2 && attributes.mq_flags == 0);
        CHECK_EQ(mq_getattr(kept, &attributes), 0);
        CHECK(attributes.mq_maxmsg == DEEP && attributes.mq_flags == O_NONBLOCK);
        CHECK_EQ(fcntl(asked, F_GETFD), FD_CLOEXEC);
        CHECK(mq_receive(jobs, text, LEN, NULL) == -1 && errno == EBADF);

        /* Told once, also when the queue held something while it was asked. */
        CHECK_EQ(told, i);
        if (i % 3 != 0)
            get(bell, "standing", 0);
        put(bell, "ring", 0);
        await_notice(i + 1, (int)i);
        get(bell, "ring", 0);
        if (i % 3 != 2)
            put(bell, "standing", 0);
        ask(bell, (int)i + 1);
    }
    int end = 0;
    CHECK_EQ(waitpid(child, &end, 0), child);
    CHECK_EQ(end, 0);
    put(asked, "end", 0);
    CHECK_EQ(pthread_join(waiting, NULL), 0);
    struct timespec soon;
    CHECK_EQ(clock_gettime(CLOCK_REALTIME, &soon), 0);
    CHECK(mq_timedreceive(asked, text, LEN, NULL, &soon) == -1 && errno == ETIMEDOUT);
    CHECK(mq_unlink(named) == 0 && mq_unlink(work) == 0);
    guest_line("ok %ld", steps);
    return 0;
}
