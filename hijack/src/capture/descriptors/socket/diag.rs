//! `sock_diag`: what the kernel tells of sockets over netlink (sock_diag(7), include/uapi/linux/sock_diag.h).

use alloc::vec::Vec;

use ulpm_sys::Errno;
use ulpm_sys::socket::{self, af, sock};

use crate::freeze::Failed;

const NETLINK_SOCK_DIAG: i32 = 4;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
/// NLM_F_REQUEST | NLM_F_DUMP
const REQUEST_DUMP: u16 = 0x301;
/// NLM_F_REQUEST
const REQUEST_ONE: u16 = 1;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// Bytes of `struct nlmsghdr`: len u32, type u16, flags u16, sequence u32, port u32.
const HEADER: usize = 16;
/// Bytes of the longest request: `struct inet_diag_req_v2`.
const LONGEST: usize = 56;
/// What a dump gives in one piece at most (the kernel looks how much its reader takes, up to 32 KiB).
const BUFFER: usize = 64 * 1024;

/// The way to ask, opened with the first question.
#[derive(Debug, Default)]
pub(super) struct Diag {
    netlink: Option<i32>,
    buffer: Vec<u8>,
}

impl Drop for Diag {
    fn drop(&mut self) {
        self.close();
    }
}

impl Diag {
    /// Asks for all sockets of a family (one dump is a few system calls, however many there are), and gives each
    /// answer's payload to `each`.
    ///
    /// `request` is the family's structure, such as `struct unix_diag_req`.
    ///
    /// # Errors
    ///
    /// [`Failed`], also where the kernel was built without `sock_diag` for that family.
    pub(super) fn dump(
        &mut self,
        request: &[u8],
        mut each: impl FnMut(&[u8]),
    ) -> Result<(), Failed> {
        self.exchange(request, REQUEST_DUMP, &mut each).map_err(failed)
    }

    /// Asks for one socket; returns the answer's payload, or `None` if there is no such socket.
    ///
    /// # Errors
    ///
    /// As [`Self::dump`].
    pub(super) fn ask<T>(
        &mut self,
        request: &[u8],
        parse: impl Fn(&[u8]) -> Option<T>,
    ) -> Result<Option<T>, Failed> {
        let mut found = None;
        match self.exchange(request, REQUEST_ONE, &mut |answer| found = parse(answer)) {
            Ok(()) => Ok(found),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(failed(errno)),
        }
    }

    fn close(&mut self) {
        if let Some(netlink) = self.netlink.take() {
            ulpm_sys::close(netlink);
        }
    }

    fn exchange(
        &mut self,
        request: &[u8],
        flags: u16,
        each: &mut impl FnMut(&[u8]),
    ) -> Result<(), Errno> {
        let netlink = match self.netlink {
            Some(netlink) => netlink,
            None => {
                self.buffer.resize(BUFFER, 0);
                socket::socket(af::NETLINK, sock::RAW | sock::CLOEXEC, NETLINK_SOCK_DIAG)?
            }
        };
        self.netlink = Some(netlink);
        let result = exchange_over(netlink, request, flags, &mut self.buffer, each);
        // What is left of the answer would be taken for that to the next question.
        if !matches!(result, Ok(()) | Err(Errno::NOENT)) {
            self.close();
        }
        result
    }
}

fn failed(errno: Errno) -> Failed {
    Failed::system("ask the kernel about its sockets (sock_diag)", errno)
}

fn exchange_over(
    netlink: i32,
    request: &[u8],
    flags: u16,
    buffer: &mut [u8],
    each: &mut impl FnMut(&[u8]),
) -> Result<(), Errno> {
    let mut message = [0; HEADER + LONGEST];
    let len = HEADER + request.len();
    let place = message.get_mut(HEADER..len).ok_or(Errno::INVAL)?;
    place.copy_from_slice(request);
    message[..4].copy_from_slice(&u32::try_from(len).unwrap_or(0).to_le_bytes());
    message[4..6].copy_from_slice(&SOCK_DIAG_BY_FAMILY.to_le_bytes());
    message[6..8].copy_from_slice(&flags.to_le_bytes());
    ulpm_sys::send(netlink, &message[..len])?;
    loop {
        let len = ulpm_sys::read(netlink, buffer)?;
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
                    let error = number(payload, 0).cast_signed().wrapping_neg();
                    return Err(Errno::from_raw(error));
                }
                _ => each(payload),
            }
            if flags == REQUEST_ONE {
                return Ok(());
            }
            rest = rest.get(len.next_multiple_of(4)..).unwrap_or(&[]);
        }
    }
}

/// The u32 at `at`; 0 if there is none.
pub(super) fn number(bytes: &[u8], at: usize) -> u32 {
    let word = bytes.get(at..at + 4).and_then(|word| word.try_into().ok());
    word.map_or(0, u32::from_le_bytes)
}

/// The attributes (`struct nlattr`) that follow an answer's structure: type and value.
pub(super) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    core::iter::from_fn(move || {
        let header = bytes.get(..4)?;
        let len = usize::from(u16::from_le_bytes([header[0], header[1]]));
        let kind = u16::from_le_bytes([header[2], header[3]]);
        let value = bytes.get(4..len)?;
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or(&[]);
        Some((kind, value))
    })
}
