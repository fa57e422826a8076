//! Objects that tell of events: eventfd, timerfd, signalfd, pidfd.
//!
//! Their state is asked of fdinfo (proc_pid_fdinfo(5)), which disturbs nothing.

use core::sync::atomic::AtomicU32;

use ulpm_image::Meta;
use ulpm_image::meta::{
    Description, EventCounter, EventProcess, EventSignals, EventTimer, description_kind as kind,
};
use ulpm_protocol::refused;
use ulpm_sys::fmt::Text;
use ulpm_sys::proc::{Stat, decimal, hex, octal, value};
use ulpm_sys::{Timespec, events, oflag};

use super::{Open, Subject, cannot, open_again};
use crate::capture::text::read_file;
use crate::freeze::Failed;

/// `CLOCK_REALTIME` and `CLOCK_REALTIME_ALARM`: clocks that have dates.
const DATED: [i32; 2] = [0, 8];
const TFD_TIMER_ABSTIME: i32 = 1;

/// What kind a description is whose link says that it is an object of the kernel and no file.
pub(super) fn kind(subject: &Subject<'_>, open: &Open) -> Result<u32, Failed> {
    if open.path.starts_with(b"pidfd:") {
        return pidfd(subject, open); // Linux 6.9 to 6.13
    }
    let name = open.path.strip_prefix(b"anon_inode:").unwrap_or(&open.path);
    match name {
        b"[eventfd]" | b"[timerfd]" | b"[signalfd]" => return Ok(kind::EVENT),
        b"[eventpoll]" => return Ok(kind::EPOLL),
        b"inotify" => return Ok(kind::NOTIFIER),
        b"[pidfd]" => return pidfd(subject, open),
        _ => {}
    }
    let why = refused::anonymous(name).unwrap_or("is an object of the kernel");
    Err(cannot(open, why))
}

/// Devices whose state is in the open file, so that it would be lost if the file were opened again.
pub(super) fn device(open: &Open) -> Result<(), Failed> {
    match refused::device(&open.path) {
        Some(why) => Err(cannot(open, why)),
        None => Ok(()),
    }
}

/// Whether the process of a pidfd is there after a restart too.
fn pidfd(subject: &Subject<'_>, open: &Open) -> Result<u32, Failed> {
    const PIDFD_THREAD: u32 = 0o200; // O_EXCL
    if open.flags & PIDFD_THREAD != 0 {
        return Err(cannot(open, "is a thread (PIDFD_THREAD)"));
    }
    let pid = process_of(open)?;
    let is_member = |pid| subject.table.by_real(pid).is_some();
    if pid < 0 || is_member(pid) {
        return Ok(kind::EVENT);
    }
    // One that has ended and that its parent has not waited for comes back as that.
    let path = Text::<32>::path(format_args!("/proc/{pid}/stat"));
    let mut buffer = [0; 512];
    let stat = Stat::parse(read_file(path.c_str(), &mut buffer));
    let is_ours = stat.is_some_and(|stat| {
        let parent = stat.number(4).and_then(|parent| i32::try_from(parent).ok());
        stat.field(3) == Some(b"Z") && parent.is_some_and(is_member)
    });
    if is_ours {
        Ok(kind::EVENT)
    } else {
        Err(cannot(open, "is a process outside the job (pidfd)"))
    }
}

/// The real id of the process of a pidfd; -1 if it is gone.
fn process_of(open: &Open) -> Result<i32, Failed> {
    let pid = value(&open.info, b"Pid:").ok_or_else(|| unknown(open))?;
    let pid = if pid.starts_with(b"-") {
        -1
    } else {
        number(pid, decimal).ok_or_else(|| unknown(open))?
    };
    // 0: in another namespace.
    if pid == 0 {
        Err(cannot(open, "is a process of another pid namespace (pidfd)"))
    } else {
        Ok(pid)
    }
}

/// For a kernel that does not say what an object is like.
fn unknown(open: &Open) -> Failed {
    cannot(open, "is an object that this kernel does not describe in fdinfo")
}

fn number<T: TryFrom<u64>>(digits: &[u8], read: impl Fn(&[u8]) -> Option<u64>) -> Option<T> {
    T::try_from(read(digits)?).ok()
}

