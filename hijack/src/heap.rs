//! The manager thread's heap.
//!
//! A bump allocator over one reservation. Only the manager thread allocates, and nothing that it
//! allocates outlives a checkpoint: [`reset`] forgets all of it at once and gives the pages back. So
//! there is no lock, no free list, and nothing of it in an image.

use core::alloc::{GlobalAlloc, Layout};
use core::ptr;
use core::sync::atomic::{AtomicUsize, Ordering};

use ulpm_sys::{map, prot};

use crate::private::PRIVATE;

/// Address space for metadata; pages are used as they are touched.
pub(crate) const LEN: usize = 1 << 30;

static BASE: AtomicUsize = AtomicUsize::new(0);
/// Bytes in use.
static USED: &AtomicUsize = &PRIVATE.heap_used;

struct Heap;

#[cfg_attr(not(test), global_allocator)]
#[cfg_attr(test, expect(dead_code, reason = "tests have std's"))]
static HEAP: Heap = Heap;

// SAFETY: every allocation is a range of the reservation that no other one has, aligned as asked.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let base = BASE.load(Ordering::Relaxed);
        let start = (base + USED.load(Ordering::Relaxed)).next_multiple_of(layout.align());
        let end = start + layout.size();
        if base == 0 || end > base + LEN {
            return ptr::null_mut();
        }
        USED.store(end - base, Ordering::Relaxed);
        ptr::with_exposed_provenance_mut(start)
    }

    unsafe fn dealloc(&self, start: *mut u8, layout: Layout) {
        // The last allocation can be taken back; that is all that growing vectors need.
        let base = BASE.load(Ordering::Relaxed);
        if start.addr() + layout.size() == base + USED.load(Ordering::Relaxed) {
            USED.store(start.addr() - base, Ordering::Relaxed);
        }
    }

    unsafe fn realloc(&self, start: *mut u8, layout: Layout, new_len: usize) -> *mut u8 {
        let base = BASE.load(Ordering::Relaxed);
        let offset = start.addr() - base;
        if offset + layout.size() == USED.load(Ordering::Relaxed) && offset + new_len <= LEN {
            USED.store(offset + new_len, Ordering::Relaxed);
            return start;
        }
        // SAFETY: the layout is valid for `new_len` by the caller's contract; both ranges are ours
        // and do not overlap.
        unsafe {
            let new = self.alloc(Layout::from_size_align_unchecked(new_len, layout.align()));
            if !new.is_null() {
                ptr::copy_nonoverlapping(start, new, layout.size().min(new_len));
            }
            new
        }
    }
}

/// Reserves the address space; false if there is none.
pub(crate) fn reserve() -> bool {
    let flags = map::PRIVATE | map::ANONYMOUS | map::NORESERVE;
    // SAFETY: a new mapping at an address of the kernel's choice.
    let base = unsafe { ulpm_sys::mmap(0, LEN, prot::READ | prot::WRITE, flags, -1, 0) };
    if let Ok(base) = base {
        BASE.store(base, Ordering::Relaxed);
    }
    base.is_ok()
}

/// Address of the reservation.
pub(crate) fn address() -> usize {
    BASE.load(Ordering::Relaxed)
}

/// Forgets everything and gives the pages back.
pub(crate) fn reset() {
    let used = USED.swap(0, Ordering::Relaxed);
    if used != 0 {
        // SAFETY: the pages hold allocations that the caller has finished with. It cannot fail for a
        // mapped range.
        let _ = unsafe {
            ulpm_sys::madvise(address(), ulpm_sys::page_up(used), ulpm_sys::MADV_DONTNEED)
        };
    }
}
