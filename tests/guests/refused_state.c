/* State that cannot be saved yet, by name: a checkpoint refuses it in words, and the program goes on. */
#include "guest.h"
#include <arpa/inet.h>
#include <linux/aio_abi.h>
#include <linux/bpf.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/netlink.h>
#include <linux/perf_event.h>
#include <linux/seccomp.h>
#include <mqueue.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/inotify.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

static void *wait_forever(void *nothing)
{
    for (;;)
        pause();
    return nothing;
}

static volatile sig_atomic_t started;

static void start(union sigval nothing)
{
    (void)nothing;
    started = 1;
}

int main(int argc, char **argv)
{
    CHECK_EQ(argc, 3);
    long steps = guest_steps(argc, argv);
    const char *what = argv[2];
    if (strcmp(what, "queue") == 0) {
        char name[64];
        snprintf(name, sizeof name, "/ulpm-test-%d", (int)getpid());
        mqd_t queue = mq_open(name, O_RDWR | O_CREAT, 0600, NULL);
        CHECK(queue >= 0);
        CHECK_EQ(mq_unlink(name), 0);
        struct sigevent event = {0};
        event.sigev_notify = SIGEV_THREAD;
        event.sigev_notify_function = start;
        /* The copy that libc makes of them nobody finds again. */
        pthread_attr_t attributes;
        CHECK_EQ(pthread_attr_init(&attributes), 0);
        event.sigev_notify_attributes = &attributes;
        CHECK_EQ(mq_notify(queue, &event), 0);
        for (long i = 1; i <= steps; i++)
            guest_step(i);
        /* Nothing has taken that back. */
        CHECK_EQ(mq_send(queue, "", 0, 0), 0);
        for (int i = 0; i < 2000 && !started; i++)
            guest_nap_us(1000);
        CHECK(started);
        guest_line("ok refused_state");
        return 0;
    } else if (strcmp(what, "linked") == 0) {
        CHECK(open("linked", O_RDWR | O_CREAT, 0600) >= 0);
        CHECK_EQ(mkdir("elsewhere", 0700), 0);
        CHECK_EQ(rename("linked", "elsewhere/first"), 0);
        CHECK_EQ(link("elsewhere/first", "linked"), 0);
        CHECK(open("linked", O_RDWR) >= 0);
        CHECK_EQ(unlink("linked"), 0);
    } else if (strcmp(what, "seccomp") == 0) {
        struct sock_filter allow = BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
        struct sock_fprog program = {1, &allow};
        CHECK_EQ(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        CHECK_EQ(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program), 0);
    } else if (strcmp(what, "timer") == 0) {
        pthread_t thread;
        timer_t timer;
        CHECK_EQ(pthread_create(&thread, NULL, wait_forever, NULL), 0);
        CHECK_EQ(timer_create(CLOCK_THREAD_CPUTIME_ID, NULL, &timer), 0);
    } else if (strcmp(what, "user") == 0) {
        CHECK_EQ(seteuid(65534), 0);
    } else if (strcmp(what, "inotify") == 0) {
        /* Without libc, so that nobody hears of the path. */
        int watching = inotify_init1(IN_NONBLOCK);
        CHECK_EQ(mkdir("watched", 0700), 0);
        CHECK_EQ(syscall(SYS_inotify_add_watch, watching, "watched", IN_CREATE), 1);
        CHECK_EQ(rename("watched", "moved"), 0);
    } else if (strcmp(what, "userfaultfd") == 0) {
        CHECK(syscall(SYS_userfaultfd, 1 | O_CLOEXEC) >= 0);
    } else if (strcmp(what, "huge") == 0) {
        CHECK(memfd_create("huge", MFD_HUGETLB) >= 0);
    } else if (strcmp(what, "cork") == 0) {
        struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(9), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
        int fd = socket(AF_INET, SOCK_DGRAM, 0);
        CHECK_EQ(sendto(fd, "half", 4, MSG_MORE, (struct sockaddr *)&to, sizeof to), 4);
    } else if (strcmp(what, "urgent") == 0) {
        struct sockaddr_in name = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
        socklen_t len = sizeof name;
        int listener = socket(AF_INET, SOCK_STREAM, 0), client = socket(AF_INET, SOCK_STREAM, 0);
        CHECK_EQ(bind(listener, (struct sockaddr *)&name, len), 0);
        CHECK_EQ(listen(listener, 1), 0);
        CHECK_EQ(getsockname(listener, (struct sockaddr *)&name, &len), 0);
        CHECK_EQ(connect(client, (struct sockaddr *)&name, len), 0);
        CHECK(accept(listener, NULL, NULL) >= 0);
        CHECK_EQ(send(client, "u", 1, MSG_OOB), 1);
    } else if (strcmp(what, "sources") == 0) {
        struct ip_mreq_source group = {.imr_interface.s_addr = htonl(INADDR_LOOPBACK)};
        CHECK_EQ(inet_pton(AF_INET, "239.7.7.7", &group.imr_multiaddr), 1);
        CHECK_EQ(inet_pton(AF_INET, "10.0.0.7", &group.imr_sourceaddr), 1);
        int fd = socket(AF_INET, SOCK_DGRAM, 0);
        CHECK_EQ(setsockopt(fd, IPPROTO_IP, IP_ADD_SOURCE_MEMBERSHIP, &group, sizeof group), 0);
    } else if (strcmp(what, "requests") == 0) {
        unsigned long context = 0;
        CHECK_EQ(syscall(SYS_io_setup, 8, &context), 0);
        int ends[2];
        CHECK_EQ(pipe(ends), 0);
        /* It ends when somebody writes into the pipe. */
        struct iocb poll = {.aio_lio_opcode = IOCB_CMD_POLL, .aio_fildes = (unsigned)ends[0], .aio_buf = POLLIN};
        struct iocb *list = &poll;
        CHECK_EQ(syscall(SYS_io_submit, context, 1, &list), 1);
    } else if (strcmp(what, "process") == 0) {
        CHECK(syscall(SYS_pidfd_open, 1, 0) >= 0);
    } else if (strcmp(what, "fanotify") == 0) {
        /* FAN_REPORT_FID */
        CHECK(syscall(SYS_fanotify_init, 0x200, 0) >= 0);
    } else if (strcmp(what, "perf") == 0) {
        struct perf_event_attr event = {.type = PERF_TYPE_SOFTWARE, .size = sizeof event, .config = PERF_COUNT_SW_CPU_CLOCK};
        event.exclude_kernel = event.exclude_hv = 1;
        CHECK(syscall(SYS_perf_event_open, &event, 0, -1, -1, 0) >= 0);
    } else if (strcmp(what, "bpf") == 0) {
        union bpf_attr map = {.map_type = BPF_MAP_TYPE_ARRAY};
        map.key_size = map.value_size = 4;
        map.max_entries = 1;
        CHECK(syscall(SYS_bpf, BPF_MAP_CREATE, &map, sizeof map) >= 0);
    } else if (strcmp(what, "landlock") == 0) {
        uint64_t rules = 1;
        CHECK(syscall(SYS_landlock_create_ruleset, &rules, sizeof rules, 0) >= 0);
    } else if (strcmp(what, "netfilter") == 0) {
        CHECK(socket(AF_NETLINK, SOCK_RAW, NETLINK_NETFILTER) >= 0);
    } else if (strcmp(what, "packet") == 0) {
        CHECK(socket(AF_PACKET, SOCK_DGRAM, 0) >= 0);
    } else if (strcmp(what, "out-of-band") == 0) {
        int pair[2];
        CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
        CHECK_EQ(send(pair[0], "u", 1, MSG_OOB), 1);
    } else if (strcmp(what, "thread") == 0) {
        /* PIDFD_THREAD */
        CHECK(syscall(SYS_pidfd_open, getpid(), O_EXCL) >= 0);
    } else if (strcmp(what, "secret") == 0) {
        CHECK(syscall(SYS_memfd_secret, 0) >= 0);
    } else if (strcmp(what, "capabilities") == 0) {
        struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
        struct __user_cap_data_struct sets[2];
        CHECK_EQ(syscall(SYS_capget, &header, sets), 0);
        CHECK(sets[0].effective & 1 << CAP_SYS_NICE);
        sets[0].effective &= ~(1u << CAP_SYS_NICE);
        CHECK_EQ(syscall(SYS_capset, &header, sets), 0);
    } else if (strcmp(what, "traced") == 0) {
        pid_t child = fork();
        CHECK(child >= 0);
        if (child == 0) {
            CHECK_EQ(prctl(PR_SET_PDEATHSIG, SIGKILL), 0);
            CHECK_EQ(ptrace(PTRACE_TRACEME, 0, NULL, NULL), 0);
            CHECK_EQ(raise(SIGSTOP), 0);
            wait_forever(NULL);
        }
        int status = 0;
        CHECK_EQ(waitpid(child, &status, 0), child);
        CHECK(WIFSTOPPED(status));
        CHECK_EQ(ptrace(PTRACE_CONT, child, NULL, NULL), 0);
        for (long i = 1; i <= steps; i++) {
            guest_step(i);
            /* It is stopped by no signal of anybody. */
            CHECK_EQ(waitpid(child, &status, WNOHANG), 0);
        }
        CHECK_EQ(kill(child, SIGKILL), 0);
        CHECK_EQ(waitpid(child, &status, 0), child);
        CHECK(WIFSIGNALED(status));
        guest_line("ok refused_state");
        return 0;
    } else {
        CHECK(!"known");
    }
    for (long i = 1; i <= steps; i++)
        guest_step(i);
    guest_line("ok refused_state");
    return 0;
}
