//! System calls on sockets.
//!
//! The same argument as in `calls` holds for each `SAFETY` below that says "borrowed". Numbers are those of
//! include/linux/socket.h and include/uapi/asm-generic/socket.h.

use crate::arch::{nr, syscall};
use crate::calls::{int, word};
use crate::{Errno, check};

/// Address families.
#[expect(missing_docs, reason = "address_families(7)")]
pub mod af {
    pub const UNIX: i32 = 1;
    pub const INET: i32 = 2;
    pub const INET6: i32 = 10;
    pub const NETLINK: i32 = 16;
}

/// Types of sockets, and flags of socket(2).
#[expect(missing_docs, reason = "socket(2)")]
pub mod sock {
    pub const STREAM: i32 = 1;
    pub const DGRAM: i32 = 2;
    pub const RAW: i32 = 3;
    pub const SEQPACKET: i32 = 5;
    pub const CLOEXEC: i32 = 0o2_000_000;
}

/// Options of the level `SOL_SOCKET`.
#[expect(missing_docs, reason = "socket(7)")]
pub mod so {
    pub const SOL_SOCKET: i32 = 1;
    pub const DEBUG: i32 = 1;
    pub const REUSEADDR: i32 = 2;
    pub const TYPE: i32 = 3;
    pub const DONTROUTE: i32 = 5;
    pub const BROADCAST: i32 = 6;
    pub const SNDBUF: i32 = 7;
    pub const RCVBUF: i32 = 8;
    pub const KEEPALIVE: i32 = 9;
    pub const OOBINLINE: i32 = 10;
    pub const NO_CHECK: i32 = 11;
    pub const PRIORITY: i32 = 12;
    pub const LINGER: i32 = 13;
    pub const REUSEPORT: i32 = 15;
    pub const PASSCRED: i32 = 16;
    pub const PEERCRED: i32 = 17;
    pub const RCVLOWAT: i32 = 18;
    pub const RCVTIMEO: i32 = 20;
    pub const SNDTIMEO: i32 = 21;
    pub const BINDTODEVICE: i32 = 25;
    /// `SO_ATTACH_FILTER`, to be read as `SO_GET_FILTER`.
    pub const FILTER: i32 = 26;
    pub const DETACH_FILTER: i32 = 27;
    pub const TIMESTAMP: i32 = 29;
    pub const ACCEPTCONN: i32 = 30;
    pub const PASSSEC: i32 = 34;
    pub const TIMESTAMPNS: i32 = 35;
    pub const MARK: i32 = 36;
    pub const TIMESTAMPING: i32 = 37;
    pub const PROTOCOL: i32 = 38;
    pub const DOMAIN: i32 = 39;
    pub const RXQ_OVFL: i32 = 40;
    pub const PEEK_OFF: i32 = 42;
    pub const NOFCS: i32 = 43;
    pub const LOCK_FILTER: i32 = 44;
    pub const SELECT_ERR_QUEUE: i32 = 45;
    pub const BUSY_POLL: i32 = 46;
    pub const MAX_PACING_RATE: i32 = 47;
    pub const ZEROCOPY: i32 = 60;
    pub const TIMESTAMP_NEW: i32 = 63;
    pub const TIMESTAMPNS_NEW: i32 = 64;
    pub const PREFER_BUSY_POLL: i32 = 69;
    pub const BUF_LOCK: i32 = 72;
    pub const TXREHASH: i32 = 74;
    pub const RCVMARK: i32 = 75;
    pub const PASSPIDFD: i32 = 76;
    pub const PEERPIDFD: i32 = 77;
    pub const PASSRIGHTS: i32 = 83;
}

