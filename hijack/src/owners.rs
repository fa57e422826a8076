//! Who is told that a descriptor is ready (F_SETOWN), and with which signal (F_SETSIG).
//!
//! A description may name a thread, which exists again only when the library is back. So this is kept in the
//! library's memory and given back by each process that holds such a description, all to the same effect.
//! The flag that turns it on (`O_ASYNC`) comes back with the descriptor.

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicUsize, Ordering};

use ulpm_protocol::table::Table;
use ulpm_sys::{Errno, F_GETSIG, F_SETSIG, Owner};

use crate::capture::unsupported;
use crate::freeze::Failed;
use crate::threads;

const MAX_OWNED: usize = 1024;
const OWNER_TID: i32 = 0;
const OWNER_PGRP: i32 = 2;

#[derive(Clone, Copy, Debug)]
struct Owned {
    fd: i32,
    /// By the id that the program sees.
    owner: Owner,
    signal: i32,
}

struct List(UnsafeCell<[Owned; MAX_OWNED]>);
// SAFETY: used by the manager only, while it holds every other thread.
unsafe impl Sync for List {}
static LIST: List = List(UnsafeCell::new(
    [Owned { fd: -1, owner: Owner { kind: 0, id: 0 }, signal: 0 }; MAX_OWNED],
));
static COUNT: AtomicUsize = AtomicUsize::new(0);

/// Begins a capture.
pub(crate) fn clear() {
    COUNT.store(0, Ordering::Relaxed);
}

/// Takes note of a descriptor, of which `ours` is a duplicate. Only on the manager thread, in a freeze.
///
/// # Errors
///
/// [`Failed`]: there are too many.
pub(crate) fn note(table: Table, fd: i32, ours: i32) -> Result<(), Failed> {
    // What was opened with O_PATH has none.
    let Ok(mut owner) = ulpm_sys::owner(ours) else { return Ok(()) };
    let signal = ulpm_sys::fcntl(ours, F_GETSIG, 0).unwrap_or(0);
    if owner.id == 0 && signal == 0 {
        return Ok(());
    }
    owner.id = match owner.kind {
        OWNER_PGRP => table.virtual_group(owner.id),
        OWNER_TID => match threads::virtual_tid(owner.id) {
            same if same == owner.id => table.virtual_of(owner.id),
            virt => virt,
        },
        _ => table.virtual_of(owner.id),
    };
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    // SAFETY: see `List`.
    let place = unsafe { &mut *LIST.0.get() }.get_mut(count).ok_or_else(|| {
        unsupported(format_args!(
            "it has more than {MAX_OWNED} descriptors with an owner (F_SETOWN)"
        ))
    })?;
    *place = Owned { fd, owner, signal };
    Ok(())
}

/// Gives the descriptors of a restarted process their owners again.
///
/// # Errors
///
/// The kernel's. That an owner is gone is none: it had ended before.
pub(crate) fn give_back(table: Table) -> Result<(), Errno> {
    let count = COUNT.load(Ordering::Relaxed).min(MAX_OWNED);
    if count == 0 {
        return Ok(());
    }
    // SAFETY: the manager of a restarted process holds all its threads until the first thaw.
    let list = unsafe { &(&*LIST.0.get())[..count] };
    let pidfd = ulpm_sys::pidfd_open(ulpm_sys::getpid())?;
    let result = list.iter().try_for_each(|&Owned { fd, mut owner, signal }| {
        owner.id = match owner.kind {
            OWNER_PGRP => table.real_group(owner.id),
            OWNER_TID => match threads::real_tid(owner.id) {
                same if same == owner.id => table.real_of(owner.id),
                real => real,
            },
            _ => table.real_of(owner.id),
        };
        let ours = ulpm_sys::pidfd_getfd(pidfd, fd)?;
        let _ = ulpm_sys::fcntl(ours, F_SETSIG, signal.cast_unsigned() as usize);
        if owner.id != 0 {
            let _ = ulpm_sys::set_owner(ours, owner);
        }
        ulpm_sys::close(ours);
        Ok(())
    });
    ulpm_sys::close(pidfd);
    result
}
