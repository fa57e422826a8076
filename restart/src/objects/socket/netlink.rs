//! Netlink sockets.

use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};

use ulpm_image::meta::{Socket, SocketOption};
use ulpm_sys::Errno;
use ulpm_sys::socket::{self, af, netlink, so};

use super::Sockets;
use crate::error::{RestartError, system};

/// Requests whose answers are more than the smallest receive buffer holds.
const ENOUGH: u32 = 64;

fn port(name: &[u8]) -> u32 {
    name.get(4..8).and_then(|port| port.try_into().ok()).map_or(0, u32::from_le_bytes)
}

type WithAddress =
    unsafe extern "C" fn(libc::c_int, *const libc::sockaddr, libc::socklen_t) -> libc::c_int;

fn call(fd: &OwnedFd, port: u32, groups: &[u8], function: WithAddress) -> std::io::Result<()> {
    // struct sockaddr_nl
    let name = [&[16, 0, 0, 0][..], &port.to_le_bytes(), groups].concat();
    let len = libc::socklen_t::try_from(name.len()).unwrap_or(0);
    // SAFETY: the address is as long as is said, and outlives the call.
    if unsafe { function(fd.as_raw_fd(), name.as_ptr().cast(), len) } < 0 {
        return Err(std::io::Error::last_os_error());
    }
    Ok(())
}

impl Sockets<'_> {
    fn netlink_sockets(&self) -> Vec<Socket> {
        let is_netlink = |saved: &&&Socket| saved.domain == af::NETLINK;
        let mut all: Vec<Socket> =
            self.saved.values().filter(is_netlink).map(|&saved| saved.clone()).collect();
        all.sort_by_key(|saved| saved.inode);
        all
    }

    /// Makes the netlink sockets, each with the port that it had, if nobody has that.
    pub(super) fn make_netlink(&mut self) -> Result<(), RestartError> {
        let all = self.netlink_sockets();
        let mut homeless = Vec::new();
        for saved in &all {
            let fd =
                socket::socket(af::NETLINK, saved.kind | socket::sock::CLOEXEC, saved.protocol)
                    .map_err(|errno| {
                        let protocol = saved.protocol;
                        RestartError::Socket(format!(
                            "this host has no netlink sockets of protocol {protocol}: {errno}"
                        ))
                    })?;
            // SAFETY: the descriptor was just made and is nobody else's.
            let fd = unsafe { OwnedFd::from_raw_fd(fd) };
            let port = port(&saved.local);
            if port != 0 && call(&fd, port, &[0; 4], libc::bind).is_err() {
                homeless.push(saved.inode);
            }
            self.made.insert(saved.inode, fd);
        }
        // The kernel chooses, but not what another one still wants.
        for inode in homeless {
            call(&self.made[&inode], 0, &[0; 4], libc::bind)
                .map_err(|_| system("bind a netlink socket"))?;
        }
        for saved in all.iter().filter(|saved| !saved.peer.is_empty()) {
            let groups = saved.peer.get(8..12).unwrap_or(&[0; 4]);
            let fd = &self.made[&saved.inode];
            let to = port(&saved.peer);
            // One of the job's own may have another port now.
            let other = all.iter().find(|other| {
                to != 0 && other.protocol == saved.protocol && port(&other.local) == to
            });
            let to = other.map_or(to, |other| own_port(&self.made[&other.inode]));
            call(fd, to, groups, libc::connect).map_err(|error| {
                RestartError::Socket(format!("cannot connect a netlink socket: {error}"))
            })?;
        }
        Ok(())
    }

    /// Has those told who have lost messages; nobody has joined a group yet.
    pub(super) fn fill_netlink(&self) {
        for saved in self.netlink_sockets() {
            if saved.reset {
                overrun(&self.made[&saved.inode]);
            }
        }
    }
}

fn own_port(fd: &OwnedFd) -> u32 {
    let mut buffer = [0; socket::ADDRESS_LEN];
    socket::local_address(fd.as_raw_fd(), &mut buffer).map_or(0, port)
}

/// Makes the error that the program gets when messages were lost (ENOBUFS), by more answers than there is room
/// for. Those that fit stay behind it: nobody can take them out and leave the error. They answer no request of
/// the program's, for their number is 0.
fn overrun(fd: &OwnedFd) {
    let fd = fd.as_raw_fd();
    let get = |name| socket::get_int_option(fd, so::SOL_SOCKET, name);
    let set = |name, value: i32| {
        let _ = socket::set_option(fd, so::SOL_SOCKET, name, &value.to_le_bytes());
    };
    let (Ok(size), Ok(lock)) = (get(so::RCVBUF), get(so::BUF_LOCK)) else { return };
    set(so::RCVBUF, 0);
    // struct nlmsghdr: length, NLMSG_NOOP, NLM_F_REQUEST | NLM_F_ACK, number, port.
    let request = [16u32, 1 | 5 << 16, 0, 0].map(u32::to_le_bytes).concat();
    for _ in 0..ENOUGH {
        if is_told(fd) || ulpm_sys::send(fd, &request).is_err() {
            break;
        }
    }
    if !is_told(fd) {
        // Nobody answers, or the program does not want to be told.
        while socket_takes(fd) {}
    }
    // The kernel doubles what it is told.
    set(so::RCVBUF, size / 2);
    set(so::BUF_LOCK, lock);
}

fn is_told(fd: RawFd) -> bool {
    let mut poll = libc::pollfd { fd, events: 0, revents: 0 };
    // SAFETY: the pointer is good for one structure.
    unsafe { libc::poll(&raw mut poll, 1, 0) > 0 && poll.revents & libc::POLLERR != 0 }
}

fn socket_takes(fd: RawFd) -> bool {
    let mut buffer = [0u8; 64];
    // SAFETY: the buffer is as long as is said.
    unsafe { libc::recv(fd, buffer.as_mut_ptr().cast(), buffer.len(), libc::MSG_DONTWAIT) > 0 }
}

/// Joins the groups of a bitmap, as NETLINK_LIST_MEMBERSHIPS gave it.
pub(super) fn join(fd: RawFd, option: &SocketOption) -> Result<(), Errno> {
    for (index, byte) in (0u32..).zip(&option.value) {
        for bit in (0..8).filter(|bit| byte & 1 << bit != 0) {
            let group = index * 8 + bit + 1;
            socket::set_option(fd, netlink::LEVEL, netlink::ADD_MEMBERSHIP, &group.to_le_bytes())?;
        }
    }
    Ok(())
}
