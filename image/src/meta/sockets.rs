//! Sockets and what is under way in them.

use alloc::vec::Vec;

use crate::wire::record;

/// `Socket::state`.
pub mod socket_state {
    /// Neither connected nor listening; bound if there is a local address.
    pub const UNCONNECTED: u32 = 1;
    /// Takes connections.
    pub const LISTENING: u32 = 2;
    /// A connect(2) is under way.
    pub const CONNECTING: u32 = 3;
    /// Connected; maybe to an end that is gone.
    pub const CONNECTED: u32 = 4;
    /// Was connected, and is so no more.
    pub const CLOSED: u32 = 5;
}

record! {
/// An option as getsockopt(2) gave it.
SocketOption {
    /// SOL_… or IPPROTO_….
    level: i32,
    /// Its number.
    name: i32,
    /// Its value.
    value: Vec<u8>,
}
}

record! {
/// What was in the receive queue of a socket: a message, or bytes of a stream that have one sender and no
/// descriptors but at their beginning.
SocketMessage {
    /// The bytes.
    content: Vec<u8>,
    /// The sender's address, a raw `sockaddr`; without a name it is empty.
    source: Vec<u8>,
    /// `Description::id` of the descriptors that it carries.
    descriptors: Vec<u64>,
    /// Process (as the program knows it), user and group of the sender; empty if it carries none.
    credentials: Vec<u32>,
}
}

record! {
/// What of a TCP connection only repair mode tells (TCP_REPAIR): with it and the receive queue the connection is made
/// again, and its other end notices nothing.
Repair {
    /// Sequence number behind the send queue.
    send_next: u32,
    /// Sequence number behind the receive queue.
    receive_next: u32,
    /// The send queue: what was not acknowledged, and what was not sent.
    sent: Vec<u8>,
    /// TCP_MAXSEG.
    segment: u32,
    /// `tcpi_options` of `struct tcp_info`.
    options: u32,
    /// Its window scales: the other end's in the low half, the own one in the high half.
    scales: u32,
    /// TCP_TIMESTAMP.
    timestamp: u32,
    /// TCP_REPAIR_WINDOW (`struct tcp_repair_window`).
    window: Vec<u8>,
}
}

record! {
/// A socket, saved by one of its holders. A [`Description`](super::Description) of the kind `SOCKET` with
/// this inode stands for it.
Socket {
    /// Its inode, which no other socket of the checkpoint has.
    inode: u64,
    /// `Description::id`.
    description: u64,
    /// SO_DOMAIN.
    domain: i32,
    /// SO_TYPE.
    kind: i32,
    /// SO_PROTOCOL.
    protocol: i32,
    /// `socket_state`.
    state: u32,
    /// Directions that were shut down: 1 for receiving, 2 for sending. TCP: 4 if the other end has ended its
    /// sending. For one that is closed: 0 if it was never connected, else 3.
    shutdown: u32,
    /// Its own address, a raw `sockaddr`.
    local: Vec<u8>,
    /// That of the other end; empty if getpeername(2) told none.
    peer: Vec<u8>,
    /// Inode of the other end, which may be no socket of the job; 0 if it is gone, was not yet accepted, or
    /// is on another host.
    peer_inode: u64,
    /// What listen(2) was told.
    backlog: u32,
    /// Inodes of the sockets whose connections wait to be accepted; unix: in their order. TCP: 0 for one that
    /// was closed, all bits for one on another host.
    waiting: Vec<u64>,
    /// An error waits for the program: the other end was closed before it had read everything.
    reset: bool,
    /// Options that the family's module reads.
    options: Vec<SocketOption>,
    /// The receive queue.
    messages: Vec<SocketMessage>,
    /// Unix: absolute path of the file that it is bound to; empty if there is none any more.
    file: Vec<u8>,
    /// Its mode.
    file_mode: u32,
    /// TCP, connected to a program outside the job: at most one, and none where nobody has asked for it.
    repair: Vec<Repair>,
}
}
