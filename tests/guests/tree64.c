/* A tree of 64 processes over pipes that pass messages with checksums, and know parent and children by pid. */
#include "guest.h"
#include <sys/wait.h>

enum { NODES = 64, WORDS = 512 };

struct message {
    long step;
    pid_t from;
    uint64_t words[WORDS];
    uint64_t sum;
};

struct kin {
    pid_t pid;
    int to, from;
};

static void send_message(int fd, struct message *message)
{
    message->from = getpid();
    message->sum = guest_sum(message->words, sizeof message->words) + (uint64_t)message->step;
    const char *at = (const char *)message;
    for (size_t done = 0; done < sizeof *message;) {
        ssize_t n = write(fd, at + done, sizeof *message - done);
        CHECK(n > 0);
        done += (size_t)n;
    }
}

static int receive_message(int fd, struct message *message, pid_t from)
{
    char *at = (char *)message;
    size_t done = 0;
    while (done < sizeof *message) {
        ssize_t n = read(fd, at + done, sizeof *message - done);
        CHECK(n >= 0);
        if (n == 0) {
            CHECK_EQ(done, 0);
            return 0;
        }
        done += (size_t)n;
    }
    CHECK(message->sum == guest_sum(message->words, sizeof message->words) + (uint64_t)message->step);
    CHECK_EQ(message->from, from);
    return 1;
}

static struct kin start(int node, pid_t parent);

/* A node passes each message to its children, adds their answers, and answers. */
static int run(int node, pid_t parent, int in, int out)
{
    pid_t me = getpid();
    struct kin children[2];
    int count = 0;
    for (int child = 2 * node; child <= 2 * node + 1; child++)
        if (child < NODES + 1 && child > 1)
            children[count++] = start(child, me);
    struct message message, answer;
    while (receive_message(in, &message, parent)) {
        CHECK_EQ(getpid(), me);
        CHECK_EQ(getppid(), parent);
        uint64_t total = 1;
        for (int i = 0; i < count; i++) {
            message.words[0]++;
            send_message(children[i].to, &message);
        }
        for (int i = 0; i < count; i++) {
            CHECK_EQ(kill(children[i].pid, 0), 0);
            CHECK(receive_message(children[i].from, &answer, children[i].pid));
            CHECK_EQ(answer.step, message.step);
            total += answer.words[1];
        }
        message.words[1] = total;
        send_message(out, &message);
    }
    for (int i = 0; i < count; i++) {
        CHECK_EQ(close(children[i].to), 0);
        int status = 0;
        CHECK_EQ(waitpid(children[i].pid, &status, 0), children[i].pid);
        CHECK(WIFEXITED(status) && WEXITSTATUS(status) == (2 * node + i) % 100);
        CHECK_EQ(close(children[i].from), 0);
    }
    return node % 100;
}

static struct kin start(int node, pid_t parent)
{
    int down[2], up[2];
    CHECK_EQ(pipe(down), 0);
    CHECK_EQ(pipe(up), 0);
    pid_t pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) {
        close(down[1]);
        close(up[0]);
        /* The other end must be the parent's alone, or no end of file is seen. */
        for (int fd = 3; fd < 1024; fd++)
            if (fd != down[0] && fd != up[1])
                close(fd);
        _exit(run(node, parent, down[0], up[1]));
    }
    close(down[0]);
    close(up[1]);
    return (struct kin){pid, down[1], up[0]};
}

int main(int argc, char **argv)
{
    long steps = guest_steps(argc, argv);
    struct kin root = start(1, getpid());
    uint64_t state = 1234567891011u, total = 0;
    struct message message;
    for (long i = 1; i <= steps; i++) {
        guest_step(i);
        message.step = i;
        for (int w = 0; w < WORDS; w++)
            message.words[w] = guest_random(&state);
        send_message(root.to, &message);
        CHECK(receive_message(root.from, &message, root.pid));
        CHECK_EQ(message.step, i);
        CHECK_EQ(message.words[1], NODES);
        total += message.sum;
    }
    CHECK_EQ(close(root.to), 0);
    int status = 0;
    CHECK_EQ(wait(&status), root.pid);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 1);
    guest_line("ok tree64 %016lx", (unsigned long)total);
    return 0;
}
