//! Objects that tell of events: eventfd, timerfd, signalfd and the pidfd of a process that is gone. The
//! pidfd of another is opened when that exists again (see `tree`).

use std::io::Write as _;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};

use ulpm_image::meta::{Description, EventCounter, EventTimer, description_kind};

use super::Builder;
use crate::error::{RestartError, system};
use crate::image_file::ImageFile;

/// `_IOW('T', 0, __u64)` (include/uapi/linux/timerfd.h).
const TFD_IOC_SET_TICKS: libc::c_ulong = 0x4008_5400;

impl Builder<'_> {
    /// Makes an object that needs no process.
    pub(super) fn event(&self, description: &Description) -> Result<OwnedFd, RestartError> {
        let metas = || self.images.iter().map(|image| &image.meta);
        let id = description.id;
        let counter = metas().flat_map(|meta| &meta.counters).find(|saved| saved.description == id);
        let timer =
            metas().flat_map(|meta| &meta.event_timers).find(|saved| saved.description == id);
        let signals =
            metas().flat_map(|meta| &meta.event_signals).find(|saved| saved.description == id);
        let made = match (counter, timer, signals) {
            (Some(saved), ..) => counter_of(saved)?,
            (_, Some(saved), _) => timer_of(saved)?,
            (.., Some(saved)) => signals_of(saved.mask)?,
            _ => gone_process()?,
        };
        // SAFETY: the call takes numbers only.
        if unsafe { libc::fcntl(made.as_raw_fd(), libc::F_SETFL, description.flags) } < 0 {
            return Err(system("set the flags of an eventfd, timerfd or signalfd"));
        }
        Ok(made)
    }
}

/// The process, as the program knows it, whose pidfd a description is; `None` if that process is gone.
pub(crate) fn process_of(images: &[ImageFile], description: &Description) -> Option<i32> {
    if description.kind != description_kind::EVENT {
        return None;
    }
    let mut processes = images.iter().flat_map(|image| &image.meta.event_processes);
    let found = processes.find(|process| process.description == description.id)?;
    (found.pid > 0).then_some(found.pid)
}

fn owned(returned: libc::c_long, what: &'static str) -> Result<OwnedFd, RestartError> {
    match libc::c_int::try_from(returned) {
        // SAFETY: the descriptor was just made and is nobody else's.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(system(what)),
    }
}

fn counter_of(saved: &EventCounter) -> Result<OwnedFd, RestartError> {
    let semaphore = if saved.semaphore { libc::EFD_SEMAPHORE } else { 0 };
    // SAFETY: the call takes numbers only.
    let made = unsafe { libc::eventfd(0, semaphore | libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
    let made = owned(made.into(), "make an eventfd")?;
    // Only the kernel can have added more than a program may.
    let count = saved.count.min(u64::MAX - 1);
    if count == 0 {
        return Ok(made);
    }
    let mut file = std::fs::File::from(made);
    file.write_all(&count.to_ne_bytes())
        .map_err(|source| RestartError::System { what: "fill an eventfd", source })?;
    Ok(file.into())
}

fn timer_of(saved: &EventTimer) -> Result<OwnedFd, RestartError> {
    // SAFETY: the call takes numbers only.
    let made = unsafe { libc::timerfd_create(saved.clock, libc::TFD_CLOEXEC) };
    owned(made.into(), "make a timerfd")
}

/// Sets a timer going. This is done by a process of the job, when its clocks go already.
pub(crate) fn arm(fd: RawFd, saved: &EventTimer) -> Result<(), RestartError> {
    /// A timer that has expired and may do so again gets this long before it does: the two calls below
    /// must not have its expiration between them.
    const SOON_NS: i64 = 1_000_000;
    let mut value_ns = saved.value_ns;
    if saved.ticks != 0 && value_ns != 0 && saved.flags == 0 {
        value_ns = value_ns.max(SOON_NS);
    }
    if value_ns != 0 {
        let time = |ns: i64| libc::timespec {
            tv_sec: ns.div_euclid(1_000_000_000),
            tv_nsec: ns.rem_euclid(1_000_000_000),
        };
        let spec =
            libc::itimerspec { it_interval: time(saved.interval_ns), it_value: time(value_ns) };
        // SAFETY: the structure lives as long as the call.
        let set = unsafe {
            libc::timerfd_settime(fd, saved.flags, &raw const spec, std::ptr::null_mut())
        };
        if set < 0 {
            return Err(system("set a timerfd"));
        }
    }
    if saved.ticks != 0 {
        // SAFETY: the call reads one word, which lives as long.
        let set = unsafe { libc::ioctl(fd, TFD_IOC_SET_TICKS, &raw const saved.ticks) };
        if set < 0 {
            return Err(system("give a timerfd its expirations (needs CONFIG_CHECKPOINT_RESTORE)"));
        }
    }
    Ok(())
}

fn signals_of(mask: u64) -> Result<OwnedFd, RestartError> {
    // The kernel's own set, which is shorter than libc's.
    // SAFETY: the call reads the 8 bytes of the mask.
    let made = unsafe {
        libc::syscall(libc::SYS_signalfd4, -1, &raw const mask, size_of::<u64>(), libc::SFD_CLOEXEC)
    };
    owned(made, "make a signalfd")
}

/// A pidfd of a process that has ended and was waited for.
fn gone_process() -> Result<OwnedFd, RestartError> {
    // SAFETY: this process has one thread; the child ends at once, and is waited for.
    unsafe {
        let child = libc::fork();
        if child == 0 {
            libc::_exit(0);
        }
        if child < 0 {
            return Err(system("fork"));
        }
        let made = owned(libc::syscall(libc::SYS_pidfd_open, child, 0), "open a pidfd");
        libc::waitpid(child, std::ptr::null_mut(), 0);
        made
    }
}
