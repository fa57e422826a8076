/* Notices of the kernel that were not read: they are there, or the program is told that some were lost. Root only. */
#include "guest.h"
#include <arpa/inet.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <sys/socket.h>

static void change(int fd, int type, int flags)
{
    struct {
        struct nlmsghdr head;
        struct ifaddrmsg message;
        struct rtattr attribute;
        struct in_addr address;
    } request = {{sizeof request, (unsigned short)type, (unsigned short)(NLM_F_REQUEST | NLM_F_ACK | flags), 1, 0},
                 {AF_INET, 32, 0, RT_SCOPE_HOST, if_nametoindex("lo")},
                 {RTA_LENGTH(4), IFA_LOCAL},
                 {inet_addr("127.77.0.77")}};
    CHECK_EQ(send(fd, &request, sizeof request, 0), sizeof request);
    struct {
        struct nlmsghdr head;
        struct nlmsgerr error;
        char rest[256];
    } answer;
    CHECK(recv(fd, &answer, sizeof answer, 0) > 0);
    CHECK_EQ(answer.head.nlmsg_type, NLMSG_ERROR);
    CHECK_EQ(answer.error.error, 0);
}

int main(int argc, char **argv)
{
    long steps = guest_steps(argc, argv);
    int fd = socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE), listener = socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE);
    struct sockaddr_nl name = {.nl_family = AF_NETLINK, .nl_groups = RTMGRP_IPV4_IFADDR};
    CHECK_EQ(bind(listener, (struct sockaddr *)&name, sizeof name), 0);
    socklen_t len = sizeof name;
    CHECK_EQ(getsockname(listener, (struct sockaddr *)&name, &len), 0);
    unsigned port = name.nl_pid;
    change(fd, RTM_NEWADDR, NLM_F_CREATE);
    change(fd, RTM_DELADDR, 0);
    for (long i = 1; i <= steps; i++)
        guest_step(i);
    char bytes[8192];
    int lost = 0, notices = 0, others = 0;
    for (;;) {
        ssize_t n = recv(listener, bytes, sizeof bytes, MSG_DONTWAIT);
        if (n < 0 && errno == EAGAIN)
            break;
        if (n < 0) {
            CHECK_EQ(errno, ENOBUFS);
            lost++;
            continue;
        }
        struct nlmsghdr *head = (struct nlmsghdr *)bytes;
        if (head->nlmsg_type == RTM_NEWADDR || head->nlmsg_type == RTM_DELADDR)
            notices++;
        else
            others++;
        CHECK(head->nlmsg_seq == 0 || head->nlmsg_type != NLMSG_ERROR);
    }
    CHECK(lost == 1 || others == 0);
    /* It still listens. */
    change(fd, RTM_NEWADDR, NLM_F_CREATE);
    CHECK(recv(listener, bytes, sizeof bytes, 0) > 0);
    CHECK_EQ(((struct nlmsghdr *)bytes)->nlmsg_type, RTM_NEWADDR);
    change(fd, RTM_DELADDR, 0);
    CHECK_EQ(getsockname(listener, (struct sockaddr *)&name, &len), 0);
    CHECK_EQ(name.nl_pid, port);
    /* Another test may add addresses too. */
    guest_line("ok netlink_lost %d %s", lost, notices >= 2 ? "all" : notices == 0 ? "none" : "some");
    return 0;
}
