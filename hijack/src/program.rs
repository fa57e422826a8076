//! What a program that knows of ULPM can ask of it (`plugins/include/ulpm.h`).
//!
//! The header finds [`ulpm_program`] by its name, so that a program needs no library of ours where there is no ULPM. A wish for
//! a checkpoint is counted here, and the manager woken, which says so to the coordinator; who waits for it waits for the answer, or
//! for being restarted. A section that holds checkpoints back is a counter, which the manager closes before a freeze when it
//! is 0, and opens behind the thaw.

use core::ffi::c_int;
use core::sync::atomic::{AtomicU32, Ordering};

use ulpm_protocol::manager::{FREEZE_COOKIE, FREEZE_SIGNAL, Failure};
use ulpm_sys::signal::{self, SigInfo};
use ulpm_sys::{Errno, Timespec};

use crate::freeze::Failed;
use crate::manager;
use crate::process::{self, PerProcess};

/// In the page that a fork wipes.
#[derive(Debug, Default)]
#[repr(C)]
pub(crate) struct Asked {
    /// Wishes for a checkpoint so far, and up to which one they were answered.
    wishes: AtomicU32,
    answered: AtomicU32,
    /// `errno` of the last answer, or 0.
    errno: AtomicU32,
    /// Sections that hold checkpoints back; [`CLOSED`] while there can be none.
    held: AtomicU32,
    /// 1 once there was such a section: the coordinator is to ask before a freeze.
    holds: AtomicU32,
    /// The manager's id, for whoever wants to wake it.
    manager: AtomicU32,
}

const CLOSED: u32 = u32::MAX;

/// How often this process was restarted.
static RESTARTS: AtomicU32 = AtomicU32::new(0);

/// What the header knows; new fields go last.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Program {
    size: u32,
    version: u32,
    job: extern "C" fn() -> u64,
    restarts: extern "C" fn() -> u64,
    checkpoint: extern "C" fn(i64) -> c_int,
    hold: extern "C" fn() -> c_int,
    release: extern "C" fn() -> c_int,
}

static PROGRAM: Program = Program {
    #[expect(clippy::cast_possible_truncation, reason = "some fifty bytes")]
    size: size_of::<Program>() as u32,
    version: 1,
    job,
    restarts,
    checkpoint,
    hold,
    release,
};

/// What `ulpm.h` looks for.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn ulpm_program() -> *const Program {
    &raw const PROGRAM
}

/// The job's id; 0 outside of one.
extern "C" fn job() -> u64 {
    process::table().map_or(0, |table| table.header().job)
}

extern "C" fn restarts() -> u64 {
    RESTARTS.load(Ordering::Acquire).into()
}

/// Asks for a checkpoint. False outside of a job.
pub(crate) fn wish() -> bool {
    let Some(own) = process::own() else { return false };
    own.asked.wishes.fetch_add(1, Ordering::AcqRel);
    wake(own);
    true
}

/// Asks for a checkpoint, and waits up to `timeout_ms` for it, for ever if that is negative: 1 when it is durable, 2 in a process that was
/// restarted, or an `errno` below 0.
extern "C" fn checkpoint(timeout_ms: i64) -> c_int {
    let Some(own) = process::own() else { return -Errno::NOSYS.raw() };
    let asked = &own.asked;
    let restarts = RESTARTS.load(Ordering::Acquire);
    let mine = asked.wishes.fetch_add(1, Ordering::AcqRel) + 1;
    let until = ulpm_sys::monotonic_ns().saturating_add(timeout_ms.saturating_mul(1_000_000));
    wake(own);
    loop {
        let answered = asked.answered.load(Ordering::Acquire);
        if RESTARTS.load(Ordering::Acquire) != restarts {
            return 2;
        }
        if answered.wrapping_sub(mine) < 1 << 31 {
            return match asked.errno.load(Ordering::Acquire).cast_signed() {
                0 => 1,
                errno => -errno,
            };
        }
        let left = until - ulpm_sys::monotonic_ns();
        if timeout_ms >= 0 && left <= 0 {
            return -Errno::TIMEDOUT.raw();
        }
        let left = (timeout_ms >= 0).then(|| Timespec::from_ns(left));
        let _ = ulpm_sys::futex_wait(&asked.answered, answered, left);
    }
}

