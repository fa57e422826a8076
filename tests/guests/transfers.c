/* Calls that move much at a time, in every way, are not cut short by a checkpoint; and those with a timeout of their socket neither end early, nor late, nor with EINTR. Arguments: "threads" or "processes", and "late" to check that nothing is late. */
#include "guest.h"
#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <termios.h>

enum { MOST = 600011, CHUNK = 20000, TIMEOUT_MS = 150 };

enum how {
    PIPE_WRITE, PIPE_WRITEV, UNIX_SEND, UNIX_WRITE, UNIX_SENDMSG, UNIX_WRITEV, TCP_SEND, TCP_WRITE, TCP_SENDMSG,
    UNIX_SENDFILE, TCP_SENDFILE, SLAVE_WRITE, MASTER_WRITE, UNIX_RECV, UNIX_RECVMSG, TCP_RECV, TCP_RECVFROM,
    TCP_RECVMSG, UNIX_SENDMMSG, UNIX_RECVMMSG, WAYS
};
static const char *const names[] = {"pipe write", "pipe writev", "unix send", "unix write", "unix sendmsg",
    "unix writev", "tcp send", "tcp write", "tcp sendmsg", "unix sendfile", "tcp sendfile", "slave write",
    "master write", "unix recv", "unix recvmsg", "tcp recv", "tcp recvfrom", "tcp recvmsg", "unix sendmmsg",
    "unix recvmmsg"};

/* Shared by all processes. */
static struct shared {
    atomic_int stop;
    atomic_long blocks[WAYS], others[8];
} *shared;
static int ends[WAYS][2], file, late, no_tcp;

static int is_tcp(enum how how)
{
    return strncmp(names[how], "tcp", 3) == 0;
}

/* 1: TCP, 2: terminals, 0: all others. */
static int group_of(enum how how)
{
    return is_tcp(how) ? 1 : how == SLAVE_WRITE || how == MASTER_WRITE ? 2 : 0;
}

static size_t block_len(enum how how)
{
    /* A terminal's buffers are small. */
    return how == SLAVE_WRITE || how == MASTER_WRITE ? 30011 : how >= UNIX_SENDMMSG ? 40 * 1000 : MOST;
}

static unsigned char pattern(enum how how, size_t at)
{
    return (unsigned char)(at * 31 + how * 7 + (at >> 8));
}

static void fill(enum how how, unsigned char *block, int is_last)
{
    for (size_t i = 0; i < block_len(how); i++)
        block[i] = pattern(how, i);
    block[0] = is_last ? 'E' : 'C';
}

/* Whether it is the last. */
static int check(enum how how, const unsigned char *block)
{
    for (size_t i = 1; i < block_len(how); i++)
        if (block[i] != pattern(how, i))
            guest_fail(__FILE__, __LINE__, names[how], (long)i);
    CHECK(block[0] == 'C' || block[0] == 'E');
    return block[0] == 'E';
}

static void whole(enum how how, ssize_t count, size_t wanted)
{
    if (count != (ssize_t)wanted)
        guest_fail(__FILE__, __LINE__, names[how], (long)count);
}

/* Parts of uneven length, one of them empty. */
static int parts(unsigned char *block, size_t len, struct iovec *iov)
{
    iov[0] = (struct iovec){block, 1000};
    iov[1] = (struct iovec){block + 1000, len / 2};
    iov[2] = (struct iovec){block, 0};
    iov[3] = (struct iovec){block + 1000 + len / 2, len - 1000 - len / 2};
    return 4;
}

