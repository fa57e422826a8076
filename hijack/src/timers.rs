//! POSIX timers (timer_create).
//!
//! The kernel lists them in /proc/self/timers and says for each how much time is left. What it says is kept
//! in this library's own memory, which is saved with the process. A restarted process makes its timers again
//! under the same numbers, for the program and its queued signals know them by these.

use core::cell::UnsafeCell;
use core::ffi::c_int;
use core::sync::atomic::{AtomicI32, AtomicUsize, Ordering};

use ulpm_sys::fmt::Text;
use ulpm_sys::proc::{decimal, hex, value};
use ulpm_sys::{Errno, SigEvent, TimerSpec, Timespec, oflag, pr, signal};

use crate::capture::text::{Lines, read_file};
use crate::capture::unsupported;
use crate::clock::{self, BOOTTIME, TIMER_ABSTIME};
use crate::critical::holding_name;
use crate::freeze::Failed;
use crate::next::next;
use crate::process::{self, PerProcess};
use crate::threads;

/// Timers that a process can have to be saved.
const MAX_TIMERS: usize = 1024;
/// How long the stopped threads may take to accept the signals of timers.
pub(crate) const COLLECT_NS: i64 = 2_000_000_000;
/// When a signal that waits is taken for that of a timer which has ended just now.
const SOON_NS: i64 = 1_000_000_000;
/// How many timers a restart makes and deletes to come to a number, where the kernel takes no wish: some seconds.
const MAX_SKIPPED: i32 = 20_000_000;

const SIGEV_NONE: i32 = 1;
const SIGEV_THREAD_ID: i32 = 4;

/// Clocks, from include/uapi/linux/time.h.
const REALTIME: i32 = 0;
const REALTIME_ALARM: i32 = 8;
const BOOTTIME_ALARM: i32 = 9;
const TAI: i32 = 11;

/// A timer as it was in the freeze.
#[derive(Clone, Copy, Debug)]
struct Saved {
    id: i32,
    /// A process or thread in it goes by the id that the program sees.
    clock: i32,
    value: u64,
    signo: i32,
    notify: i32,
    /// For `SIGEV_THREAD_ID`, as the program sees it.
    tid: i32,
    spec: TimerSpec,
    /// `spec.value` is a time of day.
    absolute: bool,
}

impl Saved {
    const NONE: Self = Self {
        id: 0,
        clock: 0,
        value: 0,
        signo: 0,
        notify: SIGEV_NONE,
        tid: 0,
        spec: TimerSpec {
            interval: Timespec { sec: 0, nsec: 0 },
            value: Timespec { sec: 0, nsec: 0 },
        },
        absolute: false,
    };
}

/// The timers of the last freeze, by number.
struct List(UnsafeCell<[Saved; MAX_TIMERS]>);
// SAFETY: used by the manager only, while it holds every other thread.
unsafe impl Sync for List {}
static LIST: List = List(UnsafeCell::new([Saved::NONE; MAX_TIMERS]));
static COUNT: AtomicUsize = AtomicUsize::new(0);

/// Numbers, plus one, of timers that were set to a time of day: of this the kernel tells nobody.
static ABSOLUTE: [AtomicI32; 64] = [const { AtomicI32::new(0) }; 64];

/// The list.
///
/// # Safety
///
/// The calling thread is the manager, and holds every other thread.
unsafe fn list() -> &'static mut [Saved; MAX_TIMERS] {
    // SAFETY: see `List`; each user below lets go of it before it calls another.
    unsafe { &mut *LIST.0.get() }
}

