//! Calls that wait for a relative time.
//!
//! Reason: a *fact* that the kernel cannot be asked later, the moment at which such a call was to end.
//! Each wrapper leaves it in the thread's own slot and passes the call on; when a freeze interrupts the
//! call, it is made again with what is left. Nothing is paid by calls that do not wait, or that wait
//! forever.

#![expect(
    clippy::missing_safety_doc,
    reason = "what a caller has to keep stands in the manual page of the function of that name"
)]

use core::ffi::{c_int, c_uint, c_void};

use ulpm_sys::Timespec;
use ulpm_sys::arch::{MachineContext, UserContext, nr, number_of_call};
use ulpm_sys::signal::SigInfo;

use crate::arch::{SLOT_LEN, thread_slot};
use crate::clock;
use crate::next::next;
use crate::{process, wrap};

/// Deadline (the program's monotonic time, ns), and room for the timespec with which a call is made again.
const DEADLINE: usize = 0;
const SCRATCH: usize = 1;

fn slot() -> &'static mut [u64; SLOT_LEN] {
    // SAFETY: the slot is the thread's own, and no reference to it lives across a call that could
    // lead here again: a handler that does comes back before the next use.
    unsafe { &mut *thread_slot() }
}

/// Runs `call` while the slot holds the time at which it is to end.
pub(crate) fn until<R>(timeout_ns: i64, call: impl FnOnce() -> R) -> R {
    slot()[DEADLINE] = monotonic_vdso_ns().saturating_add(timeout_ns).cast_unsigned();
    let result = call();
    slot()[DEADLINE] = 0;
    result
}

/// The monotonic clock, through the vDSO: this is a user thread's own call.
fn monotonic_vdso_ns() -> i64 {
    #[link(name = "c")]
    unsafe extern "C" {
        fn clock_gettime(clock: c_int, time: *mut Timespec) -> c_int;
    }
    let mut now = Timespec::default();
    // SAFETY: the pointer is good for one timespec; 1 is CLOCK_MONOTONIC.
    unsafe { clock_gettime(1, &raw mut now) };
    now.as_ns()
}

/// Gives an interrupted call the time that is left, if it is one of ours.
pub(crate) fn continue_call(context: &mut UserContext, number: usize) {
    let slot = slot();
    if slot[DEADLINE] == 0 {
        return;
    }
    let now = clock::now_ns(clock::MONOTONIC);
    let left = slot[DEADLINE].cast_signed().saturating_sub(now).max(0);
    let machine = &mut context.machine;
    // poll and epoll_wait count in whole milliseconds: rounded up, as they do themselves.
    let ms = usize::try_from(left).unwrap_or(0).div_ceil(1_000_000);
    match number {
        nr::POLL => machine.rdx = ms,
        nr::EPOLL_WAIT | nr::EPOLL_PWAIT => machine.r10 = ms,
        _ => {
            let timespec = Timespec::from_ns(left);
            slot[SCRATCH] = timespec.sec.cast_unsigned();
            slot[SCRATCH + 1] = timespec.nsec.cast_unsigned();
            let address = slot[SCRATCH..].as_ptr().addr();
            match number {
                nr::NANOSLEEP => machine.rdi = address,
                nr::CLOCK_NANOSLEEP if machine.rsi == 0 => machine.rdx = address,
                nr::RT_SIGTIMEDWAIT => machine.rdx = address,
                nr::SEMTIMEDOP | nr::EPOLL_PWAIT2 => machine.r10 = address,
                nr::IO_GETEVENTS | nr::IO_PGETEVENTS => machine.r8 = address,
                // FUTEX_WAIT; the others of them have a time of day or of a clock.
                nr::FUTEX if machine.rsi & 0x7f == 0 && machine.r10 != 0 => machine.r10 = address,
                _ => {}
            }
        }
    }
}

/// The number of the system call behind which a thread stands.
///
/// libc's calls have `mov eax, number` a few instructions before `syscall`, and our own `syscall(2)` leaves it where it
/// is found. The kernel says it of a thread that is looked at before it is interrupted, so this is for those that could
/// not be.
pub(crate) fn number_before(machine: &MachineContext) -> Option<usize> {
    certain_number_before(machine).or_else(|| {
        let code = code_before(machine.rip)?;
        // The nearest one counts. 0x41 in front would make it a move to r8d.
        (1..code.len().saturating_sub(4)).rev().find_map(|at| {
            let [before, 0xb8, low, high, 0, 0] = code[at - 1..].first_chunk::<6>()? else {
                return None;
            };
            (*before != 0x41 && *high < 2).then_some(usize::from(*high) << 8 | usize::from(*low))
        })
    })
}

