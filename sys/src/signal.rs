//! Signals: numbers, masks and the kernel's structures.

use crate::arch::{nr, syscall};
use crate::{Errno, check};

#[expect(missing_docs, reason = "signal(7)")]
mod numbers {
    pub const SIGHUP: i32 = 1;
    pub const SIGKILL: i32 = 9;
    pub const SIGUSR2: i32 = 12;
    pub const SIGCHLD: i32 = 17;
    pub const SIGCONT: i32 = 18;
    pub const SIGSTOP: i32 = 19;
    pub const SIGURG: i32 = 23;
    pub const SIGWINCH: i32 = 28;
}
pub use numbers::*;

/// Number of the last signal.
pub const LAST: i32 = 64;
/// The last of the standard signals; those up to [`FIRST_REALTIME`] are libc's own.
pub const LAST_STANDARD: i32 = 31;
/// glibc's `SIGRTMIN`.
pub const FIRST_REALTIME: i32 = 34;
/// Every signal.
pub const ALL: u64 = u64::MAX;
/// Default action.
pub const SIG_DFL: usize = 0;
/// Ignore.
pub const SIG_IGN: usize = 1;
/// Three-argument handler.
pub const SA_SIGINFO: u64 = 4;
/// Run on the alternate stack.
pub const SA_ONSTACK: u64 = 0x0800_0000;
/// Restart interrupted calls.
pub const SA_RESTART: u64 = 0x1000_0000;
/// A restorer is given.
pub const SA_RESTORER: u64 = 0x0400_0000;
/// `si_code` of kill(2).
pub const SI_USER: i32 = 0;
/// `si_code` of sigqueue(3).
pub const SI_QUEUE: i32 = -1;
/// `si_code` of a POSIX timer.
pub const SI_TIMER: i32 = -2;
/// `si_code` of a notice of a POSIX message queue.
pub const SI_MESGQ: i32 = -3;
/// `si_code` of tkill(2) and tgkill(2).
pub const SI_TKILL: i32 = -6;

/// The bit of a signal in a mask.
#[must_use]
pub const fn bit(signal: i32) -> u64 {
    1 << (signal - 1)
}

/// `struct kernel_sigaction` (include/linux/signal_types.h).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Action {
    /// Handler's address, [`SIG_DFL`] or [`SIG_IGN`].
    pub handler: usize,
    /// SA_… bits.
    pub flags: u64,
    /// Address of the code that calls rt_sigreturn.
    pub restorer: usize,
    /// Blocked while the handler runs.
    pub mask: u64,
}

/// `stack_t`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct AltStack {
    /// Lowest address.
    pub base: usize,
    /// SS_… bits.
    pub flags: i32,
    pad: i32,
    /// Length in bytes.
    pub len: usize,
}

/// No alternate stack (SS_DISABLE).
pub const SS_DISABLE: i32 = 2;
/// The thread is on it (SS_ONSTACK).
pub const SS_ONSTACK: i32 = 1;

/// `siginfo_t`: 128 bytes, of which the first fields are common to what rt_sigqueueinfo sends.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(8))]
pub struct SigInfo {
    /// Signal.
    pub signo: i32,
    /// Always 0 on Linux.
    pub errno: i32,
    /// Where it came from.
    pub code: i32,
    pad: i32,
    /// Sender.
    pub pid: i32,
    /// Sender's user.
    pub uid: u32,
    /// The value of sigqueue(3).
    pub value: u64,
    rest: [u64; 12],
}

/// See [`SigInfo::set_named`].
const NAMED: i32 = i32::from_le_bytes(*b"ulpm");

impl SigInfo {
    /// What sigqueue(3) sends.
    #[must_use]
    pub const fn queued(signo: i32, value: u64) -> Self {
        Self { signo, errno: 0, code: SI_QUEUE, pad: 0, pid: 0, uid: 0, value, rest: [0; 12] }
    }

    /// All zero.
    #[must_use]
    pub const fn zeroed() -> Self {
        Self::queued(0, 0)
    }

    /// Whether `pid` is what the kernel says of a process: the sender, or the child that SIGCHLD is about.
    #[must_use]
    pub const fn is_from_kernel(&self) -> bool {
        let is_sender = matches!(self.code, SI_USER | SI_TKILL | SI_MESGQ);
        (is_sender || (self.signo == SIGCHLD && self.code > 0)) && self.pad != NAMED
    }

    /// Says that `pid` is a name already: in padding, which the kernel keeps with a signal that is sent with a siginfo,
    /// and fills with zeros in all others.
    pub const fn set_named(&mut self) {
        self.pad = NAMED;
    }

