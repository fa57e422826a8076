/* System V message queues: messages by type and in order, a receiver and a sender that wait, an id given on by exec. */
#include "guest.h"
#include <signal.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/wait.h>

struct message {
    long type;
    char text[1024];
};

static void put(int queue, long type, long number, size_t len, int flags)
{
    struct message message = {.type = type};
    memset(message.text, 'a' + (int)(number % 26), sizeof message.text);
    memcpy(message.text, &number, sizeof number);
    CHECK_EQ(msgsnd(queue, &message, len, flags), 0);
}

static long take(int queue, long type, size_t len)
{
    struct message message;
    long number;
    CHECK_EQ(msgrcv(queue, &message, sizeof message.text, type, 0), len);
    memcpy(&number, message.text, sizeof number);
    for (size_t i = sizeof number; i < len; i++)
        CHECK_EQ(message.text[i], 'a' + (int)(number % 26));
    return number;
}

int main(int argc, char **argv)
{
    if (argc > 3) {
        /* Echoes on a queue that it knows by number only: ask has type 1, answer 2. */
        int queue = atoi(argv[2]);
        for (;;)
            put(queue, 2, 3 * take(queue, 1, 100), 100, 0);
    }
    long steps = guest_steps(argc, argv);
    key_t key = -1;
    int named = -1;
    for (int project = 1; project < 256 && named < 0; project++) {
        key = ftok(".", project);
        CHECK(key != -1);
        named = msgget(key, IPC_CREAT | IPC_EXCL | 0600);
        CHECK(named >= 0 || errno == EEXIST);
    }
    int echo = msgget(IPC_PRIVATE, 0600), full = msgget(IPC_PRIVATE, 0600);
    CHECK(named >= 0 && echo >= 0 && full >= 0);
    fprintf(stderr, "key %d\n", key);
    struct msqid_ds status;
    CHECK_EQ(msgctl(full, IPC_STAT, &status), 0);
    status.msg_qbytes = 2500;
    CHECK_EQ(msgctl(full, IPC_SET, &status), 0);

    pid_t echoes = fork();
    CHECK(echoes >= 0);
    if (echoes == 0) {
        char number[16];
        snprintf(number, sizeof number, "%d", echo);
        execl("/proc/self/exe", argv[0], "0", number, "echo", (char *)NULL);
        CHECK(!"exec");
    }
    /* Two messages fit, so this one waits nearly all the time. */
    pid_t writer = fork();
    CHECK(writer >= 0);
    if (writer == 0) {
        for (long i = 0; i < steps + 2; i++)
            put(full, 1 + i % 3, i, 1024, 0);
        _exit(5);
    }
    /* Ten messages of three types stand in the queue at every step, one of them empty. */
    for (long i = 0; i < 9; i++)
        put(named, 1 + i % 3, i, (size_t)(100 + i % 3), 0);
    struct message message = {.type = 9};
    CHECK_EQ(msgsnd(named, &message, 0, 0), 0);
    put(echo, 1, 0, 100, 0);
    for (long i = 0; i < steps; i++) {
        guest_step(i + 1);
        CHECK_EQ(take(named, 1 + i % 3, (size_t)(100 + i % 3)), i);
        put(named, 1 + i % 3, i + 9, (size_t)(100 + i % 3), IPC_NOWAIT);
        CHECK_EQ(take(echo, 2, 100), 3 * i);
        put(echo, 1, i + 1, 100, 0);
        CHECK_EQ(take(full, 0, 1024), i);
        CHECK_EQ(msgget(key, 0), named);
        CHECK(msgget(key, IPC_CREAT | IPC_EXCL | 0600) == -1 && errno == EEXIST);
        CHECK_EQ(msgctl(named, IPC_STAT, &status), 0);
        CHECK_EQ(status.msg_qnum, 10);
        CHECK_EQ(status.msg_perm.__key, key);
        CHECK_EQ(msgctl(full, IPC_STAT, &status), 0);
        CHECK_EQ(status.msg_qbytes, 2500);
        CHECK(msgrcv(named, &message, sizeof message.text, 77, IPC_NOWAIT) == -1 && errno == ENOMSG);
        CHECK(msgrcv(named, &message, 10, 1, IPC_NOWAIT) == -1 && errno == E2BIG);
    }
    CHECK_EQ(take(full, 0, 1024), steps);
    CHECK_EQ(take(full, 0, 1024), steps + 1);
    int end = 0;
    CHECK_EQ(waitpid(writer, &end, 0), writer);
    CHECK(WIFEXITED(end) && WEXITSTATUS(end) == 5);
    CHECK_EQ(kill(echoes, SIGKILL), 0);
    CHECK_EQ(waitpid(echoes, &end, 0), echoes);
    CHECK_EQ(msgrcv(named, &message, 0, 9, IPC_NOWAIT), 0);
    CHECK(msgctl(named, IPC_RMID, NULL) == 0 && msgctl(echo, IPC_RMID, NULL) == 0 && msgctl(full, IPC_RMID, NULL) == 0);
    guest_line("ok msg %ld", steps);
    return 0;
}