/// Takes note of the process's timers; returns the signals that they will send to the process soon after they
/// are made again, so that these need not be saved.
///
/// The signal of a timer that ends in the freeze waits for a stopped thread. Whatever has come until now, the
/// threads take once more; a timer that has ended, and whose end they have not taken, ends again at once.
///
/// # Errors
///
/// [`Failed`] names a timer that cannot be saved.
pub(crate) fn collect(own: &PerProcess) -> Result<u64, Failed> {
    COUNT.store(0, Ordering::Relaxed);
    let fd = ulpm_sys::open(c"/proc/self/timers", oflag::RDONLY | oflag::CLOEXEC);
    let Ok(fd) = fd else { return Ok(0) }; // A kernel without it cannot restart anything either.
    // SAFETY: a capture is made by the manager while all threads of the program stand still.
    let list = unsafe { list() };
    let found = read_list(fd, list);
    ulpm_sys::close(fd);
    let timers = &mut list[..found?];
    if timers.is_empty() {
        return Ok(0);
    }
    timers.sort_unstable_by_key(|timer| timer.id);
    for timer in &mut *timers {
        fit(own, timer)?;
        timer.spec = state(timer)?;
    }
    if !threads::collect_all_signals(own, ulpm_sys::monotonic_ns() + COLLECT_NS) {
        return Err(unsupported(format_args!(
            "its threads did not take the signals of its timers in time; try again"
        )));
    }
    let mut expected = 0;
    for index in 0..timers.len() {
        let alone = timers.iter().filter(|other| other.signo == timers[index].signo).count() == 1;
        let timer = &mut timers[index];
        let before = timer.spec.value.as_ns();
        timer.spec = state(timer)?;
        let left = timer.spec.value.as_ns();
        // Ended between the two looks, and no thread has taken that: its signal waits, or nobody wants it.
        let has_ended = if timer.spec.interval.as_ns() == 0 {
            before != 0 && left == 0 && !threads::hold_timer_signal(own, timer.id)
        } else {
            let wrapped = left > before && !threads::hold_timer_signal(own, timer.id);
            (alone || wrapped) && waits(timer)
        };
        let is_told = timer.notify & SIGEV_NONE == 0;
        if has_ended && is_told {
            timer.spec.value = Timespec::from_ns(1);
        } else if left != 0 && timer.absolute {
            let clock = if timer.clock == TAI { TAI } else { REALTIME };
            let now = ulpm_sys::clock_ns(clock).map_err(|e| Failed::system("read a clock", e))?;
            timer.spec.value = Timespec::from_ns(now.saturating_add(left));
        }
        timer.absolute &= left != 0 && !has_ended;
        if is_told
            && timer.notify & SIGEV_THREAD_ID == 0
            && (has_ended || left != 0 && left < SOON_NS)
        {
            expected |= signal::bit(timer.signo);
        }
    }
    COUNT.store(timers.len(), Ordering::Relaxed);
    Ok(expected)
}

/// Whether the signal of a timer waits for its thread, or for the process.
fn waits(timer: &Saved) -> bool {
    let mut buffer = [0; 4096];
    let (status, name) = if timer.notify & SIGEV_THREAD_ID == 0 {
        (read_file(c"/proc/self/status", &mut buffer), &b"ShdPnd:"[..])
    } else {
        let tid = threads::real_tid(timer.tid);
        let path = Text::<64>::path(format_args!("/proc/self/task/{tid}/status"));
        (read_file(path.c_str(), &mut buffer), &b"SigPnd:"[..])
    };
    value(status, name).and_then(hex).unwrap_or(0) & signal::bit(timer.signo) != 0
}

fn state(timer: &Saved) -> Result<TimerSpec, Failed> {
    ulpm_sys::timer_gettime(timer.id).map_err(|e| Failed::system("look at a timer", e))
}

/// Reads proc_pid_timers(5): four lines for each timer.
fn read_list(fd: i32, list: &mut [Saved]) -> Result<usize, Failed> {
    let strange = || unsupported(format_args!("/proc/self/timers is not as the manual says"));
    let mut buffer = [0; 512];
    let mut lines = Lines::new(fd, &mut buffer);
    let mut count = 0;
    while let Some(line) = lines.next() {
        let Some((name, text)) = split(line, b':') else { continue };
        let text = text.trim_ascii();
        if name == b"ID" {
            count += 1;
            if count > list.len() {
                return Err(unsupported(format_args!(
                    "it has more than {MAX_TIMERS} POSIX timers (timer_create), which is more than can be saved"
                )));
            }
            list[count - 1] = Saved { id: signed(text).ok_or_else(strange)?, ..Saved::NONE };
            continue;
        }
        let timer = count.checked_sub(1).and_then(|last| list.get_mut(last)).ok_or_else(strange)?;
        match name {
            b"signal" => {
                let (signo, value) = split(text, b'/').ok_or_else(strange)?;
                timer.signo = signed(signo).ok_or_else(strange)?;
                timer.value = hex(value).ok_or_else(strange)?;
            }
            b"notify" => {
                let (how, whom) = split(text, b'/').ok_or_else(strange)?;
                let (kind, id) = split(whom, b'.').ok_or_else(strange)?;
                // SIGEV_SIGNAL is 0, and SIGEV_THREAD means the same to the kernel.
                timer.notify = if how == b"none" { SIGEV_NONE } else { 0 };
                if kind == b"tid" {
                    timer.notify |= SIGEV_THREAD_ID;
                    timer.tid = signed(id).ok_or_else(strange)?;
                }
            }
            b"ClockID" => timer.clock = signed(text).ok_or_else(strange)?,
            _ => {}
        }
    }
    Ok(count)
}

