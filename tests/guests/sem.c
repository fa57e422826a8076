/* System V semaphores: values, a process that waits, one that waits with a deadline, and what SEM_UNDO owes. */
#include "guest.h"
#include <signal.h>
#include <sys/ipc.h>
#include <sys/sem.h>
#include <sys/wait.h>

enum { COUNT = 6, GO = 0, DONE = 1, HELD = 2, LENT = 3, NEVER = 4, LATE = 5 };

static int set;

static int change(int semaphore, int by, int flags)
{
    struct sembuf operation = {(unsigned short)semaphore, (short)by, (short)flags};
    return semop(set, &operation, 1);
}

static int value(int semaphore)
{
    return semctl(set, semaphore, GETVAL);
}

int main(int argc, char **argv)
{
    long steps = guest_steps(argc, argv);
    key_t key = -1;
    set = -1;
    for (int project = 1; project < 256 && set < 0; project++) {
        key = ftok(".", project);
        CHECK(key != -1);
        set = semget(key, COUNT, IPC_CREAT | IPC_EXCL | 0600);
        CHECK(set >= 0 || errno == EEXIST);
    }
    CHECK(set >= 0);
    fprintf(stderr, "key %d\n", key);
    unsigned short values[COUNT] = {0, 0, 5, 5, 0, 0}, found[COUNT];
    CHECK_EQ(semctl(set, 0, SETALL, values), 0);
    int other = semget(IPC_PRIVATE, 1, 0600);
    CHECK(other >= 0);

    /* The worker waits nearly all the time; it owes two to HELD, and has lent three to LENT. */
    pid_t worker = fork();
    CHECK(worker >= 0);
    if (worker == 0) {
        CHECK_EQ(change(HELD, -2, SEM_UNDO), 0);
        CHECK_EQ(change(LENT, 3, SEM_UNDO), 0);
        CHECK_EQ(change(DONE, 1, 0), 0);
        for (;;) {
            struct sembuf operations[2] = {{GO, -1, 0}, {HELD, 0, IPC_NOWAIT}};
            operations[1].sem_op = 1;
            CHECK_EQ(semop(set, operations, 2), 0);
            CHECK_EQ(change(HELD, -1, 0), 0);
            CHECK_EQ(change(DONE, 1, 0), 0);
        }
    }
    /* This one waits for a time that does not end. */
    pid_t late = fork();
    CHECK(late >= 0);
    if (late == 0) {
        struct sembuf operation = {LATE, -1, 0};
        struct timespec hour = {3600, 0};
        CHECK_EQ(semtimedop(set, &operation, 1, &hour), 0);
        _exit(7);
    }
    CHECK_EQ(change(DONE, -1, 0), 0);
    for (long i = 0; i < steps; i++) {
        guest_step(i + 1);
        CHECK_EQ(value(HELD), 3);
        CHECK_EQ(value(LENT), 8);
        CHECK_EQ(change(GO, 1, 0), 0);
        CHECK_EQ(change(DONE, -1, 0), 0);
        CHECK_EQ(semget(key, 0, 0), set);
        CHECK(semget(key, COUNT, IPC_CREAT | IPC_EXCL | 0600) == -1 && errno == EEXIST);
        CHECK(change(NEVER, -1, IPC_NOWAIT) == -1 && errno == EAGAIN);
        struct sembuf operation = {NEVER, -1, 0};
        struct timespec soon = {0, 3000000};
        int64_t begin = guest_now_ns();
        CHECK(semtimedop(set, &operation, 1, &soon) == -1 && errno == EAGAIN);
        CHECK(guest_now_ns() - begin >= soon.tv_nsec);
        CHECK_EQ(semctl(set, 0, GETALL, found), 0);
        CHECK(found[GO] == 0 && found[NEVER] == 0 && found[LATE] == 0);
        struct semid_ds status;
        CHECK_EQ(semctl(set, 0, IPC_STAT, &status), 0);
        CHECK(status.sem_nsems == COUNT && (status.sem_perm.mode & 0777) == 0600 && status.sem_perm.__key == key);
        CHECK_EQ(semctl(other, 0, GETVAL), i);
        CHECK_EQ(semctl(other, 0, SETVAL, (int)i + 1), 0);
        while (semctl(set, GO, GETNCNT) != 1)
            guest_nap_us(100);
    }
    CHECK_EQ(change(LATE, 1, 0), 0);
    int end = 0;
    CHECK_EQ(waitpid(late, &end, 0), late);
    CHECK(WIFEXITED(end) && WEXITSTATUS(end) == 7);
    /* The kernel takes back what the worker did. */
    CHECK_EQ(kill(worker, SIGKILL), 0);
    CHECK_EQ(waitpid(worker, &end, 0), worker);
    CHECK_EQ(value(HELD), 5);
    CHECK_EQ(value(LENT), 5);
    CHECK(semctl(set, 0, IPC_RMID) == 0 && semctl(other, 0, IPC_RMID) == 0);
    CHECK(semget(key, 0, 0) == -1 && errno == ENOENT);
    guest_line("ok sem %ld", steps);
    return 0;
}