/// The same, if there can be no doubt of it.
pub(crate) fn certain_number_before(machine: &MachineContext) -> Option<usize> {
    wrap::raw::number_of_call(machine).or_else(|| number_of_call(code_before(machine.rip)?))
}

/// Some of the code in front of the system call whose instruction ends at `rip`.
fn code_before(rip: usize) -> Option<&'static [u8]> {
    const REACH: usize = 40;
    let end = rip.checked_sub(2)?;
    let len = REACH.min(end & (ulpm_sys::PAGE - 1));
    // SAFETY: the instruction that ends at `rip` is mapped, and these bytes lie in its page.
    Some(unsafe {
        core::slice::from_raw_parts(core::ptr::with_exposed_provenance::<u8>(end - len), len)
    })
}

/// The calls that return EINTR after a handler even with SA_RESTART (signal(7)), or that do so when a
/// timeout is set. All can be made again with the same arguments.
pub(crate) fn can_be_made_again(number: usize) -> bool {
    matches!(
        number,
        nr::POLL
            | nr::SELECT
            | nr::PAUSE
            | nr::NANOSLEEP
            | nr::ACCEPT
            | nr::ACCEPT4
            | nr::SENDTO
            | nr::SENDMSG
            | nr::RECVFROM
            | nr::RECVMSG
            | nr::RECVMMSG
            | nr::READ
            | nr::READV
            | nr::WRITE
            | nr::WRITEV
            | nr::SENDMMSG
            | nr::CONNECT
            | nr::FALLOCATE
            | nr::SEMOP
            | nr::SEMTIMEDOP
            | nr::MSGSND
            | nr::MSGRCV
            | nr::RT_SIGTIMEDWAIT
            | nr::RT_SIGSUSPEND
            | nr::FUTEX
            | nr::IO_GETEVENTS
            | nr::IO_PGETEVENTS
            | nr::CLOCK_NANOSLEEP
            | nr::EPOLL_WAIT
            | nr::EPOLL_PWAIT
            | nr::EPOLL_PWAIT2
            | nr::PSELECT6
            | nr::PPOLL
    )
}

next! {
    POLL = c"poll": unsafe extern "C" fn(*mut c_void, usize, c_int) -> c_int;
    EPOLL_WAIT = c"epoll_wait": unsafe extern "C" fn(c_int, *mut c_void, c_int, c_int) -> c_int;
    EPOLL_PWAIT = c"epoll_pwait":
        unsafe extern "C" fn(c_int, *mut c_void, c_int, c_int, *const c_void) -> c_int;
    EPOLL_PWAIT2 = c"epoll_pwait2":
        unsafe extern "C" fn(c_int, *mut c_void, c_int, *const Timespec, *const c_void) -> c_int;
    POLL_CHK = c"__poll_chk": unsafe extern "C" fn(*mut c_void, usize, c_int, usize) -> c_int;
    THRD_SLEEP = c"thrd_sleep":
        unsafe extern "C" fn(*const Timespec, *mut Timespec) -> c_int;
    NANOSLEEP = c"nanosleep": unsafe extern "C" fn(*const Timespec, *mut Timespec) -> c_int;
    CLOCK_NANOSLEEP = c"clock_nanosleep":
        unsafe extern "C" fn(c_int, c_int, *const Timespec, *mut Timespec) -> c_int;
    USLEEP = c"usleep": unsafe extern "C" fn(c_uint) -> c_int;
    SLEEP = c"sleep": unsafe extern "C" fn(c_uint) -> c_uint;
    SIGTIMEDWAIT = c"sigtimedwait":
        unsafe extern "C" fn(*const c_void, *mut c_void, *const Timespec) -> c_int;
}

const NS_PER_MS: i64 = 1_000_000;

/// How long a timespec of the program's lasts; 0 for one that libc will refuse, or cannot be read.
///
/// # Safety
///
/// `timespec` is null or points to a timespec, as the function's contract demands.
pub(crate) unsafe fn duration(timespec: *const Timespec) -> i64 {
    // SAFETY: the caller vouches for it.
    unsafe { timespec.as_ref() }.map_or(0, |timespec| timespec.as_ns().max(0))
}

// In each wrapper below, the call that is passed on has the arguments of the caller, who vouches for
// them as the function's manual page demands. No value with a destructor is alive at that call, so
// cancellation may unwind past it.

