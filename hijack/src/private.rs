//! Memory that changes while an image is written, and is therefore not in it: the manager's stack,
//! buffers and heap. A restarted process finds zeros here.

use core::cell::UnsafeCell;
use core::sync::atomic::AtomicUsize;

use ulpm_protocol::manager::{HEADER_LEN, MAX_PAYLOAD};

use crate::heap;

/// Whole pages of static memory.
#[repr(C, align(4096))]
pub(crate) struct Private {
    /// Stack of the manager thread.
    pub(crate) stack: UnsafeCell<[u8; 256 * 1024]>,
    /// The message that is being sent.
    pub(crate) out: UnsafeCell<[u8; HEADER_LEN + MAX_PAYLOAD]>,
    /// Payload of the message that was received.
    pub(crate) input: UnsafeCell<[u8; MAX_PAYLOAD]>,
    /// Bytes of the heap that are in use.
    pub(crate) heap_used: AtomicUsize,
}

// SAFETY: there is one manager thread in a process at a time, and nobody else uses the cells.
unsafe impl Sync for Private {}

/// The memory itself.
pub(crate) static PRIVATE: Private = Private {
    stack: UnsafeCell::new([0; 256 * 1024]),
    out: UnsafeCell::new([0; HEADER_LEN + MAX_PAYLOAD]),
    input: UnsafeCell::new([0; MAX_PAYLOAD]),
    heap_used: AtomicUsize::new(0),
};

/// The parts of `start..end` that belong in an image, in order.
pub(crate) fn without_private(start: usize, end: usize) -> impl Iterator<Item = (usize, usize)> {
    let own = (&raw const PRIVATE).addr();
    let mut holes =
        [(own, own + size_of::<Private>()), (heap::address(), heap::address() + heap::LEN)];
    if holes[0] > holes[1] {
        holes.swap(0, 1);
    }
    let [first, second] = holes;
    [(start, end.min(first.0)), (start.max(first.1), end.min(second.0)), (start.max(second.1), end)]
        .into_iter()
        .filter(|(start, end)| start < end)
}