/// Options of TCP (include/uapi/linux/tcp.h); the level is 6.
#[expect(missing_docs, reason = "tcp(7)")]
pub mod tcp {
    pub const NODELAY: i32 = 1;
    pub const CORK: i32 = 3;
    pub const KEEPIDLE: i32 = 4;
    pub const KEEPINTVL: i32 = 5;
    pub const KEEPCNT: i32 = 6;
    pub const SYNCNT: i32 = 7;
    pub const LINGER2: i32 = 8;
    pub const DEFER_ACCEPT: i32 = 9;
    pub const INFO: i32 = 11;
    pub const CONGESTION: i32 = 13;
    pub const THIN_LINEAR_TIMEOUTS: i32 = 16;
    pub const USER_TIMEOUT: i32 = 18;
    pub const FASTOPEN: i32 = 23;
    pub const NOTSENT_LOWAT: i32 = 25;
    pub const SAVE_SYN: i32 = 27;
    pub const FASTOPEN_CONNECT: i32 = 30;
    pub const ULP: i32 = 31;
    pub const INQ: i32 = 36;
    pub const TX_DELAY: i32 = 37;
    pub const MAXSEG: i32 = 2;
    /// What follows needs `CAP_NET_ADMIN`.
    pub const REPAIR: i32 = 19;
    pub const REPAIR_QUEUE: i32 = 20;
    pub const QUEUE_SEQ: i32 = 21;
    pub const REPAIR_OPTIONS: i32 = 22;
    pub const TIMESTAMP: i32 = 24;
    pub const REPAIR_WINDOW: i32 = 29;
    /// Values of `REPAIR`; the last leaves it without a window probe.
    pub const REPAIR_ON: i32 = 1;
    pub const REPAIR_OFF: i32 = 0;
    pub const REPAIR_OFF_SILENTLY: i32 = -1;
    /// Values of `REPAIR_QUEUE`.
    pub const NO_QUEUE: i32 = 0;
    pub const RECEIVE_QUEUE: i32 = 1;
    pub const SEND_QUEUE: i32 = 2;
}

/// A packet filter (`struct sock_filter`, "return 0") that lets nothing reach the socket: the kernel drops each packet
/// before TCP has seen it, so whoever has sent it sends it again.
pub const DROP_ALL: [u8; 8] = [6, 0, 0, 0, 0, 0, 0, 0];

/// Options of UDP (include/uapi/linux/udp.h); the level is 17.
#[expect(missing_docs, reason = "udp(7)")]
pub mod udp {
    pub const CORK: i32 = 1;
    pub const ENCAP: i32 = 100;
    pub const NO_CHECK6_TX: i32 = 101;
    pub const NO_CHECK6_RX: i32 = 102;
    pub const SEGMENT: i32 = 103;
    pub const GRO: i32 = 104;
}

/// Options of raw sockets, as level and name: ICMP_FILTER, ICMPV6_FILTER, and where the checksum is (IPV6_CHECKSUM).
pub const RAW_OPTIONS: [(i32, i32); 3] = [(255, 1), (58, 1), (255, 7)];

/// Options of IPv4 (include/uapi/linux/in.h).
#[expect(missing_docs, reason = "ip(7)")]
pub mod ip {
    pub const LEVEL: i32 = 0;
    pub const TOS: i32 = 1;
    pub const TTL: i32 = 2;
    /// Of raw sockets.
    pub const HDRINCL: i32 = 3;
    pub const OPTIONS: i32 = 4;
    pub const RECVOPTS: i32 = 6;
    pub const RETOPTS: i32 = 7;
    pub const PKTINFO: i32 = 8;
    pub const MTU_DISCOVER: i32 = 10;
    pub const RECVERR: i32 = 11;
    pub const RECVTTL: i32 = 12;
    pub const RECVTOS: i32 = 13;
    pub const FREEBIND: i32 = 15;
    pub const PASSSEC: i32 = 18;
    pub const TRANSPARENT: i32 = 19;
    pub const RECVORIGDSTADDR: i32 = 20;
    pub const MINTTL: i32 = 21;
    pub const BIND_ADDRESS_NO_PORT: i32 = 24;
    pub const RECVFRAGSIZE: i32 = 25;
    pub const RECVERR_RFC4884: i32 = 26;
    pub const MULTICAST_IF: i32 = 32;
    pub const MULTICAST_TTL: i32 = 33;
    pub const MULTICAST_LOOP: i32 = 34;
    /// `MCAST_JOIN_GROUP`, of IPv6 too.
    pub const JOIN_GROUP: i32 = 42;
    /// `MCAST_MSFILTER`, of IPv6 too.
    pub const MSFILTER: i32 = 48;
    pub const MULTICAST_ALL: i32 = 49;
    pub const UNICAST_IF: i32 = 50;
    pub const LOCAL_PORT_RANGE: i32 = 51;
}

