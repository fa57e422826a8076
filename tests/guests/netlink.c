/* Netlink sockets: groups, options, a filter, requests to the kernel and messages between two of them. */
#include "guest.h"
#include <linux/filter.h>
#include <linux/genetlink.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <sys/socket.h>

#ifndef SOL_NETLINK
#define SOL_NETLINK 270
#endif

static int make(int protocol, unsigned groups)
{
    int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, protocol);
    CHECK(fd >= 0);
    struct sockaddr_nl name = {.nl_family = AF_NETLINK, .nl_groups = groups};
    CHECK_EQ(bind(fd, (struct sockaddr *)&name, sizeof name), 0);
    return fd;
}

static struct sockaddr_nl name_of(int fd)
{
    struct sockaddr_nl name;
    socklen_t len = sizeof name;
    CHECK_EQ(getsockname(fd, (struct sockaddr *)&name, &len), 0);
    CHECK_EQ(len, sizeof name);
    return name;
}

static int option(int fd, int name)
{
    int value = -1;
    socklen_t len = sizeof value;
    CHECK_EQ(getsockopt(fd, SOL_NETLINK, name, &value, &len), 0);
    return value;
}

static unsigned groups(int fd)
{
    unsigned all[32] = {0};
    socklen_t len = sizeof all;
    CHECK_EQ(getsockopt(fd, SOL_NETLINK, NETLINK_LIST_MEMBERSHIPS, all, &len), 0);
    return all[0];
}

/* Sends a request and reads answers until the last; returns how many there were. */
static int ask(int fd, int type, int flags, const void *content, size_t len, unsigned number)
{
    struct {
        struct nlmsghdr head;
        char content[64];
    } request = {.head = {(unsigned)(NLMSG_HDRLEN + len), (unsigned short)type,
                          (unsigned short)(NLM_F_REQUEST | flags), number, 0}};
    memcpy(request.content, content, len);
    CHECK_EQ(send(fd, &request, request.head.nlmsg_len, 0), request.head.nlmsg_len);
    static char answer[65536];
    for (int count = 0;;) {
        ssize_t n = recv(fd, answer, sizeof answer, 0);
        CHECK(n > 0);
        for (struct nlmsghdr *head = (struct nlmsghdr *)answer; NLMSG_OK(head, n); head = NLMSG_NEXT(head, n)) {
            CHECK_EQ(head->nlmsg_seq, number);
            if (head->nlmsg_type == NLMSG_ERROR)
                CHECK_EQ(((struct nlmsgerr *)NLMSG_DATA(head))->error, 0);
            if (head->nlmsg_type == NLMSG_DONE || head->nlmsg_type == NLMSG_ERROR)
                return count;
            count++;
        }
    }
}

int main(int argc, char **argv)
{
    long steps = guest_steps(argc, argv);
    int one = 1;
    int route = make(NETLINK_ROUTE, 0), links = make(NETLINK_ROUTE, RTMGRP_LINK | RTMGRP_IPV6_ROUTE);
    int devices = make(NETLINK_KOBJECT_UEVENT, 1), generic = make(NETLINK_GENERIC, 0);
    int own = make(NETLINK_USERSOCK, 0), other = make(NETLINK_USERSOCK, 0);
    /* As programs have it that may write to the log of the system. */
    int audit = socket(AF_NETLINK, SOCK_RAW | SOCK_NONBLOCK, NETLINK_AUDIT);
    CHECK_EQ(setsockopt(route, SOL_NETLINK, NETLINK_EXT_ACK, &one, sizeof one), 0);
    CHECK_EQ(setsockopt(route, SOL_NETLINK, NETLINK_CAP_ACK, &one, sizeof one), 0);
    CHECK_EQ(setsockopt(links, SOL_NETLINK, NETLINK_NO_ENOBUFS, &one, sizeof one), 0);
    int group = RTNLGRP_NEIGH;
    CHECK_EQ(setsockopt(links, SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, &group, sizeof group), 0);
    /* Nothing shorter than 24 bytes passes. */
    struct sock_filter code[] = {BPF_STMT(BPF_LD | BPF_W | BPF_LEN, 0),
                                 BPF_JUMP(BPF_JMP | BPF_JGE | BPF_K, 24, 0, 1),
                                 BPF_STMT(BPF_RET | BPF_K, 0xffffffff), BPF_STMT(BPF_RET | BPF_K, 0)};
    struct sock_fprog filter = {sizeof code / sizeof *code, code};
    CHECK_EQ(setsockopt(other, SOL_SOCKET, SO_ATTACH_FILTER, &filter, sizeof filter), 0);
    CHECK_EQ(setsockopt(other, SOL_SOCKET, SO_LOCK_FILTER, &one, sizeof one), 0);
    struct timeval wait = {5, 0};
    CHECK_EQ(setsockopt(other, SOL_SOCKET, SO_RCVTIMEO, &wait, sizeof wait), 0);
    for (long i = 1; i <= steps; i++) {
        guest_step(i);
        CHECK_EQ(option(route, NETLINK_EXT_ACK), 1);
        CHECK_EQ(option(route, NETLINK_CAP_ACK), 1);
        CHECK_EQ(option(route, NETLINK_NO_ENOBUFS), 0);
        CHECK_EQ(option(links, NETLINK_NO_ENOBUFS), 1);
        CHECK_EQ(option(links, NETLINK_EXT_ACK), 0);
        CHECK_EQ(groups(links), RTMGRP_LINK | RTMGRP_IPV6_ROUTE | 1 << (RTNLGRP_NEIGH - 1));
        CHECK_EQ(groups(devices), 1);
        CHECK_EQ(groups(route), 0);
        CHECK(name_of(route).nl_pid != 0 && name_of(route).nl_pid != name_of(links).nl_pid);
        unsigned number = (unsigned)i + 1000;
        struct rtgenmsg any = {AF_UNSPEC};
        CHECK(ask(route, RTM_GETLINK, NLM_F_DUMP, &any, sizeof any, number) >= 1);
        struct {
            struct genlmsghdr head;
            struct nlattr attribute;
            char name[8];
        } family = {{CTRL_CMD_GETFAMILY, 1, 0}, {4 + 7, CTRL_ATTR_FAMILY_NAME}, "nlctrl"};
        CHECK_EQ(ask(generic, GENL_ID_CTRL, NLM_F_ACK, &family, sizeof family, number), 1);
        /* The one whose messages arrive says where; a restart in between may give it another port. */
        struct {
            struct nlmsghdr head;
            long step;
        } message = {{sizeof message, 77, 0, number, 0}, i}, got;
        ssize_t sent;
        do {
            struct sockaddr_nl to = name_of(other);
            to.nl_groups = 0;
            CHECK_EQ(sendto(own, &message, 20, 0, (struct sockaddr *)&to, sizeof to), 20);
            sent = sendto(own, &message, sizeof message, 0, (struct sockaddr *)&to, sizeof to);
        } while (sent < 0 && errno == ECONNREFUSED);
        CHECK_EQ(sent, sizeof message);
        CHECK_EQ(recv(other, &got, sizeof got, 0), sizeof got);
        CHECK_EQ(got.step, i);
        CHECK_EQ(recv(other, &got, sizeof got, MSG_DONTWAIT), -1);
        CHECK_EQ(errno, EAGAIN);
        CHECK_EQ(setsockopt(other, SOL_SOCKET, SO_ATTACH_FILTER, &filter, sizeof filter), -1);
        CHECK_EQ(errno, EPERM);
        CHECK(audit < 0 || (fcntl(audit, F_GETFL) & O_NONBLOCK));
    }
    guest_line("ok netlink");
    return 0;
}