pub(super) fn save(
    subject: &Subject<'_>,
    open: &Open,
    description: &Description,
    meta: &mut Meta,
) -> Result<(), Failed> {
    let description = description.id;
    let unknown = || unknown(open);
    let field = |name: &[u8]| value(&open.info, name);
    match open.path.strip_prefix(b"anon_inode:").unwrap_or(b"") {
        b"[eventfd]" => {
            let count = field(b"eventfd-count:").and_then(hex).ok_or_else(unknown)?;
            let semaphore = match field(b"eventfd-semaphore:").and_then(decimal) {
                Some(semaphore) => semaphore != 0,
                None => events::probe_semaphore(open.ours, count)
                    .map_err(|errno| Failed::system("look at an eventfd", errno))?,
            };
            meta.counters.push(EventCounter { description, count, semaphore });
        }
        b"[timerfd]" => meta.event_timers.push(timer(open, description).ok_or_else(unknown)?),
        b"[signalfd]" => {
            let mask = field(b"sigmask:").and_then(hex).ok_or_else(unknown)?;
            meta.event_signals.push(EventSignals { description, mask });
        }
        _ => {
            let pid = process_of(open)?;
            let pid = if pid < 0 { pid } else { subject.table.virtual_of(pid) };
            meta.event_processes.push(EventProcess { description, pid });
        }
    }
    Ok(())
}

/// Looks once more at timers that seem not to be set: one that is just due, and whose interrupt is still to come,
/// looks the same.
pub(super) fn look_again(task: i32, pidfd: i32, meta: &mut Meta) -> Result<(), Failed> {
    const INTERRUPT: Timespec = Timespec { sec: 0, nsec: 2_000_000 };
    let Meta { event_timers, descriptors, .. } = meta;
    let mut waited = false;
    for saved in event_timers.iter_mut().filter(|timer| timer.value_ns == 0 && timer.ticks == 0) {
        let mut found = descriptors.iter().filter(|fd| fd.description == saved.description);
        let Some(descriptor) = found.next() else { continue };
        if !waited {
            let _ = ulpm_sys::futex_wait(&AtomicU32::new(0), 0, Some(INTERRUPT));
            waited = true;
        }
        let open = open_again(task, pidfd, descriptor.fd)?;
        *saved = timer(&open, saved.description).ok_or_else(|| unknown(&open))?;
    }
    Ok(())
}

fn timer(open: &Open, description: u64) -> Option<EventTimer> {
    let field = |name: &[u8]| value(&open.info, name);
    let clock = field(b"clockid:").and_then(|digits| number(digits, decimal))?;
    let mut ticks = field(b"ticks:").and_then(decimal)?;
    let flags = field(b"settime flags:").and_then(|digits| number(digits, octal))?;
    let mut value_ns = field(b"it_value:").and_then(seconds)?;
    let interval_ns = field(b"it_interval:").and_then(seconds)?;
    if ticks != 0 && value_ns == 0 && interval_ns != 0 {
        // It stands still until somebody reads how often it has expired. To be asked for its time sets it
        // going, with what it has missed; for the program nothing is other than before.
        value_ns = events::timerfd_gettime(open.ours).ok()?[0].as_ns().max(1);
        let mut buffer = [0; 512];
        let path = Text::<64>::path(format_args!("/proc/thread-self/fdinfo/{}", open.ours));
        let info = read_file(path.c_str(), &mut buffer);
        ticks = value(info, b"ticks:").and_then(decimal)?;
    }
    let mut event = EventTimer { description, clock, ticks, flags: 0, value_ns, interval_ns };
    if value_ns != 0 && flags & TFD_TIMER_ABSTIME != 0 && DATED.contains(&clock) {
        event.flags = flags;
        event.value_ns = ulpm_sys::realtime_ns().saturating_add(value_ns);
    }
    Some(event)
}

/// `(seconds, nanoseconds)` in nanoseconds.
fn seconds(field: &[u8]) -> Option<i64> {
    let mut parts = field.strip_prefix(b"(")?.strip_suffix(b")")?.split(|&byte| byte == b',');
    let mut part = || number(parts.next()?.trim_ascii(), decimal);
    Some(Timespec { sec: part()?, nsec: part()? }.as_ns())
}

/// A word that tells objects apart which all have the inode of their kind: what they are, and for an eventfd
/// which one. It only spares comparisons.
pub(super) fn looks(open: &Open) -> u64 {
    if open.status.mode & ulpm_sys::mode::TYPE != 0 {
        return 0;
    }
    let number = value(&open.info, b"eventfd-id:").and_then(decimal).unwrap_or(0);
    let kind = open.path.iter().fold(0u64, |hash, &byte| hash.rotate_left(5) ^ u64::from(byte));
    kind.rotate_left(32) ^ number ^ u64::from(open.flags & oflag::NONBLOCK.cast_unsigned())
}
