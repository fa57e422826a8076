//! Sockets: what all families have in common.
//!
//! A family is a module, with the one of the same name in `restart/src/objects/socket/` as its other half.
//! Everything is asked of the kernel: getsockopt(2), the names of both ends, `sock_diag` for what these do
//! not tell ([`diag`]), and MSG_PEEK for what is in the receive queue ([`Peek`]).

mod diag;
mod inet;
mod netlink;
mod unix;

use alloc::vec::Vec;

use ulpm_image::Meta;
use ulpm_image::meta::{Description, Socket, SocketOption, description_kind as kind};
use ulpm_sys::socket::{self, ADDRESS_LEN, af, msg, so};
use ulpm_sys::{Errno, PollFd};

use super::{Open, Subject, cannot};
use crate::freeze::Failed;

/// Options of SOL_SOCKET that every family may have, read here and set again if a new socket has them
/// otherwise. SO_SNDBUF and SO_RCVBUF are not among them: see [`buffers`].
const OPTIONS: &[i32] = &[
    so::DEBUG,
    so::REUSEADDR,
    so::DONTROUTE,
    so::BROADCAST,
    so::KEEPALIVE,
    so::OOBINLINE,
    so::NO_CHECK,
    so::PRIORITY,
    so::LINGER,
    so::REUSEPORT,
    so::PASSCRED,
    so::RCVLOWAT,
    so::RCVTIMEO,
    so::SNDTIMEO,
    so::TIMESTAMP,
    so::PASSSEC,
    so::TIMESTAMPNS,
    so::MARK,
    so::TIMESTAMPING,
    so::RXQ_OVFL,
    so::PEEK_OFF,
    so::NOFCS,
    so::SELECT_ERR_QUEUE,
    so::BUSY_POLL,
    so::MAX_PACING_RATE,
    so::ZEROCOPY,
    so::TIMESTAMP_NEW,
    so::TIMESTAMPNS_NEW,
    so::PREFER_BUSY_POLL,
    so::TXREHASH,
    so::RCVMARK,
    so::PASSPIDFD,
    so::PASSRIGHTS,
];

/// What is looked up once for all sockets of a process.
#[derive(Default)]
pub(super) struct Context {
    diag: diag::Diag,
    inet: inet::Inet,
    /// All unix sockets of the host, by inode, once one was met.
    unix: Option<Vec<unix::Known>>,
    /// What [`Peek`] reads into.
    buffer: Vec<u8>,
    /// Descriptors that were found under way in sockets, to be saved like all others.
    pub(super) in_flight: Vec<(Open, Description)>,
}

impl Context {
    fn unix(&mut self, inode: u64) -> Result<Option<&unix::Known>, Failed> {
        if self.unix.is_none() {
            self.unix = Some(unix::list(&mut self.diag)?);
        }
        let all = self.unix.as_deref().unwrap_or_default();
        let found = all.binary_search_by_key(&inode, unix::Known::inode);
        Ok(found.ok().and_then(|index| all.get(index)))
    }
}

/// Says whether a socket can be saved, as far as its family tells.
pub(super) fn kind(open: &Open) -> Result<u32, Failed> {
    match int(open, so::DOMAIN)? {
        af::UNIX => Ok(()),
        af::INET | af::INET6 => inet::kind(open),
        af::NETLINK => netlink::kind(open),
        _ => Err(cannot(open, "is a socket of a family that ULPM does not know")),
    }
    .map(|()| kind::SOCKET)
}

pub(super) fn save(
    subject: &Subject<'_>,
    open: &Open,
    description: &Description,
    context: &mut Context,
    meta: &mut Meta,
) -> Result<(), Failed> {
    let mut saved = common(open, description)?;
    match saved.domain {
        af::INET | af::INET6 => {
            inet::save(subject, open, &mut saved, context, meta.sockets.len())?;
        }
        af::NETLINK => netlink::save(open, &mut saved)?,
        _ => unix::save(subject, open, &mut saved, context, meta)?,
    }
    meta.sockets.push(saved);
    Ok(())
}