/// Options of IPv6 (include/uapi/linux/in6.h).
#[expect(missing_docs, reason = "ipv6(7)")]
pub mod ipv6 {
    pub const LEVEL: i32 = 41;
    pub const UNICAST_HOPS: i32 = 16;
    pub const MULTICAST_IF: i32 = 17;
    pub const MULTICAST_HOPS: i32 = 18;
    pub const MULTICAST_LOOP: i32 = 19;
    pub const MTU_DISCOVER: i32 = 23;
    pub const RECVERR: i32 = 25;
    pub const V6ONLY: i32 = 26;
    pub const MULTICAST_ALL: i32 = 29;
    pub const RECVERR_RFC4884: i32 = 31;
    pub const RECVPKTINFO: i32 = 49;
    pub const RECVHOPLIMIT: i32 = 51;
    pub const RECVHOPOPTS: i32 = 53;
    pub const RECVRTHDR: i32 = 56;
    pub const RECVDSTOPTS: i32 = 58;
    pub const RECVPATHMTU: i32 = 60;
    pub const DONTFRAG: i32 = 62;
    pub const RECVTCLASS: i32 = 66;
    pub const TCLASS: i32 = 67;
    pub const AUTOFLOWLABEL: i32 = 70;
    pub const ADDR_PREFERENCES: i32 = 72;
    pub const MINHOPCOUNT: i32 = 73;
    pub const RECVORIGDSTADDR: i32 = 74;
    pub const TRANSPARENT: i32 = 75;
    pub const UNICAST_IF: i32 = 76;
    pub const RECVFRAGSIZE: i32 = 77;
    pub const FREEBIND: i32 = 78;
}

/// Options and protocols of netlink (include/uapi/linux/netlink.h).
#[expect(missing_docs, reason = "netlink(7)")]
pub mod netlink {
    pub const LEVEL: i32 = 270;
    pub const ADD_MEMBERSHIP: i32 = 1;
    pub const PKTINFO: i32 = 3;
    pub const BROADCAST_ERROR: i32 = 4;
    pub const NO_ENOBUFS: i32 = 5;
    pub const LISTEN_ALL_NSID: i32 = 8;
    pub const LIST_MEMBERSHIPS: i32 = 9;
    pub const CAP_ACK: i32 = 10;
    pub const EXT_ACK: i32 = 11;
    pub const GET_STRICT_CHK: i32 = 12;

    pub const ROUTE: i32 = 0;
    pub const USERSOCK: i32 = 2;
    pub const SOCK_DIAG: i32 = 4;
    pub const XFRM: i32 = 6;
    pub const SELINUX: i32 = 7;
    pub const AUDIT: i32 = 9;
    pub const FIB_LOOKUP: i32 = 10;
    pub const KOBJECT_UEVENT: i32 = 15;
    pub const GENERIC: i32 = 16;
    pub const CRYPTO: i32 = 21;
}

/// Flags of recvmsg(2).
#[expect(missing_docs, reason = "recv(2)")]
pub mod msg {
    pub const OOB: i32 = 1;
    pub const PEEK: i32 = 2;
    pub const CTRUNC: i32 = 8;
    pub const TRUNC: i32 = 0x20;
    pub const DONTWAIT: i32 = 0x40;
    pub const CMSG_CLOEXEC: i32 = 0x4000_0000;
}

/// Longest address (`struct sockaddr_storage`).
pub const ADDRESS_LEN: usize = 128;

/// Makes a socket.
///
/// # Errors
///
/// The kernel's.
pub fn socket(domain: i32, kind: i32, protocol: i32) -> Result<i32, Errno> {
    // SAFETY: no memory is involved.
    check(unsafe { syscall(nr::SOCKET, [word(domain), word(kind), word(protocol), 0, 0, 0]) })
        .map(int)
}

