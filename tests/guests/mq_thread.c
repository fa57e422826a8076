/* Message queues of whose messages new threads are told (mq_notify with SIGEV_THREAD), by libc's own thread. */
#include "guest.h"
#include <mqueue.h>
#include <stdatomic.h>
#include <sys/mman.h>

enum { QUEUES = 2 };

static mqd_t queues[QUEUES];
static atomic_long told[QUEUES];

static void hear(union sigval queue)
{
    CHECK(queue.sival_int >= 0 && queue.sival_int < QUEUES);
    told[queue.sival_int]++;
}

static void ask(int queue)
{
    struct sigevent event = {0};
    event.sigev_notify = SIGEV_THREAD;
    event.sigev_value.sival_int = queue;
    event.sigev_notify_function = hear;
    CHECK_EQ(mq_notify(queues[queue], &event), 0);
}

int main(int argc, char **argv)
{
    long steps = guest_steps(argc, argv);
    struct mq_attr attributes = {.mq_maxmsg = 4, .mq_msgsize = 16};
    for (int i = 0; i < QUEUES; i++) {
        char name[64];
        snprintf(name, sizeof name, "/ulpm-test-%d-%d", (int)getpid(), i);
        queues[i] = mq_open(name, O_RDWR | O_CREAT | O_EXCL | O_NONBLOCK, 0600, &attributes);
        CHECK(queues[i] >= 0);
        CHECK_EQ(mq_unlink(name), 0);
        ask(i);
    }
    for (long i = 1; i <= steps; i++) {
        guest_step(i);
        int queue = (int)(i % QUEUES);
        long before = told[queue];
        struct sigevent none = {.sigev_notify = SIGEV_NONE};
        CHECK(mq_notify(queues[queue], &none) == -1 && errno == EBUSY);
        CHECK_EQ(mq_send(queues[queue], (char *)&i, sizeof i, 0), 0);
        while (told[queue] == before)
            guest_nap_us(200);
        CHECK_EQ(told[queue], before + 1);
        char message[16];
        CHECK_EQ(mq_receive(queues[queue], message, sizeof message, NULL), sizeof i);
        CHECK_EQ(memcmp(message, &i, sizeof i), 0);
        ask(queue);
    }
    guest_line("ok mq_thread %ld", told[0] + told[1]);
    return 0;
}