#[unsafe(no_mangle)]
unsafe extern "C" fn poll(fds: *mut c_void, count: usize, timeout: c_int) -> c_int {
    // SAFETY: see above.
    let call = || unsafe { POLL.get()(fds, count, timeout) };
    if timeout <= 0 { call() } else { until(i64::from(timeout) * NS_PER_MS, call) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn epoll_wait(
    fd: c_int,
    events: *mut c_void,
    count: c_int,
    timeout: c_int,
) -> c_int {
    // SAFETY: see above.
    let call = || unsafe { EPOLL_WAIT.get()(fd, events, count, timeout) };
    if timeout <= 0 { call() } else { until(i64::from(timeout) * NS_PER_MS, call) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn epoll_pwait(
    fd: c_int,
    events: *mut c_void,
    count: c_int,
    timeout: c_int,
    mask: *const c_void,
) -> c_int {
    // SAFETY: see above.
    let call = || unsafe { EPOLL_PWAIT.get()(fd, events, count, timeout, mask) };
    if timeout <= 0 { call() } else { until(i64::from(timeout) * NS_PER_MS, call) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn epoll_pwait2(
    fd: c_int,
    events: *mut c_void,
    count: c_int,
    timeout: *const Timespec,
    mask: *const c_void,
) -> c_int {
    // SAFETY: see above.
    let call = || unsafe { EPOLL_PWAIT2.get()(fd, events, count, timeout, mask) };
    // SAFETY: see above.
    match unsafe { duration(timeout) } {
        0 => call(),
        ns => until(ns, call),
    }
}

/// `poll()` of a program that was built with `_FORTIFY_SOURCE`.
#[unsafe(no_mangle)]
unsafe extern "C" fn __poll_chk(
    fds: *mut c_void,
    count: usize,
    timeout: c_int,
    len: usize,
) -> c_int {
    // SAFETY: see above.
    let call = || unsafe { POLL_CHK.get()(fds, count, timeout, len) };
    if timeout <= 0 { call() } else { until(i64::from(timeout) * NS_PER_MS, call) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn thrd_sleep(request: *const Timespec, remaining: *mut Timespec) -> c_int {
    // SAFETY: see above.
    unsafe { until(duration(request), || THRD_SLEEP.get()(request, remaining)) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nanosleep(request: *const Timespec, remaining: *mut Timespec) -> c_int {
    // SAFETY: see above.
    unsafe { until(duration(request), || NANOSLEEP.get()(request, remaining)) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn clock_nanosleep(
    clock: c_int,
    flags: c_int,
    request: *const Timespec,
    remaining: *mut Timespec,
) -> c_int {
    // SAFETY: see above.
    unsafe {
        sleep_by(clock, flags, request, |request| {
            CLOCK_NANOSLEEP.get()(clock, flags, request, remaining)
        })
    }
}

/// Runs `call`, which is clock_nanosleep.
///
/// # Safety
///
/// `request` is null or points to a timespec.
pub(crate) unsafe fn sleep_by<R>(
    clock: c_int,
    flags: c_int,
    request: *const Timespec,
    call: impl FnOnce(*const Timespec) -> R,
) -> R {
    // SAFETY: the caller vouches for it.
    unsafe {
        if flags & clock::TIMER_ABSTIME != 0 {
            clock::until(clock, request, call)
        } else {
            until(duration(request), || call(request))
        }
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn usleep(microseconds: c_uint) -> c_int {
    // SAFETY: see above.
    until(i64::from(microseconds) * 1000, || unsafe { USLEEP.get()(microseconds) })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn sleep(seconds: c_uint) -> c_uint {
    // SAFETY: see above.
    until(i64::from(seconds) * 1_000_000_000, || unsafe { SLEEP.get()(seconds) })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn sigtimedwait(
    set: *const c_void,
    info: *mut SigInfo,
    timeout: *const Timespec,
) -> c_int {
    // SAFETY: see above.
    unsafe {
        wait_for_signal(info, timeout, |info| {
            SIGTIMEDWAIT.get()(set, info.cast(), timeout) as isize
        }) as c_int
    }
}

/// Waits for a signal by `call`. Also a *name*: the sender's.
///
/// # Safety
///
/// As sigtimedwait(2).
pub(crate) unsafe fn wait_for_signal(
    info: *mut SigInfo,
    timeout: *const Timespec,
    call: impl FnOnce(*mut SigInfo) -> isize,
) -> isize {
    // SAFETY: the caller vouches for the pointers.
    unsafe {
        let taken = match duration(timeout) {
            0 => call(info),
            ns => until(ns, || call(info)),
        };
        if let (1.., Some(info)) = (taken, info.as_mut())
            && process::is_restarted()
        {
            wrap::signals::name_sender(info);
        }
        taken
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn sigwaitinfo(set: *const c_void, info: *mut SigInfo) -> c_int {
    // SAFETY: see above.
    unsafe { sigtimedwait(set, info, core::ptr::null()) }
}