/// The parts of `text` before and behind the first `delimiter`.
fn split(text: &[u8], delimiter: u8) -> Option<(&[u8], &[u8])> {
    let at = text.iter().position(|&byte| byte == delimiter)?;
    Some((&text[..at], &text[at + 1..]))
}

fn signed(digits: &[u8]) -> Option<i32> {
    let magnitude = |digits| decimal(digits).and_then(|number| i32::try_from(number).ok());
    match digits.strip_prefix(b"-") {
        Some(digits) => magnitude(digits).map(|number| -number),
        None => magnitude(digits),
    }
}

/// Gives what a timer names the ids by which the program knows it.
fn fit(own: &PerProcess, timer: &mut Saved) -> Result<(), Failed> {
    if timer.notify & SIGEV_THREAD_ID != 0 {
        match virtual_thread(own, timer.tid) {
            Some(tid) => timer.tid = tid,
            None => timer.notify = SIGEV_NONE, // The thread has ended: nobody gets the signal.
        }
    }
    timer.absolute = matches!(timer.clock, REALTIME | REALTIME_ALARM | TAI)
        && ABSOLUTE.iter().any(|slot| slot.load(Ordering::Relaxed) == timer.id + 1);
    let Some((id, kind)) = cpu_clock(timer.clock) else { return Ok(()) };
    let cannot = |why: &str| {
        let id = timer.id;
        unsupported(format_args!(
            "its POSIX timer {id} (timer_create) counts {why}, which cannot be saved; delete it before a checkpoint"
        ))
    };
    if kind & 3 == 3 {
        return Err(cannot("by a clock device"));
    }
    let name = if kind & CPU_OF_THREAD == 0 {
        match id {
            0 => return Ok(()),
            pid => process::table().map_or(pid, |table| table.virtual_of(pid)),
        }
    } else if id == 0 {
        // Of the thread that made it; the kernel tells nobody which that is, unless there is only one.
        let mut threads = threads::stopped(own);
        match (threads.next(), threads.next()) {
            // SAFETY: the thread stands still.
            (Some(only), None) => unsafe { (*only).virt },
            _ => return Err(cannot("the processor time of one of its threads")),
        }
    } else {
        virtual_thread(own, id)
            .ok_or_else(|| cannot("the processor time of a thread that has ended"))?
    };
    timer.clock = (!name << 3) | kind;
    Ok(())
}

/// A thread of this process that stands still, by the id that the program sees.
fn virtual_thread(own: &PerProcess, real: i32) -> Option<i32> {
    threads::stopped(own)
        // SAFETY: the thread stands still.
        .map(|stopped| unsafe { ((*stopped).tid, (*stopped).virt) })
        .find(|&(tid, _)| tid == real)
        .map(|(_, virt)| virt)
}

/// Bit of a CPU clock that is a thread's (include/linux/posix-timers_types.h).
const CPU_OF_THREAD: i32 = 4;

/// The process or thread of a CPU clock, 0 for the calling one, and the low bits that say of what kind it is.
fn cpu_clock(clock: i32) -> Option<(i32, i32)> {
    (clock < 0).then_some((!(clock >> 3), clock & 7))
}

/// Makes the timers of a restarted process again, not armed yet, when all its threads are back.
///
/// # Errors
///
/// In words.
pub(crate) fn make_again() -> Result<(), &'static str> {
    let count = COUNT.load(Ordering::Relaxed);
    if count == 0 {
        return Ok(());
    }
    // SAFETY: the manager of a restarted process holds all its threads until the first thaw.
    let timers = unsafe { &list()[..count.min(MAX_TIMERS)] };
    let restore_ids = |on: usize| {
        // SAFETY: the operation takes a number.
        unsafe { ulpm_sys::prctl(pr::TIMER_CREATE_RESTORE_IDS, [on, 0]) }.is_ok()
    };
    let by_wish = restore_ids(1);
    let result = timers.iter().try_for_each(|timer| make(timer, by_wish));
    if by_wish {
        restore_ids(0);
    }
    result
}

