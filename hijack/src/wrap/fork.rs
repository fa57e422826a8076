//! New processes.
//!
//! Reasons: the *name* of the child, and the *fact* that it belongs to the job.
//!
//! clone(2) is not wrapped: a child without CLONE_VM finds its per-process page wiped, and enters the
//! table with its first call of `getpid`, or when the freeze signal reaches it.

use core::ffi::{c_char, c_int, c_void};
use core::sync::atomic::{AtomicU32, Ordering};

use ulpm_plugin::event;
use ulpm_protocol::manager::FREEZE_SIGNAL;
use ulpm_protocol::table::{SlotState, Table};
use ulpm_sys::Errno;
use ulpm_sys::signal::{self, bit};

use crate::next::next;
use crate::process::{self, PerProcess};
use crate::{critical, plugins, set_errno, threads};

next! {
    FORK = c"fork": unsafe extern "C" fn() -> c_int;
    _FORK = c"_Fork": unsafe extern "C" fn() -> c_int;
    DAEMON = c"daemon": unsafe extern "C" fn(c_int, c_int) -> c_int;
    FORKPTY = c"forkpty":
        unsafe extern "C" fn(*mut c_int, *mut c_char, *const c_void, *const c_void) -> c_int;
}

/// Calls of vfork whose child has not yet gone on to another program: until then it shares the
/// parent's memory, and with it the parent's idea of who it is.
pub(crate) static VFORKING: AtomicU32 = AtomicU32::new(0);

/// The signals that could freeze the process.
pub(crate) fn freeze_signals(table: Table) -> u64 {
    let chosen = table.header().ckpt_signal.load(Ordering::Relaxed);
    bit(FREEZE_SIGNAL) | i32::try_from(chosen).map_or(0, bit)
}

/// `fork()`
#[unsafe(no_mangle)]
unsafe extern "C" fn fork() -> c_int {
    // SAFETY: passed on.
    told_of(with_child(|| unsafe { FORK.get()() }))
}

/// `_Fork()`, the async-signal-safe fork without handlers.
#[unsafe(no_mangle)]
unsafe extern "C" fn _Fork() -> c_int {
    // SAFETY: passed on.
    with_child(|| unsafe { _FORK.get()() })
}

/// `forkpty(3)`, which forks inside libc.
#[unsafe(no_mangle)]
unsafe extern "C" fn forkpty(
    master: *mut c_int,
    name: *mut c_char,
    modes: *const c_void,
    size: *const c_void,
) -> c_int {
    // SAFETY: passed on.
    told_of(with_child(|| unsafe { FORKPTY.get()(master, name, modes, size) }))
}

/// Tells the plugins what a fork has come to.
fn told_of(result: c_int) -> c_int {
    match result {
        0 => {
            if let Some(own) = process::own() {
                plugins::forked(own);
            }
        }
        child if child > 0 => plugins::tell(event::FORK_PARENT, child, None),
        _ => {}
    }
    result
}

/// `daemon(3)`, which forks inside libc and ends the parent there.
#[unsafe(no_mangle)]
unsafe extern "C" fn daemon(no_chdir: c_int, no_close: c_int) -> c_int {
    let Some(own) = process::own() else {
        // SAFETY: passed on.
        return unsafe { DAEMON.get()(no_chdir, no_close) };
    };
    let before = ulpm_sys::getpid();
    // SAFETY: passed on.
    let result = unsafe { DAEMON.get()(no_chdir, no_close) };
    if ulpm_sys::getpid() != before {
        VFORKING.store(0, Ordering::Relaxed);
        process::virtual_pid(own);
        plugins::forked(own);
    }
    result
}

/// Runs a fork, and enters the child into the table before parent or child can be frozen.
fn with_child(fork: impl FnOnce() -> c_int) -> c_int {
    let (Some(own), Some(table)) = (process::own(), process::table()) else { return fork() };
    let me = process::virtual_pid(own);
    let mask = signal::block(freeze_signals(table));
    let result = fork();
    let result = match result {
        0 => {
            VFORKING.store(0, Ordering::Relaxed);
            enter_child(own, table, me);
            0
        }
        real if real > 0 => {
            table.insert(real, me, SlotState::Live).map_or(real, |slot| slot.virt())
        }
        error => error,
    };
    signal::set_mask(mask);
    result
}

fn enter_child(own: &PerProcess, table: Table, parent: c_int) {
    let real = ulpm_sys::getpid();
    let virt = table.insert(real, parent, SlotState::Live).map_or(real, |slot| slot.virt());
    own.pid.store(virt, Ordering::Relaxed);
    // One that had the id before may have ended owing something to a semaphore.
    table.forget_debts(virt);
    threads::settle_leader(virt, real);
    // glibc has put its own handler there if the parent has ever created a thread.
    threads::install_handler(FREEZE_SIGNAL);
    // The parent may have been in the middle of a freeze, in which another thread of it had lent us
    // its signal; the child has only this thread.
    if let Ok(chosen) = i32::try_from(table.header().ckpt_signal.load(Ordering::Relaxed))
        && chosen != FREEZE_SIGNAL
        && LENT.load(Ordering::Relaxed) != 0
        && signal::action(chosen, None).is_ok_and(|action| threads::is_ours(&action))
    {
        let _ = signal::action(chosen, Some(&signal::Action::default()));
    }
    LENT.store(0, Ordering::Relaxed);
}

/// 1 while our handler stands for the program's SIGUSR2; inherited by a forked child, unlike what is
/// in `PerProcess`.
pub(crate) static LENT: AtomicU32 = AtomicU32::new(0);

/// The end of vfork in the parent; `result` is the kernel's.
pub(crate) extern "C" fn vfork_parent(result: isize) -> c_int {
    VFORKING.fetch_sub(1, Ordering::Relaxed);
    let result = match Errno::check(result.cast_unsigned()) {
        Ok(real) => spawned(c_int::try_from(real).unwrap_or(-1)),
        Err(errno) => {
            set_errno(errno);
            -1
        }
    };
    critical::end();
    result
}

/// The id by which the program is to know a child that was made without `fork`, and that has gone on
/// to another program by now.
///
/// Before a restart the child enters the table itself, when its copy of the library is loaded.
pub(crate) fn spawned(real: c_int) -> c_int {
    let (Some(own), Some(table)) = (process::own(), process::table()) else { return real };
    if !process::is_restarted() {
        return real;
    }
    let parent = process::virtual_pid(own);
    table.insert(real, parent, SlotState::Exec).map_or(real, |slot| slot.virt())
}
