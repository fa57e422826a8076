//! Unix sockets, with what is in them: bytes, messages, descriptors.

use alloc::vec::Vec;
use core::ffi::CStr;

use ulpm_image::Meta;
use ulpm_image::meta::{Socket, SocketMessage, SocketOption, socket_state as state};
use ulpm_sys::socket::{self, msg, so, sock};
use ulpm_sys::{Errno, POLLIN, mode};

use super::super::{describe, under_way};
use super::{Context, Open, Peek, Peeked, Subject, cannot, diag, poll_now};
use crate::freeze::Failed;

/// States of a socket, from include/net/tcp_states.h.
const TCP_LISTEN: u8 = 10;

const POLLPRI: i16 = 2;
const POLLERR: i16 = 8;
/// SIOCOUTQ
const UNREAD_BY_PEER: usize = 0x5411;

/// What `unix_diag` (include/uapi/linux/unix_diag.h) says of a socket.
#[derive(Debug, Default)]
pub(super) struct Known {
    inode: u64,
    state: u8,
    /// Inode of the file that it was bound to.
    file: u64,
    peer: u64,
    /// The other ends of those who wait to be accepted.
    waiting: Vec<u64>,
    backlog: u32,
    shutdown: u8,
}

impl Known {
    pub(super) fn inode(&self) -> u64 {
        self.inode
    }
}

/// All unix sockets of this network namespace.
pub(super) fn list(diag: &mut diag::Diag) -> Result<Vec<Known>, Failed> {
    /// UDIAG_SHOW_VFS | UDIAG_SHOW_PEER | UDIAG_SHOW_ICONS | UDIAG_SHOW_RQLEN
    const SHOW: u32 = 0x1e;
    // struct unix_diag_req: family, protocol, pad, states, inode, show, cookie.
    let words = [1u32, u32::MAX, 0, SHOW, u32::MAX, u32::MAX];
    let request: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    let mut all = Vec::new();
    diag.dump(&request, |answer| {
        // struct unix_diag_msg: family, type, state, pad, inode, cookie.
        let Some((head, attributes)) = answer.split_at_checked(16) else { return };
        let mut known =
            Known { inode: diag::number(head, 4).into(), state: head[2], ..Known::default() };
        for (kind, value) in diag::attributes(attributes) {
            match kind {
                1 => known.file = diag::number(value, 0).into(),
                2 => known.peer = diag::number(value, 0).into(),
                3 => {
                    let inodes = (0..value.len() / 4).map(|i| diag::number(value, i * 4).into());
                    known.waiting = inodes.collect();
                }
                4 => known.backlog = diag::number(value, 4),
                6 => known.shutdown = value.first().copied().unwrap_or(0),
                _ => {}
            }
        }
        all.push(known);
    })?;
    all.sort_unstable_by_key(|known| known.inode);
    Ok(all)
}

/// Takes the state of a unix socket.
pub(super) fn save(
    subject: &Subject<'_>,
    open: &Open,
    saved: &mut Socket,
    context: &mut Context,
    meta: &Meta,
) -> Result<(), Failed> {
    let known = context.unix(saved.inode)?;
    let Some(known) = known else {
        return Err(cannot(open, "is a unix socket of another network namespace"));
    };
    saved.shutdown = known.shutdown.into();
    saved.peer_inode = known.peer;
    saved.state = match known.state {
        TCP_LISTEN => state::LISTENING,
        _ if saved.peer.is_empty() => state::UNCONNECTED,
        _ => state::CONNECTED,
    };
    if known.file != 0 {
        let inode = known.file;
        find_file(saved, inode, &meta.process.cwd);
    }
    if saved.state == state::LISTENING {
        let known = context.unix(saved.inode)?;
        let (waiting, backlog) =
            known.map_or((Vec::new(), 0), |known| (known.waiting.clone(), known.backlog));
        if waiting.contains(&0) {
            let why = "has a connection to accept whose client is gone already";
            return Err(not_now(open, why));
        }
        (saved.waiting, saved.backlog) = (waiting, backlog);
        return Ok(());
    }
    if let Some(credentials) = peer_credentials(subject, open) {
        let value = credentials.iter().flat_map(|word| word.to_le_bytes()).collect();
        saved.options.push(SocketOption { level: so::SOL_SOCKET, name: so::PEERCRED, value });
    }
    let is_waiting = saved.kind != sock::DGRAM
        && saved.state == state::CONNECTED
        && saved.peer_inode == 0
        && saved.shutdown == 0;
    // Nobody can look into a socket that was not accepted.
    if is_waiting && ulpm_sys::get_ioctl(open.ours, UNREAD_BY_PEER) != Ok(0) {
        return Err(not_now(open, "has sent before its connection was accepted"));
    }
    let found = poll_now(open.ours, POLLIN | POLLPRI);
    saved.reset = found & POLLERR != 0;
    if found & POLLPRI != 0 {
        return Err(cannot(open, "holds out-of-band data"));
    }
    queue(subject, open, saved, context, found & POLLIN != 0)
}