static void send_block(enum how how, int fd, unsigned char *block, size_t len)
{
    struct iovec iov[4];
    struct msghdr message = {.msg_iov = iov};
    struct mmsghdr messages[40];
    struct iovec each[40];
    off_t offset = 0;
    switch (how) {
    case PIPE_WRITE:
    case UNIX_WRITE:
    case TCP_WRITE:
    case SLAVE_WRITE:
    case MASTER_WRITE:
        whole(how, write(fd, block, len), len);
        return;
    case PIPE_WRITEV:
    case UNIX_WRITEV:
        whole(how, writev(fd, iov, parts(block, len, iov)), len);
        return;
    case UNIX_SEND:
    case TCP_SEND:
        whole(how, send(fd, block, len, MSG_NOSIGNAL), len);
        return;
    case UNIX_SENDMSG:
    case TCP_SENDMSG:
        message.msg_iovlen = (size_t)parts(block, len, iov);
        whole(how, sendmsg(fd, &message, 0), len);
        return;
    case UNIX_SENDFILE:
    case TCP_SENDFILE:
        /* The first byte by itself: the file is one for all blocks. */
        CHECK_EQ(send(fd, block, 1, 0), 1);
        offset = (off_t)how * MOST + 1;
        whole(how, sendfile(fd, file, &offset, len - 1), len - 1);
        CHECK_EQ(offset, (off_t)how * MOST + (off_t)len);
        return;
    case UNIX_SENDMMSG:
        memset(messages, 0, sizeof messages);
        for (size_t i = 0; i < 40; i++) {
            each[i] = (struct iovec){block + i * 1000, 1000};
            messages[i].msg_hdr.msg_iov = &each[i];
            messages[i].msg_hdr.msg_iovlen = 1;
        }
        whole(how, sendmmsg(fd, messages, 40, 0), 40);
        return;
    default:
        /* For a receiver that wants all at once. */
        for (size_t done = 0; done < len; done += CHUNK) {
            size_t part = len - done < CHUNK ? len - done : CHUNK;
            if (how == UNIX_RECVMMSG)
                part = 1000;
            whole(how, send(fd, block + done, part, 0), part);
            if (how == UNIX_RECVMMSG)
                done -= CHUNK - 1000;
            guest_nap_us(500);
        }
    }
}

static void receive_block(enum how how, int fd, unsigned char *block, size_t len)
{
    struct iovec iov[4];
    struct msghdr message = {.msg_iov = iov};
    struct mmsghdr messages[40];
    struct iovec each[40];
    size_t done = 0;
    switch (how) {
    case UNIX_RECV:
    case TCP_RECV:
        whole(how, recv(fd, block, len, MSG_WAITALL), len);
        return;
    case TCP_RECVFROM: {
        struct sockaddr_in from;
        socklen_t size = sizeof from;
        whole(how, recvfrom(fd, block, len, MSG_WAITALL, (struct sockaddr *)&from, &size), len);
        return;
    }
    case UNIX_RECVMSG:
    case TCP_RECVMSG:
        message.msg_iovlen = (size_t)parts(block, len, iov);
        whole(how, recvmsg(fd, &message, MSG_WAITALL), len);
        return;
    case UNIX_RECVMMSG:
        memset(messages, 0, sizeof messages);
        for (size_t i = 0; i < 40; i++) {
            each[i] = (struct iovec){block + i * 1000, 1000};
            messages[i].msg_hdr.msg_iov = &each[i];
            messages[i].msg_hdr.msg_iovlen = 1;
        }
        whole(how, recvmmsg(fd, messages, 40, 0, NULL), 40);
        for (size_t i = 0; i < 40; i++)
            CHECK_EQ(messages[i].msg_len, 1000);
        return;
    default:
        while (done < len) {
            ssize_t n = read(fd, block + done, len - done < CHUNK ? len - done : CHUNK);
            if (n <= 0)
                guest_fail(__FILE__, __LINE__, names[how], (long)n);
            done += (size_t)n;
            guest_nap_us(300);
        }
    }
}