    /// Takes that back.
    pub const fn forget_named(&mut self) {
        self.pad = 0;
    }
}

// The calls below only hand plain structures to the kernel, by references that live as long as the
// call: that is what makes each of them sound.

/// Reads, and with `new` changes, what `signal` does.
///
/// # Errors
///
/// INVAL for a number that is no signal, or to change SIGKILL or SIGSTOP.
pub fn action(signal: i32, new: Option<&Action>) -> Result<Action, Errno> {
    let mut old = Action::default();
    let new = new.map_or(0, |new| core::ptr::from_ref(new).addr());
    // SAFETY: see above.
    let returned = unsafe {
        let old = core::ptr::from_mut(&mut old).addr();
        syscall(nr::RT_SIGACTION, [signal.cast_unsigned() as usize, new, old, 8, 0, 0])
    };
    check(returned).map(|_| old)
}

/// Replaces the calling thread's mask and returns the old one.
pub fn set_mask(mask: u64) -> u64 {
    change_mask(2, mask)
}

/// Adds to the calling thread's mask and returns the old one.
pub fn block(mask: u64) -> u64 {
    change_mask(0, mask)
}

fn change_mask(how: usize, mask: u64) -> u64 {
    let mut old = 0u64;
    // SAFETY: see above.
    unsafe {
        let (new, old) = (core::ptr::from_ref(&mask).addr(), core::ptr::from_mut(&mut old).addr());
        syscall(nr::RT_SIGPROCMASK, [how, new, old, 8, 0, 0]);
    }
    old
}

/// Signals that wait for the calling thread or its process.
#[must_use]
pub fn pending() -> u64 {
    let mut set = 0u64;
    // SAFETY: see above.
    unsafe {
        syscall(nr::RT_SIGPENDING, [core::ptr::from_mut(&mut set).addr(), 8, 0, 0, 0, 0]);
    }
    set
}

/// Takes one pending signal of `set`, which is blocked, without waiting.
#[must_use]
pub fn take_pending(set: u64) -> Option<SigInfo> {
    let mut info = SigInfo::zeroed();
    let now = [0u64; 2];
    // SAFETY: see above.
    let returned = unsafe {
        let info = core::ptr::from_mut(&mut info).addr();
        let (set, now) = (core::ptr::from_ref(&set).addr(), core::ptr::from_ref(&now).addr());
        syscall(nr::RT_SIGTIMEDWAIT, [set, info, now, 8, 0, 0])
    };
    check(returned).ok().map(|_| info)
}

/// Sends a signal with its information to one thread.
///
/// # Errors
///
/// SRCH: there is no such thread. PERM: `si_code` claims to be from the kernel, and the thread is not
/// the calling one. AGAIN: its queue is full.
pub fn queue_to_thread(tgid: i32, tid: i32, info: &SigInfo) -> Result<(), Errno> {
    let number = |value: i32| value.cast_unsigned() as usize;
    // SAFETY: see above.
    let returned = unsafe {
        let info_at = core::ptr::from_ref(info).addr();
        let args = [number(tgid), number(tid), number(info.signo), info_at, 0, 0];
        syscall(nr::RT_TGSIGQUEUEINFO, args)
    };
    check(returned).map(drop)
}

/// Sends a signal with its information to a process.
///
/// # Errors
///
/// As [`queue_to_thread`].
pub fn queue_to_process(tgid: i32, info: &SigInfo) -> Result<(), Errno> {
    let number = |value: i32| value.cast_unsigned() as usize;
    // SAFETY: see above.
    let returned = unsafe {
        let info_at = core::ptr::from_ref(info).addr();
        syscall(nr::RT_SIGQUEUEINFO, [number(tgid), number(info.signo), info_at, 0, 0, 0])
    };
    check(returned).map(drop)
}

/// The calling thread's alternate stack.
#[must_use]
pub fn alt_stack() -> AltStack {
    let mut old = AltStack::default();
    // SAFETY: see above.
    unsafe {
        syscall(nr::SIGALTSTACK, [0, core::ptr::from_mut(&mut old).addr(), 0, 0, 0, 0]);
    }
    old
}

/// Gives the calling thread an alternate stack.
///
/// # Errors
///
/// PERM: the thread stands on one. NOMEM: it is too small.
///
/// # Safety
///
/// The memory is the thread's to be used so.
pub unsafe fn set_alt_stack(stack: &AltStack) -> Result<(), Errno> {
    // SAFETY: the caller vouches for the memory.
    let returned =
        unsafe { syscall(nr::SIGALTSTACK, [core::ptr::from_ref(stack).addr(), 0, 0, 0, 0, 0]) };
    check(returned).map(drop)
}
