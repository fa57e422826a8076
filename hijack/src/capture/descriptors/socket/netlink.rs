//! Netlink sockets: the kernel's own end of each is the same on every host.

use ulpm_image::meta::{Socket, SocketOption, socket_state as state};
use ulpm_sys::POLLIN;
use ulpm_sys::socket::{self, netlink, so};

use super::{Open, cannot, diag, later, poll_now, read_options};
use crate::freeze::Failed;

const OPTIONS: &[i32] = &[
    netlink::PKTINFO,
    netlink::BROADCAST_ERROR,
    netlink::NO_ENOBUFS,
    netlink::LISTEN_ALL_NSID,
    netlink::CAP_ACK,
    netlink::EXT_ACK,
    netlink::GET_STRICT_CHK,
];

const POLLERR: i16 = 8;

/// Says whether a netlink socket can be saved, as far as its protocol tells.
pub(super) fn kind(open: &Open) -> Result<(), Failed> {
    match super::int(open, so::PROTOCOL)? {
        netlink::ROUTE
        | netlink::USERSOCK
        | netlink::SOCK_DIAG
        | netlink::XFRM
        | netlink::SELINUX
        | netlink::AUDIT
        | netlink::FIB_LOOKUP
        | netlink::KOBJECT_UEVENT
        | netlink::GENERIC
        | netlink::CRYPTO => Ok(()),
        // What is bound to such a socket in the kernel (queues of packets, say) nobody tells.
        _ => Err(cannot(
            open,
            "is a netlink socket of netfilter or another protocol that keeps state in the kernel, which",
        )),
    }
}

/// Takes the state of a netlink socket.
pub(super) fn save(open: &Open, saved: &mut Socket) -> Result<(), Failed> {
    // struct sockaddr_nl: family, padding, port, groups. Not connected is connected to the kernel.
    let is_kernel = |name: &[u8]| diag::number(name, 4) == 0 && diag::number(name, 8) == 0;
    if is_kernel(&saved.peer) {
        saved.peer.clear();
    }
    saved.state = if saved.peer.is_empty() { state::UNCONNECTED } else { state::CONNECTED };
    read_options(open, netlink::LEVEL, OPTIONS, &mut saved.options);
    let (level, name) = (netlink::LEVEL, netlink::LIST_MEMBERSHIPS);
    // Behind the filter, which counts from the first message on.
    let mut groups = alloc::vec![0; 1024];
    let len = socket::get_option(open.ours, level, name, &mut groups).unwrap_or(0);
    groups.truncate(len);
    let listens = groups.iter().any(|&byte| byte != 0);
    if listens {
        saved.options.push(SocketOption { level, name, value: groups });
    }
    let found = poll_now(open.ours, POLLIN);
    // To look would take the error away.
    saved.reset = found & POLLERR != 0;
    if found & POLLIN == 0 || saved.reset {
        return Ok(());
    }
    // Nobody but the kernel can send what the kernel has sent. Who listens to a group is told that something
    // was lost; an answer that never comes would be waited for.
    let mut head = [0; 16];
    let _ = socket::peek(open.ours, &mut head);
    // Number of the request and port of who has made it, which for an answer is this one.
    let is_answer = saved.protocol != netlink::KOBJECT_UEVENT
        && diag::number(&head, 8) != 0
        && diag::number(&head, 12) == diag::number(&saved.local, 4);
    if !listens || is_answer {
        return Err(later(open, "holds an answer that its program has not read, which"));
    }
    saved.reset = true;
    Ok(())
}
