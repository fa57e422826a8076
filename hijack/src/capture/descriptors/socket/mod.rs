//! Sockets: what all families have in common.
//!
//! A family is a module, with the one of the same name in `restart/src/objects/socket/` as its other half.
//! Everything is asked of the kernel: getsockopt(2), the names of both ends, `sock_diag` for what these do
//! not tell ([`diag`]), and MSG_PEEK for what is in the receive queue ([`Peek`]).

#[expect(dead_code, reason = "the families that use it follow")]
mod diag;

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
pub(super) struct Context {}

/// Says whether a socket can be saved, as far as its family tells.
pub(super) fn kind(open: &Open) -> Result<u32, Failed> {
    match int(open, so::DOMAIN)? {
        af::UNIX => Err(cannot(open, "is a unix socket")),
        af::INET | af::INET6 => Err(cannot(open, "is an internet socket")),
        af::NETLINK => Err(cannot(open, "is a netlink socket")),
        _ => Err(cannot(open, "is a socket of a family that ULPM does not know")),
    }
    .map(|()| kind::SOCKET)
}

pub(super) fn save(
    _subject: &Subject<'_>,
    open: &Open,
    description: &Description,
    _context: &mut Context,
    meta: &mut Meta,
) -> Result<(), Failed> {
    let saved = common(open, description)?;
    meta.sockets.push(saved);
    Ok(())
}

/// What can be asked of a socket of any family; its state is left to the family.
fn common(open: &Open, description: &Description) -> Result<Socket, Failed> {
    // How many instructions it has; one of the newer kind cannot be read at all.
    match socket::get_option(open.ours, so::SOL_SOCKET, so::GET_FILTER, &mut []) {
        Ok(0) | Err(Errno::NOPROTOOPT) => {}
        _ => return Err(cannot(open, "is a socket with a packet filter (SO_ATTACH_FILTER)")),
    }
    let mut buffer = [0; ADDRESS_LEN];
    let failed = |errno| Failed::system("ask for the name of a socket", errno);
    let local = socket::local_address(open.ours, &mut buffer).map_err(failed)?.to_vec();
    let peer = socket::peer_address(open.ours, &mut buffer).map(<[u8]>::to_vec);
    let mut options = read_options(open, so::SOL_SOCKET, OPTIONS);
    buffers(open, &mut options);
    Ok(Socket {
        inode: open.status.ino,
        description: description.id,
        domain: int(open, so::DOMAIN)?,
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
fn read_options(open: &Open, level: i32, names: &[i32]) -> Vec<SocketOption> {
    let mut buffer = [0; 256];
    let read = |&name| {
        let len = socket::get_option(open.ours, level, name, &mut buffer).ok()?;
        let value = buffer.get(..len)?.to_vec();
        Some(SocketOption { level, name, value })
    };
    names.iter().filter_map(read).collect()
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
            options.extend(read_options(open, so::SOL_SOCKET, &[name]));
        }
    }
}

/// What poll(2) says of a socket now.
#[expect(dead_code, reason = "the families that use it follow")]
fn poll_now(fd: i32, events: i16) -> i16 {
    let mut fds = [PollFd { fd, events, revents: 0 }];
    ulpm_sys::poll(&mut fds, 0).map_or(0, |_| fds[0].revents)
}

/// Looks through the receive queue of a socket and leaves everything in it.
///
/// The kernel keeps the place, in SO_PEEK_OFF: the program's own value is given back in the end. Whoever
/// looks must know that something is there, for to look into an empty queue takes an error that waits for
/// the program.
struct Peek {
    fd: i32,
    /// The program's SO_PEEK_OFF.
    program: i32,
    /// Bytes seen so far.
    offset: i32,
}

/// What was found.
#[expect(dead_code, reason = "the families that use it follow")]
struct Peeked {
    content: Vec<u8>,
    source: Vec<u8>,
    /// Control data, as recvmsg(2) lays it out.
    control: Vec<u64>,
    control_len: usize,
    flags: i32,
}

#[expect(dead_code, reason = "the families that use it follow")]
impl Peek {
    fn new(fd: i32) -> Result<Self, Errno> {
        let program = socket::get_int_option(fd, so::SOL_SOCKET, so::PEEK_OFF)?;
        let peek = Self { fd, program, offset: 0 };
        peek.go_to(0)?;
        Ok(peek)
    }

    fn go_to(&self, offset: i32) -> Result<(), Errno> {
        socket::set_option(self.fd, so::SOL_SOCKET, so::PEEK_OFF, &offset.to_le_bytes())
    }

    /// The next message, or up to `most` bytes of a stream; `None` if there is none.
    ///
    /// `discard` is given the control data of an attempt for which the buffer was too short.
    fn next(
        &mut self,
        mut most: usize,
        mut discard: impl FnMut(&[u64], usize),
    ) -> Result<Option<Peeked>, Errno> {
        loop {
            let mut content = alloc::vec![0; most];
            let mut source = [0; ADDRESS_LEN];
            // SCM_MAX_FD (253) descriptors, credentials, and what else there may be.
            let mut control = alloc::vec![0u64; 256];
            let flags = msg::PEEK | msg::DONTWAIT | msg::TRUNC | msg::CMSG_CLOEXEC;
            let found =
                socket::receive_message(self.fd, &mut content, &mut source, &mut control, flags);
            let found = match found {
                Err(Errno::AGAIN) => return Ok(None),
                found => found?,
            };
            if found.len > most {
                discard(&control, found.control_len);
                most = found.len;
                self.go_to(self.offset)?;
                continue;
            }
            content.truncate(found.len);
            self.offset = self.offset.saturating_add(i32::try_from(found.len).unwrap_or(i32::MAX));
            return Ok(Some(Peeked {
                content,
                source: source[..found.source_len].to_vec(),
                control,
                control_len: found.control_len,
                flags: found.flags,
            }));
        }
    }
}

impl Drop for Peek {
    fn drop(&mut self) {
        let program = self.program.to_le_bytes();
        let _ = socket::set_option(self.fd, so::SOL_SOCKET, so::PEEK_OFF, &program);
    }
}