/// Takes note of a socket that another process saves, or this one by another descriptor.
pub(super) fn share(open: &Open) {
    let is = |name| socket::get_int_option(open.ours, so::SOL_SOCKET, name);
    if matches!(is(so::DOMAIN), Ok(af::INET | af::INET6)) {
        inet::share(open);
    }
}

/// Saves what can be told only when all sockets of the process were met; `again` opens one of its descriptors.
pub(super) fn finish(
    subject: &Subject<'_>,
    context: &mut Context,
    meta: &mut Meta,
    again: impl Fn(i32) -> Result<i32, Failed>,
) -> Result<(), Failed> {
    inet::finish(subject, context, meta, again)
}

/// What can be asked of a socket of any family; its state is left to the family.
fn common(open: &Open, description: &Description) -> Result<Socket, Failed> {
    let mut buffer = [0; ADDRESS_LEN];
    let failed = |errno| Failed::system("ask for the name of a socket", errno);
    let local = socket::local_address(open.ours, &mut buffer).map_err(failed)?.to_vec();
    let peer = socket::peer_address(open.ours, &mut buffer).map(<[u8]>::to_vec);
    let domain = int(open, so::DOMAIN)?;
    // One that has to grow leaves its old places unused: see `heap`.
    let mut options = Vec::with_capacity(if domain == af::UNIX { 40 } else { 112 });
    read_options(open, so::SOL_SOCKET, OPTIONS, &mut options);
    buffers(open, &mut options);
    filter(open, &mut options)?;
    Ok(Socket {
        inode: open.status.ino,
        description: description.id,
        domain,
        kind: int(open, so::TYPE)?,
        protocol: int(open, so::PROTOCOL)?,
        local,
        peer: peer.unwrap_or_default(),
        options,
        ..Socket::default()
    })
}

fn int(open: &Open, name: i32) -> Result<i32, Failed> {
    socket::get_int_option(open.ours, so::SOL_SOCKET, name)
        .map_err(|errno| Failed::system("ask what a socket is", errno))
}

/// Reads those options of a level that this kernel and kind of socket have.
fn read_options(open: &Open, level: i32, names: &[i32], options: &mut Vec<SocketOption>) {
    let mut buffer = [0; 256];
    for &name in names {
        let Ok(len) = socket::get_option(open.ours, level, name, &mut buffer) else { continue };
        if let Some(value) = buffer.get(..len) {
            options.push(SocketOption { level, name, value: value.to_vec() });
        }
    }
}

/// The sizes of buffers that the program has chosen (SO_BUF_LOCK, since Linux 5.15); all others are the
/// kernel's to choose again.
fn buffers(open: &Open, options: &mut Vec<SocketOption>) {
    const LOCKED: [(i32, i32); 2] = [(1, so::SNDBUF), (2, so::RCVBUF)];
    let Ok(locked) = socket::get_int_option(open.ours, so::SOL_SOCKET, so::BUF_LOCK) else {
        return;
    };
    for (bit, name) in LOCKED {
        if locked & bit != 0 {
            read_options(open, so::SOL_SOCKET, &[name], options);
        }
    }
}

/// The packet filter (SO_ATTACH_FILTER).
fn filter(open: &Open, options: &mut Vec<SocketOption>) -> Result<(), Failed> {
    /// Bytes of `struct sock_filter`.
    const INSTRUCTION: usize = 8;
    let (level, name) = (so::SOL_SOCKET, so::FILTER);
    // It counts instructions.
    let count = match socket::get_option(open.ours, level, name, &mut []) {
        Ok(0) | Err(Errno::NOPROTOOPT) => return Ok(()),
        Ok(count) => count,
        // One of the newer kind cannot be read at all.
        Err(_) => return Err(cannot(open, "is a socket with a packet filter (SO_ATTACH_BPF)")),
    };
    let mut value = alloc::vec![0; count * INSTRUCTION];
    let read = socket::filter(open.ours, &mut value);
    read.map_err(|errno| Failed::system("read the packet filter of a socket", errno))?;
    options.push(SocketOption { level, name, value });
    // Behind the filter.
    read_options(open, level, &[so::LOCK_FILTER], options);
    Ok(())
}

/// As `cannot`, for what passes by itself.
pub(super) fn later(open: &Open, why: &str) -> Failed {
    let (path, fd) = (open.path.escape_ascii(), open.fd);
    crate::capture::not_now(format_args!(
        "descriptor {fd} ({path}) {why} cannot be saved; try again later"
    ))
}