/// The other end, as it was when it connected: process, user and group; `None` if there is none.
fn peer_credentials(subject: &Subject<'_>, open: &Open) -> Option<[u32; 3]> {
    if let Some(name) = subject.table.socket_name(open.status.ino) {
        return name.credentials();
    }
    let mut value = [0; 12];
    socket::get_option(open.ours, so::SOL_SOCKET, so::PEERCRED, &mut value).ok()?;
    let [pid, user, group] = [0, 4, 8].map(|at| diag::number(&value, at));
    let virt = subject.table.virtual_of(pid.cast_signed());
    (pid != 0).then_some([virt.cast_unsigned(), user, group])
}

/// What nobody can look at before it is accepted.
fn not_now(open: &Open, why: &str) -> Failed {
    let fd = open.fd;
    crate::capture::not_now(format_args!(
        "descriptor {fd} (a unix socket) {why}, so what is under way cannot be saved; try again later"
    ))
}

/// The file that leads to the socket: it may have been removed, or replaced by another.
fn find_file(saved: &mut Socket, inode: u64, cwd: &[u8]) {
    let name = saved.local.get(2..).unwrap_or_default();
    let Some(name) = name.split(|&byte| byte == 0).next().filter(|name| !name.is_empty()) else {
        return;
    };
    let terminated = [name, b"\0"].concat();
    let Ok(path) = CStr::from_bytes_with_nul(&terminated) else { return };
    // The manager shares the program's working directory.
    let Ok(status) = ulpm_sys::stat(path) else { return };
    if status.ino == inode && status.mode & mode::TYPE == mode::SOCKET {
        let is_absolute = name.starts_with(b"/");
        saved.file = if is_absolute { name.to_vec() } else { [cwd, b"/", name].concat() };
        saved.file_mode = status.mode & 0o7777;
    }
}

/// What is in the receive queue.
fn queue(
    subject: &Subject<'_>,
    open: &Open,
    saved: &mut Socket,
    context: &mut Context,
    readable: bool,
) -> Result<(), Failed> {
    let failed = |errno: Errno| Failed::system("look into a unix socket", errno);
    let is_stream = saved.kind == sock::STREAM;
    // A stream ends where its bytes do, and so does what was shut down: behind that, an end is read.
    let counted = is_stream || saved.kind == sock::SEQPACKET && saved.shutdown & 1 != 0;
    let all = ulpm_sys::bytes_to_read(open.ours).map_err(failed)?;
    if if counted { all == 0 } else { !readable } {
        return Ok(());
    }
    // To look takes the error away, but for a stream that has something in it.
    if saved.reset && !is_stream {
        return Err(cannot(open, "has an error to report that the program has not seen"));
    }
    let Context { buffer, in_flight, .. } = context;
    let mut peek = Peek::new(open.ours, buffer).map_err(failed)?;
    let mut seen = 0;
    while !counted || seen < all {
        let most = if is_stream { all - seen } else { 0 };
        let Some(found) = peek.next(most, discard).map_err(failed)? else { break };
        if found.flags & msg::CTRUNC != 0 {
            let why = "holds more descriptors under way than there may be open ones";
            return Err(cannot(open, why));
        }
        let start = seen;
        seen += found.len;
        if found.len == 0 && counted {
            return Err(failed(Errno::IO)); // It said that there was more.
        }
        let mut message = message(subject, &found, in_flight)?;
        message.content = peek.content(found.len).to_vec();
        if is_stream && !message.descriptors.is_empty() && found.len > 1 {
            // They come with the first of the bytes that they were sent with, and bytes from before are
            // shown together with these.
            let before = peek.before_last(start, found.len).map_err(failed)?;
            let rest = message.content.split_off(before);
            let earlier = SocketMessage {
                content: core::mem::replace(&mut message.content, rest),
                credentials: message.credentials.clone(),
                ..SocketMessage::default()
            };
            if !earlier.content.is_empty() {
                push(saved, earlier);
            }
        }
        push(saved, message);
    }
    Ok(())
}

