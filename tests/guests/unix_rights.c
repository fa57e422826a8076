/* Descriptors and credentials that are under way in unix sockets arrive: files, pipes, sockets, the socket itself. */
#include "guest.h"
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>

static void pass(int fd, const char *words, const int *fds, int count)
{
    char control[CMSG_SPACE(8 * sizeof(int))];
    memset(control, 0, sizeof control);
    struct iovec vector = {(void *)(uintptr_t)words, strlen(words)};
    struct msghdr message = {.msg_iov = &vector, .msg_iovlen = 1, .msg_control = control};
    message.msg_controllen = CMSG_SPACE((size_t)count * sizeof(int));
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN((size_t)count * sizeof(int));
    memcpy(CMSG_DATA(header), fds, (size_t)count * sizeof(int));
    CHECK_EQ(sendmsg(fd, &message, MSG_NOSIGNAL), strlen(words));
}

/* Receives at most `room` bytes, which are `words`, with `count` descriptors. */
static void take(int fd, size_t room, const char *words, int *fds, int count, struct ucred *sender)
{
    char found[256], control[256];
    CHECK(room <= sizeof found);
    struct iovec vector = {found, room};
    struct msghdr message = {.msg_iov = &vector, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    CHECK_EQ(recvmsg(fd, &message, 0), strlen(words));
    CHECK(memcmp(found, words, strlen(words)) == 0);
    CHECK_EQ(message.msg_flags & MSG_CTRUNC, 0);
    int got = 0;
    for (struct cmsghdr *header = CMSG_FIRSTHDR(&message); header; header = CMSG_NXTHDR(&message, header)) {
        if (header->cmsg_type == SCM_RIGHTS) {
            got = (int)((header->cmsg_len - CMSG_LEN(0)) / sizeof(int));
            CHECK_EQ(got, count);
            memcpy(fds, CMSG_DATA(header), (size_t)count * sizeof(int));
        } else if (header->cmsg_type == SCM_CREDENTIALS && sender) {
            memcpy(sender, CMSG_DATA(header), sizeof *sender);
        }
    }
    CHECK_EQ(got, count);
}

int main(int argc, char **argv)
{
    long steps = guest_steps(argc, argv);
    CHECK(signal(SIGPIPE, SIG_IGN) == SIG_DFL);
    int stream[2], datagrams[2], given[2], ring[2], kept[2], ids[2];
    CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, stream), 0);
    CHECK_EQ(socketpair(AF_UNIX, SOCK_DGRAM, 0, datagrams), 0);
    CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, ring), 0);
    CHECK_EQ(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, kept), 0);
    CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, ids), 0);
    int on = 1;
    CHECK_EQ(setsockopt(ids[1], SOL_SOCKET, SO_PASSCRED, &on, sizeof on), 0);

    /* One in its own queue, through the other end; a socket with a message, which is nowhere else. */
    pass(ring[0], "ring", ring + 1, 1);
    int inner[2];
    CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, inner), 0);
    CHECK_EQ(write(inner[0], "deep inside", 11), 11);
    pass(kept[0], "both", inner, 2);
    CHECK(close(inner[0]) == 0 && close(inner[1]) == 0);

    /* A child that answers through what it is given. */
    int channel[2];
    CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, channel), 0);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        CHECK_EQ(close(channel[1]), 0);
        for (long i = 1; i <= steps; i++) {
            int out;
            take(channel[0], 4, "pipe", &out, 1, NULL);
            CHECK_EQ(write(out, &i, sizeof i), sizeof i);
            CHECK_EQ(close(out), 0);
        }
        _exit(25);
    }
    CHECK_EQ(close(channel[0]), 0);
    CHECK_EQ(close(kept[0]), 0);

    int fixed = open("given", O_RDWR | O_CREAT | O_TRUNC, 0600);
    CHECK_EQ(write(fixed, "0123456789", 10), 10);
    CHECK_EQ(close(fixed), 0);
    int shared = open("shared", O_RDWR | O_CREAT | O_TRUNC, 0600);
    CHECK(shared >= 0);
    for (long i = 1; i <= steps; i++) {
        char name[32];
        /* A file that is open nowhere else, at its offset; and one that shares its offset with ours. */
        int file = open("given", O_RDONLY);
        CHECK(file >= 0);
        CHECK_EQ(lseek(file, i % 7, SEEK_SET), i % 7);
        int two[2] = {file, shared};
        CHECK_EQ(write(stream[0], "plain", 5), 5);
        pass(stream[0], "with two", two, 2);
        CHECK_EQ(write(stream[0], "after", 5), 5);
        CHECK_EQ(close(file), 0);
        CHECK_EQ(pipe(given), 0);
        pass(channel[1], "pipe", &given[1], 1);
        CHECK_EQ(close(given[1]), 0);
        pass(datagrams[0], "datagram", &given[0], 1);
        snprintf(name, sizeof name, "id %ld", i);
        CHECK_EQ(write(ids[0], name, strlen(name)), strlen(name));
        guest_step(i);
        /* They come with their own bytes, not with those before. */
        char plain[5];
        CHECK_EQ(read(stream[1], plain, 3), 3);
        CHECK_EQ(read(stream[1], plain + 3, 2), 2);
        CHECK(memcmp(plain, "plain", 5) == 0);
        int found[2], reader;
        take(stream[1], 200, "with two", found, 2, NULL);
        take(stream[1], 5, "after", NULL, 0, NULL);
        char rest[64];
        CHECK_EQ(read(found[0], rest, sizeof rest), 10 - i % 7);
        CHECK(memcmp(rest, "0123456789" + i % 7, (size_t)(10 - i % 7)) == 0);
        CHECK_EQ(lseek(found[1], i * 10, SEEK_SET), i * 10);
        CHECK_EQ(lseek(shared, 0, SEEK_CUR), i * 10);
        take(datagrams[1], 100, "datagram", &reader, 1, NULL);
        long number = 0;
        CHECK_EQ(read(reader, &number, sizeof number), sizeof number);
        CHECK_EQ(number, i);
        CHECK_EQ(read(reader, &number, 1), 0);
        CHECK_EQ(read(given[0], &number, 1), 0);
        struct ucred sender = {0, 0, 0};
        take(ids[1], 100, name, NULL, 0, &sender);
        CHECK(sender.pid > 0);
        CHECK_EQ(sender.uid, getuid());
        CHECK_EQ(sender.gid, getgid());
        CHECK(close(found[0]) == 0 && close(found[1]) == 0 && close(reader) == 0 && close(given[0]) == 0);
    }
    int out, both[2];
    char deep[16];
    take(ring[1], 4, "ring", &out, 1, NULL);
    CHECK_EQ(write(ring[0], "round", 5), 5);
    CHECK_EQ(read(out, deep, sizeof deep), 5);
    take(kept[1], 4, "both", both, 2, NULL);
    CHECK_EQ(read(both[1], deep, sizeof deep), 11);
    CHECK(memcmp(deep, "deep inside", 11) == 0);
    CHECK_EQ(close(both[0]), 0);
    CHECK_EQ(read(both[1], deep, sizeof deep), 0);
    CHECK_EQ(read(kept[1], deep, sizeof deep), 0);
    int status = 0;
    CHECK_EQ(waitpid(child, &status, 0), child);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 25);
    guest_line("ok unix_rights %ld", steps);
    return 0;
}