static void *sender(void *argument)
{
    enum how how = (enum how)(long)argument;
    unsigned char *block = malloc(MOST);
    CHECK(block != NULL);
    for (int is_last = 0; !is_last;) {
        is_last = shared->stop;
        fill(how, block, is_last);
        send_block(how, ends[how][1], block, block_len(how));
        /* Not more than one block is under way: a checkpoint of more than fits into the buffers is refused. */
        char answer;
        if (is_tcp(how))
            CHECK_EQ(recv(ends[how][1], &answer, 1, 0), 1);
    }
    free(block);
    return NULL;
}

static void *receiver(void *argument)
{
    enum how how = (enum how)(long)argument;
    unsigned char *block = malloc(MOST);
    CHECK(block != NULL);
    do {
        receive_block(how, ends[how][0], block, block_len(how));
        shared->blocks[how]++;
        if (is_tcp(how))
            CHECK_EQ(send(ends[how][0], "", 1, 0), 1);
    } while (!check(how, block));
    free(block);
    return NULL;
}

/* Nothing comes, or goes: each of these calls ends when the time of its socket is over. */
static void *timeouts(void *argument)
{
    long which = (long)argument;
    struct timeval time = {0, TIMEOUT_MS * 1000};
    int pair[2];
    CHECK_EQ(socketpair(AF_UNIX, which == 1 ? SOCK_STREAM : SOCK_DGRAM, 0, pair), 0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct sockaddr_un named = {.sun_family = AF_UNIX};
    snprintf(named.sun_path, sizeof named.sun_path, "listener-%ld", which);
    int listener = socket(no_tcp ? AF_UNIX : AF_INET, SOCK_STREAM, 0);
    CHECK_EQ(no_tcp ? bind(listener, (struct sockaddr *)&named, sizeof named)
                    : bind(listener, (struct sockaddr *)&address, sizeof address), 0);
    CHECK_EQ(listen(listener, 1), 0);
    int fds[] = {pair[0], pair[1], listener};
    for (int i = 0; i < 3; i++) {
        CHECK_EQ(setsockopt(fds[i], SOL_SOCKET, SO_RCVTIMEO, &time, sizeof time), 0);
        CHECK_EQ(setsockopt(fds[i], SOL_SOCKET, SO_SNDTIMEO, &time, sizeof time), 0);
    }
    static char bytes[4096];
    if (which == 1) /* Fill it. */
        while (send(pair[0], bytes, sizeof bytes, MSG_DONTWAIT) > 0)
            continue;
    int epoll = epoll_create1(EPOLL_CLOEXEC);
    while (!shared->stop) {
        int64_t begin = guest_now_ns();
        ssize_t n = -1;
        struct timespec wait = {0, TIMEOUT_MS * 1000000L};
        struct epoll_event event;
        switch (which) {
        case 0: {
            char part[64]; /* The thread's own. */
            n = recv(pair[0], part, sizeof part, 0);
            break;
        }
        case 1:
            n = send(pair[0], bytes, sizeof bytes, 0);
            if (n > 0) /* Made anew, it may have room for one more. */
                continue;
            break;
        case 2:
            n = accept(listener, NULL, NULL);
            break;
        case 3:
            n = epoll_pwait2(epoll, &event, 1, &wait, NULL);
            CHECK_EQ(n, 0);
            n = -1;
            errno = EAGAIN;
            break;
        }
        int64_t took = (guest_now_ns() - begin) / 1000000;
        CHECK_EQ(n, -1);
        if (errno != EAGAIN)
            guest_fail(__FILE__, __LINE__, "a call with a timeout", which);
        if (took < TIMEOUT_MS - 4)
            guest_fail(__FILE__, __LINE__, "a call with a timeout ended early", took);
        if (late && took > TIMEOUT_MS + 5000)
            guest_fail(__FILE__, __LINE__, "a call with a timeout ended late", took);
        shared->others[which]++;
    }
    return NULL;
}

/* Files that have no end. */
static void *endless(void *argument)
{
    enum { LEN = 4 << 20 };
    unsigned char *bytes = malloc(LEN);
    int fds[] = {open("/dev/zero", O_RDONLY), open("/dev/urandom", O_RDONLY)};
    int memory = memfd_create("memory", MFD_CLOEXEC);
    CHECK(bytes != NULL && fds[0] >= 0 && fds[1] >= 0 && memory >= 0);
    while (!shared->stop) {
        CHECK_EQ(read(fds[0], bytes, LEN), LEN);
        CHECK_EQ(read(fds[1], bytes, LEN / 8), LEN / 8);
        CHECK_EQ(getrandom(bytes, LEN / 8, 0), LEN / 8);
        CHECK_EQ(posix_fallocate(memory, 0, LEN), 0);
        CHECK_EQ(ftruncate(memory, 0), 0);
        shared->others[4]++;
        guest_nap_us(10000);
    }
    free(bytes);
    return argument;
}

static volatile sig_atomic_t interrupted;
static atomic_long unwound;

static void on_signal(int number)
{
    (void)number;
    interrupted++;
}

static void unwind(void *argument)
{
    CHECK_EQ((long)argument, 77);
    unwound++;
}

/* Writes more than a pipe takes that nobody reads. */
static void *stuck(void *argument)
{
    int *arguments = argument, cancelled = arguments[1];
    static unsigned char bytes[200000];
    pthread_cleanup_push(unwind, (void *)77);
    ssize_t n = write(arguments[0], bytes, sizeof bytes);
    CHECK(!cancelled && n > 0 && n < (ssize_t)sizeof bytes);
    pthread_cleanup_pop(0);
    return NULL;
}

/* What waits in a call that has done a part is interrupted by a handler, and returns short; or is cancelled, and unwound. */
static void *ends_early(void *argument)
{
    struct sigaction action = {.sa_handler = on_signal};
    int ends[2];
    CHECK_EQ(pipe(ends), 0);
    CHECK_EQ(fcntl(ends[0], F_SETFL, O_NONBLOCK), 0);
    for (long round = 0; !shared->stop; round++) {
        int cancelled = round % 3 == 0, arguments[] = {ends[1], cancelled};
        action.sa_flags = round % 3 == 1 ? SA_RESTART : 0;
        CHECK_EQ(sigaction(SIGUSR1, &action, NULL), 0);
        pthread_t thread;
        long before = unwound;
        CHECK_EQ(pthread_create(&thread, NULL, stuck, arguments), 0);
        guest_nap_us(60000);
        void *result = NULL;
        if (cancelled) {
            CHECK_EQ(pthread_cancel(thread), 0);
        } else {
            /* Until it has come in time: the thread may not have been in its call yet. */
            while (pthread_tryjoin_np(thread, &result) == EBUSY) {
                CHECK_EQ(pthread_kill(thread, SIGUSR1), 0);
                guest_nap_us(20000);
            }
        }
        if (cancelled) {
            CHECK_EQ(pthread_join(thread, &result), 0);
            CHECK(result == PTHREAD_CANCELED);
        }
        CHECK_EQ(unwound - before, cancelled);
        static char bytes[65536];
        while (read(ends[0], bytes, sizeof bytes) > 0)
            continue;
        shared->others[5]++;
    }
    return argument;
}

static void connect_ends(enum how how)
{
    int *end = ends[how];
    if (how == PIPE_WRITE || how == PIPE_WRITEV) {
        CHECK_EQ(pipe(end), 0);
    } else if (how == SLAVE_WRITE || how == MASTER_WRITE) {
        int master = posix_openpt(O_RDWR | O_NOCTTY);
        CHECK(master >= 0 && grantpt(master) == 0 && unlockpt(master) == 0);
        int slave = open(ptsname(master), O_RDWR | O_NOCTTY);
        struct termios modes;
        CHECK_EQ(tcgetattr(slave, &modes), 0);
        cfmakeraw(&modes);
        CHECK_EQ(tcsetattr(slave, TCSANOW, &modes), 0);
        end[0] = how == SLAVE_WRITE ? master : slave;
        end[1] = how == SLAVE_WRITE ? slave : master;
    } else if (is_tcp(how)) {
        struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
        socklen_t len = sizeof address;
        int listener = socket(AF_INET, SOCK_STREAM, 0);
        CHECK_EQ(bind(listener, (struct sockaddr *)&address, len), 0);
        CHECK_EQ(getsockname(listener, (struct sockaddr *)&address, &len), 0);
        CHECK_EQ(listen(listener, 1), 0);
        end[1] = socket(AF_INET, SOCK_STREAM, 0);
        CHECK_EQ(connect(end[1], (struct sockaddr *)&address, len), 0);
        end[0] = accept(listener, NULL, NULL);
        CHECK(end[0] >= 0);
        int room = 65536;
        CHECK_EQ(setsockopt(end[1], SOL_SOCKET, SO_SNDBUF, &room, sizeof room), 0);
        CHECK_EQ(close(listener), 0);
    } else {
        CHECK_EQ(socketpair(AF_UNIX, how >= UNIX_SENDMMSG ? SOCK_SEQPACKET : SOCK_STREAM, 0, end), 0);
    }
}

enum { WORKERS = 2 * WAYS + 6 };

static void *work(void *argument)
{
    long i = (long)argument;
    if (i < WAYS)
        return sender((void *)i);
    if (i < 2 * WAYS)
        return receiver((void *)(i - WAYS));
    return i == WORKERS - 1 ? ends_early(NULL) : i == WORKERS - 2 ? endless(NULL) : timeouts((void *)(i - 2 * WAYS));
}

int main(int argc, char **argv)
{
    long steps = guest_steps(argc, argv);
    int processes = 0, without[3] = {0};
    for (int i = 2; i < argc; i++) {
        processes |= strcmp(argv[i], "processes") == 0;
        late |= strcmp(argv[i], "late") == 0;
        without[1] |= strcmp(argv[i], "no-tcp") == 0;
        without[2] |= strcmp(argv[i], "no-terminals") == 0;
    }
    no_tcp = without[1];
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(shared != MAP_FAILED);
    file = open("content", O_RDWR | O_CREAT | O_TRUNC, 0600);
    CHECK(file >= 0);
    static unsigned char block[MOST];
    for (enum how how = 0; how < WAYS; how++) {
        if (without[group_of(how)])
            continue;
        connect_ends(how);
        fill(how, block, 0);
        CHECK_EQ(pwrite(file, block, MOST, (off_t)how * MOST), MOST);
    }
    pthread_t threads[WORKERS];
    pid_t children[WORKERS];
    for (long i = 0; i < WORKERS; i++) {
        if (i < 2 * WAYS && without[group_of((enum how)(i % WAYS))])
            continue;
        if (processes) {
            children[i] = fork();
            CHECK(children[i] >= 0);
            if (children[i] == 0) {
                work((void *)i);
                _exit(21);
            }
        } else {
            CHECK_EQ(pthread_create(&threads[i], NULL, work, (void *)i), 0);
        }
    }
    for (long i = 1; i <= steps; i++)
        guest_step(i);
    shared->stop = 1;
    for (long i = 0; i < WORKERS; i++) {
        if (i < 2 * WAYS && without[group_of((enum how)(i % WAYS))])
            continue;
        int status = 0;
        if (processes) {
            CHECK_EQ(waitpid(children[i], &status, 0), children[i]);
            CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 21);
        } else {
            CHECK_EQ(pthread_join(threads[i], NULL), 0);
        }
    }
    for (int i = 0; i < WAYS; i++)
        guest_line("note %s: %ld", names[i], shared->blocks[i]);
    for (int i = 0; i < 6; i++)
        guest_line("note timeouts and endless %d: %ld", i, shared->others[i]);
    CHECK_EQ(unlink("content"), 0);
    guest_line("ok transfers");
    return 0;
}
