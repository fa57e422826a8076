//! `sock_diag`: what the kernel tells of sockets over netlink (sock_diag(7), include/uapi/linux/sock_diag.h).

use crate::Errno;
use crate::socket::{self, af, sock};

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// All sockets of a family that match.
    Dump,
    /// One socket.
    One,
    /// That a socket ends, as by a reset (`SOCK_DESTROY`, with `CAP_NET_ADMIN`).
    Destroy,
}

impl Request {
    /// Type and NLM_F_… flags of the message.
    const fn words(self) -> (u16, u16) {
        match self {
            // NLM_F_REQUEST | NLM_F_DUMP
            Self::Dump => (20, 0x301),
            Self::One => (20, 1),
            // NLM_F_REQUEST | NLM_F_ACK
            Self::Destroy => (21, 5),
        }
    }
}

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// Bytes of `struct nlmsghdr`: len u32, type u16, flags u16, sequence u32, port u32.
const HEADER: usize = 16;
/// Bytes of the longest request: `struct inet_diag_req_v2`.
const LONGEST: usize = 56;

/// What a dump gives in one piece at most (the kernel looks how much its reader takes, up to 32 KiB).
pub const BUFFER: usize = 64 * 1024;

/// Opens the way to ask.
///
/// # Errors
///
/// The kernel's.
pub fn open() -> Result<i32, Errno> {
    const NETLINK_SOCK_DIAG: i32 = 4;
    socket::socket(af::NETLINK, sock::RAW | sock::CLOEXEC, NETLINK_SOCK_DIAG)
}

/// Sends a request, and gives each answer's payload to `each`.
///
/// `request` is the family's structure, such as `struct unix_diag_req`; `buffer` has [`BUFFER`] bytes.
///
/// # Errors
///
/// NOENT: there is no such socket, or the kernel was built without `sock_diag` for that family. Behind any other,
/// `netlink` is to be closed: what is left of the answer would be taken for that to the next question.
pub fn exchange(
    netlink: i32,
    kind: Request,
    request: &[u8],
    buffer: &mut [u8],
    mut each: impl FnMut(&[u8]),
) -> Result<(), Errno> {
    let mut message = [0; HEADER + LONGEST];
    let len = HEADER + request.len();
    let place = message.get_mut(HEADER..len).ok_or(Errno::INVAL)?;
    place.copy_from_slice(request);
    let (name, flags) = kind.words();
    message[..4].copy_from_slice(&u32::try_from(len).unwrap_or(0).to_le_bytes());
    message[4..6].copy_from_slice(&name.to_le_bytes());
    message[6..8].copy_from_slice(&flags.to_le_bytes());
    crate::send(netlink, &message[..len])?;
    loop {
        let len = crate::read(netlink, buffer)?;
        let mut rest = &buffer[..len];
        if rest.is_empty() {
            return Err(Errno::IO);
        }
        while let Some((header, _)) = rest.split_at_checked(HEADER) {
            let len = number(header, 0) as usize;
            let Some(payload) = rest.get(HEADER..len) else { return Err(Errno::IO) };
            match u16::from_le_bytes([header[4], header[5]]) {
                NLMSG_DONE => return Ok(()),
                NLMSG_ERROR => {
                    return match number(payload, 0).cast_signed().wrapping_neg() {
                        0 => Ok(()),
                        error => Err(Errno::from_raw(error)),
                    };
                }
                _ => each(payload),
            }
            if kind == Request::One {
                return Ok(());
            }
            rest = rest.get(len.next_multiple_of(4)..).unwrap_or(&[]);
        }
    }
}

/// The u32 at `at`; 0 if there is none.
#[must_use]
pub fn number(bytes: &[u8], at: usize) -> u32 {
    let word = bytes.get(at..at + 4).and_then(|word| word.try_into().ok());
    word.map_or(0, u32::from_le_bytes)
}

/// The attributes (`struct nlattr`) that follow an answer's structure: type and value.
pub fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    core::iter::from_fn(move || {
        let header = bytes.get(..4)?;
        let len = usize::from(u16::from_le_bytes([header[0], header[1]]));
        let kind = u16::from_le_bytes([header[2], header[3]]);
        let value = bytes.get(4..len)?;
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or(&[]);
        Some((kind, value))
    })
}

/// Ends the TCP connections at a port of this host that both ends have closed already (TIME_WAIT), so that the port
/// can be bound again. Needs `CAP_NET_ADMIN`.
///
/// # Errors
///
/// PERM; OPNOTSUPP where the kernel was built without `CONFIG_INET_DIAG_DESTROY`; else the kernel's.
pub fn end_lingering(port: u16, buffer: &mut [u8]) -> Result<(), Errno> {
    const TCP: u8 = 6;
    const TIME_WAIT: u32 = 1 << 6;
    const MOST: usize = 64;
    let netlink = open()?;
    let result = [af::INET, af::INET6].into_iter().try_for_each(|family| {
        // struct inet_diag_req_v2: family, protocol, what to show, padding, states, and the socket's id.
        let mut request = [0; 56];
        request[0] = u8::try_from(family).unwrap_or(0);
        request[1] = TCP;
        request[4..8].copy_from_slice(&TIME_WAIT.to_le_bytes());
        request[8..10].copy_from_slice(&port.to_be_bytes());
        loop {
            let mut ids = [[0; 48]; MOST];
            let mut count = 0;
            let dumped = exchange(netlink, Request::Dump, &request, buffer, |answer| {
                // struct inet_diag_msg: family, state, timer, retransmits, and the socket's id.
                if let (Some(place), Some(id)) = (ids.get_mut(count), answer.get(4..52)) {
                    place.copy_from_slice(id);
                    count += 1;
                }
            });
            match dumped {
                Err(Errno::NOENT) if family == af::INET6 => return Ok(()),
                dumped => dumped?,
            }
            for id in &ids[..count] {
                let mut one = request;
                one[8..].copy_from_slice(id);
                match exchange(netlink, Request::Destroy, &one, buffer, |_| ()) {
                    // Its time was over.
                    Ok(()) | Err(Errno::NOENT) => {}
                    Err(errno) => return Err(errno),
                }
            }
            if count < MOST {
                return Ok(());
            }
        }
    });
    crate::close(netlink);
    result
}