fn make(timer: &Saved, by_wish: bool) -> Result<(), &'static str> {
    let tid = threads::real_tid(timer.tid);
    let event = SigEvent::new(timer.value, timer.signo, timer.notify, tid);
    let clock = match cpu_clock(timer.clock) {
        Some((id, kind)) if id != 0 => {
            let real = if kind & CPU_OF_THREAD == 0 {
                process::table().map_or(id, |table| table.real_of(id))
            } else {
                threads::real_tid(id)
            };
            (!real << 3) | kind
        }
        _ => timer.clock,
    };
    let create = || match (clock, ulpm_sys::timer_create(clock, &event, timer.id)) {
        // Whoever may not wake a sleeping machine, or has none that sleeps, gets what there is.
        (REALTIME_ALARM, Err(_)) => ulpm_sys::timer_create(REALTIME, &event, timer.id),
        (BOOTTIME_ALARM, Err(_)) => ulpm_sys::timer_create(BOOTTIME, &event, timer.id),
        (_, made) => made,
    };
    // Before Linux 6.15 numbers are given in sequence, from 0 in a new process.
    for _ in 0..MAX_SKIPPED {
        match create() {
            Ok(id) if id == timer.id => return Ok(()),
            Ok(id) => {
                ulpm_sys::timer_delete(id);
                if by_wish || id > timer.id {
                    return Err("a POSIX timer's number is taken");
                }
            }
            Err(Errno::AGAIN) => {
                return Err(
                    "cannot make a POSIX timer: the limit on queued signals (ulimit -i) may be too low",
                );
            }
            Err(_) => return Err("the kernel refuses to make a POSIX timer"),
        }
    }
    Err("a POSIX timer's number is so high that it cannot be reached on this kernel")
}

/// Lets time begin to pass for the timers of a restarted process.
pub(crate) fn arm() {
    let count = COUNT.load(Ordering::Relaxed).min(MAX_TIMERS);
    // SAFETY: as in `make_again`.
    let timers = unsafe { &list()[..count] };
    for timer in timers.iter().filter(|timer| timer.spec.value.as_ns() != 0) {
        let flags = if timer.absolute { TIMER_ABSTIME } else { 0 };
        let _ = ulpm_sys::timer_settime(timer.id, flags, &timer.spec);
    }
}

next! {
    TIMER_CREATE = c"timer_create":
        unsafe extern "C" fn(c_int, *const SigEvent, *mut isize) -> c_int;
    TIMER_DELETE = c"timer_delete": unsafe extern "C" fn(isize) -> c_int;
    TIMER_SETTIME = c"timer_settime":
        unsafe extern "C" fn(isize, c_int, *const TimerSpec, *mut TimerSpec) -> c_int;
}

/// `timer_create`. Reason: a *name*: the thread that is to be told.
///
/// # Safety
///
/// As the manual page demands.
#[unsafe(no_mangle)]
unsafe extern "C" fn timer_create(
    clock: c_int,
    event: *const SigEvent,
    timer: *mut isize,
) -> c_int {
    // SAFETY: the caller vouches for the arguments.
    unsafe {
        let create = |event| {
            let result = TIMER_CREATE.get()(clock, event, timer);
            if result == 0 {
                clock::note_timer(*timer, clock);
            }
            result
        };
        match event.as_ref() {
            Some(named) if process::is_restarted() && named.notify == SIGEV_THREAD_ID => {
                holding_name(|| {
                    let mut event = *named;
                    event.tid = threads::real_tid(named.tid);
                    create(&raw const event)
                })
            }
            _ => create(event),
        }
    }
}

/// `timer_settime`. Reasons: a *fact*: whether the time is one of day, which passes while a program is saved; and the
/// *name* of a moment, see `clock`.
///
/// Of a timer that calls a function (`SIGEV_THREAD`) libc's handle does not say the number: that one goes on
/// with the time that was left.
///
/// # Safety
///
/// As the manual page demands.
#[unsafe(no_mangle)]
unsafe extern "C" fn timer_settime(
    timer: isize,
    flags: c_int,
    new: *const TimerSpec,
    old: *mut TimerSpec,
) -> c_int {
    if let Ok(id @ 0..=0x7fff_fffe) = i32::try_from(timer) {
        note_absolute(id, flags & TIMER_ABSTIME != 0);
    }
    // SAFETY: the caller vouches for the arguments.
    unsafe {
        let next = TIMER_SETTIME.get();
        let clock = || clock::clock_of_timer(timer);
        clock::set_timer(flags, new, clock, |new| next(timer, flags, new, old))
    }
}

/// `timer_delete`. Reason: as for `timer_settime`; its handle may be another timer's later.
///
/// # Safety
///
/// As the manual page demands.
#[unsafe(no_mangle)]
unsafe extern "C" fn timer_delete(timer: isize) -> c_int {
    clock::forget_timer(timer);
    // SAFETY: the caller vouches for the argument.
    unsafe { TIMER_DELETE.get()(timer) }
}

fn note_absolute(id: i32, absolute: bool) {
    let swap = |from, to| {
        ABSOLUTE.iter().any(|slot| {
            slot.compare_exchange(from, to, Ordering::Relaxed, Ordering::Relaxed).is_ok()
        })
    };
    while swap(id + 1, 0) {}
    if absolute {
        // Without room, it goes on with the time that was left.
        swap(0, id + 1);
    }
}