/// What poll(2) says of a socket now.
fn poll_now(fd: i32, events: i16) -> i16 {
    let mut fds = [PollFd { fd, events, revents: 0 }];
    ulpm_sys::poll(&mut fds, 0).map_or(0, |_| fds[0].revents)
}

/// Looks through the receive queue of a socket and leaves everything in it.
///
/// The kernel keeps the place, in SO_PEEK_OFF: the program's own value is given back in the end. Whoever
/// looks must know that something is there, for to look into an empty queue takes an error that waits for
/// the program.
struct Peek<'a> {
    fd: i32,
    /// The program's SO_PEEK_OFF.
    program: i32,
    /// Bytes seen so far.
    offset: usize,
    buffer: &'a mut Vec<u8>,
}

/// What was found; its content is [`Peek::content`].
struct Peeked {
    len: usize,
    source: Vec<u8>,
    /// Control data, as recvmsg(2) lays it out.
    control: Vec<u8>,
    flags: i32,
}

impl<'a> Peek<'a> {
    /// Room for what comes in one piece most of the time.
    const ROOM: usize = 64 * 1024;

    fn new(fd: i32, buffer: &'a mut Vec<u8>) -> Result<Self, Errno> {
        let program = socket::get_int_option(fd, so::SOL_SOCKET, so::PEEK_OFF)?;
        let peek = Self { fd, program, offset: 0, buffer };
        peek.go_to(0)?;
        Ok(peek)
    }

    fn go_to(&self, offset: usize) -> Result<(), Errno> {
        let offset = i32::try_from(offset).map_err(|_| Errno::FBIG)?;
        socket::set_option(self.fd, so::SOL_SOCKET, so::PEEK_OFF, &offset.to_le_bytes())
    }

    /// The next message, or up to `most` bytes of a stream; `None` if there is none.
    ///
    /// `discard` is given the control data of an attempt for which the buffer was too short.
    fn next(&mut self, most: usize, discard: fn(&[u8])) -> Result<Option<Peeked>, Errno> {
        let mut needed = most.max(Self::ROOM);
        loop {
            if self.buffer.len() < needed {
                self.buffer.resize(needed, 0);
            }
            let room = if most == 0 { &mut self.buffer[..] } else { &mut self.buffer[..most] };
            let room_len = room.len();
            let mut source = [0; ADDRESS_LEN];
            // SCM_MAX_FD (253) descriptors, credentials, and what else there may be.
            let mut control = [0u64; 256];
            let flags = msg::PEEK | msg::DONTWAIT | msg::TRUNC | msg::CMSG_CLOEXEC;
            let found = socket::receive_message(self.fd, room, &mut source, &mut control, flags);
            let found = match found {
                Err(Errno::AGAIN) => return Ok(None),
                found => found?,
            };
            let control = control.iter().flat_map(|word| word.to_le_bytes());
            let control: Vec<u8> = control.take(found.control_len).collect();
            if found.len > room_len {
                discard(&control);
                needed = found.len;
                self.go_to(self.offset)?;
                continue;
            }
            self.offset += found.len;
            return Ok(Some(Peeked {
                len: found.len,
                source: source[..found.source_len].to_vec(),
                control,
                flags: found.flags,
            }));
        }
    }

    /// What [`Self::next`] has found.
    fn content(&self, len: usize) -> &[u8] {
        &self.buffer[..len]
    }

    /// How many of the `len` bytes of a stream at `start` lie before the kernel's last buffer of them.
    fn before_last(&mut self, start: usize, len: usize) -> Result<usize, Errno> {
        self.go_to(start)?;
        let before = match socket::peek_short(self.fd, &mut self.buffer[..len - 1]) {
            Err(Errno::FAULT) => Ok(0),
            before => before,
        };
        self.go_to(self.offset)?;
        before
    }
}

impl Drop for Peek<'_> {
    fn drop(&mut self) {
        let program = self.program.to_le_bytes();
        let _ = socket::set_option(self.fd, so::SOL_SOCKET, so::PEEK_OFF, &program);
    }
}