fn message(
    subject: &Subject<'_>,
    peeked: &Peeked,
    in_flight: &mut Vec<(Open, ulpm_image::meta::Description)>,
) -> Result<SocketMessage, Failed> {
    let mut message = SocketMessage::default();
    if peeked.source.len() > 2 {
        message.source = peeked.source.clone();
    }
    // Moved to their place first, so that all are closed if one cannot be saved.
    let mut passed = Vec::new();
    for control in controls(&peeked.control) {
        match control {
            Control::Descriptor(fd) => passed.push(super::super::keep(fd)),
            Control::Pidfd(fd) => ulpm_sys::close(fd),
            // The kernel gives 0 for a message that was sent without.
            Control::Credentials([0, ..]) => {}
            Control::Credentials([pid, user, group]) => {
                let virt = subject.table.virtual_of(pid.cast_signed());
                message.credentials = [virt.cast_unsigned(), user, group].to_vec();
            }
        }
    }
    for fd in passed {
        let fd = fd.map_err(|errno| Failed::system("keep a descriptor under way", errno))?;
        let open = under_way(fd)?;
        let description = describe(subject, ulpm_sys::gettid(), &open)?;
        message.descriptors.push(description.id);
        in_flight.push((open, description));
    }
    Ok(message)
}

/// Bytes of a stream that are read in one piece are one message; descriptors end such a piece.
fn push(saved: &mut Socket, message: SocketMessage) {
    if saved.kind == sock::STREAM
        && message.descriptors.is_empty()
        && let Some(last) = saved.messages.last_mut()
        && last.descriptors.is_empty()
        && last.credentials == message.credentials
    {
        last.content.extend_from_slice(&message.content);
    } else {
        saved.messages.push(message);
    }
}

enum Control {
    Descriptor(i32),
    Pidfd(i32),
    Credentials([u32; 3]),
}

/// Control data that matters: `struct cmsghdr` is a length of eight bytes, level and type.
fn controls(mut bytes: &[u8]) -> impl Iterator<Item = Control> {
    const SCM_RIGHTS: u32 = 1;
    const SCM_CREDENTIALS: u32 = 2;
    const SCM_PIDFD: u32 = 4;
    let mut found = Vec::new();
    while let Some((header, _)) = bytes.split_at_checked(16) {
        let len = diag::number(header, 0) as usize;
        let Some(data) = bytes.get(16..len) else { break };
        let number = |index: usize| diag::number(data, index * 4);
        if diag::number(header, 8) == so::SOL_SOCKET.cast_unsigned() {
            match diag::number(header, 12) {
                SCM_RIGHTS => found.extend(
                    (0..data.len() / 4).map(|i| Control::Descriptor(number(i).cast_signed())),
                ),
                SCM_CREDENTIALS => {
                    found.push(Control::Credentials([number(0), number(1), number(2)]));
                }
                SCM_PIDFD => found.push(Control::Pidfd(number(0).cast_signed())),
                _ => {}
            }
        }
        bytes = bytes.get(len.next_multiple_of(8)..).unwrap_or(&[]);
    }
    found.into_iter()
}

/// Closes the descriptors of an attempt that is made again.
fn discard(control: &[u8]) {
    for control in controls(control) {
        if let Control::Descriptor(fd) | Control::Pidfd(fd) = control {
            ulpm_sys::close(fd);
        }
    }
}
