/* System V objects and POSIX message queues by syscall(2), in two processes; and who has used them last. */
#include "guest.h"
#include <mqueue.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <sys/syscall.h>
#include <sys/wait.h>

struct message {
    long kind;
    long number;
};

static long memory, semaphores, queue;
static volatile long *words;

/* Who has used an object last. Right behind a restart that is nobody we know, so now and then it may be another: each of
 * five restarts can come between what was done and all that is asked of it. */
static void check_last(pid_t found, pid_t wanted)
{
    static int others;
    if (found != wanted && ++others > 40)
        CHECK_EQ(found, wanted);
}

static void operate(unsigned short number, short change)
{
    struct sembuf operation = {number, change, 0};
    if (change < 0) {
        /* Waits, for a time that is never over. */
        struct timespec limit = {3600, 0};
        CHECK_EQ(syscall(SYS_semtimedop, semaphores, &operation, 1, &limit), 0);
    } else {
        CHECK_EQ(syscall(SYS_semop, semaphores, &operation, 1), 0);
    }
}

static void serve(long steps)
{
    for (long i = 0; i < steps; i++) {
        operate(0, -1);
        CHECK_EQ(words[0], i);
        words[1] = i * 2;
        struct message message = {0, 0};
        CHECK_EQ(syscall(SYS_msgrcv, queue, &message, sizeof message.number, 7, 0), (long)sizeof message.number);
        CHECK_EQ(message.number, i);
        operate(1, 1);
    }
    /* Whoever ends has used the segment last. */
    operate(0, -1);
    _exit(0);
}

int main(int argc, char **argv)
{
    long steps = guest_steps(argc, argv);
    char name[64];
    snprintf(name, sizeof name, "ulpm-test-%d-r", (int)getpid());
    memory = syscall(SYS_shmget, IPC_PRIVATE, 4096, IPC_CREAT | 0600);
    semaphores = syscall(SYS_semget, IPC_PRIVATE, 2, IPC_CREAT | 0600);
    queue = syscall(SYS_msgget, IPC_PRIVATE, IPC_CREAT | 0600);
    CHECK(memory >= 0 && semaphores >= 0 && queue >= 0);
    words = (long *)syscall(SYS_shmat, memory, NULL, 0);
    CHECK(words != (void *)-1);
    struct mq_attr attributes = {0};
    attributes.mq_maxmsg = 2;
    attributes.mq_msgsize = 24;
    long posix = syscall(SYS_mq_open, name, O_RDWR | O_CREAT, 0600, &attributes);
    CHECK(posix >= 0);
    CHECK_EQ(syscall(SYS_mq_unlink, name), 0);
    struct sigevent none = {0};
    none.sigev_notify = SIGEV_NONE;
    CHECK_EQ(syscall(SYS_mq_notify, posix, &none), 0);
    pid_t me = getpid(), child = fork();
    CHECK(child >= 0);
    if (child == 0)
        serve(steps);
    CHECK_EQ(mq_send((mqd_t)posix, "0", 2, 3), 0);
    /* The message has been the notice. */
    CHECK_EQ(syscall(SYS_mq_notify, posix, &none), 0);
    for (long i = 0; i < steps; i++) {
        guest_step(i + 1);
        char text[24];
        CHECK(mq_receive((mqd_t)posix, text, sizeof text, NULL) > 0);
        CHECK_EQ(atol(text), i);
        snprintf(text, sizeof text, "%ld", i + 1);
        CHECK_EQ(mq_send((mqd_t)posix, text, strlen(text) + 1, 3), 0);
        CHECK_EQ(syscall(SYS_mq_notify, posix, &none), 0);

        words[0] = i;
        struct message message = {7, i};
        CHECK_EQ(syscall(SYS_msgsnd, queue, &message, sizeof message.number, 0), 0);
        operate(0, 1);
        operate(1, -1);
        CHECK_EQ(words[1], i * 2);
        /* By the system call and by libc. */
        check_last((pid_t)syscall(SYS_semctl, semaphores, 1, GETPID, 0), me);
        check_last(semctl((int)semaphores, 0, GETPID), child);
        struct msqid_ds messages;
        CHECK_EQ(syscall(SYS_msgctl, queue, IPC_STAT, &messages), 0);
        CHECK_EQ(messages.msg_qnum, 0);
        check_last(messages.msg_lspid, me);
        check_last(messages.msg_lrpid, child);
        memset(&messages, 0, sizeof messages);
        CHECK_EQ(msgctl((int)queue, IPC_STAT, &messages), 0);
        check_last(messages.msg_lspid, me);
        check_last(messages.msg_lrpid, child);
        /* Attached once more, by us. */
        long *again = (long *)syscall(SYS_shmat, memory, NULL, SHM_RDONLY);
        CHECK(again != (void *)-1);
        CHECK_EQ(again[1], i * 2);
        struct shmid_ds segment;
        CHECK_EQ(syscall(SYS_shmctl, memory, IPC_STAT, &segment), 0);
        CHECK_EQ(segment.shm_segsz, 4096);
        check_last(segment.shm_lpid, me);
        CHECK_EQ(syscall(SYS_shmdt, again), 0);
        memset(&segment, 0, sizeof segment);
        CHECK_EQ(shmctl((int)memory, IPC_STAT, &segment), 0);
        check_last(segment.shm_lpid, me);
    }
    operate(0, 1);
    int end = 0;
    CHECK_EQ(waitpid(child, &end, 0), child);
    CHECK_EQ(end, 0);
    CHECK_EQ(syscall(SYS_semctl, semaphores, 0, IPC_RMID), 0);
    CHECK_EQ(syscall(SYS_msgctl, queue, IPC_RMID, NULL), 0);
    CHECK_EQ(syscall(SYS_shmctl, memory, IPC_RMID, NULL), 0);
    guest_line("ok %ld", steps);
    return 0;
}
