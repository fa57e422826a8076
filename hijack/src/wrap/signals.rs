//! What a signal does.
//!
//! Reasons: the *moment* at which a freeze has borrowed SIGUSR2, or whichever signal was chosen. A program
//! that asked then would be told of our handler, and one that installed its own would be handed our
//! signal. And the *name* of the sender, or of the child, that a handler is given: after a restart a stand-in of
//! ours is called first, which puts it in. The program is told of its own handler. Before a restart calls for any other
//! signal are passed on at once.

use core::ffi::{c_int, c_void};
use core::sync::atomic::{AtomicUsize, Ordering};

use ulpm_sys::signal::{self as kernel, Action, SigInfo};

use super::fork::VFORKING;
use super::names;
use crate::critical::holding_name;
use crate::next::next;
use crate::{arch, process};

type Handler = *const c_void;

next! {
    SIGACTION = c"sigaction": unsafe extern "C" fn(c_int, *const LibcAction, *mut LibcAction) -> c_int;
    SIGNAL = c"signal": unsafe extern "C" fn(c_int, Handler) -> Handler;
    SYSV_SIGNAL = c"__sysv_signal": unsafe extern "C" fn(c_int, Handler) -> Handler;
    SIGSET = c"sigset": unsafe extern "C" fn(c_int, Handler) -> Handler;
    SIGIGNORE = c"sigignore": unsafe extern "C" fn(c_int) -> c_int;
    SIGINTERRUPT = c"siginterrupt": unsafe extern "C" fn(c_int, c_int) -> c_int;
}

/// libc's `struct sigaction`.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct LibcAction {
    handler: usize,
    mask: [u64; 16],
    flags: c_int,
    restorer: usize,
}

/// The program's handlers, by signal, in whose place ours stands.
static HANDLERS: [AtomicUsize; kernel::LAST as usize + 1] =
    [const { AtomicUsize::new(0) }; kernel::LAST as usize + 1];

fn handler_of(signo: c_int) -> Option<&'static AtomicUsize> {
    HANDLERS.get(usize::try_from(signo).ok()?)
}

fn stand_in() -> usize {
    (arch::stand_in as *const ()).addr()
}

/// Puts the sender's name into a siginfo that comes from the kernel.
pub(crate) fn name_sender(info: &mut SigInfo) {
    if info.is_from_kernel() {
        info.pid = names::virt(info.pid);
    }
    info.forget_named();
}

/// A handler of the program's is to be called, by our stand-in, with this siginfo: returns its address.
pub(crate) extern "C" fn enter(signo: c_int, info: *mut SigInfo) -> usize {
    // SAFETY: the kernel gives it to a handler with SA_SIGINFO.
    holding_name(|| name_sender(unsafe { &mut *info }));
    handler_of(signo).map_or(0, |handler| handler.load(Ordering::Acquire))
}

/// Puts our stand-in into the place of the handlers that are told of a process. The calling thread is the only one of a
/// process that is being restarted.
pub(crate) fn stand_in_for_handlers() {
    for signo in 1..=kernel::LAST {
        if let (Ok(action), Some(handler)) = (kernel::action(signo, None), handler_of(signo))
            && is_told(signo, action.handler, action.flags)
            && action.handler != stand_in()
        {
            handler.store(action.handler, Ordering::Release);
            let _ = kernel::action(signo, Some(&Action { handler: stand_in(), ..action }));
        }
    }
}

/// Whether this is a handler that takes a siginfo. Those of libc's own signals compare real ids.
fn is_told(signo: c_int, handler: usize, flags: u64) -> bool {
    let is_programs = !(kernel::LAST_STANDARD + 1..kernel::FIRST_REALTIME).contains(&signo);
    is_programs && handler > kernel::SIG_IGN && flags & kernel::SA_SIGINFO != 0
}

