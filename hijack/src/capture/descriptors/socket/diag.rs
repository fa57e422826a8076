//! Questions to `sock_diag`, over one netlink socket for all sockets of a process.

use alloc::vec::Vec;

use ulpm_sys::diag::{self, Request};
use ulpm_sys::{Errno, OwnedFd};

use crate::freeze::Failed;

pub(super) use ulpm_sys::diag::{attributes, number};

/// The way to ask, opened with the first question.
#[derive(Debug, Default)]
pub(super) struct Diag {
    netlink: Option<OwnedFd>,
    buffer: Vec<u8>,
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
    pub(super) fn dump(&mut self, request: &[u8], each: impl FnMut(&[u8])) -> Result<(), Failed> {
        self.exchange(Request::Dump, request, each).map_err(failed)
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
        match self.exchange(Request::One, request, |answer| found = parse(answer)) {
            Ok(()) => Ok(found),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(failed(errno)),
        }
    }

    fn exchange(
        &mut self,
        kind: Request,
        request: &[u8],
        each: impl FnMut(&[u8]),
    ) -> Result<(), Errno> {
        let netlink = match self.netlink.take() {
            Some(netlink) => netlink,
            None => {
                self.buffer.resize(diag::BUFFER, 0);
                OwnedFd::new(diag::open()?)
            }
        };
        let result = diag::exchange(netlink.get(), kind, request, &mut self.buffer, each);
        // After another error nobody knows what is still to come over it.
        if matches!(result, Ok(()) | Err(Errno::NOENT)) {
            self.netlink = Some(netlink);
        }
        result
    }
}

fn failed(errno: Errno) -> Failed {
    Failed::system("ask the kernel about its sockets (sock_diag)", errno)
}