/// Reads an option; returns how many bytes of `value` the kernel has filled.
///
/// # Errors
///
/// NOPROTOOPT: there is no such option for this socket. NOTSOCK; else the kernel's.
pub fn get_option(fd: i32, level: i32, name: i32, value: &mut [u8]) -> Result<usize, Errno> {
    let mut len = u32::try_from(value.len()).unwrap_or(u32::MAX);
    let at = value.as_mut_ptr().addr();
    let len_at = (&raw mut len).addr();
    // SAFETY: borrowed.
    check(unsafe { syscall(nr::GETSOCKOPT, [word(fd), word(level), word(name), at, len_at, 0]) })?;
    Ok(len as usize)
}

/// Reads an option that is an int.
///
/// # Errors
///
/// As [`get_option`].
pub fn get_int_option(fd: i32, level: i32, name: i32) -> Result<i32, Errno> {
    let mut value = [0; 4];
    get_option(fd, level, name, &mut value)?;
    Ok(i32::from_le_bytes(value))
}

/// Reads the packet filter of a socket; `instructions` has eight bytes for each.
///
/// # Errors
///
/// As [`get_option`].
pub fn filter(fd: i32, instructions: &mut [u8]) -> Result<(), Errno> {
    let mut count = u32::try_from(instructions.len() / 8).unwrap_or(0);
    let at = instructions.as_mut_ptr().addr();
    let count_at = (&raw mut count).addr();
    let (level, name) = (word(so::SOL_SOCKET), word(so::FILTER));
    // SAFETY: borrowed.
    check(unsafe { syscall(nr::GETSOCKOPT, [word(fd), level, name, at, count_at, 0]) }).map(drop)
}

/// Gives a socket a packet filter.
///
/// # Errors
///
/// The kernel's.
pub fn set_filter(fd: i32, instructions: &[u8]) -> Result<(), Errno> {
    // struct sock_fprog: how many, padding, and where.
    let program = [instructions.len() / 8, instructions.as_ptr().addr()];
    let (level, name) = (word(so::SOL_SOCKET), word(so::FILTER));
    // SAFETY: borrowed, the instructions too.
    check(unsafe {
        let at = program.as_ptr().addr();
        syscall(nr::SETSOCKOPT, [word(fd), level, name, at, size_of_val(&program), 0])
    })
    .map(drop)
}

/// Sets an option.
///
/// # Errors
///
/// The kernel's.
pub fn set_option(fd: i32, level: i32, name: i32, value: &[u8]) -> Result<(), Errno> {
    let at = value.as_ptr().addr();
    // SAFETY: borrowed.
    check(unsafe {
        syscall(nr::SETSOCKOPT, [word(fd), word(level), word(name), at, value.len(), 0])
    })
    .map(drop)
}

/// Looks at the start of the receive queue, and leaves it there.
///
/// # Errors
///
/// AGAIN: there is nothing. Else the kernel's; one that waited for the program is gone then.
pub fn peek(fd: i32, bytes: &mut [u8]) -> Result<usize, Errno> {
    let at = bytes.as_mut_ptr().addr();
    let flags = msg::PEEK | msg::DONTWAIT;
    // SAFETY: borrowed.
    check(unsafe { syscall(nr::RECVFROM, [word(fd), at, bytes.len(), word(flags), 0, 0]) })
}

fn name_of(call: usize, fd: i32, buffer: &mut [u8; ADDRESS_LEN]) -> Result<&[u8], Errno> {
    let mut len = u32::try_from(ADDRESS_LEN).unwrap_or(0);
    // SAFETY: borrowed.
    check(unsafe {
        syscall(call, [word(fd), buffer.as_mut_ptr().addr(), (&raw mut len).addr(), 0, 0, 0])
    })?;
    Ok(&buffer[..(len as usize).min(ADDRESS_LEN)])
}

