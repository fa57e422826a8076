//! Contexts for asynchronous requests (io_setup(2)).
//!
//! A context is known by the address of its ring, into which the kernel puts an event for each request that has ended.
//! The program reads it by io_getevents(2), or itself. From fs/aio.c:
//!
//! ```text
//!  0  id         the kernel's number for it, in this process
//!  4  slots
//!  8  head       the next slot to be read
//! 12  tail       the next slot to be filled; the kernel has a copy that counts
//! 16  magic, features, length of this header
//! 32  the slots, of 32 bytes
//! ```

use core::sync::atomic::{AtomicU32, Ordering};

use crate::arch::{nr, syscall};
use crate::{Errno, PAGE, check, page_up};

const HEADER: usize = 32;
const SLOT: usize = 32;

/// `struct iocb` (include/uapi/linux/aio_abi.h) of a read; zeros in all that is not named.
#[derive(Debug, Default)]
#[repr(C)]
struct Request {
    data: u64,
    key_and_flags: u64,
    /// `IOCB_CMD_PREAD` is 0.
    operation: u16,
    priority: u16,
    fd: u32,
    buffer: u64,
    len: u64,
    offset: u64,
    rest: [u64; 2],
}

/// The ring of a context.
#[derive(Clone, Copy, Debug)]
pub struct Ring(usize);

impl Ring {
    /// The ring at `address`, if that is a context of this process.
    #[must_use]
    pub fn at(address: usize) -> Option<Self> {
        // SAFETY: none of no events is asked for. The kernel looks what is there.
        let found = unsafe { syscall(nr::IO_GETEVENTS, [address, 0, 0, 0, 0, 0]) };
        check(found).is_ok().then_some(Self(address))
    }

    /// Makes a context whose ring is `len` bytes long.
    ///
    /// # Errors
    ///
    /// AGAIN: the system has too many (fs.aio-max-nr). INVAL: here a ring of this length cannot be had, for each
    /// processor that the machine may have has its share.
    pub fn make(len: usize) -> Result<Self, Errno> {
        // The kernel doubles the number, adds two slots, and rounds up to pages.
        let requests = (len / PAGE * (PAGE / SLOT / 2)).saturating_sub(65).max(1);
        let mut address = 0usize;
        // SAFETY: borrowed.
        check(unsafe { syscall(nr::IO_SETUP, [requests, (&raw mut address).addr(), 0, 0, 0, 0]) })?;
        let made = Self(address);
        if made.length() == len { Ok(made) } else { Err(Errno::INVAL) }
    }

    /// Where it is.
    #[must_use]
    pub fn address(self) -> usize {
        self.0
    }

    /// Length of its mapping, in bytes.
    #[must_use]
    pub fn length(self) -> usize {
        page_up(HEADER + SLOT * self.slots() as usize)
    }

    /// How many events it has room for, and one more.
    #[must_use]
    pub fn slots(self) -> u32 {
        self.field(1).load(Ordering::Relaxed)
    }

    /// The next slot to be read, and the next to be filled.
    #[must_use]
    pub fn ends(self) -> [u32; 2] {
        [2, 3].map(|index| self.field(index).load(Ordering::Acquire))
    }

    fn field(self, index: usize) -> &'static AtomicU32 {
        // SAFETY: the kernel has mapped the ring at this address, which is a page's.
        unsafe { &*core::ptr::with_exposed_provenance::<AtomicU32>(self.0 + 4 * index) }
    }

    /// Has the kernel fill the next `count` slots, by reading from `null`, which is /dev/null: such requests have ended when
    /// they have been made. If `read`, they count as read.
    ///
    /// # Errors
    ///
    /// The kernel's, as of io_submit(2).
    pub fn fill(self, null: i32, mut count: u32, read: bool) -> Result<(), Errno> {
        const AT_ONCE: usize = 64;
        let mut request = Request { fd: null.cast_unsigned(), ..Request::default() };
        let list = [(&raw mut request).expose_provenance(); AT_ONCE];
        while count > 0 {
            let now = AT_ONCE.min(count as usize);
            let arguments = [self.0, now, list.as_ptr().addr(), 0, 0, 0];
            // SAFETY: the kernel reads the list and the request, and writes into that a key that means nothing.
            let made = check(unsafe { syscall(nr::IO_SUBMIT, arguments) })?;
            count -= u32::try_from(made).unwrap_or(count).min(count);
            if read {
                self.set_head(self.ends()[1]);
            }
        }
        Ok(())
    }

    /// Says how far it was read.
    pub fn set_head(self, head: u32) {
        self.field(2).store(head, Ordering::Release);
    }

    /// Copies all slots from a copy of such a ring.
    ///
    /// # Safety
    ///
    /// At `from` is one of the same length, which nobody changes.
    pub unsafe fn copy_slots(self, from: usize) {
        let [from, to] = [from, self.0].map(|at| at + HEADER);
        // SAFETY: the caller vouches for one, the kernel has mapped the other, and they do not overlap.
        unsafe {
            let from = core::ptr::with_exposed_provenance::<u8>(from);
            let to = core::ptr::with_exposed_provenance_mut::<u8>(to);
            core::ptr::copy_nonoverlapping(from, to, self.length() - HEADER);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn null() -> i32 {
        crate::open(c"/dev/null", crate::oflag::RDONLY | crate::oflag::CLOEXEC).unwrap()
    }

    #[test]
    fn ring_of_each_length_is_brought_to_any_state() {
        let null = null();
        for requests in [1usize, 62, 63, 100, 126, 127, 500, 1000] {
            let mut address = 0usize;
            // SAFETY: borrowed.
            check(unsafe {
                syscall(nr::IO_SETUP, [requests, (&raw mut address).addr(), 0, 0, 0, 0])
            })
            .unwrap();
            let first = Ring::at(address).unwrap();
            let other = Ring::make(first.length()).unwrap();
            assert_eq!(other.slots(), first.slots(), "{requests}");
            let slots = other.slots();
            // Read up to the middle, then full.
            other.fill(null, slots / 2, true).unwrap();
            assert_eq!(other.ends(), [slots / 2; 2]);
            // Other threads of the tests may have taken this one to another processor, where some of its share is.
            let unread = slots / 8;
            other.fill(null, unread, false).unwrap();
            assert_eq!(other.ends(), [slots / 2, slots / 2 + unread]);
            other.fill(null, slots, true).unwrap();
            assert_eq!(other.ends()[1], (slots / 2 + unread) % slots);
        }
        assert!(Ring::at(0x1000).is_none());
        crate::close(null);
    }
}
