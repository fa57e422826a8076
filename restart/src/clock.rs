//! Clocks that count from a boot, and go on where they stood when the job was saved.
//!
//! A time namespace does it: the kernel then shifts CLOCK_MONOTONIC and CLOCK_BOOTTIME for all that the job asks,
//! waits for and sets, by whatever way. To make one takes CAP_SYS_ADMIN and CAP_SYS_TIME. Without them the job is
//! told by how much its clocks differ from this kernel's, and the library in each process reckons with that.

use std::fs::File;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::sync::atomic::Ordering;

use ulpm_protocol::table::Table;
use ulpm_sys::Timespec;

use crate::image_file::ImageFile;

const MONOTONIC: i32 = 1;
const BOOTTIME: i32 = 7;

/// While this lives, what the calling process forks is in the job's time.
#[derive(Debug)]
pub struct JobTime {
    /// Our own namespace, if there is another.
    own: Option<File>,
}

impl JobTime {
    /// Makes the namespace where that is allowed, and wanted; else tells the job by its table. The calling thread is
    /// the only one of its process, and cannot make others until this is dropped.
    #[must_use]
    pub fn enter(images: &[ImageFile], table: Table, namespace: bool) -> Self {
        // The latest of all processes' times: no clock of any of them goes backwards.
        let latest = |clock: fn(&ImageFile) -> i64| images.iter().map(clock).max().unwrap_or(0);
        let saved = [
            ("monotonic", MONOTONIC, latest(|image| image.meta.process.monotonic_ns)),
            ("boottime", BOOTTIME, latest(|image| image.meta.process.boottime_ns)),
        ];
        if namespace && let Some(own) = enter_namespace(saved) {
            return Self { own: Some(own) };
        }
        for (place, (_, clock, saved)) in table.header().clock_offsets.iter().zip(saved) {
            let now = ulpm_sys::clock_ns(clock).unwrap_or(saved);
            place.store(saved - now, Ordering::Relaxed);
        }
        Self { own: None }
    }
}

/// Makes a namespace in which clocks have these times now; returns the one that we are in.
fn enter_namespace(saved: [(&str, i32, i64); 2]) -> Option<File> {
    let own = JobTime { own: Some(File::open("/proc/self/ns/time").ok()?) };
    // SAFETY: the call takes a number.
    if unsafe { libc::unshare(libc::CLONE_NEWTIME) } < 0 {
        return None; // It is left, which does nothing.
    }
    // As seen from the first namespace; what we see ourselves may have been shifted before.
    let before = std::fs::read_to_string("/proc/self/timens_offsets").ok()?;
    let mut text = String::new();
    for (name, clock, saved) in saved {
        let now = ulpm_sys::clock_ns(clock).ok()?;
        let Timespec { sec, nsec } = Timespec::from_ns(offset(&before, name)? + saved - now);
        text += &format!("{name} {sec} {nsec}\n");
    }
    // Without the offsets there is no use in it: then it is left at once.
    std::fs::write("/proc/self/timens_offsets", text).ok()?;
    let mut own = own;
    own.own.take()
}

impl Drop for JobTime {
    fn drop(&mut self) {
        if let Some(own) = &self.own {
            // SAFETY: the call takes numbers. What may be entered may be left.
            unsafe { libc::setns(own.as_fd().as_raw_fd(), libc::CLONE_NEWTIME) };
        }
    }
}

/// The offset of a clock in the text of /proc/PID/timens_offsets, in nanoseconds.
fn offset(text: &str, name: &str) -> Option<i64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let mut numbers = line.split_whitespace().map(str::parse::<i64>);
    let (sec, nsec) = (numbers.next()?.ok()?, numbers.next()?.ok()?);
    Some(Timespec { sec, nsec }.as_ns())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_are_read() {
        let text = "monotonic        1000         5\nboottime           -2 999999999\n";
        assert_eq!(offset(text, "monotonic"), Some(1_000_000_000_005));
        assert_eq!(offset(text, "boottime"), Some(-1_000_000_001));
        assert_eq!(offset(text, "realtime"), None);
    }
}