/// The address that a socket is bound to, as a raw `sockaddr`.
///
/// # Errors
///
/// The kernel's.
pub fn local_address(fd: i32, buffer: &mut [u8; ADDRESS_LEN]) -> Result<&[u8], Errno> {
    name_of(nr::GETSOCKNAME, fd, buffer)
}

/// The address that a socket is connected to, as a raw `sockaddr`.
///
/// # Errors
///
/// NOTCONN; else the kernel's.
pub fn peer_address(fd: i32, buffer: &mut [u8; ADDRESS_LEN]) -> Result<&[u8], Errno> {
    name_of(nr::GETPEERNAME, fd, buffer)
}

/// What [`receive_message`] has filled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    /// Bytes; with `msg::TRUNC`, of the message and not of the buffer.
    pub len: usize,
    /// Bytes of the source's address.
    pub source_len: usize,
    /// Bytes of control data.
    pub control_len: usize,
    /// `msg` flags.
    pub flags: i32,
}

/// Receives a message with its source and its control data.
///
/// # Errors
///
/// AGAIN: there is none. Else the kernel's.
pub fn receive_message(
    fd: i32,
    bytes: &mut [u8],
    source: &mut [u8; ADDRESS_LEN],
    control: &mut [u64],
    flags: i32,
) -> Result<Received, Errno> {
    /// `struct msghdr`.
    #[repr(C)]
    struct Message {
        name: usize,
        name_len: usize,
        vectors: usize,
        vector_count: usize,
        control: usize,
        control_len: usize,
        flags: usize,
    }
    let vector = [bytes.as_mut_ptr().addr(), bytes.len()];
    let mut message = Message {
        name: source.as_mut_ptr().addr(),
        name_len: ADDRESS_LEN,
        vectors: vector.as_ptr().addr(),
        vector_count: 1,
        control: control.as_mut_ptr().addr(),
        control_len: size_of_val(control),
        flags: 0,
    };
    // SAFETY: borrowed: the message points to the buffers, which outlive the call.
    let len = check(unsafe {
        syscall(nr::RECVMSG, [word(fd), (&raw mut message).addr(), word(flags), 0, 0, 0])
    })?;
    Ok(Received {
        len,
        // The upper half of the word is padding.
        source_len: (message.name_len & 0xffff_ffff).min(ADDRESS_LEN),
        control_len: message.control_len.min(size_of_val(control)),
        flags: int(message.flags),
    })
}

/// Peeks at whole buffers of a stream: the last byte that is asked for has no room, so what the kernel would
/// have had to take it from is left out.
///
/// # Errors
///
/// FAULT: the first buffer is what has no room. Else the kernel's.
pub fn peek_short(fd: i32, bytes: &mut [u8]) -> Result<usize, Errno> {
    // Nothing is ever mapped at the lowest addresses (vm.mmap_min_addr).
    let vectors = [[bytes.as_mut_ptr().addr(), bytes.len()], [1, 1]];
    let message = [0, 0, vectors.as_ptr().addr(), vectors.len(), 0, 0, 0];
    let flags = msg::PEEK | msg::DONTWAIT;
    // SAFETY: borrowed: a `struct msghdr` as in `receive_message`, without name and control data; the
    // kernel checks the second vector itself.
    check(unsafe {
        syscall(nr::RECVMSG, [word(fd), message.as_ptr().addr(), word(flags), 0, 0, 0])
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_socket_has_no_name_and_no_peer() {
        let fd = socket(af::UNIX, sock::STREAM | sock::CLOEXEC, 0).unwrap();
        let mut buffer = [0; ADDRESS_LEN];
        assert_eq!(local_address(fd, &mut buffer), Ok(&[1, 0][..]));
        assert_eq!(peer_address(fd, &mut buffer), Err(Errno::NOTCONN));
        assert_eq!(get_int_option(fd, so::SOL_SOCKET, so::DOMAIN), Ok(af::UNIX));
        set_option(fd, so::SOL_SOCKET, so::PASSCRED, &1i32.to_le_bytes()).unwrap();
        assert_eq!(get_int_option(fd, so::SOL_SOCKET, so::PASSCRED), Ok(1));
        crate::close(fd);
    }
}