/// Begins a section in which no checkpoint is taken; waits while one is.
extern "C" fn hold() -> c_int {
    let Some(own) = process::own() else { return -Errno::NOSYS.raw() };
    let held = &own.asked.held;
    loop {
        let now = held.load(Ordering::Acquire);
        if now == CLOSED {
            let _ = ulpm_sys::futex_wait(held, now, None);
        } else if held.compare_exchange(now, now + 1, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
            break;
        }
    }
    if own.asked.holds.swap(1, Ordering::AcqRel) == 0 {
        wake(own);
    }
    0
}

/// Ends such a section.
extern "C" fn release() -> c_int {
    let Some(own) = process::own() else { return -Errno::NOSYS.raw() };
    let held = &own.asked.held;
    loop {
        let now = held.load(Ordering::Acquire);
        if now == 0 || now == CLOSED {
            return -Errno::INVAL.raw();
        }
        if held.compare_exchange(now, now - 1, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
            if now == 1 {
                ulpm_sys::futex_wake_all(held);
            }
            return 0;
        }
    }
}

/// Has the manager look what is wished: by the signal that it lets through where it waits.
fn wake(own: &PerProcess) {
    manager::start(own);
    let manager = own.asked.manager.load(Ordering::Acquire);
    // One that is just beginning will look.
    if manager != 0 {
        let info = SigInfo::queued(FREEZE_SIGNAL, FREEZE_COOKIE);
        let _ = signal::queue_to_thread(ulpm_sys::getpid(), manager.cast_signed(), &info);
    }
}

// ---- On the manager

/// Takes note of the manager's id.
pub(crate) fn begin(own: &PerProcess) {
    own.asked.manager.store(ulpm_sys::gettid().cast_unsigned(), Ordering::Release);
}

/// Whether the calling thread is the manager, in the handler of the signal that woke it.
pub(crate) fn woken(own: &PerProcess) -> bool {
    own.asked.manager.load(Ordering::Acquire) == ulpm_sys::gettid().cast_unsigned()
}

/// Takes note that the process was restarted: all wishes are fulfilled.
pub(crate) fn restarted(own: &PerProcess) {
    RESTARTS.fetch_add(1, Ordering::AcqRel);
    own.asked.answered.store(own.asked.wishes.load(Ordering::Acquire), Ordering::Release);
}

/// Whether the coordinator is to ask before a freeze.
pub(crate) fn holds(own: &PerProcess) -> bool {
    own.asked.holds.load(Ordering::Acquire) != 0
}

/// The last wish, if it was not answered yet.
pub(crate) fn unanswered(own: &PerProcess) -> Option<u32> {
    let wishes = own.asked.wishes.load(Ordering::Acquire);
    (wishes != own.asked.answered.load(Ordering::Acquire)).then_some(wishes)
}

/// Takes note of an answer.
pub(crate) fn answer(own: &PerProcess, number: u32, errno: i32) {
    own.asked.errno.store(errno.cast_unsigned(), Ordering::Release);
    own.asked.answered.store(number, Ordering::Release);
    ulpm_sys::futex_wake_all(&own.asked.answered);
}

/// Lets no section begin from here on, and waits until none is under way.
///
/// # Errors
///
/// [`Failed`]: one goes on for too long.
pub(crate) fn close(own: &PerProcess, deadline_ms: u32) -> Result<(), Failed> {
    const SLICE_NS: i64 = 10_000_000;
    let held = &own.asked.held;
    let began = ulpm_sys::monotonic_ns();
    loop {
        match held.compare_exchange(0, CLOSED, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) | Err(CLOSED) => return Ok(()),
            Err(count) => {
                // A little less than the coordinator waits, so that it is told why.
                let ms = (ulpm_sys::monotonic_ns() - began) / 1_000_000;
                if ms > i64::from(deadline_ms) * 9 / 10 {
                    return Err(Failed::new(
                        Failure::Unsupported,
                        0,
                        format_args!(
                            "it has held checkpoints back for {ms} ms (ulpm_hold, {count} times): try again when it does not"
                        ),
                    ));
                }
                let _ = ulpm_sys::futex_wait(held, count, Some(Timespec::from_ns(SLICE_NS)));
            }
        }
    }
}

/// Lets sections begin again.
pub(crate) fn open(own: &PerProcess) {
    let held = &own.asked.held;
    if held.compare_exchange(CLOSED, 0, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
        ulpm_sys::futex_wake_all(held);
    }
}
