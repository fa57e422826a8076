//! TCP connections to programs outside the job that go on (TCP_REPAIR).
//!
//! A socket is given the addresses, sequence numbers and queues that the old one had, without a packet being sent.
//! Nothing reaches it ([`DROP_ALL`]) and it sends nothing until its process goes on and takes it out of repair mode: a
//! hand-over may still fail, and the original go on.

use std::net::SocketAddr;
use std::os::fd::{AsRawFd as _, OwnedFd};

use ulpm_image::meta::{Repair, Socket};
use ulpm_sys::Errno;
use ulpm_sys::socket::{self, DROP_ALL, ip, so, tcp};

use super::inet::{call, new_like, parse};

/// The level of TCP's options.
const TCP: i32 = libc::IPPROTO_TCP;
/// SO_SNDBUFFORCE, SO_RCVBUFFORCE
const FORCE: [i32; 2] = [32, 33];
/// Bits of `tcpi_options` (include/uapi/linux/tcp.h), and the options that are told by them.
const TIMESTAMPS: u32 = 1;
const SACK: u32 = 2;
const WINDOW_SCALE: u32 = 4;
/// Kinds of TCP options, as they travel.
const KIND_SEGMENT: u32 = 2;
const KIND_SCALE: u32 = 3;
const KIND_SACK: u32 = 4;
const KIND_TIMESTAMP: u32 = 8;

/// Makes a connection as it was, in repair mode.
///
/// # Errors
///
/// Why it cannot be, in words.
pub(super) fn connection(saved: &Socket) -> Result<OwnedFd, String> {
    let Some(state) = saved.repair.first() else {
        return Err("it was saved without --outside-sockets repair, or half closed, or without CAP_NET_ADMIN, or has a \
                    packet filter"
            .into());
    };
    let names = parse(&saved.local).zip(parse(&saved.peer));
    let (local, peer) = names.ok_or("its addresses are damaged")?;
    let fd = new_like(saved).map_err(|error| error.to_string())?;
    make(&fd, saved, state, local, peer)?;
    Ok(fd)
}

fn make(
    fd: &OwnedFd,
    saved: &Socket,
    state: &Repair,
    local: SocketAddr,
    peer: SocketAddr,
) -> Result<(), String> {
    let raw = fd.as_raw_fd();
    let set = |what: &str, name, value: &[u8]| {
        socket::set_option(raw, TCP, name, value).map_err(|errno| format!("{what}: {errno}"))
    };
    let set_int = |what, name, value: i32| set(what, name, &value.to_le_bytes());
    let set_word = |what, name, value: u32| set(what, name, &value.to_le_bytes());
    for option in &saved.options {
        let is = |level, name| [option.level, option.name] == [level, name];
        if is(so::SOL_SOCKET, so::BINDTODEVICE) || is(ip::LEVEL, ip::TRANSPARENT) {
            let _ = socket::set_option(raw, option.level, option.name, &option.value);
        }
    }
    set_int("repair mode needs CAP_NET_ADMIN", tcp::REPAIR, tcp::REPAIR_ON)?;
    socket::set_filter(raw, &DROP_ALL).map_err(|errno| format!("a packet filter: {errno}"))?;
    call(raw, local, libc::bind).map_err(|error| {
        format!("{local} is not an address of this host, or is in use: {error}")
    })?;
    let content = saved.messages.iter().flat_map(|message| &message.content);
    let received: Vec<u8> = content.copied().collect();
    let queues = [
        (tcp::RECEIVE_QUEUE, state.receive_next, &received),
        (tcp::SEND_QUEUE, state.send_next, &state.sent),
    ];
    for (queue, next, content) in queues {
        let len = u32::try_from(content.len()).map_err(|_| "too much is under way in it")?;
        set_int("choose a queue", tcp::REPAIR_QUEUE, queue)?;
        set_word("a sequence number", tcp::QUEUE_SEQ, next.wrapping_sub(len))?;
    }
    // The size of segments is reckoned when it is connected, and seldom after.
    set_word("the size of its segments", tcp::MAXSEG, state.segment)?;
    // In repair mode nothing is sent for it.
    call(raw, peer, libc::connect).map_err(|error| {
        format!("{peer} cannot be reached, or {local} is connected to it already: {error}")
    })?;
    let mut options = vec![[KIND_SEGMENT, state.segment]];
    for (bit, option) in [
        (WINDOW_SCALE, [KIND_SCALE, state.scales]),
        (SACK, [KIND_SACK, 0]),
        (TIMESTAMPS, [KIND_TIMESTAMP, 0]),
    ] {
        if state.options & bit != 0 {
            options.push(option);
        }
    }
    let options: Vec<u8> = options.iter().flatten().flat_map(|word| word.to_le_bytes()).collect();
    set("its options", tcp::REPAIR_OPTIONS, &options)?;
    set_word("its time stamp", tcp::TIMESTAMP, state.timestamp)?;
    for (queue, _, content) in queues {
        set_int("choose a queue", tcp::REPAIR_QUEUE, queue)?;
        fill(fd, content).map_err(|errno| format!("what was under way in it: {errno}"))?;
    }
    set("its window", tcp::REPAIR_WINDOW, &state.window)?;
    set_int("choose a queue", tcp::REPAIR_QUEUE, tcp::NO_QUEUE)
}

/// Puts bytes into the queue that was chosen; both are made larger for as long as that takes.
fn fill(fd: &OwnedFd, mut rest: &[u8]) -> Result<(), Errno> {
    /// The kernel wants memory in one piece for each part.
    const PART: usize = 16 * 1024;
    if rest.is_empty() {
        return Ok(());
    }
    let raw = fd.as_raw_fd();
    let sizes =
        [so::SNDBUF, so::RCVBUF].map(|name| socket::get_int_option(raw, so::SOL_SOCKET, name));
    let set =
        |name, value: i32| socket::set_option(raw, so::SOL_SOCKET, name, &value.to_le_bytes());
    for name in FORCE {
        set(name, i32::MAX / 4)?;
    }
    while !rest.is_empty() {
        let part = &rest[..rest.len().min(PART)];
        let sent = ulpm_sys::send(raw, part)?;
        rest = rest.get(sent..).unwrap_or(&[]);
    }
    for (name, size) in FORCE.into_iter().zip(sizes) {
        // The kernel doubles what it is told.
        set(name, size? / 2)?;
    }
    // The sizes are the kernel's to choose again (since Linux 5.15).
    let _ = set(so::BUF_LOCK, 0);
    Ok(())
}
