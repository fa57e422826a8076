//! Moments in which a thread holds a real name.
//!
//! Between the translation of a name and the end of the system call that takes it, and between the
//! return of one that gives a real name and its translation, a restart would leave the thread with a
//! name that means nothing, or somebody else. The freeze handler lets a thread in such a moment go on,
//! and asks again. A thread that waits for a child, or for a System V object, may be stopped in the wait
//! itself, where the name is in a register and can be exchanged.

use ulpm_sys::arch::{UserContext, nr};
use ulpm_sys::{Errno, signal};

use crate::arch::{self, thread_slot};
use crate::{clock, timed};

/// Places in the thread's slot: the stack pointer at the start of the moment, and how often the thread
/// was let go on.
const START: usize = 3; // Known to `vfork` as 24 bytes,
const LET_GO: usize = 4; // and this as 32.
/// The System V object in whose operation the thread may wait: its kind and id; 0 for none.
const OBJECT: usize = 5;

/// A thread that is still in such a moment after this many requests, 2 ms apart, runs a handler of the
/// program's on top of it, and is stopped all the same.
const PATIENCE: u64 = 25;

/// Runs `call`, which holds a real name.
///
/// No value with a destructor may be alive in it: a cancellation or a longjmp leaves without coming back.
/// The mark that stays behind then means nothing once the stack is used above it.
pub(crate) fn holding_name<R>(call: impl FnOnce() -> R) -> R {
    holding(0, call)
}

/// As [`holding_name`], for an operation on the System V object that the program knows as `id`. In the
/// kernel it may be stopped: the id is in a register, and is exchanged.
pub(crate) fn holding_object<R>(kind: u32, id: i32, call: impl FnOnce() -> R) -> R {
    holding(u64::from(kind) << 32 | u64::from(id.cast_unsigned()), call)
}

fn holding<R>(object: u64, call: impl FnOnce() -> R) -> R {
    let slot = thread_slot();
    // SAFETY: the slot is the thread's own.
    unsafe {
        let before = [(*slot)[START], (*slot)[OBJECT]];
        (*slot)[OBJECT] = object;
        (*slot)[START] = arch::stack_pointer() as u64;
        (*slot)[LET_GO] = 0;
        let result = call();
        [(*slot)[START], (*slot)[OBJECT]] = before;
        result
    }
}

/// The System V object in whose operation the thread that was interrupted at `context` stands: its kind,
/// and the id by which the program knows it.
pub(crate) fn awaited_object(context: &UserContext) -> Option<(u32, i32)> {
    // SAFETY: the slot is the thread's own, as is the context.
    let (start, object, interrupted) = unsafe {
        let slot = thread_slot();
        ((*slot)[START], (*slot)[OBJECT], context.returned(Errno::INTR))
    };
    let inside = start != 0 && context.machine.rsp as u64 <= start;
    #[expect(clippy::cast_possible_truncation, reason = "two halves")]
    let halves = ((object >> 32) as u32, object as i32);
    (inside && object != 0 && interrupted).then_some(halves)
}

/// Ends the moment that `vfork` has begun.
pub(crate) fn end() {
    // SAFETY: the slot is the thread's own.
    unsafe { (*thread_slot())[START] = 0 };
}

/// Whether the thread that was interrupted at `context` has to go on before it can stop.
pub(crate) fn must_go_on(context: &UserContext) -> bool {
    let slot = thread_slot();
    // SAFETY: the slot is the thread's own, as is the context.
    let (start, let_go, call) =
        unsafe { ((*slot)[START], (*slot)[LET_GO], context.about_to_call()) };
    let inside = start != 0 && context.machine.rsp as u64 <= start;
    // What has received nothing yet holds nothing.
    // SAFETY: as above.
    let has_failed = || unsafe {
        context.returned(Errno::INTR)
            && timed::certain_number_before(&context.machine) == Some(nr::RECVMSG)
    };
    let waits = matches!(call, Some(nr::WAIT4 | nr::WAITID | nr::RECVMSG))
        || awaited_object(context).is_some()
        || inside && has_failed();
    let must = inside && !waits
        || arch::is_in_stand_in(context.machine.rip)
        || compares_its_name(context)
        || returns_to_vdso(context);
    let goes_on = must && let_go < PATIENCE;
    // SAFETY: as above.
    unsafe { (*slot)[LET_GO] = if goes_on { let_go + 1 } else { 0 } };
    goes_on
}

/// Whether the thread is in a handler that has interrupted it in the vDSO, whose code may be elsewhere after a restart:
/// the kernel's signal frame above says where it returns to.
fn returns_to_vdso(context: &UserContext) -> bool {
    /// How far a handler's own frames and the kernel's may reach. Beyond that, it is stopped.
    const REACH: usize = 16 * 1024;
    /// `struct sigcontext` has the program counter, then the flags, then the segments, CS first.
    const CODE_SEGMENT: u64 = 0x33;
    const FLAGS_END: u64 = 1 << 22;
    // In a handler at least its own signal is blocked, but for SA_NODEFER.
    if context.mask == 0 {
        return false;
    }
    let mut words = [0u64; 128];
    let mut from = context.machine.rsp & !7;
    let end = from.saturating_add(REACH);
    while from < end {
        let len = ulpm_sys::read_own_memory(from, &mut words);
        let found = words[..len].windows(3).any(|part| {
            part[2] & 0xffff == CODE_SEGMENT
                && part[1] < FLAGS_END
                && usize::try_from(part[0]).is_ok_and(clock::is_in_vdso)
        });
        if found {
            return true;
        }
        if len < words.len() {
            return false; // Here the stack ends.
        }
        from += size_of_val(&words[2..]);
    }
    false
}

/// Whether the thread is in glibc's handler of the cancellation signal, which takes the signal only if
/// it was sent by the process itself: it compares the sender with the answer of getpid(2).
fn compares_its_name(context: &UserContext) -> bool {
    const SIGCANCEL: i32 = 32;
    /// Longer than the handler's code up to the comparison.
    const BEFORE: usize = 128;
    let rip = context.machine.rip;
    let handler = signal::action(SIGCANCEL, None).map_or(0, |action| action.handler);
    // SAFETY: the context is that of this thread, in its handler.
    let answered =
        || unsafe { context.follows_call() } && timed::number_before(&context.machine) == Some(nr::GETPID);
    handler > signal::SIG_IGN && (rip.wrapping_sub(handler) < BEFORE || answered())
}
