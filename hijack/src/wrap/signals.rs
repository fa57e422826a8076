//! What a signal does.
//!
//! Reason: the *moment* at which a freeze has borrowed SIGUSR2, or whichever signal was chosen. A program
//! that asked then would be told of our handler, and one that installed its own would be handed our
//! signal. Calls for any other signal are passed on at once.

use core::ffi::{c_int, c_void};
use core::sync::atomic::Ordering;

use super::fork::VFORKING;
use crate::next::next;
use crate::process;

type Handler = *const c_void;

next! {
    SIGACTION = c"sigaction": unsafe extern "C" fn(c_int, *const c_void, *mut c_void) -> c_int;
    SIGNAL = c"signal": unsafe extern "C" fn(c_int, Handler) -> Handler;
    SYSV_SIGNAL = c"__sysv_signal": unsafe extern "C" fn(c_int, Handler) -> Handler;
    SIGSET = c"sigset": unsafe extern "C" fn(c_int, Handler) -> Handler;
    SIGIGNORE = c"sigignore": unsafe extern "C" fn(c_int) -> c_int;
    SIGINTERRUPT = c"siginterrupt": unsafe extern "C" fn(c_int, c_int) -> c_int;
}

/// Runs `call`, which looks at or changes what `signo` does, while no freeze borrows that.
fn unborrowed<R>(signo: c_int, call: impl FnOnce() -> R) -> R {
    let chosen =
        || process::table().map(|table| table.header().ckpt_signal.load(Ordering::Relaxed));
    // A vfork child is not frozen, so it would wait for its parent, which waits for it.
    let in_vfork_child = || {
        VFORKING.load(Ordering::Relaxed) != 0
            && process::table().is_some_and(|table| table.by_real(ulpm_sys::getpid()).is_none())
    };
    let concerned = |_: &&_| chosen() == u32::try_from(signo).ok() && !in_vfork_child();
    let Some(own) = process::own().filter(concerned) else { return call() };
    // See `freeze::freeze` for the other side, and `exec`.
    loop {
        own.signal_users.fetch_add(1, Ordering::SeqCst);
        if own.freezing.load(Ordering::SeqCst) == 0 {
            break;
        }
        // Let it happen first.
        own.signal_users.fetch_sub(1, Ordering::SeqCst);
        ulpm_sys::sched_yield();
    }
    let result = call();
    own.signal_users.fetch_sub(1, Ordering::SeqCst);
    result
}

// In each wrapper below, the arguments are passed on as they came from the caller, who vouches for them
// as the function's manual page demands.

#[unsafe(no_mangle)]
unsafe extern "C" fn sigaction(signo: c_int, new: *const c_void, old: *mut c_void) -> c_int {
    // SAFETY: see above.
    unborrowed(signo, || unsafe { SIGACTION.get()(signo, new, old) })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn signal(signo: c_int, handler: Handler) -> Handler {
    // SAFETY: see above.
    unborrowed(signo, || unsafe { SIGNAL.get()(signo, handler) })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn bsd_signal(signo: c_int, handler: Handler) -> Handler {
    // SAFETY: see above.
    unsafe { signal(signo, handler) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ssignal(signo: c_int, handler: Handler) -> Handler {
    // SAFETY: see above.
    unsafe { signal(signo, handler) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn __sysv_signal(signo: c_int, handler: Handler) -> Handler {
    // SAFETY: see above.
    unborrowed(signo, || unsafe { SYSV_SIGNAL.get()(signo, handler) })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn sysv_signal(signo: c_int, handler: Handler) -> Handler {
    // SAFETY: see above.
    unsafe { __sysv_signal(signo, handler) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn sigset(signo: c_int, disposition: Handler) -> Handler {
    // SAFETY: see above.
    unborrowed(signo, || unsafe { SIGSET.get()(signo, disposition) })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn sigignore(signo: c_int) -> c_int {
    // SAFETY: see above.
    unborrowed(signo, || unsafe { SIGIGNORE.get()(signo) })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn siginterrupt(signo: c_int, interrupt: c_int) -> c_int {
    // SAFETY: see above.
    unborrowed(signo, || unsafe { SIGINTERRUPT.get()(signo, interrupt) })
}