/// Sets what a signal does by `set`, which is told the handler in the place of `handler`, and returns the
/// one of before if it succeeded: that of the program's is returned.
fn exchange(
    signo: c_int,
    new: Option<(usize, u64)>,
    set: impl FnOnce(Option<usize>) -> Option<usize>,
) -> Option<usize> {
    let place = handler_of(signo).filter(|_| process::is_restarted());
    let Some(place) = place else { return set(new.map(|(handler, _)| handler)) };
    let before = place.load(Ordering::Acquire);
    // A vfork child's handlers are its own, but it finds its parent's memory.
    let told = |&(handler, flags): &(usize, u64)| {
        is_told(signo, handler, flags) && VFORKING.load(Ordering::Relaxed) == 0
    };
    let old = if let Some((handler, _)) = new.filter(told) {
        // Before it can be called.
        place.store(handler, Ordering::Release);
        let old = set(Some(stand_in()));
        if old.is_none() {
            place.store(before, Ordering::Release);
        }
        old
    } else {
        set(new.map(|(handler, _)| handler))
    };
    old.map(|old| if old == stand_in() { before } else { old })
}

/// sigaction by the system call.
///
/// # Safety
///
/// As the call, which has a `struct kernel_sigaction` at `new` and `old`, or null.
pub(super) unsafe fn by_number(
    signo: c_int,
    new: *const Action,
    old: *mut Action,
    call: impl FnOnce(*const Action, *mut Action) -> isize,
) -> isize {
    // SAFETY: the caller vouches for the pointers.
    unsafe {
        let (mut result, mut before) = (0, Action::default());
        let mut given = new.as_ref().copied();
        let new = given.map(|action| (action.handler, action.flags));
        let found = unborrowed(signo, || {
            exchange(signo, new, |handler| {
                if let (Some(given), Some(handler)) = (&mut given, handler) {
                    given.handler = handler;
                }
                let new = given.as_ref().map_or(core::ptr::null(), core::ptr::from_ref);
                result = call(new, &raw mut before);
                (result == 0).then_some(before.handler)
            })
        });
        if let (Some(handler), false) = (found, old.is_null()) {
            old.write(Action { handler, ..before });
        }
        result
    }
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
unsafe extern "C" fn sigaction(
    signo: c_int,
    new: *const LibcAction,
    old: *mut LibcAction,
) -> c_int {
    let next = SIGACTION.get();
    // SAFETY: see above.
    unborrowed(signo, || unsafe {
        if !process::is_restarted() {
            return next(signo, new, old);
        }
        let (mut result, mut before) = (0, core::mem::MaybeUninit::<LibcAction>::uninit());
        let mut given = new.as_ref().copied();
        let wanted = given.map(|action| (action.handler, u64::from(action.flags.cast_unsigned())));
        let found = exchange(signo, wanted, |handler| {
            if let (Some(given), Some(handler)) = (&mut given, handler) {
                given.handler = handler;
            }
            let new = given.as_ref().map_or(core::ptr::null(), core::ptr::from_ref);
            result = next(signo, new, before.as_mut_ptr());
            (result == 0).then(|| (*before.as_ptr()).handler)
        });
        if let (Some(handler), false) = (found, old.is_null()) {
            old.write(LibcAction { handler, ..before.assume_init() });
        }
        result
    })
}

/// The functions that set a handler without a siginfo, and return that of before.
///
/// # Safety
///
/// As `next`.
unsafe fn simple(
    next: unsafe extern "C" fn(c_int, Handler) -> Handler,
    signo: c_int,
    handler: Handler,
) -> Handler {
    // SAFETY: the caller vouches for it.
    let set = |_| Some(unsafe { next(signo, handler) }.addr());
    let old = unborrowed(signo, || exchange(signo, Some((handler.addr(), 0)), set));
    core::ptr::with_exposed_provenance(old.unwrap_or(0))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn signal(signo: c_int, handler: Handler) -> Handler {
    // SAFETY: see above.
    unsafe { simple(SIGNAL.get(), signo, handler) }
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
    unsafe { simple(SYSV_SIGNAL.get(), signo, handler) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn sysv_signal(signo: c_int, handler: Handler) -> Handler {
    // SAFETY: see above.
    unsafe { __sysv_signal(signo, handler) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn sigset(signo: c_int, disposition: Handler) -> Handler {
    // SAFETY: see above.
    unsafe { simple(SIGSET.get(), signo, disposition) }
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
